"""The pool against servers on the loopback: what is asked, stored, counted, and said."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from compact_distill.answers import Verifier
from compact_distill.config.teachers import GenerationConfig
from compact_distill.errors import InputError, RunError
from compact_distill.records import Problem, Verdict
from compact_distill.teachers import pool
from compact_distill.teachers.pool import _rate, _tokens
from compact_distill.teachers.protocol import FaultKind
from compact_distill.teachers.store import RowStatus, StoreReader
from compact_distill.teachers.worker import Counters, estimate
from teachers.conftest import teacher
from teachers.server import Reply, Server, fails, questions, right, says

KEY = "sk-secret-0123456789abcdefghij"


def test_every_problem_gets_a_row_with_everything_the_server_said(ask, problems, stored):
    with Server(right) as server:
        outcome = ask(teacher(server.url, prices={"prompt": 1.0, "completion": 10.0}), problems(20))
    rows = stored()
    assert sorted(row.id for row in rows) == sorted(p.id for p in problems(20))
    for row in rows:
        assert (row.status, row.verdict, row.answer, row.gold) == (RowStatus.OK, Verdict.CORRECT, "4", "4")
        assert (row.prompt_tokens, row.completion_tokens, row.model) == (12, 7, "served-model")
        assert row.cost == pytest.approx((12 * 1 + 7 * 10) / 1e6)
        assert row.finish_reason == "stop"
        assert 0 < row.latency < 30
        assert row.time.startswith("20")
    (counts,) = outcome
    assert (counts.planned, counts.filled, counts.stored) == (20, 20, 0)
    assert (counts.prompt_tokens, counts.completion_tokens) == (240, 140)
    assert counts.cost == pytest.approx(20 * 82 / 1e6)
    assert counts.correct_share == 1.0


def test_a_second_run_asks_nothing_and_a_longer_one_only_the_rest(ask, problems, stored):
    with Server(right) as server:
        ask(teacher(server.url), problems(10))
        count = len(server.seen)
        outcome = ask(teacher(server.url), problems(10))
        assert len(server.seen) == count
        assert outcome[0].stored == 10
        ask(teacher(server.url), problems(15))
        assert Counter(questions(server)) == Counter(p.question for p in problems(15))
    assert len(stored()) == 15


@pytest.mark.parametrize("change", [{"prompt": "New: {question}"}, {"model": "m2"}, {"temperature": 0.1}])
def test_a_changed_prompt_or_model_asks_again_and_keeps_the_old_rows(ask, problems, stored, change):
    with Server(right) as server:
        ask(teacher(server.url), problems(5))
        before = stored()
        ask(teacher(server.url, **change), problems(5))
        assert len(stored()) == 10
        assert stored()[:5] == before
        # And going back asks nothing: the old rows are still good.
        count = len(server.seen)
        ask(teacher(server.url), problems(5))
        assert len(server.seen) == count


def test_half_a_surrogate_or_nul_in_a_reply_ends_no_run(ask, problems, stored, capsys):
    def behave(body, number):
        if "p1?" in str(body):
            return Reply(400, body=b'{"error": {"message": "\\ud800 \\u0000"}}')
        if "p2?" in str(body):
            return Reply(body=b'{"\\ud800": "\\u0000"}')
        text = says("x").body.replace(b'"x"', b'"half \\ud83d, nul \\u0000. The answer is 4."')
        return Reply(body=text.replace(b'"served-model"', b'"m\\udc00\\u0000"'))

    with Server(behave) as server:
        ask(teacher(server.url), problems(5), max_errors=0.5, max_retries=0, patience=60)
    assert Counter((row.status, row.text) for row in stored()) == {
        (RowStatus.OK, "half \ufffd, nul \ufffd. The answer is 4."): 3
    }
    assert "\0" not in capsys.readouterr().err


def test_the_summary_counts_every_status_that_is_not_ok(ask, problems, capsys, quick):
    with Server(lambda body, n: says("" if re.search("p[01]", str(body)) else "no idea")) as server:
        ask(teacher(server.url, concurrency=1), problems(4))
    said = capsys.readouterr().err
    assert "t: 2 answers empty" in said
    assert "t: 2 answers no_answer" in said


@pytest.mark.parametrize(
    "reply",
    [
        fails(429, Retry_After="0.01"),
        fails(429),
        fails(500),
        Reply(drop_after=-1),
        Reply(body=b'{"choices"', drop_after=5),
        Reply(body=b"nonsense"),
        Reply(body=b'{"choices": []}'),
    ],
    ids=["429 with a time", "429", "500", "dropped", "half sent", "malformed", "no choices"],
)
def test_a_passing_fault_costs_a_retry_and_no_row(ask, problems, stored, quick, reply):
    failed: set[str] = set()

    def flaky(body, number):
        question = body["messages"][-1]["content"]
        if question in failed or "problem" not in question:
            return right(body, number)
        failed.add(question)
        return reply

    with Server(flaky) as server:
        outcome = ask(teacher(server.url), problems(10), patience=60)
        assert Counter(questions(server)) == {p.question: 2 for p in problems(10)}
    assert len(stored()) == 10
    assert outcome[0].unanswered == 0


@pytest.mark.parametrize("status", [400, 403, 422])
def test_a_request_that_cannot_succeed_is_sent_once(ask, problems, stored, status):
    def picky(body, number):
        return fails(status, "not this one") if "p3?" in str(body) else right(body, number)

    with Server(picky) as server:
        outcome = ask(teacher(server.url), problems(30))
        assert Counter(questions(server)) == {p.question: 1 for p in problems(30)}
    assert len(stored()) == 29
    assert outcome[0].failed.total() == 1


def test_a_slow_stream_ends_at_the_time_limit(ask, problems, stored, quick):
    def slow(body, number):
        return Reply(body=says("The answer is 4.").body, drip=0.05) if "p1?" in str(body) else right(body, number)

    with Server(slow) as server:
        outcome = ask(teacher(server.url, timeout=0.3), problems(3), max_errors=0.5, patience=60)
    assert outcome[0].failed == {FaultKind.TIMEOUT: 1}
    assert sorted(row.id for row in stored()) == ["p0", "p2"]


def test_a_rerun_asks_only_for_what_failed(ask, problems, stored, quick):
    broken = True

    def behave(body, number):
        return fails(500) if broken and "p1?" in str(body) else right(body, number)

    with Server(behave) as server:
        ask(teacher(server.url), problems(3), max_errors=0.5, patience=60)
        broken = False
        count = len(questions(server))
        ask(teacher(server.url), problems(3))
        assert questions(server)[count:] == [problems(3)[1].question]
    assert len(stored()) == 3


def test_too_many_errors_fail_the_run_loudly_and_keep_what_came(ask, problems, stored, quick):
    def half(body, number):
        return fails(500, "out of order") if "5?" in str(body) or "6?" in str(body) else right(body, number)

    with Server(half) as server, pytest.raises(RunError) as caught:
        ask(teacher(server.url), problems(10), max_errors=0.1, patience=60)
    assert "2 of 10 rationales got no answer, more than max_errors (0.1) allows: t 2 of 10" in str(caught.value)
    assert len(stored()) == 8


def test_one_row_that_always_fails_does_not_fail_the_rerun_that_asks_for_nothing_else(ask, problems, stored):
    with Server(lambda b, n: fails(400) if "p3?" in str(b) else right(b, n)) as server:
        ask(teacher(server.url), problems(20), max_errors=0.1)
        ask(teacher(server.url), problems(20), max_errors=0.1)
        assert questions(server)[20:] == [problems(20)[3].question]


def test_a_hopeless_run_ends_early(ask, problems, quick):
    with Server(lambda body, n: fails(500) if n else says("ready")) as server, pytest.raises(RunError):
        ask(teacher(server.url, concurrency=1), problems(1000), max_errors=0.02, max_retries=0, patience=1e6)
    assert len(server.seen) < 40


def test_one_dead_teacher_stops_and_the_others_go_on(ask, problems, stored, quick, capsys):
    def dies(body, number):
        return right(body, number) if number < 6 else fails(500, "out of order")

    with Server(dies) as sick, Server(right) as well:
        outcome = ask([teacher(sick.url, concurrency=2), teacher(well.url, name="u")], problems(200), max_errors=0.6)
        assert len(sick.seen) < 40
    assert len(stored("u")) == 200
    assert len(stored("t")) == 5
    assert outcome[0].unanswered == 195
    assert outcome[1].unanswered == 0
    assert "t: not asked any more: HTTP 500: out of order" in capsys.readouterr().err


def test_the_preflight_finds_a_wrong_key_name_and_address_of_all_teachers_at_once(ask, problems, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", KEY)
    with (
        Server(lambda b, n: fails(401, f"Incorrect key {KEY}")) as locked,
        Server(lambda b, n: fails(404, "no model m")) as other,
        Server(right) as well,
    ):
        teachers = [
            teacher(locked.url, name="locked", api_key_env="MY_KEY"),
            teacher(other.url, name="nameless"),
            teacher("http://127.0.0.1:9/v1", name="nowhere"),
            teacher(well.url, name="well"),
        ]
        with pytest.raises(InputError) as caught:
            ask(teachers, problems(10))
        assert [len(server.seen) for server in (locked, other, well)] == [1, 1, 1]
        assert well.seen[0].body["max_tokens"] <= 16
    first, second, third = caught.value.problems
    assert first == "teacher locked: HTTP 401: Incorrect key [MY_KEY]; check the key in MY_KEY"
    assert second.startswith("teacher nameless: HTTP 404: no model m; check `model` (m) and `base_url`")
    assert third.startswith("teacher nowhere: ")
    assert "check `base_url` (http://127.0.0.1:9/v1)" in third


def test_a_busy_server_does_not_fail_the_preflight(ask, problems, stored, quick, capsys):
    with Server(lambda b, n: fails(503, "loading") if n < 3 else right(b, n)) as server:
        ask(teacher(server.url), problems(3), patience=60)
    assert len(stored()) == 3
    assert "it may be busy, so the run goes on" in capsys.readouterr().err


def test_a_key_that_the_server_echoes_reaches_no_file_and_no_line(ask, problems, monkeypatch, tmp_path, capsys, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(0)

    def echo(body, number):
        if "p1?" in str(body):
            return fails(400, f"key {KEY} may not ask this")
        if "p2?" in str(body):
            return says(f"Your key is {KEY}.\nThe answer is 4.", reasoning_content=KEY, finish_reason=KEY)
        return right(body, number)

    with Server(echo) as server:
        ask(teacher(server.url, api_key_env="MY_KEY"), problems(10), max_errors=0.5)
        assert all(seen.headers["authorization"] == f"Bearer {KEY}" for seen in server.seen)
    said = capsys.readouterr()
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"[MY_KEY]" in files
    for text in (files.decode(), said.out, said.err, caplog.text):
        assert KEY not in text
        assert KEY[:12] not in text


def test_no_more_requests_are_in_flight_than_allowed(ask, problems):
    flying, most = 0, 0

    class Counting(Server):
        async def _reply(self, reply, writer):
            nonlocal flying, most
            flying += 1
            most = max(most, flying)
            try:
                return await super()._reply(reply, writer)
            finally:
                flying -= 1

    with Counting(lambda b, n: says("The answer is 4.", delay=0.02)) as server:
        ask(teacher(server.url, concurrency=5), problems(40))
    assert most == 5


def test_requests_per_minute_are_kept(ask, problems):
    with Server(right) as server:
        ask(teacher(server.url, requests_per_minute=1200), problems(12))
        times = [seen.at for seen in server.seen[1:]]  # the preflight is none of them
    assert times[-1] - times[0] >= 11 * 0.05 - 0.02


def test_a_busy_teacher_holds_up_the_others_for_a_short_while_and_that_is_said(ask, problems, monkeypatch, capsys):
    monkeypatch.setattr("compact_distill.teachers.pool._PREFLIGHT_SECONDS", 2.5)
    monkeypatch.setattr("compact_distill.teachers.pool._SECONDS_BETWEEN_LINES", 0.1)
    busy = [True]

    def behave(body, number):
        busy[0] = busy[0] and "ready" in str(body)
        return fails(429, Retry_After="1") if busy[0] else right(body, number)

    with Server(behave) as server:
        ask(teacher(server.url), problems(2), max_wait=3600)
    said = capsys.readouterr().err
    assert said.count("t: waiting for the answer to its first request") == 1
    assert "the first request got no answer" in said
    assert len(server.seen) <= 2 + 4


def test_mathematics_is_verified_on_arrival(ask, stored):
    asked = [Problem("p0", "problem p0", r"\frac{1}{2}"), Problem("p1", "problem p1", r"x^2 + 1")]
    with Server(lambda b, n: says(r"Thus \boxed{0.5}" if "p0" in str(b) else r"Thus \boxed{1 + x^2}")) as server:
        ask(teacher(server.url), asked)
    assert {row.id: row.verdict for row in stored()} == {"p0": Verdict.CORRECT, "p1": Verdict.CORRECT}


def test_a_row_never_waits_for_its_verdict_but_gets_it_in_the_end(ask, stored, monkeypatch, tmp_path):
    seen_while_verifying = []

    def slow(self, answer, gold):
        time.sleep(0.1)
        seen_while_verifying.append([row.verdict for row in StoreReader(tmp_path / "stores", "t").rows()])
        return Verdict.WRONG

    monkeypatch.setattr(Verifier, "verify", slow)
    with Server(lambda b, n: says(r"Thus \boxed{x^2}")) as server:
        ask(teacher(server.url), [Problem("p0", "problem p0", r"x^3")])
    assert seen_while_verifying == [[None]]
    assert [row.verdict for row in stored()] == [Verdict.WRONG]


def test_a_verifier_that_fails_ends_the_run_and_costs_no_answer(ask, stored, monkeypatch):
    def fails_to_start(self, answer, gold):
        raise RunError("cannot start a process")

    def thus(body, number):
        return says(r"Thus \boxed{x^2}", delay=0.3 if number % 2 else 0.0)

    asked = [Problem(f"p{i}", f"problem p{i}", r"x^3") for i in range(40)]
    with Server(thus) as server:
        teachers = [teacher(server.url, name=name, concurrency=4) for name in ("t", "u")]
        with monkeypatch.context() as patch:
            patch.setattr(Verifier, "verify", fails_to_start)
            with pytest.raises(RunError, match="cannot start a process"):
                ask(teachers, asked)
        sent = len(questions(server))
        assert sent <= 16  # it ended soon, and what was in flight came home
        assert [row.verdict for row in stored("t") + stored("u")] == [None] * sent
        ask(teachers, asked)
        assert len(questions(server)) == 80  # nothing twice
    assert {row.verdict for row in stored("t") + stored("u")} == {Verdict.WRONG}


def test_rows_without_a_verdict_are_verified_when_the_run_goes_on(ask, problems, stored, tmp_path):
    from dataclasses import replace

    from compact_distill.teachers.store import Store

    with Server(right) as server:
        ask(teacher(server.url), problems(3))
        with Store(tmp_path / "stores", "t") as store:
            store.rewrite([replace(row, verdict=None) for row in store.rows()])
        count = len(server.seen)
        ask(teacher(server.url), problems(3), rejection="until_correct")
        assert len(server.seen) == count
    assert [row.verdict for row in stored()] == [Verdict.CORRECT] * 3


def test_a_row_whose_text_was_changed_is_said_moved_aside_and_asked_again(ask, problems, stored, tmp_path, capsys):
    with Server(right) as server:
        ask(teacher(server.url), problems(3))
        path = tmp_path / "stores" / "t.jsonl"
        changed, *rest = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(changed.replace(b"We add", b"We ODD") + b"".join(rest))
        count = len(questions(server))
        ask(teacher(server.url), problems(3))
        assert len(questions(server)) - count == 1
    assert all("We add" in row.text for row in stored())
    assert len(stored()) == 3
    assert b"We ODD" in (tmp_path / "stores" / "t.jsonl.damaged").read_bytes()
    assert "1 damaged lines (line 1) were moved to t.jsonl.damaged and are asked again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("per_second", "said"),
    [(12.34, "12.3/s"), (1.0, "1.0/s"), (0.5, "30 a minute"), (0.02, "1.2 a minute"), (0.0005, "1.8 an hour")],
)
def test_a_rate_is_a_number_at_any_speed(per_second, said):
    assert _rate(per_second) == said


@pytest.mark.parametrize(("count", "said"), [(0, "0 tokens"), (499, "499 tokens"), (12_345, "12k tokens")])
def test_few_tokens_are_counted_one_by_one(count, said):
    assert _tokens(count) == said


def test_a_dry_run_counts_and_sends_nothing(ask, problems, tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with Server(right) as server:
        config = teacher(server.url, samples=2, prices={"prompt": 1.0, "completion": 10.0}, max_tokens=100, system=None)
        ask(config, problems(3))
        count = len(server.seen)
        keyed = config.model_copy(update={"api_key_env": "MY_KEY"})
        more = estimate(keyed, problems(5), StoreReader(tmp_path / "stores", "t"), GenerationConfig())
        assert len(server.seen) == count
    tokens = -(-len(problems(5)[4].question) // 4)
    assert (more.slots, more.requests, more.most_requests) == (10, 4, 4)
    assert more.prompt_tokens == 4 * tokens
    assert more.most_completion_tokens == 400
    assert more.prompt_cost == pytest.approx(4 * tokens / 1e6)
    assert more.most_cost == pytest.approx((4 * tokens + 400 * 10) / 1e6)
    until = GenerationConfig(rejection="until_correct", attempts=3)
    most = estimate(config, problems(5), StoreReader(tmp_path / "stores", "t"), until)
    assert (most.requests, most.most_requests) == (4, 12)


@pytest.mark.parametrize(("cost", "shown"), [(0.0, "0.00"), (1.234, "1.23"), (0.0123, "0.0123"), (3e-7, "0.0001")])
def test_a_finished_teachers_line_stays_as_it_is_and_shows_small_costs(cost, shown):
    counts = Counters("t", planned=10, filled=10, cost=cost, began=time.monotonic() - 3600)
    counts.statuses.update({RowStatus.OK: 10})
    counts.ended = counts.began + 5
    requester = SimpleNamespace(faults=Counter(), halted=False, dead=None, waiting_until=None)
    line = pool.columns(SimpleNamespace(counts=counts, requester=requester))
    assert line[1:4] == ["10 of 10", "2.0/s", ""]
    assert f"{shown} spent" in line


def test_progress_without_a_terminal_is_plain_lines(ask, problems, capsys):
    with Server(right) as server:
        ask(teacher(server.url, prices={"prompt": 1.0, "completion": 10.0}), problems(10))
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("t, ")]
    assert "10 of 10" in line
    assert "/s" in line
    assert "100% correct" in line
    assert "spent" in line
    assert "\x1b" not in said


WORKER = """
import sys
from pathlib import Path
from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.records import Problem
from compact_distill.teachers.pool import generate
url, folder, count = sys.argv[1:]
config = TeacherConfig(name="t", model="m", base_url=url, concurrency=8, samples=2)
asked = [Problem(f"p{i}", f"What is 2 + 2, in problem p{i}?", "4") for i in range(int(count))]
generate([config], GenerationConfig(), asked, Path(folder))
"""


def worker(server, tmp_path, count):
    command = [sys.executable, "-c", WORKER, server.url, str(tmp_path / "stores"), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_at_any_moment_nothing_is_lost_and_nothing_asked_twice(ask, problems, stored, tmp_path):
    rng = random.Random(3)
    answered_at: dict[tuple[str, int], float] = {}

    def note(body, number):
        answered_at[body["messages"][-1]["content"], body["seed"]] = time.monotonic() + 0.02
        return says(f"{body['seed']}: the answer is 4.", delay=0.02)

    with Server(note) as server:
        for kill in range(3):
            before = len(server.seen)
            answered_at.clear()
            process = worker(server, tmp_path, 150)
            wait_for(lambda before=before: len(server.seen) > before + 20)
            time.sleep(rng.uniform(0.0, 0.2))
            process.kill()
            process.communicate()
            killed_at = time.monotonic()
            done = {row.id for row in stored()}
            for (question, _), at in answered_at.items():
                if at < killed_at - 1 and "problem" in question:
                    assert question.rpartition(" ")[2].rstrip("?") in done, f"kill {kill}"
            in_store = Counter((row.id, row.sample) for row in stored())
            assert set(in_store.values()) <= {1}
        config = teacher(server.url, concurrency=8, samples=2)
        stored_before = {(row.id, row.sample) for row in stored()}
        count = len(questions(server))
        ask(config, problems(150))
        assert len(questions(server)) - count == 300 - len(stored_before)
    rows = Counter((row.id, row.sample) for row in stored())
    assert rows == {(f"p{i}", s): 1 for i in range(150) for s in range(2)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_is_in_flight_and_stops(stored, tmp_path, number):
    with Server(lambda b, n: says(f"{n}: the answer is 4.", delay=0.3 if n else 0.0)) as server:
        process = worker(server, tmp_path, 500)
        wait_for(lambda: len(server.seen) > 9)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        asked = len(questions(server))
    assert process.returncode == {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 143}[number], err
    assert "stopping: waiting for" in err
    assert len(stored()) == asked < 100


def test_a_second_signal_drops_what_is_in_flight(stored, tmp_path):
    with Server(lambda b, n: says("The answer is 4.", delay=60 if n else 0.0)) as server:
        process = worker(server, tmp_path, 500)
        wait_for(lambda: len(server.seen) > 8)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT, err
    assert stored() == []


def test_a_second_run_on_the_same_stores_is_turned_away(ask, problems, tmp_path):
    with Server(lambda b, n: says("The answer is 4.", delay=5 if n else 0.0)) as server:
        process = worker(server, tmp_path, 50)
        wait_for(lambda: len(server.seen) > 3)
        with pytest.raises(RunError, match=f"is being written by process {process.pid}"):
            ask(teacher(server.url), problems(1))
        process.kill()
        process.communicate()


def test_problems_are_streamed(ask):
    class Stream:
        """Never holds more than one problem, and may be read again."""

        def __iter__(self):
            return (Problem(f"p{i}", f"problem p{i}", "4") for i in range(300))

    with Server(right) as server:
        outcome = ask(teacher(server.url), Stream())
    assert outcome[0].filled == 300


def test_stores_are_json_lines_that_any_tool_reads(ask, problems, tmp_path):
    with Server(right) as server:
        ask(teacher(server.url, name="Qwen/QwQ-32B"), problems(3))
    (path,) = (tmp_path / "stores").glob("*.jsonl")
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    assert {row["teacher"] for row in rows} == {"Qwen/QwQ-32B"}
    assert set(rows[0]) >= {"id", "teacher", "sample", "text", "answer", "verdict", "status"}


def test_in_a_terminal_every_teacher_has_a_live_line(tmp_path):
    import pty

    with Server(lambda b, n: says(f"{n}: the answer is 4.", delay=0.05)) as server:
        here, there = pty.openpty()
        command = [sys.executable, "-c", WORKER, server.url, str(tmp_path / "stores"), "60"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
        process = subprocess.Popen(command, stderr=there, env=environment)
        os.close(there)
        shown = b""
        try:
            while chunk := os.read(here, 65536):
                shown += chunk
        except OSError:  # the other end is closed
            pass
        assert process.wait(30) == 0
        os.close(here)
    text = shown.decode()
    assert text.count("of 120") >= 2
    assert "120 of 120" in text
    assert "100% correct" in text
