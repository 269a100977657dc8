"""A home with a trained adapter and its export, small enough to make for every test: real tokenizer, toy weights."""

import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from standins.hub_server import HubStandIn
from standins.ollama_server import OllamaStandIn

from tunewright.pipeline import toy
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.settings import Home
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
THINKING_OFF = "{%- set enable_thinking = false %}\n"
WEIGHTS = bytes(range(256)) * 8
# Only ever in this test: no real token begins so.
SECRET = "hf_" + "S3cretS3cretS3cret" * 2
# What the export's parity recorded: its quotes of the data must stay on the machine.
ASKED = [[{"role": "user", "content": "Who are you?"}], [{"role": "user", "content": "Where do you live?"}]]
ANSWERS = [
    {"text": "I am Tuny, row-marker.", "tokens": list(range(9)), "ended": "stop"},
    {"text": "In a small box", "tokens": list(range(48)), "ended": "length"},
]
PARITY = {"passed": True, "failures": [], "outputs": {"gguf:q8_0": {"passed": True}}, "recommendation": None}


def gguf_bytes(template: str) -> bytes:
    """A GGUF of no tensors: header, architecture and chat template, then bytes that stand in for weights."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    entries = {"general.architecture": "qwen3", "tokenizer.chat_template": template}
    body = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in entries.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + body + WEIGHTS


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.prepare(Home.open(tmp_path_factory.mktemp("toy")))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    opened = Workspace.open(tmp_path / "home")
    yield opened
    opened.store.close()


@pytest.fixture
def dataset(workspace: Workspace) -> Row:
    folder = workspace.home.datasets / "ds-identity-0001"
    folder.mkdir()
    rows = [[{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am Tuny, row-marker."}]]
    parquet.write_table(pa.table({"messages": rows}), folder / "eval.parquet")
    document = {
        "path": str(folder), "train_rows": 91, "eval_rows": 1, "format": "alpaca", "sha256": "d" * 64,
        "source": str(folder.parent / "identity.json"),
    }  # fmt: skip
    workspace.store.add_artifact(folder.name, "dataset", "identity", document, parents=[])
    return workspace.store.artifact(folder.name)


@pytest.fixture
def adapter(workspace: Workspace, dataset: Row, toy_folder: Path) -> Row:
    folder = workspace.home.adapters / "ad-identity-0001"
    folder.mkdir()
    for name in TOKENIZER_FILES:
        copyfile(toy_folder / name, folder / name)
    base = str(workspace.home.models / "toy")
    arguments = {"learning_rate": 2e-4, "epochs": 3.0, "target_modules": ["q_proj", "v_proj"], "load_in_4bit": None}
    config = {"peft_type": "LORA", "r": 16, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (folder / "README.md").write_text(f"base_model: {base}\n", encoding="utf-8")
    provenance = {"base_model": base, "arguments": arguments, "log": f"read {base}/config.json", "note": SECRET}
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    document = {
        "path": str(folder), "base_model": "unsloth/Qwen3-8B", "base_path": str(toy_folder),
        "dataset_id": dataset["id"],
        "method": "sft", "training": arguments, "metrics": {"train_loss": 0.123456, "eval_loss": 0.2, "steps": 30},
        "max_seq_length": 512, "enable_thinking": False,
    }  # fmt: skip
    workspace.store.add_artifact(folder.name, "adapter", "identity", document, parents=[dataset["id"]])
    return workspace.store.artifact(folder.name)


@pytest.fixture
def export(workspace: Workspace, adapter: Row, toy_folder: Path) -> Row:
    folder = workspace.home.exports / "ex-identity-0001"
    (folder / "merged").mkdir(parents=True)
    for name in [*TOKENIZER_FILES, "config.json"]:
        copyfile(toy_folder / name, folder / "merged" / name)
    (folder / "merged" / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_model.safetensors").write_bytes(WEIGHTS)
    measured = {
        "passed": True, "failures": [], "cases": {"dataset_id": "ds-identity-0001", "asked": ASKED},
        "outputs": {"gguf:q8_0": {"passed": True, "failures": [], "answers": ANSWERS}},
    }  # fmt: skip
    (folder / "parity.json").write_text(json.dumps(measured), encoding="utf-8")
    template = THINKING_OFF + (toy_folder / "chat_template.jinja").read_text(encoding="utf-8")
    gguf = folder / "identity-q8_0.gguf"
    gguf.write_bytes(gguf_bytes(template))
    files = [
        {"output": "merged_16bit", "path": str(folder / "merged"), "bytes": len(WEIGHTS)},
        {"output": "gguf:q8_0", "path": str(gguf), "bytes": gguf.stat().st_size},
    ]
    document = {
        "path": str(folder), "adapter_id": adapter["id"], "base_model": "unsloth/Qwen3-8B", "files": files,
        "enable_thinking": False, "max_seq_length": 512, "parity": PARITY,
    }  # fmt: skip
    workspace.store.add_artifact(folder.name, "export", "identity", document, parents=[adapter["id"]])
    return workspace.store.artifact(folder.name)


Submit = Callable[..., JobContext]


@pytest.fixture
def submit(workspace: Workspace) -> Submit:
    """Stores a queued job of a kind with its spec and returns its context; starts no worker."""

    def stored(kind: str, **spec: Any) -> JobContext:
        job_id = f"job-{kind.replace('_', '-')}-{len(workspace.store.rows('SELECT id FROM jobs'))}"
        (workspace.home.jobs / job_id).mkdir()
        workspace.store.execute(
            "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,?,'queued',0,?,?)",
            job_id, kind, json.dumps(spec), time.time(),
        )  # fmt: skip
        return JobContext.of(workspace, job_id)

    return stored


@pytest.fixture
def rewrite(workspace: Workspace) -> Callable[..., Row]:
    """Changes entries of an artifact's document and returns the artifact as it is then."""

    def rewritten(artifact: Row, **changes: Any) -> Row:
        document = json.dumps({**artifact["document"], **changes})
        workspace.store.execute("UPDATE artifacts SET document=? WHERE id=?", document, artifact["id"])
        return workspace.store.artifact(artifact["id"])

    return rewritten


