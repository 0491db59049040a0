"""RMSNorm and gated MLP that keep less for the backward than transformers' own, and compute the same.

transformers' modules leave the backward to autograd, which keeps every intermediate result. Most of a layer's memory is
that. Here the backward is written out: a norm keeps its input, the product of gate and up-projection its two factors;
the rest is computed again, elementwise. Where the MLP's matrices are plain and trained, on a CPU, it keeps its input
alone, and two of its nine matrix products are done again. With LoRA (`lora.py`) two of six would be, so it keeps the
two factors. On a CPU it is read in tiles of tokens.

`patch_layers` changes the modules' forward in place; parameters and names stay as they are. Liger Kernel
(arXiv 2410.10989) does the same with kernels for GPUs, Arctic Long Sequence Training (arXiv 2506.13996) has the tiles.

Shape letters: N tokens, D width, F width of the MLP's inner layer, O outputs, R rank.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from compact_distill.method.kernels.attention import Rotary
from compact_distill.method.kernels.choose import segment_attention
from compact_distill.method.kernels.lora import (
    Input,
    LowRank,
    Normed,
    Projection,
    Settings,
    autocast_dtype,
    is_lora,
    linear_of,
    lora_forward,
    project,
    tiles,
)

# These project, turn and attend, and no more; those with norms of queries and keys are left as they are.
_ATTENTIONS = ("LlamaAttention", "Qwen2Attention", "MistralAttention", "SmolLM3Attention")

# Tokens of a tile where there are no adapters: products of a small width want many.
TILE_ROWS = 768

Activation = Callable[[Tensor], Tensor]


def patch_layers(layers: nn.Module) -> None:
    """Give all norms, gated MLPs and LoRA projections in `layers` a forward that keeps less. Idempotent."""
    for module in layers.modules():
        if "forward" in vars(module):  # somebody's own, say a kernel of the hub
            continue
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_norm_forward, module)
        elif type(module).__name__.endswith("MLP"):
            module.forward = types.MethodType(_mlp_forward, module)
        elif type(module).__name__ in _ATTENTIONS:
            module.forward = types.MethodType(_attention_forward, module)
        elif is_lora(module):
            module.forward = types.MethodType(lora_forward, module)


def _norm_forward(self: Any, states: Tensor) -> Tensor:
    """transformers' RMSNorm, in at least fp32; weights of Gemma (offsets from 1) and OLMo multiply before rounding."""
    if type(self).__name__.startswith("Gemma"):
        return rms_norm(states, self.weight, self.eps, offset=1.0)
    if type(self).__name__.startswith("Olmo"):
        return rms_norm(states, self.weight, self.variance_epsilon, offset=0.0)
    return rms_norm(states, self.weight, self.variance_epsilon)


def _mlp_forward(self: Any, states: Tensor) -> Tensor:
    """transformers' gated MLP: down(activation(gate(x)) * up(x))."""
    parts = [linear_of(matrix) for matrix in (self.gate_proj, self.up_proj, self.down_proj)]
    known = [part for part in parts if part is not None and part[1] is None]
    adapters = [adapter for _, _, adapter in known if adapter is not None]
    plain_on_cpu = states.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if len(known) == len(parts) and (adapters or plain_on_cpu):
        rows_ND = states.reshape(-1, states.shape[-1])
        settings = tuple(None if adapter is None else adapter.settings for _, _, adapter in known)
        factors = [factor for adapter in adapters for factor in (adapter.a_RD, adapter.b_OR)]
        gate, up, down = (weight for weight, _, _ in known)
        keep = torch.is_grad_enabled() and bool(adapters)
        normed = Input.made_by(states)
        return gated_mlp(rows_ND, gate, up, down, self.act_fn, settings, keep, normed, *factors).view_as(states)
    if not torch.is_grad_enabled():
        return cast(Tensor, type(self).forward(self, states))
    return cast(Tensor, self.down_proj(gated(self.act_fn, self.gate_proj(states), self.up_proj(states))))


