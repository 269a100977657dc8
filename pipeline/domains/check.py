"""What a domain pack finds in an answer, each finding with its passage; and the sum over many answers.

Guarantees: the same texts give the same findings in the same order, any text is read in time proportional to its
length, every passage stands in the text that it names, letter for letter. What is found:

- violation      a rule's `must_not_say`, said: not in a warning, a denial, a refutation, a question (`negation`)
- contradiction  every mention of a term that the reference asserts is denied by the answer, or the answer urges what
                 the reference forbids; where a mention is conditional, doubtful or asked, nothing is said
- omission       none of a rule's `must_say`; or an association's: the question says `from`, the reference names one of
                 `to`, the answer none
- structure      a required part is not there
- coverage       a term of the reference that the answer has under none of its names

Not found: what the pack has no phrase for; another wording of it; a wrong number, dose or article; a right term in a
wrong statement; contradictions about anything but a single term; what is only implied. Nothing here is an expert.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunewright.pipeline.domains import negation
from tunewright.pipeline.domains.pack import Association, Pack, Phrases, Rule, Severity, Structure, Term, Where
from tunewright.pipeline.domains.phrases import Found, Text

Kind = Literal["violation", "contradiction", "omission", "structure", "coverage"]
PassageOf = Literal["answer", "reference", "question"]
MAX_PASSAGE = 160
MOST_FREQUENT = 10
NOTE = "A check of words by the rules of a domain pack, no expert's judgement: what no rule names it does not find."


@dataclass(frozen=True)
class Finding:
    """`rule` is the id of a rule, an association or a structure, or a term's name; `passage` stands in `passage_of`."""

    kind: Kind
    rule: str
    passage: str
    passage_of: PassageOf
    message: str
    severity: Severity
    source: str


@dataclass(frozen=True)
class _Case:
    question: Text
    answer: Text
    reference: Text | None


def check(pack: Pack, *, answer: str, reference: str | None, question: str) -> list[Finding]:
    """All that the pack finds in one answer; without a reference neither terms nor associations are looked at."""
    case = _Case(Text(question), Text(answer), Text(reference) if reference is not None else None)
    found = [finding for rule in pack.rules for finding in _rule(rule, case)]
    found += [finding for structure in pack.structure for finding in _structure(structure, case)]
    if case.reference is not None:
        found += [f for association in pack.associations for f in _association(association, case, case.reference)]
        found += _terms(pack.terms, case.answer, case.reference)
    order = ("violation", "contradiction", "omission", "structure", "coverage")
    return sorted(found, key=lambda finding: order.index(finding.kind))


def summary(pack: Pack, answers: Sequence[Sequence[Finding]]) -> dict[str, Any]:
    """What was found in many answers: `kinds` and `rules` (the most frequent) count answers, not findings."""
    kinds = Counter(kind for found in answers for kind in {finding.kind for finding in found})
    rules = Counter(rule for found in answers for rule in {f"{finding.kind}: {finding.rule}" for finding in found})
    return {
        "pack": pack.name,
        "answers": len(answers),
        "flagged": sum(bool(found) for found in answers),
        "errors": sum(any(finding.severity == "error" for finding in found) for found in answers),
        "kinds": dict(sorted(kinds.items())),
        "rules": dict(sorted(rules.items(), key=lambda entry: (-entry[1], entry[0]))[:MOST_FREQUENT]),
        "note": NOTE,
    }


def _rule(rule: Rule, case: _Case) -> Iterator[Finding]:
    applies = _applies(rule.when, rule.unless, case)
    if applies is None:
        return
    if rule.must_not_say:
        for found in rule.must_not_say.find(case.answer):
            if not _may_stand(found, rule, case.answer):
                passage = _passage(case.answer, found)
                yield Finding("violation", rule.id, passage, "answer", rule.message, rule.severity, rule.source)
                break
    if rule.must_say and all(negation.is_negated(case.answer, found) for found in rule.must_say.find(case.answer)):
        text, passage_of, found = applies
        passage = _passage(text, found)
        yield Finding("omission", rule.id, passage, passage_of, rule.message, rule.severity, rule.source)


def _may_stand(found: Found, rule: Rule, answer: Text) -> bool:
    if negation.is_asked(answer, found) or negation.is_negated(answer, found):
        return True
    first, last = answer.sentence(found.start, found.end)
    return bool(rule.allowed and _first(rule.allowed, Text(answer.raw[first:last])))


