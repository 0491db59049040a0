"""The three questions a user decides by, answered in words: better? forgotten? learned from whom?"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from compact_distill.report.drawing import (
    DASH,
    UNITS,
    clean,
    listed,
    measured,
    moved,
    number,
    percent,
    plural,
    points,
    short,
)
from compact_distill.report.figures_results import final_results
from compact_distill.report.figures_weights import verdicts_PK
from compact_distill.report.html import Card
from compact_distill.report.read import RIGHT, UNREADABLE, WRONG, PairedChange, RunData
from compact_distill.report.trace import mean_sem
from compact_distill.runs.progress import duration

_EVEN = 0.01  # weights closer than this are not told apart
_ALL = "all equally"
_TAUGHT, _NOT_TAUGHT = "Tasks like those it was taught", "Tasks it could do before, and was not taught"


@dataclass(frozen=True)
class Headline:
    """What stands on top of the page: one sentence, three cards, facts as (name, value, note)."""

    verdict: str
    cards: list[Card]
    facts: list[tuple[str, str, str]]


def headline(run: RunData) -> Headline:
    """Words and numbers for the top of the page and the end of the terminal's output."""
    answers = [_better(run), _kept(run), _trust(run)]
    sentence = "; ".join(clause for clause, _ in answers if clause)
    return Headline(sentence[:1].upper() + sentence[1:] + ".", [card for _, card in answers], _facts(run))


def about(run: RunData) -> str:
    """One line: which student, teachers, when."""
    student = run.manifest.get("student")
    name = clean(student.get("name")) if isinstance(student, dict) and student.get("name") else ""
    name = PurePath(name).name if name.startswith((".", "/", "~")) else name  # a folder; hub names stay whole
    text = f"The student, {short(name, 80)}," if name else "The student"
    text += f" was trained on {_examples(run)}" if run.trained_on else " was trained"
    teachers = [short(t, 40) for t in run.taught or run.teachers]
    if teachers:
        some = listed(teachers) if len(teachers) <= 4 else f"{', '.join(teachers[:3])} and {len(teachers) - 3} more"
        models = "another model" if len(teachers) == 1 else f"{len(teachers)} other models"
        text += f", {'answered' if run.answers_alone else 'solved step by step'} by {models}, its teachers: {some}"
    started = run.manifest.get("started")
    text += f". Started {clean(started)[:16].replace('T', ' ')} UTC." if started else "."
    return f"{text} `compact try {shlex.quote(str(run.path))}` asks it and its base side by side."


def _examples(run: RunData) -> str:
    """What was trained on, in words, and how many examples there were where some were left out."""
    used, there = len(run.trained_on), len(run.problems)
    count = f"{used:,} of " if used < there else ""
    if _is_mix(run):
        of = f" of {plural(run.questions, 'problem')}" if run.questions else ""  # unknown without data.jsonl
        return f"{count}{plural(max(used, there), 'solution')}{of}, each by itself"
    others = f" (of the other {there - used:,} no solution counted)" if used < there else ""
    return f"{count}{plural(max(used, there), 'problem')}{others}"


def _is_mix(run: RunData) -> bool:
    """Whether each rationale was an example of its own."""
    return run.settings.get("example") == "rationale"


# ---- did it get better? Each question is answered by a clause of the sentence, and a card


def _of_role(changes: Sequence[PairedChange], role: str) -> list[PairedChange]:
    return [c for c in changes if c.main and (c.role == role or (role == "learned" and c.role is None))]


def _named(changes: Sequence[PairedChange], unit: bool = False) -> str:
    """Tasks with their changes; `unit` says in the first one what the numbers are."""
    first = next((c for c in changes if c.metric not in UNITS), None) if unit else None
    units = {c.task: " percentage points" if c is first else f" {UNITS.get(c.metric, '')}".rstrip() for c in changes}
    return listed([f"{short(c.task, 40)} ({moved(c.difference, c.metric)}{units[c.task]})" for c in changes])


def _spans(changes: Sequence[PairedChange], tasks: str) -> list[str]:
    """A line for each task: its result before and after, and the interval of the difference; then what that means."""
    lines = []
    for c in changes:
        span = "no question gained or lost" if c.unchanged else f"{moved(c.low, c.metric)} to {moved(c.high, c.metric)}"
        levels = f"{measured(c.before, c.metric)} → {measured(c.after, c.metric)}"
        lines.append(f"{short(c.task, 40)}: {levels} ({span})")
    rows = sorted({c.rows for c in changes})
    asked = f"{rows[0]:,}" if len(rows) == 1 else f"{rows[0]:,} to {rows[-1]:,}"
    less = " Less is better where a unit is named." if any(c.metric in UNITS for c in changes) else ""
    how = "Right answers before → after training"
    if not all(c.unchanged for c in changes):
        how += "; in brackets the range in which the change very likely lies (95 %)"
    return [*lines, f"{how}.{less}", f"{tasks}: the same {asked} questions before and after, none of them trained on."]


