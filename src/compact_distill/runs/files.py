"""Files that a crash cannot spoil: whole ones, growing ones, one writer each, what identifies them, the manifest."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, NamedTuple

from compact_distill.errors import RunError, shown
from compact_distill.records import Closing
from compact_distill.runs.progress import say


@contextlib.contextmanager
def atomic_write(path: str | Path, keep: bool = False) -> Iterator[IO[str]]:
    """Write a text file that appears whole, under its name, when the block ends, and not at all if it raises.

    With `keep` a file of that name that says something else is moved aside instead of replaced, and the user is told.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists() and path.stat().st_size and content_hash(path) != content_hash(aside):
            say(f"{path} was there already; that one is now {move_aside(path)}")
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


class Lock(Closing):
    """One writer at a time: an exclusive lock on a file, which the system gives back however the process ends.

    Args:
        path: the lock's own file; it names the holder.
        guarded: what is written under it, for the message.
        shared: whether processes that are given `fileno()` hold it too, until the last of them has ended.
        patience: seconds to wait for another holder to end.

    Raises:
        RunError: another process holds it, or this one does already.
        OSError: the file cannot be written.
    """

    # lockf's lock is not handed to children, so a killed writer's workers hold nothing; flock's lock is, which is what
    # `shared` asks for. The former does not keep a process from taking the same lock twice: this does.
    _taken: ClassVar[set[Path]] = set()

    def __init__(self, path: Path, guarded: Path, shared: bool = False, patience: float = 0.0) -> None:
        import fcntl

        self._key = path.parent.resolve() / path.name
        if self._key in self._taken:
            raise RunError(f"{guarded} is being written by this very process; close it there first")
        self._file = path.open("a+", encoding="utf-8")
        take, until = fcntl.flock if shared else fcntl.lockf, time.monotonic() + patience
        while True:
            try:
                take(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() < until:
                    time.sleep(0.2)
                    continue
                self._file.seek(0)
                holder = self._file.read().strip() or "another process"
                self._file.close()
                raise RunError(
                    f"{guarded} is being written by {holder}; wait for it, stop it, or choose another folder"
                ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        self._taken.add(self._key)

    def fileno(self) -> int:
        """The descriptor that a child process must be given to hold a shared lock too."""
        return self._file.fileno()

    def close(self) -> None:
        """Let the next writer in."""
        self._taken.discard(self._key)
        self._file.close()


def move_aside(path: str | Path) -> Path:
    """Give a file or folder a dated name beside its old one, and return that: what was made is never deleted.

    `gsm8k.json` becomes `gsm8k.json.2026-11-25T21-30-05Z`, so that no reader of `*.json` takes it for the new one; to
    take it back, rename it. Who calls this says so.
    """
    path = Path(path)
    aside = dated_name(path)
    path.rename(aside)
    sync_folder(path.parent)
    return aside


def dated_name(path: Path) -> Path:
    """A name beside `path` that has the time in it and that nothing has yet."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    aside, number = path.with_name(f"{path.name}.{stamp}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{stamp}-{number}")
    return aside


_ASIDE = re.compile(r"\.\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}Z(-\d+)?$")


def is_aside(path: str | Path) -> bool:
    """Whether a name is one that `move_aside` gave."""
    return _ASIDE.search(Path(path).name) is not None


def give_ordinary_modes(folder: Path) -> None:
    """Give weights the permissions of any other new file: safetensors lets nobody but their owner read them."""
    umask = os.umask(0o077)  # to ask for it is to set it
    os.umask(umask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~umask)


def cut_torn_line(path: Path) -> None:
    """Cut off what stands after the last line end: a crash tore it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = position = file.seek(0, os.SEEK_END)
        found = -1
        while position > 0 and found < 0:
            start = max(0, position - 65536)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            position = start + found + 1
        if position < end:
            file.truncate(position)


def json_line(row: Mapping[str, Any]) -> str:
    """One row of JSONL. Raises ValueError for NaN and infinity, which JSON does not have."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    if not line.isascii() and any("\ud800" <= sign <= "\udfff" for sign in line):
        line = json.dumps(row, allow_nan=False)  # half a surrogate pair, from broken input, has no UTF-8
    return line + "\n"


class JsonLine(NamedTuple):
    """A line of a JSONL file: its number (from 1), where it begins (bytes), its object, and what is wrong with it.

    One of the last two is empty.
    """

    number: int
    offset: int
    row: dict[str, Any]
    wrong: str


def json_lines(file: IO[bytes], by_hand: bool = False) -> Iterator[JsonLine]:
    """Every line of a JSONL file but blank ones, whole or damaged: what a damaged one means is the caller's to say.

    Args:
        file: UTF-8, open for reading bytes; a byte-order mark is allowed, lines end with LF or CRLF.
        by_hand: whether others wrote it. Then the last line may lack its end, where in a file of ours a crash tore it
            and it does not count; and a key that stands twice in an object is a mistake.
    """
    offset = 0
    # A binary file splits its lines at "\n" only; text methods would also split at U+2028 inside a string.
    for number, line in enumerate(file, start=1):
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            yield JsonLine(number, offset, {}, "is UTF-16; save the file as UTF-8")
            return
        if not by_hand and not line.endswith(b"\n"):
            return
        mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
        if line[mark:].strip():
            yield JsonLine(number, offset, *_parsed(line, mark, offset, by_hand))
        offset += len(line)


def _parsed(line: bytes, mark: int, offset: int, by_hand: bool) -> tuple[dict[str, Any], str]:
    try:
        row = json.loads(line[mark:].decode("utf-8"), object_pairs_hook=unique_keys if by_hand else None)
    except UnicodeDecodeError as error:
        at = mark + error.start
        place = f"position {at} of the line, {offset + at} of the file"
        return {}, f"not UTF-8: byte 0x{line[at]:02x} at {place}; save the file as UTF-8"
    except json.JSONDecodeError as error:
        return {}, f"broken JSON at column {error.colno}: {error.msg}; write one object a line"
    except (ValueError, RecursionError) as error:
        return {}, f"unreadable JSON: {error}; mend the line"
    if not isinstance(row, dict):
        return {}, f"must be an object like {{...}}, got {shown(row)}; write one object a line"
    return row, ""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError where a key stands twice in it."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object")
    return fields


def read_jsonl(
    path: str | Path, at_damage: Literal["raise"] | Callable[[JsonLine], None] = "raise"
) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file of ours, in order, none where there is no file; a last line without its end is no row yet.

    Args:
        path: the file.
        at_damage: what to do at a line that is no JSON object: raise, or leave it out and call this with it.

    Raises:
        RunError: such a line, with "raise".
    """
    path = Path(path)
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in json_lines(file):
            if not line.wrong:
                yield line.row
            elif at_damage == "raise":
                raise RunError(f"{path}, line {line.number}: {line.wrong}")
            else:
                at_damage(line)


class StepLog(Closing):
    """JSONL that grows row by row; rows hold the optimizer step ("step") they belong to, so it can be cut there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows; they are in the file when this returns (in the system's cache, not yet on disk)."""
        text = "".join(json_line(row) for row in rows)
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut_torn_line(self.path)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(text)
        self._file.flush()

    def truncate(self, step: int) -> int:
        """Keep only rows of steps before `step`; a damaged line is told and left out. Returns how many rows went."""
        self.close()
        removed = 0
        if not self.path.exists():
            return 0
        with atomic_write(self.path) as file:
            for row in read_jsonl(self.path, at_damage=self._tell):
                if isinstance(at := row.get("step"), int) and at < step:
                    file.write(json_line(row))
                else:
                    removed += 1
        return removed

    def _tell(self, line: JsonLine) -> None:
        say(f"{self.path}, line {line.number}: {line.wrong.split(';')[0]}; the line is left out")

    def sync(self) -> None:
        """Bring the rows to disk; call it before a checkpoint counts as complete."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close the file; the next `append` opens it again."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None


def fingerprint(value: Any) -> str:
    """SHA-256 of plain JSON data, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seed_of(name: str) -> int:
    """A seed made of a name: the same in every run, other names have other ones; 31 bits, which every sampler takes."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") & 0x7FFFFFFF


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's file names and their hashes (hidden files left out)."""
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and "/." not in f"/{p.relative_to(path).as_posix()}")
        return fingerprint([[p.relative_to(path).as_posix(), content_hash(p)] for p in files])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Bring the rename itself to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- what may become or continue a run folder, and the manifest that says what was done in it

FORMAT = 1
_LONGEST_NAME = 255  # bytes, on every file system in use


def now() -> str:
    """The time as a manifest has it: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def output_problem(path: str | Path) -> str | None:
    """Why a path cannot become or continue a run folder, as a message; None where it can."""
    try:
        return _output_problem(Path(path))
    except OSError as error:  # too long a name, a folder that may not be looked into
        return f"output {path} cannot be used: {error.strerror}; choose another `output:`"


def _output_problem(path: Path) -> str | None:
    if path.exists() and not path.is_dir():
        return f"output must be a folder, but {path} is a file; choose another `output:`"
    known = (path / "manifest.json").exists() or is_ours(path)
    if path.is_dir() and not known and any(not p.name.startswith(".") for p in path.iterdir()):
        return f"output must be new, empty or a run folder, but {path} holds other files; choose another `output:`"
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        return f"output {path} cannot be used: File name too long; choose another `output:`"
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        return f"output {path} cannot be written: no permission in {nearest}; choose another `output:`"
    return None


def is_ours(path: Path) -> bool:
    """Whether a run has been written in this folder: its lock says who held it, even where the manifest is gone."""
    try:
        return (path / ".lock").read_text(encoding="utf-8").startswith("process ")
    except (OSError, ValueError):
        return False


def new_manifest() -> dict[str, Any]:
    """The manifest of a run that has not begun."""
    return {"format": FORMAT, "started": now(), "finished": None, "stages": {}}


class DamagedManifest(RunError):
    """A manifest that cannot be read back."""


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, checked as far as it is read back. Raises RunError where it is damaged or of another format."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        manifest.setdefault("finished", None)  # one that does not say so has not finished
        for record in manifest["stages"].values():
            str(record["inputs"]), record["finished"], record.setdefault("summary", {}).items()
            for name, (size, digest) in record.setdefault("outputs", {}).items():
                int(size), str(digest)
                if ".." in Path(name).parts or Path(name).is_absolute():  # what is damaged is moved: only ours
                    raise ValueError(f"{name!r} is no file of the run")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise DamagedManifest(
            f"{path} is damaged ({error!r}); `compact run` with this output starts a new one and keeps what is there, "
            "or choose another `output:`"
        ) from error
    if found != FORMAT:
        raise RunError(f"{path} must have format {FORMAT}, got {found!r}; use the version of compact that wrote it")
    return dict(manifest)
