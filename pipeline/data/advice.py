"""What the numbers of a report mean for a training, in sentences that an agent can act on.

Every sentence holds the number it follows from. Says nothing about whether the answers are right: somebody has to read
some of them.
"""

from collections.abc import Iterator
from typing import Any

# Unsloth's guide: below 100 rows thin, 300 and 1,000 rows part instruct from base models (knowledge the guides share).
THIN, FEW, MANY = 100, 300, 1000
REASONING_SHARE = 0.75
FITTING_SHARE = 0.95
USUAL_LENGTH = 2048
SMALL_EVAL_ROWS, GOOD_EVAL_ROWS = 20, 50
REPEATED_SHARE, DROPPED_SHARE = 0.2, 0.1
SECOND_LANGUAGE_SHARE = 0.03
LOW_LOSS_SHARE = 0.1
LONG_TEXT_TOKENS = 10_000_000


def of(report: dict[str, Any]) -> list[str]:
    """Sentences for a report's numbers, what spoils a training first. Missing keys are passed over."""
    return [
        sentence
        for part in (_exposed, _measured_wrongly, _size, _repeated, _about, _reasoning, _lengths, _evaluation)
        for sentence in part(report)
    ]


def _exposed(report: dict[str, Any]) -> Iterator[str]:
    for key, words in (("secrets", "keys or passwords"), ("personal_data", "personal data")):
        if found := report.get(key):
            kinds = ", ".join(f"{kind} in {_rows(rows)}" for kind, rows in found.items())
            yield (
                f"The rows hold {words} ({kinds}), which the model may repeat: prepare again with "
                f'cleaning={{"{key}": "mask"}} (or "drop").'
            )


def _measured_wrongly(report: dict[str, Any]) -> Iterator[str]:
    leakage = report.get("leakage") or {}
    exact, near = int(leakage.get("exact") or 0), int(leakage.get("near") or 0)
    if exact or near:
        yield (
            f"Of the eval rows {exact:,} ask what is trained on too, and {near:,} nearly repeat a training row: the "
            "eval loss will look better than the model is."
        )
    if overlap := report.get("benchmark_overlap"):
        yield (
            f"The rows hold {len(overlap):,} question{_s(len(overlap))} of the benchmark: its score will not count as "
            "a measurement unless these rows are left out."
        )


def _size(report: dict[str, Any]) -> Iterator[str]:
    rows, kind = int(report.get("train_rows") or 0), report.get("kind", "sft")
    if kind == "text":
        total = int((report.get("tokens") or {}).get("total") or 0)
        size = "little: it changes style rather than knowledge" if total < LONG_TEXT_TOKENS else "enough to learn from"
        yield f"Raw text of about {total:,} tokens is for continued pre-training of a base model; that is {size}."
        return
    if kind in ("preference", "kto"):
        yield (
            f"{_rows(rows)} of judged answers: train them on a model that already answers in this form (instruct, or "
            "your own after SFT), with a learning rate near 5e-6."
        )
        if rows < FEW:
            yield f"{_rows(rows)} of preferences are few: {FEW} or more give a stable direction."
        return
    if rows < THIN:
        yield (
            f"{_rows(rows)} to train on are thin (fewer than {THIN}): they teach a tone or a fixed form at best. Use "
            "an instruct model, 1 to 3 epochs, and write or generate more; good rows beat many rows."
        )
    elif rows < FEW:
        yield f"{_rows(rows)} ({THIN} to {FEW}) suit an instruct model; a base model would need more."
    elif rows < MANY:
        yield f"{_rows(rows)} ({FEW} to {MANY:,}): instruct or base, instruct when in doubt."
    else:
        yield f"{_rows(rows)} (over {MANY:,}): enough for a base model too; instruct answers well with less."


