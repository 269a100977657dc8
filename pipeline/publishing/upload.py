"""Sends contents to the Hub ahead of the one commit that will name them, so that a repository changes at once or not.

Guarantees: what the Hub holds already is not sent again (by SHA-256, or by chunks where it speaks Xet), so an upload
that was killed goes on, without any state here. Progress is told in bytes; a cancel is heard while bytes flow, on a
connection that stands still within a minute. Not `HfApi.upload_folder` nor `upload_large_folder`: huggingface_hub 1.33
makes several commits of them.
"""

import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Cancelled
from tunewright.pipeline.publishing.layout import Content

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

POLL_S = 0.5
# The Hub takes no larger file into a commit itself; smaller ones the commit sends in a moment, whatever their kind.
SENT_AHEAD_BYTES = 10_000_000


def send(
    context: JobContext, api: "HfApi", repo_id: str, contents: Mapping[str, Content], stack: ExitStack
) -> "list[CommitOperationAdd]":
    """Uploads the large contents; returns the additions for the commit, usable while `stack` is open.

    Raises Cancelled, and what the Hub's client raises (see `hub_errors.answering`).
    """
    if _speaks_xet(api, repo_id):
        return _send_by_xet(context, api, repo_id, contents)
    return _send_by_http(context, api, repo_id, contents, stack)


def size_bytes(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _xet_token_url(api: "HfApi", repo_id: str) -> str:
    """Where the Hub gives out write tokens for Xet: https://huggingface.co/docs/xet/auth."""
    return f"{api.endpoint}/api/models/{repo_id}/xet-write-token/main"


def _speaks_xet(api: "HfApi", repo_id: str) -> bool:
    """Whether client and Hub both do; a mirror may know Git LFS alone. Raises where the Hub refuses a write token."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    # huggingface_hub brings it on the usual processors only.
    if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
        return False
    response = get_session().get(_xet_token_url(api, repo_id), headers=build_hf_headers(token=api.token))
    if response.status_code == 404:
        return False
    hf_raise_for_status(response)
    return True


def _send_by_xet(
    context: JobContext, api: "HfApi", repo_id: str, contents: Mapping[str, Content]
) -> "list[CommitOperationAdd]":
    """By chunks, of which those that Xet knows are not sent.

    The commit will have huggingface_hub read the files once more (400 MB/s), and find all of it there: its own call
    tells no progress and hears no cancel, so it cannot do the sending.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import build_hf_headers

    hf_xet: Any = import_module("hf_xet")  # has no types
    headers = build_hf_headers(token=api.token)
    additions = {path: CommitOperationAdd(path, content) for path, content in contents.items()}
    large = {path: file for path, file in contents.items() if isinstance(file, Path) and _is_sent_ahead(file)}
    if not large:
        return list(additions.values())
    commit = hf_xet.XetSession().new_upload_commit(
        token_refresh_url=_xet_token_url(api, repo_id),
        token_refresh_headers=headers,
        custom_headers={name: value for name, value in headers.items() if name.lower() != "authorization"},
    )
    handles = {path: commit.start_upload_file(str(file), sha256=hf_xet.COMPUTE_SHA256) for path, file in large.items()}
    _watch(
        context, commit.wait_to_finish, commit.abort,
        lambda: ("uploading", commit.progress().total_bytes_completed), sum(map(size_bytes, large.values())),
    )  # fmt: skip
    for path, handle in handles.items():
        additions[path].upload_info.sha256 = bytes.fromhex(handle.result().xet_info.sha256)
    return list(additions.values())


def _is_sent_ahead(file: Path) -> bool:
    return size_bytes(file) >= SENT_AHEAD_BYTES


class _Watched(io.BufferedReader):
    """A file that knows how far it was read, and raises Cancelled in its reader once it is told to stop.

    As an open file, and not a path, huggingface_hub sends it by Git LFS over HTTP, whatever else is installed.
    """

    def __init__(self, file: Path, stopped: Callable[[], bool]) -> None:
        super().__init__(io.FileIO(file))
        self.stopped, self.read_bytes = stopped, 0

    def read(self, size: int | None = -1, /) -> bytes:
        if self.stopped():
            raise Cancelled
        data = super().read(size)
        # Not what a retry reads again.
        self.read_bytes = max(self.read_bytes, self.tell())
        return data


def _send_by_http(
    context: JobContext, api: "HfApi", repo_id: str, contents: Mapping[str, Content], stack: ExitStack
) -> "list[CommitOperationAdd]":
    """By Git LFS: file by file, of which those whose SHA-256 the Hub knows are not sent."""
    from huggingface_hub import CommitOperationAdd

    stops: list[bool] = []
    opened = {
        path: stack.enter_context(_Watched(file, lambda: bool(stops)))
        for path, file in contents.items()
        if isinstance(file, Path)
    }
    phase = ["hashing"]

    def work() -> "list[CommitOperationAdd]":
        additions = [CommitOperationAdd(path, opened.get(path, content)) for path, content in contents.items()]
        phase[:] = ["uploading"]
        for file in opened.values():
            file.read_bytes = 0
        # Each content once: huggingface_hub 1.33 would read one open file in two threads for its two places.
        distinct = {addition.upload_info.sha256: addition for addition in additions}
        api.preupload_lfs_files(repo_id, list(distinct.values()), free_memory=False)
        return additions

    return _watch(
        context, work, lambda: stops.append(True),
        lambda: (phase[0], sum(file.read_bytes for file in opened.values())), sum(map(size_bytes, contents.values())),
    )  # fmt: skip


def _watch(
    context: JobContext,
    work: Callable[[], Any],
    stop: Callable[[], object],
    seen: Callable[[], tuple[str, int]],
    total_bytes: int,
) -> Any:
    """Runs `work` in a thread, telling the phase and the bytes that `seen` returns; `stop` ends it when cancelled."""
    with ThreadPoolExecutor(1, "hub-upload") as pool:
        future = pool.submit(work)
        try:
            while not future.done():
                phase, done_bytes = seen()
                context.progress(phase, done_bytes, total_bytes)
                context.check_cancelled()
                wait([future], timeout=POLL_S)
        except BaseException:
            stop()
            raise
    return future.result()
