"""Every layout of conversations and texts becomes the same records, its texts as they stand."""

import json
import pickle
import timeit
from typing import Any

import pytest

from tunewright.pipeline.data import layouts
from tunewright.pipeline.data.rows import Record

Row = dict[str, Any]


def chat(*texts: str, system: str = "") -> list[Row]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def said(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def sft(*texts: str, system: str = "") -> Record:
    return Record("sft", chat(*texts, system=system))


def turns(*pairs: tuple[str, Any], role: str = "from", content: str = "value") -> list[Row]:
    return [{role: name, content: text} for name, text in pairs]


def records(rows: list[Any], **arguments: Any) -> list[Record]:
    layout = layouts.find(rows, "data.json", **arguments)
    return [layouts.to_record(layout, row) for row in rows]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALL_AS_TEXT = json.dumps({"name": "weather", "arguments": {"city": "Paris"}})
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLED = Record(
    "sft",
    [
        {"role": "user", "content": "Rain in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"rain": true}'},
        {"role": "assistant", "content": "Yes."},
    ],
    tools=[TOOL],
)
TALK = turns(("human", "Hi"), ("gpt", "Hello"))
MESSAGES = chat("Hi", "Hello")
MARKED = "<think>\nTwo and two.\n</think>\n\n4"

# A row (or several), the format that is named, and the record of the first row.
CASES: dict[str, tuple[Any, str, Record]] = {
    # Prompts and answers in columns of their own
    "alpaca": ({"instruction": "Add.", "input": "1 + 1", "output": "2"}, "alpaca", sft("Add.\n1 + 1", "2")),
    "alpaca, capitalised": ({"Instruction": "Hi", "INPUT": "", " Output": "Hello"}, "alpaca", sft("Hi", "Hello")),
    "alpaca with system and history": (
        {"instruction": "c", "output": "d", "system": "Be brief.", "history": [["a", "b"]]},
        "alpaca",
        sft("a", "b", "c", "d", system="Be brief."),
    ),
    "alpaca with history as JSON text": (
        {"instruction": "c", "output": "d", "history": '[["a", "b"]]'}, "alpaca", sft("a", "b", "c", "d"),
    ),
    "alpaca with <noinput>": ({"instruction": "Hi", "input": "<noinput>", "output": "x"}, "alpaca", sft("Hi", "x")),
    "alpaca beside its rendered text": (
        {"instruction": "Hi", "output": "Hello", "text": "### Instruction:\nHi\n\n### Response:\nHello"},
        "alpaca",
        sft("Hi", "Hello"),
    ),
    "alpaca in Chinese columns": ({"指令": "你好", "输出": "很好"}, "alpaca", sft("你好", "很好")),
    "Dolly": (
        {"instruction": "Who?", "context": "Ann came.", "response": "Ann.", "category": "qa"},
        "alpaca",
        sft("Who?\nAnn came.", "Ann."),
    ),
    "German": ({"Frage": "Wo?", "Antwort": "Hier."}, "question_answer", sft("Wo?", "Hier.")),
    "Russian": ({"вопрос": "Где?", "ответ": "Здесь."}, "question_answer", sft("Где?", "Здесь.")),
    "prompt and completion": ({"prompt": "Hi", "completion": "Hello"}, "prompt_completion", sft("Hi", "Hello")),
    "prompt and completion as messages": (
        {"prompt": chat("Hi", system="S"), "completion": said("Hello")},
        "prompt_completion",
        sft("Hi", "Hello", system="S"),
    ),
    "prompt and completion as messages in CSV": (
        {"prompt": json.dumps(chat("Hi")), "completion": json.dumps(said("Hello"))},
        "prompt_completion",
        sft("Hi", "Hello"),
    ),
    "prompt and a JSON answer": (
        {"prompt": "As JSON", "completion": '[{"name": "Ann"}]'},
        "prompt_completion",
        sft("As JSON", '[{"name": "Ann"}]'),
    ),
    "prompt and response": ({"prompt": "Hi", "response": "Hello"}, "prompt_completion", sft("Hi", "Hello")),
    "query and response": ({"query": "Hi", "response": "Hello"}, "prompt_completion", sft("Hi", "Hello")),
    "input and output": ({"input": "Hi", "output": "Hello"}, "prompt_completion", sft("Hi", "Hello")),
    "question and answer": ({"Question": "Why?", "Answer": "So."}, "question_answer", sft("Why?", "So.")),
    "q and a": ({"Q": "Why?", "A": "So."}, "question_answer", sft("Why?", "So.")),
    "question, input and output": (
        {"question": "Why?", "input": "Rain.", "output": "So."}, "question_answer", sft("Why?\nRain.", "So."),
    ),
    "problem, solution and answer": (
        {"problem": "1 + 1", "solution": "It is 2.", "answer": "2"}, "question_answer", sft("1 + 1", "It is 2."),
    ),
    "OpenOrca": (
        {"id": "x.1", "system_prompt": "S", "question": "Why?", "response": "So."},
        "question_answer",
        sft("Why?", "So.", system="S"),
    ),
    "C-Eval, with its options": (
        {"id": 0, "question": "1 + 1 =", "A": 1, "B": "2", "C": "3", "D": "4", "answer": "B", "explanation": "…"},
        "question_answer",
        sft("1 + 1 =\nA. 1\nB. 2\nC. 3\nD. 4", "B"),
    ),
    "numbers as answers": (
        [{"question": "6 × 7", "answer": 42}, {"question": "True?", "answer": True}],
        "question_answer",
        sft("6 × 7", "42"),
    ),
    # Reasoning
    "an answer with its thinking": ({"question": "2 + 2", "answer": MARKED}, "question_answer", sft("2 + 2", MARKED)),
    "thinking in a column": (
        {"Question": "2 + 2", "Complex_CoT": "Two and two.", "Response": "4"},
        "question_answer (reasoning)",
        sft("2 + 2", MARKED),
    ),
    "thinking with its tags in a column": (
        {"instruction": "2 + 2", "reasoning": "<think>\nTwo and two.\n</think>", "output": "4"},
        "alpaca (reasoning)",
        sft("2 + 2", MARKED),
    ),
    "thinking in a column and in the answer": (
        {"prompt": "2 + 2", "rationale": "Two and two.", "response": MARKED},
        "prompt_completion (reasoning)",
        sft("2 + 2", MARKED),
    ),
    # Conversations
    "ShareGPT": ({"conversations": TALK}, "sharegpt", sft("Hi", "Hello")),
    "ShareGPT with a system column": (
        {"system": "S", "conversations": TALK}, "sharegpt", sft("Hi", "Hello", system="S"),
    ),
    "ShareGPT, other roles": (
        {"conversation": turns(("system", "S"), ("user", "a"), ("chatgpt", "b"), ("Human", "c"), ("bard", "d"))},
        "sharegpt",
        sft("a", "b", "c", "d", system="S"),
    ),
    "ShareGPT as JSON text": ({"conversations": json.dumps(TALK)}, "sharegpt", sft("Hi", "Hello")),
    "ShareGPT as pandas prints it": ({"conversations": str(TALK)}, "sharegpt", sft("Hi", "Hello")),
    "ShareGPT under messages": ({"messages": TALK}, "sharegpt", sft("Hi", "Hello")),
    "ShareGPT under any name": ({"id": 1, "chat_log": TALK}, "sharegpt", sft("Hi", "Hello")),
    "ShareGPT calling a tool": (
        {
            "conversations": turns(
                ("human", "Rain in Paris?"),
                ("function_call", CALL_AS_TEXT),
                ("observation", '{"rain": true}'),
                ("gpt", "Yes."),
            ),
            "tools": json.dumps([{"name": "weather", "parameters": {"type": "object"}}]),
        },
        "sharegpt",
        CALLED,
    ),
    "odd roles, who opens being the user": (
        [
            {"dialogue": turns(("customer", "Hi"), ("agent", "Hello"), role="speaker", content="text")},
            {"dialogue": turns(("Customer", "a"), ("agent", "b"), ("customer", "c"), role="speaker", content="text")},
        ],
        "sharegpt",
        sft("Hi", "Hello"),
    ),
    "one odd role": ({"conversations": turns(("human", "Hi"), ("wizard", "Hello"))}, "sharegpt", sft("Hi", "Hello")),
    "pairs of human and assistant": (
        {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]},
        "sharegpt",
        sft("a", "b", "c", "d"),
    ),
    "pairs with a system text": (
        {"conversation": [{"system": "S", "input": "a", "output": "b"}]}, "sharegpt", sft("a", "b", system="S"),
    ),
    "texts in turn": ({"id": "7", "data": ["a", "b", "c", "d"]}, "sharegpt", sft("a", "b", "c", "d")),
    "ChatML": ({"messages": chat("Hi", "Hello", system="S")}, "chatml", sft("Hi", "Hello", system="S")),
    "ChatML beside a prompt": ({"prompt": "x", "messages": MESSAGES}, "chatml", sft("Hi", "Hello")),
    "ChatML as JSON text": ({"messages": json.dumps(MESSAGES)}, "chatml", sft("Hi", "Hello")),
    "ChatML with a developer": (
        {"messages": [{"role": "developer", "content": "S"}, *MESSAGES]}, "chatml", sft("Hi", "Hello", system="S"),
    ),
    "ChatML with parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, "i"]}, *said("Hello")]},
        "chatml",
        sft("Hi", "Hello"),
    ),
    "ChatML with reasoning": (
        {"messages": [*chat("2 + 2"), {"role": "assistant", "content": "4", "reasoning_content": "Two and two."}]},
        "chatml",
        sft("2 + 2", MARKED),
    ),
    "OpenAI calling a tool": (
        {
            "messages": [
                {"role": "user", "content": "Rain in Paris?", "tool_calls": None},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": '{"rain": true}'},
                {"role": "assistant", "content": "Yes."},
            ],
            "tools": [TOOL],
        },
        "chatml",
        CALLED,
    ),
    "OpenAI's older function call": (
        {
            "messages": [
                {"role": "user", "content": "Rain in Paris?"},
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "weather", "arguments": {"city": "Paris"}},
                },
                {"role": "function", "name": "weather", "content": {"rain": True}},
                {"role": "assistant", "content": "Yes."},
            ],
            "functions": [TOOL["function"]],
        },
        "chatml",
        CALLED,
    ),
    "Hermes calling a tool": (
        {
            "conversations": turns(
                ("human", "Rain in Paris?"),
                ("gpt", "<tool_call>\n{'arguments': {'city': 'Paris'}, 'name': 'weather'}\n</tool_call>"),
                ("tool", '<tool_response>\n{"rain": true}\n</tool_response>'),
                ("gpt", "Yes."),
            ),
            "tools": json.dumps([TOOL]),
        },
        "sharegpt",
        CALLED,
    ),
    # Rendered conversations
    "rendered ChatML": (
        {
            "text": "<|im_start|>system\nS<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        },
        "text (rendered conversations)",
        sft("Hi", "Hello", system="S"),
    ),
    "rendered Llama 3": (
        {
            "text": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        },
        "text (rendered conversations)",
        sft("Hi", "Hello"),
    ),
    "rendered Llama 2": (
        {"text": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] a [/INST] b </s>"},
        "text (rendered conversations)",
        sft("Hi", "Hello", "a", "b", system="S"),
    ),
    "rendered Gemma": (
        {"text": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"},
        "text (rendered conversations)",
        sft("Hi", "Hello"),
    ),
    "rendered Zephyr": (
        {"text": "<|user|>\nHi</s>\n<|assistant|>\nHello</s>"}, "text (rendered conversations)", sft("Hi", "Hello"),
    ),
    "rendered DeepSeek": (
        {"text": "<｜begin▁of▁sentence｜>S<｜User｜>Hi<｜Assistant｜>Hello<｜end▁of▁sentence｜>"},
        "text (rendered conversations)",
        sft("Hi", "Hello", system="S"),
    ),
    "Guanaco": ({"text": "### Human: Hi### Assistant: Hello"}, "text (rendered conversations)", sft("Hi", "Hello")),
    "rendered Alpaca": (
        {"text": "Below is a task.\n\n### Instruction:\nAdd.\n\n### Input:\n1 + 1\n\n### Response:\n2"},
        "text (rendered conversations)",
        sft("Add.\n1 + 1", "2", system="Below is a task."),
    ),
    # Raw text
    "text": (
        {"text": " Once upon a time\n", "url": "https://x.org"}, "text", Record("text", text=" Once upon a time\n"),
    ),
    "content alone": ({"id": 1, "content": "Once"}, "text", Record("text", text="Once")),
    "document alone": ({"document": "Once"}, "text", Record("text", text="Once")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_layout_is_recognised_and_read(case: str) -> None:
    given, format, expected = CASES[case]
    rows = given if isinstance(given, list) else [given]
    layout = layouts.find(rows, "data.json")
    assert (layout.format, layout.kind) == (format, expected.kind)
    sent = pickle.loads(pickle.dumps(layout))
    assert layouts.to_record(sent, rows[0]) == expected


def test_numbers_and_truth_values_in_text_cells_are_their_text() -> None:
    rows = [{"prompt": value, "response": "x"} for value in (4, 0.5, True, None, float("nan"), "s")]
    assert [record.messages[0]["content"] for record in records(rows)] == ["4", "0.5", "True", "", "", "s"]


def test_texts_stay_as_they_stand() -> None:
    text = "  <|im_end|>\r\n{{name}} <b>ä\u00a0</b>\t\n"
    assert records([{"instruction": text, "output": text}]) == [sft(text, text)]


def test_a_plain_row_takes_microseconds() -> None:
    row = {"instruction": "Explain it. " * 20, "input": "", "output": "A word. " * 70}
    layout = layouts.find([row], "data.json")
    # 3 µs where it was measured; a machine under load is given thirty times that.
    assert min(timeit.repeat(lambda: layouts.to_record(layout, row), number=1000, repeat=5)) < 0.1
