"""The sections `teachers:` and `generation:` of the YAML: who is asked, how, and what becomes of the answers."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, StrictFloat, StrictInt, field_validator, model_validator

from compact_distill.config.yaml import Strict

SYSTEM = "Think step by step, one step a line. End with a last line of exactly this form: The answer is ANSWER."

_NEEDS = {"openai": ("model", "base_url"), "transformers": ("model",), "jsonl": ("path",), "lab": ("model",)}
LOCAL_EXTRA = ("repetition_penalty", "top_k", "min_p", "typical_p", "stop")
"""What `extra` may hold for a local model; a server takes whatever it knows."""
_ONLY = {"base_url": ("openai",), "api_key_env": ("openai",), "path": ("jsonl",), "ray": ("openai", "transformers")}

_LIKE_A_KEY = re.compile(r"^(?:gsk|hf|sk|xai|r8|nvapi|pplx|fw|tgp)_\w{16}|(?=[^_]*[a-z])(?=[^_]*\d)[^_]{16}")
"""Servers' keys that would pass as a variable's name, and other long mixtures of letters and digits."""


class PricesConfig(Strict):
    """What a million tokens cost, in any currency."""

    prompt: StrictFloat = Field(ge=0, description="a million prompt tokens")
    completion: StrictFloat = Field(ge=0, description="a million written tokens")


class RayConfig(Strict):
    """Actors of a Ray cluster that ask or run this teacher; needs the extra [ray]."""

    actors: StrictInt = Field(ge=1, description="copies of the teacher in the cluster")
    num_cpus: StrictFloat = Field(1.0, ge=0, description="CPUs of each")
    num_gpus: StrictFloat = Field(0.0, ge=0, description="GPUs of each")


class TeacherConfig(Strict):
    """One teacher: the name in the store, how it is reached, what it is asked and how it writes."""

    name: str = Field(min_length=1, description="its name in the store and in every table", examples=["qwq"])
    backend: Literal["openai", "transformers", "jsonl", "lab"] = Field("openai", description="how it is reached")
    model: str | None = Field(None, description="model name at the server, or folder", examples=["Qwen/QwQ-32B"])
    base_url: str | None = Field(None, description="the server's address", examples=["http://localhost:8000/v1"])
    api_key_env: str | None = Field(
        None, description="name of the environment variable that holds the key", examples=["QWQ_KEY"]
    )
    path: str | None = Field(None, description="jsonl: file of existing rationales")
    system: str | None = Field(SYSTEM, description="system message; null sends none")
    prompt: str = Field("{question}", description="the user's message")
    temperature: StrictFloat | None = Field(0.7, ge=0, description="null leaves it to the server")
    top_p: StrictFloat | None = Field(0.95, gt=0, le=1, description="null leaves it to the server")
    max_tokens: StrictInt | None = Field(2048, ge=1, description="of one rationale; null leaves it to the server")
    seed: StrictInt | None = Field(0, ge=0, description="every sample's own seed is made from it; null sends none")
    extra: dict[str, Any] = Field({}, description="more of the request's body", examples=[{"top_k": 20}])
    template_options: dict[str, Any] = Field(
        {}, description="transformers: what its chat template takes, as {enable_thinking: false}"
    )
    samples: StrictInt = Field(1, ge=1, description="rationales of each problem, each asked for on its own")
    rationale: Literal["all", "reasoning", "text"] = Field(
        "all", description="what the student learns of a reasoning model: all it wrote, its thoughts, or the rest"
    )
    concurrency: StrictInt = Field(16, ge=1, description="requests in flight")
    requests_per_minute: StrictFloat | None = Field(None, gt=0, description="the server's limit", examples=[500])
    tokens_per_minute: StrictFloat | None = Field(None, gt=0, description="the server's limit", examples=[200000])
    timeout: StrictFloat | None = Field(
        None, gt=0, description="seconds for one whole answer; null: 600 at servers, no limit for local models"
    )
    prices: PricesConfig | None = Field(
        None, description="of a million tokens", examples=[{"prompt": 0.5, "completion": 1.5}]
    )
    batch_size: StrictInt = Field(8, ge=1, description="transformers: rationales written at once")
    device: str = Field("auto", description="transformers: auto, cpu, cuda, cuda:1, ...")
    ray: RayConfig | None = Field(None, description="actors of a Ray cluster: {actors: 2, num_gpus: 1}")

    @field_validator("name")
    @classmethod
    def _can_be_read_back(cls, name: str) -> str:
        if name != name.strip() or not name.isprintable():
            raise ValueError(f"must be printable text without spaces around it, got {name!r}; write such a name")
        if re.search(r"#\d+$", name):
            raise ValueError(f"must not end in # and a number, which means a sample, got {name!r}; write another name")
        return name

    @field_validator("base_url")
    @classmethod
    def _no_password(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if any(sign in url for sign in "@?#;"):
            raise ValueError(
                "must hold nothing but host, port and path: no password, no query, no part after # or ;; name an "
                "environment variable in api_key_env"
            )
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"must start with http:// or https://, got {url!r}; as in http://localhost:8000/v1")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("must be the name of an environment variable, such as QWQ_KEY, never the key itself")
        if name is not None and _LIKE_A_KEY.search(name):
            raise ValueError("looks like a key itself; export it as a variable, such as QWQ_KEY, and write that name")
        return name

    @field_validator("prompt")
    @classmethod
    def _holds_question(cls, template: str) -> str:
        if template.count("{question}") != 1:
            raise ValueError(f"must hold {{question}} exactly once, got {template!r}; put the question there")
        return template

    @field_validator("extra")
    @classmethod
    def _leaves_the_rest(cls, extra: dict[str, Any]) -> dict[str, Any]:
        taken = {"model", "messages", "seed", "temperature", "top_p", "max_tokens"} & extra.keys()
        if taken:
            raise ValueError(f"must not hold {sorted(taken)[0]!r}, which has a key of its own; set that one")
        for name, rule in (("n", "use `samples`"), ("stream", "answers are read whole")):
            if name in extra:
                raise ValueError(f"must not hold {name!r}; {rule}")
        return extra

    @model_validator(mode="after")
    def _fits_the_backend(self) -> TeacherConfig:
        wrong = [f"needs `{key}` with backend {self.backend}" for key in _NEEDS[self.backend] if not getattr(self, key)]
        wrong += [
            f"must not have `{key}` with backend {self.backend}; it belongs to {' and '.join(backends)}"
            for key, backends in _ONLY.items()
            if getattr(self, key) is not None and self.backend not in backends
        ]
        if self.template_options and self.backend != "transformers":
            wrong.append(
                f"must not have `template_options` with backend {self.backend}; a server takes them as "
                "`extra: {chat_template_kwargs: {...}}`"
            )
        if self.backend == "transformers":
            wrong += _wrong_local_extra(self.extra)
            if self.seed is None:
                wrong.append("must have a seed with backend transformers, got null; use 0")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def _wrong_local_extra(extra: dict[str, Any]) -> list[str]:
    known = ", ".join(LOCAL_EXTRA)
    wrong = [
        f"must not have extra.{name} with backend transformers; it takes {known}"
        for name in extra
        if name not in LOCAL_EXTRA
    ]
    stop = extra.get("stop", ["."])
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        wrong.append(f"extra.stop must be a list of texts, got {stop!r}; write [{stop!r}]")
    return wrong


class GenerationConfig(Strict):
    """What becomes of the teachers' answers and faults."""

    rejection: Literal["none", "correct_only", "until_correct"] = Field(
        "none", description="keep all; drop wrong answers; or drop them and ask again"
    )
    attempts: StrictInt = Field(4, ge=1, description="until_correct: most requests for one rationale")
    max_errors: StrictFloat = Field(0.1, ge=0, le=1, description="share of rationales without answer that fails a run")
    max_retries: StrictInt = Field(6, ge=0, description="of one request after a fault")
    max_wait: StrictFloat = Field(3600, ge=0, description="longest wait for rate limits, in seconds")
    patience: StrictFloat = Field(60, ge=0, description="seconds of nothing but faults after which a teacher is dead")
