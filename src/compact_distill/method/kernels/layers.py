"""RMSNorm and gated MLP that keep less for the backward than transformers' own, and compute the same.

transformers' modules leave the backward to autograd, which keeps every intermediate result. Most of a layer's memory is
that. Here the backward is written out: a norm keeps its input, the product of gate and up-projection its two factors;
the rest is computed again, elementwise. Where the MLP's matrices are plain and on a CPU, it is read in tiles of tokens
that stay in the cache, and keeps its input alone: two of its nine matrix products are done again.

`patch_layers` changes the modules' forward in place; parameters and names stay as they are. Liger Kernel
(arXiv 2410.10989) does the same with kernels for GPUs, Arctic Long Sequence Training (arXiv 2506.13996) has the tiles.

Shapes: N tokens, D width, F width of the MLP's inner layer.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

# Tokens of a tile: enough for fast matrix products, few enough that what lies between them takes little memory.
TILE_ROWS = 384

Activation = Callable[[Tensor], Tensor]


def patch_layers(layers: nn.Module) -> None:
    """Give all norms and gated MLPs in `layers` a forward that keeps less. Idempotent."""
    for module in layers.modules():
        if "forward" in vars(module):  # somebody's own, say a kernel of the hub
            continue
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_norm_forward, module)
        elif type(module).__name__.endswith("MLP"):
            module.forward = types.MethodType(_mlp_forward, module)


def _norm_forward(self: Any, states: Tensor) -> Tensor:
    """transformers' RMSNorm, in at least fp32; Gemma's weight is an offset from 1, and multiplies before rounding."""
    if type(self).__name__.startswith("Gemma"):
        return rms_norm(states, self.weight, self.eps, offset=1.0)
    return rms_norm(states, self.weight, self.variance_epsilon)


def _mlp_forward(self: Any, states: Tensor) -> Tensor:
    """transformers' gated MLP: down(activation(gate(x)) * up(x))."""
    if not torch.is_grad_enabled():
        return cast(Tensor, type(self).forward(self, states))
    matrices = self.gate_proj, self.up_proj, self.down_proj
    if states.device.type == "cpu" and all(_plain(matrix) for matrix in matrices):
        rows_ND = states.reshape(-1, states.shape[-1])
        out_ND = _TiledMLP.apply(rows_ND, *(matrix.weight for matrix in matrices), self.act_fn)
        return cast(Tensor, out_ND).view_as(states)
    return cast(Tensor, self.down_proj(gated(self.act_fn, self.gate_proj(states), self.up_proj(states))))


def _plain(matrix: nn.Module) -> bool:
    """Whether a module is a mere matrix product in its own precision, with nobody attached who wants its calls."""
    if type(matrix) is not nn.Linear or matrix.bias is not None or "forward" in vars(matrix):
        return False
    hooks = matrix._forward_hooks or matrix._forward_pre_hooks or matrix._backward_hooks or matrix._backward_pre_hooks
    return not hooks and not torch.is_autocast_enabled("cpu")


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


class _TiledMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states_ND: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, activation: Activation
    ) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(states_ND, gate_FD, up_FD, down_DF)
        out_ND = torch.empty_like(states_ND)
        for tile in _tiles(len(states_ND)):
            x_ND = states_ND[tile]
            torch.mm(activation(x_ND @ gate_FD.t()).mul_(x_ND @ up_FD.t()), down_DF.t(), out=out_ND[tile])
        return out_ND

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states_ND, gate_FD, up_FD, down_DF = ctx.saved_tensors
        grad_states = torch.empty_like(states_ND)
        totals = [
            torch.empty_like(weight) if wanted else None
            for weight, wanted in zip((gate_FD, up_FD, down_DF), ctx.needs_input_grad[1:4], strict=True)
        ]
        for tile in _tiles(len(states_ND)):
            x_ND, grad_ND = states_ND[tile], grads[0][tile]
            gate_NF, up_NF = x_ND @ gate_FD.t(), x_ND @ up_FD.t()
            with torch.enable_grad():
                active_NF = ctx.activation(gate_NF.requires_grad_())
            grad_NF, value_NF = grad_ND @ down_DF, active_NF.detach()
            grad_up = grad_NF * value_NF
            (grad_gate,) = torch.autograd.grad(active_NF, gate_NF, grad_NF.mul_(up_NF))
            torch.mm(grad_gate, gate_FD, out=grad_states[tile]).addmm_(grad_up, up_FD)
            pairs = ((grad_gate, x_ND), (grad_up, x_ND), (grad_ND, up_NF.mul_(value_NF)))
            for total, (out_NX, in_NX) in zip(totals, pairs, strict=True):
                if total is not None:  # the first tile fills it
                    torch.addmm(total, out_NX.t(), in_NX, beta=float(tile.start > 0), out=total)
        return grad_states, *totals, None


def _tiles(rows: int) -> list[slice]:
    return [slice(start, start + TILE_ROWS) for start in range(0, rows, TILE_ROWS)]
