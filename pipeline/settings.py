"""Where things lie and how this machine is set up. Read from the environment when asked, never at import."""

import os
from dataclasses import dataclass
from pathlib import Path

from tunewright.pipeline.errors import InvalidInput

ALLOW_DIRS = "TUNEWRIGHT_ALLOW_DIRS"
TRUST_REMOTE_CODE = "TUNEWRIGHT_TRUST_REMOTE_CODE"


@dataclass(frozen=True)
class Home:
    """The data home: one folder that holds everything Tunewright writes (see README, "Data home")."""

    root: Path

    @classmethod
    def open(cls, root: Path | str | None = None) -> "Home":
        """The home at `root`, else at `TUNEWRIGHT_HOME`, else `~/.tunewright`; makes its folders, mode 0700.

        Raises InvalidInput where the folder holds something else: it may be shared with others.
        """
        path = Path(root or os.environ.get("TUNEWRIGHT_HOME") or "~/.tunewright").expanduser().absolute()
        home = cls(path)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(path.iterdir()) and not home.datasets.is_dir():
            raise InvalidInput(
                "not_a_data_home",
                f"{path} holds other things than Tunewright's.",
                allowed="A data home is a folder of its own, readable by its owner alone: name a new or an empty one.",
            )
        path.chmod(0o700)
        for folder in (home.datasets, home.jobs, home.adapters, home.exports, home.models, home.cache):
            folder.mkdir(exist_ok=True)
        return home

    @property
    def database(self) -> Path:
        return self.root / "tunewright.db"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def cache(self) -> Path:
        return self.root / "cache"


def cache_home() -> Path:
    """What can be made again and outlives data homes: `TUNEWRIGHT_CACHE`, else `tunewright/` in the user's cache.

    That is `$XDG_CACHE_HOME`, else `~/.cache`. Made by whoever writes there first, mode 0700.
    """
    named = os.environ.get("TUNEWRIGHT_CACHE")
    if not named:
        named = f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/tunewright"
    return Path(named).expanduser().absolute()


def allowed_folders() -> list[Path]:
    """The folders (or single files) that `TUNEWRIGHT_ALLOW_DIRS` names, separated as in PATH (see `access`)."""
    named = os.environ.get(ALLOW_DIRS, "").split(os.pathsep)
    return [_expanded(name.strip()).absolute() for name in named if name.strip()]


def working_folder() -> Path | None:
    """The folder this process was started in, unless it is no folder of somebody's work.

    Hosts start servers in `/` or in the user's home: a folder that holds the whole home is nobody's working folder, nor
    is one that could not be written into `TUNEWRIGHT_ALLOW_DIRS`.
    """
    try:
        folder = Path.cwd().resolve()
    except FileNotFoundError:  # it was deleted
        return None
    return None if is_broad(folder) or os.pathsep in str(folder) else folder


def is_broad(folder: Path) -> bool:
    """Whether the folder is the root, or holds the user's whole home."""
    return folder == Path(folder.anchor) or _expanded("~").resolve().is_relative_to(folder)


def trusts_code_of(model: str) -> bool:
    """Whether `TUNEWRIGHT_TRUST_REMOTE_CODE` (`owner/name,…`, or whole paths) names it: its own Python may run."""
    return model in [name.strip() for name in os.environ.get(TRUST_REMOTE_CODE, "").split(",")]


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # a user without a home
        return Path(name)


def ollama_host() -> str:
    """Base URL of the Ollama server: `OLLAMA_HOST` with Ollama's own defaults filled in."""
    scheme, _, rest = os.environ.get("OLLAMA_HOST", "").strip().rpartition("://")
    # A port left out of a whole URL is its scheme's own: Ollama reads it so.
    usual_port = {"http": "80", "https": "443"}.get(scheme, "11434")
    authority, slash, path = rest.rstrip("/").partition("/")
    name, colon, port = authority.rpartition(":")
    if not colon or not port.isdigit():
        name, port = authority, usual_port
    # A server told to listen everywhere is reached at the loopback address.
    return f"{scheme or 'http'}://{'127.0.0.1' if name in ('0.0.0.0', '') else name}:{port}{slash}{path}"


def hub_endpoint() -> str:
    """Base URL of the Hub or of the mirror that `HF_ENDPOINT` names."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
