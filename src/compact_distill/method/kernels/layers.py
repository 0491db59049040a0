"""RMSNorm and gated MLP that keep less for the backward than transformers' own, and compute the same.

transformers' modules leave the backward to autograd, which keeps every intermediate result. Most of a layer's memory is
that. Here the backward is written out: a norm keeps its input, the product of gate and up-projection its two factors;
the rest is computed again, elementwise. Where the MLP's matrices are plain and trained, on a CPU, it keeps its input
alone: two of its nine matrix products are done again. With LoRA (`lora.py`) two of six would be, so it keeps the two
factors. On a CPU it is read in tiles of tokens that stay in the cache.

`patch_layers` changes the modules' forward in place; parameters and names stay as they are. Liger Kernel
(arXiv 2410.10989) does the same with kernels for GPUs, Arctic Long Sequence Training (arXiv 2506.13996) has the tiles.

Shapes: N tokens, D width, F width of the MLP's inner layer, R rank.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from compact_distill.method.kernels.lora import (
    Adapter,
    LowRank,
    Projection,
    Settings,
    autocast_dtype,
    has_hooks,
    is_lora,
    is_plain,
    lora_forward,
    tiles,
)

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
        elif is_lora(module):
            module.forward = types.MethodType(lora_forward, module)


def _norm_forward(self: Any, states: Tensor) -> Tensor:
    """transformers' RMSNorm, in at least fp32; Gemma's weight is an offset from 1, and multiplies before rounding."""
    if type(self).__name__.startswith("Gemma"):
        return rms_norm(states, self.weight, self.eps, offset=1.0)
    return rms_norm(states, self.weight, self.variance_epsilon)


def _mlp_forward(self: Any, states: Tensor) -> Tensor:
    """transformers' gated MLP: down(activation(gate(x)) * up(x))."""
    parts = [_matrix_and_adapter(matrix) for matrix in (self.gate_proj, self.up_proj, self.down_proj)]
    known = [part for part in parts if part is not None]
    adapters = [adapter for _, adapter in known if adapter is not None]
    plain_on_cpu = states.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if len(known) == len(parts) and (adapters or plain_on_cpu):
        rows_ND = states.reshape(-1, states.shape[-1])
        settings = tuple(None if adapter is None else adapter.settings for _, adapter in known)
        factors = [factor for adapter in adapters for factor in (adapter.a_RD, adapter.b_OR)]
        keep = bool(adapters) and torch.is_grad_enabled()
        gate, up, down = (weight for weight, _ in known)
        return gated_mlp(rows_ND, gate, up, down, self.act_fn, settings, keep, *factors).view_as(states)
    if not torch.is_grad_enabled():
        return cast(Tensor, type(self).forward(self, states))
    return cast(Tensor, self.down_proj(gated(self.act_fn, self.gate_proj(states), self.up_proj(states))))


def _matrix_and_adapter(module: Any) -> tuple[Tensor, Adapter | None] | None:
    """What a projection without bias multiplies with, and its adapter; None where it is more than that."""
    if is_plain(module):
        return (module.weight, None) if module.bias is None else None
    ours = getattr(vars(module).get("forward"), "__func__", lora_forward) is lora_forward
    adapter = Adapter.of(module) if is_lora(module) and ours and not has_hooks(module) else None
    if adapter is None or module.base_layer.bias is not None:
        return None
    return module.base_layer.weight, adapter


