"""The model card: front matter that the Hub reads, and nothing that gives this machine or the data away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunewright.pipeline.publishing import card, redact
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Rewrite = Callable[..., Row]
REPO = "tester/tuny"


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_an_adapters_card_names_base_licence_data_and_training(workspace: Workspace, adapter: Row) -> None:
    text = card.build(workspace, adapter, REPO)
    assert front_matter(text) == {
        "base_model": "unsloth/Qwen3-8B", "base_model_relation": "adapter", "library_name": "peft",
        "license": "apache-2.0", "pipeline_tag": "text-generation", "tags": ["tunewright", "unsloth", "lora", "sft"],
    }  # fmt: skip
    for row in ("| learning_rate | 0.0002 |", "| target_modules | q_proj, v_proj |", "| train_loss | 0.1235 |"):
        assert row in text.splitlines()
    assert "load_in_4bit" not in text
    assert "Dataset `identity`, 91 rows for training, 1 held out for evaluation, read as alpaca" in text
    assert f'PeftModel.from_pretrained(base, "{REPO}")' in text
    assert 'AutoModelForCausalLM.from_pretrained("unsloth/Qwen3-8B"' in text
    assert "enable_thinking=False" in text
    assert adapter["id"] in text


def test_an_exports_card_shows_transformers_ollama_and_llama_cpp(workspace: Workspace, export: Row) -> None:
    text = card.build(workspace, export, REPO)
    front = front_matter(text)
    assert (front["library_name"], front["base_model_relation"]) == ("transformers", "finetune")
    assert "gguf" in front["tags"]
    assert f"ollama run hf.co/{REPO}" in text
    assert "llama-cli -m identity-q8_0.gguf" in text
    assert "PeftModel" not in text


def test_an_export_of_only_gguf_is_a_quantized_model(workspace: Workspace, export: Row, rewrite: Rewrite) -> None:
    ggufs = [file for file in export["document"]["files"] if file["output"].startswith("gguf:")]
    text = card.build(workspace, rewrite(export, files=ggufs), REPO)
    assert front_matter(text)["base_model_relation"] == "quantized"
    assert "```python" not in text


def test_a_local_base_is_named_without_its_folder_and_without_a_guessed_licence(
    workspace: Workspace, adapter: Row, rewrite: Rewrite, tmp_path: Path
) -> None:
    base = tmp_path / "My Models" / "qwen-own"
    base.mkdir(parents=True)
    text = card.build(workspace, rewrite(adapter, base_model=str(base), base_path=str(base)), REPO)
    assert not {"base_model", "base_model_relation", "license"} & set(front_matter(text))
    assert "`qwen-own`" in text
    assert str(tmp_path) not in text
    assert "My Models" not in text


def test_the_bases_own_card_states_the_licence(
    workspace: Workspace, adapter: Row, rewrite: Rewrite, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Base\n", encoding="utf-8")
    text = card.build(workspace, rewrite(adapter, base_path=str(tmp_path)), REPO)
    assert front_matter(text)["license"] == "mit"


def test_a_dataset_that_was_deleted_is_said_to_be_gone(workspace: Workspace, adapter: Row, dataset: Row) -> None:
    workspace.store.execute("DELETE FROM artifacts WHERE id=?", dataset["id"])
    assert "no longer on the machine" in card.build(workspace, adapter, REPO)


def test_no_training_row_and_no_local_path_stands_in_a_card(
    workspace: Workspace, adapter: Row, export: Row, rewrite: Rewrite
) -> None:
    rewrite(adapter, training={"resumed": f"{workspace.home.root}/jobs/job-1/checkpoints"})
    for artifact in (adapter, export):
        text = card.build(workspace, workspace.store.artifact(artifact["id"]), REPO)
        assert str(workspace.home.root) not in text
        assert "row-marker" not in text
        assert "identity.json" not in text


@pytest.mark.parametrize(
    ("private", "shown"),
    [
        ("/srv/models/Qwen3-8B", "Qwen3-8B"),
        ("/srv/My Models/Qwen3-8B", "Qwen3-8B"),
        ("~/models/x", "x"),
        ("loaded /srv/models/x.json twice", "loaded x.json twice"),
        (r"from C:\Users\me\models\x now", "from x now"),
        ("unsloth/Qwen3-8B", "unsloth/Qwen3-8B"),
        ("https://huggingface.co/unsloth/Qwen3-8B", "https://huggingface.co/unsloth/Qwen3-8B"),
        ("text/event-stream and 1/2", "text/event-stream and 1/2"),
        ("key hf_abcdefghijklmnopqrstuvwx.", "key [removed]."),
        ("sk-abcdefghijklmnopqrstuvwx", "[removed]"),
        (0.5, 0.5),
        ({"a": ["/srv/models/x", None, True]}, {"a": ["x", None, True]}),
    ],
)
def test_public_values_keep_their_meaning_and_lose_paths_and_tokens(
    workspace: Workspace, private: Any, shown: Any
) -> None:
    assert redact.public(workspace, private) == shown


def test_a_secret_of_the_environment_is_removed_whatever_it_looks_like(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "plain words")
    assert redact.public(workspace, "with plain words inside") == "with [removed] inside"
