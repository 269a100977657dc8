"""Ids that read well and sort by kind and name: `ds-identity-7f3k`, `job-…`, `ad-…`, `ex-…`, `pub-…`."""

import re
import secrets
from pathlib import Path

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
PREFIX = {"dataset": "ds", "job": "job", "adapter": "ad", "export": "ex", "publication": "pub"}


def slug(text: str, limit: int = 24) -> str:
    """`text` as lower-case letters, digits and single hyphens, at most `limit` long; `x` where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].strip("-") or "x"


def new_id(kind: str, name: str) -> str:
    """A new id of `kind` (a key of `PREFIX`); its tail is four random characters."""
    return f"{PREFIX[kind]}-{slug(name)}-{''.join(secrets.choice(ALPHABET) for _ in range(4))}"


def free_id(kind: str, name: str, parent: Path) -> str:
    """A new id that no folder in `parent` has, in any version: of a thousand things of one name two would share it."""
    while any(parent.glob(f"{(id := new_id(kind, name))}*")):
        pass
    return id


def id_within(kind: str, name: str, job_id: str) -> str:
    """The id of the one thing of `kind` that a job makes: the same each time the job runs, so a run after a kill finds
    what the killed one had finished.
    """
    return f"{PREFIX[kind]}-{slug(name)}-{job_id.rpartition('-')[2]}"
