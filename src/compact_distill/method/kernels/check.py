"""Each kernel alone against its definition in fp64, forward and backward: the first part of `compact doctor`.

Shapes: N rows, D width, F inner width, O outputs, R rank, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compact_distill.method.kernels import choose, head, layers, lora
from compact_distill.method.kernels.choose import Case, try_kernel

AGREES, DIFFERS, NOT_HERE, NOT_REACHED = "agrees", "differs", "not here", "not reached"
# Largest relative error that rounding explains.
_ALLOWED = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def precision(dtype: torch.dtype) -> str:
    """Short name of a precision."""
    return _PRECISIONS[dtype]


@dataclass(frozen=True)
class Finding:
    """One line of the table: what was checked, in which precision, and what came of it.

    `error` and `gradient_error` are the largest ones found; `note` says where, or why it could not run here.
    """

    what: str
    dtype: str
    verdict: str
    error: float = float("nan")
    gradient_error: float = float("nan")
    seconds: float = 0.0
    note: str = ""


def check_attention(
    name: str, dtype: torch.dtype, device: torch.device, shapes: Sequence[tuple[int, int, int]]
) -> Finding:
    """An attention kernel at each (heads, key heads, head size), with window and without where it knows windows."""
    start, worst, note = time.perf_counter(), [0.0, 0.0], ""
    verdict = AGREES
    for heads, key_heads, size in shapes:
        for windowed in (False,) if name == "flash" else (False, True):
            case = Case(device, dtype, heads, key_heads, size, windowed)
            trial = try_kernel(choose.kernel_named(name), case)
            if trial.failure is not None:
                ran = trial.error == trial.error  # not NaN
                verdict, note = DIFFERS if ran else NOT_HERE, f"{case}: {trial.failure[:80]}"
                if not ran:
                    return Finding(name, precision(dtype), verdict, note=note, seconds=time.perf_counter() - start)
            worst = [max(worst[0], trial.error), max(worst[1], trial.gradient_error)]
    return Finding(name, precision(dtype), verdict, worst[0], worst[1], time.perf_counter() - start, note)


def check_other_kernels(dtype: torch.dtype, device: torch.device) -> Iterator[Finding]:
    """The LM head, norms, gated MLPs and LoRA, each against the plain formula in fp64."""
    for name, pair in (("head", _head), ("norm", _norm), ("mlp", _mlp), ("lora", _lora)):
        start = time.perf_counter()
        errors = [_errors(*pair(dtype, device, variant)) for variant in (False, True)]
        worst = [max(column) for column in zip(*errors, strict=True)]
        fine = max(worst) <= _ALLOWED[dtype]
        verdict = AGREES if fine else DIFFERS
        yield Finding(name, precision(dtype), verdict, worst[0], worst[1], time.perf_counter() - start)


Function = Callable[..., Tensor]


def _errors(ours: Function, plain: Function, inputs: Sequence[Tensor]) -> tuple[float, float]:
    """Relative errors of an output and of the gradients of its inputs."""
    found = []
    for function, dtype in ((ours, None), (plain, torch.float64)):
        leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
        out = function(*leaves)
        upstream = torch.cos(torch.arange(out.numel(), device=out.device)).view_as(out).to(out.dtype)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, upstream)])
    errors = [
        float((one.double() - exact).norm() / exact.norm()) if torch.isfinite(one).all() else float("inf")
        for one, exact in zip(*found, strict=True)
    ]
    return errors[0], max(errors[1:])


def _draw(dtype: torch.dtype, device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(*s, generator=generator) / s[-1] ** 0.25).to(device, dtype) for s in shapes]


def _head(dtype: torch.dtype, device: torch.device, frozen: bool) -> tuple[Function, Function, list[Tensor]]:
    rows, whole, vocabulary = 2 * head.CHUNK_ROWS + 5, 3, 97
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(vocabulary, (rows,), generator=generator).to(device)
    gold = torch.randint(vocabulary, (rows, 2), generator=generator).to(device)
    hidden, weight = _draw(dtype, device, (rows + whole, 24), (vocabulary, 24))

    def ours(hidden: Tensor, *trained: Tensor) -> Tensor:
        matrix = trained[0] if trained else weight
        logprob, belief, gold_GV = head.read_head(hidden, matrix, None, labels, gold)
        return torch.cat([logprob, belief, gold_GV.flatten()])

    def plain(hidden: Tensor, *trained: Tensor) -> Tensor:
        matrix = trained[0] if trained else weight.double()
        logprob = (hidden @ matrix.t()).log_softmax(-1)
        belief = logprob[:rows].gather(1, gold).mean(1).detach()
        return torch.cat([logprob[:rows].gather(1, labels[:, None])[:, 0], belief, logprob[rows:].flatten()])

    return ours, plain, [hidden] if frozen else [hidden, weight]


def _norm(dtype: torch.dtype, device: torch.device, gemma: bool) -> tuple[Function, Function, list[Tensor]]:
    offset = 1.0 if gemma else 0.0

    def plain(states: Tensor, weight: Tensor) -> Tensor:
        return (offset + weight) * states * (states.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    return lambda s, w: layers.rms_norm(s, w, 1e-6, offset), plain, _draw(dtype, device, (50, 24), (24,))


def _mlp(dtype: torch.dtype, device: torch.device, lean: bool) -> tuple[Function, Function, list[Tensor]]:
    silu = nn.functional.silu
    inputs = _draw(dtype, device, (lora.TILE_ROWS + 7, 24), (40, 24), (40, 24), (24, 40))

    def plain(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return (silu(x @ gate.t()) * (x @ up.t())) @ down.t()

    def ours(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        if lean:
            return layers.gated_mlp(x, gate, up, down, silu)
        return layers.gated(silu, x @ gate.t(), x @ up.t()) @ down.t()

    return ours, plain, inputs


def _lora(dtype: torch.dtype, device: torch.device, dropout: bool) -> tuple[Function, Function, list[Tensor]]:
    settings: lora.Settings = (1.5, 20_000 if dropout else 0, 7)
    inputs = _draw(dtype, device, (lora.TILE_ROWS + 7, 24), (4, 24), (40, 4))
    (weight,) = _draw(dtype, device, (40, 24))
    masks = lora.LowRank(inputs[1], inputs[2], settings, None)
    keep = [masks.keep(inputs[0][tile]) for tile in lora.tiles(inputs[0])]
    left = settings[1] / 2**16

    def plain(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        dropped = x if keep[0] is None else x * torch.cat(keep).double() / (1 - left)  # type: ignore[arg-type]
        return x @ weight.double().t() + settings[0] * (dropped @ a.t()) @ b.t()

    return lambda x, a, b: lora.adapted_linear(x, weight, None, a, b, settings), plain, inputs
