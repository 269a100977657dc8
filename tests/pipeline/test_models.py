import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from shutil import copyfile

import pytest

from tunewright.pipeline import catalog, models, toy
from tunewright.pipeline.errors import InvalidInput, NotFound, Unavailable
from tunewright.pipeline.workspace import Workspace

RunPython = Callable[..., str]

RESOLVE = """
import sys
from tunewright.pipeline import models
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.workspace import Workspace
workspace = Workspace.open(sys.argv[1])
try:
    model = models.resolve(workspace, sys.argv[2])
    print(model.kind, model.loadable, models.tokenizer_folder(workspace, sys.argv[2]), model.config["model_type"])
    print(*models.cached_ids())
except TunewrightError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def model_folder(toy_folder: Path, tmp_path: Path) -> Path:
    """A local model: the toy's small files and a file where the weights would be, which nothing here reads."""
    folder = tmp_path / "my model"
    folder.mkdir()
    for file in toy_folder.iterdir():
        copyfile(file, folder / file.name)
    (folder / "model.safetensors").touch()
    return folder


def test_the_toy_is_there_without_weights_or_network(workspace: Workspace) -> None:
    model = models.resolve(workspace, "toy")
    assert (model.kind, model.folder) == ("toy", toy.folder(workspace.home))
    assert model.config["model_type"] == "qwen3"
    assert models.tokenizer_folder(workspace, "toy") == model.folder
    assert not toy.is_trained(workspace.home)


def test_a_local_folder_is_named_by_its_whole_path(
    workspace: Workspace, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder.parent)
    model = models.resolve(workspace, "./my model")
    assert (model.kind, model.name, model.loadable) == ("local", str(model_folder), str(model_folder))
    assert model.config["vocab_size"] == toy.VOCABULARY


