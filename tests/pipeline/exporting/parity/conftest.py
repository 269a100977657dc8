"""The random Qwen3 as a model trained as a whole, what it says in transformers, its files, and faults for them."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.exporting.outputs import GGUF_TYPES
from tunewright.pipeline.exporting.parity import cases, in_llama, judge
from tunewright.pipeline.exporting.parity.cases import Cases
from tunewright.pipeline.exporting.quantizer import quantize
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

with warnings.catch_warnings():
    # What the libraries have to say while they are imported is no matter of the tests.
    warnings.simplefilter("ignore")
    from tunewright.pipeline.exporting.parity import reference
    from tunewright.pipeline.exporting.parity.reference import Reference

Failures = Callable[..., list[str]]
Plant = Callable[..., Path]


@pytest.fixture(scope="session")
def whole(machine: Workspace, tiny: Any, base: Path) -> Row:
    """The base as an adapter's row of a full fine-tune: its own base, so no merge."""
    return tiny.add_adapter(machine, base, base, form="full")


@pytest.fixture(scope="session")
def seen(machine: Workspace, whole: Row, base: Path) -> tuple[Cases, Reference]:
    """What every file of the base is compared with."""
    found = cases.collect(machine, whole, base, base)
    return found, measure_reference(found, base)


def measure_reference(found: Cases, base: Path) -> Reference:
    return reference.measure(found, base=base, source=base, merged=base, adapter_scale=1.0, tell=lambda phase: None)


@pytest.fixture(scope="session")
def ggufs(
    base_gguf: Callable[[str], Path], quantizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The base in every type: F16 by the converter, the others by the quantizer from that."""
    folder = tmp_path_factory.mktemp("ggufs")
    made = {"f16": base_gguf("f16")}
    for name in GGUF_TYPES[1:]:
        made[name] = folder / f"{name}.gguf"
        quantize(quantizer, made["f16"], made[name], name, log=folder / "quantizer.log", check_cancelled=lambda: None)
    return made


@pytest.fixture
def failures(seen: tuple[Cases, Reference], machine: Workspace, whole: Row, base: Path, tmp_path: Path) -> Failures:
    """`failures(gguf)`: what the gate says of a file of the base; `template=` is one that training had instead."""

    def judged(gguf: Path, *, output: str = "gguf:f16", template: str | None = None) -> list[str]:
        found, said = seen
        if template is not None:
            source = tmp_path / "trained"
            shutil.copytree(base, source)
            (source / "chat_template.jinja").write_text(template, encoding="utf-8")
            # Its answers are not looked at.
            found = replace(cases.collect(machine, whole, source, base), asked_ids=[])
            said = measure_reference(found, base)
        measured = in_llama.measure(
            gguf, found, said.logprobs, log=tmp_path / "llama.log", check_cancelled=lambda: None
        )
        return judge.of_output(output, measured, said, found)[0]

    return judged


@pytest.fixture
def plant(converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """`plant(gguf, key=value, …)`: a copy with other metadata; keys with `__` for `.`, as in `tokenizer__ggml__…`.

    Written by the gguf-py that comes with the converter. A function as value gets the old value.
    """
    monkeypatch.syspath_prepend(str(converter / "gguf-py"))

    def planted(source: Path, **edits: Any) -> Path:
        import gguf
        from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

        reader = gguf.GGUFReader(source)
        changed: dict[str, Any] = {}
        for name, value in edits.items():
            key = name.replace("__", ".")
            field = reader.get_field(key)
            kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32}
            kind = field.types[0] if field else kinds[type(value)]
            inner = field.types[-1] if field and kind == gguf.GGUFValueType.ARRAY else None
            changed[key] = MetadataDetails(kind, value(field.contents()) if callable(value) else value, sub_type=inner)
        target = tmp_path / "planted.gguf"
        writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
        copy_with_new_metadata(reader, writer, changed, [])
        return target

    return planted
