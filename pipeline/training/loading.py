"""The base model with its trainable part, on the device: Unsloth first, plain transformers and PEFT where it cannot.

Guarantees: exactly what was asked for is trainable; a base that came in other bits than asked, or without Unsloth, is
told in the job's events. A want of memory, a missing file or a full disk is never taken for a want of support. Does not
guarantee that Unsloth's kernels serve every layer: it falls back layer by layer, silently.
"""

import errno
import gc
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.pipeline.backend import FastLanguageModel, on_gpu

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tunewright.pipeline import models
from tunewright.pipeline.errors import InvalidInput, TunewrightError
from tunewright.pipeline.training import loftq, memory, trainable
from tunewright.pipeline.training.adapter import BUFFERS
from tunewright.pipeline.training.run import Run
from tunewright.pipeline.training.trainable import Start

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CHECKPOINTING = {"none": False, "plain": True, "unsloth": "unsloth"}
# Unsloth's, of the process: full_finetuning sets it, the loader of the fast architectures never takes it back, and
# while it stands no adapter is attached.
WHOLE = "UNSLOTH_ENABLE_FULL_FINETUNING"
# What a loader raises on a model that it was not written for: told outright, or stumbled over. Never OSError.
UNSUPPORTED = (
    NotImplementedError, ValueError, RuntimeError, ImportError, LookupError, AttributeError, TypeError, AssertionError,
)  # fmt: skip
# Of memory too: accelerate's ValueError where it would spill to the host, and the host allocator's RuntimeError.
WANT_OF_MEMORY = ("enough gpu ram", "can't allocate memory")

REASON_CHARACTERS = 200


@dataclass(frozen=True)
class Loaded:
    """`model` is a PeftModel, or the model itself for full and freeze; `backend` is unsloth or transformers."""

    model: Any
    tokenizer: Any
    backend: str


class _Unsupported(Exception):
    """Raised where a loader cannot take the architecture; its text is the loader's reason."""


def load(run: Run) -> Loaded:
    """The model of `run` with its trainable part. Writes events.

    Raises InvalidInput where the model or the adapter gone on from cannot be trained as asked, Unavailable where the
    Hub is out of reach, torch.OutOfMemoryError, and OSError for files.
    """
    start = trainable.start(run)
    try:
        loaded = _load(run, start)
    except OSError as error:
        local = isinstance(error, TunewrightError) or start.whole or run.base.folder
        if local or error.errno == errno.ENOSPC:
            raise
        raise models.unreachable(run.context.workspace, run.base.name) from error
    _tell(run, loaded, start)
    return loaded


def _load(run: Run, start: Start) -> Loaded:
    try:
        return _with_unsloth(run, start)
    except _Unsupported as error:
        why = str(error)
    # What Unsloth had loaded until then went with its exception.
    gc.collect()
    torch.cuda.empty_cache()
    try:
        loaded = _with_transformers(run, start)
    except _Unsupported as error:
        raise InvalidInput(
            "architecture_not_supported",
            f"{run.base.name} ({run.base.config.get('model_type')}) cannot be trained as asked, neither with Unsloth "
            f"({why}) nor with plain transformers ({error}).",
            allowed="Models that transformers loads as causal language models.",
            next="list_models()", done="Nothing was trained.",
        ) from error  # fmt: skip
    run.context.event(
        "warning", "plain_transformers",
        f"Unsloth cannot train {run.base.name} ({run.base.config.get('model_type')}) as asked, so plain transformers "
        f"and PEFT do, slower and with more memory. Unsloth said: {why}",
    )  # fmt: skip
    return loaded


@contextmanager
def _telling_unsupported() -> Generator[None]:
    """Turns a loader's want of support into _Unsupported, and its want of memory into torch.OutOfMemoryError."""
    try:
        yield
    except (TunewrightError, torch.OutOfMemoryError, torch.AcceleratorError, OSError):
        raise
    except UNSUPPORTED as error:
        # On a GPU Unsloth wraps a file or a Hub that it did not find.
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        if memory.ran_out(error) or any(words in str(error).lower() for words in WANT_OF_MEMORY):
            raise torch.OutOfMemoryError(str(error)) from error
        raise _Unsupported(f"{type(error).__name__}: {' '.join(str(error).split())[:REASON_CHARACTERS]}") from error


