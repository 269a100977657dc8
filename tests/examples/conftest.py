"""A home with the trained toy; what runs in it ends with the tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tunewright.pipeline import toy
from tunewright.pipeline.settings import Home


@pytest.fixture(scope="module")
def trained_home(trained_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = Home.open(tmp_path_factory.mktemp("examples") / "home")
    shutil.copytree(trained_toy, toy.folder(home))
    yield home.root
    for process in psutil.process_iter(["cmdline"]):
        if str(home.root) in (process.info["cmdline"] or []):
            process.kill()
