"""What our client adds to the official one, over real HTTP."""

import hashlib
from pathlib import Path

import pytest
from standins.ollama_server import OllamaStandIn

from tunewright.pipeline.errors import Unavailable
from tunewright.pipeline.publishing.ollama_client import GIB, UPLOAD_CHUNK_BYTES, OllamaClient, answering

MODEL = {"digest": "sha256:0", "parameters": {}, "template": None, "system": None, "jinja": ""}


def test_held_tells_what_the_server_has_and_runs_and_what_can_be_trained(ollama_server: OllamaStandIn) -> None:
    ollama_server.models = {
        "tuny:latest": {**MODEL, "architecture": "qwen3", "quantize": "", "size": GIB // 4},
        "qwen3:8b": {
            **MODEL, "architecture": "qwen3", "quantize": "q4_K_M", "size": 5 * GIB,
            "details": {"parameter_size": "8.2B"},
        },
    }  # fmt: skip
    ollama_server.loaded = {"qwen3:8b"}
    with OllamaClient() as client:
        assert client.held() == [
            {
                "name": "qwen3:8b", "size_gib": 5.0, "quantization": "Q4_K_M", "family": "qwen3", "running": True,
                "vram_gib": 5.0, "until": "2026-01-01T00:05:00+00:00", "trainable": "unsloth/Qwen3-8B",
            },
            {
                "name": "tuny:latest", "size_gib": 0.25, "quantization": "Q8_0", "family": "qwen3", "running": False,
                "vram_gib": None, "until": None, "trainable": None,
            },
        ]  # fmt: skip
    assert ollama_server.requests == ["GET /api/ps", "GET /api/tags"]


@pytest.mark.parametrize("host", ["http://[::1", "gpu-box:port", "127.0.0.1:999999", "http://me:se@cret@gpu-box:port"])
def test_an_address_that_is_none_is_said_and_without_its_password(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    with pytest.raises(Unavailable, match="ollama_host_invalid: OLLAMA_HOST leads to http://") as caught:
        OllamaClient()
    assert "cret" not in str(caught.value)


@pytest.mark.usefixtures("no_ollama")
def test_held_without_a_server_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="ollama_unavailable"), answering("what it has", next=""):
        OllamaClient().held()


def test_an_upload_tells_how_far_it_is(ollama_server: OllamaStandIn, tmp_path: Path) -> None:
    content = bytes(range(256)) * (UPLOAD_CHUNK_BYTES // 256) + b"rest"
    file = tmp_path / "large.gguf"
    file.write_bytes(content)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    heard: list[int] = []
    with OllamaClient() as client:
        assert client.upload(file, digest, heard.append)
        assert client.has_blob(digest)
    assert heard == [UPLOAD_CHUNK_BYTES, UPLOAD_CHUNK_BYTES + 4]
    assert ollama_server.blobs == {digest: content}


def test_an_upload_under_a_wrong_digest_is_told(ollama_server: OllamaStandIn, tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(b"other")
    with OllamaClient() as client:
        assert not client.upload(file, f"sha256:{'0' * 64}", [].append)
    assert ollama_server.blobs == {}


def test_unloading_frees_what_was_loaded(ollama_server: OllamaStandIn) -> None:
    ollama_server.models = {"tuny:latest": {**MODEL, "architecture": "x", "quantize": "", "jinja": "{{ messages }}"}}
    with OllamaClient() as client:
        assert client.rendered("tuny", [{"role": "user", "content": "Hi"}])
        assert ollama_server.loaded == {"tuny:latest"}
        client.unload("tuny")
    assert ollama_server.loaded == set()
