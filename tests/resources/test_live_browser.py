"""The live page in a real browser: news without reloading, no script but its own, and the view inside a host.

Skipped where there is no Chromium (Debian: `apt-get install chromium`, as `.ci/run` does).
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from playwright.sync_api import sync_playwright
from standins.http_process import HttpProcess, connected, serving_http

from tunewright.pipeline import jobs
from tunewright.pipeline.workspace import Workspace
from tunewright.resources import live

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

HOSTILE = "<script>window.hit=1</script><img src=x onerror='window.hit=1'><svg onload='window.hit=1'>"
# A host of MCP Apps as the specification has it, as far as this view asks for it; `readResource` asks the real server.
HOST = """<!doctype html><body><script>
addEventListener("message", async ({ source, data }) => {
  const answer = (more) => source.postMessage({ jsonrpc: "2.0", ...more }, "*");
  (window.heard ??= []).push(data);
  if (data.method === "ui/initialize")
    answer({ id: data.id, result: { protocolVersion: "2026-01-26", hostInfo: { name: "host", version: "1" },
      hostCapabilities: { serverResources: {} }, hostContext: { theme: "dark" } } });
  if (data.method === "ui/notifications/initialized") {
    answer({ method: "ui/notifications/tool-input", params: { arguments: {} } });
    answer({ method: "ui/notifications/tool-result", params: { content: [], structuredContent: { job: null } } });
  }
  if (data.method === "resources/read") answer({ id: data.id, result: await readResource(data.params.uri) });
});
</script></body>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpProcess]:
    with serving_http(tmp_path_factory.mktemp("browser") / "home") as running:
        yield running


@pytest.fixture
def workspace(server: HttpProcess) -> Iterator[Workspace]:
    """The server's own home, without any job."""
    opened = Workspace.open(server.home)
    for table in ("jobs", "events", "metrics"):
        opened.store.execute(f"DELETE FROM {table}")
    yield opened
    opened.store.close()


def add_job(workspace: Workspace, job_id: str, *, ended: bool = False) -> None:
    """A job of this very process's, so that no server takes it for abandoned."""
    (workspace.home.jobs / job_id).mkdir(exist_ok=True)
    progress = {"phase": "training", "done": 10, "total": 40, "eta_s": 90, "at": 20}
    me = jobs.processes.start_time(1)
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at, started_at, pid, pid_started, progress) "
        "VALUES (?,'finetune',?,1,'{}',1,2,1,?,?)",
        job_id, "succeeded" if ended else "running", me, json.dumps(progress),
    )  # fmt: skip
    for step in range(1, 11):
        workspace.store.add_metric(job_id, "train", step, {"loss": 3 - step / 5})


@pytest.fixture
def page(browser: Any, server: HttpProcess, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A signed-in page, in a context with the test's options (`indirect`); what its console says is in `page.said`."""
    context = browser.new_context(**getattr(request, "param", {}))
    opened = context.new_page()
    opened.said = []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.goto(f"{server.url}/?token={server.token}")
    opened.wait_for_url(f"{server.url}/")
    yield opened
    context.close()


def test_news_appear_without_reloading(workspace: Workspace, server: HttpProcess, page: Any) -> None:
    add_job(workspace, "job-first")
    page.goto(server.url)
    page.evaluate("window.isSame = true")
    page.wait_for_selector("#list a")
    assert page.title() == "running 25 % · Tunewright"
    assert page.inner_text("#connection") == "Live"

    workspace.store.add_metric("job-first", "eval", 10, {"loss": 1.25})
    workspace.store.add_event("job-first", "info", "checkpoint", "Checkpoint of step 10.")
    jobs.log_path(workspace, "job-first").write_text("\n".join(map(str, range(100))), encoding="utf-8")
    add_job(workspace, "job-second", ended=True)
    page.get_by_text("Checkpoint of step 10.").wait_for()
    page.get_by_text("job-second").wait_for()
    assert page.get_by_text("1.25", exact=True).is_visible()
    assert page.locator("circle.eval").count() == 1
    # The log follows its end.
    assert page.evaluate("log.scrollTop + log.clientHeight >= log.scrollHeight - 4")
    assert page.evaluate("window.isSame")

    page.click("[data-job=job-second]")
    page.get_by_role("heading", name="job-second").wait_for()
    assert page.said == []


def test_a_reader_keeps_his_place_while_news_appear(workspace: Workspace, server: HttpProcess, page: Any) -> None:
    add_job(workspace, "job-first")
    log = jobs.log_path(workspace, "job-first")
    log.write_text("\n".join(map(str, range(150))), encoding="utf-8")
    page.goto(server.url)
    page.evaluate("log.scrollTop = 40; document.querySelector('#list a').focus()")
    workspace.store.add_event("job-first", "info", "news", "Something new.")
    page.get_by_text("Something new.").wait_for()
    assert page.evaluate("log.scrollTop") == 40
    assert page.evaluate("document.activeElement.dataset.job") == "job-first"


def test_a_server_that_is_gone_is_said(tmp_path: Path, browser: Any) -> None:
    context = browser.new_context()
    with serving_http(tmp_path / "home") as server:
        page = context.new_page()
        page.goto(f"{server.url}/?token={server.token}")
        page.wait_for_url(f"{server.url}/")
        server.process.terminate()
        server.process.wait(30)
        page.get_by_text("does not answer").wait_for(timeout=15000)
    context.close()


def test_hostile_texts_do_nothing(workspace: Workspace, server: HttpProcess, page: Any) -> None:
    add_job(workspace, HOSTILE.replace("/", "\\"))
    add_job(workspace, "job-plain")
    workspace.store.add_event("job-plain", "error", HOSTILE, HOSTILE)
    jobs.log_path(workspace, "job-plain").write_text(HOSTILE, encoding="utf-8")
    workspace.store.execute("UPDATE jobs SET kind=?, progress=json_set(progress, '$.phase', ?)", HOSTILE, HOSTILE)
    page.goto(f"{server.url}/?job=job-plain")
    page.wait_for_selector("#log")
    # And once more by way of the script.
    workspace.store.add_event("job-plain", "error", "more", f"{HOSTILE} more")
    page.get_by_text(f"{HOSTILE} more").wait_for()
    assert page.evaluate("window.hit") is None
    assert page.locator("main :is(script, img, svg svg, [onload], [onerror])").count() == 0
    assert HOSTILE in page.inner_text("#log")
    assert page.said == []


@pytest.mark.parametrize(
    "attempt",
    [
        "document.body.innerHTML = '<img src=x onerror=hit()>'",
        "new Image().setAttribute('onerror', 'hit()')",
        "document.createElement('script').textContent = 'hit()'",
        "new DOMParser().parseFromString('<p>', 'text/html')",
    ],
)
def test_the_page_cannot_make_code_or_elements_of_text(page: Any, attempt: str) -> None:
    tried = page.evaluate(f"() => {{ try {{ {attempt}; return 'done'; }} catch (error) {{ return error.name; }} }}")
    assert tried == "TypeError"


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True)
def test_without_script_it_is_a_snapshot_that_can_be_read(workspace: Workspace, server: HttpProcess, page: Any) -> None:
    add_job(workspace, "job-first")
    page.goto(server.url)
    assert "load again" in page.inner_text("#connection")
    assert "training 10 of 40 · 1 min 30 s left" in page.inner_text("article")
    page.click("[data-job=job-first]")
    assert page.url == f"{server.url}/?job=job-first"


