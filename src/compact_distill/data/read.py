"""Read rows, as they are, from a JSONL or Parquet file, a `datasets` folder or a dataset on the hub.

Every fault of an input is counted, the first ones are told, and those of all inputs are told at once.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from compact_distill.errors import DataError, shown
from compact_distill.runs.files import json_lines, unique_keys
from compact_distill.runs.progress import say

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(?:/[A-Za-z0-9][\w.\-]*)?(?::[\w.\-]+)?")
_FILE_SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".csv", ".tsv", ".txt", ".gz")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TOLD = 20
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_ARCHIVES = {
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"7z\xbc": "7z",
}
_SAID: set[tuple[str, int]] = set()


class Faults:
    """The faults of one input, in the order found."""

    def __init__(self, source: object) -> None:
        self.source = str(source)
        self.count = 0
        self.solutions = 0  # gold answers that were cut out of a solution
        self._told: list[str] = []

    def add(self, where: str, message: str) -> None:
        """Note a fault; `where` is the line or row, or empty where the input as a whole is meant."""
        self.count += 1
        if self.count <= _TOLD:
            self._told.append(f"{self.source}, {where}: {message}" if where else f"{self.source}: {message}")

    def messages(self) -> list[str]:
        """The first twenty faults, and how many more there are."""
        more = self.count - len(self._told)
        return [*self._told, f"{self.source}: and {more} more like these"] if more else list(self._told)


def raise_if_any(inputs: Iterable[Faults]) -> None:
    """Raise one DataError with the faults of all inputs, unless there are none."""
    messages = [message for faults in inputs for message in faults.messages()]
    if messages:
        raise DataError(messages)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its fields, its place among the rows (from 0), and where a user finds it ("line 3")."""

    fields: dict[str, Any]
    index: int
    where: str


def read_rows(source: str | Path, split: str, faults: Faults) -> Iterator[Row]:
    """Yield the rows of an input, in order; what cannot be read is noted in `faults` and left out.

    Args:
        source: a Parquet file; a `.csv` or `.tsv` file whose first row names the columns; any other file is read as
            JSONL: UTF-8 (a byte-order mark is allowed), one object a line, lines end with LF or CRLF, blank lines are
            left out. One JSON array of objects is read too, and any of them packed by gzip. A folder that `datasets`
            saved. Otherwise the name of a dataset on the hub, whose code is never run; `name:configuration` where it
            has several.
        split: split of a `datasets` folder or hub dataset.
    """
    path = Path(source)
    try:
        if path.is_dir():
            rows = _read_folder(path, split, faults)
        elif path.is_file():
            rows = _read_file(path, faults)
        elif _HUB_NAME.fullmatch(str(source)) and path.suffix not in _FILE_SUFFIXES:
            rows = _read_hub(str(source), split, faults)
        else:
            faults.add("", "no such file or folder; check the path")
            return
        number = 0
        for index, (where, fields) in enumerate(rows):
            number = index + 1
            if _has_half_pair(fields):
                faults.add(
                    where, "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character; remove it"
                )
            else:
                yield Row(fields, index, where)
        if number == 0 and faults.count == 0:
            faults.add("", "holds no rows; write at least one")
        if faults.solutions and (faults.source, faults.solutions) not in _SAID:
            _SAID.add((faults.source, faults.solutions))
            say(f"{faults.source}: {faults.solutions} gold answers are solutions that end in `#### N`; N is taken")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        faults.add("", f"is a damaged gzip file: {error}; pack it again")
    except OSError as error:
        faults.add("", f"cannot be read: {error.strerror or error}; check the path and its permissions")


