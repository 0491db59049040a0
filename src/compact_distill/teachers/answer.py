"""From a teacher's answer to a row of the store: reasoning, final answer, status, verdict, cost."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice

from compact_distill.answers import FoundAnswer, Verifier, choices_of, compare_answers, read_rationale
from compact_distill.answers.stated import THINKING
from compact_distill.config.teachers import PricesConfig
from compact_distill.records import Problem, Verdict
from compact_distill.runs.files import fingerprint
from compact_distill.teachers.protocol import Finish, TeacherAnswer, TeacherRequest, finish
from compact_distill.teachers.store import RowStatus, Store, StoredRow, text_digest

_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant[^<]*)?<\|channel\|>(?P<name>\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>(?P<text>.*?)"
    r"(?:<\|end\|>|<\|return\|>|<\|call\|>|(?=<\|start\|>)|(?=<\|channel\|>)|$)",
    re.DOTALL,
)
_MARKS = frozenset({"<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"})
_BARE_CHANNELS = re.compile(r"analysis(?P<thought>.*?)assistantfinal(?: ?json(?=\s*[{\[]))?(?P<said>.*)", re.DOTALL)


def tells_thoughts(token: str, channels: bool) -> bool:
    """Whether a special token is one by which `split_reasoning` knows thoughts; `channels`: gpt-oss's marks are too."""
    return token == "<|channel>" or THINKING.fullmatch(token) is not None or (channels and token in _MARKS)


def split_reasoning(text: str, reasoning: str = "") -> tuple[str, str]:
    """Return (reasoning, text): what stands in thinking tags, or came in a field of its own, is reasoning.

    Chat templates often write the opening tag themselves, so a closing tag alone ends the reasoning that began with
    the text. An opening tag that is never closed was cut off: all after it is reasoning, and nothing more was said.
    The channels of gpt-oss are told apart too, also where a server has cut their markers out. Thoughts that came twice,
    in the text and in a field, count once.
    """
    thoughts, said = _channels(text) or _tagged(text)
    inside = "\n".join(thought.strip() for thought in thoughts if thought.strip())
    apart = reasoning.strip()
    return "\n".join(filter(None, (inside,) if apart == inside else (apart, inside))), said.strip()


def _channels(text: str) -> tuple[list[str], str] | None:
    """Thoughts and text of gpt-oss's channels; None where there are none."""
    if bare := _BARE_CHANNELS.fullmatch(text.strip()):
        return [bare["thought"]], bare["said"]
    found = list(_CHANNEL.finditer(text)) if "<|channel|>" in text else []
    if not found:
        return None
    said = "".join(channel["text"] for channel in found if channel["name"] == "final")
    return [channel["text"] for channel in found if channel["name"] != "final"], text[: found[0].start()] + said


def _tagged(text: str) -> tuple[list[str], str]:
    thoughts: list[str] = []
    said: list[str] = []
    inside, begin = False, 0
    for tag in THINKING.finditer(text):
        piece = text[begin : tag.start()]
        if tag["closes"]:
            thoughts.append(piece if inside else "".join(said) + piece)
            said = said if inside else []
            inside, begin = False, tag.end()
        elif tag["opens"] and not inside:
            said.append(piece)
            inside, begin = True, tag.end()
    (thoughts if inside else said).append(text[begin:])
    return thoughts, "".join(said)


Redact = Callable[[str], str]


def to_row(
    teacher: str,
    request: TeacherRequest,
    answer: TeacherAnswer,
    latency: float,
    prices: PricesConfig | None,
    redact: Redact,
    others: set[str],
) -> StoredRow:
    """Make the row of one answer, without its verdict.

    `others` holds the digests of the problem's other samples by this teacher; the answer's own is added.
    """
    thought, said = split_reasoning(clean(answer.text, redact), clean(answer.reasoning, redact))
    problem = request.problem
    choices = choices_of(problem.extra.get("choices"))
    found = read_rationale(said or thought, problem.answer, finished=_ended(answer.finish_reason), choices=choices)
    same = text_digest(thought, said)
    status = _status(answer, thought, said, found, same in others)
    if status is not RowStatus.EMPTY:
        others.add(same)
    return StoredRow(
        id=request.problem.id,
        teacher=teacher,
        sample=request.sample,
        request=request.key,
        status=status,
        verdict=None,
        digest=same,
        text=said,
        reasoning=thought,
        answer=found.answer,
        gold=request.problem.answer,
        finish_reason=_optional(answer.finish_reason, redact),
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        latency=round(latency, 4),
        cost=cost(prices, answer.prompt_tokens, answer.completion_tokens),
        model=_optional(answer.model, redact),
        time=datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
        answer_from=found.source,
        choices=_hash(choices),
    )


