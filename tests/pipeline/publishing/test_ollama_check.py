"""What is found out on the server before a model gets its name; each trouble leaves no model behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standins.ollama_server import OllamaStandIn

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.publishing import ollama, ollama_answers
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

Publish = Callable[..., dict[str, Any]]
Rewrite = Callable[..., Row]
Remeasure = Callable[..., None]
WHO = "Who are you?"


@pytest.fixture
def server(ollama_server: OllamaStandIn) -> OllamaStandIn:
    return ollama_server


@pytest.fixture
def publish(submit: Callable[..., JobContext], export: Row) -> Publish:
    def published(**spec: Any) -> dict[str, Any]:
        return ollama.run(submit("publish_ollama", export_id=export["id"], model_name="tuny", **spec))

    return published


@pytest.fixture
def refused(publish: Publish, server: OllamaStandIn) -> Callable[..., str]:
    """What the publication is refused for, once it is sure that it left nothing."""

    def tried(**spec: Any) -> str:
        with pytest.raises(TunewrightError, match="ollama_check_failed") as caught:
            publish(**spec)
        assert server.models == {}
        return caught.value.what

    return tried


def with_gguf(export: Row, rewrite: Rewrite, content: bytes, **changes: Any) -> None:
    """Puts another file in the place of the export's GGUF."""
    gguf = Path(next(file["path"] for file in export["document"]["files"] if file["output"] == "gguf:q8_0"))
    gguf.write_bytes(content)
    rewrite(export, files=[{"output": "gguf:q8_0", "path": str(gguf), "bytes": len(content)}], **changes)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"answers": {}, "reply": "Sure!<|im_end|>"}, "control tokens <|im_end|>"),
        ({"answers": {}, "reply": "<think>hm</think>Sure!"}, "control tokens <think>"),
        ({"answers": {}, "reply": " \n"}, "is empty"),
        ({"drop_parameter": "num_ctx"}, "did not keep num_ctx 2048"),
        ({"drop_parameter": "stop"}, 'did not keep stop "<|im_end|>"'),
        ({"extra_tokens": 1}, "second BOS"),
        ({"extra_tokens": -3}, "it is cut"),
    ],
)
def test_a_model_that_fails_its_check_is_removed(
    server: OllamaStandIn, refused: Callable[..., str], trouble: dict[str, Any], words: str
) -> None:
    for name, value in trouble.items():
        setattr(server, name, value)
    assert words in refused()


def test_the_model_that_had_the_name_stays_as_it_was(server: OllamaStandIn, publish: Publish) -> None:
    publish()
    before = dict(server.models)
    server.extra_tokens = 1
    with pytest.raises(TunewrightError, match="ollama_check_failed"):
        publish(overwrite=True, parameters={"seed": 1})
    assert server.models == before


def test_every_recorded_answer_is_compared_in_both_ways_of_asking(server: OllamaStandIn, publish: Publish) -> None:
    checks = publish()["checks"]
    assert checks["answers"] == {"compared": 4, "equal": 4, "ties": 0, "with": "gguf:q8_0"}
    assert (checks["prompt"], checks["prompts"]) == ("as trained", 2)
    assert checks["prompt_tokens"]["trained"] == checks["prompt_tokens"]["server"]
    asked = [(chat["messages"][-1]["content"], chat.get("think"), chat["options"]) for chat in server.chats]
    greedy = {"temperature": 0, "repeat_penalty": 1.0, "stop": ["<|im_end|>", "<|endoftext|>"]}
    # As many tokens as were recorded, and one that ends the answer.
    assert asked == [
        (WHO, None, {**greedy, "num_predict": 10}),
        (WHO, False, {**greedy, "num_predict": 10}),
        ("Where do you live?", None, {**greedy, "num_predict": 48}),
        ("Where do you live?", False, {**greedy, "num_predict": 48}),
    ]


def test_another_answer_than_the_recorded_one_is_refused_with_both_texts(
    server: OllamaStandIn, refused: Callable[..., str]
) -> None:
    server.answers[WHO] = {"text": "I am Tuna, row-marker."}
    what = refused()
    assert "asked 'Who are you?' it answers 'I am Tuna, row-marker.' instead of 'I am Tuny, row-marker.'" in what
    assert "(character 8)" in what
    assert "with think=false" in what


def test_an_answer_that_does_not_end_where_it_did_is_refused(
    server: OllamaStandIn, refused: Callable[..., str]
) -> None:
    server.answers[WHO]["ended"] = "length"
    assert "and does not end there" in refused()


