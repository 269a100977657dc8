"""Which samples a dataset of each kind gives, and that they are spread, fitting and the same every time."""

from pathlib import Path

import pytest

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Kind, Message, Record
from tunewright.pipeline.errors import InvalidInput
from tunewright.pipeline.validation import samples
from tunewright.pipeline.validation.samples import Room, Sample

ROOM = Room(2048, 64)


@pytest.fixture
def template(toy_folder: Path) -> ChatTemplate:
    return ChatTemplate(toy_folder)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def asked(number: int, answer: str = "Yes.") -> Record:
    return Record("sft", [user(f"Is {number} a number?"), assistant(answer)])


def draw(
    tmp_path: Path, template: ChatTemplate, rows: list[Record], count: int = 50, room: Room = ROOM, kind: Kind = "sft"
) -> samples.Drawn:
    file = tmp_path / "rows.parquet"
    splits.write(file, kind, rows)
    return samples.from_split(file, template, room, count)


def text_of(template: ChatTemplate, sample: Sample) -> str:
    """What the mask of a sample covers."""
    assert sample.scored is not None
    return template.tokenizer.decode([i for i, m in zip(*sample.scored, strict=True) if m], skip_special_tokens=False)


def test_a_conversation_is_asked_up_to_its_last_answer(tmp_path: Path, template: ChatTemplate) -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    turns = [system, user("Hello"), assistant("Hi!"), user("Are you open?"), assistant("From nine to six.")]
    (sample,) = draw(tmp_path, template, [Record("sft", turns)]).samples
    assert sample.messages == turns[:-1]
    assert sample.question == "Are you open?"
    assert sample.reference == "From nine to six."
    assert sample.prompt == template.ids(template.render(turns[:-1], add_generation_prompt=True))
    # Not the first answer, which is part of what is asked; the end of the turn is to be predicted too.
    assert text_of(template, sample) == "From nine to six.<|im_end|>"
    assert sample.scored and sample.scored[0][: len(sample.prompt)] == sample.prompt
    assert sample.reference_tokens == len(template.ids("From nine to six.")) + 1


def test_the_chosen_answer_of_a_pair_is_the_reference(tmp_path: Path, template: ChatTemplate) -> None:
    pair = Record("preference", [user("Open?")], chosen=[assistant("Yes, gladly.")], rejected=[assistant("No.")])
    (sample,) = draw(tmp_path, template, [pair], kind="preference").samples
    assert (sample.messages, sample.reference) == ([user("Open?")], "Yes, gladly.")


def test_of_judged_answers_the_wanted_ones_are_references(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [
        Record("kto", [user(f"Open on day {day}?"), assistant(f"Answer {day}")], label=day % 2 == 0) for day in range(6)
    ]
    drawn = draw(tmp_path, template, rows, kind="kto")
    assert [sample.reference for sample in drawn.samples] == ["Answer 0", "Answer 2", "Answer 4"]
    assert drawn.left_out == {"unwanted_answer": 3}


def test_a_text_is_scored_whole_and_not_asked(tmp_path: Path, template: ChatTemplate) -> None:
    drawn = draw(tmp_path, template, [Record("text", text="The shop is open."), Record("text", text="")], kind="text")
    (sample,) = drawn.samples
    assert sample.prompt == [] and sample.messages == [] and sample.reference is None
    assert sample.scored is not None
    ids, mask = sample.scored
    assert ids == template.document_ids("The shop is open.")
    assert mask == [0] + [1] * (len(ids) - 1)
    assert drawn.left_out == {"too_short": 1}


def test_a_prompt_without_an_answer_is_asked_and_not_scored(tmp_path: Path, template: ChatTemplate) -> None:
    (sample,) = draw(tmp_path, template, [Record("sft", [user("What is 2 plus 2?")])]).samples
    assert sample.messages == [user("What is 2 plus 2?")]
    assert (sample.reference, sample.scored, sample.reference_tokens) == (None, None, None)


def test_the_thought_of_a_reference_is_no_part_of_it(tmp_path: Path, template: ChatTemplate) -> None:
    row = Record("sft", [user("Open?"), assistant("<think>It is ten.</think>\n\nYes.")])
    (sample,) = draw(tmp_path, template, [row]).samples
    assert (sample.reference, sample.reference_thinks) == ("Yes.", True)


def test_the_samples_are_spread_over_the_split_and_the_same_every_time(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [asked(number) for number in range(1000)]
    first = draw(tmp_path, template, rows, 10)
    numbers = [sample.index for sample in first.samples]
    assert [number // 100 for number in numbers] == list(range(10)), "one of each tenth"
    assert numbers != [100 * part for part in range(10)]
    assert draw(tmp_path, template, rows, 10) == first


def test_all_rows_are_taken_where_there_are_few_and_none_twice(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [asked(1), asked(2), asked(1, "No."), asked(3)]
    drawn = draw(tmp_path, template, rows, 50)
    assert [sample.index for sample in drawn.samples] == [0, 1, 3]
    assert drawn.reasons == "1 repeated"


def test_another_row_stands_in_for_one_that_cannot_be_used(tmp_path: Path, template: ChatTemplate) -> None:
    long = Record("sft", [user("Is this long? " * 400), assistant("Yes.")])
    rows = [long if number % 2 else asked(number) for number in range(40)]
    drawn = draw(tmp_path, template, rows, 20)
    assert [sample.index for sample in drawn.samples] == list(range(0, 40, 2))
    assert drawn.left_out["too_long"] > 0


def test_every_sample_leaves_room_for_its_answer(tmp_path: Path, template: ChatTemplate) -> None:
    rows = [asked(1, "word " * count) for count in (1, 20, 100)]
    rows = [Record("sft", [user(f"Question {i}?"), *row.messages[1:]]) for i, row in enumerate(rows)]
    prompt = len(template.ids(template.render([user("Question 0?")], add_generation_prompt=True)))
    assert len(draw(tmp_path, template, rows, room=Room(prompt + 500, 500)).samples) == 3
    assert len(draw(tmp_path, template, rows, room=Room(prompt + 500, 501)).samples) == 0
    # The reference must fit too.
    assert [s.index for s in draw(tmp_path, template, rows, room=Room(prompt + 100, 8)).samples] == [0, 1]


def test_prompts_are_questions_of_a_user(template: ChatTemplate) -> None:
    drawn = samples.from_prompts(["Hi?", "Bye? " * 3000], template, ROOM)
    (sample,) = drawn.samples
    assert (sample.index, sample.messages, sample.reference) == (0, [user("Hi?")], None)
    assert drawn.left_out == {"too_long": 1}


def test_a_row_that_the_template_refuses_is_left_out(
    tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = ChatTemplate(toy_folder)
    render = template.render

    def refusing(messages: list[Message], **options: object) -> str:
        if messages[0]["role"] == "system":
            raise InvalidInput("template_refused", "no system message")
        return render(messages, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(template, "render", refusing)
    refused = Record("sft", [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello")])
    drawn = draw(tmp_path, template, [refused, asked(1)])
    assert [sample.index for sample in drawn.samples] == [1]
    assert drawn.left_out == {"template_refused": 1}


def test_references_longer_than_answers_may_become_are_counted(tmp_path: Path, template: ChatTemplate) -> None:
    drawn = draw(tmp_path, template, [asked(1), asked(2, "Yes, and a number of many words it is."), asked(3)])
    assert [samples.cut_references(template, drawn.samples, tokens) for tokens in (1, 4, 64)] == [3, 1, 0]
