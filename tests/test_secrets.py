"""No secret is kept or told: every result, resource, event, error, log, file and command line is searched for each."""

import json
import secrets
import stat
import string
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from mcp import Client
from mcp.types import TextContent

from tunewright.pipeline import jobs, redact, worker
from tunewright.pipeline.chat import protocol
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.workspace import Workspace
from tunewright.server import build_server

ENDED = ("succeeded", "failed", "cancelled", "interrupted")
RunPython = Callable[..., str]
Eventually = Callable[..., None]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _random(length: int) -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Secrets by the place they are planted in; the environment's are set, for workers too."""
    kept = {
        "hub token": f"hf_{_random(34)}", "provider key": f"sk-{_random(40)}", "key of no known form": _random(24),
        "mirror password": _random(16), "row key": f"ghp_{_random(36)}", "argument key": f"sk-proj-{_random(40)}",
        "argument password": _random(16),
    }  # fmt: skip
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", kept["hub token"])
    monkeypatch.setenv("OPENAI_API_KEY", kept["provider key"])
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", kept["key of no known form"])
    monkeypatch.setenv("HF_ENDPOINT", f"http://ann:{kept['mirror password']}@127.0.0.1:9")
    monkeypatch.setenv("OLLAMA_HOST", f"http://ann:{kept['mirror password']}@127.0.0.1:9")
    return kept


@pytest.fixture
async def client(workspace: Workspace, planted: dict[str, str]) -> AsyncIterator[Client]:
    async with Client(build_server(workspace)) as connected:
        yield connected


def _calls(kept: dict[str, str], rows: Path) -> list[tuple[str, dict[str, Any]]]:
    key, password, env = kept["argument key"], kept["argument password"], kept["key of no known form"]
    address = f"https://ann:{password}@example.org/rows.jsonl"
    data: dict[str, Any] = {"source": str(rows)}
    return [
        ("check_environment", {}),
        ("list_models", {"query": key}),
        ("prepare_dataset", {**data, "name": "numbers"}),
        ("prepare_dataset", {**data, "model": key}),
        ("prepare_dataset", {**data, "mapping": {key: "x"}}),
        ("prepare_dataset", {"source": address}),
        ("prepare_dataset", {"source": f"/nowhere/{key}.jsonl"}),
        ("prepare_dataset", {"source": "owner/name"}),
        ("read_documents", {"source": address}),
        ("read_documents", {"source": f"{rows.parent}/{key}.pdf"}),
        ("add_examples", {"dataset": "more", "examples": [{"prompt": f"My key is {key}.", "response": ""}]}),
        ("generate_examples", {"source": str(rows), "endpoint": address, "model": key, "count": 1, "kind": "qa"}),
        ("plan_finetune", {"dataset_id": "ds-numbers", "model": f"{key}/{env}"}),
        ("start_finetune", {"dataset_id": env, "model": "toy"}),
        ("start_finetune", {"dataset_id": "ds-numbers", "model": "toy", "learning_rate": key}),
        ("start_finetune", {"dataset_id": "ds-numbers", "model": "toy", key: 1}),
        ("get_status", {"job_id": key}),
        ("chat_with_adapter", {"model": "toy", "prompt": f"My key is {key}."}),
        ("chat_with_adapter", {"model": f"owner/{key}", "prompt": "Hello"}),
        ("publish_to_ollama", {"export_id": "ex-none", "model_name": key}),
        ("publish_to_hub", {"artifact_id": key, "repo_id": address}),
        ("list_artifacts", {}),
        (key, {}),
    ]


