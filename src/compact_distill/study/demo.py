"""The demo: the embedded world end to end, COMPACT beside plain averaging from the same start with as many steps.

The COMPACT side is one `compact run`: problems, teachers that are asked, training, benchmarks, report. Averaging trains
on the rationales which that run gathered.
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

from compact_distill import pipeline
from compact_distill.config.models import PRESETS, RunConfig, config_from
from compact_distill.data import load_instances
from compact_distill.evaluation.result_files import BASE, STUDENT, compare_students, read_result, result_path
from compact_distill.lab import student as lab
from compact_distill.lab.problems import arithmetic
from compact_distill.lab.teachers import pool
from compact_distill.records import Instance, Problem, Verdict
from compact_distill.report import read_run, verdict, write_report
from compact_distill.runs.files import atomic_write, json_line
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import duration, say

# The two sides differ in nothing else. Equal scores give every rationale the weight 1/K. All settings of the scores
# stand here, so that the demo stays what it is when defaults move; docs/results.md has why COMPACT's are these.
_SCORES: dict[str, Any] = PRESETS["paper"]["compatibility"]
COMPACT: dict[str, Any] = {"compatibility": {**_SCORES, "estimator": "probe"}, "consistency": 0.02}
AVERAGING: dict[str, Any] = {
    "compatibility": {**_SCORES, "consensus": 0, "adaptability": 0, "difficulty": 0},
    "consistency": 0,
}
_EXPLANATION = """\
terse and verbose are right and write as the student does; erring miscounts 8 and 9, so half of its solutions are wrong
(its right and wrong ones are shown apart); foreign is right, in Roman numerals. Averaging is the same training with the
weight 0.25 for each of the four, all the time. The weights of a problem's four rationales add up to 1."""
LEARNED, RETAINED = ("lab_arithmetic",), ("lab_facts", "lab_yes_no")


