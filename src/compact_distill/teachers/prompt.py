"""What a teacher is asked: messages, seed and the hash that tells one request from another."""

from __future__ import annotations

import hashlib
import json

from compact_distill.records import Problem
from compact_distill.teachers.protocol import Decoding, Request


class Prompting:
    """Turns problems into one teacher's requests. `template` holds {question} exactly once."""

    def __init__(self, model: str, system: str | None, template: str, decoding: Decoding, seed: int) -> None:
        self.system = system
        self.decoding = decoding
        self.seed = seed
        self._before, self._after = template.split("{question}")
        settings = {
            "model": model,
            "system": system,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_tokens,
            "extra": dict(decoding.extra),
            "seed": seed,
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
        digest = hashlib.sha256(f"{self.seed}/{problem.id}/{sample}".encode()).digest()
        return Request(
            problem=problem,
            sample=sample,
            system=self.system,
            prompt=self.prompt(problem),
            decoding=self.decoding,
            seed=int.from_bytes(digest[:4], "big") & 0x7FFFFFFF,
            key=key,
        )
