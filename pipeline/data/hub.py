"""Datasets of the Hugging Face Hub, streamed, and of ModelScope, downloaded.

Light until `blocks` is called, which belongs in a worker: it imports `datasets`. The Hub is reached through
HF_ENDPOINT, with the token in HF_TOKEN and no other. Code that a dataset brings along is never run.
"""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from tunewright.pipeline.data import folders
from tunewright.pipeline.data.blocks import Block
from tunewright.pipeline.data.columnar import rows_of
from tunewright.pipeline.data.llamafactory import LayoutHint
from tunewright.pipeline.data.reading import Reader
from tunewright.pipeline.errors import InvalidInput, NotFound, TunewrightError, Unavailable, call, nearest
from tunewright.pipeline.settings import hub_endpoint
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import IterableDataset
    from requests import HTTPError

NAME = r"[A-Za-z0-9][\w.-]*"
ID = re.compile(rf"{NAME}/{NAME}")
LINK = re.compile(
    rf"/datasets/({NAME}/{NAME})(?:/tree/[^/]+|/viewer/([^/]+)(?:/[^/]+)?|/(?:summary|files|dataPeview))?/?"
)
HUGGING_FACE_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")
MODELSCOPE_HOSTS = ("modelscope.cn", "www.modelscope.cn", "modelscope.ai", "www.modelscope.ai")
MODELSCOPE_PREFIX = "modelscope:"
HUB_PREFIX = "hf://datasets/"

HUB_TIMEOUT_S = 20
BATCH_ROWS = 1000
# Rows are dropped, repeated and chosen among later; with so many times the wanted ones read, the rest is not fetched.
READ_FACTOR, READ_SPARE = 10, 1000


@dataclass(frozen=True)
class RemoteDataset:
    """A dataset of a hub. `config` and `split` are its own words; `folder` limits it to one of its folders."""

    hub: Literal["huggingface", "modelscope"]
    id: str
    config: str | None = None
    split: str = "train"
    folder: str | None = None
    hint: LayoutHint | None = None


def named(given: str, split: str) -> RemoteDataset | None:
    """The dataset that `given` names beyond doubt: by a link, `hf://datasets/…` or `modelscope:…`; None for others.

    Raises InvalidInput `unsupported_link` for other links.
    """
    if given.startswith(MODELSCOPE_PREFIX):
        return RemoteDataset("modelscope", _checked_id(given, given.removeprefix(MODELSCOPE_PREFIX)), split=split)
    if given.startswith(HUB_PREFIX):
        return RemoteDataset("huggingface", _checked_id(given, given.removeprefix(HUB_PREFIX)), split=split)
    if given.startswith("file:"):
        path = "/" + given.removeprefix("file:").lstrip("/")
        raise InvalidInput(
            "unsupported_link", f"{given[:200]!r} is an address.", allowed="A file is named by its path.",
            next=call("prepare_dataset", source=path[:200]),
        )  # fmt: skip
    if not given.startswith(("http://", "https://", "hf://")):
        # A link copied without its scheme.
        if given.partition("/")[0] not in (*HUGGING_FACE_HOSTS, *MODELSCOPE_HOSTS):
            return None
        given = f"https://{given}"
    link = urlsplit(given)
    path = LINK.fullmatch(link.path)
    if path and link.netloc in (*HUGGING_FACE_HOSTS, urlsplit(hub_endpoint()).netloc):
        return RemoteDataset("huggingface", path[1], path[2], split)
    if path and link.netloc in MODELSCOPE_HOSTS:
        return RemoteDataset("modelscope", path[1], split=split)
    raise InvalidInput(
        "unsupported_link",
        f"{given[:200]!r} is no link to a dataset of the Hugging Face Hub or ModelScope.",
        allowed="Download the file and give its path, or give owner/name or modelscope:owner/name.",
        next=call("prepare_dataset", source="…/data.jsonl"),
    )


def blocks(remote: RemoteDataset, max_rows: int | None, workspace: Workspace) -> Iterator[Block]:
    """The rows of the dataset's split; with `max_rows` several times as many at most.

    Raises NotFound `hub_dataset_not_found`; InvalidInput `unknown_config`, `unknown_split`, `hub_dataset_unreadable`;
    Unavailable `hub_dataset_gated`, `hub_unreachable`, `modelscope_missing`. ModelScope's files stay in the cache.
    """
    if remote.hub == "modelscope":
        return _modelscope_blocks(remote, workspace)
    return _streamed_blocks(remote, max_rows)


