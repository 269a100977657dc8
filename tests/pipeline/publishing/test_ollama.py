"""Publishing to Ollama, over real HTTP to a stand-in that keeps what it received."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standins.hub_server import HubStandIn
from standins.ollama_server import OllamaStandIn

from tunewright.pipeline import jobs, worker
from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Cancelled, Conflict, InvalidInput, NotFound, TunewrightError, Unavailable
from tunewright.pipeline.publishing import ollama
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Submit = Callable[..., JobContext]
Rewrite = Callable[..., Row]
OLD = {"digest": "sha256:old", "parameters": {}, "template": None, "system": None, "jinja": "", "architecture": "x"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaStandIn]:
    with OllamaStandIn() as stand_in:
        monkeypatch.setenv("OLLAMA_HOST", stand_in.url)
        yield stand_in


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    # The discard port: nothing listens there.
    monkeypatch.setenv("OLLAMA_HOST", "http://user:password@127.0.0.1:9")


def gguf_of(export: Row) -> Path:
    return Path(next(file["path"] for file in export["document"]["files"] if file["output"] == "gguf:q8_0"))


def publish(submit: Submit, export: Row, name: str = "tuny", **spec: Any) -> dict[str, Any]:
    return ollama.run(submit("publish_ollama", export_id=export["id"], model_name=name, **spec))


def publications(workspace: Workspace) -> list[Row]:
    return workspace.store.artifacts("publication")


def test_the_server_gets_the_very_bytes_and_the_models_own_settings(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    result = publish(submit, export, system="Be brief.", parameters={"seed": 7})
    content = gguf_of(export).read_bytes()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert server.blobs == {digest: content}
    assert list(server.models) == ["tuny:latest"]
    model = server.models["tuny:latest"]
    assert model["digest"] == result["digest"] == digest
    assert model["system"] == "Be brief."
    assert model["parameters"] == {
        "temperature": 0.7, "top_p": 0.8, "top_k": 20, "num_ctx": 2048, "seed": 7,
        "stop": ["<|im_end|>", "<|endoftext|>"],
    }  # fmt: skip
    assert model["template"].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert result["checks"]["prompt"] == "as trained"
    assert result["checks"]["asked"] == "Who are you?"
    assert result["checks"]["answered"] == server.reply
    (stored,) = publications(workspace)
    assert stored["id"] == result["publication_id"]
    assert stored["parents"] == [export["id"]]
    assert {**stored["document"], "publication_id": stored["id"]} == result
    # Unloaded again: the memory belongs to the next job.
    assert [chat["keep_alive"] for chat in server.chats] == [0]


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


@pytest.mark.usefixtures("no_server")
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


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"reply": "Sure!<|im_end|>"}, "control tokens <|im_end|>"),
        ({"reply": "<think>hm</think>Sure!"}, "control tokens <think>"),
        ({"reply": " \n"}, "is empty"),
        ({"drop_parameter": "num_ctx"}, "did not keep num_ctx 2048"),
        ({"drop_parameter": "stop"}, 'did not keep stop "<|im_end|>"'),
        ({"prompt_eval_count": 10_000}, "second BOS"),
    ],
)
def test_a_model_that_fails_its_check_is_removed_and_the_old_one_stays(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row, trouble: dict[str, Any], words: str
) -> None:
    server.models["tuny:latest"] = OLD
    for name, value in trouble.items():
        setattr(server, name, value)
    with pytest.raises(TunewrightError, match="ollama_check_failed") as caught:
        publish(submit, export, overwrite=True)
    assert words in caught.value.what
    assert server.models == {"tuny:latest": OLD}
    assert publications(workspace) == []


def test_a_gguf_with_the_thinking_switch_the_other_way_round_is_found_out(
    server: OllamaStandIn,
    submit: Submit,
    export: Row,
    rewrite: Rewrite,
    toy_folder: Path,
    make_gguf: Callable[[str], bytes],
) -> None:
    gguf = gguf_of(export)
    gguf.write_bytes(make_gguf((toy_folder / "chat_template.jinja").read_text(encoding="utf-8")))
    files = [{"output": "gguf:q8_0", "path": str(gguf), "bytes": gguf.stat().st_size}]
    with pytest.raises(TunewrightError, match="the server's prompt differs") as caught:
        publish(submit, rewrite(export, files=files))
    assert "<think>" in caught.value.what
    assert server.models == {}
    # The same file is right for a model that was trained with thinking on.
    assert publish(submit, rewrite(export, files=files, enable_thinking=True))["checks"]["prompt"] == "as trained"


def test_the_exact_number_of_prompt_tokens_passes(
    server: OllamaStandIn, submit: Submit, export: Row, toy_folder: Path
) -> None:
    template = ChatTemplate(toy_folder)
    asked = [{"role": "user", "content": "Who are you?"}]
    server.prompt_eval_count = len(template.ids(template.render(asked, add_generation_prompt=True)))
    counts = publish(submit, export)["checks"]["prompt_tokens"]
    assert counts == {"trained": server.prompt_eval_count, "server": server.prompt_eval_count}


def test_a_server_that_tells_no_prompts_is_checked_by_its_answer(
    server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    server.version = "0.24.0"
    assert publish(submit, export)["checks"]["prompt"] == "not told by this server"


def test_without_its_dataset_a_model_is_checked_with_a_greeting(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row, dataset: Row
) -> None:
    workspace.store.execute("DELETE FROM artifacts WHERE id=?", dataset["id"])
    assert publish(submit, export)["checks"]["asked"] == "Hello"


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
        if phase.startswith("checking the model"):
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


def test_the_worker_stores_a_failed_check_as_the_jobs_error(
    workspace: Workspace, server: OllamaStandIn, submit: Submit, export: Row
) -> None:
    server.reply = ""
    context = submit("publish_ollama", export_id=export["id"], model_name="tuny")
    assert worker.run_job(workspace, context.job_id) == jobs.State.FAILED
    assert workspace.store.job(context.job_id)["error"]["code"] == "ollama_check_failed"


# The dry run


def test_the_dry_run_tells_what_would_be_done_and_changes_nothing(
    workspace: Workspace, server: OllamaStandIn, export: Row
) -> None:
    server.models["tuny:latest"] = OLD
    answer = ollama.prepare(workspace, export["id"], "tuny")
    assert answer["model_name"] == "tuny:latest"
    assert answer["output"] == "gguf:q8_0"
    assert answer["digest"] == f"sha256:{hashlib.sha256(gguf_of(export).read_bytes()).hexdigest()}"
    assert answer["server"] == {"url": server.url, "version": "0.33.0"}
    assert answer["name_taken"] is True
    assert any("overwrite=true" in warning for warning in answer["warnings"])
    assert server.models == {"tuny:latest": OLD}
    assert server.blobs == {}
    assert publications(workspace) == []
    json.dumps(answer)


@pytest.mark.usefixtures("no_server")
def test_the_dry_run_works_without_a_server_and_says_so(workspace: Workspace, export: Row) -> None:
    answer = ollama.prepare(workspace, export["id"], "tuny")
    assert answer["server"] == {"url": "http://127.0.0.1:9", "version": None}
    assert answer["name_taken"] is None
    assert any("No Ollama server answers" in warning for warning in answer["warnings"])
    assert "PARAMETER num_ctx 2048" in answer["modelfile"]
    assert "password" not in json.dumps(answer)


def test_the_dry_run_warns_of_a_system_message_that_training_had(
    workspace: Workspace, server: OllamaStandIn, export: Row, dataset: Row
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    messages = [{"role": r, "content": f"the {r}'s words"} for r in ("system", "user", "assistant")]
    parquet.write_table(pa.table({"messages": [messages]}), Path(dataset["document"]["path"]) / "eval.parquet")
    assert any("the system's words" in w for w in ollama.prepare(workspace, export["id"], "tuny")["warnings"])
    assert ollama.prepare(workspace, export["id"], "tuny", system="Be brief.")["warnings"] == []


def test_the_dry_run_warns_of_a_server_that_cannot_run_the_template(
    workspace: Workspace, server: OllamaStandIn, export: Row
) -> None:
    for file in Path(export["document"]["path"]).rglob("chat_template.jinja"):
        file.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}", encoding="utf-8")
    assert ollama.prepare(workspace, export["id"], "tuny")["warnings"] == []
    server.version = "0.24.0"
    assert any("update it to 0.30" in w for w in ollama.prepare(workspace, export["id"], "tuny")["warnings"])


@pytest.mark.parametrize("name", ["", "two words", "a/b/c/d", "-x", "x:", "x:ü", "x" * 81, "../x"])
def test_a_name_that_ollama_would_refuse_is_refused_before(workspace: Workspace, export: Row, name: str) -> None:
    with pytest.raises(InvalidInput, match="invalid_model_name") as caught:
        ollama.prepare(workspace, export["id"], name)
    assert "publish_to_ollama(" in caught.value.next


@pytest.mark.usefixtures("no_server")
@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("tuny", "tuny:latest"),
        ("Me/Tuny_1.5:q8", "Me/Tuny_1.5:q8"),
        ("host.example:5000/me/tuny", "host.example:5000/me/tuny:latest"),
        ("registry.ollama.ai/library/tuny", "tuny:latest"),
    ],
)
def test_a_good_name_is_completed_as_the_server_lists_it(
    workspace: Workspace, export: Row, name: str, full: str
) -> None:
    assert ollama.prepare(workspace, export["id"], name)["model_name"] == full


@pytest.mark.usefixtures("no_server")
def test_a_push_needs_an_owner_in_the_name(workspace: Workspace, export: Row) -> None:
    with pytest.raises(InvalidInput, match="push_needs_namespace"):
        ollama.prepare(workspace, export["id"], "tuny", push=True)


@pytest.mark.usefixtures("no_server")
def test_the_best_gguf_is_taken_and_none_is_refused_with_the_call_that_makes_one(
    workspace: Workspace, export: Row, rewrite: Rewrite
) -> None:
    q8 = next(file for file in export["document"]["files"] if file["output"] == "gguf:q8_0")
    rewrite(export, files=[{**q8, "output": "gguf:bf16"}, {**q8, "output": "gguf:f16"}])
    assert ollama.prepare(workspace, export["id"], "tuny")["output"] == "gguf:f16"
    rewrite(export, files=[{**q8, "output": "merged_16bit"}])
    with pytest.raises(NotFound, match="no_gguf") as caught:
        ollama.prepare(workspace, export["id"], "tuny")
    assert caught.value.next == 'merge_and_export(adapter_id="ad-identity-0001", outputs=["gguf:q8_0"])'


@pytest.mark.usefixtures("no_server")
def test_a_gguf_that_was_changed_after_the_export_is_refused(workspace: Workspace, export: Row) -> None:
    with gguf_of(export).open("ab") as file:
        file.write(b"more")
    with pytest.raises(Conflict, match="file_changed"):
        ollama.prepare(workspace, export["id"], "tuny")


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
