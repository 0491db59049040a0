"""Whether this machine computes what docs/definitions.md says: `compact doctor`.

Every kernel is run alone against its definition, and tiny students of every supported architecture are read in one
pass, in two phases and with probes, and compared with the plain reading (`plain.py`): losses, beliefs, projections,
distributions and gradients.

Students have random weights that every precision holds exactly. In fp64 and fp32 what differs by more than rounding is
wrong; in half precision, what differs from fp64 by more than three times what the plain reading in that precision does.

Shape letters: B problems, K teachers, T tokens, P points at which the belief is read, H query heads, G key heads (in
gold_GV the rows that predict the gold answer), D width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compact_distill.errors import StudentError
from compact_distill.method.forward import PassOptions, attach
from compact_distill.method.kernels import choose, head, layers, lora
from compact_distill.method.kernels.choose import Case, try_kernel
from compact_distill.method.loss import aggregate
from compact_distill.method.outputs import StudentOutputs
from compact_distill.method.passes import plan_jobs, read_job
from compact_distill.method.plain import Student, build, exact_norms, problems, read_plainly, students, students_like
from compact_distill.students.load import adapter_base, architecture_problems

AGREES, DIFFERS, NOT_HERE, NOT_REACHED = "agrees", "differs", "not here", "not reached"
# Largest relative error of a kernel that rounding explains.
_KERNEL_ALLOWED = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
HEAD_SIZES = (64, 80, 96, 128, 256)
# Largest error of a value, and of a parameter's gradient, that rounding explains.
_ALLOWED = {torch.float64: (1e-12, 1e-10), torch.float32: (1e-5, 1e-4)}
_HALF_FACTOR, _HALF_FLOOR = 3.0, 5e-3
_CONSISTENCY = 0.5

Values = dict[str, Tensor]


# ---- each kernel alone. Shapes: N rows, D width, F inner width, O outputs, R rank, V vocabulary.


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
                verdict, note = NOT_HERE if trial.raised else DIFFERS, f"{case}: {trial.failure[:80]}"
                if trial.raised:
                    return Finding(name, precision(dtype), verdict, note=note, seconds=time.perf_counter() - start)
            worst = [max(worst[0], trial.error), max(worst[1], trial.gradient_error)]
    return Finding(name, precision(dtype), verdict, worst[0], worst[1], time.perf_counter() - start, note)


def check_other_kernels(dtype: torch.dtype, device: torch.device) -> Iterator[Finding]:
    """The LM head, norms, gated MLPs and LoRA, each against the plain formula in fp64."""
    for name, pair in (("head", _head), ("norm", _norm), ("mlp", _mlp), ("lora", _lora)):
        start = time.perf_counter()
        errors = [_errors(*pair(dtype, device, variant)) for variant in (False, True)]
        worst = [max(column) for column in zip(*errors, strict=True)]
        fine = max(worst) <= _KERNEL_ALLOWED[dtype]
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
    inputs = _draw(dtype, device, (layers.TILE_ROWS + 7, 24), (40, 24), (40, 24), (24, 40))  # two tiles

    def plain(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return (silu(x @ gate.t()) * (x @ up.t())) @ down.t()

    def ours(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        if lean:  # the factors are computed again for the backward
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

    def ours(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return lora.project(x, [(weight, None, lora.Adapter(a, b, *settings))])[0]

    return ours, plain, inputs


# ---- whole students


def observe(model: Any, outputs: Sequence[StudentOutputs]) -> tuple[Values, Values]:
    """What outputs say of each branch, and the gradient of a loss with given, unequal weights by every parameter."""
    values: Values = {}
    total = torch.zeros((), device=outputs[0].nll_BKT.device)
    for out in outputs:
        difficulty_BK = out.nll_BKT.sum(-1) / out.length_BK.clamp_min(1)
        weights_BK = out.present_BK * torch.arange(1.0, 1 + out.shape[1], device=total.device, dtype=out.nll_BKT.dtype)
        weights_BK = weights_BK / weights_BK.sum(1, keepdim=True)
        total = total + aggregate(difficulty_BK, weights_BK, out.gold_logprob, out.problems, _CONSISTENCY).total
        for b, problem in enumerate(out.problems):
            for place, k in enumerate(problem.present):
                values |= {
                    f"loss of tokens {problem.id}{k}": out.nll_BKT[b, k, : out.length_BK[b, k]].detach(),
                    f"belief {problem.id}{k}": out.belief_BKP[b, k][out.point_BKP[b, k]],
                    f"query {problem.id}{k}": out.query_BKHD[b, k],
                    f"key {problem.id}{k}": out.key_BKGD[b, k],
                    f"gold answer {problem.id}{k}": out.gold_logprob[b][place].detach(),
                }
    model.zero_grad(set_to_none=True)
    total.backward()
    gradients = {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return values | {"loss": total.detach()}, gradients


def compare(found: tuple[Values, Values], exact: tuple[Values, Values]) -> tuple[float, float, str]:
    """Largest error of a value, of a gradient, and which is farthest off; infinite where something is missing."""
    worst, at = [], []
    for mine, theirs in zip(found, exact, strict=True):
        if mine.keys() != theirs.keys() or any(mine[n].shape != theirs[n].shape for n in theirs):
            return float("inf"), float("inf"), "other values than the plain reading has"
        scale = max(float(value.double().norm()) for value in theirs.values())
        errors = {}
        for name, value in theirs.items():
            off = mine[name].double() - value.double()
            size = value.double().norm() + 1e-3 * scale
            errors[name] = float(off.norm() / size) if torch.isfinite(off).all() else float("inf")
        worst.append(max(errors.values()))
        at.append(max(errors, key=lambda name: errors[name]))
    return worst[0], worst[1], f"{at[0]}; {at[1]}"


MODES = {
    "one pass": (PassOptions(), 10_000),
    "two-phase": (PassOptions(), 2),
    "probes": (PassOptions(max_probes=3), 10_000),
}


def check_student(
    student: Student, dtypes: Sequence[torch.dtype], device: torch.device, kernel: str | None = None
) -> Iterator[Finding]:
    """Compare each way of reading with the plain one, in each precision; one finding a mode and precision."""
    given = problems(student.fields["vocab_size"])
    plain = build(student, torch.float64, device)
    exact_norms(plain)
    truth = {m: observe(plain, [read_plainly(plain, given, options)]) for m, (options, _) in MODES.items()}
    for dtype in dtypes:
        half = dtype not in _ALLOWED
        rough = build(student, dtype, device) if half else None
        model = build(student, dtype, device)
        attach(model)
        for mode, (options, budget) in MODES.items():
            start = time.perf_counter()
            allowed = _ALLOWED.get(dtype, (0.0, 0.0))
            if rough is not None:
                off = compare(observe(rough, [read_plainly(rough, given, options)]), truth[mode])
                allowed = (_HALF_FACTOR * off[0] + _HALF_FLOOR, _HALF_FACTOR * off[1] + _HALF_FLOOR)
            with choose.force_kernel(kernel):
                outputs = [read_job(model, job, options) for job in plan_jobs(given, options, budget)]
                found = observe(model, outputs)
            error, gradient_error, note = compare(found, truth[mode])
            fine = error <= allowed[0] and gradient_error <= allowed[1]
            what = f"{student.name}, {mode}" + (f", {kernel}" if kernel else "")
            seconds = time.perf_counter() - start
            verdict = AGREES if fine else DIFFERS
            yield Finding(what, precision(dtype), verdict, error, gradient_error, seconds, "" if fine else note)


def examine(device: torch.device, student: str | Path | None = None, seconds: float = 110.0) -> Iterator[Finding]:
    """All findings on a device, as they come; those for which no time is left say so.

    Args:
        device: where to run.
        student: also at this student's own shape, first.
        seconds: after so many, no further check is started.
    """
    deadline = time.perf_counter() + seconds
    cpu = device.type == "cpu"
    dtypes = [torch.float64, torch.float32, torch.bfloat16] if cpu else [torch.bfloat16, torch.float16, torch.float32]
    own = [] if student is None else students_like(student)
    shapes = [_heads(one) for one in own[:1]] or [(4, 2, size) for size in HEAD_SIZES] + [(3, 3, 64), (9, 3, 64)]
    checks: list[tuple[str, str, Callable[[], Iterator[Finding]]]] = []
    for dtype in dtypes:
        name = precision(dtype)
        checks.append(("head, norm, mlp, lora", name, partial(check_other_kernels, dtype, device)))
        for kernel in ("flash", "loop", "varlen", "flex"):
            if kernel != "flash" or (cpu and dtype != torch.bfloat16):
                checks.append((kernel, name, partial(_alone, kernel, dtype, device, shapes)))
    tiny = own or students()
    checks += [(one.name, "", partial(check_student, one, dtypes, device)) for one in tiny]
    checks.append((f"{tiny[0].name}, loop", "", partial(check_student, tiny[0], dtypes, device, "loop")))
    for what, name, check in checks:
        if time.perf_counter() > deadline:
            yield Finding(what, name, NOT_REACHED, note=f"{seconds:.0f} s were over")
        else:
            yield from check()


def _alone(
    kernel: str, dtype: torch.dtype, device: torch.device, shapes: Sequence[tuple[int, int, int]]
) -> Iterator[Finding]:
    yield check_attention(kernel, dtype, device, shapes)


def _heads(student: Student) -> tuple[int, int, int]:
    fields = student.fields
    heads = fields["num_attention_heads"]
    size = fields.get("head_dim") or fields["hidden_size"] // heads
    return heads, fields.get("num_key_value_heads") or heads, size


def training_uses(device: torch.device, student: str | Path | None = None) -> dict[str, str]:
    """The kernel that training takes in the device's usual precision, by kind of layer."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    own = students_like(student)[0] if student is not None else None
    heads = _heads(own) if own is not None else (4, 2, 64)
    names = {}
    for kind, windowed in (("full attention", False), ("sliding windows", True)):
        if not windowed or own is None or own.fields.get("sliding_window"):
            case = Case(device, dtype, *heads, windowed)
            names[f"{kind}, {precision(dtype)}"] = choose.chosen_name(case)
    return names


