"""Any call of any tool, made of its published schema and beside it: a result of the promised form, or an error in the
agreed one, in time, and nothing is left behind in the server's process.

Half of the values are real (ids, files, models of the home), so that the calls reach what the tools do.
`TUNEWRIGHT_CALLS=10000` makes as many calls as issue 7 asks for; the suite makes fewer. Memory is that of this process:
the server's with the client's and hypothesis's own.
"""

import gc
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import psutil
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mcp import Client
from mcp.types import CallToolResult, TextContent, Tool

from tunewright.pipeline import jobs, processes, toy
from tunewright.pipeline.documents import reading
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace
from tunewright.server import build_server
from tunewright.tools import waiting

CALLS = int(os.environ.get("TUNEWRIGHT_CALLS", "500"))
# Hypothesis remembers what it made: in one go of thousands its memory would hide the server's.
BATCH = 125
TIMEOUT_S = 60
MAX_ERROR_CHARACTERS, MAX_RESULT_CHARACTERS = 4000, 40_000
# What the measured three quarters of the calls may add; a leak of 10 kB or one descriptor a call is far above.
MORE_BYTES, MORE_DESCRIPTORS, MORE_THREADS = 60e6, 10, 45
# So many jobs get their real worker; the others' ends at once, as if it were killed.
REAL_WORKERS = 6
DIES_AT_ONCE = "tunewright.pipeline.ids"
ERROR = re.compile(r"[a-z]+(_[a-z]+)*: \S")
LEAK = re.compile(r"Traceback|File \"|pydantic|Error executing|errors\.pydantic")
# Looking at the machine takes a second.
SLOW = {"check_environment"}
TEXTS = st.sampled_from(
    ["", " ", "toy", "a" * 5000, "../../etc/passwd", "/", "~", "~nobody", "x\x00y", "job-", "ünïcode 你好 🚀", "null",
     "%s{0}$(x)`y`;", "-1", "1e9", "owner/name", "gguf:q8_0", "\u202eabc", "file:///etc/passwd", "C:\\data\\a.jsonl",
     "http://ann:pw@127.0.0.1:9/x", "*", "[", "true", "a\nb"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    TEXTS, st.text(max_size=20),
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
Defs = dict[str, Any]
Real = dict[str, list[Any]]
Calls = st.SearchStrategy[tuple[str, dict[str, Any]]]


def of_schema(schema: dict[str, Any], defs: Defs, real: Real) -> st.SearchStrategy[Any]:
    """Values that a schema of tools/list allows; of arguments that are named in `real`, those values too."""
    if "$ref" in schema:
        return of_schema(defs[schema["$ref"].rpartition("/")[2]], defs, real)
    if "anyOf" in schema:
        return st.one_of([of_schema(option, defs, real) for option in schema["anyOf"]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "string":
            return TEXTS | st.text(max_size=30)
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum", -5), min(schema.get("maximum", 10**6), 10**6))
        case "number":
            low, high = (schema.get(end, schema.get(f"exclusive{end.title()}")) for end in ("minimum", "maximum"))
            return st.floats(low if low is not None else -1e6, high if high is not None else 1e6).filter(
                lambda value: value not in (schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"))
            )
        case "array":
            return st.lists(of_schema(schema.get("items", {}), defs, real), max_size=3)
        case "object":
            return _object(schema, defs, real)
        case _:
            return ANYTHING


def _object(schema: dict[str, Any], defs: Defs, real: Real) -> st.SearchStrategy[dict[str, Any]]:
    properties: dict[str, Any] = schema.get("properties", {})
    if not properties:
        names = of_schema(schema["propertyNames"], defs, real) if "propertyNames" in schema else TEXTS
        inner = schema.get("additionalProperties")
        return st.dictionaries(names, of_schema(inner, defs, real) if isinstance(inner, dict) else ANYTHING, max_size=3)
    required = set(schema.get("required", []))
    values = {name: _argument(name, inner, defs, real) for name, inner in properties.items()}
    optional = sorted(set(properties) - required)
    # All at once they nearly always contradict each other, and nothing is done.
    chosen = st.sets(st.sampled_from(optional), max_size=3) if optional else st.just(set[str]())
    return chosen.flatmap(
        lambda names: st.fixed_dictionaries({name: values[name] for name in properties if name in required | names})
    )


def _argument(name: str, schema: dict[str, Any], defs: Defs, real: Real) -> st.SearchStrategy[Any]:
    if name == "wait_s":  # nobody has so much time
        return st.sampled_from(real[name])
    made = of_schema(schema, defs, real)
    return st.one_of(*[st.sampled_from(real[name])] * 3, made) if name in real else made


def calls(tools: dict[str, Tool], real: Real) -> Calls:
    """A tool with arguments as its schema has them, a quarter of them spoilt by a value or a name of any kind."""

    def of(name: str) -> Calls:
        schema = tools[name].input_schema
        fitting = of_schema(schema, schema.get("$defs", {}), real)
        names = st.sampled_from(sorted(schema["properties"]) or ["x"]) | st.text(min_size=1, max_size=8)
        spoilt = st.builds(lambda given, key, value: {**given, key: value}, fitting, names, ANYTHING)
        return st.tuples(st.just(name), st.one_of(fitting, fitting, fitting, spoilt))

    by_tool = {name: of(name) for name in sorted(set(tools) - SLOW)}
    return st.sampled_from(sorted(by_tool)).flatmap(by_tool.__getitem__)


def check(tools: dict[str, Tool], name: str, result: CallToolResult) -> str:
    """The error's code, or `result`; fails where the answer has not the form that was promised."""
    told = "".join(part.text for part in result.content if isinstance(part, TextContent))
    if result.is_error:
        assert len(result.content) == 1
        assert ERROR.match(told) and not LEAK.search(told), told
        assert not told.startswith("internal_error"), told
        assert len(told) < MAX_ERROR_CHARACTERS
        return told.partition(":")[0]
    found = result.structured_content or {}
    assert len(told) < MAX_RESULT_CHARACTERS, f"{name}: {len(told)} characters"
    jsonschema.validate(found, tools[name].output_schema or {})
    for step in found["next_steps"]:
        jsonschema.validate(step["arguments"], tools[step["tool"]].input_schema)
    return "result"


@dataclass
class Session:
    """One client on the server, and how its calls ended."""

    client: Client
    portal: BlockingPortal
    tools: dict[str, Tool]
    real: Real
    restore: Callable[[], None]
    ended: Counter[str] = field(default_factory=Counter[str])
    results: Counter[str] = field(default_factory=Counter[str])
    slowest: tuple[float, str] = (0, "")

    async def _answer(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        with anyio.fail_after(TIMEOUT_S):
            return await self.client.call_tool(name, arguments)

    def make(self, number: int) -> None:
        """Makes a batch of calls, others for each `number`."""

        @seed(number)
        @settings(
            max_examples=BATCH, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(calls(self.tools, self.real))
        def run(call: tuple[str, dict[str, Any]]) -> None:
            name, arguments = call
            started = time.process_time()
            outcome = check(self.tools, name, self.portal.call(self._answer, name, arguments))
            self.slowest = max(self.slowest, (time.process_time() - started, f"{name} {arguments}"[:200]))
            self.ended[outcome] += 1
            if outcome == "result":
                self.results[name] += 1
                if name == "delete_artifact":
                    self.restore()

        run()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def real(
    workspace: Workspace, dataset_id: str, adapter: Row, export: Row, ended_job: Callable[..., str], toy_folder: Path,
    tmp_path: Path,
) -> Real:  # fmt: skip
    """Values by the argument that they are for: what there is in a home where everything was done once."""
    base = Path(shutil.copytree(toy_folder, toy.folder(workspace.home)))
    (base / "model.safetensors").write_bytes(bytes(100))
    data = tmp_path / "data"
    (data / "notes.md").write_text("# Tides\n\nThe moon pulls the sea.\n\n" * 200, encoding="utf-8")
    questions = "id,question,A,B,C,D,answer\n" + "".join(f"{i},What is {i}?,1,2,3,4,A\n" for i in range(6))
    for split in ("dev", "val"):
        (data / "ceval" / split).mkdir(parents=True)
        (data / "ceval" / split / f"computer_network_{split}.csv").write_text(questions, encoding="utf-8")
    chunk = reading.survey(workspace, str(data / "notes.md"), reading.CHUNK_TOKENS).chunks[0].id
    trained = [ended_job("finetune", "succeeded", {"adapter_id": adapter["id"]}) for _ in range(2)]
    failed = {"code": "out_of_memory", "what": "No.", "allowed": "", "next": "", "done": ""}
    jobs_ = [*trained, ended_job("finetune", "failed", error=failed), _running(workspace)]
    models = ["toy", str(base), str(data), "unsloth/Qwen3-8B"]
    ids = [dataset_id, adapter["id"], export["id"], trained[0]]
    return {
        "source": [str(data / "numbers.jsonl"), str(data / "notes.md"), str(data), str(data / "*.jsonl"), dataset_id,
                   [dataset_id, str(data / "numbers.jsonl")], chunk, data.name],
        "dataset_id": [dataset_id, dataset_id, "ds-", adapter["id"]], "dataset": [dataset_id, "more"],
        "adapter_id": [adapter["id"], adapter["id"], "ad-", export["id"]], "export_id": [export["id"], "ex-"],
        "artifact_id": ids, "job_id": jobs_, "job_ids": [trained, jobs_], "model": models, "continue_from": ids,
        "source_chunk": [chunk], "domain": ["medicine", str(data / "notes.md")], "benchmark_dir": [str(data / "ceval")],
        "task_dir": [str(data / "ceval"), str(data)], "task": ["ceval"], "outputs": [["lora"], ["gguf:q8_0", "lora"]],
        "output": ["gguf:q8_0"], "combine_with": [{adapter["id"]: 0.5}], "model_name": ["support"],
        "repo_id": ["owner/name"], "endpoint": ["ollama", "http://127.0.0.1:9/v1"], "prompt": ["Hi", "  "],
        "messages": [[{"role": "user", "content": "Hi"}]], "dry_run": [True], "method": ["sft", "auto"],
        "examples": [[{"prompt": f"Say {i} {word}.", "response": f"{i} {word}!"}] for i in range(9) for word in "ab"],
        "mapping": [{"prompt": "instruction", "response": "output"}], "split": ["train", "eval"],
        "wait_s": [0, 0.05, -1, 51],
    }  # fmt: skip


def _running(workspace: Workspace) -> str:
    """A job that runs as long as this process, so that the device is taken."""
    (workspace.home.jobs / "job-running-0001").mkdir()
    now, pid = time.time(), os.getpid()
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at, started_at, pid, pid_started) "
        "VALUES ('job-running-0001','finetune','running',1,'{}',?,?,?,?)", now, now, pid, processes.start_time(pid),
    )  # fmt: skip
    return "job-running-0001"


@pytest.fixture
def few_workers(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A few jobs that need no device get their worker; the others' dies at once, and its job is found dead."""
    start, light = processes.start_detached, list[str]()

    def started(module: str, arguments: list[str], log: Path, **options: Any) -> int:
        if module == jobs.WORKER_MODULE:
            if not workspace.store.job(arguments[-1])["needs_device"]:
                light.append(arguments[-1])
            if arguments[-1] not in light[:REAL_WORKERS]:
                module = DIES_AT_ONCE
        return start(module, arguments, log, **options)

    monkeypatch.setattr(processes, "start_detached", started)
    # A dead worker is looked for at once.
    monkeypatch.setattr(waiting, "RECONCILE_EVERY_S", 0.05)
    yield
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if str(workspace.home.root) in child.cmdline():
                child.kill()


@pytest.fixture
def restore(workspace: Workspace, real: Real, tmp_path: Path) -> Callable[[], None]:
    """`restore()` brings back what was deleted of that which there was in the beginning."""
    tables = {table: workspace.store.rows(f"SELECT * FROM {table}") for table in ("artifacts", "jobs")}
    kept = tmp_path / "kept"
    shutil.copytree(workspace.home.root, kept, ignore=shutil.ignore_patterns("*.db*", "*.lock"))

    def bring_back() -> None:
        for table, rows in tables.items():
            there = {row["id"] for row in workspace.store.rows(f"SELECT id FROM {table}")}
            for row in (row for row in rows if row["id"] not in there):
                values = [json.dumps(v) if isinstance(v, dict | list) else v for v in row.values()]
                workspace.store.execute(
                    f"INSERT INTO {table}({','.join(row)}) VALUES ({','.join('?' * len(row))})", *values
                )
        for parent in ("datasets", "adapters", "exports", "jobs"):
            for folder in (kept / parent).iterdir():
                if not (workspace.home.root / parent / folder.name).exists():
                    shutil.copytree(folder, workspace.home.root / parent / folder.name)

    return bring_back


@pytest.mark.usefixtures("held_device", "few_workers")
def test_any_call_gives_a_result_of_its_form_or_an_error_of_ours_and_leaves_nothing_behind(
    workspace: Workspace, real: Real, restore: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    process, began = psutil.Process(), time.monotonic()

    def held() -> tuple[int, int, int]:
        gc.collect()
        return process.memory_info().rss, process.num_fds(), process.num_threads()

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Client(build_server(workspace))) as client,
    ):
        tools = {tool.name: tool for tool in portal.call(client.list_tools).tools}
        session = Session(client, portal, tools, real, restore)
        batches = max(4, CALLS // BATCH)
        for number in range(batches // 4):
            session.make(number)
        before = held()
        for number in range(batches // 4, batches):
            session.make(number)
        after = held()
    with capsys.disabled():
        if "TUNEWRIGHT_CALLS" in os.environ:
            spent = time.monotonic() - began
            told = {"calls": session.ended.total(), "s": round(spent), "before": before, "after": after}
            told |= {"ended": dict(session.ended.most_common()), "results": dict(session.results.most_common())}
            os.write(1, f"\n{json.dumps(told | {'slowest': session.slowest})}\n".encode())
    # Most of the tools did something.
    assert len(session.results) > 0.6 * len(tools)
    for now, then, more in zip(after, before, (MORE_BYTES, MORE_DESCRIPTORS, MORE_THREADS), strict=True):
        assert now <= then + more
