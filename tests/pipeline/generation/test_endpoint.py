"""Addresses, whose key goes where, and what an endpoint says it has. Real HTTP on the loopback."""

import re
from collections.abc import Iterator
from typing import ClassVar

import pytest
from standins.chat_server import ChatStandIn
from standins.serving import Handler, StandIn

from tunewright.pipeline.errors import InvalidInput, NotFound, Unavailable
from tunewright.pipeline.generation.endpoint import Endpoint

NEXT = "generate_examples(…)"
# Only ever in this test.
KEY = "sk-" + "S3cretS3cret" * 3


class _Handler(Handler):
    def do_GET(self) -> None:
        self.send_json(200, {"hello": "I am no teacher"})


class Stranger(StandIn):
    """Answers everything, but not with what was asked for."""

    handler: ClassVar[type[Handler]] = _Handler


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    with Stranger() as stand_in:
        yield stand_in


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        (" https://api.example/v1/chat/completions ", "https://api.example/v1"),
        ("https://api.example/v1beta/openai/", "https://api.example/v1beta/openai"),
    ],
)
def test_an_address_is_taken_however_it_is_written(given: str, url: str) -> None:
    assert Endpoint.of(given).url == url
    assert Endpoint.of(url).url == url, "what stands in a job's spec is read again"


def test_ollama_is_where_its_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:11500")
    assert Endpoint.of("ollama").url == "http://127.0.0.1:11500/v1"


@pytest.mark.parametrize("given", ["", "teacher", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1/v1"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"invalid_endpoint: {given!r} is no address")):
        Endpoint.of(given)


@pytest.mark.parametrize("given", [f"http://me:{KEY}@h/v1", f"https://h/v1?key={KEY}", f"https://h/v1#{KEY}", KEY])
def test_a_key_in_the_argument_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(InvalidInput, match=r"invalid_endpoint: .* Keys come from the environment only") as caught:
        Endpoint.of(given)
    assert "S3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:1/v1", True), ("http://127.8.8.8/v1", True), ("http://[::1]:1/v1", True),
        ("http://192.168.0.2/v1", False), ("http://localhost.example/v1", False), ("http://0.0.0.0/v1", False),
    ],
)  # fmt: skip
def test_only_this_machine_is_local(url: str, local: bool) -> None:
    assert Endpoint.of(url).is_loopback is local


@pytest.mark.parametrize(
    ("url", "environment", "key"),
    [
        ("https://api.openai.com/v1", {"OPENAI_API_KEY": "a"}, "a"),
        ("http://api.openai.com/v1", {"OPENAI_API_KEY": "a"}, None),
        ("https://api.openai.com.example/v1", {"OPENAI_API_KEY": "a"}, None),
        ("http://127.0.0.1:8000/v1", {"OPENAI_API_KEY": "a"}, None),
        ("https://own.example/x", {"OPENAI_API_KEY": "a", "OPENAI_BASE_URL": "https://own.example/v1"}, "a"),
        ("https://api.openai.com/v1", {"OPENAI_API_KEY": "a", "OPENAI_BASE_URL": "https://own.example/v1"}, None),
        ("https://t.example/v1", {"TUNEWRIGHT_TEACHER_API_KEY": "b"}, None),
        (
            "https://t.example:443/v1",
            {"TUNEWRIGHT_TEACHER_API_KEY": "b", "TUNEWRIGHT_TEACHER_URL": "https://T.example", "OPENAI_API_KEY": "a"},
            "b",
        ),
        (
            "https://t.example:8443/v1",
            {"TUNEWRIGHT_TEACHER_API_KEY": "b", "TUNEWRIGHT_TEACHER_URL": "https://t.example"},
            None,
        ),
    ],
)
def test_a_key_goes_to_its_own_host_alone(
    url: str, environment: dict[str, str], key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Endpoint.of(url).key() == key


def test_the_listing_sends_the_key_that_belongs_there(server: ChatStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = KEY
    monkeypatch.setenv("TUNEWRIGHT_TEACHER_API_KEY", KEY)
    monkeypatch.setenv("TUNEWRIGHT_TEACHER_URL", server.url)
    assert Endpoint.of(server.endpoint).models(next=NEXT) == ["teacher"]


@pytest.mark.parametrize("model", ["teacher", "qwen3", "gemini"])
def test_a_model_is_known_by_its_name_with_or_without_the_usual_tag(server: ChatStandIn, model: str) -> None:
    server.models += ["qwen3:latest", "models/gemini"]
    Endpoint.of(server.endpoint).require_model(model, next=NEXT)


def test_an_unknown_model_is_refused_with_those_that_there_are(server: ChatStandIn) -> None:
    server.models = ["qwen3:8b", "gemma"]
    with pytest.raises(NotFound) as caught:
        Endpoint.of(server.endpoint).require_model("qwen3:4b", next=NEXT)
    assert str(caught.value).startswith(
        f"teacher_not_found: {server.endpoint} has no model 'qwen3:4b'. Nearest: qwen3:8b"
    )
    assert f"Next: {NEXT}." in str(caught.value)


def test_an_endpoint_that_lists_nothing_is_taken_at_its_word(server: ChatStandIn) -> None:
    server.listed = False
    Endpoint.of(server.endpoint).require_model("whatever", next=NEXT)
    assert server.requests == ["GET /v1/models"]


def test_nobody_there_is_said_with_what_to_start() -> None:
    with pytest.raises(
        Unavailable, match=r"endpoint_unavailable: No teacher answers at http://127\.0\.0\.1:9/v1"
    ) as caught:
        Endpoint.of("ollama").models(next=NEXT)
    assert "ollama serve" in str(caught.value)


def test_a_server_that_is_no_teacher_is_said(stranger: Stranger) -> None:
    with pytest.raises(Unavailable, match=r"endpoint_not_understood: .*I am no teacher"):
        Endpoint.of(stranger.url).models(next=NEXT)


@pytest.mark.parametrize("is_openai", [True, False])
def test_a_refused_key_names_its_variable_and_is_not_repeated(
    server: ChatStandIn, is_openai: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "another"
    names = ("OPENAI_API_KEY", "OPENAI_BASE_URL") if is_openai else (
        "TUNEWRIGHT_TEACHER_API_KEY", "TUNEWRIGHT_TEACHER_URL",
    )  # fmt: skip
    monkeypatch.setenv(names[0], KEY)
    monkeypatch.setenv(names[1], server.url)
    with pytest.raises(Unavailable, match=r"teacher_key_refused: .* refuses the key that it was sent") as caught:
        Endpoint.of(server.endpoint).models(next=NEXT)
    assert f"Set {names[0]}" in str(caught.value) and "S3cret" not in str(caught.value)


def test_a_missing_key_is_said_with_the_host_that_it_would_go_to(server: ChatStandIn) -> None:
    server.key = KEY
    with pytest.raises(Unavailable) as caught:
        Endpoint.of(server.endpoint).models(next=NEXT)
    assert "wants a key, and none was sent (401)" in str(caught.value)
    assert f"TUNEWRIGHT_TEACHER_URL={server.url} " in str(caught.value)
