"""The page of one run: which sections it has, and what stands in each."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import PurePath
from typing import Any

from compact_distill.report.explorer import Explorer, pack_explorer
from compact_distill.report.figure import Figure, Table
from compact_distill.report.figures import data, drift, results, scores, training, weights
from compact_distill.report.headline import headline
from compact_distill.report.page import render
from compact_distill.report.read import RunData
from compact_distill.report.text import clean, listed, plural, short

MAX_BYTES = 15_000_000  # of the page


@dataclass(frozen=True)
class Section:
    """A part of the page: its name in the bar, title, a sentence, figures, and what to say where there are none."""

    id: str
    short: str
    title: str
    lede: str
    figures: Sequence[Figure] = ()
    nothing: str = ""


def sections(run: RunData) -> list[Section]:
    """The sections of a run's page, figures without data left out."""
    return [
        Section(
            "results",
            "Results",
            "Did it get better, and what did it lose?",
            "Learned tasks are what the teachers taught; retained tasks are what the student could do before.",
            _there(results.accuracy(run), results.change(run), results.accuracy_over_training(run)),
            "Nothing was evaluated. `compact eval` measures the base and the student on the same rows.",
        ),
        Section(
            "teachers",
            "Teachers",
            "Whom did it learn from?",
            "A rationale is one teacher's worked-out solution. For every problem the student weighs its teachers' "
            "rationales by how compatible they are with it, anew each time it reads the problem; the weights of a "
            "problem sum to 1.",
            _there(weights.weights(run), weights.entropy(run), weights.scores_over_training(run)),
            "scores.jsonl holds no weights yet; training writes them.",
        ),
        Section(
            "scores",
            "Scores",
            "Are the scores worth trusting?",
            "Three scores make the weight: consensus with the other rationales, adaptability (how much the belief in "
            "the gold answer rises while reading), and difficulty, which lowers it.",
            _there(
                scores.distributions(run),
                scores.separation(run),
                scores.weight_by_verdict(run),
                scores.correlations(run),
            ),
            "This needs scores.jsonl, and verdicts in data.jsonl.",
        ),
        Section(
            "explorer",
            "Explorer",
            "Read the rationales",
            "Every problem with its teachers side by side. Colours show where the student's belief in the gold answer "
            "rose or fell while it read.",
            (),
            "" if run.problems or run.trace else "data.jsonl holds no problems.",
        ),
        Section(
            "drift",
            "Drift",
            "What moved inside?",
            "A student may keep its scores and still be another model inside. Base and student read the same prompts; "
            "here is how far their hidden states and next words moved apart.",
            _there(drift.planes(run), drift.layer_curves(run), drift.divergence(run)),
            "Drift was not measured. `compact drift BASE STUDENT` writes eval/drift.json.",
        ),
        Section(
            "training",
            "Training",
            "How did training go?",
            "One line of the log for each logged step.",
            _there(training.training(run)),
            "training_log.jsonl holds no losses yet.",
        ),
        Section(
            "data",
            "Data",
            "What was it given?",
            "The training data as it was used. Nothing was cut or guessed: what could not be used was left out, and is "
            "counted here.",
            _there(data.status(run), data.lengths(run), data.agreement(run), data.right_per_problem(run)),
            "data.jsonl holds no problems.",
        ),
        Section(
            "reproduce",
            "Reproduce",
            "How to get the same again",
            "The same configuration, versions, data and seed give the same student.",
        ),
    ]


def run_page(run: RunData, max_bytes: int = MAX_BYTES) -> str:
    """The page of a run, as HTML of at most `max_bytes` bytes; the explorer holds as many problems as fit."""
    parts = sections(run)
    values: dict[str, Any] = {
        "title": f"{short(run.name, 60)} · compact-distill report",
        "version": metadata.version("compact-distill"),
        "run": run,
        "sections": parts,
        "headline": headline(run),
        "about": _about(run),
        "commands": _commands(run),
        "facts_table": _facts_table(run),
    }
    bare = render("run.html.jinja", ["page.js", "explorer.js"], explorer=None, **values)
    explorer: Explorer | None = pack_explorer(run, max_bytes - len(bare.encode()) - 10_000)
    return render("run.html.jinja", ["page.js", "explorer.js"], explorer=explorer, **values)


def figures(run: RunData) -> list[Figure]:
    """All figures of a run's page."""
    return [figure for section in sections(run) for figure in section.figures]


def _there(*figures: Figure | None) -> list[Figure]:
    return [figure for figure in figures if figure is not None]


def _about(run: RunData) -> str:
    """One line: which student, teachers, when."""
    student = run.manifest.get("student")
    name = clean(student.get("name")) if isinstance(student, dict) and student.get("name") else ""
    name = PurePath(name).name if name.startswith((".", "/", "~")) else name  # a folder; hub names stay whole
    text = f"The student, {short(name, 80)}," if name else "The student"
    problems = len(run.problems) or (len(run.trace.ids) if run.trace else 0)
    text += f" learned from {plural(problems, 'problem')}" if problems else " was trained"
    teachers = [short(t, 40) for t in run.teachers]
    if teachers:
        some = listed(teachers) if len(teachers) <= 4 else f"{', '.join(teachers[:3])} and {len(teachers) - 3} more"
        text += f", worked out by {plural(len(teachers), 'teacher')}: {some}"
    started = run.manifest.get("started")
    return text + (f". Started {clean(started)[:16].replace('T', ' ')} UTC." if started else ".")


def _commands(run: RunData) -> str:
    lines = []
    versions = run.manifest.get("versions")
    version = versions.get("compact-distill") if isinstance(versions, dict) else None
    lines.append(f"pip install compact-distill=={clean(version)}" if version else "pip install compact-distill")
    lines.append(f"compact run {shlex.quote(str(run.path / 'config.yaml'))} --set output=NEW_FOLDER")
    lines.append(f"compact report {shlex.quote(str(run.path))}")
    return clean("\n".join(lines))


def _facts_table(run: RunData) -> Table:
    """What the manifest pins, flattened to names and values."""
    rows = []
    for section in ("versions", "hardware", "seeds", "student", "data", "prompt", "decoding"):
        value = run.manifest.get(section)
        if value is not None:
            rows += list(_flat(section, value))
    return Table(("what", "value"), rows)


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [row for key, inner in value.items() for row in _flat(f"{name}: {clean(key)}", inner)]
    if isinstance(value, list):
        return [(name, clean(", ".join(map(str, value))))]
    return [] if value is None else [(name, clean(value))]