def require_student(student: str | Path) -> None:
    """Refuse a student whose config cannot be read, or whose architecture is not supported.

    Raises:
        StudentError: why.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(adapter_base(student) or student, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise StudentError([f"student {student}: its config cannot be read ({first}); name a hub model or a folder"])
    if wrong := architecture_problems(config):
        raise StudentError(wrong)


def heading() -> str:
    """The table's first line."""
    return f"{'':30}{'':6}{'verdict':13}{'value off':>10}{'gradient off':>14}{'seconds':>9}"


def line(finding: Finding) -> str:
    """A finding as a line of the table."""
    ran = finding.verdict in (AGREES, DIFFERS)
    numbers = f"{finding.error:10.0e}{finding.gradient_error:14.0e}" if ran else " " * 24
    note = f"   {finding.note}" if finding.note else ""
    return f"{finding.what:30}{finding.dtype:6}{finding.verdict:13}{numbers}{finding.seconds:9.1f}{note}".rstrip()


def summary(findings: Sequence[Finding], uses: dict[str, str]) -> str:
    """One sentence: how many checks agree, and which kernels training takes."""
    count = {v: sum(f.verdict == v for f in findings) for v in (AGREES, DIFFERS, NOT_HERE, NOT_REACHED)}
    parts = [f"{number} {verdict}" for verdict, number in count.items() if number]
    return f"{', '.join(parts)}; training uses " + ", ".join(f"{name} ({kind})" for kind, name in uses.items())
