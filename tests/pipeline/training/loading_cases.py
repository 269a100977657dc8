"""Loads, trains two steps, saves, reloads and merges small random models in every form, and writes what was seen.

`python loading_cases.py FOLDER [NAME…]` in a process of its own, as Unsloth must be imported before transformers and
patches what it finds: FOLDER/facts.json, of the named cases alone where some are. The tests assert; on a GPU the same
script shows what Unsloth's own kernels do there (in 16 bits or fewer: on fp32 weights it leaves them out).
"""

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from tunewright.pipeline.backend import FastLanguageModel

import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tunewright.pipeline import jobs, models, toy
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.exporting import base_weights, merge
from tunewright.pipeline.ids import new_id
from tunewright.pipeline.training import adapter, loading, optimizers
from tunewright.pipeline.training.arguments import ALL_LINEAR, TrainingArguments
from tunewright.pipeline.training.run import Run
from tunewright.pipeline.workspace import Workspace

FROM_PRETRAINED = FastLanguageModel.from_pretrained
CHOSEN: dict[str, Any] = {
    "load_in_4bit": False, "max_seq_length": 64, "packing": False, "batch_size": 2, "gradient_accumulation": 1,
    "gradient_checkpointing": "none", "precision": "fp32", "learning_rate": 1e-2, "epochs": 1.0,
    "lr_scheduler": "linear", "warmup_ratio": 0.05, "optimizer":
    "adamw_torch", "lora_rank": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR, "early_stopping_patience": 0,
    "trainable_layers": 1,
}  # fmt: skip
VOCABULARY = 1280
WIDTHS: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
WITHOUT_HEAD_DIM = {key: value for key, value in WIDTHS.items() if key != "head_dim"}
GPT = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
BASES: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: transformers.Qwen3Config(**WIDTHS, tie_word_embeddings=False),
    "qwen3-tied": lambda: transformers.Qwen3Config(**WIDTHS, tie_word_embeddings=True),
    "llama": lambda: transformers.LlamaConfig(**WIDTHS),
    "llama-wide": lambda: transformers.LlamaConfig(**(WIDTHS | {"intermediate_size": 320})),
    "qwen2": lambda: transformers.Qwen2Config(**WITHOUT_HEAD_DIM, tie_word_embeddings=False),
    "mistral": lambda: transformers.MistralConfig(**WIDTHS),
    "gemma3": lambda: transformers.Gemma3TextConfig(**WIDTHS),
    "phi3": lambda: transformers.Phi3Config(**WITHOUT_HEAD_DIM),
    "gpt2": lambda: transformers.GPT2Config(**GPT, n_embd=128, n_layer=3, n_head=4, n_positions=256),
    "gpt-neo": lambda: transformers.GPTNeoConfig(
        **GPT, hidden_size=128, num_layers=3, num_heads=4, attention_types=[[["global"], 3]],
        max_position_embeddings=256,
    ),
    "t5": lambda: transformers.T5Config(vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2),
}  # fmt: skip
IDS = torch.randint(5, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
QLORA = {"load_in_4bit": True, "precision": "bf16"}
EMBEDDINGS = {"embedding_learning_rate": 1e-3}
# Every one is trained, saved, reloaded, gone on from and merged.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("qwen3", {}),
    "some modules": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "rslora": ("qwen3", {"use_rslora": True}),
    "dora": ("qwen3", {"use_dora": True}),
    "dora conv1d": ("gpt2", {"use_dora": True}),
    "dora rslora": ("llama", {"use_dora": True, "use_rslora": True}),
    "loraplus": ("qwen3", {"loraplus_ratio": 16.0}),
    "embeddings": ("qwen3", EMBEDDINGS),
    "embeddings tied": ("qwen3-tied", EMBEDDINGS),
    "embeddings gpt2": ("gpt2", EMBEDDINGS),
    "qlora": ("qwen3", QLORA),
    "loftq": ("qwen3", {**QLORA, "use_loftq": True}),
    "loftq rslora": ("llama", {**QLORA, "use_loftq": True, "use_rslora": True}),
    "full": ("qwen3-tied", {"finetuning_type": "full"}),
    "full gpt2": ("gpt2", {"finetuning_type": "full"}),
    "freeze": ("qwen3", {"finetuning_type": "freeze", "trainable_layers": 2}),
    "freeze gpt2": ("gpt2", {"finetuning_type": "freeze"}),
}
# Where Unsloth puts embeddings off on a GPU.
FORMS["embeddings offloaded"] = (
    "qwen3-tied", {"precision": "bf16", "gradient_checkpointing": "unsloth", **EMBEDDINGS}
)  # fmt: skip
if torch.cuda.is_available():
    FORMS["8 bits"] = ("qwen3", {"load_in_8bit": True, "precision": "bf16"})
    FORMS["lora in 16 bits"] = ("qwen3", {"precision": "bf16"})
