"""Quantizing a GGUF by llama.cpp's own program. Light.

Guarantees: the file appears whole or not at all; tensors that could not get the type that was asked for are counted,
not passed over. Reads a file of 16 bits: quantizing twice would add up the errors.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tunewright.pipeline import files
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.exporting import programs
from tunewright.pipeline.exporting.outputs import GGUF_TYPES

# How llama-quantize calls the types.
NAMES = tuple(name.upper() for name in GGUF_TYPES)
HELP_TIMEOUT_S = 30
STEP = re.compile(rb"\[ *(\d+)/ *(\d+)\]")
FELL_BACK = re.compile(rb"WARNING: (\d+) of \d+ tensor\(s\) required fallback quantization")


def runs(program: Path) -> bool:
    """Whether `program` is a llama-quantize that starts on this machine and knows every type of ours."""
    try:
        said = subprocess.run(
            [program, "--help"], stdin=subprocess.DEVNULL, capture_output=True, timeout=HELP_TIMEOUT_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return set(NAMES) <= set(said.decode("utf-8", errors="replace").split())


def quantize(
    program: Path,
    source: Path,
    file: Path,
    gguf_type: str,
    *,
    log: Path,
    check_cancelled: Callable[[], None],
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> int:
    """Writes the GGUF `source` (f16, bf16 or f32) as `file` in `gguf_type`; see `outputs.GGUF_TYPES`.

    Returns how many tensors got another type because their rows are no multiple of a block (256 weights for K-quants,
    32 for the others): llama.cpp then takes a larger type. The program's output goes to `log`, tensors done and in all
    to `progress`. Raises TunewrightError where it fails, and what `check_cancelled` raises.
    """
    begins = log.stat().st_size if log.is_file() else 0
    partial = file.with_name(files.PARTIAL + file.name)

    def watch() -> None:
        check_cancelled()
        steps = STEP.findall(programs.tail(log))
        if steps:
            progress(*map(int, steps[-1]))

    try:
        command = [str(program), str(source), str(partial), gguf_type.upper()]
        if programs.run(command, log, watch) != 0:
            raise TunewrightError(
                "quantization_failed",
                f"llama.cpp's quantizer could not write gguf:{gguf_type}: {programs.last_line(log)}.",
                allowed=f"Its output stands in {log}. {program} may be older than the converter: another one can stand "
                "in the folder that TUNEWRIGHT_LLAMA_CPP names.",
                next='merge_and_export(adapter_id="…", outputs=["gguf:f16"])',
                done="No export was kept; the adapter is unchanged.",
            )
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    counted = FELL_BACK.findall(programs.tail(log, log.stat().st_size - begins))
    return int(counted[-1]) if counted else 0
