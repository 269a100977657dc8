"""Placeholders such as `{{name}}` in texts: found, and filled.

Two braces around a name of words, dots and hyphens are a placeholder; one brace, `[NAME]` and `<NAME>` are not: they
are common in plain texts. Left alone is what is code: fenced blocks and backticks; whole texts with statements of a
template language (Jinja's `{% if %}`, Handlebars' `{{#each}}`, Vue's and Angular's loops); LaTeX, whose commands take
groups in groups (`\\frac{{a}}{{b}}`, `x^{{2}}`); f-strings and the like, whose braces stand in more braces.
"""

import re
from collections import Counter
from collections.abc import Mapping

# What stands before the bar is passed over; only the last alternative has a group.
PLACEHOLDER = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`"
    r"|\\[A-Za-z]+\s*(?:\{\{[^{}]*\}\}\s*)+|[\^_]\{\{[^{}]*\}\}"
    r"|(?<!\{)\{\{\s*([^\W\d][\w.-]{0,39}(?: [\w.-]{1,40}){0,3})\s*\}\}(?!\})",
    re.DOTALL,
)
TEMPLATE_CODE = re.compile(r"\{%-?\s*\w|\{\{\s*[#/^]|\bv-(?:for|if|bind|model)\b|\*ng(?:For|If)\b|\bng-repeat\b")


def find(text: str) -> set[str]:
    """The names of the placeholders in a text, without braces."""
    if "{{" not in text or TEMPLATE_CODE.search(text):
        return set()
    return {match.group(1) for match in PLACEHOLDER.finditer(text) if match.group(1)}


def fill(text: str, substitutions: Mapping[str, str]) -> tuple[str, Counter[str]]:
    """The text with the placeholders of the given names filled, and how often each was. Others stay as they stand."""
    filled: Counter[str] = Counter()
    if "{{" not in text or TEMPLATE_CODE.search(text):
        return text, filled

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in substitutions:
            return match.group()
        filled[name] += 1
        return substitutions[name]

    return PLACEHOLDER.sub(replacement, text), filled
