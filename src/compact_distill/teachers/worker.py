"""One teacher at work: what is missing goes out as requests, answers come home as rows, all of it is counted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.records import Problem, Verdict
from compact_distill.teachers.answer import Verification, cost, to_row
from compact_distill.teachers.ask import Halted, Requester, estimate_tokens
from compact_distill.teachers.backends import Member
from compact_distill.teachers.protocol import PREFLIGHT, FaultKind, Prompting, TeacherFault, TeacherRequest
from compact_distill.teachers.store import RowStatus, Store, StoredRow, StoreReader

UNTIL_CORRECT = "until_correct"


@dataclass(slots=True)
class Slot:
    """One rationale that a problem still needs from a teacher: the samples to ask for, one after the other."""

    problem: Problem
    key: str
    samples: list[int]
    others: set[str]  # digests of the problem's samples so far; the problem's slots share it


def sample_numbers(slot: int, teacher: TeacherConfig, generation: GenerationConfig) -> list[int]:
    """Numbers of the samples that may fill one slot, in the order of asking.

    The first samples fill the slots in order whatever the rejection policy, so changing it asks nothing twice.
    """
    attempts = generation.attempts if generation.rejection == UNTIL_CORRECT else 1
    return [slot + teacher.samples * attempt for attempt in range(attempts)]


def accepted(status: RowStatus, verdict: Verdict | None, generation: GenerationConfig) -> bool:
    """Whether a row may take part in training."""
    return status is RowStatus.OK and (generation.rejection == "none" or verdict is Verdict.CORRECT)


def open_slots(
    config: TeacherConfig,
    prompting: Prompting,
    problems: Iterable[Problem],
    store: StoreReader,
    generation: GenerationConfig,
) -> Iterator[Slot | None]:
    """Yield each slot in the problems' order; None for one that needs nothing more."""
    for problem in problems:
        key = prompting.key(problem)
        others: set[str] = set()
        for number in range(config.samples):
            missing, filled = [], False
            for sample in sample_numbers(number, config, generation):
                stored = store.seen(problem.id, sample, key)
                if stored is None:
                    missing.append(sample)
                else:
                    others.add(stored.digest)
                    filled = filled or accepted(stored.status, stored.verdict, generation)
            yield Slot(problem, key, missing, others) if missing and not filled else None


@dataclass(frozen=True, slots=True)
class RequestEstimate:
    """What one teacher would still be asked. Tokens are estimates; `None` costs have no prices."""

    teacher: str
    slots: int
    requests: int  # those without an answer so far; until_correct may need up to `most_requests`
    most_requests: int
    prompt_tokens: int
    most_completion_tokens: int | None  # every answer as long as max_tokens lets it be
    prompt_cost: float | None
    most_cost: float | None


def estimate(
    config: TeacherConfig, problems: Iterable[Problem], store: StoreReader, generation: GenerationConfig
) -> RequestEstimate:
    """Count what is missing. Nothing is sent, and no key is needed."""
    prompting = Prompting(config)
    slots = requests = most = prompt_tokens = most_prompt_tokens = 0
    for slot in open_slots(config, prompting, problems, store, generation):
        slots += 1
        if slot is not None:
            tokens = estimate_tokens((config.system or "") + prompting.prompt(slot.problem))
            requests += 1
            most += len(slot.samples)
            prompt_tokens += tokens
            most_prompt_tokens += tokens * len(slot.samples)
    written = None if config.max_tokens is None else most * config.max_tokens
    return RequestEstimate(
        teacher=config.name,
        slots=slots,
        requests=requests,
        most_requests=most,
        prompt_tokens=prompt_tokens,
        most_completion_tokens=written,
        prompt_cost=cost(config.prices, prompt_tokens, 0),
        most_cost=cost(config.prices, most_prompt_tokens, written),
    )


_SAMPLES_TO_COMPARE = 5


