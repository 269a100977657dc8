"""What a merged model says in transformers, which every other form of it is compared with. Heavy: runs in a worker.

Computed in float32 from the 16-bit weights, on the GPU where there is room, else in memory, else a layer at a time from
the disk, so that a model of any size can be measured. Beside it the noise floor, the same weights in bfloat16, and the
merge check: the base with its adapter beside it, by peft and unmerged, is what was trained. All memory is given back.

Not measured: answers, where not even 16 bits fit in one memory; the merge, where a model that fits in no memory has an
adapter that is more than plain LoRA, which peft cannot run from the disk.
"""

import gc
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import transformers
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from tunewright.pipeline import files, host
from tunewright.pipeline.errors import TunewrightError
from tunewright.pipeline.exporting import lora
from tunewright.pipeline.exporting.parity import distance
from tunewright.pipeline.exporting.parity.cases import ANSWER_TOKENS, Cases
from tunewright.pipeline.exporting.parity.distance import Distance, Logprobs
from tunewright.pipeline.exporting.runtime import SMALL_BYTES

# Likeliest tokens kept at each step of an answer: what another form would have said instead is among them.
KEPT = 8
# Of what is free; the rest is for activations and for whoever else is there.
MEMORY_SHARE, VRAM_SHARE = 0.6, 0.8
# Bytes by device: the number of a GPU, or "cpu".
Room = dict[int | str, int]
PLAIN_LORA = ("lora_A.weight", "lora_B.weight")


@dataclass(frozen=True)
class Answer:
    """A greedy answer; `tokens` with the one that ended it. `steps` are the likeliest tokens at each with their
    log-probabilities.
    """

    tokens: list[int]
    text: str
    ended: Literal["stop", "length"]
    steps: list[dict[int, float]]


@dataclass(frozen=True)
class Answers:
    """`given` is None where the model fits in no memory. `margin` is how far the numeric type itself moves margins."""

    given: list[Answer] | None
    dtype: str | None
    margin: float


@dataclass(frozen=True)
class MergeCheck:
    """The merged model's distance from base and adapter; `max_logit_difference` over all positions and tokens."""

    distance: Distance
    max_logit_difference: float


@dataclass(frozen=True)
class Reference:
    """`logprobs` (positions, vocabulary), float32; `loss` in nats over all positions, `losses` of each scored text.
    `merge` is None where it was not checked; `notes` say why something was not measured.
    """

    logprobs: Logprobs
    loss: float
    losses: list[float]
    device: str
    noise: Distance
    answers: Answers
    merge: MergeCheck | None
    notes: list[str]


@dataclass(frozen=True)
class _Seen:
    """Raw logits (positions, vocabulary) in float32 on the CPU, and where the model was while they were computed."""

    logits: torch.Tensor
    answers: list[Answer] | None
    device: str


def measure(
    cases: Cases,
    *,
    base: Path,
    source: Path,
    merged: Path,
    adapter_scale: float,
    tell: Callable[[str], None],
) -> Reference:
    """Runs the merged model twice and the base with its adapter once, unless `source` is the base: a whole model.

    `tell` is called with the phase before each and may raise. Raises TunewrightError `merged_not_loadable`.
    """
    targets, notes = cases.targets, list[str]()
    with _as_many_threads_as_help(merged):
        tell("running the merged model in float32")
        exact = _run(cases, merged, torch.float32, with_answers=True)
        tell("running the merged model in bfloat16")
        half = _run(cases, merged, torch.bfloat16, with_answers=exact.answers is None)
        merge = None
        if source != base:
            tell("running the base with its adapter")
            merge, note = _check_merge(cases, base, source, adapter_scale, exact.logits)
            notes += [note] if note else []
    logprobs = _logprobs(exact.logits)
    noise = distance.of_whole(logprobs, _logprobs(half.logits), targets)
    if exact.answers is not None:
        answers = Answers(exact.answers, "float32", 0.0)
    else:
        answers = Answers(half.answers, "bfloat16" if half.answers else None, noise.margin)
    if answers.given is None:
        notes.append("no answers of the merged model: not even 16 bits of it fit in this machine's memory")
    return Reference(
        logprobs, distance.loss(logprobs, targets), _losses(cases, logprobs), exact.device, noise, answers, merge, notes
    )


@contextmanager
def _as_many_threads_as_help(folder: Path) -> Generator[None]:
    """One for a small model, as in llama.cpp (`runtime`)."""
    threads = torch.get_num_threads()
    if files.size_bytes(folder) < SMALL_BYTES:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _losses(cases: Cases, logprobs: Logprobs) -> list[float]:
    begin, losses = 0, list[float]()
    for one in cases.scored:
        rows = logprobs[begin : begin + len(one.positions)]
        losses.append(distance.loss(rows, [one.ids[i] for i in one.positions]))
        begin += len(one.positions)
    return losses


def _logprobs(logits: torch.Tensor) -> Logprobs:
    return torch.log_softmax(logits, dim=-1).numpy()


def _run(cases: Cases, folder: Path, dtype: torch.dtype, *, with_answers: bool) -> _Seen:
    """One load of a model. Its memory is free again afterwards."""
    with TemporaryDirectory(prefix="offload-") as offload:
        model = _load(folder, dtype, Path(offload), _room())
        logits = _logits(model, cases)
        answers = [_answer(model, cases, ids) for ids in cases.asked_ids] if with_answers and _fits(model) else None
        device = _device(model)
        del model
    _release()
    return _Seen(logits, answers, device)


