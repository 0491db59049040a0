"""Lay problems out as one row of tokens without padding: each prompt once, each branch once, gold answers branched off.

    row       | prompt | branch 0 | branch 1 | gold of branch 1 | prompt | branch 0 | ...
    sees      |        | prompt   | prompt   | prompt, branch 1 |

A segment sees itself causally and the ranges in `context` whole. Positions go on where the context ends, so a branch
reads exactly what it would read in a sequence of its own.

Shape letters: N tokens of a row, R reasoning tokens of a branch; ranges and rows are places in the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compact_distill.method.encode import Branch, EncodedProblem


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens in the row, and what it sees besides itself.

    `context` holds (segment index, tokens of it that are seen), from the prompt down; `position` is the position of
    the first token, which is the number of tokens in the context.
    """

    start: int
    length: int
    position: int
    context: tuple[tuple[int, int], ...]

    @property
    def stop(self) -> int:
        """Row behind its last token."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class BranchRows:
    """Where one branch's quantities are read off the row of hidden states.

    The hidden state at `prompt_end` predicts the branch's first token and those at `own` the following ones, eos the
    last; the states at `gold` predict the gold answer's tokens. `segment` is the index of the branch's segment.
    """

    problem: int
    teacher: int
    branch: Branch
    segment: int
    prompt_end: int
    own: range
    gold: tuple[int, ...]

    @property
    def labelled(self) -> tuple[int, ...]:
        """The rows that predict the completion's tokens, in order."""
        return (self.prompt_end, *self.own)

    @property
    def reasoning(self) -> range:
        """The rows of the reasoning's tokens."""
        return self.own[: len(self.branch.reasoning)]

    @property
    def last(self) -> int:
        """The row of the last token before eos."""
        return self.own[-1]


@dataclass(frozen=True)
class Layout:
    """A row of N tokens that holds some branches of some problems, and where to read what.

    Attributes:
        problems: the problems, as given.
        tokens: the row, N token ids.
        positions: position of each token in its own sequence.
        segments: the row's segments, in order.
        branches: where to read each branch, in the order (problem, teacher).
        offset: tokens of an earlier row that this one follows; `segments` then begins with the earlier row's.
    """

    problems: Sequence[EncodedProblem]
    offset: int = 0
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    branches: list[BranchRows] = field(default_factory=list)

    def add_segment(self, tokens: Sequence[int], context: tuple[tuple[int, int], ...]) -> int:
        """Append a segment to the row and return its index."""
        position = sum(seen for _, seen in context)
        self.segments.append(Segment(self.offset + len(self.tokens), len(tokens), position, context))
        self.tokens.extend(tokens)
        self.positions.extend(range(position, position + len(tokens)))
        return len(self.segments) - 1

    def input_ids(self, device: torch.device) -> Tensor:
        """The row as a [1, N] tensor."""
        return torch.tensor([self.tokens], device=device)

    def position_ids(self, device: torch.device) -> Tensor:
        """Positions as a [1, N] tensor."""
        return torch.tensor([self.positions], device=device)


def lay_out(problems: Sequence[EncodedProblem], with_gold: bool, only: Iterable[int] | None = None) -> Layout:
    """Lay out the present branches of `problems`.

    Args:
        problems: the problems.
        with_gold: also lay out the gold answer after every reasoning whose own answer segment differs from it.
        only: teachers to lay out (the others are read in another pass); None: all present ones.
    """
    layout = Layout(problems)
    wanted = None if only is None else frozenset(only)
    for b, problem in enumerate(problems):
        prompt = layout.add_segment(problem.prompt, ())
        for k in problem.present:
            if wanted is None or k in wanted:
                _add_branch(layout, b, k, prompt, with_gold)
    return layout


def _add_branch(layout: Layout, b: int, k: int, prompt: int, with_gold: bool) -> None:
    problem = layout.problems[b]
    branch = problem.branches[k]
    assert branch is not None
    prompt_segment = layout.segments[prompt]
    own = (*branch.reasoning, *branch.answer)  # eos is predicted, never read
    index = layout.add_segment(own, ((prompt, prompt_segment.length),))
    start = layout.segments[index].start
    rows = BranchRows(
        problem=b,
        teacher=k,
        branch=branch,
        segment=index,
        prompt_end=prompt_segment.stop - 1,
        own=range(start, start + len(own)),
        gold=_add_gold(layout, problem, branch, index) if with_gold else (),
    )
    layout.branches.append(rows)


