"""Setting one member of a file that people write by hand."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.pipeline.commandline import jsonc

ENTRY = {"command": "/x/tunewright", "args": ["--home", "/a b"]}
PATH = ("mcpServers", "tunewright")

COMMENTED = """\
{
\t// my servers
\t"mcpServers": {
\t\t"other": {"command": "node", "args": ["a//b", "/* c */"]}, // the { other
\t\t/* a } block
\t\t   comment */
\t},
\t"list": [1, 2,],
}
"""


def test_comments_and_trailing_commas_and_all_else_stay_to_the_character() -> None:
    new = jsonc.with_member(COMMENTED, PATH, ENTRY)
    begin, end = new.index('\t\t"tunewright"'), new.index('\t},\n\t"list"')
    assert new[:begin] + new[end:] == COMMENTED
    assert jsonc.loads(new)["mcpServers"] == {
        "other": {"command": "node", "args": ["a//b", "/* c */"]}, "tunewright": ENTRY
    }  # fmt: skip


def test_the_new_lines_are_indented_as_the_files_own() -> None:
    assert '\n\t\t"tunewright": {\n\t\t\t"command": "/x/tunewright",\n' in jsonc.with_member(COMMENTED, PATH, ENTRY)
    four = '{\n    "mcpServers": {\n        "a": {}\n    }\n}\n'
    assert '\n        "a": {},\n        "tunewright": {\n            "command"' in jsonc.with_member(four, PATH, ENTRY)


def test_an_entry_is_replaced_in_its_place() -> None:
    text = '{"mcpServers": {"tunewright": {"command": "old"}, "b": {}}} // end'
    new = jsonc.with_member(text, PATH, ENTRY)
    assert list(jsonc.loads(new)["mcpServers"]) == ["tunewright", "b"]
    assert "old" not in new
    assert new.endswith(', "b": {}}} // end')


def test_an_empty_file_becomes_a_whole_one() -> None:
    for empty in ("", "  \n"):
        assert json.loads(jsonc.with_member(empty, PATH, ENTRY)) == {"mcpServers": {"tunewright": ENTRY}}


def test_a_file_of_windows_stays_one() -> None:
    text = '\ufeff{\r\n  "mcpServers": {}\r\n}\r\n'
    new = jsonc.with_member(text, PATH, ENTRY)
    assert new.startswith("\ufeff{")
    assert not re.search(r"(?<!\r)\n", new)
    assert jsonc.loads(new) == {"mcpServers": {"tunewright": ENTRY}}


@pytest.mark.parametrize(
    "text",
    ['{"mcpServers": {', "[]", "nonsense", '{"a": 1 "b": 2}', '{"mcpServers": []}', '{"mcpServers": null}',
     '{"a": {}, "a": {}}', "// only words", '{"a": "\x00"}', "[" * 100_000],
)  # fmt: skip
def test_what_is_no_such_file_is_refused(text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        jsonc.with_member(text, PATH, ENTRY)


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
NOISE = st.sampled_from(["", " ", "\n", '// c { } " ,\n', "/* , } */", "\t"])


@given(st.dictionaries(st.text(max_size=6), VALUES, max_size=4), st.data())
def test_whatever_stood_in_the_file_means_the_same_afterwards(others: dict[str, object], data: st.DataObject) -> None:
    servers = {name: {"command": json.dumps(value)} for name, value in others.items() if name != "tunewright"}
    held = {**{f"x{name}": value for name, value in others.items()}, "mcpServers": servers}
    # Noise wherever white space may stand: between the tokens of the file.
    tokens = re.findall(r'"(?:\\.|[^"\\])*"|[\[\]{}:,]|[^\s\[\]{}:,"]+', json.dumps(held))
    text = "".join(token + data.draw(NOISE) for token in tokens)
    assert jsonc.loads(text) == held
    servers["tunewright"] = ENTRY  # type: ignore[assignment]
    new = jsonc.with_member(text, PATH, ENTRY)
    assert jsonc.loads(new) == held
    for comment in re.findall(r'"(?:\\.|[^"\\])*"|(//[^\n]*|/\*.*?\*/)', text, re.DOTALL):
        assert comment in new
