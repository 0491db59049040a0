"""Local transformers models in this process, batched by length, on CPU or GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from compact_distill.config.teachers import TeacherConfig
from compact_distill.errors import StudentError
from compact_distill.runs.environment import accelerator
from compact_distill.teachers.answer import tells_thoughts
from compact_distill.teachers.protocol import (
    PREFLIGHT,
    FaultKind,
    SamplingParams,
    TeacherAnswer,
    TeacherFault,
    TeacherRequest,
)

_DEFAULT_MAX_TOKENS = 2048


@dataclass(slots=True)
class _Pending:
    request: TeacherRequest
    tokens: list[int]
    future: asyncio.Future[TeacherAnswer]


class TransformersTeacher:
    """One causal language model. Requests that wait together are sorted by length and written in batches."""

    def __init__(
        self, name: str, folder: str, batch_size: int, device: str, template_options: Mapping[str, Any] | None = None
    ) -> None:
        """Name the model; it is loaded when the first request comes."""
        self.name = name
        self._template_options = dict(template_options or {})
        self._template_is_sound = False
        self._folder = folder
        self._batch_size = batch_size
        self._device = device
        self._pending: list[_Pending] = []
        self._worker: asyncio.Task[None] | None = None
        # One thread: the model writes one batch at a time, and the event loop stays free.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"teacher-{name}")
        self._tokenizer: Any = None
        self._loaded: tuple[Any, Any] | None = None
        self._closing = False

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        """Queue one request and wait for its batch.

        Raises:
            TeacherFault: no usable model, a prompt that does not fit, or no memory for the batch.
        """
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._thread, self._tokenise, request)
        pending = _Pending(request, tokens, loop.create_future())
        self._pending.append(pending)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await pending.future

    async def close(self) -> None:
        """End the batch that is being written, if one was given up, and free the model."""
        self._closing = True
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._loaded = None

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            await asyncio.sleep(0)  # let every request that is ready join
            self._pending = [p for p in self._pending if not p.future.done()]  # given up meanwhile
            batch = self._next_batch()
            if not batch:
                return
            try:
                answers = await loop.run_in_executor(self._thread, self._write, batch)
            except Exception as error:
                for p in batch:
                    if not p.future.done():
                        p.future.set_exception(error)
                continue
            for p, answer in zip(batch, answers, strict=True):
                if not p.future.done():
                    p.future.set_result(answer)

    def _next_batch(self) -> list[_Pending]:
        """Take the longest waiting request and those nearest to it in length: little padding, and nobody starves."""
        if not self._pending:
            return []
        first = self._pending[0]
        alike = [p for p in self._pending if p.request.decoding == first.request.decoding]
        alike.sort(key=lambda p: abs(len(p.tokens) - len(first.tokens)))
        batch = alike[: self._batch_size]
        self._pending = [p for p in self._pending if p not in batch]
        return batch

    def template_problems(self, request: TeacherRequest) -> list[str]:
        """What keeps the chat template from being filled in with a request, as messages; loads the tokenizer alone.

        Raises:
            TeacherFault: the tokenizer cannot be used.
        """
        from compact_distill.students.prompt import prompt_problems

        # A teacher may think: what its template opens for that stays open.
        wrong = prompt_problems(self._load_tokenizer(), _messages(request), self._template_options, close_thinking=True)
        hint = "for a teacher, `system` and `template_options` are keys of its own in `teachers:`"
        return [f"{problem} ({hint})" for problem in wrong]

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False)
            except (OSError, ValueError, KeyError) as error:
                raise self._unusable(error) from None
            if tokenizer.eos_token_id is None:
                message = f"the tokenizer in {self._folder} must have an eos token, or nothing ends; set one"
                raise TeacherFault(FaultKind.UNUSABLE, message)
            self._tokenizer = tokenizer
        return self._tokenizer

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForCausalLM

            tokenizer = self._load_tokenizer()
            try:
                model = AutoModelForCausalLM.from_pretrained(
                    self._folder, trust_remote_code=False, use_safetensors=True, dtype="auto"
                )
            except (OSError, ValueError, KeyError) as error:
                raise self._unusable(error) from None
            self._loaded = model.eval().to(accelerator(self._device, writes_only=True)), tokenizer
        return self._loaded

    def _unusable(self, error: Exception) -> TeacherFault:
        reason = " ".join(str(error).split())[:300]
        return TeacherFault(
            FaultKind.UNUSABLE,
            "model must be a folder or hub name of a transformers causal language model in safetensors, "
            f"got {self._folder!r}: {reason}; check the name",
        )

    def _tokenise(self, request: TeacherRequest) -> list[int]:
        """The prompt's tokens; one that does not fit is refused here, where it costs no others of its batch."""
        tokens = self._prompt_tokens(request)
        new = request.decoding.max_tokens or _DEFAULT_MAX_TOKENS
        room = getattr(self._load()[0].config.get_text_config(), "max_position_embeddings", None)
        if room is not None and len(tokens) + new > room:
            message = f"prompt and max_tokens must fit in {room} tokens, got {len(tokens)} + {new}; lower max_tokens"
            raise TeacherFault(FaultKind.BAD_REQUEST, message)
        return tokens

    def _prompt_tokens(self, request: TeacherRequest) -> list[int]:
        from compact_distill.students.prompt import prompt_tokens

        _, tokenizer = self._load()
        messages = _messages(request)
        if not tokenizer.chat_template:
            return list(tokenizer("\n\n".join(m["content"] for m in messages) + "\n")["input_ids"])
        if not self._template_is_sound:  # a stranger's program, which may not end
            wrong = self.template_problems(request)
            if wrong:
                raise TeacherFault(FaultKind.UNUSABLE, "; ".join(wrong))
            self._template_is_sound = True
        try:
            return list(prompt_tokens(tokenizer, messages, self._template_options))
        except StudentError as error:
            raise TeacherFault(FaultKind.BAD_REQUEST, str(error)) from None

    def _write(self, batch: list[_Pending]) -> list[TeacherAnswer]:
        import torch

        from compact_distill.students.generate import Decoding, Generator

        model, tokenizer = self._load()
        asked = batch[0].request.decoding
        new = asked.max_tokens or _DEFAULT_MAX_TOKENS
        temperature = 1.0 if asked.temperature is None else asked.temperature
        try:
            reshape = _processors(asked.extra, temperature)
        except (ValueError, TypeError) as error:
            raise TeacherFault(FaultKind.UNUSABLE, f"extra: {error}") from None
        # Where logits are reshaped, the temperature is a part of that: min_p and others count after it.
        decoding = Decoding(
            max_new_tokens=new,
            temperature=1.0 if temperature and reshape else temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            stop=tuple(asked.extra.get("stop", ())),
        )
        channels = "<|channel|>" in tokenizer.get_vocab()
        keep = partial(tells_thoughts, channels=channels)
        generator = Generator(model, tokenizer, decoding, reshape, cancelled=lambda: self._closing, keep=keep)
        try:
            written = generator([p.tokens for p in batch], [p.request.seed or 0 for p in batch])
        except torch.OutOfMemoryError:
            message = f"no memory for {len(batch)} rationales of {new} tokens; lower batch_size or max_tokens"
            raise TeacherFault(FaultKind.BAD_REQUEST, message) from None
        return [
            TeacherAnswer(
                text=own.text,
                finish_reason="stop" if own.finished else "length",
                prompt_tokens=len(p.tokens),
                completion_tokens=own.tokens,
                model=self._folder,
            )
            for p, own in zip(batch, written, strict=True)
        ]


