"""The protocol behind which every teacher stands: a request goes in, an answer or a fault comes out, and no key."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from compact_distill.config.teachers import TeacherConfig
from compact_distill.errors import CompactError, ConfigError
from compact_distill.records import Problem
from compact_distill.runs.files import content_hash, seed_of
from compact_distill.students.identity import folder_hash


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a teacher writes. None leaves a setting to the server; `extra` goes into the request's body as it is."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """One sample of one problem, ready to be sent. `key` is the hash of prompt, model and decoding."""

    problem: Problem
    sample: int
    system: str | None
    prompt: str
    decoding: SamplingParams
    seed: int | None  # None: not sent
    key: str


PREFLIGHT = Problem(id="preflight", question="Reply with the one word: ready", answer="ready")
"""What every teacher is asked first, shortly, to see whether it can be asked at all."""


@dataclass(frozen=True, slots=True)
class TeacherAnswer:
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


class Finish(StrEnum):
    """How a text ended, in one word for all servers' words."""

    WHOLE = "whole"
    LIMIT = "limit"
    BLOCKED = "blocked"
    OTHER = "other"  # what is there is part of a text


_FINISHES = {
    Finish.WHOLE: ("", "stop", "eos", "eos_token", "end", "end_turn", "stop_sequence", "stop_token", "completed"),
    Finish.LIMIT: ("length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length"),
    Finish.BLOCKED: ("content_filter", "safety", "refusal", "recitation", "blocklist", "prohibited_content", "spii"),
}


def finish(reason: str | None) -> Finish:
    """Read a server's finish reason; one that nobody knows is never taken for a whole text."""
    word = (reason or "").strip().lower().partition(":")[0]  # "content_filter: SAFETY"
    return next((kind for kind, words in _FINISHES.items() if word in words), Finish.OTHER)


class FaultKind(StrEnum):
    """Why a request got no answer."""

    RATE_LIMITED = "rate_limited"
    SERVER = "server_error"
    CONNECTION = "connection"
    TIMEOUT = "timeout"
    MALFORMED = "malformed"
    BAD_REQUEST = "bad_request"
    EMPTY = "empty"  # an answer came, with nothing in it
    UNAUTHORISED = "unauthorised"
    UNPAID = "unpaid"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    UNUSABLE = "unusable"  # no such model, no key on that machine
    ABSENT = "absent"  # a file of existing rationales does not hold this one


FATAL = frozenset({FaultKind.UNAUTHORISED, FaultKind.UNPAID, FaultKind.NOT_FOUND, FaultKind.UNUSABLE})
"""Every other request to this teacher would bring the same fault: a wrong key, model or address, an empty account."""

FINAL = FATAL | {FaultKind.BAD_REQUEST, FaultKind.FORBIDDEN, FaultKind.ABSENT}
"""Asking again would bring the same fault."""


class TeacherFault(CompactError):
    """A request that got no answer.

    Args:
        retry_after: how many seconds the server asked to wait, if it did.
        refused: the parameter of the request's body that the server does not take, if it named one.
    """

    def __init__(
        self, kind: FaultKind, message: str, retry_after: float | None = None, refused: str | None = None
    ) -> None:
        self.kind = kind
        self.retry_after = retry_after
        self.refused = refused
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return (TeacherFault, (self.kind, str(self), self.retry_after, self.refused))


class TeacherBackend(Protocol):
    """Whoever answers requests: a server, a local model, a file, a script. One `ask`, one attempt, no retries.

    Making one opens nothing that must be closed: what only checks a configuration leaves nothing behind.
    """

    @property
    def name(self) -> str:
        """What its rows and its store are called."""
        ...

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        """Answer one request; many may be in flight at once.

        Raises:
            TeacherFault: there is no answer.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and memory; no request is in flight."""
        ...


