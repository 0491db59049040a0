"""Live progress of the pool: a line for each teacher in a terminal, a plain line now and then without one."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Protocol

from compact_distill.runs.progress import duration, say
from compact_distill.teachers.ask import Conduct
from compact_distill.teachers.tally import Tally

_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BETWEEN_FRAMES = 0.5


class Shown(Protocol):
    """What is shown of a teacher at work."""

    tally: Tally
    conduct: Conduct


async def show(lanes: Sequence[Shown]) -> None:
    """Show how far every teacher has come, until cancelled; then once more."""
    if sys.stderr.isatty():
        await _live(lanes)
    else:
        await _lines(lanes)


async def _lines(lanes: Sequence[Shown]) -> None:
    try:
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_LINES)
            for lane in lanes:
                say(", ".join(filter(None, columns(lane))))
    finally:
        for lane in lanes:
            say(", ".join(filter(None, columns(lane))))


async def _live(lanes: Sequence[Shown]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def frame() -> Table:
        table = Table.grid(padding=(0, 2))
        for lane in lanes:
            table.add_row(*(Text(cell) for cell in columns(lane)))
        return table

    with Live(frame(), console=Console(stderr=True), auto_refresh=False) as live:
        try:
            while True:
                await asyncio.sleep(_SECONDS_BETWEEN_FRAMES)
                live.update(frame(), refresh=True)
        finally:
            live.update(frame(), refresh=True)


def columns(lane: Shown) -> list[str]:
    """Name, count, rate and time left, tokens, errors, verified share, cost and what is waited for, as texts."""
    tally, now = lane.tally, time.monotonic()
    seconds = max(now - tally.began, 1e-9)
    done = tally.filled + tally.failed.total()
    left = (tally.planned - done) * seconds / done if done else None
    retries = lane.conduct.faults.total() - tally.failed.total()
    faults = ", ".join(f"{n} {kind}" for kind, n in sorted(tally.failed.items()))
    return [
        tally.teacher,
        f"{tally.stored + done} of {tally.stored + tally.planned}",
        f"{tally.answers / seconds:.1f}/s" if tally.answers else "",
        f"about {duration(left)} left" if left and not lane.conduct.halted else "",
        f"{(tally.prompt_tokens + tally.completion_tokens) / 1000:.0f}k tokens",
        f"{tally.correct_share:.0%} correct" if tally.correct_share is not None else "",
        f"{tally.cost:.2f} spent" if tally.cost is not None else "",
        f"{retries} retries" if retries > 0 else "",
        f"no answer: {faults}" if faults else "",
        _state(lane, now),
    ]


def _state(lane: Shown, now: float) -> str:
    if lane.conduct.dead:
        return "stopped: the teacher is dead"
    until = lane.conduct.waiting_until
    if until is not None and until > now:
        return f"waiting {duration(until - now)}, as the server asks"
    return ""
