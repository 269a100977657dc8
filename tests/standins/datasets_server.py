"""A stand-in for the Hugging Face Hub's datasets: real HTTP on the loopback, enough for the `datasets` library.

Speaks dataset information, file listings, path information and resolving (whole files and ranges). It has one
revision of each dataset, no Xet, and no viewer, as for a new dataset.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from standins.serving import Handler, StandIn

API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class DatasetsStandIn(StandIn):
    """`with DatasetsStandIn({"owner/name": {"train.jsonl": b"…"}}) as hub:` serves at `hub.url`.

    Of datasets in `gated` everyone sees the names of the files, and only `token` their content, as on the Hub.
    """

    datasets: dict[str, dict[str, bytes]]
    gated: frozenset[str] = frozenset()
    token: str = "hf_standin"
    downloads: list[str] = field(default_factory=list[str], kw_only=True)


class _Handler(Handler):
    state: DatasetsStandIn

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.state.requests.append(f"{self.command} {self.path}")
        body = self.read_body() if self.command == "POST" else b""
        path = unquote(urlsplit(self.path).path)
        if api := API.fullmatch(path):
            if (files := self._files(api[1])) is not None:
                self._answer_api(api[1], files, api[2], api[4] or "", body)
        elif not (file := FILE.fullmatch(path)):
            self._refuse(404, "EntryNotFound")
        elif file[1] in self.state.gated and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            self._refuse(401, "GatedRepo")
        elif (files := self._files(file[1])) is not None:
            self._answer_file(files, file[1], file[3])

    def _files(self, id: str) -> dict[str, bytes] | None:
        if id not in self.state.datasets:
            self._refuse(404, "RepoNotFound")
            return None
        return self.state.datasets[id]

    def _refuse(self, status: int, code: str) -> None:
        self.send_json(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _answer_api(self, id: str, files: dict[str, bytes], what: str | None, below: str, body: bytes) -> None:
        if what == "tree":
            is_deep = "recursive=true" in urlsplit(self.path).query.lower()
            inside = {
                name: entry for name, entry in _entries(files).items() if name.startswith(f"{below}/" * bool(below))
            }
            self.send_json(200, [e for n, e in inside.items() if is_deep or "/" not in n[len(below) + bool(below) :]])
        elif what == "paths-info":
            known = _entries(files)
            self.send_json(200, [known[name] for name in json.loads(body)["paths"] if name in known])
        else:
            siblings = [{"rfilename": name} for name in files]
            self.send_json(200, {"id": id, "sha": _sha(files), "siblings": siblings, "tags": [], "private": False})

    def _answer_file(self, files: dict[str, bytes], id: str, name: str) -> None:
        if name not in files:
            self._refuse(404, "EntryNotFound")
            return
        content, status = files[name], 200
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": _sha(files)}
        if wanted := RANGE.fullmatch(self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(content)), "Accept-Ranges": "bytes"}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.state.downloads.append(f"{id}/{name}")
            self.wfile.write(content)


def _sha(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def _entries(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """What the Hub says of each file and folder."""
    folders = {name.rsplit("/", n)[0] for name in files for n in range(1, name.count("/") + 1)}
    entries = {name: {"type": "directory", "path": name, "oid": "0" * 40} for name in sorted(folders)}
    for name, content in files.items():
        entries[name] = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    return entries


DatasetsStandIn.handler = _Handler
