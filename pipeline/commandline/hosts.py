"""The programs that Tunewright is connected to: where each keeps its MCP servers, and what stands there for this one.

Paths and forms are the hosts' own, of 2026; `claude`, `codex` and their documentation were looked at. Reads the files
of hosts; `install.py` writes them.
"""

import json
import os
import sys
import sysconfig
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tunewright.pipeline.commandline import jsonc
from tunewright.pipeline.errors import InvalidInput, Unavailable

NAME = "tunewright"
# Codex gives a server 10 s to start and a tool 60 s; a question to a model that is yet to be loaded takes longer.
CODEX_TIMEOUTS = {"startup_timeout_sec": 60, "tool_timeout_sec": 300}

Scope = Literal["user", "project"]
Entry = dict[str, Any]


@dataclass(frozen=True)
class Host:
    """`key` names the part of the host's file that holds its servers; `then` is what the user does afterwards."""

    name: str
    title: str
    key: str
    then: str
    fixed: Mapping[str, Any]
    scopes: tuple[Scope, ...] = ("user", "project")

    @property
    def path(self) -> tuple[str, str]:
        return (self.key, NAME)


STDIO = {"type": "stdio"}
# What decides which program an entry starts, each with what it means where it is left out.
STARTED_BY: tuple[tuple[str, Any], ...] = (("command", ""), ("args", []), ("env", {}), ("url", ""))
HOSTS = {
    host.name: host
    for host in (
        Host("claude-code", "Claude Code", "mcpServers", "Start claude anew; /mcp shows it.", STDIO),
        Host("claude-desktop", "Claude Desktop", "mcpServers", "Quit Claude Desktop and open it again.", {}, ("user",)),
        Host("cursor", "Cursor", "mcpServers", "Cursor asks to enable it; see Settings, MCP.", {}),
        Host("vscode", "VS Code", "servers", "Run `MCP: List Servers` in VS Code and start it.", STDIO),
        Host("codex", "Codex", "mcp_servers", "Start codex anew; /mcp shows it.", CODEX_TIMEOUTS),
    )
}


def config_file(host: Host, scope: Scope, *, folder: Path, platform: str = sys.platform) -> Path:
    """The file in which `host` keeps the servers of the user, or of the project in `folder`.

    Raises InvalidInput where the host has no servers of a project.
    """
    if scope not in host.scopes:
        raise InvalidInput(
            "no_such_scope", f"{host.title} has no servers of a project.",
            allowed=f"--scope {' or '.join(host.scopes)}.", next=f"tunewright install {host.name}",
        )  # fmt: skip
    home, own = Path.home(), _application_data(platform)
    user, project = {
        "claude-code": (_named("CLAUDE_CONFIG_DIR", home) / ".claude.json", ".mcp.json"),
        "claude-desktop": (own / "Claude" / "claude_desktop_config.json", ""),
        "cursor": (home / ".cursor" / "mcp.json", ".cursor/mcp.json"),
        "vscode": (own / "Code" / "User" / "mcp.json", ".vscode/mcp.json"),
        "codex": (_named("CODEX_HOME", home / ".codex") / "config.toml", ".codex/config.toml"),
    }[host.name]
    return user if scope == "user" else folder / project


def _named(variable: str, otherwise: Path) -> Path:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else otherwise


def _application_data(platform: str) -> Path:
    """Where programs keep their settings on this system."""
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    if platform == "win32":
        return _named("APPDATA", Path.home() / "AppData" / "Roaming")
    return _named("XDG_CONFIG_HOME", Path.home() / ".config")


def entry(host: Host, command: list[str]) -> Entry:
    """What stands in the host's file for the server that `command` starts."""
    return {"command": command[0], "args": command[1:], **host.fixed}


def starts_the_same(one: Entry, other: Entry) -> bool:
    """Whether two entries start the same program alike; what else they say (timeouts, say) is the user's."""
    return all((one.get(key) or empty) == (other.get(key) or empty) for key, empty in STARTED_BY)


def read(host: Host, file: Path) -> tuple[str | None, Entry | None]:
    """The text of the host's file (None: there is none) and what stands there for this server (None: nothing).

    Raises InvalidInput where the file is not what the host could read, Unavailable where it cannot be read.
    """
    try:
        # Bytes: universal newlines would turn a file of Windows into one of Unix.
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None, None
    except UnicodeDecodeError as error:
        raise broken(file, f"not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise Unavailable("host_file_unreadable", f"{file} cannot be read: {error.strerror}.") from error
    try:
        held: Any = tomllib.loads(text) if file.suffix == ".toml" else jsonc.loads(text)
    except (ValueError, RecursionError) as error:
        raise broken(file, str(error)) from error
    for key in host.path:
        if not isinstance(held, dict):
            raise broken(file, f"{host.key!r} is no group of servers")
        held = cast(Entry, held).get(key)
        if held is None:
            return text, None
    if not isinstance(held, dict):
        raise broken(file, f"{NAME!r} is no server")
    return text, cast(Entry, held)


def broken(file: Path, why: str) -> InvalidInput:
    """The error for a host's file that cannot be understood, and so is not written."""
    return InvalidInput(
        "host_file_broken",
        f"{file} is not valid: {why}.",
        allowed="Mend it, or move it away; the host itself cannot read it so either.",
        done="The file was left as it is.",
    )


def launch_command() -> list[str]:
    """The command that starts this very Tunewright again, its program by absolute path: hosts have another PATH.

    An environment inside a cache (which says so by a CACHEDIR.TAG) is uvx's and may vanish: then it is uvx itself,
    with the folder that this one was installed from where it came from a folder. Raises Unavailable where uvx is gone.
    """
    if any((parent / "CACHEDIR.TAG").is_file() for parent in Path(sys.prefix).absolute().parents):
        return _through_uvx()
    program = Path(sysconfig.get_path("scripts")) / (f"{NAME}.exe" if os.name == "nt" else NAME)
    return [str(program)] if program.is_file() else [sys.executable, "-P", "-m", "tunewright.server"]


def _through_uvx() -> list[str]:
    # uv tells its own place to what it runs, and uvx lies beside it.
    uv = os.environ.get("UV")
    uvx = Path(uv).with_name("uvx.exe" if os.name == "nt" else "uvx") if uv else None
    if uvx is None or not uvx.is_file():
        raise Unavailable(
            "no_lasting_program",
            f"This Tunewright runs from {sys.prefix}, a cache that may be emptied, and uvx was not found.",
            allowed="Install it for good (uv tool install tunewright, or pip), and let that one install itself.",
        )
    origin = distribution(NAME).read_text("direct_url.json")
    url = urlsplit(json.loads(origin)["url"]) if origin else None
    if url is None or url.scheme != "file":
        return [str(uvx), NAME]
    return [str(uvx), "--from", url2pathname(url.path), NAME]


def missing_program(found: Entry) -> str | None:
    """The program that an entry names, where there is no such program that can be run; else None."""
    from shutil import which

    command = str(found.get("command") or "")
    return None if not command or which(command) else command
