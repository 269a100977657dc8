"""What a host, the registry and uvx are given, made and tried: `python .ci/packaging/run.py`.

Writes `dist/tunewright-VERSION.mcpb`; has the bundles' own tool validate the manifest and the bundle; unpacks it,
starts its server with the manifest's command and lists its tools; installs a fresh copy of this clone with uvx. Ends
with 1 where one of these fails. Needs the npm registry once, and a Python package index (6 GB where uv has not cached
them). `tests/test_packaging.py` holds server.json to the registry's rules: no package ships the registry's own schema.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import bundle
import node
from mcp import Client, StdioServerParameters

REPOSITORY = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
TIMEOUT_S, INSTALL_TIMEOUT_S = 120, 1800


def run(*command: str | Path, timeout_s: float = TIMEOUT_S, cwd: Path | None = None, **env: str) -> str:
    """What a program printed. Ends this process where it fails."""
    finished = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
        timeout=timeout_s,
    )  # fmt: skip
    if finished.returncode != 0:
        shown = " ".join(map(str, command))
        raise SystemExit(f"FAILED: {shown} ended with {finished.returncode}:\n{finished.stdout}{finished.stderr}")
    return finished.stdout


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def validate(made: Path, unpacked: Path) -> None:
    """Has the bundles' own tool look at the manifest, and at what it unpacks of the bundle."""
    mcpb = node.programs(bundle.MANIFEST.parent) / "mcpb"
    run(mcpb, "validate", bundle.MANIFEST, PATH=node.ENVIRONMENT["PATH"])
    run(mcpb, "unpack", made, unpacked, PATH=node.ENVIRONMENT["PATH"])
    run(mcpb, "validate", unpacked, PATH=node.ENVIRONMENT["PATH"])


def host_command(unpacked: Path, allowed: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments of `uv` and the variables, as a host fills them in from the manifest of the unpacked bundle."""
    manifest: dict[str, Any] = json.loads((unpacked / "manifest.json").read_text(encoding="utf-8"))
    config: dict[str, Any] = manifest["server"]["mcp_config"]
    args: list[str] = config["args"]
    env: dict[str, str] = config["env"]
    filled = {
        "${__dirname}": str(unpacked),
        "${user_config.allowed_folders}": str(allowed),
        "${user_config.hf_token}": "",
    }
    return [filled.get(word, word) for word in args], {name: filled.get(value, value) for name, value in env.items()}


async def listed(command: Path | str, arguments: list[str], home: Path, **env: str) -> tuple[str, list[str]]:
    """The version and the tools that a server on stdio tells of."""
    variables = {**os.environ, "TUNEWRIGHT_HOME": str(home), **env}
    server = StdioServerParameters(command=str(command), args=arguments, env=variables)
    with anyio.fail_after(TIMEOUT_S):
        async with Client(server) as client:
            tools = (await client.list_tools()).tools
            version = client.server_info.version if client.server_info else "none"
            return version, sorted(tool.name for tool in tools)


def start(unpacked: Path, folder: Path) -> None:
    """Starts the bundle's server as a host does, and holds it to the version of the manifest and this clone's tools."""
    arguments, env = host_command(unpacked, folder)
    env["UV_PROJECT_ENVIRONMENT"] = str(folder / "environment")
    install = [*arguments[: arguments.index("tunewright")], "tunewright", "--version"]
    version = run(UV, *install, timeout_s=INSTALL_TIMEOUT_S, cwd=folder, **env).strip()
    theirs = anyio.run(partial(listed, UV, arguments, folder / "home", **env))
    ours = anyio.run(partial(listed, sys.executable, ["-P", "-m", "tunewright.server"], folder / "own"))
    if theirs != ours or theirs[0] != version or not theirs[1]:
        raise SystemExit(f"FAILED: version {version}; the bundle's server tells {theirs}, this clone's {ours}")
    say(f"its server, as a host starts it: version {version}, {len(theirs[1])} tools")


def try_uvx(folder: Path) -> None:
    """Runs the command line from a fresh copy of this clone, in the versions that are tested.

    uvx ignores what pyproject.toml says to uv, certifi's override too; the lock says that, and all the rest.
    """
    fresh = folder / "fresh"
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY).split("\0")
    for name in filter(None, names):
        if (REPOSITORY / name).is_file():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, fresh / name)
    command = ("tool", "run", "--overrides", "requirements.lock", "--from", ".", "tunewright", "--help")
    told = run(UV, *command, timeout_s=INSTALL_TIMEOUT_S, cwd=fresh)
    if "usage: tunewright" not in told:
        raise SystemExit(f"FAILED: uvx printed {told!r}")
    say("uvx --overrides requirements.lock --from . tunewright --help: works in a fresh copy")


def leave(number: int, _: FrameType | None) -> None:
    """Ends by an exception when CI cancels the command: programs that run and folders go along."""
    sys.exit(128 + number)


def main() -> None:
    signal.signal(signal.SIGTERM, leave)
    began = time.monotonic()
    made = bundle.make(REPOSITORY / "dist")
    say(f"made {made.relative_to(REPOSITORY)}: {made.stat().st_size / 1024:.0f} KiB")
    # In the clone: an environment is 6 GB, linked from uv's cache where the disk is the same, and /tmp may be memory.
    (REPOSITORY / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=REPOSITORY / ".cache", prefix="bundle-") as name:
        folder = Path(name)
        validate(made, folder / "bundle")
        say("mcpb validate: manifest and unpacked bundle")
        start(folder / "bundle", folder)
        try_uvx(folder)
    say(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
