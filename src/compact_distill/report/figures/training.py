"""How training went: losses, gradient norm, throughput, memory."""

from __future__ import annotations

import math
from typing import Any

from compact_distill.report.charts import Line, line_chart
from compact_distill.report.figure import Figure, Table
from compact_distill.report.figures.oneliners import python
from compact_distill.report.read import RunData

TRAIN_POINTS = 200  # of a curve; more log lines are averaged

# Key of the training log, title, and whether zero belongs to its axis.
CURVES = (
    ("loss", "Loss, nats", False),
    ("loss_likelihood", "Likelihood term, nats per token", False),
    ("loss_consistency", "Consistency term, nats", True),
    ("grad_norm", "Gradient norm", True),
    ("problems_per_second", "Throughput, problems per second", True),
    ("memory_mib", "Peak memory, MiB", True),
)


def training(run: RunData) -> Figure | None:
    """All curves of the training log."""
    rows = [row for row in run.log if _number(row.get("loss")) is not None]
    if not rows:
        return None
    group = math.ceil(len(rows) / TRAIN_POINTS)
    keys = [key for key, *_ in CURVES if any(_number(row.get(key)) is not None for row in rows)]
    points = [rows[i : i + group] for i in range(0, len(rows), group)]
    epochs = [_mean([_number(row.get("epoch")) for row in part]) for part in points]
    sheets, columns = [], [epochs]
    for key, title, zero in CURVES:
        if key in keys:
            values = [[_number(row.get(key)) for row in part] for part in points]
            means = [_mean(part) for part in values]
            low, high = ([_extreme(part, pick) for part in values] for pick in (min, max))
            line = Line(key, means, 0, low if group > 1 else (), high if group > 1 else (), css="s0")
            sheets.append(line_chart(title, epochs, [line], x_label="epoch", zero=zero, labels=False))
            columns.append(means)
    lines = f"Each point is the mean of {group} log lines, the band their range. " if group > 1 else ""
    return Figure(
        "training",
        "Loss, gradients, speed and memory",
        "The loss should fall fast, then slowly; one that rises again, or gradient norms that grow, hint at a learning "
        "rate that is too high. The likelihood is weighted, so it also moves when the weights do. Throughput should be "
        f"level: dips are pauses to save or evaluate, or a busy machine. {lines}"
        "Memory is the peak so far, of the accelerator or of the process.",
        sheets,
        Table(("epoch", *keys), list(zip(*columns, strict=True))),
        python(
            "d=pd.read_json('training_log.jsonl',lines=True); d=d[d.loss.notna()].reset_index(drop=True); "
            f"d=d.groupby(d.index//-(-len(d)//{TRAIN_POINTS})).mean(numeric_only=True); "
            f"print(d[['epoch',*(k for k in {[key for key, *_ in CURVES]} if k in d)]].to_csv(index=False))",
            "import pandas as pd; ",
        ),
    )


def loss_curve(run: RunData) -> list[tuple[float, float]]:
    """(epoch, loss) of at most `TRAIN_POINTS` points."""
    figure = training(run)
    return [(row[0], row[1]) for row in figure.table.rows] if figure and figure.table.columns[1] == "loss" else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mean(values: list[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else math.nan


def _extreme(values: list[float | None], pick: Any) -> float:
    known = [v for v in values if v is not None]
    return float(pick(known)) if known else math.nan
