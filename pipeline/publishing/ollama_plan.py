"""What goes to an Ollama server under which name: the file of the export, its Modelfile, and what stands against it.

Light. Reads the export and changes nothing; knows of servers only what their versions can and cannot do. The file is
the one that was asked for, else the one that the parity recommends, else the most exact. Where the export lacks the
type that was asked for, Ollama can make it and nothing here can, its 16-bit file goes and the server quantizes.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from tunewright.pipeline.errors import Conflict, InvalidInput, NotFound, call, nearest
from tunewright.pipeline.exporting import toolchain
from tunewright.pipeline.exporting.outputs import GGUF, GGUF_TYPES, gguf_type, is_gguf
from tunewright.pipeline.ids import slug
from tunewright.pipeline.publishing import gate, lineage, modelfile, presets
from tunewright.pipeline.publishing.modelfile import Modelfile
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

# [host/][namespace/]model[:tag], the lengths and characters of Ollama's types/model/name.go.
NAME = re.compile(
    r"(?:(?:[A-Za-z0-9_][\w.:-]{0,349}/)?[A-Za-z0-9_][\w-]{0,79}/)?"
    r"[A-Za-z0-9_][\w.-]{0,79}(?::[A-Za-z0-9_][\w.-]{0,79})?",
    re.ASCII,
)
# q8_0 before the 16-bit files: half their size, and a difference from them that no answer shows.
PREFERRED = tuple(GGUF + name for name in ("q8_0", *(name for name in GGUF_TYPES if name != "q8_0")))
# What Ollama makes of a 16-bit GGUF itself, in its own spelling.
SERVER_MAKES = {"gguf:q8_0": "q8_0", "gguf:q4_k_m": "q4_K_M", "gguf:q4_k_s": "q4_K_S"}
SIXTEEN_BIT = ("gguf:f16", "gguf:bf16")
# The first Ollama whose chat runs the Jinja template inside the GGUF.
JINJA_SINCE = (0, 30)
# The first that quantizes no GGUF any more (its release notes; server/create.go, validateCreateOptions).
NO_QUANTIZING_SINCE = (0, 34, 1)


@dataclass(frozen=True)
class Request:
    """What is asked for: the spec of a job of kind `publish_ollama`. `output` None leaves the choice to us."""

    export_id: str
    model_name: str
    output: str | None = None
    preset: str = presets.ASSISTANT
    system: str | None = None
    parameters: Mapping[str, Any] | None = None
    push: bool = False
    overwrite: bool = False
    force: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The tool's arguments that ask for this."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}

    def call(self, **changes: Any) -> str:
        """The tool call that asks for this, with some arguments changed."""
        return call("publish_to_ollama", **{**self.arguments, **changes})


@dataclass(frozen=True)
class Plan:
    """What is to be published.

    `name` is full (`name:tag`), `output` what the model will be, `source` the output whose file goes there and
    `digest` that file's (`sha256:…`). `quantize` is the type that the server is to make of it, None where they are the
    same. `forced` quotes what the parity holds against the file and the request overrides.
    """

    request: Request
    export: Row
    name: str
    output: str
    source: str
    gguf: Path
    digest: str
    quantize: str | None
    modelfile: Modelfile
    forced: list[str]

    @property
    def retry(self) -> str:
        """The same call again, agreed to where it must be."""
        return self.request.call(**({"confirm": True} if self.request.push or self.forced else {}))


def make(workspace: Workspace, request: Request) -> Plan:
    """Raises NotFound, InvalidInput, and Conflict where the parity gate or a changed file stands against it.

    Reads the whole GGUF once where the export has no digest for it (about a second per GB).
    """
    export = workspace.store.artifact(request.export_id, "export")
    name = _full_name(request)
    if request.push and "/" not in name:
        raise InvalidInput(
            "push_needs_namespace",
            f"{name} has no owner, so that no registry takes it.",
            allowed="The name of a model that is pushed begins with your name on ollama.com: you/model.",
            next=request.call(model_name=f"your-name/{name}"),
        )
    output, source, entry = _choose(workspace, export, request)
    gguf = Path(entry["path"])
    made = modelfile.build(
        workspace, export, gguf, request.system, request.parameters, request.preset, retry=request.call
    )
    forced = gate.require(export, [source], force=request.force, retry=request.call(force=True, confirm=True))
    quantize = SERVER_MAKES[output] if source != output else None
    return Plan(request, export, name, output, source, gguf, _digest(export, entry), quantize, made, forced)


def before_jinja(version: str) -> bool:
    """Whether a server of this version runs the Go template alone. Builds from source call themselves 0.0.0."""
    return (0, 0, 0) < _numbers(version) < JINJA_SINCE


def require_quantizing(plan: Plan, version: str) -> None:
    """Raises Conflict where the server would have to quantize and is too new to."""
    if plan.quantize and _numbers(version) >= NO_QUANTIZING_SINCE:
        raise Conflict(
            "server_cannot_quantize",
            f"Ollama {version} makes no {gguf_type(plan.output)} of {gguf_type(plan.source)}: it has quantized no GGUF "
            "since 0.34.1.",
            allowed=f"Make {plan.output} in the export, where its parity is measured too.",
            next=lineage.export_call(plan.export, [plan.output]),
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _full_name(request: Request) -> str:
    """The name with its tag, as the server lists it. Raises InvalidInput."""
    name = request.model_name
    if not NAME.fullmatch(name):
        raise InvalidInput(
            "invalid_model_name",
            f"{name!r} is no name for an Ollama model.",
            allowed="[owner/]model[:tag], each of letters, digits, '_', '-' and (not in the owner) '.', up to 80 long.",
            next=request.call(model_name=slug(name)),
        )
    short = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
    return short if ":" in short.rpartition("/")[2] else f"{short}:latest"


def _choose(workspace: Workspace, export: Row, request: Request) -> tuple[str, str, Mapping[str, Any]]:
    """The output to be, the output whose file is sent for it, and that file's entry. Raises InvalidInput, NotFound."""
    wanted = request.output
    entries = {file["output"]: file for file in export["document"]["files"] if is_gguf(file["output"])}
    if wanted is not None and wanted not in PREFERRED:
        raise InvalidInput(
            "unknown_output",
            f"output={wanted!r} is no GGUF that can be exported.",
            allowed=f"{nearest(wanted, list(PREFERRED))} {export['id']} has: {', '.join(entries) or 'no GGUF'}.",
            next=request.call(output=next(iter(entries), None)),
        )
    output = wanted or _best(export, entries)
    source = output
    # Only without a quantizer here: of what the server makes no parity is measured.
    if output not in entries and output in SERVER_MAKES and toolchain.find_quantizer() is None:
        source = next((name for name in SIXTEEN_BIT if name in entries), output)
    if source not in entries or not Path(entries[source]["path"]).is_file():
        lost = f"{entries[source]['path']} is gone" if source in entries else f"it has no {wanted or 'GGUF'}"
        raise NotFound(
            "no_gguf",
            f"{export['id']} cannot go to Ollama: {lost}.",
            allowed=f"The export has: {', '.join(entries) or 'no GGUF'}. Where no quantizer is installed, an "
            f"Ollama before 0.34.1 makes {', '.join(SERVER_MAKES)} of its gguf:f16 or gguf:bf16.",
            next=lineage.export_call(export, [output]),
        )
    return output, source, entries[source]


def _best(export: Row, entries: Mapping[str, Any]) -> str:
    """What the parity recommends, where the export has it; else the most exact; q8_0 where there is none at all."""
    parity = export["document"].get("parity") or {}
    recommended: str = (parity.get("recommendation") or {}).get("output", "")
    if recommended in entries:
        return recommended
    return next((output for output in PREFERRED if output in entries), PREFERRED[0])


def _digest(export: Row, entry: Mapping[str, Any]) -> str:
    """The blob's digest: the export's own record where the file still has the recorded size, else computed."""
    path = Path(entry["path"])
    if path.stat().st_size != entry["bytes"]:
        raise lineage.file_changed(export, path, entry["output"])
    if recorded := entry.get("sha256"):
        return f"sha256:{recorded}"
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
