"""What the weights of a study's arms did: right over wrong, over training, and against the data's own numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compact_distill.evaluation.examine import ROLES
from compact_distill.records import Verdict
from compact_distill.report.charts import Mark, interval_chart
from compact_distill.report.drawing import Table
from compact_distill.report.html import Figure, Section
from compact_distill.report.trace import arrange_trace, weight_trend
from compact_distill.runs.files import read_jsonl
from compact_distill.runs.folder import RunFolder
from compact_distill.statistics import area, over_seeds_and_rows, rank_correlation


def weights_of(runs: Sequence[Sequence[Path]]) -> dict[str, Any]:
    """What an arm's weights did, from the run folders that trained each seed's student.

    Returns:
        `tokens`, `tokens_with_weight`: of each seed, rationale tokens read with a backward, and those with a weight.
        `auc`: area of right over wrong rationales, mean over problems that have both; None where none has.
        `follows`: by name of the data's own numbers, the rank correlation within problems of weight and number.
        `curriculum`: by property (difficulty, length), of each seed the change over training of the weight's rank
        correlation with it: `value`, `low`, `high`.
    """
    readings = [_readings(parts) for parts in runs]
    numbers = sorted(set.intersection(*(set(reading["follows"]) for reading in readings)))
    follows = {name: _within_problems([reading["follows"][name] for reading in readings]) for name in numbers}
    trends = [_trends(parts[0]) if len(parts) == 1 else {} for parts in runs]
    return {
        "tokens": [reading["tokens"] for reading in readings],
        "tokens_with_weight": [reading["tokens_with_weight"] for reading in readings],
        "auc": _within_problems([reading["areas"] for reading in readings]),
        "follows": {name: found for name, found in follows.items() if found},
        "curriculum": {
            name: [trend[name] for trend in trends] for name in trends[0] if all(name in trend for trend in trends)
        },
    }


def _readings(parts: Sequence[Path]) -> dict[str, Any]:
    """Of all that was read: tokens, and of each problem the mean over its readings of areas and correlations."""
    tokens = with_weight = 0
    areas: dict[str, list[float]] = {}
    follows: dict[str, dict[str, list[float]]] = {}
    for part in parts:
        folder = RunFolder.open(part)
        used = {row["id"]: row["rationales"] for row in read_jsonl(folder.data_path)}
        for row in folder.read_scores():
            pairs = zip(row["weights"], used.get(row["id"], []), strict=True)
            present = [(weight, rationale) for weight, rationale in pairs if rationale["tokens"] is not None]
            tokens += sum(rationale["tokens"] for _, rationale in present)
            with_weight += sum(rationale["tokens"] for weight, rationale in present if weight > 0)
            judged = [(w, r["verdict"] == Verdict.CORRECT) for w, r in present if r["verdict"] is not None]
            found = area([w for w, _ in judged], [right for _, right in judged])
            if found is not None:
                areas.setdefault(row["id"], []).append(found)
            for name in sorted({name for _, rationale in present for name in rationale.get("numbers", {})}):
                known = [(w, r["numbers"][name]) for w, r in present if name in r.get("numbers", {})]
                correlation = rank_correlation([w for w, _ in known], [number for _, number in known])
                if correlation is not None:
                    follows.setdefault(name, {}).setdefault(row["id"], []).append(correlation)
    return {
        "tokens": tokens,
        "tokens_with_weight": with_weight,
        "areas": _means(areas),
        "follows": {name: _means(by_problem) for name, by_problem in follows.items()},
    }


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: float(np.mean(own)) for name, own in values.items()}


def _within_problems(by_seed: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """Mean over seeds and the problems that all of them have, with its interval; None where there is none."""
    shared = sorted(set.intersection(*(set(of_seed) for of_seed in by_seed)))
    if not shared:
        return None
    table = np.array([[of_seed[name] for name in shared] for of_seed in by_seed])
    return {"problems": len(shared), **asdict(over_seeds_and_rows([table]))}


def _trends(run: Path) -> dict[str, dict[str, float]]:
    """Change over training of the weight's rank correlation with difficulty at first reading and with length."""
    folder = RunFolder.open(run)
    trace = arrange_trace(folder.read_scores())
    if trace is None:
        return {}
    lengths: dict[str, dict[str, float]] = {}
    for row in read_jsonl(folder.data_path):
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


# ---- as figures


def weight_section(arms: Mapping[str, Mapping[str, Any]]) -> Section:
    """The page's section of what `weights_of` found, and of the students' drift, for the arms that have it."""
    areas = {name: arm["auc"] for name, arm in arms.items() if arm["auc"]}
    figures = []
    if areas:
        look = "How often a right rationale weighs more than a wrong one of the same problem; 0.5 tells nothing."
        title = "Weights of right and wrong rationales"
        figures.append(_by_arm("auc", title, "Right above wrong", areas, "area (0.5: chance)", look, 0.5, (0.0, 1.0)))
    for number in dict.fromkeys(name for arm in arms.values() for name in arm["follows"]):
        found = {name: arm["follows"][number] for name, arm in arms.items() if number in arm["follows"]}
        look = (
            f"Rank correlation within problems of a rationale's weight and its {number}, which the data brings and no "
            "score sees. Left of 0: the more of it, the less weight; arms that weigh all alike have none."
        )
        title = f"Weights against {number}"
        figures.append(_by_arm(f"follows_{number}", title, title, found, "Spearman, within problems", look, 0.0, None))
    figures += [*_curriculum(arms), *_drift(arms)]
    return Section("weights", "Weights", "What was trusted, and how far the student moved", figures=figures)


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


def _curriculum(arms: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    charts, rows = [], []
    for name, more in (("difficulty", "harder"), ("length", "longer")):
        found = {arm: own["curriculum"][name] for arm, own in arms.items() if name in own["curriculum"]}
        if found:
            marks = [
                (
                    arm,
                    [Mark(f"{arm}, seed {i + 1}", t["value"], t["low"], t["high"], "s2") for i, t in enumerate(trends)],
                )
                for arm, trends in found.items()
            ]
            charts.append(interval_chart(f"Towards {more} rationales", marks, x_label="change", reference=0.0))
            rows += [(arm, name, i + 1, t["value"], t["low"], t["high"])
                     for arm, trends in found.items() for i, t in enumerate(trends)]  # fmt: skip
    look = (
        "How the rank correlation of weight and difficulty (at first reading), or length, changed from the first to "
        "the last part of training; a mark a seed, intervals over problems. Right of 0 is a curriculum: easy first, "
        "hard later. Each run's own report shows the curve."
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
            marks = [
                (name, [Mark(f"seed {i + 1}", value, css=css) for i, value in enumerate(values)])
                for name, values in drifts.items()
                if values
            ]
            charts += [interval_chart(title, marks, x_label=label)] if marks else []
        if charts:
            look = "How far next words and hidden states moved from the base's on the same prompts; a mark a seed."
            rows = [(name, own.get("kl"), own.get("shift"), own.get("cka")) for name, arm in arms.items()
                    if (own := arm["drift"].get(role))]  # fmt: skip
            table = Table(("arm", "KL", "shift", "CKA"), rows)
            figures.append(Figure(f"drift_{role}", f"Drift, {role}", look, charts, table))
    return figures
