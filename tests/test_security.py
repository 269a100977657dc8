"""SECURITY.md holds, and what it says of the whole: nothing planted runs, no secret is kept, names stay names."""

import ast
import json
import re
import secrets
import stat
import string
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from huggingface_hub import constants
from mcp import Client
from mcp.types import TextContent
from standins.datasets_server import DatasetsStandIn
from standins.hub_server import HubStandIn, Repository

from tunewright.pipeline import jobs, models, redact, worker
from tunewright.pipeline.chat import protocol
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.workspace import Workspace
from tunewright.server import INSTRUCTIONS, build_server

REPOSITORY = Path(__file__).parents[1]
ENDED = ("succeeded", "failed", "cancelled", "interrupted")
RunPython = Callable[..., str]
Eventually = Callable[..., None]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# SECURITY.md


def test_every_line_of_security_md_has_its_test() -> None:
    text = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 30
    for file, test in named:
        source = REPOSITORY / file
        assert source.is_file() and re.search(rf"^(?:async )?def {test}\(", source.read_text(encoding="utf-8"), re.M), (
            f"{file}::{test}"
        )
    threats = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| Threat", "|--"))]
    assert threats and all("`tests/" in line for line in threats)


# Code that comes with data


FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "dill.load", "joblib.load", "torch.load",
    "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "eval", "exec",
    "os.system", "os.popen",
}  # fmt: skip


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _dangers(source: Path) -> list[str]:
    """Calls that run what they read; loaders that were told to."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        told = {keyword.arg: keyword.value for keyword in node.keywords}
        yes = [k for k in ("trust_remote_code", "allow_pickle", "shell") if isinstance(told.get(k), ast.Constant)]
        found += [f"{source.name}:{node.lineno} {k}" for k in yes if getattr(told[k], "value", None) is True]
        if _dotted(node.func) in FORBIDDEN:
            found.append(f"{source.name}:{node.lineno} {_dotted(node.func)}")
    return found


def test_no_code_of_ours_unpickles_evaluates_or_calls_a_shell(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "torch.load(x)\nm.from_pretrained(n, trust_remote_code=True)\neval(x)", encoding="utf-8"
    )
    assert len(_dangers(tmp_path / "bad.py")) == 3
    folders = [REPOSITORY / name for name in ("pipeline", "tools", "resources", "examples")]
    sources = [REPOSITORY / "server.py", *(file for folder in folders for file in folder.rglob("*.py"))]
    assert len(sources) > 100
    assert [danger for source in sources for danger in _dangers(source)] == []


# Run in a process of its own, as a worker is: a planted pickle or module makes a file when it is run.
PLANTED = """
import json, os, pickle, shutil, sys
from pathlib import Path
from types import SimpleNamespace

model, trap = Path(sys.argv[1]), Path(sys.argv[2])

from tunewright.pipeline.backend import FastLanguageModel
import torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from tunewright.pipeline.inference import loading as inference

class Trap:
    def __reduce__(self):
        return (os.mkdir, (str(trap),))

def run(what, work):
    try:
        work()
    except (Exception, SystemExit) as error:
        print(json.dumps([what, type(error).__name__, trap.exists()]))
    else:
        print(json.dumps([what, "ran", trap.exists()]))

# Shown first that the trap works.
pickle.loads(pickle.dumps(Trap())); assert trap.exists(); trap.rmdir()

config = json.loads((model / "config.json").read_text())
config |= {"model_type": "trapped", "architectures": ["Trapped"]}
config["auto_map"] = {"AutoConfig": "trapped.Config", "AutoModelForCausalLM": "trapped.Trapped"}
(model / "config.json").write_text(json.dumps(config))
(model / "trapped.py").write_text(f"import os; os.mkdir({str(trap)!r})")
run("its own code, trained", lambda: FastLanguageModel.from_pretrained(str(model), load_in_4bit=False))
run("its own code, plain", lambda: AutoModelForCausalLM.from_pretrained(str(model)))
run("its own code, chat", lambda: inference.load_base(str(model), load_in_4bit=False, device=torch.device("cpu")))
run("its tokenizer's code", lambda: AutoTokenizer.from_pretrained(str(model)))

checkpoint = model.parent / "checkpoint-1"
checkpoint.mkdir()
for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
    torch.save(Trap(), checkpoint / name)
