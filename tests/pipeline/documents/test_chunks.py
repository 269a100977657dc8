"""Where Markdown is cut: at headings, between blocks, after sentences; and that nothing gets lost."""

import re
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunewright.pipeline.documents.chunks import Piece, cut
from tunewright.pipeline.tokens import estimate_tokens

SENTENCE = "The kiln is heated slowly until the clay has lost its water. "
CHINESE = "陶器在窑里慢慢烧成，釉料随之熔化。"


def letters(texts: Iterable[str]) -> str:
    return re.sub(r"[\W\d_]", "", "".join(texts))


def shown(pieces: list[Piece]) -> list[tuple[tuple[str, ...], str]]:
    return [(piece.headings, piece.text) for piece in pieces]


def test_a_section_is_a_chunk_under_its_heading_path() -> None:
    text = f"# Kilns\n\n## Firing\n\n{SENTENCE * 8}\n\n## Safety\n\n{SENTENCE * 9}"
    assert shown(cut(text, 150)) == [
        (("Kilns", "Firing"), SENTENCE * 8),
        (("Kilns", "Safety"), SENTENCE * 9),
    ]


def test_what_stands_above_the_first_heading_has_no_path() -> None:
    first, second = cut(f"{SENTENCE * 5}\n\n# Later\n\n{SENTENCE * 5}", 100)
    assert (first.headings, second.headings) == ((), ("Later",))


def test_small_neighbours_are_joined_under_the_heading_that_they_share() -> None:
    small = "".join(f"## Cone {number}\n\nMelts.\n\n" for number in range(4))
    (first, second) = cut(f"# Cones\n\n{small}# Kilns\n\n{SENTENCE * 8}", 130)
    assert first.headings == ("Cones",)
    assert [line for line in first.text.split("\n") if line] == [
        line for number in range(4) for line in (f"## Cone {number}", "Melts.")
    ]
    assert second.headings == ("Kilns",)


def test_small_sections_of_different_parents_stay_apart() -> None:
    big = SENTENCE * 8
    text = f"# One\n\n## Big\n\n{big}\n\n## Small of one\n\nA.\n\n# Two\n\n## Small of two\n\nB.\n\n## Big\n\n{big}"
    pieces = cut(text, 125)
    assert not any("A." in piece.text and "B." in piece.text for piece in pieces)
    assert [piece.headings[0] for piece in pieces] == ["One", "One", "Two", "Two"]


def test_a_sign_inside_a_code_fence_is_no_heading() -> None:
    code = "```sh\n# not a heading\nrun\n```"
    (piece,) = cut(f"# Setup\n\n{code}\n\nDone.", 200)
    assert (piece.headings, piece.text) == (("Setup",), f"{code}\n\nDone.")


@pytest.mark.parametrize(
    ("heading", "path"),
    [
        ("## Safety ##", ("Safety",)),
        ("Safety\n======", ("Safety",)),
        ("Safety\n---", ("Safety",)),
        ("# **Safety** of [kilns](k.html)", ("Safety of kilns",)),
        ("   # Safety", ("Safety",)),
        ("#Safety", ()),
        ("    # Safety", ()),
        ("| Safety |\n|---|", ()),
        (f"# {'Safety ' * 60}", ()),
    ],
)
def test_what_is_a_heading(heading: str, path: tuple[str, ...]) -> None:
    assert cut(f"{heading}\n\nText.", 400)[0].headings == path


def test_a_long_section_is_cut_after_sentences_into_pieces_of_like_size() -> None:
    pieces = cut(f"# Firing\n\n{SENTENCE * 30}", 200)
    assert len(pieces) == 3
    for piece in pieces:
        assert piece.headings == ("Firing",)
        assert piece.text.endswith("its water.")
        assert 100 < piece.tokens <= 200


def test_chinese_is_cut_after_its_sentences() -> None:
    pieces = cut(CHINESE * 40, 100)
    assert len(pieces) > 4
    assert all(piece.text.endswith("。") for piece in pieces)
    assert "".join(piece.text for piece in pieces) == CHINESE * 40


def test_a_paragraph_with_hard_line_ends_is_cut_after_sentences() -> None:
    wrapped = (SENTENCE * 30).replace("until the", "until\nthe")
    pieces = cut(wrapped, 100)
    assert len(pieces) > 3
    assert all(piece.text.endswith(".") for piece in pieces)


def test_a_table_that_fits_is_kept_whole() -> None:
    table = "| cone | degrees |\n|---|---|\n" + "\n".join(f"| {n} | {1000 + n} |" for n in range(12))
    pieces = cut(f"{SENTENCE * 6}\n\n{table}\n\n{SENTENCE * 6}", 130)
    assert [table in piece.text for piece in pieces].count(True) == 1


def test_a_long_table_repeats_its_header() -> None:
    header = "| cone | degrees |\n|---|---|"
    pieces = cut(header + "".join(f"\n| {n} | {1000 + n} |" for n in range(60)), 80)
    assert len(pieces) > 3
    assert all(piece.text.startswith(header) for piece in pieces)
    rows = [row for piece in pieces for row in piece.text.split("\n")[2:]]
    assert rows == [f"| {n} | {1000 + n} |" for n in range(60)]


def test_long_code_is_cut_into_whole_fences() -> None:
    pieces = cut("```python\n" + "".join(f"step_{n}()\n" for n in range(60)) + "```", 60)
    assert len(pieces) > 2
    assert all(piece.text.startswith("```python\nstep_") and piece.text.endswith("()\n```") for piece in pieces)


def test_tokens_are_estimated_by_script() -> None:
    assert estimate_tokens("") == 0
    assert estimate_tokens("abcdefgh") == 2
    assert estimate_tokens("陶器在窑里烧") == 4
    assert estimate_tokens("烧成abcd") == 3


PROSE = st.one_of(
    st.text("abAB .!?。，陶\t(", max_size=60), st.just(SENTENCE * 4), st.just(CHINESE * 5), st.just("- item\n- item")
)
HEADINGS = st.sampled_from(["# 1", "## 2 2", "### 3", "4\n===", ""])
MARKUP = st.one_of(PROSE, HEADINGS, st.sampled_from(["```", "~~~~", "| a | b |", "|---|---|", "---", "x" * 900]))


@settings(max_examples=300, deadline=None)
@given(st.lists(MARKUP, max_size=30).map("\n".join), st.integers(20, 200))
@example("```\n" + "x" * 500, 20)
@example("| a |\n|---|\n| " + "b " * 400, 20)
@example("# " * 400, 20)
def test_whatever_is_cut_no_chunk_is_empty_or_too_long(text: str, limit: int) -> None:
    for piece in cut(text, limit):
        assert piece.text.strip()
        assert 0 < piece.tokens == estimate_tokens(piece.text) <= limit


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(HEADINGS, PROSE), max_size=20), st.integers(20, 200))
def test_every_letter_is_in_one_chunk_in_order(sections: list[tuple[str, str]], limit: int) -> None:
    pieces = cut("\n\n".join(f"{heading}\n\n{prose}" for heading, prose in sections), limit)
    assert letters(piece.text for piece in pieces) == letters(prose for _, prose in sections)
