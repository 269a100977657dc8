"""What is advised for which numbers."""

from typing import Any

import pytest

from tunewright.pipeline.data.advice import of

WELL = {"train_rows": 950, "eval_rows": 50, "rows_read": 1000, "kind": "sft", "reasoning_share": 0.75}


def said(**changed: Any) -> str:
    return "\n".join(of(WELL | changed))


def fits(**whole: float) -> dict[str, Any]:
    lengths = ("512", "1024", "2048", "4096", "8192", "16384", "32768")
    shares = dict.fromkeys(lengths, 1.0) | {key.strip("_"): share for key, share in whole.items()}
    return {"estimated": False, "fits": {key: {"rows": share, "tokens": share} for key, share in shares.items()}}


SIZES = {
    "thin": (57, ["57 rows", "thin (fewer than 100)", "instruct model"]),
    "one": (1, ["1 row to train on"]),
    "few": (250, ["250 rows (100 to 300)", "suit an instruct model"]),
    "middling": (600, ["600 rows (300 to 1,000)", "instruct when in doubt"]),
    "many": (1900, ["1,900 rows (over 1,000)", "base model too"]),
}


@pytest.mark.parametrize(("rows", "words"), SIZES.values(), ids=SIZES)
def test_the_number_of_rows_says_which_kind_of_model_suits(rows: int, words: list[str]) -> None:
    assert all(word in said(train_rows=rows) for word in words)


def test_each_size_gets_one_sentence_about_size() -> None:
    for rows in (1, 99, 100, 299, 300, 999, 1000, 10**6):
        about_size = [sentence for sentence in of(WELL | {"train_rows": rows}) if sentence.startswith(f"{rows:,} row")]
        assert len(about_size) == 1, rows


def test_raw_text_is_for_continued_pre_training() -> None:
    text = said(kind="text", tokens={"total": 123456, "estimated": False})
    assert "123,456 tokens" in text and "continued pre-training of a base model" in text
    assert "little" in text and "enough" in said(kind="text", tokens={"total": 10**8})


def test_judged_answers_want_a_model_that_answers_already() -> None:
    assert "5e-6" in said(kind="preference") and "are few" in said(kind="kto", train_rows=120)


def test_secrets_and_personal_data_come_first_with_the_call_that_masks_them() -> None:
    sentences = of(WELL | {"secrets": {"api_key": 1}, "personal_data": {"email": 1200, "phone": 2}})
    assert "api_key in 1 row)" in sentences[0] and 'cleaning={"secrets": "mask"}' in sentences[0]
    assert "email in 1,200 rows, phone in 2 rows" in sentences[1] and '"personal_data": "mask"' in sentences[1]


def test_leaks_and_benchmark_questions_are_said_with_numbers() -> None:
    assert "Of the eval rows 3 ask what is trained on too, and 12 nearly repeat" in said(
        leakage={"exact": 3, "near": 12}
    )
    assert "Of the eval rows 3" in said(leakage={"exact": 3, "near": None})
    assert "hold 2 questions of the benchmark" in said(benchmark_overlap={"a": 1, "b": 5})
    assert "benchmark" not in said(leakage={"exact": 0, "near": 0}, benchmark_overlap={})


def test_duplicates_are_told_apart_from_unusable_rows() -> None:
    doubles = {"duplicate": {"count": 150, "examples": []}, "near_duplicate": {"count": 60, "examples": []}}
    assert "21% of the rows read were duplicates (210" in said(dropped=doubles)
    assert "unusable" not in said(dropped=doubles)
    faults = {"malformed": {"count": 90, "examples": []}, "empty": {"count": 30, "examples": []}}
    assert "12% of the rows read were unusable, most of them malformed (90)" in said(dropped=faults)
    wanted = {"max_rows": {"count": 900, "examples": []}, "weight": {"count": 90, "examples": []}}
    assert said(dropped=wanted) == said()


def test_mixed_languages_are_said_and_unknown_ones_are_none() -> None:
    mixed = [{"language": "zh", "share": 0.8}, {"language": "unknown", "share": 0.1}, {"language": "en", "share": 0.1}]
    assert "zh 80%, en 10%" in said(languages=mixed)
    assert "anguages" not in said(languages=[{"language": "zh", "share": 0.9}, {"language": "unknown", "share": 0.1}])


def test_a_skew_is_passed_on_with_its_consequence() -> None:
    skew = "30% of the rows are about one topic: syphilis (with penicillin, pallidum)."
    assert f"{skew} Unless that is the purpose, the model will see it where it is not" in said(
        topics={"topics": [], "skew": skew}
    )


@pytest.mark.parametrize(
    ("share", "words"), [(0.0, "thinking off"), (0.3, "30% of the answers show reasoning"), (1.0, "25% of plain chat")]
)
def test_the_share_of_reasoning_is_held_against_three_quarters(share: float, words: str) -> None:
    assert words in said(reasoning_share=share)


def test_three_quarters_of_reasoning_need_no_word() -> None:
    assert "reasoning" not in said(reasoning_share=0.75)


def test_cut_rows_are_said_with_the_length_that_keeps_them() -> None:
    cut = said(tokens=fits(_512=0.1, _1024=0.4, _2048=0.88, _4096=0.97))
    assert "At max_seq_length=2048 12% of the rows would be cut; 4096 keeps 97% whole" in cut
    assert "max_seq_length=1024 keeps 99% of the rows whole" in said(tokens=fits(_512=0.9, _1024=0.99))
    endless = fits(**{f"_{length}": 0.5 for length in (512, 1024, 2048, 4096, 8192, 16384, 32768)})
    assert "50% of the rows are longer than 32,768 tokens" in said(tokens=endless)


def test_estimates_and_low_loss_are_said() -> None:
    assert "Tokens are estimated" in said(tokens={"estimated": True})
    assert "Only 4% of the tokens carry loss" in said(tokens={"estimated": False, "loss_share": 0.04})


def test_a_small_eval_split_is_said_with_the_fraction_that_would_do() -> None:
    assert "No row is held out; eval_fraction=0.05 would hold out about 50" in said(train_rows=1000, eval_rows=0)
    assert "5 rows held out are few" in said(train_rows=495, eval_rows=5)
    assert "eval_fraction" not in said(train_rows=50, eval_rows=0)
    assert "eval_fraction" not in said(train_rows=950, eval_rows=50)


def test_a_report_without_any_number_gives_no_failure() -> None:
    assert len(of({})) == 1
