"""Where the built-in packs lie: `resources/domains/NAME.yaml`, part of every installation."""

from importlib.resources import files
from pathlib import Path

SUFFIX = ".yaml"


def available() -> list[str]:
    """The names of the built-in packs, sorted."""
    return sorted(path.stem for path in _folder().glob(f"*{SUFFIX}"))


def path_of(name: str) -> Path:
    """The file of the built-in pack of that name, one of `available()`."""
    return _folder() / f"{name}{SUFFIX}"


def _folder() -> Path:
    # By name: what the agent reads is above the pipeline, whose modules never import it.
    return Path(str(files("tunewright.resources"))) / "domains"
