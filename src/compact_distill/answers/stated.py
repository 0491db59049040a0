r"""Find the final answer that a writer stated in a text.

A statement of the answer is one of

    A: 18                                   at the start of a line
    Answer: 18    **Final answer:** 18      at the start of a line, also `Ans:`, `Correct option:`
    Result: 18    Solution: 18              at the start of the last line
    Antwort: 18   La respuesta es 18   答案：18      and the like in other languages
    #### 18                                 as in GSM8K; other level-4 headings are not statements
    **Final Answer**                        a heading, with the answer alone below it
    the answer is 18                        also "the answer (arabic numerals) is", "the answers to ... are", "equals"
    18 is the correct answer
    <answer>18</answer>                     also `"answer": 18` in JSON, and GLM's box tokens
    \boxed{\frac{1}{2}}                     also \fbox and `\boxed 18`; braces may nest
    (B)    yes                              alone on the last line, and only where nothing else states an answer

and the last one in the text wins, unless it is a remark on one before it ("The answer is less than 20"; after a boxed
number, whatever holds neither number nor letter). It ends with its sentence or its line; "because ...", "which ...",
", so ..." and "in total" are no part of the answer. An answer is kept as written, less what `tidy` takes off around it;
one of more than 1,000 characters is none.

What a model thinks (`<think>`, `[THINK]` and the like: `THINKING`) states nothing where an answer follows it, nor where
it was cut before its end; special tokens at the end of a text (`<|im_end|>`) are no part of it.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

MAX_CHARACTERS = 1000  # of an answer; also bounds the work on what a model wrote

# What belongs to the writer's format rather than to the text. Tags around thinking: those of the servers' own parsers.
_THOUGHT = r"(?:\w{1,20}:)?(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis)"
_THINKING_ENDS = {
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>thought": "<channel|>",
    "[unused16]": "[unused17]",
}
THINKING = re.compile(
    rf"(?i)(?P<opens><{_THOUGHT}>|{'|'.join(map(re.escape, _THINKING_ENDS))})"
    rf"|(?P<closes></{_THOUGHT}>|{'|'.join(map(re.escape, _THINKING_ENDS.values()))})"
    r"|(?P<final><\|channel\|>final<\|message\|>)"
)
_THINKING_SIGNS = ("<", "[THINK", "[/THINK", "[think", "[/think", "◁", "[unused")  # one of them is in every tag
_SPECIAL_TOKENS = re.compile(
    r"(?:\s*(?:<[|｜](?!end_of_box)[^<>|｜\s]{1,40}[|｜]>|</?s>|<(?:eos|bos|pad|unk|eo[dtm]|endoftext|end_of_\w{1,20})>"
    r"|<\w{1,20}\|>|\[(?:/?INST|EOS|PAD|SEP|DONE|unused\d{1,4})\]))+\s*\Z"
)

# A head is where a statement starts; the answer follows it. Every repetition is bounded or unambiguous: the text is
# a model's, and may be hostile.
_LINE = r"^[^\w\n\\$]{0,20}"  # the marks of lists, quotes and headings, and emoji
TOTAL = r"in[ \t]+(?:total|all)|altogether"
_SO = r"(?:(?:so|and|thus|therefore|hence|the|my|our)[ \t,]+){0,3}"
_CHOICE_A = re.compile(r"(?m)^[ \t]*A:[*_ \t]*")
_LABELLED = re.compile(
    rf"(?im){_LINE}{_SO}(?:(?:(?:final|correct)[ \t]+)?(?:answer|ans\b\.?)|correct[ \t]+(?:option|choice))"
    r"[ \t*_]*(?:\([^()\n]{0,60}\)[ \t*_]*)?(?:[:：→]|=(?!=)|(?<=final answer)[ \t][-–—](?=[ \t])"
    r"|(?<=ans\.)[ \t](?=[\d$(\\-]))[*_ \t]*"
)
_LAST_LINE = re.compile(rf"(?im){_LINE}{_SO}(?:(?:final|end)[ \t]+)?(?:result|solution)[ \t*_]*[:：][*_ \t]*")
_TITLED = re.compile(
    r"(?im)^(?:(?:[^\w\n\\$]|_){0,20}(?:the[ \t]+)?final|(?:[^\w\n\\$]|_){0,19}[#*_])[ \t]*answer(?:[^\w\n\\$]|_){0,10}"
    r"$(?=\n)"
)
# "The answer is" elsewhere, those of the MGSM benchmark among them. What is denied states nothing.
_FOREIGN = re.compile(
    r"(?i)(?:(?:最终|最終|正确)?(?:答案|答え|正解|정답|답)[ \t*]*(?:[:：是为為は은는])|答[ \t*]*(?=[:：])"
    r"|(?:คำตอบ(?:สุดท้าย)?[ \t*]*(?:คือ|[:：])|(?:ఉత్తరం|సమాధానం)[ \t*:]|উত্তর[ \t*]*(?:হলো|হল|[:：])|उत्तर[ \t*]*(?:है|[:：])"
    r"|(?:الجواب|الإجابة)[ \t*]*(?:النهائية|النهائي)?[ \t*]*(?:هو|هي|[:：]))"
    r"|\b(?:(?:la|die|a|het|o)[ \t]+)?"
    r"(?:respuesta|réponse|antwort|risposta|resposta|ответ|відповідь|odpowiedź|odpověď|cevap|antwoord|svar(?:et)?|vastaus|"
    r"válasz|răspuns(?:ul)?|απάντηση|jawaban(?:nya)?|jibu|đáp[ ]án|câu[ ]trả[ ]lời)"
    r"(?:[ \t]+(?:final|finale|correcta|correcte|corretta|correta|akhir|cuối[ ]cùng))?[ \t*]*"
    r"(?:[ \t](?:es|est|ist|lautet|è|é|is|är|er|to|je|este|on|là|ni|adalah|είναι|[—–-])(?!\w)|[:：]))"
    r"[ \t*_]*+[:：]?+[ \t*_]*+"
    r"(?!(?:nicht|keine?|niet|geen|inte|ikke)\b|[^\n]{0,60}?(?:ではあ?りません|ではない|じゃない|아닙니다|아니다|아니에요))"
)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(?=([^\n#]*))")
_SENTENCE = re.compile(
    r"(?i)\b(?:answers?|correct[ \t]+(?:choice|option)|final[ \t]+result)\b(?:[ \t]+(?:choice|option)\b)?"
    r"(?:[ \t]*\([^()\n]{0,60}\))?(?:[ \t]+(?:to|for|of|in)\b[^.\n:]{0,80}?)?"
    r"[ \t*_]*(?:\b(?:is|are)\b|\b(?:should|would|will|must)[ \t]+be\b|=|\bequals\b(?:[ \t]+to\b)?"
    r"|\b(?:comes|turns)[ \t]+(?:out[ \t]+)?to(?:[ \t]+be)?\b)"
    rf"(?:,?[ \t]+(?:therefore|thus|then|also|indeed|simply|equal[ \t]+to|an?[ \t]+(?:grand[ \t]+)?total[ \t]+of"
    rf"|{TOTAL})\b,?+)?+[ \t]*+:?+[ \t]*+"
    r"(?!(?:not|that|obtained|found|given|calculated|computed|determined|correct|incorrect|wrong|reasonable)\b)"
)
_REVERSED = re.compile(
    r"(?<![\w.,$\\{])(\*{0,2}(?:[$€£]?-?\d[\d,./]{0,30}%?|\$[^$\n]{1,80}\$|\(?[A-Z]\)?|yes|no)\*{0,2}"
    r"(?:[ \t]+[a-z]{2,20})?)"
    r"[ \t]+is[ \t]+(?:the|our|my)[ \t]+(?:(?:final|correct|right|numerical)[ \t]+){0,2}(?:answer|choice|option)\b"
    r"(?![ \t]+(?:only[ \t]+)?if\b|\?|[ \t]+to[ \t]+(?!the[ \t]+(?:question|problem)\b))"
)
_REVERSED_END = re.compile(r"is[ \t]+(?:the|our|my)[ \t]+(?:\w+[ \t]+){0,2}(?:answer|choice|option)")
_TAGGED = re.compile(r"(?i)<((?:final_)?answer|ans)>\s*([^<>]{1,1000}?)\s*</\1>")
_IN_JSON = re.compile(r'(?i)"(?:final_?)?answer"\s*:\s*("[^"\\\n]{1,1000}"|-?\d[\d.,]{0,30}(?<=\d)|true|false)')
_BOX_TOKENS = re.compile(r"<\|begin_of_box\|>\s*([^<>]{1,1000}?)\s*<\|end_of_box\|>")
_UNBRACED_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]+(-?\d[\d,]*(?:[./]\d+)?%?|[A-Za-z]\b)")
# What each of them cannot do without, in lower case.
_FOREIGN_WORDS = (
    "respuesta", "antwort", "risposta", "resposta", "cevap", "antwoord", "svar", "vastaus", "jawaban", "jibu",
    "答", "正解", "답", "คำตอบ", "ఉత్తరం", "సమాధానం", "উত্তর", "उत्तर", "الجواب", "الإجابة", "réponse", "ответ", "відповідь",
    "odpowied", "odpověď", "válasz", "răspuns", "απάντηση", "đáp án", "câu trả lời",
)  # fmt: skip
_WORDS_OF = {_LABELLED: ("ans", "correct"), _SENTENCE: ("answer", "correct", "final"), _FOREIGN: _FOREIGN_WORDS}
_ENCLOSING = {
    _TAGGED: (2, ("answer>", "ans>")),
    _UNBRACED_BOX: (1, ("box",)),
    _IN_JSON: (1, ('answer"',)),
    _BOX_TOKENS: (1, ("of_box",)),
}
_OTHER_CHOICE = re.compile(r"(?m)^[ \t]*B:")  # then "A: ..." is a choice of the question
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACES = re.compile(r"(?s)\\.|[{}]")
_BOX_LABEL = re.compile(
    r"(?i)(?:\\(?:text|mbox|textbf|mathrm|mathbf)\s*\{)?\s*(?:(?:the|my|our)\s+)?(?:(?:final|correct)\s+)?answer\s*(?:is|=|:)[\s:]*(\})?\s*"
)
_DISPLAY = re.compile(
    r"\s*(\\\[|\$\$|\\begin\{(?:equation|align|gather)\*?\}|```\w{0,20}(?=\n))\s*([^\n]{1,1000}?)\s*"
    r"(\\\]|\$\$|\\end\{(?:equation|align|gather)\*?\}|```)[\s.]*\Z"
)
_LIST_MARK = re.compile(r"[-•–*+][ \t]+")
_NAME = r"\s?[A-Z][\w'’-]+(?:\s[A-Z][\w'’-]+)?(?=[.,;!?)*\"”]|\s+(?:because|since|who|which)\b|\s*$)"
# No sentence ends behind a title, "approx.", "Rs. 500" and "No. 5", nor between initials and a name or "U.S. dollars".
_SENTENCE_END = re.compile(
    r"\.(?<!\.\.)(?=[\s*\"”]|$)(?<!\b(?:St|Dr|Mr|Ms|Mt|Lt)\.)(?<!\b(?:Mrs|Sgt|Gen|Col|Rev|Sen|Gov)\.)(?<!\bProf\.)"
    r"(?<!\b[Aa]pprox\.)(?!(?<=\bRs\.)\s*\d)(?!(?<=\bNo\.)\s*\d+[.\s]*$)(?!(?<=\b[A-Z]\.[A-Z]\.)\s+[a-z])"
    rf"(?!(?<=\b[A-Z]\.)\s[A-Z]\.{_NAME})(?!(?:(?<=\b[A-Z]\.[A-Z]\.)|(?<=\b[A-Z]\.\s[A-Z]\.)|(?<=[a-z]\s[A-Z]\.)){_NAME})"
    r"|[。！।]"
)
_CLAUSE = re.compile(
    rf"(?i),?\s(?:because|since|which|whereas)\b|,?[ \t](?:{TOTAL})\b"
    r"|,[ \t]*(?:and[ \t]+)?(?:so|therefore|thus|hence|meaning|making|assuming|where|while)\b"
    r"|(?:です|である|입니다)|</\w{1,20}>"  # the end of a tag that the prompt opened
)
_CLAUSE_LIKE = re.compile(r"[ \t](?:is|are|was|were|has|have|had|will|would|can|could|should|needs?|makes?|gets?)[ \t]")
_WORD = re.compile(r"(?i)(?<![\\A-Za-z])(?!(?:yes|no)\b)[A-Za-z]{2,}")
_WORD_OF_THREE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")  # no command of LaTeX
# What says something about an answer that was stated before.
_REMARK = re.compile(
    r"(?i)(?:(?:strictly|much|even)[ \t]+)?(?:greater|less|more|fewer|larger|smaller|bigger|higher|lower)[ \t]+than\b"
    r"|(?:between|twice|half|double|divisible|a[ \t]+(?:multiple|factor|divisor)[ \t]+of)\b"
    r"|(?:consistent|compatible|in[ \t]+(?:line|agreement|keeping))[ \t]+with\b|in[ \t]+(?!the\b)(?-i:[a-z ]{3,40})\Z"
    r"|(?:an?[ \t]+(?:(?:positive|negative|whole)[ \t]+)?(?:integer|number)|positive|negative|valid|plausible)\Z"
)
_PLAIN_LABEL = re.compile(
    r"(?is)[(\[\"']?(?:[A-Z]|yes|no)(?:[)\]\"'.:]{1,2}(?:\s?.{0,60})?|\s+[-–—]\s.{0,60}|,.{0,60})?"
)
_BOLD = re.compile(r"(?<!\w)\*\*([^*]+)\*\*(?!\w)")
_BOLD_END = re.compile(r"(?<=\S)\*\*(?!\w)|(?<=\d)[*_](?=\s[A-Za-z]{2})")
_BARE_LABEL = re.compile(r"(?i)[\s*_`\"“'‘«]*(\([A-Za-z]\)|yes|no)[\s*_`.\"”'’»]*")

_QUOTES = (('"', '"'), ("“", "”"), ("'", "'"), ("‘", "’"), ("「", "」"), ("«", "»"), ("„", "“"))
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


@dataclass(frozen=True, slots=True)
class Statement:
    """An answer, and the characters `start:end` of the text that state it."""

    start: int
    end: int
    answer: str


def extract_answer(text: str) -> str | None:
    r"""Return the final answer of `text` as its writer wrote it, or None where none is stated.

    "... so she has $1,800.\nA: $1,800" gives "$1,800"; "Thus $x = \boxed{\frac{1}{2}}$." gives r"\frac{1}{2}".
    """
    statement = last_statement(text)
    return statement.answer if statement else None


def closing_tag(opening: str) -> str:
    """What ends the thinking that a tag of `THINKING` opens."""
    return _THINKING_ENDS.get(opening) or opening.replace("<", "</", 1)


def answer_part(text: str) -> tuple[int, int]:
    """Start and end of the part of a text that may give its answer: after what was thought, before special tokens.

    Where nothing follows the thinking, it is the thinking; where that was cut before its end, nothing (start = end).
    """
    end = len(text)
    tail = text.rfind("\n", 0, max(0, end - 400))  # special tokens are few
    special = _SPECIAL_TOKENS.search(text, max(tail, end - 400, 0)) if text.rstrip().endswith((">", "]")) else None
    end = special.start() if special else end
    tagged = any(sign in text for sign in _THINKING_SIGNS)
    last = next(iter(deque(THINKING.finditer(text, 0, end), maxlen=1)), None) if tagged else None
    if last is None:
        return 0, end
    if last["opens"]:  # and never closed
        return end, end
    return (last.end(), end) if text[last.end() : end].strip() else (0, last.start())


def tidy(answer: str) -> str:
    r"""Take off what surrounds an answer and is no part of it.

    That is: white space, Markdown's bold marks, `*`, `_` and backticks at the ends, quotes and LaTeX wrappers around
    the whole (`$...$`, `$$...$$`, `\(...\)`, `\[...\]`, `\boxed{...}`), "the answer is" inside a box, and a
    sentence-final period. What is inside stays as written: "$1,800" keeps its sign.
    """
    while True:
        shorter = _BOLD.sub(r"\1", answer)
        if shorter.count("**") % 2 or shorter.count("*") + shorter.count("_") == 1:  # half of "**Answer: 18** eggs"
            shorter = _BOLD_END.sub("", shorter, count=1)
        shorter = shorter.strip().strip("*`_")
        if shorter.endswith((".", "。", "।")) and not shorter.endswith(".."):
            shorter = shorter[:-1]
        shorter = _unwrap(shorter)
        if shorter == answer:
            return answer
        answer = shorter


def _unwrap(answer: str) -> str:
    boxed = _BOXED.match(answer)
    if boxed and dict(_boxes(answer)).get(0) == len(answer):
        return _without_label(answer[boxed.end() : -1])
    for opening, closing in _QUOTES:
        if len(answer) > 2 and answer[0] == opening and answer[-1] == closing and opening not in answer[1:-1]:
            return answer[1:-1]
    for opening, closing in _WRAPPERS:
        inner = answer[len(opening) : -len(closing)]
        wrapped = answer.startswith(opening) and answer.endswith(closing) and not answer.endswith("\\" + closing)
        if wrapped and inner and opening not in inner and "$" not in inner.replace(r"\$", ""):
            return inner
    return answer


def _closed(answer: str) -> str:
    r"""An answer without the ends of what was opened before it: `\[ \text{The answer is } 18 \]` states 18."""
    if answer.lstrip().startswith("}"):
        answer = answer.strip()[1:]
        answer = answer[:-1] if answer.endswith("$") and answer.count("$") % 2 else answer
    for opening, closing in ((r"\[", r"\]"), (r"\(", r"\)"), ("{", "}")):
        bare = answer.rstrip(" \t\r\n.")
        if bare.endswith(closing) and bare.count(closing) > bare.count(opening):
            answer = bare.removesuffix(closing)
    return answer


def _without_label(boxed: str) -> str:
    r"""What a box states: `\text{The answer is } 18` states 18."""
    label = _BOX_LABEL.match(boxed)
    if label is None or not boxed[label.end() :].strip("}\\ "):
        return boxed
    rest = re.sub(r"^(?:\\[ ,;:!]|~|\\quad\b)+", "", boxed[label.end() :])
    opens_text = label[0].lstrip().startswith("\\") and not label[1]
    return rest.replace("}", "", 1) if opens_text else rest


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


def last_statement(text: str) -> Statement | None:
    """The statement that gives a text its answer; None where nothing states one."""
    start, end = answer_part(text)
    if start == end:
        return None
    # What stands before states nothing, and every position stays.
    text = (" " * (start - 1) + "\n" if start else "") + text[start:end]
    written = len(text.rstrip())
    boxes = _boxes(text)
    last_box = boxes[-1] if boxes else (-1, -1)
    heads = [head for head in _heads(text, written) if not any(a <= head.start < b for a, b in boxes)]
    remark = None  # the answer where nothing before it states one
    for head in reversed(heads):
        if head.start < last_box[0]:
            break
        begin, end = head.answer if head.answer else _answer_span(text, head, written)
        answer = tidy(_closed(text[begin:end])) if end - begin <= MAX_CHARACTERS else ""
        if answer:
            stated = Statement(head.start, head.end or end, answer)
            if not _is_remark(answer, text[slice(*last_box)] if boxes else None):
                return stated
            remark = remark or stated
    if boxes:
        return _boxed_statement(text, last_box, heads)
    return remark or _bare_label(text, written)


def _is_remark(answer: str, box: str | None) -> bool:
    """Whether a statement, after a box or another, says something about its answer ("positive") rather than one."""
    remark = bool(_REMARK.match(answer))
    if remark or box is None or _PLAIN_LABEL.fullmatch(answer):
        return remark
    in_words = not any(sign.isdigit() or sign in "+*/^=" for sign in answer)
    if any(sign.isdigit() for sign in box):
        return in_words
    # Words about mathematics or a letter: "a polynomial", "negative".
    return in_words and bool(_WORD_OF_THREE.search(answer)) and not _WORD_OF_THREE.search(box)


@dataclass(frozen=True, slots=True)
class _Head:
    """Where a statement starts, and where its answer does; both ends where the form says them."""

    start: int
    stop: int
    answer: tuple[int, int] | None = None
    end: int | None = None
    title: bool = False


def _heads(text: str, written: int) -> list[_Head]:
    """The heads of all statements but boxes in braces, in order.

    A pattern only looks at a text that holds a word which all of its matches hold: most texts have few of them.
    """
    folded = text.casefold()
    heads: list[_Head] = []
    for pattern, words in _WORDS_OF.items():
        if any(word in folded for word in words):
            heads += [_Head(*match.span()) for match in pattern.finditer(text)]
    if "result" in folded or "solution" in folded:
        heads += [_Head(*m.span()) for m in _LAST_LINE.finditer(text) if _line_end(text, m.end()) >= written]
    if "answer" in folded:
        heads += [_Head(*match.span(), title=True) for match in _TITLED.finditer(text)]
    for pattern, (group, words) in _ENCLOSING.items():
        if any(word in folded for word in words):
            heads += [_Head(m.start(), m.start(group), m.span(group), m.end()) for m in pattern.finditer(text)]
    if _REVERSED_END.search(text):
        heads += [_Head(m.start(), m.start(1), m.span(1), m.end()) for m in _REVERSED.finditer(text)]
    if "A:" in text and not _OTHER_CHOICE.search(text):
        heads += [_Head(*match.span()) for match in _CHOICE_A.finditer(text)]
    hashes = _HASHES.finditer(text) if "####" in text else ()
    heads += [_Head(*m.span()) for m in hashes if m.end(1) >= written or not _WORD.search(m[1])]
    return sorted(heads, key=lambda head: (head.start, head.stop))


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _answer_span(text: str, head: _Head, written: int) -> tuple[int, int]:
    """The answer that follows a head: it ends with its sentence, its line, or before a subordinate clause."""
    start = head.stop
    line_end = _line_end(text, start)
    if not text[start:line_end].strip(" \t\r*_"):
        display = _DISPLAY.match(text, line_end)
        if display:
            return display.span(2)
        below = len(text) - len(text[line_end:].lstrip())
        if _line_end(text, below) >= written:  # it stands alone on the last line, below "The answer is:"
            mark = _LIST_MARK.match(text, below)
            start = below = mark.end() if mark else below
            line_end = written
        if head.title and (start != below or _CLAUSE_LIKE.search(text, start, line_end)):
            return start, start  # below the heading stands a sentence, or more than a line
    line = text[start : min(line_end, start + 2 * MAX_CHARACTERS)]  # what stands before it is no part of a name
    for pattern in (_SENTENCE_END, _CLAUSE):
        match = pattern.search(line)
        line = line[: match.start()] if match else line
    return start, start + len(line)


def _boxed_statement(text: str, box: tuple[int, int], heads: list[_Head]) -> Statement:
    r"""The statement of a `\boxed{}`; where a sentence states it ("The answer is $\boxed{18}$."), that sentence."""
    start, end = box
    answer = tidy(text[start:end])
    before = max((head for head in heads if head.start < start), key=lambda head: head.start, default=None)
    if before and not text[before.stop : start].strip(" \t\r\n$*\\[("):
        start = before.start
    return Statement(start, end, answer)


def _bare_label(text: str, written: int) -> Statement | None:
    line = text.rfind("\n", 0, written) + 1
    label = _BARE_LABEL.fullmatch(text, line)
    return Statement(label.start(1), label.end(1), label.group(1)) if label else None
