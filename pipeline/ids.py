"""Ids that read well and sort by kind and name: `ds-identity-7f3k`, `job-…`, `ad-…`, `ex-…`, `pub-…`."""

import re
import secrets

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
PREFIX = {"dataset": "ds", "job": "job", "adapter": "ad", "export": "ex", "publication": "pub"}


def slug(text: str, limit: int = 24) -> str:
    """`text` as lower-case letters, digits and single hyphens, at most `limit` long; `x` where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].strip("-") or "x"


def new_id(kind: str, name: str) -> str:
    """A new id of `kind` (a key of `PREFIX`); its tail is four random characters."""
    return f"{PREFIX[kind]}-{slug(name)}-{''.join(secrets.choice(ALPHABET) for _ in range(4))}"
