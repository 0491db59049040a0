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
def _patterns(extra: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    words = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in LEXICON)
    # Each on its own: in one alternation `let` would hide a user's `let me check`, and group numbers would shift.
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in (rf"\b(?:{words})\b", *extra))


def thinking_spans(text: str, extra: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Return the (start, end) character spans of thinking expressions in `text`, in order; they may overlap.

    An expression is a word of `LEXICON` (whole words, any case) or a match of a regular expression of `extra`
    (any case). A text without one gets the first words of its sentences and lines instead (docs/definitions.md).
    """
    spans = {m.span() for pattern in _patterns(tuple(extra)) for m in pattern.finditer(text) if m.end() > m.start()}
    return sorted(spans) or [m.span(1) for m in _STARTS.finditer(text)]
