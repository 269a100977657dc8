"""The teacher: one request after another to an OpenAI-compatible endpoint, retried, counted, its failures sorted.

Guarantees: what the official client takes from the environment (an admin key, an organisation, headers of one's own)
goes to OpenAI's address alone; other hosts get the request and the key that belongs to them. A failure that every
further request would share raises at once, one that may concern this request only is a NoAnswer.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import anyio.to_thread
import httpx2

# OpenAI's own client (maintained by OpenAI, Apache-2.0): its waiting after 429, 5xx and lost connections, with
# Retry-After and growing pauses, is what every compatible endpoint is tested against.
import openai

from tunewright.pipeline.generation.endpoint import Endpoint

# A model on a CPU may think for minutes over one answer, after loading for one.
READ_TIMEOUT_S = 600
CONNECT_TIMEOUT_S = 5
# With the client's pauses of 0.5 to 8 s: half a minute of a server that restarts.
RETRIES = 6
# All that a request to a host other than OpenAI's may say beside its body; the last is how the client remembers what
# was asked of it.
PLAIN_HEADERS = {
    "host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length",
    "x-stainless-raw-response",
}  # fmt: skip
# Answers to a request that is not understood: an unknown `response_format`, a text that is too long.
REFUSED = (400, 413, 415, 422, 501)

ChatMessage = dict[str, str]


@dataclass(frozen=True)
class Reply:
    """What the teacher said, and what it cost; tokens are 0 where the endpoint does not tell."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class NoAnswer(Exception):
    """Raised where this request got no answer after every retry. `refused`: the endpoint did not take the request."""

    def __init__(self, why: str, *, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


class Teacher:
    """`async with Teacher(endpoint, model, next=…) as teacher:`; `next` is the call that errors name."""

    def __init__(self, endpoint: Endpoint, model: str, *, next: str) -> None:
        self._endpoint, self._model, self._next = endpoint, model, next
        self._takes_schema: bool | None = None
        self._sent = 0
        self._key = endpoint.key()
        http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            follow_redirects=False,
            trust_env=not endpoint.is_loopback,
            event_hooks={"request": [self._before]},
        )
        self._client = openai.AsyncOpenAI(
            # The client refuses to be made without one; `_before` takes it out again.
            api_key=self._key or "none", base_url=endpoint.url, http_client=http, max_retries=RETRIES,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def _before(self, request: httpx2.Request) -> None:
        self._sent += 1
        if not self._endpoint.is_openai:
            for name in [name for name in request.headers if name not in PLAIN_HEADERS]:
                del request.headers[name]
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        else:
            request.headers.pop("Authorization", None)

    def take_sent(self) -> int:
        """How many requests went out since this was last asked, those retried each time."""
        sent, self._sent = self._sent, 0
        return sent

    async def ask(self, messages: list[ChatMessage], schema: dict[str, Any] | None = None) -> Reply:
        """The answer to `messages`, JSON by `schema` where the endpoint can. Raises NoAnswer, Unavailable, NotFound."""
        if schema is None or self._takes_schema is False:
            return await self._send(messages)
        form = {"type": "json_schema", "json_schema": {"name": "example", "strict": True, "schema": schema}}
        try:
            reply = await self._send(messages, response_format=form)
        except NoAnswer as failure:
            if self._takes_schema or not failure.refused:
                raise
        else:
            self._takes_schema = True
            return reply
        reply = await self._send(messages)
        self._takes_schema = False
        return reply

    async def _send(self, messages: list[ChatMessage], **options: Any) -> Reply:
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=self._model, messages=cast(Any, messages), **options
            )
        except openai.APIStatusError as error:
            raise await self._sorted(error.status_code, error.response.text) from None
        except openai.APITimeoutError:
            raise NoAnswer(f"no answer within {READ_TIMEOUT_S} s") from None
        except openai.APIConnectionError as error:
            raise NoAnswer(f"no connection ({type(error.__cause__ or error).__name__})") from None
        return self._read(raw.http_response)

    async def _sorted(self, status: int, text: str) -> Exception:
        """What an answer other than 2xx means."""
        endpoint = self._endpoint
        if refusal := endpoint.refusal(status, text, next=self._next):
            return refusal
        if status == 404:
            offered = await anyio.to_thread.run_sync(lambda: endpoint.models(next=self._next))
            return endpoint.unknown_model(self._model, offered or [], next=self._next)
        return NoAnswer(f"{status}: {endpoint.shown(text)}", refused=status in REFUSED)

    def _read(self, response: httpx2.Response) -> Reply:
        """The first choice's text. Read here, not by the client: compatible endpoints leave out what it expects."""
        try:
            body: Any = response.json()
            message: Any = body["choices"][0]["message"]
            text, usage = message.get("content") or message.get("refusal") or "", body.get("usage") or {}
            return Reply(str(text), int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise NoAnswer(f"no chat completion: {self._endpoint.shown(response.text)}") from None
