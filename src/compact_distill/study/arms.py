"""What a study compares: arms as changes of one base configuration, checked all at once before any work.

An arm is a mapping of settings that replace the base's, and at most one of

    merge: METHOD     one student a teacher, merged (see merge.py); `density`, `rounds`, `steps` belong to it
    single: TEACHER   that teacher's rationales only; `best`: the teacher that does best on the tuning rows
    mix: long_short   one rationale a problem: the longest for every fifth problem, the shortest for the others

A plain mix is no such arrangement but a setting, `example: rationale`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StrictFloat, StrictInt, ValidationError, field_validator

from compact_distill.config.file import config_from, under_train
from compact_distill.config.models import OutputFolder, RunConfig
from compact_distill.config.yaml import Strict, messages, parse
from compact_distill.errors import ConfigError, nearest
from compact_distill.records import Instance
from compact_distill.runs.files import fingerprint

MergeMethod = Literal["task_arithmetic", "ties", "dare_ties", "dare_linear", "average", "mot"]
Mix = Literal["long_short"]
BEST = "best"
REFERENCES = ("equal", "compact")  # arms that the others are compared with, where a study has them
LONG_EVERY = 5  # long/short mix 1:4 (Li et al. 2025, arXiv 2502.12143)
MOT_STEPS = 50  # of a branch in a round, as published (arXiv 2509.08814), where no budget says how many

# Sections of the run whose keys are merged one by one; any other value of an arm replaces the base's whole.
_SECTIONS = ("compatibility", "train", "lora", "text", "problems")
# Settings that are one for all arms: what is compared hangs on them, or no student does.
_OF_THE_STUDY = ("student", "output", "seed", "teachers", "generation", "eval", "report", "card")
# Options of merges, and the methods that look at them.
_OF_MERGES: dict[str, tuple[MergeMethod, ...]] = {
    "density": ("ties", "dare_ties", "dare_linear"),
    "scale": ("task_arithmetic", "ties", "dare_ties", "dare_linear"),
    "rounds": ("mot",),
    "steps": ("mot",),
}
# What the budget decides, so that an arm must not.
_LENGTH = ("num_train_epochs", "max_steps")


_IN_WORDS = {
    "compact": "each rationale as much as it fits the student, by its scores",
    "equal": "all rationales of a problem the same",
    "random": "one rationale a problem, drawn anew each time",
    "verified": "right rationales only, all the same",
    "fixed": "fixed weights",
    "best": "one rationale a problem: the best by {}",
    "gate": "right rationales only, then as {}",
    "long_short": "one rationale a problem: the longest of every fifth, else the shortest",
}


class ArmOptions(Strict):
    """What an arm may say besides settings of the run."""

    merge: MergeMethod | None = Field(None, description="train one student a teacher, and merge them")
    density: StrictFloat = Field(0.5, gt=0, le=1, description="ties, dare: share of each change that is kept")
    scale: StrictFloat | None = Field(None, description="factor of the merged change; null: the method's own")
    rounds: StrictInt = Field(5, ge=1, description="mot: rounds of branches and average")
    steps: StrictInt | None = Field(
        None, ge=1, description="mot: steps a branch and round; null: as the budget says, else 50"
    )
    single: str | None = Field(None, min_length=1, description="train on this teacher alone; best: chosen on `tune`")
    mix: Mix | None = Field(None, description="another arrangement of the same rationales")


class StudyConfig(Strict):
    """A study: what is shared, what differs, how often."""

    base: str | dict[str, Any] = Field(description="the run that all arms start from: a YAML file, or its keys here")
    output: OutputFolder = Field("runs/study", description="folder of the study")
    arms: dict[str, dict[str, Any]] = Field(min_length=1, description="what is compared, by name")
    seeds: tuple[Annotated[StrictInt, Field(ge=0, lt=2**32)], ...] = Field(
        (0, 1, 2), min_length=1, description="every arm runs once with each"
    )
    budget: Literal["tokens", "steps", "none"] = Field(
        "tokens", description="equal for all arms: rationale tokens through the backward, or optimizer steps"
    )
    limit: StrictInt | None = Field(None, ge=1, description="take the first N problems of the rationales")
    tune: tuple[str, ...] = Field((), description="benchmarks on which a best single teacher is chosen")
    data: str | None = Field(None, min_length=1, description="folder where the base's files are looked for first")

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"must name each seed once, got {', '.join(map(str, twice))} twice; remove one of them")
        return seeds

    @field_validator("arms")
    @classmethod
    def _names_are_folders(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in arms:
            if not name or not all(sign.isalnum() or sign in "_-" for sign in name) or len(name) > 60:
                raise ValueError(f"must have names of letters, digits, - and _, got {name!r}; rename that arm")
        return arms


def settings_of(config: RunConfig) -> dict[str, Any]:
    """A run's settings as plain values, without its folder and its seed."""
    return config.model_dump(mode="json", exclude={"output", "seed"})


