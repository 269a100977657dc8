"""The store: jobs, their events and metrics, and artifacts, in one SQLite file shared by every process of a home.

Guarantees: every change is one transaction; readers never wait for writers (WAL); a process killed at any moment
leaves the last whole transaction; what is stored can be read while the disk is full, where a change raises NoSpace.
Does not guarantee that a file named in a row still exists.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

# pydantic's own parser; the MCP SDK brings it.
from pydantic_core import from_json

from tunewright.pipeline import redact
from tunewright.pipeline.errors import InvalidInput, NoSpace, NotFound, call, nearest
from tunewright.pipeline.ids import PREFIX

# Each entry brings the schema from its index to the next version; entries are only ever added.
MIGRATIONS = [
    """
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,      -- submission order, the order of the queue
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        state TEXT NOT NULL,
        needs_device INTEGER NOT NULL,
        spec TEXT NOT NULL,                         -- JSON: the arguments of the work
        created_at REAL NOT NULL,
        started_at REAL,
        ended_at REAL,
        pid INTEGER,                                -- the worker, with its start time against reused pids
        pid_started REAL,
        restarts INTEGER NOT NULL DEFAULT 0,        -- automatic ones, at most jobs.MAX_RESTARTS
        cancel TEXT,                                -- 'keep' or 'discard' once asked for
        progress TEXT,                              -- JSON
        result TEXT,                                -- JSON
        error TEXT                                  -- JSON, TunewrightError.to_dict
    );
    CREATE INDEX jobs_state ON jobs(state);
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id TEXT NOT NULL,
        at REAL NOT NULL,
        level TEXT NOT NULL,                        -- info, warning, error
        code TEXT NOT NULL,
        message TEXT NOT NULL
    );
    CREATE INDEX events_job ON events(job_id);
    CREATE TABLE metrics (
        job_id TEXT NOT NULL,
        split TEXT NOT NULL,                        -- train or eval
        step INTEGER NOT NULL,
        at REAL NOT NULL,
        numbers TEXT NOT NULL,                      -- JSON: loss, learning_rate, tokens_per_s, …
        PRIMARY KEY (job_id, split, step)           -- a step done again after a resume replaces itself
    ) WITHOUT ROWID;
    CREATE TABLE artifacts (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,                         -- dataset, adapter, export, publication
        name TEXT NOT NULL,
        created_at REAL NOT NULL,
        job_id TEXT,                                -- the job that made it
        parents TEXT NOT NULL,                      -- JSON list of the ids that it needs or came from
        document TEXT NOT NULL                      -- JSON: everything else, by kind
    );
    CREATE INDEX artifacts_kind ON artifacts(kind, created_at);
    """,
    # What is asked for at every look: `jobs.newest`, whose order this is to the letter, and artifacts of every kind.
    """
    CREATE INDEX jobs_newest ON jobs(state='running' DESC, seq DESC);
    CREATE INDEX artifacts_newest ON artifacts(created_at);
    """,
]
# A caller waits so long for another's change; a job, which nobody waits for and which would fail, far longer.
BUSY_TIMEOUT_S, PATIENT_S = 30.0, 600.0
# Each thread has a connection of its own, whose cache would grow to 2 MB while a job's metrics do; the system keeps the
# file's pages in memory anyway.
CACHE_KIB = 256
# Of `numbers` a long run has thousands, read at every look at it: this parser takes a seventh of the time. Not for the
# others, which may hold half a character (a file's name that is no UTF-8): it refuses what json wrote of that.
JSON_COLUMNS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("spec", "progress", "result", "error", "parents", "document"), json.loads), "numbers": from_json
}  # fmt: skip
# What SQLite calls a disk without room: for the change itself, and for the two files beside the database that it needs.
DISK_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)

Row = dict[str, Any]


def _is_disk_full(error: sqlite3.OperationalError) -> bool:
    # Errors that Python's module makes itself, of text that is no UTF-8, say, have no code.
    return getattr(error, "sqlite_errorcode", None) in DISK_FULL


class Store:
    """One per process; safe to use from any thread (each has its own connection)."""

    def __init__(self, path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self._path, self._busy_timeout_s = path, busy_timeout_s
        self._local = threading.local()
        # SQLite does not wait while another process brings a new file to WAL mode: one opens at a time.
        with FileLock(path.with_name(f"{path.name}.lock"), thread_local=False):
            self._migrate()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None or self._local.is_frozen:
            self.close()
            connection, self._local.is_frozen = self._open()
            self._local.connection = connection
        return connection

    def _open(self) -> tuple[sqlite3.Connection, bool]:
        """A new connection, and whether it only sees the file as it is now: then the next use opens another."""
        connection = sqlite3.connect(self._path, timeout=self._busy_timeout_s, isolation_level=None)
        try:
            # In WAL mode NORMAL loses no consistency; a power cut may lose the last transactions, a kill none.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            # Reading needs the two files beside the database, which the first read makes.
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
            return connection, False
        except sqlite3.OperationalError as error:
            connection.close()
            log = self._path.with_name(f"{self._path.name}-wal")
            # Without them the file can be read as one that nobody changes, unless what changed lies in the log.
            if not _is_disk_full(error) or (log.exists() and log.stat().st_size):
                raise
            return sqlite3.connect(f"{self._path.as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None), True

    def close(self) -> None:
        """Closes this thread's connection; another thread's closes when the thread ends."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def _migrate(self) -> None:
        version = self.rows("PRAGMA user_version")[0]["user_version"]
        if version > len(MIGRATIONS):
            raise InvalidInput(
                "home_too_new",
                f"The data home's schema is version {version}, this Tunewright knows up to {len(MIGRATIONS)}.",
                allowed="Update Tunewright, or use another data home (TUNEWRIGHT_HOME).",
            )
        # A home as it should be is only read: also on a full disk a server starts.
        if version == len(MIGRATIONS):
            return
        self._connection().execute("PRAGMA journal_mode=WAL")
        with self.transaction() as db:
            for number in range(version, len(MIGRATIONS)):
                # executescript would commit the transaction first.
                for statement in MIGRATIONS[number].split(";\n"):
                    if statement.strip():
                        db.execute(statement)
                db.execute(f"PRAGMA user_version={number + 1}")

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """A write transaction: all of the block or nothing. Not to be nested. Raises NoSpace where the disk is full."""
        db = self._connection()
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and (self._local.is_frozen or _is_disk_full(error)):
                raise NoSpace(
                    "no_disk_space",
                    f"The disk of {self._path.parent} is full: nothing can be stored there.",
                    allowed="Free some space on it; what is stored can be read meanwhile.",
                    next="list_artifacts()",
                ) from error
            raise

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """The rows of a query, JSON columns decoded."""
        cursor = self._connection().execute(sql, values)
        names: list[str] = [column[0] for column in cursor.description or ()]
        found = [dict(zip(names, values, strict=True)) for values in cursor]
        for name in JSON_COLUMNS.keys() & set(names):
            decode = JSON_COLUMNS[name]
            for row in found:
                if row[name] is not None:
                    row[name] = decode(row[name])
        return found

    def execute(self, sql: str, *values: Any) -> int:
        """Runs one statement in its own transaction; returns the number of rows changed."""
        with self.transaction() as db:
            return db.execute(sql, values).rowcount

    # Events and metrics

    def add_job(self, job_id: str, kind: str, state: str, spec: Row, *, needs_device: bool) -> None:
        """Stores a new job and the first event of its history."""
        now = time.time()
        with self.transaction() as db:
            db.execute(
                "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,?,?,?,?,?)",
                (job_id, kind, state, needs_device, json.dumps(spec), now),
            )
            db.execute(
                "INSERT INTO events(job_id, at, level, code, message) VALUES (?,?,'info','submitted',?)",
                (job_id, now, f"{kind} submitted."),
            )

    def add_event(self, job_id: str, level: str, code: str, message: str) -> None:
        self.execute(
            "INSERT INTO events(job_id, at, level, code, message) VALUES (?,?,?,?,?)",
            job_id, time.time(), level, code, redact.without_secrets(message),
        )  # fmt: skip

    def events(self, job_id: str, limit: int = 50) -> list[Row]:
        """The last `limit` events of a job, oldest first."""
        return self.rows("SELECT * FROM events WHERE job_id=? ORDER BY id DESC LIMIT ?", job_id, limit)[::-1]

    def add_metric(self, job_id: str, split: str, step: int, numbers: dict[str, float]) -> None:
        """Stores the numbers of one step; a step that was there already is replaced."""
        self.execute(
            "INSERT OR REPLACE INTO metrics(job_id, split, step, at, numbers) VALUES (?,?,?,?,?)",
            job_id, split, step, time.time(), json.dumps(numbers),
        )  # fmt: skip

    def metrics(self, job_id: str, split: str | None = None) -> list[Row]:
        """A job's metrics by step: `step`, `split`, `at` and `numbers`."""
        if split is None:
            return self.rows("SELECT * FROM metrics WHERE job_id=? ORDER BY step, split", job_id)
        # In the order of the table's own key: nothing is sorted.
        return self.rows("SELECT * FROM metrics WHERE job_id=? AND split=? ORDER BY step", job_id, split)

    def metrics_at_ends(self, job_id: str, split: str, first: int, last: int) -> list[Row]:
        """The first `first` and the last `last` metrics of a split by step, none twice."""
        of_split = "SELECT * FROM metrics WHERE job_id=? AND split=?"
        begin = self.rows(f"{of_split} ORDER BY step LIMIT ?", job_id, split, first)
        if len(begin) < first:
            return begin
        after = f"{of_split} AND step>? ORDER BY step DESC LIMIT ?"
        return begin + self.rows(after, job_id, split, begin[-1]["step"], last)[::-1]

    def metrics_evenly(self, job_id: str, split: str, most: int) -> list[Row]:
        """About `most` metrics of a split at even distances of their steps, and the last one."""
        of_split = "FROM metrics WHERE job_id=? AND split=?"
        # One at a time: only then SQLite looks them up instead of reading the whole split.
        first, last = (
            self.rows(f"SELECT {end}(step) AS step {of_split}", job_id, split)[0]["step"] for end in ("min", "max")
        )
        if first is None:
            return []
        every = -(-(last - first + 1) // most)
        chosen = f"SELECT * {of_split} AND ((step - ?) % ? = 0 OR step = ?) ORDER BY step"
        return self.rows(chosen, job_id, split, first, every, last)

    def best_metric(self, job_id: str, split: str, name: str, *, highest: bool = False) -> tuple[int, float] | None:
        """The step and the value where the number called `name` was lowest or highest; None where no row has it."""
        # Of the row that max() or min() took its value from SQLite gives the other columns too. A NaN is no JSON to it.
        choose = "max" if highest else "min"
        value = "CASE WHEN json_valid(numbers) THEN json_extract(numbers, ?) END"
        query = f"SELECT step, {choose}({value}) AS best FROM metrics WHERE job_id=? AND split=?"
        [found] = self.rows(query, f"$.{name}", job_id, split)
        return None if found["best"] is None else (found["step"], found["best"])

    # Artifacts

    def add_artifact(
        self, id: str, kind: str, name: str, document: Row, *, parents: list[str], job_id: str | None = None
    ) -> None:
        self.execute(
            "INSERT INTO artifacts(id, kind, name, created_at, job_id, parents, document) VALUES (?,?,?,?,?,?,?)",
            id, kind, name, time.time(), job_id, json.dumps(parents), json.dumps(document),
        )  # fmt: skip

    def artifact(self, id: str, *kinds: str) -> Row:
        """The artifact with this id or unique prefix, of one of `kinds` where given. Raises NotFound, InvalidInput."""
        listing = call("list_artifacts", kind=kinds[0]) if kinds else "list_artifacts()"
        found = self._by_id("artifacts", id, listing, kinds)
        if kinds and found["kind"] not in kinds:
            raise InvalidInput(
                "wrong_kind",
                f"{found['id']} is of kind {found['kind']}.",
                allowed=f"Expected: {' or '.join(kinds)}, an id that begins with "
                f"{' or '.join(PREFIX[kind] + '-' for kind in kinds)}.",
                next=listing,
            )
        return found

    def artifacts(self, kind: str | None = None, limit: int = 1000, offset: int = 0) -> list[Row]:
        """Artifacts, newest first."""
        where, kinds = ("", []) if kind is None else ("WHERE kind=?", [kind])
        sql = f"SELECT * FROM artifacts {where} ORDER BY created_at DESC LIMIT ? OFFSET ?"
        return self.rows(sql, *kinds, limit, offset)

    def children(self, id: str) -> list[Row]:
        """The artifacts that name `id` among their parents."""
        return self.rows(
            "SELECT * FROM artifacts WHERE EXISTS (SELECT 1 FROM json_each(parents) WHERE json_each.value=?)", id
        )

    def job(self, id: str) -> Row:
        """The job with this id or unique prefix. Raises NotFound, InvalidInput."""
        return self._by_id("jobs", id, "get_status()")

    def _by_id(self, table: str, id: str, listing: str, kinds: tuple[str, ...] = ()) -> Row:
        found = self.rows(f"SELECT * FROM {table} WHERE id=?", id)
        if not found and id:
            found = self.rows(f"SELECT * FROM {table} WHERE substr(id, 1, ?)=?", len(id), id)
        if len(found) == 1:
            return found[0]
        what = "job" if table == "jobs" else "artifact"
        if found:
            ids = ", ".join(row["id"] for row in found[:8])
            raise InvalidInput(
                "ambiguous_id", f"{len(found)} {what}s begin with {id!r}.", allowed=f"They are: {ids}.", next=listing
            )
        recent = self.rows(f"SELECT id, kind FROM {table} ORDER BY created_at DESC LIMIT 500")
        known = [row["id"] for row in recent if not kinds or row["kind"] in kinds]
        kind = " or ".join(kinds) or what
        raise NotFound(f"{what}_not_found", f"No {kind} has the id {id!r}.", allowed=nearest(id, known), next=listing)
