"""The live page as the server sends it: what it shows, to whom, and that nothing in it is more than text."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as some
from mcp import Client
from standins.http_process import HttpProcess, serving_http

from tunewright.pipeline import gpu, jobs
from tunewright.pipeline.workspace import Workspace
from tunewright.resources import live
from tunewright.tools.http_access import Access

Read = Callable[[str], Awaitable[Any]]
# None of these may be anything but text, wherever it stands.
HOSTILE = "\"'><script>hit()</script><img src=x onerror=hit()></pre></title><svg onload=hit()>{{7*7}}&lt;b&gt;\u202e"
# In the form of a Hub's, and made up.
KEY = "hf_" + "QwErTyUiOpAsDfGhJkLzXcVbNm12345678"


class Page(HTMLParser):
    """The text of a page, and the name of every element and attribute in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.inline: dict[str, str] = {}
        self.links: list[str] = []
        self.points: dict[str, int] = {}
        self._open: list[str] = []
        self._texts: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.names |= {tag, *(f"{tag} {name}" for name, _ in attrs)}
        given = dict(attrs)
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag == "polyline":
            self.points[given["class"] or ""] = len((given["points"] or "").split())

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            self.inline[self._open[-1]] = data
        else:
            self._texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open[: self._open.index(tag)] if tag in self._open else self._open


def page_of(workspace: Workspace, job_id: str | None = None) -> Page:
    return Page(live.page(workspace, job_id, script="page")[0])


def set_running(workspace: Workspace, job_id: str) -> None:
    progress = {"phase": "training", "done": 60, "total": 240, "eta_s": 3900, "at": 1061}
    sql = "UPDATE jobs SET state='running', ended_at=NULL, progress=? WHERE id=?"
    workspace.store.execute(sql, json.dumps(progress), job_id)
    numbers = {"loss": 0.2871, "tokens_per_s": 2410.0, "peak_gib": 13.62}
    workspace.store.add_metric(job_id, "train", 61, numbers)
    workspace.store.add_event(job_id, "info", "checkpoint", "Checkpoint of step 50.")


def test_a_running_job_is_told_with_all_that_one_looks_for(workspace: Workspace, job_id: str) -> None:
    set_running(workspace, job_id)
    page = page_of(workspace)
    for told in (
        job_id, "running", "training 60 of 240", "1 h 5 min left", "0.2871", "2,410", "13.62 GiB",
        "checkpoint: Checkpoint of step 50.", "line 300 Zürich", "No GPU",
    ):  # fmt: skip
        assert told in page.text
    assert page.points == {"train": 61, "eval": 6}
    # The log's end, not all of it.
    assert "line 101 Z" in page.text and "line 100 Z" not in page.text


def test_a_failed_job_is_told_with_the_reason_and_the_way_out(workspace: Workspace, job_id: str) -> None:
    error = {
        "code": "no_memory",
        "what": "It ran out.",
        "allowed": "Less.",
        "next": 'plan_finetune(model="m")',
        "done": "",
    }
    workspace.store.execute("UPDATE jobs SET state='failed', error=?", json.dumps(error))
    assert 'no_memory It ran out. Less. Next: plan_finetune(model="m")' in page_of(workspace).text


def test_a_result_is_told_by_its_ids(workspace: Workspace, job_id: str) -> None:
    workspace.store.execute("UPDATE jobs SET result=?", json.dumps({"adapter_id": "ad-numbers-1", "files": [{"x": 1}]}))
    assert "adapter_id ad-numbers-1" in page_of(workspace).text


def test_the_gpus_memory_is_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find", lambda: [gpu.Gpu(0, "NVIDIA H200", 139.81, 120.5, (9, 0), "580")])
    assert "NVIDIA H200 120.5 of 139.8 GiB free" in page_of(workspace).text


def test_a_home_without_jobs_says_how_to_begin(workspace: Workspace) -> None:
    assert "No job yet." in page_of(workspace).text


def test_of_several_jobs_the_one_asked_for_is_shown_and_all_are_linked(workspace: Workspace, job_id: str) -> None:
    sql = (
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES ('job-b','export','queued',0,'{}',1)"
    )
    workspace.store.execute(sql)
    assert page_of(workspace, "job-b").points == {}
    chosen = page_of(workspace, job_id[:12])
    assert chosen.points["train"] == 60
    assert set(chosen.links) == {f"?job={job_id}", "?job=job-b"}


