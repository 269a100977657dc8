"""Personal data and secrets in a text: found by their form, confirmed by their check digits where they have any.

Guarantees few false alarms rather than a full catch: names and postal addresses are not looked for, phone numbers are
taken when they are written internationally, in a country's unmistakable form or after a word such as "phone", and what
manuals use as examples (example.com, 555 numbers, private networks, test cards) is not reported. Called for every row
of a dataset: a clean text of 800 characters costs a few microseconds.

python-stdnum (maintained, the field's collection of check-digit rules) knows the numbers; the forms of keys are those
that their issuers publish.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, cast

SECRET_KINDS = frozenset({"api_key", "private_key", "password_in_url", "token"})


@dataclass(frozen=True)
class Found:
    """Characters `start` to `end` (exclusive) of a text are a `kind`.

    Personal: email, phone, credit_card, iban, national_id, ip_address. Secret: those of `SECRET_KINDS`.
    """

    kind: str
    start: int
    end: int


def find(text: str) -> list[Found]:
    """What is personal or secret in `text`, in order, without overlaps."""
    found = list(_secrets(text)) if _may_hold_secret(text) else []
    if "@" in text:
        found += _addresses(text)
    if DIGITS.search(text):
        found += _numbers(text)
    if text.count(":") > 1 and GROUP_OF_V6.search(text):
        found += _ip_addresses_v6(text)
    return _apart(found) if found else found


def masked(text: str, found: Sequence[Found]) -> str:
    """`text` with what was found (in order, as `find` gives it) replaced by its kind: `[email]`."""
    parts: list[str] = []
    at = 0
    for entry in found:
        parts += [text[at : entry.start], f"[{entry.kind}]"]
        at = entry.end
    return "".join([*parts, text[at:]])


def without_secrets(text: str) -> str:
    """`text` with keys and passwords masked; addresses and numbers stay, which errors must be able to name."""
    return masked(text, [entry for entry in find(text) if entry.kind in SECRET_KINDS])


def shown(value: object) -> Any:
    """`value` as it may be shown: in every text of it what `find` finds is masked, and what may be part of a key, cut
    off from its recognisable beginning, is shortened."""
    if isinstance(value, str):
        text = value[:MAX_SHOWN_CHARACTERS]
        return UNBROKEN.sub(lambda run: f"{run[0][:4]}…", masked(text, find(text)))
    if isinstance(value, list):
        return [shown(entry) for entry in cast("list[object]", value)[:MAX_SHOWN_ENTRIES]]
    if isinstance(value, dict):
        entries = list(cast("dict[Any, object]", value).items())[:MAX_SHOWN_ENTRIES]
        return {key: shown(entry) for key, entry in entries}
    return value


def _apart(found: list[Found]) -> list[Found]:
    """In order of place; of two that overlap the earlier in the list, secrets before addresses before numbers."""
    kept: list[Found] = []
    for entry in found:
        if all(entry.end <= other.start or other.end <= entry.start for other in kept):
            kept.append(entry)
    return sorted(kept, key=lambda entry: entry.start)


# Of a value that is shown; no more is ever printed.
MAX_SHOWN_CHARACTERS = 4000
MAX_SHOWN_ENTRIES = 20
# Letters and digits mixed without a break: a key, or a part of one.
UNBROKEN = re.compile(r"(?=[A-Za-z_+/=-]{0,40}\d)(?=[\d_+/=-]{0,40}[A-Za-z])[A-Za-z0-9_+/=-]{16,}")


# Secrets: each form with the literal beginning that a text is searched for first, after the rarer character in it.
KEY_FORMS = {
    "": {
        "AKI": r"AKIA[A-Z2-7]{16}|AKID[A-Za-z0-9]{32}",  # Amazon, Tencent Cloud
        "AIza": r"AIza[\w-]{35}",  # Google
        "LTAI": r"LTAI[A-Za-z0-9]{12,26}",  # Alibaba Cloud
        "SG.": r"SG\.[\w-]{16,}\.[\w-]{16,}",  # SendGrid
    },
    "_": {
        "gh": r"gh[pousr]_[A-Za-z0-9]{36}",  # GitHub
        "github_pat_": r"github_pat_\w{50,}",
        "hf_": r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
        "npm_": r"npm_[A-Za-z0-9]{36}",
        "k_live_": r"[sr]k_live_[A-Za-z0-9]{16,}",  # Stripe
    },
    "-": {
        "sk-": r"sk-(?:ant-|proj-|svcacct-|or-v1-)?[\w-]{20,}",  # OpenAI, Anthropic, OpenRouter, DeepSeek
        "glpat-": r"glpat-[\w-]{20,}",  # GitLab
        "pypi-": r"pypi-[\w-]{50,}",
        "xox": r"xox[abeprs]-[A-Za-z0-9-]{20,}",  # Slack
    },
}
KEYS = {
    beginning: re.compile(rf"(?<![\w-])(?:{form})(?![\w-])", re.ASCII)
    for forms in KEY_FORMS.values()
    for beginning, form in forms.items()
}
PLAIN, UNDERSCORED, DASHED = (*KEY_FORMS[""], "eyJ", "Bearer"), tuple(KEY_FORMS["_"]), (*KEY_FORMS["-"], "-----BEGIN")
WEB_TOKEN = re.compile(r"(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")  # RFC 7519
BEARER = re.compile(r"\bBearer\s+([A-Za-z0-9._~+/-]{20,}=*)")
PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----((?:[^-]|-(?!----)){60,})(?:-----END [A-Z ]+-----)?"
)
CREDENTIALS = re.compile(
    r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,20}://([^\s:/@\"'<>]*):([^\s/@\"'<>]+)@[\w.\[]", re.IGNORECASE
)
PLACEHOLDER_PASSWORD = re.compile(
    r"(?:my|your|the|some|db)?[-_]?(?:pass(?:word|wd)?|pw|pwd|secret|token|key|api[-_]?key)|[{$<%\[(].*|[x*.]+|密码",
    re.IGNORECASE,
)
MIN_DISTINCT = 9


def _may_hold_secret(text: str) -> bool:
    # A single character is found ten times as fast as a word, and one pattern of all beginnings is slower than all.
    holds = text.__contains__
    return (
        any(map(holds, PLAIN))
        or ("_" in text and any(map(holds, UNDERSCORED)))
        or ("-" in text and any(map(holds, DASHED)))
        or ("@" in text and "://" in text)
    )


def _secrets(text: str) -> Iterator[Found]:
    for beginning, form in KEYS.items():
        if beginning in text:
            yield from (Found("api_key", *key.span()) for key in form.finditer(text) if _is_random(key[0][4:]))
    if "-----BEGIN" in text:
        yield from (Found("private_key", *key.span()) for key in PRIVATE_KEY.finditer(text) if _is_random(key[1]))
    if "eyJ" in text:
        yield from (Found("token", *token.span()) for token in WEB_TOKEN.finditer(text))
    if "Bearer" in text:
        for token in BEARER.finditer(text):
            if _is_random(token[1]) and any(map(str.isdigit, token[1])):
                yield Found("token", *token.span(1))
    if "@" in text and "://" in text:
        for url in CREDENTIALS.finditer(text):
            if url[2] != url[1] and not PLACEHOLDER_PASSWORD.fullmatch(url[2]):
                yield Found("password_in_url", *url.span(2))


def _is_random(key: str) -> bool:
    """Not `xxxxxxxx…`, `1234567890…`, `your-api-key-here` or an issuer's own EXAMPLE."""
    lowered = key.lower()
    if "example" in lowered or "your" in lowered or "placeholder" in lowered or len(set(key)) < MIN_DISTINCT:
        return False
    steps = sum(ord(b) - ord(a) == 1 for a, b in pairwise(lowered))
    return steps < len(key) / 2