@dataclass(frozen=True)
class Arm:
    """One thing that is compared: the run's settings, and what is done beyond an ordinary run.

    `config` has no output and no seed of its own: each run of the arm gets them.
    """

    name: str
    config: RunConfig
    options: ArmOptions

    def in_words(self) -> str:
        """What the arm is, for readers who do not know its name."""
        options, rule = self.options, self.config.weighting
        if options.merge:
            return f"one student a teacher, merged ({options.merge})"
        if options.single:
            return f"{'the best teacher' if options.single == BEST else options.single} alone"
        if self.config.example == "rationale":
            return f"{'each' if rule == 'equal' else 'each right'} rationale an example of its own"
        name, argument = next(iter(rule.items())) if isinstance(rule, dict) else (rule, "")
        if options.mix:
            return _IN_WORDS[options.mix] + (", if it is right" if name in ("verified", "gate") else "")
        return _IN_WORDS.get(name, f"the weight rule {name}").format(argument)

    @property
    def made_of(self) -> dict[str, Any]:
        """All that makes this arm differ from another one, by its key; options without effect are null."""
        idle = {key: None for key, methods in _OF_MERGES.items() if self.options.merge not in methods}
        return {**settings_of(self.config), **self.options.model_dump(mode="json"), **idle}


@dataclass(frozen=True)
class Study:
    """A study that was read and checked as far as no data is needed."""

    config: StudyConfig
    arms: tuple[Arm, ...]
    base: RunConfig

    def only(self, arms: Sequence[str], seeds: Sequence[int]) -> Study:
        """The study with some of its arms and seeds; empty means all.

        Raises:
            ConfigError: an arm that the study does not have, a seed that is none or stands twice.
        """
        known = [arm.name for arm in self.arms]
        wrong = [f"no arm is named {name!r}; arms are {', '.join(known)}{nearest(name, known)}" for name in arms
                 if name not in known]  # fmt: skip
        wrong += [f"--seeds names {s} twice; name it once" for s in sorted(set(seeds)) if seeds.count(s) > 1]
        wrong += [
            f"--seeds must be from 0 to {2**32 - 1}, got {s}; choose another" for s in seeds if not 0 <= s < 2**32
        ]
        if wrong:
            raise ConfigError(wrong)
        kept = tuple(arm for arm in self.arms if not arms or arm.name in arms)
        config = self.config.model_copy(update={"seeds": tuple(seeds)}) if seeds else self.config
        return replace(self, arms=kept, config=config)


def load_study(path: str | Path, settings: Mapping[str, Any] | None = None, data: str | None = None) -> Study:
    """Read a study's YAML and make its arms.

    Args:
        path: the file.
        settings: values that replace those of the base, by dotted key.
        data: folder that replaces the file's `data`.

    Raises:
        ConfigError: everything that is wrong with the study, its base and its arms.
    """
    try:
        study = StudyConfig.model_validate(_read_yaml(Path(path), "study"))
    except ValidationError as error:
        raise ConfigError([f"{path}: {text}" for _, text in messages(error, StudyConfig)]) from error
    return make_study(study, settings, data)


def make_study(study: StudyConfig, settings: Mapping[str, Any] | None = None, data: str | None = None) -> Study:
    """The arms of a study that was read already; see `load_study`."""
    raw = study.base if isinstance(study.base, dict) else _read_yaml(Path(study.base), "base")
    folder = data or study.data
    if folder and not Path(folder).is_dir():
        raise ConfigError(f"data (or --data, COMPACT_DATA) must be a folder, got {folder!r}; name one, or leave it out")
    base_data = _found_in(Path(folder), raw) if folder else raw
    tune = tuple(_file_in(Path(folder), name) if folder else name for name in study.tune)
    study = study.model_copy(update={"tune": tune})
    try:
        base = config_from(base_data, settings)
    except ConfigError as error:
        raise ConfigError([f"base: {problem}" for problem in error.problems]) from error
    arms: list[Arm] = []
    wrong: list[str] = []
    for name, given in study.arms.items():
        try:
            arms.append(_arm(name, given, base_data, settings or {}, study))
        except ConfigError as error:
            wrong += [f"arm {name}: {problem}" for problem in error.problems]
    wrong += _without_effect(arms)
    if wrong:
        raise ConfigError(wrong)
    return Study(study, tuple(arms), base)