@dataclass(slots=True)
class Counters:
    """Counts of one teacher. `planned` slots were open when the run began, `stored` were filled before."""

    teacher: str
    planned: int = 0
    stored: int = 0
    filled: int = 0
    statuses: Counter[RowStatus] = field(default_factory=Counter)
    verdicts: Counter[Verdict | None] = field(default_factory=Counter)
    failed: Counter[FaultKind] = field(default_factory=Counter)  # requests given up
    examples: dict[FaultKind, str] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    further_samples: int = 0  # answers to a problem that had one already
    dead: str | None = None
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def wanted(self) -> int:
        """Slots in all; what earlier runs filled counts, or one row that always fails would fail every rerun."""
        return self.stored + self.planned

    @property
    def answers(self) -> int:
        """Answers so far, of every status."""
        return self.statuses.total()

    @property
    def unanswered(self) -> int:
        """Planned slots that got no answer and should have; a file that lacks a rationale is no error."""
        absent = self.failed[FaultKind.ABSENT]
        asked_in_vain = self.failed.total() - absent
        return self.planned - self.filled - absent if self.dead else asked_in_vain

    @property
    def repeats_itself(self) -> bool:
        """Whether the server gives the same text to every sample, whatever seed and temperature are."""
        return (
            self.further_samples >= _SAMPLES_TO_COMPARE and self.statuses[RowStatus.DUPLICATE] == self.further_samples
        )

    @property
    def correct_share(self) -> float | None:
        """Correct among the answers with a verdict."""
        known = self.verdicts.total() - self.verdicts[None]
        return self.verdicts[Verdict.CORRECT] / known if known else None

    def answer(self, row: StoredRow, further: bool) -> None:
        """Count one answer; `further` says that its problem had one already."""
        self.statuses[row.status] += 1
        self.further_samples += further and row.status is not RowStatus.EMPTY
        self.prompt_tokens += row.prompt_tokens or 0
        self.completion_tokens += row.completion_tokens or 0
        if row.cost is not None:
            self.cost = (self.cost or 0.0) + row.cost

    def fail(self, fault: TeacherFault) -> None:
        """Count one request that was given up."""
        self.failed[fault.kind] += 1
        self.examples.setdefault(fault.kind, str(fault))

    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        found = [f"{n} without an answer ({kind}): {self.examples[kind]}" for kind, n in sorted(self.failed.items())]
        found += [f"{n} answers {status}" for status, n in sorted(self.statuses.items()) if status is not RowStatus.OK]
        if self.verdicts[Verdict.TIMED_OUT]:
            found.append(f"{self.verdicts[Verdict.TIMED_OUT]} answers could not be verified in time")
        if self.repeats_itself:
            found.append(
                "every further sample repeats an earlier one letter by letter: the server ignores seed and "
                "temperature; let it sample (transformers serve: do_sample in generation_config), or set `samples: 1`"
            )
        if self.dead:
            found.append(f"not asked any more: {self.dead}")
        return [f"{self.teacher}: {note}" for note in found]


_RAMP_SECONDS = 0.003
"""Between the first requests: all at once would come back all at once, in every round, and wait for each other."""
_BREATH = 1000
"""Filled slots that are skipped before the other teachers get their turn."""


class Worker:
    """Asks one teacher for all that is missing. `counts` is live; `failure` is the verifier's, once it has failed."""

    def __init__(
        self,
        member: Member,
        problems: Iterable[Problem],
        store: Store,
        generation: GenerationConfig,
        verification: Verification,
        on_failure: Callable[[], None],
    ) -> None:
        self.counts = Counters(member.config.name)
        self.failure: Exception | None = None
        self.requester = Requester(member.teacher, member.limits)
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
                self.counts.stored += 1
            else:
                self.counts.planned += 1

    async def run(self) -> None:
        """Ask until every slot is filled, given up, or the teacher is halted.

        Raises:
            RunError: the store cannot be written.
        """
        self.counts.began = time.monotonic()
        slots = self._slots()
        # Twice as many workers as requests in flight: an answer that is being verified holds no place.
        async with asyncio.TaskGroup() as group:
            for number in range(2 * self._member.config.concurrency):
                group.create_task(self._work(slots, number * _RAMP_SECONDS))
        if self._late:
            await asyncio.to_thread(self.store.rewrite, self._with_late_verdicts())
        self.counts.dead, self.counts.ended = self.requester.dead, time.monotonic()

    def _slots(self) -> Iterator[Slot | None]:
        return open_slots(self._member.config, self._member.prompting, self._problems, self.store, self._generation)

    async def _work(self, slots: Iterator[Slot | None], delay: float) -> None:
        await asyncio.sleep(delay)
        skipped = 0
        for slot in slots:
            if self.requester.halted:
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
                    answer, latency = await self.requester.ask(request)
            except TeacherFault as fault:
                self.counts.fail(fault)
                self._on_failure()
                return
            further = bool(slot.others)
            row = to_row(
                self.counts.teacher,
                request,
                answer,
                latency,
                self._member.config.prices,
                self._member.redact,
                slot.others,
            )
            self.counts.answer(row, further)
            verdict = await self._store(row)
            if self._generation.rejection != UNTIL_CORRECT or accepted(row.status, verdict, self._generation):
                break
        self.counts.filled += 1

    async def _store(self, row: StoredRow) -> Verdict | None:
        """Write the row at once, for what was paid must not hang on mathematics; return its verdict when that comes.

        Where the verifier fails there is none. That ends the run, but only after what is in flight has come home.
        """
        pending = self._verification.start(row)
        known = pending.result() if pending.done() else None
        self.store.append(replace(row, verdict=known))
        try:
            verdict = known or await pending
        except Exception as error:
            self.failure = error
            self._on_failure()
            return None
        self.counts.verdicts[verdict] += 1
        if known is None:
            self._late[row.id, row.sample, row.request] = verdict
        return verdict

    def _with_late_verdicts(self) -> Iterator[StoredRow]:
        for row in self.store.rows():
            verdict = self._late.get((row.id, row.sample, row.request))
            yield row if verdict is None else replace(row, verdict=verdict)


def preflight_request(member: Member) -> TeacherRequest:
    """A short request in the teacher's own settings."""
    request = member.prompting.request(PREFLIGHT, 0, "preflight")
    limit = request.decoding.max_tokens
    return replace(request, decoding=replace(request.decoding, max_tokens=None if limit is None else min(limit, 16)))
