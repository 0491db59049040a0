"""Teachers behind an OpenAI-compatible server: vLLM, SGLang, Ollama, llama.cpp, `transformers serve`, hosted APIs."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from compact_distill.errors import ConfigError
from compact_distill.runs.progress import say
from compact_distill.teachers.protocol import (
    FaultKind,
    Finish,
    Redactor,
    TeacherAnswer,
    TeacherFault,
    TeacherRequest,
    finish,
    read_key,
)

_KINDS = {
    401: FaultKind.UNAUTHORISED,
    402: FaultKind.UNPAID,
    403: FaultKind.FORBIDDEN,
    404: FaultKind.NOT_FOUND,
    429: FaultKind.RATE_LIMITED,
    408: FaultKind.TIMEOUT,
    409: FaultKind.SERVER,
}
_REMEDIES = {
    FaultKind.UNAUTHORISED: "check the key in {key}",
    FaultKind.UNPAID: "the account of the key in {key} has no money left for this; pay, or use another key",
    FaultKind.FORBIDDEN: "check what the key in {key} may do",
    FaultKind.NOT_FOUND: "check `model` ({model}) and `base_url` ({url})",
    FaultKind.BAD_REQUEST: "check the decoding settings and the prompt's length",
    FaultKind.CONNECTION: "check `base_url` ({url}) and that the server runs",
    FaultKind.UNUSABLE: "name the address in `base_url` ({url}) that answers by itself, if you trust it",
}
_LONGEST_QUOTE = 300
_BACKOFF_HEADERS = (("retry-after-ms", 1000.0), ("retry-after", 1.0))
_HEADERS = frozenset(
    {"host", "connection", "content-length", "content-type", "accept-encoding", "cookie", "authorization"}
)
"""Headers that may go out as the client makes them; the rest (organisation, project, OPENAI_CUSTOM_HEADERS) stay."""
_NULLABLE = ("seed", "temperature", "top_p", "max_tokens")
_NEWER_NAME = "max_completion_tokens"
_UNWANTED = re.compile(
    r"unsupported|not supported|does not support|unknown|unrecogni[sz]ed|unexpected|extra|not (?:permitted|allowed)|"
    r"forbidden|invalid|cannot be|must not|only the default",
    re.IGNORECASE,
)
_FAILED = frozenset({"error", "abort", "aborted", "cancelled", "canceled"})
"""Finish reasons by which a server says that it broke down in the middle."""


class OpenAITeacher:
    """One model of one server, through the async openai client with its own retries switched off."""

    def __init__(self, name: str, model: str, base_url: str, api_key_env: str | None, redact: Redactor) -> None:
        """Read the key; nothing is opened or sent before the first request.

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
        self._url = base_url
        self._where = {"key": api_key_env or "api_key_env (none is named)", "model": model, "url": base_url}
        self._redact = redact
        self._key = read_key(api_key_env)
        self._client: Any = None
        # Its reference calls max_tokens deprecated, and its reasoning models refuse it.
        self._limit_name = _NEWER_NAME if urlsplit(base_url).hostname == "api.openai.com" else "max_tokens"

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        """Send one chat completion; the time limit is the caller's.

        A server that wants `max_completion_tokens` for `max_tokens` gets it, from its first refusal on.

        Raises:
            TeacherFault: no answer, or none that can be read.
        """
        sent = self._limit_name
        try:
            return await self._send(request)
        except TeacherFault as fault:
            if not (fault.refused == sent == "max_tokens" and _NEWER_NAME in str(fault)):
                raise
        if self._limit_name == sent:  # else another request has found out meanwhile
            self._limit_name = _NEWER_NAME
            say(f"{self.name}: the server refuses max_tokens; it is sent as {_NEWER_NAME}, as the server wants it")
        return await self._send(request)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _send(self, request: TeacherRequest) -> TeacherAnswer:
        sent = self._body(request)
        try:
            # The path's own method turns every message into typed parameters, which costs half a millisecond.
            body: Any = await self._connect().post("/chat/completions", cast_to=object, body=sent)
        except self._openai.APIStatusError as error:
            if _ran_out_of_tokens(error):
                return TeacherAnswer(text="", finish_reason="length")
            raise self._status_fault(error, sent) from None
        except self._openai.APITimeoutError as error:
            raise self._fault(FaultKind.TIMEOUT, str(error)) from None
        except self._openai.APIConnectionError as error:
            kind = FaultKind.UNUSABLE if isinstance(error.__cause__, _SentElsewhere) else FaultKind.CONNECTION
            raise self._fault(kind, _chain(error)) from None
        except _SentElsewhere as error:  # some versions of the client wrap it, as above
            raise self._fault(FaultKind.UNUSABLE, str(error)) from None
        except (ValueError, RecursionError) as error:
            raise self._fault(FaultKind.MALFORMED, f"the body is no JSON: {error}") from None
        except self._openai.OpenAIError as error:
            raise self._fault(FaultKind.MALFORMED, str(error)) from None
        return self._answer(body)

    def _connect(self) -> Any:
        if self._client is None:
            hooks: dict[str, Any] = {"request": [self._only_ours], "response": [_stay_here]}
            self._client = self._openai.AsyncOpenAI(
                api_key=self._key or "none",  # without one the client would read OPENAI_API_KEY
                base_url=self._url,
                max_retries=0,
                timeout=None,
                http_client=self._openai.DefaultAsyncHttpxClient(event_hooks=hooks, timeout=None),
            )
        return self._client

    async def _only_ours(self, request: Any) -> None:
        """Let nothing out that the client found in the environment: this server is the user's choice, not OpenAI's."""
        for header in set(request.headers) - _HEADERS:
            del request.headers[header]
        request.headers["accept"] = "application/json"
        request.headers["user-agent"] = "compact-distill"
        if self._key is None:
            request.headers.pop("authorization", None)
        else:
            request.headers["authorization"] = f"Bearer {self._key}"

    def _body(self, request: TeacherRequest) -> dict[str, Any]:
        decoding = request.decoding
        messages = [{"role": "system", "content": request.system}] if request.system else []
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [*messages, {"role": "user", "content": request.prompt}],
            "seed": request.seed,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            self._limit_name: decoding.max_tokens,
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
        refusal, ended = message.get("refusal"), choice.get("finish_reason")
        ended = ended if isinstance(ended, str) else None
        said, thought = read_content(message.get("content"))
        answer = TeacherAnswer(
            text=said or _text(refusal),
            reasoning=_reasoning(message) or thought,
            finish_reason=ended,
            refused=bool(refusal) or finish(ended) is Finish.BLOCKED,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            model=_text(body.get("model")) or None,
        )
        if (answer.finish_reason or "").lower() in _FAILED:
            raise self._fault(FaultKind.SERVER, f"the server broke off ({answer.finish_reason}){_why(choice, body)}")
        return answer

    def _status_fault(self, error: Any, sent: Mapping[str, Any]) -> TeacherFault:
        status = int(error.status_code)
        kind = _KINDS.get(status, FaultKind.SERVER if status >= 500 else FaultKind.BAD_REQUEST)
        if status == 429 and error.code == "insufficient_quota":
            kind = FaultKind.UNPAID  # no waiting brings money
        reason = _quote(error.body) or f"{error.response.reason_phrase}"
        refused, remedy = None, None
        if kind is FaultKind.BAD_REQUEST:
            refused = _refused(reason, error.body, sent)
            remedy = _parameter_remedy(refused) or _system_remedy(reason, sent)
        fault = self._fault(kind, f"HTTP {status}: {reason}", retry_after(error.response.headers), remedy)
        return TeacherFault(kind, str(fault), fault.retry_after, refused)

    def _fault(
        self, kind: FaultKind, message: str, wait: float | None = None, remedy: str | None = None
    ) -> TeacherFault:
        # The key is cut out before the message is: half a key is a key.
        said = "".join(sign if sign.isprintable() else " " for sign in self._redact(message))
        said = " ".join(said.split())[:_LONGEST_QUOTE]
        remedy = remedy or _REMEDIES.get(kind, "").format(**self._where)
        return TeacherFault(kind, f"{said}; {remedy}" if remedy else said, wait)


