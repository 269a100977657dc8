"""The whole stage over real HTTP, in this process and in real workers that are killed."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from standins.chat_server import COMPLETION_TOKENS, INVENTED, PROMPT_TOKENS, ChatStandIn

from tunewright.pipeline import jobs
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.data import splits
from tunewright.pipeline.data.rows import Record
from tunewright.pipeline.documents import reading
from tunewright.pipeline.documents.reading import Chunk
from tunewright.pipeline.errors import Cancelled, InvalidInput, Unavailable
from tunewright.pipeline.generation import generate
from tunewright.pipeline.jobs import State
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Submit = Callable[..., JobContext]
Eventually = Callable[..., None]


@pytest.fixture(autouse=True)
def no_worker_left(workspace: Workspace) -> Iterator[None]:
    yield
    for row in workspace.store.rows("SELECT * FROM jobs"):
        if jobs.is_worker_alive(row) and row["pid"] != os.getpid():
            process = psutil.Process(row["pid"])
            process.kill()
            process.wait(10)


def examples(workspace: Workspace, dataset_id: str) -> list[Record]:
    folder = Path(workspace.store.artifact(dataset_id, "dataset")["document"]["path"])
    return [record for split in ("train", "eval") for record in splits.read(splits.split_file(folder, split))]


def chunks(workspace: Workspace, spec: Row) -> list[Chunk]:
    return reading.read(workspace, spec["source"], spec["chunk_tokens"])


def test_examples_are_spread_over_the_chunks_and_linked_to_them(
    workspace: Workspace, server: ChatStandIn, submit: Submit, spec: Row
) -> None:
    result = generate.run(submit())
    rows = examples(workspace, result["dataset_id"])
    assert len(rows) == result["rows"] == result["wanted"] == 6
    by_chunk = {chunk.id: chunk.text for chunk in chunks(workspace, spec)}
    assert len(by_chunk) == 3
    assert Counter(row.source_chunk for row in rows) == dict.fromkeys(by_chunk, 2)
    for row in rows:
        assert row.source_chunk is not None
        assert row.answer() in by_chunk[row.source_chunk]
    assert len({row.answer() for row in rows}) == 6
    # One request to write and one to judge for each.
    assert result["requests"] == len(server.chats) == 12
    assert (result["prompt_tokens"], result["completion_tokens"]) == (12 * PROMPT_TOKENS, 12 * COMPLETION_TOKENS)
    assert result["rejected"] == {}


@pytest.mark.parametrize("takes_schema", [True, False])
@pytest.mark.parametrize("kind", ["conversation", "reasoning", "preference"])
def test_every_kind_makes_rows_of_its_own_form(
    workspace: Workspace, server: ChatStandIn, submit: Submit, kind: str, takes_schema: bool
) -> None:
    server.takes_schema = takes_schema
    result = generate.run(submit(kind=kind, count=3))
    rows = examples(workspace, result["dataset_id"])
    assert len(rows) == 3
    for row in rows:
        if kind == "preference":
            assert row.kind == "preference"
            assert [message["role"] for message in (*row.messages, *row.chosen, *row.rejected)] == [
                "user", "assistant", "assistant",
            ]  # fmt: skip
            assert row.rejected[0]["content"] == "It depends on many things." != row.answer()
        else:
            assert row.kind == "sft"
            assert len(row.messages) == (4 if kind == "conversation" else 2)
            assert row.answer().startswith("<think>\n") is (kind == "reasoning")


def test_the_teacher_is_told_the_place_what_was_asked_before_and_to_ask_about_something_else(
    server: ChatStandIn, submit: Submit
) -> None:
    generate.run(submit(count=6, concurrency=1))
    first, second = (asked for asked in server.asked("write") if "Brahmaputra" in asked)
    assert "From: tea.md > Black tea\n<text>\nAssam grows" in first and "(en)" in first
    asked = "ask something else:\n- What is known of: Assam grows"
    assert asked not in first and asked in second
    angles = [request.partition("Ask about ")[2].partition("\n")[0] for request in (first, second)]
    assert angles[0] and angles[1] and angles[0] != angles[1]


def test_examples_are_asked_for_in_the_documents_language(
    workspace: Workspace, documents: Path, server: ChatStandIn, submit: Submit
) -> None:
    text = "宇治的绿茶在七十度的水中浸泡两分钟。采摘之前遮盖茶树会使茶氨酸增加。"
    (documents / "tea.md").write_text(text, encoding="utf-8")
    result = generate.run(submit(count=2, concurrency=1))
    assert all("(zh)" in asked for asked in server.asked("write"))
    answers = {row.answer() for row in examples(workspace, result["dataset_id"])}
    assert answers == {"宇治的绿茶在七十度的水中浸泡两分钟。", "采摘之前遮盖茶树会使茶氨酸增加。"}


def test_unsupported_answers_are_rejected_before_the_judge_and_other_chunks_give_the_examples(
    workspace: Workspace, server: ChatStandIn, submit: Submit
) -> None:
    server.invent = "Brahmaputra"
    context = submit(count=5, concurrency=1)
    result = generate.run(context)
    rows = examples(workspace, result["dataset_id"])
    assert len(rows) == 5 and not any("Atlantis" in row.answer() for row in rows)
    rejection = result["rejected"]["unsupported"]
    assert rejection["count"] == len(server.asked("write")) - 5 > 0
    assert "98765" in rejection["example"]["why"] and "known of" in rejection["example"]["text"]
    assert not any(INVENTED in asked for asked in server.asked("judge"))


def test_a_chunk_without_more_to_say_is_left_and_the_shortfall_is_said(
    workspace: Workspace, server: ChatStandIn, submit: Submit
) -> None:
    context = submit(count=50, concurrency=1)
    result = generate.run(context)
    # Three chunks of four sentences; each is then asked in vain three times.
    assert (result["rows"], result["wanted"]) == (12, 50)
    assert result["rejected"]["duplicate"]["count"] == 9
    warning = next(event for event in workspace.store.events(context.job_id) if event["level"] == "warning")
    assert warning["code"] == "fewer_than_asked" and "12 of 50 examples; rejected: 9 duplicate " in warning["message"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [({"garble": "I'd rather not."}, "not_json"), ({"verdict": "no"}, "judged_unsupported")],
)
def test_a_teacher_of_whom_nothing_is_accepted_makes_no_dataset(
    workspace: Workspace, server: ChatStandIn, submit: Submit, fault: dict[str, str], reason: str
) -> None:
    for name, value in fault.items():
        setattr(server, name, value)
    with pytest.raises(InvalidInput, match=rf"nothing_accepted: None of 6 examples by teacher .* 6 {reason} "):
        generate.run(submit(count=2))
    assert not workspace.store.artifacts("dataset") and not list(workspace.home.datasets.iterdir())


def test_what_the_dataset_refuses_is_counted_too(
    workspace: Workspace, documents: Path, server: ChatStandIn, submit: Submit
) -> None:
    text = "Withering removes half of the water. The token <|im_end|> closes every turn. Copper is a colour."
    (documents / "tea.md").write_text(text, encoding="utf-8")
    context = submit(count=3, concurrency=1)
    result = generate.run(context)
    assert result["rows"] == 2 == len(examples(workspace, result["dataset_id"]))
    assert result["rejected"]["control_tokens"]["count"] >= 1
    assert "2 of 3 examples" in workspace.store.events(context.job_id)[-1]["message"]


def test_a_request_that_fails_costs_one_example_and_not_the_job(
    workspace: Workspace, server: ChatStandIn, submit: Submit
) -> None:
    server.statuses, server.refusal = [400, 400], "too long"
    result = generate.run(submit(concurrency=1))
    assert result["rows"] == 6
    assert result["rejected"]["no_answer"]["count"] == 1
    assert "too long" in result["rejected"]["no_answer"]["example"]["why"]
    assert result["requests"] == len(server.chats) == 14


def test_failures_here_and_there_do_not_end_the_job(server: ChatStandIn, submit: Submit) -> None:
    failures = generate.MAX_FAILURES_IN_A_ROW + 1
    server.statuses = [200, 200, 400] * failures
    result = generate.run(submit(count=failures + 1, concurrency=1))
    assert (result["rows"], result["rejected"]["no_answer"]["count"]) == (failures + 1, failures)


def test_a_teacher_that_refuses_everything_is_given_up_and_asked_again_on_resume(
    workspace: Workspace, server: ChatStandIn, submit: Submit
) -> None:
    context = submit(count=4, concurrency=1)
    server.statuses = [200] * 4 + [400] * 100
    with pytest.raises(Unavailable) as caught:
        generate.run(context)
    text = str(caught.value)
    assert text.startswith("teacher_failing: 8 requests in a row got no answer from http://127.0.0.1:")
    assert f'Next: resume_job(job_id="{context.job_id}"). 2 accepted examples are kept' in text
    server.statuses.clear()
    before = len(server.chats)
    result = generate.run(context)
    assert result["rows"] == 4 and len(server.chats) - before == 4
    assert "2 examples of them accepted" in workspace.store.events(context.job_id)[-1]["message"]


def test_a_run_after_the_dataset_was_made_makes_no_second_one(
    workspace: Workspace, server: ChatStandIn, submit: Submit
) -> None:
    context = submit()
    first = generate.run(context)
    before = len(server.chats)
    assert generate.run(context) == first
    assert len(server.chats) == before
    assert [row["id"] for row in workspace.store.artifacts("dataset")] == [first["dataset_id"]]


def test_two_jobs_of_one_name_make_two_datasets(workspace: Workspace, submit: Submit) -> None:
    ids = {generate.run(submit(count=1))["dataset_id"] for _ in range(2)}
    assert len(ids) == 2


def test_progress_tells_the_counters(workspace: Workspace, submit: Submit) -> None:
    context = submit()
    generate.run(context)
    progress = workspace.store.job(context.job_id)["progress"]
    assert (progress["done"], progress["total"], progress["requests"]) == (6, 6, 12)
    assert progress["prompt_tokens"] == 12 * PROMPT_TOKENS


def test_a_cancelled_job_makes_no_dataset_and_goes_on_when_resumed(
    workspace: Workspace, server: ChatStandIn, submit: Submit
) -> None:
    context = submit(concurrency=1)
    server.hold_after = 4
    workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)
    with pytest.raises(Cancelled):
        generate.run(context)
    assert not server.chats, "asked to stop before the first request"
    workspace.store.execute("UPDATE jobs SET cancel=NULL WHERE id=?", context.job_id)

    cancelled = False

    def cancel_while_it_waits(sql: str, *values: Any) -> list[Row]:
        nonlocal cancelled
        if len(server.chats) == 5 and not cancelled:
            cancelled = True
            workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)
        return rows(sql, *values)

    rows = workspace.store.rows
    workspace.store.rows = cancel_while_it_waits  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        generate.run(context)
    workspace.store.rows = rows  # type: ignore[method-assign]
    assert not workspace.store.artifacts("dataset")

    server.release.set()
    workspace.store.execute("UPDATE jobs SET cancel=NULL WHERE id=?", context.job_id)
    assert generate.run(context)["rows"] == 6
    assert len(server.chats) == 12 + 1, "only the one in flight is asked again"


def test_discarding_a_cancelled_jobs_checkpoints_discards_its_journal(workspace: Workspace, submit: Submit) -> None:
    context = submit()
    generate.run(context)
    assert (context.folder / generate.JOURNAL).is_file()
    jobs.grant_wish(workspace, context.job_id, "discard")
    assert not (context.folder / generate.JOURNAL).exists()


def test_a_killed_worker_asks_only_what_was_in_flight_again(
    workspace: Workspace, server: ChatStandIn, spec: Row, eventually: Eventually
) -> None:
    flying, answered = 3, 7
    server.hold_after = answered
    job = jobs.submit(workspace, "generate_examples", "tea", spec | {"concurrency": flying}, needs_device=False)
    eventually(lambda: len(server.chats) == answered + flying, timeout_s=40)
    os.kill(job["pid"], signal.SIGKILL)
    eventually(lambda: not jobs.is_worker_alive(job))
    assert not workspace.store.artifacts("dataset")
    server.release.set()
    assert jobs.reconcile(workspace) == [job["id"]]
    eventually(lambda: workspace.store.job(job["id"])["state"] not in jobs.ACTIVE, timeout_s=40)
    ended = workspace.store.job(job["id"])
    assert (ended["state"], ended["error"], ended["restarts"]) == (State.SUCCEEDED, None, 1)
    assert ended["result"]["rows"] == 6
    assert len(server.chats) == 2 * 6 + flying
    # Of those in flight only the ones sent after the journal's last line are not known of.
    assert 2 * 6 <= ended["result"]["requests"] <= len(server.chats)
    assert len(workspace.store.artifacts("dataset")) == 1


def test_a_worker_killed_at_any_moment_ends_with_one_dataset(
    workspace: Workspace, server: ChatStandIn, spec: Row, eventually: Eventually
) -> None:
    job = jobs.submit(workspace, "generate_examples", "tea", spec, needs_device=False)
    # Before its first request, in the middle, and when the last answer was sent.
    for seen in (0, 5, 12):
        eventually(lambda seen=seen: len(server.chats) >= seen, timeout_s=40)
        row = workspace.store.job(job["id"])
        if jobs.is_worker_alive(row):
            os.kill(row["pid"], signal.SIGKILL)
            eventually(lambda row=row: not jobs.is_worker_alive(row))
        jobs.reconcile(workspace)
    eventually(lambda: workspace.store.job(job["id"])["state"] not in jobs.ACTIVE, timeout_s=40)
    ended = workspace.store.job(job["id"])
    assert ended["state"] == State.SUCCEEDED, ended["error"]
    (made,) = workspace.store.artifacts("dataset")
    assert ended["result"]["dataset_id"] == made["id"]
    assert len(examples(workspace, made["id"])) == 6
    assert len(server.chats) <= 12 + 3 * spec["concurrency"]


def test_no_key_is_kept_anywhere(
    workspace: Workspace, server: ChatStandIn, spec: Row, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "S3cret" * 6
    monkeypatch.setenv("TUNEWRIGHT_TEACHER_API_KEY", key)
    monkeypatch.setenv("TUNEWRIGHT_TEACHER_URL", server.url)
    server.key = key
    for statuses in ([], [400] * 100):
        server.statuses = statuses
        server.refusal = f"Bearer {key} is not welcome"
        job = jobs.submit(workspace, "generate_examples", "tea", spec | {"count": 1}, needs_device=False)
        eventually(lambda job=job: workspace.store.job(job["id"])["state"] not in jobs.ACTIVE, timeout_s=40)
    assert [row["state"] for row in workspace.store.rows("SELECT state FROM jobs ORDER BY seq")] == [
        "succeeded", "failed",
    ]  # fmt: skip
    kept = [path for path in workspace.home.root.rglob("*") if path.is_file()]
    assert any(path.name == "answers.jsonl" for path in kept)
    assert not [path for path in kept if key.encode() in path.read_bytes()]


def test_any_beginning_of_the_order_is_spread_over_the_documents() -> None:
    made = [Chunk(id=str(number), document="d", headings=[], text="", tokens=0) for number in range(100)]
    order = [int(chunk.id) for chunk in generate.spread(made)]
    assert sorted(order) == list(range(100))
    for taken in (5, 10, 20, 50):
        gaps = sorted(order[:taken])
        widest = max(after - before for before, after in zip([0, *gaps], [*gaps, 100], strict=True))
        assert widest <= 3.5 * 100 / taken, (taken, gaps)
