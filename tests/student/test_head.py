"""The chunked head equals the obvious one: full logits, log-softmax, gather."""

from __future__ import annotations

import pytest
import torch

from compact_distill.student import head
from compact_distill.student.head import label_logprobs


def make(rows=7, width=5, vocabulary=11, dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype).requires_grad_()
    offset = torch.randn(vocabulary, generator=generator, dtype=dtype).requires_grad_() if bias else None
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    gold = torch.tensor([[1, 2]] * 4 + [[3, -1]] * (rows - 4))
    return hidden, weight, offset, labels, gold


def obvious(hidden, weight, bias, labels, gold):
    logprob = torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias), -1)
    belief = [logprob[n, [g for g in row if g >= 0]].mean() for n, row in enumerate(gold.tolist())]
    return logprob[torch.arange(len(labels)), labels], torch.stack(belief)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("chunk", "keep"), [(100, 10**6), (100, 0), (2, 10**6), (2, 0), (1, 0)])
def test_values_and_gradients_equal_the_obvious_head_whatever_the_chunks(bias, chunk, keep, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(head, "KEEP_NUMBERS", keep)
    upstream = torch.linspace(-1, 2, 7, dtype=torch.float64)
    results = []
    for function in (label_logprobs, obvious):
        arguments = make(bias=bias)
        logprob, belief = function(*arguments)
        (logprob * upstream).sum().backward()
        results.append([logprob, belief, *(a.grad for a in arguments[:3] if a is not None)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


def test_two_logits_by_hand():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [1.0]])
    logprob, belief = label_logprobs(hidden, weight, None, torch.tensor([0]), torch.tensor([[1, 0]]))
    assert logprob.item() == pytest.approx(-1.3132617)  # log(1 / (1 + e))
    assert belief.item() == pytest.approx((-1.3132617 - 0.3132617) / 2)


def test_no_gradient_flows_through_the_belief():
    hidden, weight, bias, labels, gold = make()
    _, belief = label_logprobs(hidden, weight, bias, labels, gold)
    assert not belief.requires_grad


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, bias, labels, gold = make()
    logprob, _ = label_logprobs(hidden, weight.detach(), bias.detach(), labels, gold)
    logprob.sum().backward()
    assert hidden.grad is not None


def test_losses_are_fp32_under_bf16_autocast():
    hidden, weight, bias, labels, gold = make(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprob, belief = label_logprobs(hidden, weight, bias, labels, gold)
    assert logprob.dtype == belief.dtype == torch.float32
    exact, _ = obvious(hidden, weight, bias, labels, gold)
    torch.testing.assert_close(logprob, exact, atol=0.1, rtol=0.02)
    logprob.sum().backward()
    assert weight.grad.dtype == torch.float32
