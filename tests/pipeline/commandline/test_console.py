"""What people read: times, sizes, errors and texts of others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright.pipeline.commandline import console
from tunewright.pipeline.errors import Conflict, call


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (303, "5 min 03 s"), (7500, "2 h 05 min"), (273600, "3 d 04 h")],
)
def test_times_are_told_in_two_units(seconds: float, told: str) -> None:
    assert console.duration(seconds) == told


@pytest.mark.parametrize(
    ("number", "told"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (5_230_000_000, "5.2 GB"), (10**16, "10000.0 TB")],
)
def test_sizes_are_told_in_one_unit(number: int, told: str) -> None:
    assert console.size(number) == told


def test_an_errors_next_step_is_a_command_where_there_is_one() -> None:
    def told(next: str) -> str:
        return console.told(Conflict("code", "What.", allowed="Allowed.", next=next, done="Done."))

    asked = call("get_status", job_id="job-a", wait_s=50)
    assert told(asked) == "code: What. Allowed. Done.\nNext: tunewright status job-a"
    assert told("get_status()") == "code: What. Allowed. Done.\nNext: tunewright status"
    assert told("list_artifacts()") == "code: What. Allowed. Done."
    assert told("tunewright doctor") == "code: What. Allowed. Done.\nNext: tunewright doctor"


def test_texts_of_others_lose_what_steers_a_terminal_and_nothing_else() -> None:
    text = "\x1b[31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x1b\\ \x1bc\x9b2Jtab\t日本 é\nline\r\x00\x7f"
    assert console.printable(text) == "red link 2Jtab\t日本 é\nline"


IMPORTED = """
import importlib, sys
before = set(sys.modules)
for name in sys.argv[1].split(","):
    importlib.import_module("tunewright.pipeline.commandline." + name)
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names) - {"tunewright"}))
"""


def test_the_words_of_the_command_line_cost_a_starting_server_no_library(run_python: Callable[..., str]) -> None:
    assert run_python(IMPORTED, "parser").split() == []


def test_commands_import_nothing_heavy(run_python: Callable[..., str]) -> None:
    names = ",".join(path.stem for path in Path(console.__file__).parent.glob("*.py") if path.stem != "__init__")
    imported = set(run_python(IMPORTED, names).split())
    assert "psutil" in imported
    assert not imported & {"torch", "unsloth", "transformers", "datasets", "trl", "peft", "rich", "huggingface_hub"}
