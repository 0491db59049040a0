"""What goes on beside training: progress, metrics, log, checkpoints that are sealed, a stop in good order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME

from compact_distill.errors import RunError
from compact_distill.method.encode import EncodedProblem
from compact_distill.method.loss import LossTerms
from compact_distill.runs.environment import peak_memory_mib
from compact_distill.runs.files import StepLog, atomic_write, content_hash, give_ordinary_modes, read_jsonl
from compact_distill.runs.progress import Progress, progress, say


class ShowProgress(TrainerCallback):
    """Counts optimizer steps, with the loss and the seconds left, in place of transformers' own bar."""

    def __init__(self) -> None:
        self._shown: Progress | None = None
        self._stack = contextlib.ExitStack()
        self._step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._step = state.global_step
            if self._step:
                say(f"train: goes on after step {self._step} of {state.max_steps}")
            self._shown = self._stack.enter_context(progress("train", state.max_steps, state.global_step))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self._shown is not None and logs and "loss" in logs:
            self._shown.advance(0, note=f"epoch {float(state.epoch or 0):.2f}, loss {float(logs['loss']):.4f}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._shown is not None:
            self._shown.advance(state.global_step - self._step)
            self._step = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stack.close()
        self._shown = None


class TrainingMetrics:
    """What is logged of the steps since the last log line, over accumulation steps, ranks and parts of the run.

    Names: `loss` (mean over steps), and as means over problems `weight/TEACHER`, `wins/TEACHER` (share of the problems
    where it has the largest weight; ties are shared), `consensus/TEACHER` ..., `weight_entropy` (nats),
    `loss_likelihood`, `loss_consistency` (before its coefficient).

    Attributes:
        sums: by name, this rank's sum and the count that it is divided by.
    """

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def _add(self, name: str, value: float, count: float = 1.0) -> None:
        entry = self.sums[name]
        entry[0] += value
        entry[1] += count

    def add(
        self,
        problems: Sequence[EncodedProblem],
        scores: Mapping[str, Tensor],
        weights_BK: Tensor,
        terms: LossTerms,
    ) -> None:
        """Take in a job's scores [B, K] and weights [B, K] (on the CPU) and its summed loss terms."""
        self._add("loss_likelihood", float(terms.likelihood), len(problems))
        self._add("loss_consistency", float(terms.consistency), len(problems))
        values = {name: score.tolist() for name, score in scores.items()}
        for b, (problem, weights) in enumerate(zip(problems, weights_BK.tolist(), strict=True)):
            present = [weights[k] for k in problem.present]
            best = max(present)
            winners = present.count(best)
            positive = weights_BK[b][weights_BK[b] > 0]
            self._add("weight_entropy", float(-(positive * positive.log()).sum()))
            for k in problem.present:
                teacher = problem.teachers[k]
                self._add(f"weight/{teacher}", weights[k])
                self._add(f"wins/{teacher}", 1 / winners if weights[k] == best else 0.0)
                for name, rows in values.items():
                    self._add(f"{name}/{teacher}", rows[b][k])

    def add_loss(self, loss: float, ends_step: bool, ranks: int) -> None:
        """Take in a batch's part of its step's loss; ranks' losses are averaged."""
        self._add("loss", loss / ranks, ends_step / ranks)

    def totals(self) -> dict[str, list[float]]:
        """The sums of all ranks."""
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for part in gather_object([dict(self.sums)]):
            for name, (value, count) in part.items():
                totals[name][0] += value
                totals[name][1] += count
        return dict(totals)

    def collect(self) -> dict[str, float]:
        """Means over all ranks since the last call; starts anew."""
        totals = self.totals()
        self.sums.clear()
        return {name: value / count for name, (value, count) in totals.items() if count}


class TrainingHistory(TrainerCallback):
    """Appends a line for each time the trainer logs; a resumed run cuts off what came after its checkpoint.

    A line holds what was logged, by its own names, and `step`, `epoch`, `seconds` (spent training so far),
    `problems_per_second` (since the line before) and `memory_mib` (peak so far: of the accelerator, or of the process
    where there is none). docs/report.md describes the file.

    Attributes:
        seconds, memory_mib: of the newest line; a run that went on counts all its parts, but no steps taken twice.
        losses: by step, the mean over the steps since the line before, of all parts too.
    """

    def __init__(self, path: Path) -> None:
        self._log = StepLog(path)
        self.seconds = self.memory_mib = 0.0
        self.losses: dict[int, float] = {}
        self._seconds_before = 0.0
        self._problems = 0
        self._started = self._last = time.monotonic()
        self._last_epoch = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._log.truncate(state.global_step + 1)  # a line is written after its step
            kept = list(read_jsonl(self._log.path))
            self.seconds = self._seconds_before = _largest(row.get("seconds") for row in kept)
            self.memory_mib = _largest(row.get("memory_mib") for row in kept)
            self.losses = {row["step"]: row["loss"] for row in kept if isinstance(row.get("loss"), float)}
            loader = kwargs.get("train_dataloader")
            self._problems = len(loader.dataset) if loader is not None else 0
            self._started = self._last = time.monotonic()
            self._last_epoch = float(state.epoch or 0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        now, epoch = time.monotonic(), float(state.epoch or 0.0)
        self.seconds = round(self._seconds_before + now - self._started, 3)
        self.memory_mib = max(self.memory_mib, peak_memory_mib())
        self.losses |= {state.global_step: float(logs["loss"])} if "loss" in logs else {}
        line: dict[str, Any] = {
            "step": state.global_step,
            "epoch": round(epoch, 6),
            "seconds": self.seconds,
            "memory_mib": self.memory_mib,
        }
        if epoch > self._last_epoch:
            read = (epoch - self._last_epoch) * self._problems
            line["problems_per_second"] = round(read / max(now - self._last, 1e-9), 4)
            self._last, self._last_epoch = now, epoch
        self._log.write([line | {name: _plain(value) for name, value in logs.items() if name not in line}])

    @property
    def loss(self) -> float:
        """Mean loss of the steps that are logged, of all parts of the run."""
        before = [0, *sorted(self.losses)]
        total = sum(loss * (step - before.pop(0)) for step, loss in sorted(self.losses.items()))
        return total / max(self.losses, default=1)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._log.sync()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._log.close()


def _largest(values: Iterable[Any]) -> float:
    return max((float(value) for value in values if isinstance(value, int | float)), default=0.0)


def _plain(value: Any) -> Any:
    """A logged value as JSON has it: None for NaN and infinity."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class StopInOrder(TrainerCallback):
    """As a callback and a `with` block around training: saves a checkpoint and stops on SIGINT or SIGTERM.

    A second signal stops at once. When the block ends, a stopped program goes on to end as the signal asks:
    KeyboardInterrupt for SIGINT, exit code 143 for SIGTERM. With several ranks nothing is caught: their launcher
    stops them at different steps, and only a checkpoint that all of them write is of use.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopInOrder:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self.received is not None:
            _end(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            _end(number)
        self.received = number
        say("stopping after this step, with a checkpoint; once more to stop at once")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.received is not None and args.world_size == 1:
            control.should_save = True
            control.should_training_stop = True


def _end(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether an error is that of a collective whose partner is gone; gloo raises plain RuntimeErrors for it."""
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "connection was likely closed")
    return isinstance(error, torch.distributed.DistError) or any(sign in str(error).lower() for sign in signs)


def lost_rank(error: RuntimeError, rank: int, step: int) -> RunError:
    """That error as one that its reader can act on."""
    return RunError(
        f"rank {rank} lost another rank at step {step} ({str(error).strip().splitlines()[0][:200]}); see that rank's "
        "own output for why it ended, then start all ranks again: training goes on from the newest complete checkpoint"
    )


# ---- only complete checkpoints are resumed: a seal, written last, lists every file of a checkpoint with its hash
#
# transformers resumes a checkpoint whose optimizer file is missing without a word, with other weights than the
# uninterrupted run; here a damaged checkpoint is named and the newest complete one before it is taken.

SEAL = "complete.json"
STATE = "compact_state.json"


def tidy(student: Path, args: Any) -> None:
    """After transformers and peft have saved a folder: settings as JSON instead of a pickle, and no empty card.

    Weights get the permissions of any other file.
    """
    (student / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    (student / "README.md").unlink(missing_ok=True)  # peft's, with a path of this machine
    (student / "training_args.json").write_text(args.to_json_string(), encoding="utf-8")
    give_ordinary_modes(student)


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """The folders `checkpoint-N`, in the order of their steps; others that are called so are a user's own."""
    named = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*")]
    return sorted((int(match[1]), path) for match, path in named if match)


@contextlib.contextmanager
def no_rotation(args: Any) -> Iterator[None]:
    """Keep transformers from removing checkpoints: it takes every folder called checkpoint-..., a user's copy too."""
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit


def rotate(newest: Path, keep: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints beyond `keep`, as `save_total_limit` asks; not the newest, and not the best."""
    protected = {newest, Path(best) if best else newest}
    found = [path for _, path in numbered(newest.parent)]
    spare = len(found) - max(keep, len(protected)) if keep and keep > 0 else 0
    for path in [path for path in found if path not in protected][: max(spare, 0)]:
        shutil.rmtree(path)


def seal(checkpoint: Path) -> None:
    """Write the list of the checkpoint's files; a checkpoint counts from this moment on."""
    files = {
        str(path.relative_to(checkpoint)): content_hash(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != SEAL
    }
    with atomic_write(checkpoint / SEAL) as file:
        json.dump(files, file, indent=1)


def damage(checkpoint: Path, to_go_on: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None where it is complete; `to_go_on`: with all that training needs of it."""
    path = checkpoint / SEAL
    if not path.is_file():
        return f"no {SEAL}: it was interrupted while it was written"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return f"{SEAL} is not valid JSON"
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        return f"{SEAL} lists no files"
    if not any(name.endswith(".safetensors") or "/" in name for name in files):  # shards lie in folders
        return f"{SEAL} lists no weights"
    for name, expected in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if content_hash(file) != expected:
            return f"{name} has changed since it was written"
    if to_go_on and not any(name.startswith("rng_state") for name in files):
        return f"{SEAL} lists weights alone, nothing of the optimizer's state (train.save_only_model)"
    return None


def trace_so_far(trace: Path) -> dict[str, Any]:
    """What a checkpoint keeps of the trace as it stands: its size in bytes and hash."""
    if not trace.exists():
        return {"trace_bytes": 0, "trace_sha256": hashlib.sha256().hexdigest()}
    return {"trace_bytes": trace.stat().st_size, "trace_sha256": content_hash(trace)}


def trace_damage(checkpoint: Path, trace: Path) -> str | None:
    """How a trace differs from what it was when a checkpoint was written, or None where it has only grown."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        size, expected = int(state["trace_bytes"]), str(state["trace_sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        return f"{STATE} cannot be read ({error!r})"
    digest, left = hashlib.sha256(), size
    if trace.exists():
        with trace.open("rb") as file:
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    if left:
        return f"{trace.name} lacks {left} of its {size} bytes"
    return None if digest.hexdigest() == expected else f"{trace.name} has changed since"


def newest_complete(folder: Path) -> Path | None:
    """The newest complete `checkpoint-N` of a folder, or None where there is no checkpoint at all.

    Raises:
        RunError: there are checkpoints, and none is complete.
    """
    found = numbered(folder)
    for _, path in reversed(found):
        wrong = damage(path)
        if wrong is None:
            return path
        say(f"checkpoint {path} cannot be gone on from ({wrong}); falling back to the one before it")
    if found:
        raise RunError(
            f"none of the {len(found)} checkpoints in {folder} is complete; move them elsewhere to start anew"
        )
    return None


def require_complete(checkpoint: Path, to_go_on: bool = True) -> Path:
    """Return the checkpoint if it is complete, as `damage` has it.

    Raises:
        RunError: it is not.
    """
    wrong = damage(checkpoint, to_go_on) if checkpoint.is_dir() else "no such folder"
    if wrong is not None:
        what = "resume from" if to_go_on else "use"
        raise RunError(f"cannot {what} {checkpoint}: {wrong}; name a complete checkpoint")
    return checkpoint
