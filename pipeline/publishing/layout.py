"""How an adapter or an export lies in a repository: which file goes where, and what of it is rewritten on the way.

Guarantees: no path of this machine and no token in the small files that Tunewright and PEFT write; every other file
goes as it is, to the letter, from where it lies. Leaves out cards of others and the parity report, which quotes data.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tunewright.pipeline import files
from tunewright.pipeline.errors import InvalidInput, NotFound, call
from tunewright.pipeline.exporting.outputs import LORA, LORA_GGUF, MERGED, MERGED_4BIT
from tunewright.pipeline.publishing import lineage
from tunewright.pipeline.redact import public
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

CARD = "README.md"
PROVENANCE = "provenance.json"
# Written by Tunewright and PEFT: every text in it is made public. Of the others only the entry that names a folder:
# a chat template in tokenizer_config.json must stay as it is, to the letter.
REWRITTEN = {"adapter_config.json", PROVENANCE}
NAMING_A_FOLDER = {"config.json": "_name_or_path", "tokenizer_config.json": "name_or_path"}
# At the root, where `from_pretrained` looks, lies the first of these; the others lie in folders of these names.
FOLDERS = {MERGED: "merged", MERGED_4BIT: "4bit", LORA: "lora"}

Content = Path | bytes


def select(artifact: Row, repo_id: str, outputs: Sequence[str] | None) -> list[str]:
    """The outputs of an export to be published, in the export's order; None means all. Empty for an adapter.

    Raises InvalidInput where the artifact does not hold what was asked for; `repo_id` is for the call that it names.
    """
    held: list[str] = [entry["output"] for entry in artifact["document"].get("files", [])]
    if outputs is None:
        return held
    missing = [output for output in outputs if output not in held]
    if missing or not outputs:
        raise InvalidInput(
            "output_not_there",
            f"outputs={list(outputs)}: {artifact['id']} holds no {', '.join(missing) or 'such selection'}.",
            allowed=f"It holds {', '.join(held)}." if held else "An adapter is published whole, without outputs.",
            next=call(
                "publish_to_hub", artifact_id=artifact["id"], repo_id=repo_id, **({"outputs": held} if held else {})
            ),
        )
    return [output for output in held if output in outputs]


def folders(outputs: Sequence[str]) -> dict[str, str]:
    """The folder in the repository, as a prefix, of each output that is a folder: "" for the one at the root."""
    present = [output for output in FOLDERS if output in outputs]
    return {output: f"{FOLDERS[output]}/" if number else "" for number, output in enumerate(present)}


def lay_out(workspace: Workspace, artifact: Row, outputs: Sequence[str]) -> dict[str, Content]:
    """Path in the repository → a file of this machine, or the bytes that stand for it. The card is not among them.

    Raises NotFound where files of the artifact are gone.
    """
    if artifact["kind"] == "adapter":
        found = _below(Path(artifact["document"]["path"]))
        lost = [] if found else ["all its files"]
    else:
        found, lost = _export_files(workspace, artifact, outputs)
    if lost:
        raise NotFound(
            "files_missing",
            f"{artifact['id']} cannot be published: {', '.join(lost)} can no longer be found.",
            allowed="Files of an artifact are not to be moved or edited.",
            next=call("list_artifacts", kind=artifact["kind"]),
        )
    return {path: _content(workspace, file) for path, file in found.items()}


def _export_files(workspace: Workspace, artifact: Row, outputs: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    found: dict[str, Path] = {}
    lost: list[str] = []
    prefixes = folders(outputs)
    for entry in artifact["document"]["files"]:
        output, path = entry["output"], Path(entry["path"])
        if output not in outputs:
            continue
        if output in prefixes:
            inside = _below(path, prefixes[output])
            found |= inside
            lost += [] if inside else [path.name]
        else:
            # Beside whole models an adapter's GGUF would be taken for one of them.
            prefix = "lora/" if output == LORA_GGUF and len(outputs) > 1 else ""
            found[prefix + path.name] = path
            lost += [] if path.is_file() else [path.name]
            if path.is_file() and path.stat().st_size != entry["bytes"]:
                raise lineage.file_changed(artifact, path, output)
    provenance = lineage.file_of(workspace, artifact, PROVENANCE)
    return (found | {PROVENANCE: provenance} if provenance else found), lost


def _below(folder: Path, prefix: str = "") -> dict[str, Path]:
    """The files below `folder` by their path in the repository; cards written by others are left out."""
    found = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {prefix + path: file for path, file in found.items() if file.name != CARD}


def _content(workspace: Workspace, file: Path) -> Content:
    if file.name in REWRITTEN:
        return _json(public(workspace, files.read_json(file)))
    key = NAMING_A_FOLDER.get(file.name)
    value = files.read_json(file) if key else {}
    if key in value and public(workspace, value[key]) != value[key]:
        return _json({**value, key: public(workspace, value[key])})
    return file


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
