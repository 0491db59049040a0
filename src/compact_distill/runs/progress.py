"""What a terminal shows: progress on stderr (a bar, or now and then a plain line), text tables, durations."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Protocol, TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BEFORE_FIRST = 2.0  # of work that is done at once where there is little of it
_SECONDS_BETWEEN_COUNTS = 0.1  # a bar takes longer to paint than most items
# All but tab and line feed of what moves the cursor, paints, deletes, or turns the direction of the text behind it.
_ORDERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_SECONDS_BETWEEN_PASSES = 1.0  # what is counted quicker than that belongs to one pass of the student


class Progress(Protocol):
    """Counts what is done of a known or unknown total."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count some more; `note` (a loss, a rate) stands beside the count until the next one."""


def printable(text: object) -> str:
    """A text that no terminal obeys: control characters, bidirectional marks and half surrogate pairs are replaced.

    Data, configurations, file names and what servers say may hold them.
    """
    return _ORDERS.sub("\ufffd", str(text).replace("\r\n", "\n"))


def say(text: str) -> None:
    """Print one line for the user on stderr, above a bar where one is shown."""
    print(printable(text), file=sys.stderr, flush=True)


def show(text: object) -> None:
    """Print a result on stdout."""
    print(printable(text), flush=True)


@contextlib.contextmanager
def progress(label: str, total: int | None = None, done: int = 0, brief: bool = False) -> Iterator[Progress]:
    """Show how far a piece of work has come.

    Args:
        label: what is being done.
        total: how many items there are, None where nobody knows.
        done: how many were done in an earlier run.
        brief: whether the work is often over at once. Nothing of it is then left to read; where it takes longer than
            two seconds, lines come from there on.
    """
    label = printable(label)
    if sys.stderr.isatty():
        with _bar(label, total, done, brief) as bar:
            yield bar
    else:
        lines = _Lines(label, total, done, sys.stderr, brief)
        yield lines
        lines.end()


def progress_over(label: str, items: Iterable[T], total: int | None = None, brief: bool = False) -> Iterator[T]:
    """Yield the items, and show how many have gone by; see `progress`."""
    with progress(label, total, brief=brief) as shown:
        waiting, counted = 0, time.monotonic()
        for item in items:
            yield item
            waiting += 1
            now = time.monotonic()
            if now - counted >= _SECONDS_BETWEEN_COUNTS:
                shown.advance(waiting)
                waiting, counted = 0, now
        if waiting:
            shown.advance(waiting)


@contextlib.contextmanager
def _bar(label: str, total: int | None, done: int, brief: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}{task.fields[note]}", markup=False),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=brief) as shown:
        task = shown.add_task(label, total=total, completed=done, note="", left="")
        pace = _Pace(total, done)

        class Bar:
            def advance(self, count: int = 1, note: str = "") -> None:
                pace.advance(count)
                shown.update(task, advance=count, left=pace.left().removeprefix(", "))
                if note:
                    shown.update(task, note=f" {printable(note)}")

        yield Bar()


class _Pace:
    """How fast work goes, seen after whole passes only.

    A pass of several problems counts them one right after the other when it ends. Whoever divides in the middle of
    that, or before the first one, is wrong by hours.
    """

    def __init__(self, total: int | None, done: int) -> None:
        self.total, self.done = total, done
        self._before = done
        self.started = self._last = self._pass_began = time.monotonic()
        self._whole: tuple[float, int] | None = None  # when the newest whole pass ended, and what was done then

    def advance(self, count: int) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_PASSES:
            if self.done > self._before:
                self._whole = (self._last, self.done)
            self._pass_began = now
        elif now - self._pass_began >= _SECONDS_BETWEEN_LINES:  # a steady flow
            self._whole = (now, self.done + count)
        self.done += count
        self._last = now

    def left(self) -> str:
        if self.total is None or self._whole is None:
            return ""
        moment, done = self._whole
        seconds = (self.total - self.done) * (moment - self.started) / (done - self._before)
        return f", about {duration(round(seconds))} left"


class _Lines:
    """A plain line every few seconds and one at the end, for logs."""

    def __init__(self, label: str, total: int | None, done: int, stream: IO[str], brief: bool) -> None:
        self.label, self.stream, self.silent = label, stream, brief
        self.pace = _Pace(total, done)
        self.printed = self.pace.started
        self.note = ""

    def advance(self, count: int = 1, note: str = "") -> None:
        self.pace.advance(count)
        self.note = note or self.note
        wait = _SECONDS_BEFORE_FIRST if self.silent else _SECONDS_BETWEEN_LINES
        if time.monotonic() - self.printed >= wait:
            self.silent = False
            self._print(self.pace.left())

    def end(self) -> None:
        if self.silent:
            return
        self._print(f", {duration(time.monotonic() - self.pace.started)}")

    def _print(self, ending: str) -> None:
        self.printed = time.monotonic()
        count = f"{self.pace.done}" if self.pace.total is None else f"{self.pace.done} of {self.pace.total}"
        note = f", {self.note}" if self.note else ""
        print(printable(f"{self.label}: {count}{ending}{note}"), file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """Seconds as people say them: `3.2 s`, `40 s`, `3 min 20 s`, `2 h 5 min`; what is estimated is rounded first."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 10 or seconds == whole else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def text_table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), gap: str = "  ") -> list[str]:
    """Rows of cells as aligned lines; the columns of `left` start at the left, the others end at the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        gap.join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
