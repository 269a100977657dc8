"""Documents with sentences that are all different, a teacher on the loopback, and jobs to give to the stage."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standins.chat_server import ChatStandIn

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

TEA = """# Green tea
Green tea from Uji is steeped at 70 degrees for two minutes. Shading the bushes before harvest raises theanine and \
lowers catechins. Leaves are steamed within hours, so that oxidation stops early. Matcha is ground between granite \
stones at 30 grams an hour.

# Black tea
Assam grows in the valley of the Brahmaputra below 100 metres. Withering removes half of the water before rolling \
begins. Rolled leaves oxidise until their colour resembles copper. Boiling water brings out malty flavours that cooler \
water leaves behind.

# Oolong
Oolong from Wuyi cliffs is roasted over charcoal embers several times. Bruising the edges by tumbling starts a partial \
fermentation. Experienced drinkers rinse tightly rolled balls once and discard that infusion. Clay pots from Yixing \
keep heat evenly and season with use.
"""

Submit = Callable[..., JobContext]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's own keys, addresses and proxies are hidden, here and from workers."""
    for name in (
        "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY",
        "OPENAI_CUSTOM_HEADERS", "TUNEWRIGHT_TEACHER_API_KEY", "TUNEWRIGHT_TEACHER_URL",
        "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[ChatStandIn]:
    with ChatStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "tea.md").write_text(TEA, encoding="utf-8")
    return folder


@pytest.fixture
def spec(documents: Path, server: ChatStandIn) -> Row:
    """What `request.check` makes of the documents and the stand-in, for six examples."""
    return {
        "source": str(documents / "tea.md"), "endpoint": server.endpoint, "model": "teacher", "name": "tea",
        "count": 6, "kind": "qa", "chunk_tokens": 100, "concurrency": 2, "chunks": 3,
    }  # fmt: skip


@pytest.fixture
def submit(workspace: Workspace, spec: Row) -> Submit:
    """`submit(**changes)`: the context of a queued job for the stage to run here; starts no worker."""

    def stored(**changes: Any) -> JobContext:
        job_id = f"job-tea-{len(workspace.store.rows('SELECT id FROM jobs')):04}"
        (workspace.home.jobs / job_id).mkdir()
        workspace.store.execute(
            "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,?,'queued',0,?,?)",
            job_id, "generate_examples", json.dumps(spec | changes), time.time(),
        )  # fmt: skip
        return JobContext.of(workspace, job_id)

    return stored
