"""Samples that the adapter has met in training, word for word: numbers on them show what was learnt by heart.

Looks through the training rows of the adapter's dataset and of those of the adapters it went on from. Does not see what
the base model was trained on, nor a question in other words.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from tunewright.pipeline.chat_template import Message
from tunewright.pipeline.data import splits
from tunewright.pipeline.store import Row
from tunewright.pipeline.validation.samples import Sample
from tunewright.pipeline.workspace import Workspace

CHECK_EVERY_ROWS = 2000


def count(
    workspace: Workspace, adapter: Row, samples: Sequence[Sample], held_out_of: str | None, check: Callable[[], None]
) -> int:
    """How many samples ask what a training row asks. `held_out_of` is the dataset whose eval rows they are: preparing
    it has kept them out of its training rows. `check` may raise, every 2,000 rows.
    """
    wanted = {_question(sample.messages) for sample in samples if sample.messages}
    met: set[str] = set()
    for dataset in trained_on(workspace, adapter):
        file = splits.split_file(Path(dataset["document"]["path"]), splits.TRAIN)
        if not wanted or dataset["id"] == held_out_of or not file.is_file():
            continue
        for number, record in enumerate(splits.read(file)):
            if number % CHECK_EVERY_ROWS == 0:
                check()
            met |= wanted & {_question(record.messages if record.chosen else record.messages[:-1])}
    return sum(_question(sample.messages) in met for sample in samples if sample.messages)


def trained_on(workspace: Workspace, adapter: Row) -> list[Row]:
    """The datasets of the adapter and of the adapters it went on from, as far as they are still here."""
    found: dict[str, Row] = {}
    waiting = list(adapter["parents"])
    while waiting:
        for row in workspace.store.rows("SELECT * FROM artifacts WHERE id=?", waiting.pop()):
            if row["id"] not in found:
                found[row["id"]] = row
                waiting += row["parents"] if row["kind"] == "adapter" else []
    return [row for row in found.values() if row["kind"] == "dataset"]


def _question(messages: Sequence[Message]) -> str:
    """What is asked, without the instructions to the model."""
    said = (str(message["content"]) for message in messages if message["role"] != "system")
    return " ".join(" ".join(said).lower().split())
