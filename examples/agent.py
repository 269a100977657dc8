"""An agent built with another framework drives the server: `python examples/agent.py FILE [MODEL]`, MODEL by default
the toy. It prepares the file, plans, fine-tunes, tries and validates, as it sees fit. The tools that publish and delete
are kept from it.

The language model that decides is the one of AGENT_MODEL, as Pydantic AI names it, and must be able to call tools:
`ollama:qwen3:8b` (with OLLAMA_BASE_URL), `openai-chat:gpt-5` (with OPENAI_API_KEY; any compatible server by
OPENAI_BASE_URL). Needs `pip install "pydantic-ai-slim[mcp,openai]"` beside Tunewright.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

# Pydantic AI: kept by the makers of Pydantic, stable since 1.0, for any model, and it sends traces to nobody. Its MCP
# client is FastMCP's, not the SDK's of session.py, and runs on the generation of the SDK that the server needs (mcp 2),
# where LangChain's adapters still ask for mcp 1.
from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.mcp import CallToolFunc, MCPToolset, ToolResult
from pydantic_ai.usage import UsageLimits

# A machine that trains starts a process slowly; the framework would wait for some seconds.
START_TIMEOUT_S = 60
GOAL = "answer as the data does. I am away: decide by yourself where you would ask me, and publish nothing"
# What such tools do cannot be taken back, and nobody is there to agree.
FOR_PEOPLE = ("publish", "delete")
# Fifty, the framework's usual limit, would be some forty minutes of following one training.
MAX_REQUESTS = 500
SHOWN_CHARACTERS = 300


def server(data: Path) -> MCPToolset[object]:
    """Starts Tunewright as a child, which may read the data's folder. Every call is printed."""
    transport = StdioTransport(
        sys.executable, ["-P", "-m", "tunewright.server", "--allow-dir", str(data.parent)], env=dict(os.environ),
        log_file=Path(os.devnull),
    )  # fmt: skip
    return MCPToolset(
        transport, include_instructions=True, init_timeout=START_TIMEOUT_S, process_tool_call=_shown,
        # An error says what to call instead: the model shall read it as it reads a result, and not use up its retries.
        tool_error_behavior="failed",
    )  # fmt: skip


async def _shown(context: RunContext[object], call_tool: CallToolFunc, name: str, given: dict[str, Any]) -> ToolResult:
    print(f"→ {name}({', '.join(f'{key}={value!r}' for key, value in given.items())})", flush=True)
    try:
        result = await call_tool(name, given)
    except ToolFailed as error:
        print(f"  {error.message}", flush=True)
        raise
    told = json.dumps(result, ensure_ascii=False, default=str)
    print(f"  {told[:SHOWN_CHARACTERS]}{' …' if len(told) > SHOWN_CHARACTERS else ''}", flush=True)
    return result


async def main(source: str, model: str) -> None:
    data = Path(source).absolute()
    async with server(data) as tunewright:
        # The server's own words for the task, the same that a person picks in a host.
        prompt = await tunewright.client.get_prompt("finetune", {"data": str(data), "goal": GOAL, "model": model})
        task = "\n".join(getattr(message.content, "text", "") for message in prompt.messages)
        tools = tunewright.filtered(lambda context, tool: tool.name.split("_")[0] not in FOR_PEOPLE)
        agent = Agent(os.environ["AGENT_MODEL"], toolsets=[tools])
        answer = await agent.run(task, usage_limits=UsageLimits(request_limit=MAX_REQUESTS))
    print(f"\n{answer.output}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "toy"))
