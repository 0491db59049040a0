"""What a benchmark is: a versioned definition of data, prompt, decoding, token limit and parser, kept as YAML.

The built-in ones are the files of `tasks/`. A user's own is such a file, or just a file of problems.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from compact_distill.config.yaml import messages, parse
from compact_distill.errors import ConfigError, nearest
from compact_distill.students.prompt import ends_in_time

_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)  # prompts are plain text
_PROGRAM = """
import json, sys
from jinja2.sandbox import SandboxedEnvironment
template, fields = json.loads(sys.stdin.read())
SandboxedEnvironment().from_string(template).render(fields)
"""
_PLAIN = re.compile(r"(?:(?!\{[{%])[\s\S]|\{\{\s*[\w.]+\s*\}\})*")  # nothing but text and values
_ENDS: dict[str, bool] = {}  # whether a template ended when it was tried
_FILE_SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet")
TEXT_SUFFIXES = (".txt", ".md")
"""Files of plain text: a text ends where a line is empty."""
_YOURS = "FILE"
"""Stands for the path in definitions that have no data of their own."""


class _Definition(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class TaskData(_Definition):
    """Where a task's rows are: a file, a `datasets` folder or a hub name (`path`), or the generated world (`lab`).

    `fields` makes the row's id, question, answer and text where they have other names; each is a Jinja template
    that sees the row's fields and its number `row` (from 0).
    """

    path: str | None = None
    lab: Literal["arithmetic", "facts", "yes_no"] | None = None
    split: str = "test"
    fields: dict[Literal["id", "question", "answer", "text"], str] = {}

    @field_validator("fields")
    @classmethod
    def _templates_compile(cls, fields: dict[str, str]) -> dict[str, str]:
        for template in fields.values():
            check_template(template)
        return fields

    @model_validator(mode="after")
    def _one_source(self) -> TaskData:
        if (self.path is None) == (self.lab is None):
            raise ValueError("needs `path` (a file, folder or hub name) or `lab`, and not both")
        return self


class Task(_Definition):
    """A benchmark. Who changes anything here but the data's place gives it a new version.

    `prompt` is a Jinja template of what the student is asked; it sees id, question, choices and the row's other
    fields. `kind` says how it is examined:

    - `generate`: the student writes an answer; its chat template or prompt template is put around the prompt. `parser`
      names the finders that look for the answer, one after the other (see `find_answer`). Temperature 0 is greedy
      decoding; `samples` answers are written for each row.
    - `choice`: of the row's choices (or those of `choices`, where it has none) the one counts as the student's answer
      that it finds most likely after the prompt, as `metric` measures it. `fewshot` solved examples stand before it.
      The prompt is read as it is, as lm-eval does by default; with `chat: true` in the student's chat template.
    - `likelihood`: how likely the student finds whole texts, read in windows of at most `window` tokens.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.\-]*$")
    version: int = Field(ge=1)
    kind: Literal["generate", "choice", "likelihood"] = "generate"
    data: TaskData
    prompt: str = "{{ question }}"
    parser: tuple[Literal["statement", "last_number", "choice", "yes_no"], ...] = Field(("statement",), min_length=1)
    max_new_tokens: int = Field(1024, ge=1)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    samples: int = Field(1, ge=1)
    choices: dict[str, str] = {}
    metric: Literal["acc", "acc_norm"] = "acc_norm"
    fewshot: int = Field(0, ge=0)
    chat: bool = False
    window: int = Field(2048, ge=2)

    @field_validator("prompt")
    @classmethod
    def _prompt_compiles(cls, prompt: str) -> str:
        return check_template(prompt)

    @model_validator(mode="after")
    def _samples_differ(self) -> Task:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples is {self.samples}, but with temperature 0 all are the same; set a temperature or samples to 1"
            )
        return self

    @model_validator(mode="after")
    def _settings_are_of_the_kind(self) -> Task:
        foreign = sorted(self.model_fields_set - _SETTINGS[self.kind] - {"name", "version", "kind", "data"})
        if foreign:
            raise ValueError(f"{', '.join(foreign)} says nothing where kind is {self.kind}; remove it")
        return self

    def definition(self) -> dict[str, Any]:
        """All that decides what is asked and how it counts, as plain JSON; not where the data is."""
        kind = {} if self.kind == "generate" else {"kind"}
        settings = self.model_dump(mode="json", include={"name", "version", *kind, *_SETTINGS[self.kind]})
        return {**settings, "data": self.data.model_dump(mode="json", exclude={"path"})}

    def changed(self, **settings: Any) -> Task:
        """The same task with other decoding settings; those that are None stay. Raises ConfigError."""
        given = {key: value for key, value in settings.items() if value is not None}
        return _validated({**self.model_dump(exclude_unset=True), **given}, f"task {self.name}")