def test_a_folder_that_is_an_adapter_is_no_base_model(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(InvalidInput, match=r"not_a_model: .* it is an adapter, not a base model"):
        models.resolve(workspace, str(tmp_path))


def test_a_model_with_a_shard_missing_is_refused(workspace: Workspace, model_folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InvalidInput, match="no_safetensors"):
        models.resolve(workspace, str(model_folder))
    (model_folder / "model-00002-of-00002.safetensors").touch()
    assert models.resolve(workspace, str(model_folder)).kind == "local"


def test_pickled_weights_are_refused(workspace: Workspace, model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match=r"no_safetensors: .*can run code"):
        models.resolve(workspace, str(model_folder))


def test_a_broken_config_is_refused_with_its_place(workspace: Workspace, model_folder: Path) -> None:
    (model_folder / "config.json").write_text('{"model_type": \n "qwen3",}', encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"not_a_model: .*config\.json is no JSON: .*line 2"):
        models.resolve(workspace, str(model_folder))


def test_a_missing_path_says_what_works(workspace: Workspace) -> None:
    with pytest.raises(NotFound, match=r"model_not_found: There is no folder './nowhere'.*'toy'"):
        models.resolve(workspace, "./nowhere")


@pytest.mark.parametrize(
    ("name", "what", "instead"),
    [
        ("qwen3:8b", "is an Ollama tag", "unsloth/Qwen3-8B"),
        ("qwen3", None, None),
        ("qwen3:14b-q4_K_M", "is an Ollama tag", "unsloth/Qwen3-14B"),
        ("qwen3:latest", "is an Ollama tag", "unsloth/Qwen3-8B"),
        ("library/llama3.2:1b", "is an Ollama tag", "unsloth/Llama-3.2-1B-Instruct"),
        ("hf.co/unsloth/Qwen3-4B-GGUF:Q4_K_M", "is an Ollama tag", "unsloth/Qwen3-4B"),
        ("unsloth/Qwen3-0.6B-GGUF", "is a repository of GGUF files", "unsloth/Qwen3-0.6B"),
        ("unsloth/Llama-3.2-3B-Instruct-GGUF", "is a repository of GGUF files", None),
        ("/models/Qwen3-8B-Q4_K_M.gguf", "is a GGUF file", "unsloth/Qwen3-8B"),
        ("~/odd.GGUF", "is a GGUF file", None),
    ],
)
def test_what_ollama_holds_is_answered_with_the_form_that_can_be_trained(
    workspace: Workspace, name: str, what: str | None, instead: str | None
) -> None:
    with pytest.raises((InvalidInput, NotFound)) as caught:
        models.resolve(workspace, name)
    if what is None:
        assert caught.value.code == "model_not_found"
        return
    assert caught.value.code == "model_not_trainable"
    assert f"{name!r} {what}" in str(caught.value)
    if instead:
        assert f"Train {instead} instead" in str(caught.value)
        assert f'plan_finetune(dataset_id="…", model="{instead}")' in caught.value.next
    else:
        assert caught.value.next == "list_models()"


def test_a_folder_of_nothing_but_gguf_is_not_trainable(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "Qwen3-8B-GGUF"
    folder.mkdir()
    (folder / "Qwen3-8B-Q8_0.gguf").touch()
    with pytest.raises(InvalidInput, match=r"model_not_trainable: .*unsloth/Qwen3-8B instead"):
        models.resolve(workspace, str(folder))


@pytest.mark.parametrize("name", ["Qwen3-8B", "qwen3-8b", "Qwen3-8b-base", "a/b/c"])
def test_a_name_that_is_no_hub_id_gets_the_nearest_ones(workspace: Workspace, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        models.resolve(workspace, name)
    assert f"No model is called {name!r}." in str(caught.value)
    if "wen" in name:
        assert "unsloth/Qwen3-8B" in caught.value.allowed


def test_a_short_name_that_is_one_model_gets_that_one_alone(workspace: Workspace) -> None:
    with pytest.raises(NotFound, match=r"Nearest: unsloth/Qwen3-8B\."):
        models.resolve(workspace, "qwen3-8b")


def test_a_hub_model_offline_says_what_works(workspace: Workspace, run_python: RunPython) -> None:
    text = run_python(RESOLVE, workspace.home.root, "unsloth/Qwen3-8B", HF_HUB_OFFLINE="1")
    assert text.startswith("Unavailable model_not_downloadable: 'unsloth/Qwen3-8B' is not cached on this machine")
    assert "(HF_HUB_OFFLINE is set)" in text
    assert "No Hub model is cached here." in text and "'toy'" in text and "HF_ENDPOINT" in text


def test_an_unreachable_hub_is_named(workspace: Workspace) -> None:
    with pytest.raises(Unavailable, match=r"model_not_downloadable: .* http://127\.0\.0\.1:9 cannot be reached\."):
        models.resolve(workspace, "unsloth/no-such-model")


@pytest.mark.parametrize("name", ["unsloth/bad name!", "-x/y", "a/.."])
def test_a_malformed_hub_id_is_refused(workspace: Workspace, name: str) -> None:
    with pytest.raises(InvalidInput, match="is no valid Hub id"):
        models.resolve(workspace, name)


def test_a_cached_hub_model_needs_no_network(
    workspace: Workspace, model_folder: Path, run_python: RunPython, tmp_path: Path
) -> None:
    repository = tmp_path / "hf" / "hub" / "models--unsloth--Qwen3-0.6B"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee", encoding="utf-8")
    (repository / "snapshots").mkdir()
    snapshot = model_folder.rename(repository / "snapshots" / "c0ffee")
    text = run_python(RESOLVE, workspace.home.root, "unsloth/Qwen3-0.6B", HF_HUB_OFFLINE="1")
    assert text.splitlines() == [f"hub {snapshot} {snapshot} qwen3", "unsloth/Qwen3-0.6B"]


def test_a_cached_tokenizer_alone_is_not_taken_for_the_model(
    workspace: Workspace, model_folder: Path, run_python: RunPython, tmp_path: Path
) -> None:
    repository = tmp_path / "hf" / "hub" / "models--unsloth--Qwen3-0.6B"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee", encoding="utf-8")
    (repository / "snapshots").mkdir()
    (model_folder / "model.safetensors").unlink()
    snapshot = model_folder.rename(repository / "snapshots" / "c0ffee")
    text = run_python(RESOLVE, workspace.home.root, "unsloth/Qwen3-0.6B", HF_HUB_OFFLINE="1")
    assert text.splitlines() == [f"hub unsloth/Qwen3-0.6B {snapshot} qwen3", ""]


# Unsloth's table at its own points, and half-way between two of them.
@pytest.mark.parametrize(
    ("parameters_b", "qlora_gb", "lora_gb"),
    [(3, 3.5, 8), (8, 6, 22), (14, 8.5, 33), (70, 41, 164), (405, 237, 950), (8.5, 6.2, 23), (11.5, 7.7, 29.7)],
)
def test_memory_needs_follow_unsloths_table(parameters_b: float, qlora_gb: float, lora_gb: float) -> None:
    assert catalog.vram_gb(parameters_b, load_in_4bit=True) == pytest.approx(qlora_gb, abs=0.051)
    assert catalog.vram_gb(parameters_b, load_in_4bit=False) == pytest.approx(lora_gb, abs=0.051)


def test_memory_needs_grow_with_the_model_also_beyond_the_table() -> None:
    sizes = [0.6, 1.7, 3, 5, 8.2, 14.8, 32.8, 100, 405, 600]
    for four_bit in (True, False):
        needs = [catalog.vram_gb(size, load_in_4bit=four_bit) for size in sizes]
        assert needs == sorted(set(needs))
    assert all(catalog.vram_gb(b, load_in_4bit=True) < catalog.vram_gb(b, load_in_4bit=False) for b in sizes)


def test_every_ollama_tag_leads_back_to_one_model() -> None:
    tags = [model.ollama for model in catalog.KNOWN_MODELS if model.ollama]
    assert len(tags) == len(set(tags))
    for model in catalog.KNOWN_MODELS:
        assert not model.ollama or catalog.trainable_form(model.ollama) == model
    assert catalog.DEFAULT_MODEL in {model.hub_id for model in catalog.KNOWN_MODELS}


@pytest.mark.parametrize(
    ("name", "small"),
    [
        *((name, True) for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
          "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
          "additional_chat_templates/rag.jinja", "preprocessor_config.json", "processor_config.json",
          "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md")),
        *((name, False) for name in ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json",
          "original/tokenizer.model", "README.md", "modeling_custom.py")),
    ],
)  # fmt: skip
def test_a_models_small_files_are_all_it_needs_beside_its_weights(name: str, small: bool) -> None:
    assert any(fnmatch(name, pattern) for pattern in models.SMALL_FILES) == small
