"""What becomes of a source: the rows kept, the rows dropped, the split, and what is said about them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import chat_template, models
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data import authored, processing, request, splits
from tunewright.pipeline.data.arguments import DatasetArguments
from tunewright.pipeline.data.prepare import prepare, run
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.files import read_json
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Write = Callable[[str, Any], Path]
Alpaca = Callable[[int], list[dict[str, str]]]
Conversation = list[dict[str, str]]


def rows_of(dataset: Row, split: str = "train") -> list[Conversation]:
    return [record.messages for record in splits.read(Path(dataset["document"]["path"]) / f"{split}.parquet")]


def chat(*texts: str, system: str = "") -> Conversation:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def as_csv(separator: str) -> str:
    head = separator.join(["Instruction", "INPUT", "output"])
    return f'{head}\n"Add, please.\nNow.""",1 + 1,2\n'.replace(",1 + 1,", f"{separator}1 + 1{separator}")


ALPACA = {"instruction": 'Add, please.\nNow."', "input": "1 + 1", "output": "2"}
ALPACA_CHAT = chat('Add, please.\nNow."\n1 + 1', "2")
SHAREGPT_TURNS = [
    {"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
    {"from": "user", "value": "你好"}, {"from": "model", "value": "很好"},
]  # fmt: skip
SHAREGPT_CHAT = chat("Hi", "Hello", "你好", "很好", system="Be brief.")
CSV_WITH_TURNS = 'id,conversations\n7,"' + json.dumps(SHAREGPT_TURNS).replace('"', '""') + '"\n'

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}

