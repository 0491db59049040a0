"""The stages of a run, in order, as calls: open this file first.

    prepare         read and check everything once, before any work (training/prepare.py)
    dry_run         what would be read, dropped and done
    train           load -> train
    run             ask teachers -> verify -> join (without teachers: load) -> train -> evaluate -> report
    evaluate        base and student on the benchmarks, compared; how far the student moved

A stage records a fingerprint of its inputs in the run folder. Run twice, the second run does nothing; with other
inputs it redoes exactly the stages that they touch; stopped, it goes on where it was.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compact_distill.answers import Verifier
from compact_distill.config.models import RunConfig, dump_config, load_config
from compact_distill.data import load_instances
from compact_distill.data.preview import Preview, preview, used_rows
from compact_distill.errors import ConfigError, InputError, RunError
from compact_distill.evaluation.examine import (
    Exam,
    examine,
    examine_drift,
    examine_run,
    examine_student,
    forget_training,
    prepare_exam,
    trained_subject,
)
from compact_distill.evaluation.harness import Subject
from compact_distill.evaluation.result_files import STUDENT, checkpoint_label
from compact_distill.evaluation.writers import ServedWriter
from compact_distill.method.score import score
from compact_distill.publish.card import push_card, write_card
from compact_distill.records import Instance, RationaleStatus
from compact_distill.report import is_current, write_report
from compact_distill.runs.environment import accelerator, hardware, versions
from compact_distill.runs.files import atomic_write, content_hash, fingerprint, json_line
from compact_distill.runs.folder import RunFolder, score_fields
from compact_distill.runs.progress import progress, progress_over, say
from compact_distill.students.identity import student_hash
from compact_distill.students.load import load_student
from compact_distill.teachers.stages import plan, rationales, teachers_in_manifest
from compact_distill.training.checkpoints import require_complete
from compact_distill.training.prepare import Prepared, pin_student, prepare, read_exam, read_instances, read_sources
from compact_distill.training.run import fit, read_gains

# Settings of `train:` that change what is shown or kept, not what is learned.
_WITHOUT_EFFECT = ("logging_", "log_", "report_to", "run_name", "project", "trackio_", "save_", "disable_tqdm", "hub_")


def validate_run(config: RunConfig) -> list[str]:
    """Everything that would keep a run from working, as messages; empty where it can start."""
    try:
        prepare(config)
    except InputError as error:
        return error.problems
    return []


def dry_run(prepared: Prepared) -> Preview | str:
    """What the run would ask of its teachers, or read, drop and do; printable."""
    if prepared.config.teachers:
        return plan(prepared.config)
    encoded = progress_over("read", prepared.encode(), len(prepared.instances))
    return preview(encoded, prepared.config.train, prepared.encoder.max_length)


def score_file(config: RunConfig, out: str | Path) -> str:
    """Score all problems of `config.rationales` and write one line each, in their order; the file appears whole.

    Returns:
        A line of counts.

    Raises:
        InputError: with everything that is wrong with student and data.
    """
    problems, instances = read_sources(config)
    if problems:
        raise InputError(problems)
    model, tokenizer = load_student(config.student, dtype=torch.float32, device=accelerator())
    rows = score(
        model,
        tokenizer,
        instances,
        config.compatibility,
        config.text,
        max_length=config.max_length,
        max_tokens_per_pass=config.max_tokens_per_pass,
        weighting=config.weighting,
        seed=config.seed,
        infer_answers=config.answers.infer,
    )
    statuses: Counter[RationaleStatus] = Counter()
    with atomic_write(out) as file, progress("score", len(instances)) as shown:
        for row in rows:
            file.write(json_line(score_fields(row)))
            statuses.update(row.statuses)
            shown.advance()
    return f"{len(instances)} problems; rationales: {_counts(statuses)}"


def train(config: RunConfig) -> RunFolder:
    """Train the student on rationales that exist already.

    Raises:
        InputError: with everything that is wrong, before any work.
        RunError: the run folder is in use or damaged.
    """
    prepared = prepare(config)
    with _claim(config) as folder:
        if config.teachers:
            if not folder.training_path.exists():
                raise RunError(f"{folder.path} holds no rationales yet; `compact generate` asks the teachers for them")
            prepared = prepared.with_rationales(load_instances(folder.training_path))
        _train(prepared, folder)
    return folder


def evaluate(
    run_folder: str | Path, overrides: Mapping[str, Any], only: Sequence[str] = (), checkpoint: int | None = None
) -> Path:
    """Evaluate a run's base and student on its benchmarks, compare them, and measure the drift.

    Args:
        run_folder: a run whose training has finished.
        overrides: values that replace those of its configuration, by dotted key: {"eval.limit": 100}.
        only: benchmarks instead of the configuration's.
        checkpoint: evaluate the student as it was after so many steps, and nothing else.

    Returns:
        The folder of the results.

    Raises:
        InputError: with everything that is wrong with the benchmarks.
        RunError: no run, no such checkpoint, or no trained student yet.
    """
    config = load_config(RunFolder.open(run_folder).config_path, {**overrides, "output": str(run_folder)})
    pin_student(config)
    with _claim(config) as folder:
        trained_on = load_instances(folder.training_path) if config.teachers else read_instances(config)
        exam = read_exam(config, trained_on, only)
        if checkpoint is None:
            _evaluate(config, exam, folder)
        else:
            label = checkpoint_label(checkpoint)
            student = require_complete(folder.student_path / label)
            examine_student(str(student), trained_subject(student, label), exam, folder.eval_path / label)
    return folder.eval_path


def evaluate_student(config: RunConfig, tasks: Sequence[str], out: Path, server: ServedWriter | None = None) -> Path:
    """Evaluate a student that belongs to no run, in this process or at a server.

    Returns:
        The folder of the results, `out`. What weights a server has is unknown: its address and the name stand for them.

    Raises:
        InputError: with everything that is wrong with student and benchmarks.
        RunError: requests that got no reply; the same call asks for them again.
    """
    exam = prepare_exam(config.eval, config.text, config.seed, only=tasks)
    if not exam:
        raise ConfigError(f"{config.student} is no run folder, so eval needs a benchmark; name one with --task")
    name = re.sub(r"[^\w.\-]+", "_", config.student.rstrip("/").rpartition("/")[2]).strip("._-") or STUDENT
    if server is None:
        examine_student(config.student, Subject(name, config.student, student_hash(config.student)), exam, out / name)
    else:
        examine(server, Subject(name, config.student, fingerprint(server.settings())), exam, out / name)
    return out


def drift(config: RunConfig, base: str, out: Path, benchmarks: bool = True) -> Path:
    """Measure how far `config.student` moved from `base`; returns the folder of the results, `out`."""
    examine_drift(base, config.student, prepare_exam(config.eval, config.text, config.seed), out, benchmarks)
    return out


def run(config: RunConfig) -> RunFolder:
    """Run all stages.

    Raises:
        InputError: with everything that is wrong, before any work.
        RunError: the run folder is in use or damaged, or too many requests to teachers got no answer.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM; running it again goes on from there.
    """
    prepared = prepare(config)
    with _claim(config) as folder:
        if prepared.problems is not None:
            prepared = prepared.with_rationales(load_instances(rationales(config, folder, prepared.problems)))
        _train(prepared, folder)
        _evaluate(config, prepared.exam, folder)
        if not folder.manifest["finished"]:
            folder.finish()
        if not folder.is_follower and not is_current(folder.path):
            write_report([folder.path])
        if not folder.is_follower and folder.student_path.is_dir():
            write_card(folder.path)
            if config.train.get("push_to_hub") and config.train.get("hub_model_id"):
                push_card(folder.path, config.train["hub_model_id"])
    return folder


def _train(prepared: Prepared, folder: RunFolder) -> None:
    """Train, unless that is done, and write beside it what only the report wants to know."""
    config = prepared.config
    made_of = _ingredients(prepared)
    shared = ("compatibility", "weighting", "consistency", "lora", "text", "answers", "seed")
    limits = ("max_length", "max_tokens_per_pass")
    inputs = fingerprint(
        {
            "student": made_of["student"]["sha256"],
            "instances": made_of["data"]["instances"],
            "settings": config.model_dump(mode="json", include={*shared, *limits}),
            "train": {key: value for key, value in config.train.items() if not key.startswith(_WITHOUT_EFFECT)},
        }
    )
    done = folder.stage_is_done("train", inputs)
    if done:
        say("train: done already with these inputs")
    else:
        if not folder.stage_was_begun("train", inputs):
            folder.clear_student()
            forget_training(folder.eval_path)
        folder.write_config(dump_config(config))
        folder.update_manifest(**made_of)
    _for_the_report(folder, "data", inputs, folder.data_path, lambda: _data_rows(prepared))
    if not done:
        with folder.stage("train", inputs) as summary:
            summary.update(fit(prepared, folder))
    if config.report.gains:
        epochs = folder.stage_summary("train").get("epochs", 1.0)
        gain_rows = lambda: read_gains(prepared, folder.student_path, epochs)  # noqa: E731
        _for_the_report(folder, "gains", inputs, folder.gains_path, gain_rows)


def _data_rows(prepared: Prepared) -> Iterator[dict[str, Any]]:
    with Verifier() as verifier:
        yield from used_rows(prepared.instances, prepared.encoded, verifier)


def _for_the_report(
    folder: RunFolder, name: str, inputs: str, path: Path, rows: Callable[[], Iterable[dict[str, Any]]]
) -> None:
    """Write a file that only the report reads, unless that is done; if that fails, the run goes on without it."""
    if folder.is_follower or folder.stage_is_done(name, inputs):
        return
    try:
        with folder.stage(name, inputs) as summary:
            summary["rows"] = folder.write_rows(path, rows())
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        say(
            f"{name}: {path.name} could not be written ({type(error).__name__}: {reason}); the report goes without "
            "it, the student does not need it; the same command tries again"
        )


def _evaluate(config: RunConfig, exam: Exam, folder: RunFolder) -> None:
    if not exam or int(os.environ.get("RANK", "0")) > 0:
        return
    trained = folder.manifest["stages"].get("train", {})
    if not trained.get("finished"):
        raise RunError(f"{folder.path} holds no trained student yet; finish the training with `compact run`")
    inputs = fingerprint({"exam": exam.fingerprint, "train": trained["inputs"]})
    if folder.stage_is_done("eval", inputs):
        say("eval: done already with these inputs")
        return
    with folder.stage("eval", inputs) as summary:
        summary.update(examine_run(config.student, folder.student_path, exam, folder.eval_path))


def _claim(config: RunConfig) -> RunFolder:
    rank = int(os.environ.get("RANK", "0"))  # set by torchrun and accelerate launch
    return RunFolder.claim(config.output) if rank == 0 else RunFolder.follow(config.output)


def _ingredients(prepared: Prepared) -> dict[str, Any]:
    """What a run is made of, for its manifest."""
    config, instances = prepared.config, prepared.instances
    sources = [*config.rationales, *([config.problems.path] if config.problems else [])]
    student = {"name": config.student, "sha256": student_hash(config.student), "commits": dict(prepared.commits)}
    return {
        "config": fingerprint(config.model_dump(mode="json")),
        "versions": versions(),
        "hardware": hardware(),
        "seeds": {"seed": config.seed, "data_seed": config.train.get("data_seed", config.seed)},
        "student": student,
        "data": {
            "files": {name: content_hash(name) if Path(name).exists() else None for name in sources},
            "instances": fingerprint([_plain(instance) for instance in instances]),
            "problems": len(instances),
        },
        "teachers": sorted({teacher for instance in instances for teacher in instance.teachers}),
        "prompt": config.text.model_dump(mode="json"),
        "decoding": teachers_in_manifest(config) or None,  # None: these rationales were not written by this run
    }


def _plain(instance: Instance) -> list[Any]:
    """What training reads of an instance, as JSON."""
    rationales = [
        [r.teacher, r.sample, r.text, r.answer, r.answer_from, r.verdict, r.extra.get("weight")]
        for r in instance.rationales
    ]
    return [instance.id, instance.question, instance.answer, rationales]


def _counts(statuses: Counter[RationaleStatus]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "none"
