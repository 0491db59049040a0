"""Time contenders against each other: a process each, alive side by side, training in turns.

In every round each contender trains one epoch over its problems while the others sleep, so that whatever slows the
machine down for a while slows all of them; ratios are taken within a round. The first round warms up and is dropped.
What is timed is the whole epoch of the trainer: data loading, forward, backward, clipping, optimizer, logging.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from contenders import TOY_VOCABULARY, Shared, build
from measure import MemoryMeter, matmul_rate, synchronise
from workload import Shape, Workload, make_model

_SETTLE_SECONDS = 0.3  # threads of a contender that just finished spin for a moment
_REHEARSAL = Shape(layers=1, width=64, heads=2, kv_heads=1, feed_forward=128, vocabulary=TOY_VOCABULARY)


@dataclass(frozen=True)
class Entry:
    """One contender in a race: its label there, which contender it is, and what it trains on."""

    label: str
    contender: str
    workload: Workload


@dataclass
class Result:
    """What was measured of one entry, or why it failed.

    Attributes:
        seconds: of each round, wall time a problem.
        cpu_seconds: of each round, processor time of all threads a problem; it hardly depends on what else runs.
        peak: bytes.
        loss: mean over all steps; contenders that train on the same loss must agree.
        failure: what went wrong.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak: int = 0
    loss: float = float("nan")
    failure: str | None = None


@dataclass(frozen=True)
class Race:
    """Results by label, and the machine's matmul rate in each round (operations a second)."""

    results: dict[str, Result]
    rates: list[float]


def race(entries: Sequence[Entry], setup: Shared, say: Callable[[str], None]) -> Race:
    """Run all entries in turns and collect their times and peaks. An entry that fails leaves the race, and says why."""
    runners = {entry.label: _Runner(entry, setup) for entry in entries}
    results = {entry.label: Result() for entry in entries}
    rates: list[float] = []
    try:
        for label, runner in runners.items():
            runner.wait_ready(results[label])
        for number in range(setup.rounds + 1):
            if number:
                rates.append(matmul_rate(setup.device, setup.dtype, seconds=0.2))
            turn = number % len(entries)
            for entry in [*entries[turn:], *entries[:turn]]:
                result = results[entry.label]
                if result.failure is None:
                    time.sleep(_SETTLE_SECONDS)
                    took = runners[entry.label].train_round(result)
                    if number and took is not None:
                        wall, cpu = took
                        result.seconds.append(wall / len(entry.workload.problems))
                        result.cpu_seconds.append(cpu / len(entry.workload.problems))
            say(f"  round {number}/{setup.rounds}" + (" (warm-up)" if not number else ""))
        for label, runner in runners.items():
            runner.finish(results[label])
    finally:
        for runner in runners.values():
            runner.close()
    for label, result in results.items():
        if result.failure is not None:
            say(f"  {label} failed: {result.failure}")
    return Race(results, rates)


class _Runner:
    """The parent's end of a contender's process."""

    def __init__(self, entry: Entry, setup: Shared) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, entry, setup), daemon=True)
        self._process.start()
        theirs.close()

    def wait_ready(self, result: Result) -> None:
        self._receive(result)

    def train_round(self, result: Result) -> tuple[float, float] | None:
        """Let it train one epoch; wall and processor seconds, or None where it failed."""
        self._pipe.send("go")
        return self._receive(result)

    def finish(self, result: Result) -> None:
        if result.failure is None and (end := self._receive(result)) is not None:
            result.peak, result.loss = end

    def _receive(self, result: Result) -> Any:
        try:
            message = self._pipe.recv()
        except EOFError:
            self._process.join()
            message = RuntimeError(f"its process ended with code {self._process.exitcode} (out of memory?)")
        if isinstance(message, RuntimeError):
            result.failure = str(message)
            result.seconds.clear()
            return None
        return message

    def close(self) -> None:
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()


def _run(pipe: Connection, entry: Entry, setup: Shared) -> None:
    """The contender's process: rehearse, build, then train a round whenever told."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    try:
        pipe.send(_train(pipe, entry, setup))
    except (EOFError, BrokenPipeError):  # the parent has gone
        return
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"))


def _train(pipe: Connection, entry: Entry, setup: Shared) -> tuple[int, float]:
    from transformers.utils import logging

    from compact_distill.students.load import load_tokenizer

    logging.set_verbosity_error()
    tokenizer = load_tokenizer(setup.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        _rehearse(entry, setup, tokenizer, folder)
        model = setup.model()
        trainer = build(entry.contender, model, tokenizer, setup, entry.workload, folder)
        expected = entry.workload.steps * (setup.rounds + 1)
        trainer.add_callback(_turns(pipe, setup.device))
        meter = MemoryMeter(setup.device)
        meter.start()
        pipe.send("ready")
        loss = trainer.train().training_loss
        if trainer.state.global_step != expected:
            raise ValueError(f"{trainer.state.global_step} optimizer steps, not {expected}: unequal work")
        return meter.stop(), loss


def _rehearse(entry: Entry, setup: Shared, tokenizer: Any, folder: str) -> None:
    """Train a toy for a step, so that libraries and thread pools loaded on first use are not counted as memory."""
    shape = replace(_REHEARSAL, vocabulary=max(TOY_VOCABULARY, len(tokenizer)))
    model, toy = make_model(shape, setup.dtype, setup.device), setup.toy(entry.workload)
    build(entry.contender, model, tokenizer, setup, toy, f"{folder}/rehearsal").train()


def _turns(pipe: Connection, device: str) -> Any:
    """A callback that waits for the parent before each epoch and tells it how long the epoch took."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        start = (0.0, 0.0)

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            pipe.recv()
            synchronise(device)
            self.start = time.perf_counter(), time.process_time()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronise(device)
            wall, cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
            if device == "cuda":
                torch.cuda.empty_cache()  # the others need the room
            pipe.send((wall, cpu))

    return Turns()
