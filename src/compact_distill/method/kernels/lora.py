"""LoRA that keeps its input alone for the backward, and computes what peft's own forward does.

peft leaves the backward to autograd, which keeps for each adapted projection a dropped-out copy of the input and the
mask that dropped it. Here the backward is written out: projections of one input (q, k and v; gate and up) are one step
of autograd that keeps the input once, a seed and R numbers a token. Where the input is what a norm made, it keeps what
the norm keeps, and makes it anew. The mask is drawn again from the seed, and the adapter is added to the projection's
output in place: nothing of the size of the weights is made, nothing is merged. In tiles of tokens, so that what lies
between stays near the processor.

Only what is known is taken over (`Adapter.of`): peft's plain LoRA on an `nn.Linear`, one active adapter, dropout or
none. Anything else (DoRA and other variants, quantised weights, biases of adapters, merged or disabled adapters, hooks)
is left to peft.

Shape letters: N tokens, D inputs, O outputs, R rank. A and B are peft's two factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compact_distill.method.kernels.attention import Rotary

# Tokens of a tile on a CPU: enough for fast matrix products, few enough that what lies between them stays small.
TILE_ROWS = 384
Settings = tuple[float, int, int]  # of an adapter: scale, drops of 65,536, seed
_GOLDEN = -7046029254386353131  # 2^64 over the golden ratio, as a signed integer
_generator = lru_cache(maxsize=8)(torch.Generator)  # of a device
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
        simple = type(dropout) in (nn.Dropout, nn.Identity) and not has_hooks(dropout)
        if not (simple and is_plain(a) and is_plain(b) and a.bias is None and b.bias is None):
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
    return (type(module).__module__, type(module).__name__) == ("peft.tuners.lora.layer", "Linear")


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a mere matrix product, with nobody attached who wants its calls."""
    return type(module) is nn.Linear and "forward" not in vars(module) and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to a module's calls."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(kinds)


def tiles(rows_ND: Tensor) -> list[slice]:
    """Tiles of tokens: some on a CPU, one elsewhere."""
    size = TILE_ROWS if rows_ND.device.type == "cpu" else max(len(rows_ND), 1)
    return [slice(start, start + size) for start in range(0, len(rows_ND), size)]


def autocast_dtype(states: Tensor) -> torch.dtype | None:
    """The precision that autocast wants for products of `states`; None where it is off or leaves them alone (fp64)."""
    on = torch.is_autocast_enabled(states.device.type) and states.dtype != torch.float64
    return torch.get_autocast_dtype(states.device.type) if on else None


@dataclass(frozen=True)
class Normed:
    """How a norm made its output of what it keeps for its backward anyway: out = (offset + weight) * states * scale."""

    states_ND: Tensor
    weight_D: Tensor
    scale_N1: Tensor
    offset: float | None  # None: states * scale is rounded before the weight, else the whole

    def again(self, tile: slice) -> Tensor:
        """Some rows of the norm's output: what its forward and a backward that reads it both compute."""
        unit = self.states_ND[tile].to(self.scale_N1.dtype) * self.scale_N1[tile]
        if self.offset is not None:
            return unit.mul_(self.offset + self.weight_D.to(unit.dtype)).to(self.states_ND.dtype)
        unit = unit.to(self.states_ND.dtype)
        return unit.mul_(self.weight_D) if self.weight_D.dtype == unit.dtype else self.weight_D * unit


class Input:
    """The input of projections: kept as it is, or as what a norm made it of (`remember`)."""

    def __init__(self, x_ND: Tensor, normed: Normed | None) -> None:
        self._normed, self._x_ND = normed, x_ND if normed is None else None

    @staticmethod
    def remember(states: Tensor, normed: Normed) -> None:
        """Note on a norm's output how it was made; on the tensor itself, so that the note dies with it."""
        states._compact_normed = normed  # type: ignore[attr-defined]

    @staticmethod
    def made_by(states: Tensor) -> Normed | None:
        """How a norm of ours made `states`; None where none did."""
        return getattr(states, "_compact_normed", None)

    @property
    def kept(self) -> list[Tensor]:
        """What the backward keeps of it."""
        normed = self._normed
        return [cast(Tensor, self._x_ND)] if normed is None else [normed.states_ND, normed.weight_D, normed.scale_N1]

    @classmethod
    def of(cls, kept: Sequence[Tensor], offset: float | None) -> Input:
        """The input, of what was kept of it."""
        return cls(kept[0], None) if len(kept) == 1 else cls(kept[0], Normed(kept[0], kept[1], kept[2], offset))

    def __getitem__(self, tile: slice) -> Tensor:
        return cast(Tensor, self._x_ND)[tile] if self._normed is None else self._normed.again(tile)


