"""Commands that do a run's work: ask teachers, score, train, all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compact_distill.cli.options import (
    ConfigArgument,
    DiscardOption,
    EveryEpochOption,
    MaxErrorsOption,
    SetOption,
    VerifyOption,
    check_target,
    load,
    overrides,
)
from compact_distill.errors import ConfigError
from compact_distill.runs.progress import show


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


def score(
    student: Annotated[str, typer.Option(help="Folder or hub name of the student.")],
    data: Annotated[str, typer.Option(help="Problems with rationales: JSONL, Parquet, datasets folder or hub name.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write, one line a problem.")],
    config: Annotated[Path | None, typer.Option(help="YAML file whose settings of the scores are used.")] = None,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Score and weigh rationales with a student.

    Nothing is trained. One line a problem, in the order of the input: id, teachers, consensus, adaptability,
    difficulty and weights.

    \b
    Example:
      compact score --student Qwen/Qwen2.5-0.5B --data rationales.jsonl --out scores.jsonl
    """
    from compact_distill import pipeline
    from compact_distill.config.file import config_from, load_config

    check_target(out, student, data, *([config] if config else []))
    given = {**overrides(settings), "student": student, "rationales": data}
    summary = pipeline.score_file(load_config(config, given) if config else config_from({}, given), out)
    show(f"wrote {out}: {summary}")


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
    from compact_distill.report import read_run, summary

    folder = pipeline.run(load(config, _with_every_epoch(settings, every_epoch), max_errors), discard, verify)
    if not folder.is_follower:
        show(summary(read_run(folder.path)))
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
    the others. --set replaces values of the base.

    \b
    Example:
      compact study my-study.yaml --jobs 2
      compact study my-study.yaml --arms compact,equal --seeds 0 --set student=my-student
    """
    from compact_distill.study.arms import load_study
    from compact_distill.study.page import write_page
    from compact_distill.study.results import describe, write_results
    from compact_distill.study.run import run_study

    asked = load_study(study_file, overrides(settings), data).only(_listed(arms), _numbers(seeds))
    outcome = run_study(asked, jobs)
    document, costs = write_results(outcome)
    for line in describe(document, costs):
        show(line)
    show(f"study: {write_page(outcome.out, document, costs)}, study.csv, study.json and costs.json")
    if outcome.failed:
        raise typer.Exit(1)


def diagnose(
    config: ConfigArgument,
    problems: Annotated[int, typer.Option(min=2, help="Problems whose rationales are tried.")] = 12,
    validation: Annotated[int, typer.Option(min=1, help="Other problems that the loss is measured on.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for diagnosis.html and diagnosis.json.")] = Path("diagnosis"),
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Find out before training which scores know what helps this student.

    One step on each rationale of a sample, taken back afterwards: how much does the loss on right rationales of other
    problems fall, and which score, weight or teacher predicts that? The cost is told after the first step.

    \b
    Example:
      compact diagnose my-run.yaml --problems 20
    """
    from compact_distill.study import diagnose as study

    document = study.diagnose(load(config, settings), problems, validation)
    for line in study.describe(document):
        print(line)
    print(f"page: {study.write_diagnosis(document, out)}")


def _listed(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _numbers(values: list[str]) -> list[int]:
    try:
        return [int(value) for value in _listed(values)]
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers, got {', '.join(values)}; as in --seeds 0,1") from None


def _with_every_epoch(settings: list[str], every_epoch: bool) -> list[str]:
    return [*settings, "eval.every_epoch=true"] if every_epoch else settings
