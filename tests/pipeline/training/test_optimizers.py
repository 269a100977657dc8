"""Which parameter learns at which rate, and what decays."""

from typing import Any

import pytest


def rates(facts: dict[str, Any], name: str) -> dict[str, Any]:
    found = facts["rates"][name]
    assert "failed" not in found, found["failed"]
    assert found["others"] == 0, "nothing but what is trained is in a group"
    return found


def test_one_rate_for_all_is_left_to_the_trainer(loading_facts: dict[str, Any]) -> None:
    assert loading_facts["rates"]["one rate"] == {"class": None}


@pytest.mark.parametrize(("name", "kind"), [("loraplus", "AdamW"), ("sgd", "SGD")])
def test_loraplus_gives_b_a_multiple_of_the_rate_with_the_optimizer_asked_for(
    loading_facts: dict[str, Any], name: str, kind: str
) -> None:
    found = rates(loading_facts, name)
    assert found["class"] == kind
    assert {(".lora_B." in entry, *group) for entry, group in found["groups"].items()} == {
        (False, 0.01, 0.1), (True, 0.16, 0.1),
    }  # fmt: skip


def test_embeddings_learn_at_their_own_rate_beside_loraplus_and_magnitudes(loading_facts: dict[str, Any]) -> None:
    groups = rates(loading_facts, "both")["groups"]
    for entry, (rate, _) in groups.items():
        expected = 0.001 if "modules_to_save" in entry else 0.04 if ".lora_B." in entry else 0.01
        assert rate == expected, entry
    assert sum("modules_to_save" in entry for entry in groups) == 2


def test_a_tied_embedding_is_in_one_group_once(loading_facts: dict[str, Any]) -> None:
    groups = rates(loading_facts, "embeddings")["groups"]
    assert [group for entry, group in groups.items() if "embed_tokens" in entry] == [[0.001, 0.1]]
    assert {group[0] for entry, group in groups.items() if "lora_" in entry} == {0.01}


def test_in_full_training_embeddings_have_their_rate_and_biases_and_norms_do_not_decay(
    loading_facts: dict[str, Any],
) -> None:
    groups = rates(loading_facts, "full")["groups"]
    assert groups["transformer.wte.weight"] == [0.001, 0.1]
    assert groups["transformer.wpe.weight"] == groups["transformer.h.0.attn.c_attn.weight"] == [0.01, 0.1]
    assert groups["transformer.h.0.ln_1.weight"] == groups["transformer.h.0.attn.c_attn.bias"] == [0.01, 0.0]
