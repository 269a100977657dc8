"""What loading in every form shows, seen once in a process of its own (`loading_cases.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LOADING_TIMEOUT_S = 900


@pytest.fixture(scope="session")
def loading_facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("loading")
    subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("loading_cases.py")), str(folder)],
        check=True, timeout=LOADING_TIMEOUT_S, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
        env={
            **os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / "hf")
        },
    )  # fmt: skip
    return json.loads((folder / "facts.json").read_text(encoding="utf-8"))
