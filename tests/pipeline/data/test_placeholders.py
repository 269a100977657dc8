"""Placeholders are found and filled where they are meant, and never in code, templates or formulas."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tunewright.pipeline.data import layouts, placeholders

SHARED = Path(__file__).parents[4] / "shared" / "data"

FOUND = {
    "I am {{name}}.": {"name"},
    "I am {{ name }} of {{author}}, {{name}}": {"name", "author"},
    "我是{{姓名}}，由{{公司 名称}}开发": {"姓名", "公司 名称"},
    "{{user.name}} {{first-name}} {{line_2}}": {"user.name", "first-name", "line_2"},
    "{{first}}{{last}}": {"first", "last"},
    "- {{a}}\n- {{b}}": {"a", "b"},
    "`{{code}}` but {{name}}": {"name"},
    "costs $5 {{name}} and $6": {"name"},
}
NOT_FOUND = [
    "{name} [NAME] <NAME> {{}} {{ }} {{1}} {{a|upper}} {{a + b}} {{f(x)}} {{{raw}}} {{{{twice}}}}",
    "```jinja\nHello {{ name }}\n```",
    "~~~\n{{ name }}\n~~~",
    "```vue\n<p>{{ name }}</p>",
    "Write `{{ name }}` there.",
    "{% for user in users %}{{ user }}{% endfor %}",
    "{{#each people}}{{name}}{{/each}}",
    '<li v-for="item in items">{{ item }}</li>',
    '<li *ngFor="let item of items">{{ item }}</li>',
    r"\frac{{a}}{{b}} + x^{{n}} + y_{{i}} + \text{{word}}",
    "dict = {{'a': 1}}",
    "a{{\n\nb",
]


@pytest.mark.parametrize("text", FOUND)
def test_names_in_two_braces_are_placeholders(text: str) -> None:
    assert placeholders.find(text) == FOUND[text]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_code_templates_and_formulas_hold_no_placeholders_and_are_not_filled(text: str) -> None:
    assert placeholders.find(text) == set()
    assert placeholders.fill(text, dict.fromkeys(("name", "a", "b", "i", "n", "user", "item", "word"), "X"))[0] == text


def test_only_the_given_names_are_filled_and_counted() -> None:
    text, filled = placeholders.fill("{{name}}, {{ name }}, {{author}} and `{{name}}`", {"name": r"\1 {{author}}"})
    assert text == r"\1 {{author}}, \1 {{author}}, {{author}} and `{{name}}`"
    assert filled == Counter(name=2)


def test_a_long_text_of_braces_is_read_in_no_time() -> None:
    for text in ("{{" * 100_000, "{{ " * 50_000, "{{a " * 50_000, "\\a{{" * 50_000, "`" * 100_000):
        assert placeholders.find(text) == set()


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not here")
def test_the_identity_file_has_a_name_and_an_author() -> None:
    rows = json.loads((SHARED / "identity.json").read_text(encoding="utf-8"))
    layout = layouts.find(rows[:100], "identity.json")
    found = Counter(
        name
        for row in rows
        for message in layouts.to_record(layout, row).messages
        for name in placeholders.find(message["content"])
    )
    assert found == {"name": 77, "author": 60}