EMAIL = re.compile(
    r"(?<![\w.+%@/:-])[A-Za-z0-9][\w.+%-]{0,63}@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24})"
    r"(?![\w@]|-\w|\.\w)",
    re.ASCII,
)
# RFC 2606 and 6761, and what people write when they mean nobody.
NOBODY_DOMAIN = re.compile(
    r"(?:.*\.)?(?:(?:.*-)?example(?:-\w+)?\.\w+|(?:.*\.)?(?:test|example|invalid|localhost|local|internal|png|jpe?g|gif|svg|webp)"
    r"|(?:test|domain|yourdomain|mydomain|email|company|yourcompany|mycompany|site|website|xyz|abc|foo|bar|mail|host"
    r"|server|somewhere|sample|acme|placeholder)\.(?:com|org|net|io))",
    re.IGNORECASE,
)
NOBODY = frozenset(
    {"git", "noreply", "no-reply", "donotreply", "user", "username", "name", "someone", "you", "your.name", "yourname"}
    | {"your.email", "youremail", "your-email", "your_email", "email", "firstname.lastname", "first.last", "hg", "svn"}
)


def _addresses(text: str) -> Iterator[Found]:
    for match in EMAIL.finditer(text):
        person = match[0].split("@")[0].lower()
        if person not in NOBODY and not NOBODY_DOMAIN.fullmatch(match[1]):
            yield Found("email", *match.span())


