"""In which encoding a text file is written, and its text.

Guarantees that UTF-8 stays UTF-8 even with some broken bytes in it, and that a guess is said. The guess rests on the
first part of the file that is not plain ASCII: a few sentences settle the script, the languages of one script (Western
or Central European) may need a page. HZ and ISO-2022 are not recognised: they look like ASCII.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tunewright.pipeline.data.opening import repaired
from tunewright.pipeline.errors import InvalidInput, call

BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
MAX_LINE_BYTES = 256_000_000
# Bytes of a sample that are looked at: settles it long before, and keeps the guess under half a second.
SAMPLE_BYTES = 16_384
# Measured on single sentences: right readings have 0.67 and more, those of single-byte texts up to 0.33.
TYPICAL_SHARE = 0.4
# A text of another encoding breaks UTF-8 in nearly every line that is not ASCII.
MAX_BROKEN_LINES = 0.05

# The characters that make up about two thirds of running text: of simplified Chinese, those written otherwise in
# traditional Chinese, and the syllables of Korean.
SIMPLIFIED = frozenset(
    "的一是不了在人有我他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都"
    "然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进把法此"
    "实回二理美点月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次东政海口使教西再平"
    "真听世气信北少关并内加化由却代军产入先山五太水万市眼体别处总才场师书比住员九笑性通目华报立马命张活难神数件安表原车白"
    "应路期叫死常提感金何更反合放做系计或司利受光王果亲界及今京务制解各任至清物台象记边共风战干接它许八特觉望直服毛林题建"
    "南度统色字请交爱让认算论百吃义科怎元社术结六功指思非流每青管夫连远资队跟带花快条院变联言权往展该领传近留红治决周保达"
    "办运武半候七必城父强步完革深区即求品士转量空甚众技轻程告江语英基派满式李息写识极令收脸钱党未持取设始双历越史商容研像"
    "找友孩站广改议形早房音火际则首单据导影失拿网香似石若兵谁校读志飞观争究包组造落视济喜离坏兴编谈随格尽怕母调局根曾准团"
    "段终乐切级克精哪官示男举客证苦照注费足尔招群热推晚响称底脑介绍释答案例描述列份句"
)
TRADITIONAL = SIMPLIFIED | frozenset(
    "這個們來說國時為對學會過還後發點無開與樣現長動兩從經頭將實聲話問機業給間電門東氣關並內產萬體處總場師書員華報馬張難"
    "數車應計親務記邊戰幹許覺題統請愛讓認論義術結資隊帶條聯權變該領傳紅達辦運強區轉眾輕語滿寫識極黃錢黨設歷廣議單據導網"
    "誰讀飛觀爭組視濟離壞興編談隨盡調準團終樂級舉證費爾熱響稱腦紹釋例麼裡著嗎臺灣習課術練"
)
KOREAN = frozenset(
    "이다는의에을가고하지도로사기나어은한를자시아서인게해대있리그일수라부정제전상들보장구동스안으원화주연성과면여거것말무니"
    "요세만적공비금개문경산미방선내모신소양우유조마치트위러물분습오용음관국결학생교중때더할없계진천명식까데려야및같되된않점회"
)
LEVEL_1_WEIGHT = 0.4  # of a character that is frequent, though not among those

# The letters beyond ASCII of languages in Latin script, with the Windows code page that has them; of languages that fit
# alike the first is taken.
LATIN = [
    ("cp1252", frozenset("àâæçèéêëîïôœùûüÿ")),  # French
    ("cp1252", frozenset("äöüßé")),  # German
    ("cp1252", frozenset("áéíóúüñ¿¡")),  # Spanish
    ("cp1252", frozenset("àáâãçéêíóôõú")),  # Portuguese
    ("cp1252", frozenset("àèéìíòóùú")),  # Italian
    ("cp1252", frozenset("åäöæøé")),  # Scandinavian
    ("cp1250", frozenset("ąćęłńóśźż")),  # Polish
    ("cp1250", frozenset("áäčďéěíĺľňóôŕřšťúůýž")),  # Czech, Slovak
    ("cp1250", frozenset("áéíóöőúüű")),  # Hungarian
    ("cp1254", frozenset("âçğıöşüî")),  # Turkish
    ("cp1257", frozenset("ąčęėįšųūž")),  # Lithuanian
    ("cp1257", frozenset("āčēģīķļņšūž")),  # Latvian
    ("cp1257", frozenset("äõöüšž")),  # Estonian
]
LATIN_SHARE = 0.9
WESTERN = "cp1252"
INITIAL = re.compile(r"\b\w")
OTHER_SCRIPTS = ["cp1251", "koi8_r", "cp1253", "cp1255", "cp1256", "cp874"]
SINGLE_BYTE = [*dict.fromkeys(codec for codec, _ in LATIN), *OTHER_SCRIPTS]

ESCAPED = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is not in the encoding
IGNORED = re.compile("[\x00-\x7f\xa0£§«°·»\u2000-\u2bff\u3000-\u303f\uff01-\uff65]")  # ASCII and punctuation


@dataclass(frozen=True)
class _EastAsian:
    """One multi-byte encoding: what its language's common characters are, and which lead bytes its first level has."""

    codec: str
    is_common: Callable[[str], bool]
    levels: str  # the codec whose first level holds the more frequent characters
    level_1: range


