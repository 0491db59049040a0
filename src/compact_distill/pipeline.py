"""The stages of a run, in order, as calls: open this file first.

    prepare         read and check everything once, before any work (training/prepare.py)
    dry_run         what would be read, dropped and done
    train           load -> train
    run             ask teachers -> verify -> join (without teachers: load) -> train -> evaluate -> report
    evaluate        base and student on the benchmarks, compared; how far the student moved

A stage records a fingerprint of its inputs. Run again, only what has changed is redone, and what was stopped goes on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compact_distill.answers import Verifier
from compact_distill.config.file import dump_config, load_config
from compact_distill.config.models import RunConfig
from compact_distill.data import load_instances
from compact_distill.data.write import Preview, preview, used_rows
from compact_distill.errors import InputError, RunError
from compact_distill.evaluation.examine import (
    Exam,
    examine_drift,
    examine_run,
    examine_student,
    prepare_exam,
    trained_subject,
)
from compact_distill.evaluation.result_files import checkpoint_label, damaged_results
from compact_distill.method.score import score
from compact_distill.records import RationaleStatus, score_fields
from compact_distill.report import RunData, is_current, read_run, write_report
from compact_distill.runs.environment import accelerator, hardware, versions
from compact_distill.runs.files import atomic_write, content_hash, fingerprint, json_line
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import progress, progress_over, say
from compact_distill.students.identity import pin_student
from compact_distill.students.load import load_student
from compact_distill.teachers.stages import joined, plan, rationales, teachers_in_manifest
from compact_distill.training.callbacks import require_complete
from compact_distill.training.export import push_card, write_card
from compact_distill.training.prepare import Prepared, prepare, read_exam, read_problems, read_sources
from compact_distill.training.run import read_gains, train_student


def validate_run(config: RunConfig) -> list[str]:
    """Everything that would keep a run from working, as messages; empty where it can start."""
    try:
        prepare(config)
    except InputError as error:
        return error.problems
    return []


def dry_run(prepared: Prepared) -> Preview | str:
    """What the run would ask of its teachers, or read, drop and do; printable."""
    if (config := prepared.config).teachers:
        return plan(config)
    sizes = progress_over("measure", prepared.sizes(), len(prepared.instances))
    return preview(sizes, config.train, prepared.encoder.max_length, prepared.arguments.world_size, config.example)


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
    with atomic_write(out, keep=True) as file, progress("score", len(instances)) as shown:
        for row in rows:
            file.write(json_line(score_fields(row)))
            statuses.update(row.statuses)
            shown.advance()
    return f"{len(instances)} problems; rationales: {_counts(statuses)}"


def train(config: RunConfig, discard: bool = False, verify: bool = False) -> RunFolder:
    """Train the student on rationales that exist already.

    Args:
        config: the run.
        discard: delete a student that was trained here with other inputs, instead of moving it aside.
        verify: compare the hashes of what finished stages wrote, not only the sizes.

    Raises:
        InputError: with everything that is wrong, before any work.
        RunError: the run folder is in use or damaged, or training has left the numbers.
    """
    prepared = prepare(config)
    with _claim(config) as folder:
        if prepared.problems is not None:
            prepared = prepared.with_rationales(load_instances(joined(config, folder, prepared.problems)))
        _train(prepared, folder, discard, verify)
    return folder


def evaluate(
    run_folder: str | Path,
    overrides: Mapping[str, Any],
    only: Sequence[str] = (),
    checkpoint: int | None = None,
    verify: bool = False,
) -> Path:
    """Evaluate a run's base and student on its benchmarks, compare them, and measure the drift.

    Args:
        run_folder: a run whose training has finished.
        overrides: values that replace those of its configuration, by dotted key: {"eval.limit": 100}.
        only: benchmarks instead of the configuration's.
        checkpoint: evaluate the student as it was after so many steps, and nothing else.
        verify: compare the hashes of what training wrote, not only the sizes.

    Returns:
        The folder of the results.

    Raises:
        InputError: with everything that is wrong with the benchmarks.
        RunError: no run, no such checkpoint, no trained student yet, or a damaged one.
    """
    config = load_config(RunFolder.open(run_folder).config_path, {**overrides, "output": str(run_folder)})
    pin_student(config)
    with _claim(config) as folder:
        trained_on = load_instances(folder.training_path) if config.teachers else read_problems(config)
        exam = read_exam(config, trained_on, only)
        if checkpoint is None:
            damaged = [f"{name} {what}" for name, what in _of_student(folder.damage("train", verify)).items()]
            if damaged:
                raise RunError(
                    f"{folder.path}: {'; '.join(damaged)}; `compact run` with its configuration does it again from the "
                    "last complete checkpoint"
                )
            _evaluate(config, exam, folder, verify)
        else:
            label = checkpoint_label(checkpoint)
            student = require_complete(folder.student_path / label, to_go_on=False)
            examine_student(str(student), trained_subject(student, label), exam, folder.eval_path / label)
    return folder.eval_path


def drift(config: RunConfig, base: str, out: Path, benchmarks: bool = True) -> Path:
    """Measure how far `config.student` moved from `base`; returns the folder of the results, `out`."""
    examine_drift(base, config.student, prepare_exam(config.eval, config.text, config.seed), out, benchmarks)
    return out


def run(
    config: RunConfig, discard: bool = False, verify: bool = False, tell: Callable[[RunData], object] = lambda _: None
) -> RunFolder:
    """Run all stages; `discard` and `verify` as for `train`. In the end `tell` is given what the run folder holds.

    ```python
    from compact_distill import load_config, run
    print(run(load_config("run.yaml")).path)  # runs/compact
    ```

    Raises:
        InputError: with everything that is wrong, before any work.
        RunError: the folder is in use or damaged, too many requests got no answer, or training left the numbers.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM; running it again goes on from there.
    """
    prepared = prepare(config)
    with _claim(config) as folder:
        if prepared.problems is not None:
            prepared = prepared.with_rationales(load_instances(rationales(config, folder, prepared.problems)))
        _train(prepared, folder, discard, verify)
        _evaluate(config, prepared.exam, folder, verify)
        if not folder.manifest["finished"]:
            folder.finish()
        if folder.is_follower:
            return folder
        read = read_run(folder.path)  # once, for page, card and caller
        if not is_current(folder.path):
            write_report([read])
        if folder.student_path.is_dir():
            write_card(read)
            if config.train.get("push_to_hub") and config.train.get("hub_model_id"):
                push_card(folder.path, config.train["hub_model_id"])
        tell(read)
    return folder


def damage_of(folder: RunFolder, verify: bool = False) -> list[str]:
    """Everything in a run that is no longer what its stages wrote, with what would be done again, as messages."""
    redone = {
        "join": "joins it again from the stores",
        "train": "goes on with training from its last complete checkpoint",
        "eval": "measures those results again",
    }
    found = [
        f"{name} {what}; `compact run` {redone.get(stage, 'writes it again')}"
        if stage != "train" or name.startswith("student/")
        else f"{name} {what}; the student is whole, and `compact run --verify` trains again to have this as it was"
        for stage in folder.manifest["stages"]
        for name, what in folder.damage(stage, verify).items()
    ]
    # Results carry seals of their own: they tell also before their stage has ended.
    told = " ".join(found)
    return found + [line for line in damaged_results(folder.eval_path) if _file_of(line, folder.path) not in told]


def _file_of(message: str, run: Path) -> str:
    """The file that a message about a result starts with, as seen from the run."""
    return os.path.relpath(message.split(" ", 1)[0], run)


def _train(prepared: Prepared, folder: RunFolder, discard: bool, verify: bool) -> None:
    """Train, unless that is done, and write beside it what only the report wants to know."""
    config, inputs = prepared.config, fingerprint(prepared.made_of)
    done = folder.stage_is_done("train", inputs) and not _must_go_on(folder, verify)
    if done:
        say("train: done already with these inputs")
    else:
        if not folder.stage_was_begun("train", inputs):
            done = _make_room(prepared, folder, inputs, discard)
        folder.write_config(dump_config(config))
        folder.update_manifest(**_ingredients(prepared))
    shown = fingerprint([inputs, [[r.verdict for r in instance.rationales] for instance in prepared.instances]])
    _for_the_report(folder, "data", shown, folder.data_path, lambda: _data_rows(prepared), verify)
    if not done:
        with folder.stage("train", inputs, folder.training_outputs, prepared.made_of) as summary:
            summary.update(train_student(prepared, folder))
    if config.report.gains:
        epochs = folder.stage_summary("train").get("epochs", 1.0)
        gain_rows = lambda: read_gains(prepared, folder.student_path, epochs)  # noqa: E731
        _for_the_report(folder, "gains", inputs, folder.gains_path, gain_rows, verify)


def _make_room(prepared: Prepared, folder: RunFolder, inputs: str, discard: bool) -> bool:
    """Put aside a student of other inputs, and take back one of these; returns whether there was one.

    Says what has changed, where the old student is, and how to take it back.
    """
    before = folder.manifest["stages"].get("train", {}).get("parts", {})
    changed = ", ".join(changed_keys(before, prepared.made_of)) if before else ""
    aside = folder.set_aside(discard)
    if aside is not None:
        say(
            f"train: other inputs than before ({changed or 'unknown ones'}). What it had made is now in "
            f"{aside}, a run folder of its own, which `compact report` reads (--discard deletes it). To take it back: "
            f"compact run {aside / folder.config_path.name} --set output={folder.path}"
        )
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1  # other ranks would not know of it, and train on
    back = folder.take_back(inputs) if alone else None
    if back is not None:
        say(f"train: {back} held a student of exactly these inputs; taken back")
    return back is not None


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ; of sections, the keys in them: `train.learning_rate`."""
    names = []
    for key in dict.fromkeys((*before, *after)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{key}.{name}" for name in changed_keys(old, new)]
        elif old != new:
            names.append(key)
    return names


def _must_go_on(folder: RunFolder, verify: bool) -> bool:
    """Whether a finished training must be done again for what is damaged of it; says so and moves that out of the way.

    A damaged trace or log alone costs the report something and the student nothing: only who asks to `verify` gets
    them again, by training again.
    """
    wrong = folder.damage("train", verify)
    for name, what in wrong.items():
        say(f"train: {name} {what}")
    if not _of_student(wrong) and not verify:
        if wrong:
            say("train: the student itself is whole; `--verify` trains again to have the rest as it was")
        return False
    if wrong:
        # What is whole of the student is finished work: it goes along.
        aside = folder.put_damage_aside(
            [p.relative_to(folder.path).as_posix() for p in folder.training_outputs()]
            if not _of_student(wrong)
            else wrong
        )
        where = f"; what was there is now in {aside}" if aside else ""
        say(f"train: done again from the last checkpoint that fits{where}")
    return bool(wrong)


def _of_student(wrong: Mapping[str, str]) -> dict[str, str]:
    return {name: what for name, what in wrong.items() if name.startswith("student/")}


def _is_done(folder: RunFolder, name: str, inputs: str, verify: bool) -> bool:
    """Whether a stage is done and its files are as it wrote them; damaged ones are said and moved out of the way."""
    if not folder.stage_is_done(name, inputs):
        return False
    wrong = folder.damage(name, verify)
    for file, what in wrong.items():
        say(f"{name}: {file} {what}; done again")
    aside = folder.put_damage_aside(wrong)
    if aside is not None:
        say(f"{name}: what was damaged is now in {aside}")
    return not wrong


def _data_rows(prepared: Prepared) -> Iterator[dict[str, Any]]:
    with Verifier() as verifier:
        yield from used_rows(prepared.instances, prepared.encoded, verifier)


def _for_the_report(
    folder: RunFolder, name: str, inputs: str, path: Path, rows: Callable[[], Iterable[dict[str, Any]]], verify: bool
) -> None:
    """Write a file that only the report reads, unless that is done; if that fails, the run goes on without it."""
    if folder.is_follower or _is_done(folder, name, inputs, verify):
        return
    try:
        with folder.stage(name, inputs, lambda: [path]) as summary:
            summary["rows"] = folder.write_rows(path, rows())
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        say(
            f"{name}: {path.name} could not be written ({type(error).__name__}: {reason}); the report goes without "
            "it, the student does not need it; the same command tries again"
        )


def _evaluate(config: RunConfig, exam: Exam, folder: RunFolder, verify: bool) -> None:
    if not exam or int(os.environ.get("RANK", "0")) > 0:
        return
    trained = folder.manifest["stages"].get("train", {})
    if not trained.get("finished"):
        raise RunError(f"{folder.path} holds no trained student yet; finish the training with `compact run`")
    inputs = fingerprint({"exam": exam.fingerprint, "train": trained["inputs"]})
    if _is_done(folder, "eval", inputs, verify):
        damaged = damaged_results(folder.eval_path)
        if not damaged:
            say("eval: done already with these inputs")
            return
        say("\n".join(["eval: done already, but not all is as it was written; that is done again:", *damaged]))
    with folder.stage("eval", inputs, folder.results) as summary:
        summary.update(examine_run(config.student, folder.student_path, exam, folder.eval_path))


def _claim(config: RunConfig) -> RunFolder:
    rank = int(os.environ.get("RANK", "0"))  # set by torchrun and accelerate launch
    return RunFolder.claim(config.output) if rank == 0 else RunFolder.follow(config.output)


def _ingredients(prepared: Prepared) -> dict[str, Any]:
    """What a run is made of, for its manifest."""
    config, instances = prepared.config, prepared.instances
    sources = [*config.rationales, *([config.problems.path] if config.problems else [])]
    made_of = prepared.made_of
    student = {"name": config.student, "sha256": made_of["student"], "commits": dict(prepared.commits)}
    return {
        "config": fingerprint(config.model_dump(mode="json")),
        "versions": versions(),
        "hardware": hardware(),
        "seeds": {"seed": config.seed, "data_seed": config.train.get("data_seed", config.seed)},
        "student": student,
        "data": {
            "files": {name: content_hash(name) if Path(name).exists() else None for name in sources},
            "instances": made_of["data"],
            "problems": len(instances),
        },
        "teachers": sorted({teacher for instance in instances for teacher in instance.teachers}),
        "prompt": config.text.model_dump(mode="json"),
        "scores_from": config.compatibility.scores_from,
        "less_is_better": prepared.scorer.less_is_better,
        "decoding": teachers_in_manifest(config) or None,  # None: these rationales were not written by this run
    }


def _counts(statuses: Counter[RationaleStatus]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "none"
