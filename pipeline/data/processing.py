"""One block of a source, from its bytes to clean rows: what every worker process does, alone and in any order.

Guarantees that what comes out depends on the block and the recipe alone, so that one process or eight give the same
dataset. Holds no more than one block.
"""

import struct
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.pipeline.data import cleaning, layouts, mending, near, placeholders, privacy, splits
from tunewright.pipeline.data.cleaning import Action, Finding, Tally
from tunewright.pipeline.data.conversation import put_in_order
from tunewright.pipeline.data.layouts import Layout
from tunewright.pipeline.data.lengths import Fitter
from tunewright.pipeline.data.overlap import Benchmark
from tunewright.pipeline.data.reading import Block, Broken
from tunewright.pipeline.data.rows import Record, Unusable
from tunewright.pipeline.data.terms import Terms

if TYPE_CHECKING:
    import pyarrow as pa

THINKING = "<think>"
# Books are shorter. A row of 200 million characters kept a processor busy for minutes, deaf to a cancel.
MAX_ROW_CHARACTERS = 20_000_000


@dataclass(frozen=True)
class Recipe:
    """What is done to every row. Picklable: it is sent to each worker process once.

    `model_folder` holds the tokenizer that measures rows against `max_seq_length`, where one was given.
    """

    actions: dict[Finding, Action]
    system_prompt: str | None = None
    substitutions: dict[str, str] = field(default_factory=dict[str, str])
    terms: Terms | None = None
    benchmark: Benchmark | None = None
    signatures: bool = True
    model_folder: Path | None = None
    max_seq_length: int | None = None


@dataclass
class Processed:
    """The rows of one block, and what happened to them; all lists have one entry a row.

    `found` names what is noteworthy about a row ("email", "placeholder {{name}}", …) by its number in the block.
    """

    rows_read: int = 0
    batch: "pa.RecordBatch | None" = None
    numbers: "array[int]" = field(default_factory=lambda: array("Q"))  # of the rows in their file
    fingerprints: "array[int]" = field(default_factory=lambda: array("Q"))
    prompts: "array[int]" = field(default_factory=lambda: array("Q"))
    characters: "array[int]" = field(default_factory=lambda: array("Q"))
    signatures: bytes = b""
    found: dict[int, tuple[str, ...]] = field(default_factory=dict[int, tuple[str, ...]])
    drops: Tally = field(default_factory=Tally)
    mended: Tally = field(default_factory=Tally)
    replaced: Counter[str] = field(default_factory=Counter[str])


def _check_size(record: Record) -> None:
    """Raises Unusable for a row so large that looking at it alone would take minutes."""
    characters = sum(map(len, cleaning.texts_of(record)))
    if characters > MAX_ROW_CHARACTERS:
        raise Unusable("malformed", f"the row has {characters:,} characters, more than {MAX_ROW_CHARACTERS:,}")


