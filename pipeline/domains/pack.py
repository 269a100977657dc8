"""A domain pack, read from YAML and ready to check answers. All that follows but `name` and `language` may be left out;
phrases are written as `phrases` says.

    name: poisons                          # and title: for people; notes: a list of texts, for whoever edits the pack
    language: zh                           # of the terms' names that stay (see `data.terms`)
    terms:                                 # what an answer must name where the reference does, under any of its names
      - {term: 急性肾损伤, en: acute kidney injury, abbreviations: [AKI], also: [肾脏受损], source: KDIGO 2012}
    associations:                          # the question says `from`, the reference one of `to`: so must the answer
      - {id: amenorrhoea, from: [闭经, 月经*没来], to: [妊娠, 多囊卵巢综合征], source: ASRM 2024}
    rules:
      - id: no-vomiting
        when: [(强酸|强碱|汽油), swallowed * (acid|lye)]         # one of these is in the question or in the answer …
        unless: {question: [动物实验]}                          # … and none of these
        must_not_say: [催吐, (induc*|make*) vomit*]             # in warnings, questions and refutations it may stand
        allowed: [医生指导]                                     # and in a sentence that has one of these
        must_say: [120, 急诊, poison control]                   # one of these, and not denied
        message: Vomiting burns the gullet a second time.      # what the reader is told
        severity: error                                        # or warning
        source: WHO/IPCS, Management of Poisoning, 1997
    structure:                             # which parts an answer must have, each shown by one of its phrases
      - {id: choice, when: {question: [单选题]}, parts: {option: [答案*(A|B|C|D)], reason: [因为, 理由]}, source: …}

`when` and `unless` are a list (in the question or in the answer), or `{question: […], answer: […]}`: then every text
that is named has to match. Each entry needs a source, and a rule `must_not_say`, `must_say` or both.

Guarantees: what is unknown, missing, of another type or there twice is refused with its place; nothing is guessed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from tunewright.pipeline.data import terms as data_terms
from tunewright.pipeline.domains.builtin import available, path_of
from tunewright.pipeline.domains.phrases import Phrases, Variant, folded, name_variants
from tunewright.pipeline.errors import InvalidInput, NotFound, call, nearest

Severity = Literal["error", "warning"]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
PhraseList = Annotated[list[Text], Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)


class _Where(_Entry):
    question: PhraseList | None = None
    answer: PhraseList | None = None

    @model_validator(mode="after")
    def _names_one(self) -> "_Where":
        if not self.question and not self.answer:
            raise ValueError("needs phrases for question, answer or both")
        return self


class _Association(_Entry):
    id: Text
    starts: PhraseList = Field(alias="from")
    to: PhraseList
    source: Text


class _Rule(_Entry):
    id: Text
    when: PhraseList | _Where | None = None
    unless: PhraseList | _Where | None = None
    must_not_say: PhraseList | None = None
    allowed: PhraseList | None = None
    must_say: PhraseList | None = None
    message: Text
    severity: Severity
    source: Text

    @model_validator(mode="after")
    def _demands(self) -> "_Rule":
        if not self.must_not_say and not self.must_say:
            raise ValueError("needs must_not_say, must_say or both")
        if self.allowed and not self.must_not_say:
            raise ValueError("has allowed, which says nothing without must_not_say")
        return self


class _Structure(_Entry):
    id: Text
    when: PhraseList | _Where | None = None
    unless: PhraseList | _Where | None = None
    parts: Annotated[dict[Text, PhraseList], Field(min_length=1)]
    source: Text


class _File(_Entry):
    name: Text
    title: Text | None = None
    language: data_terms.Language
    notes: list[Text] = []
    terms: list[Any] = []
    associations: list[_Association] = []
    rules: list[_Rule] = []
    structure: list[_Structure] = []


@dataclass(frozen=True)
class Where:
    """A condition: phrases in `either` text, or in each that has some."""

    either: Phrases | None = None
    question: Phrases | None = None
    answer: Phrases | None = None


@dataclass(frozen=True)
class Term:
    name: str
    variants: Phrases
    source: str


@dataclass(frozen=True)
class Association:
    id: str
    starts: Phrases
    to: Phrases
    expected: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Rule:
    id: str
    when: Where | None
    unless: Where | None
    must_not_say: Phrases | None
    allowed: Phrases | None
    must_say: Phrases | None
    message: str
    severity: Severity
    source: str


@dataclass(frozen=True)
class Structure:
    id: str
    when: Where | None
    unless: Where | None
    parts: dict[str, Phrases]
    source: str


@dataclass(frozen=True)
class Pack:
    """`title` is for people; of the rest see this module's text."""

    name: str
    title: str
    language: data_terms.Language
    notes: tuple[str, ...]
    terms: tuple[Term, ...]
    associations: tuple[Association, ...]
    rules: tuple[Rule, ...]
    structure: tuple[Structure, ...]