class Prompting:
    """Turns problems into one teacher's requests."""

    def __init__(self, config: TeacherConfig) -> None:
        """Read what the teacher is to be asked; nothing but its configuration and its model's files is looked at.

        Raises:
            ConfigError: the file of existing rationales cannot be read.
        """
        self._system = config.system
        self._decoding = SamplingParams(config.temperature, config.top_p, config.max_tokens, config.extra)
        self._seed = config.seed
        self._before, self._after = config.prompt.split("{question}")
        settings = {
            "model": model_identity(config),
            "system": config.system,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_tokens,
            "extra": config.extra,
            "seed": config.seed,
        }
        if config.template_options:
            settings["template_options"] = config.template_options
        self._hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + b"\n")

    def key(self, problem: Problem) -> str:
        """Hash of everything that could change the answer, but for the sample's number: 16 hexadecimal digits."""
        state = self._hash.copy()
        state.update(self.prompt(problem).encode())
        return state.hexdigest()[:16]

    def prompt(self, problem: Problem) -> str:
        """The user's message. The question is put in as it is: braces in it mean nothing."""
        return f"{self._before}{problem.question}{self._after}"

    def request(self, problem: Problem, sample: int, key: str) -> TeacherRequest:
        """The request for one sample; each has its own seed, the same in every run."""
        return TeacherRequest(
            problem=problem,
            sample=sample,
            system=self._system,
            prompt=self.prompt(problem),
            decoding=self._decoding,
            seed=None if self._seed is None else seed_of(f"{self._seed}/{problem.id}/{sample}"),
            key=key,
        )


def model_identity(config: TeacherConfig) -> str:
    """Return the model's name at its server, or a hash of the files that hold it.

    Raises:
        ConfigError: the file of existing rationales cannot be read.
    """
    if config.backend == "jsonl":
        path = str(config.path)
        try:
            return f"jsonl/{content_hash(path)[:16]}"
        except OSError as error:
            message = f"teacher {config.name}: {path} must be readable: {error.strerror}; check `path`"
            raise ConfigError(message) from None
    if config.backend == "transformers" and os.path.isdir(str(config.model)):
        return f"folder/{folder_hash(Path(str(config.model)))[:16]}"
    return f"{config.backend}/{config.model}"


# ---- keys come from the environment and go nowhere else: they are cut out of all that a server sends back

_SECRET_LENGTH = 8
"""Shorter keys (`EMPTY`, `none`) are no secrets; cutting them out would mangle rationales."""
_ECHO = 12
"""This many characters of a key in a row give it away; servers like to echo a part of it."""
_BLOCK = _ECHO // 2


def read_key(variable: str | None) -> str | None:
    """Return the key that the environment variable holds; None where no variable is named.

    Raises:
        ConfigError: the variable is not set, or empty.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"environment variable {variable} must hold the key, but it is not set; "
            f"`export {variable}=...`, or remove api_key_env where the server needs no key"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"the key in {variable} must be plain ASCII without spaces; set it again, without quotes")
    return key


class Redactor:
    """Replaces keys, whole or in part, by the name of their variable."""

    def __init__(self, variables: Iterable[str | None]) -> None:
        self._keys: list[tuple[tuple[str, ...], str]] = []
        for variable in variables:
            key = os.environ.get(variable, "").strip() if variable else ""
            if len(key) >= _SECRET_LENGTH:
                self._keys.append((tuple({key, quote(key, safe="")}), f"[{variable}]"))

    def __call__(self, text: str) -> str:
        """Return the text without any key in it."""
        for forms, name in self._keys:
            # Every run of _ECHO characters holds one of these blocks whole, so most texts need no closer look.
            if any(form[i : i + _BLOCK] in text for form in forms for i in range(0, len(form) - _BLOCK + 1, _BLOCK)):
                text = _without_parts(text, forms, name)
        return text


def _without_parts(text: str, forms: tuple[str, ...], name: str) -> str:
    """Cut out every stretch of the text that is also a stretch of the key, from _ECHO characters on."""
    shortest = min(_ECHO, *map(len, forms))
    kept: list[str] = []
    at = 0
    while at < len(text):
        length = shortest
        while at + length <= len(text) and any(text[at : at + length] in form for form in forms):
            length += 1
        if length > shortest:
            kept.append(name)
            at += length - 1
        else:
            kept.append(text[at])
            at += 1
    return "".join(kept)
