"""The `compact` command: reads arguments, calls the pipeline, prints. Results on stdout, progress on stderr."""

from __future__ import annotations

import enum
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from compact_distill.errors import CompactError, ConfigError, InputError

# What the user did is wrong (2, as for wrong arguments); stopped by Ctrl-C (128 + SIGINT).
_BAD_INPUT, _INTERRUPTED = 2, 130


class _Commands(TyperGroup):
    """Commands in the order of work; errors made on purpose end as a message, never as a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr)
            if len(error.problems) > 1:
                print(f"{len(error.problems)} errors; nothing was done", file=sys.stderr)
        except CompactError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise typer.Exit(_INTERRUPTED) from None
        raise typer.Exit(_BAD_INPUT)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run; see `compact init`.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the file, as --set train.max_steps=10."),
]


MaxErrorsOption = Annotated[
    float | None,
    typer.Option("--max-errors", help="Share of rationales without an answer that fails the run [default: 0.1]."),
]


class ExportFormat(enum.StrEnum):
    """Row shapes that other trainers read."""

    PROMPT_COMPLETION = "prompt_completion"
    MESSAGES = "messages"


def _version(show: bool) -> None:
    if show:
        import importlib.metadata

        print(f"compact-distill {importlib.metadata.version('compact-distill')}")
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
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Libraries tell each other about changes to come; who runs a command cannot act on that.
    warnings.simplefilter("ignore", FutureWarning)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for data, runs and results.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of student, problems, teachers and training.")] = 0,
) -> None:
    """Run the embedded world, end to end.

    Makes a small student and four teachers, trains COMPACT and plain averaging from the same start with the same
    budget, and examines both on new problems and on what the student knew before. Minutes on a CPU; no download.

    \b
    Example:
      compact demo --seed 1 --output runs/demo-1
    """
    from compact_distill.demo import run_demo, show

    show(run_demo(output, seed))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("compact.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a commented configuration.

    It is valid as it stands; edit student and rationales.

    \b
    Example:
      compact init my-run.yaml
    """
    from compact_distill.config_template import template
    from compact_distill.files import atomic_write

    if path.exists() and not force:
        raise ConfigError(f"{path} exists already; choose another name or pass --force to replace it")
    _check_target(path)
    with atomic_write(path) as file:
        file.write(template())
    print(f"wrote {path}; edit it, then: compact validate {path} --dry-run")


@app.command()
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
    from compact_distill.config import load_sound_part

    run_config, problems = load_sound_part(config, _overrides(settings))
    if run_config is None or problems:
        raise InputError(problems + (pipeline.validate_run(run_config) if run_config else []))
    instances = pipeline.require_valid(run_config)
    print(f"{config} is valid")
    if dry_run:
        print(pipeline.dry_run(run_config, instances))


@app.command()
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

    run_config = _load(config, settings, max_errors)
    if dry_run:
        print(stages.plan(run_config))
        return
    print(f"rationales: {stages.ask_teachers(run_config)}")


@app.command()
def verify(config: ConfigArgument, settings: SetOption = []) -> None:  # noqa: B006
    """Check the teachers' answers again.

    Every stored answer is extracted and compared anew, by today's rules and gold answers. Nothing is asked.

    \b
    Example:
      compact verify my-run.yaml
    """
    from compact_distill.teachers import stages
    from compact_distill.teachers.table import render

    run_config = _load(config, settings)
    count = stages.verify_teachers(run_config)
    print(f"verified {count} answers\n{render(stages.table(run_config))}")


@app.command()
def teachers(config: ConfigArgument, settings: SetOption = []) -> None:  # noqa: B006
    """Show what the stores hold.

    For each teacher its rows, those of this configuration, usable and correct ones, mean length in tokens, cost, and
    on how many problems it gives the same answer as each other teacher.

    \b
    Example:
      compact teachers my-run.yaml
    """
    from compact_distill.teachers import stages
    from compact_distill.teachers.table import render

    print(render(stages.table(_load(config, settings))))


@app.command()
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
    from compact_distill.config import config_from, load_config

    _check_target(out)
    given = {**_overrides(settings), "student": student, "rationales": data}
    summary = pipeline.score_file(load_config(config, given) if config else config_from({}, given), out)
    print(f"wrote {out}: {summary}")


