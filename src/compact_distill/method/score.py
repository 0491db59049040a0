"""Score rationales with a student that is not being trained: what `compact score` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compact_distill.config.models import CompatibilityConfig, TextConfig
from compact_distill.method.encode import EncodedProblem, Encoder
from compact_distill.method.forward import PassOptions, attach
from compact_distill.method.passes import plan_jobs, read_job
from compact_distill.method.scores import BUILT_IN, Evaluator
from compact_distill.records import Instance, ScoreRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Problems that are planned together; enough to fill a pass, few enough to stream.
_CHUNK = 32


def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    instances: Iterable[Instance],
    compatibility: CompatibilityConfig | None = None,
    text: TextConfig | None = None,
    max_length: int = 2560,
    max_tokens_per_pass: int = 16384,
) -> Iterator[ScoreRow]:
    """Yield one row of scores and weights a problem, in the order of the input.

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

    Raises:
        StudentError: model or tokenizer cannot be used.
    """
    evaluator = Evaluator(compatibility)
    encoder = Encoder(tokenizer, text, min(max_length, max_tokens_per_pass), evaluator.config.thinking_expressions)
    attach(model)
    rows = _read(model, encoder, instances, evaluator.pass_options(0.0), evaluator, max_tokens_per_pass)
    if evaluator.running is not None:
        everything = list(rows)
        for _, scores, present_K in everything:
            evaluator.observe({name: value[None] for name, value in scores.items()}, present_K[None])
        rows = iter(everything)
    for problem, scores, present_K in rows:
        weights_K = evaluator.weights({name: value[None] for name, value in scores.items()}, present_K[None])[0]
        yield score_row(problem, scores, weights_K)


def _read(
    model: nn.Module,
    encoder: Encoder,
    instances: Iterable[Instance],
    options: PassOptions,
    evaluator: Evaluator,
    max_tokens: int,
) -> Iterator[tuple[EncodedProblem, dict[str, Tensor], Tensor]]:
    """Each problem with its scores [K] and which rationales are present [K]."""
    encoded = encoder.encode_all(instances)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        while chunk := list(islice(encoded, _CHUNK)):
            done: dict[int, tuple[dict[str, Tensor], Tensor]] = {}
            for job in plan_jobs(chunk, options, max_tokens, device):
                with torch.no_grad():
                    outputs = read_job(model, job, options)
                    scores = evaluator.scores(outputs)
                for index, problem in enumerate(job.problems):
                    count = len(problem.branches)
                    done[id(problem)] = (
                        {name: value[index, :count].cpu() for name, value in scores.items()},
                        outputs.present_BK[index, :count].cpu(),
                    )
            for problem in chunk:
                nothing = torch.zeros(len(problem.branches))
                unread = (dict.fromkeys(evaluator.coefficients, nothing), nothing.bool())
                yield problem, *done.get(id(problem), unread)
    finally:
        model.train(training)


def score_row(problem: EncodedProblem, scores: Mapping[str, Tensor], weights_K: Tensor) -> ScoreRow:
    """A problem's scores [K] and weights [K] as a row; None where a rationale is missing."""

    def column(name: str) -> tuple[float | None, ...]:
        values = scores[name].tolist()
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