def _checked_id(given: str, id: str) -> str:
    if ID.fullmatch(id.strip("/")):
        return id.strip("/")
    raise InvalidInput(
        "invalid_source",
        f"{given[:200]!r} names no dataset.",
        allowed='Form: "owner/name", "hf://datasets/owner/name" or "modelscope:owner/name"; a configuration is given '
        'beside it: {"source": "owner/name", "config": "…"}.',
    )


def _streamed_blocks(remote: RemoteDataset, max_rows: int | None) -> Iterator[Block]:
    enough = None if max_rows is None else READ_FACTOR * max_rows + READ_SPARE
    first = 1
    with _failures_named(remote):
        rows = _split_of(remote).with_format("arrow")
        tables = cast("Iterator[pa.Table]", rows.iter(batch_size=min(BATCH_ROWS, max_rows or BATCH_ROWS)))
        for table in tables:
            yield Block(first, rows=rows_of(table))
            first += table.num_rows
            if enough is not None and first > enough:
                return


def _split_of(remote: RemoteDataset) -> "IterableDataset":
    import datasets
    from huggingface_hub import HfApi

    datasets.disable_progress_bars()
    # False: not even a token that `hf auth login` has left on the machine.
    token = os.environ.get("HF_TOKEN") or False
    # Asked first because `datasets` tries for half a minute before it says that there is no Hub.
    HfApi(endpoint=hub_endpoint(), token=token).dataset_info(remote.id, timeout=HUB_TIMEOUT_S)
    try:
        builder = datasets.load_dataset_builder(remote.id, remote.config, data_dir=remote.folder, token=token)
    except ValueError as error:
        configs = _configs(remote, token)
        if remote.config in configs or (remote.config is None and len(configs) == 1):
            raise
        said = f"has no configuration {remote.config!r}" if remote.config else "has several configurations"
        shown = ", ".join(configs[:20]) + (f" and {len(configs) - 20} more" if len(configs) > 20 else "")
        raise InvalidInput(
            "unknown_config",
            f"{remote.id} {said}.",
            allowed=f"{nearest(remote.config, configs) if remote.config else ''} It has {shown}.",
            next=_again(remote, config=_closest(remote.config, configs)),
        ) from error
    splits: Any = builder.as_streaming_dataset()
    if remote.split not in splits:
        names = list(splits)
        raise InvalidInput(
            "unknown_split",
            f"{remote.id} has no split {remote.split!r}.",
            allowed=f"It has {', '.join(names)}.",
            next=_again(remote, split=_closest(remote.split, names)),
        )
    return splits[remote.split]


def _configs(remote: RemoteDataset, token: str | bool) -> list[str]:
    from datasets import get_dataset_config_names

    return get_dataset_config_names(remote.id, token=token)


def _closest(wanted: str | None, known: list[str]) -> str:
    return (get_close_matches(wanted or "", known, n=1, cutoff=0) or ["…"])[0]


def _again(remote: RemoteDataset, split: str | None = None, config: str | None = None) -> str:
    """The call for the same dataset, corrected."""
    config, given = config or remote.config, f"modelscope:{remote.id}" if remote.hub == "modelscope" else remote.id
    source: Any = [{"source": given, "config": config}] if config else given
    return call("prepare_dataset", source=source, split=split or remote.split)


