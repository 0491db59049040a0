"""How one teacher is asked: retries, rate limits, and no more once it is dead. The one owner of retries."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from compact_distill.teachers.answer import split_reasoning
from compact_distill.teachers.protocol import (
    FATAL,
    FINAL,
    FaultKind,
    Finish,
    TeacherAnswer,
    TeacherBackend,
    TeacherFault,
    TeacherRequest,
    finish,
)


class RateLimiter:
    """Hands out starting times so that `amount` per minute is never passed; it allows no bursts.

    Providers measure over windows of their own, so only an even flow keeps within every one of them.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_second = per_minute / 60
        self._free_at = 0.0

    def reserve(self, amount: float, now: float) -> float:
        """Take `amount` and return how many seconds to wait before using it; who asks first goes first."""
        start = max(self._free_at, now)
        self._free_at = start + amount / self._per_second
        return start - now

    def correct(self, amount: float) -> None:
        """Take `amount` more (less, if negative): what was reserved was an estimate."""
        self._free_at += amount / self._per_second


FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
"""Seconds before the first retry, doubled each time, and their upper limit."""
_SPREAD = 1.0
"""Seconds over which requests that waited for the same moment start again."""
_WRITTEN = frozenset({FaultKind.TIMEOUT, FaultKind.MALFORMED})
"""Faults after which tokens may have been written, and count; after others the server has done nothing for them."""
_BREAKER = 10
"""Faults in a row, without one answer between, that it takes to call a teacher dead."""


class Halted(Exception):
    """The teacher is not asked any more: the run stops, or the circuit breaker opened."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one teacher. Seconds throughout; None means no limit."""

    timeout: float | None = None  # one attempt, from the first byte sent to the last received
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_retries: int = 6
    max_wait: float = 3600.0  # longest wait for rate limits, in all, for one request
    patience: float = 60.0  # of nothing but faults, after which the teacher counts as dead
    max_empty: int = 0  # how often an answer with nothing in it is asked for again


class Clock:
    """Time and chance, apart so that a test can own them."""

    now: Callable[[], float] = staticmethod(time.monotonic)
    uniform: Callable[[float, float], float] = staticmethod(random.uniform)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Return when the event is set, at the latest after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass


