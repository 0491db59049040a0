"""The demo: a study in the lab's world, of four scripted teachers and a student that is made on the spot.

The base asks the teachers once; plain averaging, averaging of the right rationales alone, and COMPACT start from the
same student and take as many steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compact_distill.data import load_instances
from compact_distill.errors import RunError
from compact_distill.lab import arithmetic, pool
from compact_distill.lab import student as lab
from compact_distill.records import Instance, Problem, Verdict
from compact_distill.runs.files import atomic_write, json_line
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import duration, printable, say
from compact_distill.study.arms import StudyConfig, make_study
from compact_distill.study.findings import describe, write_results
from compact_distill.study.page import headline, write_page
from compact_distill.study.run import run_study

# COMPACT's settings are the defaults. The arms differ in nothing else.
ARMS: dict[str, dict[str, Any]] = {
    "equal": {"weighting": "equal", "consistency": 0.0},
    "verified": {"weighting": "verified", "consistency": 0.0},
    "compact": {},
}
_EXPLANATION = """\
terse and verbose are right and write as the student does; erring miscounts 8 and 9, so half of its solutions are wrong
(its right and wrong ones are shown apart); foreign is right, in Roman numerals. equal is the same training with the
weight 0.25 for each of the four, all the time; verified with equal weights for the right ones. The weights of a
problem's four rationales add up to 1."""
LEARNED, RETAINED = ("lab_arithmetic",), ("lab_facts", "lab_yes_no")


@dataclass(frozen=True, slots=True)
class DemoRecipe:
    """Sizes and settings, the same for all arms; docs/results.md has how they were chosen."""

    student: lab.Recipe = field(default_factory=lab.Recipe)
    problems: int = 400
    epochs: int = 5
    problems_per_step: int = 4
    learning_rate: float = 1e-3
    warmup_share: float = 0.1
    examined: int | None = None  # rows a benchmark; None: all 500 held-out problems, all facts
    jobs: int = 2
    arms: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(ARMS))  # one of them "compact"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The outcome.

    `study` is what `study.json` holds, `costs` what `costs.json` does. `weights` holds COMPACT's mean weight by
    teacher, then epoch. `report` is COMPACT's page, `comparison` the study's, and `verdict` that page's first sentence.
    """

    study: dict[str, Any]
    costs: dict[str, Any]
    weights: dict[str, list[float]]
    output: Path
    report: Path
    comparison: Path
    verdict: str
    seconds: float


def run_demo(output: Path, seed: int = 0, recipe: DemoRecipe | None = None) -> DemoResult:
    """Make a student, problems and rationales, train all arms, examine them on problems that none has seen.

    Args:
        output: folder for data, runs and results; run again with the same seed, it reuses what it finds.
        seed: of student, problems, teachers and training.
        recipe: sizes and settings.

    Raises:
        RunError: an arm failed.
    """
    recipe = recipe or DemoRecipe()
    started = time.monotonic()
    student = lab.cached_student(replace(recipe.student, seed=seed))
    problems = output / "problems.jsonl"
    output.mkdir(parents=True, exist_ok=True)
    _write(arithmetic("train", recipe.problems, seed), problems)
    say(f"demo: ask the teachers, train {len(recipe.arms)} arms, examine them")
    base = _base(student, problems, seed, recipe)
    config = StudyConfig(base=base, output=str(output / "study"), arms=recipe.arms, seeds=(seed,))
    outcome = run_study(make_study(config), recipe.jobs)
    document, costs = write_results(outcome)
    if outcome.failed:
        raise RunError("; ".join(f"{name}: {reason}" for name, reason in outcome.failed.items()))
    page = write_page(outcome.out, document, costs)
    compact = RunFolder.open(outcome.runs["compact"][seed])
    weights = _weights_by_epoch(compact, load_instances(outcome.out / "teachers" / "rationales.jsonl"))
    seconds = time.monotonic() - started
    result = DemoResult(document, costs, weights, output, compact.report_path, page, headline(document), seconds)
    _write_result(result, seed, recipe)
    return result


def _base(student: Path, problems: Path, seed: int, recipe: DemoRecipe) -> dict[str, Any]:
    teachers = [{"name": teacher.name, "backend": "lab", "model": teacher.name} for teacher in pool()]
    return {
        "student": str(student),
        "problems": {"path": str(problems)},
        "teachers": teachers,
        "seed": seed,
        "train": {
            "learning_rate": recipe.learning_rate,
            "num_train_epochs": recipe.epochs,
            "per_device_train_batch_size": recipe.problems_per_step,
            "lr_scheduler_type": "cosine",
            "warmup_steps": recipe.warmup_share,
        },
        "eval": {"learned": list(LEARNED), "retained": list(RETAINED), "limit": recipe.examined},
    }


def _weights_by_epoch(folder: RunFolder, training: Sequence[Instance]) -> dict[str, list[float]]:
    """Mean weight of each teacher in each epoch; of one that errs, apart for its right and its wrong rationales."""
    labels = {
        i.id: [r.teacher if r.verdict is Verdict.CORRECT else f"{r.teacher}, wrong" for r in i.rationales]
        for i in training
    }
    erring = {label.removesuffix(", wrong") for row in labels.values() for label in row if label.endswith(", wrong")}
    sums: dict[str, dict[int, list[float]]] = {}
    for row in folder.read_scores():
        for label, weight in zip(labels[row["id"]], row["weights"], strict=True):
            name = f"{label}, right" if label in erring else label
            sums.setdefault(name, {}).setdefault(int(row["epoch"]), []).append(weight)
    teachers = [name for instance in training[:1] for name in instance.teachers]
    order = [name for teacher in teachers for name in (teacher, f"{teacher}, right", f"{teacher}, wrong")]
    return {
        name: [sum(weights) / len(weights) for _, weights in sorted(sums[name].items())]
        for name in order
        if name in sums
    }


def _write(problems: Sequence[Problem], path: Path) -> None:
    with atomic_write(path, keep=True) as file:
        for problem in problems:
            file.write(json_line({"id": problem.id, "question": problem.question, "answer": problem.answer}))


def _write_result(result: DemoResult, seed: int, recipe: DemoRecipe) -> None:
    plain = {
        "seed": seed,
        "recipe": asdict(recipe),
        "study": result.study,
        "weights": result.weights,
        "seconds": round(result.seconds, 1),
    }
    with atomic_write(result.output / "results.json", keep=True) as file:
        json.dump(plain, file, indent=2)
        file.write("\n")


def show(result: DemoResult, console: Console | None = None) -> None:
    """Print what the demo found: the study's table, weights over time, where everything is."""
    console = console or Console()
    for line in describe(result.study, result.costs):
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)
    weights = Table(title="COMPACT: mean weight of each teacher, by epoch", title_justify="left")
    weights.add_column("teacher")
    for epoch in range(max(map(len, result.weights.values()))):
        weights.add_column(str(epoch + 1), justify="right")
    for name, by_epoch in result.weights.items():
        weights.add_row(Text(printable(name)), *(f"{weight:.2f}" for weight in by_epoch))
    console.print(weights)
    console.print(_EXPLANATION, soft_wrap=True)
    console.print(Text(printable(result.verdict)), style="bold", soft_wrap=True)
    for line in (
        f"Everything is in {result.output}; it took {duration(result.seconds)}.",
        f"The study: {result.comparison}",
        f"The report of COMPACT's run: {result.report}",
    ):
        console.print(printable(line), soft_wrap=True, markup=False)
