"""What is read together: passes up to the budget, large problems branch by branch, an order of seed and epoch alone."""

from __future__ import annotations

import torch

from compact_distill.method.forward import PassOptions
from compact_distill.method.passes import LengthGroupedSampler, plan_jobs
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


LENGTHS = [(37 * i) % 101 for i in range(103)]


def order(seed=0, epoch=0, lengths=LENGTHS):
    sampler = LengthGroupedSampler(lengths, 4, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_problem_comes_once():
    assert sorted(order()) == list(range(103))


def test_the_order_repeats_for_a_seed_and_an_epoch():
    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(s, e)) for s in (0, 1) for e in (0, 1)}) == 4


def test_problems_of_a_step_are_of_similar_length():
    rows = order()
    spreads = [max(g) - min(g) for i in range(0, 100, 4) if (g := [LENGTHS[j] for j in rows[i : i + 4]])]
    assert sum(spreads) / len(spreads) < 10  # by chance it would be about 60


def test_the_short_group_comes_last():
    lengths = [1] * 2 + [100] * 4
    assert sorted(lengths[i] for i in order(lengths=lengths)[:4]) == [100] * 4
