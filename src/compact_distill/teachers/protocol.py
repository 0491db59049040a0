"""The one protocol behind which every teacher stands: a request goes in, an answer or a fault comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from compact_distill.errors import CompactError
from compact_distill.records import Problem


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a teacher writes. None leaves a setting to the server; `extra` goes into the request's body as it is."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """One sample of one problem, ready to be sent. `key` is the hash of prompt, model and decoding."""

    problem: Problem
    sample: int
    system: str | None
    prompt: str
    decoding: Decoding
    seed: int
    key: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a teacher sent back, as it sent it.

    `text` still holds `<think>` tags; `reasoning` is what the server sent in a field of its own. Tokens are None
    where the server does not count them. `refused` is the server's own word, never a guess from the text.
    """

    text: str
    reasoning: str = ""
    finish_reason: str | None = None
    refused: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str | None = None


class FaultKind(StrEnum):
    """Why a request got no answer."""

    RATE_LIMITED = "rate_limited"
    SERVER = "server_error"
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    MALFORMED = "malformed"
    BAD_REQUEST = "bad_request"
    UNAUTHORISED = "unauthorised"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    UNUSABLE = "unusable"  # no such model, no key on that machine
    ABSENT = "absent"  # a file of existing rationales does not hold this one


FATAL = frozenset({FaultKind.UNAUTHORISED, FaultKind.NOT_FOUND, FaultKind.UNUSABLE})
"""Every other request to this teacher would bring the same fault: a wrong key, model or address."""

FINAL = FATAL | {FaultKind.BAD_REQUEST, FaultKind.FORBIDDEN, FaultKind.ABSENT}
"""Asking again would bring the same fault."""


class TeacherFault(CompactError):
    """A request that got no answer; `retry_after` is how many seconds the server asked to wait, if it did."""

    def __init__(self, kind: FaultKind, message: str, retry_after: float | None = None) -> None:
        self.kind = kind
        self.retry_after = retry_after
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return (TeacherFault, (self.kind, str(self), self.retry_after))


class Teacher(Protocol):
    """Whoever answers requests: a server, a local model, a file, a script. One `ask`, one attempt, no retries."""

    @property
    def name(self) -> str: ...

    async def ask(self, request: Request) -> Answer:
        """Answer one request; many may be in flight at once.

        Raises:
            TeacherFault: there is no answer.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and memory; no request is in flight."""
        ...
