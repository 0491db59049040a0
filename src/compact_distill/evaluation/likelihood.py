"""Examine a student by how likely it finds given texts: a row's choices, or whole texts; scored as lm-eval scores them.

    choice       acc: the right choice has the largest log-probability after the prompt; acc_norm: the largest one by
                 character of the choice; nats_per_token: how little the right choices were expected
    likelihood   bits_per_byte and nats_per_token of whole texts

A row is read once: its choices are branches that share its prompt, and rows share what their prompts begin with
(solved examples, say), laid out by `method.packing`. Nothing is padded.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compact_distill.errors import InputError, StudentError
from compact_distill.evaluation.result_files import as_plain, measures
from compact_distill.evaluation.task import Task
from compact_distill.evaluation.task_rows import TaskRow
from compact_distill.evaluation.writers import StudentWriter
from compact_distill.method.encode import Encoder
from compact_distill.method.forward import attach, read_labels
from compact_distill.method.packing import Layout
from compact_distill.records import Verdict
from compact_distill.students.prompt import prompt_text

_CPU_TOKENS = 1024
"""A CPU is as fast with rows of this many tokens as with longer ones, which only take more memory."""
_WORTH_SHARING = 16
"""Tokens that prompts must have in common to be read once for all of them: another segment costs time too."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens that are read, and those whose log-probability after them is wanted: of each choice, or of a text."""

    row: int
    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    def tokens(self, shared: int) -> int:
        """How many tokens are read where the first `shared` of the context have been read already."""
        return len(self.context) - shared + sum(len(tokens) - 1 for tokens in self.continuations)