_SETTINGS = {
    "generate": {"prompt", "parser", "max_new_tokens", "temperature", "top_p", "samples"},
    "choice": {"prompt", "choices", "metric", "fewshot", "chat"},
    "likelihood": {"window"},
}


def task_names() -> list[str]:
    """Names of the built-in tasks."""
    return sorted(_built_in_files())


def load_task(name: str) -> Task:
    """A task by its name: `gsm8k`, `gsm8k=FILE` (its definition, other data), `mine.yaml`, or `mine.jsonl`.

    A file of problems (also a `datasets` folder or a hub name such as `me/problems`) is asked as it stands: the
    question is the prompt. Of a file of plain text (`notes.txt`) the likelihood is measured.

    Raises:
        ConfigError: an unknown task, or a definition that breaks a rule.
    """
    known = _built_in_files()
    short, equals, source = name.partition("=")
    if short in known:
        task = _read(short, known[short])
        if equals and not source:
            raise ConfigError(f"task {name!r} names no data after '='; write {short}=FILE or {short} alone")
        if task.data.path == _YOURS and not equals:
            raise ConfigError(f"task {short} has no data of its own; write {short}=FILE")
        return task.model_copy(update={"data": TaskData(path=source)}) if equals else task
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return _read(name, _text_of(path))
    hub = re.fullmatch(r"[\w.\-]+/[\w.\-]+(?::[\w.\-]+)?", name)
    if path.suffix in (*_FILE_SUFFIXES, *TEXT_SUFFIXES) or path.exists() or hub:
        stem = re.sub(r"[^\w.\-]+", "_", path.stem).strip("._-") or "problems"
        kind = {"kind": "likelihood"} if path.suffix in TEXT_SUFFIXES else {}
        return _validated({"name": stem, "version": 1, "data": {"path": name}, **kind}, name)
    raise ConfigError(
        f"task must be one of {', '.join(known)}, or a file of problems or of a task; got {name!r}"
        f"{nearest(short, known) or '; check the name'}"
    )


def load_tasks(names: Iterable[str]) -> list[Task]:
    """Several tasks; everything that is wrong with any of them is told at once. Raises ConfigError."""
    wrong: list[str] = []
    tasks: list[Task] = []
    for name in names:
        try:
            task = load_task(name)
        except ConfigError as error:
            wrong += error.problems
            continue
        if any(task.name == other.name for other in tasks):
            wrong.append(f"task {task.name!r} stands twice; results are kept by name: remove or rename one ({name})")
        tasks.append(task)
    if wrong:
        raise ConfigError(wrong)
    return tasks


@cache
def _built_in_files() -> dict[str, str]:
    folder = resources.files("compact_distill.evaluation") / "tasks"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"task file {path} cannot be read: {error}; check the path") from error


def _read(name: str, text: str) -> Task:
    try:
        document = parse(text)
    except ConfigError as error:
        raise ConfigError([f"task {name}, {problem}" for problem in error.problems]) from error
    if document.problems:
        raise ConfigError([f"task {name}, line {line}: {problem}" for line, problem in document.problems])
    return _validated(document.data, f"task {name}")


def _validated(data: dict[str, Any], name: str) -> Task:
    try:
        return Task.model_validate(data)
    except ValidationError as error:
        raise ConfigError([f"{name}: {text}" for _, text in messages(error, Task)]) from error


def check_template(template: str) -> str:
    """Return the template. Raises ValueError where it cannot be compiled."""
    try:
        _compiled(template)
    except TemplateError as error:
        raise ValueError(f"must be a Jinja template, got {template!r:.80}: {error}; mend it")
    return template


def render(template: str, fields: Mapping[str, Any]) -> str:
    """Fill in a template. Raises ValueError where it names what the fields do not hold, never ends, or fails otherwise.

    It is a user's program, or a stranger's: what it is first filled in with is tried in a process that is killed after
    20 seconds, unless it only puts values in.
    """
    if not _PLAIN.fullmatch(template) and template not in _ENDS:
        _ENDS[template] = ends_in_time(_PROGRAM, json.dumps([template, fields], default=str))
    if not _ENDS.get(template, True):
        raise ValueError(f"template {template!r:.80} must end within 20 seconds, but did not; write it without loops")
    try:
        return _compiled(template).render(fields)
    except Exception as error:  # a template may do anything to a value
        raise ValueError(f"template {template!r:.80}: {error}") from error


@lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)
