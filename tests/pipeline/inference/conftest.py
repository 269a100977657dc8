"""Small random models of several families with adapters of several kinds, and subjects that name them."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.inference.engine import Engine
from tunewright.pipeline.inference.subject import Subject

with warnings.catch_warnings():
    # What the libraries have to say while they are imported is no matter of the tests.
    warnings.simplefilter("ignore")
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model

# Models this small gain nothing from a second thread and lose much where other processes compute.
torch.set_num_threads(1)
VOCABULARY = 1200
END = 2
WIDTHS: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": END, "pad_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: transformers.Qwen3Config(**WIDTHS, tie_word_embeddings=False),
    "qwen2": lambda: transformers.Qwen2Config(**{**WIDTHS, "head_dim": 16}, tie_word_embeddings=True),
    "llama": lambda: transformers.LlamaConfig(
        **WIDTHS, attention_bias=True, mlp_bias=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    # A window of 16 in one of two layers.
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **WIDTHS, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "mixtral": lambda: transformers.MixtralConfig(**WIDTHS, num_local_experts=4, num_experts_per_tok=2),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=END
    ),
}  # fmt: skip
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8, "lora_alpha": 16, "target_modules": ALL_LINEAR},
    "some": {"r": 4, "lora_alpha": 32, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj", "up_proj"]},
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "head": {"r": 4, "lora_alpha": 8, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Callable[[str], Path]:
    """`base(family)`: the folder of a random model in float32, always the same weights, with the toy's tokenizer."""
    root = tmp_path_factory.mktemp("bases")

    def folder(family: str) -> Path:
        made = root / family
        if not made.exists():
            torch.manual_seed(3)
            model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]())
            for parameter in model.parameters():
                # As they begin, the models say one thing for ever.
                torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.15)
            model.save_pretrained(made)
            for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copyfile(toy_folder / name, made / name)
        return made

    return folder


@pytest.fixture(scope="session")
def adapter(base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`adapter(family, kind)`: the folder of an adapter by peft that changes every answer."""
    root = tmp_path_factory.mktemp("adapters")

    def folder(family: str, kind: str) -> Path:
        made = root / f"{family}-{kind}"
        if not made.exists():
            model = get_peft_model(load(base(family)), LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[kind]))
            torch.manual_seed(5)
            for name, parameter in model.named_parameters():
                if "lora_A" in name or "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
                elif parameter.requires_grad:
                    parameter.data += 0.05 * torch.randn_like(parameter)
            with warnings.catch_warnings():
                # peft warns that it stores the weights of an embedding beside its LoRA.
                warnings.simplefilter("ignore")
                model.save_pretrained(str(made))
        return made

    return folder


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def plain() -> Callable[..., Any]:
    """`plain(base, adapter)`: what is meant, by transformers and peft alone in float32."""

    def loaded(base: Path, adapter: Path | None = None) -> Any:
        model = load(base)
        return PeftModel.from_pretrained(model, str(adapter)).eval() if adapter else model

    return loaded


@pytest.fixture(scope="session")
def subject(base: Callable[[str], Path], adapter: Callable[[str, str], Path]) -> Callable[..., Subject]:
    """`subject(family, kind)`: an adapter called `ad-KIND.1` on that base, or the base where no kind is named."""

    def named(family: str, kind: str | None = None) -> Subject:
        folder = str(base(family))
        alone = Subject(
            name=family, base=folder, adapter_id=None, adapter_path=None, base_without=folder,
            tokenizer_folder=folder, load_in_4bit=False, context_tokens=256, enable_thinking=False,
            trust_remote_code=False,
        )  # fmt: skip
        if kind is None:
            return alone
        return replace(alone, adapter_id=f"ad-{kind}.1", adapter_path=str(adapter(family, kind)))

    return named


@pytest.fixture
def engine() -> Engine:
    return Engine()