EveryEpochOption = Annotated[
    bool, typer.Option("--every-epoch", help="Measure the student on the benchmarks after each epoch.")
]


@app.command()
def train(config: ConfigArgument, every_epoch: EveryEpochOption = False, settings: SetOption = []) -> None:  # noqa: B006
    """Train the student on existing rationales.

    A run that was stopped goes on from its newest complete checkpoint.

    \b
    Example:
      compact train my-run.yaml --set output=runs/second
    """
    from compact_distill import pipeline

    folder = pipeline.train(_load(config, _with_every_epoch(settings, every_epoch)))
    print(f"student: {folder.student_path}")


@app.command()
def run(
    config: ConfigArgument,
    max_errors: MaxErrorsOption = None,
    every_epoch: EveryEpochOption = False,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Run all stages, each from where it stopped.

    A stage that is done is skipped; a stage whose inputs changed is done again.

    \b
    Example:
      compact run my-run.yaml
    """
    from compact_distill import pipeline

    folder = pipeline.run(_load(config, _with_every_epoch(settings, every_epoch), max_errors))
    print(f"run folder: {folder.path}")


TaskOption = Annotated[
    list[str],
    typer.Option("--task", metavar="TASK", help="gsm8k, gsm8k=FILE, a file of problems, or a task's YAML; repeat it."),
]


@app.command("eval")
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|STUDENT", help="A run folder; or a student's folder or name.")],
    task: TaskOption = [],  # noqa: B006
    checkpoint: Annotated[int | None, typer.Option(help="Of a run: the student after so many steps.")] = None,
    out: Annotated[Path, typer.Option(help="Of a student: folder for the results.")] = Path("eval"),
    base_url: Annotated[str | None, typer.Option(help="Ask this OpenAI-compatible server for STUDENT.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the server's key.")] = None,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Measure students on benchmarks.

    Of a run: its base and its student, compared, and how far the student moved. Stopped, it goes on where it was.

    \b
    Example:
      compact eval runs/first --set eval.limit=200
      compact eval Qwen/Qwen2.5-0.5B --task gsm8k --task my-problems.jsonl
      compact eval my-student --base-url http://localhost:8000/v1 --task csqa
    """
    from compact_distill import pipeline

    if (Path(target) / "manifest.json").is_file():
        folder = pipeline.evaluate(target, _overrides(settings), task, checkpoint)
    elif checkpoint is not None:
        raise ConfigError(f"--checkpoint needs a run folder, but {target} holds no manifest.json; name the run")
    else:
        from compact_distill.evaluation.served import ServedWriter

        server = None if base_url is None else ServedWriter(target, base_url, api_key_env)
        folder = pipeline.evaluate_student(_student_config(target, settings), task, out, server)
    _print_results(folder)


@app.command()
def drift(
    base: Annotated[str, typer.Argument(help="Folder or hub name of the student before training.")],
    student: Annotated[str, typer.Argument(help="Folder or hub name of the student after; an adapter is not merged.")],
    learned: Annotated[list[str], typer.Option(help="A benchmark that should improve; repeat it.")] = [],  # noqa: B006
    retained: Annotated[list[str], typer.Option(help="A benchmark not to be forgotten; repeat it.")] = [],  # noqa: B006
    benchmarks: Annotated[bool, typer.Option(help="Also measure both on the retained benchmarks.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("drift"),
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Measure how far a student moved.

    On the prompts of what it learned and of what it was to retain, layer by layer. Without --learned and --retained:
    the published benchmarks.

    \b
    Example:
      compact drift Qwen/Qwen2.5-1.5B runs/first/student --retained csqa --no-benchmarks
    """
    from compact_distill import pipeline

    named = {"eval.learned": learned, "eval.retained": retained}
    if not learned and not retained:
        named = {"eval.learned": ["gsm8k", "svamp", "math500"], "eval.retained": ["csqa", "strategyqa"]}
    _print_results(pipeline.drift(_student_config(student, settings, named), base, out, benchmarks))


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A run folder, or a student's results such as RUN/eval/base.")],
    after: Annotated[Path, typer.Argument(help="The same of another student.")],
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare two students on the same rows.

    Paired bootstrap and exact McNemar test, for every benchmark that both have done.

    \b
    Example:
      compact compare runs/first runs/second
    """
    from compact_distill.evaluation.compare import compare_students, describe_changes
    from compact_distill.evaluation.results import write_result

    if out is not None:
        _check_target(out)
    document = compare_students(_results_of(before), _results_of(after), names=(str(before), str(after)))
    for line in describe_changes(document):
        print(line)
    if out is not None:
        write_result(out, document)


@app.command()
def export(
    data: Annotated[str, typer.Argument(help="Problems with rationales: JSONL, Parquet, datasets folder or hub name.")],
    out: Annotated[Path, typer.Argument(help="JSONL file to write, one line a rationale.")],
    shape: Annotated[
        ExportFormat, typer.Option("--format", help="Shape of the rows.")
    ] = ExportFormat.PROMPT_COMPLETION,
) -> None:
    """Write rationales for other trainers.

    TRL, axolotl and LLaMA-Factory read these rows.

    \b
    Example:
      compact export rationales.jsonl sft.jsonl --format messages
    """
    from compact_distill.data import export_instances, load_instances

    _check_target(out)
    counts = export_instances(load_instances(data), out, shape.value)
    print(f"wrote {out}: {counts.written} rows, left out: {counts.missing} missing, {counts.unparsed} unparsed")


RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")]


@app.command()
def report(
    runs: RunsArgument,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default RUN/report.html, compare.html for several runs.")
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Folder for every figure as CSV, SVG and PNG.")] = None,
    png: Annotated[bool, typer.Option("--png/--no-png", help="Whether --export writes PNG.")] = True,
) -> None:
    """Write a page that shows a run, or compares several.

    One HTML file that needs no network. It shows what there is and says what is missing.

    \b
    Example:
      compact report runs/first
    """
    from compact_distill.report import comparison, read_run, summary, write_report

    paired = _paired(runs)
    path = write_report(runs, out, export, png=png, paired=paired)
    read = [read_run(run) for run in runs]
    print(summary(read[0]) if len(read) == 1 else comparison(read, paired))
    print(f"report: {path}")


@app.command()
def env() -> None:
    """Print versions and hardware.

    For bug reports; no paths, user names or keys.

    \b
    Example:
      compact env
    """
    from compact_distill.environment import hardware, versions

    for name, value in {**versions(), **hardware()}.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{name}: {shown or 'none'}")


def _load(path: Path, settings: list[str], max_errors: float | None = None) -> Any:
    from compact_distill.config import load_config

    more = {} if max_errors is None else {"generation.max_errors": max_errors}
    return load_config(path, {**_overrides(settings), **more})


def _with_every_epoch(settings: list[str], every_epoch: bool) -> list[str]:
    return [*settings, "eval.every_epoch=true"] if every_epoch else settings


def _student_config(student: str, settings: list[str], more: dict[str, Any] | None = None) -> Any:
    """Settings of an evaluation that belongs to no run."""
    from compact_distill.config import config_from

    # A run needs a source of rationales; nothing reads it here.
    return config_from({"student": student, "rationales": "none"}, {**(more or {}), **_overrides(settings)})


def _print_results(folder: Path) -> None:
    from compact_distill.evaluation.examine import summary_lines

    for line in summary_lines(folder):
        print(line)
    print(f"results: {folder}")


def _results_of(path: Path) -> Path:
    folder = path / "eval" / "student" if (path / "manifest.json").is_file() else path
    if not folder.is_dir():
        raise ConfigError(f"{path} must be a run folder or a student's results, but {folder} is no folder")
    return folder


def _paired(runs: list[Path]) -> list[dict[str, Any]]:
    """Each later run's student against the first run's, on the rows that both answered."""
    from compact_distill.evaluation.compare import compare_students

    first, *others = (run / "eval" / "student" for run in runs)
    return [compare_students(first, other) for other in others]


def _overrides(settings: list[str]) -> dict[str, Any]:
    """`["train.max_steps=10"]` as `{"train.max_steps": 10}`, by the file's own rules."""
    from compact_distill.strict_yaml import parse_value

    overrides = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set must be KEY=VALUE, got {setting!r}; as in --set train.max_steps=10")
        overrides[key] = parse_value(value)
    return overrides


def _check_target(path: Path) -> None:
    """Refuse a file that cannot be written before any work is done for it."""
    if path.is_dir():
        raise ConfigError(f"{path} must be a file to write, but is a folder; add a file name")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: folder {path.parent} does not exist; make it first")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ConfigError(f"{path} cannot be written: no permission; choose another place")
