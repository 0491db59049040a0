"""The rationale store: one append-only JSONL per teacher, one row per (problem, sample, request key).

A row is written by one system call before its answer counts, so a killed process loses only what was in flight.
A lock keeps a second process out; a torn last line is cut off; a damaged line is reported and asked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, NamedTuple

from compact_distill.errors import DataError, RunError
from compact_distill.files import json_line
from compact_distill.records import Verdict


class DrawStatus(StrEnum):
    """What came of an answer that was paid for. Only `ok` takes part in training; every other one is counted."""

    OK = "ok"
    TRUNCATED = "truncated"  # the server stopped at max_tokens
    REFUSED = "refused"  # the server says so: content filter or refusal
    EMPTY = "empty"
    DUPLICATE = "duplicate"  # letter by letter another sample of the same problem
    UNPARSED = "unparsed"  # no final answer in it


@dataclass(frozen=True, slots=True)
class Row:
    """One answer of one teacher, in the order of the file's fields: what a resume reads comes before the texts."""

    id: str
    teacher: str
    sample: int
    request: str  # hash of prompt, model and decoding
    status: DrawStatus
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


class Stored(NamedTuple):
    """What the index knows of a row."""

    status: DrawStatus
    verdict: Verdict | None
    digest: str


_FIELDS = tuple(field.name for field in fields(Row))
_STATUSES = tuple(DrawStatus)
_VERDICTS: tuple[Verdict | None, ...] = (None, *Verdict)
_STATUS_NUMBERS = {str(status): number for number, status in enumerate(_STATUSES)}
_VERDICT_NUMBERS = {verdict and str(verdict): number for number, verdict in enumerate(_VERDICTS)}
_TEXT = b', "text": '  # quotes inside a JSON string are escaped, so this cannot stand in an earlier field


def digest(reasoning: str, text: str) -> str:
    """Return 12 hexadecimal digits that tell two answers apart."""
    return hashlib.sha256(f"{reasoning}\0{text}".encode()).hexdigest()[:12]


def file_name(teacher: str) -> str:
    """Return the store's file name; names that are no plain file names get a hash, so that none meet."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", teacher).lstrip(".")[:80]
    if plain != teacher:
        plain += "-" + hashlib.sha256(teacher.encode()).hexdigest()[:8]
    return f"{plain}.jsonl"


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a store that nobody needs to have locked; damaged lines and a torn last one are left out."""
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                row = _parse(line)
                if row is not None:
                    yield row


class Store:
    """An open, locked store. Use it as a context manager."""

    def __init__(self, folder: Path, teacher: str) -> None:
        """Open or create the teacher's store.

        Raises:
            RunError: another process has it open.
            DataError: the path cannot be written.
        """
        self.path = folder / file_name(teacher)
        self.torn_bytes = 0
        self.damaged: list[int] = []
        self._index: dict[int, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path.with_suffix(".jsonl.lock"))
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise DataError(f"{self.path} must be writable: {error.strerror}; choose another output folder") from None
        self.torn_bytes = _repair(self._file)
        self._read_index()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Rows that were there when it was opened."""
        return len(self._index)

    def seen(self, problem_id: str, sample: int, request: str) -> Stored | None:
        """Return what is known of a row that stood in the file when it was opened."""
        packed = self._index.get(_key(problem_id, sample, request))
        if packed is None:
            return None
        return Stored(_STATUSES[packed & 15], _VERDICTS[packed >> 4 & 15], f"{packed >> 8:012x}")

    def append(self, row: Row) -> None:
        """Write one row, whole or not at all; when this returns, a kill cannot lose it.

        Raises:
            RunError: the disk is full or gone.
        """
        line = _dump(row)
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(28, "no space left on device")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise RunError(f"{self.path}: a row could not be written: {error.strerror}; free space and run again")

    @property
    def unverified(self) -> int:
        """Rows that had no verdict when it was opened."""
        return sum(not packed >> 4 & 15 for packed in self._index.values())

    def rows(self) -> Iterator[Row]:
        """Yield every row, those written since it was opened included."""
        return read_rows(self.path)

    def sync(self) -> None:
        """Wait until the rows are on the disk itself: a power cut loses only what came after."""
        os.fsync(self._file)

    def rewrite(self, rows: Iterable[Row]) -> None:
        """Replace the rows, all of them or none: a new file is filled, then it takes the old one's place.

        Raises:
            RunError: the disk is full or gone; the old rows still stand.
        """
        fresh = self.path.with_suffix(".jsonl.new")
        try:
            with fresh.open("wb") as file:
                for row in rows:
                    file.write(_dump(row))
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self.path)
        except OSError as error:
            raise RunError(f"{fresh} could not be written: {error.strerror}; free space and run again") from None
        os.close(self._file)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND)
        self._read_index()

    def close(self) -> None:
        """Write all to the disk and let the next process in."""
        os.fsync(self._file)
        os.close(self._file)
        self._lock.close()

    def _read_index(self) -> None:
        self._index.clear()
        self.damaged.clear()
        with self.path.open("rb", buffering=1 << 20) as file:
            for number, line in enumerate(file, start=1):
                try:
                    # The texts are most of a row and a resume does not need them.
                    if not line.endswith(b"}\n") or b"\0" in line:
                        raise ValueError
                    cut = line.find(_TEXT)
                    head = json.loads(line[:cut].decode() + "}" if cut > 0 else line)
                    packed = _STATUS_NUMBERS[head["status"]] | _VERDICT_NUMBERS[head["verdict"]] << 4
                    packed |= int(head["digest"], 16) << 8
                    self._index[_key(head["id"], head["sample"], head["request"])] = packed
                except (ValueError, KeyError, TypeError):
                    self.damaged.append(number)


def _key(problem_id: str, sample: int, request: str) -> int:
    # 64 bits: among a million rows two meet with a chance of 3e-8, and an index of numbers stays small.
    name = f"{problem_id}\0{sample}\0{request}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _dump(row: Row) -> bytes:
    return json_line({name: getattr(row, name) for name in _FIELDS}).encode()


def _parse(line: bytes) -> Row | None:
    try:
        values: dict[str, Any] = json.loads(line)
        values["status"] = DrawStatus(values["status"])
        values["verdict"] = None if values["verdict"] is None else Verdict(values["verdict"])
        return Row(**values)
    except (ValueError, KeyError, TypeError):
        return None


def _lock(path: Path) -> IO[str]:
    import fcntl

    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise RunError(
            f"{path.with_suffix('')} is being written by {holder}; wait for it, stop it, or choose another output"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _repair(file: int) -> int:
    """Cut off a torn last line; return how many bytes it had. A row that lacks nothing but its end of line gets one."""
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        start = max(end - (1 << 16), 0)
        cut = os.pread(file, end - start, start).rfind(b"\n")
        if cut >= 0:
            end = start + cut + 1
            break
        end = start
    if end < size and _parse(os.pread(file, size - end, end)) is not None:
        os.write(file, b"\n")
        return 0
    os.ftruncate(file, end)
    return size - end
