"""Every form of a model with its trainable part: what is trained, what is stored, and that it comes back and merges."""

import re
from typing import Any

import pytest

LORA = re.compile(r"\.lora_(A|B)\.default\.weight$")
MAGNITUDE = re.compile(r"\.lora_magnitude_vector\.default\.weight$")
QWEN3_LINEAR = 7
LAYERS = 3
# Tensors of a block: seven matrices, two norms, and Qwen3's norms of query and key.
QWEN3_BLOCK, GPT2_BLOCK = 11, 12
WITH_UNSLOTH = [
    "lora", "some modules", "rslora", "dora", "dora conv1d", "dora rslora", "loraplus", "embeddings",
    "embeddings tied", "embeddings gpt2", "embeddings offloaded", "qlora", "loftq", "loftq rslora", "full",
    "full gpt2", "full chat", "freeze", "freeze gpt2",
]  # fmt: skip
PLAIN = ["plain lora", "plain qlora dora", "plain loftq", "plain embeddings", "plain full", "plain freeze"]
# Merged into the 16-bit base, a QLoRA is another model than on the 4-bit one by as much as 4 bits change.
MERGED_ELSEWHERE = ["qlora", "plain qlora dora"]


def form(facts: dict[str, Any], name: str) -> dict[str, Any]:
    found = facts["forms"][name]
    assert "failed" not in found, found["failed"]
    return found


def of_layers(names: list[str], pattern: re.Pattern[str]) -> list[str]:
    return [name for name in names if pattern.search(name)]


def rest(names: list[str]) -> list[str]:
    return [name for name in names if not LORA.search(name) and not MAGNITUDE.search(name)]


@pytest.mark.parametrize("name", ["qwen3", "llama", "qwen2", "mistral", "gemma3", "phi3", "gpt2", "gpt-neo"])
def test_unsloth_takes_the_architecture_on_a_cpu(loading_facts: dict[str, Any], name: str) -> None:
    assert loading_facts["architectures"][name] == "unsloth"


@pytest.mark.parametrize("name", WITH_UNSLOTH)
def test_a_form_is_loaded_by_unsloth_and_says_how_much_is_trained(loading_facts: dict[str, Any], name: str) -> None:
    found = form(loading_facts, name)
    assert found["backend"] == "unsloth"
    assert [event[:2] for event in found["events"]] == [["info", "trainable"]]
    assert re.fullmatch(r"[\d,]+ of [\d,]+ parameters are trained \([\d.]+%\), on unsloth\.", found["events"][0][2])


@pytest.mark.parametrize("name", PLAIN)
def test_what_unsloth_cannot_load_plain_transformers_does_and_says_why(
    loading_facts: dict[str, Any], name: str
) -> None:
    found = form(loading_facts, name)
    assert found["backend"] == "transformers"
    level, code, message = found["events"][0]
    assert (level, code) == ("warning", "plain_transformers")
    assert "Unsloth: this model is not yet implemented!" in message


@pytest.mark.parametrize("name", WITH_UNSLOTH + PLAIN)
def test_training_changes_exactly_what_is_trainable(loading_facts: dict[str, Any], name: str) -> None:
    assert form(loading_facts, name)["changed are the trainable"]


@pytest.mark.parametrize("name", WITH_UNSLOTH + PLAIN)
def test_what_was_stored_comes_back_with_the_same_logits(loading_facts: dict[str, Any], name: str) -> None:
    found = form(loading_facts, name)
    assert found["moved"] > 0.3, "or nothing that is lost would show"
    # One is trained in bfloat16 and compared in float32.
    assert found["reloaded"] < (0.02 if name == "full chat" else 1e-5)


@pytest.mark.parametrize("name", [name for name in WITH_UNSLOTH + PLAIN if not re.search("full|freeze", name)])
def test_beside_a_stored_adapter_the_base_is_what_it_was(loading_facts: dict[str, Any], name: str) -> None:
    assert form(loading_facts, name)["base beside it"] < 1e-5


