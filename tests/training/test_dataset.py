"""The order of training problems depends on seed and epoch alone."""

from __future__ import annotations

from compact_distill.training.dataset import LengthGroupedSampler

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
