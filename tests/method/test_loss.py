"""The loss: by hand, against the sum over pairs, and its gradient."""

from __future__ import annotations

import pytest
import torch

from compact_distill.method.encode import Branch, EncodedProblem
from compact_distill.method.loss import aggregate, consistency
from compact_distill.records import RationaleStatus


def problem(*present: bool) -> EncodedProblem:
    branches = tuple(Branch((1,), (2,), 0, (False,), ()) if p else None for p in present)
    return EncodedProblem("p", ("t",) * len(present), (1,), branches, (RationaleStatus.OK,) * len(present), (2,), 0, 1)


def pairs(weights, logprob):
    """The definition: sum over i < j of alpha_i alpha_j mean_a [KL(p_i || p_j) + KL(p_j || p_i)]."""
    total = torch.zeros((), dtype=logprob.dtype)
    for i in range(len(weights)):
        for j in range(i + 1, len(weights)):
            p, q = logprob[i], logprob[j]
            kl = (p.exp() * (p - q)).sum(-1) + (q.exp() * (q - p)).sum(-1)
            total = total + weights[i] * weights[j] * kl.mean()
    return total


def random_logprob(k, a=3, v=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(torch.randn(k, a, v, generator=generator, dtype=torch.float64) * 2, -1)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_consistency_equals_the_sum_over_pairs_with_its_gradient(k):
    weights = torch.softmax(torch.linspace(-1, 1, k, dtype=torch.float64), 0)
    results = []
    for function in (lambda x: consistency(weights[None], [x], [problem(*[True] * k)])[0], lambda x: pairs(weights, x)):
        logprob = random_logprob(k).requires_grad_()
        value = function(logprob)
        (gradient,) = torch.autograd.grad(value, logprob, allow_unused=True)
        results.append((value, torch.zeros_like(logprob) if gradient is None else gradient))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-12, rtol=0)
    # Gradients agree along distributions: what both say after the softmax.
    mine, theirs = (g - random_logprob(k).exp() * g.sum(-1, keepdim=True) for _, g in results)
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_two_coins_by_hand():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    value = consistency(torch.tensor([[0.5, 0.5]]), [torch.stack([p, q]).log()[:, None]], [problem(True, True)])
    # (p - q) . (log p - log q) = 0.25 log 2 - 0.25 log(2/3) = 0.25 log 3, times 1/4
    assert value.item() == pytest.approx(0.25 * 1.0986123 / 4)


def test_equal_distributions_cost_nothing():
    same = random_logprob(1).expand(4, -1, -1)
    assert consistency(torch.full((1, 4), 0.25), [same.float()], [problem(*[True] * 4)]).item() == pytest.approx(
        0, abs=1e-7
    )


def test_missing_teachers_take_no_part():
    weights = torch.tensor([[0.3, 0.0, 0.7]], dtype=torch.float64)
    value = consistency(weights, [random_logprob(2)], [problem(True, False, True)])[0]
    torch.testing.assert_close(value, pairs(weights[0, [0, 2]], random_logprob(2)))


def test_the_total_sums_weighted_losses_and_consistency_over_problems():
    difficulty = torch.tensor([[1.0, 2.0], [3.0, 0.0]], requires_grad=True)
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    problems = [problem(True, True), problem(True, False)]
    gold = [random_logprob(2).float(), random_logprob(1).float()]
    terms = aggregate(difficulty, weights, gold, problems, 0.1)
    assert terms.likelihood.item() == pytest.approx(1.75 + 3.0)
    assert terms.consistency.item() == pytest.approx(pairs(weights[0], gold[0]).item(), rel=1e-5)
    assert terms.total.item() == pytest.approx(4.75 + 0.1 * terms.consistency.item())


def test_the_gradient_of_a_loss_is_its_weight_and_none_flows_through_weights():
    difficulty = torch.tensor([[1.0, 2.0]], requires_grad=True)
    weights = torch.softmax(difficulty * 3, -1)  # as if somebody forgot to detach
    aggregate(difficulty, weights, (), [problem(True, True)], 0.0).total.backward()
    torch.testing.assert_close(difficulty.grad, weights.detach())


def test_autocast_does_not_round_the_consistency():
    weights, gold, problems = torch.tensor([[0.3, 0.7]]), [random_logprob(2).float()], [problem(True, True)]
    difficulty = torch.tensor([[1.0, 2.0]])
    plain = aggregate(difficulty, weights, gold, problems, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = aggregate(difficulty, weights, gold, problems, 0.1)
    assert torch.equal(under.total, plain.total)
    assert torch.equal(under.consistency, plain.consistency)


def test_a_problem_whose_weights_are_all_0_costs_nothing():
    nothing = aggregate(torch.ones(1, 2), torch.zeros(1, 2), [random_logprob(2).float()], [problem(True, True)], 0.1)
    assert nothing.total.item() == 0.0