def _better(run: RunData) -> tuple[str, Card]:
    question = "Did it get better?"
    changes = _of_role(run.changes, "learned")
    if not changes:
        why = "is not known: no benchmark was run before and after training"
        if any(r.role != "retained" for r in run.results):
            why = "cannot be told: before and after were not compared on the same rows"
        last = [(task, after or before) for task, before, after in final_results(run)]
        known = [f"{short(task, 40)}: {measured(r.value, r.metric)}" for task, r in last if r and r.role != "retained"]
        details = ["Before and after were not compared on the same rows.", *known]
        return f"whether the student got better {why}", Card(question, "Not known", details)
    up, down = [c for c in changes if c.better], [c for c in changes if c.worse]
    same = [c for c in changes if not c.better and not c.worse]
    parts = []
    if up:
        parts.append(f"the student got better at {_named(up, unit=True)}")
    if down:
        parts.append(f"{'but worse' if up else 'the student got worse'} at {_named(down, unit=not up)}")
    if same:
        parts.append(f"{'with' if parts else 'the student shows'} no clear change on {_named(same, unit=not parts)}")
    shares = [c for c in changes if c.metric not in UNITS]
    mean = sum(c.difference for c in shares or changes) / len(shares or changes)
    size = f"{points(mean)} points" if shares else f"{moved(mean, changes[0].metric)} {UNITS[changes[0].metric]}"
    value, tone = (f"Yes: {size}", "good") if up else (f"Worse: {size}", "bad") if down else ("No clear change", "")
    if up and down:
        value, tone = f"Mixed: {size}", ""
    return ", ".join(parts), Card(question, value, _spans(changes, _TAUGHT), tone)


# ---- what did it lose?


def _kept(run: RunData) -> tuple[str, Card]:
    question = "What did it lose?"
    changes = _of_role(run.changes, "retained")
    if not changes:
        return "", Card(question, "Not known", ["No retained benchmark was compared before and after training."])
    details = _spans(changes, _NOT_TAUGHT)
    if lost := [c for c in changes if c.worse]:
        worst = min(lost, key=lambda c: (c.metric in UNITS, -abs(c.difference)))
        size = f"{moved(worst.difference, worst.metric)} {UNITS.get(worst.metric, 'points')}"
        return f"it lost on {_named(lost)}", Card(question, f"{size} on {short(worst.task, 40)}", details, "bad")
    shares = [c for c in changes if c.metric not in UNITS]
    least = min((c.low for c in shares), default=0.0)
    if least < 0:
        details.append(f"A loss of up to {points(-least).lstrip('+')} points cannot be excluded.")
    unclear = [c for c in changes if not c.better]
    if unclear:
        return f"it shows no clear loss on {_named(unclear)}", Card(question, "Nothing clear", details, "good")
    return f"it lost nothing: {_named(changes)} rose too", Card(question, "Nothing", details, "good")


# ---- whom did it learn from?


def weight_shares(run: RunData) -> list[tuple[str, float, float]]:
    """Teachers with their shares of all weight and of all wins, over each problem's last reading; heaviest first.

    A rationale that took no part counts as 0, so that the shares of all teachers sum to 1.
    """
    trace = run.trace
    if trace is None:
        return []
    chosen = trace.last[trace.present_N[trace.last] > 0]
    if not len(chosen):
        return []
    weights, wins = (np.nan_to_num(values[chosen]).mean(0) for values in (trace.weights_NK, trace.wins_NK))
    rows = [(trace.teachers[k], float(weights[k]), float(wins[k])) for k in trace.active]
    return sorted(rows, key=lambda row: -row[1])


def most_trusted(run: RunData) -> str | None:
    """The teacher with the largest share of the weight, `all equally` where the next one is as large; None: nobody."""
    weights = weight_shares(run)
    if not weights:
        return None
    even = len(weights) > 1 and weights[0][1] - weights[1][1] < _EVEN
    return _ALL if even else weights[0][0]


