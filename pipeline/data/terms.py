"""A domain pack's terms, applied to texts: abbreviations explained where they first stand, other names normalised.

A pack is a YAML file:

    language: zh                      # of the texts that are normalised, and of the names that stay: zh or en
    terms:
      - term: 急性肾损伤                # the name that stays
        en: acute kidney injury       # the name in the other language; in a pack with `language: en`, `zh`
        abbreviations: [AKI]          # explained once a text: 急性肾损伤（AKI）
        synonyms: [急性肾衰竭]          # become the term
        also: [肾脏突然罢工]            # said for it now and then: left as it is, counted where answers are checked
        source: 人民卫生出版社《肾脏病学》  # where the names are from

`term` is required. Where `term` is in the other language, `zh` (or `en`) names it in the pack's: that name stays then.
Texts that YAML would read as something else (`NO`, `1e3`) need quotes. The other keys of a pack are `domains`'s.

Guarantees: every change is counted by name; a text in another language than the pack's is left as it is, and so is one
that speaks of names themselves (translations, abbreviations), as are code, links, and names in brackets after a term
(`急性肾损伤（acute kidney injury，AKI）`). Names in Latin letters match whole words only, abbreviations with their
capitals, the longest first. Chinese has no spaces: a Chinese name inside a longer word that the pack lacks matches too.
Grammar is not mended (`a MI` becomes `a myocardial infarction (MI)`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from tunewright.pipeline.errors import InvalidInput, NotFound, call

if TYPE_CHECKING:
    import yaml

Language = Literal["zh", "en"]
MAX_PACK_BYTES = 20_000_000
LISTS = ("abbreviations", "synonyms", "also")
KEYS = ("term", "zh", "en", *LISTS, "source")
FORM = "language: zh or en; terms: a list of {term, zh or en, abbreviations: […], synonyms: […], also: […], source}"
# A hyphen makes a longer word: AKI-related, non-AKI.
LATIN = "A-Za-z0-9_"
WORD_BEFORE, WORD_AFTER = rf"(?<![{LATIN}-])", rf"(?![{LATIN}]|-[{LATIN}])"
PASSED_OVER = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|(?:https?://|www\.)[^\s（）()，。；、<>\"]+", re.DOTALL)
OPENING, CLOSING = tuple("（("), tuple("）)")
ABOUT_NAMES = re.compile(
    r"翻译|译成|译为|英文|英语|中文|汉语|缩写|简称|全称|同义词|别名"
    r"|\b(?:translat\w+|abbreviat\w+|acronym\w*|stands? for|synonym\w*|in (?:Chinese|English))\b",
    re.IGNORECASE,
)
CHINESE = re.compile(r"[㐀-鿿]")
LATIN_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Term:
    """`name` stays; `names` become it; `abbreviations` are explained by it; `also` is left alone."""

    name: str
    names: tuple[str, ...] = ()
    abbreviations: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    source: str = ""


class Terms:
    """The terms of a pack, ready to be applied. Picklable."""

    def __init__(self, terms: Iterable[Term], language: Language) -> None:
        """Raises ValueError, naming it, where one name stands for two terms."""
        self._language = language
        self._by_form: dict[str, Term] = {}
        self._abbreviations: set[str] = set()
        for term in terms:
            for name in dict.fromkeys(map(_folded, (term.name, *term.names))):
                self._add(name, term)
            for abbreviation in dict.fromkeys(term.abbreviations):
                self._add(abbreviation, term)
                self._abbreviations.add(abbreviation)
        form = _any_of(self._by_form, self._abbreviations)
        bracket = rf"\s?[（(]\s*(?:(?:{form})(?:\s*[,，、;；/])?\s*)+[）)]"
        self._pattern = re.compile(rf"{PASSED_OVER.pattern}|(?P<form>{form})(?P<bracket>{bracket})?", re.DOTALL)
        self._form = re.compile(form)

    def _add(self, form: str, term: Term) -> None:
        if self._by_form.setdefault(form, term) is not term:
            raise ValueError(form)

    def apply(self, text: str) -> tuple[str, Counter[str]]:
        """The text with its terms normalised, and how often what was changed: `{"AKI → 急性肾损伤": 1}`."""
        changed: Counter[str] = Counter()
        if not self._form.search(text) or not self._is_in_language(text) or ABOUT_NAMES.search(text):
            return text, changed
        explained: set[str] = set()

        def replacement(match: re.Match[str]) -> str:
            form, bracket = match["form"], match["bracket"] or ""
            if form is None:
                return match.group()
            if form in self._abbreviations and not bracket and _is_explained(match):
                explained.update({form} if match.string[match.start() - 1 : match.start()] in OPENING else ())
                return form
            term = self._term(form)
            inside = [inner.group() for inner in self._form.finditer(bracket)]
            if inside and all(self._term(inner) is term for inner in inside):
                # The text explains the term itself: AKI（急性肾损伤） or 急性肾衰竭（AKI）.
                explained.update((form, *inside))
                return (form if form in self._abbreviations else normalised(form, term)) + bracket
            if bracket:
                return one(form, term) + self._form.sub(lambda m: one(m.group(), self._term(m.group())), bracket)
            return one(form, term)

        def one(form: str, term: Term) -> str:
            if form not in self._abbreviations:
                return normalised(form, term)
            if form in explained:
                return form
            explained.add(form)
            changed[f"{form} → {term.name}"] += 1
            return f"{term.name}（{form}）" if self._language == "zh" else f"{term.name} ({form})"

        def normalised(form: str, term: Term) -> str:
            if form.casefold() == term.name.casefold():
                return form
            changed[f"{form} → {term.name}"] += 1
            # A sentence keeps its capital.
            return term.name[0].upper() + term.name[1:] if form[0].isupper() else term.name

        return self._pattern.sub(replacement, text), changed

    def _is_in_language(self, text: str) -> bool:
        """Whether a text, but for its terms and code, is in the pack's language; a Chinese word has two characters."""
        rest = self._form.sub("", PASSED_OVER.sub("", text))
        chinese, latin = len(CHINESE.findall(rest)), 2 * len(LATIN_WORD.findall(rest))
        return chinese >= latin if self._language == "zh" else latin >= chinese

    def _term(self, form: str) -> Term:
        return self._by_form[form if form in self._abbreviations else _folded(form)]


