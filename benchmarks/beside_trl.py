"""A step of a study's arms beside TRL's SFTTrainer, on the study's own student, rationales, adapters and settings.

`python benchmarks/step.py --study FOLDER` comes here; FOLDER is that of a study whose runs are done. Writes trl.json
into it, and the study's page again, which shows it. What is read is what the runs read: where student or data have
changed since, it says so and stops.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compact_distill.config.file import load_config
from compact_distill.config.models import RunConfig
from compact_distill.errors import ConfigError
from compact_distill.evaluation.examine import Exam
from compact_distill.method.encode import EncodedProblem
from compact_distill.method.passes import ProblemDataset
from compact_distill.runs.environment import accelerator
from compact_distill.runs.files import atomic_write, fingerprint
from compact_distill.runs.progress import text_table
from compact_distill.students.load import adapter_base, load_student
from compact_distill.study.arms import REFERENCES
from compact_distill.study.jobs import hold
from compact_distill.study.material import evenly
from compact_distill.study.page import write_page
from compact_distill.study.training import STEP_TIMES, StepTimes, Timed, ingredients
from compact_distill.training.prepare import Prepared, read_instances, training_arguments
from compact_distill.training.run import adapter_settings
from compact_distill.training.trainer import CompactTrainer
from contenders import BUILDERS, Builder
from measure import describe_machine
from race import Entry, Race, race
from workload import Workload

# TRL's settings, as the page calls them.
IN_WORDS = {
    "trl-single": "TRL, one sequence at a time",
    "trl-padded": "TRL, four padded together",
    "trl-padded-16": "TRL, a step padded together",
    "trl-packed": "TRL, packed",
}
ROUNDS, STEPS = 3, 2  # rounds that are timed, optimizer steps in each, where nothing else is said
_ARM = "arm:"  # no name of an arm holds a colon
# What says that two arms read the same with the same adapters, so that TRL's step is one for both.
_ALIKE = ("student", "rationales", "problems", "lora", "text", "answers", "max_length", "max_tokens_per_pass")
_COSTS = ("bf16", "gradient_checkpointing", "optim")  # of `train`, what a step's time and memory hang on
# How a trainer's problems or rows become steps: TRL reads rows.
_BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy",
            "remove_unused_columns")  # fmt: skip


@dataclass(frozen=True)
class StudySetup:
    """The study's student and settings of training; `base` is what TRL trains with."""

    base: RunConfig
    arms: Mapping[str, RunConfig]
    device: str
    rounds: int

    @property
    def dtype(self) -> torch.dtype:
        """What is multiplied."""
        return torch.bfloat16 if self.base.train.get("bf16") else torch.float32

    @property
    def tokenizer(self) -> str:
        """Of the student."""
        return self.base.student

    def model(self) -> Any:
        """The student, in the precision that a run trains it in."""
        return load_student(self.base.student, "auto" if self.base.lora else torch.float32, self.device)[0]

    def adapter(self) -> Any:
        """The study's adapters."""
        return None if adapter_base(self.base.student) else adapter_settings(self.base.lora, None)

    def overrides(self) -> dict[str, Any]:
        """Settings that a race needs otherwise than a run; what the student learns does not matter here."""
        return {
            "num_train_epochs": self.rounds + 1,
            "max_steps": -1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": self.device == "cpu",
            "dataloader_pin_memory": self.device == "cuda",
        }

    def arguments(self, folder: str) -> dict[str, Any]:
        """TRL's: the study's, also where TRL's own defaults are others than transformers'."""
        same = {"bf16": False, "gradient_checkpointing": False, "logging_steps": 1}
        own = {name: value for name, value in self.base.train.items() if name not in _BATCHES}
        return {**same, **own, **self.overrides(), "output_dir": folder, "seed": self.base.seed}

    def builder(self, contender: str) -> Builder:
        """An arm's trainer as a run has it, or one of TRL's."""
        return arm_builder(contender.removeprefix(_ARM)) if contender.startswith(_ARM) else BUILDERS[contender]

    def toy(self, workload: Workload) -> Workload:
        """Its first problem, since a rule may need verdicts and known teachers."""
        return Workload("rehearsal", workload.problems[:1], step=1)


