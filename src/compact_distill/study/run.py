"""Run a study: arms x seeds as ordinary run folders, several at a time, each step a process of its own.

    OUT/inputs.json              what the study is made of; another study is refused
    OUT/base/                    results of the base, evaluated once and copied into every run
    OUT/teachers/                where the base asks teachers: one run, whose rationales all share
    OUT/data/, OUT/configs/      the same rationales arranged for single teachers, unions, mixes; a YAML for each run
    OUT/arms/ARM/seed-N/         run folders; OUT/singles and OUT/branches: of one teacher alone
    OUT/logs/                    what each step printed
    OUT/study.csv, study.json, costs.json, study.html    the result (findings.py)

Killed anywhere, the same command goes on: every step goes on from its own run folder, and a run that is finished is
not started again. A step ends with the study that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from compact_distill.config.file import dump_config, load_config
from compact_distill.config.models import RunConfig
from compact_distill.errors import InputError, RunError
from compact_distill.evaluation.examine import examine_student, own_limits, trained_subject
from compact_distill.evaluation.harness import Subject
from compact_distill.evaluation.result_files import damage_of_student, damaged_results
from compact_distill.runs.files import atomic_write, fingerprint
from compact_distill.runs.folder import RunFolder
from compact_distill.students.identity import student_hash
from compact_distill.study.arms import BEST, MOT_STEPS, Arm, Study
from compact_distill.study.findings import Outcome, tune_value, with_the_rest
from compact_distill.study.jobs import THREADS, StudyStep, hold, run_jobs, threads_a_step
from compact_distill.study.material import Workshop, arm_problems, same_study, slug, study_exam
from compact_distill.training.prepare import prepare, read_exam, read_problems

_COMPACT = "compact_distill.cli:app"


def run_study(study: Study, jobs: int = 1, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> Outcome:
    """Run what is not done yet of a study.

    Args:
        study: what it compares.
        jobs: how many steps at a time; the cores are divided among them, unless the environment says how many threads.
        arms: run these only; empty means all.
        seeds: run these only.

    Returns:
        The run folder of every arm and seed that was asked for or is finished as the study has it now, and what failed
        with the reason.

    Raises:
        InputError: everything that is wrong, before any work.
        RunError: the folder belongs to another study, or to a process that still runs.
    """
    out = Path(study.config.output)
    asked = study.only(arms, seeds)
    with hold(out) as lock:
        threads = same_study(asked, out, threads_a_step(jobs))
        environment = {**dict.fromkeys(THREADS, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
        plan = Plan(asked, out)
        if study.base.teachers:
            plan.check(before_asking=True)
            if failed := run_jobs([plan.ask_teachers()], 1, environment, out / "logs", lock):
                raise RunError(f"the teachers could not be asked: {failed['teachers']}")
        plan.check()
        failed = run_jobs(plan.jobs(), jobs, environment, out / "logs", lock)
        outcome = plan.outcome(failed)
        return outcome if asked == study else with_the_rest(outcome, study, plan.finished_runs)


class Plan:
    """The steps of a study, and where their runs are.

    Attributes:
        finals: the run that is an arm's result, by arm and seed; of an arm that chooses its teacher, filled in when it
            has chosen.
        parts: run folders whose training made an arm's student, where they are others than its own.
        chosen: the teacher that each such arm chose.
    """

    def __init__(self, study: Study, out: Path) -> None:
        self.study = study
        self.out = out
        self.finals: dict[str, dict[int, RunConfig]] = {arm.name: {} for arm in study.arms}
        self.parts: dict[Path, list[Path]] = {}
        self.chosen: dict[str, str] = {}
        self.workshop = Workshop(out / "data", study.config.budget, study.base)
        self._jobs: dict[str, StudyStep] = {}
        self._choices: list[Callable[[], None]] = []
        self._exam_key: str | None = None
        self._eval = own_limits(study.base.eval, study.config.tune)

    def outcome(self, failed: Mapping[str, str]) -> Outcome:
        """What the plan's steps made."""
        runs = {arm: {seed: Path(own.output) for seed, own in finals.items()} for arm, finals in self.finals.items()}
        return Outcome(self.out, self.study, runs, self.parts, failed, self.chosen)

    def finished_runs(self, study: Study) -> Outcome:
        """Those runs of a study with the same base that are finished as it has them now; nothing is started."""
        own = Plan(study, self.out)
        own.workshop = self.workshop
        own.jobs()
        for choose in own._choices:
            choose()
        own.finals = {
            arm: {seed: final for seed, final in finals.items() if self._finished(final)}
            for arm, finals in own.finals.items()
        }
        return own.outcome({})

    def ask_teachers(self) -> StudyStep:
        """The step that gets rationales, where the base asks teachers."""
        config = self._asking(self.study.base).model_copy(update={"output": str(self.out / "teachers")})
        return StudyStep("teachers", lambda: [_COMPACT, "generate", str(self._write("teachers", config))])

    def _asking(self, config: RunConfig) -> RunConfig:
        """A configuration as it is before its teachers are asked: about the study's first problems, and no others."""
        problems = config.problems
        counts = [n for n in (self.study.config.limit, problems and problems.limit) if n]
        if config.teachers and problems and counts:
            problems = problems.model_copy(update={"limit": min(counts)})
        return config.model_copy(update={"problems": problems, "eval": self._eval})

    def _shared(self, config: RunConfig) -> RunConfig:
        """A configuration that reads what the study's teachers wrote, where it would ask; the first rows only."""
        config = config.model_copy(update={"eval": self._eval})
        if config.teachers:
            file = str(RunFolder(self.out / "teachers", None, {}).training_path)
            config = config.model_copy(update={"teachers": (), "rationales": (file,), "problems": None})
        return self.workshop.first(config, self.study.config.limit)

    def check(self, before_asking: bool = False) -> None:
        """Read the data and check all that a run would trip over.

        Args:
            before_asking: check what can be told before the teachers are asked.

        Raises:
            InputError: everything that is wrong.
        """
        wrong: list[str] = []
        read = self._asking if before_asking else self._shared
        base = read(self.study.base)
        self.workshop = Workshop(self.out / "data", self.study.config.budget, base)
        exam = study_exam(base, self.study, wrong)
        self._exam_key = fingerprint([exam.fingerprint, student_hash(base.student)]) if exam and not wrong else None
        found: dict[str, list[str]] = {}  # arms by what is wrong with them
        for arm in self.study.arms:
            try:
                run = self.out / "arms" / arm.name / f"seed-{self.study.config.seeds[0]}"
                prepared = prepare(read(arm.config).model_copy(update={"output": str(run)}))
                problems = arm_problems(arm, prepared, exam)
            except InputError as error:
                problems = [p for p in error.problems if f"base: {p.removeprefix('eval: ')}" not in wrong]
            for problem in dict.fromkeys(problems):
                found.setdefault(problem, []).append(arm.name)
        for problem, arms in found.items():
            all_of_them = len(arms) == len(self.study.arms) > 1
            wrong.append(f"{'all arms' if all_of_them else 'arm ' + ', '.join(arms)}: {problem}")
        if wrong:
            raise InputError(wrong)

    def jobs(self) -> list[StudyStep]:
        """All steps, in an order in which each comes after what it needs."""
        self._add(StudyStep("base", self._base))
        for seed in self.study.config.seeds:  # a first seed of all arms is worth more than all seeds of one
            for arm in self.study.arms:
                config = self._shared(arm.config)
                if arm.options.merge:
                    self._merge_jobs(arm, config, seed)
                elif arm.options.single == BEST:
                    continue  # below: it needs all seeds
                elif arm.options.single:
                    self.finals[arm.name][seed] = self._single(
                        config, arm.options.single, seed, f"{arm.name}/seed-{seed}"
                    )
                else:
                    self._ordinary(arm, config, seed)
        for arm in self.study.arms:
            if arm.options.single == BEST:
                self._best_jobs(arm, self._shared(arm.config))
        return list(self._jobs.values())

    def _add(self, job: StudyStep) -> None:
        self._jobs.setdefault(job.name, job)

    # ---- the kinds of arms

    def _ordinary(self, arm: Arm, config: RunConfig, seed: int) -> None:
        run = self.out / "arms" / arm.name / f"seed-{seed}"
        fitted = self.workshop.fitted(config, self.workshop.material(config, arm.options.mix), run, seed)
        self.finals[arm.name][seed] = fitted
        self._add(StudyStep(f"{arm.name}/seed-{seed}", lambda: self._start("run", fitted), ("base",)))

    def _single(self, config: RunConfig, teacher: str, seed: int, name: str) -> RunConfig:
        fitted = self._of_teacher("singles", config, teacher, seed)
        self._add(StudyStep(name, lambda: self._start("run", fitted), ("base",)))
        return fitted

    def _of_teacher(
        self, folder: str, config: RunConfig, teacher: str, seed: int, share_of_own: bool = False
    ) -> RunConfig:
        """A run on one teacher's rationales, with the whole budget or its own rationales' share of it."""
        material = self.workshop.material(config, teacher=teacher)
        kind = fingerprint(config.model_dump(mode="json", exclude={"output", "seed", "eval"}))[:8]
        run = self.out / folder / f"{slug(teacher)}-{kind}" / f"seed-{seed}"
        return self.workshop.fitted(config, material, run, seed, share_of_own=share_of_own)

    def _best_jobs(self, arm: Arm, config: RunConfig) -> None:
        """Train all singles, examine them on the tuning rows, then examine the best of them on the others."""
        fitted = {
            (teacher, seed): self._of_teacher("singles", config, teacher, seed)
            for teacher in self.workshop.material(config).teachers
            for seed in self.study.config.seeds
        }
        tuned = []
        for (teacher, seed), own in fitted.items():
            short, key = f"{slug(teacher)}/seed-{seed}", Path(own.output).parent.name
            trained, examined = f"train/{key}/{short}", f"tune/{key}/{short}"
            finals = [(name, runs[seed]) for name, runs in self.finals.items() if seed in runs]
            same = [f"{name}/seed-{seed}" for name, final in finals if final.output == own.output]
            self._add(StudyStep(trained, partial(self._start, "train", own), ("base", *same)))
            self._add(StudyStep(examined, partial(self._tune, own), (trained,)))
            tuned.append(examined)

        def choose() -> None:
            accuracy = {
                teacher: [tune_value(self._tuning(fitted[teacher, s]), self.study.config.tune)
                          for s in self.study.config.seeds]
                for teacher, _ in fitted
            }  # fmt: skip
            best = max(accuracy, key=lambda teacher: sum(accuracy[teacher]))
            self.chosen[arm.name] = best
            self.finals[arm.name] = {seed: fitted[best, seed] for seed in self.study.config.seeds}

        def examine_best(seed: int) -> list[str] | None:
            choose()
            return self._start("run", self.finals[arm.name][seed])

        self._choices.append(choose)
        for seed in self.study.config.seeds:
            self._add(StudyStep(f"{arm.name}/seed-{seed}", partial(examine_best, seed), tuple(tuned)))

    def _merge_jobs(self, arm: Arm, config: RunConfig, seed: int) -> None:
        run = self.out / "arms" / arm.name / f"seed-{seed}"
        final = self.finals[arm.name][seed] = config.model_copy(update={"output": str(run), "seed": seed})
        teachers = self.workshop.material(config).teachers
        rounds = arm.options.rounds if arm.options.merge == "mot" else 1
        student, before = config.student, ("base",)
        for number in range(1, rounds + 1):
            branches = []
            for teacher in teachers:
                if arm.options.merge == "mot":
                    own = self._mot_branch(arm, config, teacher, seed, number, student)
                else:
                    own = self._of_teacher("branches", config, teacher, seed, share_of_own=True)
                name = f"branch/{Path(own.output).relative_to(self.out)}"
                self._add(StudyStep(name, partial(self._branch, own, final), before))
                branches.append((name, own))
                self.parts.setdefault(run, []).append(Path(own.output))
            last = number == rounds
            merged = run / "student" if last else self.out / "mot" / arm.name / f"seed-{seed}" / f"merged-{number}"
            task = {
                "base": student, "students": [f"{own.output}/student" for _, own in branches], "out": str(merged),
                "method": arm.options.merge, "density": arm.options.density, "scale": arm.options.scale, "seed": seed,
                "whole": arm.options.merge == "mot",
            }  # fmt: skip
            name = f"{arm.name}/seed-{seed}" + ("" if last else f"/round-{number}")
            self._add(StudyStep(name, partial(self._merge, task, final, last), tuple(n for n, _ in branches)))
            student, before = str(merged), (name,)

    def _mot_branch(self, arm: Arm, config: RunConfig, teacher: str, seed: int, number: int, student: str) -> RunConfig:
        """One branch of one round of MoT: from the merged student, other rows first in each round."""
        run = self.out / "mot" / arm.name / f"seed-{seed}" / f"round-{number}-{slug(teacher)}"
        material = self.workshop.material(config, teacher=teacher)
        fitted = self.workshop.fitted(
            config, material, run, (seed * 1000 + number) % 2**32, arm.options.rounds, share_of_own=True
        )
        steps = arm.options.steps or (MOT_STEPS if self.study.config.budget == "none" else None)
        train = {**fitted.train, **({"max_steps": steps} if steps else {})}
        return fitted.model_copy(update={"student": student, "train": train})

    # ---- commands

    def _base(self) -> list[str] | None:
        if self._exam_key is None:
            return None
        mark = self.out / "base" / ".complete"
        asked = mark.is_file() and mark.read_text(encoding="utf-8") == self._exam_key
        if asked and not damage_of_student(self.out / "base"):
            return None
        config = self._write("base", self._shared(self.study.base))
        return ["compact_distill.study.run:examine_base", str(config), str(self.out / "base"), self._exam_key]

    def _start(self, stage: str, config: RunConfig) -> list[str] | None:
        """The command of a run's stage, its base's results in place; None where the run is finished."""
        if self._finished(config, stage):
            return None
        run = Path(config.output)
        with RunFolder.claim(run) as folder:
            _copy_results(self.out / "base", folder.eval_path / "base")
        return [_COMPACT, stage, str(self._write(str(run.relative_to(self.out)).replace("/", "."), config))]

    def _branch(self, config: RunConfig, final: RunConfig) -> list[str] | None:
        return None if self._finished(final) else self._start("train", config)

    def _merge(self, task: dict[str, Any], final: RunConfig, last: bool) -> list[str] | None:
        if self._finished(final) or (not last and Path(task["out"]).is_dir()):
            return None
        name = str(Path(task["out"]).relative_to(self.out)).replace("/", ".")
        if last:
            with RunFolder.claim(final.output) as folder:
                _copy_results(self.out / "base", folder.eval_path / "base")
            task = {**task, "config": str(self._write(name, final))}
        path = self.out / "configs" / f"{name}.json"
        with atomic_write(path) as file:
            json.dump(task, file, indent=1)
        return ["compact_distill.study.merge:main", str(path)]

    def _tune(self, config: RunConfig) -> list[str] | None:
        """Examine a run's student on the tuning rows, beside the run, whose own results are those of the test rows."""
        with contextlib.suppress(RunError):  # no results yet
            tune_value(self._tuning(config), self.study.config.tune)
            return None
        name = str(self._tuning(config).relative_to(self.out)).replace("/", ".")
        path = self._write(name, config.model_copy(update={"eval": self.study.base.eval}))
        command = ["compact_distill.study.run:examine_tuning", str(path), str(self._tuning(config))]
        return [*command, *self.study.config.tune]

    def _tuning(self, config: RunConfig) -> Path:
        return self.out / "tuning" / Path(config.output).relative_to(self.out)

    def _finished(self, config: RunConfig, stage: str = "run") -> bool:
        """Whether a run has done this stage, or all of them and its results are whole, with this very configuration."""
        try:
            folder = RunFolder.open(config.output)
            record = folder.manifest if stage == "run" else folder.manifest["stages"].get(stage, {})
            whole = stage != "run" or not damaged_results(folder.eval_path)
            return whole and bool(record.get("finished")) and load_config(folder.config_path) == config
        except (RunError, InputError, OSError):
            return False

    def _write(self, name: str, config: RunConfig) -> Path:
        path = self.out / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(dump_config(config))
        return path


def examine_base() -> None:
    """A step of a study: examine the base on all benchmarks. Arguments: configuration, folder, key."""
    config_path, out, key = sys.argv[1:]
    config = load_config(config_path)
    subject = Subject("base", config.student, student_hash(config.student), 0, 0.0)
    exam = read_exam(config, read_problems(config))
    if exam:
        examine_student(config.student, subject, exam, Path(out))
    with atomic_write(Path(out) / ".complete") as file:
        file.write(key)


def examine_tuning() -> None:
    """A step of a study: examine a run's student on tuning rows. Arguments: configuration, folder, benchmarks."""
    config_path, out, *tune = sys.argv[1:]
    config = load_config(config_path)
    student = Path(config.output) / "student"
    exam = read_exam(config, read_problems(config), tune)
    examine_student(str(student), trained_subject(student, "student"), exam, Path(out))


def _copy_results(source: Path, target: Path) -> None:
    """Copy finished results that the target does not have; an evaluation that finds them does nothing."""
    for file in sorted(source.glob("[!.]*")) if source.is_dir() else ():
        if file.is_file() and ".partial." not in file.name and not (target / file.name).exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / f".{file.name}.tmp")
            (target / f".{file.name}.tmp").replace(target / file.name)