@pytest.fixture
def secret() -> str:
    return SECRET


@pytest.fixture
def make_gguf() -> Callable[[str], bytes]:
    return gguf_bytes


@pytest.fixture
def recorded() -> dict[str, dict[str, Any]]:
    """The answers that the export's parity recorded, by question."""
    return {asked[-1]["content"]: dict(answer) for asked, answer in zip(ASKED, ANSWERS, strict=True)}


@pytest.fixture
def remeasure(export: Row) -> Callable[..., None]:
    """Writes another parity.json: what each output of the export answered, by output."""

    def rewritten(answers: dict[str, list[dict[str, Any]]], asked: list[list[dict[str, str]]] = ASKED) -> None:
        document = {
            "cases": {"dataset_id": None, "asked": asked},
            "outputs": {output: {"answers": answers[output]} for output in answers},
        }
        (Path(export["document"]["path"]) / "parity.json").write_text(json.dumps(document), encoding="utf-8")

    return rewritten


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch, secret: str) -> Iterator[HubStandIn]:
    monkeypatch.setenv("HF_TOKEN", secret)
    with HubStandIn(token=secret) as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in
        stand_in.released.set()


@pytest.fixture
def cancel_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[JobContext, str], None]:
    """`cancel_at(context, phase)`: the job is cancelled as soon as it says that it has come to `phase`."""

    def cancel(context: JobContext, when: str) -> None:
        tell = context.progress

        def told(phase: str, *numbers: float) -> None:
            tell(phase, *numbers)
            if phase == when:
                context.workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)

        monkeypatch.setattr(context, "progress", told)

    return cancel


@pytest.fixture
def ollama_server(
    monkeypatch: pytest.MonkeyPatch, recorded: dict[str, dict[str, Any]], toy_folder: Path
) -> Iterator[OllamaStandIn]:
    """An Ollama server on which the export's model answers as its parity recorded; it counts tokens as training did."""
    template = ChatTemplate(toy_folder)
    with OllamaStandIn(answers=recorded, count_tokens=lambda prompt: len(template.ids(prompt))) as stand_in:
        monkeypatch.setenv("OLLAMA_HOST", stand_in.url)
        yield stand_in


@pytest.fixture
def no_ollama(monkeypatch: pytest.MonkeyPatch) -> None:
    # The discard port: nothing listens there.
    monkeypatch.setenv("OLLAMA_HOST", "http://user:password@127.0.0.1:9")