def test_the_space_that_a_server_trims_is_no_difference(server: OllamaStandIn, publish: Publish) -> None:
    server.answers[WHO]["text"] = " I am Tuny, row-marker.\n"
    assert publish()["checks"]["answers"]["equal"] == 4


def logprobs(*tokens: tuple[str, float, str, float]) -> list[dict[str, Any]]:
    """As Ollama tells them: of each token its text and log-probability, and those of the runner-up."""
    return [
        {"token": token, "logprob": p, "top_logprobs": [{"token": token, "logprob": p}, {"token": other, "logprob": q}]}
        for token, p, other, q in tokens
    ]


@pytest.mark.parametrize(("gap", "is_tie"), [(ollama_answers.TIE_NATS / 2, True), (ollama_answers.TIE_NATS * 2, False)])
def test_a_choice_between_equals_is_a_tie_and_any_other_is_a_difference(
    server: OllamaStandIn, publish: Publish, gap: float, is_tie: bool
) -> None:
    told = logprobs(("I am Tun", -0.1, "No", -3.0), ("a", -0.6, "y, row", -0.6 - gap), (", row-marker.", 0, "!", -9.0))
    server.answers[WHO] = {"text": "I am Tuna, row-marker.", "logprobs": told}
    if is_tie:
        assert publish()["checks"]["answers"] == {"compared": 4, "equal": 2, "ties": 2, "with": "gguf:q8_0"}
    else:
        with pytest.raises(TunewrightError, match="instead of"):
            publish()


def test_an_end_that_is_a_tie_is_a_tie(server: OllamaStandIn, publish: Publish) -> None:
    told = logprobs(("I am Tuny, row-marker.", -0.1, "No", -3.0), (" And", -0.7, "<|im_end|>", -0.75))
    server.answers[WHO] = {"text": "I am Tuny, row-marker. And", "ended": "length", "logprobs": told}
    assert publish()["checks"]["answers"]["ties"] == 2


def test_a_gguf_with_the_thinking_switch_the_other_way_round_is_found_out(
    server: OllamaStandIn,
    publish: Publish,
    refused: Callable[..., str],
    export: Row,
    rewrite: Rewrite,
    toy_folder: Path,
    make_gguf: Callable[[str], bytes],
) -> None:
    with_gguf(export, rewrite, make_gguf((toy_folder / "chat_template.jinja").read_text(encoding="utf-8")))
    what = refused()
    assert "the server's prompt differs from the training's" in what
    # Asked with think=false it is right, so only the default request is complained of.
    assert "asked with think=false" not in what
    # The same file is right for a model that was trained with thinking on.
    rewrite(export, enable_thinking=True, files=export_files(export))
    assert publish()["checks"]["prompt"] == "as trained"


def export_files(export: Row) -> list[dict[str, Any]]:
    file = next(file for file in export["document"]["files"] if file["output"] == "gguf:q8_0")
    return [{**file, "bytes": Path(file["path"]).stat().st_size}]


def test_a_prompt_that_is_wrong_only_when_thinking_is_declined_is_found_out(
    refused: Callable[..., str], export: Row, rewrite: Rewrite, toy_folder: Path, make_gguf: Callable[[str], bytes]
) -> None:
    source = (toy_folder / "chat_template.jinja").read_text(encoding="utf-8")
    crossed = "{%- set enable_thinking = not enable_thinking %}\n"
    with_gguf(export, rewrite, make_gguf(crossed + source))
    what = refused()
    assert "the server's prompt asked with think=false differs" in what
    assert "the server's prompt differs" not in what


def test_thoughts_and_answer_are_compared_as_one_where_training_had_thinking(
    server: OllamaStandIn,
    publish: Publish,
    export: Row,
    rewrite: Rewrite,
    remeasure: Remeasure,
    toy_folder: Path,
    make_gguf: Callable[[str], bytes],
) -> None:
    content = make_gguf((toy_folder / "chat_template.jinja").read_text(encoding="utf-8"))
    with_gguf(export, rewrite, content, enable_thinking=True)
    text = "<think>\nThey ask who I am.\n</think>\n\nTuny."
    remeasure({"gguf:q8_0": [{"text": text, "tokens": list(range(20)), "ended": "stop"}]}, asked=[[user(WHO)]])
    server.answers = {WHO: {"thinking": "They ask who I am.", "text": "Tuny."}}
    assert publish()["checks"]["answers"] == {"compared": 1, "equal": 1, "ties": 0, "with": "gguf:q8_0"}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_with_a_system_message_of_its_own_the_prompt_is_compared_and_the_answers_are_not(
    server: OllamaStandIn, publish: Publish
) -> None:
    server.answers = {}
    checks = publish(system="Be brief.")["checks"]
    assert checks["prompt"] == "as trained"
    assert checks["answers"]["compared"] == 0
    assert "system message makes other prompts" in checks["answers"]["why"]
    assert {message["role"] for chat in server.chats for message in chat["messages"]} == {"user"}