def arm_builder(name: str) -> Builder:
    """The trainer of an arm of the study with all its settings, as a run has it."""

    def build(model: Any, tokenizer: Any, setup: Any, workload: Workload, folder: str) -> CompactTrainer:
        config = setup.arms[name]
        train = {**config.train, **setup.overrides()}
        args = training_arguments(config.model_copy(update={"output": folder, "train": train}))
        return CompactTrainer(
            model=model,
            args=args,
            train_dataset=ProblemDataset(workload.problems, args.max_length),
            processing_class=tokenizer,
            peft_config=setup.adapter(),
        )

    return build


def main(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Race the arms and TRL, and write what came out; returns 1 where one of them failed."""
    out: Path = options.study
    document, costs = (_read(out / name) for name in ("study.json", "costs.json"))
    names = arms_of(document, options.arms)
    runs = {name: out / next(iter(document["arms"][name]["runs"].values())) for name in names}
    with hold(out):
        arms = {name: load_config(run / "config.yaml") for name, run in runs.items()}
        alike(arms)
        base = arms[names[0]]
        setup = StudySetup(base, arms, options.device or accelerator(), options.rounds or ROUNDS)
        encoded = {name: as_it_trained(config, runs[name]) for name, config in arms.items()}
        step = problems_a_step(base)
        chosen = choose(list(encoded.values()), step, options.problems or STEPS * step)
        work = {name: Workload(name, tuple(own[problem] for problem in chosen), step) for name, own in encoded.items()}
        entries = [Entry(name, _ARM + name, own) for name, own in work.items()]
        entries += [Entry(IN_WORDS[name], name, work[names[0]]) for name in options.contenders if name in IN_WORDS]
        say(f"{len(chosen)} problems a round, {step} a step; {', '.join(entry.label for entry in entries)}")
        load = os.getloadavg()[0]
        found = times_of(
            race(entries, setup, say), work, setup, {name: ingredients(run) for name, run in runs.items()}, load
        )
        with atomic_write(out / STEP_TIMES) as file:
            file.write(found.model_dump_json(indent=1) + "\n")
        for line in table(found):
            say(line)
        say(f"study: {write_page(out, document, costs)} and {STEP_TIMES}")
    return 1 if found.failed else 0


def times_of(
    raced: Race, work: Mapping[str, Workload], setup: StudySetup, made_of: Mapping[str, dict[str, str]], load: float
) -> StepTimes:
    """What a race measured, as the study's page reads it. Raises ConfigError where all arms failed, or all of TRL."""
    first = next(iter(work.values()))
    failed = {name: str(own.failure).splitlines()[0] for name, own in raced.results.items() if own.failure}
    timed = {
        name: Timed(seconds=tuple(each * first.step for each in own.seconds), peak=max(0, own.peak))
        for name, own in raced.results.items()
        if not own.failure
    }
    arms, trl = ({name: own for name, own in timed.items() if (name in work) == ours} for ours in (True, False))
    if not arms or not trl:
        raise ConfigError(f"nothing can be compared: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")
    return StepTimes(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=describe_machine(setup.device),
        load=round(load, 2),
        problems=len(first.problems),
        step=first.step,
        rationales=len(first.problems[0].present),
        made_of={name: made_of[name] for name in arms},
        arms=arms,
        trl=trl,
        failed=failed,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); run `compact study` to its end first") from error


def arms_of(document: Mapping[str, Any], asked: Sequence[str]) -> list[str]:
    """The arms that are timed: those asked for, else those that others are compared with.

    Raises:
        ConfigError: an arm that the study does not have or that was not run, or one that does not train as an arm does.
    """
    done = [name for name, own in document["arms"].items() if own["runs"]]
    other = {"merge", "single", "mix", "example"}
    plain = [name for name in done if not other & set(document["arms"][name]["settings"])]
    wrong = [name for name in asked if name not in plain]
    if wrong or not plain:
        raise ConfigError(
            f"{', '.join(wrong) or 'no arm'} cannot be timed: its rationales must be the base's, and its run done; "
            f"such arms are {', '.join(plain) or 'none'}"
        )
    return list(asked) or [name for name in REFERENCES if name in plain] or plain[:1]


def alike(arms: Mapping[str, RunConfig]) -> None:
    """Raises ConfigError where arms differ in what one step of TRL's must be the same for."""
    (first, base), *others = arms.items()
    for name, config in others:
        differing = [key for key in _ALIKE if getattr(config, key) != getattr(base, key)]
        differing += [f"train.{key}" for key in _COSTS if config.train.get(key) != base.train.get(key)]
        differing += ["problems a step"] if problems_a_step(config) != problems_a_step(base) else []
        if differing:
            raise ConfigError(
                f"arm {name} differs from {first} in {', '.join(differing)}; time them one by one (--arms)"
            )


def problems_a_step(config: RunConfig) -> int:
    """Of an optimizer step, in one process."""
    return int(config.train["per_device_train_batch_size"]) * int(config.train["gradient_accumulation_steps"])


def as_it_trained(config: RunConfig, run: Path) -> dict[str, EncodedProblem]:
    """What a run trained on, as tokens, by the problem's id. Raises ConfigError where student or data have changed."""
    no_exam = Exam((), config.eval, config.text, config.seed)
    prepared = Prepared(config, training_arguments(config), no_exam, tuple(read_instances(config)))
    there = ingredients(run)
    here = {name: fingerprint(part) for name, part in prepared.made_of.items() if name != "seed"}
    if there != here:
        changed = ", ".join(name for name in here if here[name] != there.get(name)) or "of another version"
        raise ConfigError(f"{run} was trained with other inputs than are here now ({changed}); run the study again")
    dataset = ProblemDataset(prepared.encoded, prepared.encoder.max_length, prepared.scorer.rule)
    return {problem.id: problem for problem in dataset.problems}


def choose(encoded: Sequence[Mapping[str, EncodedProblem]], step: int, count: int) -> list[str]:
    """Ids of `count` problems that all arms train on, evenly spread, with as many rationales each as most have.

    So each step has as many rows for TRL as any other. Fewer where the study has fewer, always whole steps.
    """
    shared = [name for name in encoded[0] if all(name in own for own in encoded)]
    sizes = Counter(len(encoded[0][name].present) for name in shared)
    most = max(sizes, key=lambda size: (sizes[size], size), default=0)
    ids = [name for name in shared if len(encoded[0][name].present) == most]
    whole = min(count, len(ids)) // step * step
    if not whole:
        raise ConfigError(f"the study has {len(ids)} problems with {most} rationales each, but a step takes {step}")
    return [ids[index] for index in evenly(range(len(ids)), whole)]


def table(found: StepTimes) -> list[str]:
    """What was measured, as lines."""
    rows = [["", "seconds a step", "of TRL's fastest", "rounds", "GiB", "of its memory"]]
    for name, own in found.everyone.items():
        ratios, memory = found.ratios(name), found.memory_ratio(name)
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        rows.append([name, f"{own.median:.2f}", f"{statistics.median(ratios):.2f}", rounds, f"{own.peak / 2**30:.2f}",
                     "-" if memory is None else f"{memory:.2f}"])  # fmt: skip
    return text_table(rows)


def problems_of(options: argparse.Namespace, default: Callable[[str], Any]) -> list[str]:
    """What is wrong with the command line beside `--study`, or `--arms` without it."""
    if options.study is None:
        return ["--arms names arms of a study; give its folder with --study"] if options.arms else []
    others = ("quick", "dtype", "shape", "lora", "checkpointing", "sections", "lengths", "out")
    wrong = [f"--{name} has no effect with --study, which has the study's own; remove it"
             for name in others if getattr(options, name) != default(name)]  # fmt: skip
    if importlib.util.find_spec("trl") is None:
        wrong.append('--study compares with TRL, which is not installed: pip install "compact-distill[bench]"')
    if not any(name in IN_WORDS for name in options.contenders):
        wrong.append(f"--contenders must name one of TRL's with --study: {', '.join(IN_WORDS)}")
    return wrong
