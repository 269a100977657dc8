"""A PEFT adapter as GGUF, for llama.cpp and Ollama to put on a base that many adapters share. Runs in a worker.

Guarantees: on the 16-bit base it does what the adapter does when it is merged, or it is refused. llama.cpp knows one
formula, W + alpha / r · B A, with one alpha for all tensors; what rsLoRA, patterns and `adapter_scale` make of that is
written into alpha, and where it differs from tensor to tensor, into B. Does not export layers trained as a whole.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput, TunewrightError
from tunewright.pipeline.exporting import lora, merge, programs

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# llama.cpp keeps the experts of a layer as one tensor.
EXPERT = re.compile(r"\.experts\.\d+\.")


def convert(
    toolchain: Path,
    adapter: Path,
    base: Path,
    file: Path,
    *,
    adapter_scale: float,
    log: Path,
    check_cancelled: Callable[[], None],
) -> None:
    """Writes the adapter in `adapter`, times `adapter_scale`, as GGUF `file` in float32, to be used at scale 1.

    Of `base` only shapes and config are read. The converter's output goes to `log`. Raises InvalidInput for what a GGUF
    adapter cannot express, TunewrightError where the converter fails, and what `check_cancelled` raises; `file` is then
    not there.
    """
    _, changes = merge.read_changes(base, adapter, adapter_scale)
    _require_expressible(changes)
    with TemporaryDirectory(prefix=files.PARTIAL, dir=file.parent) as temporary:
        # The file is called after this folder inside.
        source = Path(temporary) / file.stem
        source.mkdir()
        _rescale(adapter, source, changes)
        converted = Path(temporary) / file.name
        command = [
            sys.executable, str(toolchain / "convert_lora_to_gguf.py"), str(source), "--base", str(base),
            "--outfile", str(converted), "--outtype", "f32",
        ]  # fmt: skip
        env = {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
        if programs.run(command, log, check_cancelled, env=env) != 0 or not converted.is_file():
            raise _failed(programs.last_line(log), log)
        expected = 2 * len({EXPERT.sub(".experts.", name) for name in changes.added})
        if _tensors_in(converted) < expected:
            raise _failed(f"it wrote {_tensors_in(converted)} tensors of {expected}", log)
        converted.replace(file)


def _rescale(adapter: Path, folder: Path, changes: lora.Adapter) -> None:
    """Fills `folder` with the adapter as llama.cpp's formula has it."""
    alphas = {product.b.name: product.scale * product.a.shape[0] for product in changes.added.values()}
    alpha = next(iter(alphas.values()))
    ratios = {name: one / alpha for name, one in alphas.items() if abs(one / alpha - 1) > 1e-9}
    if ratios:
        tensors = load_file(adapter / WEIGHTS)
        scaled = {name: tensors[name].float() * ratio for name, ratio in ratios.items()}
        save_file(tensors | scaled, folder / WEIGHTS)
    else:
        (folder / WEIGHTS).symlink_to((adapter / WEIGHTS).resolve())
    config: dict[str, Any] = files.read_json(adapter / CONFIG)
    files.write_json(folder / CONFIG, config | {"lora_alpha": alpha, "use_rslora": False, "alpha_pattern": {}})


def _require_expressible(changes: lora.Adapter) -> None:
    products = changes.added.items()
    whole = next(iter(changes.replaced), None)
    if whole:
        raise _refused(f"it holds {whole!r} as a whole")
    for what, names in (
        ("DoRA's lengths at", [name for name, product in products if product.magnitude is not None]),
        ("LoftQ's 4-bit base at", [name for name, product in products if product.on_4_bits]),
        ("a transposed layer,", [name for name, product in products if product.transposed]),
    ):
        if names:
            raise _refused(f"it has {what} {names[0]!r}")


def _tensors_in(file: Path) -> int:
    """How many tensors a GGUF says it has. The format: magic, version (4 bytes each), then this count in 8."""
    with file.open("rb") as opened:
        return int.from_bytes(opened.read(16)[8:], "little")


def _refused(why: str) -> InvalidInput:
    return InvalidInput(
        "adapter_not_expressible",
        f"The adapter cannot be a GGUF adapter: {why}.",
        allowed="LoRA and rsLoRA on layers of a 16-bit base can. What is merged first can hold anything that was "
        "trained.",
        next='merge_and_export(adapter_id="…", outputs=["gguf:q8_0"])',
        done="Nothing was exported.",
    )


def _failed(why: str, log: Path) -> TunewrightError:
    return TunewrightError(
        "conversion_failed",
        f"llama.cpp's converter could not write the adapter as GGUF: {why}.",
        allowed=f"Its output stands in {log}.",
        next='merge_and_export(adapter_id="…", outputs=["gguf:q8_0"])',
        done="No export was kept; the adapter is unchanged.",
    )
