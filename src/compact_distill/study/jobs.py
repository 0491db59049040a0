"""Steps of a study as processes: what waits for what, several at a time; none outlives the study that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from compact_distill.errors import ConfigError
from compact_distill.runs.files import Lock
from compact_distill.runs.progress import duration, say

# The study holds the other end of each step's standard input: it is closed when the study ends, even by kill -9.
_CHILD = """
import importlib, os, signal, sys, threading, traceback
def _end_with_the_study():
    while os.read(0, 4096):
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(1)
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=_end_with_the_study, daemon=True).start()
module, _, name = sys.argv.pop(1).partition(":")
try:
    getattr(importlib.import_module(module), name)()
except Exception as error:
    traceback.print_exc()
    print("error:", (str(error).strip() or type(error).__name__).splitlines()[0], file=sys.stderr)
    sys.exit(1)
"""
THREADS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")  # how many threads torch takes: the first that is set
_REASON_LETTERS = 300
_LOCK_SECONDS = 60.0  # for what is left of a killed study to end


@dataclass(frozen=True)
class StudyStep:
    """One step.

    Attributes:
        name: what the user sees, and the name of its log.
        command: makes `module:function` and its arguments when it is its turn; None: there is nothing to do.
        needs: names of steps that must have gone well before.
    """

    name: str
    command: Callable[[], Sequence[str] | None]
    needs: tuple[str, ...] = ()


def threads_a_step(jobs: int) -> int:
    """Threads of a new study's steps: what the user's environment says, else the cores divided among the jobs."""
    for name in THREADS:
        asked = os.environ.get(name, "").partition(",")[0].strip()
        if asked.isdecimal() and int(asked):
            return int(asked)
    return max(1, (os.cpu_count() or 1) // jobs)


def run_jobs(
    jobs: Sequence[StudyStep], at_once: int, environment: Mapping[str, str], logs: Path, lock: Lock | None = None
) -> dict[str, str]:
    """Run steps, `at_once` at a time, each as soon as what it needs is done; one that fails does not stop the others.

    Args:
        jobs: the steps; what one needs stands before it.
        at_once: how many processes.
        environment: set for the processes, whatever the user's own says: results depend on it.
        logs: folder of what they print.
        lock: a shared one; the processes hold it too, so that it holds as long as one of them lives.

    Returns:
        For each step that failed, why: the last line that it printed, or what it needed.

    Raises:
        KeyboardInterrupt, SystemExit: after the running steps were told to stop, and have stopped.
    """
    logs.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    done: set[str] = set()
    waiting = list(jobs)
    running: dict[Future[str | None], StudyStep] = {}
    processes = _Processes({**os.environ, **environment}, logs, lock)
    with ThreadPoolExecutor(at_once) as pool, _sigterm_raises():
        try:
            while waiting or running:
                for job in [job for job in waiting if len(running) < at_once]:
                    broken = [name for name in job.needs if name in failed]
                    if broken:
                        failed[job.name] = f"needs {broken[0]}, which failed"
                        waiting.remove(job)
                    elif len(running) < at_once and all(name in done for name in job.needs):
                        waiting.remove(job)
                        running[pool.submit(processes.run, job)] = job
                if not running:
                    continue
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    job, reason = running.pop(future), future.result()
                    if reason is None:
                        done.add(job.name)
                    else:
                        failed[job.name] = reason
        except BaseException:
            processes.stop()
            raise
    return failed


def hold(out: Path) -> Lock:
    """A study's lock, which its processes hold as well; waits for those of a killed study to end.

    Raises:
        ConfigError: the folder holds other files than a study's, or is a file.
        RunError: another study holds it.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"output must be a folder, but {out} is a file; choose another")
    if out.exists() and not (out / "inputs.json").exists() and any(not p.name.startswith(".") for p in out.iterdir()):
        raise ConfigError(f"output must be new, empty or a study's folder, but {out} holds other files; choose another")
    out.mkdir(parents=True, exist_ok=True)
    return Lock(out / ".study.lock", out, shared=True, patience=_LOCK_SECONDS)


class _Processes:
    """The processes that run now."""

    def __init__(self, environment: Mapping[str, str], logs: Path, lock: Lock | None) -> None:
        self._environment = dict(environment)
        self._logs = logs
        self._lock = lock
        self._running: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._stopped = False

    def run(self, job: StudyStep) -> str | None:
        """Run a step to its end; returns why it failed, None where it did not."""
        try:
            command = job.command()
        except Exception as error:  # a step that cannot even be made is that step's failure alone
            return f"{type(error).__name__}: {error}"
        if command is None:
            return None
        started = time.monotonic()
        log = self._logs / f"{job.name.replace('/', '.')}.log"
        say(f"study: {job.name} started")
        with log.open("ab") as out:
            start = out.tell()  # earlier attempts wrote what stands before it
            with self._guard:
                if self._stopped:
                    return "stopped before it started"
                process = subprocess.Popen(
                    [sys.executable, "-c", _CHILD, *command],
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,  # so that Ctrl-C in the terminal reaches it once, through stop()
                    pass_fds=() if self._lock is None else (self._lock.fileno(),),
                )
                self._running.add(process)
            code = process.wait()
        with self._guard:
            self._running.discard(process)
        if process.stdin is not None:
            process.stdin.close()
        took = duration(time.monotonic() - started)
        if code == 0:
            say(f"study: {job.name} done, {took}")
            return None
        reason = f"killed by signal {-code}" if code < 0 else _last_line(log, start) or f"exit code {code}"
        say(f"study: {job.name} failed after {took}: {reason} (see {log})")
        return reason

    def stop(self) -> None:
        """Ask all processes to stop in good order: a training saves a checkpoint."""
        with self._guard:
            self._stopped = True
            for process in self._running:
                # Written, not signalled: a step that still starts reads it later, and one of a study that a script
                # started in the background inherits that interrupts are ignored.
                if process.stdin is not None:
                    with contextlib.suppress(BrokenPipeError):  # it has ended
                        os.write(process.stdin.fileno(), b"stop")
        say("study: stopping; the same command goes on")


class _sigterm_raises:
    """Within the block SIGTERM raises SystemExit(143), so that it ends in good order; only in the main thread."""

    def __enter__(self) -> None:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)


def _last_line(log: Path, start: int) -> str:
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    found = errors[-1].removeprefix("error:").strip() if errors and errors[-1] in lines[-5:] else "".join(lines[-1:])
    return found[:_REASON_LETTERS]
