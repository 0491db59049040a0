"""Reading without training: `compact score` beside a plain forward of the same texts, and loading many problems.

    python benchmarks/reading.py STUDENT DATA                 # problems a second: lens, probe, plain forward
    python benchmarks/reading.py STUDENT DATA --load 100000   # and seconds and memory to load that many problems
    python benchmarks/reading.py STUDENT DATA --gains         # only: what the report wants to read again after training

STUDENT is a model's folder or hub name, DATA training data as JSONL. The plain forward is transformers' own on prompt +
completion of each rationale, one sequence at a time and four padded together, with the completion's loss: what one
would read difficulty alone with. Contenders read all problems in turn; medians of rounds after one that warms up.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compact_distill import CompatibilityConfig, Encoder, load_instances, load_student, score
from compact_distill.config.file import config_from
from compact_distill.runs.folder import RunFolder
from compact_distill.training.prepare import prepare
from compact_distill.training.run import read_gains, train_student
from measure import MemoryMeter, describe_machine
from workload import sequences


def main() -> int:
    """Read, and print one table; rows of JSON with `--out`."""
    options = parse()
    found: dict[str, Any] = {"machine": describe_machine("cpu"), "problems": options.problems, "rounds": options.rounds}
    if options.gains:
        found["gains"] = read_again(options)
        print(gains_line(found["gains"]))
    else:
        found["reading"] = read(options)
        if options.load:
            found["loading"] = {what: load(options.data, options.load, what) for what in ("list", "first")}
        print_tables(found)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="model folder or hub name")
    parser.add_argument("data", type=Path, help="training data, JSONL")
    parser.add_argument("--problems", type=int, default=40, help="problems that are read in a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that are timed, after one that warms up")
    parser.add_argument("--load", type=int, metavar="N", help="also load N problems, made by repeating DATA")
    parser.add_argument("--gains", action="store_true", help="train an epoch, then read what its report wants")
    parser.add_argument("--out", type=Path, help="write what was measured as JSON")
    return parser.parse_args()


# ---- reading


def read(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds a round, problems a second and peak memory of each contender."""
    model, tokenizer = load_student(options.student)
    plain, _ = load_student(options.student)  # `score` takes over the attention of its own
    plain.eval()
    instances = load_instances(options.data, limit=options.problems)
    encoder = Encoder(tokenizer)
    rows = list(sequences(map(encoder, instances)))

    def scored(estimator: str) -> None:
        config = CompatibilityConfig(estimator=estimator)
        for _ in score(model, tokenizer, instances, config):
            pass

    contenders: dict[str, Callable[[], None]] = {
        "score, lens": lambda: scored("lens"),
        "score, probe (default)": lambda: scored("probe"),
        "plain forward, one at a time": lambda: forward(plain, rows, 1),
        "plain forward, four padded": lambda: forward(plain, rows, 4),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    processor: dict[str, list[float]] = {name: [] for name in contenders}
    peaks = dict.fromkeys(contenders, 0)
    for number in range(options.rounds + 1):
        print(f"  round {number}/{options.rounds}{'' if number else ' (warm-up)'}", file=sys.stderr)
        for name, contender in contenders.items():
            meter = MemoryMeter("cpu")
            meter.start()
            start, cpu = time.perf_counter(), time.process_time()
            contender()
            if number:
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - cpu)
                peaks[name] = max(peaks[name], meter.stop())
    return {
        name: {
            "problems_per_second": len(instances) / statistics.median(seconds[name]),
            "processor_seconds": statistics.median(processor[name]),
            "peak_mib": peaks[name] / 2**20,
        }
        for name in contenders
    }


def forward(model: Any, rows: list[tuple[list[int], list[int]]], batch: int) -> None:
    """Loss of each completion by transformers' own forward, longest rows together."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        width = max(len(ids) for ids, _ in part)
        ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in part])
        labels = torch.tensor([row + [-100] * (width - len(row)) for _, row in part])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in part])
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, labels=labels)


# ---- reading again


def read_again(options: argparse.Namespace) -> dict[str, float]:
    """Processor seconds of an epoch of training (LoRA, defaults), and of reading a sample again with its student."""
    with tempfile.TemporaryDirectory() as folder:
        lines, few = options.data.read_text(encoding="utf-8").splitlines(), Path(folder) / "few.jsonl"
        few.write_text("\n".join(lines[: options.problems]) + "\n", encoding="utf-8")
        settings = {"student": options.student, "rationales": str(few), "output": f"{folder}/run"}
        prepared = prepare(config_from({**settings, "train": {"num_train_epochs": 1, "report_to": "none"}}))
        start = time.process_time()
        with RunFolder.claim(f"{folder}/run") as run:
            train_student(prepared, run)
            trained = time.process_time()
            rows = list(read_gains(prepared, run.student_path, epochs=1.0))
        return {"training": trained - start, "gains": time.process_time() - trained, "lines": len(rows)}


def gains_line(found: dict[str, float]) -> str:
    """The two costs and their quotient."""
    share = found["gains"] / found["training"]
    return (
        f"training {found['training']:.1f} processor s; reading again for the report {found['gains']:.1f} "
        f"({found['lines']:.0f} lines), {100 * share:.1f} % of it"
    )


# ---- loading


def load(data: Path, count: int, what: str) -> dict[str, float]:
    """Seconds and peak memory to load `count` problems in a process of its own.

    `list`: `load_instances` of all of them. `first`: of the first 200, which the rest of the file must not slow down.
    """
    with tempfile.TemporaryDirectory() as folder:
        big = Path(folder) / "problems.jsonl"
        repeat(data, big, count)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_load, (big, None if what == "list" else 200))


def repeat(data: Path, big: Path, count: int) -> None:
    """A file of `count` problems: those of `data` again and again, under ids of their own."""
    lines = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines() if line.strip()]
    with big.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps({**lines[number % len(lines)], "id": str(number)}) + "\n")


def _load(path: Path, limit: int | None) -> dict[str, float]:
    meter = MemoryMeter("cpu")
    meter.start()
    start = time.perf_counter()
    instances = load_instances(path, limit=limit)
    seconds = time.perf_counter() - start
    peak = meter.stop()
    size = sum(len(r.text) for instance in instances for r in instance.rationales)
    return {"problems": len(instances), "seconds": seconds, "peak_mib": peak / 2**20, "text_mib": size / 2**20}


def print_tables(found: dict[str, Any]) -> None:
    """What was measured, as text."""
    reading = found["reading"]
    base = reading["plain forward, one at a time"]
    print("| | problems a second | processor seconds a round | of the plain forward's | peak, MiB |")
    print("| --- | --: | --: | --: | --: |")
    for name, row in reading.items():
        share = row["processor_seconds"] / base["processor_seconds"]
        numbers = f"{row['problems_per_second']:.2f} | {row['processor_seconds']:.1f} | {share:.2f}"
        print(f"| {name} | {numbers} | {row['peak_mib']:,.0f} |")
    for what, row in found.get("loading", {}).items():
        print(
            f"loading ({what}): {row['problems']:,.0f} problems in {row['seconds']:.1f} s, "
            f"{row['peak_mib']:,.0f} MiB for {row['text_mib']:,.0f} MiB of rationales"
        )


if __name__ == "__main__":
    sys.exit(main())