def template_problems(config: TeacherConfig) -> list[str]:
    """What keeps a local model's chat template or tokenizer from being used, as messages; its weights stay unread."""
    teacher = TransformersTeacher(
        config.name, str(config.model), config.batch_size, config.device, config.template_options
    )
    prompt = config.prompt.replace("{question}", PREFLIGHT.question)
    request = TeacherRequest(PREFLIGHT, 0, config.system, prompt, SamplingParams(), None, "")
    try:
        found = teacher.template_problems(request)
    except TeacherFault as fault:
        found = [str(fault)]
    return [f"teacher {config.name}: {problem}" for problem in found]


def _messages(request: TeacherRequest) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": request.system}] if request.system else []
    return [*messages, {"role": "user", "content": request.prompt}]


def _processors(extra: Mapping[str, Any], temperature: float) -> Any:
    """What reshapes the logits of a request's `extra`, in the order of transformers' `generate`; None: nothing does."""
    import transformers

    # Named in config/teachers.py, which refuses all others.
    kinds = {
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "top_k": transformers.TopKLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
        "typical_p": transformers.TypicalLogitsWarper,
    }
    named = {name: kind(extra[name]) for name, kind in kinds.items() if name in extra}
    if not named:
        return None
    steps = transformers.LogitsProcessorList()
    if penalty := named.pop("repetition_penalty", None):
        steps.append(penalty)
    if temperature > 0:
        steps.append(transformers.TemperatureLogitsWarper(float(temperature)))
        steps.extend(named.values())
    return steps
