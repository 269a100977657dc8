"""Prompts are the official ones to the letter, hold no answer of what is asked, and are cut where a letter follows."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tunewright.pipeline.benchmarking import exams
from tunewright.pipeline.benchmarking.exams import BENCHMARKS, LETTERS, Question, Solved
from tunewright.pipeline.benchmarking.prompts import Prompter
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.errors import InvalidInput

CEVAL, CMMLU, MMLU = BENCHMARKS["ceval"], BENCHMARKS["cmmlu"], BENCHMARKS["mmlu"]
EXAMPLE = Solved(Question("一加一____", ("1", "2", "3", "4")), "B")
QUESTION = Question("二加二____", ("3", "2", "4", "1"))


def prompter(toy_folder: Path, benchmark: Any = CEVAL, as_chat: bool = False, context_tokens: int = 8192) -> Prompter:
    return Prompter(benchmark, ChatTemplate(toy_folder), as_chat, context_tokens)


def test_the_plain_prompt_is_the_official_one(toy_folder: Path) -> None:
    assert prompter(toy_folder).text("law", [EXAMPLE], QUESTION) == (
        "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n"
        "一加一____\nA. 1\nB. 2\nC. 3\nD. 4\n答案：B\n\n"
        "二加二____\nA. 3\nB. 2\nC. 4\nD. 1\n答案："
    )
    assert prompter(toy_folder, CMMLU).text("arts", [EXAMPLE], QUESTION) == (
        "以下是关于艺术学的单项选择题，请直接给出正确答案的选项。\n\n"
        "题目：一加一____\nA. 1\nB. 2\nC. 3\nD. 4\n答案是：B\n\n"
        "题目：二加二____\nA. 3\nB. 2\nC. 4\nD. 1\n答案是："
    )
    assert prompter(toy_folder, MMLU).text("world_religions", [EXAMPLE], QUESTION) == (
        "The following are multiple choice questions (with answers) about world religions.\n\n"
        "一加一____\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
        "二加二____\nA. 3\nB. 2\nC. 4\nD. 1\nAnswer:"
    )


def test_the_chat_prompt_has_the_examples_as_turns_through_the_models_own_template(toy_folder: Path) -> None:
    assert prompter(toy_folder, as_chat=True).text("law", [EXAMPLE], QUESTION) == (
        "<|im_start|>user\n以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n"
        "一加一____\nA. 1\nB. 2\nC. 3\nD. 4\n答案：<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
        "<|im_start|>user\n二加二____\nA. 3\nB. 2\nC. 4\nD. 1\n答案：<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n"
    )


def rendered(root: Path, template: Path) -> list[str]:
    """Every prompt of a folder, plain and as a chat, as it goes to the model."""
    found: list[str] = []
    for as_chat in (False, True):
        made = prompter(template, as_chat=as_chat)
        for subject in exams.subjects_in(CEVAL, root):
            exam = exams.read(CEVAL, root, subject, with_examples=True, limit=None)
            batches, _ = made.batches(subject, exam.examples, exam.questions, 5)
            found += [
                made.template.tokenizer.decode(batch.prefix + row, skip_special_tokens=False)
                for batch in batches
                for row in batch.rows
            ]
    return found


def other_answers(root: Path, copy: Path, bench: Any) -> Path:
    """The same folder with another gold letter for every question that is asked; dev/ as it is."""
    for file in sorted(root.glob("*/*.csv")):
        swap = file.parent.name == "val"
        rows = [
            [one.question.text, *one.question.options, LETTERS[LETTERS.index(one.letter) - 1] if swap else one.letter]
            for one in exams.read_csv(file)
        ]
        bench.write_csv(copy / file.parent.name / file.name, rows, ["question", *LETTERS, "answer"])
    return copy


def test_no_prompt_changes_a_byte_when_the_gold_answers_are_others(
    toy_folder: Path, tmp_path: Path, bench: Any, request: pytest.FixtureRequest
) -> None:
    own = bench.write_exam(tmp_path / "own", {"law": 40, "my_exam": 40})
    folders = [own, *([request.getfixturevalue("ceval")] if (Path(__file__).parents[4] / "shared").is_dir() else [])]
    for number, root in enumerate(folders):
        swapped = other_answers(root, tmp_path / f"swapped-{number}", bench)
        subjects = exams.subjects_in(CEVAL, root)
        keys = [[exams.read(CEVAL, folder, one, with_examples=False, limit=None).key for one in subjects]
                for folder in (root, swapped)]  # fmt: skip
        assert all(a != b for one, other in zip(*keys, strict=True) for a, b in zip(one, other, strict=True))
        prompts = rendered(root, toy_folder)
        assert prompts == rendered(swapped, toy_folder)
        assert len(prompts) == 2 * sum(map(len, keys[0]))
        # After the question's own options nothing follows but the words before the letter.
        ends = ("答案：", "答案：<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert all(prompt.endswith(ends) for prompt in prompts)


@pytest.mark.parametrize("as_chat", [False, True])
def test_prefix_and_row_are_the_whole_prompts_tokens(
    tmp_path: Path, bench: Any, toy_folder: Path, as_chat: bool
) -> None:
    root = bench.write_exam(tmp_path, {"law": 12})
    exam, made = exams.read(CEVAL, root, "law", with_examples=True, limit=None), prompter(toy_folder, as_chat=as_chat)
    (batch,), too_long = made.batches("law", exam.examples, exam.questions, 5)
    assert not too_long
    assert batch.numbers == list(range(12))
    template = ChatTemplate(toy_folder)
    for number, row in zip(batch.numbers, batch.rows, strict=True):
        text = made.text("law", exam.examples, exam.questions[number])
        assert batch.prefix + row == template.ids(text)
        assert row
    assert [template.tokenizer.decode([letter]) for letter in batch.letters] == list(LETTERS)
    # The examples are computed once.
    assert len(batch.prefix) > 4 * max(map(len, batch.rows))


def test_a_small_context_takes_fewer_examples_and_leaves_out_what_never_fits(
    tmp_path: Path, bench: Any, toy_folder: Path
) -> None:
    root = bench.write_exam(tmp_path, {"law": 8})
    exam = exams.read(CEVAL, root, "law", with_examples=True, limit=None)
    made = prompter(toy_folder)
    room = len(made.template.ids(made.text("law", exam.examples[:3], exam.questions[0]))) + 1
    exam.questions[3] = Question("很" * room, exam.questions[3].options)
    exam.questions[5] = Question(exam.questions[5].text + "很" * 20, exam.questions[5].options)
    batches, too_long = prompter(toy_folder, context_tokens=room).batches("law", exam.examples, exam.questions, 5)
    assert too_long == [3]
    shots = {number: batch.shots for batch in batches for number in batch.numbers}
    assert sorted(shots) == [0, 1, 2, 4, 5, 6, 7]
    assert shots[0] == 3
    assert 0 <= shots[5] < 3
    # The room holds the letter too.
    assert max(len(batch.prefix) + len(row) for batch in batches for row in batch.rows) == room - 1


def test_the_letters_of_mmlu_stand_after_a_space_where_the_tokenizer_has_them_so(toy_folder: Path) -> None:
    (batch,), _ = prompter(toy_folder, MMLU).batches("anatomy", [EXAMPLE], [QUESTION], 1)
    template = ChatTemplate(toy_folder)
    spaced = [template.ids(f"Answer: {letter}")[-1] for letter in LETTERS]
    assert [template.tokenizer.decode([letter]) for letter in batch.letters] in ([*LETTERS], [f" {x}" for x in LETTERS])
    assert batch.letters == spaced


def test_a_tokenizer_without_single_letters_is_refused(tmp_path: Path) -> None:
    # Every letter becomes the same unknown token.
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InvalidInput, match="letters_not_single_tokens"):
        prompter(tmp_path).batches("law", [], [QUESTION], 0)


def test_a_plain_prompt_begins_as_the_tokenizer_begins_documents(toy_folder: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(toy_folder / "tokenizer.json"))
    begin = tokenizer.token_to_id("<|im_start|>")
    tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (batch,), _ = prompter(tmp_path).batches("law", [], [QUESTION, EXAMPLE.question], 0)
    assert batch.prefix[0] == begin
    assert begin not in batch.prefix[1:]