def load(path: Path) -> Terms:
    """The terms of a pack. Raises NotFound, and InvalidInput (`broken_pack`, `invalid_pack`, `ambiguous_term`)."""
    pack = read(path)
    spoken, known = language(path, pack), entries(path, pack)
    try:
        return Terms(known, spoken)
    except ValueError as error:
        raise refused("ambiguous_term", path, f"gives {str(error)!r} to two terms") from error


def read(path: Path) -> dict[str, Any]:
    """The keys and values of a pack's file, as YAML has them. Raises NotFound, InvalidInput (`broken_pack`)."""
    # The field's YAML reader, kept by the YAML project itself; imported late, as it takes 20 ms.
    import yaml

    if path.exists() and (not path.is_file() or path.stat().st_size > MAX_PACK_BYTES):
        raise refused("broken_pack", path, f"is no file of at most {MAX_PACK_BYTES // 1_000_000} MB")
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        fault = _fault(node)
        pack = cast("object", loader.construct_document(node)) if node and not fault else {}
    except FileNotFoundError as error:
        raise NotFound("pack_not_found", f"There is no domain pack {path}.", allowed=f"A YAML file: {FORM}.") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:300]
        raise refused("broken_pack", path, f"is no readable YAML file in UTF-8: {why}") from error
    if fault:
        raise refused("broken_pack", path, fault)
    return cast("dict[str, Any]", pack) if isinstance(pack, dict) else {}


def language(path: Path, pack: Mapping[str, Any]) -> Language:
    """The language of a pack. Raises InvalidInput."""
    for known in get_args(Language):
        if known == pack.get("language"):
            return known
    raise refused("invalid_pack", path, f"has language {pack.get('language')!r}")


def entries(path: Path, pack: Mapping[str, Any]) -> list[Term]:
    """The terms of a pack, one at least. Raises InvalidInput, naming the entry."""
    given, spoken = pack.get("terms"), language(path, pack)
    if not isinstance(given, list) or not given:
        raise refused("invalid_pack", path, "has no list of terms")
    return [_entry(path, number, entry, spoken) for number, entry in enumerate(cast("list[Any]", given), 1)]


