"""The pool: all teachers at work side by side, shown live, stopped cleanly by signals, resumed by running it again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from compact_distill.answers import Verifier
from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.errors import InputError, RunError
from compact_distill.records import Problem
from compact_distill.runs.progress import duration, printable, say
from compact_distill.teachers.answer import Golds, Verification, verify_store
from compact_distill.teachers.ask import Halted, Requester
from compact_distill.teachers.backends import Member, build
from compact_distill.teachers.protocol import FINAL, FaultKind, TeacherFault
from compact_distill.teachers.store import Store
from compact_distill.teachers.worker import Counters, Worker, preflight_request

T = TypeVar("T")

_PREFLIGHT_RETRIES, _PREFLIGHT_SECONDS = 2, 120.0
_EARLY = 10
"""Failures before a run may be called hopeless ahead of its end: one bad row never ends a run."""
_SYNC_SECONDS = 5.0
_WRONG = FINAL | {FaultKind.CONNECTION, FaultKind.MALFORMED}
"""Faults of a preflight that no waiting mends; a busy server is not one."""
_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BETWEEN_FRAMES = 0.5


def generate(
    teachers: Sequence[TeacherConfig],
    generation: GenerationConfig,
    problems: Iterable[Problem],
    folder: Path,
) -> tuple[Counters, ...]:
    """Ask every teacher for the rationales that the stores in `folder` lack, and store each answer at once.

    `problems` is read several times, from its start; it may be a stream of any length.

    Raises:
        InputError: a key, name or address that does not work, found before the run.
        RunError: a store is locked or cannot be written, or more than `max_errors` of the rationales got no answer.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM; what was in flight is stored.
    """
    members = build(teachers, generation)
    golds = Golds(problems)
    with contextlib.ExitStack() as stack, Verifier() as verifier:
        stores = [stack.enter_context(Store(folder, m.config.name)) for m in members]
        for store in stores:
            _report_damage(store)
            verify_store(store, verifier, golds)
        all_counts, stopped_by = _until_done(_run(members, stores, generation, problems, verifier))
    for counts in all_counts:
        for note in counts.notes():
            say(note)
    if stopped_by is signal.SIGINT:
        raise KeyboardInterrupt
    if stopped_by is not None:
        raise SystemExit(128 + stopped_by)
    _check_errors(all_counts, generation.max_errors)
    return all_counts


def _until_done(work: Coroutine[Any, Any, T]) -> T:
    """Run to its end, also where an event loop runs already, as in a notebook: then in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _run(
    members: Sequence[Member],
    stores: Sequence[Store],
    generation: GenerationConfig,
    problems: Iterable[Problem],
    verifier: Verifier,
) -> tuple[tuple[Counters, ...], signal.Signals | None]:
    verification = Verification(verifier, workers=2)
    workers: list[Worker] = []

    def check_hope() -> None:
        failed = sum(worker.counts.unanswered for worker in workers)
        wanted = sum(worker.counts.wanted for worker in workers)
        hopeless = failed >= _EARLY and failed > generation.max_errors * wanted
        if hopeless or any(worker.failure for worker in workers):
            for worker in workers:
                worker.requester.halt()

    workers += [
        Worker(member, problems, store, generation, verification, check_hope)
        for member, store in zip(members, stores, strict=True)
    ]
    try:
        for worker in workers:
            worker.plan()
        await _preflight([m for m, worker in zip(members, workers, strict=True) if worker.counts.planned])
        with _halt_on_signal(workers) as stopped:
            await _work(workers)
        for worker in workers:
            if worker.failure is not None:
                raise worker.failure
        return tuple(worker.counts for worker in workers), stopped[0] if stopped else None
    finally:
        verification.close()
        for member in members:
            await member.teacher.close()


async def _work(workers: Sequence[Worker]) -> None:
    busy = [worker for worker in workers if worker.counts.planned]
    try:
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(_sync(busy)), group.create_task(show(busy))]
            await asyncio.gather(*(group.create_task(worker.run()) for worker in busy))
            for helper in helpers:
                helper.cancel()
    except BaseExceptionGroup as several:
        raise _first(several) from None


async def _sync(workers: Sequence[Worker]) -> None:
    """Bring the rows to disk now and then; a power cut loses seconds, not hours."""
    while True:
        await asyncio.sleep(_SYNC_SECONDS)
        for worker in workers:
            await asyncio.to_thread(worker.store.sync)


async def _preflight(members: Sequence[Member]) -> None:
    """Send one short request to every teacher that will be asked.

    Raises:
        InputError: what does not work, of all teachers at once.
    """

    async def check(member: Member) -> str | None:
        if member.config.backend in ("jsonl", "lab"):
            return None
        # A local model may take minutes to load; a server that does has time to do so before the run.
        limit = member.limits.timeout and min(member.limits.timeout, _PREFLIGHT_SECONDS)
        wait = min(member.limits.max_wait, _PREFLIGHT_SECONDS)
        short = replace(member.limits, max_retries=_PREFLIGHT_RETRIES, timeout=limit, max_wait=wait)
        requester = Requester(member.teacher, short)
        note = asyncio.get_running_loop().call_later(
            _SECONDS_BETWEEN_LINES, say, f"{member.config.name}: waiting for the answer to its first request"
        )
        try:
            await requester.ask(preflight_request(member))
        except TeacherFault as fault:
            if fault.kind in _WRONG:
                return f"teacher {member.config.name}: {fault}"
            say(f"{member.config.name}: the first request got no answer ({fault}); it may be busy, so the run goes on")
        except Halted:
            return f"teacher {member.config.name}: {requester.dead}"
        finally:
            note.cancel()
        return None

    wrong = [problem for problem in await asyncio.gather(*map(check, members)) if problem]
    if wrong:
        raise InputError(wrong)


