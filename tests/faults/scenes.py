"""The work that faults hit: for each kind of job the call that begins it, what must come of it however often it was
hit, and the files that it reads and keeps.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.world import World

from tunewright.pipeline import jobs
from tunewright.pipeline.publishing.layout import CARD
from tunewright.pipeline.store import Row
from tunewright.pipeline.training import checkpoints

CHAT = "chat"
REPOSITORY, MODEL = "tester/shop", "shop"
OUTPUTS = ["merged_16bit", "gguf:q8_0"]


@dataclass(frozen=True)
class Scene:
    """`weight` is how often it is played beside the others: what imports Unsloth or PyTorch is dear.

    `outcome(world, job)` is the same each time. `reads` are the files without which the job cannot succeed, `keeps`
    those by which it goes on after a kill.
    """

    kind: str
    tool: str
    weight: int
    arguments: Callable[[World], dict[str, Any]]
    outcome: Callable[[World, Row], Any]
    reads: Callable[[World], list[Path]]
    keeps: Callable[[Path], list[Path]] = lambda folder: []


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights(world: World) -> Path:
    return world.workspace.home.adapters / world.adapter_id / "adapter_model.safetensors"


def exported(world: World) -> list[Path]:
    """The GGUF of the export that is published: without its parity, which takes long, and so by force."""
    return list((world.workspace.home.exports / world.export_id).glob("*.gguf"))


def _splits(world: World, job: Row) -> Any:
    folder = world.workspace.home.datasets / job["result"]["dataset_id"]
    return {path.name: digest(path) for path in sorted(folder.glob("*.parquet"))}


def _adapter(world: World, job: Row) -> Any:
    steps = [(row["step"], row["numbers"].get("loss")) for row in world.workspace.store.metrics(job["id"], "train")]
    return steps, digest(world.workspace.home.adapters / job["result"]["adapter_id"] / "adapter_model.safetensors")


def _evaluation(world: World, job: Row) -> Any:
    folder = jobs.folder(world.workspace, job["id"])
    return {name: digest(folder / name) for name in ("evaluation.json", "samples.jsonl")}


def _scores(world: World, job: Row) -> Any:
    return {name: job["result"][name] for name in ("questions", "models", "comparisons", "sentence")}


def _export(world: World, job: Row) -> Any:
    folder = world.workspace.home.exports / job["result"]["export_id"]
    return {path.name: digest(path) for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".gguf")}


def _repository(world: World, job: Row) -> Any:
    held = world.hub.repositories[REPOSITORY]
    # The card tells of evaluations that were made meanwhile.
    files = {path: hashlib.sha256(content).hexdigest() for path, content in held.files.items() if path != CARD}
    return len(held.commits), CARD in held.files, files


def _models(world: World, job: Row) -> Any:
    return dict(world.ollama.models)


def _journals(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob("*.jsonl"))


def _newest_checkpoint(folder: Path) -> list[Path]:
    """The files of the newest checkpoint, where there is one before it: a run needs a whole one to go on from."""
    newest = checkpoints.last(folder)
    return sorted(path for path in newest.iterdir() if path.stat().st_size) if newest else []


SCENES = {
    scene.kind: scene
    for scene in (
        Scene(
            "prepare_dataset", "prepare_dataset", 4,
            lambda world: {"source": str(world.source), "name": "rows", "dedupe": True, "eval_fraction": 0.1},
            _splits, lambda world: [world.source],
        ),
        Scene(
            "finetune", "start_finetune", 1,
            lambda world: {
                "dataset_id": world.dataset_id, "model": "toy", "name": "shop", "max_steps": 12, "save_steps": 3,
                "eval_steps": 6, "batch_size": 2, "lora_dropout": 0.1, "early_stopping_patience": 0,
            },
            _adapter, lambda world: [world.workspace.home.datasets / world.dataset_id / "train.parquet"],
            _newest_checkpoint,
        ),
        Scene(
            "validate", "validate_adapter", 2,
            lambda world: {
                "adapter_id": world.adapter_id, "dataset_id": world.dataset_id, "max_samples": 8, "max_new_tokens": 24
            },
            _evaluation, lambda world: [weights(world)], _journals,
        ),
        Scene(
            "benchmark", "benchmark_adapter", 2,
            lambda world: {"adapter_id": world.adapter_id, "task_dir": str(world.exam), "n_shot": 1},
            _scores, lambda world: [weights(world)], _journals,
        ),
        Scene(
            "export", "merge_and_export", 2, lambda world: {"adapter_id": world.adapter_id, "outputs": OUTPUTS},
            _export, lambda world: [weights(world)],
        ),
        Scene(
            "publish_hub", "publish_to_hub", 5,
            lambda world: {"artifact_id": world.export_id, "repo_id": REPOSITORY, "force": True, "confirm": True},
            _repository, exported,
        ),
        Scene(
            "publish_ollama", "publish_to_ollama", 5,
            lambda world: {"export_id": world.export_id, "model_name": MODEL, "force": True, "confirm": True},
            _models, exported,
        ),
    )
}  # fmt: skip
