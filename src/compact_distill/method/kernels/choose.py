"""The attention that transformers calls in each layer, and which kernel does it: the first that was tried and agrees.

Registered with transformers under `IMPLEMENTATION`, so every supported model calls it. Called without a plan
(generation, somebody else's forward), it is transformers' own `sdpa`.

A kernel is tried, forward and backward, at the student's own device, precision, heads and head size, against the plain
definition in fp64 (`trial`). One that cannot be built, fails or differs is passed over, which is said once.
`COMPACT_ATTENTION=loop|flex|varlen` takes one untried.

Shape letters: T rows, S rows of one segment, P places of its path (context, then own), H query heads, G key heads, D
head size.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from compact_distill.errors import ConfigError, StudentError
from compact_distill.method.kernels import attention
from compact_distill.method.kernels.attention import AttentionPlan, Kernel
from compact_distill.method.packing import Layout

logger = logging.getLogger(__name__)

IMPLEMENTATION = "compact"
FORCE = "COMPACT_ATTENTION"
_FORCIBLE = ("loop", "flex", "varlen")  # these read every row; `flash` knows no windows
_HALF = (torch.float16, torch.bfloat16)
_FULL = (torch.float32, torch.float64)

# Largest error of a row, relative to the rows' root mean square, that rounding explains; a key too many or too few
# costs a tenth and more.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_TF32 = 1e-2  # where the user lets fp32 products round to TF32
_TRIAL_WINDOW = 9


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    compact_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in each layer; query [B, H, T, D], key and value [B, G, T, D].

    Returns:
        The attention's output, [B, T, H, D], and None for the weights that nobody asked for.
    """
    if compact_plan is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            sliding_window=sliding_window,
            **kwargs,
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if compact_plan.remember:
        compact_plan.memory[layer] = (key.detach(), value.detach())
    if compact_plan.first:
        key, value = (torch.cat(pair, dim=2) for pair in zip(compact_plan.memory[layer], (key, value), strict=True))
    if query.dtype != torch.float64 and torch.is_autocast_enabled(query.device.type):
        # Rotary embeddings are fp32 under autocast; attention is not (as scaled_dot_product_attention has it).
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    kernel = choose_kernel(query, key, compact_plan, sliding_window)
    return kernel(query, key, value, compact_plan, scaling, sliding_window), None