def _read_yaml(path: Path, what: str) -> dict[str, Any]:
    try:
        document = parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{what} {path} cannot be read ({error}); `compact init{' --study' * (what == 'study')}` writes one"
        ) from error
    except ConfigError as error:
        raise ConfigError([f"{path}, {problem}" for problem in error.problems]) from error
    if document.problems:
        raise ConfigError([f"{path}, line {line}: {problem}" for line, problem in document.problems])
    return document.data


def _arm(name: str, given: Mapping[str, Any], base: Mapping[str, Any], settings: Mapping[str, Any],
         study: StudyConfig) -> Arm:  # fmt: skip
    own = {key: value for key, value in given.items() if key in ArmOptions.model_fields}
    try:
        options = ArmOptions.model_validate(own)
    except ValidationError as error:
        raise ConfigError([text for _, text in messages(error, ArmOptions)]) from error
    changes = {key: value for key, value in given.items() if key not in own}
    started = _with(base, settings)  # what the command line sets is the base's: an arm's own word counts more
    if wrong := _misfits(options, changes, study, asks=bool(started.get("teachers"))):
        raise ConfigError(wrong)
    config = config_from(_changed(started, changes))
    if options.mix and config.example == "rationale":
        raise ConfigError(
            f"mix: {options.mix} needs a problem's rationales together; write `example: problem` in the arm"
        )
    return Arm(name, config, options)


def _misfits(options: ArmOptions, changes: Mapping[str, Any], study: StudyConfig, asks: bool) -> list[str]:
    """What an arm must not say: unknown keys, what is not its own to say, and what would do nothing."""
    kinds = [key for key in ("merge", "single", "mix") if getattr(options, key) is not None]
    wrong = []
    if len(kinds) > 1:
        wrong.append(f"must have at most one of merge, single and mix, got {' and '.join(kinds)}; keep one")
    for key, methods in _OF_MERGES.items():
        if options.merge not in methods and key in options.model_fields_set and getattr(options, key) is not None:
            wrong.append(f"{key} does nothing without `merge: {' | '.join(methods)}`; remove it")
    known = [*ArmOptions.model_fields, *RunConfig.model_fields]
    for key in changes:
        if key not in known:
            wrong.append(f"{key!r} is no setting of a run or an arm{nearest(key, known) or under_train(key)}")
        elif key in _OF_THE_STUDY:
            wrong.append(f"{key} is the study's own, and the same for all arms; remove it from the arm")
        elif asks and key in ("problems", "rationales"):
            wrong.append(f"{key} is not read: all arms read what the base's teachers write; remove it from the arm")
    train = changes.get("train")
    if study.budget != "none" and isinstance(train, dict) and (set_here := [key for key in _LENGTH if key in train]):
        wrong.append(
            f"train.{set_here[0]} is decided by `budget: {study.budget}`; set it in the base, or write `budget: none`"
        )
    if options.single == BEST and not study.tune:
        wrong.append("single: best is chosen on tuning rows; name benchmarks for it under `tune:`")
    return wrong


