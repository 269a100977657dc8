"""From conversations and texts to what the supervised trainer is fed: ids and labels, cut to length, packed.

Heavy (datasets, trl). Loss on what the assistant says (the mask is `ChatTemplate.encode`'s, as inspect shows it) or on
all tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from trl.data_utils import pack_dataset

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.data import splits

IGNORED = -100
CHECK_EVERY_ROWS = 1000

Row = dict[str, list[int]]


@dataclass(frozen=True)
class Examples:
    """`rows` has `input_ids` and `labels` of at most the sequence length; counts are of conversations and tokens."""

    rows: Dataset
    count: int
    truncated: int
    without_answer: int
    tokens: int
    trained_tokens: int


def conversations(
    parquet: Path, template: ChatTemplate, max_seq_length: int, train_on: str, check_cancelled: Callable[[], None]
) -> Examples:
    """Encodes every conversation of a split. One whose answer is cut off whole carries no loss and is left out."""
    rows: list[Row] = []
    truncated = without_answer = trained = 0
    for number, record in enumerate(splits.read(parquet)):
        if number % CHECK_EVERY_ROWS == 0:
            check_cancelled()
        ids, mask = template.encode(record.messages, record.tools)
        truncated += len(ids) > max_seq_length
        ids, mask = ids[:max_seq_length], mask[:max_seq_length]
        # The first token is never a target, so a mask on it alone trains nothing.
        if not any(mask[1:]):
            without_answer += 1
            continue
        if train_on == "all":
            mask = [1] * len(ids)
        trained += sum(mask)
        rows.append({"input_ids": ids, "labels": [i if m else IGNORED for i, m in zip(ids, mask, strict=True)]})
    return _examples(rows, truncated, without_answer, trained)


def texts(parquet: Path, template: ChatTemplate, max_seq_length: int, check_cancelled: Callable[[], None]) -> Examples:
    """Encodes every text of a split with the end-of-text token after it; one that is too long is divided, not cut."""
    rows: list[Row] = []
    for number, record in enumerate(splits.read(parquet)):
        if number % CHECK_EVERY_ROWS == 0:
            check_cancelled()
        rows += [
            {"input_ids": ids, "labels": ids} for ids in _pieces(template.document_ids(record.text), max_seq_length)
        ]
    return _examples(rows, 0, 0, sum(len(row["labels"]) for row in rows))


def _pieces(ids: list[int], length: int) -> Iterator[list[int]]:
    """Of at most `length`; a piece of one token predicts nothing."""
    for begin in range(0, len(ids), length):
        piece = ids[begin : begin + length]
        if len(piece) > 1:
            yield piece


def _examples(rows: list[Row], truncated: int, without_answer: int, trained: int) -> Examples:
    tokens = sum(len(row["input_ids"]) for row in rows)
    # An empty list would have no columns.
    dataset = Dataset.from_list(rows) if rows else Dataset.from_dict({"input_ids": [], "labels": []})
    return Examples(dataset, len(rows), truncated, without_answer, tokens, trained)


def pack(rows: Dataset, max_seq_length: int) -> Dataset:
    """Rows of several examples, best-fit; `seq_lengths` says where each ends, which attention must not cross."""
    return pack_dataset(rows, max_seq_length, "bfd")
