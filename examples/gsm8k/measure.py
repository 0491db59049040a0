"""Does the student trust right rationales more than wrong ones? Reads a run's scores.jsonl and the data's labels.

    python examples/gsm8k/measure.py --run runs/gsm8k --data gsm8k_four_teachers.jsonl

Prints, for each epoch, the mean weight of right and of wrong rationales and the area under the ROC curve of weight,
and of each score, against `is_correct` (0.5 is chance), over the problems that have both.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from sklearn.metrics import roc_auc_score

from compact_distill import read_jsonl

COLUMNS = ("weights", "consensus", "adaptability", "difficulty")


def read_labels(path: Path) -> dict[str, list[bool]]:
    """`is_correct` of each problem's rationales, in order."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    return {row["id"]: [r["is_correct"] for r in row["rationales"]] for row in rows}


def within_problems(values: list[float], labels: list[bool]) -> list[float]:
    """One area a problem: how often a right rationale of it stands above a wrong one of it."""
    return [roc_auc_score(labels, values)] if len(set(labels)) == 2 else []


def main() -> None:
    """Read a run, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the run folder, or a file that `compact score` wrote")
    parser.add_argument("--data", type=Path, required=True, help="training data with is_correct in each rationale")
    options = parser.parse_args()

    labels = read_labels(options.data)
    path = options.run / "scores.jsonl" if options.run.is_dir() else options.run
    epochs: dict[int, list[dict]] = defaultdict(list)
    for row in read_jsonl(path):
        epochs[int(row.get("epoch", 0))].append(row)
    print(
        f"{'epoch':>5} {'right':>7} {'wrong':>7}  " + "  ".join(f"AUC {c:<12}" for c in COLUMNS) + "  (within problems)"
    )
    for epoch, rows in sorted(epochs.items()):
        pooled: dict[str, list[float]] = defaultdict(list)
        within: dict[str, list[float]] = defaultdict(list)
        truth: list[bool] = []
        for row in rows:
            present = [k for k, value in enumerate(row["difficulty"]) if value is not None]
            right = [labels[row["id"]][k] for k in present]
            truth += right
            for column in COLUMNS:
                values = [row[column][k] for k in present]
                pooled[column] += values
                within[column] += within_problems(values, right)
        means = [
            sum(w for w, t in zip(pooled["weights"], truth, strict=True) if t is side) / truth.count(side)
            for side in (True, False)
        ]
        areas = [
            f"{roc_auc_score(truth, pooled[c]):.3f} ({sum(within[c]) / len(within[c]):.3f})".ljust(16) for c in COLUMNS
        ]
        print(f"{epoch:>5} {means[0]:>7.3f} {means[1]:>7.3f}  " + "  ".join(areas))


if __name__ == "__main__":
    main()
