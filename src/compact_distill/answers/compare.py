"""Compare an answer with the gold answer without mathematics: numbers, letters, yes/no and words.

The gold answer decides what kind of comparison it is. What needs algebra is left to `Verifier`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from compact_distill.answers.stated import MAX_CHARACTERS, tidy
from compact_distill.records import Verdict

_TRUTH = re.compile(r"(yes|no|true|false)(?:\s*[.,;:!(].*|\s+[-–—]\s.*)?", re.IGNORECASE | re.DOTALL)
_GOLD_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].]?")
_LETTER = re.compile(
    r"(?:(?:option|choice|answer)\s+)?"
    r"(?:[(\[]([A-Za-z])[)\]](?:[\s.:\w].*)?|([A-Za-z])(?:[).:]|\s+[-–—](?=\s))(?:\s.*)?|([A-Za-z]))",
    re.IGNORECASE | re.DOTALL,
)
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|textbf|textrm|mathrm|mathbf|textit)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_LONG_WORD = re.compile(r"[A-Za-z]{3,}")
_OPERATOR = re.compile(r"[\\=+*/^_<>{}|]")  # what makes a gold answer with words in it mathematics all the same
_BASED = re.compile(r"\(?(\d+)\)?\s*_\s*\{?\s*(\d+)\s*\}?")  # 52_9: digits and their base
_OF_VARIABLE = re.compile(r"\s*([A-Za-z])\s*=")
_WORD_SIGNS = re.compile(r"[^\w\s]+")
_FUNCTION = re.compile(
    r"(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|ln|exp|sqrt|frac|max|min|gcd|lcm|mod|det|pi|oo|inf|infinity"
)


class AnswerKind(StrEnum):
    """What a gold answer is: it decides how an answer compares with it, and what may be inferred from a text."""

    NUMBER = "number"
    YES_NO = "yes_no"
    TRUTH = "truth"  # true or false
    LETTER = "letter"
    WORDS = "words"
    MATHEMATICS = "mathematics"


def answer_kind(gold: str) -> AnswerKind:
    """The kind of a gold answer. Raises ValueError where it is empty."""
    gold = tidy(gold)
    if not gold:
        raise ValueError("gold answer must not be empty; mend the problem's `answer`")
    plain = _TEXT_COMMAND.sub(r"\1", gold).strip()
    if plain.lower() in ("yes", "no"):
        return AnswerKind.YES_NO
    if plain.lower() in ("true", "false"):
        return AnswerKind.TRUTH
    if _GOLD_LETTER.fullmatch(plain):
        return AnswerKind.LETTER
    if parse_number(gold):
        return AnswerKind.NUMBER
    if _LONG_WORD.search(plain) and _has_words(plain) and not _OPERATOR.search(plain):
        return AnswerKind.WORDS
    return AnswerKind.MATHEMATICS


def compare_answers(answer: str | None, gold: str) -> Verdict | None:
    """Compare an extracted answer with the gold answer; None means that only `Verifier` can tell.

    - A number compares by value, whatever its separators, currency, unit or percent sign (`Number.equals`).
    - A single letter compares as a label: (B) = B = b = "(B) bookstore".
    - yes/no and true/false compare as labels; "yes, because ..." is yes.
    - Words ("Evelyn") compare by their letters and digits, in any case.
    - Anything else is mathematics: undecided, unless both are written the same.

    An answer that is None, or is not of the gold answer's kind ("a few" for 18), or is too long, is unparsed.

    Raises:
        ValueError: the gold answer is empty.
    """
    kind = answer_kind(gold)
    gold = tidy(gold)
    answer = tidy(answer) if answer and len(answer) <= MAX_CHARACTERS else ""
    if not answer:
        return Verdict.UNPARSED
    plain_gold = _TEXT_COMMAND.sub(r"\1", gold).strip()
    plain = _TEXT_COMMAND.sub(r"\1", answer).strip()
    if kind in (AnswerKind.YES_NO, AnswerKind.TRUTH):
        return _labels(_TRUTH.fullmatch(plain), plain_gold)
    letter = _GOLD_LETTER.fullmatch(plain_gold)
    if letter:
        return _labels(_LETTER.fullmatch(plain), letter[1])
    if as_latex(answer).split() == as_latex(gold).split():
        return Verdict.CORRECT
    based = _BASED.fullmatch(gold)
    if based:
        stated_base = _BASED.fullmatch(answer) or _BASED.fullmatch(f"{answer}_{based[2]}")  # the question names it
        same = stated_base is not None and stated_base.groups() == based.groups()
        return Verdict.CORRECT if same else Verdict.WRONG
    if _BASED.fullmatch(answer):
        return Verdict.WRONG
    names = _OF_VARIABLE.match(answer), _OF_VARIABLE.match(gold)
    if names[0] and names[1] and names[0][1] != names[1][1]:
        return Verdict.WRONG
    number = parse_number(gold)
    if number:
        exact = parse_number(answer)
        stated = exact or parse_loosely(answer)
        if stated and (exact or not answer.endswith("!") or number.equals(stated)):
            return Verdict.CORRECT if number.equals(stated) else Verdict.WRONG
        return Verdict.UNPARSED if _has_words(plain) else None
    if kind is AnswerKind.WORDS:
        return Verdict.CORRECT if _words(plain) == _words(plain_gold) else Verdict.WRONG
    return None


def _labels(stated: re.Match[str] | None, gold: str) -> Verdict:
    if stated is None:
        return Verdict.UNPARSED
    label = next(group for group in stated.groups() if group)
    return Verdict.CORRECT if label.lower() == gold.lower() else Verdict.WRONG


def _has_words(text: str) -> bool:
    """Whether a text holds words of a language, besides LaTeX commands and the names of functions."""
    return any(not _FUNCTION.fullmatch(word.lower()) for word in _WORD.findall(_COMMAND.sub(" ", text)))


def _words(text: str) -> list[str]:
    return _WORD_SIGNS.sub(" ", text).casefold().split()


# ---- plain numbers: `$1,800 a week`, `18.0`, `-3/4`, `\frac{1}{2}`, `50\%`, `2 million`

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
_VARIABLE_LETTER = r"[^\W\d_]"
_UNIT_TEXT = re.compile(
    rf"(?:[\s/.()\-]|{_VARIABLE_LETTER}(?:{_VARIABLE_LETTER}|['’])*(?:\s?\^[23]|\s?\^\{{[23]\}}|[²³])?)*[$€£¥₹₩₽¢]?[\s.,;:?]*"
)
_UNIT_WORD = re.compile(rf"{_VARIABLE_LETTER}+")
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
    words = [word.lower() for word in _UNIT_WORD.findall(rest)]
    if not words:
        return 1, percent is not None
    if rest[0].isalpha() and not _GLUED_UNIT.fullmatch(words[0]):
        return None
    if all(_VARIABLE.fullmatch(word) for word in words) or any(_NOT_UNIT.fullmatch(word) for word in words):
        return None
    return _MULTIPLIERS.get(words[0], 1), percent is not None
