"""Files that a crash cannot spoil, and what identifies their contents."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[str]]:
    """Write a text file that appears whole, under its name, when the block ends, and not at all if it raises."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def cut_torn_line(path: Path) -> None:
    """Cut off what stands after the last line end: a crash tore it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 65536)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        if position < end:
            file.truncate(position)


def json_line(row: Mapping[str, Any]) -> str:
    """One row of JSONL. Raises ValueError for NaN and infinity, which JSON does not have."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    if not line.isascii() and any("\ud800" <= sign <= "\udfff" for sign in line):
        line = json.dumps(row, allow_nan=False)  # half a surrogate pair, from broken input, has no UTF-8
    return line + "\n"


def fingerprint(value: Any) -> str:
    """SHA-256 of plain JSON data, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's file names and their hashes (hidden files left out)."""
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path)))
        return fingerprint([[p.relative_to(path).as_posix(), content_hash(p)] for p in files])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _sync_folder(folder: Path) -> None:
    """Bring the rename itself to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
