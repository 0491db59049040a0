"""LoRA that keeps its input alone for the backward, and computes what peft's own forward does.

peft leaves the backward to autograd, which keeps for each adapted projection a dropped-out copy of the input, the mask
that dropped it and what the small matrices make of it. Here the backward is written out: a projection keeps its input,
which q, k and v share, as gate and up do, and a seed. The mask is drawn again from the seed, the small products are
done again, and the adapter is added to the projection's output in place: nothing of the size of the weights is made,
nothing is merged. In tiles of tokens, so that what lies between stays near the processor.

Only what is known is taken over (`Adapter.of`): peft's plain LoRA on an `nn.Linear`, one active adapter, dropout or
none. Anything else (DoRA and other variants, quantised weights, biases of adapters, merged or disabled adapters, hooks)
is left to peft.

Shapes: N tokens, D inputs, O outputs, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Tokens of a tile on a CPU: enough for fast matrix products, few enough that what lies between them stays small.
TILE_ROWS = 384
Settings = tuple[float, int, int]  # of an adapter: scale, drops of 65,536, seed
_LEVELS = 2**16  # a dropout rate is a multiple of 1 / 65,536: four random decisions a random integer


@dataclass(frozen=True)
class Adapter:
    """One projection's adapter: out += scale * dropout(x) A^T B^T.

    Attributes:
        a_RD, b_OR: the two small matrices.
        scale: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA.
        dropped: how many of 65,536 inputs are dropped on average; 0 outside training.
        seed: of the dropout's mask.
    """

    a_RD: Tensor
    b_OR: Tensor
    scale: float
    dropped: int
    seed: int

    @classmethod
    def of(cls, module: Any) -> Adapter | None:
        """The adapter of a module in this moment, with a seed drawn for its dropout; None for what we do not know."""
        if not is_lora(module) or module.disable_adapters or module.merged or module.fan_in_fan_out:
            return None
        names = [name for name in module.active_adapters if name in module.lora_A]
        if len(names) != 1 or names[0] in module.lora_variant or module.use_dora.get(names[0], False):
            return None
        a, b, dropout = (part[names[0]] for part in (module.lora_A, module.lora_B, module.lora_dropout))
        if not (is_plain(a) and is_plain(b) and a.bias is None and b.bias is None and _is_dropout(dropout)):
            return None
        if not is_plain(module.base_layer) or any(p.requires_grad for p in module.base_layer.parameters()):
            return None
        rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        dropped = round(rate * _LEVELS)
        # Python's side of the generator: no wait for the accelerator, and checkpoints of activations put it back.
        seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_()) if dropped else 0
        return cls(a.weight, b.weight, float(module.scaling[names[0]]), dropped, seed)

    @property
    def settings(self) -> Settings:
        """Scale, drops and seed."""
        return self.scale, self.dropped, self.seed


def is_lora(module: nn.Module) -> bool:
    """Whether a module is peft's LoRA of a linear layer, and no other kind."""
    kind = type(module)
    return kind.__name__ == "Linear" and kind.__module__ == "peft.tuners.lora.layer"


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a mere matrix product, with nobody attached who wants its calls."""
    return type(module) is nn.Linear and "forward" not in vars(module) and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to a module's calls."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _is_dropout(module: nn.Module) -> bool:
    return type(module) in (nn.Dropout, nn.Identity) and not has_hooks(module)


def tiles(rows_ND: Tensor) -> list[slice]:
    """Tiles of tokens: some on a CPU, one elsewhere."""
    rows = len(rows_ND)
    size = TILE_ROWS if rows_ND.device.type == "cpu" else max(rows, 1)
    return [slice(start, start + size) for start in range(0, rows, size)]


def autocast_dtype(states: Tensor) -> torch.dtype | None:
    """The precision that autocast wants for products of `states`; None where it is off or leaves them alone (fp64)."""
    device = states.device.type
    on = torch.is_autocast_enabled(device) and states.dtype != torch.float64
    return torch.get_autocast_dtype(device) if on else None


def lora_forward(self: Any, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """peft's `lora.Linear.forward`: base(x) + scale * B(A(dropout(x)))."""
    adapter = None if args or kwargs else Adapter.of(self)
    if adapter is None:
        return cast(Tensor, type(self).forward(self, states, *args, **kwargs))
    base = self.base_layer
    rows_ND = states.reshape(-1, states.shape[-1])
    out_NO = adapted_linear(rows_ND, base.weight, base.bias, adapter.a_RD, adapter.b_OR, adapter.settings)
    return out_NO.view(*states.shape[:-1], -1)


