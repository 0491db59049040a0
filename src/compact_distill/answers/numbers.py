"""Numbers as people write them: `$1,800 a week`, `-3/4`, `\\frac{1}{2}`, `50\\%`, `3,14`, `½`, `seventeen`."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

_MAX_CHARACTERS = 400  # a longer answer is no number that somebody stated; also bounds the work here
_MAX_EXPONENT = 400  # 1e999999999 would fill the memory

_THIN = "\u00a0\u2009\u202f"
_PRICE = r"[$€£₹]\s?\d[\d,]*(?:\.\d+)?"
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"<<[^<>]*>>", ""),  # GSM8K's calculator annotations
        (r",\s*\\!\s*|\{,\}", ","),  # 10,\!080 and 10{,}080
        (r"\\[!,;]|\\(?:left|right|displaystyle)\b", ""),
        (rf"\\ |~|[{_THIN}]", " "),
        (r"\\(?:text|mbox|textbf|textrm|mathrm|mathbf|textit)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°", " degrees"),
        (r"(?<![\\$])\$([^$\n]{1,80})(?<!\\)\$", r"\1"),
        (r"\\([$%])", r"\1"),
        (r"[−–]", "-"),
        (r"\\(?:times|cdot)\b|×", "*"),
        (r"\\(?:approx|sim)\b|≈", ""),
        (r"\b([AaPp])\.\s?[Mm]\b\.?", r"\1m"),
        (r"\b([BbAa])\.\s?([CcDd])\b\.?", r"\1\2"),
        (rf"({_PRICE})\s?[Kk]\b", r"\1 thousand"),
        (rf"({_PRICE})\s?(?:M|mn)\b", r"\1 million"),
        (rf"({_PRICE})\s?(?:B|bn)\b", r"\1 billion"),
    )
)

# What keyboards and other scripts write, as LaTeX.
_SIGNS = str.maketrans(
    {**{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}, **dict.fromkeys("−–—‐‑﹣", "-"), "⁄": "/"}
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_AS_LATEX = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"∞|(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"π|(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"√\s*\(([^()]*)\)|\\?\bsqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"√\s*(\d+|[a-z])", r"\\sqrt{\1}"),
        (r"≤", r"\\le "),
        (r"≥", r"\\ge "),
        (r"∪", r"\\cup "),
    )
)
_ORDINAL = re.compile(r"\^\s*\{?\s*(?:\\(?:text|mathrm|rm|textrm)\s*\{?\s*)?(th|st|nd|rd)\b\s*\}{0,2}")
# 0.\overline{3}, 0.\dot{1}4\dot{2}, 0.(3), a line over each digit; 0.333... where it shows what is repeated
_REPEATING = re.compile(
    r"(?P<whole>\d*)\.(?:(?P<fixed>\d*)(?:\\(?:overline|bar)\s*(?:\{(?P<line>\d+)\}|(?P<one>\d))|\((?P<round>\d+)\)(?!\w)"
    r"|\\dot\s*\{?(?P<dot>\d)\}?(?:(?P<dots>\d*)\\dot\s*\{?(?P<end>\d)\}?)?|(?P<over>(?:\d[\u0304\u0305])+))"
    r"|(?P<start>\d*?)(?:(?P<digit>\d)(?P=digit){2,}|(?P<digits>\d{2,12}?)(?P=digits)+)\s?(?:\.{3}|…|\\[lc]?dots\b))"
)
_DECIMAL_COMMA = re.compile(
    r"([-+]?[$€£]?\s?(?:\d{1,3}(?:[. ]\d{3})+|\d+)),(\d{1,2}|\d{4,}|(?<=[. ]\d{3},)\d+|(?<=\b0,)\d+)(?![\d.,])"
)
# Read where a number is expected: a unit of one letter behind a space, a squared one, inches, whole hours. "$5 m" are
# millions, "7m" may be algebra.
_LOOSE_UNIT = re.compile(
    r"([^$€£¥]*\d)(?:\s+[gmlLsh]|\s?[cdmk]?m[23]|\s?[\"”″]|:00(\s?[ap]\.?m\.?)?|\s+(?:[cmk]?m|(?:centi|milli|kilo)?met(?:er|re)s?"
    r"|in|inch(?:es)?|ft|feet|foot|yd|yards?|miles?|units?)\s+(?:squared|cubed))\.?",
)
_VARIABLE_IN_SUM = re.compile(r"(?<![A-Za-z\\])(?!a\s+[a-z]{2})[A-Za-z](?![A-Za-z])")
_NAME = re.compile(r"\s*\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?(?:\([a-z]\))?\s*")
_ONES = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen|nineteen"
)
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_SMALL = {word: n for n, word in enumerate(_ONES.split("|"))}
_SMALL |= {word: 10 * n for n, word in enumerate(_TENS.split("|"), start=2)}
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4, "third": 3, "thirds": 3}
_NTHS = {f"{word}th": n for n, word in enumerate(("four", "fif", "six", "seven", "eigh", "nin", "ten"), start=4)}
_NTHS |= {"hundredth": 100, "thousandth": 1000, "millionth": 10**6}

_DIGITS = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ ]\d{3})+(?!\d)|[1-9]\d{0,2}(?:['’]\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_BRACED = rf"(?:\{{\s*-?{_DECIMAL}\s*\}}|\s?\d)"
_ABOUT = r"(?:about|approximately|approx\.?|around|roughly|exactly|only|just)"
_NUMBER = re.compile(
    rf"""
    (?:(?:{_ABOUT}|the(?=\s+\d+(?:th|st|nd|rd)\b))\s+)?
    (?P<sign>[-+]?|(?:minus|negative)\s)\s*
    (?:(?:US|C|A)?[$€£¥₹₩₽¢]|(?:USD|EUR|GBP|Rs\.?)(?=[\s\d]))?\s*
    (?P<inner_sign>[-+]?)
    (?:
        (?:(?P<whole>\d+)\s*)?\\[dt]?frac\s*(?P<top>{_BRACED})\s*(?P<bottom>{_BRACED})
      | (?:(?P<whole2>\d+)\s+)?(?P<top2>{_DECIMAL})\s*/\s*(?P<bottom2>{_DECIMAL})
      | (?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d+)|\s*[*x]\s*10\^(?P<power>-?\d+|\{{-?\d+\}}))?
    )
    (?P<rest>.*)
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)

_MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MULTIPLIERS |= {"lakh": 10**5, "crore": 10**7, "mn": 10**6, "bn": 10**9}
_MULTIPLIERS |= {f"{word}s": n for word, n in _MULTIPLIERS.items()}
_TIMES = {"dozen": 12, "dozens": 12, **_MULTIPLIERS}
_HALVES = {"am": "am", "pm": "pm", "bc": "bc", "bce": "bc", "ad": "ad", "ce": "ad"}  # of a day, and of all years
_VARIABLE_LETTER = r"[^\W\d_]"
_UNIT_TEXT = re.compile(
    rf"(?:[\s/.()\-]|{_VARIABLE_LETTER}(?:{_VARIABLE_LETTER}|['’])*(?:\s?\^[23]|\s?\^\{{[23]\}}|[²³])?)*[$€£¥₹₩₽¢]?[\s.,;:?]*"
)
_UNIT_WORD = re.compile(rf"{_VARIABLE_LETTER}+")
_VARIABLE = re.compile(r"[a-z\u0370-\u03ff]")
# After one of these the number is only a part of what was said: "5 or 6", "5 and a half", "2 pi".
_NOT_UNIT = re.compile(
    r"and|or|to|plus|minus|times|over|half|halves|quarters?|thirds?|squared|cubed|mod|choose|factorial|if|"
    r"pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp"
)
_GLUED_UNIT = re.compile(
    r"[a-z]{3,}|[^\x00-\x7f\u0370-\u03ff]+|cm|mm|km|kg|mg|ml|lb|oz|ft|in|hr|"
    r"am|pm|th|st|nd|rd|mi|yd|kb|mb|gb|tb|kw|hz"
)


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number, and whether it was written as a percentage (then `value` is what stands before the sign).

    `half` is which half of the day or of all years it names: am, pm, bc, ad, or none.
    """

    value: Fraction
    percent: bool = False
    half: str = ""

    def equals(self, other: Number) -> bool:
        """Whether both are the same number.

        They may differ by a millionth of the larger one (never by more than 1e-6), so that 0.333333 is 1/3. Where only
        one is a percentage, both readings count: 50% is 50 and is 0.5. 8 is 8 am and is 8 pm, which differ.
        """
        if self.half != other.half and self.half and other.half:
            return False
        if _close(self.value, other.value):
            return True
        if self.percent == other.percent:
            return False
        mine, theirs = (n.value / 100 if n.percent else n.value for n in (self, other))
        return _close(mine, theirs)


def _close(a: Fraction, b: Fraction) -> bool:
    larger = max(abs(a), abs(b))
    return abs(a - b) * 10**6 <= min(larger, Fraction(1))


def as_latex(text: str) -> str:
    r"""Write the signs of keyboards and other scripts as LaTeX: `10²`, `½`, `√2`, `2pi`, `(2, ∞)`, full-width digits.

    An ordinal's ending comes down (`12^{\mathrm{th}}` is `12th`), a repeating decimal becomes a fraction.
    """
    if not text.isascii():
        text = text.translate(_SIGNS)
        text = re.sub(r"[⁰¹²³⁴-⁹⁺⁻]+", lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
        text = re.sub(r"[₀-₉]+", lambda match: f"_{{{match[0].translate(_SUBSCRIPTS)}}}", text)
        text = "".join(map(_vulgar_fraction, text))
    for pattern, replacement in _AS_LATEX:
        text = pattern.sub(replacement, text)
    text = _ORDINAL.sub(r"\1", text)
    return _REPEATING.sub(_as_fraction, text).strip()


def _vulgar_fraction(sign: str) -> str:
    kind, *parts = unicodedata.decomposition(sign).split() or [""]
    if kind != "<fraction>":
        return sign
    top, _, bottom = "".join(chr(int(part, 16)) for part in parts).partition("⁄")
    return rf"\frac{{{top}}}{{{bottom or 1}}}"


def _as_fraction(decimal: re.Match[str]) -> str:
    part = {name: re.sub(r"\D", "", digits or "") for name, digits in decimal.groupdict().items()}
    whole, fixed = part.pop("whole"), part.pop("fixed") + part.pop("start")
    repeated = "".join(part.values())
    if len(whole + fixed + repeated) > 60:
        return decimal[0]
    value = Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(fixed))
    value += Fraction(int(fixed or 0), 10 ** len(fixed)) + int(whole or 0)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def parse_loosely(text: str) -> Number | None:
    """A number where one is expected: `3,14` (where it cannot be thousands), an exclaimed `18!`, `7 m`, or in words."""
    if text.endswith("!"):
        return parse_number(text.rstrip("!")) or _in_words(text.rstrip("!"))
    measured = _LOOSE_UNIT.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
    if measured:
        return parse_number(measured[1] + (measured[2] or ""))
    comma = _DECIMAL_COMMA.match(text)
    if comma:
        return parse_number(f"{re.sub('[. ]', '', comma[1])}.{comma[2]}{text[comma.end() :]}")
    return _in_words(text)


def _in_words(text: str) -> Number | None:
    """`twenty-one`, `minus five`, `a dozen`, `two and a half`: the number that the first words say, then a unit."""
    if re.search(r"\d", text):
        told = re.fullmatch(r"([A-Za-z\s-]+)\(([^()]+)\)(.*)", text, re.DOTALL)  # seventeen (17) eggs
        said, shown = (_in_words(told[1]), parse_number(told[2] + told[3])) if told else (None, None)
        return said if said and shown and said.equals(shown) else None
    words = re.findall(r"[A-Za-z]+", re.sub(rf"^{_ABOUT}\s+", "", text.lower()))
    sign = -1 if words[:1] in (["minus"], ["negative"]) else 1
    words = words[sign < 0 :]
    value, read = _whole_in_words(words)
    part, further = _part_in_words(words)
    if part is not None:  # three quarters
        value, read = part, further
    elif value is not None and words[read : read + 1] == ["and"]:  # two and a half
        part, further = _part_in_words(words[read + 1 :])
        value, read = (None, 0) if part is None else (value + part, read + 1 + further)
    unit = words[read:]
    if value is None or any(word in _SMALL | _PARTS | _TIMES or _NOT_UNIT.fullmatch(word) for word in unit):
        return None
    return Number(sign * value)


def _whole_in_words(words: list[str]) -> tuple[Fraction | None, int]:
    """The whole number that the first words say, and how many they are; None where they say none."""
    total = group = read = 0
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in _SMALL:
            group += _SMALL[word]
        elif word in ("a", "an") and not read and following in _TIMES:
            group = 1
        elif word in ("hundred", "dozen") and read:
            group *= _TIMES[word]
        elif word in _TIMES and read:
            total, group = total + group * _TIMES[word], 0
        elif not (word == "and" and total + group >= 100 and following in _SMALL):  # one hundred and five
            break
        read += 1
    return (Fraction(total + group), read) if read else (None, 0)


def _part_in_words(words: list[str]) -> tuple[Fraction | None, int]:
    """`half`, `a half`, `three quarters`: the fraction that the first words say, and how many they are."""
    count = {"a": 1, "an": 1, **_SMALL}.get(words[0]) if words else None
    counted = count is not None
    name = words[counted : counted + 1]
    parts = (_PARTS.get(name[0]) or _nth(words[counted:])) if name else None
    return (Fraction(count or 1, parts), 1 + counted) if parts else (None, 0)


def _nth(words: list[str]) -> int | None:
    """5 for `fifths`, and for `fifth` where nothing but "of" follows: "12 fifth graders" are no part of something."""
    name = words[0] if words else ""
    alone = words[1:2] in ([], ["of"])
    return _NTHS.get(name.removesuffix("s")) if name.endswith("s") or alone else None


def _reads_as_value(left: str) -> bool:
    """Whether what stands left of an equals sign leaves the right side's value: arithmetic, or a name (`x`, `cost`)."""
    if _NAME.fullmatch(left) or not _VARIABLE_IN_SUM.search(left):
        return True
    return not re.search(r"[-+*/^]|\d", left)


