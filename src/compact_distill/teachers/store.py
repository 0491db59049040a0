"""The rationale store: one JSONL per teacher, one row per (problem, sample, request key).

A row is appended by one system call before its answer counts, so a killed process loses only what was in flight; new
verdicts alone replace the file, whole.
A lock keeps a second process out. Lines that are torn, broken or do not fit their digest are moved aside and asked
again. Every other JSONL file is read by `runs.files.json_lines`; this one is not, because a line of it is more than its
JSON: it counts only with its digest, a resume over a million of them reads the fields before the texts alone, and a row
is found again by its offset.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from compact_distill.errors import DataError, RunError
from compact_distill.records import AnswerFrom, Closing, Verdict
from compact_distill.runs.files import Lock, json_line, sync_folder


class RowStatus(StrEnum):
    """What came of an answer that was paid for. Only `ok` takes part in training; every other one is counted."""

    OK = "ok"
    TRUNCATED = "truncated"  # the server stopped at max_tokens
    REFUSED = "refused"  # the server says so: content filter or refusal
    EMPTY = "empty"
    DUPLICATE = "duplicate"  # letter by letter another sample of the same problem
    UNPARSED = "unparsed"  # no final answer found in it
    NO_ANSWER = "no_answer"  # it ended by itself and gives none: neither yes nor no, no number
    INTERRUPTED = "interrupted"  # the server stopped for a reason of its own; what came is part of a text


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One answer of one teacher, in the order of the file's fields: what a resume reads comes before the texts."""

    id: str
    teacher: str
    sample: int
    request: str  # hash of prompt, model and decoding
    status: RowStatus
    verdict: Verdict | None  # None: not verified yet
    digest: str  # of reasoning and text, to tell samples apart
    text: str
    reasoning: str
    answer: str | None
    gold: str  # what the verdict compares with
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    latency: float  # seconds
    cost: float | None
    model: str | None  # as the server names it
    time: str  # UTC, ISO 8601
    # None also in rows that are older than these fields.
    answer_from: AnswerFrom | None = None
    choices: str | None = None  # hash of the choices that the answer was read with


_FIELDS = tuple(field.name for field in fields(StoredRow))
_TEXT = b', "text": '  # quotes inside a JSON string are escaped, so this cannot stand in an earlier field


def text_digest(reasoning: str, text: str) -> str:
    """Return 12 hexadecimal digits that tell two answers apart."""
    return hashlib.sha256(f"{reasoning}\0{text}".encode()).hexdigest()[:12]


def file_name(teacher: str) -> str:
    """Return the store's file name; names that are no plain file names get a hash, so that none meet."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", teacher).lstrip(".")[:80]
    if plain != teacher:
        plain += "-" + hashlib.sha256(teacher.encode()).hexdigest()[:8]
    return f"{plain}.jsonl"


def row_line(row: StoredRow) -> bytes:
    """Return the row's line, end of line included."""
    return json_line({name: getattr(row, name) for name in _FIELDS}).encode()


def parse_row(line: bytes) -> StoredRow | None:
    """Return the line's row, None where it is damaged or its texts are not those that were written."""
    try:
        values: dict[str, Any] = json.loads(line)
        if values["digest"] != text_digest(values["reasoning"], values["text"]):
            return None
        values["status"] = RowStatus(values["status"])
        values["answer_from"] = AnswerFrom(values["answer_from"]) if values.get("answer_from") else None
        values["verdict"] = None if values["verdict"] is None else Verdict(values["verdict"])
        return StoredRow(**values)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def parse_row_head(line: bytes) -> dict[str, Any]:
    """Return the fields before the texts, which are most of a row.

    Raises:
        ValueError: the line is damaged, as far as that shows without reading the texts.
    """
    if not line.endswith(b"}\n") or b"\0" in line:
        raise ValueError("the line is torn")
    cut = line.find(_TEXT)
    head: dict[str, Any] = json.loads(line[:cut].decode() + "}" if cut > 0 else line)
    return head


_STATUSES = tuple(RowStatus)
_VERDICTS: tuple[Verdict | None, ...] = (None, *Verdict)
_STATUS_NUMBERS = {str(status): number for number, status in enumerate(_STATUSES)}
_VERDICT_NUMBERS = {verdict and str(verdict): number for number, verdict in enumerate(_VERDICTS)}


class IndexEntry(NamedTuple):
    """What the index knows of a row."""

    status: RowStatus
    verdict: Verdict | None
    digest: str
    offset: int  # of its line in the file


