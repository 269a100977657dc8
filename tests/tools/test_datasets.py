"""prepare_dataset and inspect_dataset as an agent uses them, and what they refuse."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from tunewright.pipeline import jobs, toy
from tunewright.pipeline.workspace import Workspace

pytestmark = pytest.mark.anyio

Call = Callable[..., Awaitable[dict[str, Any]]]
Refused = Callable[..., Awaitable[str]]
Write = Callable[[str, str], Path]


def _rows(count: int) -> str:
    return "".join(json.dumps({"question": f"What is {i}?", "answer": f"{i}!"}) + "\n" for i in range(count))


async def test_a_file_becomes_a_dataset_whose_next_steps_name_it(call: Call, write: Write) -> None:
    source = write("pairs.jsonl", _rows(40) + _rows(1) + '{"question": "Why?", "answer": ""}\n')
    answer = await call("prepare_dataset", source=str(source), model="toy", eval_fraction=0.1)
    assert (answer["rows_read"], answer["train_rows"], answer["eval_rows"]) == (42, 36, 4)
    assert {reason: dropped["count"] for reason, dropped in answer["dropped"].items()} == {"duplicate": 1, "empty": 1}
    assert answer["tokens"]["counted_by"] == "toy"
    assert {step["tool"] for step in answer["next_steps"]} == {"inspect_dataset", "plan_finetune"}
    assert all(step["arguments"]["dataset_id"] == answer["dataset_id"] for step in answer["next_steps"])


async def test_the_next_steps_of_prepare_work_as_they_stand(call: Call, write: Write) -> None:
    prepared = await call("prepare_dataset", source=str(write("pairs.jsonl", _rows(20))), model="toy")
    steps = {step["tool"]: step["arguments"] for step in prepared["next_steps"]}
    assert (await call("inspect_dataset", **steps["inspect_dataset"]))["view"] == "mask"
    assert (await call("plan_finetune", **steps["plan_finetune"]))["arguments"]["lora_rank"] == 16


async def test_what_a_model_must_not_repeat_is_masked_by_the_first_next_step(call: Call, write: Write) -> None:
    row = {"question": "Where?", "answer": "See https://shop:moss-Kettle-4417@stock.fernhill.example/heron, please."}
    given = {"source": str(write("pairs.jsonl", _rows(20) + json.dumps(row))), "name": "shop", "eval_fraction": 0.2}
    first = (await call("prepare_dataset", **given, cleaning={"html": "keep"}))["next_steps"][0]
    assert first["tool"] == "prepare_dataset"
    assert first["arguments"] == given | {"cleaning": {"html": "keep", "secrets": "mask"}}
    again = await call("prepare_dataset", **first["arguments"])
    assert again["mended"]["masked_secrets"]["count"] == 1
    assert [step["tool"] for step in again["next_steps"]] == ["inspect_dataset", "plan_finetune"]


async def test_what_the_caller_keeps_is_not_asked_about_again(call: Call, write: Write) -> None:
    row = {"question": "Who?", "answer": "Ring me, phone +44 7700 900461, after work."}
    source = write("pairs.jsonl", _rows(20) + json.dumps(row))
    kept = await call("prepare_dataset", source=str(source), cleaning={"personal_data": "keep"})
    assert kept["found"]["personal_data"] == {"phone": 1}
    assert [step["tool"] for step in kept["next_steps"]] == ["inspect_dataset", "plan_finetune"]


async def test_progress_of_prepare_arrives_and_grows(client: Client, write: Write) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        told.append((done, total, message))

    source = write("many.jsonl", _rows(40_000))
    result = await client.call_tool("prepare_dataset", {"source": str(source)}, progress_callback=on_progress)
    assert not result.is_error
    done = [entry[0] for entry in told]
    assert len(done) >= 3
    assert done == sorted(set(done))
    phases = {message.rsplit(" ", 1)[0] for _, _, message in told if message}
    assert {"Looking for duplicates", "Writing the splits", "Describing the rows"} & phases


async def test_a_cancelled_prepare_stops_and_leaves_nothing(client: Client, write: Write, workspace: Workspace) -> None:
    async def prepare() -> None:
        await client.call_tool("prepare_dataset", {"source": str(source)})

    source = write("huge.jsonl", _rows(300_000))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(prepare)
            while not any(workspace.home.datasets.iterdir()):
                await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
        while [row["state"] for row in jobs.newest(workspace)] != ["cancelled"]:
            await anyio.sleep(0.02)
    assert not list(workspace.home.datasets.iterdir())
    assert not workspace.store.artifacts()


async def test_the_three_views_show_messages_text_and_what_carries_loss(call: Call, dataset_id: str) -> None:
    plain = await call("inspect_dataset", dataset_id=dataset_id, rows=1)
    (row,) = plain["rows"]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    answer = row["messages"][1]["content"]

    rendered = await call("inspect_dataset", dataset_id=dataset_id, view="rendered", model="toy", rows=1)
    assert rendered["rows"][0]["text"].startswith("<|im_start|>user\n")

    masked = (await call("inspect_dataset", dataset_id=dataset_id, view="mask", model="toy", rows=1))["rows"][0]
    assert "".join(s["text"] for s in masked["segments"] if s["trained"]) == f"{answer}<|im_end|>"
    assert "".join(s["text"] for s in masked["segments"]) == rendered["rows"][0]["text"]


async def test_pages_of_rows_lead_to_the_end_of_the_split(call: Call, dataset_id: str) -> None:
    seen: list[int] = []
    arguments: dict[str, Any] | None = {"dataset_id": dataset_id, "rows": 7}
    while arguments:
        page = await call("inspect_dataset", **arguments)
        seen += [row["row"] for row in page["rows"]]
        arguments = next((s["arguments"] for s in page["next_steps"] if s["tool"] == "inspect_dataset"), None)
    assert seen == list(range(18))


async def test_a_unique_prefix_of_an_id_is_enough(call: Call, dataset_id: str) -> None:
    assert (await call("inspect_dataset", dataset_id=dataset_id[:6]))["dataset_id"] == dataset_id


async def test_an_unknown_id_is_refused_with_the_nearest(refused: Refused, dataset_id: str) -> None:
    wrong = f"{dataset_id}x"
    text = await refused("inspect_dataset", dataset_id=wrong)
    assert text.startswith(f"artifact_not_found: No dataset has the id '{wrong}'. Nearest: {dataset_id}.")
    assert 'Next: list_artifacts(kind="dataset").' in text


async def test_the_text_of_a_template_needs_a_model(refused: Refused, dataset_id: str) -> None:
    text = await refused("inspect_dataset", dataset_id=dataset_id, view="mask")
    assert text.startswith("model_needed: ")
    assert f'Next: inspect_dataset(dataset_id="{dataset_id}", view="mask", model=' in text


@pytest.mark.parametrize(
    ("name", "text", "code", "told"),
    [
        ("broken.jsonl", '{"question": \n{"question": \n', "broken_json", "line 1"),
        ("broken.json", '[\n{"question": "a"},\n{"question" "b"}]', "broken_json", "line 3"),
        ("other.csv", "colour,size\nred,7\n", "unknown_layout", "colour ('red'); size ('7')"),
        ("blank.jsonl", '{"question": "a", "answer": " "}\n', "dataset_empty", "1 empty"),
        ("nothing.jsonl", "", "empty_file", "0 bytes"),
        ("sheet.xlsx", "hello", "unsupported_file", ".jsonl"),
    ],
)
async def test_an_unusable_file_is_refused_and_leaves_nothing(
    refused: Refused, write: Write, workspace: Workspace, name: str, text: str, code: str, told: str
) -> None:
    path = write(name, text)
    error = await refused("prepare_dataset", source=str(path))
    assert error.startswith(f"{code}: ")
    assert str(path) in error or code == "dataset_empty"
    assert told in error
    assert error.endswith("Nothing was changed.")
    assert not list(workspace.home.datasets.iterdir())
    assert not workspace.store.artifacts()


async def test_a_missing_file_is_refused_with_the_nearest_in_its_folder(refused: Refused, write: Write) -> None:
    path = write("numbers.jsonl", _rows(3))
    text = await refused("prepare_dataset", source=str(path.with_name("number.jsonl")))
    assert text.startswith("source_not_found: There is no ")
    assert "Nearest: numbers.jsonl." in text


async def test_a_hub_that_is_not_reached_is_said_with_what_to_do(refused: Refused) -> None:
    text = await refused("prepare_dataset", source="nobody/some-dataset")
    assert text.startswith("hub_unreachable: ")
    assert "HF_ENDPOINT" in text


async def test_raw_text_and_pairs_are_prepared_and_not_offered_for_training(
    call: Call, refused: Refused, write: Write
) -> None:
    text = await call("prepare_dataset", source=str(write("story.txt", "Once upon a time there was a fox.\n")))
    assert (text["kind"], text["train_rows"]) == ("text", 1)
    pair = json.dumps({"prompt": "Capital of Peru?", "chosen": "Lima.", "rejected": "Cusco."})
    pairs = await call("prepare_dataset", source=str(write("pairs.jsonl", pair)))
    assert pairs["kind"] == "preference"
    for dataset in (text, pairs):
        assert [step["tool"] for step in dataset["next_steps"]] == ["inspect_dataset", "plan_finetune"]
        assert (await call("inspect_dataset", **dataset["next_steps"][0]["arguments"]))["rows"]
        told = await refused("start_finetune", dataset_id=dataset["dataset_id"], model="toy")
        assert told.startswith("dataset_of_another_kind: ")
        assert (await call("plan_finetune", **dataset["next_steps"][1]["arguments"]))["method"] in ("cpt", "dpo")


async def test_what_was_mended_and_found_is_in_the_result_and_on_the_page(call: Call, write: Write) -> None:
    rows = [
        {"question": "When?", "answer": "<p>Nine&nbsp;o'clock.</p>"},
        {"question": "Whom?", "answer": "jane.doe@mailbox.org"},
    ]
    answer = await call("prepare_dataset", source=str(write("p.jsonl", "\n".join(map(json.dumps, rows)))))
    assert answer["mended"]["html"]["count"] == 1
    assert answer["found"]["personal_data"] == {"email": 1}
    page = Path(answer["report_html"]).read_text(encoding="utf-8")
    assert "jane.doe" not in page and answer["dataset_id"] in page


async def test_a_tokenizer_that_cannot_be_had_leaves_no_dataset(
    refused: Refused, write: Write, workspace: Workspace
) -> None:
    source = str(write("pairs.jsonl", _rows(20)))
    assert (await refused("prepare_dataset", source=source, model="nobody/None-1B")).startswith(
        "model_not_downloadable"
    )
    assert not list(workspace.home.datasets.iterdir())


async def test_looking_at_rows_as_the_toy_sees_them_trains_nothing(
    call: Call, dataset_id: str, workspace: Workspace
) -> None:
    await call("inspect_dataset", dataset_id=dataset_id, view="rendered", model="toy")
    assert toy.folder(workspace.home).is_dir()
    assert not toy.is_trained(workspace.home)


async def test_too_few_rows_held_out_to_judge_by_lead_to_more(call: Call, write: Write) -> None:
    def rows(count: int) -> str:
        return "".join(
            json.dumps({"prompt": f"What is {i}?", "response": f"A number, {i}."}) + "\n" for i in range(count)
        )

    prepared = await call("prepare_dataset", source=str(write("some.jsonl", rows(100))), dedupe=False)
    again = prepared["next_steps"][0]
    assert again["tool"] == "prepare_dataset" and "too few to judge by" in again["why"]
    held_out = (await call(again["tool"], **again["arguments"]))["eval_rows"]
    assert held_out >= 10 > prepared["eval_rows"] > 0
    few = await call("prepare_dataset", source=str(write("few.jsonl", rows(20))), dedupe=False, eval_fraction=0.1)
    assert few["next_steps"][0]["tool"] == "inspect_dataset"
