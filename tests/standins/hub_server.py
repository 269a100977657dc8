"""A stand-in for the Hugging Face Hub: real HTTP on the loopback, enough for the real client to publish a model.

Speaks repository creation and information, pre-upload, Git LFS (batch, upload in one piece or in parts, verification),
commits on a parent, listings, and where `xet` names a folder the giving out of write tokens for Xet, whose client then
writes its chunks into that folder. Files below `LFS_FROM_BYTES` are regular ones unless their suffix is a weight's, as
on the Hub. It keeps every repository as it was committed.
"""

import base64
import hashlib
import json
import math
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from standins.serving import Handler, StandIn

LFS_FROM_BYTES = 10_000_000
LFS_SUFFIXES = (".safetensors", ".gguf", ".bin")
READ_BYTES = 65536
STALL_TIMEOUT_S = 60
TOKEN_VALID_S = 3600


@dataclass
class Repository:
    """`large` holds the SHA-256 of the files that came by Git LFS or Xet, by path; those of Xet are here without bytes,
    and `sizes` knows how large they are."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    large: dict[str, str] = field(default_factory=dict[str, str])
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    commits: list[str] = field(default_factory=list[str])

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((len(self.commits), sorted(self.files))).encode()).hexdigest()

    def oid(self, path: str) -> str | None:
        """As the Hub names a file's content: SHA-256 of a large one, git's SHA-1 of another."""
        if path in self.large:
            return self.large[path]
        content = self.files.get(path)
        return None if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class HubStandIn(StandIn):
    """`with HubStandIn(token="…") as hub:` serves at `hub.url` until the block ends.

    Every API call needs `token`. `refuse_commit` is the status with which commits are refused, `refuse_lfs` the one for
    the content of large files, `refuse_write` status and words for whoever asks where to put them. `drops` is how many
    uploads break off halfway. A request whose path holds `stall` is never answered: an upload is read to its half, a
    commit is made; `stalled` tells of it, `released` lets it go. `pace_s` is the time that 64 KiB take. Files above
    `part_bytes` come in parts. `received_bytes` is what came of large files.
    """

    token: str
    user: str = "tester"
    xet: Path | None = None
    refuse_commit: int | None = None
    refuse_lfs: int | None = None
    refuse_write: tuple[int, str] | None = None
    drops: int = 0
    stall: str | None = None
    pace_s: float = 0.0
    part_bytes: int | None = None
    received_bytes: int = 0
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    repositories: dict[str, Repository] = field(default_factory=dict[str, Repository])
    stored: dict[str, bytes] = field(default_factory=dict[str, bytes])
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict[str, dict[int, bytes]])

    def commit(self, repository: Repository, lines: list[dict[str, Any]]) -> bool:
        """Applies a commit's operations, or returns False where it is not on the head. Raises KeyError where a large
        file was never uploaded."""
        files, large, sizes = dict(repository.files), dict(repository.large), dict(repository.sizes)
        summary = ""
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    summary = value["summary"]
                    if value.get("parentCommit", repository.sha) != repository.sha:
                        return False
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                    large.pop(value["path"], None)
                case "lfsFile":
                    files[value["path"]] = self._large(value["oid"])
                    large[value["path"]], sizes[value["path"]] = value["oid"], value["size"]
                case "deletedFile":
                    del files[value["path"]]
                    large.pop(value["path"], None)
                case unknown:
                    raise ValueError(f"unknown operation {unknown}")
        repository.files, repository.large, repository.sizes = files, large, sizes
        repository.commits.append(summary)
        return True

    def _large(self, oid: str) -> bytes:
        """The content. Of Xet's only that it is registered: in a shard, its SHA-256 as four little-endian words."""
        shards = [] if self.xet is None else list((self.xet / "xet" / "xorbs" / "shards").glob("*.mdb"))
        words = b"".join(bytes.fromhex(oid)[start : start + 8][::-1] for start in range(0, 32, 8))
        return b"" if any(words in shard.read_bytes() for shard in shards) else self.stored[oid]


