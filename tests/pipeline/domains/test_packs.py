"""Anybody's own pack works, and whatever is wrong with one is named with its place; built-in names work everywhere."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright.pipeline import domains
from tunewright.pipeline.data import prepare, request, splits, terms
from tunewright.pipeline.data.arguments import DatasetArguments
from tunewright.pipeline.errors import InvalidInput, NotFound
from tunewright.pipeline.workspace import Workspace

HEAD = "name: own\nlanguage: en\n"
RULE = "rules: [{id: r, must_not_say: [x], message: m, severity: error, source: s%s}]\n"


def write(folder: Path, content: str) -> str:
    path = folder / "own.yaml"
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_a_pack_of_one_rule_works(tmp_path: Path) -> None:
    pack = domains.load(write(tmp_path, HEAD + "rules:\n  - {id: no-refund, must_not_say: [full refund], message: None "
                              "is given., severity: warning, source: Terms of Lumen}\n"))  # fmt: skip
    [finding] = domains.check(pack, answer="You get a full refund.", reference=None, question="")
    assert (pack.title, finding.rule, finding.passage) == ("own", "no-refund", "You get a full refund.")


def test_a_pack_in_english_keeps_english_names(tmp_path: Path) -> None:
    content = HEAD + "terms: [{term: kidney injury, zh: 肾损伤, source: s}]\n"
    [finding] = domains.check(domains.load(write(tmp_path, content)), answer="", reference="考虑肾损伤。", question="")
    assert (finding.rule, finding.passage) == ("kidney injury", "考虑肾损伤。")


def test_a_phrase_that_is_a_terms_name_stands_for_all_names(tmp_path: Path) -> None:
    content = (
        HEAD + "terms: [{term: kidney injury, zh: 肾损伤, source: s}]\n" + RULE.replace("[x]", "[Kidney Injury]") % ""
    )
    [finding] = domains.check(domains.load(write(tmp_path, content)), answer="是肾损伤。", reference=None, question="")
    assert finding.rule == "r"


BROKEN = {
    "nothing in it": (HEAD, "no terms, no associations, no rules and no structure"),
    "no name": ("language: en\n" + RULE % "", "is wrong in name: Field required"),
    "another language": ("name: x\nlanguage: fr\n" + RULE % "", "language 'fr'"),
    "an unknown section": (HEAD + "rule: []\n", "unknown key in rule"),
    "an unknown key": (HEAD + RULE % ", must_nto_say: [y]", "unknown key in rules, entry 1 (r), key 'must_nto_say'"),
    "another severity": (HEAD + (RULE % "").replace("error", "high"), "entry 1 (r), key 'severity'"),
    "no source": (HEAD + (RULE % "").replace(", source: s", ""), "entry 1 (r), key 'source': Field required"),
    "a term without source": (HEAD + "terms: [{term: a}]\n", "no source for its term 'a'"),
    "an unknown key of a term": (HEAD + "terms: [{term: a, zhs: b, source: s}]\n", "'zhs' in its term 1"),
    "a rule that demands nothing": (
        HEAD + "rules: [{id: r, message: m, severity: error, source: s}]\n",
        "needs must_not_say, must_say or both",
    ),
    "allowed without must_not_say": (
        HEAD + (RULE % ", allowed: [y]").replace("must_not_say", "must_say"),
        "has allowed, which says nothing",
    ),
    "a text for a list": (HEAD + (RULE % "").replace("[x]", "x"), "key 'must_not_say': Input should be a valid list"),
    "an unquoted number": (HEAD + (RULE % "").replace("[x]", "[120]"), "not 120 (put it into quotes)"),
    "an unquoted NO": (HEAD + (RULE % "").replace("[x]", "[a, NO]"), "not False (put it into quotes)"),
    "an empty list": (HEAD + (RULE % "").replace("[x]", "[]"), "entry 1 (r), key 'must_not_say'"),
    "an empty phrase": (HEAD + (RULE % "").replace("[x]", "['']"), "entry 1 (r), key 'must_not_say.1'"),
    "an open bracket": (HEAD + (RULE % "").replace("[x]", "['(a|b']"), "'(a|b' has a bracket that is not closed"),
    "a bar alone": (HEAD + (RULE % "").replace("[x]", "['a|b']"), "a bar outside of brackets"),
    "nothing but stars": (HEAD + (RULE % "").replace("[x]", "['* *']"), "may stand for nothing"),
    "nothing but an option": (HEAD + (RULE % "").replace("[x]", "['(a|)']"), "may stand for nothing"),
    "too many stars": (HEAD + (RULE % "").replace("[x]", "['a*b*c*d*e']"), "more than 3 stars"),
    "an empty condition": (HEAD + RULE % ", when: {}", "needs phrases for question, answer or both"),
    "a condition on another text": (HEAD + RULE % ", when: {reference: [x]}", "unknown key in rules, entry 1 (r)"),
    "one id twice": (HEAD + "associations: [{id: r, from: [a], to: [b], source: s}]\n" + RULE % "", "id 'r' twice"),
    "one section twice": (HEAD + RULE % "" + RULE % "", "the key 'rules' a second time in line 4"),
    "one key twice": (HEAD + RULE % ", source: t", "the key 'source' a second time in line 3"),
    "no parts": (HEAD + "structure: [{id: t, parts: {}, source: s}]\n", "structure, entry 1 (t), key 'parts'"),
    "one name for two terms": (
        HEAD + "terms: [{term: a, also: [c], source: s}, {term: b, synonyms: [C], source: s}]\n",
        "gives 'c' to two terms",
    ),
    "a list of entries": ("- a\n", "language None"),
    "broken YAML": (HEAD + "rules: [\n", "no readable YAML"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_mistake_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    content, words = BROKEN[case]
    with pytest.raises(InvalidInput) as raised:
        domains.load(write(tmp_path, content))
    assert words in raised.value.what and "own.yaml" in raised.value.what
    assert raised.value.next.startswith("validate_adapter(")
    assert "must_not_say" in raised.value.allowed or "terms" in raised.value.allowed


def test_an_unknown_pack_is_not_found_and_the_nearest_is_named() -> None:
    with pytest.raises(NotFound) as raised:
        domains.load("medecine")
    assert raised.value.code == "pack_not_found"
    assert "Nearest: medicine" in raised.value.allowed


@pytest.mark.parametrize("name", ["~nobody-at-all/x.yaml", "a\0b", "x" * 5000])
def test_what_is_no_path_is_refused(name: str) -> None:
    with pytest.raises((InvalidInput, NotFound)) as raised:
        domains.load(name)
    assert len(str(raised.value)) < 2000


def test_a_built_in_pack_is_found_by_name_where_data_is_prepared(workspace: Workspace, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "患者肌酐升高", "output": "考虑急性肾衰竭，建议复查。"}\n', encoding="utf-8")
    request.check(workspace, str(rows), None, DatasetArguments(domain="medicine"))
    made = prepare.prepare(workspace, str(rows), domain="medicine", eval_fraction=0)
    [record] = splits.read(splits.split_file(Path(made["document"]["path"]), splits.TRAIN))
    assert "急性肾损伤" in str(record) and "急性肾衰竭" not in str(record)


@pytest.mark.parametrize("name", domains.available())
def test_the_terms_of_every_built_in_pack_can_be_applied(name: str) -> None:
    applied = terms.load(domains.path_of(name))
    assert applied.apply("今天天气很好。") == ("今天天气很好。", {})


def test_the_package_is_light(run_python: Callable[..., str]) -> None:
    code = "import sys, tunewright.pipeline.domains; print(*(name for name in sys.argv[1:] if name in sys.modules))"
    assert run_python(code, "torch", "transformers", "yaml", "scipy", "pyarrow").split() == []
