r"""Read a plain number out of an answer: `$1,800 a week`, `18.0`, `-3/4`, `\frac{1}{2}`, `50\%`, `2 million`."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

_MAX_CHARACTERS = 400  # a longer answer is no number that somebody stated; also bounds the work here
_MAX_EXPONENT = 400  # 1e999999999 would fill the memory

_THIN = "\u00a0\u2009\u202f"
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"<<[^<>]*>>", ""),  # GSM8K's calculator annotations
        (r",\s*\\!\s*|\{,\}", ","),  # 10,\!080 and 10{,}080
        (r"\\[!,;]|\\(?:left|right|displaystyle)\b", ""),
        (rf"\\ |~|[{_THIN}]", " "),
        (r"\\(?:text|mbox|textbf|textrm|mathrm|mathbf|textit)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°", " degrees"),
        (r"\\([$%])", r"\1"),
        (r"[−–]", "-"),
        (r"\\(?:times|cdot)\b|×", "*"),
        (r"\\(?:approx|sim)\b|≈", ""),
    )
)

# What keyboards and other scripts write, as LaTeX.
_SIGNS = str.maketrans({**{chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}, "−": "-", "–": "-", "⁄": "/"})
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_AS_LATEX = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"∞|(?<![A-Za-z\\])(?:infinity|oo)(?![A-Za-z])", r"\\infty "),
        (r"π|(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"√\s*\(([^()]*)\)|\\?\bsqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"√\s*(\d+|[a-z])", r"\\sqrt{\1}"),
        (r"≤", r"\\le "),
        (r"≥", r"\\ge "),
        (r"∪", r"\\cup "),
        (r"\\bar\{(\d+)\}", r"\\overline{\1}"),
    )
)
_ORDINAL = re.compile(r"\^\s*\{?\s*(?:\\(?:text|mathrm|rm|textrm)\s*\{?\s*)?(th|st|nd|rd)\b\s*\}{0,2}")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\{(\d+)\}")
_DECIMAL_COMMA = re.compile(r"([-+]?[$€£]?\s?(?:\d{1,3}(?:\.\d{3})+|\d+)),(\d{1,2}|\d{4,}|(?<=\.\d{3},)\d+)(?![\d.,])")
_VARIABLE_IN_SUM = re.compile(r"(?<![A-Za-z\\])(?!a\s+[a-z]{2})[A-Za-z](?![A-Za-z])")
_NAME = re.compile(r"\s*\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?(?:\([a-z]\))?\s*")
_ONES = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen|nineteen"
)
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_SMALL = {word: n for n, word in enumerate(_ONES.split("|"))}
_SMALL |= {word: 10 * n for n, word in enumerate(_TENS.split("|"), start=2)}

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ ]\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_BRACED = rf"(?:\{{\s*-?{_DECIMAL}\s*\}}|\s?\d)"
_NUMBER = re.compile(
    rf"""
    (?:(?:about|approximately|approx\.?|around|roughly|exactly|only)\s+)?
    (?P<sign>[-+]?)\s*
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
_LETTER = r"[^\W\d_]"
_UNIT_TEXT = re.compile(
    rf"(?:[\s/.()\-]|{_LETTER}(?:{_LETTER}|['’])*(?:\s?\^[23]|\s?\^\{{[23]\}}|[²³])?)*[$€£¥₹₩₽¢]?[\s.,;:?]*"
)
_WORD = re.compile(rf"{_LETTER}+")
_VARIABLE = re.compile(r"[a-z\u0370-\u03ff]")
# After one of these the number is only a part of what was said: "5 or 6", "5 and a half", "2 pi".
_NOT_UNIT = re.compile(
    r"and|or|to|plus|minus|times|over|half|quarters?|thirds?|squared|cubed|mod|choose|factorial|if|"
    r"pi|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp"
)
_GLUED_UNIT = re.compile(
    r"[a-z]{3,}|[^\x00-\x7f\u0370-\u03ff]+|cm|mm|km|kg|mg|ml|lb|oz|ft|in|hr|"
    r"am|pm|th|st|nd|rd|mi|yd|kb|mb|gb|tb|kw|hz"
)


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number, and whether it was written as a percentage (then `value` is what stands before the sign)."""

    value: Fraction
    percent: bool = False

    def equals(self, other: Number) -> bool:
        """Whether both are the same number.

        They may differ by a millionth of the larger one (never by more than 1e-6), so that 0.333333 is 1/3. Where only
        one is a percentage, both readings count: 50% is 50 and is 0.5.
        """
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
    whole, fixed, repeated = decimal.groups()
    if len(whole + fixed + repeated) > 60:
        return decimal[0]
    value = Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(fixed))
    value += Fraction(int(fixed or 0), 10 ** len(fixed)) + int(whole or 0)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def parse_loosely(text: str) -> Number | None:
    """A number where one is expected: also `3,14` (where that cannot be thousands), an exclaimed `18!`, or in words."""
    if text.endswith("!"):
        return parse_number(text.rstrip("!"))
    comma = _DECIMAL_COMMA.match(text)
    if comma:
        return parse_number(f"{comma[1].replace('.', '')}.{comma[2]}{text[comma.end() :]}")
    return _in_words(text)


def _in_words(text: str) -> Number | None:
    """`twenty-one`, `one hundred and five eggs`: the number that the first words say; the rest must be a unit."""
    words = re.findall(r"[A-Za-z]+", text.lower())
    if not words or re.search(r"\d", text) or words[0] not in _SMALL:
        return None
    total = group = read = 0
    for word in words:
        if word in _SMALL:
            group += _SMALL[word]
        elif word == "hundred":
            group *= 100
        elif word in _MULTIPLIERS:
            total, group = total + group * _MULTIPLIERS[word], 0
        elif word != "and":
            break
        read += 1
    rest = words[read:]
    if words[read - 1] == "and" or any(word in _SMALL or _NOT_UNIT.fullmatch(word) for word in rest):
        return None
    return Number(Fraction(total + group))


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
    factor, percent = rest
    sign = -1 if "-" in (match["sign"], match["inner_sign"]) else 1
    return Number(sign * value * factor, percent)


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
    return Fraction(re.sub(r"[{}\s,]", "", digits).rstrip("."))


def _read_rest(rest: str) -> tuple[int, bool] | None:
    """What follows the digits: (multiplier, is a percentage), or None where it is no unit."""
    percent = re.match(r"\s*(?:%|per\s?cent\b|pct\b|percentage\b)", rest, re.IGNORECASE)
    if percent:
        rest = rest[percent.end() :]
    if not _UNIT_TEXT.fullmatch(rest):
        return None
    words = [word.lower() for word in _WORD.findall(rest)]
    if not words:
        return 1, percent is not None
    if rest[0].isalpha() and not _GLUED_UNIT.fullmatch(words[0]):
        return None
    if all(_VARIABLE.fullmatch(word) for word in words) or any(_NOT_UNIT.fullmatch(word) for word in words):
        return None
    return _MULTIPLIERS.get(words[0], 1), percent is not None
