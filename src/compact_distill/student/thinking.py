"""Find thinking expressions (therefore, wait, so ...) in a reasoning text, as character spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

LEXICON: tuple[str, ...] = (
    "therefore",
    "thus",
    "hence",
    "so",
    "consequently",
    "wait",
    "but",
    "however",
    "although",
    "first",
    "second",
    "finally",
    "specifically",
    "in summary",
    "basically",
    "let",
    "assuming",
    "suppose",
    "hmm",
    "okay",
    "note",
)

# The first word of the text, of a line, and of a sentence (after . ! or ? and white space).
_STARTS = re.compile(r"(?:\A|(?<=\n)|(?<=[.!?]\s))[^\S\n]*(\S+)")


@lru_cache(maxsize=16)
def _pattern(extra: tuple[str, ...]) -> re.Pattern[str]:
    words = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in LEXICON)
    return re.compile("|".join([rf"\b(?:{words})\b", *(f"(?:{pattern})" for pattern in extra)]), re.IGNORECASE)


def thinking_spans(text: str, extra: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Return the (start, end) character spans of thinking expressions in `text`, in order.

    An expression is a word of `LEXICON` (whole words, any case) or a match of a regular expression of `extra`
    (any case). A text without one gets the first words of its sentences and lines instead (design, section 2).
    """
    spans = [m.span() for m in _pattern(tuple(extra)).finditer(text) if m.end() > m.start()]
    return spans or [m.span(1) for m in _STARTS.finditer(text)]
