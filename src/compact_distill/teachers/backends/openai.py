"""Teachers behind an OpenAI-compatible server: vLLM, SGLang, Ollama, llama.cpp, `transformers serve`, hosted APIs."""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Mapping
from typing import Any

from compact_distill.errors import ConfigError
from compact_distill.teachers.protocol import FaultKind, TeacherAnswer, TeacherFault, TeacherRequest
from compact_distill.teachers.secrets import Redactor, read_key

_KINDS = {
    401: FaultKind.UNAUTHORISED,
    403: FaultKind.FORBIDDEN,
    404: FaultKind.NOT_FOUND,
    429: FaultKind.RATE_LIMITED,
    408: FaultKind.TIMEOUT,
    409: FaultKind.SERVER,
}
_REMEDIES = {
    FaultKind.UNAUTHORISED: "check the key in {key}",
    FaultKind.FORBIDDEN: "check what the key in {key} may do",
    FaultKind.NOT_FOUND: "check `model` ({model}) and `base_url` ({url})",
    FaultKind.BAD_REQUEST: "check the decoding settings and the prompt's length",
    FaultKind.CONNECTION: "check `base_url` ({url}) and that the server runs",
}
_LONGEST_QUOTE = 300
_BACKOFF_HEADERS = (("retry-after-ms", 1000.0), ("retry-after", 1.0))


class OpenAITeacher:
    """One model of one server, through the async openai client with its own retries switched off."""

    def __init__(self, name: str, model: str, base_url: str, api_key_env: str | None, redact: Redactor) -> None:
        """Read the key and prepare the client; nothing is sent.

        Raises:
            ConfigError: the key's variable is not set, or the openai package is absent.
        """
        try:
            import openai
        except ImportError:
            raise ConfigError("backend openai needs the openai package; pip install openai") from None
        self.name = name
        self._model = model
        self._openai = openai
        self._where = {"key": api_key_env or "api_key_env (none is named)", "model": model, "url": base_url}
        self._redact = redact
        # Without a key of its own the client would send OPENAI_API_KEY to whatever server this is.
        self._client = openai.AsyncOpenAI(
            api_key=read_key(api_key_env) or "none", base_url=base_url, max_retries=0, timeout=None
        )

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        """Send one chat completion; the time limit is the caller's.

        Raises:
            TeacherFault: no answer, or none that can be read.
        """
        try:
            # The path's own method turns every message into typed parameters, which costs half a millisecond.
            body: Any = await self._client.post("/chat/completions", cast_to=object, body=self._body(request))
        except self._openai.APIStatusError as error:
            raise self._status_fault(error) from None
        except self._openai.APITimeoutError as error:
            raise self._fault(FaultKind.TIMEOUT, str(error)) from None
        except self._openai.APIConnectionError as error:
            raise self._fault(FaultKind.CONNECTION, _chain(error)) from None
        except (ValueError, RecursionError) as error:
            raise self._fault(FaultKind.MALFORMED, f"the body is no JSON: {error}") from None
        except self._openai.OpenAIError as error:
            raise self._fault(FaultKind.MALFORMED, str(error)) from None
        return self._answer(body)

    async def close(self) -> None:
        await self._client.close()

    def _body(self, request: TeacherRequest) -> dict[str, Any]:
        decoding = request.decoding
        messages = [{"role": "system", "content": request.system}] if request.system else []
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [*messages, {"role": "user", "content": request.prompt}],
            "seed": request.seed,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_tokens,
            **decoding.extra,
        }
        return {key: value for key, value in body.items() if value is not None}

    def _answer(self, body: Any) -> TeacherAnswer:
        if not isinstance(body, Mapping):
            raise self._fault(FaultKind.MALFORMED, f"the body is no JSON object but {str(body)[:100]!r}")
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, Mapping) else None
        if choice is None or not isinstance(message, Mapping):
            # Some servers report their errors with status 200.
            raise self._fault(FaultKind.MALFORMED, f"no choices in it but {json.dumps(body)[:_LONGEST_QUOTE]}")
        usage = body.get("usage")
        usage = usage if isinstance(usage, Mapping) else {}
        refusal, finish = message.get("refusal"), choice.get("finish_reason")
        return TeacherAnswer(
            text=_text(message.get("content")) or _text(refusal),
            # vLLM and others renamed reasoning_content to reasoning.
            reasoning=_text(message.get("reasoning_content")) or _text(message.get("reasoning")),
            finish_reason=finish if isinstance(finish, str) else None,
            refused=bool(refusal) or finish == "content_filter",
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            model=_text(body.get("model")) or None,
        )

    def _status_fault(self, error: Any) -> TeacherFault:
        status = int(error.status_code)
        kind = _KINDS.get(status, FaultKind.SERVER if status >= 500 else FaultKind.BAD_REQUEST)
        if status == 429 and error.code == "insufficient_quota":
            kind = FaultKind.FORBIDDEN  # no waiting brings money
        reason = str(error.message).removeprefix(f"Error code: {status} - ")
        return self._fault(kind, f"HTTP {status}: {reason}", retry_after(error.response.headers))

    def _fault(self, kind: FaultKind, message: str, wait: float | None = None) -> TeacherFault:
        # The key is cut out before the message is: half a key is a key.
        said = "".join(
            sign if sign.isprintable() else " " for sign in self._redact(message)
        )  # no control of a terminal
        said = " ".join(said.split())[:_LONGEST_QUOTE]
        remedy = _REMEDIES.get(kind, "").format(**self._where)
        return TeacherFault(kind, f"{said}; {remedy}" if remedy else said, wait)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds that a server asks to wait (a number, or a date), or None where it asks nothing usable."""
    for header, divisor in _BACKOFF_HEADERS:
        value = headers.get(header)
        if value is None:
            continue
        try:
            seconds = float(value) / divisor
        except ValueError:
            try:
                moment = email.utils.parsedate_to_datetime(value).timestamp()
            except (ValueError, OverflowError):
                continue
            seconds = moment - (time.time() if now is None else now)
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    return None


def _text(value: Any) -> str:
    if isinstance(value, list):  # content in parts
        value = "".join(_text(part.get("text")) for part in value if isinstance(part, Mapping))
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _chain(error: BaseException) -> str:
    """What lies under `Connection error.`: refused, reset, half a body."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}"
