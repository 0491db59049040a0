"""What training did in a study's arms and what it took: weights, drift, cost, and a step beside TRL's.

`benchmarks/step.py --study` times TRL, into `trl.json` in the study's folder; here that is only read.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from compact_distill.config.yaml import Strict
from compact_distill.errors import RunError
from compact_distill.evaluation.examine import ROLES
from compact_distill.records import Verdict
from compact_distill.report.charts import Mark, interval_chart
from compact_distill.report.drawing import DASH, Table, listed, number, plural
from compact_distill.report.html import Figure, Section
from compact_distill.report.trace import arrange_trace, weight_trend
from compact_distill.runs.files import fingerprint, read_jsonl
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import duration, say
from compact_distill.statistics import FEWEST, Estimate, area, difference_of_tables, rank_correlation, share_of_tables
from compact_distill.study.arms import REFERENCES

STEP_TIMES = "trl.json"
_Mean = Callable[[list[Any]], Estimate]
_MEASURE = 'make bench ARGS="--study FOLDER" in a checkout of the source, FOLDER being that of this page'


def weights_of(runs: Sequence[Sequence[Path]]) -> dict[str, Any]:
    """What an arm's weights did, from the run folders that trained each seed's student.

    Returns:
        `tokens`, `tokens_with_weight`: of each seed, rationale tokens read with a backward, and those with a weight
        above 0; None where that of a seed is not known.
        `auc`: area of right over wrong rationales, mean over problems that have both; None where under 5 have.
        `follows`: by name of the data's own numbers, the rank correlation within problems of weight and number.
        `curriculum`: by property (difficulty, length), of each seed the change over training of the weight's rank
        correlation with it: `value`, `low`, `high`.
    """
    readings = [_readings(parts) for parts in runs]
    known = all(reading["tokens"] for reading in readings)
    numbers = sorted(set.intersection(*(set(reading["follows"]) for reading in readings)))
    follows = {name: _within_problems([r["follows"][name] for r in readings], difference_of_tables) for name in numbers}
    trends = [_trends(parts[0]) if len(parts) == 1 else {} for parts in runs]
    return {
        "tokens": [reading["tokens"] for reading in readings] if known else None,
        "tokens_with_weight": [reading["tokens_with_weight"] for reading in readings] if known else None,
        "auc": _within_problems([reading["areas"] for reading in readings], share_of_tables),
        "follows": {name: found for name, found in follows.items() if found},
        "curriculum": {
            name: [trend[name] for trend in trends] for name in trends[0] if all(name in trend for trend in trends)
        },
    }


def _readings(parts: Sequence[Path]) -> dict[str, Any]:
    """Of all that was read: tokens, and of each problem the mean over its readings of areas and correlations.

    Nothing is told, and tokens are None, where data.jsonl or scores.jsonl is not whole: a student can do without them.
    """
    tokens = with_weight = 0
    damaged: list[object] = []
    found: dict[str | None, dict[str, list[float]]] = {}  # by number of the data, None: areas; by problem
    for folder in map(RunFolder.open, parts):
        used = {row["id"]: row["rationales"] for row in read_jsonl(folder.data_path, at_damage=damaged.append)}
        for row in read_jsonl(folder.scores_path, at_damage=damaged.append):
            if row["id"] not in used:
                damaged.append(row)
                continue
            pairs = zip(row["weights"], used[row["id"]], strict=True)
            present = [(weight, rationale) for weight, rationale in pairs if rationale["tokens"] is not None]
            tokens += sum(rationale["tokens"] for _, rationale in present)
            with_weight += sum(rationale["tokens"] for weight, rationale in present if weight > 0)
            judged = [(w, r["verdict"] == Verdict.CORRECT) for w, r in present if r["verdict"] is not None]
            values = {None: area([w for w, _ in judged], [right for _, right in judged])}
            for name in {name for _, rationale in present for name in rationale.get("numbers", {})}:
                known = [(w, r["numbers"][name]) for w, r in present if name in r.get("numbers", {})]
                values[name] = rank_correlation([w for w, _ in known], [number for _, number in known])
            for name, value in values.items():
                if value is not None:
                    found.setdefault(name, {}).setdefault(row["id"], []).append(value)
    if damaged or not tokens:
        say(f"{listed([*map(str, parts)])}: data.jsonl or scores.jsonl is not whole; what its weights did is left out")
        return {"tokens": None, "tokens_with_weight": None, "areas": {}, "follows": {}}
    means = {name: {id_: float(np.mean(own)) for id_, own in of.items()} for name, of in found.items()}
    return {"tokens": tokens, "tokens_with_weight": with_weight, "areas": means.pop(None, {}), "follows": means}


def _within_problems(by_seed: Sequence[Mapping[str, float]], mean: _Mean) -> dict[str, Any] | None:
    """Mean over seeds and the problems that all of them have, with its interval; None where they are too few."""
    shared = sorted(set.intersection(*(set(of_seed) for of_seed in by_seed)))
    if len(shared) < FEWEST:
        return None
    table = np.array([[of_seed[name] for name in shared] for of_seed in by_seed])
    return {"problems": len(shared), **asdict(mean([table]))}


def _trends(run: Path) -> dict[str, dict[str, float]]:
    """Change over training of the weight's rank correlation with difficulty at first reading and with length."""
    folder = RunFolder.open(run)
    trace = arrange_trace(read_jsonl(folder.scores_path, at_damage=lambda line: None))
    if trace is None or len(trace.ids) < FEWEST:
        return {}
    lengths: dict[str, dict[str, float]] = {}
    for row in read_jsonl(folder.data_path, at_damage=lambda line: None):
        own = {(r["teacher"] if not r["sample"] else f"{r['teacher']}#{r['sample']}"): r["tokens"]
               for r in row["rationales"]}  # fmt: skip
        lengths[row["id"]] = {name: math.nan if tokens is None else float(tokens) for name, tokens in own.items()}
    properties = {
        "length": np.array([[lengths.get(p, {}).get(t, math.nan) for t in trace.teachers] for p in trace.ids])
    }
    if "difficulty" in trace.scores:
        properties["difficulty"] = trace.scores["difficulty"][trace.first]
    found = {name: weight_trend(trace, values) for name, values in sorted(properties.items())}
    return {
        name: dict(zip(("value", "low", "high"), trend.change, strict=True))
        for name, trend in found.items()
        if trend and all(map(math.isfinite, trend.change))
    }


