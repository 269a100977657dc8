"""From a request to the exact specification of a `benchmark` job: all that can be refused without a model is. Light."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunewright.pipeline import access, artifacts, settings
from tunewright.pipeline.benchmarking import exams
from tunewright.pipeline.benchmarking.exams import BENCHMARKS, MOST_SHOTS, Benchmark
from tunewright.pipeline.errors import InvalidInput, Unavailable, call, nearest
from tunewright.pipeline.exporting.outputs import is_gguf
from tunewright.pipeline.inference import subject as subject_
from tunewright.pipeline.workspace import Workspace

INSTALL_HARNESS = "pip install 'tunewright[harness]'"


def check(
    workspace: Workspace,
    adapter_id: str,
    task: str = "ceval",
    task_dir: str | None = None,
    subjects: Sequence[str] | None = None,
    n_shot: int = 5,
    compare_with_base: bool = True,
    export_id: str | None = None,
    *,
    chat_prompt: bool = False,
    limit: int | None = None,
) -> dict[str, Any]:
    """The spec of the job. A `task` that is not one of `exams.BENCHMARKS` is one of EleutherAI's harness.

    `subjects` are names of subjects or groups; `limit` takes the first so many questions of each. Raises InvalidInput,
    NotFound, and Unavailable where a model is out of reach or the harness is not installed.
    """
    adapter = artifacts.find(workspace, adapter_id, "adapter")
    if limit is not None and limit < 1:
        raise _wrong("limit", limit, "at least 1, or none for all questions", adapter["id"], task)
    spec: dict[str, Any] = {
        "adapter_id": adapter["id"], "base_model": adapter["document"]["base_model"],
        "subject": asdict(subject_.resolve(workspace, adapter_id=adapter["id"])),
        "task": task, "task_dir": None, "subjects": list(subjects) if subjects is not None else None,
        "n_shot": n_shot, "chat_prompt": chat_prompt, "limit": limit, "compare_with_base": compare_with_base,
        "harness": task not in BENCHMARKS, "export": None,
    }  # fmt: skip
    if spec["harness"]:
        folder = access.readable_folder(workspace, Path(task_dir)) if task_dir is not None else None
        return spec | _harness(task, folder, subjects, n_shot, export_id, adapter["id"])
    benchmark = BENCHMARKS[task]
    if not 0 <= n_shot <= MOST_SHOTS:
        raise _wrong("n_shot", n_shot, f"0 to {MOST_SHOTS}, as many as dev/ holds", adapter["id"], task)
    if task_dir is not None:
        root = exams.find_root(benchmark, access.readable_folder(workspace, Path(task_dir)))
        spec["task_dir"] = str(root)
        spec["subjects"] = _readable(benchmark, root, subjects, n_shot)
    else:
        spec["subjects"] = exams.chosen(benchmark, list(benchmark.subjects), subjects)
    if export_id is not None:
        spec["export"] = _export(workspace, adapter["id"], export_id)
    return spec


def _readable(benchmark: Benchmark, root: Path, subjects: Sequence[str] | None, n_shot: int) -> list[str]:
    """The wanted subjects of a folder, each read once: what is wrong with a file is said now."""
    wanted = exams.chosen(benchmark, exams.subjects_in(benchmark, root), subjects)
    for subject in wanted:
        if not exams.read(benchmark, root, subject, with_examples=n_shot > 0, limit=None).questions:
            file = benchmark.file(root, benchmark.split, subject)
            raise InvalidInput("no_questions", f"{file} holds no question.", allowed="Leave the subject out.")
    return wanted


def _export(workspace: Workspace, adapter_id: str, export_id: str) -> dict[str, str]:
    """Which file of the export is measured: what the parity gate recommends, else the smallest that passed it."""
    row = artifacts.find(workspace, export_id, "export")
    document = row["document"]
    if document["adapter_id"] != adapter_id:
        raise InvalidInput(
            "other_adapter", f"{row['id']} was made of {document['adapter_id']}, not of {adapter_id}.",
            allowed="An export is compared with the adapter that it was made of.",
            next=call("benchmark_adapter", adapter_id=document["adapter_id"], export_id=row["id"]),
        )  # fmt: skip
    ggufs = {entry["output"]: entry for entry in document["files"] if is_gguf(entry["output"])}
    if not ggufs:
        raise InvalidInput(
            "no_gguf", f"{row['id']} holds no GGUF file.", allowed="Make an export with one.",
            next=call("merge_and_export", adapter_id=adapter_id, outputs=["gguf:q4_k_m"]),
        )  # fmt: skip
    parity = document.get("parity") or {}
    measured = parity.get("outputs") or {}
    recommended = (parity.get("recommendation") or {}).get("output")
    if recommended and recommended in ggufs:
        output, why = recommended, "recommended by the parity check"
    else:
        passed = [name for name in ggufs if measured.get(name, {}).get("passed")]
        output = min(passed or ggufs, key=lambda name: ggufs[name]["bytes"])
        why = "the smallest that passed the parity check" if passed else "the smallest; none passed a parity check"
    if not Path(ggufs[output]["path"]).is_file():
        raise InvalidInput("files_gone", f"{ggufs[output]['path']} is gone.", next="list_artifacts()")
    return {"export_id": row["id"], "output": output, "path": ggufs[output]["path"], "why": why}


def _harness(
    task: str, folder: Path | None, subjects: Sequence[str] | None, n_shot: int, export_id: str | None, adapter_id: str
) -> dict[str, Any]:
    again = call("benchmark_adapter", adapter_id=adapter_id, task=task)
    plain = re.sub("[^a-z0-9]", "", task.lower())
    if plain in BENCHMARKS or not plain:
        raise InvalidInput(
            "unknown_task", f"task={task!r} is no benchmark.",
            allowed=f"{', '.join(BENCHMARKS)}, or a task of lm-evaluation-harness.",
            next=call("benchmark_adapter", adapter_id=adapter_id, task=plain or "ceval"),
        )  # fmt: skip
    if find_spec("lm_eval") is None:
        raise Unavailable(
            "harness_missing", f"{task!r} is none of {', '.join(BENCHMARKS)}; others need lm-eval, which is missing.",
            allowed=f"{nearest(task, list(BENCHMARKS))} Or install EleutherAI's harness into the server's environment: "
            f"{INSTALL_HARNESS}.",
            next=call("benchmark_adapter", adapter_id=adapter_id, task="ceval"),
        )  # fmt: skip
    if export_id is not None:
        raise InvalidInput(
            "export_not_in_harness", f"{task!r} runs in lm-eval, which does not read GGUF here.",
            allowed=f"Exports are measured with {', '.join(BENCHMARKS)}.",
            next=call("benchmark_adapter", adapter_id=adapter_id, task="ceval", export_id=export_id),
        )  # fmt: skip
    if subjects is not None:
        raise InvalidInput(
            "subjects_not_in_harness", f"{task!r} runs in lm-eval, where each subject is a task of its own.",
            allowed="Name the subject's task as task.", next=again,
        )  # fmt: skip
    if n_shot < 0:
        raise _wrong("n_shot", n_shot, "0 or more", adapter_id, task)
    if folder is not None and not folder.is_dir():
        raise InvalidInput(
            "task_dir_not_found", f"There is no folder {folder}.",
            allowed="For a task of lm-eval it is a folder of task YAMLs (its --include_path).", next=again,
        )  # fmt: skip
    # A task's YAML may name Python (`!function`), in its own folder or elsewhere, which lm-eval imports.
    if folder is not None and not settings.trusts_code_of(str(folder)):
        raise InvalidInput(
            "code_not_trusted", f"lm-eval runs the Python that the tasks in {folder} name.",
            allowed=f"The user allows it by setting {settings.TRUST_REMOTE_CODE}={folder} for the server. Folders in "
            f"the layouts of {', '.join(BENCHMARKS)} hold no code and need no such word. "
            f"{nearest(task, list(BENCHMARKS))}",
            next=again, done="Nothing was run.",
        )  # fmt: skip
    return {"task_dir": str(folder) if folder else None}


def _wrong(name: str, value: int, allowed: str, adapter_id: str, task: str) -> InvalidInput:
    return InvalidInput(
        f"invalid_{name}", f"{name}={value} was given.", allowed=f"Allowed: {allowed}.",
        next=call("benchmark_adapter", adapter_id=adapter_id, task=task),
    )  # fmt: skip