@contextlib.contextmanager
def _halt_on_signal(workers: Sequence[Worker]) -> Iterator[list[signal.Signals]]:
    """Finish what is in flight after the first Ctrl-C or SIGTERM; drop it after the second."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        if len(received) > 1 and task is not None:
            task.cancel()
            return
        flying = sum(worker.requester.in_flight for worker in workers)
        say(f"stopping: waiting for {flying} requests in flight; press Ctrl-C again to drop them")
        for worker in workers:
            worker.requester.halt()

    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Only the main thread may handle signals; elsewhere whoever owns it decides.
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(number, stop, number)
            handled.append(number)
    try:
        yield received
    except asyncio.CancelledError:
        if len(received) < 2 or task is None:
            raise
        task.uncancel()
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def _check_errors(all_counts: Sequence[Counters], max_errors: float) -> None:
    wanted = sum(t.wanted for t in all_counts)
    missing = sum(t.unanswered for t in all_counts)
    if wanted and missing / wanted > max_errors:
        lines = [f"{t.teacher} {t.unanswered} of {t.wanted}" for t in all_counts if t.unanswered]
        raise RunError(
            f"{missing} of {wanted} rationales got no answer, more than max_errors ({max_errors:g}) allows: "
            f"{', '.join(lines)}; mend what is said above and run again (only these are asked), "
            f"or go on without them with a higher --max-errors"
        )


def _report_damage(store: Store) -> None:
    if store.damaged:
        lines = ", ".join(map(str, store.damaged[:10])) + (", ..." if len(store.damaged) > 10 else "")
        say(
            f"{store.path}: {len(store.damaged)} damaged lines (line {lines}) were moved to {store.aside.name} and are "
            "asked again"
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def show(workers: Sequence[Worker]) -> None:
    """Show how far every teacher has come, until cancelled; then once more."""
    if sys.stderr.isatty():
        await _live(workers)
    else:
        await _lines(workers)


async def _lines(workers: Sequence[Worker]) -> None:
    try:
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_LINES)
            for worker in workers:
                say(", ".join(filter(None, columns(worker))))
    finally:
        for worker in workers:
            say(", ".join(filter(None, columns(worker))))


async def _live(workers: Sequence[Worker]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def frame() -> Table:
        table = Table.grid(padding=(0, 2))
        for worker in workers:
            table.add_row(*(Text(printable(cell)) for cell in columns(worker)))
        return table

    with Live(frame(), console=Console(stderr=True), auto_refresh=False) as live:
        try:
            while True:
                await asyncio.sleep(_SECONDS_BETWEEN_FRAMES)
                live.update(frame(), refresh=True)
        finally:
            live.update(frame(), refresh=True)


def columns(worker: Worker) -> list[str]:
    """Name, count, rate and time left, tokens, errors, verified share, cost and what is waited for, as texts."""
    counts, now = worker.counts, time.monotonic()
    seconds = max((counts.ended or now) - counts.began, 1e-9)
    done = counts.filled + counts.failed.total()
    left = (counts.planned - done) * seconds / done if done else None
    retries = worker.requester.faults.total() - counts.failed.total()
    faults = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.failed.items()))
    return [
        counts.teacher,
        f"{counts.stored + done} of {counts.stored + counts.planned}",
        _rate(counts.answers / seconds) if counts.answers else "",
        f"about {duration(round(left))} left" if left and not worker.requester.halted else "",
        _tokens(counts.prompt_tokens + counts.completion_tokens),
        f"{counts.correct_share:.0%} correct" if counts.correct_share is not None else "",
        _cost(counts.cost) if counts.cost is not None else "",
        f"{retries} retries" if retries > 0 else "",
        f"no answer: {faults}" if faults else "",
        _state(worker, now),
    ]


def _rate(per_second: float) -> str:
    """A rate that says something at any speed: nobody can wait for `0.0/s`."""
    if per_second >= 1:
        return f"{per_second:.1f}/s"
    a_minute = 60 * per_second
    return f"{a_minute:.{0 if a_minute >= 10 else 1}f} a minute" if a_minute >= 0.1 else f"{60 * a_minute:.1f} an hour"


def _cost(spent: float) -> str:
    return f"{spent:.2f} spent" if spent >= 0.1 or spent == 0 else f"{max(spent, 1e-4):.4f} spent"


def _tokens(count: int) -> str:
    return f"{count} tokens" if count < 10_000 else f"{count / 1000:.0f}k tokens"


def _state(worker: Worker, now: float) -> str:
    if worker.requester.dead:
        return "stopped: the teacher is dead"
    until = worker.requester.waiting_until
    if until is not None and until > now:
        return f"waiting {duration(round(until - now))}, as the server asks"
    return ""