def _read_file(path: Path, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file of any kind that is read; one of another kind is a single fault."""
    with path.open("rb") as file:
        start = file.read(8)
    kind = next((name for sign, name in _ARCHIVES.items() if start.startswith(sign)), None)
    if kind is not None:
        faults.add("", f"is a {kind} archive; unpack it and give the file in it")
        return iter(())
    if path.suffix == ".parquet" or start.startswith(b"PAR1"):
        return _read_parquet(path, faults)
    packed = start.startswith(b"\x1f\x8b")
    suffix = Path(path.stem).suffix if packed and path.suffix == ".gz" else path.suffix
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, packed, "\t" if suffix == ".tsv" else ",", faults)
    return _read_json(path, packed, faults)


def _open(path: Path, packed: bool) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if packed else path.open("rb")


def _read_csv(path: Path, packed: bool, separator: str, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    limit = csv.field_size_limit(2**31 - 1)  # a field is as long as it is; the module's own limit comes back below
    with io.TextIOWrapper(_open(path, packed), "utf-8-sig", newline="") as file:  # a line ends where CSV says it does
        lines = csv.DictReader(file, delimiter=separator, strict=True)
        try:
            twice = sorted(name for name, count in Counter(lines.fieldnames or ()).items() if count > 1)
            if twice:
                faults.add("line 1", f"has two columns of the name {', '.join(map(repr, twice))}; rename one")
                return
            for fields in lines:
                where = f"line {lines.line_num}"
                if None in fields or None in fields.values():
                    faults.add(where, f"must have {len(lines.fieldnames or ())} columns, as the first line; mend it")
                else:
                    yield where, fields
        except UnicodeDecodeError as error:
            faults.add("", f"not UTF-8: {error.reason} at byte {error.start} of a block; save the file as UTF-8")
        except csv.Error as error:
            faults.add(f"line {lines.reader.line_num}", f"broken CSV: {error}; mend the line")
        finally:
            csv.field_size_limit(limit)


def _read_json(path: Path, packed: bool, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    with _open(path, packed) as file:
        first = next((line for line in file if line.removeprefix(codecs.BOM_UTF8).strip()), b"")
    text = first.removeprefix(codecs.BOM_UTF8).strip()
    if text.startswith(_UTF16) or first.startswith(_UTF16) or (text.startswith(b"{") and text != b"{") or not text:
        return _read_jsonl(path, packed, faults)
    if not text.startswith((b"[", b"{")):
        if _is_json(text):
            return _read_jsonl(path, packed, faults)
        line = shown(text.decode("utf-8", "replace"))
        hint = "give a CSV file the suffix .csv" if b"," in text or b"\t" in text else "write one JSON object a line"
        faults.add("", f"is no JSONL: its first line is {line}; {hint}")
        return iter(())
    with _open(path, packed) as file:
        whole = file.read()
    try:
        found = json.loads(whole.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        if _is_json(text):  # a line of JSONL, though no object
            return _read_jsonl(path, packed, faults)
        faults.add("", f"is neither JSONL nor one JSON array: {error}; write one object a line")
        return iter(())
    lists = [value for value in found.values() if isinstance(value, list)] if isinstance(found, dict) else [found]
    if isinstance(found, dict) and {"id", "question"} <= set(found):
        lists = [[found]]  # one row, on several lines
    if len(lists) != 1 or not all(isinstance(item, dict) for item in lists[0]):
        if isinstance(found, list) and whole.strip().count(b"\n") == 0:
            return _read_jsonl(path, packed, faults)
        faults.add("", "is one JSON value, and no list of objects; write one object a line")
        return iter(())
    return ((f"item {number}", item) for number, item in enumerate(lists[0], start=1))


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_jsonl(path: Path, packed: bool, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    with _open(path, packed) as file:
        for line in json_lines(file, by_hand=True):
            if line.wrong:
                faults.add(f"line {line.number}", line.wrong)
            else:
                yield f"line {line.number}", line.row


def _read_parquet(path: Path, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        number = 0
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield f"row {number}", fields
    except ArrowException as error:
        faults.add("", f"not a readable Parquet file: {error}; write it again")


def _read_folder(path: Path, split: str, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    if not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        if (path / "manifest.json").is_file() and (path / "data.jsonl").is_file():
            faults.add("", f"is a run's folder; its training data is {path / 'data.jsonl'}")
            return
        faults.add("", "is a folder, but not one that `datasets` saved (save_to_disk); give a file in it instead")
        return
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:
        faults.add("", f"cannot be loaded by `datasets`: {type(error).__name__}: {error}; save it again")
        return
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            faults.add("", f"split must be one of {', '.join(dataset)}, got {split!r}; choose one of them")
            return
        dataset = dataset[split]
    for number, fields in enumerate(dataset, start=1):
        yield f"row {number}", fields


def _read_hub(name: str, split: str, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    try:
        path, _, configuration = name.partition(":")
        dataset = load_dataset(path, configuration or None, split=split)
    except Exception as error:
        faults.add(
            "",
            f"no such file or folder, and split {split!r} of a hub dataset of that name cannot be loaded "
            f"({type(error).__name__}: {error}); check the name, the split and the network",
        )
        return
    for number, fields in enumerate(dataset, start=1):
        yield f"row {number}", fields


def as_json(value: Any) -> Any:
    """A value that some library read, as plain JSON: NaN (pandas' missing number) and infinity are null, dates text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return as_json(value.tolist())
    # What has no text of its own, such as an image, would show its place in memory, another one each time.
    return type(value).__name__ if f"{id(value):x}" in str(value).lower() else str(value)


def _has_half_pair(value: Any) -> bool:
    """Whether a text somewhere in a value has no UTF-8 form."""
    if isinstance(value, str):
        return not value.isascii() and _HALF_PAIR.search(value) is not None
    if isinstance(value, dict):
        return any(_has_half_pair(key) or _has_half_pair(item) for key, item in value.items())
    return isinstance(value, list) and any(_has_half_pair(item) for item in value)
