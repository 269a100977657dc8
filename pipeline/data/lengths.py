"""Rows longer than the sequence: measured by the model's own tokenizer, then dropped, cut or split, never silently."""

from dataclasses import dataclass
from pathlib import Path

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.data.cleaning import Action
from tunewright.pipeline.data.rows import Message, Record, Unusable
from tunewright.pipeline.errors import InvalidInput

# What a chat template writes around one message, at most, in tokens; no known one writes more than 20.
TEMPLATE_TOKENS_PER_MESSAGE = 30
# A text is cut at one of these, the first that stands in the last part of what fits.
BREAKS = ("\n\n", "\n", "。", ". ", "! ", "? ", " ")
SEARCHED_SHARE = 0.3


def token_length(template: ChatTemplate, record: Record) -> int:
    """Tokens of a row as it is trained on; of a pair, those of its longer half."""
    if record.kind == "text":
        return len(template.ids(record.text))
    halves = [record.chosen, record.rejected] if record.kind == "preference" else [[]]
    return max(len(template.ids(template.render([*record.messages, *half], tools=record.tools))) for half in halves)


@dataclass(frozen=True)
class Fit:
    """The rows that a row became; `done` is truncated or split, or empty where it stayed; `why` in words."""

    records: list[Record]
    done: str = ""
    why: str = ""


class Fitter:
    """Makes rows fit into `max_seq_length` tokens by one action (see `cleaning.ACTIONS`)."""

    def __init__(self, model_folder: Path, max_seq_length: int, action: Action) -> None:
        self._template, self._limit, self._action = ChatTemplate(model_folder), max_seq_length, action

    def fit(self, record: Record) -> Fit:
        """Raises Unusable (`too_long`) where the row is to be dropped, or nothing of it fits."""
        if self._action == "keep" or self._surely_fits(record):
            return Fit([record])
        try:
            length = token_length(self._template, record)
        except InvalidInput as error:
            raise Unusable(error.code, error.what) from error
        if length <= self._limit:
            return Fit([record])
        why = f"{length} tokens; max_seq_length is {self._limit}"
        if self._action == "drop" or (self._action == "split" and record.kind in ("preference", "kto")):
            raise Unusable("too_long", why)
        if self._action == "split":
            pieces = self._split_text(record) if record.kind == "text" else self._split_turns(record, why)
            return Fit(pieces, "split", f"{why}: made {len(pieces)} rows")
        return Fit([self._truncated(record, why)], "truncated", why)

    def _surely_fits(self, record: Record) -> bool:
        """Judged without counting: no token is shorter than a byte."""
        if record.kind == "text":
            return len(record.text.encode("utf-8")) <= self._limit
        if record.tools or any(message.get("tool_calls") for message in record.all_messages()):
            return False
        messages = record.all_messages()
        size = sum(len(message["content"].encode("utf-8")) for message in messages)
        return size + TEMPLATE_TOKENS_PER_MESSAGE * (len(messages) + 1) <= self._limit

    def _split_text(self, record: Record) -> list[Record]:
        pieces: list[Record] = []
        rest = record.text
        while rest:
            piece = self._head(rest, self._limit)
            pieces.append(Record("text", text=piece.strip(), source_chunk=record.source_chunk))
            rest = rest[len(piece) :].lstrip()
        return pieces

    def _head(self, text: str, limit: int) -> str:
        """The beginning of `text` of at most `limit` tokens, ending at a paragraph, sentence or word if it can."""
        # A token is rarely more than 20 characters long: the rest need not be counted for each piece.
        offsets = self._template.tokenizer.encode(text[: 20 * limit], add_special_tokens=False).offsets
        if len(offsets) <= limit:
            return text[: 20 * limit]
        head = text[: max(1, offsets[limit - 1][1])]
        for mark in BREAKS:
            at = head.rfind(mark)
            if at >= (1 - SEARCHED_SHARE) * len(head):
                return head[: at + len(mark)]
        return head

    def _length(self, record: Record, messages: list[Message]) -> int:
        return len(self._template.ids(self._template.render(messages, tools=record.tools)))

    def _split_turns(self, record: Record, why: str) -> list[Record]:
        """Rows of whole exchanges, each after the system message. An exchange too long alone makes the row unusable."""
        opening = [message for message in record.messages[:1] if message["role"] == "system"]
        pieces: list[list[Message]] = []
        for exchange in _exchanges(record.messages[len(opening) :]):
            if pieces and self._length(record, [*pieces[-1], *exchange]) <= self._limit:
                pieces[-1] += exchange
                continue
            if self._length(record, [*opening, *exchange]) > self._limit:
                raise Unusable("too_long", f"{why}, and one exchange alone does not fit")
            pieces.append([*opening, *exchange])
        return [
            Record("sft", messages, tools=record.tools, source_chunk=record.source_chunk)
            for messages in pieces
            if messages[-1]["role"] == "assistant"
        ]

    def _truncated(self, record: Record, why: str) -> Record:
        """The record, cut in place: later exchanges left out, then the last answer's end."""
        if record.kind == "text":
            record.text = self._head(record.text, self._limit)
            return record
        if record.kind != "preference":
            opening = [message for message in record.messages[:1] if message["role"] == "system"]
            kept: list[Message] = [*opening]
            for number, exchange in enumerate(_exchanges(record.messages[len(opening) :])):
                if number and self._length(record, [*kept, *exchange]) > self._limit:
                    break
                kept += exchange
            record.messages = kept
        halves = [record.chosen, record.rejected] if record.kind == "preference" else [[]]
        for half in halves:
            self._cut_answer(record, half, why)
        if record.chosen and record.chosen == record.rejected:
            raise Unusable("no_preference", f"{why}, and cut to that the chosen and the rejected answer are the same")
        return record

    def _cut_answer(self, record: Record, half: list[Message], why: str) -> None:
        """Cuts the end of the last answer where the conversation with it is too long."""
        messages = [*record.messages, *half]
        answer = messages[-1]
        over = self._length(record, messages) - self._limit
        if over > 0:
            room = len(self._template.ids(answer["content"])) - over
            answer["content"] = self._head(answer["content"], room).rstrip() if room > 0 else ""
        if not answer["content"].strip() or self._length(record, messages) > self._limit:
            raise Unusable("too_long", f"{why}, and the prompt leaves no room for the answer")


def _exchanges(messages: list[Message]) -> list[list[Message]]:
    """The messages in groups that begin with a user's."""
    groups: list[list[Message]] = []
    for message in messages:
        if message["role"] == "user" or not groups:
            groups.append([])
        groups[-1].append(message)
    return groups
