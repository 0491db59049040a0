"""Arguments that several commands share, and how they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from compact_distill.errors import ConfigError

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


def check_target(path: Path, *inputs: str | Path) -> None:
    """Refuse a file that cannot be written, or is an input, before any work is done for it."""
    for source in map(Path, inputs):
        if path.resolve() == source.resolve() or (source.resolve() in path.resolve().parents and source.is_dir()):
            raise ConfigError(f"{path} must not be what is read, {source}, or lie in it; choose another name")
    if path.is_dir():
        raise ConfigError(f"{path} must be a file to write, but is a folder; add a file name")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: folder {path.parent} does not exist; make it first")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ConfigError(f"{path} cannot be written: no permission; choose another place")
