"""Optional groups of packages: checked before any work starts, without importing them."""

from importlib.util import find_spec

from tjd.errors import MissingExtraError


def need(command: str, extra: str, *modules: str) -> None:
    """Raise unless the modules of an extra are installed.

    Raises:
        MissingExtraError: Says which command needs which `pip install`.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"tjd {command} needs extra packages ({', '.join(missing)}): pip install 'tjd[{extra}]'"
        )
