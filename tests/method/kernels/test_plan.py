"""A plan says which rows of keys a segment's queries see."""

from __future__ import annotations

import torch

from compact_distill.method.kernels.plan import AttentionPlan
from compact_distill.method.packing import Segment

# prompt of 3, two branches of 4 and 2, a gold answer of 2 after one token of branch 1, then a second problem
SEGMENTS = [
    Segment(0, 3, 0, ()),
    Segment(3, 4, 3, ((0, 3),)),
    Segment(7, 2, 3, ((0, 3),)),
    Segment(9, 2, 4, ((0, 3), (2, 1))),
    Segment(11, 1, 0, ()),
    Segment(12, 5, 1, ((4, 1),)),
]


def test_branches_of_a_problem_read_its_prompt_together():
    parts = AttentionPlan(SEGMENTS).parts
    together = [(part.queries, part.keys) for part in parts if not part.causal]
    assert together == [
        (slice(3, 11), slice(0, 3)),  # both branches and the gold answer read the prompt
        (slice(9, 11), slice(7, 8)),  # the gold answer reads the first token of branch 1
        (slice(12, 17), slice(11, 12)),
    ]
    assert [part.queries for part in parts if part.causal] == [slice(s.start, s.stop) for s in SEGMENTS]


def test_the_keys_of_a_segment_are_its_context_and_itself():
    own = [[0, 1, 2], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 7, 8], [0, 1, 2, 7, 9, 10], [11], [11, 12, 13, 14, 15, 16]]
    assert AttentionPlan(SEGMENTS).gather == [row for rows in own for row in rows]
    assert AttentionPlan(SEGMENTS, first=3).gather == [row for rows in own[3:] for row in rows]
    assert AttentionPlan(SEGMENTS).longest == 7  # prompt and branch 0


def test_a_mask_goes_by_position_and_window():
    plan = AttentionPlan(SEGMENTS)
    device = torch.device("cpu")
    assert plan.mask(SEGMENTS[3], None, device).int().tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert plan.mask(SEGMENTS[3], 2, device).int().tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]]
