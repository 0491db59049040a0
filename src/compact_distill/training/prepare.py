"""What a run is made of, read and checked once: validate, dry run, training and evaluation use the same `Prepared`."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from compact_distill.answers import choices_of
from compact_distill.config.models import CompatibilityConfig, RunConfig
from compact_distill.data import load_instances
from compact_distill.data.write import ProblemSize, nothing_left
from compact_distill.errors import DataError, InputError
from compact_distill.evaluation.examine import Exam, prepare_exam
from compact_distill.method.encode import EncodedProblem, Encoder, thinking_spans
from compact_distill.method.scores import Scorer
from compact_distill.method.weights import may_skip
from compact_distill.records import Instance, Problem, RationaleStatus
from compact_distill.runs.files import content_hash, fingerprint, output_problem
from compact_distill.runs.folder import RunFolder
from compact_distill.students.identity import pin_student, student_hash
from compact_distill.students.load import adapter_base, check_student, load_tokenizer
from compact_distill.students.prompt import hardest, pattern_problems, prompt_problems
from compact_distill.teachers.stages import ProblemStream, check_teachers, problem_stream
from compact_distill.training.arguments import CompactConfig, setting_problems, settings_that_matter

_MEASURED_ALONE = 5000  # of fewer problems, other processes would only cost time
_MEASURED_TOGETHER = 500


@dataclass(frozen=True)
class Prepared:
    """A run before its first step: nothing of it needs to be read, checked or turned into tokens again.

    `instances` is empty where teachers have yet to be asked for their rationales.
    """

    config: RunConfig
    arguments: CompactConfig
    exam: Exam
    instances: tuple[Instance, ...]
    problems: ProblemStream | None = None  # what teachers are asked, where there are any
    commits: Mapping[str, str] = field(default_factory=dict)  # of the hub models that the student is loaded from

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """All that changes the student, part by part: no name, no path, nothing about speed or memory."""
        config = self.config
        student = Path(config.student)
        # An adapter folder is trained further as it is.
        lora = None if adapter_base(student) else config.lora and config.lora.model_dump(mode="json")
        return {
            "student": student_hash(student),
            "data": fingerprint([_plain(instance, config.weighting) for instance in self.instances]),
            "compatibility": _compatibility(config.compatibility),
            "weighting": config.weighting,
            "consistency": config.consistency,
            "lora": lora,
            "text": config.text.model_dump(mode="json"),
            "answers": config.answers.model_dump(mode="json"),
            "max_length": min(config.max_length, config.max_tokens_per_pass),
            "seed": config.seed,
            "train": settings_that_matter(config.train, self.arguments.world_size),
        }

    def with_rationales(self, instances: Sequence[Instance]) -> Prepared:
        """The same run once its teachers have answered; what they were asked about leaves the benchmarks.

        Raises:
            InputError: the student's tokenizer does not get through what they wrote.
        """
        wrong = _pattern_problems(self.config, instances)
        if wrong:
            raise InputError(wrong)
        return replace(self, instances=_examples(self.config, instances), exam=self.exam.apart_from(instances))

    @cached_property
    def encoder(self) -> Encoder:
        """Turns the instances into the student's tokens; loads its tokenizer."""
        return _encoder(self.config)

    @cached_property
    def scorer(self) -> Scorer:
        """Scores and weighs them; its rule says which problems are skipped."""
        return Scorer(self.config.compatibility, self.config.weighting, self.config.seed)

    @cached_property
    def encoded(self) -> tuple[EncodedProblem, ...]:
        """The instances as tokens, in order; made when they are first asked for, and kept."""
        return tuple(problem for _, problem in self.scorer.encode(self.encoder, self.instances))

    def sizes(self) -> Iterator[ProblemSize]:
        """What training would read, counted only, on all cores: for a look before it.

        Where the weight rule may skip problems, as tokens after all, for it looks at verdicts and weights.
        """
        if may_skip(self.scorer.rule):
            for _, problem in self.scorer.encode(self.encoder, self.instances):
                lengths = tuple(None if branch is None else len(branch) for branch in problem.branches)
                size = ProblemSize(
                    problem.teachers, problem.statuses, problem.answers_from, len(problem.prompt), lengths
                )
                yield replace(size, skipped=bool(problem.present) and not self.scorer.rule.candidates(problem))
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1  # forking is safe on Linux only
        if cores == 1 or len(self.instances) < _MEASURED_ALONE:
            yield from self.encoder.measure(self.instances)
            return
        encoder = self.encoder
        gc.freeze()  # a collection in a child would copy every page of the instances
        parts = range(0, len(self.instances), _MEASURED_TOGETHER)
        with multiprocessing.get_context("fork").Pool(cores, _take, (encoder, self.instances)) as pool:
            for sizes in pool.imap(_measure_part, parts):
                yield from sizes
        gc.unfreeze()


