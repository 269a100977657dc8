"""tw://guides and tw://guides/{topic}: what the field knows about fine-tuning, for the agent to read before it decides.

One Markdown file a topic in `guides/`, each under 1,500 words; tests hold that every tool and argument that they name
exists.
"""

from importlib.resources import files
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError

from tunewright.pipeline.errors import nearest

FOLDER = files("tunewright.resources") / "guides"
MARKDOWN = "text/markdown"


def topics() -> list[str]:
    """The topics there are, sorted."""
    return sorted(entry.name.removesuffix(".md") for entry in FOLDER.iterdir() if entry.name.endswith(".md"))


def read(topic: str) -> str:
    """A guide's Markdown. Raises ResourceNotFoundError."""
    if topic not in topics():
        raise ResourceNotFoundError(f"There is no guide {topic!r}. {nearest(topic, topics())}")
    return (FOLDER / f"{topic}.md").read_text(encoding="utf-8")


def register(server: MCPServer[Any]) -> None:
    """Adds these resources to the server."""

    @server.resource("tw://guides", mime_type=MARKDOWN, description="The guides there are, with what each says.")
    def guides_resource() -> str:
        return "\n".join(f"- tw://guides/{topic}: {_title(read(topic))}" for topic in topics())

    @server.resource("tw://guides/{topic}", mime_type=MARKDOWN, description=f"A guide: {', '.join(topics())}.")
    def guide_resource(topic: str) -> str:
        return read(topic)


def _title(guide: str) -> str:
    return guide.partition("\n")[0].removeprefix("# ")
