"""Where the probe estimator stops in a reasoning, and the row of tokens it reads there; see docs/definitions.md."""

from __future__ import annotations

from dataclasses import dataclass

from compact_distill.method.packing import BranchRows, Layout


@dataclass(frozen=True, slots=True)
class ProbePoint:
    """The gold answer read at one point: the tokens of the probes' row that predict it, and its tokens."""

    rows: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Probes:
    """All probes of a layout: the row that follows it, the points, and each branch's points but the last.

    The last point of a branch, the end of its reasoning, was read with the branch itself. The first, the end of the
    prompt, is shared by all branches of a problem.
    """

    row: Layout
    points: list[ProbePoint]
    of_branch: list[list[int]]


def choose_points(stops: tuple[int, ...], length: int, max_probes: int) -> list[int]:
    """Reasoning lengths at which to probe: 0, after each thinking expression, the end; at most `max_probes`.

    Where there are more, the first, the last and evenly spaced ones between them are kept.
    """
    points = sorted({0, *stops, length})
    if len(points) <= max_probes:
        return points
    return [points[round(i * (len(points) - 1) / (max_probes - 1))] for i in range(max_probes)]


def lay_out_probes(layout: Layout, max_probes: int) -> Probes:
    """Lay out the answer segment's prefix and the gold answer after each probe point of each branch."""
    row = Layout(layout.problems, offset=len(layout.tokens), segments=list(layout.segments))
    points: list[ProbePoint] = []
    of_branch: list[list[int]] = []
    at_prompt: dict[int, int] = {}
    for branch in layout.branches:
        mine: list[int] = []
        for point in choose_points(branch.branch.stops, len(branch.branch.reasoning), max_probes)[:-1]:
            if point or branch.problem not in at_prompt:
                points.append(_add_probe(row, layout, branch, point))
                index = len(points) - 1
                if point == 0:
                    at_prompt[branch.problem] = index
            mine.append(index if point else at_prompt[branch.problem])
        of_branch.append(mine)
    return Probes(row, points, of_branch)


def _add_probe(row: Layout, layout: Layout, branch: BranchRows, point: int) -> ProbePoint:
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
    return ProbePoint(tuple(rows[first:]), problem.gold_tokens)