def _repeated(report: dict[str, Any]) -> Iterator[str]:
    read = int(report.get("rows_read") or 0)
    dropped: dict[str, int] = {reason: int(entry["count"]) for reason, entry in (report.get("dropped") or {}).items()}
    if not read:
        return
    doubles = dropped.pop("duplicate", 0) + dropped.pop("near_duplicate", 0)
    if doubles > REPEATED_SHARE * read:
        yield (
            f"{doubles / read:.0%} of the rows read were duplicates ({doubles:,}, left out): the source says less than "
            "its size promises."
        )
    # What the caller asked to leave out is no fault of the source.
    faults = {reason: count for reason, count in dropped.items() if reason not in ("max_rows", "weight")}
    if sum(faults.values()) > DROPPED_SHARE * read:
        worst = max(faults, key=lambda reason: faults[reason])
        yield (
            f"{sum(faults.values()) / read:.0%} of the rows read were unusable, most of them {worst.replace('_', ' ')} "
            f"({faults[worst]:,}): look at the examples before training on the rest."
        )


def _about(report: dict[str, Any]) -> Iterator[str]:
    known = [entry for entry in report.get("languages") or [] if entry["language"] != "unknown"]
    others = [entry for entry in known[1:] if entry["share"] >= SECOND_LANGUAGE_SHARE]
    if others:
        listed = ", ".join(f"{entry['language']} {entry['share']:.0%}" for entry in [known[0], *others][:4])
        yield (
            f"Languages are mixed ({listed}): right when questions and answers share theirs; otherwise the model "
            "answers in the wrong one."
        )
    if skew := (report.get("topics") or {}).get("skew"):
        yield f"{skew} Unless that is the purpose, the model will see it where it is not: thin it out."


def _reasoning(report: dict[str, Any]) -> Iterator[str]:
    share = report.get("reasoning_share")
    if share is None or report.get("kind", "sft") not in ("sft", "kto"):
        return
    if share == 0:
        yield (
            "No answer shows reasoning (<think>): train and serve with thinking off; a reasoning model would need "
            f"about {REASONING_SHARE:.0%} rows with reasoning to keep it."
        )
    elif share < REASONING_SHARE - 0.1:
        yield (
            f"{share:.0%} of the answers show reasoning: to keep a model's thinking alive about {REASONING_SHARE:.0%} "
            "should, the rest being plain chat."
        )
    elif share > REASONING_SHARE + 0.15:
        yield (
            f"{share:.0%} of the answers show reasoning: about {1 - REASONING_SHARE:.0%} of plain chat keeps the model "
            "able to answer without it."
        )


def _lengths(report: dict[str, Any]) -> Iterator[str]:
    tokens: dict[str, Any] = report.get("tokens") or {}
    fits = {int(length): entry for length, entry in (tokens.get("fits") or {}).items()}
    if fits:
        enough = next((length for length, entry in fits.items() if entry["rows"] >= FITTING_SHARE), None)
        usual = fits.get(USUAL_LENGTH)
        if enough is None:
            longest = max(fits)
            yield (
                f"{1 - fits[longest]['rows']:.0%} of the rows are longer than {longest:,} tokens: split them "
                '(cleaning={"too_long": "split"} with max_seq_length).'
            )
        elif usual and enough > USUAL_LENGTH:
            yield (
                f"At max_seq_length={USUAL_LENGTH} {1 - usual['rows']:.0%} of the rows would be cut; {enough} keeps "
                f"{fits[enough]['rows']:.0%} whole and needs more memory."
            )
        else:
            yield f"max_seq_length={enough} keeps {fits[enough]['rows']:.0%} of the rows whole."
    if tokens.get("estimated"):
        yield "Tokens are estimated: name the model to have its own tokenizer count."
    if tokens.get("loss_share") is not None and tokens["loss_share"] < LOW_LOSS_SHARE:
        yield (
            f"Only {tokens['loss_share']:.0%} of the tokens carry loss: prompts are long beside the answers, most of "
            "the computing goes into reading them."
        )


def _evaluation(report: dict[str, Any]) -> Iterator[str]:
    held_out, rows = int(report.get("eval_rows") or 0), int(report.get("train_rows") or 0)
    if rows < THIN or held_out >= SMALL_EVAL_ROWS:
        return
    fraction = min(0.2, max(0.01, GOOD_EVAL_ROWS / (rows + held_out)))
    what = "No row is held out" if not held_out else f"{_rows(held_out)} held out are few: their loss is noisy"
    yield f"{what}; eval_fraction={fraction:.2g} would hold out about {round(fraction * (rows + held_out)):,}."


def _rows(count: int) -> str:
    return f"{count:,} row{_s(count)}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