def _structure(structure: Structure, case: _Case) -> Iterator[Finding]:
    if _applies(structure.when, structure.unless, case) is None:
        return
    missing = [part for part, phrases in structure.parts.items() if _first(phrases, case.answer) is None]
    if missing:
        message = f"The answer lacks: {', '.join(missing)}."
        passage = case.answer.raw[:MAX_PASSAGE]
        yield Finding("structure", structure.id, passage, "answer", message, "warning", structure.source)


def _association(association: Association, case: _Case, reference: Text) -> Iterator[Finding]:
    if _first(association.starts, case.question) is None or _first(association.to, case.answer) is not None:
        return
    found = _first(association.to, reference)
    if found is not None:
        message = f"The question suggests one of {', '.join(association.expected)}; the answer names none."
        passage = _passage(reference, found)
        yield Finding("omission", association.id, passage, "reference", message, "warning", association.source)


def _applies(when: Where | None, unless: Where | None, case: _Case) -> tuple[Text, PassageOf, Found] | None:
    """Where a condition is met: the text, its name and the place; None where it is not, or the exception is."""
    if unless and _met(unless, case):
        return None
    return _met(when, case) if when else (case.answer, "answer", Found(0, 0))


def _met(where: Where, case: _Case) -> tuple[Text, PassageOf, Found] | None:
    places: list[tuple[Phrases | None, Text, PassageOf]] = [
        (where.question or where.either, case.question, "question"),
        (where.answer or where.either, case.answer, "answer"),
    ]
    met: list[tuple[Text, PassageOf, Found]] = []
    for phrases, text, name in places:
        found = _first(phrases, text) if phrases else None
        if found:
            met.append((text, name, found))
        elif phrases and not where.either:
            return None
    return met[0] if met else None


def _terms(terms: Sequence[Term], answer: Text, reference: Text) -> Iterator[Finding]:
    mentions = _mentions(terms, reference)
    if not mentions:
        return
    answered = _mentions(terms, answer)
    for term, places in mentions.items():
        # Inside another term's name it counts as named: 糖尿病 in 糖尿病酮症酸中毒.
        if _first(term.variants, answer) is None:
            message = f"The reference has {term.name}, the answer has none of its names."
            passage = _passage(reference, places[0])
            yield Finding("coverage", term.name, passage, "reference", message, "warning", term.source)
        elif said := _contradiction(places, reference, answered.get(term, []), answer):
            passage = _passage(answer, answered[term][0])
            message = f"On {term.name} {said}."
            yield Finding("contradiction", term.name, passage, "answer", message, "error", term.source)


def _mentions(terms: Sequence[Term], text: Text) -> dict[Term, list[Found]]:
    """Where each term stands, but for places inside another term's longer name."""
    found = [(place, term) for term in terms for place in term.variants.find(text)]
    mentions: dict[Term, list[Found]] = {}
    reached = 0
    for place, term in sorted(found, key=lambda entry: (entry[0].start, -entry[0].end)):
        if place.end > reached:
            mentions.setdefault(term, []).append(place)
            reached = place.end
    return mentions


def _contradiction(places: list[Found], reference: Text, answered: list[Found], answer: Text) -> str:
    if not answered:
        return ""
    asserted = [negation.denies(reference, place) for place in places]
    denied = [negation.denies(answer, place) for place in answered]
    if all(one is False for one in asserted) and all(denied):
        return "the answer denies what the reference says"
    forbidden = all(negation.forbids(reference, place) for place in places)
    if forbidden and all(one is False for one in denied) and any(negation.urges(answer, place) for place in answered):
        return "the answer advises what the reference forbids"
    return ""


def _first(phrases: Phrases, text: Text) -> Found | None:
    return next(phrases.find(text), None)


def _passage(text: Text, found: Found) -> str:
    """The sentence of a place, or as much of it around the place as fits."""
    first, last = text.sentence(found.start, found.end)
    if last - first > MAX_PASSAGE:
        first = max(first, min(found.start - MAX_PASSAGE // 3, last - MAX_PASSAGE))
        last = min(last, first + MAX_PASSAGE)
    return text.raw[first:last].strip()
