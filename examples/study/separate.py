"""Do scores and weights tell right rationales from wrong ones, before any training?

    python separate.py read STUDENT DATA OUT [--first N] [--skip N]    reads each problem twice, once per estimator
    python separate.py read STUDENT DATA OUT --defaults ...            reads it once: the default scores and weights
    python separate.py table OUT [OUT ...] [--grid]                    AUC within problems, from what was read

A problem counts, and is read, where it has right and wrong rationales; its AUC is the share of its (right, wrong)
pairs in which the right one has more (ties count half). The table has means over problems and 95 % bootstrap intervals.
`--grid` weighs with all combinations of a small grid of settings and sorts them: use it on tuning rows alone.
docs/results.md says what came out.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compact_distill import (
    CompatibilityConfig,
    Encoder,
    Instance,
    RuleSettings,
    Scorer,
    StudentOutputs,
    adaptability,
    attach,
    compatibility_weights,
    consensus,
    load_instances,
    load_student,
    plan_jobs,
    read_job,
)

FURTHER = {"rank_surprisal": 1.0, "local_naturalness": 1.0, "agreement": 1.0}
CHUNK = 16  # problems that are planned together
LESS_IS_BETTER = ("difficulty", "rank_surprisal")


def read(student: str, data: str, out: Path, first: int | None, skip: int, defaults: bool) -> None:
    """Write a line a problem: verdicts, and each score of each estimator, gain, pooling and attention."""
    instances = load_instances(data)[skip:][:first]
    model, tokenizer = load_student(student, dtype=torch.float32)
    attach(model.eval())
    lines: dict[str, dict[str, Any]] = {}
    configs = [
        CompatibilityConfig(estimator=estimator, gain="positive", pool=pool, extra_scores=FURTHER)
        for estimator, pool in (("lens", "last"), ("probe", "attention"))
    ]
    for config in [CompatibilityConfig()] if defaults else configs:
        for identity, line in scored(model, Encoder(tokenizer), Scorer(config), instances):
            lines.setdefault(identity, {"id": identity}).update(line)
    out.write_text("".join(json.dumps(line) + "\n" for line in lines.values()), encoding="utf-8")


def scored(
    model: Any, encoder: Encoder, scorer: Scorer, instances: Sequence[Instance]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each problem's id and, for its present rationales, whether they are right, their lengths and all scores."""
    options = scorer.pass_options(0.0)
    judge = Scorer(CompatibilityConfig(extra_scores={"agreement": 1.0}))  # answers are compared only where that counts
    encoded = (problem for _, problem in judge.encode(encoder, instances))
    mixed = (problem for problem in encoded if 0 < len(problem.right) < len(problem.present))
    while chunk := list(itertools.islice(mixed, CHUNK)):
        for job in plan_jobs(chunk, options, 4096, torch.device("cpu")):
            with torch.no_grad():
                outputs = read_job(model, job, options)
                scores = scorer.scores(outputs)
                weights = {"weights of the defaults": scorer.weights(scores, job.problems)}
                values = variants(outputs, scorer) if "agreement" in scores else scores | weights
            for b, problem in enumerate(job.problems):
                present = list(problem.present)
                line = {name: [round(row, 7) for row in value[b, present].tolist()] for name, value in values.items()}
                yield (
                    problem.id,
                    {
                        "teachers": [problem.teachers[k] for k in present],
                        "right": [k in problem.right for k in present],
                        **line,
                    },
                )


def variants(outputs: StudentOutputs, scorer: Scorer) -> dict[str, torch.Tensor]:
    """All scores that one pass gives under any settings, by name."""
    config = scorer.config
    values = {f"consensus {config.pool} {kind}": consensus(outputs, kind) for kind in ("joint", "heads")}
    for gain in ("positive", "net", "peak"):
        values[f"{config.estimator} {gain}"] = adaptability(outputs, gain, config.off_weight)
    plain = scorer.scores(outputs)
    values |= {name: plain[name] for name in ("difficulty", *FURTHER)}
    return values | {"length": outputs.length_BK.float()}