# ---- what it took


def costs_of(runs: Sequence[Sequence[Path]]) -> dict[str, Any]:
    """Seconds and steps of an arm's training and its peak memory in GiB, of each seed; of several folders together."""
    seconds, memory, steps = [], [], []
    for parts in runs:
        summaries = [RunFolder.open(part).stage_summary("train") for part in parts]
        seconds.append(round(sum(summary.get("seconds", 0.0) for summary in summaries), 1))
        memory.append(max(summary.get("peak_memory_gib", 0.0) for summary in summaries))
        steps.append(sum(summary.get("steps", 0) for summary in summaries))
    return {"train_seconds": seconds, "peak_memory_gib": memory, "steps": steps}


class Timed(Strict):
    """One trainer's steps: seconds of a step in each round, and peak bytes beside the loaded student (0: unknown)."""

    seconds: tuple[PositiveFloat, ...] = Field(min_length=1)
    peak: NonNegativeInt

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds)


class StepTimes(Strict):
    """A step of a study's arms and of TRL's SFTTrainer, timed in turns on the same texts of the study.

    Attributes:
        date: when, as YYYY-MM-DD.
        machine: what it was measured on.
        load: of the machine before it began, in processes that wanted to run.
        problems: that were read in a round.
        step: problems of an optimizer step.
        rationales: of each problem.
        made_of: of each arm what `ingredients` gives for its run.
        arms, trl: by name; TRL's settings by what the page calls them.
        failed: who did not get through, and why.
    """

    format: Literal[1] = 1
    date: str = Field(pattern=r"^\d{4}-\d\d-\d\d$")
    machine: dict[str, str | int | None]
    load: float = Field(ge=0)
    problems: PositiveInt
    step: PositiveInt
    rationales: PositiveInt
    made_of: dict[str, dict[str, str]]
    arms: dict[str, Timed] = Field(min_length=1)
    trl: dict[str, Timed] = Field(min_length=1)
    failed: dict[str, str] = {}

    @model_validator(mode="after")
    def _belong_together(self) -> StepTimes:
        if len({len(own.seconds) for own in self.everyone.values()}) > 1 or set(self.made_of) != set(self.arms):
            raise ValueError("must hold the same rounds for all, and what each arm was made of")
        return self

    @property
    def everyone(self) -> dict[str, Timed]:
        """Arms, then TRL's settings."""
        return self.arms | self.trl

    @property
    def fastest(self) -> str:
        """TRL's setting with the least median."""
        return min(self.trl, key=lambda name: self.trl[name].median)

    def ratios(self, name: str) -> list[float]:
        """Of each round, the time of a trainer's step as a share of that of TRL's fastest setting."""
        pairs = zip(self.everyone[name].seconds, self.trl[self.fastest].seconds, strict=True)
        return [own / theirs for own, theirs in pairs]

    def memory_ratio(self, name: str) -> float | None:
        """Its peak memory as a share of that of TRL's fastest setting; None where one is unknown."""
        own, theirs = self.everyone[name].peak, self.trl[self.fastest].peak
        return own / theirs if own and theirs else None


