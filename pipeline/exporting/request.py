"""From a request to the specification of an export: everything checked that can be without torch. Light."""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tunewright.pipeline.errors import InvalidInput, NotFound, call
from tunewright.pipeline.exporting.outputs import GGUF, LORA, LORA_GGUF, MERGED, ONE_RANK, OUTPUTS
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace

MAX_SCALE = 4.0
USUAL = (MERGED, "gguf:q8_0")


def check(
    workspace: Workspace,
    adapter_id: str,
    outputs: Sequence[str],
    *,
    adapter_scale: float = 1.0,
    combine_with: Mapping[str, float] | None = None,
    combination: str | None = None,
    verify: bool = True,
    name: str | None = None,
) -> dict[str, Any]:
    """The spec of an `export` job. Raises InvalidInput or NotFound; starts nothing.

    `combine_with`: other adapters (ids or prefixes) of the same base and their weights; `adapter_scale` is then the
    weight of the first. `combination` is a method of `combine.combine`, by default `cat`, the exact sum.
    """
    adapter = _with_weights(workspace, adapter_id)
    others = {_with_weights(workspace, other)["id"]: float(weight) for other, weight in (combine_with or {}).items()}
    _check_outputs(adapter, outputs)
    _check_scales(adapter, outputs, {adapter["id"]: adapter_scale, **others})
    if len(others) < len(combine_with or {}) or adapter["id"] in others:
        raise InvalidInput(
            "adapter_named_twice",
            f"combine_with={list(combine_with or {})!r} names an adapter twice, or {adapter['id']} itself.",
            allowed="Each once; the weight of adapter_id is adapter_scale.",
            next=call("list_artifacts", kind="adapter"),
        )
    if combination and not others:
        raise InvalidInput(
            "nothing_to_combine",
            f"combination={combination!r} without combine_with.",
            allowed="combine_with={adapter id: weight} names the adapters to be combined with this one.",
            next=call("list_artifacts", kind="adapter"),
        )
    for other in others:
        _check_same_kind(adapter, workspace.store.artifact(other, "adapter"), combination)
    return {
        "adapter_id": adapter["id"],
        # In one order, each once.
        "outputs": [output for output in OUTPUTS if output in outputs],
        "adapter_scale": float(adapter_scale),
        "combine_with": others,
        "combination": (combination or "cat") if others else None,
        "verify": verify,
        "name": name or adapter["name"],
    }


def _is_whole(adapter: Row) -> bool:
    return adapter["document"].get("form") == "full"


def _with_weights(workspace: Workspace, adapter_id: str) -> Row:
    adapter = workspace.store.artifact(adapter_id, "adapter")
    folder = Path(adapter["document"]["path"])
    if not any(folder.glob("model*.safetensors" if _is_whole(adapter) else "adapter_model.safetensors")):
        raise NotFound(
            "adapter_missing",
            f"The weights of {adapter['id']} are not at {folder} any more.",
            allowed="Another adapter, or the training run again.",
            next=call("list_artifacts", kind="adapter"),
        )
    return adapter


def _check_outputs(adapter: Row, outputs: Sequence[str]) -> None:
    unknown = [output for output in outputs if output not in OUTPUTS]
    if unknown or not outputs:
        wrong = f"{unknown[0]!r} is no output" if unknown else "nothing is asked for"
        meant = [_meant(output) if output in unknown else output for output in outputs]
        raise InvalidInput(
            "unknown_output",
            f"outputs={list(outputs)!r}: {wrong}.",
            allowed=f"Allowed: {', '.join(OUTPUTS)}.",
            next=call("merge_and_export", adapter_id=adapter["id"], outputs=list(dict.fromkeys(meant or USUAL))),
        )


def _meant(output: str) -> str:
    """The output whose name is nearest: `q8_0` and `GGUF:Q8_0` are gguf:q8_0."""
    plain = output.lower().strip()
    return (
        next((name for name in (plain, GGUF + plain) if name in OUTPUTS), None)
        or (get_close_matches(plain, OUTPUTS, n=1, cutoff=0.0)[0])
    )


def _check_scales(adapter: Row, outputs: Sequence[str], scales: Mapping[str, float]) -> None:
    if _is_whole(adapter) and (LORA in outputs or LORA_GGUF in outputs or list(scales.values()) != [1.0]):
        raise InvalidInput(
            "not_an_adapter",
            f"{adapter['id']} was trained as a whole model: there is no LoRA to export, to scale or to combine.",
            allowed=f"{MERGED} and GGUF files, with adapter_scale=1.0.",
            next=call("merge_and_export", adapter_id=adapter["id"], outputs=list(USUAL)),
        )
    for adapter_id, scale in scales.items():
        if not (math.isfinite(scale) and 0 < scale <= MAX_SCALE):
            raise InvalidInput(
                "bad_adapter_scale",
                f"The weight of {adapter_id} is {scale!r}.",
                allowed=f"Above 0, up to {MAX_SCALE:g}; 1.0 is what was trained.",
                next=call("merge_and_export", adapter_id=adapter["id"], outputs=list(outputs)),
            )


def _check_same_kind(adapter: Row, other: Row, combination: str | None) -> None:
    one, two = adapter["document"], other["document"]
    ranks = [document.get("training", {}).get("lora_rank") for document in (one, two)]
    if combination in ONE_RANK and None not in ranks and ranks[0] != ranks[1]:
        raise InvalidInput(
            "not_combinable",
            f"{combination!r} adds matrices of one rank; {adapter['id']} has {ranks[0]}, {other['id']} {ranks[1]}.",
            allowed="cat, svd and the methods that end in _svd take different ranks.",
            next=call("merge_and_export", adapter_id=adapter["id"], combine_with={other["id"]: 0.5}, combination="svd"),
        )
    if _is_whole(other) or one["base_model"] != two["base_model"]:
        what = "a whole model" if _is_whole(other) else f"an adapter of {two['base_model']}"
        raise InvalidInput(
            "not_combinable",
            f"{other['id']} is {what}, {adapter['id']} an adapter of {one['base_model']}.",
            allowed="Adapters of one base model.",
            next=call("list_artifacts", kind="adapter"),
        )
    if one.get("enable_thinking", False) != two.get("enable_thinking", False):
        raise InvalidInput(
            "not_combinable",
            f"{adapter['id']} and {other['id']} were trained in different thinking modes: no prompt suits both.",
            allowed="Adapters that were trained with thinking on, or all with thinking off.",
            next=call("list_artifacts", kind="adapter"),
        )
