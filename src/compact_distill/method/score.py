"""`compact score`: a student reads rationales without being trained on them. What it computes is in scores.py.

One loop reads; `score` (what `compact score` does) and `gains` (for the report) take from it what they want.
Shape letters: B problems, K teachers, P points at which the belief is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from compact_distill.config.models import MAX_LENGTH, MAX_TOKENS_PER_PASS, CompatibilityConfig, TextConfig, Weighting
from compact_distill.errors import RunError
from compact_distill.method.encode import Branch, EncodedProblem, Encoder
from compact_distill.method.forward import PassOptions, attach
from compact_distill.method.outputs import StudentOutputs
from compact_distill.method.packing import choose_points
from compact_distill.method.passes import plan_jobs, read_job
from compact_distill.method.scores import BUILT_IN, Scorer
from compact_distill.records import Instance, Rationale, ScoreRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

# Problems that are planned together; enough to fill a pass, few enough to stream.
_CHUNK = 32
_DIGITS = 4  # of a gain, in nats; more would only make the file longer


def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    instances: Iterable[Instance],
    compatibility: CompatibilityConfig | None = None,
    text: TextConfig | None = None,
    max_length: int = MAX_LENGTH,
    max_tokens_per_pass: int = MAX_TOKENS_PER_PASS,
    weighting: Weighting = "compact",
    seed: int = 42,
    infer_answers: bool = True,
) -> Iterator[ScoreRow]:
    """Yield one row of scores and weights a problem, in the order of the input.

    ```python
    from compact_distill import load_instances, load_student, score

    for row in score(*load_student("HuggingFaceTB/SmolLM2-135M-Instruct"), load_instances("data.jsonl")):
        print(row.id, row.teachers, row.weights)  # 1 ('qwq', 'llama') (0.98, 0.02)
    ```

    Dropout is off; scores come in the model's own precision, at least fp32. With `normalise: running` all problems are
    read before the first row comes, and standardised by the statistics of all of them.

    Args:
        model: a supported causal language model.
        tokenizer: its tokenizer.
        instances: problems with rationales.
        compatibility: which scores, how they are read and weighed.
        text: templates.
        max_length: most tokens of prompt + completion; longer rationales count as missing, with their status.
        max_tokens_per_pass: tokens the student reads at once.
        weighting: the weight rule; a problem that it skips has weights of 0.
        seed: of what the rule draws.
        infer_answers: whether final answers that are not stated may be inferred.

    Raises:
        StudentError: model or tokenizer cannot be used.
        ConfigError: an unknown score or rule.
        DataError: the rule reads weights from the data, and one is no number.
    """
    scorer = Scorer(compatibility, weighting, seed)
    expressions = scorer.config.thinking_expressions
    encoder = Encoder(tokenizer, text, min(max_length, max_tokens_per_pass), expressions, infer_answers)

    def take(outputs: StudentOutputs) -> list[dict[str, Tensor]]:
        scores = scorer.scores(outputs)
        counts = [len(problem.branches) for problem in outputs.problems]
        return [{name: value[b, :k].cpu() for name, value in scores.items()} for b, k in enumerate(counts)]

    read = _read(model, scorer, encoder, instances, scorer.pass_options(0.0), max_tokens_per_pass, take)
    rows = read if scorer.running is None else list(read)
    if scorer.running is not None:
        for _, problem, scores in rows:
            if scores is not None:
                scorer.observe(_batch_of_one(scores), _present_BK(problem))
    for _, problem, scores in rows:
        if scores is None:  # no rationale: there is nothing to weigh
            nothing_K = torch.zeros(len(problem.branches))
            yield score_row(problem, dict.fromkeys(scorer.names, nothing_K), nothing_K)
        else:
            yield score_row(problem, scores, scorer.weights(_batch_of_one(scores), [problem])[0])


def _batch_of_one(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[None] for name, value in scores.items()}


def _present_BK(problem: EncodedProblem) -> Tensor:
    return torch.tensor([[branch is not None for branch in problem.branches]])


def gains(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    instances: Iterable[Instance],
    student: Literal["before", "after"],
    compatibility: CompatibilityConfig | None = None,
    text: TextConfig | None = None,
    max_length: int = MAX_LENGTH,
    max_tokens_per_pass: int = MAX_TOKENS_PER_PASS,
    infer_answers: bool = True,
) -> Iterator[dict[str, Any]]:
    """Yield a problem's line of `gains.jsonl` (docs/report.md): the belief's change, in nats, at each step of reading.

    Dropout is off. Problems without any present rationale are left out.

    Args:
        model: a supported causal language model.
        tokenizer: its tokenizer.
        instances: problems with rationales.
        student: which student the model is: before or after training.
        compatibility: the estimator of the belief, and the thinking expressions.
        text: templates.
        max_length: most tokens of prompt + completion; longer rationales take no part.
        max_tokens_per_pass: tokens the student reads at once.
        infer_answers: whether final answers that are not stated may be inferred.

    Raises:
        StudentError: model or tokenizer cannot be used.
    """
    scorer = Scorer(compatibility)
    # A reader wants to see all points, whatever the score takes of them.
    options = PassOptions(False, scorer.config.max_probes if scorer.config.estimator == "probe" else None)
    expressions = scorer.config.thinking_expressions
    encoder = Encoder(tokenizer, text, min(max_length, max_tokens_per_pass), expressions, infer_answers)
    rows = _read(
        model, scorer, encoder, instances, options, max_tokens_per_pass, lambda o: o.belief_BKP.float().tolist()
    )
    for instance, problem, belief_KP in rows:
        if belief_KP is None:
            continue
        texts = [
            _rationale(rationale, branch, encoder, belief_P, options.max_probes)
            for rationale, branch, belief_P in zip(instance.rationales, problem.branches, belief_KP, strict=False)
        ]
        line = {"id": problem.id, "student": student, "estimator": scorer.config.estimator}
        yield line | {"rationales": texts}


def _read(
    model: nn.Module,
    scorer: Scorer,
    encoder: Encoder,
    instances: Iterable[Instance],
    options: PassOptions,
    max_tokens: int,
    take: Callable[[StudentOutputs], list[T]],
) -> Iterator[tuple[Instance, EncodedProblem, T | None]]:
    """Each instance, in order, with its tokens and what `take` took from its pass; None where it has no rationale.

    `take` turns a pass's outputs into one entry a problem at once, so that no pass's distributions are kept.
    """
    attach(model)
    pairs = scorer.encode(encoder, instances)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        while chunk := list(islice(pairs, _CHUNK)):
            taken: dict[int, T] = {}
            for job in plan_jobs([problem for _, problem in chunk], options, max_tokens, device):
                with torch.no_grad():
                    entries = take(read_job(model, job, options))
                taken.update((id(problem), entry) for problem, entry in zip(job.problems, entries, strict=True))
            for instance, problem in chunk:
                yield instance, problem, taken.get(id(problem))
    finally:
        model.train(training)


def score_row(problem: EncodedProblem, scores: Mapping[str, Tensor], weights_K: Tensor) -> ScoreRow:
    """A problem's scores [K] and weights [K] as a row; None where a rationale is missing."""

    def column(name: str) -> tuple[float | None, ...]:
        values = scores[name].tolist()
        for teacher, value, branch in zip(problem.teachers, values, problem.branches, strict=True):
            if branch is not None and not math.isfinite(value):
                raise RunError(
                    f"problem {problem.id!r}: the student gives {name} {value} for {teacher!r}, so its weights or its "
                    "precision are broken; load another copy, or one in bf16 or fp32 instead of fp16"
                )
        return tuple(v if b is not None else None for v, b in zip(values, problem.branches, strict=True))

    return ScoreRow(
        id=problem.id,
        teachers=problem.teachers,
        consensus=column("consensus"),
        adaptability=column("adaptability"),
        difficulty=column("difficulty"),
        weights=tuple(weights_K.tolist()),
        statuses=problem.statuses,
        extra_scores={name: column(name) for name in scores if name not in BUILT_IN},
    )


def _rationale(
    rationale: Rationale, branch: Branch | None, encoder: Encoder, belief_P: list[float], max_probes: int | None
) -> dict[str, Any] | None:
    """A rationale's steps: where each ends in the text, and how the belief changed on it; None where it is absent."""
    if branch is None:
        return None
    length = len(branch.reasoning)
    points = list(range(length + 1)) if max_probes is None else choose_points(branch.stops, length, max_probes)
    spans = encoder.reasoning_spans(rationale.text)
    return {
        "teacher": rationale.teacher,
        "sample": rationale.sample,
        "start": spans[0][0] if spans else 0,
        "belief": round(belief_P[0], _DIGITS),
        "ends": [spans[point - 1][1] for point in points[1:]],
        "gains": [round(after - before, _DIGITS) for before, after in pairwise(belief_P[: len(points)])],
        "thinking": _merge([span for span, marked in zip(spans, branch.thinking, strict=True) if marked]),
    }


def _merge(spans: list[tuple[int, int]]) -> list[list[int]]:
    """Adjoining spans as one."""
    merged: list[list[int]] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(end, merged[-1][1])
        else:
            merged.append([start, end])
    return merged