def ingredients(run: Path) -> dict[str, str]:
    """Hashes of all that a run's student was made of, part by part, without its seed; empty without such a run."""
    try:
        parts = RunFolder.open(run).manifest["stages"]["train"]["parts"]
    except (RunError, KeyError):
        return {}
    return {name: fingerprint(part) for name, part in parts.items() if name != "seed"}


def read_step_times(out: Path, arms: Mapping[str, Mapping[str, Any]]) -> StepTimes:
    """What was measured beside TRL on this study.

    Args:
        out: the study's folder.
        arms: those that are done, as `study.json` has them.

    Raises:
        RunError: nothing was measured, the file is damaged, or it was measured on another study; what to do.
    """
    try:
        found = StepTimes.model_validate_json((out / STEP_TIMES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"Beside TRL: not measured; run {_MEASURE}.") from None
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        wrong = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise RunError(f"Beside TRL: {STEP_TIMES} is damaged ({wrong}) and is not shown; run {_MEASURE}.") from None
    others = []
    for name, made_of in found.made_of.items():
        run = next(iter(arms.get(name, {}).get("runs", {}).values()), None)
        here = ingredients(out / run) if run else {}
        differing = [part for part in {**here, **made_of} if here.get(part) != made_of.get(part)]
        if differing:
            others.append(f"{name}: other {listed(differing)}" if here else f"{name}: no such run here")
    if others:
        told = f"{STEP_TIMES} was measured on another study ({'; '.join(others)}) and is not shown"
        raise RunError(f"Beside TRL: {told}; run {_MEASURE}.")
    return found


# ---- as figures


def weight_section(arms: Mapping[str, Mapping[str, Any]]) -> Section:
    """The page's section of what `weights_of` found, and of the students' drift, for the arms that have it."""
    areas = {name: arm["auc"] for name, arm in arms.items() if arm["auc"]}
    figures = []
    if areas:
        look = "How often a right rationale weighs more than a wrong one of the same problem; 0.5 tells nothing."
        title = "Weights of right and wrong rationales"
        figures.append(_by_arm("auc", title, "Right above wrong", areas, "area (0.5: chance)", look, 0.5, (0.0, 1.0)))
    for measure in dict.fromkeys(name for arm in arms.values() for name in arm["follows"]):
        found = {name: arm["follows"][measure] for name, arm in arms.items() if measure in arm["follows"]}
        look = (
            f"Rank correlation within problems of a rationale's weight and its {measure}, which the data brings and no "
            "score sees. Left of 0: the more of it, the less weight; arms that weigh all alike have none."
        )
        title = f"Weights against {measure}"
        figures.append(_by_arm(f"follows_{measure}", title, title, found, "Spearman, within problems", look, 0.0, None))
    figures += [*_curriculum(arms), *_drift(arms)]
    return Section("weights", "What was trusted, and how far the student moved", figures=figures)


def _by_arm(
    key: str,
    title: str,
    chart_title: str,
    found: Mapping[str, Mapping[str, float]],
    label: str,
    look: str,
    reference: float,
    span: tuple[float, float] | None,
) -> Figure:
    marks = [(name, [Mark(name, own["value"], own["low"], own["high"], "s2")]) for name, own in found.items()]
    chart = interval_chart(chart_title, marks, x_label=label, reference=reference, x_range=span)
    rows = [(name, own["value"], own["low"], own["high"], own["problems"]) for name, own in found.items()]
    return Figure(key, title, look, [chart], Table(("arm", "value", "low", "high", "problems"), rows))


def _each_seed(arm: Mapping[str, Any], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """What was found of each of an arm's runs, under its seed."""
    return zip((f"seed {seed}" for seed in arm["runs"]), values, strict=True)


def _curriculum(arms: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    charts, rows = [], []
    for name, more in (("difficulty", "harder"), ("length", "longer")):
        found = {arm: own["curriculum"][name] for arm, own in arms.items() if name in own["curriculum"]}
        if found:
            own = {arm: list(_each_seed(arms[arm], trends)) for arm, trends in found.items()}
            marks = [(arm, [Mark(f"{arm}, {seed}", t["value"], t["low"], t["high"], "s2") for seed, t in trends])
                     for arm, trends in own.items()]  # fmt: skip
            charts.append(interval_chart(f"Towards {more} rationales", marks, x_label="change", reference=0.0))
            rows += [(arm, name, seed.removeprefix("seed "), t["value"], t["low"], t["high"])
                     for arm, trends in own.items() for seed, t in trends]  # fmt: skip
    look = (
        "How the rank correlation of weight and difficulty (at first reading), or length, changed from the first to "
        "the last part of training; a mark a seed, intervals over problems. An interval right of 0 is a curriculum: "
        "easy first, hard later. Each run's own report shows the curve."
    )
    table = Table(("arm", "property", "seed", "change", "low", "high"), rows)
    return [Figure("curriculum", "Does a curriculum show?", look, charts, table)] if charts else []


def _drift(arms: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    figures = []
    for role, css in zip(ROLES, ("s0", "s1"), strict=True):
        charts = []
        for key, title, label in (
            ("kl", f"Next words, {role} prompts", "KL to the base, nats a token"),
            ("shift", f"PCA shift, {role} prompts", "the last layer's centroid, in spreads of the base"),
        ):
            drifts = {name: arm["drift"].get(role, {}).get("by_seed", {}).get(key) for name, arm in arms.items()}
            marks = [(name, [Mark(seed, value, css=css) for seed, value in _each_seed(arms[name], values)])
                     for name, values in drifts.items() if values]  # fmt: skip
            charts += [interval_chart(title, marks, x_label=label)] if marks else []
        if charts:
            look = "How far next words and hidden states moved from the base's on the same prompts; a mark a seed."
            rows = [(name, own.get("kl"), own.get("shift"), own.get("cka")) for name, arm in arms.items()
                    if (own := arm["drift"].get(role))]  # fmt: skip
            table = Table(("arm", "KL", "shift", "CKA"), rows)
            figures.append(Figure(f"drift_{role}", f"Drift, {role}", look, charts, table))
    return figures


def cost_section(out: Path, arms: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Any]) -> Section:
    """The page's section of what `costs_of` found, and of a step beside TRL's where that was measured."""
    rows = []
    found = {name: costs["arms"].get(name, {"train_seconds": [], "peak_memory_gib": [], "steps": []}) for name in arms}
    steps = {name: float(np.mean(cost.get("steps") or [0])) for name, cost in found.items()}
    for name, cost in found.items():
        took = float(np.mean(cost["train_seconds"])) if any(cost["train_seconds"]) else None
        peak = max(cost["peak_memory_gib"], default=None)
        read = (arms[name][key] for key in ("tokens", "tokens_with_weight"))
        tokens = (round(float(np.mean(of_seeds))) if of_seeds else None for of_seeds in read)
        said, each = DASH if took is None else duration(took), took / steps[name] if took and steps[name] else None
        rows.append((name, *tokens, took, said, each, peak))
    columns = ("arm", "rationale tokens", "of them with weight", "seconds", "time", "seconds a step", "memory, GiB")
    table = Table(columns, rows)
    seconds = {name: cost["train_seconds"] for name, cost in found.items() if any(cost["train_seconds"])}
    memory = {name: cost["peak_memory_gib"] for name, cost in found.items() if any(cost["peak_memory_gib"])}
    base = next((name for name in REFERENCES if name in seconds), "")
    charts = []
    for title, label, own in (("Time of training", "of the time", seconds), ("Peak memory", "of the memory", memory)):
        if base in own and len(own) > 1:
            unit = float(np.mean(own[base]))
            marks = [(name, [Mark(seed, value / unit, css="s2") for seed, value in _each_seed(arms[name], values)])
                     for name, values in own.items()]  # fmt: skip
            charts.append(interval_chart(title, marks, x_label=f"{label} of {base}", reference=1.0))
    look = f"As shares of {base}'s; a mark a seed. Compare runs that did not share their machine's time with others."
    figures = [Figure("cost", "Cost", look, charts, table)] if charts else []
    lede = "A run's mean: tokens of rationales read with a backward; time and peak memory of its training."
    try:
        times = read_step_times(out, arms)
        figures.append(_beside_trl(times, timed := next(iter(times.arms)), steps[timed]))
    except RunError as error:
        lede += f" {error}"
    return Section("cost", "What each arm took", lede, figures, tables=[("Per run", table)])


def _beside_trl(times: StepTimes, arm: str, steps: float) -> Figure:
    """A step's time and memory as shares of TRL's; `steps` are those of a run of `arm`, which was timed; 0: unknown."""
    css = {name: "s2" if name in times.arms else "s0" for name in times.everyone}
    shares = {name: times.ratios(name) for name in times.everyone}
    marks = [(name, [Mark(f"{name}, round {i + 1}", ratio, css=css[name]) for i, ratio in enumerate(ratios)])
             for name, ratios in shares.items()]  # fmt: skip
    charts = [interval_chart("Time of a step", marks, x_label="of the time of TRL's fastest", reference=1.0)]
    memory = {name: times.memory_ratio(name) for name in times.everyone}
    if all(memory.values()):
        dots = [(name, [Mark(name, ratio or 0.0, css=css[name])]) for name, ratio in memory.items()]
        charts.append(interval_chart("Peak memory of a step", dots, x_label="of its memory", reference=1.0))
    rows = [
        (name, own.median, statistics.median(shares[name]), min(shares[name]), max(shares[name]),
         own.peak / 2**30 if own.peak else None, memory[name], own.median * steps / 60 if steps else None)
        for name, own in times.everyone.items()
    ]  # fmt: skip
    columns = ("trainer", "seconds a step", "of TRL's fastest", "least", "most", "memory, GiB", "of its memory")
    machine = times.machine
    cores, versions = machine.get("cores"), [f"{name} {machine.get(name)}" for name in ("torch", "transformers", "trl")]
    where = str(machine.get("accelerator") or f"{machine.get('processor')}, {cores} cores")
    look = (
        f"Left of 1: less than TRL's SFTTrainer at its fastest setting here ({times.fastest}), on the study's student, "
        f"rationales and adapters: {plural(times.step, 'problem')} of {plural(times.rationales, 'rationale')} a step, "
        f"{plural(times.problems, 'problem')} a round, a mark a round. Memory is what training takes beside the loaded "
        f"student. {times.date}, {where}, {listed(versions)}."
    )
    if isinstance(cores, int) and times.load > 0.3 * cores:
        look += f" The machine was busy (load {number(times.load)}): times are noisy."
    if steps:
        look += f" A run's minutes are computed: {number(steps)} steps, as many as {arm} makes."
    look += "".join(f" {name} failed: {reason}." for name, reason in times.failed.items())
    return Figure("beside_trl", "A step beside TRL's", look, charts, Table((*columns, "a run, minutes"), rows))
