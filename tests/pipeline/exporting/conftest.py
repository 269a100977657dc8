"""A small random Qwen3 with its own tokenizer, adapters made by peft, and one real export for all tests to look at."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tunewright.pipeline import files, jobs, toy
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.exporting import export, gguf, request, toolchain
from tunewright.pipeline.ids import new_id
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

with warnings.catch_warnings():
    # What the libraries have to say while they are imported is no matter of the tests.
    warnings.simplefilter("ignore")
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

TEXTS = [
    "The quick brown fox jumps over 13 lazy dogs, doesn't it? They're 4.5 m away.",
    "def main() -> int:\n    return 0\n\nsystem user assistant\n",
    "Größe, naïve, Привет, 你好世界, 🚀",
] * 4
VOCABULARY = 480


class Tiny:
    """How tests make what an export starts from."""

    @staticmethod
    def start(workspace: Workspace, spec: dict[str, Any]) -> JobContext:
        """A running export job with this spec, in this process."""
        job_id = new_id("job", "export")
        jobs.folder(workspace, job_id).mkdir()
        workspace.store.execute(
            "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,'export','running',0,?,0)",
            job_id, json.dumps(spec),
        )  # fmt: skip
        return JobContext.of(workspace, job_id)

    @staticmethod
    def add_adapter(workspace: Workspace, folder: Path, base: Path, **changed: Any) -> Row:
        """The row of an adapter in `folder`, trained with thinking off on a dataset that is gone."""
        document = {
            "path": str(folder), "base_model": str(base), "base_path": str(base), "max_seq_length": 256,
            "enable_thinking": False, "dataset_id": "ds-gone-0000", **changed,
        }  # fmt: skip
        adapter_id = new_id("adapter", "tiny")
        workspace.store.add_artifact(adapter_id, "adapter", "Tiny One", document, parents=[])
        return workspace.store.artifact(adapter_id)

    @staticmethod
    def tokenizer(folder: Path, split: str = toy.SPLIT) -> None:
        """A byte-level BPE cut by `split`, Qwen's control tokens, and Qwen3's template with the thinking switch."""
        tokenizer = Tokenizer(models.BPE(byte_fallback=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY - 2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        )  # fmt: skip
        tokenizer.train_from_iterator(TEXTS, trainer)
        tokenizer.add_tokens(["<think>", "</think>"])
        tokenizer.save(str(folder / "tokenizer.json"))
        shutil.copyfile(Path(toy.__file__).parent / "chat_template.jinja", folder / "chat_template.jinja")
        files.write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                "add_bos_token": False, "clean_up_tokenization_spaces": False,
            },
        )  # fmt: skip

    @staticmethod
    def base(
        folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.bfloat16, shard: str = "1GB",
        hidden_size: int = 256,
    ) -> Path:  # fmt: skip
        """A random Qwen3 of two layers, the same weights every time."""
        torch.manual_seed(3)
        config = Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=hidden_size, intermediate_size=512, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=512,
            tie_word_embeddings=tied, bos_token_id=None, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        Qwen3ForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size=shard)
        Tiny.tokenizer(folder)
        return folder

    @staticmethod
    def adapter(folder: Path, base: Path, **config: Any) -> Path:
        """An adapter by peft with matrices that change every answer, and the base's tokenizer beside it."""
        arguments = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"], **config}
        model = get_peft_model(Tiny.load(base), LoraConfig(task_type="CAUSAL_LM", **arguments))
        torch.manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.05)
            elif parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        with warnings.catch_warnings():
            # peft warns that it stores the weights of an embedding beside its LoRA.
            warnings.simplefilter("ignore")
            model.save_pretrained(str(folder))
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(base / name, folder / name)
        return folder

    @staticmethod
    def load(folder: Path) -> Any:
        return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @staticmethod
    def with_adapter(base: Path, adapter: Path) -> Any:
        """What the adapter means: the base in float32 with peft's own LoRA layers on it."""
        return PeftModel.from_pretrained(Tiny.load(base), str(adapter)).eval()


@pytest.fixture(scope="session")
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Tiny.base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Tiny.adapter(tmp_path_factory.mktemp("adapter"), base)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A home to ask for the toolchain of this machine, which is kept in the user's cache and outlives the run."""
    return Workspace.open(tmp_path_factory.mktemp("machine") / "home")


@pytest.fixture(scope="session")
def converter(machine: Workspace) -> Path:
    """llama.cpp's real converter: the developer's own, or fetched once."""
    return toolchain.provide(machine.home.root / "toolchain.log")


@pytest.fixture(scope="session")
def quantizer(machine: Workspace) -> Path:
    """llama.cpp's real quantizer: the developer's own, or built once (minutes)."""
    return toolchain.provide_quantizer(machine.home.root / "toolchain.log")


@pytest.fixture(scope="session")
def base_gguf(base: Path, converter: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`base_gguf(type)`: the base as GGUF in a type that the converter writes itself, made when first asked for."""
    folder = tmp_path_factory.mktemp("base_ggufs")
    layout = folder / "layout"
    layout.mkdir()
    gguf.lay_out(base, layout, enable_thinking=False)

    def convert(name: str) -> Path:
        file, log = folder / f"{name}.gguf", folder / "converter.log"
        if not file.is_file():
            gguf.convert(converter, layout, file, name, name="base", log=log, check_cancelled=lambda: None)
        return file

    return convert


@dataclass(frozen=True)
class Exported:
    workspace: Workspace
    adapter: Row
    context: JobContext
    result: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.workspace.home.exports / self.result["export_id"]

    def path(self, output: str) -> Path:
        return next(Path(entry["path"]) for entry in self.result["files"] if entry["output"] == output)


@pytest.fixture(scope="session")
def exported(base: Path, adapter: Path, converter: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One real export with the adapter, a merged model and a GGUF, verified."""
    workspace = Workspace.open(tmp_path_factory.mktemp("exported") / "home")
    row = Tiny.add_adapter(workspace, adapter, base)
    spec = request.check(workspace, row["id"], ["gguf:q8_0", "merged_16bit", "lora"], adapter_scale=0.5)
    context = Tiny.start(workspace, spec)
    return Exported(workspace, row, context, export.run(context))