class StoreReader:
    """A store as it stood when it was opened; it may be read while another process writes."""

    def __init__(self, folder: Path, teacher: str) -> None:
        """Index the teacher's store; one that does not exist yet is empty."""
        self.path = folder / file_name(teacher)
        self.damaged: list[int] = []  # numbers of lines that cannot be read, as far as their heads show it
        # A number a row, because a million rows must fit: from the low end 4 bits of status, 4 of verdict, 48 of
        # digest, and the offset.
        self._index: dict[int, int] = {}
        self._read_index()

    def __len__(self) -> int:
        """Rows that were there when it was opened."""
        return len(self._index)

    def seen(self, problem_id: str, sample: int, request: str) -> IndexEntry | None:
        """Return what is known of a row that stood in the file when it was opened."""
        packed = self._index.get(_key(problem_id, sample, request))
        if packed is None:
            return None
        known = f"{packed >> 8 & 0xFFFFFFFFFFFF:012x}"
        return IndexEntry(_STATUSES[packed & 15], _VERDICTS[packed >> 4 & 15], known, packed >> 56)

    def read(self, offset: int) -> StoredRow | None:
        """Return the row whose line begins there, None where its texts are damaged."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return parse_row(file.readline())

    def rows(self) -> Iterator[StoredRow]:
        """Yield every row there is now; damaged lines and a torn last one are left out."""
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    row = parse_row(line)
                    if row is not None:
                        yield row

    def _read_index(self) -> None:
        """Note where each row stands; of several with the same key the last one counts."""
        self._index.clear()
        if not self.path.exists():
            return
        offset = 0
        with self.path.open("rb", buffering=1 << 20) as file:
            for number, line in enumerate(file, start=1):
                try:
                    head = parse_row_head(line)
                    packed = _STATUS_NUMBERS[head["status"]] | _VERDICT_NUMBERS[head["verdict"]] << 4
                    packed |= int(head["digest"], 16) << 8 | offset << 56
                    self._index[_key(head["id"], head["sample"], head["request"])] = packed
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    self.damaged.append(number)
                offset += len(line)


class Store(StoreReader, Closing):
    """A store that this process alone writes. Use it as a context manager."""

    def __init__(self, folder: Path, teacher: str) -> None:
        """Lock, check, repair and index the teacher's store; make it where there is none.

        `damaged` holds the numbers of the lines that were moved aside, `aside` the file that has them now.

        Raises:
            RunError: another process has it open.
            DataError: the path cannot be written.
        """
        path = folder / file_name(teacher)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(path.with_suffix(".jsonl.lock"), path)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise DataError(f"{path} must be writable: {error.strerror}; choose another output folder") from None
        self.path = path
        self.aside = path.with_suffix(".jsonl.damaged")
        try:
            moved = self._move_damaged_aside()
            super().__init__(folder, teacher)
        except BaseException:
            os.close(self._file)
            self._lock.close()
            raise
        self.damaged = moved

    def append(self, row: StoredRow) -> None:
        """Write one row, whole or not at all; when this returns, a kill cannot lose it.

        Raises:
            RunError: the disk is full or gone.
        """
        line = row_line(row)
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            reason = f"{self.path}: a row could not be written: {error.strerror}; free space and run again"
            raise RunError(reason) from None

    def sync(self) -> None:
        """Wait until the rows are on the disk itself: a power cut loses only what came after.

        Raises:
            RunError: the disk is full or gone.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise RunError(f"{self.path} could not be written: {error.strerror}; free space and run again") from None

    def rewrite(self, rows: Iterable[StoredRow]) -> None:
        """Replace the rows, all of them or none: a new file is filled, then it takes the old one's place.

        Raises:
            RunError: the disk is full or gone; the old rows still stand.
        """
        self._replace(map(row_line, rows))
        self._read_index()

    def close(self) -> None:
        """Write all to the disk and let the next process in."""
        try:
            self.sync()
        finally:
            os.close(self._file)
            self._lock.close()

    def _replace(self, lines: Iterable[bytes]) -> None:
        fresh = self.path.with_suffix(".jsonl.new")
        try:
            with fresh.open("wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise RunError(f"{fresh} could not be written: {error.strerror}; free space and run again") from None
        # The number stays, so that another thread may bring the file to the disk meanwhile.
        opened = os.open(self.path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, self._file, inheritable=False)
        os.close(opened)

    def _move_damaged_aside(self) -> list[int]:
        """Append every line that is no whole row to the file of damaged ones, and take it out of the store.

        Returns:
            The lines' numbers. A last row that lacks nothing but its end of line gets one.
        """
        damaged: list[int] = []
        last = b"\n"
        with self.path.open("rb", buffering=1 << 20) as file:
            for number, last in enumerate(file, start=1):
                if parse_row(last) is None:
                    damaged.append(number)
        if damaged:
            wrong = set(damaged)
            with self.path.open("rb") as file, self.aside.open("ab") as aside:
                aside.writelines(line.rstrip(b"\n") + b"\n" for n, line in enumerate(file, start=1) if n in wrong)
                aside.flush()
                os.fsync(aside.fileno())
            with self.path.open("rb") as file:
                self._replace(line.rstrip(b"\n") + b"\n" for n, line in enumerate(file, start=1) if n not in wrong)
        elif not last.endswith(b"\n"):
            os.write(self._file, b"\n")
        return damaged


def _key(problem_id: str, sample: int, request: str) -> int:
    # 64 bits: among a million rows two meet with a chance of 3e-8, and an index of numbers stays small.
    name = f"{problem_id}\0{sample}\0{request}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
