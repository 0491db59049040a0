"""Verify answers; mathematics is compared by math-verify in worker processes that are killed on time-out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Timer
from types import TracebackType

from compact_distill.answers.compare import as_latex, compare_answers
from compact_distill.errors import RunError
from compact_distill.records import Verdict

_PROGRAM = Path(__file__).with_name("mathworker.py")
_START_SECONDS = 60.0  # importing sympy on a busy machine


class Verifier:
    """Compares answers with gold answers: at once where `compare_answers` can tell, else in a pool of processes.

    The processes start with the first pair that needs one. Use it as a context manager, or call `close`. It may be
    shared between threads.

    Args:
        workers: most processes at a time.
        timeout: seconds a worker may take for one pair; then it is killed and the verdict is `timed_out`.

    Raises:
        ValueError: `workers` or `timeout` is not positive.
    """

    def __init__(self, workers: int = 2, timeout: float = 5.0) -> None:
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}; use 1 for one process")
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, got {timeout}; use 5.0")
        self._closed = False
        self._workers = [_Worker(timeout) for _ in range(workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verify")

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all worker processes, also those that hang. A closed verifier still decides what needs no worker."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.stop()

    def verify(self, answer: str | None, gold: str) -> Verdict:
        """Compare one extracted answer (None: nothing was extracted) with the gold answer.

        Raises:
            RunError: a worker cannot start.
            ValueError: the gold answer is empty.
        """
        return self.verify_many([(answer, gold)])[0]

    def verify_many(self, pairs: Iterable[tuple[str | None, str]]) -> list[Verdict]:
        """Compare (answer, gold) pairs: one verdict a pair, in their order, whatever hangs or dies on the way.

        A worker that dies (out of memory) counts as `timed_out`: the comparison did not end within its limits.

        Raises:
            RunError: a worker cannot start, or is needed after `close`.
            ValueError: a gold answer is empty.
        """
        pairs = list(pairs)
        verdicts = [compare_answers(answer, gold) for answer, gold in pairs]
        undecided = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None]
        if undecided and self._closed:
            raise RunError("this Verifier is closed; make a new one to verify more answers")
        decided = self._threads.map(self._ask, undecided) if undecided else iter(())
        return [next(decided) if verdict is None else verdict for verdict in verdicts]

    def _ask(self, pair: tuple[str | None, str]) -> Verdict:
        worker = self._idle.get()
        try:
            return worker.ask(*pair)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, started when it is first asked and again after it was killed. One thread at a time may ask."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._lock = Lock()

    def ask(self, answer: str | None, gold: str) -> Verdict:
        request = json.dumps([self._timeout, as_latex(answer or ""), as_latex(gold)])
        while True:
            fresh = self._process is None
            if fresh:
                self._start()
            reply, expired = self._exchange(request, self._timeout)
            if reply is not None:
                return Verdict(reply)
            if fresh or expired:
                return Verdict.TIMED_OUT
            # It may have died of the pairs before this one, which therefore gets a process of its own.

    def kill(self) -> None:
        """Kill the process for good, from any thread; a thread that waits for its reply gets none."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def stop(self) -> None:
        """End the process and free what it held; the next question starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not sent to a dead process
                pipe.close()

    def _start(self) -> None:
        with self._lock:
            if self._closed:
                raise RunError("this Verifier was closed while it verified; its remaining pairs have no verdict")
            # A program of its own rather than a fork: the parent may hold torch's threads, and run any main module.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        greeting, _ = self._exchange(None, _START_SECONDS)
        if greeting != "ready":
            self.stop()
            reason = greeting or f"it said nothing within {_START_SECONDS:g} seconds"
            raise RunError(f"cannot start a process that runs math-verify: {reason}; check `pip show math-verify`")

    def _exchange(self, request: str | None, seconds: float) -> tuple[str | None, bool]:
        """Send a line; return the reply (None: the process died) and whether it was killed on time-out."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        expired = Event()

        def expire() -> None:
            expired.set()
            process.kill()

        alarm = Timer(seconds, expire)
        alarm.daemon = True
        alarm.start()
        try:
            if request is not None:
                process.stdin.write(request + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            alarm.cancel()
            alarm.join()
        if expired.is_set() or not line.endswith("\n"):
            self.stop()
        return json.loads(line) if line.endswith("\n") else None, expired.is_set()