def _attention_forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention, with q, k and v read and turned in one step where a row of ours is read."""
    linears = [linear_of(module) for module in (self.q_proj, self.k_proj, self.v_proj)]
    known = [linear for linear in linears if linear is not None]
    cos, sin = position_embeddings
    ours = kwargs.get("compact_plan") is not None and len(known) == 3 and cos.dtype == hidden_states.dtype
    if not ours or autocast_dtype(hidden_states) is not None:
        arguments = (hidden_states, position_embeddings, attention_mask)
        return cast(tuple[Tensor, Tensor | None], type(self).forward(self, *arguments, **kwargs))
    query, key, value = (
        part.view(*part.shape[:-1], -1, self.head_dim).transpose(1, 2)
        for part in project(hidden_states, known, Rotary(cos[0], sin[0]) if getattr(self, "use_rope", True) else None)
    )
    # As transformers reads it: Mistral's is its config's, Qwen2's its layer's, and Llama has none whatever is written.
    holder = self.config if type(self).__name__ == "MistralAttention" else self
    window = getattr(holder, "sliding_window", None)
    dropout = self.attention_dropout if self.training else 0.0
    out, weights = segment_attention(
        self,
        query,
        key,
        value,
        attention_mask,
        scaling=self.scaling,
        dropout=dropout,
        sliding_window=window,
        **kwargs,
    )
    return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), weights


def rms_norm(states: Tensor, weight_D: Tensor, eps: float, offset: float | None = None) -> Tensor:
    """(offset + weight) * states / sqrt(mean(states^2) + eps) over the last dimension.

    Zhang and Sennrich 2019, eq. 4. Computed in at least fp32, then rounded to the precision of the states: the quotient
    alone, or where an offset is given, as for Gemma (1) and OLMo (0), the whole. Keeps `states`, and one number a row;
    projections that read the output keep the same.
    """
    out, scale = _RMSNorm.apply(states, weight_D, eps, offset)
    if torch.is_grad_enabled():
        rows_ND, scale_N1 = states.detach().reshape(-1, states.shape[-1]), scale.reshape(-1, 1)
        Input.remember(out, Normed(rows_ND, weight_D.detach(), scale_N1, offset))
    return cast(Tensor, out)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight_D: Tensor, eps: float, offset: float | None) -> tuple[Tensor, Tensor]:
        full = states.to(torch.float64 if states.dtype == torch.float64 else torch.float32)
        scale = full.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.offset = offset
        ctx.save_for_backward(states, weight_D, scale)
        ctx.mark_non_differentiable(scale)
        return Normed(states, weight_D, scale, offset).again(slice(None)), scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, weight_D, scale = ctx.saved_tensors
        grad, unit = grads[0].to(scale.dtype), states.to(scale.dtype) * scale
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * unit).flatten(0, -2).sum(0).to(weight_D.dtype)
        grad = grad * (weight_D.to(grad.dtype) + (ctx.offset or 0.0))
        # d unit / d states: what lies along `unit` has no effect.
        along = (grad * unit).sum(-1, keepdim=True).div_(-states.shape[-1])
        grad_states = grad.addcmul_(unit, along).mul_(scale)
        return grad_states.to(states.dtype), grad_weight, None, None


def gated(activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
    """activation(gate) * up, of equal shapes; keeps the two alone."""
    return cast(Tensor, _Gated.apply(activation, gate, up))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up)
        return activation(gate) * up

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            active = ctx.activation(leaf)
        (grad_gate,) = torch.autograd.grad(active, leaf, grads[0] * up)
        return None, grad_gate, grads[0] * active.detach()


def gated_mlp(
    x_ND: Tensor,
    gate_FD: Tensor,
    up_FD: Tensor,
    down_DF: Tensor,
    activation: Activation,
    settings: Sequence[Settings | None] = (None, None, None),
    keep: bool = False,
    normed: Normed | None = None,
    *factors: Tensor,
) -> Tensor:
    """down(activation(gate(x)) * up(x)), [N, D], read in tiles; see `_MLP`."""
    return cast(Tensor, _MLP.apply(x_ND, gate_FD, up_FD, down_DF, activation, settings, keep, normed, *factors))


class _MLP(torch.autograd.Function):
    """down(activation(gate(x)) * up(x)), read in tiles, with adapters or without.

    `settings` are those of the three adapters, None where there is none; `factors` their matrices, two each.
    Where `keep` says so, the factors gate(x) and up(x) are kept for the backward, else x alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        gate_FD: Tensor,
        up_FD: Tensor,
        down_DF: Tensor,
        activation: Activation,
        settings: Sequence[Settings | None],
        keep: bool,
        normed: Normed | None,
        *factors: Tensor,
    ) -> Tensor:
        ctx.activation, ctx.settings, ctx.autocast = activation, settings, autocast_dtype(x_ND)
        dtype = ctx.autocast or x_ND.dtype
        out_ND = torch.empty_like(x_ND, dtype=dtype)
        with torch.autocast(x_ND.device.type, enabled=False):
            gate, up, down = parts = _projections((gate_FD, up_FD, down_DF), settings, factors, ctx.autocast)
            kept = [x_ND.new_empty(len(x_ND), len(gate_FD), dtype=dtype) for _ in range(2 if keep else 0)]
            lows = [part.low(len(x_ND)) if keep else None for part in parts]
            for tile in _tiles(x_ND, settings):
                low = [None if low_NR is None else low_NR[tile] for low_NR in lows]
                rooms: list[torch.Tensor | None] = [factor[tile] for factor in kept] or [None, None]
                gate_NF, up_NF = (matrix(x_ND[tile], rooms[i], low[i]) for i, matrix in enumerate((gate, up)))
                down(activation(gate_NF).mul_(up_NF), out_ND[tile], low[2])
        source = Input(x_ND, normed)
        ctx.offset = 0.0 if normed is None else normed.offset
        ctx.sizes = len(source.kept), len(factors), len(kept)
        ctx.save_for_backward(gate_FD, up_FD, down_DF, *source.kept, *factors, *kept, *lows)
        return out_ND

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        gate_FD, up_FD, down_DF, *rest = ctx.saved_tensors
        source, factors, kept, lows = _cut(rest, ctx.sizes)
        x, dtype = Input.of(source, ctx.offset), source[0].dtype
        wanted = ctx.needs_input_grad[1:4]
        projections = _projections((gate_FD, up_FD, down_DF), ctx.settings, factors, ctx.autocast, wanted)
        gate, up, down = projections
        grad_x_ND = torch.empty_like(grads[0], dtype=ctx.autocast or dtype)
        for tile in _tiles(grads[0], ctx.settings):
            tile_ND, grad_ND = x[tile], grads[0][tile]
            low = [None if low_NR is None else low_NR[tile] for low_NR in lows]
            gate_NF, up_NF = (factor[tile] for factor in kept) if kept else (gate(tile_ND), up(tile_ND))
            with torch.enable_grad():
                leaf_NF = gate_NF.detach().requires_grad_()
                active_NF = ctx.activation(leaf_NF)
            value_NF = active_NF.detach()
            grad_NF = down.backward(grad_ND, value_NF * up_NF, low[2], torch.empty_like(up_NF))
            grad_up_NF = grad_NF * value_NF
            (grad_gate_NF,) = torch.autograd.grad(active_NF, leaf_NF, grad_NF.mul_(up_NF))
            gate.backward(grad_gate_NF, tile_ND, low[0], grad_x_ND[tile])
            up.backward(grad_up_NF, tile_ND, low[1], grad_x_ND[tile], add=True)
        totals = [projection.grad_weight for projection in projections]
        small = [gradient for projection in projections for gradient in projection.grad_factors]
        return grad_x_ND.to(dtype), *totals, None, None, None, None, *small


