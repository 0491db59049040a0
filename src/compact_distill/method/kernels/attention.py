"""Attention over a row of segments, where each segment sees itself causally and its context whole: four kernels.

All compute the same: torch's flash attention for CPUs over parts of the row (fp32 and fp64), one `varlen_attn` call
(CUDA, half precision), FlexAttention (CUDA), and a loop over segments on `scaled_dot_product_attention` (everything
else, and sliding windows on a CPU). Which one a student gets is decided in `choose.py`; what it needs to know about a
row is an `AttentionPlan`.

Shape letters: T rows, H query heads, G key heads (each shared by H / G query heads), D head size; a kernel takes query
[1, H, T, D], key and value [1, G, T, D], and returns [1, T, H, D]. Of rows that are turned by their positions: N rows,
O all heads' numbers, E half a head. Of one part: Q rows that read, K rows that are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from inspect import signature
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from compact_distill.method.packing import Layout, Segment


class Part(NamedTuple):
    """Queries that read keys: rows of both; one segment, or `segments` of one length, each of which may read itself.

    `mask`, [queries, keys], is 0 where a query sees a key and minus infinity where it does not; None: it sees all.
    """

    queries: slice
    keys: slice
    causal: bool
    segments: int = 1
    mask: Tensor | None = None

    def fold(self, tensor: Tensor, rows: slice) -> Tensor:
        """Rows of [1, H, T, D] or [1, H, T] as a batch of segments."""
        part = tensor[:, :, rows]
        return part if self.segments == 1 else part[0].unflatten(1, (self.segments, -1)).transpose(0, 1)

    def unfold(self, batch: Tensor) -> Tensor:
        """A batch of segments, [segments, H, L, ...], as rows, [H, T, ...]."""
        return batch[0] if self.segments == 1 else batch.transpose(0, 1).flatten(1, 2)


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
        """The row's attention in few calls.

        Each segment first reads itself, adjoining ones of one length together; then adjoining segments that see the
        same segment, whole or in part, read it together.
        """
        offset = self.own[0].start
        own: list[Part] = []
        shared: dict[int, list[list[tuple[slice, int]]]] = {}
        for segment in self.own:
            rows, keys = slice(segment.start - offset, segment.stop - offset), slice(segment.start, segment.stop)
            if own and _length(own[-1].queries) == own[-1].segments * segment.length:
                before = own.pop()
                rows, keys = slice(before.queries.start, rows.stop), slice(before.keys.start, keys.stop)
                own.append(Part(rows, keys, True, before.segments + 1))
            else:
                own.append(Part(rows, keys, True))
            for index, seen in segment.context:
                runs = shared.setdefault(self.segments[index].start, [])
                reader = slice(segment.start - offset, segment.stop - offset), seen
                if runs and runs[-1][-1][0].stop == reader[0].start:
                    runs[-1].append(reader)
                else:
                    runs.append([reader])
        return own + [_reads(start, run) for start, runs in shared.items() for run in runs]

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


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding: halves of each head turn by the row's angles (Su et al. 2021, eq. 34)."""

    cos_ND: Tensor
    sin_ND: Tensor

    def turn_(self, rows_NO: Tensor, back: bool = False) -> None:
        """Turn the heads of some rows in place; `back`: the other way, which is the gradient's."""
        rows, size = self.cos_ND.shape
        first_NHE, second_NHE = rows_NO.view(rows, -1, size).chunk(2, dim=-1)
        cos_N1E, sin_N1E = (part[:, None, : size // 2] for part in (self.cos_ND, self.sin_ND))
        before_NHE, sign = first_NHE.clone(), -1.0 if back else 1.0
        first_NHE.mul_(cos_N1E).addcmul_(second_NHE, sin_N1E, value=-sign)
        second_NHE.mul_(cos_N1E).addcmul_(before_NHE, sin_N1E, value=sign)


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)


def _reads(start: int, readers: Sequence[tuple[slice, int]]) -> Part:
    """Adjoining queries that see the segment at `start`, each so many tokens of it."""
    seen_Q = torch.tensor([seen for rows, seen in readers for _ in range(_length(rows))])
    most = int(seen_Q.max())
    mask_QK = None
    if int(seen_Q.min()) < most:
        mask_QK = torch.zeros(len(seen_Q), most).masked_fill_(torch.arange(most) >= seen_Q[:, None], -torch.inf)
    return Part(slice(readers[0][0].start, readers[-1][0].stop), slice(start, start + most), False, 1, mask_QK)


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
        for part in parts:
            inputs = part.fold(query, part.queries), part.fold(key, part.keys), part.fold(value, part.keys)
            mask = None if part.mask is None else part.mask.to(query.dtype)
            out, sums = _CPU_FLASH(*inputs, 0.0, part.causal, attn_mask=mask, scale=scale)
            out, sums, q = part.unfold(out).transpose(0, 1), part.unfold(sums).t()[..., None], part.queries
            if part.causal:
                out_THD[q], sum_THE[q] = out, sums
            else:
                both = torch.logaddexp(sum_THE[q], sums)
                out_THD[q].mul_((sum_THE[q] - both).exp_()).addcmul_(out, sums.sub(both).exp_())
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
        for part in ctx.parts:
            q, k = part.queries, part.keys
            by_query, by_key = (
                [part.fold(t, rows) for t in ts] for ts, rows in (((grad_out, query), q), ((key, value), k))
            )
            read = *by_query, *by_key, part.fold(out, q), part.fold(sums, q)
            mask = None if part.mask is None else part.mask.to(query.dtype)
            found = _CPU_FLASH_BACKWARD(*read, 0.0, part.causal, attn_mask=mask, scale=ctx.scale)
            dq, dk, dv = (part.unfold(gradient) for gradient in found)
            if part.causal:
                grad_q[0, :, q], grad_k[0, :, k], grad_v[0, :, k] = dq, dk, dv
            else:
                grad_q[0, :, q] += dq
                grad_k[0, :, k] += dk
                grad_v[0, :, k] += dv
        return grad_q, grad_k, grad_v, None, None


def loop_kernel(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float | None, window: int | None
) -> Tensor:
    """One `scaled_dot_product_attention` call a segment; returns [1, T, H, D]."""
    lengths = [segment.length for segment in plan.segments]
    keys, values = key.split(lengths, dim=2), value.split(lengths, dim=2)
    offset, outputs = plan.own[0].start, []
    with _without_cudnn(query.device):
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


def _without_cudnn(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """cuDNN makes a plan for every new shape, and each segment is one: on an H200 the trial took 28 s, in fp32 0.3."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if device.type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


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
        **_grouped(varlen_attn, query.shape[1] != key.shape[1]),
    )
    return cast(Tensor, out)[None]


def _grouped(varlen_attn: Callable[..., Any], grouped: bool) -> dict[str, Any]:
    """How to say that heads share keys: a parameter since torch 2.12; before it needed no saying."""
    return {"enable_gqa": grouped} if "enable_gqa" in signature(varlen_attn).parameters else {}


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
