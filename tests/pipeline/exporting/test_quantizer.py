"""llama.cpp's quantizer on a real, small GGUF."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import files
from tunewright.pipeline.errors import Cancelled, TunewrightError
from tunewright.pipeline.exporting import gguf, outputs
from tunewright.pipeline.exporting import quantizer as quantizing

# By llama.cpp's own reader: the type of the file, and each tensor's type and the digest of its bytes.
READ = """
import hashlib, json, sys
sys.path.insert(0, sys.argv[1])
from gguf import GGUFReader
print(json.dumps([
    [GGUFReader(file).fields["general.file_type"].contents(), {
        tensor.name: [tensor.tensor_type.name, hashlib.sha256(tensor.data.tobytes()).hexdigest()]
        for tensor in GGUFReader(file).tensors
    }] for file in sys.argv[2:]
]))
"""
# llama.h, llama_ftype.
FILE_TYPES = {
    "f16": 1, "q4_0": 2, "q8_0": 7, "q3_k_m": 12, "q4_k_s": 14, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "bf16": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def quantized(
    quantizer: Path, base_gguf: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Every type there is, from the one conversion without loss."""
    folder = tmp_path_factory.mktemp("quantized")
    made = {name: folder / f"{name}.gguf" for name in outputs.GGUF_TYPES}
    for name, file in made.items():
        fell_back = quantizing.quantize(
            quantizer, base_gguf("bf16"), file, name, log=folder / "log", check_cancelled=lambda: None
        )
        assert fell_back == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(["log", *(path.name for path in made.values())])
    return made


def test_every_type_is_made_of_one_conversion_and_says_what_it_is(
    quantized: dict[str, Path], converter: Path, run_python: Callable[..., str]
) -> None:
    read = json.loads(run_python(READ, converter / "gguf-py", *quantized.values()))
    assert {name: file_type for name, (file_type, _) in zip(quantized, read, strict=True)} == FILE_TYPES
    sizes = [file.stat().st_size for name, file in quantized.items() if name != "bf16"]
    assert sizes == sorted(sizes, reverse=True)


def test_what_the_converter_writes_itself_the_quantizer_writes_to_the_last_bit(
    quantized: dict[str, Path], base_gguf: Callable[[str], Path], converter: Path, run_python: Callable[..., str]
) -> None:
    by_both = [file for name in outputs.DIRECT for file in (quantized[name], base_gguf(name))]
    read = json.loads(run_python(READ, converter / "gguf-py", *by_both))
    assert read[0::2] == read[1::2]
    assert len({json.dumps(one, sort_keys=True) for one in read}) == len(outputs.DIRECT)


def test_tensors_that_could_not_get_their_type_are_counted(
    quantizer: Path, converter: Path, tiny: Any, tmp_path: Path
) -> None:
    # Rows of 192: no multiple of K-quants' 256, but of 32.
    base = tiny.base(tmp_path / "base", hidden_size=192)
    (tmp_path / "layout").mkdir()
    gguf.lay_out(base, tmp_path / "layout", enable_thinking=False)
    source, log = tmp_path / "bf16.gguf", tmp_path / "log"
    arguments: dict[str, Any] = {"log": log, "check_cancelled": lambda: None}
    gguf.convert(converter, tmp_path / "layout", source, "bf16", name="odd", **arguments)
    # In each of two layers the five matrices that read the hidden state, and the embedding; for the output layer a
    # type that fits is chosen beforehand.
    assert quantizing.quantize(quantizer, source, tmp_path / "k.gguf", "q4_k_m", **arguments) == 11
    assert quantizing.quantize(quantizer, source, tmp_path / "32.gguf", "q8_0", **arguments) == 0


def test_progress_reaches_the_number_of_tensors(
    quantizer: Path, base_gguf: Callable[[str], Path], tmp_path: Path
) -> None:
    told: list[tuple[float, float]] = []

    def slow(program: Path) -> Path:
        """The quantizer, kept from ending until it has been looked at once more."""
        script = tmp_path / "slow"
        script.write_text(f'#!/bin/sh\n"{program}" "$@" && sleep 0.7\n', encoding="utf-8")
        script.chmod(0o755)
        return script

    quantizing.quantize(
        slow(quantizer), base_gguf("bf16"), tmp_path / "q.gguf", "q4_0", log=tmp_path / "log",
        check_cancelled=lambda: None, progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told[-1] == (25, 25)


def test_a_cancel_kills_the_quantizer_and_leaves_no_file(
    quantizer: Path, base_gguf: Callable[[str], Path], tmp_path: Path
) -> None:
    # As from a disk that does not answer: the program waits for its source.
    os.mkfifo(tmp_path / "source.gguf")

    def cancelled() -> None:
        raise Cancelled("job-x")

    with pytest.raises(Cancelled):
        quantizing.quantize(
            quantizer, tmp_path / "source.gguf", tmp_path / "q.gguf", "q4_k_m", log=tmp_path / "log",
            check_cancelled=cancelled,
        )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "source.gguf"]


def test_a_damaged_source_is_an_error_and_what_was_there_before_stays(
    quantizer: Path, base_gguf: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = base_gguf("bf16").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "q.gguf").write_bytes(b"before")
    with pytest.raises(TunewrightError) as caught:
        quantizing.quantize(
            quantizer, tmp_path / "cut.gguf", tmp_path / "q.gguf", "q4_k_m", log=tmp_path / "log",
            check_cancelled=lambda: None,
        )  # fmt: skip
    assert caught.value.code == "quantization_failed" and "q4_k_m" in caught.value.what
    assert (tmp_path / "q.gguf").read_bytes() == b"before"
    assert not list(tmp_path.glob(f"{files.PARTIAL}*"))


def test_only_a_quantizer_that_starts_and_knows_every_type_is_believed(quantizer: Path, tmp_path: Path) -> None:
    def script(name: str, text: str, mode: int = 0o755) -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(mode)
        return tmp_path / name

    assert quantizing.runs(quantizer)
    older = " ".join(quantizing.NAMES[:-1])
    assert not quantizing.runs(script("older", f"#!/bin/sh\necho {older}\n"))
    assert not quantizing.runs(script("other-processor", "\x7fELF nothing that starts here"))
    assert not quantizing.runs(script("not-executable", "#!/bin/sh\n", mode=0o644))
    assert not quantizing.runs(tmp_path / "missing")
