"""The gate between an export and the world: what is not shown to be the trained model is not published. Light.

Guarantees: publishing goes on only where the export's parity was measured and held, or where it was forced; then the
failures are returned, to be said wherever the publication is told of.
"""

from collections.abc import Iterable, Sequence

from tunewright.pipeline.errors import Conflict
from tunewright.pipeline.exporting.outputs import MERGED, MERGED_4BIT, is_gguf
from tunewright.pipeline.publishing import lineage
from tunewright.pipeline.store import Row


def is_for(outputs: Iterable[str]) -> bool:
    """Whether a model is among them, which must have been measured; an adapter by itself was not converted."""
    return any(is_gguf(output) or output in (MERGED, MERGED_4BIT) for output in outputs)


def require(export: Row, outputs: Sequence[str], *, force: bool, retry: str) -> list[str]:
    """The failures of `outputs` of an export, none where all passed. `retry` is the call that publishes with force.

    Raises Conflict `parity_failed` with the failures, or `parity_unknown` where nothing was measured, unless `force`.
    """
    if not is_for(outputs):
        return []
    # Without failures also what the releases before the gate wrote.
    failures: list[str] | None = (export["document"].get("parity") or {}).get("failures")
    if failures is None:
        unknown = f"{export['id']} was exported without verification: nobody has looked whether it is the trained model"
        if force:
            return [unknown]
        raise Conflict(
            "parity_unknown",
            f"{unknown}.",
            allowed=f"An export that was verified, or, once the user accepts what may differ: {retry}.",
            next=lineage.export_call(export, outputs),
            done="Nothing was published.",
        )
    concerned = [failure for failure in failures if _concerns(failure, outputs)]
    if concerned and not force:
        raise Conflict(
            "parity_failed",
            f"{export['id']} is not the model that was trained: {'; '.join(concerned)}.",
            allowed=f"Export again once the cause is mended, or, where the user accepts just this difference: {retry}.",
            next=lineage.export_call(export, outputs),
            done="Nothing was published.",
        )
    return concerned


def _concerns(failure: str, outputs: Sequence[str]) -> bool:
    """A failure begins with its output and a colon-space; what begins otherwise concerns the merged model, so all."""
    name, separator, _ = failure.partition(": ")
    return name in outputs or not (separator and is_gguf(name))
