"""The parity gate: whether an export is, in every form, the model that was trained. Runs in a worker; heavy when run.

Three steps: base and adapter beside each other against the merged model (both in transformers), the merged model in
float32 as the reference, and every GGUF in llama.cpp against that. What is covered: tokens, prompts, ends of answers,
distributions of the next token, greedy answers. Not covered: sampling, long contexts, and a server's own settings
(`publishing/ollama_check`).
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.pipeline.context import JobContext
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.exporting.parity import cases as cases_
from tunewright.pipeline.exporting.parity import in_llama, judge
from tunewright.pipeline.exporting.parity.cases import Cases
from tunewright.pipeline.store import Row

if TYPE_CHECKING:
    from tunewright.pipeline.exporting.parity.reference import Reference

MERGE = "merge"
LOG = "llama.log"


def measure(
    context: JobContext,
    *,
    adapter: Row,
    base: Path,
    source: Path,
    merged: Path,
    adapter_scale: float,
    ggufs: dict[str, Path],
) -> dict[str, Any]:
    """Measures the folder `merged`, made of `base` and the PEFT adapter in `source`, and the `ggufs` by output.

    Returns the whole document: `passed`, `failures` (each begins with its output, or `merge`, and a colon), `cases`,
    `reference`, `merge`, `outputs`, `recommendation`, and `notes` on what was not measured. It quotes rows of the data.
    llama.cpp's output goes to the job's folder. Raises Cancelled, and Unavailable where llama.cpp stops; what cannot be
    loaded fails.
    """
    cases = cases_.collect(context.workspace, adapter, source, merged)
    try:
        reference = _reference(context, cases, base, source, merged, adapter_scale)
    except TunewrightError as error:
        if error.code != "merged_not_loadable":
            raise
        return _document(cases, None, [error.what], {})
    failures = [*judge.of_merge(reference), *judge.of_loss(adapter, cases, reference, source, adapter_scale)]
    outputs: dict[str, Any] = {}
    for number, (output, gguf) in enumerate(ggufs.items()):
        context.check_cancelled()
        context.progress(f"measuring {output}", number, len(ggufs))
        measured = in_llama.measure(
            gguf, cases, reference.logprobs, log=context.folder / LOG, check_cancelled=context.check_cancelled
        )
        outputs[output] = _output(output, measured, reference, cases)
    return _document(cases, reference, failures, outputs)


def summary(document: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a document without what quotes the data: for the store, the status and the model card."""
    reference = document["reference"]
    return {
        "passed": document["passed"],
        "failures": document["failures"],
        "reference": {key: reference[key] for key in ("dtype", "device", "eval_loss", "scored_tokens")},
        "noise_floor": reference["noise_floor"],
        "merge": document["merge"],
        "outputs": {
            output: {
                **{key: found[key] for key in ("bytes", "passed", "kl", "top1", "eval_loss")},
                "greedy_equal": found["greedy"]["equal"] if found["greedy"] else None,
                "greedy_of": found["greedy"]["of"] if found["greedy"] else None,
            }
            for output, found in document["outputs"].items()
        },
        "recommendation": document["recommendation"],
        "notes": document["notes"],
    }


def _reference(
    context: JobContext, cases: Cases, base: Path, source: Path, merged: Path, adapter_scale: float
) -> "Reference":
    # torch, transformers and peft: only once there is something to measure.
    from tunewright.pipeline.exporting.parity import reference

    def tell(phase: str) -> None:
        context.check_cancelled()
        context.progress(phase)

    return reference.measure(cases, base=base, source=source, merged=merged, adapter_scale=adapter_scale, tell=tell)


def _output(output: str, measured: in_llama.Measured, reference: "Reference", cases: Cases) -> dict[str, Any]:
    failures, greedy = judge.of_output(output, measured, reference, cases)
    found = measured.distance
    return {
        "passed": not failures,
        "failures": failures,
        "bytes": measured.bytes,
        "token_ids": measured.token_ids,
        "prompts": measured.prompts,
        "stops": sum(answer["finish_reason"] == "stop" for answer in measured.answers),
        "kl": _number(found.kl) if found else None,
        "top1": _number(found.top1) if found else None,
        "eval_loss": _number(found.loss) if found else None,
        "greedy": {"equal": greedy.equal, "of": greedy.of} if greedy else None,
        "answers": [
            {"text": answer["text"], "tokens": answer["tokens"], "ended": answer["finish_reason"]}
            for answer in measured.answers
        ],
    }


def _document(
    cases: Cases, reference: "Reference | None", merge_failures: list[str], outputs: dict[str, Any]
) -> dict[str, Any]:
    """`merge_failures` are of the merged model; those of the outputs stand in them."""
    failures = [f"{MERGE}: {failure}" for failure in merge_failures]
    failures += [f"{output}: {failure}" for output, found in outputs.items() for failure in found["failures"]]
    scored = len(cases.targets)
    recommended = judge.recommend(outputs, reference.loss, scored) if reference and not merge_failures else None
    return {
        "passed": not failures,
        "failures": failures,
        "cases": {"dataset_id": cases.dataset_id, "split": cases.split, "asked": cases.asked},
        "reference": _as_json(reference, scored),
        "merge": _merge(reference, passed=not merge_failures),
        "outputs": outputs,
        "recommendation": recommended,
        "notes": [*reference.notes] if reference else [],
    }


def _as_json(reference: "Reference | None", scored_tokens: int) -> dict[str, Any]:
    given = reference.answers.given if reference else None
    return {
        "dtype": "float32",
        "device": reference.device if reference else None,
        "eval_loss": _number(reference.loss) if reference else None,
        "scored_tokens": scored_tokens,
        "answers": [answer.text for answer in given] if given else None,
        "answers_dtype": reference.answers.dtype if reference else None,
        "noise_floor": {"kl": _number(reference.noise.kl), "top1": _number(reference.noise.top1)}
        if reference
        else None,
    }


def _merge(reference: "Reference | None", *, passed: bool) -> dict[str, Any] | None:
    check = reference.merge if reference else None
    if check is None:
        return None
    return {
        "kl": _number(check.distance.kl),
        "top1": _number(check.distance.top1),
        "max_logit_difference": _number(check.max_logit_difference),
        "passed": passed,
    }


def _number(value: float) -> float | None:
    """To five digits: more are no knowledge. JSON has no NaN."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
