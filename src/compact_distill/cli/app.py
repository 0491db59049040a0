"""The `compact` command: its errors and exit codes, and the arguments that several commands share.

Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from compact_distill.errors import CompactError, ConfigError, InputError
from compact_distill.runs.progress import say, show

# What the user did is wrong (2, as for wrong arguments); stopped by Ctrl-C (128 + SIGINT).
_BAD_INPUT, _INTERRUPTED = 2, 130
_OF_THE_SYSTEM = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EFBIG, errno.EIO,
    errno.EMFILE, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip
# How safetensors (a disk that is full, a file too large) and torch put it.
_OF_LIBRARIES = ("No space left on device", "os error 28", "os error 27", "PytorchStreamWriter failed writing")


class _Commands(TyperGroup):
    """Commands in the order of work; errors made on purpose end as a message, never as a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            for problem in error.problems:
                say(f"error: {problem}")
            if len(error.problems) > 1:
                say(f"{len(error.problems)} errors; nothing was done")
        except CompactError as error:
            say(f"error: {error}")
        except (OSError, RuntimeError) as error:
            told = _of_the_system(error)
            if told is None:
                raise
            say(f"error: {told}")
        except KeyboardInterrupt:
            say("stopped")
            raise typer.Exit(_INTERRUPTED) from None
        raise typer.Exit(_BAD_INPUT)


def _of_the_system(error: Exception) -> str | None:
    """What to tell of a disk that is full, a place that cannot be written or a name too long; None for other errors."""
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; free space or choose another place; what is finished stays, and run again"
    # torch and safetensors have errors of their own for it.
    text = str(error)
    if any(sign in text for sign in _OF_LIBRARIES):
        return f"the disk is full ({text.strip().splitlines()[0][:120]}); free space and run again"
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


ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run; see `compact init`.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the file, as --set train.max_steps=10."),
]
MaxErrorsOption = Annotated[
    float | None,
    typer.Option("--max-errors", help="Share of rationales without an answer that fails the run [default: 0.1]."),
]
EveryEpochOption = Annotated[
    bool, typer.Option("--every-epoch", help="Measure the student on the benchmarks after each epoch.")
]
DiscardOption = Annotated[
    bool, typer.Option("--discard", help="Delete a student of other inputs instead of moving it aside.")
]
VerifyOption = Annotated[
    bool, typer.Option("--verify", help="Compare hashes of all that finished stages wrote, not only sizes.")
]
TaskOption = Annotated[
    list[str],
    typer.Option("--task", metavar="TASK", help="gsm8k, gsm8k=FILE, a file of problems, or a task's YAML; repeat it."),
]
RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")]


def load(path: Path, settings: list[str], max_errors: float | None = None) -> Any:
    """The run's configuration, with what the command line replaces."""
    from compact_distill.config.file import load_config
    from compact_distill.runs.progress import say

    more = {} if max_errors is None else {"generation.max_errors": max_errors}
    given = {**overrides(settings), **more}
    config = load_config(path, given)
    home = path.absolute().parent
    of_a_run = path.name == "config.yaml" and (home / "manifest.json").is_file()
    if of_a_run and "output" not in given and Path(config.output).resolve() != home.resolve():
        say(f"the run folder {path.parent} has been moved; it is used where it stands, not at {config.output}")
        config = load_config(path, {**given, "output": str(path.parent)})
    return config


def student_config(student: str, settings: list[str], more: dict[str, Any] | None = None) -> Any:
    """Settings of an evaluation that belongs to no run."""
    from compact_distill.config.file import config_from

    # A run needs a source of rationales; nothing reads it here.
    return config_from({"student": student, "rationales": "none"}, {**(more or {}), **overrides(settings)})


def overrides(settings: list[str]) -> dict[str, Any]:
    """`["train.max_steps=10"]` as `{"train.max_steps": 10}`, by the file's own rules."""
    from compact_distill.config.yaml import parse_value

    values = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set must be KEY=VALUE, got {setting!r}; as in --set train.max_steps=10")
        values[key] = parse_value(value)
    return values


def check_folder(path: Path, *inputs: str | Path) -> None:
    """Refuse a folder for results that is an input, lies in one, or is a file, before any work is done for it."""
    _refuse_inputs(path, inputs)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} must be a folder to write into, but is a file; choose another name")


def _refuse_inputs(path: Path, inputs: Sequence[str | Path]) -> None:
    for source in map(Path, inputs):
        if path.resolve() == source.resolve() or (source.resolve() in path.resolve().parents and source.is_dir()):
            raise ConfigError(f"{path} must not be what is read, {source}, or lie in it; choose another name")


def check_target(path: Path, *inputs: str | Path) -> None:
    """Refuse a file that cannot be written, or is an input, before any work is done for it."""
    _refuse_inputs(path, inputs)
    if path.is_dir():
        raise ConfigError(f"{path} must be a file to write, but is a folder; add a file name")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: folder {path.parent} does not exist; make it first")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ConfigError(f"{path} cannot be written: no permission; choose another place")
