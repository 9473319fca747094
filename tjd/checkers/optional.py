"""Packages that only some checkers need, imported at first use."""

from functools import cache
from importlib import import_module
from typing import Any

from tjd.errors import MissingExtraError


@cache
def import_extra(module: str) -> Any:
    """Import a module of the `eval` extra.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as missing:
        raise MissingExtraError(f"this checker needs extra packages ({module}): pip install 'tjd[eval]'") from missing