class _Handler(Handler):
    state: HubStandIn

    def _path(self) -> str:
        self.state.requests.append(f"{self.command} {self.path}")
        return urlsplit(self.path).path

    def _is_allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.state.token}":
            return True
        self.send_json(401, {"error": "Invalid credentials in Authorization header"})
        return False

    def _stalls(self) -> bool:
        if not (self.state.stall and self.state.stall in self.path):
            return False
        self.state.stalled.set()
        self.state.released.wait(STALL_TIMEOUT_S)
        return True

    def _repository(self, path: str) -> tuple[str, Repository | None]:
        """The id in `/api/models/owner/name…` and its repository."""
        repo_id = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        return repo_id, self.state.repositories.get(repo_id)

    def do_GET(self) -> None:
        path = self._path()
        if not self._is_allowed():
            return
        if path == "/api/whoami-v2":
            self.send_json(200, {"type": "user", "name": self.state.user, "orgs": []})
            return
        repo_id, repository = self._repository(path)
        if repository is None:
            self.send_json(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif "/xet-write-token/" in path:
            self._give_xet_token()
        elif "/tree/" in path:
            self.send_json(200, [self._entry(repository, name) for name in repository.files])
        else:
            siblings = [{"rfilename": name} for name in repository.files]
            about = {"id": repo_id, "modelId": repo_id, "private": repository.private, "sha": repository.sha}
            self.send_json(200, {**about, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def _give_xet_token(self) -> None:
        """As https://huggingface.co/docs/xet/auth says; Xet's client takes a folder for a server of chunks."""
        if self.state.xet is None:
            self.send_json(404, {"error": "Not found"})
        elif self.state.refuse_write:
            self._refuse(*self.state.refuse_write)
        else:
            expiry, where = int(time.time()) + TOKEN_VALID_S, f"local://{self.state.xet}"
            self.send_json(200, {"casUrl": where, "accessToken": "chunks", "exp": expiry})

    def _refuse(self, status: int, words: str) -> None:
        self.send_json(status, {"error": words}, X_Error_Message=words)

    def _entry(self, repository: Repository, name: str) -> dict[str, Any]:
        content, sha256 = repository.files[name], repository.large.get(name)
        entry = {"type": "file", "path": name, "size": len(content), "oid": repository.oid(name)}
        if sha256 is None:
            return entry
        size = repository.sizes[name]
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        lfs = {"oid": sha256, "size": size, "pointerSize": len(pointer)}
        return {**entry, "size": size, "oid": hashlib.sha1(pointer).hexdigest(), "lfs": lfs}

    def do_PUT(self) -> None:
        path = self._path()
        body = self._read_upload()
        if body is None:
            self.close_connection = True
        elif self.state.refuse_lfs:
            self.send_json(self.state.refuse_lfs, {"error": "refused"})
        elif path.startswith("/lfs-part/"):
            oid, number = path.removeprefix("/lfs-part/").split("/")
            self.state.parts.setdefault(oid, {})[int(number)] = body
            self.send_json(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
        else:
            self._store(path.removeprefix("/lfs/"), body)

    def _read_upload(self) -> bytes | None:
        """The body; None where it broke off halfway."""
        total, body = int(self.headers.get("Content-Length", 0)), b""
        while len(body) < total:
            chunk = self.rfile.read(min(READ_BYTES, total - len(body)))
            if not chunk:
                return None
            body += chunk
            self.state.received_bytes += len(chunk)
            time.sleep(self.state.pace_s)
            if len(body) >= total / 2:
                if self.state.drops:
                    self.state.drops -= 1
                    return None
                if self._stalls():
                    return None
        return body

    def _store(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self.send_json(400, {"error": "the content does not have this SHA-256"})
        else:
            self.state.stored[oid] = body
            self.send_json(200)

    def do_POST(self) -> None:
        path, body = self._path(), self.read_body()
        if path.startswith("/lfs-complete/"):  # signed by its address, as the parts are
            wanted = json.loads(body)
            parts = self.state.parts[wanted["oid"]]
            self._store(wanted["oid"], b"".join(parts[part["partNumber"]] for part in wanted["parts"]))
            return
        if not self._is_allowed():
            return
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body)["objects"])
        elif path.startswith("/lfs-verify/"):
            self.send_json(200 if json.loads(body)["oid"] in self.state.stored else 404)
        else:
            self._change(path, body)

    def _create(self, request: dict[str, Any]) -> None:
        repo_id = f"{request.get('organization') or self.state.user}/{request['name']}"
        url = f"{self.state.url}/{repo_id}"
        if repo_id in self.state.repositories:
            self.send_json(409, {"error": "You already created this model repo", "url": url})
            return
        # Public unless said otherwise, as on the Hub.
        private = request.get("private") is True or request.get("visibility") == "private"
        self.state.repositories[repo_id] = Repository(private)
        self.send_json(200, {"url": url, "id": repo_id, "name": repo_id})

    def _validate(self, content: str) -> None:
        import yaml

        _, _, rest = content.partition("---\n")
        try:
            front = yaml.safe_load(rest.partition("\n---\n")[0])
        except yaml.YAMLError as error:
            self.send_json(400, {"errors": [{"message": str(error)}], "warnings": []})
            return
        warnings = [] if isinstance(front, dict) and front else [{"message": "empty or missing yaml metadata"}]
        self.send_json(200, {"errors": [], "warnings": warnings})

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        if self.state.refuse_write:
            self._refuse(*self.state.refuse_write)
        else:
            self.send_json(200, {"transfer": "basic", "objects": [self._lfs(each) for each in objects]})

    def _lfs(self, wanted: dict[str, Any]) -> dict[str, Any]:
        oid, size, url = wanted["oid"], wanted["size"], self.state.url
        if oid in self.state.stored:
            return wanted
        upload: dict[str, Any] = {"href": f"{url}/lfs/{oid}"}
        if self.state.part_bytes and size > self.state.part_bytes:
            count = math.ceil(size / self.state.part_bytes)
            places = {str(number): f"{url}/lfs-part/{oid}/{number}" for number in range(1, count + 1)}
            upload = {
                "href": f"{url}/lfs-complete/{oid}", "header": {"chunk_size": str(self.state.part_bytes), **places}
            }  # fmt: skip
        return {**wanted, "actions": {"upload": upload, "verify": {"href": f"{url}/lfs-verify/{oid}"}}}

    def _change(self, path: str, body: bytes) -> None:
        repo_id, repository = self._repository(path)
        if repository is None:
            self.send_json(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif "/preupload/" in path:
            wanted = json.loads(body)["files"]
            if not self._stalls():
                self.send_json(200, {"files": [self._mode(repository, file) for file in wanted]})
        elif self.state.refuse_commit:
            self.send_json(self.state.refuse_commit, {"error": "refused"})
        elif not self.state.commit(repository, [json.loads(line) for line in body.splitlines()]):
            self.send_json(412, {"error": "A commit has happened since. Please refresh and try again."})
        elif not self._stalls():
            url = f"{self.state.url}/{repo_id}/commit/{repository.sha}"
            self.send_json(200, {"success": True, "commitOid": repository.sha, "commitUrl": url})

    def _mode(self, repository: Repository, file: dict[str, Any]) -> dict[str, Any]:
        large = file["size"] >= LFS_FROM_BYTES or file["path"].endswith(LFS_SUFFIXES)
        mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        return {**mode, "oid": repository.oid(file["path"])}


HubStandIn.handler = _Handler
