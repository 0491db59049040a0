"""Commands to begin with: the demo, a first configuration, its check, the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compact_distill.cli.options import (
    ConfigArgument,
    SetOption,
    check_target,
    overrides,
)
from compact_distill.errors import ConfigError, InputError
from compact_distill.runs.progress import say, show


def demo(
    output: Annotated[Path, typer.Option(help="Folder for data, runs and results.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of student, problems, teachers and training.")] = 0,
) -> None:
    """Run the embedded world, end to end.

    Makes a small student and four teachers, trains COMPACT, plain averaging and averaging of the right rationales
    from the same start with as many steps, and examines all on new problems and on what the student knew before.
    Minutes on a CPU; no download.

    \b
    Example:
      compact demo --seed 1 --output runs/demo-1
    """
    from compact_distill.study.demo import run_demo, show

    show(run_demo(output, seed))


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("compact.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    study: Annotated[bool, typer.Option("--study", help="Write a study file instead: arms x seeds.")] = False,
) -> None:
    """Write a commented configuration.

    Every key with its default and meaning; put your student and your rationales or teachers in. --study: what to
    compare, starting from such a configuration.

    \b
    Example:
      compact init my-run.yaml
    """
    from compact_distill.config.file import template
    from compact_distill.runs.files import atomic_write
    from compact_distill.study.arms import study_template

    if path.exists() and not force:
        raise ConfigError(f"{path} exists already; choose another name or pass --force to replace it")
    check_target(path)
    with atomic_write(path) as file:
        file.write(study_template() if study else template())
    then = f"compact study {path}" if study else f"compact validate {path} --dry-run"
    show(f"wrote {path}; edit it, then: {then}")


def validate(
    config: ConfigArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Also count problems, rationales and tokens. Nothing is trained.")
    ] = False,
    settings: SetOption = [],  # noqa: B006 - typer wants a list
) -> None:
    """Check a configuration; all errors at once.

    Data and student are checked too. --dry-run adds what the run would read, drop and do.

    \b
    Example:
      compact validate my-run.yaml --dry-run
    """
    from compact_distill import pipeline
    from compact_distill.config.file import load_sound_part
    from compact_distill.training.prepare import prepare

    run_config, problems = load_sound_part(config, overrides(settings))
    if run_config is None or problems:
        # The file's own errors at once; whether data and student are there may take a while.
        for problem in problems:
            say(f"error: {problem}")
        raise InputError(pipeline.validate_run(run_config) if run_config else [])
    prepared = prepare(run_config)
    show(f"{config} is valid")
    if dry_run:
        show(pipeline.dry_run(prepared))


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
    from compact_distill.runs.environment import store_doctor

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda needs a GPU that torch sees; torch.cuda.is_available() is False; use cpu")
    where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
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