ACCEPTED = {
    "alpaca in a JSON list": ("a.json", [ALPACA], "alpaca", ALPACA_CHAT),
    "alpaca in JSONL": ("a.jsonl", [ALPACA], "alpaca", ALPACA_CHAT),
    "alpaca in CSV, capitalised": ("a.csv", as_csv(","), "alpaca", ALPACA_CHAT),
    "alpaca in TSV": ("a.tsv", as_csv("\t"), "alpaca", ALPACA_CHAT),
    "alpaca in CSV with a BOM": ("a.csv", b"\xef\xbb\xbf" + as_csv(",").encode(), "alpaca", ALPACA_CHAT),
    "alpaca in JSON with a BOM": ("a.json", b"\xef\xbb\xbf" + json.dumps([ALPACA]).encode(), "alpaca", ALPACA_CHAT),
    "alpaca in a JSON object with one list": ("a.json", {"version": "1", "data": [ALPACA]}, "alpaca", ALPACA_CHAT),
    "alpaca one object per line, named .json": (
        "a.json",
        f"\n{json.dumps(ALPACA)}\n\n{json.dumps(ALPACA)}\n",
        "alpaca",
        ALPACA_CHAT,
    ),
    "alpaca as a single pretty JSON object": ("a.json", json.dumps(ALPACA, indent=2), "alpaca", ALPACA_CHAT),
    "alpaca with system and history": (
        "a.json",
        [{**ALPACA, "system": "Be exact.", "history": [["Hi", "Hello"]]}],
        "alpaca",
        [*chat("Hi", "Hello", system="Be exact."), *ALPACA_CHAT],
    ),
    "sharegpt in a JSON list": ("s.json", [{"conversations": SHAREGPT_TURNS}], "sharegpt", SHAREGPT_CHAT),
    "sharegpt in JSONL": ("s.jsonl", [{"conversations": SHAREGPT_TURNS}], "sharegpt", SHAREGPT_CHAT),
    "sharegpt in CSV, its turns as JSON": ("s.csv", CSV_WITH_TURNS, "sharegpt", SHAREGPT_CHAT),
    "sharegpt with a system column": (
        "s.json",
        [{"system": "Be brief.", "conversations": SHAREGPT_TURNS[1:]}],
        "sharegpt",
        SHAREGPT_CHAT,
    ),
    "sharegpt as a single object": ("s.json", {"conversations": SHAREGPT_TURNS}, "sharegpt", SHAREGPT_CHAT),
    "chatml in JSONL": ("c.jsonl", [{"messages": SHAREGPT_CHAT}], "chatml", SHAREGPT_CHAT),
    "chatml in JSON beside a prompt": ("c.json", [{"prompt": "x", "messages": SHAREGPT_CHAT}], "chatml", SHAREGPT_CHAT),
    "prompt and response in CSV": ("p.csv", "prompt,response\nHi,Hello\n", "prompt_completion", chat("Hi", "Hello")),
    "question and answer in CSV": ("p.csv", "Question,Answer\nHi,Hello\n", "question_answer", chat("Hi", "Hello")),
    "prompt and completion in JSONL": (
        "p.jsonl",
        [{"prompt": "Hi", "completion": "Hello"}],
        "prompt_completion",
        chat("Hi", "Hello"),
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_every_layout_in_every_file_becomes_messages(workspace: Workspace, write: Write, case: str) -> None:
    name, content, format, expected = ACCEPTED[case]
    dataset = prepare(workspace, write(name, content), eval_fraction=0)
    assert rows_of(dataset) == [expected]
    assert rows_of(dataset, "eval") == []
    assert dataset["document"]["format"] == format


def test_a_csv_with_semicolons_is_read_as_one(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "euro.csv"
    file.write_text('question;answer\n"What, then?";Tea, cups\n"One; two";Three\n', encoding="utf-8")
    row = prepare(workspace, str(file), eval_fraction=0)
    assert rows_of(row) == [
        [{"role": "user", "content": "What, then?"}, {"role": "assistant", "content": "Tea, cups"}],
        [{"role": "user", "content": "One; two"}, {"role": "assistant", "content": "Three"}],
    ]
    (source,) = read_json(Path(row["document"]["path"]) / "manifest.json")["files"]
    assert source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert source["size_bytes"] == file.stat().st_size


def test_a_mapping_says_which_columns_are_read(workspace: Workspace, write: Write) -> None:
    file = write("faq.csv", "frage,antwort,ctx,more\nWarum?,Darum.,Sei kurz.,Sag es.\n")
    mapping = {"prompt": "frage", "response": "Antwort", "system": "ctx", "input": "more"}
    dataset = prepare(workspace, file, mapping=mapping)
    assert rows_of(dataset) == [chat("Warum?\nSag es.", "Darum.", system="Sei kurz.")]


def test_the_system_prompt_stands_only_where_a_row_has_none(workspace: Workspace, write: Write) -> None:
    rows = [{"messages": chat("a", "b")}, {"messages": chat("c", "d", system="own")}]
    dataset = prepare(workspace, write("c.json", rows), system_prompt="default")
    assert rows_of(dataset) == [chat("a", "b", system="default"), chat("c", "d", system="own")]


def test_unusable_rows_are_dropped_with_reason_row_number_and_text(workspace: Workspace, write: Write) -> None:
    turns = [
        chat("a", "b"),
        [{"role": "user", "content": "hm"}, {"role": "system", "content": "late"}],
        [{"role": "assistant", "content": "first"}],
        [{"role": "wizard", "content": "x"}, {"role": "assistant", "content": "y"}],
        chat("   ", "b"),
        chat("a", ""),
        chat("a ", " b\n"),
        [{"role": "user", "content": []}, {"role": "assistant", "content": {"y": 1}}],
        [],
        chat("half a pair \ud800", "b"),
    ]
    rows: list[Any] = [{"messages": messages} for messages in turns]
    dropped = prepare(workspace, write("c.json", [*rows, "no object"]))["document"]["dropped"]
    assert {reason: entry["count"] for reason, entry in dropped.items()} == {"malformed": 5, "empty": 4, "duplicate": 1}
    assert [example["row"] for example in dropped["malformed"]["examples"]] == [2, 4, 8]
    assert [example["row"] for example in dropped["empty"]["examples"]] == [3, 5, 6]
    assert dropped["duplicate"]["examples"][0]["row"] == 7
    assert dropped["duplicate"]["examples"][0]["why"] == "row 1 says the same"
    assert "late" in dropped["malformed"]["examples"][0]["text"]
    assert "after the beginning" in dropped["malformed"]["examples"][0]["why"]
    assert "wizard" in dropped["malformed"]["examples"][1]["why"]


def test_order_is_mended_counted_and_can_be_dropped_instead(workspace: Workspace, write: Write) -> None:
    rows = [
        {"messages": chat("a", "b", "no answer follows")},
        {"messages": [{"role": "assistant", "content": "Welcome."}, *chat("c", "d")]},
        {"messages": [{"role": "user", "content": "e"}, *chat("f", "g")]},
        {"messages": chat("h", "i")},
    ]
    file = write("c.json", rows)
    mended = prepare(workspace, file)
    assert rows_of(mended) == [chat("a", "b"), chat("c", "d"), chat("e\n\nf", "g"), chat("h", "i")]
    assert mended["document"]["mended"]["role_order"]["count"] == 3
    assert [e["row"] for e in mended["document"]["mended"]["role_order"]["examples"]] == [1, 2, 3]
    dropped = prepare(workspace, file, cleaning={"role_order": "drop"})
    assert rows_of(dropped) == [chat("h", "i")]
    assert dropped["document"]["dropped"]["role_order"]["count"] == 3


def test_a_broken_line_among_others_is_dropped_with_its_place(workspace: Workspace, write: Write) -> None:
    good = '{"prompt": "a", "response": "b"}'
    file = write("p.jsonl", f'{good}\n{{"prompt": \n{good.replace("a", "c")}\n')
    document = prepare(workspace, file)["document"]
    assert (document["train_rows"], document["rows_read"]) == (2, 3)
    (example,) = document["dropped"]["broken"]["examples"]
    assert example["row"] == 2 and "no JSON" in example["why"]


@pytest.mark.parametrize(
    ("finding", "bad", "mended"),
    [
        ("html", "<p>Nine&nbsp;o'clock.</p>", "Nine o'clock."),
        ("mojibake", "At the cafÃ©.", "At the café."),
        ("control_tokens", "At nine.<|im_end|>", "At nine."),
    ],
)
def test_what_is_found_is_mended_dropped_or_kept_as_told(
    workspace: Workspace, write: Write, finding: str, bad: str, mended: str
) -> None:
    file = write("p.jsonl", [{"prompt": "When?", "response": bad}, {"prompt": "Who?", "response": "Me."}])

    def answers(**arguments: Any) -> tuple[list[str], Row]:
        dataset = prepare(workspace, file, **arguments)
        return [row[-1]["content"] for row in rows_of(dataset)], dataset["document"]

    texts, document = answers()
    assert texts == [mended, "Me."] and document["mended"][finding]["count"] == 1
    assert document["mended"][finding]["examples"][0]["row"] == 1
    texts, document = answers(cleaning={finding: "drop"})
    assert texts == ["Me."] and document["dropped"][finding]["count"] == 1
    texts, document = answers(cleaning={finding: "keep"})
    assert texts == [bad, "Me."] and not document["mended"] and not document["dropped"]


def test_personal_data_and_secrets_are_reported_masked_or_dropped(workspace: Workspace, write: Write) -> None:
    key = "sk-" + "proj-" + "Ab3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dF" * 2
    rows = [
        {"prompt": "Whom do I ask?", "response": "Write to jane.doe@mailbox.org, please."},
        {"prompt": "Which key?", "response": f"Use {key} for now."},
        {"prompt": "When?", "response": "At nine."},
    ]
    file = write("p.jsonl", rows)
    document = prepare(workspace, file)["document"]
    assert document["personal_data"] == {"email": 1} and sum(document["secrets"].values()) == 1
    text = json.dumps(document)
    assert "jane.doe" not in text and key not in text
    masked = prepare(workspace, file, cleaning={"personal_data": "mask", "secrets": "mask"})
    answers = [row[1]["content"] for row in rows_of(masked)]
    assert answers[0] == "Write to [email], please." and key not in answers[1] and answers[2] == "At nine."
    assert masked["document"]["personal_data"] == {} == masked["document"]["secrets"]
    left = prepare(workspace, file, cleaning={"personal_data": "drop", "secrets": "drop"})
    assert [row[1]["content"] for row in rows_of(left)] == ["At nine."]
    assert key not in json.dumps(left["document"])


KEY = "sk-" + "proj-" + "Ab3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dF" * 2


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": f"My key:\n{KEY}"}]},
        {"messages": [{"role": f"me {KEY}", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"messages": chat(f"a <|im_start|> {KEY}", "b")},
        {"messages": chat(f"a {KEY}<|im_start|>{KEY} c", "b")},
        {"messages": chat(f"<p>{KEY}</p>", "b")},
    ],
)
def test_no_secret_stands_in_what_is_said_of_rows(workspace: Workspace, write: Write, row: dict[str, Any]) -> None:
    dataset = prepare(workspace, write("a.jsonl", [row, {"messages": chat("c", "d")}]), cleaning={"secrets": "mask"})
    folder = Path(dataset["document"]["path"])
    for text in (json.dumps(dataset), (folder / "report.html").read_text(), (folder / "manifest.json").read_text()):
        assert KEY[:24] not in text and KEY[20:40] not in text


def test_no_secret_stands_in_errors(workspace: Workspace, write: Write) -> None:
    for name, content in (
        ("a.jsonl", [{"colour": KEY, "size": "jane.doe@mailbox.org"}]),
        ("b.json", f'[{{"a": "{KEY}" "b": 1}}]'),
        ("c.jsonl", f'{{"prompt": "{KEY}\n'),
    ):
        with pytest.raises(TunewrightError) as refusal:
            prepare(workspace, write(name, content))
        assert KEY[:16] not in str(refusal.value) and "jane.doe" not in str(refusal.value)


def test_secrets_inside_calls_of_tools_are_found_and_masked(workspace: Workspace, write: Write) -> None:
    call = {"type": "function", "function": {"name": "login", "arguments": {"key": KEY}}}
    messages = [*chat("Log in."), {"role": "assistant", "content": "", "tool_calls": [call]}]
    file = write("a.jsonl", [{"messages": messages, "tools": [TOOL]}])
    assert sum(prepare(workspace, file)["document"]["secrets"].values()) == 1
    masked = prepare(workspace, file, cleaning={"secrets": "mask"})
    assert masked["document"]["secrets"] == {} and KEY not in json.dumps(rows_of(masked))


def test_a_row_that_the_template_refuses_is_dropped_and_not_counted(workspace: Workspace, write: Write) -> None:
    model = Path(shutil.copytree(models.tokenizer_folder(workspace, "toy"), workspace.home.root / "strict"))
    (model / "model.safetensors").write_bytes(b"not read here")
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    file = write("a.jsonl", [{"messages": chat("a b c", "d" * 90, system="s")}, {"messages": chat("e", "f")}])
    assert prepare(workspace, file, model=str(model))["document"]["tokens"]["counted_rows"] == 1
    measured = {"max_seq_length": 32, "cleaning": {"too_long": "drop"}}
    dropped = prepare(workspace, file, model=str(model), **measured)["document"]["dropped"]
    assert dropped["template_refused"]["count"] == 1


def test_placeholders_are_filled_by_substitutions_and_counted(workspace: Workspace, write: Write) -> None:
    rows = [{"prompt": "Who are you?", "response": "I am {{name}}, made by {{ author }}."}]
    dataset = prepare(workspace, write("p.jsonl", rows), substitutions={"name": "Lumen", "author": "us"})
    assert rows_of(dataset) == [chat("Who are you?", "I am Lumen, made by us.")]
    assert sum(dataset["document"]["replaced"].values()) == 2
    assert not any("laceholder" in warning for warning in dataset["document"]["warnings"])


def test_near_duplicates_are_dropped_with_what_they_repeat(workspace: Workspace, write: Write) -> None:
    answer = " ".join(f"word{i}" for i in range(80))
    rows = [{"prompt": "Explain.", "response": answer}, {"prompt": "Explain.", "response": f"{answer} indeed"}]
    others = [{"prompt": f"Q{i}", "response": f"quite different number {i}"} for i in range(4)]
    file = write("p.jsonl", [*rows, *others])
    document = prepare(workspace, file)["document"]
    (example,) = document["dropped"]["near_duplicate"]["examples"]
    assert (example["row"], example["why"]) == (2, "row 1 says nearly the same")
    for arguments in (
        {"cleaning": {"near_duplicate": "keep"}},
        {"cleaning": {"near_duplicate": "ignore"}},
        {"dedupe": False},
    ):
        assert prepare(workspace, file, **arguments)["document"]["train_rows"] == 6


def test_eval_rows_ask_what_training_rows_do_not(workspace: Workspace, write: Write) -> None:
    rows = [{"prompt": f"Question {i // 3}?", "response": f"Answer {i}."} for i in range(60)]
    rows += [{"prompt": f"Another {i}?", "response": f"Reply {i}."} for i in range(20)]
    dataset = prepare(workspace, write("p.jsonl", rows), eval_fraction=0.2, cleaning={"near_duplicate": "ignore"})
    asked = {row[0]["content"] for row in rows_of(dataset)}
    assert not asked & {row[0]["content"] for row in rows_of(dataset, "eval")}
    assert dataset["document"]["leakage"]["exact"] == 0
    forced = prepare(workspace, write("q.jsonl", rows[:60]), eval_fraction=0.2, cleaning={"near_duplicate": "ignore"})
    assert forced["document"]["leakage"]["exact"] > 0


def test_rows_that_are_too_long_are_cut_as_told_by_the_models_count(workspace: Workspace, write: Write) -> None:
    rows = [{"prompt": "Hi", "response": "the cat and the dog " * 60}, {"prompt": "Bye", "response": "Bye."}]
    file, measured = write("p.jsonl", rows), {"model": "toy", "max_seq_length": 64}
    dropped = prepare(workspace, file, cleaning={"too_long": "drop"}, **measured)["document"]
    assert dropped["dropped"]["too_long"]["count"] == 1 and dropped["tokens"]["max"] <= 64
    cut = prepare(workspace, file, cleaning={"too_long": "truncate"}, **measured)["document"]
    assert cut["mended"]["truncated"]["count"] == 1 and cut["train_rows"] == 2 and cut["tokens"]["max"] <= 64
    assert prepare(workspace, file, model="toy")["document"]["tokens"]["max"] > 64


def test_a_benchmarks_questions_are_found_in_the_data(workspace: Workspace, write: Write) -> None:
    question = "Which of the following planets has the shortest day of all in our solar system?"
    folder = write(
        "bench/val/astro_val.csv", f"id,question,A,B,C,D,answer\n0,{question},Mars,Jupiter,Venus,Earth,B\n"
    ).parents[1]
    rows = [{"prompt": f"Tell me: {question}", "response": "Jupiter."}, {"prompt": "Hi", "response": "Hello."}]
    document = prepare(workspace, write("p.jsonl", rows), benchmark_dir=str(folder))["document"]
    assert sum(document["benchmark_overlap"].values()) == 1


def test_a_row_out_of_all_proportion_is_dropped(
    workspace: Workspace, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "MAX_ROW_CHARACTERS", 100)
    rows = [{"prompt": "Why?", "response": "x" * 100}, {"prompt": "Who?", "response": "Me."}]
    document = prepare(workspace, write("p.jsonl", rows))["document"]
    assert document["train_rows"] == 1
    assert document["dropped"]["malformed"]["examples"][0]["why"] == "the row has 104 characters, more than 100"


def test_a_csv_record_of_another_length_is_malformed(workspace: Workspace, write: Write) -> None:
    document = prepare(workspace, write("p.csv", "prompt,response\na,b\nc,d,e\n"))["document"]
    assert document["train_rows"] == 1
    assert document["dropped"]["malformed"]["examples"][0]["row"] == 2


def test_duplicates_stay_where_they_are_wanted(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    file = write("a.json", alpaca(3) * 2)
    assert prepare(workspace, file)["document"]["train_rows"] == 3
    assert prepare(workspace, file, dedupe=False)["document"]["train_rows"] == 6


def test_max_rows_keeps_the_first_usable_rows(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    rows = [{"instruction": "", "output": ""}, *alpaca(20)]
    dataset = prepare(workspace, write("a.jsonl", rows), max_rows=5, eval_fraction=0)
    assert [row[0]["content"] for row in rows_of(dataset)] == [f"Say {i}." for i in range(5)]
    assert dataset["document"]["dropped"]["max_rows"]["count"] == 15
    assert dataset["document"]["rows_read"] == 21


@pytest.mark.parametrize(
    ("rows", "fraction", "expected"),
    [(9, 0.05, 0), (10, 0.05, 1), (100, 0, 0), (100, 0.05, 5), (3, 0.5, 2), (1, 0.5, 0)],
)
def test_the_eval_split_has_its_fraction_and_at_least_one_of_ten(
    workspace: Workspace, write: Write, alpaca: Alpaca, rows: int, fraction: float, expected: int
) -> None:
    dataset = prepare(workspace, write("a.json", alpaca(rows)), eval_fraction=fraction)
    assert len(rows_of(dataset, "eval")) == dataset["document"]["eval_rows"] == expected
    assert len(rows_of(dataset)) == dataset["document"]["train_rows"] == rows - expected


def test_the_split_parts_the_rows_and_keeps_file_order(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    dataset = prepare(workspace, write("a.json", alpaca(50)), eval_fraction=0.2)
    train, held_out = ([int(row[1]["content"][:-1]) for row in rows_of(dataset, split)] for split in ("train", "eval"))
    assert train == sorted(train)
    assert sorted(train + held_out) == list(range(50))
    assert held_out not in (list(range(10)), list(range(40, 50)))


def test_the_same_call_gives_the_same_bytes_and_another_seed_another_split(
    workspace: Workspace, write: Write, alpaca: Alpaca
) -> None:
    file = write("a.json", alpaca(200))
    first, second, other = prepare(workspace, file), prepare(workspace, file), prepare(workspace, file, seed=43)
    folders = [Path(dataset["document"]["path"]) for dataset in (first, second)]
    assert first["id"] != second["id"]
    for split in ("train.parquet", "eval.parquet"):
        assert (folders[0] / split).read_bytes() == (folders[1] / split).read_bytes()
    assert first["document"]["sha256"] == second["document"]["sha256"] != other["document"]["sha256"]
    assert rows_of(first, "eval") != rows_of(other, "eval")


def test_weights_give_every_source_its_share(workspace: Workspace, write: Write) -> None:
    big = write("big.jsonl", [{"prompt": f"big {i}", "response": "x"} for i in range(300)])
    small = write("small.csv", "question,answer\n" + "".join(f"small {i},y\n" for i in range(40)))
    source = [{"source": str(big), "weight": 3}, {"source": str(small), "weight": 1}]
    dataset = prepare(workspace, source, eval_fraction=0)
    origins = [row[0]["content"].split()[0] for row in rows_of(dataset)]
    assert (origins.count("big"), origins.count("small")) == (120, 40)
    assert dataset["document"]["dropped"]["weight"]["count"] == 180
    assert [row[0]["content"] for row in rows_of(dataset)][-40:] == [f"small {i}" for i in range(40)]
    limited = prepare(workspace, source, eval_fraction=0, max_rows=20)
    origins = [row[0]["content"].split()[0] for row in rows_of(limited)]
    assert (origins.count("big"), origins.count("small")) == (15, 5)
    assert {k: v["count"] for k, v in limited["document"]["dropped"].items()} == {"max_rows": 140, "weight": 180}
    assert rows_of(prepare(workspace, source, eval_fraction=0, max_rows=20)) == rows_of(limited)


def test_a_list_a_folder_and_a_glob_read_all_their_files(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    rows = alpaca(9)
    one, two = write("d/one.json", rows[:4]), write("d/two.jsonl", rows[4:])
    write("d/notes.txt", "not data")
    for source in ([str(one), two], str(one.parent), f"{one.parent}/*.json*", f"{one.parent.parent}/**/*.json*"):
        assert len(rows_of(prepare(workspace, source, eval_fraction=0))) == 9


def test_the_split_argument_picks_files_and_lists(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    rows = alpaca(7)
    folder = write("d/train-00.json", rows[:4]).parent
    write("d/validation.json", rows[4:])
    both = write("both.json", {"train": rows[:4], "validation": rows[4:]})
    for source in (folder, both):
        assert prepare(workspace, source)["document"]["train_rows"] == 4
        assert prepare(workspace, source, split="validation")["document"]["train_rows"] == 3


def test_placeholders_control_tokens_and_few_rows_are_said(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    rows = [
        {"instruction": "Who are you?", "output": "I am {{name}} by {{ author }}."},
        {"instruction": "And now?", "output": "Still {{name}}."},
        {"instruction": "Stop.", "output": "Yes<|im_end|><|end_of_stream|>"},
        {"instruction": "[INST] Go <start_of_turn>", "output": "a[0] < b and <b>bold</b>"},
    ]
    document = prepare(workspace, write("a.json", rows), cleaning={"control_tokens": "keep"})["document"]
    said = " ".join(document["warnings"])
    assert "{{name}} in 2 rows" in said and "{{author}} in 1 row" in said
    assert 'substitutions={"name": "…", "author": "…"}' in said
    for token in ("<|im_end|>", "<|end_of_stream|>", "[INST]", "<start_of_turn>"):
        assert f"{token} in 1 row" in said
    assert "<b>" not in said
    assert any("4 rows" in advice or "4 training rows" in advice for advice in document["advice"])
    assert prepare(workspace, write("b.json", alpaca(100)))["document"]["warnings"] == []


def test_tokens_are_estimated_without_a_model(workspace: Workspace, write: Write) -> None:
    rows = [{"prompt": "word " * i, "response": "fine " * 4} for i in range(1, 101)]
    tokens = prepare(workspace, write("p.jsonl", rows), dedupe=False)["document"]["tokens"]
    assert tokens["estimated"] is True
    assert tokens["p50"] == pytest.approx(50 + 4 + 10, rel=0.3)
    assert tokens["p50"] < tokens["p90"] < tokens["max"]


def test_tokens_are_counted_as_the_trainer_encodes_them(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    dataset = prepare(workspace, write("a.json", alpaca(30)), model="toy")
    template = chat_template.load(workspace, "toy")
    encoded = [template.encode(row) for split in ("train", "eval") for row in rows_of(dataset, split)]
    tokens = dataset["document"]["tokens"]
    assert tokens["estimated"] is False
    assert tokens["total"] == sum(len(ids) for ids, _ in encoded)
    assert tokens["max"] == max(len(ids) for ids, _ in encoded)
    assert tokens["loss_share"] == pytest.approx(sum(sum(mask) for _, mask in encoded) / tokens["total"], abs=1e-4)


def test_a_set_of_many_batches_is_split_whole_and_sampled_evenly_for_token_counts(
    workspace: Workspace, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the limits are lowered: thousands of encodings take seconds.
    monkeypatch.setattr("tunewright.pipeline.data.splits.BATCH_ROWS", 7)
    monkeypatch.setattr("tunewright.pipeline.data.statistics.sample.__defaults__", (10,))
    rows = [{"prompt": f"{i}", "response": "x " * (i + 1)} for i in range(40)]
    dataset = prepare(workspace, write("p.jsonl", rows), eval_fraction=0.25, model="toy")
    train, held_out = rows_of(dataset), rows_of(dataset, "eval")
    assert (len(train), len(held_out)) == (30, 10)
    by_number = {int(row[0]["content"]): row for row in train + held_out}
    assert sorted(by_number) == list(range(40))
    template = chat_template.load(workspace, "toy")
    mean = sum(len(template.encode(by_number[i])[0]) for i in range(0, 40, 4)) / 10
    tokens = dataset["document"]["tokens"]
    assert (tokens["sampled"], tokens["counted_rows"]) == (True, 10)
    assert (tokens["mean"], tokens["total"]) == (pytest.approx(mean, abs=0.05), round(mean * 40))


def test_the_manifest_holds_true_hashes_and_the_report_what_the_store_says(
    workspace: Workspace, write: Write, alpaca: Alpaca
) -> None:
    file = write("my rows.json", alpaca(30))
    dataset = prepare(workspace, file, seed=7)
    folder = Path(dataset["document"]["path"])
    assert folder == workspace.home.datasets / dataset["id"] and dataset["id"].startswith("ds-my-rows-")
    assert {entry.name for entry in folder.iterdir()} == {
        "train.parquet",
        "eval.parquet",
        "manifest.json",
        "report.json",
        "report.html",
    }
    manifest = read_json(folder / "manifest.json")
    source = manifest["files"][0]
    assert source["path"] == str(file)
    assert source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert source["size_bytes"] == file.stat().st_size
    for name, entry in manifest["written"].items():
        assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert manifest["arguments"]["seed"] == 7
    assert manifest["sha256"] == dataset["document"]["sha256"]
    report = read_json(folder / "report.json")
    assert report == {key: dataset["document"][key] for key in report}


def test_a_job_that_is_run_again_makes_its_one_dataset_whole(
    workspace: Workspace, write: Write, alpaca: Alpaca, tmp_path: Path
) -> None:
    spec = request.check(workspace, str(write("a.json", alpaca(30))), None, DatasetArguments())
    # As a kill between the folder and its row leaves it.
    half = workspace.home.datasets / spec["dataset_id"]
    half.mkdir()
    (half / "train.parquet").write_bytes(b"half")
    workspace.store.execute(
        "INSERT INTO jobs(id, kind, state, needs_device, spec, created_at) VALUES (?,?,?,?,?,?)",
        "job-x", "prepare_dataset", "running", False, json.dumps(spec), 0.0,
    )  # fmt: skip
    context = JobContext(workspace, "job-x", spec, tmp_path)
    first, second = run(context), run(context)
    assert first == second
    assert (first["dataset_id"], first["train_rows"], first["dropped"]) == (spec["dataset_id"], 28, {})
    assert [row["id"] for row in workspace.store.artifacts("dataset")] == [spec["dataset_id"]]
    assert len(rows_of(workspace.store.artifact(spec["dataset_id"]))) == 28


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*chat("Cold?"), {"role": "assistant", "content": "", "tool_calls": [CALL]}], "tools": [TOOL]},
        {"prompt": "Capital of Peru?", "chosen": "Lima.", "rejected": "Cusco."},
        {"prompt": "Capital of Peru?", "completion": "Lima.", "label": False},
        {"text": "Rain falls from clouds."},
    ],
    ids=["sft", "preference", "kto", "text"],
)
def test_a_dataset_of_every_kind_is_a_source_of_another(
    workspace: Workspace, write: Write, row: dict[str, Any]
) -> None:
    def only(dataset: Row) -> Record:
        (record,) = splits.read(Path(dataset["document"]["path"]) / "train.parquet")
        return record

    first = prepare(workspace, write("a.jsonl", [row]))
    assert only(prepare(workspace, first["id"])) == only(first)


def test_written_examples_and_a_dataset_mix_by_weight(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    written = authored.append(workspace, "faq", [{"prompt": f"Why {i}?", "response": f"So {i}."} for i in range(9)])
    other = prepare(workspace, write("a.json", alpaca(30)), eval_fraction=0)
    source = [{"source": written.dataset_id, "weight": 1}, {"source": other["id"], "weight": 2}]
    mixed = prepare(workspace, source, eval_fraction=0)["document"]
    assert [entry["rows"] for entry in mixed["sources"]] == [9, 18]


def test_progress_grows_to_its_total(workspace: Workspace, write: Write, alpaca: Alpaca) -> None:
    heard: list[tuple[float, float, str]] = []

    def hear(done: float, total: float, message: str) -> None:
        heard.append((done, total, message))

    prepare(workspace, write("a.jsonl", alpaca(2500)), on_progress=hear)
    done = [event[0] for event in heard]
    assert len(heard) > 4 and done == sorted(done)
    assert heard[-1][0] == heard[-1][1]
