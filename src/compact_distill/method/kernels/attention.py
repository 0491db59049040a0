"""Attention over a row of segments, where each segment sees itself causally and its context whole: four kernels.

All compute the same: torch's flash attention for CPUs over parts of the row (fp32 and fp64), one `varlen_attn` call
(CUDA, half precision), FlexAttention (CUDA), and a loop over segments on `scaled_dot_product_attention` (everything
else, and sliding windows on a CPU). Which one a student gets is decided in `choose.py`; what it needs to know about a
row is an `AttentionPlan`.

Shapes: T rows, H query heads, G key heads (each shared by H / G query heads), D head size; a kernel takes query
[1, H, T, D], key and value [1, G, T, D], and returns [1, T, H, D].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from compact_distill.method.packing import Layout, Segment


class Part(NamedTuple):
    """Queries that read keys: rows of both, and whether they are one segment, which reads itself causally."""

    queries: slice
    keys: slice
    causal: bool


@dataclass
class AttentionPlan:
    """What each layer's attention needs to know about a row.

    Attributes:
        segments: all segments whose keys can be seen: first those remembered from an earlier pass, then the row's own.
        first: index of the row's first own segment.
        memory: keys and values of the remembered segments by layer, each [1, H, T, D]; filled where `remember` is set.
        remember: store each layer's keys and values (detached) in `memory` as the row passes.
    """

    segments: list[Segment]
    first: int = 0
    memory: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    remember: bool = False
    _cache: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: Layout, remember: bool = False) -> AttentionPlan:
        """Plan for a row that stands alone."""
        return cls(layout.segments, remember=remember)

    @property
    def own(self) -> list[Segment]:
        """The row's own segments: those that are read now."""
        return self.segments[self.first :]

    def mask(self, segment: Segment, window: int | None, device: torch.device) -> Tensor:
        """Which keys (context, then own) each of a segment's queries sees, by position: bool [length, T]."""
        key = (segment.length, segment.position, window, device)
        if key not in self._cache:
            query = torch.arange(segment.position, segment.position + segment.length, device=device)[:, None]
            keys = torch.arange(segment.position + segment.length, device=device)[None, :]
            seen = keys <= query
            self._cache[key] = seen if window is None else seen & (query - keys < window)
        return self._cache[key]

    @cached_property
    def longest(self) -> int:
        """Most tokens that one query sees."""
        return max(segment.position + segment.length for segment in self.own)

    @cached_property
    def parts(self) -> list[Part]:
        """The row's attention as (query rows, key rows, whether they are the same segment and so causal).

        Each segment first reads itself; then adjoining segments that see the same rows read those together.
        """
        offset = self.own[0].start
        own = [Part(slice(s.start - offset, s.stop - offset), slice(s.start, s.stop), True) for s in self.own]
        shared: dict[tuple[int, int], list[slice]] = {}
        for segment, part in zip(self.own, own, strict=True):
            for index, seen in segment.context:
                start = self.segments[index].start
                runs = shared.setdefault((start, start + seen), [])
                if runs and runs[-1].stop == part.queries.start:
                    runs[-1] = slice(runs[-1].start, part.queries.stop)
                else:
                    runs.append(part.queries)
        return own + [Part(run, slice(*keys), False) for keys, runs in shared.items() for run in runs]

    @cached_property
    def gather(self) -> list[int]:
        """Rows of the keys that the own segments see, segment after segment: context, then own."""
        rows: list[int] = []
        for segment in self.own:
            for index, seen in segment.context:
                start = self.segments[index].start
                rows.extend(range(start, start + seen))
            rows.extend(range(segment.start, segment.stop))
        return rows


Kernel = Callable[[Tensor, Tensor, Tensor, AttentionPlan, float | None, int | None], Tensor]


