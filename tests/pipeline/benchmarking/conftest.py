"""A small random Qwen3 with the toy's tokenizer, exams of invented questions, and jobs run in this process."""

import csv
import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import jobs
from tunewright.pipeline.benchmarking.exams import LETTERS
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.ids import new_id
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

with warnings.catch_warnings():
    # What the libraries have to say while they are imported is no matter of the tests.
    warnings.simplefilter("ignore")
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

VOCABULARY, CONTEXT_TOKENS = 1200, 8192
CEVAL = Path(__file__).parents[4] / "shared" / "data" / "ceval-exam"


class Bench:
    """How tests make what a benchmark starts from."""

    @staticmethod
    def write_csv(file: Path, rows: list[list[str]], header: list[str] | None = None) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened).writerows([*([header] if header else []), *rows])

    @staticmethod
    def invented(count: int, seed: int) -> list[list[str]]:
        """Questions without sense, `[text, A, B, C, D, answer]`, the four letters right equally often."""
        chance = random.Random(seed)
        letters = [LETTERS[number % 4] for number in range(count)]
        chance.shuffle(letters)
        names = ["brick", "cloud", "drum", "fern", "glass", "hinge", "ivory"]
        return [
            [
                f"{chance.choice(names)} {chance.randrange(10**6)}?",
                *(f"{chance.choice(names)} {n}" for n in range(4)),
                letter,
            ]
            for letter in letters
        ]

    @staticmethod
    def write_exam(folder: Path, sizes: dict[str, int]) -> Path:
        """A folder in C-Eval's layout: of each subject five examples, and so many questions."""
        for seed, (subject, size) in enumerate(sizes.items()):
            for split, count in (("dev", 5), ("val", size)):
                rows = [[str(i), *row] for i, row in enumerate(Bench.invented(count, 100 * seed + (split == "dev")))]
                header = ["id", "question", *LETTERS, "answer"]
                Bench.write_csv(folder / split / f"{subject}_{split}.csv", rows, header)
        return folder

    @staticmethod
    def random_model(seed: int) -> Any:
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=64, max_position_embeddings=CONTEXT_TOKENS, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=2, pad_token_id=0, initializer_range=0.1,
        )  # fmt: skip
        return Qwen3ForCausalLM(config).float()

    @staticmethod
    def save(model: Any, folder: Path, toy_folder: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(toy_folder / name, folder / name)
        return folder

    @staticmethod
    def load(folder: Path) -> Any:
        return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @staticmethod
    def add_adapter(workspace: Workspace, source: Path, base: Path, **changed: Any) -> Row:
        """An adapter, or a model trained as a whole, that lies in `source` and came from `base`."""
        adapter_id = new_id("adapter", "tiny")
        path = workspace.home.adapters / adapter_id
        shutil.copytree(source, path)
        document = {
            "path": str(path), "base_model": str(base), "base_path": str(base), "max_seq_length": 256,
            "enable_thinking": False, "dataset_id": "ds-gone-0000", "training": {"load_in_4bit": False}, **changed,
        }  # fmt: skip
        workspace.store.add_artifact(adapter_id, "adapter", "Tiny", document, parents=[])
        return workspace.store.artifact(adapter_id)

    @staticmethod
    def start(workspace: Workspace, spec: dict[str, Any]) -> JobContext:
        """A running benchmark job with this spec, in this process."""
        job_id = new_id("job", "benchmark")
        jobs.folder(workspace, job_id).mkdir()
        workspace.store.execute(
            "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,'benchmark','running',0,?,0)",
            job_id, json.dumps(spec),
        )  # fmt: skip
        return JobContext.of(workspace, job_id)


@pytest.fixture(scope="session")
def bench() -> type[Bench]:
    return Bench


@pytest.fixture
def ceval() -> Path:
    """Four real subjects of C-Eval, where they lie beside the repository."""
    if not CEVAL.is_dir():
        pytest.skip("no ../shared/data/ceval-exam")
    return CEVAL


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Path:
    """A random model of two layers, the same every time."""
    return Bench.save(Bench.random_model(3), tmp_path_factory.mktemp("tiny"), toy_folder)


@pytest.fixture(scope="session")
def tiny_adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Path:
    """A random adapter on it that changes its answers."""
    model = get_peft_model(Bench.load(tiny), LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return Bench.save(model, tmp_path_factory.mktemp("tiny_adapter"), toy_folder)


@pytest.fixture
def adapter(workspace: Workspace, bench: type[Bench], tiny: Path, tiny_adapter: Path) -> Row:
    return bench.add_adapter(workspace, tiny_adapter, tiny)
