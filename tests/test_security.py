"""SECURITY.md holds, and what it says of the whole: nothing planted runs, names stay names."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import pytest
from mcp import Client
from mcp.types import TextContent
from standins.datasets_server import DatasetsStandIn
from standins.hub_server import HubStandIn, Repository

from tunewright.pipeline import models
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.workspace import Workspace
from tunewright.server import INSTRUCTIONS, build_server

REPOSITORY = Path(__file__).parents[1]
ENDED = ("succeeded", "failed", "cancelled", "interrupted")
RunPython = Callable[..., str]


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
