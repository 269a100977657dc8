"""The model card: front matter that the Hub reads, and nothing that gives this machine or the data away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunewright.pipeline import redact
from tunewright.pipeline.publishing import card
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
    text = card.build(workspace, export, REPO, ["merged_16bit", "gguf:q8_0"])
    front = front_matter(text)
    assert (front["library_name"], front["base_model_relation"]) == ("transformers", "finetune")
    assert "gguf" in front["tags"]
    assert f"ollama run hf.co/{REPO}" in text
    assert "llama-cli -m identity-q8_0.gguf" in text
    assert "PeftModel" not in text


def test_an_export_of_only_gguf_is_a_quantized_model(workspace: Workspace, export: Row, rewrite: Rewrite) -> None:
    text = card.build(workspace, export, REPO, ["gguf:q8_0"])
    front = front_matter(text)
    assert (front["library_name"], front["base_model_relation"]) == ("gguf", "quantized")
    assert front["quantized_by"] == "tester"
    assert "```python" not in text


def test_a_4bit_model_says_what_it_needs(workspace: Workspace, export: Row) -> None:
    text = card.build(workspace, export, REPO, ["merged_4bit"])
    front = front_matter(text)
    assert (front["library_name"], front["base_model_relation"]) == ("transformers", "quantized")
    assert {"bitsandbytes", "4-bit"} <= set(front["tags"])
    assert "needs bitsandbytes" in text
    assert "subfolder" not in text


def test_what_lies_in_a_folder_is_loaded_from_it(workspace: Workspace, export: Row) -> None:
    text = card.build(workspace, export, REPO, ["lora", "merged_16bit", "merged_4bit"])
    assert front_matter(text)["library_name"] == "transformers"
    assert f'AutoModelForCausalLM.from_pretrained("{REPO}", dtype' in text
    assert f'AutoModelForCausalLM.from_pretrained("{REPO}", subfolder="4bit", dtype' in text
    assert f'PeftModel.from_pretrained(base, "{REPO}", subfolder="lora")' in text


def test_an_adapter_as_gguf_says_how_it_is_laid_over_a_base(
    workspace: Workspace, export: Row, rewrite: Rewrite
) -> None:
    file = {"output": "lora_gguf", "path": "/x/tuny-lora.gguf", "bytes": 1}
    text = card.build(workspace, rewrite(export, files=[file]), REPO, ["lora_gguf"])
    front = front_matter(text)
    assert (front["library_name"], front["base_model_relation"]) == ("gguf", "adapter")
    assert "llama-server -m BASE.gguf --lora tuny-lora.gguf" in text
    assert "ADAPTER tuny-lora.gguf" in text
    assert "ollama run" not in text


PARITY = {
    "passed": True,
    "failures": [],
    "reference": {"dtype": "bfloat16", "device": "cuda", "eval_loss": 1.23456, "scored_tokens": 970},
    "noise_floor": {"kl": 1.3e-4, "top1": 0.996},
    "merge": {"kl": 2e-6, "top1": 1.0, "passed": True},
    "outputs": {
        "gguf:q8_0": {
            "bytes": 9, "passed": True, "kl": 5.8e-4, "top1": 0.993, "eval_loss": 1.235,
            "greedy_equal": 9, "greedy_of": 10,
        },
        "gguf:q4_k_m": {
            "bytes": 5, "passed": False, "kl": 0.031, "top1": 0.929, "eval_loss": 1.3, "greedy_equal": None,
            "greedy_of": None,
        },
    },
    "recommendation": {"output": "gguf:q4_k_m", "why": "the smallest whose loss rises by less than 1 %"},
}  # fmt: skip


@pytest.fixture
def measured(export: Row, rewrite: Rewrite) -> Row:
    files = [
        {"output": output, "path": f"/x/tuny-{output[5:]}.gguf", "bytes": size}
        for output, size in (("gguf:q8_0", 9_100_000), ("gguf:q4_k_m", 5_000_000))
    ]
    return rewrite(export, files=files, parity=PARITY)


def test_the_parity_of_each_published_quantization_stands_in_a_table(workspace: Workspace, measured: Row) -> None:
    lines = card.build(workspace, measured, REPO, ["gguf:q8_0", "gguf:q4_k_m"]).splitlines()
    assert "| noise floor of bf16 | | 0.00013 | 0.996 | | | |" in lines
    assert "| gguf:q8_0 | 9.1 MB | 0.00058 | 0.993 | 1.235 | 9 of 10 | passed |" in lines
    assert "| gguf:q4_k_m | 5.0 MB | 0.031 | 0.929 | 1.3 | – | **failed** |" in lines
    assert "Recommended: `gguf:q4_k_m`: the smallest whose loss rises by less than 1 %" in lines
    # The recommended one is what the commands fetch.
    assert f"ollama run hf.co/{REPO}:Q4_K_M" in lines
    assert "llama-cli -m tuny-q4_k_m.gguf -cnv" in lines


def test_nothing_is_said_of_what_is_not_published(workspace: Workspace, measured: Row) -> None:
    text = card.build(workspace, measured, REPO, ["gguf:q8_0"])
    assert "q4_k_m" not in text.lower()
    assert f"ollama run hf.co/{REPO}:Q8_0" in text
    assert "## Parity" not in card.build(workspace, measured, REPO, [])


def test_a_combined_export_names_every_adapter_and_its_data(
    workspace: Workspace, adapter: Row, export: Row, rewrite: Rewrite, dataset: Row
) -> None:
    store = workspace.store
    store.add_artifact("ds-manners-0002", "dataset", "manners", dataset["document"], parents=[])
    document = {**adapter["document"], "dataset_id": "ds-manners-0002"}
    store.add_artifact("ad-manners-0002", "adapter", "manners", document, parents=["ds-manners-0002"])
    combined = rewrite(export, combine_with={"ad-manners-0002": 0.5}, combination="linear")
    text = card.build(workspace, combined, REPO, ["merged_16bit"])
    assert "2 LoRA adapters, combined and merged" in text
    assert "Dataset `identity`" in text
    assert "Dataset `manners`" in text
    assert "| combined with | ad-manners-0002 × 0.5 |" in text.splitlines()


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
        ("hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJzY29wZSI6WyJvcGVuaWQ.c2lnbmF0dXJl-_x", "[removed]"),
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
