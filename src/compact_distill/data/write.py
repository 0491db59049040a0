"""What is written of the training data: a preview before a run, rationales as it used them, rows for other trainers."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compact_distill.answers import FoundAnswer, Verifier, answers_of
from compact_distill.config.models import TextConfig
from compact_distill.errors import DataError
from compact_distill.records import AnswerFrom, Instance, RationaleStatus
from compact_distill.runs.files import atomic_write, json_line
from compact_distill.runs.progress import text_table

if TYPE_CHECKING:  # what is read of it stands in the fields alone
    from compact_distill.method.encode import EncodedProblem


_NO_ANSWER = (
    'no_answer: ended by themselves without a word that could be the answer ("There is no definitive answer."); they '
    "count as not right, are not trained on, and are not among the unparsed"
)


@dataclass(frozen=True)
class TeacherPreview:
    """One teacher's rationales: how many have which status, and of those that are read the lengths (tokens) and the
    number of answers that were inferred, not stated."""

    name: str
    statuses: Counter[RationaleStatus]
    lengths: tuple[int, ...]
    inferred: int


@dataclass(frozen=True)
class Preview:
    """Counts and tokens of a run, before it starts; `str()` is the page that is printed."""

    problems: int
    without_rationale: int
    skipped: int
    prompt_tokens: int
    teachers: tuple[TeacherPreview, ...]
    steps: int
    epochs: float
    example: str = "problem"

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens that the student reads in an epoch: each prompt once, each completion once."""
        return self.prompt_tokens + sum(sum(teacher.lengths) for teacher in self.teachers)

    def __str__(self) -> str:
        left_out = [status for status in RationaleStatus if status != RationaleStatus.OK]
        shown = [status for status in left_out if any(teacher.statuses[status] for teacher in self.teachers)]
        rows = [["teacher", "rationales", "used", "inferred", *shown, "tokens: median", "longest", "all"]]
        for teacher in self.teachers:
            used = teacher.lengths
            lengths = [f"{statistics.median(used):.0f}", str(max(used)), str(sum(used))] if used else ["-", "-", "0"]
            counts = [str(len(used)), str(teacher.inferred)]
            counts += [str(teacher.statuses[status]) for status in shown]
            rows.append([teacher.name, str(teacher.statuses.total()), *counts, *lengths])
        left = f", {self.without_rationale} left out: no usable rationale" if self.without_rationale else ""
        if self.skipped:
            left += f", {self.skipped} skipped by the weight rule: no rationale of theirs may get weight"
        counted = "problems" if self.example == "problem" else "rationales, each an example of its own"
        lines = [
            f"{counted}: {self.problems}{left}",
            *text_table(rows),
            *([_NO_ANSWER] if RationaleStatus.NO_ANSWER in shown else []),
            f"tokens an epoch: {self.tokens_per_epoch}, of them prompts: {self.prompt_tokens}",
            f"optimizer steps: {self.steps} in {self.epochs:g} epochs",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ProblemSize:
    """How long a problem is, in tokens, and what becomes of its rationales; `lengths` are None where they drop out.

    `skipped`: the weight rule leaves it out.
    """

    teachers: tuple[str, ...]
    statuses: tuple[RationaleStatus, ...]
    answers_from: tuple[AnswerFrom | None, ...]
    prompt: int
    lengths: tuple[int | None, ...]
    skipped: bool = False


def preview(
    sizes: Iterable[ProblemSize], train: Mapping[str, Any], max_length: int, ranks: int = 1, example: str = "problem"
) -> Preview:
    """Count what a run would read and drop.

    Args:
        sizes: the problems' sizes, read once and not kept.
        train: that section of the configuration.
        max_length: what they were measured with.
        ranks: processes that train together.
        example: what a batch counts: problems, or `rationale`s alone.

    Raises:
        DataError: no rationale is left to train on.
    """
    statuses: dict[str, Counter[RationaleStatus]] = {}
    lengths: dict[str, list[int]] = {}
    inferred: Counter[str] = Counter()
    usable = unusable = skipped = prompt_tokens = 0
    for problem in sizes:
        for name, length, status, source in zip(
            problem.teachers, problem.lengths, problem.statuses, problem.answers_from, strict=True
        ):
            statuses.setdefault(name, Counter())[status] += 1
            read = length is not None and not problem.skipped
            lengths.setdefault(name, []).extend([length] if read and length is not None else [])
            inferred[name] += read and source is AnswerFrom.INFERRED
        present = any(length is not None for length in problem.lengths)
        usable += present and not problem.skipped
        unusable += not present
        skipped += problem.skipped
        prompt_tokens += problem.prompt if present and not problem.skipped else 0
    if not usable:
        raise DataError(nothing_left(sum(statuses.values(), Counter()), max_length, skipped))
    return Preview(
        problems=usable,
        without_rationale=unusable,
        skipped=skipped,
        prompt_tokens=prompt_tokens,
        teachers=tuple(TeacherPreview(name, statuses[name], tuple(lengths[name]), inferred[name]) for name in statuses),
        steps=optimizer_steps(usable, train, ranks),
        epochs=train["num_train_epochs"],
        example=example,
    )


def nothing_left(statuses: Counter[RationaleStatus], max_length: int, skipped: int = 0) -> str:
    """What to say where no rationale takes part in training, by what became of them and their problems."""
    if skipped:
        return (
            f"the weight rule leaves no rationale to train on: none of {skipped} problems has one that may "
            "get weight (under verified and gate: a right answer); choose another `weighting`"
        )
    counts = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items())) or "no rows"
    return (
        f"no rationale is left to train on ({counts}); max_length is {max_length} tokens: "
        "raise it for over_length, and end texts with 'The answer is ...' for unparsed"
    )


