"""The loss curve as a picture. matplotlib is imported when first asked for; it is the field's own plotting library."""

import io

from tunewright.pipeline.errors import NotFound, call
from tunewright.pipeline.workspace import Workspace


def loss_png(workspace: Workspace, job_id: str) -> bytes:
    """A PNG of training and eval loss by step. Raises NotFound where the job has no metrics yet."""
    job_id = workspace.store.job(job_id)["id"]
    series = {split: workspace.store.metrics(job_id, split) for split in ("train", "eval")}
    if not series["train"]:
        raise NotFound("no_metrics", f"{job_id} has no metrics yet.", next=call("get_status", job_id=job_id, wait_s=50))
    # The object interface: pyplot keeps global state and is not safe in threads.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for split, marker in (("train", ""), ("eval", "o")):
        rows = [row for row in series[split] if "loss" in row["numbers"]]
        if rows:
            axes.plot(
                [r["step"] for r in rows], [r["numbers"]["loss"] for r in rows], label=f"{split} loss", marker=marker
            )
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.set_title(job_id)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
