"""The YAML a user writes, as typed models: defaults are the published runs' settings (arXiv 2601.13992).

Every error of a file is reported at once; unknown and duplicate keys are errors that name the nearest valid key.
This module imports neither torch nor transformers, so `compact validate` and `--help` answer at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from compact_distill.errors import ConfigError, nearest


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class CompatibilityConfig(_Strict):
    """How a rationale's weight is computed from its scores (design: Weights; paper section 3.2)."""

    consensus: float = Field(1.0, description="coefficient of the consensus score; 0 turns it off")
    adaptability: float = Field(1.0, description="coefficient of the adaptability score; 0 turns it off")
    difficulty: float = Field(0.5, description="coefficient of the difficulty score (it lowers the weight); 0: off")
    temperature: float = Field(1.0, gt=0, description="softmax temperature; 1.0 means no sharpening")
    estimator: Literal["lens", "probe"] = Field("lens", description="how the belief in the gold answer is read")
    gain: Literal["positive", "net", "peak"] = Field("positive", description="sum of rises, end - start, largest rise")
    off_weight: float = Field(0.1, ge=0, description="lens: weight of tokens outside thinking expressions")
    max_probes: int = Field(16, ge=2, description="probe: most probe points a rationale")
    pool: Literal["last", "attention"] = Field("last", description="consensus: which hidden state stands for a path")
    normalise: Literal["problem", "running"] = Field("problem", description="standardise scores by problem or run")
    thinking_expressions: tuple[str, ...] = Field((), description="extra thinking expressions, as regular expressions")
    extra_scores: dict[str, float] = Field({}, description="coefficients of user-registered scores, by name")

    @field_validator("thinking_expressions")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                empty = re.compile(pattern).match("") is not None
            except re.error as error:
                raise ValueError(f"must be regular expressions, got {pattern!r}: {error}; escape special signs")
            if empty:
                raise ValueError(f"must not match the empty string, got {pattern!r}; write at least one character")
        return patterns


class TextConfig(_Strict):
    """How a problem and a rationale become text (design: Text to tokens)."""

    prompt_template: str = Field("Question: {question}\nAnswer:", description="used without a chat template")
    answer_template: str = Field("The answer is {answer}.", description="the answer segment's sentence")

    @model_validator(mode="after")
    def _fields_present(self) -> TextConfig:
        for name, placeholder in (("prompt_template", "{question}"), ("answer_template", "{answer}")):
            template = getattr(self, name)
            if template.count(placeholder) != 1:
                raise ValueError(f"{name} must hold {placeholder} exactly once, got {template!r}")
        return self


class LoraConfig(_Strict):
    """Low-rank adapters on all attention and MLP projections; `lora: null` trains all weights."""

    r: int = Field(16, ge=1, description="rank")
    alpha: float = Field(32, gt=0, description="scale; the update is multiplied by alpha / r")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the adapter's input")


class ProblemsConfig(_Strict):
    """Where the problems are: a JSONL or Parquet file, a datasets folder or a hub name."""

    path: str
    split: str = "train"
    limit: int | None = Field(None, ge=1, description="take the first N problems")


class TeacherConfig(_Strict):
    """One teacher: the name in the store, and how it is reached."""

    name: str = Field(min_length=1)
    backend: Literal["openai", "transformers", "jsonl", "lab"] = "openai"
    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = Field(None, description="name of the environment variable that holds the key")


class EvalConfig(_Strict):
    """Benchmarks that should improve, and those that must not be forgotten."""

    learned: tuple[str, ...] = ()
    retained: tuple[str, ...] = ()
    limit: int | None = Field(None, ge=1, description="rows per benchmark")


class RunConfig(_Strict):
    """One training run, from problems and rationales to a better student."""

    student: str = Field(description="hub name or folder of the student")
    problems: ProblemsConfig | None = None
    teachers: tuple[TeacherConfig, ...] = ()
    rationales: str | tuple[str, ...] | None = Field(None, description="training data or stores that exist already")
    output: str = Field("runs/compact", description="the run folder")
    compatibility: CompatibilityConfig = CompatibilityConfig()
    consistency: float = Field(0.1, ge=0, description="lambda of the consistency term")
    lora: LoraConfig | None = LoraConfig()
    text: TextConfig = TextConfig()
    max_length: int = Field(2560, ge=2, description="tokens of prompt + completion; longer rationales are dropped")
    max_tokens_per_pass: int = Field(16384, ge=2, description="tokens the student reads at once; bounds memory")
    seed: Annotated[int, Field(ge=0)] = 42
    train: dict[str, Any] = Field({}, description="transformers.TrainingArguments, by its own names")
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _has_rationales(self) -> RunConfig:
        if self.rationales is None and not self.teachers:
            raise ValueError("needs `rationales: FILE` (they exist already) or `teachers:` (to be asked); got neither")
        if self.teachers and self.problems is None:
            raise ValueError("`teachers:` needs `problems: {path: FILE}`: what shall they be asked?")
        names = [t.name for t in self.teachers]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"teachers must have different names, got {twice[0]!r} twice; rename one")
        return self


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader keeps the last of duplicate keys silently; this one refuses them."""


def _construct_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} stands twice; keep one of them")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