def cost(prices: PricesConfig | None, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
    """Return what the tokens cost, in the prices' currency; None where prices or counts are not known."""
    if prices is None or prompt_tokens is None or completion_tokens is None:
        return None
    return (prompt_tokens * prices.prompt + completion_tokens * prices.completion) / 1e6


class Verification:
    """Verdicts for the event loop: simple comparisons at once, mathematics in the verifier's processes."""

    def __init__(self, verifier: Verifier, workers: int) -> None:
        self._verifier = verifier
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verify")

    def start(self, row: StoredRow) -> asyncio.Future[Verdict]:
        """Begin to verify one row. The future's verdict always comes: the verifier kills what hangs."""
        loop = asyncio.get_running_loop()
        verdict = Verdict.UNPARSED if row.answer is None else compare_answers(row.answer, row.gold)
        if verdict is None:
            return loop.run_in_executor(self._threads, self._verifier.verify, row.answer, row.gold)
        future: asyncio.Future[Verdict] = loop.create_future()
        future.set_result(verdict)
        return future

    def close(self) -> None:
        """Wait for what was begun."""
        self._threads.shutdown(wait=True)


def _ended(finish_reason: str | None) -> bool | None:
    """Whether the text ended by itself; None where the server does not say how it ended."""
    return finish(finish_reason) is Finish.WHOLE if finish_reason else None


def _status(answer: TeacherAnswer, thought: str, said: str, found: FoundAnswer, repeated: bool) -> RowStatus:
    ended = finish(answer.finish_reason)
    if answer.refused:
        return RowStatus.REFUSED
    if not thought and not said and ended is not Finish.LIMIT:  # hidden thoughts may use up the limit
        return RowStatus.EMPTY
    if repeated:
        return RowStatus.DUPLICATE
    if ended is not Finish.WHOLE:
        return RowStatus.TRUNCATED if ended is Finish.LIMIT else RowStatus.INTERRUPTED
    return RowStatus(found.status)


def clean(text: str, redact: Redact) -> str:
    """Text that any file and tokenizer can hold, without keys: JSON may escape NUL and half of a surrogate pair."""
    return redact(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd"))


def _optional(text: str | None, redact: Redact) -> str | None:
    return None if text is None else clean(text, redact)


_TOGETHER = 256


class Golds:
    """What the answers to some problems are compared with, by the problem's id: gold answers, and choices of some."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self._answers: dict[str, str] = {}
        self._choices: dict[str, dict[str, str]] = {}
        for problem in problems:
            self._answers[problem.id] = problem.answer
            if choices := choices_of(problem.extra.get("choices")):
                self._choices[problem.id] = choices

    def changed(self, row: StoredRow) -> bool:
        """Whether the row was read with another gold answer or other choices; rows of other problems were not."""
        if row.id not in self._answers:
            return False
        return row.gold != self._answers[row.id] or row.choices != _hash(self._choices.get(row.id))

    def read(self, row: StoredRow) -> StoredRow:
        """The row with the answer that today's rules find in it. One of other problems keeps its gold answer."""
        if row.id not in self._answers and row.choices is not None:
            return row  # its choices are not known here
        gold, choices = self._answers.get(row.id, row.gold), self._choices.get(row.id)
        found = read_rationale(row.text or row.reasoning, gold, finished=_ended(row.finish_reason), choices=choices)
        status = row.status
        if status in (RowStatus.OK, RowStatus.UNPARSED, RowStatus.NO_ANSWER):
            status = RowStatus(found.status)
        return replace(
            row, answer=found.answer, answer_from=found.source, status=status, gold=gold, choices=_hash(choices)
        )


def _hash(choices: Mapping[str, str] | None) -> str | None:
    return fingerprint(choices)[:12] if choices else None


def verify_store(store: Store, verifier: Verifier, golds: Golds, everything: bool = False) -> int:
    """Verify the rows that have no verdict, or one on another gold answer or choices; `everything` verifies all.

    Returns:
        How many rows were verified. The store is rewritten only if there are any.

    Raises:
        RunError: the store cannot be written, or the verifier's processes cannot start.
    """

    def is_stale(row: StoredRow) -> bool:
        return everything or row.verdict is None or golds.changed(row)

    def read(row: StoredRow) -> StoredRow:
        # What only lacks a verdict was read on arrival, with all that the problem says.
        return golds.read(row) if everything or golds.changed(row) else row

    stale = sum(map(is_stale, store.rows()))
    if stale:
        store.rewrite(
            row
            for rows in _chunks(store.rows())
            for row in _verified(rows, [is_stale(row) for row in rows], read, verifier)
        )
    return stale


def _verified(
    rows: list[StoredRow], stale: list[bool], read: Callable[[StoredRow], StoredRow], verifier: Verifier
) -> Iterator[StoredRow]:
    fresh = [read(row) for row, old in zip(rows, stale, strict=True) if old]
    verdicts = verifier.verify_many((row.answer, row.gold) for row in fresh)
    changed = (replace(row, verdict=verdict) for row, verdict in zip(fresh, verdicts, strict=True))
    for row, old in zip(rows, stale, strict=True):
        yield next(changed) if old else row


def _chunks(rows: Iterable[StoredRow]) -> Iterator[list[StoredRow]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _TOGETHER)):
        yield chunk