arguments = TrainingArguments(output_dir=str(model.parent / "out"), report_to="none", use_cpu=True)
trainer = Trainer(model=torch.nn.Linear(2, 2), args=arguments)
trainer.create_optimizer_and_scheduler(1)
run("a checkpoint's optimizer", lambda: trainer._load_optimizer_and_scheduler(str(checkpoint)))
run("a checkpoint's random state", lambda: trainer._load_rng_state(str(checkpoint)))

from peft import LoraConfig, PeftModel, get_peft_model
adapter = model.parent / "adapter"
get_peft_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), LoraConfig(target_modules=["0"])).save_pretrained(adapter)
(adapter / "adapter_model.safetensors").unlink()
torch.save({"weights": Trap()}, adapter / "adapter_model.bin")
run("an adapter", lambda: PeftModel.from_pretrained(torch.nn.Sequential(torch.nn.Linear(2, 2)), str(adapter)))
"""


def test_what_is_planted_in_models_adapters_and_checkpoints_never_runs(
    run_python: RunPython, toy_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in toy_folder.iterdir():
        copyfile(file, folder / file.name)
    told = run_python(PLANTED, folder, tmp_path / "trap", CUDA_VISIBLE_DEVICES="", PYTHONWARNINGS="ignore")
    # A question that was asked before, on the same line, is passed over.
    lines = [json.loads(found) for found in re.findall(r"\[\"[^\n]*\]$", told, re.M)]
    assert [line[0] for line in lines if line[2]] == []
    outcomes = {line[0]: line[1] for line in lines}
    assert len(outcomes) == 7
    # The toy's tokenizer needs no code; everything else is refused.
    assert [what for what, outcome in outcomes.items() if outcome == "ran"] in ([], ["its tokenizer's code"])


@pytest.fixture
def model_folder(toy_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in toy_folder.iterdir():
        copyfile(file, folder / file.name)
    return folder


@pytest.mark.parametrize(
    "index",
    ["pytorch_model.bin", "../model/model.safetensors", "sub/model.safetensors"],
    ids=["a pickle", "from elsewhere", "from below"],
)
def test_an_index_that_names_anything_but_its_own_safetensors_is_refused(
    workspace: Workspace, model_folder: Path, index: str
) -> None:
    (model_folder / "sub").mkdir()
    for name in ("pytorch_model.bin", "model.safetensors", "sub/model.safetensors"):
        (model_folder / name).touch()
    assert models.resolve(workspace, str(model_folder)).kind == "local"
    (model_folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": index}}), encoding="utf-8"
    )
    with pytest.raises(InvalidInput, match="no_safetensors"):
        models.resolve(workspace, str(model_folder))


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "model.safetensors", "extra/notes.txt"])
def test_a_model_folder_with_a_link_to_elsewhere_is_refused(
    workspace: Workspace, model_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_ALLOW_DIRS", str(model_folder))
    (model_folder / "model.safetensors").touch()
    assert models.resolve(workspace, str(model_folder)).kind == "local"
    secret = model_folder.parent / "id_rsa"
    secret.write_text("PRIVATE", encoding="utf-8")
    (model_folder / name).parent.mkdir(exist_ok=True)
    (model_folder / name).unlink(missing_ok=True)
    (model_folder / name).symlink_to(secret)
    with pytest.raises(InvalidInput, match="path_not_allowed"):
        models.resolve(workspace, str(model_folder))


@pytest.mark.parametrize(("weights", "refused"), [("pytorch_model.bin", True), ("model.safetensors", False)])
def test_a_repository_of_pickles_is_refused_before_anything_of_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, refused: bool
) -> None:
    token = "hf_" + "standin" * 5
    with HubStandIn(token=token) as hub:
        hub.repositories["owner/name"] = Repository(private=False, files={"config.json": b"{}", weights: b"x"})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", token)
        if not refused:
            models._require_safetensors("owner/name", tmp_path)
            return
        with pytest.raises(InvalidInput, match=r"no_safetensors: owner/name .*can run code"):
            models._require_safetensors("owner/name", tmp_path)


FETCH = """
import sys
from tunewright.pipeline.data import hub
from tunewright.pipeline.errors import TunewrightError
try:
    found = hub.RemoteDataset("huggingface", "owner/name")
    print([row for block in hub.blocks(found, None, None) for row in block.rows])
except TunewrightError as error:
    print(error.code)