class _SentElsewhere(Exception):
    """The server sends its requests on to another host, which nobody named."""


async def _stay_here(response: Any) -> None:
    """Refuse redirects to another host: prompts and key are for the one that the user named."""
    if not response.has_redirect_location:
        return
    here = response.request.url
    there = here.join(response.headers["location"])
    same_host = (here.host, here.port) == (there.host, there.port) and here.scheme == there.scheme
    to_tls = here.host == there.host and (here.scheme, there.scheme) == ("http", "https")
    if not same_host and not to_tls:
        raise _SentElsewhere(f"HTTP {response.status_code} leads to {there.scheme}://{there.netloc.decode()}")


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


def read_content(content: Any) -> tuple[str, str]:
    """Return (what was said, what was thought) of a message's content: a text, or parts of several kinds."""
    if not isinstance(content, list):
        return (content if isinstance(content, str) else ""), ""
    said, thought = "", ""
    for part in content:
        if isinstance(part, str):
            said += part
        elif isinstance(part, Mapping):
            kind = part.get("type")
            if isinstance(kind, str) and kind.startswith(("thinking", "reasoning", "thought")):
                thought += _deep_text(part)
            elif kind in (None, "text", "output_text"):
                said += _text(part.get("text"))
    return said, thought


def _reasoning(message: Mapping[str, Any]) -> str:
    """Thoughts in a field of their own; servers differ in its name, and some send the same ones under two names."""
    for field in ("reasoning_content", "reasoning", "thinking", "reasoning_details"):
        if text := _deep_text(message.get(field)):
            return text
    return ""


