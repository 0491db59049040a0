"""The chunked head equals the obvious one: full logits, log-softmax, gather."""

from __future__ import annotations

import math

import pytest
import torch

from compact_distill.method.kernels import head
from compact_distill.method.kernels.head import read_head


def make(rows=7, whole=3, width=5, vocabulary=11, dtype=torch.float64, bias=True):
    """Inputs of the head: `rows` states with labels and `whole` whose whole distribution is wanted."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows + whole, width, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype).requires_grad_()
    offset = torch.randn(vocabulary, generator=generator, dtype=dtype).requires_grad_() if bias else None
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    gold = torch.tensor([[1, 2]] * 4 + [[3, -1]] * (rows - 4))
    return hidden, weight, offset, labels, gold


def obvious(hidden, weight, bias, labels, gold):
    logprob = torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias), -1)
    belief = [logprob[n, [g for g in row if g >= 0]].mean() for n, row in enumerate(gold.tolist())]
    return logprob[torch.arange(len(labels)), labels], torch.stack(belief), logprob[len(labels) :]


def upstream(shape):
    """Some gradient that reaches the head's output."""
    return torch.sin(torch.arange(1.0, 1 + shape.numel(), dtype=torch.float64)).view(shape)


@pytest.mark.parametrize(
    "trained", [(True, True, True), (True, False, False), (False, True, True), (True, True, False)]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("chunk", "keep"), [(100, 10**6), (100, 0), (2, 10**6), (2, 50), (2, 0), (1, 0)])
