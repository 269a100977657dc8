"""What loading in every form shows, seen once in a process of its own (`loading_cases.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

LOADING_TIMEOUT_S = 900


@pytest.fixture(scope="session")
def loading_facts(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two files look at them, which may run in two workers of xdist: the first one makes them for both."""
    facts = shared_folder / "loading.json"
    with FileLock(shared_folder / "loading.lock"):
        if not facts.is_file():
            _load_in_every_form(tmp_path_factory.mktemp("loading")).rename(facts)
    return json.loads(facts.read_text(encoding="utf-8"))


def _load_in_every_form(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("loading_cases.py")), str(folder)],
        check=True, timeout=LOADING_TIMEOUT_S, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
        env={
            **os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / "hf")
        },
    )  # fmt: skip
    return folder / "facts.json"
