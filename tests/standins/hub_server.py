"""A stand-in for the Hugging Face Hub: real HTTP on the loopback, enough for the real client to publish a model.

Speaks repository creation and information, pre-upload, Git LFS (batch, upload, verification), commits and listings;
not Xet (set HF_HUB_DISABLE_XET=1). Files below `LFS_FROM_BYTES` are regular ones unless their suffix is a weight's,
as on the Hub. It keeps every repository as it was committed.
"""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from standins.serving import Handler, StandIn

LFS_FROM_BYTES = 10_000_000
LFS_SUFFIXES = (".safetensors", ".gguf", ".bin")


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[str] = field(default_factory=list[str])

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((len(self.commits), sorted(self.files))).encode()).hexdigest()


@dataclass
class HubStandIn(StandIn):
    """`with HubStandIn(token="…") as hub:` serves at `hub.url` until the block ends.

    Every API call needs `token`. `refuse_commit` is the status with which commits are refused, `refuse_lfs` the one
    for the content of large files.
    """

    token: str
    user: str = "tester"
    refuse_commit: int | None = None
    refuse_lfs: int | None = None
    repositories: dict[str, Repository] = field(default_factory=dict[str, Repository])
    stored: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
        """Applies a commit's operations. Raises KeyError where a large file was never uploaded."""
        changed = dict(repository.files)
        summary = ""
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    summary = value["summary"]
                case "file":
                    changed[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    changed[value["path"]] = self.stored[value["oid"]]
                case "deletedFile":
                    del changed[value["path"]]
                case unknown:
                    raise ValueError(f"unknown operation {unknown}")
        repository.files = changed
        repository.commits.append(summary)


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
        elif "/tree/" in path:
            self.send_json(200, [self._entry(name, content) for name, content in repository.files.items()])
        else:
            siblings = [{"rfilename": name} for name in repository.files]
            about = {"id": repo_id, "modelId": repo_id, "private": repository.private, "sha": repository.sha}
            self.send_json(200, {**about, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def do_PUT(self) -> None:
        oid, body = self._path().removeprefix("/lfs/"), self.read_body()
        if self.state.refuse_lfs:
            self.send_json(self.state.refuse_lfs, {"error": "refused"})
        elif hashlib.sha256(body).hexdigest() != oid:
            self.send_json(400, {"error": "the content does not have this SHA-256"})
        else:
            self.state.stored[oid] = body
            self.send_json(200)

    def do_POST(self) -> None:
        path, body = self._path(), self.read_body()
        if not self._is_allowed():
            return
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path.endswith("/info/lfs/objects/batch"):
            self.send_json(
                200, {"transfer": "basic", "objects": [self._lfs(each) for each in json.loads(body)["objects"]]}
            )
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

    def _lfs(self, wanted: dict[str, Any]) -> dict[str, Any]:
        oid = wanted["oid"]
        if oid in self.state.stored:
            return wanted
        links = {"upload": f"{self.state.url}/lfs/{oid}", "verify": f"{self.state.url}/lfs-verify/{oid}"}
        return {**wanted, "actions": {name: {"href": link} for name, link in links.items()}}

    def _change(self, path: str, body: bytes) -> None:
        repo_id, repository = self._repository(path)
        if repository is None:
            self.send_json(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif "/preupload/" in path:
            self.send_json(200, {"files": [self._mode(file) for file in json.loads(body)["files"]]})
        elif self.state.refuse_commit:
            self.send_json(self.state.refuse_commit, {"error": "refused"})
        else:
            self.state.commit(repository, [json.loads(line) for line in body.splitlines()])
            url = f"{self.state.url}/{repo_id}/commit/{repository.sha}"
            self.send_json(200, {"success": True, "commitOid": repository.sha, "commitUrl": url})

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["size"] >= LFS_FROM_BYTES or file["path"].endswith(LFS_SUFFIXES)
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


HubStandIn.handler = _Handler
