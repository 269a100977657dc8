"""The user's consent to what cannot be taken back: asked for through the host where it can ask (elicitation, in both
protocol eras), else left to the agent, which asks in words and says `confirm=true`.
"""

from mcp.server.mcpserver import AcceptedElicitation, Elicit, ElicitationResult
from pydantic import BaseModel, Field

from tunewright.pipeline.errors import Conflict
from tunewright.tools.framework import AppContext


class Agreement(BaseModel):
    """What the host's form asks."""

    agree: bool = Field(description="Do it.")


Answer = ElicitationResult[Agreement]


def ask(ctx: AppContext, question: str, *, confirmed: bool, retry: str) -> Agreement | Elicit[Agreement]:
    """For a tool's resolver: agreed where `confirmed`, else the question for the user.

    Raises Conflict `not_confirmed` where the host cannot ask; `retry` is the call that says `confirm=true`.
    """
    if confirmed:
        return Agreement(agree=True)
    capabilities = ctx.client_capabilities
    if capabilities is None or capabilities.elicitation is None:
        raise Conflict(
            "not_confirmed", f"{question} Nobody has agreed to that.",
            allowed="Ask the user.", next=retry, done="Nothing was done.",
        )  # fmt: skip
    return Elicit(question, Agreement)


def require(answer: Answer, question: str) -> None:
    """Raises Conflict `declined` unless the user has agreed."""
    if not (isinstance(answer, AcceptedElicitation) and answer.data.agree):
        raise Conflict(
            "declined", f"{question} The user said no.",
            allowed="Nothing more without the user's word: ask what they want instead.", done="Nothing was done.",
        )  # fmt: skip
