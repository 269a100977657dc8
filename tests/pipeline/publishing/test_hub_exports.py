"""Publishing an export: what lies where in its repository, which of its outputs go, and what its parity lets out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standins.hub_server import HubStandIn

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import Conflict, InvalidInput, NotFound
from tunewright.pipeline.publishing import hub
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Submit = Callable[..., JobContext]
Rewrite = Callable[..., Row]
REPO = "tester/tuny"
# huggingface_hub 1.33 uploads large files with an argument that httpx wants under another name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
# As the gate's failures quote what they compared.
FAILURE = "gguf:q8_0: it makes the prompt 'row-marker, it\\'s me' where training made \"row-marker\" (character 3)"


@pytest.fixture
def server(hub_server: HubStandIn) -> HubStandIn:
    return hub_server


def publish(submit: Submit, artifact: Row, **spec: Any) -> dict[str, Any]:
    return hub.run(submit("publish_hub", **{"artifact_id": artifact["id"], "repo_id": REPO, **spec}))


def entry(export: Row, output: str, name: str) -> dict[str, Any]:
    """How the artifact lists an output that lies at `name` in its folder; the file is made where there is none."""
    path = Path(export["document"]["path"]) / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(output.encode())
    return {"output": output, "path": str(path), "bytes": len(output)}


@pytest.fixture
def full_export(export: Row, rewrite: Rewrite) -> Row:
    """With everything that an export can hold."""
    entry(export, "merged_4bit", "merged_4bit/model.safetensors")
    more = [
        entry(export, "lora", "lora"),
        entry(export, "lora_gguf", "identity-lora.gguf"),
        entry(export, "merged_4bit", "merged_4bit"),
        entry(export, "gguf:q4_k_m", "identity-q4_k_m.gguf"),
    ]
    return rewrite(export, files=[*export["document"]["files"], *more])


def test_an_export_lies_where_transformers_and_llama_cpp_look_for_it(
    server: HubStandIn, submit: Submit, full_export: Row
) -> None:
    publish(submit, full_export)
    folder, files = Path(full_export["document"]["path"]), server.repositories[REPO].files
    assert files["model.safetensors"] == (folder / "merged" / "model.safetensors").read_bytes()
    assert json.loads(files["config.json"]) == json.loads((folder / "merged" / "config.json").read_text("utf-8"))
    assert files["identity-q8_0.gguf"] == (folder / "identity-q8_0.gguf").read_bytes()
    assert files["4bit/model.safetensors"] == b"merged_4bit"
    assert {"lora/adapter_model.safetensors", "lora/identity-lora.gguf", "identity-q4_k_m.gguf"} <= set(files)
    assert json.loads(files["provenance.json"])["arguments"]["epochs"] == 3.0
    # It quotes the data.
    assert "parity.json" not in files
    assert all(b"row-marker" not in content for content in files.values())


@pytest.mark.parametrize(
    ("outputs", "weights"),
    [
        (["gguf:q8_0", "gguf:q4_k_m"], {"identity-q8_0.gguf", "identity-q4_k_m.gguf"}),
        (["merged_4bit"], {"model.safetensors"}),
        (["lora"], {"adapter_model.safetensors"}),
        (["lora_gguf"], {"identity-lora.gguf"}),
        (["merged_16bit", "lora"], {"model.safetensors", "lora/adapter_model.safetensors"}),
    ],
)
def test_chosen_outputs_go_to_a_repository_of_their_own(
    server: HubStandIn, submit: Submit, full_export: Row, outputs: list[str], weights: set[str]
) -> None:
    result = publish(submit, full_export, outputs=outputs)
    files = server.repositories[REPO].files
    assert {name for name in files if name.endswith((".gguf", ".safetensors"))} == weights
    assert {"README.md", "provenance.json"} <= set(files)
    assert sorted(result["outputs"]) == sorted(outputs)


@pytest.mark.parametrize("outputs", [["gguf:q2_k"], []])
def test_an_output_that_the_export_does_not_hold_is_refused(
    workspace: Workspace, export: Row, outputs: list[str]
) -> None:
    with pytest.raises(InvalidInput, match="output_not_there") as caught:
        hub.prepare(workspace, export["id"], REPO, outputs=outputs)
    assert "gguf:q8_0" in caught.value.allowed
    assert f'repo_id="{REPO}", outputs=["merged_16bit", "gguf:q8_0"]' in caught.value.next


def test_an_adapter_has_no_outputs_to_choose_from(workspace: Workspace, adapter: Row) -> None:
    with pytest.raises(InvalidInput, match="output_not_there"):
        hub.prepare(workspace, adapter["id"], REPO, outputs=["lora"])


@pytest.fixture
def failed_export(export: Row, rewrite: Rewrite) -> Row:
    return rewrite(export, parity={**export["document"]["parity"], "passed": False, "failures": [FAILURE]})


def test_what_failed_its_parity_is_not_published(
    workspace: Workspace, server: HubStandIn, submit: Submit, failed_export: Row
) -> None:
    with pytest.raises(Conflict, match="parity_failed") as caught:
        publish(submit, failed_export)
    assert FAILURE in caught.value.what
    assert "publish_to_hub(" in caught.value.allowed
    with pytest.raises(Conflict, match="parity_failed"):
        hub.prepare(workspace, failed_export["id"], REPO)
    assert server.requests == []
    # What did not fail goes.
    publish(submit, failed_export, outputs=["merged_16bit"])


def test_a_forced_publication_says_what_failed_but_shows_no_row(
    workspace: Workspace, server: HubStandIn, submit: Submit, failed_export: Row
) -> None:
    answer = hub.prepare(workspace, failed_export["id"], REPO, force=True)
    assert any(FAILURE in warning for warning in answer["warnings"])
    assert publish(submit, failed_export, force=True)["forced"] == [FAILURE]
    text = server.repositories[REPO].files["README.md"].decode()
    head = text.split("## ")[0]
    assert "> - gguf:q8_0: it makes the prompt … where training made … (character 3)" in head
    assert "row-marker" not in text


def test_an_export_whose_gguf_is_gone_is_refused_by_its_name(workspace: Workspace, export: Row) -> None:
    (Path(export["document"]["path"]) / "identity-q8_0.gguf").unlink()
    with pytest.raises(NotFound, match=r"identity-q8_0\.gguf"):
        hub.prepare(workspace, export["id"], REPO)