@pytest.mark.anyio
async def test_no_secret_stands_in_any_result_resource_event_log_or_file(
    client: Client, workspace: Workspace, planted: dict[str, str], tmp_path: Path, eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    command_lines: list[str] = []
    start = subprocess.Popen.__init__

    def noted(self: Any, command: Any, *arguments: Any, **options: Any) -> None:
        command_lines.append(repr(command))
        start(self, command, *arguments, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", noted)
    row = {"instruction": "Which key?", "output": f"It is {planted['row key']}, as ever."}
    rows = tmp_path / "data" / "rows.jsonl"
    rows.parent.mkdir()
    plain = [{"instruction": f"Say {i}.", "output": f"{i}!"} for i in range(20)]
    rows.write_text("".join(f"{json.dumps(entry)}\n" for entry in [row, *plain]), encoding="utf-8")
    seen: dict[str, str] = {}
    for number, (tool, arguments) in enumerate(_calls(planted, rows)):
        result = await client.call_tool(tool, arguments)
        seen[f"{number} {tool}"] = "".join(part.text for part in result.content if isinstance(part, TextContent))
    eventually(lambda: all(job["state"] in ENDED for job in jobs.newest(workspace, 100)), 60)
    ids = [job["id"] for job in jobs.newest(workspace, 100)]
    seen |= {id: json.dumps(workspace.store.events(id)) for id in ids}
    for uri in ["tw://environment", "tw://jobs", *(f"tw://jobs/{id}{part}" for id in ids for part in ("", "/log"))]:
        read = await client.read_resource(uri)
        seen[uri] = "".join(getattr(content, "text", "") for content in read.contents)
    for dataset in workspace.store.artifacts("dataset"):
        for part in ("", "/report.html"):
            read = await client.read_resource(f"tw://datasets/{dataset['id']}{part}")
            seen[f"{dataset['id']}{part}"] = "".join(getattr(content, "text", "") for content in read.contents)
    assert len(workspace.store.artifacts("dataset")) >= 1 and command_lines
    seen["what ps shows"] = "\n".join(command_lines)
    leaks = [(where, name) for where, text in seen.items() for name, secret in planted.items() if secret in text]
    leaks += _leaks_in_files(workspace.home.root, planted)
    assert not leaks, "\n".join(f"{name}: {where}" for where, name in leaks)


def _leaks_in_files(root: Path, kept: dict[str, str]) -> list[tuple[str, str]]:
    """Where in the home a secret stands. What is trained on is kept as it was given (and said: see SECURITY.md)."""
    files = [path for path in root.rglob("*") if path.is_file() and path.suffix not in (".parquet", ".arrow")]
    held = {path: path.read_bytes() for path in files}
    return [
        (str(path.relative_to(root)), name)
        for path, content in held.items()
        for name, secret in kept.items()
        if secret.encode() in content
    ]


def test_an_unforeseen_failure_is_kept_without_secrets(
    tmp_path: Path, planted: dict[str, str], monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    text = f"no {planted['key of no known form']} at http://ann:{planted['argument password']}@example.org"

    def stage(kind: str) -> Callable[[JobContext], dict[str, Any]]:
        def fail(context: JobContext) -> dict[str, Any]:
            context.event("warning", "odd", text)
            raise RuntimeError(text)

        return fail

    monkeypatch.setattr(worker, "stage", stage)
    workspace = Workspace.open(tmp_path / "inline", inline=True)
    job = jobs.submit(workspace, "prepare_dataset", "failing", {}, needs_device=False)
    eventually(lambda: workspace.store.job(job["id"])["state"] == "failed")
    workspace.store.close()
    assert _leaks_in_files(workspace.home.root, planted) == []


def test_a_workers_log_holds_no_secret(workspace: Workspace, planted: dict[str, str], eventually: Eventually) -> None:
    # As a kind of job that there is not, it stands in the traceback.
    kind = f"{planted['key of no known form']} http://ann:{planted['argument password']}@example.org"
    job = jobs.submit(workspace, kind, "failing", {}, needs_device=False)
    eventually(lambda: workspace.store.job(job["id"])["state"] == "failed", 60)
    log = jobs.log_path(workspace, job["id"]).read_text(encoding="utf-8")
    assert "unknown kind of job" in log
    assert [name for name, secret in planted.items() if secret in log] == []


def test_what_python_prints_in_a_worker_is_written_without_secrets(run_python: RunPython, tmp_path: Path) -> None:
    code = """
import sys
from tunewright.pipeline import redact
redact.redact_output()
import logging, os
logging.basicConfig(level=logging.INFO)
key, form, password = os.environ["WANDB_API_KEY"], "hf_" + "Ab3dEf7hIj1kLm5nOp9qRs2tUv6wXy0zAb", "p4ss:w@rd"
print("key", key, flush=True); print(key[:9], end=""); print(key[9:])
sys.stdout.write("50%\\r" + form + "\\r")
logging.info("fetched http://ann:%s@mirror.example/simple", password)
try:
    raise ValueError(f"{key} {form}")
except ValueError:
    logging.exception("failed"); import traceback; traceback.print_exc(file=sys.stdout)
print("the end", end="")
"""
    secret = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
    printed = run_python(f"import sys; sys.stderr = sys.stdout\n{code}", WANDB_API_KEY=secret)
    assert secret not in printed and "hf_Ab3" not in printed and "w@rd" not in printed
    assert "key [removed]\n[removed]\n50%\n" in printed
    assert "http://[removed]@mirror.example/simple" in printed
    assert printed.count("ValueError: [removed]") == 2 and printed.endswith("the end")


@pytest.mark.parametrize(
    "text",
    ["A key opens a door.", "see https://example.org/a@b", "git@github.com:a/b", "to 3/4 @ noon", "path=/home/ann/x"],
)
def test_harmless_texts_stay_as_they_are(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_KEY", "door")
    monkeypatch.setenv("KEY_FILE_KEY", "/home/ann/x")
    assert redact.without_secrets(text) == text


def test_the_chat_hosts_secret_is_its_owners_alone(workspace: Workspace) -> None:
    protocol.announce(workspace, 1, b"secret")
    assert stat.S_IMODE(protocol.address_file(workspace).stat().st_mode) == 0o600
