"""Compare stored answers with the gold answers again: after a kill, a change of the problems, or of the rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

from compact_distill.answers import Verifier, extract_answer
from compact_distill.teachers.rows import DrawStatus, Row
from compact_distill.teachers.store import Store

_TOGETHER = 256


def verify_store(store: Store, verifier: Verifier, golds: Mapping[str, str], everything: bool = False) -> int:
    """Verify the rows that have no verdict, or one on another gold answer; `everything` verifies all.

    Args:
        golds: the gold answers, by the problem's id; rows of other problems keep theirs.

    Returns:
        How many rows were verified. The store is rewritten only if there are any.

    Raises:
        RunError: the store cannot be written, or the verifier's processes cannot start.
    """

    def is_stale(row: Row) -> bool:
        return everything or row.verdict is None or row.gold != golds.get(row.id, row.gold)

    stale = store.unverified if not golds and not everything else sum(map(is_stale, store.rows()))
    if stale:
        store.rewrite(
            row
            for rows in _chunks(store.rows())
            for row in _verified(rows, [is_stale(row) for row in rows], golds, verifier)
        )
    return stale


def _verified(rows: list[Row], stale: list[bool], golds: Mapping[str, str], verifier: Verifier) -> Iterator[Row]:
    fresh = [_extracted(row, golds.get(row.id, row.gold)) for row, old in zip(rows, stale, strict=True) if old]
    verdicts = verifier.verify_many((row.answer, row.gold) for row in fresh)
    changed = (replace(row, verdict=verdict) for row, verdict in zip(fresh, verdicts, strict=True))
    for row, old in zip(rows, stale, strict=True):
        yield next(changed) if old else row


def _extracted(row: Row, gold: str) -> Row:
    """The row with the answer that today's rules find in it."""
    answer = extract_answer(row.text or row.reasoning)
    status = row.status
    if status in (DrawStatus.OK, DrawStatus.UNPARSED):
        status = DrawStatus.UNPARSED if answer is None else DrawStatus.OK
    return replace(row, answer=answer, status=status, gold=gold)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _TOGETHER)):
        yield chunk
