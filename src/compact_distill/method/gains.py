"""Where in each rationale the student's belief in the gold answer rises and falls, for a reader's eyes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from compact_distill.config.models import CompatibilityConfig, TextConfig
from compact_distill.method.encode import Branch, Encoder
from compact_distill.method.forward import attach
from compact_distill.method.passes import plan_jobs, read_job
from compact_distill.method.probes import choose_points
from compact_distill.method.scores import Evaluator
from compact_distill.records import Instance, Rationale

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Problems that are planned together; enough to fill a pass, few enough to stream.
_CHUNK = 32
_DIGITS = 4  # of a gain, in nats; more would only make the file longer


def gains(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    instances: Iterable[Instance],
    student: Literal["before", "after"],
    compatibility: CompatibilityConfig | None = None,
    text: TextConfig | None = None,
    max_length: int = 2560,
    max_tokens_per_pass: int = 16384,
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

    Raises:
        StudentError: model or tokenizer cannot be used.
    """
    evaluator = Evaluator(compatibility)
    config = evaluator.config
    options = evaluator.pass_options(0.0)
    encoder = Encoder(tokenizer, text, min(max_length, max_tokens_per_pass), config.thinking_expressions)
    attach(model)
    pairs = ((instance, encoder(instance)) for instance in instances)
    training = model.training
    model.eval()
    try:
        while chunk := list(islice(pairs, _CHUNK)):
            of = {id(problem): instance for instance, problem in chunk}
            for job in plan_jobs([problem for _, problem in chunk], options, max_tokens_per_pass):
                with torch.no_grad():
                    outputs = read_job(model, job, options)
                for problem, belief_KP in zip(job.problems, outputs.belief_BKP.float(), strict=True):
                    texts = [
                        _rationale(rationale, branch, encoder, belief, options.max_probes)
                        for rationale, branch, belief in zip(
                            of[id(problem)].rationales, problem.branches, belief_KP.tolist(), strict=False
                        )
                    ]
                    line = {"id": problem.id, "student": student, "estimator": config.estimator}
                    yield line | {"rationales": texts}
    finally:
        model.train(training)


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