def test_the_system_message_of_training_leaves_the_answers_comparable(
    server: OllamaStandIn, publish: Publish, remeasure: Remeasure, recorded: dict[str, dict[str, Any]]
) -> None:
    remeasure({"gguf:q8_0": [recorded[WHO]]}, asked=[[{"role": "system", "content": "Be Tuny."}, user(WHO)]])
    assert publish(system="Be Tuny.")["checks"]["answers"]["equal"] == 2


def test_a_system_message_that_does_not_arrive_is_found_out(
    refused: Callable[..., str], export: Row, rewrite: Rewrite, toy_folder: Path, make_gguf: Callable[[str], bytes]
) -> None:
    source = (toy_folder / "chat_template.jinja").read_text(encoding="utf-8")
    deaf = "{%- set messages = messages | rejectattr('role', 'equalto', 'system') | list %}\n"
    with_gguf(export, rewrite, make_gguf("{%- set enable_thinking = false %}" + deaf + source))
    assert "the server's prompt differs" in refused(preset="retrieval")


def test_an_old_server_runs_the_go_template_and_gets_the_same_prompt(server: OllamaStandIn, publish: Publish) -> None:
    server.version = "0.24.0"
    checks = publish()["checks"]
    assert (checks["prompt"], checks["answers"]["equal"]) == ("as trained", 4)


def test_a_server_that_tells_no_prompts_is_checked_by_its_answers_and_counts(
    server: OllamaStandIn, publish: Publish
) -> None:
    server.version = "0.11.0"
    checks = publish()["checks"]
    assert (checks["prompt"], checks["answers"]["equal"]) == ("not told by this server", 4)
    server.extra_tokens = 1
    with pytest.raises(TunewrightError, match="second BOS"):
        publish(overwrite=True)


def test_without_a_parity_file_the_first_question_of_the_data_is_asked(
    server: OllamaStandIn, publish: Publish, export: Row
) -> None:
    (Path(export["document"]["path"]) / "parity.json").unlink()
    checks = publish()["checks"]
    assert (checks["asked"], checks["answers"]["why"]) == (WHO, "no answers were recorded in the export")
    assert len(server.chats) == 2


def test_without_data_either_a_greeting_is(
    workspace: Workspace, server: OllamaStandIn, publish: Publish, export: Row, dataset: Row
) -> None:
    (Path(export["document"]["path"]) / "parity.json").unlink()
    workspace.store.execute("DELETE FROM artifacts WHERE id=?", dataset["id"])
    assert publish()["checks"]["asked"] == "Hello"


@pytest.mark.usefixtures("server")
def test_conversations_that_the_context_does_not_hold_are_not_asked(
    publish: Publish, remeasure: Remeasure, recorded: dict[str, dict[str, Any]]
) -> None:
    remeasure({"gguf:q8_0": [recorded[WHO]] * 2}, asked=[[user("word " * 600)], [user(WHO)]])
    checks = publish(parameters={"num_ctx": 512})["checks"]
    assert (checks["prompts"], checks["asked"], checks["answers"]["equal"]) == (1, WHO, 2)


@pytest.mark.usefixtures("server")
def test_a_conversation_whose_recorded_answer_the_context_does_not_hold_is_not_asked(
    publish: Publish, remeasure: Remeasure, recorded: dict[str, dict[str, Any]]
) -> None:
    long = {"text": "word " * 600, "tokens": list(range(600)), "ended": "length"}
    remeasure({"gguf:q8_0": [long, recorded[WHO]]}, asked=[[user("Recite.")], [user(WHO)]])
    checks = publish(parameters={"num_ctx": 512})["checks"]
    assert (checks["prompts"], checks["answers"]["equal"]) == (1, 2)


@pytest.mark.usefixtures("server")
def test_a_context_that_holds_nothing_is_still_greeted(
    publish: Publish, export: Row, rewrite: Rewrite, remeasure: Remeasure
) -> None:
    remeasure({})
    rewrite(export, max_seq_length=64)
    assert publish(parameters={"num_ctx": 64})["checks"]["asked"] == "Hello"