# torch's flash attention for CPUs, which scaled_dot_product_attention calls: (output, log-sum-exp), and its backward.
_CPU_FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_CPU_FLASH_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def flash_kernel(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float | None, window: int | None
) -> Tensor:
    """Flash attention over the plan's parts, merged by their log-sum-exps; returns [1, T, H, D]. fp32 and fp64.

    All of a problem's branches read its prompt in one call, nothing is copied or masked, and autograd sees one node.
    The backward of a part with the merged output and log-sum-exp is that part's share of the whole backward.
    """
    return cast(Tensor, _FlashAttention.apply(query, key, value, plan.parts, scale))


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: list[Part], scale: float | None) -> Tensor:
        _, heads, rows, _ = query.shape
        out_THD = query.new_empty(rows, heads, value.shape[3])
        sum_THE = query.new_empty(rows, heads, 1)
        for q, k, own in parts:
            out, sums = _CPU_FLASH(query[:, :, q], key[:, :, k], value[:, :, k], 0.0, own, scale=scale)
            out, sums = out[0].transpose(0, 1), sums[0].t()[..., None]
            if own:
                out_THD[q], sum_THE[q] = out, sums
            else:
                both = torch.logaddexp(sum_THE[q], sums)
                out_THD[q] = out_THD[q] * (sum_THE[q] - both).exp() + out * (sums - both).exp()
                sum_THE[q] = both
        ctx.save_for_backward(query, key, value, out_THD, sum_THE)
        ctx.parts, ctx.scale = parts, scale
        return out_THD[None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out_THD, sum_THE = ctx.saved_tensors
        grad_out, out, sums = grads[0].transpose(1, 2), out_THD[None].transpose(1, 2), sum_THE[None, ..., 0].mT
        grad_q, grad_k, grad_v = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for q, k, own in ctx.parts:
            dq, dk, dv = _CPU_FLASH_BACKWARD(
                grad_out[:, :, q],
                query[:, :, q],
                key[:, :, k],
                value[:, :, k],
                out[:, :, q],
                sums[:, :, q],
                0.0,
                own,
                scale=ctx.scale,
            )
            if own:
                grad_q[:, :, q] = dq
            else:
                grad_q[:, :, q] += dq
            grad_k[:, :, k] += dk
            grad_v[:, :, k] += dv
        return grad_q, grad_k, grad_v, None, None


def loop_kernel(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float | None, window: int | None
) -> Tensor:
    """One `scaled_dot_product_attention` call a segment; returns [1, T, H, D]."""
    lengths = [segment.length for segment in plan.segments]
    keys, values = key.split(lengths, dim=2), value.split(lengths, dim=2)
    offset, outputs = plan.own[0].start, []
    for index, segment in enumerate(plan.own, start=plan.first):
        k = torch.cat([*(keys[i][:, :, :seen] for i, seen in segment.context), keys[index]], dim=2)
        v = torch.cat([*(values[i][:, :, :seen] for i, seen in segment.context), values[index]], dim=2)
        limit = None if window is None or window >= k.shape[2] else window
        mask = None
        if segment.context or limit is not None:
            mask = plan.mask(segment, limit, query.device)
        out = F.scaled_dot_product_attention(
            query[:, :, segment.start - offset : segment.stop - offset],
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(out)
    return torch.cat(outputs, dim=2).transpose(1, 2)


def varlen_kernel(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float | None, window: int | None
) -> Tensor:
    """One `varlen_attn` call over all segments; returns [1, T, H, D]. CUDA, half precision."""
    from torch.nn.attention.varlen import varlen_attn

    rows, starts_q, starts_k, longest_q, longest_k = _varlen_index(plan, query.device)
    k = key[0].transpose(0, 1).index_select(0, rows)
    v = value[0].transpose(0, 1).index_select(0, rows)
    out = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        k,
        v,
        starts_q,
        starts_k,
        longest_q,
        longest_k,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, out)[None]


def _varlen_index(plan: AttentionPlan, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
    key = ("varlen", device)
    if key not in plan._cache:
        lengths_q = torch.tensor([0, *(s.length for s in plan.own)])
        lengths_k = torch.tensor([0, *(s.position + s.length for s in plan.own)])
        packed = torch.cat([lengths_q.cumsum(0), lengths_k.cumsum(0)]).to(torch.int32)
        plan._cache[key] = packed.to(device)
        plan._cache[("rows", device)] = torch.tensor(plan.gather, device=device)
    packed = plan._cache[key]
    half = len(packed) // 2
    longest_q = max(s.length for s in plan.own)
    longest_k = plan.longest
    return plan._cache[("rows", device)], packed[:half], packed[half:], longest_q, longest_k


def flex_kernel(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float | None, window: int | None
) -> Tensor:
    """FlexAttention with the segments as a block mask; returns [1, T, H, D]. On CPUs it has no backward."""
    from torch.nn.attention.flex_attention import create_block_mask

    cached = ("flex", window, query.device)
    if cached not in plan._cache:
        visible = _flex_rule(plan, window, query.device)
        plan._cache[cached] = create_block_mask(visible, None, None, query.shape[2], key.shape[2], device=query.device)
    attend = _compiled_flex() if query.device.type == "cuda" else _plain_flex()
    gqa = query.shape[1] != key.shape[1]
    out = attend(query, key, value, block_mask=plan._cache[cached], scale=scale, enable_gqa=gqa)
    return out.transpose(1, 2)


def _plain_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(_plain_flex(), dynamic=True)


def _flex_rule(plan: AttentionPlan, window: int | None, device: torch.device) -> Callable[..., Tensor]:
    """A FlexAttention mask_mod: own segment up to the query, and of each context segment the tokens seen."""
    count = len(plan.segments)
    seen = torch.zeros(count, count, dtype=torch.int32)
    for index, segment in enumerate(plan.segments):
        for other, tokens in segment.context:
            seen[index, other] = tokens
    lengths = torch.tensor([s.length for s in plan.segments])
    segment_T = torch.repeat_interleave(torch.arange(count), lengths).to(device)
    index_T = torch.cat([torch.arange(s.length) for s in plan.segments]).to(device)
    position_T = torch.cat([torch.arange(s.position, s.position + s.length) for s in plan.segments]).to(device)
    offset = plan.own[0].start
    seen = seen.to(device)

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q = q + offset
        own = (segment_T[q] == segment_T[k]) & (index_T[k] <= index_T[q])
        allowed = own | (index_T[k] < seen[segment_T[q], segment_T[k]])
        return allowed if window is None else allowed & (position_T[q] - position_T[k] < window)

    return visible
