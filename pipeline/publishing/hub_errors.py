"""What the Hub's client raises, told so that an agent can act on it. Never holds a token, nor the request with it."""

import os
from collections.abc import Generator
from contextlib import contextmanager

from tunewright.pipeline.errors import Conflict, TunewrightError, Unavailable, call
from tunewright.pipeline.redact import public_text, without_login
from tunewright.pipeline.settings import hub_endpoint
from tunewright.pipeline.workspace import Workspace

HOW_TO_LOG_IN = "Run `hf auth login`, or set HF_TOKEN to a token with write access (huggingface.co/settings/tokens)."
# In the Hub's words: "Private repository storage limit reached, …", "Your storage patterns tripped …" (status 403).
STORAGE_WORDS = ("storage", "quota", "insufficient space")
SHOWN_WORDS = 300


def shown_endpoint() -> str:
    """The Hub's base URL as it may be stored and shown."""
    return without_login(hub_endpoint())


@contextmanager
def answering(workspace: Workspace, repo_id: str, *, retry: str, done: str) -> Generator[None]:
    """Turns what the Hub's client raises into TunewrightErrors. The cause is not kept: a request in it holds the token.

    Errors of this machine's own disk pass as they are.
    """
    import httpx

    try:
        yield
    except TunewrightError:
        raise
    # The client wraps a failed upload in RuntimeError and a refused one in ValueError; Xet raises ConnectionError.
    except (httpx.HTTPError, ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise _failure(workspace, repo_id, error, retry, done) from None


def _failure(workspace: Workspace, repo_id: str, error: Exception, retry: str, done: str) -> TunewrightError:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    answer = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    status = answer.response.status_code if answer is not None else 0
    words = (answer.server_message or "") if answer is not None else str(causes[-1])
    said = public_text(workspace, " ".join(words.split())[:SHOWN_WORDS]).rstrip(".")
    tail = f": {said}" if said else ""
    if status == 412:
        return Conflict(
            "repo_changed", f"{repo_id} was changed by somebody else during the upload.",
            allowed="Look at what was changed; what was sent so far is not sent again.", next=retry, done=done,
        )  # fmt: skip
    if status == 507 or (status in (0, 403, 413) and any(word in words.lower() for word in STORAGE_WORDS)):
        return Unavailable(
            "hub_storage_full", f"{shown_endpoint()} has no room left for {repo_id}{tail}.",
            allowed="Delete repositories there or get more room (huggingface.co/settings/billing), or publish less: "
            "an adapter, or fewer outputs of an export.", next=call("list_artifacts", kind="publication"), done=done,
        )  # fmt: skip
    if answer is not None:
        code, what = "hub_refused", f"{shown_endpoint()} answered {status} for {repo_id}{tail}"
        allowed = HOW_TO_LOG_IN if status in (401, 403) else ""
    elif any(isinstance(cause, (ConnectionError, TimeoutError, httpx.HTTPError)) for cause in causes):
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        code, what = "hub_unreachable", f"{shown_endpoint()} cannot be reached, or the connection broke off{offline}"
        allowed = "HF_ENDPOINT names a mirror."
    else:
        code, what, allowed = "hub_failed", f"The upload to {repo_id} failed{tail}", ""
    return Unavailable(code, f"{what}.", allowed=allowed, next=retry, done=done)
