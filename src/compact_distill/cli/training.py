"""Commands that lead from a configuration to a student, one or a study of many; the options that commands share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from compact_distill.errors import ConfigError, InputError, RunError
from compact_distill.runs.progress import say, show

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
RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")]


def load(path: Path, settings: list[str], max_errors: float | None = None) -> Any:
    """The run's configuration, with what the command line replaces."""
    from compact_distill.config.file import load_config

    more = {} if max_errors is None else {"generation.max_errors": max_errors}
    given = {**overrides(settings), **more}
    config = load_config(path, given)
    home = path.absolute().parent
    of_a_run = path.name == "config.yaml" and (home / "manifest.json").is_file()
    if of_a_run and "output" not in given and Path(config.output).resolve() != home.resolve():
        say(
            f"the run folder {path.parent} is used where it stands, not at {config.output} as its file says; other "
            "relative paths start at the current folder"
        )
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
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set must be KEY=VALUE, got {setting!r}; as in --set train.max_steps=10")
        try:
            values[key] = parse_value(value)
        except ConfigError as error:
            raise ConfigError([f"--set {key}: {problem}" for problem in error.problems]) from error
    return values


def check_folder(path: Path, *inputs: str | Path) -> None:
    """Refuse a folder for results that is an input, lies in one, or is a file, before any work is done for it."""
    _refuse_inputs(path, inputs)
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise ConfigError(f"{path} starts with ~, which the shell has not expanded; write the folder out")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} must be a folder to write into, but is a file; choose another name")


def _refuse_inputs(path: Path, inputs: Sequence[str | Path]) -> None:
    from compact_distill.runs.folder import RunFolder

    for folder in path.resolve().parents:
        with contextlib.suppress(RunError):  # no run
            own = RunFolder.open(folder).written_at(path, with_rationales=True)
            if own is not None:
                raise ConfigError(f"{path} must not be a file that a run writes, or lie in {own}; choose another name")
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


# ---- commands


def demo(
    output: Annotated[Path, typer.Option(help="Folder for data, runs and results.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of student, problems, teachers and training.")] = 0,
) -> None:
    """Run a generated arithmetic task, end to end.

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
        error = InputError(pipeline.validate_run(run_config) if run_config else [])
        error.told = len(problems)
        raise error
    prepared = prepare(run_config)
    show(f"{config} is valid")
    if dry_run:
        show(pipeline.dry_run(prepared))


def generate(
    config: ConfigArgument,
    max_errors: MaxErrorsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count requests, prompt tokens and cost. Nothing is sent.")
    ] = False,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Ask the teachers for rationales.

    Each answer is stored at once and verified. Only what the stores lack is asked for, so a stopped or killed run
    goes on where it was. Ctrl-C finishes what is in flight; a second one drops it.

    \b
    Example:
      compact generate my-run.yaml --dry-run
    """
    from compact_distill.teachers import stages

    run_config = load(config, settings, max_errors)
    if dry_run:
        show(stages.plan(run_config))
        return
    show(f"rationales: {stages.ask_teachers(run_config)}")


def verify(config: ConfigArgument, settings: SetOption = []) -> None:  # noqa: B006
    """Check the teachers' answers again.

    Every stored answer is extracted and compared anew, by today's rules and gold answers. Nothing is asked.

    \b
    Example:
      compact verify my-run.yaml
    """
    from compact_distill.teachers import stages
    from compact_distill.teachers.training_data import render

    run_config = load(config, settings)
    count = stages.verify_teachers(run_config)
    show(f"verified {count} answers\n{render(stages.table(run_config))}")


def teachers(config: ConfigArgument, settings: SetOption = []) -> None:  # noqa: B006
    """Show what the stores hold.

    For each teacher its rows, those of this configuration, usable and correct ones, mean length in tokens, cost, and
    on how many problems it gives the same answer as each other teacher.

    \b
    Example:
      compact teachers my-run.yaml
    """
    from compact_distill.teachers import stages
    from compact_distill.teachers.training_data import render

    show(render(stages.table(load(config, settings))))