def _tiles(rows_ND: Tensor, settings: Sequence[Settings | None]) -> list[slice]:
    """Tiles of equal size; with adapters those of `lora.tiles`."""
    if any(settings):
        return tiles(rows_ND)
    count = len(rows_ND)
    size = -(-count // max(1, -(-count // TILE_ROWS)))
    return [slice(start, min(start + size, count)) for start in range(0, count, max(size, 1))]


def _cut(saved: Sequence[Any], sizes: Sequence[int]) -> Iterator[list[Any]]:
    """Runs of the given sizes, and what is left."""
    start = 0
    for size in sizes:
        yield list(saved[start : start + size])
        start += size
    yield list(saved[start:])


def _projections(
    weights: Sequence[Tensor],
    settings: Sequence[Settings | None],
    factors: Sequence[Tensor],
    autocast: torch.dtype | None,
    trained: Sequence[bool] = (False, False, False),
) -> list[Projection]:
    """The MLP's three matrices with their adapters; `trained`: whose weights' gradients shall be taken."""
    pairs = iter(zip(factors[::2], factors[1::2], strict=True))
    low_ranks = [None if setting is None else LowRank(*next(pairs), setting, autocast) for setting in settings]
    each = zip(weights, low_ranks, trained, strict=True)
    return [Projection(weight, low_rank, autocast, wanted) for weight, low_rank, wanted in each]
