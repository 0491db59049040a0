"""Problems one at a time, as often as needed: a hundred thousand of them need no more memory than one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from compact_distill.data.faults import Faults, raise_if_any
from compact_distill.data.load import load_problems
from compact_distill.data.read import read_rows
from compact_distill.data.rows import from_published, to_problem
from compact_distill.records import Problem


class ProblemStream:
    """What `load_problems` would load, read anew each time it is iterated."""

    def __init__(self, source: str | Path, *, limit: int | None = None, split: str = "train") -> None:
        self._source = source
        self._limit = limit
        self._split = split

    def __iter__(self) -> Iterator[Problem]:
        """Yield the problems in the order of the input.

        Raises:
            DataError: the input has become wrong since it was checked.
        """
        faults = Faults(self._source)
        return islice(self._read(faults), self._limit)

    def check(self) -> str:
        """Read all rows once; return a hash of the problems that will be yielded.

        Raises:
            DataError: everything that is wrong with the input, each with its line.
        """
        faults = Faults(self._source)
        state = hashlib.sha256()
        seen: set[int] = set()
        for number, problem in enumerate(self._read(faults)):
            if hash(problem.id) in seen:
                load_problems(self._source, split=self._split)  # names both rows, if they are really the same
            seen.add(hash(problem.id))
            if self._limit is None or number < self._limit:
                state.update(json.dumps([problem.id, problem.question, problem.answer]).encode() + b"\n")
        return state.hexdigest()

    def _read(self, faults: Faults) -> Iterator[Problem]:
        for row in read_rows(self._source, self._split, faults):
            renamed = from_published(row, faults)
            problem = None if renamed is None else to_problem(renamed, faults)
            if problem is None or faults.count:
                break
            yield problem
        if faults.count:
            load_problems(self._source, split=self._split)  # tells everything that is wrong, not only the first
            raise_if_any([faults])
