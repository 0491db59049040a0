"""Commands that read a student, a run or its data as they are: benchmarks, scores, exports, reports. None trains."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compact_distill.cli.training import (
    RunsArgument,
    SetOption,
    TaskOption,
    VerifyOption,
    check_folder,
    check_target,
    overrides,
    student_config,
)
from compact_distill.errors import ConfigError
from compact_distill.runs.progress import printable, say, show

if TYPE_CHECKING:
    from compact_distill.evaluation.side_by_side import SideBySide


class ExportFormat(enum.StrEnum):
    """Row shapes that other trainers read."""

    PROMPT_COMPLETION = "prompt_completion"
    MESSAGES = "messages"


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|STUDENT", help="A run folder; or a student's folder or name.")],
    task: TaskOption = [],  # noqa: B006
    checkpoint: Annotated[int | None, typer.Option(help="Of a run: the student after so many steps.")] = None,
    out: Annotated[Path | None, typer.Option(help="Of a student: folder for the results (default: eval).")] = None,
    base_url: Annotated[str | None, typer.Option(help="Ask this OpenAI-compatible server for STUDENT.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the server's key.")] = None,
    verify: VerifyOption = False,
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

    is_run = (Path(target) / "manifest.json").is_file()
    of_runs = {"--checkpoint": checkpoint is not None, "--verify": verify}
    of_students = {
        "--out": out is not None,
        "--base-url": base_url is not None,
        "--api-key-env": api_key_env is not None,
    }
    for option, given in (of_students if is_run else of_runs).items():
        if given and is_run:
            raise ConfigError(f"{option} is for a student, but {target} is a run; leave it out, or name a student")
        if given:
            raise ConfigError(f"{option} needs a run folder, but {target} holds no manifest.json; name the run")
    if api_key_env is not None and base_url is None:
        raise ConfigError("--api-key-env is the key of a server; give --base-url too, or leave it out")
    if is_run:
        folder = pipeline.evaluate(target, overrides(settings), task, checkpoint, verify)
    else:
        from compact_distill.evaluation.examine import evaluate as evaluate_student
        from compact_distill.evaluation.writers import ServedWriter

        folder = out or Path("eval")
        check_folder(folder, target)
        server = None if base_url is None else ServedWriter(target, base_url, api_key_env)
        config = student_config(target, settings)
        evaluate_student(
            config.student, task, folder, settings=config.eval, text=config.text, seed=config.seed, server=server
        )
    _print_results(folder)


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

    check_folder(out, base, student)
    named = {"eval.learned": learned, "eval.retained": retained}
    if not learned and not retained:
        named = {"eval.learned": ["gsm8k", "svamp", "math500"], "eval.retained": ["csqa", "strategyqa"]}
    _print_results(pipeline.drift(student_config(student, settings, named), base, out, benchmarks))


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
    from compact_distill.evaluation.result_files import compare_students, describe_changes, write_result

    if out is not None:
        check_target(out, before, after)
    document = compare_students(_results_of(before), _results_of(after), names=(str(before), str(after)))
    for line in describe_changes(document):
        show(line)
    if out is not None:
        write_result(out, document, keep=True)


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATA|RUN", help="Problems with rationales: JSONL, Parquet, datasets folder or hub name; or a run."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="JSONL file to write, one line a rationale; with --merged a new folder.")],
    shape: Annotated[
        ExportFormat, typer.Option("--format", help="Shape of the rows.")
    ] = ExportFormat.PROMPT_COMPLETION,
    card: Annotated[Path | None, typer.Option(help="Also write a dataset card for the rows here.")] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Of a run or adapter: merge it into its base, checked, as one model.")
    ] = False,
) -> None:
    """Write rationales for other trainers, or a student as one merged model.

    TRL, axolotl and LLaMA-Factory read the rows. --merged writes what servers without adapters, and converters to other
    formats such as llama.cpp's, read.

    \b
    Example:
      compact export rationales.jsonl sft.jsonl --format messages
      compact export runs/first merged-student --merged
    """
    if merged:
        from compact_distill.training.export import merge

        if card is not None:
            raise ConfigError(f"--card {card} describes rows, but --merged writes a model; leave one of them out")
        check_folder(out, source)
        run = Path(source)
        difference = merge(run / "student" if (run / "manifest.json").is_file() else run, out)
        show(f"wrote {out}: one model, adapter and base but for rounding (logits to {difference:.1e} of the largest)")
        return
    from compact_distill.data import export_instances, load_instances

    if (Path(source) / "manifest.json").is_file():
        raise ConfigError(f"{source} is a run; name the data that it read, or add --merged for its student")
    for target in (out, *([card] if card else [])):
        check_target(target, source)
    if card is not None and card.resolve() == out.resolve():
        raise ConfigError(f"--card {card} must not be the file of the rows; choose another name")
    instances = load_instances(source)
    counts = export_instances(instances, out, shape.value)
    if card is not None:
        from compact_distill.runs.files import atomic_write
        from compact_distill.training.export import dataset_card

        with atomic_write(card, keep=True) as file:
            file.write(dataset_card(instances, counts, shape.value, out.name))
    show(f"wrote {out}: {counts.written} rows, left out: {counts.missing} missing, {counts.unparsed} unparsed")


def try_out(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder with a trained student.")],
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION", help="What to ask; else you are asked for questions.")
    ] = None,
    known: Annotated[int, typer.Option(min=0, help="Ask so many of the run's own problems.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    serve: Annotated[bool, typer.Option("--serve", help="Ask in the browser instead, on 127.0.0.1.")] = False,
) -> None:
    """Ask base and student the same, side by side.

    Where the run knows the problem, its gold answer and what its teachers wrote are shown, with their weights.

    \b
    Example:
      compact try runs/first "Ann has 7 apples and buys 5 more. How many apples does she have?"
      compact try runs/first --known 3
      compact try runs/first --serve
    """

    from compact_distill.evaluation import side_by_side

    if serve:
        side_by_side.serve(run, max_new_tokens)
        return
    trial = side_by_side.Trial(run, max_new_tokens)
    asked = [*(questions or []), *trial.questions(known)]
    if not asked and not sys.stdin.isatty():
        asked = [line.strip() for line in sys.stdin if line.strip()]
    for answers in trial.ask(asked):
        _show(answers)
    while not asked:
        try:
            question = input("question (empty: end): ").strip()
        except EOFError:
            question = ""
        if not question:
            return
        for answers in trial.ask([question]):
            _show(answers)


def _show(answers: SideBySide) -> None:
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    from compact_distill.evaluation.side_by_side import known
    from compact_distill.report.drawing import short

    console = Console(soft_wrap=False)
    console.print(Text(printable(answers.question), style="bold"))
    width = max(30, (console.width - 3) // 2)
    pair = [("base", answers.base), ("student", answers.student)]
    console.print(Columns([Panel(Text(printable(text)), title=name, width=width) for name, text in pair]))
    for line in known(answers):
        console.print(Text(f"  {printable(short(' '.join(line.split()), 340))}"))


def report(
    runs: RunsArgument,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default RUN/report.html, compare.html for several runs.")
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Folder for every figure as CSV, SVG and PNG.")] = None,
    png: Annotated[bool, typer.Option("--png/--no-png", help="Whether --export writes PNG.")] = True,
    verify: VerifyOption = False,
) -> None:
    """Write a page that shows a run, or compares several.

    One HTML file that needs no network. It shows what there is and says what is missing.

    \b
    Example:
      compact report runs/first
    """
    from compact_distill.pipeline import damage_of
    from compact_distill.report import comparison, read_run, summary, write_report
    from compact_distill.runs.folder import RunFolder

    for run in runs:
        for message in damage_of(RunFolder.open(run), verify):
            say(f"{run}: {message}")
    paired = _paired(runs)
    read = [read_run(run) for run in runs]
    path = write_report(read, out, export, png=png, paired=paired)
    show(summary(read[0]) if len(read) == 1 else comparison(read, paired))
    show(f"report: {path}")


def _print_results(folder: Path) -> None:
    from compact_distill.evaluation.examine import summary_lines

    for line in summary_lines(folder):
        show(line)
    show(f"results: {folder}")


def _results_of(path: Path) -> Path:
    folder = path / "eval" / "student" if (path / "manifest.json").is_file() else path
    if not folder.is_dir():
        raise ConfigError(f"{path} must be a run folder or a student's results, but {folder} is no folder")
    if not any(folder.glob("*.rows.jsonl")):
        students = sorted(str(rows.parent) for rows in folder.glob("*/*.rows.jsonl"))
        remedy = f"name one of {', '.join(dict.fromkeys(students))}" if students else "run `compact eval` first"
        raise ConfigError(f"{path} must be a run folder or a student's results, but {folder} holds none; {remedy}")
    return folder


def _paired(runs: list[Path]) -> list[dict[str, Any]]:
    """Each later run's student against the first run's, on the rows that both answered."""
    from compact_distill.evaluation.result_files import compare_students

    first, *others = (run / "eval" / "student" for run in runs)
    return [compare_students(first, other) for other in others]


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
    given = {**overrides(settings), "student": student, "rationales": data, "example": "problem"}
    summary = pipeline.score_file(load_config(config, given) if config else config_from({}, given), out)
    show(f"wrote {out}: {summary}")