FORMS["full chat"] = ("qwen3", {"finetuning_type": "full", "precision": "bf16"})
RATES: dict[str, tuple[str, dict[str, Any]]] = {
    "one rate": ("qwen3", {}),
    "loraplus": ("qwen3", {"loraplus_ratio": 16.0}),
    "embeddings": ("qwen3-tied", EMBEDDINGS),
    "both": ("qwen3", {"loraplus_ratio": 4.0, **EMBEDDINGS, "use_dora": True}),
    "full": ("gpt2", {"finetuning_type": "full", **EMBEDDINGS}),
    "sgd": ("qwen3", {"loraplus_ratio": 16.0, "optimizer": "sgd"}),
}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "plain lora": ("llama", {"gradient_checkpointing": "unsloth"}),
    "plain qlora dora": ("qwen3", {**QLORA, "use_dora": True}),
    "plain loftq": ("qwen3", {**QLORA, "use_loftq": True}),
    "plain embeddings": ("gpt2", EMBEDDINGS),
    "plain full": ("gpt-neo", {"finetuning_type": "full"}),
    "plain freeze": ("mistral", {"finetuning_type": "freeze", "gradient_checkpointing": "plain"}),
}


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = Workspace.open(folder / "home")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = toy.prepare(self.workspace.home)
        self.workspace.store.add_artifact(
            "ds-none-0000", "dataset", "none", {"path": str(folder), "sha256": "0"}, parents=[]
        )

    def base(self, name: str) -> Path:
        """The random model `name`: made once, in bfloat16, with the toy's tokenizer."""
        folder = self.folder / "bases" / name
        if not folder.exists():
            torch.manual_seed(3)
            make = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
            model = make.from_config(BASES[name]())
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    torch.nn.init.normal_(parameter, std=0.08)
            model.to(torch.bfloat16).save_pretrained(folder)
            for file in self.tokenizer.iterdir():
                if file.name != "config.json":
                    shutil.copyfile(file, folder / file.name)
        return folder

    def run(self, base: str, *, continue_from: str | None = None, **changed: Any) -> Run:
        arguments = TrainingArguments(**(CHOSEN | changed)).model_dump()
        spec = {"dataset_id": "ds-none-0000", "name": "case", "continue_from": continue_from, "arguments": arguments}
        job_id = new_id("job", "case")
        jobs.folder(self.workspace, job_id).mkdir()
        self.workspace.store.execute(
            "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,'finetune','running',0,?,0)",
            job_id, json.dumps(spec),
        )  # fmt: skip
        context = JobContext.of(self.workspace, job_id)
        folder = self.base(base)
        return Run(
            context, "sft", arguments, models.resolve(self.workspace, str(folder)), ChatTemplate(folder), self.folder
        )

    def logits(self, model: Any) -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            return model(input_ids=IDS.to(self.device)).logits.float().cpu()

    def reloaded(self, run: Run, adapter_id: str) -> tuple[Any, torch.Tensor | None]:
        """What was stored, as its users load it: on a base in the bits of the training; and that base's logits."""
        folder, arguments = self.workspace.home.adapters / adapter_id, run.arguments
        if not run.is_lora:
            return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(self.device), None
        base, _ = FROM_PRETRAINED(
            run.base.loadable, max_seq_length=64, dtype=loading.DTYPES[arguments["precision"]],
            load_in_4bit=arguments["load_in_4bit"], load_in_8bit=arguments["load_in_8bit"],
        )  # fmt: skip
        logits = self.logits(base)
        return PeftModel.from_pretrained(base, str(folder)), logits

    def merged(self, run: Run, adapter_id: str) -> Any:
        row = self.workspace.store.artifact(adapter_id)
        target = self.folder / "merged" / adapter_id
        target.mkdir(parents=True)
        base = base_weights.locate(self.workspace, row)
        merge.merge(run.context, base, Path(row["document"]["path"]), target)
        return AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).to(self.device)

    def events(self, run: Run) -> list[list[str]]:
        return [[row["level"], row["code"], row["message"]] for row in self.workspace.store.events(run.context.job_id)]


