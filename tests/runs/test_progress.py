"""Progress: plain lines without a terminal, durations as people say them."""

from __future__ import annotations

import contextlib
import io

import pytest
from typer.testing import CliRunner

from compact_distill.cli import app
from compact_distill.runs import progress as module
from compact_distill.runs.progress import duration, progress, progress_over, say, show


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_lines_come_every_few_seconds_and_at_the_end(clock, capsys):
    with progress("score", total=100) as shown:
        clock.now += 10
        shown.advance(10)
        assert capsys.readouterr().err == ""
        clock.now += 10
        shown.advance(10, note="loss 2.5")
        assert capsys.readouterr().err == "score: 20 of 100, about 1 min 20 s left, loss 2.5\n"
        clock.now += 1
        shown.advance(80)
    assert capsys.readouterr().err == "score: 100 of 100, 21 s, loss 2.5\n"


def test_what_an_earlier_run_did_does_not_count_as_speed(clock, capsys):
    with progress("train", total=100, done=50) as shown:
        clock.now += 20
        shown.advance(10)
        assert capsys.readouterr().err == "train: 60 of 100\n"
        clock.now += 20
        shown.advance(10)
        assert capsys.readouterr().err == "train: 70 of 100, about 1 min 0 s left\n"


def test_an_estimate_waits_for_a_whole_pass(clock, capsys):
    """36 problems share a pass of 40 s: when the first of them is counted, one in 40 s would mean an hour."""
    with progress("gains", total=108) as shown:
        clock.now += 40
        for _ in range(36):
            shown.advance()
        assert capsys.readouterr().err == "gains: 1 of 108\n"
        clock.now += 40
        for _ in range(36):
            shown.advance()
        assert capsys.readouterr().err == "gains: 37 of 108, about 1 min 19 s left\n"  # 71 at 36 in 40 s


def test_a_steady_flow_is_estimated_too(clock, capsys):
    with progress("read", total=1000) as shown:
        for _ in range(200):
            clock.now += 0.125
            shown.advance()
        assert capsys.readouterr().err == "read: 120 of 1000, about 1 min 50 s left\n"


def test_an_unknown_total_shows_the_count_alone(clock, capsys):
    with progress("read") as shown:
        clock.now += 16
        shown.advance(3)
    assert capsys.readouterr().err == "read: 3\nread: 3, 16 s\n"


def test_work_that_fails_prints_no_end(clock, capsys):
    def fail() -> None:
        with progress("score", total=2) as shown:
            shown.advance()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert capsys.readouterr().err == ""


def test_work_that_is_often_over_at_once_says_something_after_two_seconds(clock, capsys):
    with progress("read data", brief=True) as shown:
        clock.now += 1.9
        shown.advance(7)
    assert capsys.readouterr().err == ""
    with progress("read data", brief=True) as shown:
        clock.now += 2
        shown.advance(500)
        assert capsys.readouterr().err == "read data: 500\n"
        clock.now += 14
        shown.advance(500)
        assert capsys.readouterr().err == ""
        clock.now += 1
        shown.advance(500)
        assert capsys.readouterr().err == "read data: 1500\n"
    assert capsys.readouterr().err == "read data: 1500, 17 s\n"


def test_items_are_counted_now_and_then_and_all_at_the_end(clock, monkeypatch):
    counts = []

    class Shown:
        def advance(self, count: int = 1, note: str = "") -> None:
            counts.append(count)

    monkeypatch.setattr(module, "progress", lambda *_, **__: contextlib.nullcontext(Shown()))
    for _ in progress_over("read", range(1000)):
        clock.now += 1 / 1024
    assert sum(counts) == 1000
    assert len(counts) == 10


def test_a_terminal_gets_a_bar_with_the_count_and_the_note(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("score [x]", total=2) as shown:
        shown.advance(2, note="[red]loss 1")
    assert "score [x]" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
    assert "[red]loss 1" in terminal.getvalue()


def test_messages_go_to_stderr(capsys):
    say("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0.4 s"),
        (3.2, "3.2 s"),
        (4.0, "4 s"),
        (59, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


ORDERS = ["\x1b[2J", "\x07", "\r", "\x08", "\x9b31m", "\x7f", "\u202e", "\u2066", "\u200f", "\u061c", "\ud800", "\0"]


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_that_a_terminal_would_obey_is_printed(order, capsys):
    say(f"a{order}b")
    show(f"a{order}b")
    with progress(f"label{order}", total=2) as shown:
        shown.advance(note=f"note{order}")
    told = capsys.readouterr()
    for sign in order[:1]:
        assert sign not in told.out + told.err
    assert told.out == f"a\ufffd{order[1:]}b\n"
    assert f"label\ufffd{order[1:]}: 1 of 2" in told.err


def test_tables_and_all_languages_are_printed_as_they_are(capsys):
    text = "a\tb\nשלום é 答案 🙂 −½"
    show(text)
    assert capsys.readouterr().out == f"{text}\n"


@pytest.mark.parametrize("order", ORDERS)
def test_an_error_about_hostile_input_cannot_control_the_terminal(order, tmp_path):
    name = order.replace("\0", "\x01").replace("\ud800", "\x02")
    path = tmp_path / "run.yaml"
    path.write_text(f'student: "no{name.encode("unicode_escape").decode()}such/folder/at/all"\nrationales: x.jsonl\n')
    result = CliRunner().invoke(app, ["validate", str(path), "--set", f"nokey{name}=1"])
    assert result.exit_code == 2
    assert name[0] not in result.stderr.replace("\n", "").replace("\t", "")