# What a forked process measures; it sees the instances without a copy.
_taken: list[Any] = []


def _take(encoder: Encoder, instances: tuple[Instance, ...]) -> None:
    _taken[:] = [encoder, instances]


def _measure_part(start: int) -> list[ProblemSize]:
    encoder, instances = _taken
    return list(encoder.measure(instances[start : start + _MEASURED_TOGETHER]))


def _compatibility(config: CompatibilityConfig) -> dict[str, Any]:
    """The settings; a file of scores by what it says, not by its name."""
    settings = config.model_dump(mode="json")
    source = settings.pop("scores_from")
    return settings | ({"scores": content_hash(source) if Path(source).is_file() else source} if source else {})


def _plain(instance: Instance, weighting: Any) -> list[Any]:
    """What training reads of an instance, as JSON; verdicts and weights only where the rule may look at them.

    Choices decide what a rationale's answer is ("frozen water" is the text of B).
    """
    kept = weighting not in ("compact", "equal", "random")
    rationales = [
        [r.teacher, r.sample, r.text, r.answer, r.answer_from, *((r.verdict, r.extra.get("weight")) if kept else ())]
        for r in instance.rationales
    ]
    choices = choices_of(instance.extra.get("choices"))
    return [instance.id, instance.question, instance.answer, rationales, *([choices] if choices else [])]


def prepare(config: RunConfig) -> Prepared:
    """Read and check everything that a run needs, before any work.

    Raises:
        InputError: with everything that would keep the run from working.
    """
    commits = pin_student(config)
    problems: ProblemStream | None = None
    instances: list[Instance] = []
    if config.teachers:
        wrong = check_student(config.student)
        try:
            problems = problem_stream(config)
            wrong += check_teachers(config, problems)
        except InputError as error:
            wrong += error.problems
    else:
        wrong, instances = read_sources(config)
    wrong += [] if wrong else _prompt_problems(config) + _pattern_problems(config, instances, problems or ())
    wrong += [] if wrong or config.teachers else _nothing_to_learn(config, instances)
    exam: Exam | None = None
    arguments: CompactConfig | None = None
    try:
        rule = Scorer(config.compatibility, config.weighting, config.seed).rule
        wrong += rule.check({name for instance in instances for name in instance.teachers})
    except InputError as error:
        wrong += error.problems
    try:
        exam = read_exam(config, instances)
    except InputError as error:
        wrong += [f"eval: {problem}" for problem in error.problems]
    if config.eval.every_epoch and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        wrong.append("eval.every_epoch works in one process only; use `compact eval RUN --checkpoint N` instead")
    wrong_output = output_problem(config.output) or _output_is_input(config)
    wrong += [wrong_output] if wrong_output else []
    try:
        arguments = training_arguments(config)
        wrong += setting_problems(arguments)
    except InputError as error:
        wrong += error.problems
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:  # as transformers has it
        wrong.append(f"train: transformers refuses these settings: {error}")
    if wrong or exam is None or arguments is None:
        raise InputError(wrong)
    return Prepared(config, arguments, exam, _examples(config, instances), problems, commits)


def _output_is_input(config: RunConfig) -> str | None:
    """Say so where the run would write what it reads, such as its own student."""
    folder = RunFolder(Path(config.output), None, {})
    student = Path(config.student)
    read = [student, *map(Path, config.rationales)]
    read += [Path(config.problems.path)] if config.problems else []
    read += [Path(teacher.path) for teacher in config.teachers if teacher.path]
    for path in read:
        written = folder.written_at(path, with_rationales=bool(config.teachers))
        if written is not None:
            return (
                f"output {config.output} would write {written}, which this run reads as {path}; "
                "choose another `output:`, and what is there stays"
            )
    return None