def _trust(run: RunData) -> tuple[str, Card]:
    question = "Whom did it learn from?"
    weights, trusted = weight_shares(run), most_trusted(run)
    if trusted is None:
        return "", Card(question, "Not known", ["No weights were recorded."])
    value, clause = f"Most from {short(trusted, 60)}", f"it learned most from {short(trusted, 60)}"
    if trusted == _ALL:
        value, clause = "All about equally", "it learned from all its teachers about equally"
    elif len(weights) == 1:
        clause = f"its only teacher was {short(trusted, 60)}"
    right = {name: _right(run, name) for name, *_ in weights}
    judged = ", and how many of them were right" if any(share is not None for share in right.values()) else ""
    details = [f"How much each teacher's solutions counted in the end{judged}:"] if len(weights) > 1 else []
    for name, share, _ in weights[:4]:
        known = "" if right[name] is None else f" ({percent(right[name], 0)} right)"
        details.append(f"{short(name, 40)}: {percent(share, 0)}{known}")
    if len(weights) > 4:
        details.append(f"and {len(weights) - 4} more")
    if (means := _right_and_wrong(run)) is not None:
        of_right, of_wrong = (percent(mean) for mean in means)
        details.append(
            "Teachers that were sometimes right and sometimes wrong: their right solutions counted "
            f"{of_right} on average, their wrong ones {of_wrong}."
        )
    if len(weights) > 1 and run.settings.get("weighting", "compact") == "compact":
        details.append(
            "What counts is how well a solution fits this student, not only whether it is right: see Scores."
        )
    return clause, Card(question, value, details)


def _right(run: RunData, teacher: str) -> float | None:
    """Share of a teacher's solutions that gave the right answer, of those that were judged."""
    verdicts = [rationale.verdict for rationale in run.rationales(teacher) if rationale.verdict]
    return verdicts.count(RIGHT) / len(verdicts) if verdicts else None


def _right_and_wrong(run: RunData) -> tuple[float, float] | None:
    """Mean weight of right and of wrong rationales, over the teachers that wrote both: the others differ in more."""
    if run.trace is None:
        return None
    verdicts = verdicts_PK(run, run.trace)
    both = (verdicts == RIGHT).any(0) & (verdicts == WRONG).any(0)
    if not both.any():
        return None
    weights = run.trace.weights_NK[run.trace.last][:, both]
    right, wrong = (mean_sem(weights[verdicts[:, both] == verdict])[0] for verdict in (RIGHT, WRONG))
    return right, wrong


# ---- what did it take?


def stage_seconds(run: RunData) -> dict[str, float]:
    """Duration of each finished stage; of training, which counts its own seconds, over all parts of a stopped run."""
    stages = run.manifest.get("stages")
    durations = {}
    for name, record in stages.items() if isinstance(stages, dict) else ():
        try:
            start, end = (datetime.datetime.fromisoformat(record[key]) for key in ("started", "finished"))
            counted = float((record.get("summary") or {}).get("seconds") or 0)
            durations[clean(name)] = max((end - start).total_seconds(), counted)
        except UNREADABLE:  # it has not finished, or another version wrote it
            continue
    return durations


def _facts(run: RunData) -> list[tuple[str, str, str]]:
    facts = []
    if seconds := stage_seconds(run):
        parts = ", ".join(f"{name} {duration(took)}" for name, took in seconds.items())
        facts.append(("time", duration(sum(seconds.values())), parts))
    facts.append(_cost_fact(run))
    if used := len(run.trained_on):
        kind = "solutions" if _is_mix(run) else "problems"
        others = f"of {len(run.problems):,}; " if used < len(run.problems) else ""
        facts.append((kind, f"{used:,}", f"{others}{plural(len(run.taught), 'teacher')}"))
    if run.trace is not None:
        readings = len(run.trace.problem_N)
        facts.append(("epochs", number(readings / max(len(run.trace.ids), 1)), "how often each problem was read"))
    speed = [row["problems_per_second"] for row in run.log if isinstance(row.get("problems_per_second"), int | float)]
    if speed:
        facts.append(("speed", f"{number(sorted(speed)[len(speed) // 2])} /s", "problems trained per second, median"))
    memory = [row["memory_mib"] for row in run.log if isinstance(row.get("memory_mib"), int | float)]
    if memory:
        facts.append(("memory", f"{number(max(memory) / 1024)} GiB", "peak while training"))
    return facts


def _cost_fact(run: RunData) -> tuple[str, str, str]:
    if not (total := run.costs):
        return ("cost", DASH, "no answers of teachers were bought in this run")
    prices = "in your prices' currency; " if "cost" in total else ""
    written, read = (number(total[key], 4) for key in ("completion_tokens", "prompt_tokens"))
    if not (total["completion_tokens"] or total["prompt_tokens"] or total.get("cost")):
        return ("cost", "0", f"{number(total['answers'], 6)} answers, no tokens")
    tokens = f"{prices}{written} tokens written, {read} read by teachers"
    money = f"{number(total['cost'], 4)}" if "cost" in total else DASH
    return ("cost", money, f"{tokens}{'' if 'cost' in total else '; their price is not known'}")
