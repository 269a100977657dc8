"""What may leave: only what was measured and held, or what was forced, with the failures said."""

from typing import Any

import pytest

from tunewright.pipeline.errors import Conflict
from tunewright.pipeline.publishing import gate

RETRY = 'publish_to_ollama(export_id="ex-1", force=true)'


def export(parity: dict[str, Any]) -> dict[str, Any]:
    return {"id": "ex-1", "document": {"adapter_id": "ad-1", "parity": parity}}


PASSED = {"passed": True, "failures": []}
FAILED = {"passed": False, "failures": ["gguf:q8_0: it makes another prompt"]}
MERGE_FAILED = {"passed": False, "failures": ["merge: KL 0.7"]}


def test_what_passed_goes_out() -> None:
    assert gate.require(export(PASSED), ["gguf:q8_0", "merged_16bit"], force=False, retry=RETRY) == []


def test_what_failed_stays_and_the_failure_is_quoted() -> None:
    with pytest.raises(Conflict, match="it makes another prompt") as caught:
        gate.require(export(FAILED), ["gguf:q8_0"], force=False, retry=RETRY)
    assert caught.value.code == "parity_failed" and RETRY in caught.value.allowed
    assert 'outputs=["gguf:q8_0"]' in caught.value.next


def test_force_lets_it_go_with_the_failure_to_be_said() -> None:
    assert gate.require(export(FAILED), ["gguf:q8_0"], force=True, retry=RETRY) == FAILED["failures"]


def test_one_file_s_failure_does_not_hold_back_another() -> None:
    assert gate.require(export(FAILED), ["gguf:f16"], force=False, retry=RETRY) == []


def test_a_failed_merge_holds_back_everything_made_of_it() -> None:
    for output in ("gguf:f16", "merged_16bit", "merged_4bit"):
        with pytest.raises(Conflict, match="merge: KL"):
            gate.require(export(MERGE_FAILED), [output], force=False, retry=RETRY)


def test_what_nobody_measured_needs_force() -> None:
    with pytest.raises(Conflict, match="without verification") as caught:
        gate.require(export({}), ["gguf:f16"], force=False, retry=RETRY)
    assert caught.value.code == "parity_unknown"
    assert len(gate.require(export({}), ["gguf:f16"], force=True, retry=RETRY)) == 1


def test_an_export_from_before_the_gate_counts_as_unmeasured() -> None:
    old = export({"gguf:q8_0": {"token_ids": {"equal": True}}})
    with pytest.raises(Conflict, match="parity_unknown"):
        gate.require(old, ["gguf:q8_0"], force=False, retry=RETRY)


def test_the_export_that_is_to_be_made_again_is_the_same_model() -> None:
    combined = export(FAILED)
    combined["document"] |= {"adapter_scale": 0.5, "combine_with": {"ad-2": 0.3}, "combination": "ties"}
    with pytest.raises(Conflict) as caught:
        gate.require(combined, ["gguf:q8_0"], force=False, retry=RETRY)
    assert caught.value.next == (
        'merge_and_export(adapter_id="ad-1", outputs=["gguf:q8_0"], adapter_scale=0.5, '
        'combine_with={"ad-2": 0.3}, combination="ties")'
    )


def test_an_adapter_by_itself_has_nothing_to_fail() -> None:
    assert gate.require(export({}), ["lora", "lora_gguf"], force=False, retry=RETRY) == []