@dataclass(frozen=True, slots=True)
class DemoRecipe:
    """Sizes and settings, the same for both sides; docs/results.md has how they were chosen."""

    student: lab.Recipe = field(default_factory=lab.Recipe)
    problems: int = 400
    epochs: int = 5
    problems_per_step: int = 4
    learning_rate: float = 1e-3
    warmup_share: float = 0.1
    examined: int | None = None  # rows a benchmark; None: all 500 held-out problems, all facts


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The outcome.

    `accuracy` holds, by student ("before", "averaging", "compact") and benchmark, `accuracy` with `low` and `high` of
    its 95 % interval. `weights` holds COMPACT's mean weight by teacher, then epoch. `report` is COMPACT's page,
    `comparison` the one that shows it beside averaging, and `verdict` that page's first sentence.
    """

    accuracy: dict[str, dict[str, dict[str, float]]]
    weights: dict[str, list[float]]
    output: Path
    report: Path
    comparison: Path
    verdict: str
    seconds: float


def run_demo(output: Path, seed: int = 0, recipe: DemoRecipe | None = None) -> DemoResult:
    """Make a student, problems and rationales, train both sides, examine them on problems that none has seen.

    Args:
        output: folder for data, run folders and results; run again with the same seed, it reuses what it finds.
        seed: of student, problems, teachers and training.
        recipe: sizes and settings.
    """
    recipe = recipe or DemoRecipe()
    started = time.monotonic()
    student = lab.cached_student(replace(recipe.student, seed=seed))
    problems = output / "problems.jsonl"
    output.mkdir(parents=True, exist_ok=True)
    _write(arithmetic("train", recipe.problems, seed), problems)
    teachers = [{"name": teacher.name, "backend": "lab", "model": teacher.name} for teacher in pool()]
    asked = {"problems": {"path": str(problems)}, "teachers": teachers, **COMPACT}

    def side(name: str, source: dict[str, Any]) -> RunFolder:
        say(f"demo: {name}")
        return pipeline.run(_config(student, output / name, seed, recipe, source))

    compact = side("compact", asked)
    averaging = side("averaging", {"rationales": str(compact.training_path), **AVERAGING})
    accuracy = {
        "before": _accuracy(compact, BASE),
        "averaging": _accuracy(averaging, STUDENT),
        "compact": _accuracy(compact, STUDENT),
    }
    weights = _weights_by_epoch(compact, load_instances(compact.training_path))
    paired = [compare_students(averaging.eval_path / STUDENT, compact.eval_path / STUDENT)]
    sides = [read_run(averaging.path), read_run(compact.path)]
    comparison = write_report(sides, output / "compare.html", paired=paired)
    sentence = verdict(sides, paired)
    seconds = time.monotonic() - started
    result = DemoResult(accuracy, weights, output, compact.report_path, comparison, sentence, seconds)
    _write_result(result, seed, recipe)
    return result


def _config(student: Path, output: Path, seed: int, recipe: DemoRecipe, source: dict[str, Any]) -> RunConfig:
    return config_from(
        {
            "student": str(student),
            "output": str(output),
            "seed": seed,
            "train": {
                "learning_rate": recipe.learning_rate,
                "num_train_epochs": recipe.epochs,
                "per_device_train_batch_size": recipe.problems_per_step,
                "lr_scheduler_type": "cosine",
                "warmup_steps": recipe.warmup_share,
            },
            "eval": {"learned": list(LEARNED), "retained": list(RETAINED), "limit": recipe.examined},
            **source,
        }
    )


def _accuracy(folder: RunFolder, label: str) -> dict[str, dict[str, float]]:
    tasks = (*LEARNED, *RETAINED)
    results = {task: read_result(result_path(folder.eval_path / label, task))["result"] for task in tasks}
    return {task: {name: result[name] for name in ("accuracy", "low", "high")} for task, result in results.items()}


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
    with atomic_write(path) as file:
        for problem in problems:
            file.write(json_line({"id": problem.id, "question": problem.question, "answer": problem.answer}))


def _write_result(result: DemoResult, seed: int, recipe: DemoRecipe) -> None:
    plain = {
        "seed": seed,
        "recipe": asdict(recipe),
        "accuracy": result.accuracy,
        "weights": result.weights,
        "seconds": round(result.seconds, 1),
    }
    with atomic_write(result.output / "results.json") as file:
        json.dump(plain, file, indent=2)
        file.write("\n")


def show(result: DemoResult, console: Console | None = None) -> None:
    """Print what the demo found: accuracy, knowledge kept, weights over time, where everything is."""
    console = console or Console()
    titles = {"before": "before", "averaging": "averaging", "compact": "COMPACT"}
    found = Table(title="Correct answers, with 95 % intervals", title_justify="left")
    found.add_column("")
    for title in titles.values():
        found.add_column(title, justify="right")
    for kind, tasks in (("learned", LEARNED), ("retained", RETAINED)):
        for task in tasks:
            found.add_row(f"{kind}: {task}", *(_percent(result.accuracy[name][task]) for name in titles))
    console.print(found)
    weights = Table(title="COMPACT: mean weight of each teacher, by epoch", title_justify="left")
    weights.add_column("teacher")
    for epoch in range(max(map(len, result.weights.values()))):
        weights.add_column(str(epoch + 1), justify="right")
    for name, by_epoch in result.weights.items():
        weights.add_row(name, *(f"{weight:.2f}" for weight in by_epoch))
    console.print(weights)
    console.print(_EXPLANATION, soft_wrap=True)
    console.print(result.verdict, style="bold", soft_wrap=True)
    console.print(f"Everything is in {result.output}; it took {duration(result.seconds)}.", soft_wrap=True)
    console.print(f"Side by side: {result.comparison}", soft_wrap=True)
    console.print(f"The report of COMPACT's run: {result.report}", soft_wrap=True)


def _percent(accuracy: dict[str, float]) -> str:
    return f"{100 * accuracy['accuracy']:.0f} % ({100 * accuracy['low']:.0f}-{100 * accuracy['high']:.0f})"
