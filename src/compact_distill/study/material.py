"""What arms train on: the same rationales arranged otherwise, and how long, so that all arms have an equal budget.

Also what a study reads, whether an arm can work on it, and whether a folder is the study's.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from compact_distill.config.models import RunConfig
from compact_distill.data.write import optimizer_steps
from compact_distill.errors import ConfigError, InputError, RunError
from compact_distill.evaluation.examine import Exam
from compact_distill.evaluation.task import load_task
from compact_distill.evaluation.task_rows import Training
from compact_distill.method.encode import Encoder
from compact_distill.pipeline import changed_keys
from compact_distill.records import Instance
from compact_distill.runs.files import atomic_write, content_hash, fingerprint, json_line
from compact_distill.runs.progress import say
from compact_distill.students.identity import student_hash
from compact_distill.students.load import load_tokenizer
from compact_distill.study.arms import (
    BEST,
    Arm,
    ArmOptions,
    Mix,
    Study,
    as_row,
    long_short,
    only_teacher,
    settings_of,
)
from compact_distill.training.prepare import Prepared, read_exam, read_instances, read_problems

_FORMAT = 1
_WORK = ("teachers", "base", "arms")  # folders that the first finished or begun step makes


@dataclass(frozen=True)
class Material:
    """Rationales that runs train on.

    Attributes:
        instances: problems with their rationales.
        tokens: rationale tokens of an epoch: of those that take part in training.
        problems: how many have one.
        source: what a configuration names to read it: `rationales` and `problems`; empty: as it names them itself.
    """

    instances: tuple[Instance, ...]
    tokens: int
    problems: int
    source: dict[str, Any]

    @property
    def teachers(self) -> list[str]:
        """Names of all teachers, in the order of their first appearance."""
        return teachers_of(self.instances)


class Workshop:
    """Arranges material and fits runs to the budget of the base.

    A token counts for the budget when its rationale is read with a backward, whatever weight a rule then gives it.

    Args:
        folder: where arrangements are written.
        budget: what is equal.
        base: the run that sets the budget.
    """

    def __init__(self, folder: Path, budget: Literal["tokens", "steps", "none"], base: RunConfig) -> None:
        self._folder = folder
        self._budget = budget
        self._base = base
        self._read: dict[str, tuple[list[Instance], dict[str, list[int]]]] = {}
        self._first: dict[str, str] = {}
        self._made: dict[tuple[str, ...], Material] = {}

    def first(self, config: RunConfig, count: int | None) -> RunConfig:
        """The configuration with the first `count` problems of what it reads; None: all."""
        if count is None:
            return config
        key = self._key(config)
        if key not in self._first:
            self._first[key] = self._written(read_problems(config)[:count], f"first-{count}")
        return config.model_copy(update={"rationales": (self._first[key],), "problems": None})

    def material(self, config: RunConfig, mix: Mix | None = None, teacher: str | None = None) -> Material:
        """What a configuration reads, as it is, mixed, or of one teacher; arrangements are written as files."""
        asked = (self._key(config), mix or "", teacher or "")
        if asked not in self._made:
            source: dict[str, Any] = {}
            if mix or teacher:
                problems, lengths = self._lengths(config.model_copy(update={"example": "problem"}))
                arranged = only_teacher(problems, teacher) if teacher else long_short(problems, lengths)
                source = {"rationales": (self._written(arranged, mix or slug(teacher or "")),), "problems": None}
            instances, tokens = self._lengths(config.model_copy(update=source))
            used = tokens.values()
            self._made[asked] = Material(tuple(instances), sum(map(sum, used)), sum(map(any, used)), source)
        return self._made[asked]

    def fitted(
        self, config: RunConfig, material: Material, run: Path, seed: int, parts: int = 1, share_of_own: bool = False
    ) -> RunConfig:
        """A run on this material, as long as the budget allows.

        Args:
            config: the arm's settings.
            material: what it reads.
            run: its run folder.
            seed: of the run.
            parts: into how many runs, one after the other, the budget is divided.
            share_of_own: the budget is that of the material alone, as for one branch of several.
        """
        base = self.material(self._base)
        train = dict(config.train)
        epochs = _epochs(self._base, base.problems)
        if self._budget == "tokens" and material.tokens:
            whole = 1.0 if share_of_own else base.tokens / material.tokens
            if whole != 1 or parts != 1 or _epochs(config, material.problems) != epochs:  # other steps
                train = {**train, "num_train_epochs": round(epochs * whole / parts, 4), "max_steps": -1}
        elif self._budget == "steps":
            steps = optimizer_steps(base.problems, self._base.train)
            if share_of_own:
                steps = round(steps * material.tokens / base.tokens)
            other = parts != 1 or share_of_own or optimizer_steps(material.problems, train) != steps
            if other or _may_skip(config):
                train["max_steps"] = max(1, round(steps / parts))
        return config.model_copy(update={**material.source, "output": str(run), "seed": seed, "train": train})

    def _lengths(self, config: RunConfig) -> tuple[list[Instance], dict[str, list[int]]]:
        key = self._key(config)
        if key not in self._read:
            instances = read_instances(config)
            self._read[key] = instances, self._encode(config, instances)
        return self._read[key]

    def _encode(self, config: RunConfig, instances: Sequence[Instance]) -> dict[str, list[int]]:
        """Tokens of each problem's rationales, by the problem's id; 0 where one takes no part."""
        longest = min(config.max_length, config.max_tokens_per_pass)
        words = config.compatibility.thinking_expressions
        encoder = Encoder(load_tokenizer(config.student), config.text, longest, words, config.answers.infer)
        return {p.id: [0 if b is None else len(b) for b in p.branches] for p in encoder.encode_all(instances)}

    def _key(self, config: RunConfig) -> str:
        read = {"student", "rationales", "problems", "example", "text", "answers", "max_length", "max_tokens_per_pass"}
        return fingerprint(config.model_dump(mode="json", include=read))

    def _written(self, instances: Sequence[Instance], name: str) -> str:
        rows = [as_row(instance) for instance in instances]
        path = self._folder / f"{name}-{fingerprint(rows)[:8]}.jsonl"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.writelines(json_line(row) for row in rows)
        return str(path)


def arm_problems(arm: Arm, prepared: Prepared, exam: Exam | None) -> list[str]:
    """Why an arm cannot work on a run's rationales or, where its teachers have yet to be asked, on theirs.

    `exam` is what the base is asked; None: not known.
    """
    exams = (exam or prepared.exam, prepared.exam)
    base, own = ({rows.task.name: rows.hash for _, rows in asked.rows} for asked in exams)
    if others := ", ".join(sorted(name for name in {*base, *own} if base.get(name) != own.get(name))):
        return [
            f"{others}: this arm would be asked other rows than the base, since rows of its training are left out and "
            "it has other problems; give it rationales of the base's problems, or benchmarks without them"
        ]
    asked = list(dict.fromkeys(teacher.name for teacher in prepared.config.teachers))
    teachers = asked or teachers_of(prepared.instances)
    if (arm.options.merge or arm.options.single == BEST) and len(teachers) < 2:
        what = "merge" if arm.options.merge else "choice of the best single teacher"
        return [f"a {what} needs at least two teachers, but the rationales are all of {', '.join(teachers)}"]
    if arm.options.single not in (None, BEST) and arm.options.single not in teachers:
        return [f"no rationale is of teacher {arm.options.single!r}; teachers are {', '.join(teachers)}"]
    if asked or not prepared.scorer.needs_verdicts:
        return []
    if any(prepared.scorer.rule.candidates(problem) for problem in prepared.encoded):
        return []
    return [
        f"weighting {prepared.config.weighting} needs gold answers, but no rationale is right by them; give "
        "problems with gold answers, or another rule"
    ]


def contents_of(study: Study) -> dict[str, str]:
    """Hashes of all files and student folders that base, arms and benchmarks name; what is on a hub has none here."""
    configs = [study.base, *(arm.config for arm in study.arms)]
    files = set().union(*map(_files_of, configs))
    for name in (*study.base.eval.learned, *study.base.eval.retained, *study.config.tune):
        # A benchmark's own name is no file.
        files |= {file for file in (name, name.rpartition("=")[2]) if Path(file).is_file()}
        with contextlib.suppress(ConfigError):  # told with all else that is wrong
            files.add(load_task(name).data.path)  # a folder too, and what a benchmark's YAML file names
    found = _hashes(files)
    folders = sorted({config.student for config in configs if Path(config.student).is_dir()})
    return found | {name: student_hash(name) for name in folders}


def _files_of(config: RunConfig) -> set[str | None]:
    sources = {source.path for source in (config.problems, *config.teachers) if source}
    return {*config.rationales, config.compatibility.scores_from, *sources}


def _hashes(files: Iterable[str | None]) -> dict[str, str]:
    return {name: content_hash(name) for name in sorted(filter(None, files)) if Path(name).exists()}


def changed_since(study: Study, out: Path) -> dict[str, str]:
    """The arms whose settings or data are others than the folder notes of them (see `same_study`), with the reason."""
    noted = json.loads((out / "inputs.json").read_text(encoding="utf-8"))
    changed = {}
    for arm in study.arms:
        differing = _changed(noted["arms"].get(arm.name, arm.made_of), arm.made_of)
        own = _hashes(_files_of(arm.config) - _files_of(study.base))  # the base's are the folder's
        differing += [name for name, digest in own.items() if noted["data"].get(name, digest) != digest]
        if differing:
            changed[arm.name] = f"it was something else when {out} was made ({', '.join(differing)} differ)"
    return changed


def same_study(study: Study, out: Path, threads: int) -> int:
    """Note what the study is made of, or check that it is the one of this folder; returns the threads a step gets.

    Arms and seeds can be added; an arm of the same name must stay what it was, and so must what files and student
    folders hold, since a finished run is not looked into again. Threads stay as at first: they decide the last digits.
    A study that has done no work yet may become any other. A setting that is newer than the folder had its default.
    """
    made_of: dict[str, Any] = {
        "format": _FORMAT,
        "base": settings_of(study.base),
        "data": contents_of(study),
        "budget": study.config.budget,
        "limit": study.config.limit,
        "tune": list(study.config.tune),
        "arms": {arm.name: arm.made_of for arm in study.arms},
        "threads": threads,
    }
    path = out / "inputs.json"
    if path.exists() and any((out / name).exists() for name in _WORK):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            differing = [key for key in ("format", "budget", "limit", "tune") if before[key] != made_of[key]]
            differing += [f"base.{key}" for key in _changed(before["base"], made_of["base"])]
            known = before["data"]
            differing += [name for name, digest in made_of["data"].items() if known.get(name, digest) != digest]
            made_of["data"] = {**known, **made_of["data"]}
            changed = {name: _changed(before["arms"].get(name, now), now) for name, now in made_of["arms"].items()}
            made_of["arms"] = {**before["arms"], **made_of["arms"]}
            made_of["threads"] = before["threads"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is damaged ({error!r}); choose another `output:`") from error
        if differing:
            differ = ", ".join(differing)
            raise ConfigError(f"{out} belongs to another study ({differ} differ); choose another `output:`")
        if any(changed.values()):
            raise ConfigError(
                [f"arm {name} was something else when {out} was made ({', '.join(keys)} differ); give it another name, "
                 "or choose another `output:`" for name, keys in changed.items() if keys]
            )  # fmt: skip
    if made_of["threads"] != threads:
        say(f"study: {made_of['threads']} threads a step, as at its first start, so that results stay the same")
    with atomic_write(path) as file:
        json.dump(made_of, file, indent=1)
        file.write("\n")
    return int(made_of["threads"])


def _changed(before: Any, now: dict[str, Any]) -> list[str]:
    """The keys in which a base or an arm is not what was noted of it."""
    options = {key: now[key] for key in ArmOptions.model_fields if key in now}
    settings = {key: value for key, value in now.items() if key not in options}
    if isinstance(before, str):  # an arm as older folders note it
        return [] if before == fingerprint([settings, options]) else ["its settings"]
    own = {key: value for key, value in before.items() if key not in options}
    with contextlib.suppress(ValidationError):  # a setting is gone: that is what differs
        own = settings_of(RunConfig.model_validate(own))
    return changed_keys({**before, **own}, now)


def study_exam(config: RunConfig, study: Study, wrong: list[str]) -> Exam | None:
    """A study's benchmarks, None where they cannot be read; what is wrong with them is added to `wrong`.

    Tuning and test rows must differ.
    """
    try:
        instances = [] if config.teachers else read_problems(config)
        test = read_exam(config, instances)
        tunes = config.model_copy(update={"eval": study.base.eval})  # with the limits of tuning rows
        tuning = read_exam(tunes, instances, study.config.tune) if study.config.tune else None
    except InputError as error:
        wrong += [f"base: {problem}" for problem in error.problems]
        return None
    seen = Training([row for _, rows in tuning.rows for row in rows.rows] if tuning else [])
    for _, rows in test.rows:
        shared = [row.id for row in rows.rows if seen.holds(row)]
        if shared:
            wrong.append(
                f"tune: {len(shared)} rows of {rows.task.name} are tuning rows too ({shared[0]!r} is one), so what is "
                "chosen on them would be reported on them; give other rows"
            )
    return test


def teachers_of(instances: Iterable[Instance]) -> list[str]:
    """Names of all teachers with a rationale, in the order of their first appearance."""
    return list(dict.fromkeys(r.teacher for instance in instances for r in instance.rationales if r.text))


def evenly(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spread over them, the first among them."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def slug(name: str) -> str:
    """A name as part of a file's name; different names stay different."""
    plain = re.sub(r"[^\w.\-]+", "_", name).strip("._")[:60]
    return plain if plain == name else f"{plain}-{fingerprint(name)[:6]}"


def _may_skip(config: RunConfig) -> bool:
    """Whether the weight rule may skip problems, so that an epoch may have fewer steps than problems suggest."""
    rule = config.weighting
    return (rule if isinstance(rule, str) else next(iter(rule))) not in ("compact", "equal", "random", "best")


def _epochs(config: RunConfig, problems: int) -> float:
    """Epochs of a run, also where it says steps."""
    steps = config.train.get("max_steps", -1)
    if steps is None or steps <= 0:
        return float(config.train["num_train_epochs"])
    per_epoch = optimizer_steps(problems, {**config.train, "max_steps": -1, "num_train_epochs": 1})
    return float(steps / per_epoch)
