"""What becomes of answers: accepted, waiting, or rejected and counted; the same again from the same journal."""

import json

import pytest

from tunewright.pipeline.documents.reading import Chunk
from tunewright.pipeline.generation.collection import DRY_AFTER, Collection
from tunewright.pipeline.generation.journal import Entry

TEXT = (
    "Assam grows in the valley of the Brahmaputra below 100 metres. Withering removes half of the water. Rolled leaves "
    "oxidise until their colour resembles copper."
)
LONG = " ".join(f"word{i}" for i in range(60))
CHUNK = Chunk(id="ch-1", document="tea.md", headings=["Black tea", "Kinds"], text=TEXT, tokens=40)


@pytest.fixture
def collection() -> Collection:
    return Collection({CHUNK.id: CHUNK}, "qa")


def wrote(number: int, question: str, answer: str, chunk: str = "ch-1") -> Entry:
    return Entry("write", chunk, number, json.dumps({"question": question, "answer": answer}), 2, 100, 20)


def judged(number: int, verdict: str) -> Entry:
    return Entry("judge", "ch-1", number, verdict, 1, 90, 1)


def test_an_example_is_accepted_once_it_is_judged(collection: Collection) -> None:
    collection.take(wrote(0, "Where does Assam grow?", "In the valley of the Brahmaputra, below 100 metres."))
    assert list(collection.waiting) == [("ch-1", 0)] and not collection.accepted
    collection.take(judged(0, "yes"))
    assert not collection.waiting
    assert [record.prompt() for record in collection.accepted] == ["Where does Assam grow?"]
    assert collection.asked == {"ch-1": ["Where does Assam grow?"]}
    assert (collection.counts.requests, collection.counts.prompt_tokens, collection.counts.completion_tokens) == (
        3, 190, 21,
    )  # fmt: skip


def test_headings_and_the_documents_name_support_an_answer(collection: Collection) -> None:
    collection.take(wrote(0, "What is it?", "Assam is one of the kinds of black tea."))
    assert collection.waiting


@pytest.mark.parametrize(
    ("entries", "reason", "why"),
    [
        ([Entry("write", "ch-1", 0, "Sorry.", 1, 1, 1)], "not_json", "no JSON object: 'Sorry.'"),
        ([wrote(0, "How high?", "Below 900 metres.")], "unsupported", "the number 900 does not stand in the text"),
        (
            [wrote(0, "How much?", "Half of the water."), wrote(1, " How  much?", "Withering removes half of it.")],
            "duplicate",
            "the same was asked before",
        ),
        (
            [wrote(i, f"{LONG} {word} colour?", TEXT) for i, word in enumerate(("Which", "What"))],
            "near_duplicate",
            "nearly the same was written before",
        ),
        (
            [wrote(0, "How much?", "Rolled leaves lose half of the water."), judged(0, "No.")],
            "judged_unsupported",
            "the judge found a statement that the text does not support",
        ),
        (
            [wrote(0, "How much?", "Half."), judged(0, "Perhaps")],
            "unclear_verdict",
            "the judge said neither yes nor no",
        ),
    ],
)
def test_a_rejected_example_is_counted_with_an_example(
    collection: Collection, entries: list[Entry], reason: str, why: str
) -> None:
    for entry in entries:
        collection.take(entry)
    (rejection,) = collection.rejections().items()
    assert rejection[0] == reason and rejection[1]["count"] == 1
    assert rejection[1]["example"]["chunk"] == "ch-1" and rejection[1]["example"]["why"] == why
    assert not collection.accepted


def test_what_the_judge_refused_is_shown_and_not_written_again(collection: Collection) -> None:
    collection.take(wrote(0, "How much?", "Rolled leaves lose half of the water."))
    collection.take(judged(0, "no"))
    example = collection.rejections()["judged_unsupported"]["example"]
    assert example["text"] == "Rolled leaves lose half of the water."
    collection.take(wrote(1, "How much?", "Half of the water."))
    assert collection.rejected.counts["duplicate"] == 1


def test_a_chunk_is_dry_after_some_rejections_in_a_row(collection: Collection) -> None:
    bad = [wrote(number, f"How high, {number}?", "Below 900 metres.") for number in range(2 * DRY_AFTER)]
    for entry in bad[: DRY_AFTER - 1]:
        collection.take(entry)
    collection.take(wrote(50, "Which colour?", "That of copper."))
    collection.take(judged(50, "yes"))
    for entry in bad[DRY_AFTER - 1 : -2]:
        collection.take(entry)
    assert not collection.is_dry("ch-1"), "one was accepted in between"
    collection.take(bad[-2])
    assert collection.is_dry("ch-1")


def test_answers_about_a_chunk_that_is_gone_only_count(collection: Collection) -> None:
    collection.take(wrote(0, "How much?", "Half.", chunk="ch-old"))
    collection.take(Entry("judge", "ch-old", 0, "yes", 1, 10, 1))
    assert collection.counts.requests == 3
    assert not (collection.accepted or collection.waiting or collection.written or collection.rejected.counts)


def test_the_same_journal_gives_the_same_examples(collection: Collection) -> None:
    entries = [
        wrote(0, "Where?", "In the valley of the Brahmaputra."),
        wrote(1, "How much?", "Half of the water."),
        judged(1, "yes"),
        wrote(2, "How much?", "Half."),
        judged(0, "yes"),
        wrote(3, "Which colour?", "Copper."),
    ]
    again = Collection({CHUNK.id: CHUNK}, "qa")
    for entry in entries:
        collection.take(entry)
    for entry in entries:
        again.take(entry)
    assert [record.prompt() for record in again.accepted] == ["How much?", "Where?"]
    assert again.accepted == collection.accepted and again.waiting == collection.waiting
    assert again.rejections() == collection.rejections() and again.counts == collection.counts