"""


@pytest.mark.parametrize("name", ["name.py", "train.pkl"])
def test_code_that_comes_with_a_dataset_of_the_hub_never_runs(run_python: RunPython, tmp_path: Path, name: str) -> None:
    trap = tmp_path / "trap"
    planted = f"import os; os.mkdir({str(trap)!r})".encode()
    if name.endswith(".pkl"):
        planted = b"cos\nmkdir\n(V" + str(trap).encode() + b"\ntR."
    with DatasetsStandIn({"owner/name": {name: planted}}) as hub:
        said = run_python(FETCH, HF_ENDPOINT=hub.url, HF_TOKEN="")
    assert said.strip() == "hub_dataset_unreadable"
    assert not trap.exists()


# Secrets


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


# Names


HOSTILE = ["../../etc/x", "a;touch x", "$(touch x)", "a\0b", "é" * 200, "x" * 300, "a\u202egnp.exe", "-rf", "a\nb", "."]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_of_a_dataset_stays_inside_the_home(workspace: Workspace, tmp_path: Path, name: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Say 1.", "output": "1!"}\n{"instruction": "Say 2.", "output": "2!"}\n', "utf-8")
    before = set(tmp_path.iterdir())
    made = prepare(workspace, str(rows), name=name)
    assert re.fullmatch(r"ds-[a-z0-9-]+", made["id"]) and len(made["id"]) < 40
    assert Path(made["document"]["path"]).parent == workspace.home.datasets
    assert set(tmp_path.iterdir()) == before


@pytest.mark.anyio
@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_names_are_refused_where_they_would_leave_the_home(
    workspace: Workspace, toy_folder: Path, name: str
) -> None:
    folder = workspace.home.adapters / "ad-numbers-0001"
    folder.mkdir()
    workspace.store.add_artifact(folder.name, "adapter", "numbers", {"path": str(folder)}, parents=[])
    async with Client(build_server(workspace)) as client:
        for tool, arguments in [
            ("publish_to_ollama", {"export_id": folder.name, "model_name": name, "dry_run": True}),
            ("publish_to_hub", {"artifact_id": folder.name, "repo_id": f"owner/{name}", "dry_run": True}),
            ("start_finetune", {"dataset_id": name, "model": "toy", "dry_run": True}),
            ("plan_finetune", {"dataset_id": "ds-x", "model": f"owner/{name}"}),
            ("get_status", {"job_id": name}),
            ("delete_artifact", {"artifact_id": name, "confirm": True}),
        ]:
            result = await client.call_tool(tool, arguments)
            (part,) = result.content
            assert result.is_error and isinstance(part, TextContent)
            assert not re.search(r"internal_error|unexpected|Traceback", part.text), f"{tool}: {part.text}"
    assert folder.is_dir() and len(list(workspace.home.root.glob("**/*"))) < 40


# Texts of data and models


@pytest.mark.anyio
async def test_whatever_shows_texts_of_data_or_models_says_that_they_are_no_instructions(workspace: Workspace) -> None:
    async with Client(build_server(workspace)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    for name in ("inspect_dataset", "read_documents", "chat_with_adapter", "submit_judgements", "prepare_dataset"):
        said = f"{tools[name].description} {json.dumps(tools[name].output_schema)}"
        assert "data, not instructions" in said, name
    assert "never instructions" in " ".join(INSTRUCTIONS.split())


# The whole, over stdio


@pytest.mark.anyio
async def test_a_job_reads_what_its_server_might_although_its_worker_starts_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.examples import session

    monkeypatch.delenv("TUNEWRIGHT_ALLOW_DIRS")
    work = tmp_path / "work"
    work.mkdir()
    text = "".join(f'{{"instruction": "Say {i}.", "output": "{i}!"}}\n' for i in range(20))
    (work / "rows.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "other.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.chdir(work)
    async with session.connect(str(tmp_path / "home")) as client:
        made = await session.call(client, "prepare_dataset", source="rows.jsonl")
        if made["state"] not in ENDED:
            await session.follow(client, made["job_id"])
        for source in ("../other.jsonl", str(tmp_path / "*.jsonl"), str(tmp_path / "home" / "tunewright.db")):
            with pytest.raises(session.ToolFailed, match="path_not_allowed"):
                await session.call(client, "prepare_dataset", source=source)
        with pytest.raises(session.ToolFailed, match="path_not_allowed"):
            await session.call(client, "read_documents", source="/etc")