def adapted_linear(
    x_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None, a_RD: Tensor, b_OR: Tensor, settings: Settings
) -> Tensor:
    """x W^T + bias + scale * dropout(x) A^T B^T, [N, O]; keeps x. W and bias are frozen."""
    return cast(Tensor, _LoRALinear.apply(x_ND, weight_OD, bias_O, a_RD, b_OR, settings))


class LowRank:
    """An adapter at work on the tiles of a row, in order: what it adds, or its gradients.

    A second one of the same seed sees the same masks. It works in its own precision, as in peft, or in autocast's.
    """

    def __init__(self, a_RD: Tensor, b_OR: Tensor, settings: Settings, autocast: torch.dtype | None) -> None:
        scale, self._dropped, seed = settings
        dtype = autocast or a_RD.dtype
        self._factors = a_RD, b_OR
        self.a_RD, self.b_OR = a_RD.to(dtype), b_OR.to(dtype)
        self.scale = scale * _LEVELS / (_LEVELS - self._dropped)  # so that the mean stays, whatever was dropped
        self._generator = torch.Generator(a_RD.device).manual_seed(seed) if self._dropped else None
        self._grad_a_RD, self._grad_b_OR = torch.zeros_like(self.a_RD), torch.zeros_like(self.b_OR)

    @property
    def gradients(self) -> list[Tensor]:
        """Gradients of the two matrices, of all tiles so far."""
        return [g.to(f.dtype) for g, f in zip((self._grad_a_RD, self._grad_b_OR), self._factors, strict=True)]

    def add(self, out_NO: Tensor, x_ND: Tensor) -> None:
        """Add the adapter's share of a tile to the projection's output, in place."""
        x_ND = x_ND.to(self.a_RD.dtype)
        keep_ND = self.keep(x_ND)
        low_NR = (x_ND if keep_ND is None else keep_ND.mul_(x_ND)) @ self.a_RD.t()
        _add_product(out_NO, low_NR, self.b_OR.t(), self.scale)

    def backward(self, grad_NO: Tensor, x_ND: Tensor, grad_x_ND: Tensor) -> None:
        """Take a tile's gradient: adds to the matrices' gradients, and to the input's in place."""
        grad_NO, x_ND = grad_NO.to(self.a_RD.dtype), x_ND.to(self.a_RD.dtype)
        keep_ND = self.keep(x_ND)
        kept_ND = x_ND if keep_ND is None else keep_ND * x_ND
        self._grad_b_OR.addmm_(grad_NO.t(), kept_ND @ self.a_RD.t(), alpha=self.scale)
        grad_NR = (grad_NO @ self.b_OR).mul_(self.scale)
        self._grad_a_RD.addmm_(grad_NR.t(), kept_ND)
        if keep_ND is None:
            _add_product(grad_x_ND, grad_NR, self.a_RD, 1.0)
        else:
            grad_x_ND.add_(torch.mm(grad_NR, self.a_RD, out=kept_ND).mul_(keep_ND))

    def keep(self, x_ND: Tensor) -> Tensor | None:
        """1 where an input of this tile stays, 0 where it is dropped; None where all stay."""
        if self._generator is None:
            return None
        draws = torch.empty(-(-x_ND.numel() // 4), dtype=torch.int64, device=x_ND.device)
        draws.random_(-(2**63), None, generator=self._generator)
        levels_ND = draws.view(torch.int16)[: x_ND.numel()].view(x_ND.shape)
        return torch.ge(levels_ND, self._dropped - _LEVELS // 2, out=torch.empty_like(x_ND))


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def _add_product(out_NO: Tensor, left_NR: Tensor, right_RO: Tensor, scale: float) -> None:
    """out += scale * left @ right, rounded once to the precision of `out`."""
    if out_NO.dtype == left_NR.dtype:
        out_NO.addmm_(left_NR, right_RO, alpha=scale)
    else:
        out_NO.copy_(torch.addmm(out_NO.to(left_NR.dtype), left_NR, right_RO, alpha=scale))


class Projection:
    """A frozen or trained matrix without bias, with its adapter or without, at work on the tiles of a row, in order."""

    def __init__(
        self, weight_OD: Tensor, low_rank: LowRank | None, autocast: torch.dtype | None, trained: bool
    ) -> None:
        self._weight_OD, self._low_rank, self._autocast = _cast(weight_OD, autocast), low_rank, autocast
        self.grad_weight = torch.empty_like(weight_OD) if trained else None
        self._empty = True

    def __call__(self, x_ND: Tensor, out_NO: Tensor | None = None) -> Tensor:
        """The product with a tile, into `out_NO` where it is given."""
        product_NO = torch.mm(_cast(x_ND, self._autocast), self._weight_OD.t(), out=out_NO)
        if self._low_rank is not None:
            self._low_rank.add(product_NO, x_ND)
        return product_NO

    def backward(self, grad_NO: Tensor, x_ND: Tensor, grad_x_ND: Tensor, add: bool = False) -> Tensor:
        """The gradient of a tile's input, written into `grad_x_ND` or added to it; the matrices' are added up."""
        torch.addmm(grad_x_ND, grad_NO, self._weight_OD, beta=float(add), out=grad_x_ND)
        if self._low_rank is not None:
            self._low_rank.backward(grad_NO, x_ND, grad_x_ND)
        if self.grad_weight is not None:  # the first tile fills it
            beta = 0.0 if self._empty else 1.0
            torch.addmm(self.grad_weight, grad_NO.t(), x_ND, beta=beta, out=self.grad_weight)
            self._empty = False
        return grad_x_ND

    @property
    def grad_factors(self) -> list[Tensor]:
        """Gradients of the adapter's two matrices; empty where there is none."""
        return [] if self._low_rank is None else self._low_rank.gradients


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_OD: Tensor,
        bias_O: Tensor | None,
        a_RD: Tensor,
        b_OR: Tensor,
        settings: Settings,
    ) -> Tensor:
        ctx.autocast, ctx.settings = autocast_dtype(x_ND), settings
        ctx.save_for_backward(x_ND, weight_OD, a_RD, b_OR)
        with torch.autocast(x_ND.device.type, enabled=False):
            low_rank = LowRank(a_RD, b_OR, settings, ctx.autocast)
            bias_O = bias_O if bias_O is None else _cast(bias_O, ctx.autocast)
            out_NO = F.linear(_cast(x_ND, ctx.autocast), _cast(weight_OD, ctx.autocast), bias_O)
            for tile in tiles(x_ND):
                low_rank.add(out_NO[tile], x_ND[tile])
        return out_NO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_OD, a_RD, b_OR = ctx.saved_tensors
        low_rank = LowRank(a_RD, b_OR, ctx.settings, ctx.autocast)
        grad_x_ND = grads[0] @ _cast(weight_OD, ctx.autocast)
        for tile in tiles(x_ND):
            low_rank.backward(grads[0][tile], x_ND[tile], grad_x_ND[tile])
        return grad_x_ND.to(x_ND.dtype), None, None, *low_rank.gradients, None
