"""From questions to token ids: the official words, plain or as a chat, and the place where a letter must follow. Light.

Nothing here is ever given the answer of the question that is asked (the types hold none; tests compare the bytes).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tunewright.pipeline.benchmarking.exams import LETTERS, Benchmark, Question, Solved
from tunewright.pipeline.chat_template import ChatTemplate, Message
from tunewright.pipeline.errors import InvalidInput, call


def asked(benchmark: Benchmark, question: Question) -> str:
    """A question with its options, up to the words after which the letter stands."""
    options = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=True))
    return f"{benchmark.lead}{question.text}{options}\n{benchmark.cue}"


def plain(benchmark: Benchmark, subject: str, examples: Sequence[Solved], question: Question) -> str:
    """The prompt as the benchmark's authors write it, examples before the question."""
    shots = "".join(
        f"{asked(benchmark, example.question)}{benchmark.space}{example.letter}\n\n" for example in examples
    )
    return f"{benchmark.header.format(benchmark.described(subject)[0])}{shots}{asked(benchmark, question)}"


def chat(benchmark: Benchmark, subject: str, examples: Sequence[Solved], question: Question) -> list[Message]:
    """The same as a conversation: each example a turn, the header in the first.

    So do C-Eval's own evaluator of chat models (evaluators/chatglm.py) and EleutherAI's harness
    (`fewshot_as_multiturn`): a model that was tuned on conversations answers its letter where answers begin.
    """
    turns: list[Message] = []
    for example in examples:
        turns += [
            {"role": "user", "content": asked(benchmark, example.question)},
            {"role": "assistant", "content": example.letter},
        ]
    turns.append({"role": "user", "content": asked(benchmark, question)})
    turns[0]["content"] = benchmark.header.format(benchmark.described(subject)[0]) + turns[0]["content"]
    return turns


@dataclass
class Batch:
    """Questions of one subject with the same examples: token ids of each are `prefix` and its row of `rows`.

    `numbers` are the questions' places in their exam, `letters` the ids of the tokens A to D after each row.
    """

    shots: int
    letters: list[int]
    prefix: list[int]
    numbers: list[int] = field(default_factory=list[int])
    rows: list[list[int]] = field(default_factory=list[list[int]])


@dataclass(frozen=True)
class Prompter:
    """Makes the prompts of one benchmark for one tokenizer; `as_chat` through the model's own chat template."""

    benchmark: Benchmark
    template: ChatTemplate
    as_chat: bool
    context_tokens: int

    def text(self, subject: str, examples: Sequence[Solved], question: Question) -> str:
        """The rendered prompt, up to where the letter must follow."""
        if not self.as_chat:
            return plain(self.benchmark, subject, examples, question)
        return self.template.render(chat(self.benchmark, subject, examples, question), add_generation_prompt=True)

    def batches(
        self, subject: str, examples: Sequence[Solved], questions: Sequence[Question], n_shot: int
    ) -> tuple[list[Batch], list[int]]:
        """The questions by how many examples their prompts have room for, and the numbers of those that do not fit at
        all. Raises InvalidInput where the tokenizer has no single token for each letter at its place.
        """
        made: list[Batch] = []
        remaining = list(range(len(questions)))
        for shots in range(min(n_shot, len(examples)), -1, -1):
            if not remaining:
                break
            texts = [self.text(subject, examples[:shots], questions[number]) for number in remaining]
            space, letters = self._letters(texts[0])
            encoded = self._encode([text + space + LETTERS[0] for text in texts])
            fitting: list[tuple[int, list[int]]] = []
            too_long: list[int] = []
            for number, ids in zip(remaining, encoded, strict=True):
                if ids[-1] != letters[0]:
                    raise _no_single_token(self.template, LETTERS[0])
                if len(ids) > self.context_tokens:
                    too_long.append(number)
                else:
                    fitting.append((number, ids[:-1]))
            if fitting:
                made.append(_batch(shots, letters, fitting))
            remaining = too_long
        return made, remaining

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # A chat template has written its own beginning; a plain prompt gets the tokenizer's, as in training.
        encodings = self.template.tokenizer.encode_batch(list(texts), add_special_tokens=not self.as_chat)
        return [_without_end(encoding.ids, self.template.special_ids) for encoding in encodings]

    def _letters(self, prompt: str) -> tuple[str, list[int]]:
        """What stands between `prompt` and a letter ("" or a space), and the one token of each letter there.

        The benchmark's own way first. Only the end of a text decides how its end is cut, and that is the same for all
        questions: the others are checked with one letter alone.
        """
        spaces = dict.fromkeys(("" if self.as_chat else self.benchmark.space, "", " "))
        for space in spaces:
            encoded = self._encode([prompt + space + letter for letter in LETTERS])
            tokens = [ids[-1] for ids in encoded]
            if len({tuple(ids[:-1]) for ids in encoded}) == 1 and len(set(tokens)) == len(LETTERS):
                return space, tokens
        raise _no_single_token(self.template, ", ".join(LETTERS))


def _batch(shots: int, letters: list[int], fitting: Sequence[tuple[int, list[int]]]) -> Batch:
    """Splits off what all prompts begin with; every row keeps one token at least, as something must be computed."""
    prompts = [ids for _, ids in fitting]
    # Whatever lies between the smallest and the largest shares what those two share.
    low, high = min(prompts), max(prompts)
    longest = min(map(len, prompts)) - 1
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), longest)
    cut = min(same, longest)
    return Batch(shots, letters, prompts[0][:cut], [number for number, _ in fitting], [ids[cut:] for ids in prompts])


def _without_end(ids: list[int], special: set[int]) -> list[int]:
    while ids and ids[-1] in special:
        ids = ids[:-1]
    return ids


def _no_single_token(template: ChatTemplate, letters: str) -> InvalidInput:
    return InvalidInput(
        "letters_not_single_tokens",
        f"The tokenizer of {template.folder} has no single token for {letters} where the answer stands.",
        allowed="Answers are scored by the probability of their letter, which must be one token. A benchmark that "
        "generates its answers works (gsm8k, ifeval).",
        next=call("benchmark_adapter", adapter_id="…", task="gsm8k"),
    )