# Seven digits or more with at most two separators between, or four numbers with dots.
DIGITS = re.compile(r"[0-9](?:(?:[ ().-]{0,2}[0-9]){6,}|[0-9]{0,2}(?:\.[0-9]{1,3}){3})")
ALONE = r"(?<![A-Za-z0-9_.+-])", r"(?![A-Za-z0-9_-]|\.[0-9])"
# What such a number is when one of these words stands before it.
COUNTED_THING = re.compile(
    r"(?:order|invoice|tracking|ticket|serial|isbn|issn|doi|ref|reference|case|article|part|model|sku|item|product|id|no"
    r"|nr|bestellung|rechnung|订单|单号|编号|学号|序列号?|型号|快递)[\s.:#°№-]*(?:number|no|num|code|id|号码?|编号)?[\s.:#：为是]*\Z"
    r"|[#№$€£¥]\s*\Z",
    re.IGNORECASE,
)
CARD = re.compile(
    r"(?:[0-9]{4}([ -]?)(?:[0-9]{4}\1){2}[0-9]{4}(?:\1?[0-9]{3})?|3[47][0-9]{2}([ -]?)[0-9]{6}\2[0-9]{5})".join(ALONE)
)
# Visa, Mastercard, American Express, Discover, JCB, UnionPay (ISO/IEC 7812 beginnings).
CARD_ISSUER = re.compile(r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|3[47]|6011|64[4-9]|65|35(?:2[89]|[3-8])|62")
TEST_CARDS = frozenset(
    {"4111111111111111", "4242424242424242", "4012888888881881", "5555555555554444", "5105105105105100"}
    | {"378282246310005", "371449635398431", "6011111111111117", "3530111333300000", "4532015112830366"}
)
IBAN = re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
TEST_IBANS = frozenset({"DE89370400440532013000", "GB82WEST12345698765432", "GB29NWBK60161331926819"})
# The numbers of persons with a form of their own, by python-stdnum's module.
NATIONAL_IDS = {
    module: re.compile(form.join(ALONE))
    for module, form in {
        "stdnum.cn.ric": r"[1-9][0-9]{16}[0-9Xx]",
        "stdnum.us.ssn": r"[0-9]{3}-[0-9]{2}-[0-9]{4}",
        "stdnum.br.cpf": r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}",
        "stdnum.kr.rrn": r"[0-9]{6}-[1-8][0-9]{6}",
        "stdnum.fr.nir": r"[12] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}",
    }.items()
}
INTERNATIONAL_PHONE = re.compile(r"(?<![\w+.])\+[1-9](?:[ ().-]{0,2}[0-9]){7,12}(?![\w-]|\.[0-9])")
NATIONAL_PHONE = re.compile(
    # North America's (NANP) and Chinese mobile numbers.
    r"(?:(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}([.-]))[2-9][0-9]{2}[.-][0-9]{4}"
    r"|1[3-9][0-9]([ -]?)[0-9]{4}\2[0-9]{4})".join((r"(?<![A-Za-z0-9_.+(-])", ALONE[1]))
)
PHONE_WORD = re.compile(
    r"(?:\b(?:(?:tele)?phone|tel|telefon\w*|téléphone|teléfono|mobile?|cell|handy|fax|whatsapp|call|text|тел\w*)"
    r"|手机|电话|座机|携帯|電話|전화|هاتف)[^0-9+(\n]{0,20}\Z",
    re.IGNORECASE,
)
NAMED_PHONE = re.compile(r"(?<![\w+.])\(?[0-9](?:[ ()/.-]{0,2}[0-9]){6,13}(?![\w-]|\.[0-9])", re.ASCII)
IP = re.compile(r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}".join(ALONE))
IP_V6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)
GROUP_OF_V6 = re.compile(r":[0-9A-Fa-f]{0,4}:")
VERSION = re.compile(r"(?:\bv|version|release|build|firmware|driver|section|oid|[=<>~^])\W*\Z", re.IGNORECASE)
PUBLIC_RESOLVERS = frozenset(
    {"8.8.8.8", "8.8.4.4", "1.1.1.1", "9.9.9.9", "114.114.114.114", "223.5.5.5", "208.67.222.222", "208.67.220.220"}
)
MAX_VERSION_PART = 20


