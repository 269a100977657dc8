"""Files that come from anybody: whatever stands in a model's folder, a pack or a header, and wherever a path leads, the
server refuses it in words, in time, and goes on.
"""

import gzip
import json
import os
import struct
import time
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from mcp import Client
from mcp.types import TextContent

from tunewright.pipeline import chat_template, processes
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.data.prepare import prepare
from tunewright.pipeline.data.reading import Reader
from tunewright.pipeline.domains import pack
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.exporting import weights
from tunewright.pipeline.workspace import Workspace
from tunewright.server import build_server

CONTENTS: dict[str, bytes] = {
    "a list": b"[]", "a number": b"3", "null": b"null", "cut off": b'{"a":', "empty": b"", "an empty object": b"{}",
    "no text": b"\xff\xfe\x00", "a hundred thousand brackets": b"[" * 100_000,
}  # fmt: skip
SMALL_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors.index.json")
CONFIGS: list[dict[str, Any]] = [
    {"model_type": 5}, {"max_position_embeddings": [1]}, {"text_config": 5}, {"layer_types": 5},
    {"num_hidden_layers": -1}, {"num_hidden_layers": 10**18}, {"hidden_size": 0}, {"hidden_size": 10**30},
    {"vocab_size": "x"}, {"num_attention_heads": 0}, {"architectures": [5]}, {"quantization_config": "x"},
]  # fmt: skip
TEMPLATES = [
    "{{ messages[0].content + 1 }}", "{{ 1/0 }}", "{{ a.b.c }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'a' * 10**13 }}", "{{ ''.__class__.__mro__ }}", "{{ messages() }}",
    "{% include '/etc/passwd' %}", "{% import 'os' as x %}", "{{ 1|nofilter }}", "{% break %}",
    "{{ (10**5000)|string }}", "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{{ '\\ud800' }}", "{% for", "",
]  # fmt: skip


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def dataset_id(workspace: Workspace, tmp_path: Path) -> str:
    rows = tmp_path / "rows.jsonl"
    text = "".join(json.dumps({"instruction": f"Say {i}.", "output": f"{i}!"}) + "\n" for i in range(20))
    rows.write_text(text, encoding="utf-8")
    return prepare(workspace, str(rows), eval_fraction=0.1)["id"]


@pytest.fixture
def model(toy_folder: Path, tmp_path: Path) -> Path:
    folder = Path(copytree(toy_folder, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(bytes(100))
    return folder


@pytest.fixture
def taken_device(workspace: Workspace) -> None:
    """A job runs, so that a chat gets as far as its prompt."""
    pid = os.getpid()
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at, pid, pid_started) "
        "VALUES ('job-running-0001','finetune','running',1,'{}',1,?,?)", pid, processes.start_time(pid),
    )  # fmt: skip


async def _told(client: Client, tool: str, arguments: dict[str, Any]) -> str:
    result = await client.call_tool(tool, arguments)
    return "".join(part.text for part in result.content if isinstance(part, TextContent))