def _check_merge(
    cases: Cases, base: Path, source: Path, adapter_scale: float, merged: torch.Tensor
) -> tuple[MergeCheck | None, str | None]:
    """Compares base and adapter with the logits of `merged`; or says why that was not possible."""
    # Of weights on the disk peft makes a copy under their path without its first slash: in the working folder.
    with TemporaryDirectory(prefix="offload-") as offload, chdir(offload):
        room = _room()
        model = _load(base, torch.float32, Path(offload), room)
        if not _fits(model) and not _is_plain(source):
            del model
            _release()
            return None, "the merge was not checked: this kind of adapter runs only where its base fits in memory"
        model = _with_adapter(model, source, adapter_scale, Path(offload), room)
        logits = _logits(model, cases)
        del model
    _release()
    found = distance.of_whole(_logprobs(logits), _logprobs(merged), cases.targets)
    return MergeCheck(found, float((logits - merged).abs().max())), None


def _room() -> Room:
    room: Room = {"cpu": round(MEMORY_SHARE * host.memory_gib()[0] * host.GIB)}
    if torch.cuda.is_available():
        room[0] = round(VRAM_SHARE * torch.cuda.mem_get_info(0)[0])
    return room


def _load(folder: Path, dtype: torch.dtype, offload: Path, room: Room) -> Any:
    """The model class that the config names. What fits in neither memory is read from its files layer by layer."""
    (name,) = files.read_json(folder / "config.json")["architectures"]
    model, loading = getattr(transformers, name).from_pretrained(
        folder, dtype=dtype, device_map="auto", max_memory=room, offload_folder=str(offload), local_files_only=True,
        output_loading_info=True,
    )  # fmt: skip
    missing = sorted(loading["missing_keys"])
    if missing:
        raise TunewrightError(
            "merged_not_loadable",
            f"{folder.name} lacks {len(missing)} tensors that a {name} has, such as {missing[0]!r}.",
        )
    return model.eval()


def _with_adapter(model: Any, source: Path, adapter_scale: float, offload: Path, room: Room) -> Any:
    config: Any = PeftConfig.from_pretrained(str(source))
    config.lora_alpha *= adapter_scale
    config.alpha_pattern = {name: alpha * adapter_scale for name, alpha in config.alpha_pattern.items()}
    with warnings.catch_warnings():
        # Of tensors that it moves to the disk peft says that they were not copied.
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        # With the room of before: peft places the layers of what is on the disk once more, and must find the same.
        adapted: Any = PeftModel.from_pretrained(
            model, str(source), config=config, max_memory=room, offload_folder=str(offload)
        )
    if config.loftq_config:
        _quantize_adapted(adapted)
    return adapted.eval()


@torch.no_grad()
def _quantize_adapted(model: Any) -> None:
    """A LoftQ adapter was trained on the 4-bit weights (training/loftq.py): the adapted layers get those."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            base: Any = layer.get_base_layer()
            base.weight.copy_(lora.in_4_bits(base.weight))


def _is_plain(source: Path) -> bool:
    with safe_open(source / "adapter_model.safetensors", framework="pt") as file:
        return all(name.endswith(PLAIN_LORA) for name in file.keys())  # noqa: SIM118 - not a dict


@torch.inference_mode()
def _logits(model: Any, cases: Cases) -> torch.Tensor:
    """The logits that predict the scored positions, all in one pass: a model on the disk is read once.

    Only their rows go through the output layer; those of every token would be gigabytes.
    """
    longest = max(len(one.ids) for one in cases.scored)
    ids = torch.tensor([one.ids + [0] * (longest - len(one.ids)) for one in cases.scored])
    mask = torch.tensor([[1] * len(one.ids) + [0] * (longest - len(one.ids)) for one in cases.scored])
    rows = torch.tensor([row for row, one in enumerate(cases.scored) for _ in one.positions])
    before = torch.tensor([i - 1 for one in cases.scored for i in one.positions])

    def only_scored(layer: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0][rows, before].unsqueeze(0),)

    hook = model.get_output_embeddings().register_forward_pre_hook(only_scored)
    try:
        device = _device(model)
        output = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    finally:
        hook.remove()
    return output.logits[0].float().cpu()


@torch.inference_mode()
def _answer(model: Any, cases: Cases, ids: Sequence[int]) -> Answer:
    # The model's own settings would be mixed into those of a call: penalties make it another answer.
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=ANSWER_TOKENS, eos_token_id=cases.ends or None,
        pad_token_id=cases.ends[0] if cases.ends else 0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    prompt = torch.tensor([ids], device=_device(model))
    made = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt))
    tokens: list[int] = made.sequences[0, len(ids) :].tolist()
    steps: list[dict[int, float]] = []
    for logits in made.logits:
        best = torch.log_softmax(logits[0].float(), dim=-1).topk(KEPT)
        steps.append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
    stopped = tokens[-1] in cases.ends
    text = cases.template.tokenizer.decode(tokens[:-1] if stopped else tokens, skip_special_tokens=False)
    return Answer(tokens, text, "stop" if stopped else "length", steps)


def _places(model: Any) -> set[str]:
    """Where its layers are; transformers keeps no map of a model that is in one memory as a whole."""
    places = getattr(model, "hf_device_map", None)
    return {str(place) for place in places.values()} if places else {model.device.type}


def _fits(model: Any) -> bool:
    return len(_places(model)) == 1 and "disk" not in _places(model)


def _device(model: Any) -> str:
    """Where it computes; layers that are elsewhere are brought there one by one."""
    return "cuda:0" if torch.cuda.is_available() and _places(model) - {"cpu", "disk"} else "cpu"


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
