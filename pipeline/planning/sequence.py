"""How long the rows of a batch are: from the data's lengths, the model's context and packing."""

from tunewright.pipeline.planning.architecture import Architecture
from tunewright.pipeline.planning.machine import Machine
from tunewright.pipeline.planning.packing import Lengths
from tunewright.pipeline.planning.recipe import Draft

# Powers of two and the middles between them.
LENGTHS = (
    256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304,
    131072,
)  # fmt: skip
WHOLE_SHARE = 0.99
# Of packed rows: longer ones are filled better, and few rows make a micro-batch.
PACKED_LENGTH = 2048
TRUNCATION_ALERT = 0.05
PACKING_METHODS = ("sft", "cpt")


def pack(draft: Draft, model: Architecture, method: str, machine: Machine) -> None:
    """Chooses whether several examples share a row."""
    if not machine.is_gpu:
        draft.choose("packing", False, "without a GPU the backend cannot keep packed examples apart")
    elif method not in PACKING_METHODS:
        draft.choose("packing", False, f"{method} compares whole answers: its trainer does not pack")
    elif not model.can_pack:
        why = f"nothing shows that packed examples of {model.model_type} cannot see each other"
        draft.choose("packing", False, why)
        if not draft.arguments["packing"]:
            draft.warnings.append(f"Not packed: {why}. Short rows will train 2 to 3 times slower than they could.")
    else:
        draft.choose("packing", True, "several examples share a row without seeing each other: no token is padding")


def needed(model: Architecture, found: Lengths, answer_tokens: int) -> int:
    """The shortest length that keeps nearly all rows whole beside `answer_tokens`, within the model's context."""
    context = _within(model)
    fits = (length for length in context if found.whole(round((length - answer_tokens) / found.stretch)) >= WHOLE_SHARE)
    return next(fits, context[-1])


def answer_tokens(draft: Draft, method: str) -> int:
    """What a row must leave free: GRPO's answers are written behind its prompts."""
    return draft.arguments["max_completion_length"] if method == "grpo" else 0


def options(draft: Draft, model: Architecture, method: str, found: Lengths, step_tokens: float) -> list[int]:
    """Lengths to try, best first: what the data asks for, then shorter and shorter."""
    if draft.is_given("max_seq_length"):
        return [draft.arguments["max_seq_length"]]
    answers = answer_tokens(draft, method)
    longest = needed(model, found, answers)
    if draft.arguments["packing"]:
        most = min(PACKED_LENGTH, step_tokens)
        longest = max([longest, *(length for length in _within(model) if length <= most)])
    # A prompt needs room beside its answer.
    return [longest, *(length for length in reversed(_within(model)) if answers < length < longest)]


def _within(model: Architecture) -> list[int]:
    return [length for length in LENGTHS if length <= model.context] or [model.context]


def explain(draft: Draft, method: str, found: Lengths, chosen: int, tried: list[int]) -> None:
    """The reason for the length, and a warning where it cuts more than it should."""
    room = chosen - answer_tokens(draft, method)
    whole, kept = found.whole(room), found.kept(room)
    if not draft.is_given("max_seq_length"):
        draft.reasons["max_seq_length"] = (
            f"{whole:.1%} of the rows stay whole, the longest has {found.longest:,} tokens"
            + ("; packed rows may be longer than any example" if draft.arguments["packing"] else "")
            + ("; longer texts are divided, not cut" if method == "cpt" and whole < 1 else "")
        )
    if method == "cpt":
        return
    is_forced = chosen < tried[0] and whole < WHOLE_SHARE
    if is_forced or 1 - whole > TRUNCATION_ALERT:
        why = "Memory leaves no more" if is_forced else "The model's context or what was asked for leaves no more"
        if draft.is_given("max_seq_length"):
            why = "That was asked for"
        draft.warnings.append(
            f"max_seq_length={chosen} leaves {room} tokens beside an answer, and {1 - whole:.1%} of the rows are "
            f"longer, their own answers counted. {why}; prompts that are so long by themselves will be left out."
            if method == "grpo"
            else f"max_seq_length={chosen} cuts {1 - whole:.1%} of the rows and loses {1 - kept:.1%} of the tokens. "
            f'{why}; cleaning={{"too_long": "split"}} of prepare_dataset would lose none.'
        )
