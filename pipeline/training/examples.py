"""From a dataset's conversations to what the trainer is fed: ids and labels, cut to length, packed where that is safe.

Heavy (datasets, trl). Loss only on what the assistant says; the mask is `ChatTemplate.encode`'s, as inspect shows it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from trl.data_utils import pack_dataset

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.data import splits

IGNORED = -100


@dataclass(frozen=True)
class Examples:
    """`rows` has `input_ids` and `labels` of at most the sequence length; counts are of conversations and tokens."""

    rows: Dataset
    count: int
    truncated: int
    without_answer: int
    tokens: int
    trained_tokens: int


def build(parquet: Path, template: ChatTemplate, max_seq_length: int, check_cancelled: Callable[[], None]) -> Examples:
    """Encodes every conversation of a split. One whose answer is cut off whole carries no loss and is left out."""
    rows: list[dict[str, list[int]]] = []
    truncated = without_answer = tokens = trained = 0
    for number, record in enumerate(splits.read(parquet)):
        if number % 1000 == 0:
            check_cancelled()
        ids, mask = template.encode(record.messages, record.tools)
        truncated += len(ids) > max_seq_length
        ids, mask = ids[:max_seq_length], mask[:max_seq_length]
        # The first token is never a target, so a mask on it alone trains nothing.
        if not any(mask[1:]):
            without_answer += 1
            continue
        tokens += len(ids)
        trained += sum(mask)
        rows.append({"input_ids": ids, "labels": [i if m else IGNORED for i, m in zip(ids, mask, strict=True)]})
    return Examples(Dataset.from_list(rows), len(rows), truncated, without_answer, tokens, trained)


def pack(rows: Dataset, max_seq_length: int) -> Dataset:
    """Rows of several examples, best-fit; `seq_lengths` says where each ends, which attention must not cross."""
    return pack_dataset(rows, max_seq_length, "bfd")
