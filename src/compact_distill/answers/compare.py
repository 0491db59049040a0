"""Compare an answer with the gold answer without mathematics: numbers, letters, yes/no and words.

The gold answer decides what kind of comparison it is. What needs algebra is left to `Verifier`.
"""

from __future__ import annotations

import re
from enum import StrEnum

from compact_distill.answers.number import as_latex, parse_loosely, parse_number
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