def _add_gold(layout: Layout, problem: EncodedProblem, branch: Branch, index: int) -> tuple[int, ...]:
    """Lay out the gold answer after a branch's reasoning; return the rows that predict its tokens.

    Where the branch's own answer segment starts with the same tokens, these serve: a token reads the same in both.
    """
    path = problem.gold[: problem.gold_stop - 1]  # the last gold token is predicted, never read
    shared = 0
    while shared < min(len(path), len(branch.answer)) and path[shared] == branch.answer[shared]:
        shared += 1
    own = layout.segments[index]
    (prompt_index, prompt_length) = own.context[0]
    attach = len(branch.reasoning) + shared
    rows = [layout.segments[prompt_index].stop - 1, *range(own.start, own.start + attach)]
    if shared < len(path):
        context = ((prompt_index, prompt_length), (index, attach)) if attach else ((prompt_index, prompt_length),)
        gold = layout.segments[layout.add_segment(path[shared:], context)]
        rows.extend(range(gold.start, gold.stop))
    return tuple(rows[len(branch.reasoning) + problem.gold_start : len(branch.reasoning) + problem.gold_stop])


@dataclass(frozen=True, slots=True)
class ProbePassage:
    """Tokens whose log-probability a second row reads: the places in that row that predict them, and they."""

    rows: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class SecondRow:
    """What is read on the keys and values of a first row: answers after stopping early, and steps out of context.

    Attributes:
        row: the layout that follows the first one.
        passages: what is read in it.
        probes: each branch's probe points but the last, as places in `passages`. The last point, the end of its
            reasoning, was read with the branch itself; the first, the end of the prompt, is shared by all branches.
        steps: each branch's steps that were not read with the branch in the same context, likewise.
    """

    row: Layout
    passages: list[ProbePassage]
    probes: list[list[int]]
    steps: list[list[int]]


def choose_points(stops: tuple[int, ...], length: int, max_probes: int) -> list[int]:
    """Reasoning lengths at which to probe: 0, after each thinking expression, the end; at most `max_probes`.

    Where there are more, the first, the last and evenly spaced ones between them are kept.
    """
    points = sorted({0, *stops, length})
    if len(points) <= max_probes:
        return points
    return [points[round(i * (len(points) - 1) / (max_probes - 1))] for i in range(max_probes)]


def step_windows(branch: Branch, window: int) -> list[tuple[int, int, int]]:
    """(start of the window, start, stop) of each reasoning step; the window is the `window` steps before it."""
    stops = (*branch.steps[1:], len(branch.reasoning))
    return [(branch.steps[max(s - window, 0)], start, stops[s]) for s, start in enumerate(branch.steps)]


def lay_out_second_row(layout: Layout, max_probes: int | None = None, window: int | None = None) -> SecondRow:
    """Lay out what the probe estimator and local naturalness read.

    Args:
        layout: the first row.
        max_probes: the answer segment's prefix and the gold answer after up to so many points of each reasoning.
        window: each step of a reasoning after the prompt and so many steps before it.
    """
    row = Layout(layout.problems, offset=len(layout.tokens), segments=list(layout.segments))
    second = SecondRow(row, [], [], [])
    at_prompt: dict[int, int] = {}
    for branch in layout.branches:
        points: list[int] = []
        if max_probes is not None:
            points = choose_points(branch.branch.stops, len(branch.branch.reasoning), max_probes)[:-1]
        places: list[int] = []
        for point in points:
            if point or branch.problem not in at_prompt:
                second.passages.append(_add_probe(row, layout, branch, point))
                if point == 0:
                    at_prompt[branch.problem] = len(second.passages) - 1
            places.append(len(second.passages) - 1 if point else at_prompt[branch.problem])
        second.probes.append(places)
        windows = [] if window is None else [w for w in step_windows(branch.branch, window) if w[0] > 0]
        first = len(second.passages)
        second.passages.extend(_add_step(row, layout, branch, *places) for places in windows)
        second.steps.append(list(range(first, len(second.passages))))
    return second


def _add_step(row: Layout, layout: Layout, branch: BranchRows, window: int, start: int, stop: int) -> ProbePassage:
    """A step after the prompt and a window of the reasoning alone."""
    reasoning = branch.branch.reasoning
    path = reasoning[window : stop - 1]  # the last token is predicted, never read
    segment = row.segments[row.add_segment(path, layout.segments[branch.segment].context)]
    first = segment.start - row.offset + start - window - 1
    return ProbePassage(tuple(range(first, segment.stop - row.offset)), reasoning[start:stop])


def _add_probe(row: Layout, layout: Layout, branch: BranchRows, point: int) -> ProbePassage:
    problem = layout.problems[branch.problem]
    path = problem.gold[: problem.gold_stop - 1]  # the last gold token is predicted, never read
    first = problem.gold_start - 1  # the place in `path` that predicts the first gold token
    prompt, prompt_seen = layout.segments[branch.segment].context[0]
    seen = point
    if first < 0:  # the gold answer is the segment's first token: read the token before it once more to predict it
        path = (branch.branch.reasoning[point - 1] if point else problem.prompt[-1], *path)
        first = 0
        seen, prompt_seen = (point - 1, prompt_seen) if point else (0, prompt_seen - 1)
    context = tuple((index, count) for index, count in ((prompt, prompt_seen), (branch.segment, seen)) if count)
    segment = row.segments[row.add_segment(path, context)]
    rows = range(segment.start - row.offset, segment.stop - row.offset)
    return ProbePassage(tuple(rows[first:]), problem.gold_tokens)