def _with_unsloth(run: Run, start: Start) -> Loaded:
    arguments = run.arguments
    checkpointing = CHECKPOINTING[arguments["gradient_checkpointing"]]
    os.environ[WHOLE] = "0"
    with _telling_unsupported():
        model, tokenizer = FastLanguageModel.from_pretrained(
            _source(run, start), max_seq_length=arguments["max_seq_length"], dtype=_dtype(run),
            load_in_4bit=arguments["load_in_4bit"], load_in_8bit=arguments["load_in_8bit"],
            full_finetuning=not run.is_lora, use_gradient_checkpointing=checkpointing,
            use_safetensors=True, trust_remote_code=run.base.trust_remote_code,
            # LoftQ begins from the weights before quantization, which Unsloth's own 4-bit repositories lack.
            use_exact_model_name=arguments["use_loftq"],
        )  # fmt: skip

    def attach(lora: dict[str, Any]) -> Any:
        with _telling_unsupported(), _unnamed(model):
            return FastLanguageModel.get_peft_model(
                model, random_state=arguments["seed"], use_gradient_checkpointing=checkpointing,
                # Where Unsloth puts embeddings off that are trained; else into the current folder.
                temporary_location=str(run.context.folder / BUFFERS), **lora,
            )  # fmt: skip

    return Loaded(_made_trainable(run, start, model, attach), tokenizer, "unsloth")


@contextmanager
def _unnamed(model: Any) -> Generator[None]:
    """Unsloth joins the model's name to the folder for buffers: a path would win, and the base's folder be written."""
    name, model.config._name_or_path = model.config._name_or_path, "base"
    try:
        yield
    finally:
        model.config._name_or_path = name


def _with_transformers(run: Run, start: Start) -> Loaded:
    arguments, source, dtype = run.arguments, _source(run, start), _dtype(run)
    quantization: dict[str, Any] = {}
    if arguments["load_in_4bit"]:
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    elif arguments["load_in_8bit"]:
        quantization["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    with _telling_unsupported():
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, device_map={"": torch.cuda.current_device() if on_gpu() else "cpu"},
            use_safetensors=True, trust_remote_code=run.base.trust_remote_code, **quantization,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(
            source, padding_side="right", trust_remote_code=run.base.trust_remote_code
        )
        model.config.use_cache = False
        if arguments["gradient_checkpointing"] != "none":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def attach(lora: dict[str, Any]) -> Any:
        torch.manual_seed(arguments["seed"])
        with _telling_unsupported():
            return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))

    return Loaded(_made_trainable(run, start, model, attach), tokenizer, "transformers")


def _source(run: Run, start: Start) -> str:
    return str(start.whole) if start.whole else run.base.loadable


def _dtype(run: Run) -> torch.dtype:
    """Of the weights. fp16 weights cannot be trained themselves: their gradients cannot be unscaled."""
    precision = run.arguments["precision"]
    return torch.float32 if precision == "fp16" and not run.is_lora else DTYPES[precision]


def _made_trainable(run: Run, start: Start, model: Any, attach: Callable[[dict[str, Any]], Any]) -> Any:
    if not run.is_lora:
        trainable.select_weights(run, model)
        return model
    model = attach(trainable.lora(run, start, model))
    if start.tensors:
        trainable.go_on(start, model)
    elif run.arguments["use_loftq"]:
        loftq.initialize(model, _unquantized(run))
    return model


def _unquantized(run: Run) -> Path:
    # A model that was only on the Hub has been downloaded by now.
    folder = run.base.folder or models.cached_folder(run.base.name)
    if folder is None:
        raise models.unreachable(run.context.workspace, run.base.name)
    return folder


def _tell(run: Run, loaded: Loaded, start: Start) -> None:
    event, model = run.context.event, loaded.model
    for bits, asked in ((4, run.arguments["load_in_4bit"]), (8, run.arguments["load_in_8bit"])):
        if bool(asked) != bool(getattr(model, f"is_loaded_in_{bits}bit", False)):
            event(
                "warning", "other_bits",
                f"load_in_{bits}bit={bool(asked)} was asked for, but the base {'is not' if asked else 'is'} "
                f"{bits} bits wide here.",
            )  # fmt: skip
    if start.adapter_id:
        event("info", "continued", f"Starting from the weights of {start.adapter_id}.")
    trained, total = (
        model.get_nb_trainable_parameters()
        if isinstance(model, PeftModel)
        else (
            sum(p.numel() for p in model.parameters() if p.requires_grad),
            sum(p.numel() for p in model.parameters()),
        )
    )
    event(
        "info", "trainable",
        f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%}), on {loaded.backend}.",
    )  # fmt: skip