def _spoilt(model: Path) -> list[tuple[str, str, bytes]]:
    """What is wrong, the file, and what stands in it."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    found = [(f"{name} is {what}", name, text) for name in SMALL_FILES for what, text in CONTENTS.items()]
    found += [(f"{wrong}", "config.json", json.dumps(config | wrong).encode()) for wrong in CONFIGS]
    found += [(f"template {text[:40]}", "chat_template.jinja", text.encode()) for text in TEMPLATES]
    return [*found, ("template is no text", "chat_template.jinja", b"\xff\xfe")]


@pytest.mark.anyio
@pytest.mark.usefixtures("taken_device")
async def test_a_model_folder_with_anything_in_its_files_is_refused_in_words(
    workspace: Workspace, dataset_id: str, model: Path, subtests: pytest.Subtests
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("plan_finetune", {"dataset_id": dataset_id, "model": str(model)}),
        ("inspect_dataset", {"dataset_id": dataset_id, "model": str(model), "view": "mask"}),
        ("chat_with_adapter", {"model": str(model), "prompt": "Hi"}),
    ]
    kept = {file.name: file.read_bytes() for file in model.iterdir()}
    async with Client(build_server(workspace)) as client:
        assert (await _told(client, *calls[2])).startswith("device_busy")
        for what, name, text in _spoilt(model):
            with subtests.test(what):
                (model / name).write_bytes(text)
                for tool, arguments in calls:
                    told = await _told(client, tool, arguments)
                    assert not told.startswith("internal_error"), f"{tool}: {told}"
                    assert len(told) < 8000
            (model / name).unlink()
            if name in kept:
                (model / name).write_bytes(kept[name])


@pytest.mark.parametrize(
    "endless",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) if a < 0 or range(99999)|list %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% for a in [1, 1] recursive %}{% if loop.depth < 40 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
    ],
    ids=["loops", "a filtered loop", "a macro", "a recursive loop"],
)
def test_a_chat_template_without_an_end_is_stopped(model: Path, monkeypatch: pytest.MonkeyPatch, endless: str) -> None:
    monkeypatch.setattr(chat_template, "RENDER_LIMIT_S", 0.2)
    (model / "chat_template.jinja").write_text(endless, encoding="utf-8")
    began = time.monotonic()
    with pytest.raises(InvalidInput, match=r"template_refused: .* did not come to an end"):
        ChatTemplate(model).render([{"role": "user", "content": "Hi"}])
    assert time.monotonic() - began < 10


def test_loops_of_templates_are_as_jinjas_own(model: Path) -> None:
    template = "{% for a in 'abc' %}{{ loop.index }}/{{ loop.length }}{{ a }}{{ loop.last }} {% else %}none{% endfor %}"
    (model / "chat_template.jinja").write_text(template + template.replace("'abc'", "[]"), encoding="utf-8")
    assert ChatTemplate(model).render([]) == "1/3aFalse 2/3bFalse 3/3cTrue none"


@pytest.mark.parametrize("key", ["language", "notes", "rules", "<<"])
def test_a_pack_of_aliases_of_aliases_is_refused_before_it_unfolds(tmp_path: Path, key: str) -> None:
    lists = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    file = tmp_path / "bomb.yaml"
    file.write_text(f"a0: &a0 [{{x: y}}]\n{lists}name: x\n{key}: *a11\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"broken_pack: .* alias"):
        pack.load(str(file))


@pytest.mark.parametrize(
    "begin",
    [
        struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 50_000_000_000) + b"{}", b"", bytes(100),
        struct.pack("<Q", 100_000) + b"[" * 100_000, struct.pack("<Q", 10) + b'{"a": [1]}',
        struct.pack("<Q", 59) + b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0,1]}}',
    ],
    ids=["8 EiB", "50 GB", "nothing", "zeros", "brackets", "no tensor", "no shape"],
)  # fmt: skip
def test_a_header_of_weights_that_is_none_is_refused(tmp_path: Path, begin: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(begin)
    with pytest.raises(InvalidInput, match="weights_damaged"):
        weights.declared(file)


def test_a_packed_cell_without_an_end_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "a.csv.gz"
    with gzip.open(file, "wb", compresslevel=1) as packed:
        packed.write(b'text\n"' + b"x" * 100_000_000)
    with pytest.raises(InvalidInput, match="line_too_long"):
        list(Reader(file, "train").blocks())


# Each argument that takes a path; PATH stands for one outside.
PATHS: list[tuple[str, dict[str, Any]]] = [
    ("prepare_dataset", {"source": "PATH"}), ("prepare_dataset", {"source": ["DATASET", "PATH"]}),
    ("prepare_dataset", {"source": [{"source": "PATH", "weight": 1}]}),
    ("prepare_dataset", {"source": "DATASET", "domain": "PATH"}),
    ("prepare_dataset", {"source": "DATASET", "benchmark_dir": "PATH"}),
    ("prepare_dataset", {"source": "DATASET", "model": "PATH"}),
    ("read_documents", {"source": "PATH"}), ("read_documents", {"source": "PATH/*"}),
    ("generate_examples", {"source": "PATH", "model": "x"}),
    ("inspect_dataset", {"dataset_id": "DATASET", "view": "mask", "model": "PATH"}),
    ("plan_finetune", {"dataset_id": "DATASET", "model": "PATH"}),
    ("start_finetune", {"dataset_id": "DATASET", "model": "PATH"}),
    ("chat_with_adapter", {"model": "PATH", "prompt": "Hi"}),
    ("validate_adapter", {"adapter_id": "ad-numbers-0001", "domain": "PATH"}),
    ("benchmark_adapter", {"adapter_id": "ad-numbers-0001", "task_dir": "PATH"}),
    ("benchmark_adapter", {"adapter_id": "ad-numbers-0001", "task": "gsm8k", "task_dir": "PATH"}),
]  # fmt: skip


@pytest.fixture
def adapter(workspace: Workspace, model: Path, dataset_id: str) -> None:
    folder = Path(copytree(model, workspace.home.adapters / "ad-numbers-0001"))
    document = {
        "path": str(folder), "base_model": str(model), "base_path": str(model), "dataset_id": dataset_id,
        "training": {"load_in_4bit": False}, "enable_thinking": False, "max_seq_length": 256,
    }  # fmt: skip
    workspace.store.add_artifact(folder.name, "adapter", "numbers", document, parents=[])


@pytest.mark.anyio
@pytest.mark.usefixtures("adapter")
async def test_every_argument_that_takes_a_path_refuses_what_lies_outside(
    workspace: Workspace, dataset_id: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:  # fmt: skip
    private, allowed = tmp_path / "private", tmp_path / "allowed"
    monkeypatch.setenv("TUNEWRIGHT_ALLOW_DIRS", f"{model}{os.pathsep}{allowed}")
    allowed.mkdir()
    for name in ("dev", "val"):
        (private / name).mkdir(parents=True)
    (private / "config.json").write_text("{}", encoding="utf-8")
    (allowed / "link").symlink_to(private)
    outside = {"there": private, "not there": tmp_path / "missing", "a link": allowed / "link"}
    outside |= {"the way up": allowed / ".." / "private", "passwd": Path("/etc/passwd")}

    def put(value: Any, path: Path) -> Any:
        return json.loads(json.dumps(value).replace("PATH", str(path)).replace("DATASET", dataset_id))

    async with Client(build_server(workspace)) as client:
        for tool, arguments in PATHS:
            for where, path in outside.items():
                with subtests.test(f"{tool} {arguments} {where}"):
                    told = await _told(client, tool, put(arguments, path))
                    assert told.startswith("path_not_allowed: "), told
    assert [job["id"] for job in workspace.store.rows("SELECT id FROM jobs")] == []