def _prompt_problems(config: RunConfig) -> list[str]:
    """What keeps the student's chat template from being filled in."""
    text = config.text
    messages = text.messages("What is 3 + 4?")
    tokenizer = load_tokenizer(config.student)
    found = prompt_problems(tokenizer, messages, text.template_options, text.close_thinking)
    return [f"student {config.student!r}: {problem}" for problem in found]


def _pattern_problems(config: RunConfig, instances: Sequence[Instance], problems: Iterable[Problem] = ()) -> list[str]:
    """What keeps the student's tokenizer, or a thinking expression, from getting through the data's texts."""
    texts = chain(
        (r.text for instance in instances for r in instance.rationales),
        (instance.question for instance in instances),
        (problem.question for problem in problems),
    )
    found = pattern_problems(load_tokenizer(config.student), texts)
    if found:
        return [f"student {config.student!r}: {problem}" for problem in found]
    try:
        for text in hardest(r.text for instance in instances for r in instance.rationales):
            thinking_spans(text, config.compatibility.thinking_expressions)
    except DataError as error:
        return [f"compatibility.{problem}" for problem in error.problems]
    return []


def _encoder(config: RunConfig) -> Encoder:
    return Encoder(
        load_tokenizer(config.student),
        config.text,
        min(config.max_length, config.max_tokens_per_pass),
        config.compatibility.thinking_expressions,
        config.answers.infer,
    )


def _nothing_to_learn(config: RunConfig, instances: Sequence[Instance]) -> list[str]:
    """Say so where no rationale takes part, such as one whose answer is found; looks no further than the first."""
    encoder = _encoder(config)
    statuses: Counter[RationaleStatus] = Counter()
    for instance in instances:
        for size in encoder.measure([instance]):
            if any(length is not None for length in size.lengths):
                return []
            statuses.update(size.statuses)
    return [nothing_left(statuses, encoder.max_length)]


def read_sources(config: RunConfig) -> tuple[list[str], list[Instance]]:
    """What is wrong with student and data, and the problems where nothing is."""
    wrong = check_student(config.student)
    try:
        return wrong, read_problems(config)
    except DataError as error:
        return wrong + error.problems, []


def read_instances(config: RunConfig) -> list[Instance]:
    """What is trained on of the rationales that exist already. Raises DataError with everything that is wrong."""
    return list(_examples(config, read_problems(config)))


def read_problems(config: RunConfig) -> list[Instance]:
    """The problems with those rationales, under ids of their own: benchmarks leave these out. Raises as above."""
    source = config.problems
    options: dict[str, Any] = (
        {} if source is None else {"problems": source.path, "limit": source.limit, "split": source.split}
    )
    return load_instances(config.rationales, require_rationale=False, **options)


def _examples(config: RunConfig, instances: Sequence[Instance]) -> tuple[Instance, ...]:
    """What batches count: the problems, or with `example: rationale` each rationale alone."""
    if config.example == "problem":
        return tuple(instances)
    return tuple(alone for instance in instances for alone in instance.apart())


def read_exam(config: RunConfig, trained_on: Sequence[Instance], only: Sequence[str] = ()) -> Exam:
    """The benchmarks, without what the student is trained on. Raises InputError with everything that is wrong."""
    return prepare_exam(config.eval, config.text, config.seed, trained_on, only)


def training_arguments(config: RunConfig) -> CompactConfig:
    """The trainer's settings. Raises what transformers raises where settings do not go together."""
    folder = RunFolder(Path(config.output), None, {})
    return CompactConfig(
        output_dir=str(folder.student_path),
        trace=str(folder.scores_path),
        seed=config.seed,
        compatibility=config.compatibility,
        weighting=config.weighting,
        consistency=config.consistency,
        text=config.text,
        infer_answers=config.answers.infer,
        max_length=config.max_length,
        max_tokens_per_pass=config.max_tokens_per_pass,
        **{"disable_tqdm": True, "dataloader_pin_memory": torch.cuda.is_available(), **config.train},
    )
