"""Does the one pass change what a student learns? Trains as a configuration says, with two ways of reading.

    python benchmarks/outcome.py --config run.yaml --out build/outcome

Once with the package as it is, once with each problem read alone and each branch from the prompt's start (naive.py);
trainer, loss, order, optimizer and examination are the same. Prints time, loss, weights and examination of both; with
`--seeds 0 1` for each seed, which shows how much of a difference is chance. Estimator `lens`; all rationales present.
"""

from __future__ import annotations

import argparse
import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from compact_distill import pipeline
from compact_distill.config.file import load_config
from compact_distill.config.models import RunConfig
from compact_distill.evaluation.result_files import BASE, STUDENT, read_result, result_path, tasks_done
from compact_distill.method.forward import PassOptions
from compact_distill.method.outputs import StudentOutputs
from compact_distill.method.packing import lay_out
from compact_distill.method.passes import Job
from compact_distill.runs.files import read_jsonl
from compact_distill.runs.folder import RunFolder
from naive import naive_outputs


def main() -> None:
    """Train twice a seed, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="as for `compact run`; its `output` is not used")
    parser.add_argument("--out", type=Path, required=True, help="folder for the run folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of training")
    options = parser.parse_args()
    config = load_config(options.config)
    lines = []
    for seed in options.seeds:
        for name, reading in (("one pass", contextlib.nullcontext()), ("branch by branch", read_branch_by_branch())):
            output = options.out / f"{name.replace(' ', '-')}-{seed}"
            with reading:
                run = pipeline.run(config.model_copy(update={"seed": seed, "output": str(output)}))
            lines.append({"seed": seed, "reading": name, **outcome(run, config)})
    columns = list(dict.fromkeys(column for line in lines for column in line))
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for line in lines:
        print("| " + " | ".join(str(line.get(column, "")) for column in columns) + " |")


@contextlib.contextmanager
def read_branch_by_branch() -> Iterator[None]:
    """Let the trainer read each problem alone, and each of its branches as a sequence of its own."""

    def plan(problems: list[Any], options: PassOptions, *limits: Any) -> list[Job]:
        return [Job([problem], (lay_out([problem], options.with_gold),)) for problem in problems]

    def read(model: Any, job: Job, options: PassOptions) -> StudentOutputs:
        assert options.max_probes is None, "the naive pass has no probes; set compatibility.estimator to lens"
        return naive_outputs(model, job.problems[0])

    with (
        mock.patch("compact_distill.training.trainer.plan_jobs", plan),
        mock.patch("compact_distill.training.trainer.read_job", read),
    ):
        yield


def outcome(run: RunFolder, config: RunConfig) -> dict[str, str]:
    """Seconds of training, losses, mean weights in the last epoch, and accuracy before and after."""
    trained = run.stage_summary("train")
    losses = [row["loss"] for row in read_jsonl(run.training_log_path) if row.get("loss") is not None]
    found = {
        "seconds": f"{trained['seconds']:.0f}",
        "mean loss": f"{trained['loss']:.4f}",
        "first, last loss": f"{losses[0]:.3f}, {losses[-1]:.3f}",
    }
    rows = list(read_jsonl(run.scores_path))
    weights: dict[str, list[float]] = defaultdict(list)
    for row in rows[len(rows) - len(rows) // int(config.train.get("num_train_epochs", 1)) :]:
        for teacher, weight in zip(row["teachers"], row["weights"], strict=True):
            weights[teacher].append(weight)
    found |= {f"weight of {teacher}": f"{sum(w) / len(w):.3f}" for teacher, w in weights.items()}
    for task in tasks_done(run.eval_path / STUDENT):
        before, after = (
            read_result(result_path(run.eval_path / label, task))["result"]["accuracy"] for label in (BASE, STUDENT)
        )
        found[task] = f"{100 * before:.1f} to {100 * after:.1f} %"
    return found


if __name__ == "__main__":
    main()
