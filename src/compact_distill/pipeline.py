"""The stages of a run, in order, as calls: open this file first.

    validate_run    everything that is wrong, before any work
    dry_run         what would be read, dropped and done
    train           load -> train
    run             all stages

A stage records a fingerprint of its inputs in the run folder. Run twice, the second run does nothing; with other
inputs it redoes exactly the stages that they touch; stopped, it goes on where it was.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from compact_distill.compatibility.evaluator import Evaluator
from compact_distill.compatibility.score import score
from compact_distill.config import RunConfig, dump_config
from compact_distill.data import load_instances
from compact_distill.environment import hardware, versions
from compact_distill.errors import DataError, InputError
from compact_distill.files import atomic_write, content_hash, fingerprint, json_line
from compact_distill.fit import fit, training_arguments
from compact_distill.preview import Preview, preview
from compact_distill.progress import progress, say
from compact_distill.records import Instance, RationaleStatus
from compact_distill.runs import RunFolder, output_problem, score_fields
from compact_distill.student.load import check_student, load_student

# Settings of `train:` that change what is shown or kept, not what is learned.
_WITHOUT_EFFECT = ("logging_", "log_", "report_to", "run_name", "project", "trackio_", "save_", "disable_tqdm", "hub_")


def validate_run(config: RunConfig) -> list[str]:
    """Everything that would keep a run from working, as messages; empty where it can start."""
    problems, _ = _check_inputs(config)
    return problems + _check_run(config)


def require_valid(config: RunConfig) -> list[Instance]:
    """The run's problems with their rationales. Raises InputError with everything that is wrong with the run."""
    problems, instances = _check_inputs(config)
    problems += _check_run(config)
    if problems:
        raise InputError(problems)
    return instances


def dry_run(config: RunConfig, instances: Sequence[Instance]) -> Preview:
    """What the run would read, drop and do."""
    return preview(config, instances)


def score_file(config: RunConfig, out: str | Path) -> str:
    """Score all problems of `config.rationales` and write one line each, in their order; the file appears whole.

    Returns:
        A line of counts.

    Raises:
        InputError: with everything that is wrong with student and data.
    """
    problems, instances = _check_inputs(config)
    if problems:
        raise InputError(problems)
    model, tokenizer = load_student(config.student, dtype=torch.float32, device=_device())
    rows = score(
        model,
        tokenizer,
        instances,
        config.compatibility,
        config.text,
        max_length=config.max_length,
        max_tokens_per_pass=config.max_tokens_per_pass,
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
    instances = require_valid(config)
    with _claim(config) as folder:
        _train(config, instances, folder)
    return folder


def run(config: RunConfig) -> RunFolder:
    """Run all stages. Raises as `train` does."""
    instances = require_valid(config)
    with _claim(config) as folder:
        _train(config, instances, folder)
        if not folder.manifest["finished"]:
            folder.finish()
    return folder


def _train(config: RunConfig, instances: Sequence[Instance], folder: RunFolder) -> None:
    made_of = _ingredients(config, instances)
    shared = ("compatibility", "consistency", "lora", "text", "max_length", "max_tokens_per_pass", "seed")
    inputs = fingerprint(
        {
            "student": made_of["student"],
            "instances": made_of["data"]["instances"],
            "settings": config.model_dump(mode="json", include=set(shared)),
            "train": {key: value for key, value in config.train.items() if not key.startswith(_WITHOUT_EFFECT)},
        }
    )
    if folder.stage_is_done("train", inputs):
        say("train: done already with these inputs")
        return
    if not folder.stage_was_begun("train", inputs):
        folder.clear_student()
    folder.write_config(dump_config(config))
    folder.update_manifest(**made_of)
    with folder.stage("train", inputs) as summary:
        summary.update(fit(config, instances, folder))


def _claim(config: RunConfig) -> RunFolder:
    rank = int(os.environ.get("RANK", "0"))  # set by torchrun and accelerate launch
    return RunFolder.claim(config.output) if rank == 0 else RunFolder.follow(config.output)


def _ingredients(config: RunConfig, instances: Sequence[Instance]) -> dict[str, Any]:
    """What a run is made of, for its manifest."""
    sources = [*config.rationales, *([config.problems.path] if config.problems else [])]
    student = Path(config.student)
    return {
        "config": fingerprint(config.model_dump(mode="json")),
        "versions": versions(),
        "hardware": hardware(),
        "seeds": {"seed": config.seed, "data_seed": config.train.get("data_seed", config.seed)},
        "student": {"name": config.student, "sha256": content_hash(student) if student.exists() else None},
        "data": {
            "files": {name: content_hash(name) if Path(name).exists() else None for name in sources},
            "instances": fingerprint([_plain(instance) for instance in instances]),
            "problems": len(instances),
        },
        "teachers": sorted({teacher for instance in instances for teacher in instance.teachers}),
        "prompt": config.text.model_dump(mode="json"),
        "decoding": None,  # these rationales were not written by this run
    }


def _check_inputs(config: RunConfig) -> tuple[list[str], list[Instance]]:
    """What is wrong with student and data, and the instances where nothing is."""
    problems = check_student(config.student)
    source = config.problems
    options: dict[str, Any] = (
        {} if source is None else {"problems": source.path, "limit": source.limit, "split": source.split}
    )
    try:
        return problems, load_instances(config.rationales, **options)
    except DataError as error:
        return problems + error.problems, []


def _check_run(config: RunConfig) -> list[str]:
    """What is wrong with the settings of training and the run folder."""
    problems = []
    if config.teachers:
        problems.append("teachers: this version cannot ask them; have their answers in a file, see `rationales:`")
    if config.eval.learned or config.eval.retained:
        problems.append("eval: this version does not run it; remove `learned:` and `retained:`")
    try:
        Evaluator(config.compatibility)
    except InputError as error:
        problems += error.problems
    wrong_output = output_problem(config.output)
    problems += [wrong_output] if wrong_output else []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            training_arguments(config, Path(scratch), Path(scratch) / "scores.jsonl")
        except InputError as error:
            problems += error.problems
        except (ValueError, TypeError, ImportError, NotImplementedError) as error:  # as transformers has it
            problems.append(f"train: transformers refuses these settings: {error}")
    return problems


def _plain(instance: Instance) -> list[Any]:
    """What training reads of an instance, as JSON."""
    rationales = [[r.teacher, r.sample, r.text, r.answer] for r in instance.rationales]
    return [instance.id, instance.question, instance.answer, rationales]


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _counts(statuses: Counter[RationaleStatus]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "none"
