"""The `compact` command: its errors and exit codes, its commands in the order of work, and those about the machine.

Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from compact_distill.cli import evaluation, training
from compact_distill.errors import CompactError, ConfigError, InputError
from compact_distill.runs.progress import printable, say, show

__all__ = ["app"]

# What the user did is wrong (2, as for wrong arguments); stopped by Ctrl-C (128 + SIGINT).
_BAD_INPUT, _INTERRUPTED = 2, 130
_OF_THE_SYSTEM = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EFBIG, errno.EIO,
    errno.EMFILE, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip
# How safetensors (a disk that is full, a file too large) and torch put it.
_OF_LIBRARIES = (
    "No space left on device", "os error 28", "os error 27", "PytorchStreamWriter failed writing",
    "unexpected pos ", "iostream error",
)  # fmt: skip


class _Commands(TyperGroup):
    """Commands in the order of work; errors made on purpose end as a message, never as a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _usage_told_plainly():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _usage_told_plainly():
                return super().invoke(ctx)
        except InputError as error:
            for problem in error.problems:
                say(f"error: {problem}")
            if (count := error.told + len(error.problems)) > 1:
                say(f"{count} errors; nothing was done")
        except CompactError as error:
            say(f"error: {error}")
        except KeyboardInterrupt:
            say("stopped")
            raise typer.Exit(_INTERRUPTED) from None
        except Exception as error:
            told = _of_the_system(error)
            if told is None:
                raise
            say(f"error: {told}")
        raise typer.Exit(_BAD_INPUT)


@contextlib.contextmanager
def _usage_told_plainly() -> Iterator[None]:
    """A wrong word on the command line is repeated in the message: not so that the terminal obeys it."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # click's, whichever typer has
            error.message = printable(error.message)  # type: ignore[attr-defined]
        raise


def _of_the_system(error: Exception) -> str | None:
    """What to tell of a full disk or memory, a place that cannot be written, a name too long; None for other errors."""
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; free space or choose another place; what is finished stays, and run again"
    # torch and safetensors have errors of their own for it.
    text = str(error)
    if any(sign in text for sign in _OF_LIBRARIES):
        return f"the disk is full ({text.strip().splitlines()[0][:120]}); free space and run again"
    # torch.OutOfMemoryError, and a plain RuntimeError of its allocator on a CPU.
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: " in text:
        return (
            f"there is no memory for this ({text.strip().splitlines()[0][:160]}); lower max_tokens_per_pass, or set "
            "train.gradient_checkpointing: true (where texts are written: eval.batch_tokens); what is finished stays, "
            "and run again"
        )
    return None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        show(f"compact-distill {importlib.metadata.version('compact-distill')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train a small language model on the rationales of several teachers.

    Each rationale counts as much as it fits this student, now. Start with `compact demo`, or with `compact init` for
    data of your own.
    """
    # A locale without an arrow or a bar shows "?" for it, and no traceback.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    # Before anything imports them: one progress display is enough, and it is ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # torch asks once: whole pages of 2 MiB for large tensors. On a CPU freed memory is then used again, where the C
    # library would leave a third of it in pieces that fit nothing.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Libraries tell each other about changes to come; who runs a command cannot act on that.
    warnings.simplefilter("ignore", FutureWarning)


def env() -> None:
    """Print versions and hardware.

    For bug reports; no paths, user names or keys.

    \b
    Example:
      compact env
    """
    from compact_distill.runs.environment import hardware, last_doctor, versions

    for name, value in {**versions(), **hardware(), "doctor": last_doctor()}.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        show(f"{name}: {shown or 'none'}")


def doctor(
    student: Annotated[
        str | None, typer.Option(help="Hub name or folder: check at this student's own heads, sizes and norms.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: the accelerator where there is one.")] = "auto",
    seconds: Annotated[float, typer.Option(min=1, help="Start no further check after so many seconds.")] = 110.0,
) -> None:
    """Check that this machine computes what it should.

    Every kernel against its definition, and tiny students of every architecture in one pass, in two phases and with
    probes against a plain reading branch by branch, forward and backward, in each precision. Says which kernels
    training will use. Ends with 1 where something differs.

    \b
    Example:
      compact doctor --student Qwen/Qwen2.5-0.5B
    """
    import torch

    from compact_distill.method import doctor as exam
    from compact_distill.runs.environment import accelerator, store_doctor

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device must be auto, cpu or cuda, got {device!r}")
    where = torch.device(accelerator(device))
    if student is not None:
        exam.require_student(student)
    findings = []
    show(exam.heading())
    for finding in exam.examine(where, student, seconds):
        findings.append(finding)
        show(exam.line(finding))
    summary = exam.summary(findings, exam.training_uses(where, student))
    show(f"\n{summary}")
    store_doctor(summary, torch.cuda.get_device_name() if where.type == "cuda" else "CPU")
    if any(finding.verdict == "differs" for finding in findings):
        raise typer.Exit(1)


_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": training.demo,
    "init": training.init,
    "validate": training.validate,
    "generate": training.generate,
    "verify": training.verify,
    "teachers": training.teachers,
    "score": evaluation.score,
    "train": training.train,
    "run": training.run,
    "diagnose": training.diagnose,
    "study": training.study,
    "eval": evaluation.evaluate,
    "drift": evaluation.drift,
    "compare": evaluation.compare,
    "export": evaluation.export,
    "report": evaluation.report,
    "try": evaluation.try_out,
    "doctor": doctor,
    "env": env,
}

for name, command in _COMMANDS.items():
    app.command(name)(command)