class Processor:
    """Turns blocks into rows by one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._fitter: Fitter | None = None
        if recipe.model_folder and recipe.max_seq_length:
            self._fitter = Fitter(recipe.model_folder, recipe.max_seq_length, recipe.actions["too_long"])

    def process(self, layout: Layout, file: str, block: Block) -> Processed:
        """`file` is the name that examples of dropped rows give."""
        done = Processed()
        kept: list[Record] = []
        for number, value in block.parsed():
            done.rows_read += 1
            for record, found in self._usable(layout, file, number, value, done):
                if found:
                    done.found[len(kept)] = found
                kept.append(record)
                done.numbers.append(number)
                done.fingerprints.append(_as_integer(cleaning.fingerprint(record)))
                done.characters.append(sum(map(len, cleaning.texts_of(record))))
                done.prompts.append(_as_integer(cleaning.prompt_fingerprint(record)))
        if kept:
            done.batch = splits.batch(layout.kind, kept)
            if self._recipe.signatures:
                done.signatures = near.signatures(kept).tobytes()
        return done

    def _usable(
        self, layout: Layout, file: str, number: int, value: object, done: Processed
    ) -> Iterator[tuple[Record, tuple[str, ...]]]:
        """The rows that one row of the source becomes (with `split` it may be several), each with what was found."""
        try:
            if isinstance(value, Broken):
                raise Unusable("broken", value.why)
            record = layouts.to_record(layout, value)
            _check_size(record)
            notes = self._mend(record, done)
            pieces = self._fitter.fit(record) if self._fitter else None
            found = self._found(record)
        except Unusable as error:
            done.drops.add(error.reason, file, number, str(error), None if isinstance(value, Broken) else value)
            return
        for what, why in notes:
            done.mended.add(what, file, number, why, value)
        if pieces and pieces.done:
            done.mended.add(pieces.done, file, number, pieces.why, value)
        yield from ((piece, found) for piece in (pieces.records if pieces else [record]))

    def _mend(self, record: Record, done: Processed) -> list[tuple[str, str]]:
        """Sets right what can be, in place; returns what was done. Raises Unusable."""
        recipe, notes = self._recipe, list[tuple[str, str]]()
        texts = list(cleaning.texts_of(record))
        mends = {
            "mojibake": self._mend_mojibake, "html": self._mend_html, "control_tokens": self._mend_control_tokens,
        }  # fmt: skip
        for what, mend in mends.items():
            mended = mend(record, texts)
            if mended != texts:
                before, after = next(pair for pair in zip(texts, mended, strict=True) if pair[0] != pair[1])
                notes.append((what, _difference(before, after)))
                texts = mended
        if recipe.substitutions:
            texts = _replaced("substitutions", self._substitute, texts, notes, done)
        if recipe.terms:
            texts = _replaced("terms", recipe.terms.apply, texts, notes, done)
        cleaning.with_texts(record, texts)
        order = put_in_order(record, mend=recipe.actions["role_order"] == "mend")
        notes += [("role_order", what) for what in order[:1]]
        notes += self._mask(record)
        if recipe.system_prompt and record.kind != "text" and record.messages[0]["role"] != "system":
            record.messages.insert(0, {"role": "system", "content": recipe.system_prompt})
        return notes

    def _mend_mojibake(self, record: Record, texts: list[str]) -> list[str]:
        if self._recipe.actions["mojibake"] == "keep":
            return texts
        mended = [mending.mend_mojibake(text) for text in texts]
        if self._recipe.actions["mojibake"] == "drop" and mended != texts:
            raise Unusable("mojibake", "letters were decoded by the wrong encoding")
        return mended

    def _mend_html(self, record: Record, texts: list[str]) -> list[str]:
        action = self._recipe.actions["html"]
        if action == "keep" or not any(map(mending.has_html, texts)) or mending.is_about_markup(record):
            return texts
        if action == "drop":
            raise Unusable("html", "tags or entities of HTML stand in the text")
        return [mending.mend_html(text) for text in texts]

    def _mend_control_tokens(self, record: Record, texts: list[str]) -> list[str]:
        action = self._recipe.actions["control_tokens"]
        if action == "keep":
            return texts
        mended = [mending.mend_control_tokens(text) for text in texts]
        if action == "drop" and mended != texts:
            raise Unusable("control_tokens", "a text begins or ends with a chat template's control token")
        return mended

    def _substitute(self, text: str) -> tuple[str, Counter[str]]:
        return placeholders.fill(text, self._recipe.substitutions)

    def _mask(self, record: Record) -> list[tuple[str, str]]:
        masks = {name for name in ("personal_data", "secrets") if self._recipe.actions[name] == "mask"}
        if not masks:
            return []
        masked: set[str] = set()

        def mask(text: str) -> str:
            found = [entry for entry in privacy.find(text) if _group(entry.kind) in masks]
            masked.update(entry.kind for entry in found)
            return privacy.masked(text, found) if found else text

        cleaning.with_texts(record, [mask(text) for text in cleaning.texts_of(record)])
        if _has_tools(record):
            cleaning.map_hidden_texts(record, mask)
        return [(f"masked_{_group(kind)}", f"{kind} masked") for kind in sorted(masked)[:1]]

    def _found(self, record: Record) -> tuple[str, ...]:
        """What is noteworthy in a row. Raises Unusable where it is to be dropped for that."""
        found: set[str] = set()
        hidden = cleaning.hidden_texts(record) if _has_tools(record) else []
        for text in (*cleaning.texts_of(record), *hidden):
            for entry in privacy.find(text):
                group = _group(entry.kind)
                if self._recipe.actions[group] == "drop":
                    raise Unusable(group, f"{entry.kind} found (not shown)")
                found.add(f"{group} {entry.kind}")
            if "{{" in text:
                found |= {f"placeholder {name}" for name in placeholders.find(text)}
            if self._recipe.actions["control_tokens"] == "keep":
                found |= {f"control_token {token}" for token in mending.control_tokens(text)}
            if self._recipe.benchmark:
                found |= {f"benchmark {question}" for question in self._recipe.benchmark.overlaps(text)}
        if THINKING in record.answer():
            found.add("reasoning")
        return tuple(sorted(found))


def _replaced(
    what: str,
    replace: Callable[[str], tuple[str, Counter[str]]],
    texts: list[str],
    notes: list[tuple[str, str]],
    done: Processed,
) -> list[str]:
    """The texts after `replace`; one note for the row, and every replacement counted."""
    replaced = [replace(text) for text in texts]
    changed = [(before, after) for before, (after, counts) in zip(texts, replaced, strict=True) if counts]
    if changed:
        notes.append((what, _difference(*changed[0])))
        for _, counts in replaced:
            done.replaced.update({f"{what}: {name}": count for name, count in counts.items()})
    return [after for after, _ in replaced]


def _has_tools(record: Record) -> bool:
    return bool(record.tools) or any("tool_calls" in message for message in record.all_messages())


def _group(kind: str) -> Finding:
    return "secrets" if kind in privacy.SECRET_KINDS else "personal_data"


def _as_integer(fingerprint: bytes) -> int:
    return struct.unpack("<Q", fingerprint)[0]


def _difference(before: str, after: str) -> str:
    """Where two texts part, in a few characters of each, without personal data and secrets."""
    before, after = (privacy.masked(text, privacy.find(text)) for text in (before, after))
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    begin = max(0, at - 10)
    return f"{before[begin : at + 30]!r} became {after[begin : at + 30]!r}"
