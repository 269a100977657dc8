"""Which weights an id or a name stands for, and how its model wants to be sampled."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import models, settings
from tunewright.pipeline.errors import InvalidInput, NotFound
from tunewright.pipeline.inference import subject
from tunewright.pipeline.inference.subject import Subject
from tunewright.pipeline.workspace import Workspace

AddAdapter = Callable[..., str]


@pytest.fixture
def local_model(toy_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(toy_folder, folder)
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture
def add_adapter(workspace: Workspace, toy_folder: Path) -> AddAdapter:
    """`add_adapter(base_model, **document)`: the folder of an adapter `ad-a-0001` with that record."""

    def add(base_model: str, **changed: Any) -> str:
        folder = workspace.home.adapters / "ad-a-0001"
        shutil.copytree(toy_folder, folder)
        document = {
            "path": str(folder), "base_model": base_model, "base_path": base_model, "max_seq_length": 512,
            "training": {"load_in_4bit": False}, "enable_thinking": True, **changed,
        }  # fmt: skip
        workspace.store.add_artifact("ad-a-0001", "adapter", "a", document, parents=[])
        return str(folder)

    return add


def hub_model(folder: Path, cached: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub whose models this machine knows by their small files, and those of `cached` with weights."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(models, "cached_ids", lambda: sorted(cached))
    monkeypatch.setattr(models, "cached_folder", cached.get)
    monkeypatch.setattr(models, "resolve", lambda workspace, name: models.Model(name, "hub", cached.get(name), config))


def test_an_adapter_stands_on_its_base_with_its_own_tokenizer(
    workspace: Workspace, add_adapter: AddAdapter, local_model: Path
) -> None:
    folder = add_adapter(str(local_model), training={"load_in_4bit": True})
    assert subject.resolve(workspace, adapter_id="ad-a") == Subject(
        name="ad-a-0001", base=str(local_model), adapter_id="ad-a-0001", adapter_path=folder,
        base_without=str(local_model), tokenizer_folder=folder, load_in_4bit=True, context_tokens=2048,
        enable_thinking=True, trust_remote_code=False,
    )  # fmt: skip


def test_a_models_own_code_is_trusted_only_where_the_setting_names_it(
    workspace: Workspace, add_adapter: AddAdapter, local_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_adapter(str(local_model))
    assert not subject.resolve(workspace, adapter_id="ad-a").trust_remote_code
    monkeypatch.setenv(settings.TRUST_REMOTE_CODE, f"owner/name,{local_model}")
    assert subject.resolve(workspace, adapter_id="ad-a").trust_remote_code
    assert subject.resolve(workspace, model=str(local_model)).trust_remote_code


def test_a_model_trained_as_a_whole_is_its_own_base_and_compared_with_what_it_was(
    workspace: Workspace, add_adapter: AddAdapter, local_model: Path
) -> None:
    folder = add_adapter(str(local_model), form="full")
    found = subject.resolve(workspace, adapter_id="ad-a-0001")
    assert (found.base, found.adapter_path, found.adapter_id) == (folder, None, "ad-a-0001")
    assert (found.untrained.base, found.untrained.adapter_id) == (str(local_model), None)


def test_the_untrained_of_an_adapter_is_the_same_base_alone(
    workspace: Workspace, add_adapter: AddAdapter, local_model: Path
) -> None:
    add_adapter(str(local_model))
    found = subject.resolve(workspace, adapter_id="ad-a-0001")
    assert (found.untrained.base, found.untrained.load_in_4bit) == (found.base, found.load_in_4bit)
    assert (found.untrained.adapter_id, found.untrained.adapter_path) == (None, None)


def test_a_model_is_named_by_itself(workspace: Workspace, local_model: Path) -> None:
    found = subject.resolve(workspace, model=str(local_model))
    assert (found.name, found.base, found.tokenizer_folder) == (str(local_model),) * 3
    assert (found.adapter_id, found.load_in_4bit, found.enable_thinking) == (None, False, False)


@pytest.mark.parametrize(
    ("cached", "four_bit", "expected"),
    [
        (["unsloth/Qwen3-8B-bnb-4bit", "unsloth/qwen3-8b-unsloth-bnb-4bit"], True, "unsloth/qwen3-8b-unsloth-bnb-4bit"),
        (["unsloth/Qwen3-8B-bnb-4bit"], True, "unsloth/Qwen3-8B-bnb-4bit"),
        (["unsloth/Qwen3-8B-unsloth-bnb-4bit", "Qwen/Qwen3-8B"], True, "Qwen/Qwen3-8B"),
        (["unsloth/Qwen3-8B-unsloth-bnb-4bit"], False, None),
        ([], True, None),
    ],
)
def test_in_4_bits_the_copy_that_was_trained_on_is_taken_where_the_model_itself_is_not_here(
    workspace: Workspace, add_adapter: AddAdapter, local_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, cached: list[str], four_bit: bool, expected: str | None,
) -> None:  # fmt: skip
    folders = {name: tmp_path / name for name in cached}
    hub_model(local_model, folders, monkeypatch)
    add_adapter("Qwen/Qwen3-8B", base_path=None, training={"load_in_4bit": four_bit})
    found = subject.resolve(workspace, adapter_id="ad-a-0001")
    assert found.base == (str(folders[expected]) if expected else "Qwen/Qwen3-8B")


def test_the_revision_that_was_trained_on_is_taken_before_a_later_one(
    workspace: Workspace, add_adapter: AddAdapter, local_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_model(local_model, {"Qwen/Qwen3-8B": tmp_path / "later"}, monkeypatch)
    add_adapter("Qwen/Qwen3-8B", base_path=str(local_model))
    assert subject.resolve(workspace, adapter_id="ad-a-0001").base == str(local_model)
    (local_model / "config.json").unlink()
    assert subject.resolve(workspace, adapter_id="ad-a-0001").base == str(tmp_path / "later")


@pytest.mark.parametrize("who", [{}, {"adapter_id": "ad-1", "model": "toy"}])
def test_one_of_adapter_and_model_is_asked_for(workspace: Workspace, who: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="adapter_or_model"):
        subject.resolve(workspace, **who)


def test_a_toy_without_weights_says_how_to_make_them(workspace: Workspace) -> None:
    with pytest.raises(NotFound, match=r"toy_not_made: .*start_finetune\("):
        subject.resolve(workspace, model="toy")


def test_a_model_of_text_and_images_reads_as_much_as_its_text_part(workspace: Workspace, local_model: Path) -> None:
    config = json.loads((local_model / "config.json").read_text(encoding="utf-8"))
    text = {"max_position_embeddings": config.pop("max_position_embeddings")}
    (local_model / "config.json").write_text(json.dumps({**config, "text_config": text}), encoding="utf-8")
    assert subject.resolve(workspace, model=str(local_model)).context_tokens == 2048


@pytest.mark.parametrize(
    ("files", "thinking", "expected"),
    [
        ({"config.json": {"model_type": "qwen3"}}, False, (0.7, 0.8, 20)),
        ({"config.json": {"model_type": "qwen3_moe"}}, True, (0.6, 0.95, 20)),
        ({"generation_config.json": {"temperature": 0.1, "top_k": 5}}, False, (0.1, 0.9, 5)),
        ({}, False, (0.7, 0.9, 40)),
    ],
)
def test_sampling_is_what_the_model_asks_for(
    tmp_path: Path, files: dict[str, Any], thinking: bool, expected: tuple[float, ...]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    defaults = subject.sampling_defaults(tmp_path, thinking=thinking)
    assert tuple(defaults[key] for key in ("temperature", "top_p", "top_k")) == expected
