"""The ways to serve: `serve`, with options before or after it, and over HTTP. (What is served: tests/tools.)"""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

CONSOLE = str(Path(sys.executable).with_name("tunewright"))
TIMEOUT_S = 60
Tunewright = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("order", ["before", "after"])
def test_serve_is_stdio_and_takes_its_options_on_either_side(
    tunewright: Tunewright, tmp_path: Path, order: str
) -> None:
    options = ["--home", tmp_path / "data", "--allow-dir", tmp_path]
    served = tunewright(*options, "serve") if order == "before" else tunewright("serve", *options)
    # Its client is gone at once: it ends as with one that closes, having said nothing.
    assert (served.returncode, served.stdout) == (0, "")
    assert (tmp_path / "data" / "tunewright.db").is_file()


def test_a_bundle_may_allow_no_folder_at_all(tunewright: Tunewright, tmp_path: Path) -> None:
    assert tunewright("serve", "--home", tmp_path / "data", "--allow-dir").returncode == 0


def test_a_folder_that_cannot_be_allowed_is_said(tunewright: Tunewright) -> None:
    refused = tunewright("--allow-dir", f"/a{os.pathsep}b", "serve")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("invalid_path: ")


def test_over_http_it_asks_for_its_token_and_leaves_when_told(tmp_path: Path, user_environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [CONSOLE, "serve", "--http", "--port", "0", "--home", str(tmp_path / "data")], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=user_environment,
    ) as serving:  # fmt: skip
        assert serving.stderr is not None and serving.stdout is not None
        found = None
        while found is None:
            line = serving.stderr.readline()
            assert line, "it ended"
            found = re.search(r"http://127\.0\.0\.1:\d+/mcp", line)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(found[0], timeout=TIMEOUT_S)
        assert refused.value.code == 401
        refused.value.close()
        serving.send_signal(signal.SIGTERM)
        serving.stderr.read()
        assert serving.wait(TIMEOUT_S) in (0, -signal.SIGTERM)
        assert serving.stdout.read() == ""


def test_an_address_that_others_reach_needs_tls(tunewright: Tunewright, tmp_path: Path) -> None:
    refused = tunewright("serve", "--http", "--host", "0.0.0.0", "--port", "0", "--home", tmp_path / "data")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines()[-1].startswith("plain_http_refused: ")
