"""Compare an answer with the gold answer: as a number, a letter, yes/no or words; else as mathematics.

The gold answer decides what kind of comparison it is. What needs algebra goes through `Verifier` to math-verify in
worker processes that are killed on time-out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Timer

from compact_distill.answers.numbers import as_latex, parse_loosely, parse_number
from compact_distill.answers.stated import MAX_CHARACTERS, tidy
from compact_distill.errors import RunError
from compact_distill.records import Closing, Verdict

_PROGRAM = Path(__file__).with_name("mathworker.py")
_START_SECONDS = 60.0  # importing sympy on a busy machine
_TRUTH = re.compile(r"(yes|no|true|false)(?:\s*[.,;:!(—].*|\s+[-–]\s.*)?", re.IGNORECASE | re.DOTALL)
_GOLD_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].]?")
_LETTER = re.compile(
    r"(?:(?:the\s+)?(?:option|choice|answer|letter)\s+)?"
    r"(?:[(\[]([A-Za-z])[)\]](?:(?:[\s.:,—~\w]|\\(?:[ ,;:]|q?quad\b)).*)?|([A-Za-z])(?:[).:]|\s+[-–—](?=\s))(?:\s.*)?"
    r"|([A-Za-z])(?:[).:](?=[A-Za-z]{3})|\s*—|\s+\((?=[A-Za-z]{2})|,\s+(?!and\b|or\b)(?=[A-Za-z]{3})).*|([A-Za-z]))",
    re.IGNORECASE | re.DOTALL,
)
# "(B) and (C)" chooses neither, nor does "(B) 5 and (C) 6".
_MORE_LETTERS = re.compile(r"(?:\s*(?:,?\s*(?:and|or)\b|[,/&])\s*[(\[]?[A-Z][)\].]?)+\Z", re.IGNORECASE)
_NEXT_LABEL = re.compile(r"(?:\b(?:and|or)|[,;/&])\s*[(\[]([A-Za-z])[)\]]")
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|textbf|textrm|mathrm|mathbf|textit)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_LONG_WORD = re.compile(r"[A-Za-z]{3,}")
_OPERATOR = re.compile(r"[\\=+*/^_<>{}|]")  # what makes a gold answer with words in it mathematics all the same
# 52_9, 52_{\text{nine}}, 52 (base 9): digits and their base
_BASED = re.compile(
    r"\(?(\d+)\)?\s*(?:_\s*\{?\s*(?:\\(?:text|mathrm)\s*\{\s*)?|,?\s*(?:in\s+|\()?base[\s-]+)"
    r"([1-9]\d?|[a-z]{3,8})\s*\}{0,2}\)?",
    re.IGNORECASE,
)
_AMOUNT = r"[$€£]?\d+(?:,\d{3})*(?:\.\d+)?%?"
# A date, a telephone number, a range, an address; a numeral, an element: arithmetic would find other ones equal.
_AS_WRITTEN = re.compile(rf"\d+([-–./])\d+(?:\1\d+)+|{_AMOUNT}\s*[-–—]\s*{_AMOUNT}|[A-Z](?:[A-Z]{{1,3}}|[a-z])")
_CLOCK = re.compile(r"(?:(?:at|about|around)\s+)?(\d{1,2})(?::(\d\d))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
_PRIMED = re.compile(r"[A-Za-z]('*)(?:\([a-z]\))?\Z")
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
    clock = _CLOCK.fullmatch(plain)
    written = _AS_WRITTEN.fullmatch(plain) and not _FUNCTION.fullmatch(plain.lower())
    if written or (clock and clock[2] and clock[3]):
        return AnswerKind.WORDS
    if _LONG_WORD.search(plain) and _has_words(plain) and not _OPERATOR.search(plain):
        return AnswerKind.WORDS
    return AnswerKind.MATHEMATICS


def compare_answers(answer: str | None, gold: str) -> Verdict | None:
    """Compare an extracted answer with the gold answer; None means that only `Verifier` can tell.

    - A number compares by value, whatever its separators, currency, unit or percent sign (`Number.equals`).
    - A single letter compares as a label: (B) = B = b = "(B) bookstore".
    - yes/no and true/false compare as labels; "yes, because ..." is yes.
    - Words ("Evelyn") compare by their letters and digits, in any case; so do dates, ranges and codes ("10-20", "IV").
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
        return Verdict.WRONG if _names_two(plain) else _labels(_LETTER.fullmatch(plain), letter[1])
    if as_latex(answer).split() == as_latex(gold).split():
        return Verdict.CORRECT
    based = _in_base(gold)
    if based:
        stated_base = _in_base(answer) or _in_base(f"{answer}_{based[1]}")  # the question names it
        return Verdict.CORRECT if stated_base == based else Verdict.WRONG
    if _in_base(answer):
        return Verdict.WRONG
    for pattern in (_OF_VARIABLE, _PRIMED):  # x = 5 is not y = 5, f'(x) is not f(x)
        names = pattern.match(answer), pattern.match(gold)
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
        return _compare_words(plain, plain_gold)
    return None