@contextmanager
def _failures_named(remote: RemoteDataset) -> Generator[None]:
    """Turns what `datasets` and the Hub's client raise into the project's errors."""
    import httpx
    import pyarrow as pa
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except TunewrightError:
        raise
    except DatasetNotFoundError as error:
        raise (_gated(remote) if "gated" in str(error) else _not_found(remote)) from error
    except GatedRepoError as error:
        raise _gated(remote) from error
    except RepositoryNotFoundError as error:
        raise _not_found(remote) from error
    except HfHubHTTPError as error:
        refused = error.response.status_code in (401, 403)
        raise (_gated(remote) if refused else _unreachable(remote, error)) from error
    # LocalEntryNotFoundError: the Hub's client looked into its cache only because it reached no Hub.
    except (ConnectionError, TimeoutError, httpx.HTTPError, LocalEntryNotFoundError) as error:
        raise _unreachable(remote, error) from error
    except (DatasetsError, pa.ArrowException, OSError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidInput(
            "hub_dataset_unreadable",
            f"{remote.id} cannot be read as a table: {_first_line(error)}.",
            allowed=f"Its files are at {hub_endpoint()}/datasets/{remote.id}/tree/main: download those wanted and give "
            f"their path, or a copy in {folders.KNOWN}.",
            next=call("prepare_dataset", source=f"…/{remote.id.split('/')[-1]}.parquet"),
        ) from error


def _not_found(remote: RemoteDataset) -> NotFound:
    return NotFound(
        "hub_dataset_not_found",
        f"There is no dataset {remote.id!r} at {hub_endpoint()}, or it is private and {_token_said()}.",
        allowed="Give owner/name exactly as its page has it; a local file by its path, a ModelScope one as "
        "modelscope:owner/name.",
        next=call("prepare_dataset", source="owner/name"),
    )


def _gated(remote: RemoteDataset) -> Unavailable:
    return Unavailable(
        "hub_dataset_gated",
        f"{remote.id} is gated or private, and {_token_said()}.",
        allowed=f"Its terms are accepted at {hub_endpoint()}/datasets/{remote.id}; then the server is started again "
        "with HF_TOKEN.",
        next="check_environment()",
    )


def _token_said() -> str:
    return "the token in HF_TOKEN has no access to it" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"


def _unreachable(remote: RemoteDataset, error: Exception) -> Unavailable:
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return Unavailable(
        "hub_unreachable",
        f"{remote.id} could not be fetched from {hub_endpoint()}{offline}: {_first_line(error)}.",
        allowed="Start the server with a mirror in HF_ENDPOINT, use ModelScope's copy, or download the dataset's file "
        "and give its path.",
        next=call("prepare_dataset", source=f"modelscope:{remote.id}"),
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.160}".rstrip(".: ")


def _modelscope_blocks(remote: RemoteDataset, workspace: Workspace) -> Iterator[Block]:
    folder = _modelscope_folder(remote, workspace)
    if remote.config or remote.folder:
        inner = folder / (remote.config or remote.folder or "")
        if not inner.is_dir() or not inner.resolve().is_relative_to(folder.resolve()):
            names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] not in "._")
            raise InvalidInput(
                "unknown_config",
                f"{remote.id} has no folder {remote.config or remote.folder!r}.",
                allowed=f"It has {', '.join(names[:20]) or 'none: leave the configuration out'}.",
                next=_again(remote, config=_closest(remote.config, names)) if names else "",
            )
        folder = inner
    first = 1
    for path in folders.data_files(folder, remote.split, []):
        for block in Reader(path, remote.split, workspace).blocks():
            yield replace(block, first=first)
            first += len(block.rows) + block.lines.count(b"\n") + 1


def _modelscope_folder(remote: RemoteDataset, workspace: Workspace) -> Path:
    """The dataset's files, downloaded into the home's cache; those that lie there already are not fetched again."""
    try:
        # modelscope: Apache-2.0, by ModelScope themselves, monthly releases; an extra, for few outside China need it.
        from modelscope import dataset_snapshot_download  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Unavailable(
            "modelscope_missing",
            f"{remote.id} is a dataset of ModelScope, whose library is not installed.",
            allowed="Install it into the server's environment (pip install 'tunewright[modelscope]') and start the "
            "server again, or give the dataset's id at the Hugging Face Hub.",
            next=call("prepare_dataset", source=remote.id),
        ) from error
    from modelscope.hub.errors import HubError  # pyright: ignore[reportMissingImports]
    from requests import HTTPError  # what modelscope raises for an answer that is a refusal

    try:
        return Path(dataset_snapshot_download(remote.id, cache_dir=str(workspace.home.cache / "modelscope")))
    except HTTPError as error:
        raise _modelscope_refusal(remote, error) from error
    except (HubError, OSError) as error:
        raise _modelscope_unreachable(remote, error) from error


def _modelscope_refusal(remote: RemoteDataset, error: "HTTPError") -> TunewrightError:
    status = error.response.status_code if error.response is not None else None
    if status in (401, 403):
        return Unavailable(
            "hub_dataset_gated",
            f"ModelScope does not give out {remote.id} without a token that has access to it.",
            allowed="Accept its terms on its page, and start the server with MODELSCOPE_API_TOKEN.",
            next=call("prepare_dataset", source=remote.id),
        )
    if status == 404:
        return NotFound(
            "hub_dataset_not_found",
            f"ModelScope has no dataset {remote.id!r}, or it is private.",
            allowed="Give owner/name exactly as its page has it.",
            next=call("prepare_dataset", source=remote.id),
        )
    return _modelscope_unreachable(remote, error)


def _modelscope_unreachable(remote: RemoteDataset, error: Exception) -> Unavailable:
    return Unavailable(
        "hub_unreachable",
        f"{remote.id} could not be fetched from ModelScope: {_first_line(error)}.",
        allowed="Download the dataset's files and give their folder.",
        next=call("prepare_dataset", source=f"…/{remote.id.split('/')[-1]}"),
    )