def auc(values: Sequence[float], right: Sequence[bool]) -> float:
    """Share of (right, wrong) pairs in which the right one has more; ties count half."""
    good = [v for v, r in zip(values, right, strict=True) if r]
    bad = [v for v, r in zip(values, right, strict=True) if not r]
    return float(np.mean([0.5 * ((g > b) + (g >= b)) for g in good for b in bad]))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over problems, and the 95 % bootstrap interval of it."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.mean(values)), float(low), float(high)


def weigh(line: dict[str, Any], names: dict[str, str], settings: RuleSettings) -> list[float]:
    """The method's weights of one problem; `names` says which variant each score is."""
    scores = {score: torch.tensor([line[variant]], dtype=torch.float64) for score, variant in names.items()}
    present = torch.ones(1, len(line["right"]), dtype=torch.bool)
    return compatibility_weights(scores, settings.coefficients, present, settings.temperature)[0].tolist()


def table(lines: Sequence[dict[str, Any]], grid: bool) -> None:
    """Print the AUC of every score, then of weights: the published ones and the default, or a whole grid."""
    print(f"{len(lines)} problems with right and wrong rationales")
    for name in (n for n in lines[0] if n not in ("id", "teachers", "right")):
        sign = -1 if name in LESS_IS_BETTER else 1
        title = f"{name}{' (less is better)' if sign < 0 else ''}"
        show(title, [auc([sign * v for v in line[name]], line["right"]) for line in lines])
    rows = []
    for label, names, settings in candidates(grid):
        if not set(names.values()) <= set(lines[0]):
            continue  # read with --defaults
        weights = [weigh(line, names, settings) for line in lines]
        top = np.mean([max(row) for row in weights])
        values = [auc(row, line["right"]) for row, line in zip(weights, lines, strict=True)]
        rows.append((f"{label}  [mean top weight {top:.2f}]", values))
    for label, values in sorted(rows, key=lambda row: -np.mean(row[1])) if grid else rows:
        show(f"weights: {label}", values)


def show(label: str, values: Sequence[float]) -> None:
    """One line of the table."""
    mean, low, high = interval(values)
    print(f"{mean:.3f} [{low:.3f}, {high:.3f}]  {label}")


def candidates(grid: bool) -> Iterator[tuple[str, dict[str, str], RuleSettings]]:
    """Settings of the weights to look at: what each score is read by, and the coefficients."""
    paper, now = CompatibilityConfig(estimator="lens", attention="joint"), CompatibilityConfig()
    listed = [
        (f"{c.estimator} {c.gain}", f"consensus {c.pool} {c.attention}", c.consensus, c.adaptability, c.difficulty)
        for c in (paper, now)
    ]
    if grid:
        gains = [f"{e} {g}" for e in ("lens", "probe") for g in ("positive", "net", "peak")]
        kinds = [f"consensus {pool} {kind}" for pool in ("last", "attention") for kind in ("joint", "heads")]
        listed = list(itertools.product(gains, kinds, (0.0, 0.25, 0.5, 1.0), (1.0, 2.0), (0.0, 0.25, 0.5)))
    for gain, kind, b_c, b_a, b_d in listed:
        names = {"adaptability": gain, "consensus": kind, "difficulty": "difficulty"}
        settings = RuleSettings({"consensus": b_c, "adaptability": b_a, "difficulty": -b_d})
        yield f"{gain} x {b_a:g}, {kind} x {b_c:g}, difficulty x {-b_d:g}", names, settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    reader = commands.add_parser("read")
    reader.add_argument("student")
    reader.add_argument("data")
    reader.add_argument("out", type=Path)
    reader.add_argument("--first", type=int, default=None, help="problems")
    reader.add_argument("--defaults", action="store_true", help="read what the defaults need alone")
    reader.add_argument("--skip", type=int, default=0, help="problems before them")
    tables = commands.add_parser("table")
    tables.add_argument("files", type=Path, nargs="+")
    tables.add_argument("--grid", action="store_true")
    given = parser.parse_args()
    if given.command == "read":
        read(given.student, given.data, given.out, given.first, given.skip, given.defaults)
        return
    for file in given.files:
        print(f"== {file}")
        table([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()], given.grid)


if __name__ == "__main__":
    main()
