"""What is logged of a step: means over problems, by hand, ties shared among the teachers that have them."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator

from compact_distill.method.encode import Branch, EncodedProblem
from compact_distill.method.loss import LossTerms
from compact_distill.records import RationaleStatus
from compact_distill.training.metrics import TrainingMetrics

BRANCH = Branch((1,), (2,), 0, (False,), ())


def problem(name: str, *present: bool) -> EncodedProblem:
    return EncodedProblem(
        id=name,
        teachers=tuple(f"t{k}" for k in range(len(present))),
        prompt=(1, 2),
        branches=tuple(BRANCH if there else None for there in present),
        statuses=tuple(RationaleStatus.OK if there else RationaleStatus.MISSING for there in present),
        gold=(3,),
        gold_start=0,
        gold_stop=1,
    )


def collected(problems: list[EncodedProblem], weights: list[list[float]]) -> dict[str, float]:
    metrics = TrainingMetrics()
    weights_BK = torch.tensor(weights, dtype=torch.float64)
    terms = LossTerms(torch.tensor(3.1), torch.tensor(3.0), torch.tensor(1.0))
    metrics.add(problems, {"difficulty": weights_BK * 10}, weights_BK, terms)
    return metrics.collect(Accelerator(cpu=True))


def test_a_tie_for_the_largest_weight_is_shared_and_no_other_teacher_wins():
    found = collected([problem("a", True, True, True, True)], [[0.4, 0.4, 0.15, 0.05]])
    assert [found[f"wins/t{k}"] for k in range(4)] == [0.5, 0.5, 0, 0]


def test_shares_of_wins_add_up_to_one_and_a_missing_teacher_takes_no_part():
    problems = [problem("a", True, True, False), problem("b", True, True, True), problem("c", True, False, False)]
    found = collected(problems, [[0.5, 0.5, 0.0], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
    # t0: 1/2 of a, none of b, all of c; t1: 1/2 of a, none of b; t2: only in b, which it wins.
    assert found["wins/t0"] == pytest.approx(1.5 / 3)
    assert found["wins/t1"] == pytest.approx(0.5 / 2)
    assert found["wins/t2"] == 1
    assert found["weight/t2"] == pytest.approx(0.6)
    assert found["difficulty/t1"] == pytest.approx((5 + 2) / 2)


def test_entropy_is_in_nats_over_the_present_teachers_and_losses_are_means_over_problems():
    problems = [problem("a", True, True, False), problem("b", True, False, False)]
    found = collected(problems, [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert found["weight_entropy"] == pytest.approx(math.log(2) / 2)
    assert (found["loss_likelihood"], found["loss_consistency"]) == (1.5, 0.5)


def test_a_second_reading_starts_anew():
    metrics = TrainingMetrics()
    terms = LossTerms(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.0))
    metrics.add([problem("a", True)], {}, torch.ones(1, 1), terms)
    accelerator = Accelerator(cpu=True)
    assert metrics.collect(accelerator)["wins/t0"] == 1
    assert metrics.collect(accelerator) == {}