def optimizer_steps(problems: int, train: Mapping[str, Any], ranks: int = 1) -> int:
    """Steps of a run, as transformers' Trainer counts them."""
    if train.get("max_steps", -1) > 0:
        return int(train["max_steps"])
    batches = problems / (train["per_device_train_batch_size"] * ranks)
    batches = math.floor(batches) if train.get("dataloader_drop_last") else math.ceil(batches)
    steps_per_epoch = max(math.ceil(batches / train["gradient_accumulation_steps"]), 1)
    return math.ceil(train["num_train_epochs"] * steps_per_epoch)


def _numbers(extra: Mapping[str, Any]) -> dict[str, float]:
    """What the data says of a rationale in numbers, such as raters' penalties."""
    return {
        name: float(value)
        for name, value in extra.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def used_rows(
    instances: Sequence[Instance], encoded: Sequence[EncodedProblem], verifier: Verifier
) -> Iterator[dict[str, Any]]:
    """Yield a problem's line of `data.jsonl` (docs/report.md), in the order of the input; lengths in tokens.

    A rationale that comes without a verdict gets the verifier's; one without any text has none.
    """
    for instance, problem in zip(instances, encoded, strict=True):
        verdicts = verifier.verify_many((answer, instance.answer) for answer in problem.answers)
        rows = zip(
            instance.rationales,
            problem.answers,
            problem.answers_from,
            verdicts,
            problem.branches,
            problem.statuses,
            strict=True,
        )
        yield {
            "id": instance.id,
            "question": instance.question,
            "answer": instance.answer,
            "prompt_tokens": len(problem.prompt),
            "rationales": [
                {
                    "teacher": rationale.teacher,
                    "sample": rationale.sample,
                    "text": rationale.text,
                    "answer": answer,
                    "answer_from": source,
                    "verdict": rationale.verdict or (verdict if rationale.text.strip() else None),
                    "status": status,
                    "tokens": None if branch is None else len(branch),
                    **({"numbers": numbers} if (numbers := _numbers(rationale.extra)) else {}),
                }
                for rationale, answer, source, verdict, branch, status in rows
            ],
        }


# ---- rows that TRL, axolotl and LLaMA-Factory read


Format = Literal["prompt_completion", "messages"]


@dataclass(frozen=True, slots=True)
class ExportCounts:
    """What became of the rationales: rows written, missing ones, and those without an answer that can be parsed."""

    written: int
    missing: int
    unparsed: int


def export_instances(
    instances: Iterable[Instance],
    path: str | Path,
    format: Format = "prompt_completion",
    text: TextConfig | None = None,
    infer_answers: bool = True,
) -> ExportCounts:
    r"""Write one row of JSONL for each rationale that is there and states an answer; the file appears whole.

    The completion is `reasoning + "\n" + answer_template` with the teacher's own answer. Formats:

    - "prompt_completion": {"prompt", "completion", "id", "teacher", "sample"}. The prompt is the prompt template
      filled in; the completion starts with a space.
    - "messages": {"messages": [user: question, assistant: completion], "id", "teacher", "sample"}.

    Rationales are not cut and none is dropped for its length: the trainer that reads them knows its tokenizer.

    Raises:
        DataError: an unknown format.
        OSError: the file cannot be written.
    """
    make_row = {"prompt_completion": _prompt_completion, "messages": _messages}.get(format)
    if make_row is None:
        raise DataError(f"format must be prompt_completion or messages, got {format!r}; choose one of them")
    text = text or TextConfig()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = missing = unparsed = 0
    with atomic_write(path, keep=True) as file:
        for instance in instances:
            for rationale, found in zip(instance.rationales, answers_of(instance, infer_answers), strict=True):
                if not rationale.text.strip():
                    missing += 1
                    continue
                completion = _completion(found, text)
                if completion is None:
                    unparsed += 1
                    continue
                source = {"id": instance.id, "teacher": rationale.teacher, "sample": rationale.sample}
                file.write(json_line({**make_row(instance.question, completion, text), **source}))
                written += 1
    return ExportCounts(written, missing, unparsed)


def _completion(found: FoundAnswer, text: TextConfig) -> str | None:
    if found.answer is None:
        return None
    return f"{found.reasoning}\n{text.answer_template.replace('{answer}', found.answer)}"


def _prompt_completion(question: str, completion: str, text: TextConfig) -> dict[str, Any]:
    # The space parts the completion from "Answer:"; an empty reasoning leaves the line break to do that.
    space = "" if completion.startswith("\n") else " "
    return {"prompt": text.prompt_template.replace("{question}", question), "completion": space + completion}


def _messages(question: str, completion: str, text: TextConfig) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": completion}]}