def load(name_or_path: str) -> Pack:
    """A built-in pack by its name, or anybody's by the path of its YAML file.

    Raises NotFound (`pack_not_found`) and InvalidInput (`broken_pack`, `invalid_pack`, `ambiguous_term`).
    """
    try:
        path = path_of(name_or_path) if name_or_path in available() else Path(name_or_path).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, ~ of an unknown user, a zero byte
        raise _refused(Path(name_or_path[:200]), f"has no path: {error!s:.80}") from error
    try:
        return _compiled(path, data_terms.read(path))
    except NotFound as error:
        raise NotFound(
            "pack_not_found",
            f"There is no domain pack {name_or_path!r}, neither built in nor as a file.",
            allowed=f"{nearest(name_or_path, available(), 4)} Or the path of a YAML file.",
            next=call("validate_adapter", adapter_id="…", domain=available()[0]),
        ) from error
    except InvalidInput as error:
        error.next = call("validate_adapter", adapter_id="…", domain=name_or_path)
        raise


def _compiled(path: Path, given: dict[str, Any]) -> Pack:
    language = data_terms.language(path, given)
    try:
        file = _File.model_validate(given)
    except ValidationError as error:
        raise _refused(path, _first(error, given)) from error
    if not (file.terms or file.associations or file.rules or file.structure):
        raise _refused(path, "has no terms, no associations, no rules and no structure")
    named = [*file.associations, *file.rules, *file.structure]
    for position, entry in enumerate(named):
        if any(entry.id == earlier.id for earlier in named[:position]):
            raise _refused(path, f"has the id {entry.id!r} twice")
    known = data_terms.entries(path, given) if file.terms else []
    try:
        forms = _forms(known)
    except ValueError as error:
        raise data_terms.refused("ambiguous_term", path, f"gives {str(error)!r} to two terms") from error
    unsourced = [term.name for term in known if not term.source]
    if unsourced:
        raise _refused(path, f"has no source for its term {unsourced[0]!r}")
    compiler = _Compiler(path, {name: variants for _, names, variants in forms for name in names})
    return Pack(
        name=file.name,
        title=file.title or file.name,
        language=language,
        notes=tuple(file.notes),
        terms=tuple(Term(term.name, Phrases(term_names, compiler.names), term.source) for term, term_names, _ in forms),
        associations=tuple(map(compiler.association, file.associations)),
        rules=tuple(map(compiler.rule, file.rules)),
        structure=tuple(map(compiler.structure, file.structure)),
    )


def _forms(known: list[data_terms.Term]) -> list[tuple[data_terms.Term, list[str], tuple[Variant, ...]]]:
    """Each term with its folded names and what finds them. Raises ValueError, naming it, where two share a name."""
    owner: dict[str, str] = {}
    forms: list[tuple[data_terms.Term, list[str], tuple[Variant, ...]]] = []
    for term in known:
        names = (term.name, *term.names, *term.also)
        known_as = list(dict.fromkeys(map(folded, (*names, *term.abbreviations))))
        for name in known_as:
            if owner.setdefault(name, term.name) != term.name:
                raise ValueError(name)
        forms.append((term, known_as, name_variants(names, term.abbreviations)))
    return forms


