"""The training log: what the trainer logs, with time, throughput and memory, as lines of a file in the run folder."""

from __future__ import annotations

import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from compact_distill.runs.folder import StepLog, read_trace


class TrainingHistory(TrainerCallback):
    """Appends a line for each time the trainer logs; a resumed run cuts off what came after its checkpoint.

    A line holds what was logged, by its own names, and `step`, `epoch`, `seconds` (spent training so far),
    `problems_per_second` (since the line before) and `memory_mib` (peak so far: of the accelerator, or of the process
    where there is none). docs/report.md describes the file.
    """

    def __init__(self, path: Path) -> None:
        self._log = StepLog(path)
        self._seconds_before = 0.0
        self._problems = 0
        self._started = self._last = time.monotonic()
        self._last_epoch = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._log.truncate(state.global_step + 1)  # a line is written after its step
            kept = [row.get("seconds", 0.0) for row in read_trace(self._log.path)]
            self._seconds_before = max(kept, default=0.0)
            loader = kwargs.get("train_dataloader")
            self._problems = len(loader.dataset) if loader is not None else 0
            self._started = self._last = time.monotonic()
            self._last_epoch = float(state.epoch or 0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        now, epoch = time.monotonic(), float(state.epoch or 0.0)
        line: dict[str, Any] = {
            "step": state.global_step,
            "epoch": round(epoch, 6),
            "seconds": round(self._seconds_before + now - self._started, 3),
            "memory_mib": _peak_memory_mib(),
        }
        if epoch > self._last_epoch:
            read = (epoch - self._last_epoch) * self._problems
            line["problems_per_second"] = round(read / max(now - self._last, 1e-9), 4)
            self._last, self._last_epoch = now, epoch
        self._log.write([line | {name: _plain(value) for name, value in logs.items() if name not in line}])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._log.sync()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._log.close()


def _plain(value: Any) -> Any:
    """A logged value as JSON has it: None for NaN and infinity."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _peak_memory_mib() -> float:
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
