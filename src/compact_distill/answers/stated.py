r"""Find the final answer that a writer stated in a text.

A statement of the answer is one of

    A: 18                                   at the start of a line
    Answer: 18    **Final answer:** 18      at the start of a line
    #### 18                                 as in GSM8K; other level-4 headings are not statements
    the answer is 18                        also "the answer (arabic numerals) is", "the answers to ... are"
    \boxed{\frac{1}{2}}                     also \fbox; braces may nest
    (B)    yes                              alone on the last line, and only where nothing else states an answer

and the last one in the text wins. It ends with its sentence or its line; "because ...", "since ..." and "which ..."
are no part of the answer. An answer is kept as written, less what `tidy` takes off around it; one of more than
1,000 characters is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CHARACTERS = 1000  # of an answer; also bounds the work on what a model wrote

# A head is where a statement starts; the answer follows it. Every repetition is bounded or unambiguous: the text is
# a model's, and may be hostile.
_CHOICE_A = re.compile(r"^[ \t]*A:[*_ \t]*", re.MULTILINE)
_LABELLED = re.compile(
    r"^[ \t>*_#\-]*(?:(?:the|my|our)[ \t]+)?(?:(?:final|correct)[ \t]+)?answer[ \t*_]*:[*_ \t]*",
    re.MULTILINE | re.IGNORECASE,
)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(?=([^\n#]*))")
_SENTENCE = re.compile(
    r"\b(?:answers?|correct[ \t]+(?:choice|option))\b(?:[ \t]+(?:choice|option)\b)?"
    r"(?:[ \t]*\([^()\n]{0,60}\))?(?:[ \t]+(?:to|for|of|in)\b[^.\n:]{0,80}?)?"
    r"[ \t*_]*(?:\b(?:is|are)\b|\b(?:should|would|will|must)[ \t]+be\b|=)"
    r"(?:[ \t]+(?:therefore|thus|then|also|indeed|simply)\b,?+)?+[ \t]*+:?+[ \t]*+"
    r"(?!(?:not|that|obtained|found|given|calculated|computed|determined|correct|incorrect|wrong|reasonable)\b)",
    re.IGNORECASE,
)
_OTHER_CHOICE = re.compile(r"^[ \t]*B:", re.MULTILINE)  # then "A: ..." is a choice of the question
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<!\.)(?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMt)\.(?=\s|\*|$)")
_CLAUSE = re.compile(r",?\s(?:because|since|which|whereas)\b", re.IGNORECASE)
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:yes|no)\b)[A-Za-z]{2,}", re.IGNORECASE)
_BOLD = re.compile(r"(?<!\w)\*\*([^*]+)\*\*(?!\w)")
_BARE_LABEL = re.compile(r"[\s*_]*(\([A-Za-z]\)|yes|no)[\s*_.]*", re.IGNORECASE)

_LEAD = re.compile(
    r"[\s>*_#\-]*+(?:final answer[*_]*:[*_\s]*)?"
    r"(?:(?:and|so|therefore|thus|hence|then|finally|consequently|in conclusion|in summary)\b[,:]?\s*)*"
    r"(?:(?:the|our|my)\s+)?(?:(?:final|correct|numerical)\s+)*[*_]*",
    re.IGNORECASE,
)
_LEAD_CHARACTERS = 80  # of "Therefore, the final", at most
_BREAK = re.compile(r"(?:(?<!\.\.)[.!?][\"')\]*_$]*|\\\)|\\\])(?=\s)")
_SO_CLAUSE = re.compile(r"[,;:]\s+(?=(?:and\s+)?(?:so|therefore|thus|hence)\b)", re.IGNORECASE)
_OPENING = re.compile(r"(?:\$|\\\()[ \t]*\Z|(?:\\\[|\$\$)\s*\Z")
_TRAIL = re.compile(r"(?:[\s.*_$`]|\\[\])])*(?:I hope it is correct\.?\s*)?", re.IGNORECASE)
_HEADING = re.compile(r"[\s>#*_]*(?:the\s+)?(?:final\s+)?answer[\s:*_]*", re.IGNORECASE)

_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


@dataclass(frozen=True, slots=True)
class _Statement:
    """An answer, and the characters `start:end` of the text that state it."""

    start: int
    end: int
    answer: str


def extract_answer(text: str) -> str | None:
    r"""Return the final answer of `text` as its writer wrote it, or None where none is stated.

    "... so she has $1,800.\nA: $1,800" gives "$1,800"; "Thus $x = \boxed{\frac{1}{2}}$." gives r"\frac{1}{2}".
    """
    statement = _last_statement(text)
    return statement.answer if statement else None


def split_answer(text: str) -> tuple[str, str | None]:
    r"""Split a rationale into its reasoning and its final answer (None: no answer is stated).

    The statement of the answer is removed from the end of the reasoning, so that a target which states the answer anew
    says it once. It must be a sentence of its own ("... = 18 eggs. The answer is 18.") or a clause that a comma and
    "so" or its like start ("..., so the answer is 18."): nothing else is there but "So" or "Therefore", "the final",
    Markdown or LaTeX marks and a period. Display mathematics (`\[`, `\boxed{18}`, `\]` on three lines) counts as one
    line, and a heading "Final answer" right above goes too. Otherwise the text stays. The reasoning is stripped of
    surrounding white space.
    """
    statement = _last_statement(text)
    if statement is None:
        return text.strip(), None
    if not _TRAIL.fullmatch(text, statement.end):
        return text.strip(), statement.answer
    start = statement.start
    if text.startswith("\\", start):  # a \boxed{}; the mathematics around it opens here or on the line above
        opening = _OPENING.search(text, max(0, start - 200), start)
        start = opening.start() if opening else start
    line = text.rfind("\n", 0, start) + 1
    sentence = _own_sentence(text, line, start)
    if sentence is None:
        return text.strip(), statement.answer
    reasoning = text[:sentence].rstrip()
    above = reasoning.rfind("\n") + 1
    if sentence == line and _HEADING.fullmatch(reasoning, above):
        reasoning = reasoning[:above]
    return reasoning.strip(), statement.answer


def _own_sentence(text: str, line: int, start: int) -> int | None:
    """Where the sentence or clause begins that consists of the statement at `start`; None where more is in it."""
    if _LEAD.fullmatch(text, line, start):
        return line
    nearest = max(line, start - _LEAD_CHARACTERS)
    for match in _BREAK.finditer(text, nearest, start):
        if _LEAD.fullmatch(text, match.end(), start):
            return match.end()
    for match in _SO_CLAUSE.finditer(text, nearest, start):
        if _LEAD.fullmatch(text, match.end(), start):
            return match.start()
    return None


def tidy(answer: str) -> str:
    r"""Take off what surrounds an answer and is no part of it.

    That is: white space, Markdown's bold marks, `*` and backticks at the ends, a sentence-final period, and LaTeX
    wrappers around the whole: `$...$`, `$$...$$`, `\(...\)`, `\[...\]`, `\boxed{...}`. What is inside stays as written:
    "$1,800" keeps its sign.
    """
    while True:
        shorter = _BOLD.sub(r"\1", answer).strip().strip("*`")
        if shorter.endswith(".") and not shorter.endswith(".."):
            shorter = shorter[:-1]
        shorter = _unwrap(shorter)
        if shorter == answer:
            return answer
        answer = shorter


def _unwrap(answer: str) -> str:
    boxed = _BOXED.match(answer)
    if boxed and dict(_boxes(answer)).get(0) == len(answer):
        return answer[boxed.end() : -1]
    for opening, closing in _WRAPPERS:
        inner = answer[len(opening) : -len(closing)]
        wrapped = answer.startswith(opening) and answer.endswith(closing) and not answer.endswith("\\" + closing)
        if wrapped and inner and opening not in inner and "$" not in inner.replace(r"\$", ""):
            return inner
    return answer


def _boxes(text: str) -> list[tuple[int, int]]:
    r"""Start and end of every outermost `\boxed{...}` that closes and is not empty, in order."""
    opens = {match.end() - 1: match.start() for match in _BOXED.finditer(text)}
    if not opens:
        return []
    closed: list[tuple[int, int]] = []
    stack: list[int] = []
    for match in _BRACES.finditer(text):
        if match.group() == "{":
            stack.append(match.start())
        elif match.group() == "}" and stack:
            brace = stack.pop()
            length = match.end() - opens.get(brace, 0)
            if brace in opens and length <= MAX_CHARACTERS and text[brace + 1 : match.start()].strip():
                closed.append((opens[brace], match.end()))
    outermost: list[tuple[int, int]] = []
    for start, end in sorted(closed):
        if not outermost or start >= outermost[-1][1]:
            outermost.append((start, end))
    return outermost


def _last_statement(text: str) -> _Statement | None:
    written = len(text.rstrip())
    heads = _heads(text, written)
    boxes = _boxes(text)
    last_box = boxes[-1][0] if boxes else -1
    for start, stop in reversed(heads):
        if start < last_box:
            break
        begin, end = _answer_span(text, stop, written)
        answer = tidy(text[begin:end]) if end - begin <= MAX_CHARACTERS else ""
        if answer:
            return _Statement(start, end, answer)
    if boxes:
        return _boxed_statement(text, boxes[-1], heads)
    return _bare_label(text, written)


def _heads(text: str, written: int) -> list[tuple[int, int]]:
    """Where statements start, as (start of the statement, start of its answer), in order."""
    heads = [match.span() for pattern in (_LABELLED, _SENTENCE) for match in pattern.finditer(text)]
    if not _OTHER_CHOICE.search(text):
        heads += [match.span() for match in _CHOICE_A.finditer(text)]
    for match in _HASHES.finditer(text):
        is_last_line = match.end(1) >= written
        if is_last_line or not _WORD.search(match.group(1)):
            heads.append(match.span())
    return sorted(heads)


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _answer_span(text: str, start: int, written: int) -> tuple[int, int]:
    """The answer that follows a head: it ends with its sentence, its line, or before a subordinate clause."""
    line_end = _line_end(text, start)
    if not text[start:line_end].strip(" \t\r*_"):
        below = _skip_blank(text, line_end)
        if _line_end(text, below) >= written:  # it stands alone on the last line, below "The answer is:"
            start, line_end = below, written
    end = line_end
    for pattern in (_SENTENCE_END, _CLAUSE):
        match = pattern.search(text, start, end)
        if match:
            end = match.start()
    return start, end


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _boxed_statement(text: str, box: tuple[int, int], heads: list[tuple[int, int]]) -> _Statement:
    r"""The statement of a `\boxed{}`; where a sentence states it ("The answer is $\boxed{18}$."), that sentence."""
    start, end = box
    answer = tidy(text[start:end])
    before = max((head for head in heads if head[0] < start), default=None)
    if before and not text[before[1] : start].strip(" \t\r\n$*\\[("):
        start = before[0]
    return _Statement(start, end, answer)


def _bare_label(text: str, written: int) -> _Statement | None:
    line = text.rfind("\n", 0, written) + 1
    label = _BARE_LABEL.fullmatch(text, line)
    return _Statement(label.start(1), label.end(1), label.group(1)) if label else None
