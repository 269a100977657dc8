"""The journal: what was written stands in it, whatever happened to the writer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunewright.pipeline.generation.journal import Entry, Journal

FIRST = Entry("write", "ch-1", 0, '{"a": "zwei\nZeilen \u2028 \ud83d"}', 2, 100, 20)
SECOND = Entry("judge", "ch-1", 0, "yes", 1, 90, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "answers.jsonl"


def test_what_was_appended_is_read_again(path: Path) -> None:
    journal = Journal(path)
    assert journal.entries == []
    journal.append(FIRST)
    journal.append(SECOND)
    assert Journal(path).entries == [FIRST, SECOND]


@pytest.mark.parametrize("lost", [1, 7, 40])
def test_a_torn_line_is_taken_off_and_the_next_one_is_whole(path: Path, lost: int) -> None:
    journal = Journal(path)
    journal.append(FIRST)
    journal.append(SECOND)
    os.truncate(path, path.stat().st_size - lost)
    again = Journal(path)
    assert again.entries == [FIRST]
    again.append(SECOND)
    assert Journal(path).entries == [FIRST, SECOND]


def test_a_writer_that_is_killed_leaves_whole_lines_in_order(path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tunewright.pipeline.generation.journal import Entry, Journal\n"
        "journal, number = Journal(Path(sys.argv[1])), 0\n"
        "while True:\n"
        "    journal.append(Entry('write', 'ch-1', number, 'x' * 5000, 1, 1, 1))\n"
        "    number += 1\n"
        "    print(number, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", code, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(20)]
        os.kill(writer.pid, signal.SIGKILL)
        said += [int(line) for line in writer.stdout if line.endswith(b"\n")]
    numbers = [entry.number for entry in Journal(path).entries]
    assert numbers == list(range(len(numbers))) and len(numbers) >= said[-1]
