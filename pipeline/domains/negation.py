"""Whether a text says, denies or leaves open what it mentions, in Chinese and in English.

Rules on words around a span, made for precision: a warning against something (`不要催吐`, `inducing vomiting is
dangerous`, `误区：应该催吐`, a list under `Never:`) is not that thing, and a question says nothing. After NegEx
(Chapman and others, 2001, https://doi.org/10.1006/jbin.2001.1029), whose triggers with a bounded scope are taken here
for advice too. Not understood: irony, quotation over several sentences, a negation further away than `REACH`, and one
that needs knowledge ("the last thing that one should do").
"""

import re

from tunewright.pipeline.domains import triggers
from tunewright.pipeline.domains.phrases import Found, Text

# So many characters around a span are looked at; a list's heading may be further away.
REACH = 200
HEADING_REACH = 2000


def is_asked(text: Text, found: Found) -> bool:
    """Whether the span stands in a question."""
    first, last = text.sentence(found.start, found.end)
    return bool(triggers.QUESTION_END.search(text.raw[max(first, last - REACH) : last]))


def is_negated(text: Text, found: Found) -> bool:
    """Whether what a phrase found is warned of, denied, refuted or forbidden there."""
    before, after = _around(text, found)
    return (
        any(map(_negates, found.gaps))
        or _negates(_scope(before))
        or _negates(_scope(_heading(text.raw, found.start)))
        or bool(triggers.JUDGED.search(after) or triggers.REFUTED.search(after))
    )


def _around(text: Text, found: Found) -> tuple[str, str]:
    """What stands before and after a span in its sentence, as far as it is looked at."""
    first, last = text.sentence(found.start, found.end)
    return (
        text.raw[max(first, found.start - REACH) : found.start],
        text.raw[found.end : min(last, found.end + REACH)],
    )


def _negates(words: str) -> bool:
    """Whether the words before something negate it."""
    if triggers.REPORTED.search(words):
        return True
    words = triggers.AFFIRMING.sub(lambda match: "〇" * len(match.group()), words)
    # `不要立即` negates; in `不要喝水应立即` the negation is over.
    return any(not triggers.SWITCH.search(words, cue.end() + 2) for cue in triggers.CUE.finditer(words))


def _scope(before: str) -> str:
    """The clause that leads to a span, and those before that belong to it."""
    clauses = triggers.BORDER.split(before)
    scope = clauses.pop()
    while clauses:
        if triggers.INTERRUPTION.match(clauses[-1]) and len(clauses) > 1:
            clauses.pop()
            scope = clauses.pop() + scope
        elif triggers.ATTACHED.match(scope):
            scope = clauses.pop() + scope
        else:
            break
    return scope


def _heading(raw: str, start: int) -> str:
    """The line that a list begins with, for a place in the list; else nothing."""
    lines = raw[max(0, start - HEADING_REACH) : start].split("\n")
    if not triggers.LIST_MARK.match(lines.pop()):
        return ""
    while lines and (not lines[-1].strip() or triggers.LIST_MARK.match(lines[-1])):
        lines.pop()
    heading = lines[-1].strip() if lines else ""
    is_heading = heading.startswith(("#", "**")) or heading.endswith(("：", ":"))
    return heading.strip("*#：: ") if is_heading else ""


def denies(text: Text, found: Found) -> bool | None:
    """Whether the text denies the term it names there; None where it leaves that open (question, condition, doubt)."""
    before, after = _around(text, found)
    sentence = before + text.raw[found.start : found.end] + after
    if any(pattern.search(sentence) for pattern in (triggers.QUESTION_END, triggers.CONDITION, triggers.UNSURE)):
        return None
    return _meets(triggers.DENIED_BEFORE, before) or bool(triggers.DENIED_AFTER.search(after))


def forbids(text: Text, found: Found) -> bool:
    """Whether the text says that the term must not be used, done or given."""
    return denies(text, found) is True and _meets(triggers.FORBIDDEN_BEFORE, _around(text, found)[0])


def urges(text: Text, found: Found) -> bool:
    """Whether the text says that the term should or may be used, done or given."""
    return denies(text, found) is False and bool(triggers.URGED_BEFORE.search(_around(text, found)[0]))


def _meets(pattern: re.Pattern[str], before: str) -> bool:
    match = pattern.search(before)
    return match is not None and not triggers.PARTLY.search(match["filler"] or match["words"] or "")
