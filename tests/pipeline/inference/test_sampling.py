"""The rules of sampling against transformers' own warpers, whose probabilities the draws must follow."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunewright.pipeline.inference import sampling
from tunewright.pipeline.inference.requests import GREEDY, Request, Sampling
from tunewright.pipeline.inference.sampling import Sampler

VOCABULARY, DRAWS = 50, 4000
PROMPT = [3, 7, 7, 40]
CPU = torch.device("cpu")
RULES = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.3),
    Sampling(temperature=1.7, top_k=7),
    Sampling(temperature=1.0, top_p=0.6),
    Sampling(temperature=1.0, top_p=0.05),
    Sampling(temperature=1.0, min_p=0.2),
    Sampling(temperature=1.0, repetition_penalty=1.8),
    Sampling(temperature=0.8, top_p=0.8, top_k=12, min_p=0.05, repetition_penalty=1.2),
]


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def warped(rule: Sampling, seen: Sequence[int]) -> torch.Tensor:
    """The probabilities by transformers, in the order in which its generate applies the rules."""
    warpers = LogitsProcessorList()
    if rule.repetition_penalty != 1:
        warpers.append(RepetitionPenaltyLogitsProcessor(rule.repetition_penalty))
    warpers.append(TemperatureLogitsWarper(rule.temperature))
    if rule.top_k:
        warpers.append(TopKLogitsWarper(rule.top_k))
    if rule.top_p < 1:
        warpers.append(TopPLogitsWarper(rule.top_p))
    if rule.min_p:
        warpers.append(MinPLogitsWarper(rule.min_p))
    return warpers(torch.tensor([list(seen)]), logits()).softmax(-1)[0]


def request(rule: Sampling, seed: int = 0, new: int = 4) -> Request:
    return Request(PROMPT, new, frozenset(), rule, seed)


@pytest.mark.parametrize("rule", RULES)
def test_draws_follow_the_probabilities_of_transformers_warpers(
    rule: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every part of the unit interval once, so that how often a token comes is its probability.
    monkeypatch.setattr(
        sampling, "_uniform", lambda seed, tokens: torch.tensor([(seed + 0.5) / DRAWS], dtype=torch.float64)
    )
    sampler = Sampler([request(rule, seed, new=1) for seed in range(DRAWS)], VOCABULARY, CPU)
    drawn = sampler.choose(logits().expand(DRAWS, -1))[:, 0].bincount(minlength=VOCABULARY) / DRAWS
    expected = warped(rule, PROMPT)
    assert torch.allclose(drawn, expected, atol=2 / DRAWS)
    assert not drawn[expected == 0].any()
    assert int((drawn > 0).sum()) > 1 or rule.top_p == 0.05


def test_a_generated_token_is_penalised_like_the_prompts() -> None:
    rule = Sampling(temperature=0.0, repetition_penalty=2.0)
    sampler = Sampler([request(rule)], VOCABULARY, CPU)
    seen, scores = list(PROMPT), logits().clamp(min=0.1)
    for _ in range(4):
        penalised = RepetitionPenaltyLogitsProcessor(2.0)(torch.tensor([seen]), scores)
        chosen = int(sampler.choose(scores))
        assert chosen == int(penalised.argmax())
        seen.append(chosen)
    assert len(set(seen[4:])) > 1


def test_greedy_rows_take_the_maximum_beside_rows_that_draw() -> None:
    drawing = Sampling(temperature=5.0)
    sampler = Sampler([request(GREEDY), request(drawing, 1), request(drawing, 2)], VOCABULARY, CPU)
    chosen = [sampler.choose(logits(step).expand(3, -1))[:, 0].tolist() for step in range(4)]
    assert [row[0] for row in chosen] == [int(logits(step).argmax()) for step in range(4)]
    assert [row[1] for row in chosen] != [row[2] for row in chosen]


def test_a_rows_draws_depend_on_its_seed_alone() -> None:
    rule = Sampling(temperature=2.0)

    def draws(requests: list[Request]) -> list[list[int]]:
        sampler = Sampler(requests, VOCABULARY, CPU)
        steps = [sampler.choose(logits(step).expand(len(requests), -1))[:, 0].tolist() for step in range(4)]
        return [list(row) for row in zip(*steps, strict=True)]

    three = draws([request(rule, seed) for seed in (5, 6, 5)])
    assert three[0] == three[2] != three[1]
    assert draws([replace(request(rule, 6), max_new_tokens=400)]) == [three[1]]


def test_rows_that_are_dropped_leave_the_others_as_they_are() -> None:
    rule = Sampling(temperature=2.0, repetition_penalty=1.5)
    whole = Sampler([request(rule, seed) for seed in range(3)], VOCABULARY, CPU)
    part = Sampler([request(rule, seed) for seed in range(3)], VOCABULARY, CPU)
    first = logits().expand(3, -1)
    assert torch.equal(whole.choose(first), part.choose(first))
    part.keep(torch.tensor([2, 0]))
    for step in range(1, 4):
        scores = logits(step).expand(3, -1)
        assert torch.equal(whole.choose(scores)[[2, 0]], part.choose(scores[:2]))


def test_equal_scores_are_drawn_the_same_every_time() -> None:
    rule = Sampling(temperature=1.0, top_p=0.9)
    flat = torch.zeros(1, VOCABULARY)
    chosen = {int(Sampler([request(rule, 3)], VOCABULARY, CPU).choose(flat)) for _ in range(20)}
    assert len(chosen) == 1