def lora_forward(self: Any, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """peft's `lora.Linear.forward`: base(x) + scale * B(A(dropout(x)))."""
    adapter = None if args or kwargs else Adapter.of(self)
    if adapter is None:
        return cast(Tensor, type(self).forward(self, states, *args, **kwargs))
    return project(states, [(self.base_layer.weight, self.base_layer.bias, adapter)])[0]


Linear = tuple[Tensor, Tensor | None, Adapter | None]  # weight, bias and adapter of a projection


def linear_of(module: Any) -> Linear | None:
    """What a projection computes with; None where it is more than a product with an adapter."""
    if is_plain(module):
        return module.weight, module.bias, None
    ours = getattr(vars(module).get("forward"), "__func__", lora_forward) is lora_forward
    adapter = Adapter.of(module) if is_lora(module) and ours and not has_hooks(module) else None
    return None if adapter is None else (module.base_layer.weight, module.base_layer.bias, adapter)


def project(states: Tensor, linears: Sequence[Linear], rotary: Rotary | None = None) -> list[Tensor]:
    """x W^T + bias + scale * dropout(x) A^T B^T of each projection of `states`, which is kept once.

    Args:
        states: [..., D].
        linears: the projections.
        rotary: turn the first two, the queries and the keys; see `Rotary`.
    """
    rows_ND = states.reshape(-1, states.shape[-1])
    settings = tuple(None if adapter is None else adapter.settings for _, _, adapter in linears)
    parts = [
        part
        for weight, bias, adapter in linears
        for part in (weight, bias, *((None, None) if adapter is None else (adapter.a_RD, adapter.b_OR)))
    ]
    outs = _Projections.apply(rows_ND, Input.made_by(states), settings, rotary, *parts)
    return [out.view(*states.shape[:-1], -1) for out in outs]


class LowRank:
    """An adapter at work on the tiles of a row, in order: what it adds, or its gradients.

    A second one of the same seed sees the same masks. It works in its own precision, as in peft, or in autocast's.
    """

    def __init__(self, a_RD: Tensor, b_OR: Tensor, settings: Settings, autocast: torch.dtype | None) -> None:
        scale, self._dropped, self._seed = settings
        dtype = autocast or a_RD.dtype
        self._factors = a_RD, b_OR
        self.a_RD, self.b_OR = a_RD.to(dtype), b_OR.to(dtype)
        self.scale = scale * _LEVELS / (_LEVELS - self._dropped)  # so that the mean stays, whatever was dropped
        self._drawn = 0
        self._grads: tuple[Tensor, ...] = ()

    @property
    def gradients(self) -> list[Tensor]:
        """Gradients of the two matrices, of all tiles so far."""
        grads = self._grads or map(torch.zeros_like, self._factors)  # no tile, no gradient
        return [g.to(f.dtype) for g, f in zip(grads, self._factors, strict=True)]

    def add(self, out_NO: Tensor, x_ND: Tensor, low_NR: Tensor | None = None) -> None:
        """Add the adapter's share of a tile to the projection's output, in place; `low_NR` keeps what A makes of it."""
        x_ND = x_ND.to(self.a_RD.dtype)
        keep_ND = self.keep(x_ND)
        low_NR = torch.mm(x_ND if keep_ND is None else keep_ND.mul_(x_ND), self.a_RD.t(), out=low_NR)
        _add_product(out_NO, low_NR, self.b_OR.t(), self.scale)

    def backward(self, grad_NO: Tensor, x_ND: Tensor, low_NR: Tensor, grad_x_ND: Tensor | None) -> None:
        """Take a tile's gradient: adds to the matrices' gradients, and to the input's, where wanted, in place."""
        grad_NO, x_ND = grad_NO.to(self.a_RD.dtype), x_ND.to(self.a_RD.dtype)
        keep_ND = self.keep(x_ND)
        kept_ND = x_ND if keep_ND is None else keep_ND * x_ND
        add = float(bool(self._grads))  # the first tile fills them
        self._grads = grad_a_RD, grad_b_OR = self._grads or (torch.empty_like(self.a_RD), torch.empty_like(self.b_OR))
        torch.addmm(grad_b_OR, grad_NO.t(), low_NR, beta=add, alpha=self.scale, out=grad_b_OR)
        grad_NR = (grad_NO @ self.b_OR).mul_(self.scale)
        torch.addmm(grad_a_RD, grad_NR.t(), kept_ND, beta=add, out=grad_a_RD)
        if grad_x_ND is None:
            return
        if keep_ND is None:
            _add_product(grad_x_ND, grad_NR, self.a_RD, 1.0)
        elif grad_x_ND.dtype == keep_ND.dtype:
            grad_x_ND.addcmul_(torch.mm(grad_NR, self.a_RD, out=kept_ND), keep_ND)
        else:
            grad_x_ND.add_(torch.mm(grad_NR, self.a_RD, out=kept_ND).mul_(keep_ND))

    def low(self, rows: int) -> Tensor:
        """Room for what A makes of so many rows."""
        return self.a_RD.new_empty(rows, len(self.a_RD))

    def keep(self, x_ND: Tensor) -> Tensor | None:
        """1 where an input of this tile stays, 0 where it is dropped; None where all stay."""
        if not self._dropped:
            return None
        start, self._drawn = self._drawn, self._drawn - (-x_ND.numel() // 4)
        if x_ND.device.type != "cpu":  # one kernel: an accelerator waits for Python longer than for its own arithmetic
            generator = _generator(x_ND.device).manual_seed((self._seed + start) % 2**63)
            return torch.empty_like(x_ND).bernoulli_(1 - self._dropped / _LEVELS, generator=generator)
        bits = random_bits(self._drawn - start, self._seed, start).view(torch.int16)
        return torch.ge(bits[: x_ND.numel()].view(x_ND.shape), self._dropped - _LEVELS // 2, out=torch.empty_like(x_ND))


def random_bits(count: int, seed: int, start: int) -> Tensor:
    """`count` random int64 of the sequence `seed`, from `start` on: a counter, mixed twice as splitmix64 does it.

    On a CPU torch's own generator knows one thread; this is elementwise (Steele et al. 2014, section 3).
    """
    offset = (seed + start * _GOLDEN + 2**63) % 2**64 - 2**63
    bits = _counters(1 << (count - 1).bit_length())[:count] + offset
    bits.bitwise_xor_(bits >> 32).mul_(-4658895280553007687)
    return bits.bitwise_xor_(bits >> 29).mul_(-7723592293110705685)


@lru_cache(maxsize=32)
def _counters(count: int) -> Tensor:
    return torch.arange(count, device="cpu") * _GOLDEN


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

    def __call__(self, x_ND: Tensor, out_NO: Tensor | None = None, low_NR: Tensor | None = None) -> Tensor:
        """The product with a tile, into `out_NO` where it is given; `low_NR` keeps what the adapter makes of it."""
        product_NO = torch.mm(_cast(x_ND, self._autocast), self._weight_OD.t(), out=out_NO)
        if self._low_rank is not None:
            self._low_rank.add(product_NO, x_ND, low_NR)
        return product_NO

    def backward(
        self, grad_NO: Tensor, x_ND: Tensor, low_NR: Tensor | None, grad_x_ND: Tensor, add: bool = False
    ) -> Tensor:
        """The gradient of a tile's input, written into `grad_x_ND` or added to it; the matrices' are added up."""
        torch.addmm(grad_x_ND, grad_NO, self._weight_OD, beta=float(add), out=grad_x_ND)
        if self._low_rank is not None:
            self._low_rank.backward(grad_NO, x_ND, cast(Tensor, low_NR), grad_x_ND)
        if self.grad_weight is not None:  # the first tile fills it
            torch.addmm(self.grad_weight, grad_NO.t(), x_ND, beta=float(not self._empty), out=self.grad_weight)
            self._empty = False
        return grad_x_ND

    def low(self, rows: int) -> Tensor | None:
        """Room for what the adapter's A makes of so many rows; None where there is no adapter."""
        return None if self._low_rank is None else self._low_rank.low(rows)

    @property
    def grad_factors(self) -> list[Tensor]:
        """Gradients of the adapter's two matrices; empty where there is none."""
        return [] if self._low_rank is None else self._low_rank.gradients


class _Projections(torch.autograd.Function):
    """Projections of one input. `parts` are weight, bias, A and B of each; `settings` those of its adapter, or None."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        normed: Normed | None,
        settings: Sequence[Settings | None],
        rotary: Rotary | None,
        *parts: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.autocast, ctx.settings, ctx.rotary = autocast_dtype(x_ND), settings, rotary
        low_ranks = _low_ranks(settings, parts, ctx.autocast)
        outs, lows = [], []
        with torch.autocast(x_ND.device.type, enabled=False):
            cast_ND = _cast(x_ND, ctx.autocast)
            for index, low_rank in enumerate(low_ranks):
                weight, bias = (None if p is None else _cast(p, ctx.autocast) for p in parts[4 * index : 4 * index + 2])
                out_NO = F.linear(cast_ND, cast(Tensor, weight), bias)
                if low_rank is not None:
                    lows.append(low_NR := low_rank.low(len(x_ND)))
                    for tile in tiles(x_ND):
                        low_rank.add(out_NO[tile], x_ND[tile], low_NR[tile])
                if rotary is not None and index < 2:
                    rotary.turn_(out_NO)
                outs.append(out_NO)
        source = Input(x_ND, normed)
        ctx.sizes, ctx.offset = (len(source.kept), len(lows)), 0.0 if normed is None else normed.offset
        ctx.save_for_backward(*source.kept, *lows, *parts)
        return tuple(outs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        kept, lows, parts = _split(ctx.saved_tensors, ctx.sizes)
        x, low_ranks, low = Input.of(kept, ctx.offset), _low_ranks(ctx.settings, parts, ctx.autocast), iter(lows)
        if ctx.rotary is not None:
            grads = tuple(grad if index == 2 else grad.clone() for index, grad in enumerate(grads))
            for grad_NO in grads[:2]:
                ctx.rotary.turn_(grad_NO, back=True)
        grad_x_ND = None
        if ctx.needs_input_grad[0]:
            for grad_NO, weight in zip(grads, parts[::4], strict=True):
                weight = _cast(weight, ctx.autocast)
                grad_x_ND = grad_NO @ weight if grad_x_ND is None else grad_x_ND.addmm_(grad_NO, weight)
        pairs = [(grad, rank, next(low)) for grad, rank in zip(grads, low_ranks, strict=True) if rank is not None]
        for tile in tiles(grads[0]) if pairs else ():
            x_ND = x[tile]
            for grad_NO, rank, low_NR in pairs:
                rank.backward(grad_NO[tile], x_ND, low_NR[tile], None if grad_x_ND is None else grad_x_ND[tile])
        small: list[Tensor | None] = []
        wanted = ctx.needs_input_grad[4:]
        whole_ND = _cast(x[:], ctx.autocast) if any(wanted[::4]) else x[:0]
        for index, (grad_NO, low_rank) in enumerate(zip(grads, low_ranks, strict=True)):
            small.append(grad_NO.t() @ whole_ND if wanted[4 * index] else None)
            small.append(grad_NO.sum(0) if wanted[4 * index + 1] else None)
            small.extend([None, None] if low_rank is None else low_rank.gradients)
        small = [g if g is None else g.to(p.dtype) for g, p in zip(small, parts, strict=True)]
        grad_x_ND = None if grad_x_ND is None else grad_x_ND.to(kept[0].dtype)
        return grad_x_ND, None, None, None, *small


def _split(saved: Sequence[Any], sizes: tuple[int, int]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    first, second = sizes[0], sum(sizes)
    return saved[:first], saved[first:second], saved[second:]


def _low_ranks(
    settings: Sequence[Settings | None], parts: Sequence[Any], autocast: torch.dtype | None
) -> list[LowRank | None]:
    """The adapters of projections whose weight, bias, A and B are `parts`."""
    each = zip(settings, parts[2::4], parts[3::4], strict=True)
    return [None if setting is None else LowRank(a, b, setting, autocast) for setting, a, b in each]
