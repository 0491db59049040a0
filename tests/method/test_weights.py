"""Scores to weights: values by hand and properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compact_distill.method.weights import RunningStatistics, compatibility_weights, standardise

ALL = torch.tensor([[True, True, True]])


def weigh(scores, present=None, coefficient=1.0, temperature=1.0, running=None):
    scores = torch.tensor([scores], dtype=torch.float64)
    present = torch.ones_like(scores, dtype=torch.bool) if present is None else torch.tensor([present])
    return compatibility_weights({"s": scores}, {"s": coefficient}, present, temperature, running)[0]


def test_z_scores_by_hand():
    z = standardise(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), ALL)
    torch.testing.assert_close(z, torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64) / 1.0001)


def test_two_teachers_by_hand():
    # std of (1, 2) is 1 / sqrt 2, so z = +-0.5 / (0.70711 + 1e-4) = +-0.70701, and alpha = 1 / (1 + e^1.41401)
    assert weigh([1.0, 2.0]).tolist() == pytest.approx([0.195602, 0.804398], abs=1e-6)


def test_three_scores_are_summed_with_their_coefficients():
    # consensus z = (1, 0, -1), difficulty z = (-1, 0, 1) with b = -0.5: sum = (1.5, 0, -1.5) / 1.0001
    scores = {"consensus": torch.tensor([[3.0, 2.0, 1.0]]), "difficulty": torch.tensor([[4.0, 5.0, 6.0]])}
    alpha = compatibility_weights(scores, {"consensus": 1.0, "difficulty": -0.5}, ALL)
    expected = torch.softmax(torch.tensor([[1.5, 0.0, -1.5]]) / 1.0001, -1)
    torch.testing.assert_close(alpha, expected)


def test_equal_scores_give_equal_weights():
    assert weigh([2.5] * 4).tolist() == [0.25] * 4


def test_coefficients_of_zero_give_equal_weights():
    assert weigh([1.0, 5.0, 9.0], coefficient=0.0).tolist() == pytest.approx([1 / 3] * 3)


def test_a_missing_teacher_weighs_nothing_and_changes_nothing_else():
    with_missing = weigh([1.0, 99.0, 2.0], present=[True, False, True])
    assert with_missing.tolist() == pytest.approx([weigh([1.0, 2.0])[0].item(), 0.0, weigh([1.0, 2.0])[1].item()])


def test_one_present_teacher_weighs_one():
    assert weigh([7.0, 1.0], present=[False, True]).tolist() == [0.0, 1.0]


def test_no_present_teacher_weighs_nothing():
    assert weigh([7.0, 1.0], present=[False, False]).tolist() == [0.0, 0.0]


@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=8),
    st.randoms(use_true_random=False),
    st.floats(0.1, 10),
)
def test_rows_sum_to_one_and_permuting_teachers_permutes_weights(scores, random, temperature):
    weights = weigh(scores, temperature=temperature)
    assert weights.sum().item() == pytest.approx(1.0)
    order = list(range(len(scores)))
    random.shuffle(order)
    permuted = weigh([scores[i] for i in order], temperature=temperature)
    torch.testing.assert_close(permuted, weights[order], atol=1e-9, rtol=1e-9)


def test_high_temperature_levels_and_low_temperature_sharpens():
    assert weigh([1.0, 2.0, 4.0], temperature=1e6).tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)
    assert weigh([1.0, 2.0, 4.0], temperature=0.01)[2].item() == pytest.approx(1.0)


def test_no_gradient_flows_through_a_weight():
    scores = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert not compatibility_weights({"s": scores}, {"s": 1.0}, torch.tensor([[True, True]])).requires_grad


def test_running_statistics_do_not_depend_on_how_values_arrive():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 5
    whole, parts = RunningStatistics(), RunningStatistics()
    whole.update("s", values)
    for part in values.split([1, 2, 30, 67]):
        parts.update("s", part)
    assert whole.moments["s"] == pytest.approx(parts.moments["s"])
    count, mean, squares = parts.moments["s"]
    assert (mean, (squares / (count - 1)) ** 0.5) == pytest.approx((values.mean().item(), values.std().item()))


def test_running_standardisation_keeps_magnitude_where_two_teachers_lose_it():
    running = RunningStatistics()
    running.update("s", torch.tensor([0.0, 10.0, 20.0]))
    near = weigh([10.0, 10.1], running=running)
    far = weigh([0.0, 20.0], running=running)
    assert near[1].item() == pytest.approx(0.5, abs=0.01)
    assert far[1].item() == pytest.approx(1 / (1 + 2.718281828 ** (-2 / 1.00001)), abs=1e-3)
