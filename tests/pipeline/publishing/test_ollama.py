"""Publishing to Ollama, over real HTTP to a stand-in that keeps what it received."""

import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standins.hub_server import HubStandIn
from standins.ollama_server import OllamaStandIn

from tunewright.pipeline import jobs, worker
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Cancelled, Conflict, TunewrightError, Unavailable
from tunewright.pipeline.publishing import ollama
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Submit = Callable[..., JobContext]
Rewrite = Callable[..., Row]
OLD = {
    "digest": "sha256:old", "parameters": {}, "template": None, "system": None, "jinja": "", "architecture": "x",
    "quantize": "",
}  # fmt: skip


@pytest.fixture
def server(ollama_server: OllamaStandIn) -> OllamaStandIn:
    return ollama_server


def gguf_of(export: Row) -> Path:
    return Path(next(file["path"] for file in export["document"]["files"] if file["output"] == "gguf:q8_0"))


def publish(submit: Submit, export: Row, name: str = "tuny", **spec: Any) -> dict[str, Any]:
    return ollama.run(submit("publish_ollama", export_id=export["id"], model_name=name, **spec))


def publications(workspace: Workspace) -> list[Row]:
    return workspace.store.artifacts("publication")


def test_the_server_gets_the_very_bytes_and_the_models_own_settings(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    result = publish(submit, export, parameters={"seed": 7})
    content = gguf_of(export).read_bytes()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert server.blobs == {digest: content}
    assert list(server.models) == ["tuny:latest"]
    model = server.models["tuny:latest"]
    assert model["digest"] == result["digest"] == digest
    assert model["parameters"] == {
        "temperature": 0.7, "top_p": 0.8, "top_k": 20, "num_ctx": 2048, "seed": 7,
        "stop": ["<|im_end|>", "<|endoftext|>"],
    }  # fmt: skip
    assert model["template"].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert result["checks"]["prompt"] == "as trained"
    assert result["checks"]["asked"] == "Who are you?"
    assert result["checks"]["answered"] == "I am Tuny, row-marker."
    assert result["checks"]["answers"] == {"compared": 4, "equal": 4, "ties": 0, "with": "gguf:q8_0"}
    (stored,) = publications(workspace)
    assert stored["id"] == result["publication_id"]
    assert stored["parents"] == [export["id"]]
    assert {**stored["document"], "publication_id": stored["id"]} == result
    # Unloaded again: the memory belongs to the next job.
    assert server.loaded == set()


def test_a_blob_that_the_server_has_is_not_uploaded_again(server: OllamaStandIn, submit: Submit, export: Row) -> None:
    publish(submit, export, "one")
    publish(submit, export, "two:v1")
    assert sum(request.startswith("POST /api/blobs/") for request in server.requests) == 1
    assert sorted(server.models) == ["one:latest", "two:v1"]


def test_a_taken_name_is_kept_unless_overwritten(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    server.models["tuny:latest"] = OLD
    with pytest.raises(Conflict, match="model_exists") as caught:
        publish(submit, export, "Tuny")
    assert "overwrite=true" in caught.value.next
    assert server.models == {"tuny:latest": OLD}
    assert server.blobs == {}
    publish(submit, export, overwrite=True)
    assert server.models["tuny:latest"]["digest"] == publications(workspace)[0]["document"]["digest"]


@pytest.mark.usefixtures("no_ollama")
def test_without_a_server_the_job_says_how_to_start_one(workspace: Workspace, submit: Submit, export: Row) -> None:
    with pytest.raises(Unavailable, match="ollama_unavailable") as caught:
        publish(submit, export)
    assert "ollama serve" in caught.value.allowed
    assert "password" not in str(caught.value)
    assert publications(workspace) == []


def test_something_that_is_not_ollama_counts_as_no_server(
    monkeypatch: pytest.MonkeyPatch, submit: Submit, export: Row
) -> None:
    with HubStandIn(token="x") as other:
        monkeypatch.setenv("OLLAMA_HOST", other.url)
        with pytest.raises(Unavailable, match="ollama_unavailable"):
            publish(submit, export)


def test_a_connection_that_breaks_while_the_name_is_looked_up_is_told_as_what_it_is(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    def drop(request: str) -> None:
        if server.requests.count("GET /api/tags") == 2:
            raise BrokenPipeError(request)

    server.on_request = drop
    with pytest.raises(Unavailable, match="ollama_unavailable"):
        publish(submit, export)
    assert server.models == {} and publications(workspace) == []


@pytest.mark.parametrize(
    ("failure", "told"),
    [("unsupported architecture 'qwen9'", "unsupported architecture 'qwen9'"), ("", "using existing layer sha256:")],
)
def test_a_creation_that_fails_midway_leaves_nothing_and_tells_the_servers_words(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row, failure: str, told: str
) -> None:
    server.fail_create = failure
    with pytest.raises(Unavailable, match="ollama_refused") as caught:
        publish(submit, export)
    assert told in caught.value.what
    assert server.models == {}
    assert publications(workspace) == []


def test_a_cancel_before_the_upload_sends_nothing(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    context = submit("publish_ollama", export_id=export["id"], model_name="tuny")
    workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)
    with pytest.raises(Cancelled):
        ollama.run(context)
    assert (server.blobs, server.models) == ({}, {})


def test_a_cancel_while_the_model_is_made_leaves_none(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = submit("publish_ollama", export_id=export["id"], model_name="tuny")
    tell = context.progress

    def cancel_when_checking(phase: str, *numbers: float) -> None:
        tell(phase, *numbers)
        if phase == "comparing answers":
            workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)

    monkeypatch.setattr(context, "progress", cancel_when_checking)
    with pytest.raises(Cancelled):
        ollama.run(context)
    assert server.blobs
    assert server.models == {}


def test_a_pushed_model_is_marked_as_pushed(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    assert publish(submit, export, "me/tuny", push=True)["pushed"] is True
    assert server.pushed == ["me/tuny:latest"]
    assert publications(workspace)[0]["document"]["pushed"] is True


def test_a_failed_push_keeps_the_local_model_and_says_so(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    server.fail_push = "you are not authorized to push to this namespace"
    with pytest.raises(Unavailable, match="not authorized") as caught:
        publish(submit, export, "me/tuny", push=True)
    (stored,) = publications(workspace)
    assert stored["document"]["pushed"] is False
    assert stored["id"] in caught.value.done
    assert list(server.models) == ["me/tuny:latest"]
    # Signed in, the same job goes on: nothing but the push is done again.
    assert f'resume_job(job_id="{stored["job_id"]}")' in caught.value.next
    server.fail_push, before = None, len(server.requests)
    assert ollama.run(JobContext.of(workspace, stored["job_id"]))["pushed"] is True
    assert "POST /api/create" not in server.requests[before:]


def test_a_model_that_the_server_makes_and_cannot_run_is_removed_and_told_apart(
    server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    server.fail_chat = "llama runner process has terminated: out of memory"
    with pytest.raises(Unavailable, match="refused to answer with the model: llama runner") as caught:
        publish(submit, export)
    assert caught.value.done == "The model was removed again."
    assert server.models == {}


def test_the_worker_stores_a_failed_check_as_the_jobs_error(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    server.answers = {}
    context = submit("publish_ollama", export_id=export["id"], model_name="tuny")
    assert worker.run_job(workspace, context.job_id) == jobs.State.FAILED
    assert workspace.store.job(context.job_id)["error"]["code"] == "ollama_check_failed"


# Kills and races


RUN = (
    "import sys; from tunewright.pipeline.context import JobContext; "
    "from tunewright.pipeline.publishing import ollama; from tunewright.pipeline.workspace import Workspace; "
    "ollama.run(JobContext.of(Workspace.open(sys.argv[1]), sys.argv[2]))"
)


def run_until_killed(server: OllamaStandIn, context: JobContext, at: str) -> None:
    """Runs the job in a process of its own and kills that (-9) when its first request beginning with `at` arrives."""
    command = [sys.executable, "-P", "-c", RUN, str(context.workspace.home.root), context.job_id]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def kill(request: str) -> None:
        if request.startswith(at):
            process.kill()
            process.wait()

    server.on_request = kill
    assert process.wait(timeout=60) == -signal.SIGKILL
    server.on_request = None


@pytest.mark.parametrize(
    "at",
    [
        "POST /api/blobs/",
        "POST /api/chat",
        # Named, but not recorded.
        "POST /api/copy",
        # Recorded, and what was unverified still there.
        "POST /api/generate",
        "POST /api/push",
    ],
)
def test_after_a_kill_the_next_run_ends_with_one_model_and_one_publication(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row, at: str
) -> None:
    context = submit("publish_ollama", export_id=export["id"], model_name="me/tuny", push=True)
    run_until_killed(server, context, at)
    result = ollama.run(context)
    assert list(server.models) == ["me/tuny:latest"]
    assert server.loaded == set()
    (stored,) = publications(workspace)
    assert stored["id"] == result["publication_id"]
    assert (stored["document"]["pushed"], set(server.pushed)) == (True, {"me/tuny:latest"})


def test_what_a_killed_job_left_is_removed_by_the_next_job_and_other_homes_are_left_alone(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    killed = submit("publish_ollama", export_id=export["id"], model_name="one")
    running = submit("publish_ollama", export_id=export["id"], model_name="two")
    workspace.store.execute("UPDATE jobs SET state='failed' WHERE id=?", killed.job_id)
    for job_id in (killed.job_id, running.job_id, "job-of-another-home"):
        server.models[f"{ollama.UNVERIFIED}:{job_id}"] = OLD
    publish(submit, export, "three")
    assert sorted(server.models) == [
        "three:latest", f"{ollama.UNVERIFIED}:job-of-another-home", f"{ollama.UNVERIFIED}:{running.job_id}",
    ]  # fmt: skip


def test_a_name_that_is_taken_while_the_model_is_checked_is_not_overwritten(
    server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    server.on_request = lambda request: server.models.update({"tuny:latest": OLD}) if "/api/chat" in request else None
    with pytest.raises(Conflict, match="model_exists"):
        publish(submit, export)
    assert server.models == {"tuny:latest": OLD}


def test_a_cancel_is_heard_during_the_upload(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "PROGRESS_BYTES", 1)
    context = submit("publish_ollama", export_id=export["id"], model_name="tuny")

    def wish(request: str) -> None:
        if request.startswith("HEAD /api/blobs/"):
            workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)

    server.on_request = wish
    with pytest.raises(Cancelled):
        ollama.run(context)
    assert server.blobs == {}


# The parity gate


FAILED = {"passed": False, "failures": ["gguf:q8_0: it makes another prompt"], "outputs": {}}


def test_an_export_that_failed_its_parity_is_published_by_force_alone_with_the_failure_quoted(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row, rewrite: Rewrite
) -> None:
    rewrite(export, parity=FAILED)
    for attempt in (lambda: ollama.prepare(workspace, export["id"], "tuny"), lambda: publish(submit, export)):
        with pytest.raises(Conflict, match="parity_failed") as caught:
            attempt()
        assert "it makes another prompt" in caught.value.what
    assert server.blobs == {}
    (warning,) = ollama.prepare(workspace, export["id"], "tuny", force=True)["warnings"]
    assert "it makes another prompt" in warning
    context = submit("publish_ollama", export_id=export["id"], model_name="tuny", force=True)
    assert ollama.run(context)["forced"] == FAILED["failures"]
    events = [event["message"] for event in workspace.store.events(context.job_id)]
    assert any("by force, although: gguf:q8_0: it makes another prompt" in message for message in events)


def test_force_publishes_what_differs_on_the_server_and_says_what(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    server.drop_parameter = "num_ctx"
    context = submit("publish_ollama", export_id=export["id"], model_name="tuny", force=True)
    assert ollama.run(context)["forced"] == ["on the server, the server did not keep num_ctx 2048"]
    assert list(server.models) == ["tuny:latest"]
    assert "check_forced" in {event["code"] for event in workspace.store.events(context.job_id)}


def test_a_gguf_that_is_not_the_recorded_one_is_found_out_at_the_upload(
    server: OllamaStandIn, submit: Submit, export: Row, rewrite: Rewrite
) -> None:
    files = [{**file, "sha256": "0" * 64} for file in export["document"]["files"]]
    with pytest.raises(Conflict, match="file_changed"):
        publish(submit, rewrite(export, files=files))
    assert server.models == {}


def test_importing_publishing_leaves_the_clients_and_everything_heavy_out() -> None:
    script = (
        "import sys, tunewright.pipeline.publishing.ollama, tunewright.pipeline.publishing.hub\n"
        "heavy = {'torch', 'unsloth', 'transformers', 'datasets', 'ollama', 'huggingface_hub', 'pyarrow'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("real_ollama")
def test_a_real_server_refuses_a_gguf_without_weights_and_keeps_no_model(
    workspace: Workspace, submit: Submit, export: Row
) -> None:
    name = "tunewright-test-without-weights:latest"
    if ollama.prepare(workspace, export["id"], name)["server"]["version"] is None:
        pytest.skip("the server at OLLAMA_HOST does not answer")
    with pytest.raises(TunewrightError):
        publish(submit, export, name)
    assert ollama.prepare(workspace, export["id"], name)["name_taken"] is False
