"""What stands in texts by accident: HTML debris, mojibake, control tokens of chat templates. Found, and mended.

Guarantees that a text without these is returned as it is. A mended text says what was meant; where that cannot be
known (control tokens in the middle of a text: a whole turn has leaked), the row is unusable instead.
"""

import html
import re
from collections.abc import Iterator
from html.entities import html5

from tunewright.pipeline.data.rows import Record, Unusable

# What the templates of the known models write themselves: ChatML, Llama 3, Phi, Cohere, gpt-oss; DeepSeek, whose bars
# (U+FF5C) are wide ones; Gemma; Llama 2 and Mistral; GLM; T5. Left in the data, a model learns to print them.
TEMPLATE_TOKEN = (
    r"<\|/?[A-Za-z]\w{0,40}\|>|<\uff5c[^<>\uff5c]{1,40}\uff5c>|</?(?:start|end)_of_(?:turn|utterance|image)>"
    r"|<(?:start|end)of(?:text|turn)>|\[/?(?:TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT)\]|<</?SYS>>|\[gMASK\]"
)
# Prose about models names these too: alone in the middle of a text they are no leaked turn.
NAMED_TOKEN = r"\[/?INST\](?=\s|\Z)|</?s>|<(?:bos|eos|pad|unk|sop|eop)>|<extra_id_\d{1,2}>"
CONTROL_TOKEN = re.compile(f"{TEMPLATE_TOKEN}|{NAMED_TOKEN}")
LEAKED = re.compile(TEMPLATE_TOKEN)
AT_END = re.compile(f"(?:{CONTROL_TOKEN.pattern})\\Z")
MAX_TOKEN_CHARACTERS = 50
STRUCK = re.compile(r"<s>[^<>]{1,200}</s>")

# Tags that stand alone; the others are tags only where their partner stands in the same text.
VOID = frozenset(("br", "hr", "img", "p", "li", "tr", "td", "th", "dt", "dd"))
TAG = re.compile(
    r"</?(p|br|div|span|font|b|i|u|em|strong|small|big|center|a|ul|ol|li|dl|dt|dd|table|thead|tbody|tr|td|th|h[1-6]"
    r"|img|hr|blockquote|section|article|header|footer|figure|figcaption)"
    r"(?:\s+[\w:.-]{1,40}\s?=\s?(?:\"[^\"<>]{0,2000}\"|'[^'<>]{0,2000}'|[^\s\"'<>=]{1,200})){0,30}\s?/?>",
    re.IGNORECASE,
)
LINE_BREAKING = frozenset(
    ("br", "p", "div", "tr", "ul", "ol", "table", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6")
)
HIDDEN = (("<script", "</script>"), ("<style", "</style>"), ("<!--", "-->"))
ENTITY = re.compile(r"&(?:[A-Za-z]{2,31}\d?|#\d{1,6}|#[xX][0-9a-fA-F]{1,5});")
# A row that speaks of markup shows its tags on purpose.
ABOUT_MARKUP = re.compile(
    r"\b(?:html?5?|css|xml|svg|jsx|xss|php|javascript|typescript|react|vue|dom|markup|web ?(?:page|site)s?|tags?|"
    r"entit(?:y|ies)|escap(?:e|ed|ing)|code)\b|`|<!doctype|<html|网页|标签|代码",
    re.IGNORECASE,
)

# UTF-8 read as Windows-1252, Latin-1 or Windows-1251: a lead byte's character, then a continuation byte's. Most texts
# have none, and ftfy takes 120 µs for 800 characters; it judges those that have.
MOJIBAKE = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|[РС][\u0402-\u040f\u0452-\u045f\u00a0-\u00bf‚ѓ„…†‡€‰]"
)


