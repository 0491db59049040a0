"""What goes on beside training: it shows how far it is, and stops in good order on Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback

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
