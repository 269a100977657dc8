"""How near an answer comes to its reference, and how much it repeats itself. Every score is a number from 0 to 100.

Guarantees that an English pair gets the numbers of the field's own scripts (SQuAD's F1, sacrebleu's chrF, rouge-score's
ROUGE-L without stemming), and that scripts written without spaces are compared by character. Does not know meaning: a
right answer in other words scores low, and a wrong one that differs in a digit scores high.
"""

import string
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import regex

# The LCS of ROUGE-L: released monthly, without dependencies. Google's rouge-score has stood still since 2022, brings
# nltk and reads a to z alone.
from rapidfuzz.distance import LCSseq

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF

SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
CHARACTER = regex.compile(rf"([{SPACELESS}]\p{{M}}*)")
# Signs such as emoji are tokens too; rouge-score drops them.
WORD = regex.compile(rf"[{SPACELESS}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{SPACELESS}]]+|\p{{So}}\p{{M}}*", regex.V1)
ARTICLE = regex.compile(r"\b(?:a|an|the)\b")
ASCII_PUNCTUATION = frozenset(string.punctuation)
REPEATED_RUN = 4
# Holtzman et al. 2020 call it a loop when a phrase of at least two tokens ends the text three times over.
LOOP_TIMES, LOOP_PHRASE = 3, 2
# Ours: shorter than this it may be meant ("ha ha ha", 1000000).
LOOP_TOKENS = 16


def against_reference(answer: str, reference: str) -> dict[str, float]:
    """`exact_match`, `token_f1`, `chrf` and `rouge_l` of an answer."""
    return {
        "exact_match": exact_match(answer, reference),
        "token_f1": token_f1(answer, reference),
        "chrf": chrf(answer, reference),
        "rouge_l": rouge_l(answer, reference),
    }


def exact_match(answer: str, reference: str) -> float:
    """100 where the texts are the same but for white space. Unlike SQuAD's, which forgives case and punctuation."""
    return 100.0 * (answer.split() == reference.split())


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 over words (Rajpurkar et al. 2016; 2.0 where a text has none), by character as MLQA's (Lewis et al.
    2020) in scripts without spaces: small letters, without punctuation and English articles.
    """
    said, right = _squad_tokens(answer), _squad_tokens(reference)
    if not said or not right:
        return 100.0 * (said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 100.0 * 2 * shared / (len(said) + len(right))


def _squad_tokens(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if c not in ASCII_PUNCTUATION and unicodedata.category(c)[0] != "P")
    return CHARACTER.sub(r" \1 ", ARTICLE.sub(" ", bare)).split()


def chrf(answer: str, reference: str) -> float:
    """chrF2 of a sentence (Popović 2015) by sacrebleu: character 6-grams, recall counts twice."""
    return float(_chrf().sentence_score(answer, [reference]).score)


@cache
def _chrf() -> "CHRF":
    # The field's reference implementation, with yearly releases. Slow to import.
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), by character in scripts without spaces."""
    said, right = (WORD.findall(text.lower()) for text in (answer, reference))
    if not said or not right:
        return 0.0
    return 100.0 * 2 * LCSseq.similarity(said, right) / (len(said) + len(right))


def repetition(tokens: Sequence[Hashable]) -> float:
    """The share of 4-grams that stood before in the same text (rep-4 of Welleck et al. 2020)."""
    runs = [tuple(tokens[i : i + REPEATED_RUN]) for i in range(len(tokens) - REPEATED_RUN + 1)]
    return 100.0 * (1 - len(set(runs)) / len(runs)) if runs else 0.0


def is_loop(tokens: Sequence[Hashable]) -> bool:
    """Whether the text ends in a phrase that comes three times or more in a row, 16 tokens of it or more."""
    of = len(tokens)
    for phrase in range(LOOP_PHRASE, of // LOOP_TIMES + 1):
        repeated = phrase
        while repeated < of and tokens[of - 1 - repeated] == tokens[of - 1 - repeated + phrase]:
            repeated += 1
        if repeated >= max(LOOP_TIMES * phrase, LOOP_TOKENS):
            return True
    return False
