"""Which rows repeat the questions of a benchmark, so that its score would say nothing.

A question counts as repeated when 70 % of it stand in a text, letters and digits compared alone: PaLM's rule (Chowdhery
and others, 2022, section 8: 70 % of a question's 8-grams), measured in runs of characters instead of words so that it
holds for scripts without spaces. Guarantees that a verbatim question is found, unless a dozen others of the benchmark
share its wording; one that is reworded or translated is not, nor is a very short one inside a sentence (it must be a
line of its own).
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tunewright.pipeline.errors import InvalidInput, NotFound, call

MAX_FILE_BYTES = 200_000_000
SUFFIXES = (".csv", ".json", ".jsonl")
QUESTION_COLUMNS = ("question", "prompt", "problem", "input", "query")
MIN_COVERED = 0.7
# A question stands under at most so many others' runs of characters: "which of the following is" says nothing.
MAX_SHARING = 4
MIN_CHARACTERS = 4

ASIAN = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
MARKS = re.compile(r"[^\w\n]+")
ASCII_MARKS = {code: None for code in range(128) if not (chr(code).isalnum() or chr(code) == "\n")}


@dataclass(frozen=True)
class _Grain:
    """Runs of `size` characters; a text is looked at in steps of `step`, so that any run of size + step - 1 is met."""

    size: int
    step: int

    @property
    def window(self) -> int:
        return self.size + self.step - 1


# 37 letters are eight English words, 13 Chinese characters as many as are usually compared.
WORDS, CHARACTERS = _Grain(30, 8), _Grain(7, 7)


def _squeezed(text: str) -> str:
    """Letters and digits alone, in small letters, and line breaks."""
    if text.isascii():
        return text.lower().translate(ASCII_MARKS)
    return MARKS.sub("", text.lower().replace("_", ""))


def _grain(squeezed: str) -> _Grain:
    return CHARACTERS if len(ASIAN.findall(squeezed)) * 3 > len(squeezed) else WORDS


@dataclass
class Benchmark:
    """A benchmark's questions, ready to be looked for. Picklable."""

    names: list[str] = field(default_factory=list[str])
    _questions: list[str] = field(default_factory=list[str])
    _short: dict[str, int] = field(default_factory=dict[str, int])
    _runs: dict[_Grain, dict[str, list[int]]] = field(
        default_factory=lambda: {WORDS: defaultdict(list), CHARACTERS: defaultdict(list)}
    )

    def add(self, name: str, question: str) -> None:
        """Questions that say the same are held once, by the first name."""
        squeezed = _squeezed(question).replace("\n", "")
        if len(squeezed) < MIN_CHARACTERS or squeezed in self._short:
            return
        number = len(self.names)
        self.names.append(name)
        self._questions.append(squeezed)
        self._short[squeezed] = number
        grain = _grain(squeezed)
        last = len(squeezed) - grain.window
        if last >= 0:
            for begin in sorted({0, last // 2, last}):
                for at in range(begin, begin + grain.step):
                    known = self._runs[grain][squeezed[at : at + grain.size]]
                    if len(known) <= MAX_SHARING and number not in known:
                        known.append(number)

    def overlaps(self, text: str) -> list[str]:
        """Names of the questions that stand (nearly) in the text."""
        squeezed = _squeezed(text)
        found = {self._short[line] for line in squeezed.split("\n") if line in self._short}
        whole = squeezed.replace("\n", "")
        # An Asian character is three bytes of UTF-8, a letter one or two: the cheapest way to tell what a text holds.
        size = len(whole.encode("utf-8", "surrogatepass"))
        if self._runs[WORDS] and 3 * len(whole) - size >= WORDS.window:
            found |= self._met(whole, WORDS, found)
        if self._runs[CHARACTERS] and size - len(whole) >= 2 * CHARACTERS.window:
            found |= self._met(whole, CHARACTERS, found)
        return [self.names[number] for number in sorted(found)]

    def _met(self, text: str, grain: _Grain, known: set[int]) -> set[int]:
        size, runs = grain.size, self._runs[grain]
        pieces = [text[at : at + size] for at in range(0, len(text) - size + 1, grain.step)]
        if runs.keys().isdisjoint(pieces):
            return set()
        numbers = {n for piece in pieces if len(sharing := runs.get(piece, ())) <= MAX_SHARING for n in sharing}
        return {number for number in numbers - known if self._is_covered(self._questions[number], text, size)}

    def _is_covered(self, question: str, text: str, size: int) -> bool:
        covered = end = 0
        for at in range(len(question) - size + 1):
            if question[at : at + size] in text:
                covered += at + size - max(at, end)
                end = at + size
        return covered >= MIN_COVERED * len(question)


def load(folder: Path) -> Benchmark:
    """The questions under `folder`: C-Eval's `dev`, `val`, `test`, or any CSV, JSON or JSONL with a question column.

    Raises NotFound where there is no such folder or no such file in it, InvalidInput where one cannot be read or none
    has a question.
    """
    next_call = call("prepare_dataset", source="…", benchmark_dir="path/to/ceval-exam")
    if not folder.is_dir():
        raise NotFound("benchmark_not_found", f"There is no folder {folder}.", next=next_call)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    benchmark = Benchmark()
    for path in files:
        for number, row in enumerate(_rows(path), 1):
            question = _question(row)
            if question:
                benchmark.add(f"{path.relative_to(folder)} {number}", question)
    if not benchmark.names:
        raise InvalidInput(
            "no_benchmark_questions",
            f"{folder} holds no question; files read: {len(files)}.",
            allowed=f"Files {', '.join(SUFFIXES)} with a column {', '.join(QUESTION_COLUMNS)}; C-Eval's folders do.",
            next=next_call,
        )
    return benchmark


def _question(row: object) -> str:
    if not isinstance(row, dict):
        return ""
    columns = {str(name).strip().lower(): value for name, value in cast("dict[Any, Any]", row).items()}
    return next((columns[name] for name in QUESTION_COLUMNS if isinstance(columns.get(name), str)), "")


def _rows(path: Path) -> Iterator[object]:
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"not a file of at most {MAX_FILE_BYTES // 1_000_000} MB")
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                yield from csv.DictReader(file)
            elif path.suffix.lower() == ".jsonl":
                yield from (json.loads(line) for line in file if line.strip())
            else:
                yield from _lists(json.load(file))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InvalidInput(
            "broken_benchmark",
            f"{path} cannot be read: {error}.",
            allowed="UTF-8 files of CSV, JSON or JSON Lines.",
            next=call("prepare_dataset", source="…", benchmark_dir="a folder without that file"),
        ) from error


def _lists(value: object) -> Iterator[object]:
    """The rows of a JSON file: a list, or the lists that an object holds."""
    if isinstance(value, list):
        yield from cast("list[object]", value)
    elif isinstance(value, dict):
        held = cast("dict[str, object]", value)
        if _question(held):
            yield held
        for inner in held.values():
            if isinstance(inner, list):
                yield from cast("list[object]", inner)
