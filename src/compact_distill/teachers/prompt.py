"""What a teacher is asked: messages, seed and the hash that tells one request from another."""

from __future__ import annotations

import hashlib
import json

from compact_distill.config.teachers import TeacherConfig
from compact_distill.records import Problem
from compact_distill.teachers.identity import model_identity
from compact_distill.teachers.protocol import Decoding, Request


class Prompting:
    """Turns problems into one teacher's requests."""

    def __init__(self, config: TeacherConfig) -> None:
        """Read what the teacher is to be asked; nothing but its configuration and its model's files is looked at.

        Raises:
            ConfigError: the file of existing rationales cannot be read.
        """
        self._system = config.system
        self._decoding = Decoding(config.temperature, config.top_p, config.max_tokens, config.extra)
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
        self._hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + b"\n")

    def key(self, problem: Problem) -> str:
        """Hash of everything that could change the answer, but for the sample's number: 16 hexadecimal digits."""
        state = self._hash.copy()
        state.update(self.prompt(problem).encode())
        return state.hexdigest()[:16]

    def prompt(self, problem: Problem) -> str:
        """The user's message. The question is put in as it is: braces in it mean nothing."""
        return f"{self._before}{problem.question}{self._after}"

    def request(self, problem: Problem, sample: int, key: str) -> Request:
        """The request for one sample; each has its own seed, the same in every run."""
        digest = hashlib.sha256(f"{self._seed}/{problem.id}/{sample}".encode()).digest()
        return Request(
            problem=problem,
            sample=sample,
            system=self._system,
            prompt=self.prompt(problem),
            decoding=self._decoding,
            seed=int.from_bytes(digest[:4], "big") & 0x7FFFFFFF,
            key=key,
        )
