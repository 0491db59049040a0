"""One teacher at work: slots go out as requests, answers come home as rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from compact_distill.config.teachers import GenerationConfig
from compact_distill.records import Problem, Verdict
from compact_distill.teachers.answer import Verification, to_row
from compact_distill.teachers.ask import Conduct, Halted
from compact_distill.teachers.backends.build import Member
from compact_distill.teachers.plan import UNTIL_CORRECT, Slot, accepted, open_slots
from compact_distill.teachers.protocol import Request, TeacherFault
from compact_distill.teachers.rows import Row
from compact_distill.teachers.store import Store
from compact_distill.teachers.tally import Tally

_VERDICT_SECONDS = 0.5
"""How long a row waits for its verdict before it is written: what was paid for must not hang on mathematics."""
_RAMP_SECONDS = 0.003
"""Between the first requests: all at once would come back all at once, in every round, and wait for each other."""
_BREATH = 1000
"""Filled slots that are skipped before the other teachers get their turn."""


class Lane:
    """Asks one teacher for all that is missing. `tally` is live."""

    def __init__(
        self,
        member: Member,
        problems: Iterable[Problem],
        store: Store,
        generation: GenerationConfig,
        verification: Verification,
        on_failure: Callable[[], None],
    ) -> None:
        self.tally = Tally(member.config.name)
        self.conduct = Conduct(member.teacher, member.manners)
        self.store = store
        self._member = member
        self._problems = problems
        self._generation = generation
        self._verification = verification
        self._on_failure = on_failure
        self._places = asyncio.Semaphore(member.config.concurrency)
        self._late: dict[tuple[str, int, str], Verdict] = {}

    def plan(self) -> None:
        """Count what is open; `run` then streams the same slots."""
        for slot in self._slots():
            if slot is None:
                self.tally.stored += 1
            else:
                self.tally.planned += 1

    async def run(self) -> None:
        """Ask until every slot is filled, given up, or the teacher is halted.

        Raises:
            RunError: the store cannot be written.
        """
        self.tally.began = time.monotonic()
        slots = self._slots()
        # Twice as many workers as requests in flight: an answer that is being verified holds no place.
        async with asyncio.TaskGroup() as group:
            for number in range(2 * self._member.config.concurrency):
                group.create_task(self._work(slots, number * _RAMP_SECONDS))
        if self._late:
            await asyncio.to_thread(self.store.rewrite, self._with_late_verdicts())
        self.tally.dead = self.conduct.dead

    def _slots(self) -> Iterator[Slot | None]:
        return open_slots(self._member.config, self._member.prompting, self._problems, self.store, self._generation)

    async def _work(self, slots: Iterator[Slot | None], delay: float) -> None:
        await asyncio.sleep(delay)
        skipped = 0
        for slot in slots:
            if self.conduct.halted:
                return
            if slot is None:
                skipped += 1
                if skipped % _BREATH == 0:
                    await asyncio.sleep(0)
                continue
            try:
                await self._fill(slot)
            except Halted:
                return

    async def _fill(self, slot: Slot) -> None:
        for sample in slot.samples:
            request = self._member.prompting.request(slot.problem, sample, slot.key)
            try:
                async with self._places:
                    answer, latency = await self.conduct.ask(request)
            except TeacherFault as fault:
                self.tally.fail(fault)
                self._on_failure()
                return
            further = bool(slot.others)
            row = to_row(
                self.tally.teacher,
                request,
                answer,
                latency,
                self._member.config.prices,
                self._member.redact,
                slot.others,
            )
            self.tally.answer(row, further)
            verdict = await self._store(row)
            if self._generation.rejection != UNTIL_CORRECT or accepted(row.status, verdict, self._generation):
                break
        self.tally.filled += 1

    async def _store(self, row: Row) -> Verdict:
        """Write the row, with its verdict if that comes soon, and return the verdict when it comes."""
        pending = self._verification.start(row)
        if not pending.done():
            await asyncio.wait([pending], timeout=_VERDICT_SECONDS)
        known = pending.result() if pending.done() else None
        self.store.append(replace(row, verdict=known))
        verdict = known or await pending
        self.tally.verdicts[verdict] += 1
        if known is None:
            self._late[row.id, row.sample, row.request] = verdict
        return verdict

    def _with_late_verdicts(self) -> Iterator[Row]:
        for row in self.store.rows():
            verdict = self._late.get((row.id, row.sample, row.request))
            yield row if verdict is None else replace(row, verdict=verdict)


def preflight_request(member: Member) -> Request:
    """A short request in the teacher's own settings."""
    problem = Problem(id="preflight", question="Reply with the one word: ready", answer="ready")
    request = member.prompting.request(problem, 0, "preflight")
    limit = request.decoding.max_tokens
    return replace(request, decoding=replace(request.decoding, max_tokens=None if limit is None else min(limit, 16)))
