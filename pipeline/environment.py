"""What this machine is and what works on it. Light: no torch, short time limits, no downloads."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import psutil

from tunewright.pipeline import catalog, gpu, models, toy
from tunewright.pipeline.errors import Unavailable
from tunewright.pipeline.exporting import toolchain
from tunewright.pipeline.redact import without_login
from tunewright.pipeline.settings import hub_endpoint, ollama_host
from tunewright.pipeline.workspace import Workspace

PACKAGES = ("tunewright", "unsloth", "torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "mcp")
LOW_DISK_GIB = 20
GIB = 2**30


def check(workspace: Workspace) -> dict[str, Any]:
    """Devices, memory and disk (GiB), versions, and what is usable, each with a reason where it is not."""
    gpus = gpu.find()
    memory = psutil.virtual_memory()
    disk_free_gib = round(shutil.disk_usage(workspace.home.root).free / GIB, 1)
    ollama_version, held = ollama_server()
    return {
        "device": gpus[0].name if gpus else f"cpu ({os.cpu_count()} cores)",
        "gpus": [
            {"index": g.index, "name": g.name, "total_gib": g.total_gib, "free_gib": g.free_gib, "bf16": g.has_bf16}
            for g in gpus
        ],
        "ram_total_gib": round(memory.total / GIB, 1),
        "ram_free_gib": round(memory.available / GIB, 1),
        "disk_free_gib": disk_free_gib,
        "home": str(workspace.home.root),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "usable": _usable(workspace, ollama_version),
        "ollama": held,
        "warnings": _warnings(gpus, disk_free_gib),
    }


def suggested_model() -> str:
    """What to train where nobody named a model: the default for real work, on a machine without a GPU the toy."""
    return catalog.DEFAULT_MODEL if gpu.indexes() else catalog.TOY


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def ollama_server() -> tuple[str | None, list[dict[str, Any]]]:
    """The version of the Ollama server and what it holds and runs (`OllamaClient.held`); None and nothing where no
    server answers.
    """
    from tunewright.pipeline.publishing.ollama_client import OllamaClient, answering

    try:
        with OllamaClient() as client, answering("what it has", next=""):
            return client.version(), client.held()
    except Unavailable:
        return None, []


def _usable(workspace: Workspace, ollama_version: str | None) -> dict[str, str]:
    from huggingface_hub import get_token

    found, host = toolchain.state(), without_login(ollama_host())
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return {
        "unsloth": "yes" if find_spec("unsloth") else "no: not installed",
        "toy_model": "ready"
        if toy.is_trained(workspace.home)
        else "made by the first fine-tune of 'toy', in some minutes",
        "gguf_converter": found["converter"],
        "gguf_quantizer": found["quantizer"],
        "gguf_runtime": "yes: xllamacpp" if find_spec("xllamacpp") else "no: xllamacpp is not installed",
        "ollama": f"yes: {ollama_version} at {host}" if ollama_version else f"no answer at {host}",
        "hub": f"{without_login(hub_endpoint())}{offline}",
        "hub_token": "present" if get_token() else "none: set HF_TOKEN or run `hf auth login` to publish",
    }


def _warnings(gpus: list[gpu.Gpu], disk_free_gib: float) -> list[str]:
    warnings: list[str] = []
    if not gpus:
        warnings.append("No GPU: training runs on the CPU, which suits the toy and models below 1 B parameters only.")
    for found in gpus:
        if not found.has_bf16:
            warnings.append(f"{found.name} has no bf16; training uses fp16.")
        if found.free_gib < 0.5 * found.total_gib:
            warnings.append(f"{found.name}: only {found.free_gib} of {found.total_gib} GiB are free.")
    if disk_free_gib < LOW_DISK_GIB:
        warnings.append(
            f"Only {disk_free_gib} GiB of disk are free; an 8B model needs about 40 GiB to train and export."
        )
    return warnings


def list_models(workspace: Workspace, query: str, fits_only: bool) -> list[dict[str, Any]]:
    """Known base models whose name holds every word of `query`, with what they need and whether it fits here."""
    cached = set(models.cached_ids())
    free_gib = max((g.free_gib for g in gpu.find()), default=0.0)
    ram_gib = psutil.virtual_memory().available / GIB
    rows: list[dict[str, Any]] = [
        {
            "model": catalog.TOY, "parameters_b": 0.0035, "licence": None, "kind": "instruct", "thinking": True,
            "qlora_vram_gb": 0.0, "lora_vram_gb": 0.0, "fits": "cpu", "available": "built in", "ollama": "",
        }
    ]  # fmt: skip
    known = {model.hub_id: model for model in catalog.KNOWN_MODELS}
    for model in known.values():
        qlora = catalog.vram_gb(model.parameters_b, load_in_4bit=True)
        lora = catalog.vram_gb(model.parameters_b, load_in_4bit=False)
        rows.append(
            {
                "model": model.hub_id, "parameters_b": model.parameters_b, "licence": model.licence,
                "kind": "instruct" if model.instruct else "base", "thinking": model.thinking,
                "qlora_vram_gb": qlora, "lora_vram_gb": lora,
                "fits": _fits(qlora, lora, free_gib, ram_gib, model.parameters_b),
                "available": "cached" if model.hub_id in cached else "on the Hub", "ollama": model.ollama,
            }
        )  # fmt: skip
    for hub_id in sorted(cached - set(known)):
        rows.append(
            {
                "model": hub_id, "parameters_b": None, "licence": None, "kind": None, "thinking": None,
                "qlora_vram_gb": None, "lora_vram_gb": None, "fits": "unknown", "available": "cached", "ollama": "",
            }
        )  # fmt: skip
    words = query.lower().split()
    return [
        row
        for row in rows
        if all(word in f"{row['model']} {row['kind']} {row['ollama']}".lower() for word in words)
        and not (fits_only and row["fits"] == "no")
    ]


def _fits(qlora_gb: float, lora_gb: float, free_gib: float, ram_gib: float, parameters_b: float) -> str:
    free_gb = free_gib * GIB / 1e9
    if lora_gb <= free_gb:
        return "lora"
    if qlora_gb <= free_gb:
        return "qlora"
    # A CPU trains 16-bit LoRA: weights, activations and the adapter's optimizer, about three times the weights.
    if not free_gib and parameters_b <= 2 and 3 * 2 * parameters_b <= ram_gib:
        return "cpu"
    return "no"