@pytest.mark.parametrize("name", WITH_UNSLOTH + PLAIN)
def test_training_goes_on_from_what_was_stored_in_the_same_form(loading_facts: dict[str, Any], name: str) -> None:
    found = form(loading_facts, name)
    assert found["continued"] < 1e-5
    assert found["continued trains the same"]


@pytest.mark.parametrize("name", [name for name in WITH_UNSLOTH + PLAIN if name not in MERGED_ELSEWHERE])
def test_merged_logits_are_those_that_were_trained(loading_facts: dict[str, Any], name: str) -> None:
    # Weights in bfloat16 keep 8 bits.
    assert form(loading_facts, name)["merged"] < 0.03


@pytest.mark.parametrize("name", ["lora", "rslora", "loraplus", "qlora", "loftq"])
def test_a_lora_on_all_linear_layers_trains_its_matrices_alone(loading_facts: dict[str, Any], name: str) -> None:
    trainable = form(loading_facts, name)["trainable"]
    assert len(of_layers(trainable, LORA)) == len(trainable) == 2 * QWEN3_LINEAR * LAYERS


def test_target_modules_by_name_get_an_adapter_and_no_others(loading_facts: dict[str, Any]) -> None:
    trainable = form(loading_facts, "some modules")["trainable"]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trainable} == {"q_proj", "down_proj"}
    assert len(trainable) == 2 * 2 * LAYERS


@pytest.mark.parametrize(
    ("name", "linear"), [("dora", 7), ("dora rslora", 7), ("plain qlora dora", 7), ("dora conv1d", 4)]
)
def test_dora_trains_a_magnitude_for_each_layer(loading_facts: dict[str, Any], name: str, linear: int) -> None:
    trainable = form(loading_facts, name)["trainable"]
    assert len(of_layers(trainable, MAGNITUDE)) == linear * LAYERS
    assert rest(trainable) == []


@pytest.mark.parametrize(
    ("name", "wholly"),
    [
        ("embeddings", ["embed_tokens", "lm_head"]),
        ("embeddings tied", ["embed_tokens"]),
        ("embeddings offloaded", ["embed_tokens"]),
        ("embeddings gpt2", ["wte"]),
        ("plain embeddings", ["wte"]),
    ],
)
def test_embeddings_are_trained_as_a_whole_and_tied_ones_stay_one_matrix(
    loading_facts: dict[str, Any], name: str, wholly: list[str]
) -> None:
    found = rest(form(loading_facts, name)["trainable"])
    assert sorted(entry.removesuffix(".modules_to_save.default.weight").rpartition(".")[2] for entry in found) == wholly


def test_a_whole_model_that_was_trained_before_keeps_no_adapter_from_being_attached(
    loading_facts: dict[str, Any],
) -> None:
    seen = loading_facts["attaching"]["embeddings"]
    assert "failed" not in seen, seen["failed"]
    assert seen["whole"] == "0"


def test_embeddings_are_never_put_off_into_the_folder_of_the_base(loading_facts: dict[str, Any]) -> None:
    seen = loading_facts["attaching"]["embeddings"]
    assert "failed" not in seen, seen["failed"]
    assert seen["buffers"].startswith(seen["job"])
    assert seen["name"] == seen["base"], "and afterwards the model has its name again"


@pytest.mark.parametrize(
    ("name", "trained", "block"),
    [
        ("freeze", 2, QWEN3_BLOCK), ("freeze gpt2", 1, GPT2_BLOCK), ("plain freeze", 1, 9),
    ],
)  # fmt: skip
def test_freeze_trains_the_last_layers_and_nothing_else(
    loading_facts: dict[str, Any], name: str, trained: int, block: int
) -> None:
    trainable = form(loading_facts, name)["trainable"]
    layers = {int(found[1]) for entry in trainable if (found := re.search(r"\.(\d+)\.", entry))}
    assert layers == set(range(LAYERS - trained, LAYERS))
    assert len(trainable) == trained * block