def mend_control_tokens(text: str) -> str:
    """The text without the control tokens at its edges. Raises Unusable where a leaked turn stands in the middle."""
    if "<" not in text and "[" not in text:
        return text
    bare = _without_edges(text)
    leaked = LEAKED.search(bare)
    if leaked is None and not ("[INST]" in bare and "[/INST]" in bare) and "</s>" not in STRUCK.sub("", bare):
        return bare
    token = leaked[0] if leaked else "[INST]" if "[INST]" in bare else "</s>"
    raise Unusable("control_tokens", f"{token!r} stands in the middle of a text: a whole turn has leaked")


def _without_edges(text: str) -> str:
    """The text, and where it begins or ends with control tokens, what is between them."""
    if STRUCK.search(text) and not STRUCK.fullmatch(text.strip()):
        return text
    bare = text
    while found := CONTROL_TOKEN.match(start := bare.lstrip()):
        bare = start[found.end() :].lstrip()
    while found := AT_END.search(end := bare.rstrip(), max(0, len(end) - MAX_TOKEN_CHARACTERS)):
        bare = end[: found.start()].rstrip()
    return bare


def control_tokens(text: str) -> list[str]:
    """The control tokens that stand in a text."""
    return CONTROL_TOKEN.findall(text) if "<" in text or "[" in text else []


def is_about_markup(record: Record) -> bool:
    """Whether the row's question or answer speaks of HTML or the like, so that its tags are meant."""
    said = [record.text] if record.kind == "text" else [message["content"] for message in record.all_messages()]
    return any(ABOUT_MARKUP.search(text) for text in said)


def has_html(text: str) -> bool:
    return ("<" in text and next(_tags(text), None) is not None) or (
        "&" in text and any(_is_entity(entity[0]) for entity in ENTITY.finditer(text))
    )


def _is_entity(text: str) -> bool:
    return text[1] == "#" or text[1:] in html5


def _tags(text: str) -> Iterator[re.Match[str]]:
    """The tags of a text. `a<b>c` is mathematics: most tags count only where they are opened and closed."""
    lower = text.lower()
    for tag in TAG.finditer(text):
        name = tag[1].lower()
        if name in VOID or (f"</{name}" in lower and re.search(rf"<{name}[\s>]", lower)):
            yield tag


def mend_html(text: str) -> str:
    """The text that a browser would show: tags become line breaks and list marks or go, entities their characters."""
    if "<" in text:
        for opening, closing in HIDDEN:
            text = _without(text, opening, closing)
        parts: list[str] = []
        at = 0
        for tag in _tags(text):
            parts += [text[at : tag.start()], _shown(tag)]
            at = tag.end()
        if parts:
            text = "\n".join(line.rstrip() for line in "".join([*parts, text[at:]]).split("\n"))
            text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return ENTITY.sub(_unescaped, text)


def _shown(tag: re.Match[str]) -> str:
    name, is_closing = tag[1].lower(), tag[0].startswith("</")
    if name == "li":
        return "" if is_closing else "\n- "
    return "\n" if name in LINE_BREAKING and (is_closing or name == "br") else ""


def _without(text: str, opening: str, closing: str) -> str:
    """The text without what stands from each `opening` to the next `closing`; one that is never closed stays."""
    lower, parts, at = text.lower(), list[str](), 0
    while (begin := lower.find(opening, at)) >= 0 and (end := lower.find(closing, begin)) >= 0:
        parts.append(text[at:begin])
        at = end + len(closing)
    return "".join([*parts, text[at:]])


def _unescaped(entity: re.Match[str]) -> str:
    return html.unescape(entity[0]).replace("\xa0", " ") if _is_entity(entity[0]) else entity[0]


def mend_mojibake(text: str) -> str:
    """The text with letters that were decoded by the wrong encoding set right, where ftfy is sure of it.

    ftfy (Robyn Speer) is the field's standard for this, made to leave what is not mojibake alone.
    """
    if text.isascii() or not MOJIBAKE.search(text):
        return text
    from ftfy import fix_encoding

    return fix_encoding(text)
