"""The attention kernels compute the same, and what a token sees is exactly its own path."""

from __future__ import annotations

import pytest
import torch

from compact_distill.method.kernels.attention import (
    AttentionPlan,
    flash_kernel,
    flex_kernel,
    loop_kernel,
    varlen_kernel,
)
from compact_distill.method.packing import Layout, Segment

# prompt of 3, two branches of 4 and 2, a gold answer of 2 after one token of branch 1, then a second problem
SEGMENTS = [
    Segment(0, 3, 0, ()),
    Segment(3, 4, 3, ((0, 3),)),
    Segment(7, 2, 3, ((0, 3),)),
    Segment(9, 2, 4, ((0, 3), (2, 1))),
    Segment(11, 1, 0, ()),
    Segment(12, 5, 1, ((4, 1),)),
]
TOKENS = 17


def rows_seen(segments: list[Segment], window: int | None) -> torch.Tensor:
    """The slow, obvious rule: each token's path is context then own segment; it sees what stands before it there."""
    seen = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for segment in segments:
        path = [segments[i].start + t for i, count in segment.context for t in range(count)]
        for t in range(segment.length):
            path.append(segment.start + t)
            for place, row in enumerate(path):
                if window is None or len(path) - 1 - place < window:
                    seen[segment.start + t, row] = True
    return seen


def inputs(heads: int = 4, key_heads: int = 2, tokens: int = TOKENS) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    make = lambda h: torch.randn(1, h, tokens, 8, generator=generator, dtype=torch.float64)  # noqa: E731
    return make(heads), make(key_heads), make(key_heads)