EAST_ASIAN = [
    _EastAsian("gb18030", SIMPLIFIED.__contains__, "gb2312", range(0xB0, 0xD8)),
    _EastAsian("big5hkscs", TRADITIONAL.__contains__, "big5", range(0xA4, 0xC7)),
    _EastAsian("cp932", lambda c: "\u3041" <= c <= "\u30fe", "cp932", range(0x88, 0x98)),
    _EastAsian("euc_jp", lambda c: "\u3041" <= c <= "\u30fe", "euc_jp", range(0xB0, 0xD0)),
    _EastAsian("cp949", KOREAN.__contains__, "euc_kr", range(0xB0, 0xC9)),
]


class Decoding:
    """The text of one file, whose encoding shows as its pieces come.

    `name` is a codec's. `dirty` is set once a byte did not fit: it stands in the text then as what ESCAPED finds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = "utf-8"
        self.dirty = False
        self._is_settled = False

    @property
    def is_wide(self) -> bool:
        return self.name.startswith(("utf-16", "utf-32"))

    @property
    def line_encoding(self) -> str:
        """The encoding of what `line_pieces` gives."""
        return "utf-8" if self.is_wide else self.name

    def text_pieces(self, pieces: Iterator[bytes]) -> Iterator[str]:
        """The text, cut anywhere. Raises InvalidInput: `unknown_encoding`."""
        name, decoder = self.name, _decoder(self.name)
        for piece in self._looked_at(pieces):
            if name != self.name:
                name, decoder = self.name, _decoder(self.name)
            yield self._checked(decoder.decode(piece))
        yield self._checked(decoder.decode(b"", True))

    def line_pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Bytes in `line_encoding` that end with a line (the last one as the file ends). Raises InvalidInput."""
        looked_at = self._looked_at(pieces)
        first = next(looked_at, b"")
        if self.is_wide:
            decoder = _decoder(self.name)
            looked_at = (decoder.decode(piece).encode() for piece in chain([first], looked_at))
        else:
            looked_at = chain([first], looked_at)
        held: list[bytes] = []
        for piece in looked_at:
            cut = piece.rfind(b"\n") + 1
            if cut:
                yield b"".join([*held, piece[:cut]])
                held = []
            held.append(piece[cut:])
            if sum(map(len, held)) > MAX_LINE_BYTES:
                raise _endless_line(self.path)
        yield b"".join(held)

    def misfit(self, text: str) -> str | None:
        """Why `text` is broken, where it holds a byte that did not fit."""
        found = ESCAPED.search(text)
        return f"not {self.name.upper()}: byte 0x{ord(found[0]) - 0xDC00:02x}" if found else None

    def _checked(self, text: str) -> str:
        self.dirty = self.dirty or (not text.isascii() and ESCAPED.search(text) is not None)
        return text

    def _looked_at(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces without the byte order mark; `name` is right for each when it is given."""
        for number, piece in enumerate(pieces):
            if number == 0:
                mark, name = next(((m, n) for m, n in BOMS.items() if piece.startswith(m)), (b"", _wide(piece)))
                piece = piece.removeprefix(mark)
                self.name, self._is_settled = name or self.name, name is not None
            if not self._is_settled and not piece.isascii():
                self._settle(piece)
            yield piece

    def _settle(self, sample: bytes) -> None:
        self._is_settled = True
        text = _decoder("utf-8").decode(sample)
        broken = len(text) - len(ESCAPED.sub("", text))
        if 2 * broken <= len(text) - len(text.encode("ascii", "ignore")):
            return
        lines = sample.split(b"\n")
        unlike_ascii = [line for line in lines if not line.isascii()]
        recognised = recognise(unlike_ascii)
        if recognised:
            self.name = recognised
        elif len(unlike_ascii) > MAX_BROKEN_LINES * len(lines):
            raise InvalidInput(
                "unknown_encoding",
                f"{self.path} is neither UTF-8 nor in an encoding that is recognised; it begins with {sample[:24]!r}.",
                allowed="Save it as UTF-8, or give the text file that it was made from.",
                next=repaired(self.path),
            )


def recognise(lines: list[bytes]) -> str | None:
    """The codec in which these lines, none of them ASCII or UTF-8, make sense; None where there is none."""
    sample: list[bytes] = []
    for line in lines:
        sample.append(line[: SAMPLE_BYTES - sum(map(len, sample))])
        if sum(map(len, sample)) >= SAMPLE_BYTES:
            break
    share, codec = max((_typical_share(sample, encoding), encoding.codec) for encoding in EAST_ASIAN)
    return codec if share >= TYPICAL_SHARE else _single_byte(b"\n".join(sample))


def _typical_share(lines: list[bytes], encoding: _EastAsian) -> float:
    """How much of what the lines say in this encoding its languages would say, from 0 to 1."""
    texts: list[str] = []
    for line in lines:
        with suppress(UnicodeDecodeError):
            # Not the last time: a sample may end within a character.
            texts.append(codecs.getincrementaldecoder(encoding.codec)().decode(line))
    letters = IGNORED.sub("", "".join(texts))
    if not letters or len(texts) < (1 - MAX_BROKEN_LINES) * len(lines):
        return 0
    frequent = sum(
        1 if encoding.is_common(letter) else LEVEL_1_WEIGHT
        for letter in letters
        if encoding.is_common(letter) or (letter.encode(encoding.levels, "ignore") or b"\0")[0] in encoding.level_1
    )
    return frequent / len(letters)


def _single_byte(sample: bytes) -> str | None:
    """Among the Windows code pages and KOI8-R."""
    # charset-normalizer: MIT, released every few months, and what requests relies on. It tells scripts apart well; of
    # code pages in Latin script it takes the first that fits, hence LATIN.
    from charset_normalizer import from_bytes

    # Capitals within words, as other scripts look in these code pages, are left as they are and fit no language.
    readings = {codec: INITIAL.sub(_lower, sample.decode(codec, "replace")) for codec in dict(LATIN)}
    shares = {(codec, letters): _share_of(readings[codec], letters) for codec, letters in LATIN}
    # Several Western languages in one file: a little less likely than one language whose every letter fits.
    western = frozenset[str]().union(*(letters for codec, letters in LATIN if codec == WESTERN))
    shares[WESTERN, western] = LATIN_SHARE * _share_of(readings[WESTERN], western)
    likeliest = max(shares, key=lambda language: shares[language])
    if shares[likeliest] >= LATIN_SHARE:
        return likeliest[0]
    best = from_bytes(sample, cp_isolation=SINGLE_BYTE, enable_fallback=False).best()
    return best.encoding if best else None


def _lower(found: re.Match[str]) -> str:
    return found[0].lower()


def _share_of(text: str, letters: frozenset[str]) -> float:
    foreign = IGNORED.sub("", text)
    return sum(character in letters for character in foreign) / len(foreign) if foreign else 0


def _decoder(name: str) -> codecs.IncrementalDecoder:
    # Bytes of UTF-16 that are none cannot be escaped.
    return codecs.getincrementaldecoder(name)("replace" if name.startswith(("utf-16", "utf-32")) else "surrogateescape")


def _wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, told by where the zeros of its ASCII characters (line ends, JSON) stand."""
    head = head[:4096]
    if b"\0" not in head:
        return None
    zeros = [head[start::4].count(0) for start in range(4)]
    quarter = len(head) // 4
    for name, zero_at in {"utf-32-le": (2, 3), "utf-32-be": (0, 1)}.items():
        if quarter and all(zeros[i] > 0.9 * quarter for i in zero_at):
            return name
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    for name, many, few in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if many >= 4 and many > 0.03 * len(head) and few <= 0.05 * many:
            return name
    return None


def _endless_line(path: Path) -> InvalidInput:
    return InvalidInput(
        "line_too_long",
        f"{path} has a line of more than {MAX_LINE_BYTES // 1_000_000} MB.",
        allowed="One row is one line of JSON; a list of objects is named .json.",
        next=call("prepare_dataset", source=str(path.with_suffix(".json"))),
    )
