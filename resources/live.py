"""The live page of jobs: at `/` of the HTTP server, and as a view inside hosts that show MCP Apps (SEP-1865).

One rendering for both, made here from what get_status tells: HTML that is readable without script, on which a small
script puts the newest. Guarantees that every text of a job, its log included, is shown as text: it is escaped, keys in
it are masked, and the page runs no script and loads no style but its own two. They are named by their hash, not by a
nonce: as they never change, nothing that is injected could borrow the permission. Who may see it is the HTTP server's
affair (tools/http_access.py).
"""

import base64
import hashlib
import re
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.apps import APP_MIME_TYPE, Apps
from mcp.server.mcpserver.resources import FunctionResource
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tunewright.pipeline import files, gpu, jobs, series, status
from tunewright.pipeline.data.privacy import without_secrets
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.series import Points
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    from jinja2 import Environment

# get_status names it in its `_meta.ui.resourceUri` (tools/status.py).
VIEW = "ui://tunewright/jobs"
ASSETS = Path(__file__).with_name("live")
EVENTS, LOG_LINES, LOG_BYTES = 30, 200, 64 * 1024
CURVE_POINTS, MARKS = 300, 5
# Colours and titles of a terminal. Linear in whatever a log holds: none reaches over the next escape.
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


def register(server: MCPServer[Any], workspace: Workspace) -> None:
    """Adds the page, for when the server is on HTTP, and what the view reads."""

    @server.custom_route("/", methods=["GET"], include_in_schema=False)
    async def live_page(request: Request) -> Response:
        job_id = request.query_params.get("job")
        html, found = await anyio.to_thread.run_sync(partial(page, workspace, job_id, script="page"))
        csp = f"{_policy('page')}; connect-src 'self'; form-action 'none'; frame-ancestors 'none'"
        headers = {**HEADERS, "Content-Security-Policy": f"{csp}; require-trusted-types-for 'script'"}
        return HTMLResponse(html, 200 if found else 404, headers)

    @server.resource(f"{VIEW}/now{{?job}}", mime_type=APP_MIME_TYPE, description="What the view of jobs shows now.")
    def now(job: str | None = None) -> str:
        return page(workspace, job, script=None)[0]


def view() -> Apps:
    """The extension that offers the page to hosts: give it to the server as one of its `extensions`."""
    apps = Apps()

    def view_resource() -> str:
        return _template("page.html.jinja").render(script=_script("app"), style=_style(), policy=_policy("app"))

    # Made when a host asks: most never do, and starting would wait for it.
    apps.add_resource(
        FunctionResource.from_function(
            view_resource, uri=VIEW, name="jobs", title="Jobs", description="A live view of jobs.",
            mime_type=APP_MIME_TYPE,
        )
    )  # fmt: skip
    return apps


def page(workspace: Workspace, job_id: str | None, *, script: str | None) -> tuple[str, bool]:
    """The whole page with `script` in it, and whether the job that was asked for exists.

    Without a `job_id` it shows the one that runs, or the newest. The page of a job that does not exist says so, and
    lists those that do.
    """
    rows, problem, job, chart, log = jobs.newest(workspace), None, None, None, ""
    try:
        row = workspace.store.job(job_id) if job_id is not None else next(iter(rows), None)
    except TunewrightError as error:
        row, problem = None, str(error)
    if row:
        job = status.describe(workspace, row, events=EVENTS, points=CURVE_POINTS)
        chart = draw(series.finite(job["loss_curve"]), series.finite(job["eval_curve"]))
        log = log_end(jobs.log_path(workspace, row["id"]))
    html = _template("page.html.jinja").render(
        lines=[status.summarise(each) for each in rows], job=job, chart=chart, log=log, problem=problem,
        gpus=gpu.find(), active=any(each["state"] in jobs.ACTIVE for each in rows), style=_style(),
        script=_script(script) if script else None, policy=None,
    )  # fmt: skip
    return html, problem is None


def log_end(path: Path) -> str:
    """The last lines of a worker's log as a person reads them, without keys; empty where there is none yet."""
    text = TERMINAL_CODES.sub("", files.log_end(path, LOG_BYTES)).rstrip()
    # A progress bar writes over its own line: the last state is what a terminal would show.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return without_secrets("\n".join(lines[-LOG_LINES:]))


def draw(train: Points, evaluation: Points, width: int = 640, height: int = 240) -> dict[str, Any]:
    """The two curves as points of a picture of `width` × `height`, with the marks of both axes; empty without points.

    Single values far above the rest are cut off at the upper edge, or they would flatten all others.
    """
    points = [*train, *evaluation]
    if not points:
        return {}
    values = series.limits(train, evaluation)
    low, high = values.low, values.high
    first, last = _span(min(step for step, _ in points), max(step for step, _ in points))
    left, right, top, bottom = 60, width - 10, 12, height - 30

    def x(step: float) -> float:
        return round(left + (step - first) / (last - first) * (right - left), 1)

    def y(value: float) -> float:
        return round(bottom - (min(value, high) - low) / (high - low) * (bottom - top), 1)

    return {
        "width": width, "height": height, "left": left, "right": right, "bottom": bottom,
        "train": [(x(step), y(value)) for step, value in train],
        "eval": [(x(step), y(value)) for step, value in evaluation],
        "values": [(y(mark), f"{mark:.6g}") for mark in series.ticks(low, high, MARKS)],
        "steps": [(x(mark), f"{mark:.0f}") for mark in series.ticks(first, last, MARKS) if mark == int(mark)],
    }  # fmt: skip


def _span(low: float, high: float) -> tuple[float, float]:
    """Both ends, apart also where they are one."""
    return (low, high) if high > low else (low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5))


@cache
def _environment() -> "Environment":
    # An idle server does not pay for it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    made.filters |= {"number": _number, "duration": _duration, "masked": without_secrets}
    return made


def _template(name: str) -> Any:
    return _environment().get_template(name)


@cache
def _style() -> str:
    return (ASSETS / "style.css").read_text(encoding="utf-8")


@cache
def _script(name: str) -> str:
    shared, own = ((ASSETS / f"{part}.js").read_text(encoding="utf-8") for part in ("show", name))
    return f'"use strict";\n(() => {{\n{shared}\n{own}}})();\n'


def _policy(script: str) -> str:
    """Of the page with this script: what may run and how it may look, nothing else."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (_script(script), _style()))
    return "default-src 'none'; base-uri 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'".format(*hashes)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    # Of a longer time nobody wants the seconds.
    return f"{minutes} min" if minutes >= 10 else f"{minutes} min {rest} s" if minutes else f"{rest} s"
