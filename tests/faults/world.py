"""Where the faults happen: a data home (on a small disk of its own where this process may mount one), the stand-ins of
Hub and Ollama behind lines that can be cut, and the real server's environment.
"""

import gzip
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from chain.conftest import write_shop
from faults.network import Line
from standins.hub_server import HubStandIn
from standins.ollama_server import OllamaStandIn

from tunewright.pipeline import toy
from tunewright.pipeline.workspace import Workspace

# A process that carries it was started by our server, or by what that started.
MARK = "TUNEWRIGHT_FAULTS"
TOKEN = "hf_of_the_faults"
DISK = "400m"
PACE_S = 0.004
# Above data/pool.py's SMALL_BYTES as it counts packed text: the rows are cleaned by processes of their own.
SOURCE_ROWS = 8_500
SUBJECT = "marxism"
LETTERS = "ABCD"


class Hub(HubStandIn):
    """Gives out addresses on the line, so that uploads go through it too."""

    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}" if self.port else super().url


@dataclass
class World:
    """`dataset_id`, `adapter_id` and `export_id` are what the scenes work on; `harness.prepare` makes them."""

    root: Path
    workspace: Workspace
    disk: Path | None
    mark: str
    hub: Hub
    ollama: OllamaStandIn
    lines: dict[str, Line]
    dataset_id: str = ""
    adapter_id: str = ""
    export_id: str = ""
    kept: set[str] = field(default_factory=set[str])

    @property
    def home(self) -> Path:
        return self.workspace.home.root

    @property
    def server_log(self) -> Path:
        """What the server that was started last has said on its stderr."""
        return self.root / "server.log"

    @property
    def source(self) -> Path:
        return self.root / "rows.jsonl.gz"

    @property
    def shop(self) -> Path:
        return self.root / "shop.json"

    @property
    def exam(self) -> Path:
        return self.root / "exam"


@contextmanager
def opened(root: Path, trained_toy: Path | None = None) -> Generator[World]:
    """A world in `root`, an empty folder; its processes end and its disk goes with the block.

    `trained_toy` is a folder of the toy with weights; without it the first training brings the toy up.
    """
    home, mark = root / "home", uuid.uuid4().hex
    disk = _mount(home)
    write_shop(root / "shop.json")
    _write_rows(root / "rows.jsonl.gz")
    _write_exam(root / "exam")
    try:
        with Hub(token=TOKEN) as hub, OllamaStandIn() as ollama:
            lines = {"publish_hub": _line(hub.url), "publish_ollama": _line(ollama.url)}
            hub.port = lines["publish_hub"].port
            workspace = Workspace.open(home)
            if trained_toy:
                shutil.copytree(trained_toy, toy.folder(workspace.home))
            with patch.dict(os.environ, _environment(root, lines, mark)):
                world = World(root, workspace, disk, mark, hub, ollama, lines)
                try:
                    yield world
                except BaseException as error:
                    if world.server_log.exists():
                        error.add_note(f"The server's log:\n{world.server_log.read_text(encoding='utf-8')[-4000:]}")
                    raise
            workspace.store.close()
            for line in lines.values():
                line.close()
    finally:
        from faults.invariants import marked

        for process in marked(mark):
            process.kill()
        if disk:
            subprocess.run(["umount", "--lazy", disk], check=True)


def _environment(root: Path, lines: dict[str, Line], mark: str) -> dict[str, str]:
    return {
        MARK: mark, "HF_ENDPOINT": f"http://127.0.0.1:{lines['publish_hub'].port}", "HF_TOKEN": TOKEN,
        "OLLAMA_HOST": f"127.0.0.1:{lines['publish_ollama'].port}", "HF_HUB_DISABLE_XET": "1",
        "CUDA_VISIBLE_DEVICES": "", "TUNEWRIGHT_ALLOW_DIRS": str(root), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def _line(url: str) -> Line:
    return Line(int(url.rpartition(":")[2]), PACE_S)


def _mount(home: Path) -> Path | None:
    """A small disk at `home`, or None where this process may not mount one."""
    home.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tunewright-faults", home], capture_output=True, check=False
    )
    return home if made.returncode == 0 else None


def _write_rows(path: Path) -> None:
    """Rows with words enough that none is a near copy of another."""
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=0) as file:
        for number in range(SOURCE_ROWS):
            words = " ".join(f"w{(number * 7919 + place * 104_729) % 99_991}" for place in range(60))
            row: dict[str, Any] = {"instruction": f"Repeat number {number}.", "input": "", "output": words}
            file.write(json.dumps(row) + "\n")


def _write_exam(folder: Path) -> None:
    """C-Eval's own layout: five examples in dev/, questions in val/."""
    for split, count in (("dev", 5), ("val", 12)):
        (folder / split).mkdir(parents=True)
        lines = ["id,question,A,B,C,D,answer" + (",explanation" if split == "dev" else "")]
        for i in range(count):
            more = ",Because." if split == "dev" else ""
            lines.append(
                f"{i},What is {i} plus {i}?,{2 * i},{2 * i + 1},{2 * i + 2},{2 * i + 3},{LETTERS[i % 4]}{more}"
            )
        (folder / split / f"{SUBJECT}_{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
