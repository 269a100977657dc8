"""A base model loaded for inference by plain transformers, and an adapter of any kind put on it by PEFT. Heavy.

Never by Unsloth: importing it takes longer than loading a small model, and what it patches is made for training.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from tunewright.pipeline.errors import Conflict


def load_base(source: str, *, load_in_4bit: bool, device: torch.device, trust_remote_code: bool) -> Any:
    """The model in `source` (folder or Hub id), ready to answer; its own Python runs only where it is trusted.

    In 4 bits as they are trained in: NF4, its scales quantized too. A base that is quantized already stays as it is.
    Raises Conflict where Unsloth has rewritten transformers in this process, OSError for files, OutOfMemoryError.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    dtype = _dtype(config, device)
    quantization: dict[str, Any] = {}
    if load_in_4bit and not hasattr(config, "quantization_config"):
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, device_map={"": device}, use_safetensors=True, trust_remote_code=trust_remote_code,
        **quantization,
    )  # fmt: skip
    if any(type(module).forward.__module__.startswith("unsloth") for module in model.modules()):
        raise Conflict(
            "process_has_trained", "A model was trained in this process, and Unsloth has rewritten transformers in it.",
            allowed="Answers need a process of their own.",
            next="check_environment()", done="No answer was made.",
        )  # fmt: skip
    return model.eval().requires_grad_(False)


def _dtype(config: Any, device: torch.device) -> torch.dtype:
    """bf16 on GPUs that have it, else fp16; on a CPU float32 unless the weights are bf16."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float32


def add_adapter(model: Any, path: Path, name: str) -> Any:
    """The model as a PeftModel with the adapter in `path` under `name`, in the model's own type."""
    # Seconds of importing that most adapters need not wait for (`lora`).
    from peft import PeftModel

    # Not PEFT's own cast to float32: that is for training.
    how: dict[str, Any] = {"adapter_name": name, "autocast_adapter_dtype": False}
    if isinstance(model, PeftModel):
        model.load_adapter(str(path), **how)
    else:
        model = PeftModel.from_pretrained(model, str(path), **how)
    base: Any = model.get_base_model()
    for key, parameter in model.named_parameters():
        if name in key.split("."):
            parameter.data = parameter.data.to(base.dtype)
    return model.eval().requires_grad_(False)
