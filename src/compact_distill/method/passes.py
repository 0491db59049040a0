"""Divide a batch of problems into passes that fit a token budget, and read it.

Problems share passes as long as they fit. A problem too long for one pass is read branch by branch (a few branches at
a time where they fit), each pass under an activation checkpoint: the forward keeps only what scores and loss need, and
the backward runs one pass after the other again, with the same dropout. That is two-phase training: score without
keeping activations, then forward and backward branch by branch; memory is the longest pass's, gradients are the same,
and it is one backward for whoever calls it.

Shape letters: none; a pass is a row of tokens, a job the rows of problems whose loss is computed together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from compact_distill.method.encode import EncodedProblem
from compact_distill.method.forward import PassOptions, read
from compact_distill.method.outputs import Reading, StudentOutputs, arrange
from compact_distill.method.packing import Layout, lay_out


@dataclass(frozen=True)
class Job:
    """Problems whose loss is computed together, and the layouts they are read in: one, or several of one problem."""

    problems: Sequence[EncodedProblem]
    layouts: tuple[Layout, ...]


# A CPU is as fast with rows of this many tokens as with longer ones, which only take more memory.
_CPU_FILL = 1024


def plan_jobs(
    problems: Sequence[EncodedProblem], options: PassOptions, max_tokens: int, device: torch.device | None = None
) -> list[Job]:
    """Divide problems, in order, into jobs whose layouts hold at most `max_tokens` tokens each.

    On a CPU `device` short problems share a row only up to 1,024 tokens; elsewhere up to `max_tokens`.

    A single branch longer than the budget gets a layout of its own: what is too long for the machine is the
    encoder's `max_length` to drop. Problems without any present rationale take part in no job.
    """
    fill = min(max_tokens, _CPU_FILL) if device is not None and device.type == "cpu" else max_tokens
    jobs: list[Job] = []
    gathered: list[EncodedProblem] = []
    tokens = 0
    for problem in problems:
        if not problem.present:
            continue
        size = len(lay_out([problem], options.with_gold).tokens)
        if gathered and tokens + size > fill:
            jobs.append(_together(gathered, options))
            gathered, tokens = [], 0
        if size > max_tokens:
            jobs.append(Job([problem], tuple(_split(problem, options, max_tokens))))
        else:
            gathered.append(problem)
            tokens += size
    if gathered:
        jobs.append(_together(gathered, options))
    return jobs


def _together(problems: Sequence[EncodedProblem], options: PassOptions) -> Job:
    problems = list(problems)
    return Job(problems, (lay_out(problems, options.with_gold),))


def _split(problem: EncodedProblem, options: PassOptions, max_tokens: int) -> Iterator[Layout]:
    """Layouts of as many branches as fit, at least one each."""
    group: list[int] = []
    for k in problem.present:
        if group and len(lay_out([problem], options.with_gold, [*group, k]).tokens) > max_tokens:
            yield lay_out([problem], options.with_gold, group)
            group = []
        group.append(k)
    yield lay_out([problem], options.with_gold, group)


def read_job(model: nn.Module, job: Job, options: PassOptions) -> StudentOutputs:
    """Read a job's layouts and arrange what they yield over its problems and teachers."""
    if len(job.layouts) == 1 or not torch.is_grad_enabled():
        readings = [read(model, layout, options) for layout in job.layouts]
    else:
        readings = [_read_again_in_backward(model, layout, options) for layout in job.layouts]
    return arrange(job.problems, readings)


def _read_again_in_backward(model: nn.Module, layout: Layout, options: PassOptions) -> Reading:
    # preserve_rng_state replays dropout exactly in the second forward.
    return checkpoint(read, model, layout, options, use_reentrant=False, preserve_rng_state=True)
