"""Find the final answer in what a student wrote: one finder after the other, and which of them found it.

    statement    the writer states it: "The answer is 18.", "#### 18", \\boxed{18} ...  (compact_distill.answers)
    last_number  the last number of a text that ended by itself
    choice       the last line is a label ("B", "(B) library") or the text of a choice
    yes_no       the text begins with yes or no

A benchmark's parser is a list of them. An answer that only a later finder found is counted under its name, so that
its share can be seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from compact_distill.answers import extract_answer

_NUMBER = re.compile(r"(?:(?<!\d)-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_LABELLED = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]+\s*(.*)|\s*)", re.DOTALL)
_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_EDGES = " \t*_`\"'.,;:!"


def find_answer(
    text: str, finished: bool, parser: Sequence[str], choices: Mapping[str, str]
) -> tuple[str, str] | tuple[None, None]:
    """Look for the final answer.

    Args:
        text: what the student wrote.
        finished: whether it ended by itself; in a text that was cut only `statement` looks.
        parser: names of the finders, in order.
        choices: label and text of each choice; empty where the row has none.

    Returns:
        (answer, name of the finder), or (None, None). Where the answer is the text of one of the choices, the
        answer is its label.
    """
    for name in parser:
        if name != "statement" and not finished:
            continue
        answer = _FINDERS[name](text, choices)
        if answer is not None:
            return _label_of(answer, choices) or answer, name
    return None, None


def _statement(text: str, choices: Mapping[str, str]) -> str | None:
    return extract_answer(text)


def _last_number(text: str, choices: Mapping[str, str]) -> str | None:
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def _choice(text: str, choices: Mapping[str, str]) -> str | None:
    lines = text.strip().splitlines()
    line = lines[-1].strip(_EDGES) if lines else ""
    labelled = _LABELLED.fullmatch(line)
    if labelled:
        label = next((known for known in choices if known.lower() == labelled[1].lower()), None)
        if label and (not labelled[2] or _words(labelled[2]) == _words(choices[label])):
            return label
    return _label_of(line, choices)


def _yes_no(text: str, choices: Mapping[str, str]) -> str | None:
    found = _YES_NO.match(text)
    return found[1].lower() if found else None


def _label_of(answer: str, choices: Mapping[str, str]) -> str | None:
    """The label of the one choice whose text the answer is; None where the answer is a label already."""
    words = _words(answer)
    if not words or any(label.casefold() == " ".join(words) for label in choices):
        return None
    labels = [label for label, text in choices.items() if _words(text) == words]
    return labels[0] if len(labels) == 1 else None


def _words(text: str) -> list[str]:
    return re.sub(r"[^\w\s]+", " ", text).casefold().split()


_FINDERS: dict[str, Callable[[str, Mapping[str, str]], str | None]] = {
    "statement": _statement,
    "last_number": _last_number,
    "choice": _choice,
    "yes_no": _yes_no,
}
