"""`tunewright install HOST`: the entry in the host's own file, with which it starts this server.

Guarantees: everything else in the file stays as it is, comments too; the file is replaced in one step, with the old one
kept beside it; a file that cannot be understood is left alone; an entry of this name that says something else is shown
and replaced only with --force. Does not start the host, nor notice what the host itself writes at the same moment.
"""

import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from shlex import join
from shutil import which
from typing import Any, cast

from tunewright.pipeline import settings
from tunewright.pipeline.commandline import hosts, jsonc
from tunewright.pipeline.commandline.console import printable
from tunewright.pipeline.commandline.hosts import HOSTS, NAME, Entry, Host, Scope
from tunewright.pipeline.errors import Conflict, Unavailable

GENERIC = "generic"
CLAUDE_TIMEOUT_S = 60
NEW_FILE_MODE = 0o600


def install(
    name: str, *, scope: Scope, home: str | None, allowed: list[str], force: bool, dry_run: bool
) -> int:  # fmt: skip
    """Writes the entry, or with `dry_run` shows it; returns the exit status.

    `home` and `allowed` (folders), or what the environment says of both, go into the entry: a host has an environment
    of its own. Raises as `hosts.read` and `hosts.config_file` do, and Conflict where another entry stands there.
    """
    command = hosts.launch_command() + _options(home, allowed)
    if name == GENERIC:
        entry = {"command": command[0], "args": command[1:]}
        say(jsonc.with_member("", ("mcpServers", NAME), entry).rstrip())
        return 0
    host = HOSTS[name]
    file = hosts.config_file(host, scope, folder=Path.cwd())
    text, found = hosts.read(host, file)
    wanted = hosts.entry(host, command)
    if found is not None and hosts.starts_the_same(found, wanted):
        say(f"{host.title} starts it already: {file}")
        return 0
    if found is not None and not force:
        raise Conflict(
            "other_entry",
            f"{file} has another entry of the name {NAME}: {_shown(found)}. It would become {_shown(wanted)}.",
            allowed="Add --force to replace it.",
        )
    by_program = which("claude") if name == "claude-code" else None
    steps = _claude_commands(by_program, scope, command, replace=found is not None) if by_program else []
    if dry_run:
        say(f"Would run: {' && '.join(map(join, steps))}" if steps else f"Would write to {file}:")
        say(_with_entry(host, "", wanted).rstrip())
        return 0
    if steps:
        _run_claude(steps)
    else:
        _write(host, file, text, wanted)
    say(f"Connected to {host.title}: {file}\n{host.then}")
    return 0


def _options(home: str | None, allowed: list[str]) -> list[str]:
    """The server's options, with absolute paths."""
    named = home or os.environ.get("TUNEWRIGHT_HOME")
    options = ["--home", str(Path(named).expanduser().absolute())] if named else []
    for folder in dict.fromkeys([*settings.allowed_folders(), *(Path(each).expanduser() for each in allowed)]):
        options += ["--allow-dir", str(folder.absolute())]
    return options


def say(text: str) -> None:
    sys.stdout.write(printable(text) + "\n")


def _shown(entry: Entry) -> str:
    """An entry in one line, without the values of its environment and headers, which may be secrets."""
    hidden = {key: sorted(cast(Entry, value)) if isinstance(value, dict) else value for key, value in entry.items()}
    return printable(json.dumps(hidden, ensure_ascii=False))


def _claude_commands(program: str, scope: Scope, command: list[str], *, replace: bool) -> list[list[str]]:
    """Claude Code changes its file all the time, so it is asked to write the entry itself."""
    removal = [[program, "mcp", "remove", "--scope", scope, NAME]] if replace else []
    return [*removal, [program, "mcp", "add", "--scope", scope, NAME, "--", *command]]


def _run_claude(steps: list[list[str]]) -> None:
    for step in steps:
        try:
            ended = subprocess.run(
                step, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace",
                timeout=CLAUDE_TIMEOUT_S,
            )  # fmt: skip
            status, words = ended.returncode, (ended.stderr or ended.stdout).strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            status, words = -1, str(error)
        if status != 0:
            done = "The old entry was removed." if step is not steps[0] else "Nothing was changed."
            raise Unavailable(
                "claude_failed", f"{join(step)} failed: {words}.", allowed="Run it by hand to see why.", done=done
            )


def _write(host: Host, file: Path, text: str | None, wanted: Entry) -> None:
    """Puts `wanted` into the host's file, whose text was `text` (None: there was no file)."""
    try:
        new = _with_entry(host, text or "", wanted)
    except ValueError as error:
        raise hosts.broken(file, str(error)) from error
    # A link into somebody's collection of settings stays a link.
    file = file.resolve()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        mode = NEW_FILE_MODE
        if text is not None:
            mode = file.stat().st_mode & 0o777
            if file.read_bytes() != text.encode():
                raise Conflict("host_file_changed", f"{file} was changed just now.", allowed="Run the command again.")
            _replace(file.with_name(f"{file.name}.{time.strftime('%Y%m%d-%H%M%S')}.bak"), text, mode)
        _replace(file, new, mode)
    except OSError as error:
        raise Unavailable("host_file_unwritable", f"{file} cannot be written: {error.strerror}.") from error


def _replace(file: Path, text: str, mode: int) -> None:
    """The file appears with its whole text and its mode, which may be what keeps secrets in it."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as opened:
            opened.write(text.encode())
            opened.flush()
            os.fsync(opened.fileno())
        partial.chmod(mode)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _with_entry(host: Host, text: str, wanted: Entry) -> str:
    """The text of the host's file with the entry in it. Raises ValueError where that cannot be done."""
    return (_in_toml if host.name == "codex" else jsonc.with_member)(text, host.path, wanted)


def _in_toml(text: str, path: tuple[str, str], value: Entry) -> str:
    """As `jsonc.with_member`, for TOML."""
    # Poetry and PDM keep people's own files as they are by this library.
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    key, name = path
    expected: Any = tomllib.loads(text)
    expected.setdefault(key, {})[name] = value
    try:
        document = tomlkit.parse(text)
        if key not in document:
            document[key] = tomlkit.table(is_super_table=True)
        servers: Any = document[key]
        servers[name] = value
        new = tomlkit.dumps(document)
    except TOMLKitError as error:
        raise ValueError(str(error)) from error
    if tomllib.loads(new) != expected:
        raise ValueError("the file is laid out in a way that could not be kept")
    return new
