"""What is read together: problems share a pass up to the budget, and a large one is read branch by branch."""

from __future__ import annotations

import torch

from compact_distill.method.forward import PassOptions
from compact_distill.method.passes import plan_jobs
from method.by_hand import OTHER, RIGHT, WRONG, problem


def test_problems_share_passes_up_to_the_budget():
    small = problem(RIGHT)  # 9 tokens
    jobs = plan_jobs([small] * 5, PassOptions(), 20)
    assert [len(job.problems) for job in jobs] == [2, 2, 1]
    assert all(len(job.layouts) == 1 for job in jobs)


def test_a_cpu_does_not_fill_its_rows_beyond_what_makes_it_faster():
    small = problem(RIGHT)  # 9 tokens
    count = lambda device: len(plan_jobs([small] * 300, PassOptions(), 16384, torch.device(device))[0].problems)  # noqa: E731
    assert count("cpu") == 1024 // 9
    assert count("cuda") == 300


def test_a_problem_beyond_the_budget_is_read_branch_by_branch():
    large = problem(RIGHT, WRONG, OTHER)
    (job,) = plan_jobs([large], PassOptions(), 14)
    assert [[b.teacher for b in layout.branches] for layout in job.layouts] == [[0, 1], [2]]
    (job,) = plan_jobs([large], PassOptions(), 2)
    assert [[b.teacher for b in layout.branches] for layout in job.layouts] == [[0], [1], [2]]


def test_problems_without_rationales_are_in_no_job():
    assert plan_jobs([problem(None)], PassOptions(), 100) == []
