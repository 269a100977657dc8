"""Packed examples against the same examples alone: as the benchmark measures them, and as a run's proof sees them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
TIMEOUT_S = 600
ARCHITECTURES = ("llama", "gemma3_text", "mistral")
ATTENTIONS = ("sdpa", "eager")
ROUNDING = 1e-5
# Each proof of a trainer over packed rows, under Unsloth's CPU backend; a line of JSON each. Importing Unsloth takes
# most of the time, so they share a process.
PROOFS = '''
import json, sys
from pathlib import Path

from tunewright.pipeline.backend import FastLanguageModel

import torch
from datasets import Dataset
from transformers import AutoTokenizer, Lfm2Config, Lfm2ForCausalLM
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from tunewright.pipeline.training.packing import keeps_examples_apart

toy, scratch = Path(sys.argv[1]), Path(sys.argv[2])


class WithBorderLabels(DataCollatorForLanguageModeling):
    """Asks an example's last token for the next example's first."""

    def torch_call(self, examples):
        labels = [label for example in examples for label in example["labels"]]
        return super().torch_call(examples) | {"labels": torch.tensor([labels])}


def load(folder, **arguments):
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=256, load_in_4bit=False, dtype=torch.float32
    )
    adapter = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "o_proj", "out_proj", "in_proj"]}
    return FastLanguageModel.get_peft_model(model, **adapter | arguments), tokenizer


def trainer_of(model, tokenizer, collator=DataCollatorForLanguageModeling):
    ids = list(range(10, 250))
    rows = Dataset.from_list([{"input_ids": ids, "labels": ids, "seq_lengths": [100, 140]}])
    config = SFTConfig(
        output_dir=str(scratch / "output"), dataset_kwargs={"skip_prepare_dataset": True}, report_to="none",
        packing=collator is None,
    )
    given = collator and collator(tokenizer.pad_token_id, padding_free=True)
    return SFTTrainer(model=model, processing_class=tokenizer, train_dataset=rows, args=config, data_collator=given)


def tell(case, trainer, **more):
    proof = keeps_examples_apart(trainer)
    print("proof", json.dumps({"case": case, "apart": proof.apart, "reason": proof.reason, **vars(proof), **more}))


def state(trainer):
    model = trainer.model
    return {
        "weights": sum(float(value.double().sum()) for value in model.state_dict().values()),
        "random": torch.get_rng_state().sum().item(), "training": model.training,
        "dropout": [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)],
        "gradients": [name for name, value in model.named_parameters() if value.grad is not None],
        "counted": [trainer._total_train_tokens, {key: dict(value) for key, value in trainer._metrics.items()}],
    }


for training in (True, False):
    trainer = trainer_of(*load(toy, lora_dropout=0.3, use_gradient_checkpointing=True))
    trainer.model.for_training() if training else trainer.model.for_inference()
    before = state(trainer)
    tell("apart", trainer)
    print("proof", json.dumps({"case": f"left training={training}", "before": before, "after": state(trainer)}))
tell("padded collator", trainer_of(*load(toy), collator=None))
tell("border labels", trainer_of(*load(toy), collator=WithBorderLabels))

model, tokenizer = load(toy)
attention = model.get_base_model().model.layers[2].self_attn
forward = attention.forward
attention.forward = lambda *arguments, attention_mask=None, **named: forward(*arguments, attention_mask=None, **named)
tell("one layer without its mask", trainer_of(model, tokenizer))

model, tokenizer = load(toy, target_modules=["up_proj"])
for layer in model.get_base_model().model.layers:
    layer.self_attn.v_proj.weight.data.zero_()
tell("no attention", trainer_of(model, tokenizer))

model, tokenizer = load(toy)
next(value for name, value in model.named_parameters() if "lora_A" in name).data[0, 0] = float("nan")
tell("not finite", trainer_of(model, tokenizer))

torch.manual_seed(3)
Lfm2ForCausalLM(
    Lfm2Config(
        vocab_size=1200, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention"] * 2,
    )
).save_pretrained(scratch / "lfm2")
AutoTokenizer.from_pretrained(toy).save_pretrained(scratch / "lfm2")
tell("short convolutions", trainer_of(*load(scratch / "lfm2")))
'''


def lines_of(command: list[str], start: str) -> list[dict[str, Any]]:
    """The JSON after `start` on each line that has it; libraries print on the same stream."""
    finished = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    texts = [line.removeprefix(start) for line in finished.stdout.splitlines() if line.startswith(start)]
    return [json.loads(text if text.startswith("{") else f"{{{text}") for text in texts]


@pytest.fixture(scope="module")
def measured() -> list[dict[str, Any]]:
    script = [sys.executable, str(REPOSITORY / "benchmarks" / "packing.py")]
    return lines_of([*script, "--here", "--backends", "transformers", "--architectures", *ARCHITECTURES], "{")


@pytest.fixture(scope="module")
def proofs(trained_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    scratch = tmp_path_factory.mktemp("packing")
    found = lines_of([sys.executable, "-P", "-c", PROOFS, str(trained_toy), str(scratch)], "proof ")
    return {line["case"]: line for line in found}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_examples_have_the_losses_and_gradients_that_they_have_alone(
    measured: list[dict[str, Any]], architecture: str, attention: str
) -> None:
    about = {"backend": f"transformers {attention}", "model": architecture}
    layouts = [line for line in measured if about.items() <= line.items() and "layout" in line]
    assert [line["layout"] for line in layouts] == ["unequal", "equal", "long"]
    for line in layouts:
        assert line["loss"] <= ROUNDING and line["gradient"] <= ROUNDING and line["exchange"] == 0, line
        assert line["control_loss"] > 100 * ROUNDING and line["control_gradient"] > 0.1, line


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_proof_says_what_the_measurement_says(measured: list[dict[str, Any]], architecture: str) -> None:
    said = [line for line in measured if line["model"] == architecture and "proof" in line]
    assert len(said) == len(ATTENTIONS)
    assert all(line["ok"] and line["proof"]["packed"] <= ROUNDING for line in said), said


def test_examples_that_are_kept_apart_are_shown_to_be(proofs: dict[str, dict[str, Any]]) -> None:
    proof = proofs["apart"]
    assert proof["apart"] and not proof["reason"]
    assert proof["neighbours"] == proof["border_labels"] == 0 and proof["packed"] <= ROUNDING < 0.5 < proof["control"]


@pytest.mark.parametrize("training", [True, False])
def test_a_proof_leaves_the_run_as_it_was(proofs: dict[str, dict[str, Any]], training: bool) -> None:
    left = proofs[f"left training={training}"]
    assert left["before"] == left["after"]
    assert left["after"]["training"] is training and left["after"]["gradients"] == []
    assert 0.3 in left["after"]["dropout"]


@pytest.mark.parametrize("case", ["padded collator", "one layer without its mask", "short convolutions"])
def test_examples_that_see_each_other_are_found_out(proofs: dict[str, dict[str, Any]], case: str) -> None:
    proof = proofs[case]
    assert not proof["apart"] and proof["neighbours"] > 0.002
    assert "with other neighbours" in proof["reason"]


def test_a_first_token_that_is_a_target_of_the_example_before_is_found_out(proofs: dict[str, dict[str, Any]]) -> None:
    proof = proofs["border labels"]
    assert not proof["apart"] and proof["border_labels"] > 0.05
    assert "labels of first tokens" in proof["reason"]


def test_nothing_is_shown_where_a_leak_would_not_show(proofs: dict[str, dict[str, Any]]) -> None:
    proof = proofs["no attention"]
    assert not proof["apart"] and proof["control"] < 0.05
    assert "nothing is shown" in proof["reason"]


def test_a_gradient_that_is_not_finite_shows_nothing(proofs: dict[str, dict[str, Any]]) -> None:
    proof = proofs["not finite"]
    assert not proof["apart"] and "not finite" in proof["reason"]
