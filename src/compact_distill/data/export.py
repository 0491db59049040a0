"""Write instances as files that other trainers read: TRL, axolotl, LLaMA-Factory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compact_distill.answers import FoundAnswer, answers_of
from compact_distill.config.models import TextConfig
from compact_distill.errors import DataError
from compact_distill.records import Instance
from compact_distill.runs.files import atomic_write, json_line

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
