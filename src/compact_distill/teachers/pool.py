"""The pool: all teachers at work side by side, stopped cleanly by Ctrl-C and SIGTERM, resumed by running it again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from compact_distill.answers import Verifier
from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.errors import InputError, RunError
from compact_distill.records import Problem
from compact_distill.runs.progress import say
from compact_distill.teachers.answer import Verification
from compact_distill.teachers.ask import Conduct, Halted
from compact_distill.teachers.backends.build import Member, build
from compact_distill.teachers.display import show
from compact_distill.teachers.protocol import FINAL, FaultKind, TeacherFault
from compact_distill.teachers.store import Store
from compact_distill.teachers.tally import Tally
from compact_distill.teachers.verify import verify_store
from compact_distill.teachers.worker import Lane, preflight_request

_PREFLIGHT_RETRIES, _PREFLIGHT_SECONDS = 2, 120.0
_EARLY = 10
"""Failures before a run may be called hopeless ahead of its end: one bad row never ends a run."""
_SYNC_SECONDS = 5.0
_WRONG = FINAL | {FaultKind.CONNECTION, FaultKind.MALFORMED}
"""Faults of a preflight that no waiting mends; a busy server is not one."""


def generate(
    teachers: Sequence[TeacherConfig],
    generation: GenerationConfig,
    problems: Iterable[Problem],
    folder: Path,
) -> tuple[Tally, ...]:
    """Ask every teacher for the rationales that the stores in `folder` lack, and store each answer at once.

    `problems` is read several times, from its start; it may be a stream of any length.

    Raises:
        InputError: a key, name or address that does not work, found before the run.
        RunError: a store is locked or cannot be written, or more than `max_errors` of the rationales got no answer.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM; what was in flight is stored.
    """
    members = build(teachers, generation)
    with contextlib.ExitStack() as stack, Verifier() as verifier:
        stores = [stack.enter_context(Store(folder, m.config.name)) for m in members]
        for store in stores:
            _report_damage(store)
            verify_store(store, verifier, golds={})
        tallies, stopped_by = asyncio.run(_run(members, stores, generation, problems, verifier))
    for tally in tallies:
        for note in tally.notes():
            say(note)
    if stopped_by is signal.SIGINT:
        raise KeyboardInterrupt
    if stopped_by is not None:
        raise SystemExit(128 + stopped_by)
    _check_errors(tallies, generation.max_errors)
    return tallies


async def _run(
    members: Sequence[Member],
    stores: Sequence[Store],
    generation: GenerationConfig,
    problems: Iterable[Problem],
    verifier: Verifier,
) -> tuple[tuple[Tally, ...], signal.Signals | None]:
    verification = Verification(verifier, workers=2)
    lanes: list[Lane] = []

    def check_hope() -> None:
        failed = sum(lane.tally.unanswered for lane in lanes)
        wanted = sum(lane.tally.wanted for lane in lanes)
        if failed >= _EARLY and failed > generation.max_errors * wanted:
            for lane in lanes:
                lane.conduct.halt()

    lanes += [
        Lane(member, problems, store, generation, verification, check_hope)
        for member, store in zip(members, stores, strict=True)
    ]
    try:
        for lane in lanes:
            lane.plan()
        await _preflight([m for m, lane in zip(members, lanes, strict=True) if lane.tally.planned])
        with _halt_on_signal(lanes) as stopped:
            await _work(lanes)
        return tuple(lane.tally for lane in lanes), stopped[0] if stopped else None
    finally:
        verification.close()
        for member in members:
            await member.teacher.close()


async def _work(lanes: Sequence[Lane]) -> None:
    busy = [lane for lane in lanes if lane.tally.planned]
    try:
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(_sync(busy)), group.create_task(show(busy))]
            await asyncio.gather(*(group.create_task(lane.run()) for lane in busy))
            for helper in helpers:
                helper.cancel()
    except BaseExceptionGroup as several:
        raise _first(several) from None


async def _sync(lanes: Sequence[Lane]) -> None:
    """Bring the rows to disk now and then; a power cut loses seconds, not hours."""
    while True:
        await asyncio.sleep(_SYNC_SECONDS)
        for lane in lanes:
            await asyncio.to_thread(lane.store.sync)


async def _preflight(members: Sequence[Member]) -> None:
    """Send one short request to every teacher that will be asked.

    Raises:
        InputError: what does not work, of all teachers at once.
    """

    async def check(member: Member) -> str | None:
        if member.config.backend in ("jsonl", "lab"):
            return None
        # A local model may take minutes to load; a server that does has time to do so before the run.
        limit = member.manners.timeout and min(member.manners.timeout, _PREFLIGHT_SECONDS)
        conduct = Conduct(member.teacher, replace(member.manners, max_retries=_PREFLIGHT_RETRIES, timeout=limit))
        try:
            await conduct.ask(preflight_request(member))
        except TeacherFault as fault:
            if fault.kind in _WRONG:
                return f"teacher {member.config.name}: {fault}"
            say(f"{member.config.name}: the first request got no answer ({fault}); it may be busy, so the run goes on")
        except Halted:
            return f"teacher {member.config.name}: {conduct.dead}"
        return None

    wrong = [problem for problem in await asyncio.gather(*map(check, members)) if problem]
    if wrong:
        raise InputError(wrong)


@contextlib.contextmanager
def _halt_on_signal(lanes: Sequence[Lane]) -> Iterator[list[signal.Signals]]:
    """Finish what is in flight after the first Ctrl-C or SIGTERM; drop it after the second."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        if len(received) > 1 and task is not None:
            task.cancel()
            return
        flying = sum(lane.conduct.in_flight for lane in lanes)
        say(f"stopping: waiting for {flying} requests in flight; press Ctrl-C again to drop them")
        for lane in lanes:
            lane.conduct.halt()

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


def _check_errors(tallies: Sequence[Tally], max_errors: float) -> None:
    wanted = sum(t.wanted for t in tallies)
    missing = sum(t.unanswered for t in tallies)
    if wanted and missing / wanted > max_errors:
        lines = [f"{t.teacher} {t.unanswered} of {t.wanted}" for t in tallies if t.unanswered]
        raise RunError(
            f"{missing} of {wanted} rationales got no answer, more than max_errors ({max_errors:g}) allows: "
            f"{', '.join(lines)}; mend what is said above and run again (only these are asked), "
            f"or go on without them with a higher --max-errors"
        )


def _report_damage(store: Store) -> None:
    if store.torn_bytes:
        say(f"{store.path}: a torn last line of {store.torn_bytes} bytes was cut off; it is asked again")
    if store.damaged:
        lines = ", ".join(map(str, store.damaged[:10]))
        say(f"{store.path}: {len(store.damaged)} damaged lines are left out and asked again (lines {lines})")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
