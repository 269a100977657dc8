"""A job's page: whole, self-contained, harmless, and true to what the store and the files say."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline import files, reports
from tunewright.pipeline.errors import InvalidInput, NotFound
from tunewright.pipeline.store import Row
from tunewright.pipeline.validation import pairs
from tunewright.pipeline.workspace import Workspace

AddJob = Callable[..., Row]
Sample = Callable[[int], dict[str, Any]]
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"
# Made here, so that no scanner takes this file for a leak.
KEY = "hf_" + "QwErTyUiOpAsDfGhJkLzXcVbNmPoIuYtRe"


class Page(HTMLParser):
    """Elements with their attributes, the visible text, and what was left open or closed twice."""

    VOID = frozenset({"meta", "br", "path"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def is_well_formed(self) -> bool:
        return (self.open, self.wrong) == ([], [])


def words_of(workspace: Workspace, job: Row) -> str:
    return Page(reports.page(workspace, job["id"])).words


@pytest.fixture
def everything(run: Row, validation: Row, benchmark: Row, export: Row) -> list[Row]:
    return [run, validation, benchmark, export]


def test_the_page_of_a_run_tells_of_all_that_became_of_it(workspace: Workspace, everything: list[Row]) -> None:
    words = words_of(workspace, everything[0])
    for said in (
        "clinic", "succeeded", "on unsloth/Qwen3-8B", "ad-clinic-a1b2",
        "Asked for: sft on 5,700 rows of clinic, QLoRA of rank 16, learning rate 0.0002, 3 epochs.",
        "Tuned is better on loss by 0.67 [0.55, 0.79]", "50 samples of ds-clinic-7f3k, eval split",
        "9,512", "6.91 GiB", "10 min", "gradient_accumulation 2", "batch_size 8 → 4", "5,700", "1.2%", "zh 93%",
        "speed 9,900 tokens/s", "peak memory 7.4 GiB 6.9 GiB 0.93 ×", "train loss, median of 15",
        "chrF ↑ 35.9 48.2 +12.3 [8.1, 16.4]", "ROUGE-L ↑ 50.1 51 +0.90 [-1.40, 3.20]", "invalid json 6 0",
        "8 of 50: the 3 that gained most on chrF", "Do not induce vomiting.", "首先考虑早孕",
        "C-Eval, 5-shot", "tuned 75.5% [73.2, 77.8]", "law 17 of 24 17 of 24",
        "Mean over the subjects, as leaderboards give it: tuned 74.5%, base 75.2%.", "gguf:q4_k_m recommended",
        "5.03 GB 0.031 92.9% 1.3", "9 of 10", "device NVIDIA H200", "Going on with less: batch_size 4.",
        "Judge pairs of its answers blindly.", 'publish_to_ollama(export_id="ex-clinic-g7h8"',
    ):  # fmt: skip
        assert said in words, said


@pytest.mark.parametrize("kind", reports.KINDS)
def test_every_kind_has_a_page_that_asks_nothing_of_the_network(
    workspace: Workspace, everything: list[Row], kind: str
) -> None:
    (job,) = [job for job in everything if job["kind"] == kind]
    source = reports.page(workspace, job["id"])
    page = Page(source)
    assert page.is_well_formed
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "form"}
    assert not [attributes for _, attributes in page.elements if {"src", "onclick", "onerror"} & set(attributes)]
    assert {attributes["href"] for tag, attributes in page.elements if tag == "a"} <= {
        "../../datasets/ds-clinic-7f3k/report.html"
    }
    assert "url(" not in source and "http" not in source.replace("http-equiv", "")


def test_the_link_to_the_datasets_report_leads_there_from_the_written_page(workspace: Workspace, run: Row) -> None:
    path = reports.write(workspace, run["id"])
    assert path == workspace.home.jobs / run["id"] / "report.html"
    (link,) = re.findall(r'href="([^"]+)"', path.read_text(encoding="utf-8"))
    assert (path.parent / link).resolve() == (workspace.home.datasets / "ds-clinic-7f3k" / "report.html").resolve()


def test_an_evaluations_page_tells_of_itself_and_not_of_a_newer_one(
    workspace: Workspace, validation: Row, add_job: AddJob
) -> None:
    newer = {**validation["result"], "sentence": "Nothing was compared.", "metrics": {}}
    add_job("validate", "job-newer-9999", validation["spec"], newer)
    words = words_of(workspace, validation)
    assert "Validation of clinic" in words
    assert "chrF by 12.3" in words and "Nothing was compared." not in words


def test_a_runs_page_shows_the_newest_validation_that_succeeded(
    workspace: Workspace, run: Row, validation: Row, add_job: AddJob
) -> None:
    newer = {**validation["result"], "sentence": "Tuned is worse on chrF by 3.0 [1.0, 5.0].", "metrics": {}}
    add_job("validate", "job-newer-9999", validation["spec"], newer)
    add_job("validate", "job-failed-9999", validation["spec"], state="failed")
    words = words_of(workspace, run)
    assert "Tuned is worse on chrF by 3.0" in words and "better on loss" not in words


def test_texts_of_the_data_and_of_models_are_shown_as_text_and_run_nowhere(
    workspace: Workspace, run: Row, validation: Row, benchmark: Row, dataset: Row, sample: Sample
) -> None:
    hostile = sample(0)
    hostile["messages"][0]["content"] = hostile["reference"] = hostile["tuned"]["text"] = ATTACK
    hostile["tuned"]["findings"] = [{"kind": "loop", "passage": f'"{ATTACK}'}]
    folder = workspace.home.jobs / validation["id"]
    files.write_text(folder / "samples.jsonl", json.dumps(hostile) + "\n")
    result = {**validation["result"], "sentence": ATTACK, "notes": [ATTACK]}
    workspace.store.execute("UPDATE jobs SET result=? WHERE id=?", json.dumps(result), validation["id"])
    workspace.store.execute("UPDATE artifacts SET name=? WHERE kind='adapter'", ATTACK)
    workspace.store.add_event(run["id"], "warning", ATTACK, ATTACK)
    page = Page(reports.page(workspace, run["id"]))
    assert page.is_well_formed
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert page.words.count("alert(1)") >= 8


def test_personal_data_and_secrets_in_answers_and_events_are_masked(
    workspace: Workspace, run: Row, validation: Row, sample: Sample
) -> None:
    leaking = sample(0)
    leaking["tuned"]["text"] = f"Write to jane.roe@posteo.de with {KEY}"
    leaking["messages"][0]["content"] = "I am jane.roe@posteo.de"
    leaking["tuned"]["findings"] = [{"kind": "loop", "passage": "jane.roe@posteo.de"}]
    files.write_text(workspace.home.jobs / validation["id"] / "samples.jsonl", json.dumps(leaking) + "\n")
    workspace.store.add_event(run["id"], "warning", "x", f"jane.roe@posteo.de said {KEY}")
    source = reports.page(workspace, run["id"])
    assert "jane.roe" not in source and KEY not in source
    assert "Write to [email] with [api_key]" in source


def test_a_long_answer_is_shown_by_its_beginning(workspace: Workspace, validation: Row, sample: Sample) -> None:
    endless = sample(0)
    endless["tuned"]["text"] = "on and on " * 5000
    files.write_text(workspace.home.jobs / validation["id"] / "samples.jsonl", json.dumps(endless) + "\n")
    source = reports.page(workspace, validation["id"])
    assert "on and on on and on" in source and len(source) < 60_000


def test_who_judges_is_warned_and_the_win_rate_stands_once_there_are_verdicts(
    workspace: Workspace, run: Row, validation: Row
) -> None:
    warning = "Whoever is to judge the blind pairs does so before reading on."
    assert warning in words_of(workspace, run)
    # Asking for the page is no look at the pairs.
    assert not (workspace.home.jobs / validation["id"] / pairs.JUDGEMENTS).exists()
    offered = pairs.offer(workspace, validation["id"], 20)
    tally = pairs.submit(workspace, validation["id"], {pair.id: "tie" for pair in offered})
    words = words_of(workspace, run)
    assert tally.sentence in words and warning not in words
    assert "submit_judgements" not in words


def test_a_running_job_shows_its_curve_and_says_that_it_is_not_over(
    workspace: Workspace, run: Row, add_job: AddJob, write_metrics: Callable[..., None]
) -> None:
    job = add_job("finetune", "job-live-1111", run["spec"], state="running")
    write_metrics(job["id"], 12)
    source = reports.page(workspace, job["id"])
    words = Page(source).words
    assert "running" in words and "get_status" in words and "Loss" in words
    assert "Before and after" not in words


def test_a_failed_job_says_why_and_how_to_go_on(workspace: Workspace, run: Row, add_job: AddJob) -> None:
    error = {"code": "training_diverged", "what": "The loss is not a finite number at step 7.",
             "allowed": "Lower learning_rate.", "next": "start_finetune(learning_rate=0.0001)",
             "done": "No adapter was stored."}  # fmt: skip
    job = add_job("finetune", "job-lost-2222", run["spec"], state="failed", error=json.dumps(error))
    words = words_of(workspace, job)
    for said in (error["what"], error["allowed"], error["next"], error["done"]):
        assert said in words


def test_a_page_is_made_of_what_is_left_when_the_rest_was_deleted(
    workspace: Workspace, everything: list[Row], dataset: Row
) -> None:
    import shutil

    for job in everything:
        shutil.rmtree(workspace.home.jobs / job["id"])
    workspace.store.execute("DELETE FROM artifacts")
    for job in everything:
        page = Page(reports.page(workspace, job["id"]))
        assert page.is_well_formed
    words = words_of(workspace, everything[0])
    assert "The dataset was deleted." in words and "chrF ↑" in words and "Answers side by side" not in words


def test_an_export_that_failed_its_parity_says_so_and_is_not_to_be_published(
    workspace: Workspace, run: Row, export: Row
) -> None:
    (artifact,) = workspace.store.artifacts("export")
    failure = "gguf:q8_0: the answers stop elsewhere"
    outputs = {"gguf:q8_0": {"passed": False, "kl": 1.2, "top1": 0.4, "eval_loss": None, "greedy_of": None}}
    parity = {"passed": False, "failures": [failure], "outputs": outputs, "recommendation": None}
    document = json.dumps({**artifact["document"], "parity": parity})
    workspace.store.execute("UPDATE artifacts SET document=? WHERE id=?", document, artifact["id"])
    words = words_of(workspace, run)
    assert "parity failed" in words and failure in words and "q8_0 failed" in words
    assert "publish_to_ollama" not in words


def test_what_was_not_measured_is_what_to_do_next(workspace: Workspace, run: Row) -> None:
    words = words_of(workspace, run)
    for call in ("validate_adapter", "benchmark_adapter", "merge_and_export"):
        assert f'{call}(adapter_id="ad-clinic-a1b2"' in words


def test_an_alert_that_holds_is_told_once_and_as_it_is_now(
    workspace: Workspace, run: Row, add_job: AddJob, write_metrics: Callable[..., None]
) -> None:
    spec = {**run["spec"], "plan": {**run["spec"]["plan"], "tokens_per_s": 50_000.0}}
    job = add_job("finetune", "job-slow-5555", spec, {"adapter_id": None, "steps": 60})
    write_metrics(job["id"], 60)
    workspace.store.add_event(job["id"], "warning", "slow", "100 tokens/s, 0.2% of the 50,000 that were planned.")
    page = reports.page(workspace, job["id"])
    (warned,) = re.findall(r"<h2>Warnings</h2>\s*<ul>(.*?)</ul>", page, re.DOTALL)
    assert warned.count("50,000 that were planned") == 1 and "100 tokens/s" not in warned


def test_other_jobs_have_no_page(workspace: Workspace, add_job: AddJob) -> None:
    add_job("publish_hub", "job-pub-3333", {})
    with pytest.raises(InvalidInput, match="no_report: job-pub-3333 is of kind publish_hub"):
        reports.page(workspace, "job-pub-3333")
    with pytest.raises(NotFound):
        reports.page(workspace, "job-none")
    assert not (workspace.home.jobs / "job-pub-3333" / "report.html").exists()


@pytest.mark.parametrize(("steps", "most_bytes"), [(1, 40_000), (10, 40_000), (20_000, 220_000)])
def test_a_curve_of_any_length_reads_well_and_stays_small(
    workspace: Workspace,
    run: Row,
    add_job: AddJob,
    steps: int,
    most_bytes: int,
    write_metrics: Callable[..., None],
    arguments: Callable[..., dict[str, Any]],
) -> None:
    spec = {**run["spec"], "arguments": arguments(max_steps=steps)}
    job = add_job("finetune", "job-long-4444", spec, {"adapter_id": None, "steps": steps})
    write_metrics(job["id"], steps)
    source = reports.page(workspace, job["id"])
    assert len(source) < most_bytes
    assert "train loss" in Page(source).words
    assert not re.search(r'd="[^"]*(nan|inf)', source)
    assert Path(reports.write(workspace, job["id"])).stat().st_size == len(source.encode())


def test_a_benchmark_of_another_harness_is_shown_without_a_line_for_guessing(
    workspace: Workspace, benchmark: Row
) -> None:
    result: dict[str, Any] = {**benchmark["result"], "task": "gsm8k"}
    workspace.store.execute("UPDATE jobs SET result=? WHERE id=?", json.dumps(result), benchmark["id"])
    words = words_of(workspace, benchmark)
    assert "gsm8k, 5-shot" in words and "guessing" not in words