def parse_number(text: str) -> Number | None:
    """Return the number that the whole of `text` states, or None where it states something else.

    Thousands separators, a currency sign, a unit ("miles per hour"), "about" and the left sides of equations
    ("3 * 6 = 18") are read over; units are not compared. Fractions, mixed numbers, scientific notation and words from
    hundred to trillion count. A letter right after the digits ("5x", "2 k") may be algebra: that is no plain number.
    """
    if len(text) > _MAX_CHARACTERS:
        return None
    text = as_latex(text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if "=" in text and not re.search(r"[<>!]=|≠", text):
        *left, text = text.split("=")
        if not all(map(_reads_as_value, left)):
            return None
    match = _NUMBER.fullmatch(text.strip())
    if not match or (match["sign"] and match["inner_sign"]):
        return None
    value = _value(match)
    rest = _read_rest(match["rest"])
    if value is None or rest is None:
        return None
    factor, percent, half = rest
    sign = -1 if match["inner_sign"] == "-" or match["sign"] not in ("", "+") else 1
    return Number(sign * value * factor, percent, half)


def _value(match: re.Match[str]) -> Fraction | None:
    top, bottom = match["top"] or match["top2"], match["bottom"] or match["bottom2"]
    if top:
        below = _fraction(bottom)
        if below == 0:
            return None
        return Fraction(int(match["whole"] or match["whole2"] or 0)) + _fraction(top) / below
    exponent = int((match["exponent"] or match["power"] or "0").strip("{}"))
    if abs(exponent) > _MAX_EXPONENT:
        return None
    return _fraction(match["decimal"]) * Fraction(10) ** exponent


def _fraction(digits: str) -> Fraction:
    return Fraction(re.sub(r"[{}\s,'’]", "", digits).rstrip("."))


def _read_rest(rest: str) -> tuple[Fraction, bool, str] | None:
    """What follows the digits: (multiplier, is a percentage, half of the day or years); None where it is no unit."""
    percent = re.match(r"\s*(?:%|per\s?cent\b|pct\b|percentage\b)", rest, re.IGNORECASE)
    if percent:
        rest = rest[percent.end() :]
    if not _UNIT_TEXT.fullmatch(rest):
        return None
    words = [word.lower() for word in _UNIT_WORD.findall(rest)]
    if words and rest[0].isalpha() and not _GLUED_UNIT.fullmatch(words[0]):
        return None
    if (words and all(map(_VARIABLE.fullmatch, words))) or any(map(_NOT_UNIT.fullmatch, words)):
        return None
    factor = Fraction(1)
    while words and words[0] in _MULTIPLIERS:  # hundred thousand
        factor *= _MULTIPLIERS[words.pop(0)]
    half = next((_HALVES[word] for word in words if word in _HALVES), "")
    return factor / (_nth(words) or 1), percent is not None, half
