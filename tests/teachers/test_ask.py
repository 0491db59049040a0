"""How one teacher is asked, on a clock of the tests' own: no test waits."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from compact_distill.records import Problem
from compact_distill.teachers.ask import Clock, Halted, Limits, RateLimiter, Requester, estimate_tokens
from compact_distill.teachers.protocol import (
    FINAL,
    FaultKind,
    SamplingParams,
    TeacherAnswer,
    TeacherFault,
    TeacherRequest,
)

REQUEST = TeacherRequest(Problem("p0", "q", "4"), 0, None, "q" * 40, SamplingParams(max_tokens=100), 7, "k")
TRANSIENT = sorted(set(FaultKind) - FINAL - {FaultKind.RATE_LIMITED})


class Virtual(Clock):
    """Waiting moves the clock; chance always picks the upper end."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.now = lambda: self.time
        self.uniform = lambda low, high: high

    async def wait(self, event, seconds):
        self.time += seconds
        await asyncio.sleep(0)


class Scripted:
    """A teacher that raises or returns what its script says, again and again the last; notes when it was asked."""

    name = "t"

    def __init__(self, clock, *script):
        self.clock = clock
        self.script = list(script)
        self.times: list[float] = []

    async def ask(self, request):
        self.times.append(self.clock.time - 1000)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        return step

    async def close(self):
        pass


OK = TeacherAnswer("4", prompt_tokens=10, completion_tokens=20)


def fault(kind=FaultKind.SERVER, after=None):
    return TeacherFault(kind, f"{kind} happened", after)


def requester(*script, **limits):
    clock = Virtual()
    teacher = Scripted(clock, *script)
    return Requester(teacher, Limits(**limits), clock), teacher


def ask(pair, times=1):
    async def all_of_them():
        return [await pair[0].ask(REQUEST) for _ in range(times)]

    return asyncio.run(all_of_them())


def test_an_answer_comes_back_with_the_time_of_its_own_attempt():
    pair = requester(fault(), OK)
    ((answer, seconds),) = ask(pair)
    assert answer is OK
    assert seconds == 0


