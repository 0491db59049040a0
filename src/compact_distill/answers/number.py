r"""Read a plain number out of an answer: `$1,800 a week`, `18.0`, `-3/4`, `\frac{1}{2}`, `50\%`, `2 million`."""

from __future__ import annotations

import re
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


def parse_number(text: str) -> Number | None:
    """Return the number that the whole of `text` states, or None where it states something else.

    Thousands separators, a currency sign, a unit ("miles per hour"), "about" and the left sides of equations
    ("3 * 6 = 18") are read over; units are not compared. Fractions, mixed numbers, scientific notation and words from
    hundred to trillion count. A letter right after the digits ("5x", "2 k") may be algebra: that is no plain number.
    """
    if len(text) > _MAX_CHARACTERS:
        return None
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if "=" in text and not re.search(r"[<>!]=|≠", text):
        text = text.rpartition("=")[2]
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