def train(
    config: ConfigArgument,
    every_epoch: EveryEpochOption = False,
    discard: DiscardOption = False,
    verify: VerifyOption = False,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Train the student on existing rationales.

    A run that was stopped goes on from its newest complete checkpoint.

    \b
    Example:
      compact train my-run.yaml --set output=runs/second
    """
    from compact_distill import pipeline

    folder = pipeline.train(load(config, _with_every_epoch(settings, every_epoch)), discard, verify)
    show(f"student: {folder.student_path}")


def run(
    config: ConfigArgument,
    max_errors: MaxErrorsOption = None,
    every_epoch: EveryEpochOption = False,
    discard: DiscardOption = False,
    verify: VerifyOption = False,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Run all stages, each from where it stopped.

    A stage that is done is skipped; a stage whose inputs changed is done again. Ends with the run's report.

    \b
    Example:
      compact run my-run.yaml
    """
    from compact_distill import pipeline
    from compact_distill.report import summary

    run_config = load(config, _with_every_epoch(settings, every_epoch), max_errors)
    folder = pipeline.run(run_config, discard, verify, tell=lambda read: show(summary(read)))
    if not folder.is_follower:
        show(f"report: {folder.report_path}")


def study(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="YAML file; see `compact init --study`.")],
    jobs: Annotated[int, typer.Option(min=1, help="Steps at a time; they share the cores.")] = 1,
    arms: Annotated[list[str], typer.Option(help="Run this arm only; repeat it, or divide by commas.")] = [],  # noqa: B006
    seeds: Annotated[list[str], typer.Option(help="Run this seed only; repeat it, or divide by commas.")] = [],  # noqa: B006
    data: Annotated[
        str | None, typer.Option(envvar="COMPACT_DATA", help="Folder where the base's files are looked for first.")
    ] = None,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Compare ways to weigh rationales: arms x seeds, one table.

    Every run is an ordinary run folder. Stopped or killed, the same command goes on; an arm that fails does not stop
    the others. --arms and --seeds run a part; what else is finished is shown beside it. --set replaces values of the
    base.

    \b
    Example:
      compact study my-study.yaml --jobs 2
      compact study my-study.yaml --arms compact,equal --seeds 0 --set student=my-student
    """
    from compact_distill.study.arms import load_study
    from compact_distill.study.findings import describe, write_results
    from compact_distill.study.page import write_page
    from compact_distill.study.run import run_study

    outcome = run_study(load_study(study_file, overrides(settings), data), jobs, _listed(arms), _numbers(seeds))
    document, costs = write_results(outcome)
    for line in describe(document, costs):
        show(line)
    show(f"study: {write_page(outcome.out, document, costs)}, study.csv, study.json and costs.json")
    if outcome.failed:
        raise typer.Exit(1)


def diagnose(
    config: ConfigArgument,
    problems: Annotated[int, typer.Option(min=5, help="Problems whose rationales are tried.")] = 12,
    validation: Annotated[int, typer.Option(min=1, help="Other problems that the loss is measured on.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for diagnosis.html and diagnosis.json.")] = Path("diagnosis"),
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Find out before training which scores know what helps this student.

    One step on each rationale of a sample, taken back afterwards: how much does the loss on right rationales of other
    problems fall, and which score, weight or teacher predicts that? The time it takes is told before it starts.

    \b
    Example:
      compact diagnose my-run.yaml --problems 20
    """
    from compact_distill.study import diagnose as study

    run_config = load(config, settings)
    check_folder(out, run_config.student, *run_config.rationales)
    document = study.diagnose(run_config, problems, validation)
    for line in study.describe(document):
        show(line)
    show(f"page: {study.write_diagnosis(document, out)}")


def _listed(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _numbers(values: list[str]) -> list[int]:
    try:
        return [int(value) for value in _listed(values)]
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers, got {', '.join(values)}; as in --seeds 0,1") from None


def _with_every_epoch(settings: list[str], every_epoch: bool) -> list[str]:
    return [*settings, "eval.every_epoch=true"] if every_epoch else settings