@pytest.mark.parametrize("kind", TRANSIENT)
def test_waits_double_between_retries_up_to_a_minute(kind):
    pair = requester(fault(kind), max_retries=8, patience=1e9)
    with pytest.raises(TeacherFault):
        ask(pair)
    waits = [b - a for a, b in zip(pair[1].times, pair[1].times[1:], strict=False)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_waits_are_spread_by_chance_over_their_upper_half():
    pair = requester(fault(), fault(), OK)
    bounds = []
    pair[0]._clock.uniform = lambda low, high: bounds.append((low, high)) or low
    ask(pair)
    assert bounds[:2] == [(0.5, 1), (1, 2)]
    assert pair[1].times == [0, 0.5, 1.5]


@pytest.mark.parametrize("kind", sorted(FINAL))
def test_what_cannot_get_better_is_asked_once(kind):
    pair = requester(fault(kind), max_retries=5)
    with pytest.raises(TeacherFault):
        ask(pair)
    assert len(pair[1].times) == 1


@pytest.mark.parametrize("seconds", [1.0, 600.0])
def test_the_servers_wait_is_followed_exactly_however_long(seconds):
    pair = requester(fault(FaultKind.RATE_LIMITED, seconds), OK)
    pair[0]._clock.uniform = lambda low, high: low
    ask(pair)
    assert pair[1].times == [0, seconds]


def test_a_rate_limit_holds_back_every_request_of_the_teacher():
    pair = requester(fault(FaultKind.RATE_LIMITED, 30.0), OK)

    async def two():
        first = asyncio.create_task(pair[0].ask(REQUEST))
        await asyncio.sleep(0)
        while not pair[0].faults:
            await asyncio.sleep(0)
        await asyncio.gather(first, pair[0].ask(REQUEST))

    asyncio.run(two())
    assert len(pair[1].times) == 3
    assert all(time >= 30 for time in pair[1].times[1:])


def test_a_server_error_that_names_a_time_is_followed_too():
    pair = requester(fault(FaultKind.SERVER, 45.0), OK)
    pair[0]._clock.uniform = lambda low, high: low
    ask(pair)
    assert pair[1].times == [0, 45]


def test_rate_limits_use_up_no_retries():
    pair = requester(*[fault(FaultKind.RATE_LIMITED, 5.0)] * 20, OK, max_retries=0)
    ask(pair)
    assert len(pair[1].times) == 21


@pytest.mark.parametrize("after", [None, 0.0, 0.05, 5.0])
def test_waiting_for_rate_limits_ends_when_it_took_max_wait(after):
    pair = requester(fault(FaultKind.RATE_LIMITED, after), max_wait=100.0, patience=1e9)
    with pytest.raises(TeacherFault):
        ask(pair)
    assert 40 <= pair[1].times[-1] <= 101  # up to a second of spread comes on top
    assert pair[0].dead is None


@pytest.mark.parametrize(("max_wait", "asked"), [(100.0, 1), (20.0, 4), (0.0, 61)])
def test_a_teacher_that_lets_nothing_through_is_not_waited_for_by_every_request(max_wait, asked):
    pair = requester(fault(FaultKind.RATE_LIMITED), max_wait=max_wait, patience=60.0)
    for number in range(asked):
        assert pair[0].dead is None, number
        assert outcomes(pair, 1) == ["fault"]
        pair[1].clock.time += max_wait == 0
    assert pair[0].dead == "rate_limited happened"
    assert outcomes(pair, 1) == ["halted"]


def test_a_teacher_that_answers_others_meanwhile_stays_alive():
    class Choosy(Scripted):
        async def ask(self, request):
            if request.sample:
                raise fault(FaultKind.RATE_LIMITED, 5.0)
            return OK

    clock = Virtual()
    pair = Requester(Choosy(clock, OK), Limits(max_wait=100.0, patience=1.0), clock)

    async def both():
        task = asyncio.create_task(pair.ask(replace(REQUEST, sample=1)))
        while not task.done():
            await pair.ask(REQUEST)
            await asyncio.sleep(0)
        with pytest.raises(TeacherFault):
            await task

    asyncio.run(both())
    assert pair.dead is None


def test_a_wait_beyond_patience_ends_the_teacher_at_once():
    pair = requester(fault(FaultKind.RATE_LIMITED, 7200.0), max_wait=3600.0)
    with pytest.raises(TeacherFault):
        ask(pair)
    assert "rate_limited" in pair[0].dead
    assert pair[1].times == [0]


@pytest.mark.parametrize("kind", [FaultKind.UNAUTHORISED, FaultKind.NOT_FOUND, FaultKind.UNUSABLE])
def test_a_wrong_key_or_model_ends_the_teacher_at_once(kind):
    pair = requester(fault(kind))
    with pytest.raises(TeacherFault):
        ask(pair)
    assert pair[0].dead == f"{kind} happened"
    with pytest.raises(Halted):
        ask(pair)
    assert len(pair[1].times) == 1


def outcomes(pair, times):
    async def count():
        seen = []
        for _ in range(times):
            try:
                await pair[0].ask(REQUEST)
                seen.append("answer")
            except TeacherFault:
                seen.append("fault")
            except Halted:
                seen.append("halted")
        return seen

    return asyncio.run(count())


def test_nothing_but_faults_for_a_minute_opens_the_circuit():
    pair = requester(fault(), max_retries=2, patience=60.0)
    seen = outcomes(pair, 60)
    assert pair[0].dead is not None
    # Three attempts and 1 + 2 seconds a request: a minute is over with the 20th.
    assert len(pair[1].times) == 60
    assert pair[1].times[-1] == 60
    assert seen == ["fault"] * 20 + ["halted"] * 40


def test_one_answer_closes_the_circuit_again():
    pair = requester(*([fault()] * 9 + [OK]) * 20, OK, max_retries=0, patience=0.0)
    outcomes(pair, 200)
    assert pair[0].dead is None


def test_ten_bad_requests_in_a_row_open_the_circuit():
    pair = requester(fault(FaultKind.BAD_REQUEST), patience=1e9)
    assert outcomes(pair, 15) == ["fault"] * 10 + ["halted"] * 5


def test_what_a_file_lacks_never_opens_the_circuit():
    pair = requester(fault(FaultKind.ABSENT), patience=0.0)
    assert outcomes(pair, 50) == ["fault"] * 50


def test_an_attempt_without_end_times_out():
    class Hangs(Scripted):
        async def ask(self, request):
            self.times.append(0)
            await asyncio.sleep(3600)

    clock = Virtual()
    teacher = Hangs(clock, OK)
    slow = Requester(teacher, Limits(timeout=0.01, max_retries=1, patience=1e9), clock)
    with pytest.raises(TeacherFault, match=r"no whole answer within 0.01 s; raise `timeout`"):
        asyncio.run(slow.ask(REQUEST))
    assert slow.faults == {FaultKind.TIMEOUT: 2}
    assert slow.in_flight == 0


def test_halting_wakes_what_waits_and_asks_nothing_more():
    async def run():
        class Real(Clock):
            pass

        teacher = Scripted(Virtual(), fault(FaultKind.RATE_LIMITED, 600.0))
        waiting = Requester(teacher, Limits(), Real())
        task = asyncio.create_task(waiting.ask(REQUEST))
        await asyncio.sleep(0.05)
        waiting.halt()
        with pytest.raises(Halted):
            await asyncio.wait_for(task, 1)
        assert len(teacher.times) == 1

    asyncio.run(run())


def test_requests_keep_their_pace():
    pair = requester(OK, requests_per_minute=30)
    ask(pair, 5)
    assert pair[1].times == [0, 2, 4, 6, 8]


def test_tokens_keep_their_pace_by_what_was_really_used():
    pair = requester(OK, tokens_per_minute=600)
    ask(pair, 4)
    # 10 tokens a second. Reserved at first: 10 of the prompt + max_tokens 100; used: 30; then 10 + 20 each.
    assert pair[1].times == [0, 3, 6, 9]


def test_tokens_of_an_attempt_that_brought_nothing_are_given_back():
    pair = requester(*[fault()] * 3, OK, tokens_per_minute=110)
    ask(pair)
    assert pair[1].times == [0, 1, 3, 7]  # the waits after a fault alone; a minute each for 110 tokens before
    slow = requester(fault(FaultKind.TIMEOUT), OK, tokens_per_minute=110)
    ask(slow)
    assert slow[1].times == [0, 60]  # it may have written for nobody


@pytest.mark.parametrize("per_minute", [7, 60, 1000])
def test_no_minute_holds_more_than_its_share(per_minute):
    pace = RateLimiter(per_minute)
    now, times = 0.0, []
    for i in range(3 * per_minute):
        now = i * 0.01  # all ask nearly at once
        times.append(now + pace.reserve(1, now))
    for start in times:
        assert sum(start <= time < start + 60 - 1e-6 for time in times) <= per_minute


def test_a_slow_start_is_not_made_up_for_by_a_burst():
    pace = RateLimiter(60)
    assert pace.reserve(1, 0) == 0
    assert [pace.reserve(1, 100) for _ in range(3)] == [0, 1, 2]


def test_tokens_are_estimated_from_bytes():
    assert estimate_tokens("") == 0
    assert estimate_tokens("abcde") == 2
    assert estimate_tokens("é" * 4) == 2


def test_a_request_that_waits_for_its_turn_heeds_a_rate_limit_that_comes_meanwhile(monkeypatch):
    monkeypatch.setattr("compact_distill.teachers.ask._SPREAD", 0.0)
    times = []

    class Limited(Scripted):
        async def ask(self, request):
            times.append(time.monotonic())
            if len(times) == 1:
                await asyncio.sleep(0.02)
                raise fault(FaultKind.RATE_LIMITED, 0.5)
            return OK

    async def two():
        asked = Requester(Limited(Virtual(), OK), Limits(requests_per_minute=600))
        await asyncio.gather(asked.ask(REQUEST), asked.ask(REQUEST))

    asyncio.run(two())
    assert len(times) == 3
    assert all(moment - times[0] >= 0.5 for moment in times[1:])
