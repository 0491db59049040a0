"""From a teacher's answer to a row of the store: reasoning, final answer, status, verdict, cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from compact_distill.answers import Verifier, compare_answers, extract_answer
from compact_distill.config.teachers import PricesConfig
from compact_distill.records import Verdict
from compact_distill.teachers import reasoning
from compact_distill.teachers.protocol import Answer, Request
from compact_distill.teachers.rows import DrawStatus, Row, digest

Redact = Callable[[str], str]


def to_row(
    teacher: str,
    request: Request,
    answer: Answer,
    latency: float,
    prices: PricesConfig | None,
    redact: Redact,
    others: set[str],
) -> Row:
    """Make the row of one answer, without its verdict.

    `others` holds the digests of the problem's other samples by this teacher; the answer's own is added.
    """
    thought, said = reasoning.split(_clean(answer.text, redact), _clean(answer.reasoning, redact))
    found = extract_answer(said or thought)
    same = digest(thought, said)
    status = _status(answer, thought, said, found, same in others)
    if status is not DrawStatus.EMPTY:
        others.add(same)
    return Row(
        id=request.problem.id,
        teacher=teacher,
        sample=request.sample,
        request=request.key,
        status=status,
        verdict=None,
        digest=same,
        text=said,
        reasoning=thought,
        answer=found,
        gold=request.problem.answer,
        finish_reason=_optional(answer.finish_reason, redact),
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        latency=round(latency, 4),
        cost=cost(prices, answer.prompt_tokens, answer.completion_tokens),
        model=_optional(answer.model, redact),
        time=datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
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

    def start(self, row: Row) -> asyncio.Future[Verdict]:
        """Begin to verify one row. The future's verdict always comes: the verifier kills what hangs."""
        loop = asyncio.get_running_loop()
        verdict = Verdict.UNPARSED if row.answer is None else compare_answers(row.answer, row.gold)
        if verdict is None:
            return loop.run_in_executor(self._threads, self._verifier.verify, row.answer, row.gold)
        future: asyncio.Future[Verdict] = loop.create_future()
        future.set_result(verdict)
        return future

    def close(self) -> None:
        self._threads.shutdown(wait=True)


def _status(answer: Answer, thought: str, said: str, found: str | None, repeated: bool) -> DrawStatus:
    if answer.refused:
        return DrawStatus.REFUSED
    if not thought and not said:
        return DrawStatus.EMPTY
    if repeated:
        return DrawStatus.DUPLICATE
    if answer.finish_reason in ("length", "max_tokens"):
        return DrawStatus.TRUNCATED
    return DrawStatus.UNPARSED if found is None else DrawStatus.OK


def _clean(text: str, redact: Redact) -> str:
    """Text that any UTF-8 file can hold, without keys: JSON may escape half of a surrogate pair."""
    return redact(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _optional(text: str | None, redact: Redact) -> str | None:
    return None if text is None else _clean(text, redact)