class _Compiler:
    """Makes phrases searchable; `names` are the terms' by folded name. Raises InvalidInput, naming the entry."""

    def __init__(self, path: Path, names: dict[str, tuple[Variant, ...]]) -> None:
        self._path, self.names = path, names

    def association(self, entry: _Association) -> Association:
        starts, to = self._phrases(entry.id, "from", entry.starts), self._phrases(entry.id, "to", entry.to)
        return Association(entry.id, starts, to, tuple(entry.to), entry.source)

    def rule(self, entry: _Rule) -> Rule:
        return Rule(
            entry.id,
            self._where(entry.id, "when", entry.when),
            self._where(entry.id, "unless", entry.unless),
            self._optional(entry.id, "must_not_say", entry.must_not_say),
            self._optional(entry.id, "allowed", entry.allowed),
            self._optional(entry.id, "must_say", entry.must_say),
            entry.message,
            entry.severity,
            entry.source,
        )

    def structure(self, entry: _Structure) -> Structure:
        when, unless = self._where(entry.id, "when", entry.when), self._where(entry.id, "unless", entry.unless)
        parts = {part: self._phrases(entry.id, part, phrases) for part, phrases in entry.parts.items()}
        return Structure(entry.id, when, unless, parts, entry.source)

    def _where(self, entry_id: str, key: str, given: list[str] | _Where | None) -> Where | None:
        if given is None:
            return None
        if isinstance(given, list):
            return Where(either=self._phrases(entry_id, key, given))
        question = self._optional(entry_id, f"{key}.question", given.question)
        return Where(question=question, answer=self._optional(entry_id, f"{key}.answer", given.answer))

    def _optional(self, entry_id: str, key: str, given: list[str] | None) -> Phrases | None:
        return None if given is None else self._phrases(entry_id, key, given)

    def _phrases(self, entry_id: str, key: str, given: list[str]) -> Phrases:
        try:
            return Phrases(given, self.names)
        except ValueError as error:
            raise _refused(self._path, f"has in {key} of {entry_id!r} a phrase that cannot be used: {error}") from error


def _first(error: ValidationError, given: dict[str, Any]) -> str:
    """The first thing that is wrong: its section, the entry by its number and id, the key, and what is allowed."""
    # Of a list or a mapping pydantic says what is wrong for each of the two; the branch's name is the model's own.
    found, *others = error.errors(include_url=False)
    if others and found["type"] == "list_type" and isinstance(found["input"], dict):
        found = others[0]
    place = [part for part in found["loc"] if part not in ("_Where", "[key]") and not str(part).startswith("list[")]
    section, *rest = place
    where = f"{section}"
    entry: object = given.get(str(section))
    if rest and isinstance(rest[0], int) and isinstance(entry, list):
        number = rest.pop(0)
        entry = cast("list[Any]", entry)[int(number)]
        named = cast("dict[str, Any]", entry).get("id") if isinstance(entry, dict) else None
        where += f", entry {int(number) + 1}" + (f" ({named})" if isinstance(named, str) else "")
    where += f", key {'.'.join(str(part + 1 if isinstance(part, int) else part) for part in rest)!r}" if rest else ""
    if found["type"] == "extra_forbidden":
        return f"has an unknown key in {where}"
    hint = " (put it into quotes)" if found["type"] == "string_type" else ""
    shown = "" if found["type"] in ("missing", "value_error") else f", not {found['input']!r:.60}"
    return f"is wrong in {where}: {found['msg']}{shown}{hint}"


def _refused(path: Path, what: str) -> InvalidInput:
    return InvalidInput(
        "invalid_pack",
        f"The domain pack {path} {what}.",
        allowed="Its keys: name, title, language, notes, terms (term, zh, en, abbreviations, synonyms, also, source), "
        "associations (id, from, to, source), rules (id, when, unless, must_not_say, allowed, must_say, message, "
        "severity: error or warning, source), structure (id, when, unless, parts, source). "
        f"An example to copy: {path_of(available()[0])}.",
    )