class Case(NamedTuple):
    """What a kernel's fitness depends on; `windowed`: some query's window ends before its path begins."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    key_heads: int
    head_size: int
    windowed: bool

    def __str__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        window = ", sliding window" if self.windowed else ""
        return f"{self.device.type} in {precision}, {self.heads}/{self.key_heads} heads of {self.head_size}{window}"


def choose_kernel(query: Tensor, key: Tensor, plan: AttentionPlan, window: int | None) -> Kernel:
    """The kernel for a row: query [1, H, T, D], key [1, G, T, D].

    Raises:
        ConfigError: COMPACT_ATTENTION names no kernel.
        StudentError: no kernel computes attention rightly on this machine.
    """
    windowed = window is not None and window < plan.longest
    case = Case(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3], windowed)
    return kernel_named(chosen_name(case))


def chosen_name(case: Case) -> str:
    """Name of the kernel for a case; raises as `choose_kernel` does."""
    return _chosen(case, forced_kernel())


def forced_kernel() -> str | None:
    """The kernel that the environment wants, or None.

    Raises:
        ConfigError: there is no such kernel.
    """
    name = os.environ.get(FORCE) or None
    if name is not None and name not in _FORCIBLE:
        raise ConfigError(f"{FORCE} must be one of {', '.join(_FORCIBLE)}, got {name!r}; unset it to have it chosen")
    return name


@contextlib.contextmanager
def force_kernel(name: str | None) -> Iterator[None]:
    """Have one kernel used for a while, untried; None: leave the choice as it is."""
    before = os.environ.get(FORCE)
    if name is not None:
        os.environ[FORCE] = name
    try:
        yield
    finally:
        if name is not None:
            os.environ.pop(FORCE)
            if before is not None:
                os.environ[FORCE] = before


def kernel_named(name: str) -> Kernel:
    """The kernel of that name: varlen, flex, flash or loop."""
    kernel: Kernel = getattr(attention, f"{name}_kernel")
    return kernel


def candidates(case: Case) -> list[str]:
    """Kernels that may serve a case, in the order in which they are tried: fastest first."""
    if case.device.type == "cuda":
        return ["varlen", "flex", "loop"] if case.dtype in _HALF else ["flex", "loop"]
    # Merging parts in half precision would round twice, and parts know no windows.
    flash = case.device.type == "cpu" and case.dtype in _FULL and not case.windowed
    return ["flash", "loop"] if flash else ["loop"]


@lru_cache(maxsize=64)
def _chosen(case: Case, forced: str | None) -> str:
    """Name of the kernel for a case. Cached: tried once, said once."""
    if forced is not None:
        logger.info("attention on %s: %s, as %s says, untried", case, forced, FORCE)
        return forced
    passed_over: list[str] = []
    for name in candidates(case):
        trial = try_kernel(kernel_named(name), case)
        if trial.failure is None:
            if passed_over:
                logger.warning("attention on %s: %s; using %s", case, "; ".join(passed_over), name)
            return name
        passed_over.append(f"{name} is passed over ({trial.failure})")
    raise StudentError(
        f"no attention kernel computes what it should on {case}: {'; '.join(passed_over)}; see `compact doctor`, or "
        "try another torch or precision"
    )


# ---- the trial


@dataclass(frozen=True)
class Tried:
    """How a kernel did: largest relative errors of its output and of its gradients, and why it cannot be used.

    An error is NaN where its run did not end; `raised`: the kernel, or its backward, cannot run here.
    """

    error: float
    gradient_error: float
    failure: str | None
    raised: bool = False


def try_kernel(kernel: Kernel, case: Case) -> Tried:
    """Run a kernel on a small row, forward and backward, and compare with the definition in fp64.

    The forward is run first and alone, so that a fault in it is seen also where there is no backward (FlexAttention on
    a CPU). It leaves no trace in what is going on around it: a forward under an activation checkpoint, autocast,
    inference.
    """
    allowed = _TOLERANCE[case.dtype]
    if case.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        allowed = _TF32
    found: list[float] = []
    try:
        # A checkpoint counts the tensors that are saved; these are not its own.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(case.device.type, enabled=False),
            saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
        ):
            for what, error in zip(("output", "gradient"), _errors(kernel, case), strict=True):
                found.append(error)
                if not error <= allowed:  # NaN is not
                    failure = f"its {what} is off by {error:.1e}, more than {allowed:.0e}"
                    return Tried(found[0], found[1] if len(found) > 1 else float("nan"), failure)
    except Exception as error:  # compilers and drivers raise anything
        why = (str(error).strip().splitlines() or [""])[0][:160]
        forward = found[0] if found else float("nan")
        return Tried(forward, float("nan"), f"{type(error).__name__}: {why}", raised=True)
    return Tried(found[0], found[1], None)


def _errors(kernel: Kernel, case: Case) -> Iterator[float]:
    """Largest relative error of what the kernel yields, then that of its gradients."""
    row, follow = _trial_plans()
    window = _TRIAL_WINDOW if case.windowed else None
    scale = 1.2 * case.head_size**-0.5  # not the usual one, so that it must be heeded
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int, rows: int) -> Tensor:
        return torch.randn(1, heads, rows, case.head_size, generator=generator).to(case.dtype)

    rows = row.segments[-1].stop
    inputs = [draw(case.heads, rows), draw(case.key_heads, rows), draw(case.key_heads, rows)]
    upstream = draw(case.heads, rows).transpose(1, 2)
    # Probes: queries of a second row, over keys of both, without gradient.
    own = follow.own[-1].stop - follow.own[0].start
    probes = [draw(case.heads, own), draw(case.key_heads, rows + own), draw(case.key_heads, rows + own)]

    def outputs(function: Kernel, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        with torch.no_grad():
            return [
                function(query.to(device, dtype), key.to(device, dtype), value.to(device, dtype), plan, scale, window)
                for (query, key, value), plan in ((inputs, row), (probes, follow))
            ]

    def gradients(function: Kernel, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        query, key, value = leaves = [tensor.detach().to(device, dtype).requires_grad_() for tensor in inputs]
        out = function(query, key, value, row, scale, window)
        return list(torch.autograd.grad(out, leaves, upstream.to(device, dtype)))

    for read in (outputs, gradients):
        found = read(kernel, case.device, case.dtype)
        exact = read(plain_attention, torch.device("cpu"), torch.float64)
        yield max(_row_error(one, other) for one, other in zip(found, exact, strict=True))


@lru_cache(maxsize=1)
def _trial_plans() -> tuple[AttentionPlan, AttentionPlan]:
    """A row with all that rows have, longer than a block of FlexAttention (128), and one that follows it."""
    row = Layout(())
    prompt = row.add_segment(range(37), ())
    branch = row.add_segment(range(60), ((prompt, 37),))
    row.add_segment(range(1), ((prompt, 37),))
    row.add_segment(range(5), ((prompt, 37), (branch, 21)))
    row.add_segment(range(5), ((prompt, 37), (branch, 33)))
    other = row.add_segment(range(1), ())
    row.add_segment(range(90), ((other, 1),))
    follow = Layout((), offset=len(row.tokens), segments=list(row.segments))
    follow.add_segment(range(6), ((prompt, 37), (branch, 13)))
    follow.add_segment(range(6), ((prompt, 37), (branch, 29)))
    follow.add_segment(range(3), ((other, 1),))
    return AttentionPlan.of(row), AttentionPlan(follow.segments, first=len(row.segments))


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float | None, window: int | None
) -> Tensor:
    """The definition, segment by segment: each query over the keys of its own path, up to itself; [1, T, H, D]."""
    shared = query.shape[1] // key.shape[1]
    offset, outputs = plan.own[0].start, []
    for segment in plan.own:
        path = [plan.segments[i].start + t for i, seen in segment.context for t in range(seen)]
        path += range(segment.start, segment.stop)
        key_HPD, value_HPD = (x[0, :, path].repeat_interleave(shared, dim=0) for x in (key, value))
        query_HSD = query[0, :, segment.start - offset : segment.stop - offset]
        logits_HSP = query_HSD @ key_HPD.mT * (query.shape[3] ** -0.5 if scale is None else scale)
        distance_SP = torch.arange(len(path))[len(path) - segment.length :, None] - torch.arange(len(path))
        seen_SP = (distance_SP >= 0) & (distance_SP < (window or len(path)))
        logits_HSP = logits_HSP.masked_fill(~seen_SP, -torch.inf)
        outputs.append(logits_HSP.softmax(-1) @ value_HPD)
    return torch.cat(outputs, dim=1).transpose(0, 1)[None]


def _row_error(found: Tensor, exact: Tensor) -> float:
    """Largest error of a row, [1, T, ...] or [1, ..., T, D], relative to the rows' root mean square."""
    found, exact = found.cpu().double()[0], exact[0]
    if found.shape != exact.shape:
        return float("inf")
    norms = exact.square().sum(-1)
    return float(((found - exact).square().sum(-1).max() / norms.mean()).sqrt())


def register() -> None:
    """Make `attn_implementation="compact"` known to transformers, with sdpa's mask for ordinary calls.

    Raises:
        ConfigError: COMPACT_ATTENTION names no kernel.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    forced_kernel()
    AttentionInterface.register(IMPLEMENTATION, segment_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