@pytest.mark.parametrize(("name", "tensors"), [("full", 3 * QWEN3_BLOCK + 2), ("full chat", 3 * QWEN3_BLOCK + 3)])
def test_full_trains_every_tensor(loading_facts: dict[str, Any], name: str, tensors: int) -> None:
    assert len(form(loading_facts, name)["trainable"]) == tensors


def test_the_row_says_what_form_was_stored_and_with_which_arguments(loading_facts: dict[str, Any]) -> None:
    for name in WITH_UNSLOTH + PLAIN:
        document = form(loading_facts, name)["document"]
        whole = any(word in name for word in ("full", "freeze"))
        assert document["form"] == ("full" if whole else "lora")
        assert document["training"]["finetuning_type"] == (
            "lora" if not whole else name.replace("plain ", "").split()[0]
        )
        assert document["bytes"] > 10_000


@pytest.mark.parametrize("name", ["loftq", "loftq rslora", "plain loftq"])
def test_loftq_begins_with_as_much_of_the_quantization_error_as_its_rank_can_hold(
    loading_facts: dict[str, Any], name: str
) -> None:
    errors = form(loading_facts, name)["quantization errors"]
    assert len(errors) == QWEN3_LINEAR * LAYERS
    for without, with_adapter, least in errors:
        assert with_adapter < 0.97 * without
        assert with_adapter == pytest.approx(least, rel=0.002)


@pytest.mark.parametrize("name", ["lora", "freeze", "embeddings"])
def test_gradients_are_the_same_with_each_kind_of_checkpointing(loading_facts: dict[str, Any], name: str) -> None:
    seen = loading_facts["gradients"][name]
    assert "failed" not in seen, seen["failed"]
    assert {how: found["checkpointing"] for how, found in seen.items()} == {
        "none": False, "plain": True, "unsloth": True,
    }  # fmt: skip
    assert seen["plain"]["norms"] == pytest.approx(seen["none"]["norms"], rel=1e-4)
    assert seen["unsloth"]["norms"] == pytest.approx(seen["none"]["norms"], rel=1e-4)
    assert any(norm > 0 for norm in seen["none"]["norms"].values())


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("unknown module", "unknown_target_modules", "names q_proj, which .*c_attn, c_fc, c_proj; or \"all-linear\""),
        ("head as target", "unknown_target_modules", "names lm_head, .*embedding_learning_rate"),
        ("architecture", "architecture_not_supported", r"\(t5\) cannot be trained .*neither with Unsloth .*T5Config"),
        ("too many layers", "too_many_layers", "trainable_layers=4, but .* has 3"),
        ("loftq without 4 bits", "loftq_needs_unquantized_weights", "no layer has 4 bits"),
        ("lora from whole", "adapter_of_another_form", 'is a whole model, .*model="/'),
        ("full from lora", "adapter_of_another_form", "is a LoRA adapter, .*merge_and_export"),
        ("loftq in 16 bits", "adapter_of_another_base", "trained with LoftQ"),
        ("another shape", "adapter_does_not_fit", "size mismatch"),
        ("missing weights", "OSError", r"no file named model\.safetensors"),
        ("hub out of reach", "model_not_downloadable", "nobody/nothing"),
        ("out of memory", "OutOfMemoryError", "2 GiB"),
        ("spilled", "OutOfMemoryError", "enough GPU RAM"),
        ("host memory", "OutOfMemoryError", "tried to allocate 9 bytes"),
        ("no memory", "MemoryError", ""),
        ("disk full", "OSError", "No space left"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_and_never_taken_for_a_want_of_support(
    loading_facts: dict[str, Any], name: str, code: str, said: str
) -> None:
    everything = loading_facts["refusals"]["all"]
    assert "failed" not in everything, everything["failed"]
    found = everything[name]
    assert found["code"] == code
    assert re.search(said, found["text"])
    assert found["events"] == []