def _numbers(text: str) -> Iterator[Found]:
    """Most certain first."""
    for match in IBAN.finditer(text):
        if end := _iban_end(match):
            yield Found("iban", match.start(), end)
    for match in CARD.finditer(text):
        if _is_card(_digits(match[0])) and not _counts(text, match):
            yield Found("credit_card", *match.span())
    for module, form in NATIONAL_IDS.items():
        for match in form.finditer(text):
            if not _is_made_up(_digits(match[0])) and _checker(module)(match[0]) and not _counts(text, match):
                yield Found("national_id", *match.span())
    for match in IP.finditer(text):
        if _is_personal_ip(match[0]) and not VERSION.search(text, max(0, match.start() - 20), match.start()):
            yield Found("ip_address", *match.span())
    for match in INTERNATIONAL_PHONE.finditer(text):
        if _is_phone(_digits(match[0])):
            yield Found("phone", *match.span())
    for match in NATIONAL_PHONE.finditer(text):
        if _is_phone(_digits(match[0])) and not _counts(text, match):
            yield Found("phone", *match.span())
    for match in NAMED_PHONE.finditer(text):
        if PHONE_WORD.search(text, max(0, match.start() - 35), match.start()) and _is_phone(_digits(match[0])):
            yield Found("phone", *match.span())


def _digits(number: str) -> str:
    return "".join(filter(str.isdigit, number))


def _counts(text: str, match: re.Match[str]) -> bool:
    """Whether a word before the number says that it numbers a thing."""
    return COUNTED_THING.search(text, max(0, match.start() - 25), match.start()) is not None


@cache
def _checker(module: str) -> Callable[[str], bool]:
    from importlib import import_module

    return import_module(module).is_valid


def _iban_end(match: re.Match[str]) -> int | None:
    """Where the IBAN ends that begins at `match`: words in capitals may follow it."""
    number = match[0]
    while len(number) >= 15:
        if _checker("stdnum.iban")(number):
            return match.start() + len(number) if number.replace(" ", "") not in TEST_IBANS else None
        number = number.rpartition(" ")[0]
    return None


def _is_card(digits: str) -> bool:
    return bool(
        CARD_ISSUER.match(digits)
        and digits not in TEST_CARDS
        and not _is_made_up(digits)
        and _checker("stdnum.luhn")(digits)
    )


def _is_phone(digits: str) -> bool:
    # 555 is the exchange of invented North American numbers.
    return len(digits) >= 7 and "555" not in (digits[-7:-4], digits[-10:-7]) and not _is_made_up(digits)


def _is_made_up(digits: str) -> bool:
    """Counted up, or three different digits at most: 123-45-6789, 13800000000."""
    return len(set(digits)) <= 3 or any(run in digits for run in ("123456", "345678", "456789", "987654", "00000"))


def _is_personal_ip(text: str) -> bool:
    """A global address that is no public service's and no version's number."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    parts = [int(part) for part in text.split(".")]
    is_version = max(parts) <= MAX_VERSION_PART
    return address.is_global and not address.is_multicast and text not in PUBLIC_RESOLVERS and not is_version


def _ip_addresses_v6(text: str) -> Iterator[Found]:
    for match in IP_V6.finditer(text):
        try:
            address = ipaddress.IPv6Address(match[0])
        except ValueError:
            continue
        # 2000::/3 is what is given to hosts; four groups keep times and names of C++ or Rust out.
        if address in GLOBAL_UNICAST and address.is_global and len(list(filter(None, match[0].split(":")))) >= 4:
            yield Found("ip_address", *match.span())


GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
