"""What every part of the pipeline is given: the data home, its store, and how jobs are run."""

from dataclasses import dataclass
from pathlib import Path

from tunewright.pipeline.files import remove_stale_partials
from tunewright.pipeline.settings import Home
from tunewright.pipeline.store import BUSY_TIMEOUT_S, Store


@dataclass(frozen=True)
class Workspace:
    """`inline` runs jobs in a thread of this process, not in a worker (debugging, hosts that forbid children)."""

    home: Home
    store: Store
    inline: bool = False

    @classmethod
    def open(
        cls, root: Path | str | None = None, *, inline: bool = False, busy_timeout_s: float = BUSY_TIMEOUT_S
    ) -> "Workspace":
        """The workspace over the home at `root` (see `Home.open`); makes or migrates its store."""
        home = Home.open(root)
        for folder in (home.datasets, home.jobs, home.adapters, home.exports, home.models, home.cache):
            remove_stale_partials(folder)
        return cls(home, Store(home.database, busy_timeout_s), inline)