def _names_two(text: str) -> bool:
    """Whether a text names two choices: "(B) and (C)", and, in letters of the same case, "(B) 5 and (C) 6"."""
    first, stated = _GOLD_LETTER.match(text), _LETTER.fullmatch(text)
    if first and _MORE_LETTERS.match(text, first.end()):
        return True
    label = next(filter(None, stated.groups())) if stated else ""
    others = _NEXT_LABEL.findall(text) if label else []
    return any(other != label and other.isupper() == label.isupper() for other in others)


def _compare_words(answer: str, gold: str) -> Verdict:
    """Compare words, or times; the half of the day the question may name."""
    stated, wanted = _CLOCK.fullmatch(answer), _CLOCK.fullmatch(gold)
    if wanted is None:
        return Verdict.CORRECT if _words(answer) == _words(gold) else Verdict.WRONG
    if stated is None:
        return Verdict.UNPARSED
    same = int(stated[1]) == int(wanted[1]) and (stated[2] or "00") == (wanted[2] or "00")
    halves = {half.lower() for half in (stated[3], wanted[3]) if half}
    return Verdict.CORRECT if same and len(halves) < 2 else Verdict.WRONG


def _in_base(text: str) -> tuple[str, int] | None:
    """Digits and base of a number that names its base; None where the text is none."""
    found = _BASED.fullmatch(as_latex(text))
    base = (parse_number(found[2]) or parse_loosely(found[2])) if found else None
    return (found[1], int(base.value)) if found and base else None


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


class Verifier(Closing):
    """Compares answers with gold answers: at once where `compare_answers` can tell, else in a pool of processes.

    The processes start with the first pair that needs one. Use it as a context manager, or call `close`. It may be
    shared between threads.

    Args:
        workers: most processes at a time.
        timeout: seconds a worker may take for one pair; then it is killed and the verdict is `timed_out`.

    Raises:
        ValueError: `workers` or `timeout` is not positive.
    """

    def __init__(self, workers: int = 2, timeout: float = 5.0) -> None:
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}; use 1 for one process")
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, got {timeout}; use 5.0")
        self._closed = False
        self._workers = [_Worker(timeout) for _ in range(workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verify")

    def close(self) -> None:
        """End all worker processes, also those that hang. A closed verifier still decides what needs no worker."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.stop()

    def verify(self, answer: str | None, gold: str) -> Verdict:
        """Compare one extracted answer (None: nothing was extracted) with the gold answer.

        Raises:
            RunError: a worker cannot start.
            ValueError: the gold answer is empty.
        """
        return self.verify_many([(answer, gold)])[0]

    def verify_many(self, pairs: Iterable[tuple[str | None, str]]) -> list[Verdict]:
        """Compare (answer, gold) pairs: one verdict a pair, in their order, whatever hangs or dies on the way.

        A worker that dies (out of memory) counts as `timed_out`: the comparison did not end within its limits.

        Raises:
            RunError: a worker cannot start, or is needed after `close`.
            ValueError: a gold answer is empty.
        """
        pairs = list(pairs)
        verdicts = [compare_answers(answer, gold) for answer, gold in pairs]
        undecided = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None]
        if undecided and self._closed:
            raise RunError("this Verifier is closed; make a new one to verify more answers")
        decided = self._threads.map(self._ask, undecided) if undecided else iter(())
        return [next(decided) if verdict is None else verdict for verdict in verdicts]

    def _ask(self, pair: tuple[str | None, str]) -> Verdict:
        worker = self._idle.get()
        try:
            return worker.ask(*pair)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, started when it is first asked and again after it was killed. One thread at a time may ask."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._lock = Lock()

    def ask(self, answer: str | None, gold: str) -> Verdict:
        request = json.dumps([self._timeout, as_latex(answer or ""), as_latex(gold)])
        while True:
            fresh = self._process is None
            if fresh:
                self._start()
            reply, expired = self._exchange(request, self._timeout)
            if reply is not None:
                return Verdict(reply)
            if fresh or expired:
                return Verdict.TIMED_OUT
            # It may have died of the pairs before this one, which therefore gets a process of its own.

    def kill(self) -> None:
        """Kill the process for good, from any thread; a thread that waits for its reply gets none."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def stop(self) -> None:
        """End the process and free what it held; the next question starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not sent to a dead process
                pipe.close()

    def _start(self) -> None:
        with self._lock:
            if self._closed:
                raise RunError("this Verifier was closed while it verified; its remaining pairs have no verdict")
            # A program of its own rather than a fork: the parent may hold torch's threads, and run any main module.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        greeting, _ = self._exchange(None, _START_SECONDS)
        if greeting != "ready":
            self.stop()
            reason = greeting or f"it said nothing within {_START_SECONDS:g} seconds"
            raise RunError(f"cannot start a process that runs math-verify: {reason}; check `pip show math-verify`")

    def _exchange(self, request: str | None, seconds: float) -> tuple[str | None, bool]:
        """Send a line; return the reply (None: the process died) and whether it was killed on time-out."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        expired = Event()

        def expire() -> None:
            expired.set()
            process.kill()

        alarm = Timer(seconds, expire)
        alarm.daemon = True
        alarm.start()
        try:
            if request is not None:
                process.stdin.write(request + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            alarm.cancel()
            alarm.join()
        if expired.is_set() or not line.endswith("\n"):
            self.stop()
        return json.loads(line) if line.endswith("\n") else None, expired.is_set()