def test_a_job_that_is_not_there_is_said_and_the_others_listed(workspace: Workspace, job_id: str) -> None:
    html, found = live.page(workspace, "job-numbers-000x", script="page")
    assert not found
    assert "job_not_found: " in Page(html).text
    assert Page(html).links == [f"?job={job_id}"]


# Nothing but text


def test_whatever_a_job_holds_is_shown_as_text(workspace: Workspace, job_id: str) -> None:
    set_running(workspace, job_id)
    error = dict.fromkeys(("code", "what", "allowed", "next", "done"), "plain")
    workspace.store.execute("UPDATE jobs SET error=?, result=?", json.dumps(error), '{"plain": "plain"}')
    workspace.store.add_event(job_id, "plain", "plain", "plain")
    plain = page_of(workspace)

    store = workspace.store
    store.execute("UPDATE jobs SET id=?, kind=?, state='running'", HOSTILE, HOSTILE)
    for table in ("events", "metrics"):
        store.execute(f"UPDATE {table} SET job_id=?", HOSTILE)
    store.execute("UPDATE jobs SET error=?", json.dumps(dict.fromkeys(error, HOSTILE)))
    store.execute("UPDATE jobs SET result=?", json.dumps({HOSTILE: HOSTILE}))
    store.execute("UPDATE jobs SET progress=json_set(progress, '$.phase', ?)", HOSTILE)
    store.add_event(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    hostile = page_of(workspace)
    assert hostile.names == plain.names
    assert hostile.text.count("<script>hit()</script>") >= 9
    assert hostile.inline == plain.inline
    assert all(link.startswith("?job=%22%27%3E%3Cscript") for link in hostile.links)


def test_a_hostile_log_is_shown_as_text(workspace: Workspace, job_id: str) -> None:
    plain = page_of(workspace)
    jobs.log_path(workspace, job_id).write_text(HOSTILE, encoding="utf-8")
    hostile = page_of(workspace)
    assert hostile.names == plain.names
    assert "<script>hit()</script>" in hostile.text


def test_keys_are_masked_wherever_they_stand(workspace: Workspace, job_id: str) -> None:
    told = f"login with {KEY} failed"
    workspace.store.add_event(job_id, "error", "login", told)
    error = dict.fromkeys(("code", "what", "allowed", "next", "done"), told) | {"code": "login"}
    workspace.store.execute(
        "UPDATE jobs SET state='failed', error=?, result=?", json.dumps(error), f'{{"a": "{told}"}}'
    )
    jobs.log_path(workspace, job_id).write_text(told, encoding="utf-8")
    html, _ = live.page(workspace, job_id, script="page")
    assert KEY not in html
    assert html.count("login with [") == 6


# The log's end


def test_of_a_log_a_person_reads_what_a_terminal_would_show(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    assert live.log_end(log) == ""
    log.write_bytes(
        b"one\r\n\x1b]8;;file:///x\x1b\\\x1b[1;31mred\x1b[0m\x1b]0;title\x07\n10%\r 50%\r100%|##|\nlast \xff\n"
    )
    assert live.log_end(log) == "one\nred\n100%|##|\nlast \N{REPLACEMENT CHARACTER}"


def test_of_a_long_log_only_the_end_is_read_from_a_whole_line_on(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with log.open("w", encoding="utf-8") as file:
        file.write(f"{KEY} {'x' * live.LOG_BYTES}\n" + "".join(f"{n:07}\n" for n in range(8000)))
    lines = live.log_end(log).splitlines()
    assert lines == [f"{n:07}" for n in range(8000 - live.LOG_LINES, 8000)]
    log.write_text(f"{KEY[:20]}\n{KEY * 3000}\nwhole\n", encoding="utf-8")
    assert live.log_end(log) == "whole"


@pytest.mark.parametrize("pattern", ["x", "\r", "\x1b]", "\x1b[", "\x1b[1;", KEY])
def test_no_log_takes_longer_than_it_is_long(tmp_path: Path, pattern: str) -> None:
    log = tmp_path / "worker.log"
    log.write_text(f"{pattern * (live.LOG_BYTES // len(pattern) - 9)}\nend", encoding="utf-8")
    began = time.process_time()
    assert live.log_end(log).endswith("end")
    # A pattern that looks at the rest of it from every character takes ten, and the page asks every two.
    assert time.process_time() - began < 1


# The curve


@given(
    some.lists(some.tuples(some.integers(0, 10**6), some.floats(-1e6, 1e6)), max_size=60),
    some.lists(some.tuples(some.integers(0, 10**6), some.floats(-1e6, 1e6)), max_size=9),
)
def test_every_curve_lies_within_its_picture(train: list[Any], evaluation: list[Any]) -> None:
    chart = live.draw(train, evaluation)
    if not train and not evaluation:
        assert chart == {}
        return
    assert (len(chart["train"]), len(chart["eval"])) == (len(train), len(evaluation))
    for x, y in chart["train"] + chart["eval"]:
        assert chart["left"] <= x <= chart["right"] and 0 <= y <= chart["bottom"]
    assert 1 <= len(chart["values"]) <= 12


def test_a_single_spike_does_not_flatten_the_curve() -> None:
    train = [(step, 2 - step / 100 + (500 if step == 50 else 0)) for step in range(100)]
    heights = [y for _, y in live.draw(train, [])["train"]]
    assert heights[50] == min(heights)
    assert heights[99] - heights[0] > 60


# Over HTTP


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpProcess]:
    with serving_http(tmp_path_factory.mktemp("live") / "home") as running:
        yield running


def test_the_page_is_shown_to_a_browser_that_was_signed_in(server: HttpProcess) -> None:
    with httpx2.Client(base_url=server.url) as browser:
        assert browser.get("/").status_code == 401
        assert browser.get("/", params={"token": "wrong"}).status_code == 401
        signed_in = browser.get("/", params={"token": server.token, "job": '"><b>'})
        cookie = signed_in.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
        assert server.token not in cookie and server.token not in signed_in.text
        assert 'url=./?job=%22%3E%3Cb%3E"' in signed_in.text
        assert "No job yet." in browser.get("/").text
        # A wrong token is refused also where the cookie is right, or nobody would see that a link is old.
        assert browser.get("/", params={"token": "wrong"}).status_code == 401
        assert browser.get("/", params={"job": "job-none"}).status_code == 404
        assert browser.post("/").status_code == 401
    assert "No job yet." in httpx2.get(server.url, headers=server.bearer).text


def test_a_cookie_of_another_home_opens_nothing(server: HttpProcess) -> None:
    port = server.url.rpartition(":")[2]
    other = Access("another-token-of-some-forty-characters-xx", "", is_tls=False)
    for value in ("", other.token, other.page_key):
        assert httpx2.get(server.url, headers={"Cookie": f"tunewright_{port}={value}"}).status_code == 401


def test_the_page_may_run_its_own_script_and_nothing_else(server: HttpProcess) -> None:
    answer = httpx2.get(server.url, headers=server.bearer)
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    inline = Page(answer.text).inline
    for kind in ("script", "style"):
        assert policy[f"{kind}-src"] == f"'sha256-{_sha256(inline[kind])}'"
    closed = {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert {policy[name] for name in closed} == {"'none'"}
    assert policy["connect-src"] == "'self'"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", inline["script"])


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# As a view inside a host


@pytest.mark.anyio
async def test_hosts_are_offered_the_view_with_get_status(client: Client, read: Read) -> None:
    assert client.server_capabilities is not None
    # The older eras' capabilities know no extensions; there hosts go by the tool.
    offered = client.server_capabilities.extensions or {}
    assert ("io.modelcontextprotocol/ui" in offered) == (client.session.protocol_version == "2026-07-28")
    (tool,) = [tool for tool in (await client.list_tools()).tools if tool.name == "get_status"]
    assert tool.meta == {"ui": {"resourceUri": live.VIEW}}
    view = await read(live.VIEW)
    assert view.mime_type == "text/html;profile=mcp-app"
    inline = Page(view.text).inline
    assert f"script-src &#39;sha256-{_sha256(inline['script'])}&#39;" in view.text
    assert f"style-src &#39;sha256-{_sha256(inline['style'])}&#39;" in view.text


@pytest.mark.anyio
async def test_what_the_view_reads_is_the_page_without_its_script(
    read: Read, workspace: Workspace, job_id: str
) -> None:
    for uri in (f"{live.VIEW}/now", f"{live.VIEW}/now?job={job_id}"):
        shown = await read(uri)
        assert shown.mime_type == "text/html;profile=mcp-app"
        page = Page(shown.text)
        assert page.points == {"train": 60, "eval": 6}
        assert "script" not in page.inline
    assert "job_not_found: " in (await read(f"{live.VIEW}/now?job=job-none")).text
