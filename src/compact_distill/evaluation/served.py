"""A student behind an OpenAI-compatible server (vLLM, SGLang ...), asked through the Teacher Pool's backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from compact_distill.config.messages import messages
from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.errors import ConfigError, RunError
from compact_distill.evaluation.writers import Reply, Request
from compact_distill.records import Problem
from compact_distill.students.generate import Decoding
from compact_distill.teachers import protocol
from compact_distill.teachers.ask import Halted, Requester
from compact_distill.teachers.backends import build


class ServedWriter:
    """The student at a server, which puts its own chat template around each prompt.

    The pool's rules hold: limits, retries and keys are those of a teacher. What a reasoning model thinks in a field of
    its own is no part of the text.

    Args:
        model: the student's name there.
        base_url: the server's address, such as http://localhost:8000/v1.
        api_key_env: the environment variable that holds the key; None where the server needs none.
        concurrency: requests in flight.

    Raises:
        ConfigError: an address that is none, a key's variable that is not set.
    """

    def __init__(self, model: str, base_url: str, api_key_env: str | None = None, concurrency: int = 64) -> None:
        given = {"model": model, "base_url": base_url, "api_key_env": api_key_env, "concurrency": concurrency}
        try:
            self.config = TeacherConfig(name=model, backend="openai", **given)
        except ValidationError as error:
            raise ConfigError([text for _, text in messages(error, TeacherConfig)]) from error
        build([self.config], GenerationConfig())  # looks for the key now

    def settings(self) -> dict[str, Any]:
        return {"backend": "openai", "base_url": self.config.base_url, "model": self.config.model}

    def decoding(self, decoding: Decoding) -> Decoding:
        return decoding

    def write(
        self, requests: Sequence[Request], decoding: Decoding, done: Collection[int]
    ) -> Iterator[tuple[int, Reply]]:
        pending = [index for index in range(len(requests)) if index not in done]
        faults: list[str] = []
        with asyncio.Runner() as runner:
            replies = self._ask(requests, pending, decoding, faults)
            try:
                while True:
                    try:
                        yield runner.run(anext(replies))
                    except StopAsyncIteration:
                        break
            finally:
                runner.run(replies.aclose())
        if faults:
            raise RunError(
                f"{self.config.name}: {len(faults)} of {len(requests)} requests got no reply, the first because: "
                f"{faults[0]}; the same command asks for them again"
            )

    async def _ask(
        self, requests: Sequence[Request], pending: Sequence[int], decoding: Decoding, faults: list[str]
    ) -> AsyncGenerator[tuple[int, Reply], None]:
        member = build([self.config], GenerationConfig())[0]  # its connections belong to this event loop
        requester = Requester(member.teacher, member.limits)
        gate = asyncio.Semaphore(self.config.concurrency)

        async def ask(index: int) -> tuple[int, protocol.TeacherAnswer | str]:
            async with gate:
                try:
                    return index, (await requester.ask(_to_teacher(requests[index], decoding)))[0]
                except protocol.TeacherFault as fault:
                    return index, str(fault)
                except Halted:
                    return index, requester.dead or "not asked any more"

        tasks = [asyncio.create_task(ask(index)) for index in pending]
        try:
            for task in asyncio.as_completed(tasks):
                index, answer = await task
                if isinstance(answer, str):
                    faults.append(answer)
                else:
                    yield index, _reply(answer)
        finally:
            for open_task in tasks:
                open_task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await member.teacher.close()


def _to_teacher(request: Request, decoding: Decoding) -> protocol.TeacherRequest:
    stop = {"stop": list(decoding.stop)} if decoding.stop else {}
    return protocol.TeacherRequest(
        problem=Problem(request.id, request.prompt, ""),
        sample=request.sample,
        system=None,
        prompt=request.prompt,
        decoding=protocol.SamplingParams(decoding.temperature, decoding.top_p, decoding.max_new_tokens, stop),
        seed=request.seed,
        key="",
    )


def _reply(answer: protocol.TeacherAnswer) -> Reply:
    return Reply(answer.text, answer.finish_reason != "length", answer.prompt_tokens, answer.completion_tokens)