def _fault(node: "yaml.Node | None") -> str | None:
    """What YAML's reader would take and a pack must not have: an alias, or a key that stands twice in one mapping."""
    import yaml

    waiting, seen = [node], set[int]()
    while waiting:
        looked_at = waiting.pop()
        if looked_at is not None and id(looked_at) in seen:
            # A list of nine aliases of a list of nine aliases … is a gigabyte as soon as anything writes it out.
            return f"uses an alias (*name) for what stands in line {looked_at.start_mark.line + 1}: write it out"
        seen.add(id(looked_at))
        if isinstance(looked_at, yaml.SequenceNode):
            waiting += looked_at.value
        elif isinstance(looked_at, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in looked_at.value:
                waiting.append(value)
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        # The reader would keep the last one and forget the others without a word.
                        return f"has the key {key.value!r} a second time in line {key.start_mark.line + 1}"
                    keys.add(key.value)
    return None


def _entry(path: Path, number: int, entry: object, spoken: Language) -> Term:
    fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
    unknown = [key for key in fields if key not in KEYS]
    if not fields or unknown:
        what = f"the unknown key {unknown[0]!r}" if unknown else "no keys"
        raise refused("invalid_pack", path, f"has {what} in its term {number}")
    names = [_text(path, number, key, fields[key]) for key in (spoken, "term", "zh", "en") if key in fields]
    if "term" not in fields:
        raise refused("invalid_pack", path, f"has no `term` in its term {number}")
    lists: dict[str, tuple[str, ...]] = {}
    for key in LISTS:
        values = fields.get(key, [])
        if not isinstance(values, list):
            raise refused("invalid_pack", path, f"has {key} in its term {number} that are no list")
        lists[key] = tuple(_text(path, number, key, value) for value in cast("list[Any]", values))
    source = _text(path, number, "source", fields["source"]) if "source" in fields else ""
    return Term(names[0], (*names[1:], *lists["synonyms"]), lists["abbreviations"], lists["also"], source)


def _text(path: Path, number: int, key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        what = f"has {value!r} as {key} in its term {number}, which is no text (put it into quotes)"
        raise refused("invalid_pack", path, what)
    return value.strip()


def refused(code: str, path: Path, what: str) -> InvalidInput:
    """The error that says what is wrong with a pack's language or terms."""
    return InvalidInput(
        code,
        f"The domain pack {path} {what}.",
        allowed=f"Its form: {FORM}; every name for one term only.",
        next=call("prepare_dataset", source="…", domain="…"),
    )


def _folded(name: str) -> str:
    """A name without regard to its capitals and the kind of white space in it."""
    return " ".join(name.casefold().split())


def _is_explained(match: re.Match[str]) -> bool:
    """Whether an abbreviation stands in brackets, or before some: the text says what it means, in its own words."""
    before, after = match.string[: match.start()][-1:], match.string[match.end() :].lstrip()[:1]
    return (before in OPENING and after in CLOSING) or after in OPENING


def _any_of(forms: Mapping[str, Term], abbreviations: set[str]) -> str:
    """A pattern that matches any of the forms, the longest first.

    Grouped by their first character, behind one look at it: Python's `re` tries alternatives one by one, at every
    place of a text.
    """
    latin: dict[str, list[str]] = {}
    other: dict[str, list[str]] = {}
    for form in sorted(forms, key=len, reverse=True):
        exact, first = form in abbreviations, form[0].casefold()
        capital = f"(?<={form[0]})" if exact and form[0].isalpha() else ""
        after = WORD_AFTER if re.match(f"[{LATIN}]", form[-1]) else ""
        groups = latin if re.match(f"[{LATIN}]", first) else other
        groups.setdefault(first, []).append(capital + _cased(form[1:], exact=exact) + after)
    grouped = [WORD_BEFORE + _grouped(latin)] * bool(latin) + [_grouped(other)] * bool(other)
    return f"(?:{'|'.join(grouped)})"


def _grouped(groups: Mapping[str, Sequence[str]]) -> str:
    firsts = "".join(re.escape(first + first.upper()) for first in groups)
    found = (f"{_cased(first, exact=False)}(?:{'|'.join(rests)})" for first, rests in groups.items())
    return f"(?=[{firsts}])(?:{'|'.join(found)})"


def _cased(text: str, *, exact: bool) -> str:
    """The pattern of a text; of a name's letters both cases, and any white space between its words."""
    if exact:
        return re.escape(text)
    return "".join(
        r"\s+" if char == " " else f"[{char.upper()}{char}]" if char.isascii() and char.isalpha() else re.escape(char)
        for char in text
    )
