"""What says the layout of a file: a mapping, dataset_info.json, or nothing that is known, which is refused."""

import json
from typing import Any, get_args

import pytest

from tunewright.pipeline.data import layouts
from tunewright.pipeline.data.llamafactory import LayoutHint
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.errors import InvalidInput

Row = dict[str, Any]


def chat(*texts: str, system: str = "") -> list[Row]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def said(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def sft(*texts: str, system: str = "") -> Record:
    return Record("sft", chat(*texts, system=system))


def pair(prompt: list[Row], chosen: str, rejected: str) -> Record:
    return Record("preference", prompt, said(chosen), said(rejected))


def judged(label: bool, *texts: str) -> Record:
    return Record("kto", chat(*texts), label=label)


def turns(*pairs: tuple[str, Any], role: str = "from", content: str = "value") -> list[Row]:
    return [{role: name, content: text} for name, text in pairs]


def records(rows: list[Any], **arguments: Any) -> list[Record]:
    layout = layouts.find(rows, "data.json", **arguments)
    return [layouts.to_record(layout, row) for row in rows]


LOG = turns(("Kunde", "Wo ist es?"), ("Berater", "Unterwegs."), role="who", content="msg")
TALK = turns(("human", "Hi"), ("gpt", "Hello"))
MESSAGES = chat("Hi", "Hello")
MARKED = "<think>\nTwo and two.\n</think>\n\n4"

MAPPINGS: dict[str, tuple[Row, dict[str, str], Record]] = {
    "prompt, response, system and input": (
        {"frage": "Warum?", "antwort": "Darum.", "ctx": "S", "mehr": "Sag."},
        {"prompt": "frage", "response": "ANTWORT", "system": "ctx", "input": "mehr"},
        sft("Warum?\nSag.", "Darum.", system="S"),
    ),
    "thinking": (
        {"f": "2 + 2", "d": "Two and two.", "a": 4},
        {"prompt": "f", "response": "a", "thinking": "d"},
        sft("2 + 2", MARKED),
    ),
    "messages": ({"a": TALK, "b": TALK[:1]}, {"messages": "a"}, sft("Hi", "Hello")),
    "messages, their keys and their speakers": (
        {"log": LOG},
        {"messages": "log", "role": "who", "content": "msg", "user": "Kunde", "assistant": "Berater"},
        sft("Wo ist es?", "Unterwegs."),
    ),
    "messages, their keys, the user being who opens": (
        {"log": LOG}, {"messages": "log", "role": "who", "content": "msg"}, sft("Wo ist es?", "Unterwegs."),
    ),
    "messages in CSV, their keys and the assistant, who opens": (
        {"log": json.dumps(LOG)},
        {"messages": "log", "role": "who", "content": "msg", "assistant": "kunde"},
        Record("sft", [{"role": "assistant", "content": "Wo ist es?"}, {"role": "user", "content": "Unterwegs."}]),
    ),
    "messages, another key than the usual one that is there": (
        {"log": [{"from": "web", "role": "user", "content": "Hi"}, {"from": "bot", "role": "x", "content": "Hello"}]},
        {"messages": "log", "role": "from", "user": "web"},
        sft("Hi", "Hello"),
    ),
    "messages with a label": (
        {"log": LOG, "ok": 1},
        {"messages": "log", "label": "ok", "role": "who", "content": "msg"},
        judged(True, "Wo ist es?", "Unterwegs."),
    ),
    "chosen and rejected": (
        {"f": "Hi", "g": "Hello", "s": "Go"},
        {"prompt": "f", "chosen": "g", "rejected": "s"},
        pair(chat("Hi"), "Hello", "Go"),
    ),
    "a label": (
        {"f": "Hi", "a": "Go", "ok": "no"},
        {"prompt": "f", "response": "a", "label": "ok"},
        judged(False, "Hi", "Go"),
    ),
    "text, though it is a conversation": (
        {"body": "### Human: Hi### Assistant: Hello"},
        {"text": "body"},
        Record("text", text="### Human: Hi### Assistant: Hello"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MAPPINGS)
def test_a_mapping_says_what_the_columns_hold(case: str) -> None:
    row, mapping, expected = MAPPINGS[case]
    layouts.check_mapping(mapping, "auto")
    assert records([row], mapping=mapping) == [expected]


HINTS: dict[str, tuple[Row, LayoutHint, str, Record]] = {
    "alpaca, nothing named": (
        {"instruction": "Hi", "input": "", "output": "Hello"}, LayoutHint("alpaca"), "alpaca", sft("Hi", "Hello"),
    ),
    "alpaca, its columns named": (
        {"q": "Add.", "x": "1 + 1", "r": "2", "h": [["a", "b"]]},
        LayoutHint("alpaca", {"prompt": "q", "query": "x", "response": "r", "history": "h"}),
        "alpaca",
        sft("a", "b", "Add.\n1 + 1", "2"),
    ),
    "sharegpt with tags": (
        {"talk": turns(("Kunde", "Hi"), ("Bot 7", "Hello"), role="wer", content="was")},
        LayoutHint(
            "sharegpt",
            {"messages": "talk"},
            {"role_tag": "wer", "content_tag": "was", "user_tag": "Kunde", "assistant_tag": "Bot 7"},
        ),
        "sharegpt",
        sft("Hi", "Hello"),
    ),
    "openai": (
        {"messages": MESSAGES},
        LayoutHint("openai", {"messages": "messages"}, {"role_tag": "role", "content_tag": "content"}),
        "chatml",
        sft("Hi", "Hello"),
    ),
    "ranking": (
        {"instruction": "Hi", "good": "Hello", "bad": "Go"},
        LayoutHint(None, {"prompt": "instruction", "chosen": "good", "rejected": "bad"}, ranking=True),
        "preference",
        pair(chat("Hi"), "Hello", "Go"),
    ),
    "kto_tag": (
        {"messages": MESSAGES, "ok": True},
        LayoutHint("sharegpt", {"messages": "messages", "kto_tag": "ok"}),
        "kto",
        judged(True, "Hi", "Hello"),
    ),
    "a prompt alone is raw text": (
        {"content": "Once"}, LayoutHint("alpaca", {"prompt": "content"}), "text", Record("text", text="Once"),
    ),
    "no columns named and not the usual ones": (
        {"question": "Why?", "answer": "So."}, LayoutHint("alpaca"), "question_answer", sft("Why?", "So."),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HINTS)
def test_a_hint_of_dataset_info_says_the_layout(case: str) -> None:
    row, hint, format, expected = HINTS[case]
    assert layouts.find([row], "data.json", hint=hint).format == format
    assert records([row], hint=hint) == [expected]


def test_an_absent_column_of_a_hint_is_named() -> None:
    hint = LayoutHint("alpaca", {"prompt": "question", "response": "reply"})
    with pytest.raises(InvalidInput, match=r"no column 'reply', which dataset_info.json names for 'response'"):
        layouts.find([{"question": "Why?", "answer": "So."}], "data.json", hint=hint)


# Rows, the arguments, and words that the error must hold; its `next` call is the last of them.
TALK_OF_A_TICKET = [{"von": "Kunde", "inhalt": "Es geht nicht."}, {"von": "Team", "inhalt": "Bitte neu starten."}]
UNKNOWN: dict[str, tuple[list[Any], Row, list[str]]] = {
    "columns whose names hint": (
        [{"id": 1, "user_question": "Why?", "best_reply": "So."}],
        {},
        ["user_question ('Why?')", 'mapping={"prompt": "user_question", "response": "best_reply"}'],
    ),
    "columns whose contents hint": (
        [{"nr": 1, "replik": "Because of the rain.", "anfrage": "Why?", "thema": "rain"}],
        {},
        ["Known layouts: alpaca (instruction, output)", 'mapping={"prompt": "anfrage", "response": "replik"}'],
    ),
    "misspelt columns": (
        [{"instrution": "Why?", "output": "So."}],
        {},
        ["Nearest layout: alpaca, which lacks instruction here", '"prompt": "instrution", "response": "output"'],
    ),
    "a text to be classified": (
        [{"text": "I liked it a lot.", "label": "positive"}],
        {},
        ['mapping={"prompt": "text", "response": "label"}'],
    ),
    "a single column": ([{"story": "Once"}], {}, ['mapping={"text": "story"}']),
    "options in a list": (
        [{"question": "1 + 1", "choices": ["1", "2"], "answer": 1}],
        {},
        ["choices holds options", '"prompt": "question", "response": "answer"'],
    ),
    "another format than asked for": (
        [{"instruction": "Hi", "output": "Hello"}],
        {"format": "chatml"},
        ["format='chatml'", "those of alpaca", 'Next: prepare_dataset(source="data.json").'],
    ),
    "mapped without a mapping": (
        [{"question": "Hi", "answer": "Hello"}],
        {"format": "mapped"},
        ['mapping={"prompt": "question", "response": "answer"}'],
    ),
    "a turn in each row": (
        [{"message_id": "a", "parent_id": None, "role": "prompter", "text": "Why?"}],
        {},
        ["By role each row is one turn: write all turns of a conversation into one row", "Next: convert the file"],
    ),
    "a long question and a short answer in unknown words": (
        [{"kysymys": "Missä punainen talo on?", "vastaus": "Tuolla."}],
        {},
        ['mapping={"prompt": "kysymys", "response": "vastaus"}'],
    ),
    "a customer beside a talk": (
        [
            {"customer": {"name": name, "email": f"{name}@x.org"}, "talk": TALK_OF_A_TICKET} for name in ("Ann", "Ben")
        ],
        {},
        ['mapping={"messages": "talk"', '"role": "von"', '"user": "Kunde"'],
    ),
    "a role beside a question and its answer": (
        [{"role": "nurse", "anfrage": "Why?", "replik": "Because of the rain."}],
        {},
        ['mapping={"prompt": "anfrage", "response": "replik"}'],
    ),
    "answers that are no texts": (
        [{"context": "It rained, so.", "question": "Why?", "answers": {"text": ["so"], "answer_start": [11]}}],
        {},
        ["'answers' of data.json holds objects", "Next: convert the file"],
    ),
    "no objects": ([1, "x", ["y"]], {}, ["no objects with named fields"]),
    "no rows": ([], {}, ["no objects"]),
    "a column's name that is no Unicode": ([{"\ud800": "x", "story": "y"}], {}, ["Columns: story ('y')."]),
    "hundreds of long columns": (
        [{f"column {i} " + "x" * 500: "y" * 5000 for i in range(300)}], {}, ["and 280 more"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_layout_is_refused_with_a_mapping_to_send_back(case: str) -> None:
    rows, arguments, words = UNKNOWN[case]
    with pytest.raises(InvalidInput) as raised:
        layouts.find(rows, "data.json", **arguments)
    assert raised.value.code == "unknown_layout"
    for word in words:
        assert word in str(raised.value)
    assert len(str(raised.value)) < 5000


@pytest.mark.parametrize(
    "rows",
    [
        [{"thema": "rain", "anfrage": "Why?", "replik": "Because."}],
        [{"text": "I liked it.", "label": "positive"}],
        [{"story": "Once"}],
    ],
)
def test_the_mapping_that_an_error_offers_is_accepted(rows: list[Row]) -> None:
    with pytest.raises(InvalidInput) as raised:
        layouts.find(rows, "data.json")
    offered = json.loads(raised.value.next.partition("mapping=")[2].removesuffix(")"))
    layouts.check_mapping(offered, "auto")
    assert records(rows, mapping=offered)


def refused(rows: list[Any], **arguments: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        layouts.find(rows, "data.json", **arguments)
    assert raised.value.code == "unknown_layout"
    return raised.value


def log(*pairs: tuple[str, str], **more: Any) -> list[Row]:
    return [{"at": f"2026-01-02T10:00:0{i}", "who": who, "msg": msg, **more} for i, (who, msg) in enumerate(pairs)]


KUNDE = {"messages": "log", "role": "who", "content": "msg", "user": "Kunde", "assistant": "Berater"}
# Rows whose turns are called as nobody's, what is given beside, and the mapping that the error offers.
ODD_TURNS: dict[str, tuple[list[Row], Row, dict[str, str]]] = {
    "two speakers": ([{"id": 1, "log": LOG}], {}, KUNDE),
    "a format asked for": ([{"id": 1, "log": LOG}], {"format": "sharegpt"}, KUNDE),
    "texts beside": ([{"name": "Ann", "topic": "Parcels", "log": LOG}], {}, KUNDE),
    "JSON in CSV": ([{"log": json.dumps(LOG)}], {}, KUNDE),
    "a column that is called as usual": ([{"messages": LOG}], {}, KUNDE | {"messages": "messages"}),
    "dataset_info.json without tags": ([{"log": LOG}], {"hint": LayoutHint("sharegpt", {"messages": "log"})}, KUNDE),
    "the column alone mapped": ([{"log": LOG, "s": "S"}], {"mapping": {"messages": "log", "system": "s"}},
        {"system": "s"} | KUNDE),
    "the content not mapped": ([{"log": LOG}], {"mapping": {"messages": "log", "role": "who"}}, KUNDE),
    "a misspelt key, the speakers said": (
        [{"log": LOG}],
        {"mapping": {**KUNDE, "content": "mgs", "user": "Berater", "assistant": "Kunde"}},
        KUNDE | {"user": "Berater", "assistant": "Kunde"},
    ),
    "the assistant opens some, a bot and times beside": (
        [
            {"log": log(("Kunde", "Hi"), ("Berater", "Good day"), avatar="https://example.org/a-picture.png")},
            {"log": log(("Berater", "Good day"), ("Kunde", "Hi"), ("Berater", "Yes?"))},
            {"log": log(("Kunde", "Yes"), ("Berater", "No"), ("Kunde", "Why"), ("Zähler", "4"))},
        ],
        {},
        KUNDE,
    ),
    "known roles under an unknown key": (
        [{"log": log(("system", "Be brief."), ("assistant", "How can I help?"), ("user", "Where is it?"))}],
        {},
        KUNDE | {"user": "user", "assistant": "assistant"},
    ),
    "known keys, speakers of which none always opens": (
        [{"log": turns(*pairs, role="speaker", content="text")} for pairs in (
            [("A", "Hi"), ("B", "Hello")], [("B", "Yes?"), ("A", "Hi")], [("A", "Hi"), ("B", "Hello")])],
        {},
        {"messages": "log", "role": "speaker", "content": "text", "user": "A", "assistant": "B"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD_TURNS)
def test_turns_that_are_called_otherwise_are_refused_with_a_mapping_that_reads_them(case: str) -> None:
    rows, arguments, offered = ODD_TURNS[case]
    error = refused(rows, **arguments)
    assert json.loads(error.next.partition("mapping=")[2].removesuffix(")")) == offered
    assert f"{offered['role']} (" in error.what and f"{offered['content']} (" in error.what
    assert f"{offered['user']!r}" in error.what and f"{offered['assistant']!r}" in error.what
    layouts.check_mapping(offered, "auto")
    assert {"user", "assistant"} <= {message["role"] for message in records(rows[:1], mapping=offered)[0].messages}


# Where nothing can be guessed: the column, and a key of what stands in it.
UNGUESSABLE: dict[str, tuple[Row, str]] = {
    "an object": ({"export": {"chats": [{"id": 1, "log": LOG}]}}, "chats ("),
    "an object beside a name": ({"id": 1, "name": "Ann", "export": {"chats": [{"log": LOG}]}}, "chats ("),
    "a list of conversations": (
        {"chats": [{"title": "Parcel", "topic": "A", "log": LOG}, {"title": "Bill", "topic": "B", "log": LOG}]},
        "log (",
    ),
    "speakers that are numbers": ({"log": [{"who": 1, "msg": "Hi"}, {"who": 2, "msg": "Hello"}]}, "who ('1')"),
    "one speaker": ({"log": [{"who": "Ann", "msg": "Hi"}, {"who": "Ann", "msg": "Hello"}]}, "who ('Ann')"),
    "speakers that are addresses": (
        {
            "log": log(
                ("ann.lee@firma.de", "Where is my parcel, please?"), ("ben.ray@firma.de", "It is on its way to you.")
            )
        },
        "who (",
    ),
    "lists of a text": ({"lines": ["a"]}, "lines ("),
}


@pytest.mark.parametrize("case", UNGUESSABLE)
def test_where_no_mapping_would_help_the_refusal_says_what_to_convert_the_file_to(case: str) -> None:
    row, words = UNGUESSABLE[case]
    error = refused([row])
    assert words in error.what
    assert "mapping" not in error.next and "mapping" not in error.allowed
    assert "list of objects, or to JSONL" in error.allowed and '{"messages": [{"role": "user"' in error.allowed


def test_the_addresses_of_speakers_are_not_printed() -> None:
    row, _ = UNGUESSABLE["speakers that are addresses"]
    assert "ann.lee" not in str(refused([row]))


def test_objects_beside_a_prompt_and_an_answer_are_no_conversation() -> None:
    error = refused([{"anfrage": "Why is it?", "replik": "Because of the rain.", "info": {"tool": "x"}}])
    assert 'mapping={"prompt": "anfrage", "response": "replik"}' in error.next


def test_a_column_that_a_mapping_misspells_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInput) as raised:
        layouts.find([{"frage": "a", "antwort": "b"}], "data.json", mapping={"prompt": "frge", "response": "antwort"})
    assert raised.value.code == "column_not_found"
    assert 'mapping={"prompt": "frage", "response": "antwort"}' in str(raised.value)


WRONG_MAPPINGS: dict[str, tuple[dict[str, str], str, str]] = {
    "an unknown key": ({"prompt": "a", "response": "b", "answer": "c"}, "auto", "unknown key 'answer'"),
    "no response": ({"prompt": "a"}, "auto", "lacks 'response'"),
    "nothing": ({}, "auto", "lacks 'prompt'"),
    "no rejected": ({"prompt": "a", "chosen": "b"}, "auto", "lacks 'rejected'"),
    "a text beside a prompt": ({"text": "a", "prompt": "b"}, "auto", "'prompt' beside 'text'"),
    "a response beside messages": ({"messages": "a", "response": "b"}, "auto", "'response' beside 'messages'"),
    "a column named twice": ({"prompt": "a", "response": "a"}, "auto", "names 'a' twice"),
    "a key of turns named twice": ({"messages": "a", "role": "b", "content": "b"}, "auto", "names 'b' twice"),
    "a speaker named twice": ({"messages": "a", "user": "b", "assistant": "b"}, "auto", "names 'b' twice"),
    "a role beside a prompt": ({"prompt": "a", "response": "b", "role": "c"}, "auto", "'role' beside 'prompt'"),
    "another format": ({"prompt": "a", "response": "b"}, "alpaca", "format='alpaca'"),
}


@pytest.mark.parametrize("case", WRONG_MAPPINGS)
def test_a_mapping_that_makes_no_row_is_refused(case: str) -> None:
    mapping, format, words = WRONG_MAPPINGS[case]
    with pytest.raises(InvalidInput) as raised:
        layouts.check_mapping(mapping, format)
    assert raised.value.code == "invalid_mapping"
    assert words in str(raised.value)


@pytest.mark.parametrize("format", [name for name in get_args(layouts.Format) if name not in ("auto", "mapped")])
def test_a_format_that_is_asked_for_is_the_one_that_is_taken(format: str) -> None:
    rows: dict[str, Row] = {
        "alpaca": {"instruction": "a", "output": "b"},
        "sharegpt": {"conversations": TALK},
        "chatml": {"messages": MESSAGES},
        "prompt_completion": {"prompt": "a", "completion": "b"},
        "question_answer": {"question": "a", "answer": "b"},
        "preference": {"chosen": chat("p", "a"), "rejected": chat("p", "b")},
        "kto": {"messages": MESSAGES, "label": 1},
        "text": {"text": "### Human: a### Assistant: b", "label": "x"},
    }
    # Every other layout's columns stand beside: they are not looked at.
    everything = {name: value for row in reversed(rows.values()) for name, value in row.items()} | rows[format]
    assert layouts.find([everything], "data.json", format=format).format == format