def rms_norm(states: Tensor, weight_D: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """(offset + weight) * states / sqrt(mean(states^2) + eps) over the last dimension.

    Zhang and Sennrich 2019, eq. 4. Computed in at least fp32, then rounded to the precision of the states: the quotient
    alone, or with an offset, as Gemma has it, the whole. Keeps `states`, and one number a row.
    """
    return cast(Tensor, _RMSNorm.apply(states, weight_D, eps, offset))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight_D: Tensor, eps: float, offset: float) -> Tensor:
        full = states.to(torch.float64 if states.dtype == torch.float64 else torch.float32)
        scale = full.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.offset = offset
        ctx.save_for_backward(states, weight_D, scale)
        if offset:
            return (full * scale * (offset + weight_D.to(full.dtype))).to(states.dtype)
        return weight_D * (full * scale).to(states.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, weight_D, scale = ctx.saved_tensors
        grad, unit = grads[0].to(scale.dtype), states.to(scale.dtype) * scale
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * unit).flatten(0, -2).sum(0).to(weight_D.dtype)
        grad = grad * (weight_D.to(grad.dtype) + ctx.offset)
        # d unit / d states: what lies along `unit` has no effect.
        grad_states = grad.sub_(unit.mul_((grad * unit).mean(-1, keepdim=True))).mul_(scale)
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
    *factors: Tensor,
) -> Tensor:
    """down(activation(gate(x)) * up(x)), [N, D], read in tiles; see `_MLP`."""
    return cast(Tensor, _MLP.apply(x_ND, gate_FD, up_FD, down_DF, activation, settings, keep, *factors))


class _MLP(torch.autograd.Function):
    """down(activation(gate(x)) * up(x)), read in tiles, with adapters or without.

    `settings` are those of the three adapters, None where there is none; `factors` their matrices, two each. With
    `keep` the factors gate(x) and up(x) are kept for the backward, else x alone (for which there must be no adapter).
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
        *factors: Tensor,
    ) -> Tensor:
        ctx.activation, ctx.settings, ctx.autocast = activation, settings, autocast_dtype(x_ND)
        dtype = ctx.autocast or x_ND.dtype
        out_ND = torch.empty_like(x_ND, dtype=dtype)
        kept = [x_ND.new_empty(len(x_ND), len(gate_FD), dtype=dtype) for _ in range(2)] if keep else []
        with torch.autocast(x_ND.device.type, enabled=False):
            gate, up, down = _projections((gate_FD, up_FD, down_DF), settings, factors, ctx.autocast)
            for tile in tiles(x_ND):
                gate_NF, up_NF = (
                    matrix(x_ND[tile], kept[i][tile] if keep else None) for i, matrix in enumerate((gate, up))
                )
                down(activation(gate_NF).mul_(up_NF), out_ND[tile])
        ctx.save_for_backward(x_ND, gate_FD, up_FD, down_DF, *factors, *kept)
        ctx.factors = len(factors)
        return out_ND

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, gate_FD, up_FD, down_DF, *rest = ctx.saved_tensors
        factors, kept = rest[: ctx.factors], rest[ctx.factors :]
        wanted = ctx.needs_input_grad[1:4]
        projections = _projections((gate_FD, up_FD, down_DF), ctx.settings, factors, ctx.autocast, wanted)
        gate, up, down = projections
        grad_x_ND = torch.empty_like(x_ND, dtype=ctx.autocast or x_ND.dtype)
        for tile in tiles(x_ND):
            tile_ND, grad_ND = x_ND[tile], grads[0][tile]
            gate_NF, up_NF = (factor[tile] for factor in kept) if kept else (gate(tile_ND), up(tile_ND))
            with torch.enable_grad():
                leaf_NF = gate_NF.detach().requires_grad_()
                active_NF = ctx.activation(leaf_NF)
            value_NF = active_NF.detach()
            grad_NF = down.backward(grad_ND, value_NF * up_NF, torch.empty_like(up_NF))
            grad_up_NF = grad_NF * value_NF
            (grad_gate_NF,) = torch.autograd.grad(active_NF, leaf_NF, grad_NF.mul_(up_NF))
            gate.backward(grad_gate_NF, tile_ND, grad_x_ND[tile])
            up.backward(grad_up_NF, tile_ND, grad_x_ND[tile], add=True)
        totals = [projection.grad_weight for projection in projections]
        small = [gradient for projection in projections for gradient in projection.grad_factors]
        return grad_x_ND.to(x_ND.dtype), *totals, None, None, None, *small


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
