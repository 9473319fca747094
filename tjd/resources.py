"""Files shipped with the package: prompts and data, in a wheel (`tjd/_prompts`) or in a checkout (`prompts/`)."""

from pathlib import Path

HERE = Path(__file__).parent


def folder(name: str) -> Path:
    """The folder `prompts` or `data`, wherever this installation keeps it."""
    shipped = HERE / f"_{name}"
    return shipped if shipped.is_dir() else HERE.parent / name