def dense(query, key, value, seen, scale):
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    logits = (query @ key.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
    return (torch.softmax(logits, -1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_the_loop_equals_dense_attention_over_each_tokens_path(window):
    query, key, value = inputs()
    out = loop_kernel(query, key, value, AttentionPlan(SEGMENTS), 0.3, window)
    torch.testing.assert_close(out, dense(query, key, value, rows_seen(SEGMENTS, window), 0.3), atol=1e-12, rtol=0)


def test_the_flash_kernel_equals_dense_attention_forward_and_backward():
    found = []
    for run in (
        lambda q, k, v: flash_kernel(q, k, v, AttentionPlan(SEGMENTS), 0.3, None),
        lambda q, k, v: dense(q, k, v, rows_seen(SEGMENTS, None), 0.3),
    ):
        q, k, v = (tensor.requires_grad_() for tensor in inputs())
        out = run(q, k, v)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        (out * weight).sum().backward()
        found.append([out, q.grad, k.grad, v.grad])
    for ours, slow in zip(*found, strict=True):
        torch.testing.assert_close(ours, slow, atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", [None, 3])
def test_flex_attention_equals_the_loop(window):
    query, key, value = (x.float() for x in inputs())
    plan = AttentionPlan(SEGMENTS)
    with torch.no_grad():
        out = flex_kernel(query, key, value, plan, 0.3, window)
    torch.testing.assert_close(out, loop_kernel(query, key, value, plan, 0.3, window), atol=1e-5, rtol=1e-5)


def fake_varlen_attn(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch documents of varlen_attn, sequence by sequence, with the causal mask at the bottom right."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert window_size[1] == 0, "causal"
    outputs = []
    for i in range(len(cu_q) - 1):
        q, k, v = (
            x[a:b] for x, a, b in ((query, cu_q[i], cu_q[i + 1]), *((x, cu_k[i], cu_k[i + 1]) for x in (key, value)))
        )
        assert len(q) <= max_q
        assert len(k) <= max_k
        place = torch.arange(len(q))[:, None] + len(k) - len(q)
        gap = place - torch.arange(len(k))[None, :]
        seen = (gap >= 0) & ((gap <= window_size[0]) if window_size[0] >= 0 else True)
        heads = [x.transpose(0, 1)[None] for x in (q, k, v)]
        outputs.append(dense(*heads, seen, scale)[0])
    return torch.cat(outputs)


def fake_varlen_attn_of_torch_2_11(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size):
    """The same before torch 2.12: heads share keys without being told."""
    grouped = query.shape[1] != key.shape[1]
    return fake_varlen_attn(
        query, key, value, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window_size, enable_gqa=grouped
    )


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("fake", [fake_varlen_attn, fake_varlen_attn_of_torch_2_11])
def test_the_varlen_call_says_what_the_loop_does(fake, window, monkeypatch):
    import torch.nn.attention.varlen as varlen

    monkeypatch.setattr(varlen, "varlen_attn", fake)
    query, key, value = inputs()
    plan = AttentionPlan(SEGMENTS)
    out = varlen_kernel(query, key, value, plan, 0.3, window)
    torch.testing.assert_close(out, loop_kernel(query, key, value, plan, 0.3, window), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kernel", [loop_kernel, flash_kernel, flex_kernel, varlen_kernel])
def test_a_row_that_follows_another_sees_the_remembered_keys(kernel, monkeypatch):
    import torch.nn.attention.varlen as varlen

    monkeypatch.setattr(varlen, "varlen_attn", fake_varlen_attn)
    query, key, value = (x.float() for x in inputs())
    follow = [*SEGMENTS, Segment(17, 2, 5, ((0, 3), (1, 2))), Segment(19, 1, 1, ((4, 1),))]
    plan = AttentionPlan(follow, first=len(SEGMENTS))
    _, own_key, own_value = (x.float() for x in inputs(tokens=3))
    own_query = query[:, :, :3]
    all_keys, all_values = torch.cat([key, own_key], 2), torch.cat([value, own_value], 2)
    with torch.no_grad():
        out = kernel(own_query, all_keys, all_values, plan, 0.3, None)
    seen = torch.zeros(3, 20, dtype=torch.bool)
    seen[0, [0, 1, 2, 3, 4, 17]] = True
    seen[1, [0, 1, 2, 3, 4, 17, 18]] = True
    seen[2, [11, 19]] = True
    torch.testing.assert_close(out, dense(own_query, all_keys, all_values, seen, 0.3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [loop_kernel, flash_kernel])
def test_a_perturbed_branch_leaves_the_others_bit_equal(kernel):
    query, key, value = inputs()
    plan = AttentionPlan(SEGMENTS)
    before = kernel(query, key, value, plan, 0.3, None)
    for tensor in (query, key, value):
        tensor[:, :, 3:7] += 1.0  # branch 0
    after = kernel(query, key, value, plan, 0.3, None)
    unchanged = [t for t in range(TOKENS) if not 3 <= t < 7]
    assert torch.equal(before[:, unchanged], after[:, unchanged])
    assert not torch.equal(before[:, 3:7], after[:, 3:7])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", [varlen_kernel, flex_kernel])
@pytest.mark.parametrize("window", [None, 3])
def test_gpu_kernels_equal_the_loop_forward_and_backward(kernel, window):
    grads = []
    for run in (kernel, loop_kernel):
        q, k, v = (
            torch.randn(1, h, TOKENS, 64, generator=torch.Generator().manual_seed(h)).cuda().bfloat16().requires_grad_()
            for h in (4, 2, 2)
        )
        out = run(q, k, v, AttentionPlan(SEGMENTS), 0.125, window)
        out.float().square().sum().backward()
        grads.append([out, q.grad, k.grad, v.grad])
    for ours, loop in zip(*grads, strict=True):
        torch.testing.assert_close(ours.float(), loop.float(), atol=5e-2, rtol=5e-2)


def test_branches_of_a_problem_read_its_prompt_together():
    parts = AttentionPlan(SEGMENTS).parts
    together = [(part.queries, part.keys) for part in parts if not part.causal]
    assert together == [
        (slice(3, 11), slice(0, 3)),  # both branches and the gold answer read the prompt
        (slice(9, 11), slice(7, 8)),  # the gold answer reads the first token of branch 1
        (slice(12, 17), slice(11, 12)),
    ]
    own = [(part.queries, part.segments) for part in parts if part.causal]
    assert own == [(slice(0, 3), 1), (slice(3, 7), 1), (slice(7, 11), 2), (slice(11, 12), 1), (slice(12, 17), 1)]


def test_probes_of_a_branch_read_it_in_one_call_each_as_far_as_it_sees():
    row = Layout(())
    prompt = row.add_segment(range(3), ())
    branch = row.add_segment(range(6), ((prompt, 3),))
    for seen in (2, 5):
        row.add_segment(range(2), ((prompt, 3), (branch, seen)))
    (both,) = [part for part in AttentionPlan.of(row).parts if part.mask is not None]
    assert (both.queries, both.keys) == (slice(9, 13), slice(3, 8))
    assert (both.mask == 0).sum(1).tolist() == [2, 2, 5, 5]


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
