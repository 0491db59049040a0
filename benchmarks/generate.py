"""The Teacher Pool's figures: rate, survival of kill -9, memory, time to resume. Prints them and writes JSON.

    python benchmarks/generate.py [--out FILE] [rate] [kill] [memory] [resume]

Needs Linux (it reads /proc and sends signals) and about 2 GB of disk in the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.records import Problem, Verdict
from compact_distill.teachers.pool import generate
from compact_distill.teachers.protocol import Prompting
from compact_distill.teachers.store import RowStatus, Store, StoredRow, StoreReader, text_digest
from compact_distill.teachers.worker import estimate

HERE = Path(__file__).parent


class Problems:
    """A stream of simple problems that can be read again and is never held in memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Problem]:
        return (Problem(id=f"p{i}", question=f"2 + 2, problem {i}", answer="4") for i in range(self.count))


def teacher(port: int, concurrency: int, samples: int = 1) -> TeacherConfig:
    """The stub as a teacher."""
    return TeacherConfig(
        name="stub", model="stub", base_url=f"http://127.0.0.1:{port}/v1", concurrency=concurrency, samples=samples
    )


@contextmanager
def stub(seconds: float, folder: Path) -> Iterator[tuple[int, Path]]:
    """The stub server in a process of its own; yields its port and its log."""
    log = folder / "server.log"
    command = [sys.executable, str(HERE / "stub_server.py"), str(seconds), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline()), log
        finally:
            server.kill()


def rate(folder: Path) -> dict[str, float]:
    """Requests a second, store and verification included, against a slow and an instant server."""
    results = {}
    for name, seconds, count in (("slow", 0.2, 2000), ("instant", 0.0, 4000)):
        here = folder / name
        here.mkdir()
        with stub(seconds, here) as (port, _):
            generate([teacher(port, 64)], GenerationConfig(), Problems(20), here / "warm-up")
            began = time.monotonic()
            (counts,) = generate([teacher(port, 64)], GenerationConfig(), Problems(count), here / "store")
            ended = time.monotonic()
        rows = list(StoreReader(here / "store", "stub").rows())
        assert len(rows) == count
        assert all(row.verdict is Verdict.CORRECT for row in rows)
        working = ended - counts.began
        results[f"{name}: requests a second"] = count / working
        if seconds:
            rounds = -(-count // 64)
            results["slow: share of 64 / 0.2 s"] = count / working / (64 / seconds)
            results["slow: share of what whole rounds allow"] = rounds * seconds / working
        results[f"{name}: seconds for locks, plan and preflight"] = counts.began - began
    return results


def kill(folder: Path, times: int = 20, count: int = 2000) -> dict[str, float]:
    """Kill a run at random moments and resume it; check what the promise says."""
    store = folder / "store"
    rng = random.Random(0)
    lost_late = kills = 0
    with stub(0.2, folder) as (port, log):
        command = [sys.executable, __file__, "--worker", str(port), str(store), str(count)]
        while kills < times:
            began_at = time.time()
            worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            try:
                worker.wait(rng.uniform(1.0, 4.0))
            except subprocess.TimeoutExpired:
                worker.send_signal(signal.SIGKILL)
                worker.wait()
            else:  # it finished: begin anew with more problems
                count += 1000
                command[-1] = str(count)
            killed_at = time.time()
            kills += 1
            stored = {row.id for row in StoreReader(store, "stub").rows()}
            answered = (line.split("\t") for line in log.read_text().splitlines())
            lost_late += sum(
                began_at < float(at) < killed_at - 1 and f"p{question.rpartition(' ')[2]}" not in stored
                for question, _, at in answered
                if "problem" in question
            )
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        asked = Counter(line.split("\t")[0] for line in log.read_text().splitlines() if "problem" in line)
    rows = Counter((row.id, row.sample) for row in StoreReader(store, "stub").rows())
    repeated = sum(n - 1 for n in asked.values())
    return {
        "kills": kills,
        "problems": count,
        "rows missing": count - len(rows),
        "rows twice": sum(n > 1 for n in rows.values()),
        "answers lost that were more than a second old": lost_late,
        "requests sent again (in flight at a kill)": repeated,
    }


def memory(folder: Path) -> dict[str, float]:
    """Peak resident memory for 10,000 and 100,000 problems, in MiB."""
    peaks = {}
    with stub(0.0, folder) as (port, _):
        for count in (10_000, 100_000):
            code = (
                "import resource, sys; sys.argv = ['generate.py', '--worker', *sys.argv[1:]]; import runpy; "
                f"runpy.run_path({str(HERE / 'generate.py')!r}, run_name='__main__'); "
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
            )
            command = [sys.executable, "-c", code, str(port), str(folder / f"store{count}"), str(count)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            peaks[f"MiB for {count} problems"] = float(done.stdout)
    return peaks


def resume(folder: Path, count: int = 400_000) -> dict[str, float]:
    """Seconds until a store of 400,000 rows is open, and until what is missing is known."""
    config = teacher(1, 1)
    prompting = Prompting(config)
    reasoning = "We add the two numbers, step by step, and look at what comes out.\n" * 20
    digest = text_digest("", reasoning + "The answer is 4.")
    with Store(folder, "stub") as store:
        for problem in Problems(count):
            store.append(
                StoredRow(
                    problem.id, "stub", 0, prompting.key(problem), RowStatus.OK, Verdict.CORRECT, digest,
                    reasoning + "The answer is 4.", "", "4", "4", "stop", 60, 120, 0.2, None, "stub",
                    "2026-01-01T00:00:00.000+00:00",
                )
            )  # fmt: skip
    size = store.path.stat().st_size
    began = time.perf_counter()
    with Store(folder, "stub") as store:
        opened = time.perf_counter() - began
        assert len(store) == count
    began = time.perf_counter()
    left = estimate(config, Problems(count), StoreReader(folder, "stub"), GenerationConfig())
    planned = time.perf_counter() - began
    assert left.requests == 0, left
    return {"rows": count, "MB": size / 1e6, "seconds to open": opened, "seconds to open and plan": planned}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["rate", "kill", "memory", "resume"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=3, metavar=("PORT", "STORE", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        port, store, count = arguments.worker
        generate([teacher(int(port), 64)], GenerationConfig(), Problems(int(count)), Path(store))
        return
    results: dict[str, object] = {"machine": f"{platform.machine()}, Python {platform.python_version()}"}
    for part in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            measured = {"rate": rate, "kill": kill, "memory": memory, "resume": resume}[part](Path(folder))
        results[part] = measured
        for name, value in measured.items():
            print(f"{part:8} {name:60} {value:12.3f}", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
