"""Captured steps on a real GPU: skipped where there is none. Small random models, in bf16 as there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tunewright.pipeline.inference.engine import Engine
from tunewright.pipeline.inference.requests import Request, Sampling
from tunewright.pipeline.inference.subject import Subject

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)
# Before the fixture that hides GPUs from what is started later.
torch.cuda.init()

SubjectOf = Callable[..., Subject]
LENGTHS = (9, 1, 40, 23, 9)
NEW = 24
# Of logits in bf16; a token taken at random is about 5 behind.
ROUNDING = 0.6


def asked(new: int = NEW, ends: frozenset[int] = frozenset(), **how: Any) -> list[Request]:
    chance = torch.Generator().manual_seed(4)
    prompts = [torch.randint(10, 1200, (n,), generator=chance).tolist() for n in LENGTHS]
    return [Request(ids, new, ends, seed=seed, **how) for seed, ids in enumerate(prompts)]


def loaded(subject: Subject, *, four_bit: bool = False) -> Engine:
    engine = Engine()
    engine.load(replace(subject, load_in_4bit=four_bit))
    return engine


def steppers(engine: Engine) -> dict[str | None, str]:
    """How each adapter (None: the base) is decoded."""
    captured = engine._resident().captured
    assert captured is not None
    return {name: type(way[0]).__name__ for name, way in captured._ways.items()}


def worst_choice(engine: Engine, answers: list[list[int]], adapter_id: str | None) -> float:
    """How far behind the likeliest a chosen token ever is, by transformers' forward over the whole answer."""
    worst = 0.0
    with engine._answering(adapter_id):
        for request, ids in zip(asked(), answers, strict=True):
            logits = engine._resident().forward.last_logits([request.ids + ids], len(ids) + 1)[0, :-1].float()
            chosen = logits.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
            worst = max(worst, float((logits.amax(-1) - chosen).max()))
    return worst


@pytest.mark.parametrize(
    ("family", "kind", "stepper"),
    [
        ("qwen3", "lora", "Lean"), ("qwen2", "some", "Lean"), ("llama", "lora", "Lean"), ("qwen3", "dora", "Slots"),
        ("qwen3", "head", "Slots"), ("gemma3", "lora", "Slots"), ("gpt2", None, "Slots"),
        ("mixtral", "attention", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("four_bit", [False, True])
def test_captured_steps_choose_what_the_forward_finds_likeliest(
    subject: SubjectOf, family: str, kind: str | None, stepper: str | None, four_bit: bool
) -> None:
    tuned = subject(family, kind)
    engine = loaded(tuned, four_bit=four_bit)
    if stepper:
        base = "Lean" if family in ("qwen3", "qwen2", "llama") else "Slots"
        assert steppers(engine) == {None: base} | ({f"ad-{kind}.1": stepper} if kind else {})
    for adapter_id in {tuned.adapter_id, None}:
        together = [answer.ids for answer in engine.generate(asked(), adapter_id=adapter_id)]
        assert {len(ids) for ids in together} == {NEW}
        assert worst_choice(engine, together, adapter_id) < ROUNDING
        assert [answer.ids for answer in engine.generate(asked(), adapter_id=adapter_id)] == together
        alone = [engine.generate([request], adapter_id=adapter_id)[0].ids for request in asked()]
        assert worst_choice(engine, alone, adapter_id) < ROUNDING
    engine.unload()


def test_an_answer_stops_at_its_end_and_after_any_token(subject: SubjectOf) -> None:
    engine = loaded(subject("qwen3"))
    free = [answer.ids for answer in engine.generate(asked(), adapter_id=None)]
    end = free[0][7]
    for answer, ids in zip(engine.generate(asked(NEW, frozenset({end})), adapter_id=None), free, strict=True):
        place = ids.index(end) if end in ids else NEW
        assert answer.ids == ids[: place + 1]
        assert answer.ended == ("stop" if place < NEW else "length")
    for stopped in (1, 2, 3, NEW - 1):
        told: list[int] = []

        def on_token(index: int, token: int, told: list[int] = told, stopped: int = stopped) -> bool:
            told += [token] if index == 2 else []
            return index != 2 or len(told) < stopped

        answers = engine.generate(asked(), adapter_id=None, on_token=on_token)
        assert [answer.ids for answer in answers] == [*free[:2], free[2][:stopped], *free[3:]]


def test_sampling_is_the_same_twice_and_follows_the_seed(subject: SubjectOf) -> None:
    engine = loaded(subject("qwen3", "lora"))
    requests = asked(sampling=Sampling(temperature=1.2, top_p=0.95, top_k=40, repetition_penalty=1.1))
    first = [answer.ids for answer in engine.generate(requests, adapter_id="ad-lora.1")]
    assert [answer.ids for answer in engine.generate(requests, adapter_id="ad-lora.1")] == first
    others = [replace(request, seed=request.seed + 50) for request in requests]
    assert [answer.ids for answer in engine.generate(others, adapter_id="ad-lora.1")] != first


def test_answers_of_many_sizes_in_turn_are_those_of_a_fresh_engine(subject: SubjectOf) -> None:
    engine = loaded(subject("llama"))
    for number, new in ((1, 5), (3, 40), (5, 8), (1, 30), (2, 5), (4, 60), (1, 5)):
        requests = asked(new)[:number]
        fresh = loaded(subject("llama"))
        expected = [answer.ids for answer in fresh.generate(requests, adapter_id=None)]
        assert [answer.ids for answer in engine.generate(requests, adapter_id=None)] == expected
        fresh.unload()


def test_memory_is_given_back(subject: SubjectOf) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    engine = loaded(subject("qwen3", "lora"))
    engine.generate(asked(), adapter_id="ad-lora.1")
    assert torch.cuda.memory_allocated() > before
    engine.unload()
    assert torch.cuda.memory_allocated() <= before + 64 * 2**20
