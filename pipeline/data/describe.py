"""What is said about a dataset: the report for agents, the manifest that names its bytes, the page for a person."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tunewright.pipeline import files
from tunewright.pipeline.data import advice, languages, report_page, splits, statistics, topics
from tunewright.pipeline.data.arguments import DatasetArguments
from tunewright.pipeline.data.cleaning import listed
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.data.sources import Source
from tunewright.pipeline.data.splits import EVAL, TRAIN, split_file
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np

    from tunewright.pipeline.data.staging import Staged

    Array: TypeAlias = np.ndarray[Any, Any]

# Found in rows, each with the key of the report under which its kinds are counted.
GROUPS = {"personal_data": "personal_data", "secrets": "secrets", "benchmark": "benchmark_overlap"}


@dataclass(frozen=True)
class Chosen:
    """Which staged rows make the splits (bool, one a row), and which earlier row each nearly repeats (or -1)."""

    train: "Array"
    held_out: "Array"
    near_of: "Array"


def report(
    workspace: Workspace, staged: "Staged", chosen: Chosen, sources: list[Source], arguments: DatasetArguments
) -> Row:
    """The report of a dataset whose rows are staged: counts, lengths, languages, topics, leaks, advice."""
    import numpy as np

    kept = chosen.train | chosen.held_out
    rows = np.flatnonzero(kept)
    sampled = rows[statistics.sample(len(rows))]
    sample = list(splits.staged_rows(staged.rows, sampled))
    longest = int(rows[np.argmax(staged.characters[rows])])
    found = _found(staged, kept)
    made: Row = {
        "rows_read": staged.rows_read,
        "train_rows": int(chosen.train.sum()),
        "eval_rows": int(chosen.held_out.sum()),
        "dropped": staged.drops.to_dict(),
        "mended": staged.mended.to_dict(),
        "replaced": dict(sorted(staged.replaced.items())),
        "sources": _shares(staged, rows, sources),
    }
    made |= summary(workspace, sample, len(rows), next(splits.staged_rows(staged.rows, [longest])), arguments.model)
    # The answers alone: an instruction that all rows share would look like a topic.
    made["topics"] = topics.survey([record.answer() for record in sample], arguments.seed)
    made["leakage"] = _leakage(staged, chosen, arguments)
    made |= {key: dict(sorted(found[group].items())) for group, key in GROUPS.items()}
    made["reasoning_share"] = round(found["reasoning"][""] / len(rows), 4)
    made["warnings"] = _warnings(found, staged.notes)
    made["advice"] = advice.of(made | {"kind": staged.kind})
    return made


def summary(workspace: Workspace, sample: list[Record], rows: int, longest: Record, model: str | None = None) -> Row:
    """`tokens` and `languages` of a dataset of `rows` rows, judged by a `sample` and its `longest` row."""
    if model:
        from tunewright.pipeline import chat_template
        from tunewright.pipeline.data import lengths

        template = chat_template.load(workspace, model)
        tokens = statistics.count(template, model, sample, rows)
        with suppress(InvalidInput):  # a row that the template refuses
            tokens["max"] = max(tokens["max"], lengths.token_length(template, longest))
    else:
        tokens = statistics.estimate(sample, rows)
        tokens["max"] = max(tokens["max"], statistics.estimate([longest], 1)["max"])
    texts = [f"{record.prompt()}\n{record.answer()}" for record in sample]
    return {"tokens": tokens, "languages": languages.survey(texts)}


def _found(staged: "Staged", kept: "Array") -> dict[str, Counter[str]]:
    """How many of the kept rows hold what was found: by group (the first word of what was found), then by kind."""
    import numpy as np

    found: dict[str, Counter[str]] = {
        group: Counter() for group in (*GROUPS, "placeholder", "control_token", "reasoning")
    }
    for place, count in zip(*np.unique(staged.found[kept], return_counts=True), strict=True):
        for entry in staged.findings[place]:
            group, _, kind = entry.partition(" ")
            found[group][kind] += int(count)
    return found


def _warnings(found: dict[str, Counter[str]], notes: Iterable[str]) -> list[str]:
    texts = list(dict.fromkeys(notes))
    if found["placeholder"]:
        names = Counter({f"{{{{{name}}}}}": count for name, count in found["placeholder"].items()})
        fill = ", ".join(f'"{name}": "…"' for name, _ in found["placeholder"].most_common(3))
        texts.append(
            f"Placeholders will be learnt as they stand: {listed(names)}. Fill them: substitutions={{{fill}}}."
        )
    if found["control_token"]:
        texts.append(
            f"Control tokens of chat templates stand in the data: {listed(found['control_token'])}. "
            "A model trained on them prints them; leave control_tokens out of cleaning and they are removed."
        )
    return texts


def _shares(staged: "Staged", rows: "Array", sources: list[Source]) -> list[Row]:
    import numpy as np

    origin_of_file = np.array([file["source"] for file in staged.files], np.int64)
    counts = np.bincount(origin_of_file[staged.file_of[rows]], minlength=len(sources))
    return [
        {"source": source.given, "rows": int(count), "share": round(int(count) / len(rows), 4)}
        for source, count in zip(sources, counts, strict=True)
    ]


def _leakage(staged: "Staged", chosen: Chosen, arguments: DatasetArguments) -> Row:
    """Eval rows whose question is also trained on, and those that nearly repeat a training row (None: not looked)."""
    import numpy as np

    asked = np.isin(staged.prompts[chosen.held_out], staged.prompts[chosen.train])
    if not arguments.dedupe or (arguments.cleaning or {}).get("near_duplicate") == "ignore":
        return {"exact": int(asked.sum()), "near": None}
    pairs = np.flatnonzero(chosen.near_of >= 0)
    firsts = chosen.near_of[pairs]
    leaked = {int(row) for row in pairs[chosen.held_out[pairs] & chosen.train[firsts]]}
    leaked |= {int(row) for row in firsts[chosen.held_out[firsts] & chosen.train[pairs]]}
    return {"exact": int(asked.sum()), "near": len(leaked)}


def write(folder: Path, name: str, dataset_id: str, described: Row, made: Row, **manifest: Any) -> Row:
    """Writes manifest.json, report.json and report.html beside the splits; returns the document of the store's row.

    `sha256` is the hash of the two Parquet files' hashes (hex, train before eval): it names the dataset's content.
    """
    written: dict[str, dict[str, Any]] = {}
    for file in (split_file(folder, TRAIN), split_file(folder, EVAL)):
        with file.open("rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        written[file.name] = {"sha256": digest, "size_bytes": file.stat().st_size}
    sha256 = hashlib.sha256("".join(entry["sha256"] for entry in written.values()).encode("ascii")).hexdigest()
    files.write_json(folder / "manifest.json", described | manifest | {"written": written, "sha256": sha256})
    files.write_json(folder / "report.json", made)
    files.write_text(folder / "report.html", report_page.render(name, dataset_id, described | made))
    return described | made | {"sha256": sha256}
