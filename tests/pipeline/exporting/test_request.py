"""What an export request is turned into, and what is refused before a job exists."""

from pathlib import Path
from typing import Any

import pytest

from tunewright.pipeline.errors import InvalidInput, NotFound
from tunewright.pipeline.exporting import request
from tunewright.pipeline.store import Row
from tunewright.pipeline.workspace import Workspace


@pytest.fixture
def row(workspace: Workspace, tiny: Any, tmp_path: Path) -> Row:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    return tiny.add_adapter(workspace, tmp_path, tmp_path)


def test_outputs_are_put_in_order_and_each_made_once(workspace: Workspace, row: Row) -> None:
    spec = request.check(workspace, row["id"][:8], ["gguf:q8_0", "merged_16bit", "gguf:q8_0"])
    assert spec == {
        "adapter_id": row["id"], "outputs": ["merged_16bit", "gguf:q8_0"], "adapter_scale": 1.0, "combine_with": {},
        "combination": None, "verify": True, "name": "Tiny One",
    }  # fmt: skip


@pytest.mark.parametrize("outputs", [["gguf:q9_k"], ["merged_16bit", "onnx"], []])
def test_an_unknown_output_is_refused_naming_the_allowed_ones(
    outputs: list[str], workspace: Workspace, row: Row
) -> None:
    with pytest.raises(InvalidInput) as caught:
        request.check(workspace, row["id"], outputs)
    assert "lora, lora_gguf, merged_16bit, merged_4bit, gguf:f16" in caught.value.allowed
    assert "gguf:q3_k_m" in caught.value.allowed
    assert row["id"] in caught.value.next


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 5.0])
def test_a_scale_out_of_range_is_refused(scale: float, workspace: Workspace, row: Row) -> None:
    with pytest.raises(InvalidInput, match="adapter_scale"):
        request.check(workspace, row["id"], ["lora"], adapter_scale=scale)


def test_an_unknown_adapter_is_not_found(workspace: Workspace) -> None:
    with pytest.raises(NotFound):
        request.check(workspace, "ad-none-0000", ["lora"])


def test_an_adapter_whose_weights_are_gone_is_refused(workspace: Workspace, row: Row, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(NotFound, match="adapter_missing"):
        request.check(workspace, row["id"], ["lora"])


def test_a_whole_model_is_exported_merged_and_never_as_a_lora(workspace: Workspace, tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    row = tiny.add_adapter(workspace, tmp_path, tmp_path, form="full")
    assert request.check(workspace, row["id"], ["merged_16bit"])["outputs"] == ["merged_16bit"]
    for outputs, scale in ((["lora", "merged_16bit"], 1.0), (["merged_16bit"], 0.5)):
        with pytest.raises(InvalidInput, match="not_an_adapter"):
            request.check(workspace, row["id"], outputs, adapter_scale=scale)


@pytest.fixture
def other(workspace: Workspace, tiny: Any, row: Row, tmp_path: Path) -> Row:
    """A second adapter of the same base."""
    return tiny.add_adapter(workspace, tmp_path, tmp_path)


@pytest.mark.parametrize("written", ["q8_0", "GGUF:Q8_0", "gguf:q8-0"])
def test_the_output_that_was_meant_stands_in_the_next_call(written: str, workspace: Workspace, row: Row) -> None:
    with pytest.raises(InvalidInput) as caught:
        request.check(workspace, row["id"], [written, "lora"])
    assert 'outputs=["gguf:q8_0", "lora"]' in caught.value.next


def test_adapters_of_two_ranks_are_refused_by_methods_of_one_rank(
    workspace: Workspace, tiny: Any, tmp_path: Path
) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    rows = [tiny.add_adapter(workspace, tmp_path, tmp_path, training={"lora_rank": rank}) for rank in (8, 16)]
    with pytest.raises(InvalidInput, match="one rank") as caught:
        request.check(workspace, rows[0]["id"], ["lora"], combine_with={rows[1]["id"]: 1}, combination="ties")
    assert 'combination="svd"' in caught.value.next
    assert request.check(workspace, rows[0]["id"], ["lora"], combine_with={rows[1]["id"]: 1})["combination"] == "cat"


def test_a_combination_without_adapters_is_refused(workspace: Workspace, row: Row) -> None:
    with pytest.raises(InvalidInput, match="nothing_to_combine"):
        request.check(workspace, row["id"], ["lora"], combination="ties")


def test_adapters_are_combined_by_id_prefix_with_their_weights(workspace: Workspace, row: Row, other: Row) -> None:
    spec = request.check(
        workspace, row["id"], ["merged_16bit"], adapter_scale=0.7, combine_with={other["id"][:-1]: 0.3},
        combination="ties",
    )  # fmt: skip
    assert (spec["adapter_scale"], spec["combine_with"], spec["combination"]) == (0.7, {other["id"]: 0.3}, "ties")


def test_an_adapter_is_not_combined_with_itself(workspace: Workspace, row: Row) -> None:
    with pytest.raises(InvalidInput, match="adapter_named_twice"):
        request.check(workspace, row["id"], ["lora"], combine_with={row["id"]: 0.5})


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"base_model": "other/base"}, "an adapter of other/base"), ({"enable_thinking": True}, "thinking modes")],
)
def test_adapters_that_do_not_go_together_are_refused(
    changed: dict[str, Any], what: str, workspace: Workspace, tiny: Any, row: Row, tmp_path: Path
) -> None:
    other = tiny.add_adapter(workspace, tmp_path, tmp_path, **changed)
    with pytest.raises(InvalidInput, match=what) as caught:
        request.check(workspace, row["id"], ["lora"], combine_with={other["id"]: 0.5})
    assert caught.value.code == "not_combinable"


@pytest.mark.parametrize("weight", [0.0, float("nan"), 5.0])
def test_a_weight_out_of_range_is_refused(weight: float, workspace: Workspace, row: Row, other: Row) -> None:
    with pytest.raises(InvalidInput, match="bad_adapter_scale"):
        request.check(workspace, row["id"], ["lora"], combine_with={other["id"]: weight})
