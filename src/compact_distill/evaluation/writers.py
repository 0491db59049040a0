"""Who writes the answers: the student in this process, or the same student behind a server. One protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

from compact_distill.config.models import TextConfig
from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.config.yaml import messages
from compact_distill.errors import ConfigError, InputError, RunError
from compact_distill.method.encode import Encoder
from compact_distill.records import Problem
from compact_distill.students.generate import Decoding, Generator, plan_batches
from compact_distill.teachers import protocol
from compact_distill.teachers.answer import clean
from compact_distill.teachers.ask import Halted, Requester
from compact_distill.teachers.backends import build
from compact_distill.teachers.protocol import Redactor


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one row: what the student is asked, and the seed of its random numbers."""

    id: str
    sample: int
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; `prompt_tokens` and `tokens` are None where a server does not count them."""

    text: str
    finished: bool
    prompt_tokens: int | None
    tokens: int | None


class Writer(Protocol):
    """Answers requests in any order."""

    @property
    def at_once(self) -> int:
        """How many requests are under way together."""
        ...

    @property
    def independent(self) -> bool:
        """Whether a reply depends on its own request alone, and not on those beside it in a batch."""
        ...

    def settings(self) -> dict[str, Any]:
        """What of this writer decides the text, as plain JSON: pinned in the result."""
        ...

    def decoding(self, decoding: Decoding) -> Decoding:
        """The decoding that is really used: a prompt template, say, adds the text that would start a new question."""
        ...

    def write(
        self, requests: Sequence[Attempt], decoding: Decoding, done: Collection[int]
    ) -> Iterator[list[tuple[int, Reply]]]:
        """Yield (index of the request, reply) for each that is not `done`, as many as came back together.

        Raises:
            InputError: requests that cannot be answered, all of them told, before any is written.
            RunError: requests that got no reply; what was yielded before stays good.
        """
        ...


class StudentWriter:
    """The student in this process.

    Args:
        model: a causal language model, in training or not.
        tokenizer: its tokenizer.
        text: the prompt template of a student without chat template.
        batch_tokens: most tokens of a batch, padding and what is to be written included; bounds the memory.
    """

    def __init__(self, model: Any, tokenizer: Any, text: TextConfig | None = None, batch_tokens: int = 2**16) -> None:
        self.model = model
        self.encoder = Encoder(tokenizer, text)
        self.batch_tokens = batch_tokens

    @property
    def at_once(self) -> int:
        return 1  # they come back by whole batches

    @property
    def independent(self) -> bool:
        return False  # other neighbours in a batch may change a text by their rounding

    def settings(self) -> dict[str, Any]:
        chat = bool(self.encoder.tokenizer.chat_template)
        return {
            "backend": "transformers",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "batch_tokens": self.batch_tokens,
            "prompt_template": None if chat else self.encoder.text.prompt_template,
            "chat_template": self.encoder.tokenizer.chat_template,
            **self.encoder.text.model_dump(
                include={"system", "template_options", "close_thinking"}, exclude_defaults=True
            ),
        }

    def decoding(self, decoding: Decoding) -> Decoding:
        """Without a chat template, a student that starts the next question has ended this one."""
        if self.encoder.tokenizer.chat_template:
            return decoding
        opening = self.encoder.text.prompt_template.split("{question}")[0].strip()
        stop = (*decoding.stop, f"\n{opening}") if opening else decoding.stop
        return Decoding(decoding.max_new_tokens, decoding.temperature, decoding.top_p, stop)

    def write(
        self, requests: Sequence[Attempt], decoding: Decoding, done: Collection[int]
    ) -> Iterator[list[tuple[int, Reply]]]:
        import torch

        prompts = [self.encoder.encode_prompt(request.prompt) for request in requests]
        self._check_lengths(requests, prompts, decoding.max_new_tokens)
        generator = Generator(self.model, self.encoder.tokenizer, decoding)
        for batch in plan_batches(prompts, decoding.max_new_tokens, self.batch_tokens):
            # A batch that was cut off is written again whole: with other neighbours, rounding might change a text.
            if all(index in done for index in batch):
                continue
            try:
                replies = generator([prompts[i] for i in batch], [requests[i].seed for i in batch])
            except torch.OutOfMemoryError as error:
                raise RunError(
                    f"no memory for a batch of {len(batch)} rows and {decoding.max_new_tokens} new tokens; lower "
                    f"eval.batch_tokens (now {self.batch_tokens})"
                ) from error
            yield [
                (index, Reply(reply.text, reply.finished, len(prompts[index]), reply.tokens))
                for index, reply in zip(batch, replies, strict=True)
                if index not in done
            ]

    def _check_lengths(self, requests: Sequence[Attempt], prompts: Sequence[Sequence[int]], limit: int) -> None:
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is None:
            return
        too_long = [
            f"row {request.id!r}: its prompt of {len(prompt)} tokens and {limit} new ones do not fit in the student's "
            f"{room}; lower max_new_tokens of the task, or remove the row"
            for request, prompt in zip(requests, prompts, strict=True)
            if len(prompt) + limit > room and request.sample == 0
        ]
        if too_long:
            raise InputError(too_long)


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

    @property
    def at_once(self) -> int:
        return self.config.concurrency

    @property
    def independent(self) -> bool:
        return True

    def settings(self) -> dict[str, Any]:
        return {"backend": "openai", "base_url": self.config.base_url, "model": self.config.model}

    def decoding(self, decoding: Decoding) -> Decoding:
        return decoding

    def write(
        self, requests: Sequence[Attempt], decoding: Decoding, done: Collection[int]
    ) -> Iterator[list[tuple[int, Reply]]]:
        pending = [index for index in range(len(requests)) if index not in done]
        faults: list[str] = []
        with asyncio.Runner() as runner:
            replies = self._ask(requests, pending, decoding, faults)
            try:
                while True:
                    try:
                        yield [runner.run(anext(replies))]
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
        self, requests: Sequence[Attempt], pending: Sequence[int], decoding: Decoding, faults: list[str]
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
                    yield index, _reply(answer, member.redact)
        finally:
            for open_task in tasks:
                open_task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await member.teacher.close()


def _to_teacher(request: Attempt, decoding: Decoding) -> protocol.TeacherRequest:
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


def _reply(answer: protocol.TeacherAnswer, redact: Redactor) -> Reply:
    """A text that did not end by itself counts as cut, whatever the server calls that; a key in it never stays."""
    finished = protocol.finish(answer.finish_reason) is protocol.Finish.WHOLE
    return Reply(clean(answer.text, redact), finished, answer.prompt_tokens, answer.completion_tokens)
