"""Load problems, and problems with their rationales; everything that is wrong is told at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from compact_distill.data.read import Faults, Row, raise_if_any, read_rows
from compact_distill.data.rows import (
    from_published,
    need_id,
    read_id,
    sample_name,
    to_instance,
    to_problem,
    to_rationale,
)
from compact_distill.errors import DataError
from compact_distill.records import Instance, Problem, Rationale

Source = str | Path
_KEPT_PROBLEMS = 20_000  # some 20 MB


def load_problems(source: Source, *, limit: int | None = None, split: str = "train") -> list[Problem]:
    """Load problems: rows `{"id", "question", "answer"}`; other fields are kept in `extra`.

    Args:
        source: JSONL or Parquet file, `datasets` folder or hub name (see `read_rows`).
        limit: take the first N; all rows are checked nevertheless.
        split: split of a `datasets` folder or hub dataset.

    Returns:
        The problems in the order of the input. An id or answer that is a number becomes text ("18" for 18 and 18.0).

    Raises:
        DataError: everything that is wrong with the input, each with its line.
    """
    _check_limit(limit)
    problems = _Problems(source, split)
    raise_if_any([problems.faults])
    return problems.found[:limit]


def load_instances(
    source: Source | Sequence[Source],
    *,
    problems: Source | None = None,
    limit: int | None = None,
    split: str = "train",
    require_rationale: bool = True,
) -> list[Instance]:
    """Load problems together with their rationales; everything joins on `id`, never on position.

    Args:
        source: training data, `{"id", "question", "answer", "rationales": [{"teacher", "text", ...}]}` or the published
            code's `{"Question", "CoT": [...], "Answer"}` (see `from_published`), from one or several inputs. With
            `problems`: rationale stores, `{"id", "teacher", "sample", "text", "answer", "verdict", "status", ...}`, one
            or several files, or a folder of `.jsonl` files.
        problems: where the problems are that the stores belong to.
        limit: take the first N problems; all rows are checked nevertheless.
        split: split of a `datasets` folder or hub dataset.
        require_rationale: a problem without any rationale is an error. Where a run may go on without it: False; it
            then comes back with no or only missing rationales, for the caller to count.

    Returns:
        The instances in the order of the problems. A missing rationale (no text, or a status other than "ok") is kept
        with empty text. Rationales have the row's order; those of stores the order of the teachers' first appearance,
        then of the samples.

    Raises:
        DataError: everything that is wrong with all inputs, each with its line.
    """
    _check_limit(limit)
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise DataError("source must name at least one file, got none; give the rationales' file")
    if problems is None:
        return _load_training_data(sources, split, require_rationale)[:limit]
    return _join(_Problems(problems, split), sources, limit, split, require_rationale)


def _load_training_data(sources: list[Source], split: str, require_rationale: bool) -> list[Instance]:
    inputs = [Faults(source) for source in sources]
    ids = _Ids()
    instances: list[Instance] = []
    for source, faults in zip(sources, inputs, strict=True):
        for row in _rows(source, split, faults):
            ids.add(row, faults)
            instance = to_instance(row, faults, require_rationale)
            if instance is not None:
                instances.append(instance)
    raise_if_any(inputs)
    return instances


def _join(
    problems: _Problems, sources: list[Source], limit: int | None, split: str, require_rationale: bool
) -> list[Instance]:
    stores = _Stores(problems)
    for path in _store_files(sources):
        stores.read(path, split)
    instances = [stores.instance(problem) for problem in problems.found[:limit]]
    if require_rationale and not stores.any_faults():
        for instance in instances:
            if not any(rationale.text for rationale in instance.rationales):
                where = problems.ids.where[instance.id]
                problems.faults.add(
                    where, f"problem {instance.id!r} has no rationale at all in the stores; generate one"
                )
    raise_if_any([problems.faults, *stores.inputs])
    return instances


class _Ids:
    """Where each id was first seen; a second time is a fault."""

    def __init__(self) -> None:
        self.where: dict[str, str] = {}
        self._source: dict[str, str] = {}

    def add(self, row: Row, faults: Faults) -> None:
        """Note the row's id; that a row has none is told by whoever makes a record of it."""
        identity = read_id(row)
        if identity is None:
            return
        if identity in self.where:
            source = self._source[identity]
            first = self.where[identity] if source == faults.source else f"{source}, {self.where[identity]}"
            faults.add(row.where, f"id {identity!r} stands already in {first}; give each problem its own id")
        else:
            self.where[identity] = row.where
            self._source[identity] = faults.source