def _with(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The base with values set by dotted key."""
    data = dict(base)
    for dotted, value in settings.items():
        *parents, last = dotted.split(".")
        section = data
        for parent in parents:
            section[parent] = section = dict(section.get(parent) or {})
        section[last] = value
    return data


def _changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(base)
    for key, value in changes.items():
        before = changed.get(key)
        merged = key in _SECTIONS and isinstance(value, dict) and isinstance(before, dict)
        changed[key] = {**before, **value} if merged and isinstance(before, dict) else value
    return changed


def _without_effect(arms: Sequence[Arm]) -> list[str]:
    first: dict[str, str] = {}
    wrong = []
    for arm in arms:
        same = first.setdefault(fingerprint(arm.made_of), arm.name)
        if same != arm.name:
            wrong.append(f"arm {arm.name} is the same as arm {same}: its settings have no effect; remove one of them")
    return wrong


def _found_in(folder: Path, base: Mapping[str, Any]) -> dict[str, Any]:
    """The base with its files taken from `folder` where they are there; other names stay as they are."""
    data = dict(base)
    for section, keys in (("problems", ("path",)), ("eval", ("learned", "retained"))):
        if isinstance(data.get(section), dict):
            data[section] = {k: _file_in(folder, v) if k in keys else v for k, v in data[section].items()}
    return data | {"rationales": _file_in(folder, data["rationales"])} if "rationales" in data else data


def _file_in(folder: Path, name: Any) -> Any:
    """`csqa=FILE` and `FILE` with the file in `folder`, where it is there, or a list of such names."""
    if isinstance(name, list):
        return [_file_in(folder, each) for each in name]
    if not isinstance(name, str):
        return name
    task, equals, file = name.rpartition("=")
    inside = folder / file
    return f"{task}{equals}{inside}" if file and inside.exists() else name


# ---- the same rationales, arranged otherwise


def only_teacher(instances: Iterable[Instance], teacher: str) -> list[Instance]:
    """All problems, each with one teacher's rationales only; benchmarks leave out rows of those without any too."""
    return [replace(i, rationales=tuple(r for r in i.rationales if r.teacher == teacher)) for i in instances]


def long_short(instances: Iterable[Instance], tokens: Mapping[str, Sequence[int]]) -> list[Instance]:
    """One rationale a problem: the longest for a fifth of the problems (by the hash of their ids), else the shortest.

    Problems without a rationale that takes part stay, without any, and do not count for the fifth.

    Args:
        instances: problems.
        tokens: of each problem, by id: tokens of its rationales, 0 where one takes no part.
    """
    instances = list(instances)
    usable = [instance for instance in instances if any(tokens[instance.id])]
    order = sorted(usable, key=lambda instance: hashlib.sha256(instance.id.encode()).digest())
    long = {instance.id for instance in order[::LONG_EVERY]}
    mixed = []
    for instance in instances:
        present = [(count, k) for k, count in enumerate(tokens[instance.id]) if count]
        chosen = [] if not present else [max(present) if instance.id in long else min(present)]
        mixed.append(replace(instance, rationales=tuple(instance.rationales[k] for _, k in chosen)))
    return mixed


def as_row(instance: Instance) -> dict[str, Any]:
    """An instance as a line of training data."""
    rationales = [
        {**r.extra, "teacher": r.teacher, "sample": r.sample, "text": r.text, "answer": r.answer, "verdict": r.verdict,
         **({"answer_from": r.answer_from} if r.answer_from else {})}
        for r in instance.rationales
    ]  # fmt: skip
    own = {"id": instance.id, "question": instance.question, "answer": instance.answer, "rationales": rationales}
    return {**instance.extra, **own}


def study_template() -> str:
    """A commented study file, as `compact init --study` writes it."""
    return _TEMPLATE.format(merges=" | ".join(get_args(MergeMethod)))


_TEMPLATE = """\
# A study of compact-distill: arms x seeds, one table.   Start it:  compact study THIS_FILE --jobs 2
# Stopped or killed, the same command goes on. Relative paths start at the current folder.

base: run.yaml        # student, data, train, eval of all arms: a file (see `compact init`), or its keys here
output: runs/study    # every run is an ordinary run folder below it
# data: data          # folder where the base's files are looked for first; --data and COMPACT_DATA replace it

# An arm is what differs from the base. --arms runs some of them.
arms:
  compact: {{}}                       # the base as it is
  equal: {{weighting: equal}}         # plain averaging: the baseline
  verified: {{weighting: verified}}   # equal over the right rationales
  plain-mix: {{example: rationale, weighting: equal, consistency: 0.0}}   # each rationale an example of its own
  # paper: {{preset: paper}}
  # gate: {{weighting: {{gate: compact}}}}
  # grape: {{weighting: {{best: difficulty}}}}
  # ties: {{merge: ties, density: 0.5}}     # one student a teacher, merged: {merges}
  # one: {{single: best}}                   # one teacher alone: its name, or the best on `tune`
  # long: {{mix: long_short}}               # one rationale a problem: a fifth long, the others short

seeds: [0, 1, 2]
budget: tokens        # tokens | steps | none: what is equal for all arms that read other rationales than the base
# limit: 200          # take the first N problems
# tune: [tune.jsonl]  # benchmark for choosing a best single teacher; shares no row with eval
"""