def two_steps(bench: Bench, run: Run, model: Any) -> set[str]:
    """Trains two steps (in the first, A has no gradient as B is zero) and returns the names of what changed."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizers.optimizer(run, model) or torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01)
    ids = IDS.to(bench.device)
    model.train()
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


def shake(model: Any) -> None:
    """Moves what is trained far from the base, so that a part that is lost on the way shows."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                scale = parameter.float().std().nan_to_num(0.0).clamp(min=0.02)
                parameter += (0.3 * scale * torch.randn(parameter.shape).to(scale)).to(parameter)


def form(bench: Bench, base: str, changed: dict[str, Any]) -> dict[str, Any]:
    """One form from load to merge; distances are shares of the greatest logit."""
    run = bench.run(base, **changed)
    loaded = loading.load(run)
    model = loaded.model
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    untrained = bench.logits(model)
    errors = quantization_errors(run, model) if run.arguments["use_loftq"] else []
    facts: dict[str, Any] = {"backend": loaded.backend, "trainable": sorted(trainable), "kind": type(model).__name__}
    facts["quantization errors"] = errors
    facts["changed are the trainable"] = two_steps(bench, run, model) == trainable
    shake(model)
    tuned = bench.logits(model)
    size = float(tuned.abs().max())

    def apart(other: torch.Tensor, one: torch.Tensor = tuned) -> float:
        return float((other - one).abs().max()) / size

    adapter_id = adapter.save(run, model, {"steps": 2})["adapter_id"]
    facts["document"] = bench.workspace.store.artifact(adapter_id)["document"]
    facts["moved"] = apart(untrained)
    reloaded, base_logits = bench.reloaded(run, adapter_id)
    facts["reloaded"] = apart(bench.logits(reloaded))
    if run.is_lora:
        with reloaded.disable_adapter():
            facts["base beside it"] = apart(bench.logits(reloaded), base_logits)
    continued = loading.load(bench.run(base, continue_from=adapter_id, **changed))
    facts["continued"] = apart(bench.logits(continued.model))
    same = {name for name, parameter in continued.model.named_parameters() if parameter.requires_grad}
    facts["continued trains the same"] = same == trainable
    facts["merged"] = apart(bench.logits(bench.merged(run, adapter_id)))
    facts["adapter"] = adapter_id
    facts["events"] = bench.events(run)
    exact = AutoModelForCausalLM.from_pretrained(run.base.loadable, dtype=torch.float32).to(bench.device)
    facts["untrained from 16 bits"] = apart(untrained, bench.logits(exact))
    return facts


