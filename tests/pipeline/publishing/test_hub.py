"""Publishing to the Hub: the real client over real HTTP to a stand-in that keeps what was committed.

How contents get there, and what a kill leaves, is tested in `test_upload.py`.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from standins.hub_server import HubStandIn, Repository

from tunewright.pipeline import jobs, worker
from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Cancelled, Conflict, InvalidInput, Unavailable
from tunewright.pipeline.publishing import hub
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Submit = Callable[..., JobContext]
Rewrite = Callable[..., Row]
REPO = "tester/tuny"
# huggingface_hub 1.33 uploads large files with an argument that httpx wants under another name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def server(hub_server: HubStandIn) -> HubStandIn:
    return hub_server


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


def publish(submit: Submit, artifact: Row, **spec: Any) -> dict[str, Any]:
    return hub.run(submit("publish_hub", **{"artifact_id": artifact["id"], "repo_id": REPO, **spec}))


def publications(workspace: Workspace) -> list[Row]:
    return workspace.store.artifacts("publication")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_adapter_arrives_private_with_its_bytes_and_its_card(
    workspace: Workspace, server: HubStandIn, submit: Submit, adapter: Row
) -> None:
    folder = Path(adapter["document"]["path"])
    before = snapshot(folder)
    result = publish(submit, adapter)
    repository = server.repositories[REPO]
    assert repository.private is True
    assert repository.commits == ["Tunewright: identity"]
    untouched = ["adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"]
    for name in untouched:
        assert repository.files[name] == (folder / name).read_bytes()
    assert hashlib.sha256(repository.files["adapter_model.safetensors"]).hexdigest() in server.stored
    assert set(repository.files) == {
        ".gitattributes", "README.md", "adapter_config.json", "provenance.json", "tokenizer_config.json", *untouched
    }  # fmt: skip
    assert repository.files["README.md"].decode() == hub.prepare(workspace, adapter["id"], REPO)["card"]
    (stored,) = publications(workspace)
    assert stored["parents"] == [adapter["id"]]
    assert {**stored["document"], "publication_id": stored["id"]} == result
    assert result["url"] == f"{server.url}/{REPO}"
    assert result["private"] is True
    assert {file["path"]: file["bytes"] for file in result["files"]} == {
        name: len(content) for name, content in repository.files.items() if name != ".gitattributes"
    }
    assert snapshot(folder) == before


def test_what_is_uploaded_names_no_folder_of_this_machine(
    workspace: Workspace, server: HubStandIn, submit: Submit, adapter: Row
) -> None:
    publish(submit, adapter)
    files = server.repositories[REPO].files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "toy"
    assert json.loads(files["provenance.json"])["log"] == "read models/toy/config.json"
    for name, content in files.items():
        assert str(workspace.home.root).encode() not in content, name
        assert str(Path.home()).encode() + b"/" not in content, name
        assert b"row-marker" not in content, name


def test_a_chat_template_inside_a_config_is_not_rewritten(server: HubStandIn, submit: Submit, adapter: Row) -> None:
    file = Path(adapter["document"]["path"]) / "tokenizer_config.json"
    template = "{{ '/usr/share/words' }} {{ m.content }}"
    file.write_text(json.dumps({"chat_template": template, "name_or_path": "/srv/models/Qwen"}), encoding="utf-8")
    publish(submit, adapter)
    uploaded = json.loads(server.repositories[REPO].files["tokenizer_config.json"])
    assert uploaded == {"chat_template": template, "name_or_path": "Qwen"}


# Repositories that exist


def test_a_public_repository_is_made_only_when_asked_for(server: HubStandIn, submit: Submit, adapter: Row) -> None:
    assert publish(submit, adapter, private=False)["private"] is False
    assert server.repositories[REPO].private is False


def test_a_repository_that_holds_files_is_kept_unless_overwritten(
    workspace: Workspace, server: HubStandIn, submit: Submit, adapter: Row
) -> None:
    held = server.repositories[REPO] = Repository(private=True)
    held.files["model-00001-of-00002.safetensors"] = b"theirs"
    with pytest.raises(Conflict, match="repo_exists") as caught:
        publish(submit, adapter)
    assert "overwrite=true" in caught.value.next
    assert held.commits == []
    assert publications(workspace) == []
    publish(submit, adapter, overwrite=True)
    assert "model-00001-of-00002.safetensors" not in held.files
    assert {".gitattributes", "adapter_model.safetensors"} <= set(held.files)
    # The old went as the new came.
    assert len(held.commits) == 1


def test_what_somebody_pushes_during_the_upload_is_not_undone(
    server: HubStandIn, submit: Submit, adapter: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = server.repositories[REPO] = Repository(private=True)
    held.files["model.safetensors"] = b"theirs"
    context = submit("publish_hub", artifact_id=adapter["id"], repo_id=REPO, overwrite=True)
    tell = context.progress

    def push_meanwhile(phase: str, *numbers: float) -> None:
        if phase == "committing":
            held.files["new.safetensors"] = b"pushed meanwhile"
            held.commits.append("theirs")
        tell(phase, *numbers)

    monkeypatch.setattr(context, "progress", push_meanwhile)
    with pytest.raises(Conflict, match="repo_changed"):
        hub.run(context)
    assert held.commits == ["theirs"]
    assert {"model.safetensors", "new.safetensors"} <= set(held.files)


def test_a_repository_that_is_already_just_this_gets_no_second_commit(
    workspace: Workspace, server: HubStandIn, submit: Submit, adapter: Row
) -> None:
    first = publish(submit, adapter)
    server.received_bytes = 0
    second = publish(submit, adapter)
    assert (second["commit"], server.received_bytes) == (first["commit"], 0)
    assert len(server.repositories[REPO].commits) == 1
    assert len(publications(workspace)) == 2


def test_one_changed_byte_makes_it_another_repository(server: HubStandIn, submit: Submit, adapter: Row) -> None:
    publish(submit, adapter)
    weights = Path(adapter["document"]["path"]) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(Conflict, match="repo_exists"):
        publish(submit, adapter)
    publish(submit, adapter, overwrite=True)
    repository = server.repositories[REPO]
    assert repository.files["adapter_model.safetensors"][-1:] == b"x"
    assert len(repository.commits) == 2


def test_a_file_that_was_damaged_since_its_export_gets_no_commit(
    workspace: Workspace, server: HubStandIn, submit: Submit, export: Row
) -> None:
    entry = next(file for file in export["document"]["files"] if file["output"] == "gguf:q8_0")
    whole = Path(entry["path"]).read_bytes()
    entry["sha256"] = hashlib.sha256(whole).hexdigest()
    workspace.store.execute("UPDATE artifacts SET document=? WHERE id=?", json.dumps(export["document"]), export["id"])
    Path(entry["path"]).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Conflict, match="file_changed"):
        publish(submit, export, outputs=["gguf:q8_0"])
    assert server.repositories[REPO].commits == [] and publications(workspace) == []
    Path(entry["path"]).write_bytes(whole)
    publish(submit, export, outputs=["gguf:q8_0"])
    assert len(server.repositories[REPO].commits) == 1


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_private_goes_into_a_public_repository(
    server: HubStandIn, submit: Submit, adapter: Row, overwrite: bool
) -> None:
    theirs = server.repositories[REPO] = Repository(private=False)
    with pytest.raises(Conflict, match="repo_is_public"):
        publish(submit, adapter, overwrite=overwrite)
    assert theirs.commits == []


def test_an_upload_that_was_refused_can_simply_be_run_again(
    workspace: Workspace, server: HubStandIn, submit: Submit, adapter: Row
) -> None:
    server.refuse_lfs = 403
    with pytest.raises(Unavailable, match="hub_refused") as caught:
        publish(submit, adapter)
    assert "answered 403" in caught.value.what
    assert set(server.repositories[REPO].files) == {".gitattributes"}
    assert publications(workspace) == []
    server.refuse_lfs = None
    publish(submit, adapter)
    assert "adapter_model.safetensors" in server.repositories[REPO].files


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "Private repository storage limit reached, please upgrade your plan"), (507, "Insufficient storage")],
)
def test_a_hub_without_room_says_so_and_not_that_the_login_is_wrong(
    server: HubStandIn, submit: Submit, adapter: Row, status: int, words: str
) -> None:
    server.refuse_write = (status, words)
    with pytest.raises(Unavailable, match="hub_storage_full") as caught:
        publish(submit, adapter)
    assert words in caught.value.what
    assert "auth login" not in str(caught.value)


def test_a_refused_commit_is_reported_with_its_status(server: HubStandIn, submit: Submit, adapter: Row) -> None:
    server.refuse_commit = 413
    with pytest.raises(Unavailable, match="answered 413"):
        publish(submit, adapter)


@pytest.mark.usefixtures("no_token")
def test_without_a_token_nothing_is_asked_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, submit: Submit, adapter: Row
) -> None:
    with HubStandIn(token="x") as hub_server:
        monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
        with pytest.raises(Unavailable, match="hub_token_missing") as caught:
            publish(submit, adapter)
        assert hub_server.requests == []
    assert "hf auth login" in caught.value.allowed


def test_a_wrong_token_is_reported_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, server: HubStandIn, submit: Submit, adapter: Row
) -> None:
    wrong = "hf_" + "wrong" * 8
    monkeypatch.setenv("HF_TOKEN", wrong)
    with pytest.raises(Unavailable, match="hub_refused") as caught:
        publish(submit, adapter)
    assert "answered 401" in caught.value.what
    assert wrong not in str(caught.value)
    assert server.repositories == {}


def test_a_hub_that_cannot_be_reached_is_reported_without_a_traceback(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    submit: Submit,
    adapter: Row,
    secret: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", secret)
    # The discard port: nothing listens there.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    context = submit("publish_hub", artifact_id=adapter["id"], repo_id=REPO)
    assert worker.run_job(workspace, context.job_id) == jobs.State.FAILED
    error = workspace.store.job(context.job_id)["error"]
    assert error["code"] == "hub_unreachable"
    assert "http://127.0.0.1:9" in error["what"]
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err


def test_a_cancel_before_the_start_makes_no_repository(
    workspace: Workspace, server: HubStandIn, submit: Submit, adapter: Row
) -> None:
    context = submit("publish_hub", artifact_id=adapter["id"], repo_id=REPO)
    workspace.store.execute("UPDATE jobs SET cancel='keep' WHERE id=?", context.job_id)
    with pytest.raises(Cancelled):
        hub.run(context)
    assert server.repositories == {}


def test_a_cancel_before_the_commit_leaves_the_repository_empty(
    server: HubStandIn, submit: Submit, adapter: Row, cancel_at: Callable[[JobContext, str], None]
) -> None:
    context = submit("publish_hub", artifact_id=adapter["id"], repo_id=REPO)
    cancel_at(context, "asking the Hub")
    with pytest.raises(Cancelled):
        hub.run(context)
    assert server.repositories[REPO].commits == []
    assert list(context.folder.iterdir()) == []


@pytest.mark.parametrize("refused", [None, 403])
def test_the_token_stands_nowhere_but_in_the_requests(
    workspace: Workspace,
    server: HubStandIn,
    submit: Submit,
    adapter: Row,
    rewrite: Rewrite,
    secret: str,
    capfd: pytest.CaptureFixture[str],
    refused: int | None,
) -> None:
    # Planted in provenance.json by the fixture, and here in what the card is made of.
    rewrite(adapter, training={**adapter["document"]["training"], "note": f"token {secret}"})
    server.refuse_lfs = refused
    context = submit("publish_hub", artifact_id=adapter["id"], repo_id=REPO)
    state = worker.run_job(workspace, context.job_id)
    assert state == (jobs.State.FAILED if refused else jobs.State.SUCCEEDED)
    store = workspace.store
    said = capfd.readouterr()
    told = json.dumps([store.job(context.job_id), store.events(context.job_id), publications(workspace)])
    assert secret not in told + said.out + said.err
    assert all(secret.encode() not in content for content in server.repositories[REPO].files.values())
    assert secret not in json.dumps(hub.prepare(workspace, adapter["id"], REPO))


# The dry run


def test_the_dry_run_tells_files_card_and_token_and_asks_nothing(
    workspace: Workspace, server: HubStandIn, export: Row
) -> None:
    answer = hub.prepare(workspace, export["id"], REPO)
    sizes = {file["path"]: file["bytes"] for file in answer["files"]}
    folder = Path(export["document"]["path"])
    assert sizes["identity-q8_0.gguf"] == (folder / "identity-q8_0.gguf").stat().st_size
    assert sizes["README.md"] == len(answer["card"].encode())
    assert answer["bytes"] == sum(sizes.values())
    assert (answer["token_present"], answer["private"], answer["warnings"]) == (True, True, [])
    assert server.requests == []
    json.dumps(answer)


@pytest.mark.usefixtures("no_token")
def test_the_dry_run_warns_of_a_missing_token_and_of_publicity(workspace: Workspace, adapter: Row) -> None:
    answer = hub.prepare(workspace, adapter["id"], REPO, private=False, overwrite=True)
    assert answer["token_present"] is False
    assert [word for word in ("no Hub token", "public", "removed") if word in " ".join(answer["warnings"])] == [
        "no Hub token", "public", "removed"
    ]  # fmt: skip


@pytest.mark.parametrize("repo_id", ["tuny", "", "a/b/c", "me/tu ny", "me/tuny.git", "me/a--b", "x/" + "y" * 97])
def test_a_repository_name_that_the_hub_would_refuse_is_refused_before(
    workspace: Workspace, adapter: Row, repo_id: str
) -> None:
    with pytest.raises(InvalidInput, match="invalid_repo_id") as caught:
        hub.prepare(workspace, adapter["id"], repo_id)
    assert 'repo_id="your-name/identity"' in caught.value.next


def test_an_artifact_of_another_kind_is_refused(workspace: Workspace, dataset: Row) -> None:
    with pytest.raises(InvalidInput, match="wrong_kind"):
        hub.prepare(workspace, dataset["id"], REPO)
