"""Near duplicates are found, different rows are not, and the file of signatures gives what memory gives."""

import random
from pathlib import Path

import numpy as np
import pytest

from tunewright.pipeline.data import near
from tunewright.pipeline.data.rows import Record

WORDS = [
    f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe", "ra", "si", "to") for b in ("ban", "der", "fil", "gor", "hus")
]


def row(question: str, answer: str) -> Record:
    return Record("sft", [{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def text(generator: random.Random, words: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(words))


def jaccard(first: Record, second: Record) -> float:
    a, b = set(near.shingles(first)), set(near.shingles(second))
    return len(a & b) / len(a | b)


def written(folder: Path, rows: list[Record]) -> Path:
    file = folder / "signatures.bin"
    near.signatures(rows).tofile(file)
    return file


def test_signatures_estimate_the_jaccard_similarity() -> None:
    generator = random.Random(1)
    base = text(generator, 200).split()
    for changed in (0, 5, 20, 60, 200):
        other = [generator.choice(WORDS) if i < changed else word for i, word in enumerate(base)]
        a, b = row("Q", " ".join(base)), row("Q", " ".join(other))
        estimated = (near.signatures([a]) == near.signatures([b])).mean()
        assert estimated == pytest.approx(jaccard(a, b), abs=0.12)


def test_near_copies_are_found_with_the_first_of_them_and_others_are_not(tmp_path: Path) -> None:
    generator = random.Random(2)
    texts = [text(generator, 100) for _ in range(300)]
    rows = [row("Tell me.", said) for said in texts]
    copies = [row("Tell me.", f"{texts[i]} indeed") for i in range(0, 300, 10)]
    earlier = near.find(written(tmp_path, [*rows, *copies]), np.ones(330, bool))
    assert (earlier[:300] == -1).all()
    assert earlier[300:].tolist() == list(range(0, 300, 10))


def test_rows_that_are_out_are_not_compared(tmp_path: Path) -> None:
    same = [row("Q", "the same words in the same order again and again")] * 3
    among = np.array([False, True, True])
    assert near.find(written(tmp_path, same), among).tolist() == [-1, -1, 1]


def test_no_rows_have_no_near_copies(tmp_path: Path) -> None:
    assert near.find(written(tmp_path, []), np.ones(0, bool)).tolist() == []


def test_chinese_is_compared_by_its_characters() -> None:
    first = row("介绍一下北京", "北京是中华人民共和国的首都，也是全国的政治、文化中心和国际交往中心，历史悠久。")
    second = row("介绍一下北京", "北京是中华人民共和国的首都，也是全国的政治、文化中心和国际交往中心，历史悠久！！")
    third = row("介绍一下上海", "上海位于长江入海口，是中国最大的城市之一，经济、金融与航运都很发达。")
    index = near.Index()
    index.add(first)
    assert index.find(second) == 0
    assert index.find(third) is None


def test_a_system_message_does_not_make_rows_alike() -> None:
    system = {"role": "system", "content": "You are a very helpful assistant who answers at length. " * 10}
    index = near.Index()
    index.add(Record("sft", [system, *row("What is rain?", "Water that falls from clouds.").messages]))
    assert (
        index.find(Record("sft", [system, *row("Who wrote Hamlet?", "Shakespeare did, about 1600.").messages])) is None
    )


def test_the_index_grows_and_names_the_most_similar_row() -> None:
    generator = random.Random(3)
    texts = [text(generator, 60) for _ in range(600)]
    index = near.Index()
    assert index.find(row("Q", texts[0])) is None
    for said in texts:
        index.add(row("Q", said))
    assert [index.find(row("Q", f"{texts[i]} also")) for i in (0, 300, 599)] == [0, 300, 599]


def test_short_rows_are_alike_only_when_they_say_the_same() -> None:
    index = near.Index()
    index.add(row("Hi", "Hello"))
    assert index.find(row("Hi", "Hello!")) == 0
    assert index.find(row("Hi", "Goodbye")) is None
    assert index.find(row("Why", "Hello")) is None


INSTRUCTION = " ".join(f"rule{i}" for i in range(150))
PASSAGE = " ".join(f"fact{i}" for i in range(150))
LONG = " ".join(f"word{i}" for i in range(60))

PAIRS: dict[str, tuple[Record, Record, bool]] = {
    "a word more at the end of a long answer": (row("Explain.", LONG), row("Explain.", f"{LONG} indeed"), True),
    "another spelling of the question, the same long answer": (
        row(f"{PASSAGE} Please explain it.", LONG), row(f"{PASSAGE} Please explain this.", LONG), True,
    ),
    "one instruction, another text, the same label": (
        row(f"{INSTRUCTION} Text: a lovely film, well made", "positive"),
        row(f"{INSTRUCTION} Text: great songs and good food", "positive"), False,
    ),
    "one instruction, one word other, another label": (
        row(f"{INSTRUCTION} Text: I love it", "positive"), row(f"{INSTRUCTION} Text: I hate it", "negative"), False,
    ),
    "one instruction, other numbers, the same result": (
        row(f"{INSTRUCTION} 17 mod 5", "2"), row(f"{INSTRUCTION} 22 mod 5", "2"), False,
    ),
    "one passage, another question": (
        row(f"{PASSAGE} Who built it?", "The king."), row(f"{PASSAGE} When was it built?", "In 1203."), False,
    ),
    "one passage, another question, one long stock answer": (
        row(f"{PASSAGE} Who was it that built the tower?", LONG),
        row(f"{PASSAGE} When did they open a school nearby?", LONG), False,
    ),
    "who are you in other words, the same long answer": (
        row("Who are you?", LONG), row("What is your name?", LONG), False,
    ),
    "another answer to the same long prompt": (
        row(INSTRUCTION, "Yes, they do."), row(INSTRUCTION, "No, never."), False,
    ),
    "another symbol, a short answer": (row("key +", "Zoom."), row("key -", "Zoom."), False),
    "emoji alone": (row("🙂", "🌞"), row("🙃", "🌚"), False),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_only_rows_that_ask_and_answer_alike_are_copies(case: str) -> None:
    first, second, expected = PAIRS[case]
    assert near.is_copy(first, second) is expected is near.is_copy(second, first)


def test_answers_that_are_judged_otherwise_are_no_copies() -> None:
    def judged(label: bool) -> Record:
        return Record("kto", row("Explain.", LONG).messages, label=label)

    assert near.is_copy(judged(True), judged(True))
    assert not near.is_copy(judged(True), judged(False))


def test_a_pair_is_a_copy_only_when_both_its_answers_are() -> None:
    def pair(chosen: str, rejected: str) -> Record:
        answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
        return Record("preference", row("Explain.", "").messages[:1], *answers)

    assert near.is_copy(pair(LONG, "No."), pair(f"{LONG} so", "No."))
    assert not near.is_copy(pair(LONG, "No."), pair(LONG, "Never ever."))
