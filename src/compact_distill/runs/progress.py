"""What a terminal shows: progress on stderr (a bar, or now and then a plain line), text tables, durations."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, Protocol

_SECONDS_BETWEEN_LINES = 15.0


class Progress(Protocol):
    """Counts what is done of a known or unknown total."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count some more; `note` (a loss, a rate) stands beside the count until the next one."""


def say(text: str) -> None:
    """Print one line for the user, above a bar where one is shown."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(label: str, total: int | None = None, done: int = 0) -> Iterator[Progress]:
    """Show how far a piece of work has come.

    Args:
        label: what is being done.
        total: how many items there are, None where nobody knows.
        done: how many were done in an earlier run.
    """
    if sys.stderr.isatty():
        with _bar(label, total, done) as bar:
            yield bar
    else:
        lines = _Lines(label, total, done, sys.stderr)
        yield lines
        lines.end()


@contextlib.contextmanager
def _bar(label: str, total: int | None, done: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(label, total=total, completed=done, note="")

        class Bar:
            def advance(self, count: int = 1, note: str = "") -> None:
                shown.advance(task, count)
                if note:
                    shown.update(task, note=note)

        yield Bar()


class _Lines:
    """A plain line every few seconds and one at the end, for logs."""

    def __init__(self, label: str, total: int | None, done: int, stream: IO[str]) -> None:
        self.label, self.total, self.done, self.stream = label, total, done, stream
        self.before = done
        self.started = self.printed = time.monotonic()
        self.note = ""

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.note = note or self.note
        if time.monotonic() - self.printed >= _SECONDS_BETWEEN_LINES:
            self._print(self._left())

    def end(self) -> None:
        self._print(f", {duration(time.monotonic() - self.started)}")

    def _print(self, ending: str) -> None:
        self.printed = time.monotonic()
        count = f"{self.done}" if self.total is None else f"{self.done} of {self.total}"
        note = f", {self.note}" if self.note else ""
        print(f"{self.label}: {count}{ending}{note}", file=self.stream, flush=True)

    def _left(self) -> str:
        rate = (self.done - self.before) / (time.monotonic() - self.started)
        if self.total is None or rate == 0:
            return ""
        return f", about {duration((self.total - self.done) / rate)} left"


def duration(seconds: float) -> str:
    """Seconds as people say them: `4 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


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