@pytest.mark.parametrize(
    ("page", "light"),
    [({"viewport": {"width": width, "height": 800}, "color_scheme": scheme}, scheme == "light")
     for width in (320, 390, 1280) for scheme in ("light", "dark")],
    indirect=["page"],
)  # fmt: skip
def test_it_fits_every_width_and_either_scheme(
    workspace: Workspace, server: HttpProcess, page: Any, light: bool
) -> None:
    add_job(workspace, f"job-{'a-rather-long-name-' * 4}7f3k")
    jobs.log_path(workspace, f"job-{'a-rather-long-name-' * 4}7f3k").write_text("x" * 500, encoding="utf-8")
    page.goto(server.url)
    page.wait_for_selector("svg")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark_ink, dark_page = (
        sum(map(int, page.evaluate(f"getComputedStyle(document.body).{name}")[4:-1].split(","))) < 384
        for name in ("color", "backgroundColor")
    )
    assert (dark_ink, dark_page) == (light, not light)


def test_a_host_shows_the_view_and_what_is_chosen_in_it(
    workspace: Workspace, server: HttpProcess, browser: Any
) -> None:
    add_job(workspace, "job-first")
    add_job(workspace, "job-second", ended=True)
    workspace.store.add_event("job-first", "info", HOSTILE, HOSTILE)

    async def read(uri: str) -> dict[str, Any]:
        async with connected(server.url, server.bearer) as client:
            return (await client.read_resource(uri)).model_dump(mode="json", by_alias=True, exclude_none=True)

    with ThreadPoolExecutor(1) as pool:

        def read_resource(uri: str) -> dict[str, Any]:
            return pool.submit(anyio.run, partial(read, uri)).result(30)

        host = browser.new_page()
        host.expose_function("readResource", read_resource)
        host.set_content(HOST)
        view = read_resource(live.VIEW)["contents"][0]["text"]
        host.evaluate(
            "html => { const frame = document.createElement('iframe'); frame.sandbox = 'allow-scripts'; "
            "frame.srcdoc = html; document.body.append(frame); }",
            view,
        )
        frame = host.frame_locator("iframe")
        frame.get_by_role("heading", name="job-first").wait_for()
        assert frame.get_by_text("Live", exact=True).is_visible()
        assert HOSTILE in frame.locator("#events").inner_text()
        workspace.store.add_event("job-first", "info", "checkpoint", "Checkpoint of step 10.")
        frame.get_by_text("Checkpoint of step 10.").wait_for()
        frame.locator("[data-job=job-second]").click()
        frame.get_by_role("heading", name="job-second").wait_for()
        inner = host.frames[1]
        assert inner.evaluate("window.hit") is None
        assert inner.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
        heard = host.evaluate("heard")
        host.close()
    assert [message["method"] for message in heard][:2] == ["ui/initialize", "ui/notifications/initialized"]
    (sizes, *_) = [m["params"] for m in heard if m["method"] == "ui/notifications/size-changed"][::-1]
    assert sizes["height"] > 400
