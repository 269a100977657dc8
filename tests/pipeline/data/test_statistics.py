"""Token statistics: counted by the toy's own tokenizer, or estimated from the letters."""

from itertools import pairwise
from pathlib import Path

import pytest

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.data.statistics import count, estimate, sample


def chat(question: str, answer: str, **more: object) -> Record:
    return Record("sft", [{"role": "user", "content": question}, {"role": "assistant", "content": answer} | more])


def pair(question: str, chosen: str, rejected: str) -> Record:
    turns = [[{"role": "assistant", "content": answer}] for answer in (chosen, rejected)]
    return Record("preference", [{"role": "user", "content": question}], chosen=turns[0], rejected=turns[1])


@pytest.fixture(scope="module")
def template(toy_folder: Path) -> ChatTemplate:
    return ChatTemplate(toy_folder)


def test_a_sample_is_spread_evenly_over_all_rows() -> None:
    assert sample(3) == [0, 1, 2]
    assert sample(10, 4) == [0, 2, 5, 7]
    assert len(sample(1_000_000)) == 5000


def test_a_counted_row_is_as_long_as_the_trainer_makes_it(template: ChatTemplate) -> None:
    rows = [chat("What is the capital of France?", "Paris."), chat("Why?", "Because it is. " * 20)]
    encoded = [template.encode(row.messages) for row in rows]
    found = count(template, "toy", rows, 2)
    assert (found["p50"], found["max"]) == tuple(sorted(len(ids) for ids, _ in encoded))
    assert found["total"] == sum(len(ids) for ids, _ in encoded)
    assert found["loss_share"] == round(sum(sum(mask) for _, mask in encoded) / found["total"], 4)
    assert (found["estimated"], found["counted_by"], found["sampled"], found["counted_rows"]) == (
        False,
        "toy",
        False,
        2,
    )


def test_a_pair_counts_as_its_longer_conversation_and_only_the_judged_answer_carries_loss(
    template: ChatTemplate,
) -> None:
    row = pair("Why?", "Because.", "Because of all that came before it, and of what came before that.")
    row.messages = [*chat("Who are you?", "A small model, trained on a few lines.").messages, *row.messages]
    found = count(template, "toy", [row], 1)
    ids, mask = template.encode([*row.messages, *row.rejected])
    _, before = template.encode(row.messages)
    assert found["max"] == len(ids)
    assert found["loss_share"] == round((sum(mask) - sum(before)) / len(ids), 4)


def test_all_of_a_text_carries_loss(template: ChatTemplate) -> None:
    found = count(template, "toy", [Record("text", text="Once upon a time there was a fox.")], 1)
    assert found["loss_share"] == 1.0
    assert found["max"] == len(template.ids("Once upon a time there was a fox."))


def test_tools_are_counted_with_the_conversation(template: ChatTemplate) -> None:
    row = chat("What time is it?", "Noon.")
    without = count(template, "toy", [row], 1)["max"]
    row.tools = [
        {"type": "function", "function": {"name": "clock", "description": "Tells the time.", "parameters": {}}}
    ]
    assert count(template, "toy", [row], 1)["max"] == len(template.encode(row.messages, row.tools)[0])
    assert count(template, "toy", [row], 1)["max"] >= without


def test_a_sample_is_scaled_up_to_the_dataset(template: ChatTemplate) -> None:
    rows = [chat("Say it.", "It.")] * 10
    found, whole = count(template, "toy", rows, 500), count(template, "toy", rows, 10)
    assert found["sampled"] and not whole["sampled"]
    assert found["total"] == 50 * whole["total"]


def test_the_histogram_holds_every_row_once_in_ranges_without_gaps(template: ChatTemplate) -> None:
    rows = [chat("Go on.", "word " * length) for length in (1, 5, 20, 20, 80, 300, 301)]
    found = count(template, "toy", rows, 7)
    bins = found["histogram"]
    assert sum(entry["rows"] for entry in bins) == 7
    assert all(a["to"] == b["from"] for a, b in pairwise(bins))
    assert bins[0]["rows"] and bins[-1]["from"] <= found["max"] < bins[-1]["to"]
    lengths = [len(template.encode(row.messages)[0]) for row in rows]
    assert all(entry["rows"] == sum(entry["from"] <= n < entry["to"] for n in lengths) for entry in bins)


def test_what_fits_is_shared_out_by_rows_and_by_tokens() -> None:
    rows = [Record("text", text="a" * 1000)] * 3 + [Record("text", text="1" * 1536)]
    found = estimate(rows, 4)
    assert found["max"] == 1536
    assert found["fits"]["512"] == {"rows": 0.75, "tokens": round(1 - 1024 / found["total"], 4)}
    assert found["fits"]["2048"] == {"rows": 1.0, "tokens": 1.0}
    assert list(found["fits"]) == ["512", "1024", "2048", "4096", "8192", "16384", "32768"]


# Counted with Qwen's tokenizer (151,646 tokens), not at hand in the tests.
QWEN = {
    "English": ("The kidneys filter the blood and keep the balance of water and salts in the body, day and night.", 20),
    "Chinese": ("急性肾损伤是指肾功能在数小时至数天内迅速下降的临床综合征，常见原因包括肾前性、肾性和肾后性三类。", 34),
    "German": ("Die Nieren filtern das Blut und halten den Wasser- und Salzhaushalt des Körpers im Gleichgewicht.", 29),
    "code": ("for row in rows:\n    if row.kind == 'text':\n        total += len(row.text) / 4\n", 24),
    "numbers": ("2024-11-21 12:36:16", 19),
}


@pytest.mark.parametrize(("text", "tokens"), QWEN.values(), ids=QWEN)
def test_an_estimate_is_near_what_a_real_tokenizer_counts(text: str, tokens: int) -> None:
    found = estimate([Record("text", text=text * 10)], 1)
    assert found["estimated"]
    assert found["max"] == pytest.approx(10 * tokens, rel=0.2)


def test_an_estimated_conversation_is_longer_than_its_texts_and_a_pair_as_long_as_its_longer_answer() -> None:
    text = "The kidneys filter the blood."
    assert estimate([chat(text, text)], 1)["max"] > 2 * estimate([Record("text", text=text)], 1)["max"]
    assert estimate([pair(text, "No.", text)], 1)["max"] == estimate([chat(text, text)], 1)["max"]
    call = [{"type": "function", "function": {"name": "clock", "arguments": {"zone": "Europe/Berlin"}}}]
    assert estimate([chat(text, "", tool_calls=call)], 1)["max"] > estimate([chat(text, "")], 1)["max"]
