"""check_environment and list_models."""

from typing import Annotated, Any

from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from tunewright.pipeline import environment
from tunewright.tools.framework import AppContext, Result, TunewrightServer, step, workspace_of


class GpuView(BaseModel):
    index: int
    name: str
    total_gib: float
    free_gib: float
    bf16: bool


class Environment(Result):
    device: str
    gpus: list[GpuView]
    ram_total_gib: float
    ram_free_gib: float
    disk_free_gib: float
    home: str
    python: str
    versions: dict[str, str]
    usable: dict[str, str]
    ollama: list[dict[str, Any]]
    warnings: list[str]


class ModelView(BaseModel):
    model: str
    parameters_b: float | None
    licence: str | None
    kind: str | None
    thinking: bool | None
    qlora_vram_gb: float | None
    lora_vram_gb: float | None
    fits: str
    available: str
    ollama: str


class Models(Result):
    """`ollama` is what the Ollama server holds: GGUF, which serves but cannot be trained; `trainable` is what can."""

    models: list[ModelView]
    ollama: list[dict[str, Any]]


def check_environment(ctx: AppContext) -> Environment:
    """What this machine is (GPU, memory, disk) and what works on it: Unsloth, GGUF tools, Ollama, Hub. Call first."""
    found: dict[str, Any] = environment.check(workspace_of(ctx))
    steps = [
        step("list_models", "See which models fit here.", fits_only=True),
        step("prepare_dataset", "Turn a file into a training set.", source="PATH"),
    ]
    return Environment(next_steps=steps, **found)


def list_models(
    ctx: AppContext,
    query: Annotated[str, Field(max_length=200, description="Words in the name, e.g. 'qwen3 instruct'.")] = "",
    fits_only: Annotated[bool, Field(description="Only models that fit this machine now.")] = False,
) -> Models:
    """Known base models: size, licence, base or instruct, thinking, VRAM (GB) for QLoRA and LoRA, whether it fits here.

    Any other Hub id or local folder with safetensors can be named too.
    """
    rows = environment.list_models(workspace_of(ctx), query, fits_only)
    steps = [step("plan_finetune", "What it takes.", dataset_id="DATASET_ID", model=rows[0]["model"])] if rows else []
    held = environment.ollama_server()[1]
    return Models(models=[ModelView(**row) for row in rows], ollama=held, next_steps=steps)


def register(server: TunewrightServer) -> None:
    """Adds these tools to the server."""
    look = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    server.tool(title="Check the environment", annotations=look)(check_environment)
    server.tool(title="List base models", annotations=look)(list_models)
