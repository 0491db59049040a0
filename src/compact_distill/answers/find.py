r"""Find the final answer of a text, for training and evaluation alike: one finder after the other.

    statement    the writer states it: "The answer is 18.", "#### 18", \boxed{18} ...  (compact_distill.answers.stated)
    last_number  the number of the closing sentence: "So Ann has 40 coins.", "... = 18 eggs."
    choice       the letter of a choice on the last line ("B", "(B) library") or in the closing sentence ("so (B) is
                 right"), or the text of a choice alone on the last line
    yes_no       yes or no at the start ("Yes, it is common"), or at the start or end of the closing sentence

A benchmark's parser is a list of them. In a rationale the gold answer's kind says which one may follow `statement`;
what it found is said to be inferred. Only a text that ended by itself has a closing sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compact_distill.answers.compare import AnswerKind, answer_kind
from compact_distill.answers.numbers import parse_number
from compact_distill.answers.stated import THINKING, TOTAL, answer_part, extract_answer, last_statement
from compact_distill.records import AnswerFrom, Instance, RationaleStatus

_CLOSING_CHARACTERS = 600  # of a closing sentence; a longer one is none that states a result
# A sentence ends at its sign before white space; a decimal point has a digit after it, an abbreviation is none.
_SENTENCE_START = re.compile(
    r"(?<=[.!?])(?<!\bSt\.)(?<!\bDr\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMt\.)(?<!\bvs\.)"
    r"(?<!\b(?:Inc|Ltd)\.(?=\s[a-z]))(?<!\b(?:Jr|Sr|Co)\.(?=\s[a-z]))(?<!\b[A-Z]\.[A-Z]\.(?=\s[a-z]))(?<!\b(?:e\.g|i\.e)\.)"
    r"[\"')\]*_]*\s+|\n+"
)
_ENDED = re.compile(r"(?:[.!?。！？]|\\\]|\$\$)[\"'”’)\]}*_$\\\s]*\Z")
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_REASON = re.compile(r",?\s(?:because|since|whereas)\b.*", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w^\\{.,:])(?:(?<![\d)])(?<![\d)]\s)[-−]\s?|(?<=\s)–(?=[$€£¥.\d])|negative\s|(?<=[.:]\s)minus\s|(?<=\b(?:is|to|at|by)\s)minus\s)?"
    r"[$€£¥]?[-−]?(?:(?:\d+\s*)?(?:\\[dt]?frac\{\d+\}\{\d+\}|[¼-¾⅐-⅞])|\d+\s\d+/\d+"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+(?:\.\d+)?)?|\.\d+)"
    r"(?:\\?%|[A-Za-z]+)?",
    re.IGNORECASE,
)
_PART_OF_MORE = re.compile(r"\s*(?:[\^_{]|\\(?![\])])|:(?!00\b)\d|\*\*\w)")
# "2 + 16 coins" and "18 = 2 + 16" say a number that is no result.
_OPERAND_OF = re.compile(
    r"(?:[\w)}\]$]\s*(?:[+×÷·]|(?<!\*)\*|\\(?:cdot|times|div)\b|\s(?:plus|minus|times)\b)|[\d)]\s[-−])\s*\\?\$?\Z"
)
_OPERATOR_AFTER = re.compile(r"\s*(?:\+\s*[\w(\\$]|[×÷·]|\*\s*[\d$(]|\\(?:cdot|times|div)\b)")
_LIST_MARK = re.compile(r"\A\s*[-–•*+]\s+")
_SIGNS = re.compile(r"[$€£¥]")
_POLITE = re.compile(
    r"\s(?:I hope|hope (?:this|that|it)|let me know|please let me know|feel free|thank you|thanks|is there anything)"
    r"\b[^.!?\n]{0,120}[.!?\s]*\Z",
    re.IGNORECASE,
)
_LABELLED = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]+\s*(.*)|\s*)", re.DOTALL)
_NAMED = re.compile(r"(?<!\w)(?:(?:option|choice)\s+[(\[]?([A-Z])[)\]]?(?!\w)|[(\[]([A-Z])[)\]])", re.IGNORECASE)
_SO = r"\W*(?:(?:so|thus|therefore|hence|in short|in summary|in conclusion|overall|ultimately)\b\W*)?"
_AT_START = re.compile(_SO + r"(yes|no)\b(?=\W*\Z|\s*[,.:;!—–]|\s+-|\s*\n|[*_\"'”]+)", re.IGNORECASE)
_YES_IT_IS = re.compile(_SO + r"(yes)\b(?!\W*(?:or|and|/)\b)", re.IGNORECASE)
_AT_END = re.compile(r"(?<!\bor )(?<!/)\b(yes|no)[\s.!*_\"'”)]*\Z", re.IGNORECASE)
_TRUTH_AT_START = re.compile(_SO + r"(true|false)\b(?=\W*\Z|\s*[,.:;!]|[*_\"'”]+)", re.IGNORECASE)
_TRUTH_AT_END = re.compile(r"(?<!\bor )(?<!\bnot )(?<!/)\b(true|false)[\s.!*_\"'”)]*\Z", re.IGNORECASE)
# What may stand around a statement that is taken out of a reasoning.
_LEAD = re.compile(
    r"(?:[\s>*_#\-]|[^\x00-\x7f\w])*+(?:final answer[*_]*:[*_\s]*)?"
    r"(?:(?:and|so|therefore|thus|hence|then|finally|consequently|in conclusion|in summary)\b[,:]?\s*)*"
    r"(?:(?:the|our|my)\s+)?(?:(?:final|correct|numerical)\s+)*[*_]*",
    re.IGNORECASE,
)
_LEAD_CHARACTERS = 80  # of "Therefore, the final", at most
_BREAK = re.compile(r"(?:(?<!\.\.)[.!?][\"')\]*_$]*|\\\)|\\\])(?=\s)|[。！？]")
_SO_CLAUSE = re.compile(r"[,;:]\s+(?=(?:and\s+)?(?:so|therefore|thus|hence)\b)", re.IGNORECASE)
_OPENING = re.compile(r"(?:\$|\\\()[ \t]*\Z|(?:\\\[|\$\$)\s*\Z")
_TRAIL = re.compile(
    rf"(?:[\s.!。*_$`\"”]|\\[\])]|です|である|입니다|,?[ \t](?:{TOTAL})\b|</\w{{1,20}}>)*"
    r"(?:I hope it is correct\.?\s*)?",
    re.IGNORECASE,
)
# What may follow an answer in its sentence: a reason (group 1), which is kept, or a remark.
_REMARK = re.compile(
    rf"[*_$\"”)]{{0,4}},?(?:[ \t]*(?:{TOTAL}),?)?\s+(?:((?:because|since|as|assuming)\b(?:[^\n.!?]|[.](?=\d)){{1,300}})"
    r"|(?:and[ \t]+)?(?:so|therefore|thus|hence|which|meaning|making)\b(?:[^\n.!?]|[.](?=\d)){0,300})[.!]{0,3}[*_\s]*",
    re.IGNORECASE,
)
_HEADING = re.compile(r"(?:[\s>#*_]|[^\x00-\x7f\w])*(?:the\s+)?(?:final\s+)?answer[\s:*_]*", re.IGNORECASE)
# What an answer of a kind could be, wherever it stands; "no" as in "no definitive answer" is none.
_POSSIBLE = {
    AnswerKind.YES_NO: re.compile(r"\byes\b|\bno\b(?=\W*\Z|\s*[.,;:!?\"'”’)*_]|\s+[-–—])", re.IGNORECASE),
    AnswerKind.TRUTH: re.compile(r"\b(?:true|false)\b", re.IGNORECASE),
    AnswerKind.NUMBER: re.compile(
        r"[\d½¼¾]|\b(?:zero|none|nothing|one|two|twice|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|half|"
        r"quarter|third|\w+teen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion)",
        re.IGNORECASE,
    ),
}
# "She has 42 apples left", "Janet makes $18 per day": a sentence that tells one number, where a number is asked for.
_TELLS = re.compile(
    r"(?!.*\b(?:not|no|or|if|unless|either|neither|cannot|never)\b|.*n['’]t\b)[a-z][a-z'’\s,-]*?\s(?:is|are|was|were|be|has|have|had"
    r"|makes?|made|gets?|got|needs?|pays?|paid|costs?|earns?|earned|spends?|spent|takes?|took|sells?|sold|buys?|bought|eats?|ate"
    r"|saves?|saved|receives?|received|owes?|weighs?|contains?|holds?|travels?|reads?|walks?|uses?|used|gives?|gave)\s(?=[^a-z\s])",
    re.IGNORECASE | re.DOTALL,
)
_EDGES = " \t*_`\"'.,;:!"


@dataclass(frozen=True, slots=True)
class FoundAnswer:
    """A rationale's reasoning without the statement of its answer, the answer, and where that was found.

    `gives_none`: the text ended by itself and holds no word that could be an answer of the gold answer's kind, such as
    "There is no definitive answer." where yes or no is asked for. Without it, and without an answer, nobody could tell.
    """

    reasoning: str
    answer: str | None
    source: AnswerFrom | None
    gives_none: bool = field(default=False, compare=False)

    @property
    def status(self) -> RationaleStatus:
        """What becomes of the rationale, as far as its answer decides it."""
        if self.answer is not None:
            return RationaleStatus.OK
        return RationaleStatus.NO_ANSWER if self.gives_none else RationaleStatus.UNPARSED


def answers_of(instance: Instance, infer: bool = True) -> list[FoundAnswer]:
    """What `read_rationale` finds in each rationale; an answer that the row gives goes before one in the text."""
    choices = choices_of(instance.extra.get("choices"))
    found = []
    for rationale in instance.rationales:
        split = read_rationale(rationale.text, instance.answer, infer=infer, choices=choices)
        if rationale.answer:
            source = rationale.answer_from or AnswerFrom.STATED
            used = infer or source is AnswerFrom.STATED
            split = FoundAnswer(split.reasoning, *((rationale.answer, source) if used else (None, None)))
        found.append(split)
    return found


def choices_of(value: Any) -> dict[str, str]:
    """Choices as {label: text}, from such an object or the hub's {"label": [...], "text": [...]}; else empty.

    Labels that stand twice, or are not as many as the texts, would lose a choice: then it is empty too.
    """
    if isinstance(value, Mapping) and set(value) == {"label", "text"} and isinstance(value["label"], list):
        labels, texts = value["label"], value["text"]
        if not isinstance(texts, list) or not len(labels) == len(texts) == len(set(map(str, labels))):
            return {}
        value = dict(zip(labels, texts, strict=True))
    if isinstance(value, Mapping) and all(isinstance(x, str) and x for pair in value.items() for x in pair):
        return dict(value)
    return {}


def read_rationale(
    text: str,
    gold: str,
    *,
    infer: bool = True,
    finished: bool | None = None,
    choices: Mapping[str, str] | None = None,
) -> FoundAnswer:
    """Split a rationale into its reasoning and its final answer: the stated one, else an inferred one.

    An inferred answer stays in the reasoning, of which it is a part.

    Args:
        text: what a teacher wrote.
        gold: the gold answer; its kind decides what may be inferred.
        infer: look beyond statements.
        finished: whether the text ended by itself; nothing is inferred from one that was cut. None: its last sign
            tells, for what ends without a full stop or its like may have been cut.
        choices: label and text of each choice, where the problem has any. An answer that is the text of one of them
            becomes its label, as a sentence that tells one number becomes that where the gold answer is one.
    """
    reasoning, answer = split_answer(text)
    choices = choices or {}
    if answer is not None:
        told = _number_told(answer)
        answer = told if told and answer_kind(gold) is AnswerKind.NUMBER else _label_of(answer, choices) or answer
        return FoundAnswer(reasoning, answer, AnswerFrom.STATED)
    kind = answer_kind(gold)
    finder = _INFER[kind] if infer and finished is not False else None
    if finder is None or not (finished or _looks_finished(text[: answer_part(text)[1]]) or finder is _choice):
        return FoundAnswer(reasoning, None, None)
    part = text[slice(*answer_part(text))]
    answer = finder(part, choices)
    if answer is not None:
        return FoundAnswer(reasoning, answer, AnswerFrom.INFERRED)
    possible = _POSSIBLE.get(kind)
    return FoundAnswer(reasoning, None, None, possible is not None and bool(part) and not possible.search(part))


def split_answer(text: str) -> tuple[str, str | None]:
    r"""Split a rationale into its reasoning and its final answer (None: no answer is stated).

    The statement of the answer is removed from the end of the reasoning, so that a target which states the answer anew
    says it once. It must be a sentence of its own ("... = 18 eggs. The answer is 18.") or a clause that a comma and
    "so" or its like start ("..., so the answer is 18."): nothing else is there but "So" or "Therefore", "the final",
    Markdown or LaTeX marks and a period. Display mathematics (`\[`, `\boxed{18}`, `\]` on three lines) counts as one
    line, and a heading "Final answer" right above goes too. A remark in its sentence goes along (", in
    total, so Ann is right."), a reason stays ("Because 40 + 32 = 72."). Otherwise the text stays. The reasoning is
    stripped of surrounding white space and of special tokens at its end.
    """
    statement = last_statement(text)
    begin, end = answer_part(text)
    closed = THINKING.match(text, end)  # the text is all thinking: its closing tag stays
    closed = closed if closed and closed["closes"] else None
    whole = text[: closed.end() if closed else end].strip()
    if statement is None:
        return whole, None
    after = ""
    if not _TRAIL.fullmatch(text, statement.end, end):
        remark = _REMARK.fullmatch(text, statement.end, end)
        if remark is None:
            return whole, statement.answer
        after = f" {remark[1][0].upper()}{remark[1][1:]}." if remark[1] else ""
    start = statement.start
    if text.startswith("\\", start):  # a \boxed{}; the mathematics around it opens here or on the line above
        opening = _OPENING.search(text, max(0, start - 200), start)
        start = opening.start() if opening else start
    line = max(text.rfind("\n", 0, start) + 1, begin)
    sentence = _own_sentence(text, line, start)
    if sentence is None:
        return whole, statement.answer
    reasoning = text[:sentence].rstrip()
    above = reasoning.rfind("\n") + 1
    if sentence == line and _HEADING.fullmatch(reasoning, above):
        reasoning = reasoning[:above]
    tag = text[len(text[:end].rstrip()) : closed.end()] if closed else ""
    return f"{reasoning}{after}{tag}".strip(), statement.answer


def places_in(text: str, reasoning: str) -> list[int]:
    """Where in a text each character of the reasoning that `split_answer` took from it stands, and where that ends."""
    before, written = len(text) - len(text.lstrip()), text.lstrip()
    same = (i for i, (a, b) in enumerate(zip(reasoning, written, strict=False)) if a != b)
    kept = next(same, min(len(reasoning), len(written)))
    # Behind a statement that was taken out stand a reason, whose first letter and period are ours, or a closing tag.
    further = text.rfind(reasoning[kept + 2 : -1]) - kept - 2 - before if kept < len(reasoning) else 0
    return [i + before + (further if i > kept else 0) for i in range(len(reasoning) + 1)]


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


def find_answer(
    text: str, finished: bool, parser: Sequence[str], choices: Mapping[str, str]
) -> tuple[str, str] | tuple[None, None]:
    """Look for the final answer with the finders of a benchmark.

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
        part = text if name == "statement" else text[slice(*answer_part(text))]
        answer = _FINDERS[name](part, choices)
        if answer is not None:
            told = _number_told(answer) if "last_number" in parser else None
            return told or _label_of(answer, choices) or answer, name
    return None, None


def _number_told(answer: str) -> str | None:
    """The one number of a stated sentence; None where the answer can be read as it is, or says more."""
    tells = _TELLS.match(answer) if len(answer) <= _CLOSING_CHARACTERS else None
    number = _NUMBER.match(answer, tells.end()) if tells else None
    if number is None or parse_number(answer) or not parse_number(answer[number.start() :]):
        return None
    return number[0]


def _statement(text: str, choices: Mapping[str, str]) -> str | None:
    return extract_answer(text)


def _looks_finished(text: str) -> bool:
    return bool(_ENDED.search(text[-20:])) and text.rfind("<<") <= text.rfind(">>")


def _closing(text: str) -> str:
    """The last sentence, which is also never more than a line; "I hope this helps!" and its like is none."""
    end = text.rstrip()
    polite = _POLITE.search(end, max(0, len(end) - 200))
    end = end[: polite.start()].rstrip() if polite else end
    start = 0
    for match in _SENTENCE_START.finditer(end, max(0, len(end) - _CLOSING_CHARACTERS - 1)):
        if end[match.end() :].strip(" \t*_`$\\]"):
            start = match.end()
    return end[start:] if len(end) - start <= _CLOSING_CHARACTERS else ""


def _last_number(text: str, choices: Mapping[str, str]) -> str | None:
    """The number after the closing sentence's last equals sign, else its last number; None where it is part of more."""
    closing = _LIST_MARK.sub("", _REASON.sub("", _CALCULATOR.sub("", _closing(text))))
    found = list(_NUMBER.finditer(closing))
    if not found:
        return None
    results = [match for match in found if match.start() > closing.rfind("=") >= 0]
    match = results[0] if results else found[-1]
    if _PART_OF_MORE.match(closing, match.end()) or parse_number(match[0]) is None:
        return None
    if _OPERATOR_AFTER.match(closing, match.end()) or _OPERAND_OF.search(closing[: match.start()]):
        return None
    return _SIGNS.sub("", match[0])


def _choice(text: str, choices: Mapping[str, str]) -> str | None:
    lines = text.strip().splitlines()
    line = lines[-1].strip(_EDGES) if lines else ""
    labelled = _LABELLED.fullmatch(line)
    if labelled:
        label = _known(labelled[1], choices)
        if label and (not labelled[2] or not choices or _words(labelled[2]) == _words(choices[label])):
            return label
    if not _looks_finished(text):
        return _label_of(line, choices)
    named = {label for pair in _NAMED.findall(_closing(text)) if (label := _known(pair[0] or pair[1], choices))}
    return named.pop() if len(named) == 1 else _label_of(line, choices)


def _known(letter: str, choices: Mapping[str, str]) -> str | None:
    """The label that a letter names; without choices every capital letter is one."""
    if not choices:
        return letter if letter.isupper() else None
    return next((label for label in choices if label.lower() == letter.lower()), None)


def _yes_no(text: str, choices: Mapping[str, str]) -> str | None:
    return _label_at(text, (_AT_START, _YES_IT_IS), _AT_END)


def _truth(text: str, choices: Mapping[str, str]) -> str | None:
    return _label_at(text, (_TRUTH_AT_START,), _TRUTH_AT_END)


def _label_at(text: str, at_start: Sequence[re.Pattern[str]], at_end: re.Pattern[str]) -> str | None:
    """A label at the start of the text; else at the end or the start of its closing sentence."""
    closing = _closing(text)
    for found in (*(p.match(text) for p in at_start), at_end.search(closing), *(p.match(closing) for p in at_start)):
        if found:
            return found[1].lower()
    return None


def _label_of(answer: str, choices: Mapping[str, str]) -> str | None:
    """The label of the one choice whose text the answer is; None where the answer is a label already."""
    words = _words(answer)
    if not words or any(label.casefold() == " ".join(words) for label in choices):
        return None
    labels = [label for label, text in choices.items() if _words(text) == words]
    return labels[0] if len(labels) == 1 else None


def _words(text: str) -> list[str]:
    return re.sub(r"[^\w\s]+", " ", text).casefold().split()


_Finder = Callable[[str, Mapping[str, str]], str | None]
_FINDERS: dict[str, _Finder] = {
    "statement": _statement,
    "last_number": _last_number,
    "choice": _choice,
    "yes_no": _yes_no,
}
_INFER: dict[AnswerKind, _Finder | None] = {
    AnswerKind.NUMBER: _last_number,
    AnswerKind.YES_NO: _yes_no,
    AnswerKind.TRUTH: _truth,
    AnswerKind.LETTER: _choice,
    AnswerKind.WORDS: None,
    AnswerKind.MATHEMATICS: None,
}