def _deep_text(value: Any) -> str:
    """All text of a part of reasoning, in order: a text, a list of parts, or a part with the text in it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_deep_text, value))
    if isinstance(value, Mapping):
        names = ("thinking", "text", "summary", "content", "reasoning")
        return next((text for name in names if (text := _deep_text(value.get(name)))), "")
    return ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _chain(error: BaseException) -> str:
    """What lies under `Connection error.`: refused, reset, half a body."""
    cause = error.__cause__ or error
    return str(cause) if isinstance(cause, _SentElsewhere) else f"{type(cause).__name__}: {cause}"


def _quote(body: Any) -> str:
    """What an error's body says, whatever its form: {"error": ...}, {"detail": [...]}, {"message": ...}, plain text."""
    if isinstance(body, str):
        return body
    if isinstance(body, list):
        return "; ".join(filter(None, map(_quote, body)))
    if not isinstance(body, Mapping):
        return ""
    for name in ("message", "msg", "detail", "error", "errors", "error_message", "reason"):
        if said := _quote(body.get(name)):
            place = body.get("loc")
            where = ".".join(str(step) for step in place if step != "body") if isinstance(place, list) else ""
            return f"{where}: {said}" if where else said
    return json.dumps(body, ensure_ascii=False) if body else ""


def _why(*bodies: Mapping[str, Any]) -> str:
    said = next((text for body in bodies if (text := _quote(body.get("error")))), "")
    return f": {said}" if said else ""


def _refused(reason: str, body: Any, sent: Mapping[str, Any]) -> str | None:
    """The parameter that a refusal is about, where it says so and where it was sent."""
    param = body.get("param") if isinstance(body, Mapping) else None
    if isinstance(param, str) and param in sent and param not in ("model", "messages"):
        return param
    if not _UNWANTED.search(reason):
        return None
    settings = [name for name in sent if name not in ("model", "messages")]
    return next((name for name in settings if re.search(rf"\b{re.escape(name)}\b", reason)), None)


def _parameter_remedy(name: str | None) -> str | None:
    if name is None:
        return None
    key = "max_tokens" if name == _NEWER_NAME else name
    return f"set `{key}: null` for this teacher" if key in _NULLABLE else f"take {key} out of `extra`, or change it"


def _system_remedy(reason: str, sent: Mapping[str, Any]) -> str | None:
    said = reason.lower()
    about_roles = "system" in said and ("role" in said or "message" in said or "instruction" in said)
    if sent["messages"][0]["role"] == "system" and (about_roles or "roles must alternate" in said):
        return "set `system: null` for this teacher, and put what it says into `prompt`"
    return None


def _ran_out_of_tokens(error: Any) -> bool:
    """A reasoning model of OpenAI that reached its limit before it said anything is reported as a bad request."""
    return error.status_code == 400 and "output limit was reached" in str(error.message)
