import re
from pathlib import Path

import pytest

from tunewright.pipeline import errors, ids
from tunewright.pipeline.settings import Home, hub_endpoint, ollama_host


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Identity (v2).json", "identity-v2-json"),
        ("  ", "x"),
        ("数据", "x"),
        ("a" * 40, "a" * 24),
        ("abcdefghijklmnopqrstuvw-xyz", "abcdefghijklmnopqrstuvw"),  # no hyphen left at the cut
        ("--a__b--", "a-b"),
    ],
)
def test_ids_hold_the_name_as_lower_case_words(name: str, slug: str) -> None:
    assert ids.slug(name) == slug
    assert re.fullmatch(rf"ds-{re.escape(slug)}-[{ids.ALPHABET}]{{4}}", ids.new_id("dataset", name))


def test_two_things_of_one_name_get_different_ids() -> None:
    assert len({ids.new_id("job", "same") for _ in range(50)}) == 50


def test_what_a_job_makes_has_the_same_id_each_time_it_runs() -> None:
    assert ids.id_within("export", "Tiny One", "job-tiny-one-7f3k") == "ex-tiny-one-7f3k"


def test_an_error_says_what_is_allowed_what_to_do_next_and_what_was_done() -> None:
    error = errors.InvalidInput(
        "unknown_method",
        "method='dpo' is not supported.",
        allowed="Supported: sft.",
        next=errors.call("start_finetune", dataset_id="ds-1", method="sft", dry_run=True),
    )
    assert str(error) == (
        "unknown_method: method='dpo' is not supported. Supported: sft. "
        'Next: start_finetune(dataset_id="ds-1", method="sft", dry_run=true). Nothing was changed.'
    )
    assert error.to_dict() == {
        "code": "unknown_method",
        "what": "method='dpo' is not supported.",
        "allowed": "Supported: sft.",
        "next": 'start_finetune(dataset_id="ds-1", method="sft", dry_run=true)',
        "done": "Nothing was changed.",
    }


@pytest.mark.parametrize(
    ("kind", "standard"),
    [
        (errors.InvalidInput, ValueError),
        (errors.NotFound, LookupError),
        (errors.Conflict, RuntimeError),
        (errors.Unavailable, RuntimeError),
        (errors.NoSpace, OSError),
    ],
)
def test_every_error_is_a_standard_one_and_reads_the_same(
    kind: type[errors.TunewrightError], standard: type[Exception]
) -> None:
    with pytest.raises(standard) as caught:
        raise kind("some_code", "It failed.", allowed="That.", next="do()", done="Half.")
    assert isinstance(caught.value, errors.TunewrightError)
    assert str(caught.value) == "some_code: It failed. That. Next: do(). Half."


def test_a_call_reads_as_an_agent_would_send_it() -> None:
    text = errors.call("publish", name='say "hi"', parts=["a", 1], system=None, where="münchen")
    assert text == 'publish(name="say \\"hi\\"", parts=["a", 1], system=null, where="münchen")'


def test_the_nearest_known_values_are_named() -> None:
    known = ["unsloth/Qwen3-8B", "unsloth/Qwen3-4B", "unsloth/phi-4"]
    assert errors.nearest("unsloth/Qwen3-8b", known, count=1) == "Nearest: unsloth/Qwen3-8B."
    assert errors.nearest("zzz", known) == f"Nearest: {', '.join(known)}."
    assert errors.nearest("zzz", []) == "There are none yet."


# As Ollama's envconfig.Host and ConnectableHost read them.
@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("  ", "http://127.0.0.1:11434"),
        ("localhost", "http://localhost:11434"),
        ("example.com:1234", "http://example.com:1234"),
        (":1234", "http://127.0.0.1:1234"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:1234", "http://127.0.0.1:1234"),
        ("http://example.com", "http://example.com:80"),
        ("http://example.com:11434/", "http://example.com:11434"),
        ("https://example.com", "https://example.com:443"),
        ("https://example.com/ollama/", "https://example.com:443/ollama"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:1234", "http://[::1]:1234"),
        ("https://user:word@example.com:8443", "https://user:word@example.com:8443"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(given: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", given)
    assert ollama_host() == url


def test_a_mirror_of_the_hub_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_endpoint() == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert hub_endpoint() == "https://mirror.example"


def test_the_home_is_the_argument_then_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "from-environment"))
    assert Home.open().root == tmp_path / "from-environment"
    assert Home.open(tmp_path / "given").root == tmp_path / "given"
    monkeypatch.delenv("TUNEWRIGHT_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert Home.open().root == tmp_path / "me" / ".tunewright"