def test_values_and_gradients_equal_the_obvious_head_whatever_the_chunks(trained, bias, chunk, keep, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(head, "KEEP_NUMBERS", keep)
    results = []
    for function in (read_head, obvious):
        arguments = make(bias=bias)
        inputs = [a.requires_grad_(wanted) for a, wanted in zip(arguments[:3], trained, strict=True) if a is not None]
        logprob, belief, whole = function(*arguments)
        loss = (logprob * upstream(logprob.shape)).sum() + (whole * upstream(whole.shape)).sum()
        loss.backward()
        results.append([logprob, belief, whole, *(a.grad for a in inputs if a.requires_grad)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("used", [0, 2], ids=["labels", "whole"])
def test_an_output_that_nobody_uses_adds_nothing(used):
    arguments = make()
    read_head(*arguments)[used].sum().backward()
    reference = make()
    obvious(*reference)[used].sum().backward()
    for ours, expected in zip(arguments[:3], reference[:3], strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, atol=1e-12, rtol=0)


def test_going_backward_twice_gives_the_same_gradient():
    hidden, weight, bias, labels, gold = make()
    logprob, _, _ = read_head(hidden, weight, bias, labels, gold)
    once = torch.autograd.grad(logprob.sum(), (hidden, weight, bias), retain_graph=True)
    again = torch.autograd.grad(logprob.sum(), (hidden, weight, bias))
    for one, other in zip(once, again, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("trained", [False, True])
def test_a_certain_label_keeps_its_small_gradient_in_half_precision(trained):
    # p = 1 - 1e-4: rounded to bf16 it would be 1, and its gradient 0 or 40 times too large.
    hidden = torch.tensor([[1.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[9.1875], [0.0]], dtype=torch.bfloat16, requires_grad=trained)
    logprob, _, _ = read_head(hidden, weight, None, torch.tensor([0]), torch.tensor([[0]]))
    logprob.sum().backward()
    rest = 1 / (1 + math.exp(9.1875))
    assert hidden.grad.item() == pytest.approx(9.1875 * rest, rel=0.02)


def test_two_logits_by_hand():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [1.0]])
    logprob, belief, _ = read_head(hidden, weight, None, torch.tensor([0]), torch.tensor([[1, 0]]))
    assert logprob.item() == pytest.approx(-1.3132617)  # log(1 / (1 + e))
    assert belief.item() == pytest.approx((-1.3132617 - 0.3132617) / 2)


def test_no_gradient_flows_through_the_belief():
    hidden, weight, bias, labels, gold = make()
    _, belief, _ = read_head(hidden, weight, bias, labels, gold)
    assert not belief.requires_grad


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, bias, labels, gold = make()
    logprob, _, _ = read_head(hidden, weight.detach(), bias.detach(), labels, gold)
    logprob.sum().backward()
    assert hidden.grad is not None


def test_losses_are_fp32_under_bf16_autocast():
    hidden, weight, bias, labels, gold = make(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprob, belief, _ = read_head(hidden, weight, bias, labels, gold)
    assert logprob.dtype == belief.dtype == torch.float32
    exact, _, _ = obvious(hidden, weight, bias, labels, gold)
    torch.testing.assert_close(logprob, exact, atol=0.1, rtol=0.02)
    logprob.sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_autocast_is_the_same_as_rounding_the_inputs_first(trained: bool, bias: bool):
    found = []
    for autocast in (True, False):
        hidden, weight, offset, labels, gold = make(dtype=torch.float32, bias=bias)
        leaves = [hidden, *([weight] if trained else [])]
        weight.requires_grad_(trained)
        inputs = [hidden, weight, offset]
        if not autocast:
            inputs = [x if x is None else x.bfloat16() for x in inputs]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logprob, belief, whole = read_head(*inputs, labels, gold)
        loss = (logprob * upstream(logprob.shape)).sum() + (whole * upstream(whole.shape)).sum()
        found.append([logprob, belief, whole, *torch.autograd.grad(loss, leaves)])
    for ours, expected in zip(*found, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("trained", [False, True])
def test_logits_too_large_for_an_exponential_stay_finite(trained):
    # e^200 is no fp32 number (88 is the largest exponent), e^-200 neither.
    hidden = torch.tensor([[1.0], [1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[200.0], [199.0], [-200.0]], requires_grad=trained)
    logprob, belief, whole = read_head(hidden, weight, None, torch.tensor([0, 1]), torch.tensor([[1], [2]]))
    assert logprob.tolist() == pytest.approx([-0.3132617, -1.3132617], rel=1e-5)
    assert belief.tolist() == pytest.approx([-1.3132617, -400.3132617])
    assert whole[0].tolist() == pytest.approx([-0.3132617, -1.3132617, -400.3132617], rel=1e-5)
    logprob.sum().backward()
    # d logp / d h = w[label] - mean of w: 200 - 199.731 and 199 - 199.731
    assert hidden.grad[:, 0].tolist() == pytest.approx([0.2689414, -0.7310586, 0.0], rel=1e-3)


@pytest.mark.parametrize("keep", [0, 2**22], ids=["computed again", "kept"])
@pytest.mark.parametrize("trained", [False, True])
def test_the_labels_own_gradient_is_that_of_its_log_probability_to_the_last_digit(trained, keep, monkeypatch):
    # 1 - exp(-4.8e-6) has lost two of fp32's seven digits.
    monkeypatch.setattr(head, "KEEP_NUMBERS", keep)
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[12.25], [0.0]], requires_grad=trained)
    logprob, _, _ = read_head(hidden, weight, None, torch.tensor([0]), torch.tensor([[0]]))
    logprob.sum().backward()
    assert hidden.grad.item() / 12.25 == pytest.approx(-math.expm1(logprob.item()), rel=1e-6)


@pytest.mark.parametrize("chunk", [100, 2, 1])
def test_ranks_count_the_tokens_with_larger_logits(chunk, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ROWS", chunk)
    hidden, weight, bias, labels, gold = make()
    ranks = torch.zeros(len(labels), dtype=torch.long)
    with_ranks, without = (
        read_head(hidden, weight, bias, labels, gold, ranks),
        read_head(hidden, weight, bias, labels, gold),
    )
    logits = torch.nn.functional.linear(hidden, weight, bias)
    expected = [1 + sum(logits[n] > logits[n, label]).item() for n, label in enumerate(labels.tolist())]
    assert ranks.tolist() == expected
    assert len(set(expected)) > 1
    for one, other in zip(with_ranks, without, strict=True):
        assert torch.equal(one, other)
