"""What the engine answers against transformers' own generate, forward and peft, on a CPU in float32."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, Qwen3ForCausalLM

from tunewright.pipeline.chat_template import ChatTemplate
from tunewright.pipeline.errors import Cancelled, Conflict, InvalidInput
from tunewright.pipeline.inference import engine as engine_module
from tunewright.pipeline.inference import loading
from tunewright.pipeline.inference.engine import Engine
from tunewright.pipeline.inference.requests import Request, Sampling
from tunewright.pipeline.inference.subject import Subject

SubjectOf = Callable[..., Subject]
Folder = Callable[..., Path]
VOCABULARY, END = 1200, 2
LENGTHS = (9, 1, 40, 23, 9)


def prompt(tokens: int, seed: int = 0) -> list[int]:
    """Token ids without control tokens."""
    return torch.randint(10, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def asked(new: int = 20, ends: frozenset[int] = frozenset(), **how: Any) -> list[Request]:
    return [Request(prompt(n, seed), new, ends, seed=seed, **how) for seed, n in enumerate(LENGTHS)]


def generated(model: Any, request: Request) -> list[int]:
    """transformers' own greedy answer to one prompt."""
    ids = torch.tensor([request.ids])
    model.generation_config.eos_token_id = None
    config = GenerationConfig(do_sample=False, max_new_tokens=request.max_new_tokens, pad_token_id=0)
    with torch.inference_mode():
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return made[0, len(request.ids) :].tolist()


def said(engine: Engine, requests: Sequence[Request], adapter_id: str | None) -> list[list[int]]:
    return [answer.ids for answer in engine.generate(requests, adapter_id=adapter_id)]


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "gemma3", "gpt2"])
def test_answers_are_those_of_transformers_alone_and_in_a_batch(
    engine: Engine, subject: SubjectOf, base: Folder, plain: Callable[..., Any], family: str
) -> None:
    engine.load(subject(family))
    requests, model = asked(), plain(base(family))
    expected = [generated(model, request) for request in requests]
    assert len({tuple(answer) for answer in expected}) > 1, "the models must say different things"
    assert said(engine, requests, None) == expected
    assert [said(engine, [request], None)[0] for request in requests] == expected


@pytest.mark.parametrize("kind", ["lora", "some", "dora", "head"])
def test_every_kind_of_adapter_answers_as_in_peft(
    engine: Engine, subject: SubjectOf, base: Folder, adapter: Folder, plain: Callable[..., Any], kind: str
) -> None:
    tuned = subject("qwen3", kind)
    engine.load(tuned)
    requests, model = asked(), plain(base("qwen3"), adapter("qwen3", kind))
    expected = [generated(model, request) for request in requests]
    assert said(engine, requests, tuned.adapter_id) == expected
    assert said(engine, requests, None) != expected


