"""Where each token of a problem goes in the row, by hand."""

from __future__ import annotations

import dataclasses

from compact_distill.method.packing import choose_points, lay_out, lay_out_second_row, step_windows
from method.by_hand import OTHER, RIGHT, WRONG, branch, problem


def test_the_prompt_comes_once_and_eos_is_never_read():
    layout = lay_out([problem(RIGHT, WRONG)], with_gold=False)
    assert layout.tokens == [1, 2, 3, 10, 11, 50, 51, 52, 53, 20, 50, 51, 60, 53]
    assert layout.positions == [0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 4, 5, 6, 7]
    right, wrong = layout.branches
    assert right.labelled == (2, 3, 4, 5, 6, 7, 8)
    assert wrong.labelled == (2, 9, 10, 11, 12, 13)
    assert (right.last, wrong.last) == (8, 13)
    assert list(right.reasoning) == [3, 4]


def test_gold_tokens_serve_twice_where_the_answer_segment_starts_the_same():
    layout = lay_out([problem(RIGHT, WRONG)], with_gold=True)
    assert len(layout.tokens) == 14  # nothing to branch off: 50, 51 predict the gold token 52 in both
    assert [b.gold for b in layout.branches] == [(6,), (11,)]


def test_gold_branches_off_the_reasoning_where_the_answer_segment_differs():
    layout = lay_out([problem(OTHER)], with_gold=True)
    assert layout.tokens == [1, 2, 3, 30, 70, 50, 51]
    assert layout.positions == [0, 1, 2, 3, 4, 4, 5]
    assert layout.segments[-1].context == ((0, 3), (1, 1))
    assert layout.branches[0].gold == (6,)


def test_gold_of_several_tokens_is_teacher_forced():
    layout = lay_out([problem(OTHER, WRONG, gold_span=(1, 4))], with_gold=True)
    assert layout.branches[0].gold == (5, 6, 7)
    # WRONG shares 50, 51; 52 branches off
    assert layout.tokens[-1] == 52
    assert layout.branches[1].gold == (9, 10, 13)


def test_gold_that_starts_its_segment_is_predicted_by_the_reasoning():
    layout = lay_out([problem(OTHER, branch([], [70]), gold_span=(0, 2))], with_gold=True)
    assert layout.branches[0].gold == (3, 5)
    assert layout.branches[1].gold == (2, 7)  # without reasoning, by the prompt's last token


def test_missing_rationales_take_no_place():
    layout = lay_out([problem(None, RIGHT, None)], with_gold=True)
    assert [b.teacher for b in layout.branches] == [1]
    assert len(layout.segments) == 2


def test_probe_points_are_the_start_each_thinking_expression_and_the_end():
    assert choose_points((2, 5), 9, 16) == [0, 2, 5, 9]
    assert choose_points((), 4, 16) == [0, 4]
    assert choose_points((), 0, 16) == [0]
    assert choose_points(tuple(range(1, 9)), 9, 4) == [0, 3, 6, 9]
    assert choose_points(tuple(range(1, 9)), 9, 2) == [0, 9]


def test_probes_follow_the_row_and_share_the_prompts_end():
    first = branch([10, 11, 12], [70], stops=[1, 2])
    second = branch([20, 21], [70], stops=[1])
    layout = lay_out([problem(first, second)], with_gold=True)
    probes = lay_out_second_row(layout, 16)
    assert probes.row.tokens == [50, 51] * 4  # prompt's end, two of the first, one of the second
    assert probes.probes == [[0, 1, 2], [0, 3]]
    own = probes.row.segments[len(layout.segments) :]
    assert [s.context for s in own] == [((0, 3),), ((0, 3), (1, 1)), ((0, 3), (1, 2)), ((0, 3), (3, 1))]
    assert [p.rows for p in probes.passages] == [(1,), (3,), (5,), (7,)]
    assert own[0].start == len(layout.tokens)


def test_steps_out_of_context_see_the_prompt_and_their_window_alone():
    stepped = dataclasses.replace(branch([10, 11, 12, 13, 14, 15], [70]), steps=(0, 2, 3, 5))
    layout = lay_out([problem(stepped)], with_gold=False)
    assert step_windows(stepped, 1) == [(0, 0, 2), (0, 2, 3), (2, 3, 5), (3, 5, 6)]
    second = lay_out_second_row(layout, window=1)
    assert second.row.tokens == [12, 13, 13, 14]  # [12] 13 (14), [13 14] (15): the last token is predicted, never read
    assert [s.context for s in second.row.segments[len(layout.segments) :]] == [((0, 3),)] * 2
    assert [(p.rows, p.labels) for p in second.passages] == [((0, 1), (13, 14)), ((3,), (15,))]
    assert (second.steps, second.probes) == ([[0, 1]], [[]])
    assert lay_out_second_row(layout, window=3).passages == []  # all windows reach back to the prompt