class _Problems:
    """A file of problems: the good ones, all ids, the faults."""

    def __init__(self, source: Source, split: str) -> None:
        self.faults = Faults(source)
        self.ids = _Ids()
        self.found: list[Problem] = []
        for row in _rows(source, split, self.faults):
            self.ids.add(row, self.faults)
            problem = to_problem(row, self.faults)
            if problem is not None:
                self.found.append(problem)


class _Stores:
    """Rationale stores, joined by problem id."""

    def __init__(self, problems: _Problems) -> None:
        self.problems = problems
        self.inputs: list[Faults] = []
        self._by_id: dict[str, list[Rationale]] = {}
        self._seen: dict[tuple[str, str], str] = {}
        self._rank: dict[str, int] = {}  # teachers by first appearance

    def any_faults(self) -> bool:
        return self.problems.faults.count > 0 or any(faults.count for faults in self.inputs)

    def read(self, source: Source, split: str) -> None:
        faults = Faults(source)
        self.inputs.append(faults)
        for row in read_rows(source, split, faults):
            if "rationales" in row.fields or "CoT" in row.fields:
                faults.add(row.where, "is training data, with its problem in the row; leave `problems` out")
                continue
            self._add(row, faults)

    def _add(self, row: Row, faults: Faults) -> None:
        before = faults.count
        identity = need_id(row, faults)
        fields = {key: value for key, value in row.fields.items() if key != "id"}
        rationale = to_rationale(fields, row.where, faults)
        if rationale is None or faults.count > before:
            return
        if identity not in self.problems.ids.where:
            if not self.problems.faults.count:
                where = self.problems.faults.source
                faults.add(row.where, f"id {identity!r} is of no problem in {where}; remove the row or add the problem")
            return
        name = sample_name(rationale)
        if (identity, name) in self._seen:
            first = self._seen[identity, name]
            faults.add(row.where, f"{name!r} of problem {identity!r} stands already in {first}; keep one of them")
            return
        self._seen[identity, name] = f"{faults.source}, {row.where}"
        self._rank.setdefault(rationale.teacher, len(self._rank))
        self._by_id.setdefault(identity, []).append(rationale)

    def instance(self, problem: Problem) -> Instance:
        found = sorted(self._by_id.get(problem.id, ()), key=lambda r: (self._rank[r.teacher], r.sample))
        return Instance(problem.id, problem.question, problem.answer, tuple(found), problem.extra)


def _store_files(sources: list[Source]) -> Iterator[Source]:
    """The files of stores; a folder of `.jsonl` files stands for them, in the order of their names."""
    for source in sources:
        path = Path(source)
        files: list[Path] = sorted(path.glob("*.jsonl")) if path.is_dir() else []
        yield from files if files else [source]


def _rows(source: Source, split: str, faults: Faults) -> Iterator[Row]:
    for row in read_rows(source, split, faults):
        renamed = from_published(row, faults)
        if renamed is not None:
            yield renamed


class ProblemStream:
    """What `load_problems` would load. Few problems are read once and kept; of more, each time only one at a time."""

    def __init__(self, source: str | Path, *, limit: int | None = None, split: str = "train") -> None:
        self._source = source
        self._limit = limit
        self._split = split
        self._hash: str | None = None
        self._kept: list[Problem] | None = None

    def __iter__(self) -> Iterator[Problem]:
        """Yield the problems in the order of the input.

        Raises:
            DataError: the input is wrong, or has become wrong since it was checked.
        """
        if self._hash is not None and self._kept is not None:
            return iter(self._kept)
        return islice(self._read(Faults(self._source)), self._limit)

    def check(self) -> str:
        """Read all rows, the first time; return a hash of the problems that will be yielded.

        Raises:
            DataError: everything that is wrong with the input, each with its line.
        """
        if self._hash is not None:
            return self._hash
        faults = Faults(self._source)
        state = hashlib.sha256()
        seen: set[int] = set()
        kept: list[Problem] | None = []
        for number, problem in enumerate(self._read(faults)):
            if hash(problem.id) in seen:
                load_problems(self._source, split=self._split)  # names both rows, if they are really the same
            seen.add(hash(problem.id))
            if self._limit is None or number < self._limit:
                state.update(json.dumps([problem.id, problem.question, problem.answer]).encode() + b"\n")
                if kept is not None and len(kept) < _KEPT_PROBLEMS:
                    kept.append(problem)
                else:
                    kept = None
        self._kept, self._hash = kept, state.hexdigest()
        return self._hash

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


def _check_limit(limit: Any) -> None:
    if limit is not None and limit < 1:
        raise DataError(f"limit must be >= 1, got {limit}; leave it out to take all problems")