def test_adapters_of_every_kind_and_their_base_answer_in_turn_from_one_copy_of_the_weights(
    engine: Engine, subject: SubjectOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load_base = loading.load_base

    def counted(source: str, **how: Any) -> Any:
        loads.append(source)
        return load_base(source, **how)

    monkeypatch.setattr(loading, "load_base", counted)
    requests, alone = asked(), dict[str | None, list[list[int]]]()
    for kind in ("lora", "some", "head", "dora", None):
        fresh, one = Engine(), subject("qwen3", kind)
        fresh.load(one)
        alone[one.adapter_id] = said(fresh, requests, one.adapter_id)
    loads.clear()
    engine.load(subject("qwen3", "lora"))
    engine.load(subject("qwen3", "head"))
    engine.load(subject("qwen3", "some"))
    engine.load(subject("qwen3", "dora"))
    engine.load(subject("qwen3"))
    for name in (None, "ad-lora.1", "ad-head.1", None, "ad-some.1", "ad-dora.1", "ad-lora.1", None):
        assert said(engine, requests, name) == alone[name]
    assert len(loads) == 1
    engine.load(subject("llama"))
    assert len(loads) == 2
    with pytest.raises(KeyError, match=r"ad-lora\.1"):
        engine.generate(requests, adapter_id="ad-lora.1")


def test_a_whole_model_answers_by_its_adapters_id(engine: Engine, subject: SubjectOf) -> None:
    whole = replace(subject("llama"), adapter_id="ad-whole", base_without=subject("qwen3").base)
    engine.load(whole)
    tuned = said(engine, asked(), "ad-whole")
    engine.load(whole.untrained)
    untrained = said(engine, asked(), None)
    engine.load(subject("llama"))
    assert tuned == said(engine, asked(), None)
    engine.load(subject("qwen3"))
    assert untrained == said(engine, asked(), None) != tuned


def test_an_answer_ends_with_its_end_token_or_at_its_limit(engine: Engine, subject: SubjectOf) -> None:
    engine.load(subject("qwen3"))
    free = said(engine, asked(new=30), None)
    ends = frozenset({free[0][4]})
    first = [next((n for n, token in enumerate(ids) if token in ends), None) for ids in free]
    for answer, ids, place in zip(engine.generate(asked(30, ends), adapter_id=None), free, first, strict=True):
        assert answer.ids == (ids if place is None else ids[: place + 1])
        assert answer.ended == ("length" if place is None else "stop")
        assert answer.seconds > 0
    assert {answer.ended for answer in engine.generate(asked(30, ends), adapter_id=None)} == {"length", "stop"}


def test_a_request_is_stopped_after_any_token_and_the_others_go_on(engine: Engine, subject: SubjectOf) -> None:
    engine.load(subject("qwen3"))
    free = said(engine, asked(12), None)
    for stopped in range(1, 13):
        told: dict[int, list[int]] = {index: [] for index in range(len(LENGTHS))}

        def on_token(index: int, token: int, told: dict[int, list[int]] = told, stopped: int = stopped) -> bool:
            told[index].append(token)
            return index != 2 or len(told[index]) < stopped

        answers = engine.generate(asked(12), adapter_id=None, on_token=on_token)
        assert [answer.ids for answer in answers] == [*free[:2], free[2][:stopped], *free[3:]]
        assert [answer.ids for answer in answers] == list(told.values())
        assert answers[2].ended == "cancelled"


def test_a_check_that_raises_ends_the_call_and_the_next_one_answers(engine: Engine, subject: SubjectOf) -> None:
    tuned = subject("qwen3", "lora")
    engine.load(tuned)
    expected, steps = said(engine, asked(), None), 0

    def check() -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise Cancelled("job")

    with pytest.raises(Cancelled):
        engine.generate(asked(), adapter_id=tuned.adapter_id, check=check)
    assert steps == 3
    assert said(engine, asked(), None) == expected
    for call in (engine.losses, engine.choices):
        with pytest.raises(Cancelled):
            steps = 2
            rows: Any = [([5, 6], [0, 1])] if call == engine.losses else [[5]]
            arguments = (rows,) if call == engine.losses else ([7], rows, [1])
            call(*arguments, adapter_id=None, check=check)  # type: ignore[operator]


def test_answers_keep_their_order_when_memory_makes_many_batches_of_them(
    engine: Engine, subject: SubjectOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(subject("qwen3"))
    together = said(engine, asked(), None)
    rows = [(prompt(n, n), [0] + [1] * (n - 1)) for n in (30, 4, 17)]
    losses = engine.losses(rows, adapter_id=None)
    monkeypatch.setattr(engine_module, "MEMORY_SHARE", 1e-9)
    reads: list[int] = []
    read = engine_module.Forward.read

    def counted(self: Any, rows: Any) -> Any:
        reads.append(len(rows))
        return read(self, rows)

    monkeypatch.setattr(engine_module.Forward, "read", counted)
    assert said(engine, asked(), None) == together
    assert reads == [1] * len(LENGTHS)
    for (loss, tokens), (again, counted_tokens) in zip(losses, engine.losses(rows, adapter_id=None), strict=True):
        assert loss == pytest.approx(again, rel=1e-5) and tokens == counted_tokens


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt2"])
def test_losses_are_the_cross_entropy_of_what_is_counted(
    engine: Engine, subject: SubjectOf, base: Folder, plain: Callable[..., Any], family: str
) -> None:
    engine.load(subject(family))
    masks = ([0, 0, 1, 1, 1], [1] * 40, [0] * 20 + [1, 0, 0, 1] + [0] * 3, [0] * 6, [0, 1])
    rows = [(prompt(len(mask), seed), mask) for seed, mask in enumerate(masks)]
    model = plain(base(family))
    for (loss, tokens), (ids, mask) in zip(engine.losses(rows, adapter_id=None), rows, strict=True):
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = -sum(float(logprobs[place - 1, ids[place]]) for place in range(1, len(ids)) if mask[place])
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert tokens == sum(mask[1:])


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("before", [0, 1, 70])
def test_choices_are_what_the_forward_says_without_a_cache(
    engine: Engine, subject: SubjectOf, base: Folder, plain: Callable[..., Any], family: str, before: int
) -> None:
    engine.load(subject(family))
    prefix, rows, candidates = prompt(before, 9), [prompt(n, n) for n in (3, 30, 1, 8, 30)], [7, 11, 900]
    found = engine.choices(prefix, rows, candidates, adapter_id=None)
    model = plain(base(family))
    for line, row in zip(found, rows, strict=True):
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([prefix + row])).logits[0, -1].log_softmax(-1)
        assert np.allclose(line, logprobs[candidates].numpy(), atol=1e-4)
    assert found.shape == (5, 3)


def test_losses_and_choices_are_the_adapters_where_one_is_named(
    engine: Engine, subject: SubjectOf, base: Folder, adapter: Folder, plain: Callable[..., Any]
) -> None:
    tuned = subject("qwen3", "lora")
    engine.load(tuned)
    ids, model = prompt(30), plain(base("qwen3"), adapter("qwen3", "lora"))
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    [(loss, _)] = engine.losses([(ids, [1] * 30)], adapter_id=tuned.adapter_id)
    assert loss == pytest.approx(-sum(float(logprobs[n - 1, ids[n]]) for n in range(1, 30)), rel=1e-4)
    found = engine.choices(ids[:20], [ids[20:]], [5, 6], adapter_id=tuned.adapter_id)
    assert np.allclose(found, logprobs[-1, [5, 6]].numpy(), atol=1e-4)
    assert engine.losses([(ids, [1] * 30)], adapter_id=None)[0][0] != pytest.approx(loss, rel=1e-4)


def test_the_same_call_gives_the_same_result_and_a_seed_does_not_know_its_neighbours(
    engine: Engine, subject: SubjectOf
) -> None:
    engine.load(subject("qwen3"))
    drawn = Sampling(temperature=1.5, top_p=0.95, top_k=50, min_p=0.01, repetition_penalty=1.1)
    requests = asked(sampling=drawn)
    together = said(engine, requests, None)
    assert said(engine, requests, None) == together
    assert said(engine, list(reversed(requests)), None) == together[::-1]
    assert [said(engine, [request], None)[0] for request in requests] == together
    other = [replace(request, seed=request.seed + 100) for request in requests]
    assert all(a != b for a, b in zip(said(engine, other, None), together, strict=True))


@pytest.mark.parametrize(("ids", "code"), [([], "prompt_empty"), ([5] * 256, "prompt_too_long")])
def test_a_prompt_without_room_for_an_answer_is_refused(
    engine: Engine, subject: SubjectOf, ids: list[int], code: str
) -> None:
    engine.load(subject("qwen3"))
    with pytest.raises(InvalidInput, match=f"{code}: A prompt has {len(ids)} tokens"):
        engine.generate([*asked(), Request(ids, 5, frozenset())], adapter_id=None)
    [answer] = engine.generate([Request([5] * 250, 50, frozenset())], adapter_id=None)
    assert (len(answer.ids), answer.ended) == (6, "length")


def test_answers_end_with_the_models_own_end_and_the_templates(
    engine: Engine, subject: SubjectOf, base: Folder
) -> None:
    engine.load(subject("qwen3"))
    template = ChatTemplate(base("qwen3"))
    end_of_turn = template.tokenizer.token_to_id("<|im_end|>")
    assert engine.ends(template) == {END, end_of_turn}


def test_weights_in_bf16_are_computed_in_bf16(
    engine: Engine, subject: SubjectOf, plain: Callable[..., Any], base: Folder, tmp_path: Path
) -> None:
    plain(base("qwen3")).to(torch.bfloat16).save_pretrained(tmp_path)
    engine.load(replace(subject("qwen3", "lora"), base=str(tmp_path), base_without=str(tmp_path)))
    assert {parameter.dtype for parameter in engine._resident().forward.model.parameters()} == {torch.bfloat16}
    assert len(said(engine, asked(), "ad-lora.1")) == len(LENGTHS)


def test_a_process_in_which_unsloth_rewrote_the_model_is_refused(
    engine: Engine, subject: SubjectOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*given: Any, **named: Any) -> None: ...

    forward.__module__ = "unsloth.models.llama"
    monkeypatch.setattr(Qwen3ForCausalLM, "forward", forward)
    with pytest.raises(Conflict, match="process_has_trained"):
        engine.load(subject("qwen3"))
