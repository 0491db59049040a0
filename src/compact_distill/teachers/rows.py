"""One row of a rationale store, and its line in the file."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from compact_distill.records import Verdict
from compact_distill.runs.files import json_line


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


_FIELDS = tuple(field.name for field in fields(Row))
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


def dump(row: Row) -> bytes:
    """Return the row's line, end of line included."""
    return json_line({name: getattr(row, name) for name in _FIELDS}).encode()


def parse(line: bytes) -> Row | None:
    """Return the line's row, None where it is damaged."""
    try:
        values: dict[str, Any] = json.loads(line)
        values["status"] = DrawStatus(values["status"])
        values["verdict"] = None if values["verdict"] is None else Verdict(values["verdict"])
        return Row(**values)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def parse_head(line: bytes) -> dict[str, Any]:
    """Return the fields before the texts, which are most of a row.

    Raises:
        ValueError: the line is damaged, as far as that shows without reading the texts.
    """
    if not line.endswith(b"}\n") or b"\0" in line:
        raise ValueError("the line is torn")
    cut = line.find(_TEXT)
    head: dict[str, Any] = json.loads(line[:cut].decode() + "}" if cut > 0 else line)
    return head
