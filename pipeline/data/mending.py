"""What stands in texts by accident: HTML debris, mojibake, control tokens of chat templates. Found, and mended.

Guarantees that a text without these is returned as it is. A mended text says what was meant; where that cannot be
known (control tokens in the middle of a text: a whole turn has leaked), the row is unusable instead.
"""

import html
import re

from tunewright.pipeline.data.rows import Record, Unusable

# What the templates of the known models write themselves: ChatML, Llama 3, Phi, Cohere, gpt-oss; DeepSeek, whose bars
# (U+FF5C) are wide ones; Gemma; Llama 2 and Mistral; GLM; T5. Left in the data, a model learns to print them.
CONTROL_TOKEN = re.compile(
    r"<\|/?[A-Za-z]\w{0,40}\|>|<\uff5c[^<>\uff5c]{1,40}\uff5c>|</?(?:start|end)_of_(?:turn|utterance|image)>"
    r"|<(?:start|end)of(?:text|turn)>|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT)\]|<</?SYS>>"
    r"|\A\s*<s>|</s>|<(?:bos|eos|pad|unk|sop|eop)>|\[gMASK\]|<extra_id_\d{1,2}>"
)
# Where a text begins or ends with such tokens, they were a template's and are no part of what was said.
EDGES = re.compile(rf"\A(?:\s*(?:{CONTROL_TOKEN.pattern}))+\s*|\s*(?:(?:{CONTROL_TOKEN.pattern})\s*)+\Z")

TAG = re.compile(
    r"</?(?:p|br|div|span|font|b|i|u|em|strong|small|big|center|a|ul|ol|li|dl|dt|dd|table|thead|tbody|tr|td|th|h[1-6]"
    r"|img|hr|blockquote|section|article|header|footer|figure|figcaption|sup|sub)(?:\s[^<>]{0,2000})?/?>",
    re.IGNORECASE,
)
HIDDEN = re.compile(r"<(script|style)\b[^>]*>.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
LINE_BREAK = re.compile(r"<br\s*/?>|</(?:p|div|h[1-6]|tr|ul|ol|table|blockquote)\s*>", re.IGNORECASE)
LIST_ITEM = re.compile(r"\s*<li(?:\s[^<>]*)?>\s*", re.IGNORECASE)
ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|#\d{1,6}|#[xX][0-9a-fA-F]{1,5});")
# A row that speaks of markup shows its tags on purpose.
ABOUT_MARKUP = re.compile(
    r"\b(?:html?5?|css|xml|svg|jsx|xss|php|javascript|typescript|react|vue|dom|markup|web ?(?:page|site)s?|tags?|"
    r"entit(?:y|ies)|escap(?:e|ed|ing)|code)\b|```|<!doctype|<html|网页|标签|代码",
    re.IGNORECASE,
)

# UTF-8 read as Windows-1252, Latin-1 or Windows-1251: a lead byte's character, then a continuation byte's. Most texts
# have none, and ftfy takes 120 µs for 800 characters; it judges those that have.
MOJIBAKE = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|[РС][\u0402-\u040f\u0452-\u045f\u00a0-\u00bf‚ѓ„…†‡€‰]"
)


def mend_control_tokens(text: str) -> str:
    """The text without the control tokens at its edges. Raises Unusable where others stand in the middle."""
    if "<" not in text and "[" not in text:
        return text
    bare = EDGES.sub("", text)
    inside = CONTROL_TOKEN.search(bare)
    if inside:
        around = " ".join(bare[max(0, inside.start() - 20) : inside.end() + 20].split())
        raise Unusable("control_tokens", f"{inside.group()!r} stands in the middle of a text: …{around}…")
    return bare


def control_tokens(text: str) -> list[str]:
    """The control tokens that stand in a text."""
    return [token.strip() for token in CONTROL_TOKEN.findall(text)] if "<" in text or "[" in text else []


def is_about_markup(record: Record) -> bool:
    """Whether the row's question or answer speaks of HTML or the like, so that its tags are meant."""
    said = [record.text] if record.kind == "text" else [message["content"] for message in record.all_messages()]
    return any(ABOUT_MARKUP.search(text) for text in said)


def has_html(text: str) -> bool:
    return ("<" in text and TAG.search(text) is not None) or ("&" in text and ENTITY.search(text) is not None)


def mend_html(text: str) -> str:
    """The text that a browser would show: tags become line breaks and list marks or go, entities their characters."""
    if "<" in text and (TAG.search(text) or HIDDEN.search(text)):
        text = HIDDEN.sub("", text)
        text = LIST_ITEM.sub("\n- ", LINE_BREAK.sub("\n", text))
        text = re.sub(r"\n{3,}", "\n\n", TAG.sub("", text)).strip()
    return ENTITY.sub(lambda entity: html.unescape(entity.group()).replace("\xa0", " "), text)


def mend_mojibake(text: str) -> str:
    """The text with letters that were decoded by the wrong encoding set right, where ftfy is sure of it.

    ftfy (Robyn Speer) is the field's standard for this, made to leave what is not mojibake alone.
    """
    if text.isascii() or not MOJIBAKE.search(text):
        return text
    from ftfy import fix_encoding

    return fix_encoding(text)