def quantization_errors(run: Run, model: Any) -> list[list[float]]:
    """Of each layer: ‖W − Q‖, that of W − Q − s·B A, and the least that any product of that rank leaves."""
    errors: list[list[float]] = []
    with safe_open(Path(run.base.loadable) / "model.safetensors", framework="pt") as file:
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                base = layer.get_base_layer().weight
                seen = dequantize_4bit(base.data, base.quant_state).float()
                error = file.get_tensor(name.removeprefix("base_model.model.") + ".weight").to(seen) - seen
                product = layer.get_delta_weight("default").float()
                rest = torch.linalg.svdvals(error)[run.arguments["lora_rank"] :].norm()
                errors.append([float(error.norm()), float((error - product).norm()), float(rest)])
    return errors


def rates(bench: Bench, base: str, **changed: Any) -> dict[str, Any]:
    """The optimizer's class and, by each trained parameter's name, its rate and weight decay."""
    run = bench.run(base, weight_decay=0.1, **changed)
    model = loading.load(run).model
    optimizer = optimizers.optimizer(run, model)
    if optimizer is None:
        return {"class": None}
    groups = {id(p): [g["lr"], g["weight_decay"]] for g in optimizer.param_groups for p in g["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {
        "class": type(optimizer).__name__,
        "groups": {name: groups.get(id(p)) for name, p in trained.items()},
        "others": len(groups) - len(trained),
    }


def attaching(bench: Bench) -> dict[str, Any]:
    """What Unsloth sees while it loads, after another run of this process trained a whole model, and while it attaches
    an adapter and might put embeddings off into a folder it derives from it.
    """
    run, attach, seen = bench.run("qwen3", **EMBEDDINGS), FastLanguageModel.get_peft_model, {}
    os.environ[loading.WHOLE] = "1"

    def load(*given: Any, **named: Any) -> Any:
        seen["whole"] = os.environ[loading.WHOLE]
        return FROM_PRETRAINED(*given, **named)

    def spy(model: Any, **named: Any) -> Any:
        seen["buffers"] = str(Path(named["temporary_location"]) / model.config._name_or_path)
        return attach(model, **named)

    loads = mock.patch.object(FastLanguageModel, "from_pretrained", load)
    with loads, mock.patch.object(FastLanguageModel, "get_peft_model", spy):
        model = loading.load(run).model
    return {**seen, "job": str(run.context.folder), "name": model.config._name_or_path, "base": run.base.loadable}


def gradients(bench: Bench, checkpointing: str, changed: dict[str, Any]) -> dict[str, Any]:
    """Whether this kind of checkpointing is on, and the norm of each trained tensor's gradient in one step with it."""
    model = loading.load(bench.run("qwen3", gradient_checkpointing=checkpointing, **changed)).model
    ids = IDS.to(bench.device)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.requires_grad}
    return {"checkpointing": model.is_gradient_checkpointing, "norms": norms}


def refusal(bench: Bench, run: Run) -> dict[str, Any]:
    try:
        loading.load(run)
    except TunewrightError as error:
        return {"code": error.code, "text": str(error), "events": bench.events(run)}
    except (OSError, MemoryError, RuntimeError) as error:
        return {"code": type(error).__name__, "text": str(error), "events": bench.events(run)}
    return {"code": "", "text": "", "events": bench.events(run)}


@contextmanager
def unsloth_raises(error: BaseException) -> Iterator[None]:
    with mock.patch.object(FastLanguageModel, "from_pretrained", side_effect=error):
        yield


def without_packing_on_the_cpu() -> Any:
    """bitsandbytes repacks 4-bit weights for its fast CPU kernel, and gradients through them are wrong. Unsloth turns
    that off; without it nobody needs to, as 4 bits are for GPUs (training/request.py).
    """
    return mock.patch("bitsandbytes.nn.modules.has_avx512bf16", return_value=False)