class LikelihoodMeasure:
    """A task of kind `choice` or `likelihood` for one student; what `harness.evaluate_task` asks and counts.

    Raises:
        InputError: rows that the student cannot read, all of them told.
        StudentError: the student's architecture is not supported.
    """

    def __init__(self, writer: StudentWriter, task: Task, rows: Sequence[TaskRow], seed: int) -> None:
        self.writer, self.task, self.rows, self.seed = writer, task, rows, seed
        encode = _choices if task.kind == "choice" else _windows
        room = getattr(writer.model.config, "max_position_embeddings", None)
        faults: list[str] = []
        self.passages: list[Passage] = []
        for index, row in enumerate(rows):
            found = encode(writer.encoder, task, row, index, room)
            self.passages += found if isinstance(found, list) else []
            faults += [found] if isinstance(found, str) else []
        if faults:
            raise InputError(faults)
        attach(writer.model)

    @property
    def requests(self) -> Sequence[Any]:
        return self.passages

    @property
    def decoding(self) -> None:
        """Nothing is written."""
        return None

    @property
    def at_once(self) -> int:
        return 1  # they come back by whole passes

    @property
    def independent(self) -> bool:
        return False

    def ask(self, done: Collection[int]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """Read the passages that are not `done`, a pass at a time: log-probability (nats) and tokens of each part."""
        device = self.writer.model.device
        limit = min(self.writer.batch_tokens, _CPU_TOKENS) if device.type == "cpu" else self.writer.batch_tokens
        for indices in plan_passes(self.passages, limit):
            # A pass that was cut off is read again whole: with other neighbours, rounding might differ.
            if all(index in done for index in indices):
                continue
            sums = read_passages(self.writer.model, [self.passages[index] for index in indices])
            for index, values in zip(indices, sums, strict=True):
                if not all(map(math.isfinite, values)):
                    raise StudentError(
                        f"the student's log-probabilities must be numbers, got {values[0]} for row "
                        f"{self.rows[self.passages[index].row].id!r} of {self.task.name}; its weights are damaged or "
                        "its training diverged: train again, or take an earlier checkpoint"
                    )
            yield [
                (index, {"nats": [-value for value in values], "tokens": list(map(len, parts))})
                for index, values in zip(indices, sums, strict=True)
                for parts in [self.passages[index].continuations]
                if index not in done
            ]

    def judge(self, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One object a row, as the rows file holds it."""
        of_row: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for passage, read in zip(self.passages, found, strict=True):
            of_row[passage.row].append(read)
        judge = self._judge_choice if self.task.kind == "choice" else self._judge_text
        return [judge(row, of_row[index]) for index, row in enumerate(self.rows)]

    def _judge_choice(self, row: TaskRow, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        [read] = found
        labels = list(row.choices)
        by_character = [nats / len(row.choices[label]) for label, nats in zip(labels, read["nats"], strict=True)]
        # The first of equals, as lm-eval's argmax has it.
        picks = {"acc": min(read["nats"]), "acc_norm": min(by_character)}
        answers = {
            "acc": labels[read["nats"].index(picks["acc"])],
            "acc_norm": labels[by_character.index(picks["acc_norm"])],
        }
        gold = labels.index(row.gold)
        answer = answers[self.task.metric]
        return {
            "id": row.id,
            "sample": 0,
            "question": row.question,
            "choices": dict(row.choices),
            "gold": row.gold,
            "nats": dict(zip(labels, read["nats"], strict=True)),
            "answer": answer,
            "verdict": str(Verdict.CORRECT if answer == row.gold else Verdict.WRONG),
            **{name: int(label == row.gold) for name, label in answers.items()},
            "gold_nats": read["nats"][gold],
            "gold_tokens": read["tokens"][gold],
        }

    def _judge_text(self, row: TaskRow, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": row.id,
            "nats": math.fsum(read["nats"][0] for read in found),
            "tokens": sum(read["tokens"][0] for read in found),
            "bytes": len(row.prompt.encode()),
        }

    def count(self, attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The `result` of the result file."""
        values = measures(self.task.kind, attempts)
        estimates = {name: value.estimate(self.seed) for name, value in values.items()}
        main = self.task.metric if self.task.kind == "choice" else "bits_per_byte"
        share = estimates[main] if self.task.kind == "choice" else None
        verdicts = [attempt.get("verdict") for attempt in attempts]
        return {
            "rows": len(attempts),
            "samples": 1,
            "attempts": len(attempts),
            "metric": main,
            "metrics": {name: as_plain(estimate) for name, estimate in estimates.items()},
            "accuracy": share and share.value,
            "low": share and share.low,
            "high": share and share.high,
            "verdicts": {str(verdict): verdicts.count(str(verdict)) for verdict in Verdict},
            "truncated": 0,
        }


# ---- from texts to tokens


def _choices(encoder: Encoder, task: Task, row: TaskRow, index: int, room: int | None) -> list[Passage] | str:
    """A row's prompt and choices; a message where they cannot be read."""
    prompt, delimiter = row.prompt, " "
    if task.chat and encoder.tokenizer.chat_template:
        asked = encoder.text.messages(row.prompt)
        prompt = prompt_text(encoder.tokenizer, asked, encoder.text.template_options, encoder.text.close_thinking)
        delimiter = ""
    special = delimiter == " "
    # White space at the end of a prompt belongs to the word that follows, for tokenizers.
    context_text = prompt.rstrip()
    context = _tokens(encoder, context_text, special)
    if not context:
        return f"row {row.id!r} of {task.name}: its prompt has no tokens; mend `prompt` of the task, or the row"
    continuations = []
    for label, text in row.choices.items():
        whole = _tokens(encoder, prompt + delimiter + text, special)
        continuations.append(whole[len(context) :])
        if not continuations[-1]:
            return f"row {row.id!r} of {task.name}: choice {label} has no tokens of its own after the prompt; mend it"
        if room is not None and len(context) + len(continuations[-1]) - 1 > room:
            return (
                f"row {row.id!r} of {task.name}: its prompt of {len(context)} tokens and choice {label} of "
                f"{len(continuations[-1])} do not fit in the student's {room}; lower fewshot, or remove the row"
            )
    return [Passage(index, context, tuple(continuations))]


def _windows(encoder: Encoder, task: Task, row: TaskRow, index: int, room: int | None) -> list[Passage] | str:
    """A text in windows: each token is predicted once, the first one after the token that begins a text."""
    tokens = tuple(encoder.tokenizer(row.prompt, add_special_tokens=False)["input_ids"])
    if not tokens:
        return f"row {row.id!r} of {task.name}: its text has no tokens; remove it"
    begin = encoder.tokenizer.bos_token_id
    path = (encoder.tokenizer.eos_token_id if begin is None else begin, *tokens)
    window = task.window if room is None else min(task.window, room)
    passages = []
    for start in range(0, len(tokens), window):
        stop = min(start + window, len(tokens))
        # The last window looks back as far as it can (lm-eval's disjoint rolling windows).
        first = max(0, stop - window)
        passages.append(Passage(index, path[first : start + 1], (path[start + 1 : stop + 1],)))
    return passages


def _tokens(encoder: Encoder, text: str, special: bool) -> tuple[int, ...]:
    ids = encoder.tokenizer(text, add_special_tokens=special)["input_ids"]
    if special and ids and ids[-1] == encoder.tokenizer.eos_token_id:  # some tokenizers end every text with eos
        ids = ids[:-1]
    return tuple(ids)


# ---- reading


def plan_passes(passages: Sequence[Passage], max_tokens: int) -> list[list[int]]:
    """Divide passages, in order, into passes of at most `max_tokens` tokens; one passage always fits."""
    passes: list[list[int]] = []
    shared, apart = 0, 0  # tokens that all contexts of the pass begin with; tokens without them
    for index, passage in enumerate(passages):
        if passes:
            group = passes[-1]
            common = _common(passages[group[0]].context[:shared], passage.context)
            size = apart + (shared - common) * len(group) + passage.tokens(common)
            read = size + common if common >= _WORTH_SHARING else size + common * (len(group) + 1)
            if read <= max_tokens:
                group.append(index)
                shared, apart = common, size
                continue
        passes.append([index])
        shared = len(passage.context) - 1
        apart = passage.tokens(shared)
    return passes


def read_passages(model: Any, passages: Sequence[Passage]) -> list[list[float]]:
    """Read passages in one pass; log-probability (nats) of each continuation. Dropout is off meanwhile."""
    layout, rows, labels, counts = _lay_out(passages)
    training = model.training
    model.eval()
    try:
        logprob_N = read_labels(model, layout, rows, labels).double().cpu()
    finally:
        model.train(training)
    sums = iter([float(part.sum()) for part in logprob_N.split(counts)])
    return [[next(sums) for _ in passage.continuations] for passage in passages]


def _lay_out(passages: Sequence[Passage]) -> tuple[Layout, list[int], list[int], list[int]]:
    """The row of tokens; where in it each label is predicted; the labels; how many of them a continuation has."""
    shared = len(passages[0].context) - 1
    for passage in passages[1:]:
        shared = _common(passages[0].context[:shared], passage.context)
    if shared < _WORTH_SHARING or len(passages) == 1:
        shared = 0
    layout = Layout([])
    above = ((layout.add_segment(passages[0].context[:shared], ()), shared),) if shared else ()
    rows: list[int] = []
    labels: list[int] = []
    for passage in passages:
        own = layout.add_segment(passage.context[shared:], above)
        end = layout.segments[own]
        for tokens in passage.continuations:
            rows.append(end.stop - 1)
            labels.extend(tokens)
            if len(tokens) > 1:
                read = layout.segments[layout.add_segment(tokens[:-1], (*above, (own, end.length)))]
                rows.extend(range(read.start, read.stop))
    return layout, rows, labels, [len(tokens) for passage in passages for tokens in passage.continuations]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two contexts begin with alike; a context always keeps its last token for itself."""
    limit = min(len(one), len(other) - 1)
    return next((place for place in range(limit) if one[place] != other[place]), limit)