class Requester:
    """Asks one teacher. `dead` says why it is asked no more, once it is not."""

    def __init__(self, teacher: TeacherBackend, limits: Limits, clock: Clock | None = None) -> None:
        self.teacher = teacher
        self.limits = limits
        self.dead: str | None = None
        self.faults: Counter[FaultKind] = Counter()  # of every attempt
        self.in_flight = 0
        self.waiting_until: float | None = None  # on the clock
        self._clock = clock or Clock()
        self._halt = asyncio.Event()
        self._not_before = 0.0
        self._row, self._row_began = 0, 0.0  # faults since the last answer, and when they began
        self._alive_at = 0.0  # when the last answer came; before the first one, when the first request began
        self._completion_tokens = 0.0  # running mean
        self._requests = RateLimiter(limits.requests_per_minute) if limits.requests_per_minute else None
        self._tokens = RateLimiter(limits.tokens_per_minute) if limits.tokens_per_minute else None

    def halt(self) -> None:
        """Start nothing more; what is in flight comes home."""
        self._halt.set()

    @property
    def halted(self) -> bool:
        """Whether nothing more is started."""
        return self._halt.is_set()

    async def ask(self, request: TeacherRequest) -> tuple[TeacherAnswer, float]:
        """Ask until there is an answer, within the limits; return it and the seconds that its own attempt took.

        Raises:
            TeacherFault: given up; asking again in this run would not help.
            Halted: not asked, or not asked again.
        """
        attempt, failures, waited, empty, asked_at = 0, 0, 0.0, 0, self._clock.now()
        self._alive_at = self._alive_at or asked_at
        while True:
            estimate, kept_waiting = await self._admitted(request)
            waited += kept_waiting
            began = self._clock.now()
            try:
                answer = await self._attempt(request)
            except TeacherFault as fault:
                self.faults[fault.kind] += 1
                if self._tokens and fault.kind not in _WRITTEN:
                    self._tokens.correct(-estimate)
                delay = self._delay(fault, attempt)
                attempt += 1
                # A rate limit is the server's wish, not its failure: it costs patience, not retries.
                if fault.kind is FaultKind.RATE_LIMITED:
                    given_up = waited + delay > self.limits.max_wait
                else:
                    failures += 1
                    given_up = fault.kind in FINAL or failures > self.limits.max_retries
                self._break(fault, in_vain=given_up and self._alive_at <= asked_at)
                if given_up or delay > self.limits.max_wait:
                    raise
                if fault.kind is FaultKind.RATE_LIMITED or fault.retry_after:
                    self._not_before = max(self._not_before, self._clock.now() + delay)
                else:
                    await self._sleep(delay)
            else:
                self._row = 0
                self._alive_at = self._clock.now()
                self._account(request, answer, estimate)
                if empty == self.limits.max_empty or not is_empty(answer):
                    return answer, self._clock.now() - began
                self.faults[FaultKind.EMPTY] += 1
                await self._sleep(self._delay(None, empty))
                empty += 1

    async def _attempt(self, request: TeacherRequest) -> TeacherAnswer:
        self.in_flight += 1
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await self.teacher.ask(request)
        except TimeoutError:
            message = f"no whole answer within {self.limits.timeout or 0:g} s; raise `timeout`"
            raise TeacherFault(FaultKind.TIMEOUT, message) from None
        finally:
            self.in_flight -= 1

    async def _admitted(self, request: TeacherRequest) -> tuple[int, float]:
        """Wait for the server's and the user's limits; return the tokens reserved and the seconds of the server's."""
        waited = 0.0
        while True:
            began = self._clock.now()
            await self._until(self._not_before)
            waited += self._clock.now() - began
            estimate = 0
            wait = 0.0
            now = self._clock.now()
            if self._requests:
                wait = self._requests.reserve(1, now)
            if self._tokens:
                estimate = self._estimate(request)
                wait = max(wait, self._tokens.reserve(estimate, now))
            await self._sleep(wait)
            if self._clock.now() >= self._not_before:
                return estimate, waited

    async def _until(self, moment: float) -> None:
        while (wait := moment - self._clock.now()) > 0:
            self.waiting_until = moment
            # All who wait would start in the same instant and be turned away again.
            await self._sleep(wait + self._clock.uniform(0, _SPREAD))
            moment = self._not_before
        self.waiting_until = None

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0 and not self.halted:
            await self._clock.wait(self._halt, seconds)
        if self.halted:
            raise Halted

    def _delay(self, fault: TeacherFault | None, attempt: int) -> float:
        if fault is not None and fault.retry_after:
            return fault.retry_after
        longest = min(FIRST_DELAY * 2 ** min(attempt, 30), LONGEST_DELAY)
        return self._clock.uniform(longest / 2, longest)

    def _break(self, fault: TeacherFault, in_vain: bool) -> None:
        """Open the circuit where nothing but faults can be expected.

        Args:
            in_vain: the request is given up, and no other one was answered since it began.
        """
        if fault.kind is FaultKind.ABSENT:
            return
        now = self._clock.now()
        if fault.kind is FaultKind.RATE_LIMITED:
            silent = now - self._alive_at >= self.limits.patience
            hopeless = (in_vain and silent) or (fault.retry_after or 0) > self.limits.max_wait
        else:
            self._row += 1
            self._row_began = now if self._row == 1 else self._row_began
            # Faults that asking again cannot mend need no patience.
            lasted = fault.kind in FINAL or now - self._row_began >= self.limits.patience
            hopeless = fault.kind in FATAL or (self._row >= _BREAKER and lasted)
        if hopeless and self.dead is None:
            self.dead = str(fault)
            self.halt()

    def _estimate(self, request: TeacherRequest) -> int:
        prompt = estimate_tokens((request.system or "") + request.prompt)
        return prompt + int(self._completion_tokens or request.decoding.max_tokens or 0)

    def _account(self, request: TeacherRequest, answer: TeacherAnswer, estimate: int) -> None:
        written = answer.completion_tokens or estimate_tokens(answer.reasoning + answer.text)
        self._completion_tokens += (written - self._completion_tokens) * (0.1 if self._completion_tokens else 1)
        if self._tokens:
            read = answer.prompt_tokens or estimate_tokens((request.system or "") + request.prompt)
            self._tokens.correct(read + written - estimate)


def is_empty(answer: TeacherAnswer) -> bool:
    """Whether nothing came, or empty thinking tags alone, although nothing was refused and no limit was reached."""
    nothing = not any(split_reasoning(answer.text, answer.reasoning))
    return nothing and not answer.refused and finish(answer.finish_reason) is Finish.WHOLE


def estimate_tokens(text: str) -> int:
    """Tokens of a text where no tokenizer is at hand: four bytes each, which is near the truth for English."""
    return -(-len(text.encode()) // 4)
