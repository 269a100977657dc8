"""The doctor's look at the machine: Python and packages, torch and the driver, GPUs, programs for GGUF.

Imports neither torch nor Unsloth: what they do when started is seen in a child process, and only where that was asked.
"""

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path

# pip's and uv's own reading of version bounds, by the Python Packaging Authority.
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tunewright.pipeline import gpu
from tunewright.pipeline.commandline.findings import Finding, failure, ok, warning
from tunewright.pipeline.exporting import toolchain

DEEP_TIMEOUT_S = 300
CUDA_LINE = re.compile(r"^cuda\b[^=]*=\s*['\"](\d+)\.(\d+)", re.MULTILINE)
INSTALL = "pip install --upgrade tunewright (or `make` in a clone, which installs the pins)"
# Starts what a worker starts, computes in bfloat16 on the GPU if there is one, and says on its last line what it saw.
DEEP = """
import json
from tunewright.pipeline import backend
import torch
cuda = torch.cuda.is_available()
sums = (torch.ones(64, 64, dtype=torch.bfloat16, device="cuda" if cuda else "cpu") @ torch.ones(64, 64).to(
    torch.bfloat16).to("cuda" if cuda else "cpu")).float().sum().item()
print(json.dumps({"cuda": cuda, "right": sums == 64 ** 3}))
"""


def software() -> Iterator[Finding]:
    """Python and the packages, against the bounds that this Tunewright was built with."""
    needed, running = metadata("tunewright")["Requires-Python"], platform.python_version()
    if SpecifierSet(needed).contains(running):
        yield ok("python", f"{running} at {sys.executable}")
    else:
        yield failure("python", f"{running}, where {needed} is needed", "Make the environment with another Python.")
    wanted = [Requirement(line) for line in requires("tunewright") or []]
    wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    unfit = [
        f"{each.name} {found or 'is missing'} (needs {each.specifier or 'any'})"
        for each in wanted
        if (found := _installed(each.name)) is None or not each.specifier.contains(found, prereleases=True)
    ]
    if unfit:
        yield failure("packages", ", ".join(unfit), INSTALL)
    else:
        yield ok("packages", f"tunewright {version('tunewright')} and all {len(wanted)} packages that it names fit")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device() -> Iterator[Finding]:
    """The GPUs, and whether torch was built for their driver."""
    gpus = gpu.find()
    if not gpus:
        yield warning(
            "gpu", "none that this process may use: training runs on the CPU, for the toy and small models only",
            "Install NVIDIA's driver, or let CUDA_VISIBLE_DEVICES name a GPU.",
        )  # fmt: skip
    for found in gpus:
        name = f"gpu-{found.index}"
        told = f"{found.name}, {found.free_gib} of {found.total_gib} GiB free, driver {found.driver}"
        if found.free_gib < 0.5 * found.total_gib:
            yield warning(name, told, "nvidia-smi names who holds the rest; `tunewright status` whether it is a job.")
        else:
            yield ok(name, told)
        if not found.has_bf16:
            yield warning(name, f"{found.name} has no bf16", "Nothing to do: training uses fp16 there.")
    yield _torch(bool(gpus))


def _torch(has_gpu: bool) -> Finding:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return failure("torch", "is not installed", INSTALL)
    told = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    built = CUDA_LINE.search(told)
    name = f"torch {version('torch')}"
    if built is None:
        wrong = "is built without CUDA, and there is an NVIDIA GPU" if has_gpu else "is built without CUDA"
        return (failure if has_gpu else warning)("torch", f"{name} {wrong}", INSTALL)
    supported = _driver_cuda() if has_gpu else None
    # Within a major version an older driver runs newer builds (CUDA's minor version compatibility).
    if supported and supported[0] < int(built[1]):
        return failure(
            "torch", f"{name} is built for CUDA {built[1]}.{built[2]}, the driver knows {supported[0]}.{supported[1]}",
            "Update NVIDIA's driver.",
        )  # fmt: skip
    return ok("torch", f"{name}, built for CUDA {built[1]}.{built[2]}" + (", which the driver knows" * has_gpu))


def _driver_cuda() -> tuple[int, int] | None:
    """The CUDA version that the driver supports."""
    import pynvml

    pynvml.nvmlInit()
    try:
        number = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    finally:
        pynvml.nvmlShutdown()
    return number // 1000, number % 1000 // 10


def unsloth(*, deep: bool) -> Finding:
    """Whether Unsloth is there; `deep` starts it and computes in a child, as a worker would (up to a minute)."""
    found = _installed("unsloth")
    if found is None:
        return failure("unsloth", "is not installed", INSTALL)
    if not deep:
        return ok("unsloth", f"{found} is installed; --deep starts it")
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", DEEP], stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
            errors="replace", timeout=DEEP_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return failure("unsloth", f"{found} had not started after {DEEP_TIMEOUT_S} s", INSTALL)
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return failure("unsloth", f"{found} does not start: {last}", INSTALL)
    seen = json.loads(child.stdout.strip().splitlines()[-1])
    where = "the GPU" if seen["cuda"] else "the CPU"
    if gpu.indexes() and not seen["cuda"]:
        return failure("unsloth", f"{found} starts, but torch does not see the GPU", "Update NVIDIA's driver.")
    if not seen["right"]:
        return failure("unsloth", f"{found} starts, but {where} computes wrongly in bf16", "Test the hardware.")
    return ok("unsloth", f"{found} starts and computes in bf16 on {where}")


def gguf() -> Iterator[Finding]:
    """llama.cpp's programs, as exports find them, and what runs its models for the parity check."""
    for part, told in toolchain.state().items():
        if told.startswith("yes: "):
            yield ok(f"gguf {part}", told.removeprefix("yes: "))
        else:
            yield warning(f"gguf {part}", told.removeprefix("no: "), "tunewright toolchain")
    if found := _installed("xllamacpp"):
        yield ok("gguf runtime", f"xllamacpp {found}")
    else:
        yield failure("gguf runtime", "xllamacpp is not installed, so no GGUF can be checked", INSTALL)