def refusals(bench: Bench, stored: Callable[[str], str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`stored` gives the id of what a form has stored."""
    full = {"finetuning_type": "full"}
    yield "lora from whole", refusal(bench, bench.run("qwen3", continue_from=stored("full chat")))
    yield "full from lora", refusal(bench, bench.run("qwen3", continue_from=stored("lora"), **full))
    yield "loftq in 16 bits", refusal(bench, bench.run("qwen3", continue_from=stored("loftq")))
    yield "another shape", refusal(bench, bench.run("llama-wide", continue_from=stored("some modules")))
    yield "unknown module", refusal(bench, bench.run("gpt2", target_modules=["q_proj", "c_attn"]))
    yield "head as target", refusal(bench, bench.run("qwen3", target_modules=["q_proj", "lm_head"]))
    yield "architecture", refusal(bench, bench.run("t5"))
    yield "too many layers", refusal(bench, bench.run("qwen3", finetuning_type="freeze", trainable_layers=4))
    yield "loftq without 4 bits", refusal(bench, bench.run("qwen3", use_loftq=True))
    incomplete = bench.run("qwen3")
    folder = bench.folder / "incomplete"
    shutil.copytree(bench.base("qwen3"), folder)
    (folder / "model.safetensors").unlink()
    yield "missing weights", refusal(bench, replace(incomplete, base=replace(incomplete.base, folder=folder)))
    on_hub = bench.run("qwen3")
    on_hub = replace(on_hub, base=replace(on_hub.base, name="nobody/nothing", kind="hub", folder=None))
    wrapped = RuntimeError("Unsloth: Failed to load model.")
    wrapped.__cause__ = OSError("We couldn't connect")
    with unsloth_raises(wrapped):
        yield "hub out of reach", refusal(bench, on_hub)
    for name, error in {
        "out of memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        "spilled": ValueError("Some modules are dispatched on the CPU. Make sure you have enough GPU RAM to fit"),
        "host memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        "no memory": MemoryError(),
        "disk full": OSError(28, "No space left on device"),
    }.items():
        with unsloth_raises(error):
            yield name, refusal(bench, bench.run("qwen3"))


def main(folder: Path, names: list[str]) -> None:
    bench = Bench(folder)
    facts: dict[str, Any] = {"device": bench.device}

    def seen(section: str, name: str, look: Callable[[], Any]) -> None:
        """One case that breaks must not hide the others."""
        if names and name not in names:
            return
        try:
            facts.setdefault(section, {})[name] = look()
        except Exception:  # noqa: BLE001 - whatever it is, it is the case's result
            facts.setdefault(section, {})[name] = {"failed": traceback.format_exc()}
        # After each, so that a run which is stopped has shown what it came to.
        (folder / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

    for name in BASES:
        if name != "t5":
            seen("architectures", name, lambda name=name: loading.load(bench.run(name)).backend)
    for name, (base, changed) in FORMS.items():
        seen("forms", name, lambda base=base, changed=changed: form(bench, base, changed))
    for name, (base, changed) in PLAIN.items():

        def plain(base: str = base, changed: dict[str, Any] = changed) -> dict[str, Any]:
            error = NotImplementedError("Unsloth: this model is not yet implemented!")
            with unsloth_raises(error), without_packing_on_the_cpu():
                return form(bench, base, changed)

        seen("forms", name, plain)
    for name, (base, changed) in RATES.items():
        seen("rates", name, lambda base=base, changed=changed: rates(bench, base, **changed))
    seen("attaching", "embeddings", lambda: attaching(bench))
    for name, changed in {"lora": {}, "freeze": {"finetuning_type": "freeze"}, "embeddings": EMBEDDINGS}.items():
        seen(
            "gradients", name,
            lambda changed=changed: {how: gradients(bench, how, changed) for how in ("none", "plain", "unsloth")},
        )  # fmt: skip
    seen("refusals", "all", lambda: dict(refusals(bench, lambda name: facts["forms"][name]["adapter"])))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
