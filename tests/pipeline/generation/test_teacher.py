"""The client over real HTTP: what is tried again, what is given up, what is sent to whom."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, ClassVar

import pytest
from standins.chat_server import COMPLETION_TOKENS, PROMPT_TOKENS, ChatStandIn
from standins.serving import Handler, StandIn

from tunewright.pipeline.errors import NotFound, TunewrightError, Unavailable
from tunewright.pipeline.generation.endpoint import Endpoint
from tunewright.pipeline.generation.teacher import RETRIES, NoAnswer, Reply, Teacher

ASK = [{"role": "user", "content": "<text>\nTea is wet. Ice is cold.\n</text>"}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
NEXT = 'resume_job(job_id="job-x")'
# Only ever in this test.
KEY = "sk-" + "S3cretS3cret" * 3


class _Redirect(Handler):
    state: "Redirect"

    def do_POST(self) -> None:
        self.read_body()
        self.state.requests.append(self.path)
        self.send_json(307, None, Location=f"{self.state.target}{self.path}")


class Redirect(StandIn):
    """Sends everybody on to `target`."""

    handler: ClassVar[type[Handler]] = _Redirect
    target: str = ""


@pytest.fixture
def redirect() -> Iterator[Redirect]:
    with Redirect() as stand_in:
        yield stand_in


def ask(url: str, *, times: int = 1, schema: dict[str, Any] | None = None, model: str = "teacher") -> list[Reply]:
    """The answers to the same question, one after another."""

    async def talk() -> list[Reply]:
        async with Teacher(Endpoint.of(url), model, next=NEXT) as teacher:
            return [await teacher.ask(ASK, schema) for _ in range(times)]

    return asyncio.run(talk())


def failure(url: str, kind: type[Exception], *, model: str = "teacher") -> str:
    with pytest.raises(kind) as caught:
        ask(url, model=model)
    return str(caught.value)


def run(work: Callable[[Teacher], Coroutine[Any, Any, Any]], url: str) -> Any:
    async def talk() -> Any:
        async with Teacher(Endpoint.of(url), "teacher", next=NEXT) as teacher:
            return await work(teacher)

    return asyncio.run(talk())


def test_an_answer_comes_with_what_it_cost(server: ChatStandIn) -> None:
    (reply,) = ask(server.endpoint)
    assert json.loads(reply.text)["answer"] == "Tea is wet."
    assert (reply.prompt_tokens, reply.completion_tokens) == (PROMPT_TOKENS, COMPLETION_TOKENS)


@pytest.mark.parametrize("faults", [[429, 429], [500, 503], [0]], ids=["too many", "server errors", "cut"])
def test_what_passes_is_tried_again_and_counted(server: ChatStandIn, faults: list[int]) -> None:
    server.statuses = [*faults]

    async def work(teacher: Teacher) -> tuple[Reply, int, int]:
        return await teacher.ask(ASK), teacher.take_sent(), teacher.take_sent()

    reply, sent, after = run(work, server.endpoint)
    assert "Tea is wet." in reply.text
    assert (sent, after) == (len(faults) + 1, 0)


def test_what_does_not_pass_is_given_up_after_the_last_try(server: ChatStandIn) -> None:
    server.statuses = [503] * (RETRIES + 1)
    assert failure(server.endpoint, NoAnswer) == '503: {"error": {"message": "refused"}}'
    assert len(server.chats) == RETRIES + 1


def test_nobody_there_is_no_answer(server: ChatStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.pipeline.generation.teacher.RETRIES", 0)
    assert failure("http://127.0.0.1:9/v1", NoAnswer) == "no connection (ConnectError)"


def test_a_slow_teacher_is_given_up(server: ChatStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.pipeline.generation.teacher.RETRIES", 0)
    monkeypatch.setattr("tunewright.pipeline.generation.teacher.READ_TIMEOUT_S", 0.2)
    server.hold_after = 0
    try:
        assert failure(server.endpoint, NoAnswer) == "no answer within 0.2 s"
    finally:
        server.release.set()


def test_json_by_schema_is_asked_for_where_the_endpoint_takes_it(server: ChatStandIn) -> None:
    ask(server.endpoint, schema=SCHEMA)
    (chat,) = server.chats
    assert chat["response_format"]["json_schema"] == {"name": "example", "strict": True, "schema": SCHEMA}


def test_an_endpoint_without_schemas_is_asked_plainly_from_then_on(server: ChatStandIn) -> None:
    server.takes_schema = False
    assert len(ask(server.endpoint, times=2, schema=SCHEMA)) == 2
    assert ["response_format" in chat for chat in server.chats] == [True, False, False]


def test_a_request_refused_without_a_schema_too_is_no_answer_and_says_nothing_about_schemas(
    server: ChatStandIn,
) -> None:
    server.statuses, server.refusal = [400, 400], "the text is too long"

    async def work(teacher: Teacher) -> Reply:
        with pytest.raises(NoAnswer, match=r"400: .*the text is too long"):
            await teacher.ask(ASK, SCHEMA)
        return await teacher.ask(ASK, SCHEMA)

    run(work, server.endpoint)
    assert ["response_format" in chat for chat in server.chats] == [True, False, True]


def test_a_server_in_trouble_is_not_taken_for_one_without_schemas(server: ChatStandIn) -> None:
    server.statuses = [503] * (RETRIES + 1)

    async def work(teacher: Teacher) -> None:
        with pytest.raises(NoAnswer, match=r"503: "):
            await teacher.ask(ASK, SCHEMA)

    run(work, server.endpoint)
    assert ["response_format" in chat for chat in server.chats] == [True] * (RETRIES + 1)


def test_an_unknown_model_is_said_with_those_that_there_are(server: ChatStandIn) -> None:
    text = failure(server.endpoint, NotFound, model="techer")
    assert text.startswith("teacher_not_found: ") and "Nearest: teacher." in text and f"Next: {NEXT}." in text


@pytest.mark.parametrize(("status", "says"), [(402, "no money"), (429, "insufficient_quota: exceeded")])
def test_a_used_up_account_ends_the_work(server: ChatStandIn, status: int, says: str) -> None:
    server.statuses, server.refusal = [status] * (RETRIES + 1), says
    text = failure(server.endpoint, Unavailable)
    assert text.startswith("teacher_quota: ") and says in text


def test_a_refused_key_ends_the_work_and_is_not_repeated(server: ChatStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_TEACHER_API_KEY", KEY)
    monkeypatch.setenv("TUNEWRIGHT_TEACHER_URL", server.url)
    server.key = "another"
    text = failure(server.endpoint, TunewrightError)
    assert text.startswith("teacher_key_refused: ") and "S3cret" not in text
    assert len(server.requests) == 1
    # What the endpoint says about other failures may hold the key, too.
    server.key, server.statuses, server.refusal = None, [400], f"bad header Bearer {KEY}"
    assert failure(server.endpoint, NoAnswer) == '400: {"error": {"message": "bad header Bearer [removed]"}}'


def test_no_other_host_gets_what_belongs_to_openai(server: ChatStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Gateway: {KEY}")
    ask(server.endpoint)
    assert "S3cret" not in str(server.headers)
    assert not {"authorization", "openai-organization", "openai-project", "x-gateway"} & set(server.headers[0])
    monkeypatch.setenv("OPENAI_BASE_URL", server.endpoint)
    ask(server.endpoint)
    assert server.headers[1]["authorization"] == f"Bearer {KEY}"
    assert server.headers[1]["openai-organization"] == server.headers[1]["x-gateway"] == KEY


def test_documents_follow_no_redirect(server: ChatStandIn, redirect: Redirect) -> None:
    redirect.target = server.url
    assert failure(f"{redirect.url}/v1", NoAnswer).startswith("307: ")
    assert redirect.requests == ["/v1/chat/completions"] and not server.requests


def test_a_local_teacher_is_not_reached_through_a_proxy(
    server: ChatStandIn, redirect: Redirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, redirect.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    ask(server.endpoint)
    Endpoint.of(server.endpoint).models(next=NEXT)
    assert len(server.requests) == 2 and not redirect.requests
