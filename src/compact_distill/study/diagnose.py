"""Before any training: which rationales help this student, and which scores know it.

A rationale's effectiveness is the fall of the validation loss (mean nats a token of verified rationales of other
problems) after one normalised gradient step on it alone, taken back afterwards. Its cosine is that of its gradient
with the validation gradient. Both are of the parameters that training would train.

    theta' = theta - eta g_k / |g_k|        effectiveness_k = L_val(theta) - L_val(theta')

eta is a tenth of the length of AdamW's first step at the configured rate, learning_rate * sqrt(parameters with a
gradient): a step along the gradient itself goes further down than one of signs, and shall not overshoot.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compact_distill.answers import Verifier
from compact_distill.config.models import CompatibilityConfig, RunConfig
from compact_distill.data import load_instances
from compact_distill.errors import DataError
from compact_distill.method.encode import EncodedProblem
from compact_distill.method.forward import PassOptions, attach
from compact_distill.method.passes import plan_jobs, read_job
from compact_distill.method.score import score
from compact_distill.method.scores import FURTHER, difficulty
from compact_distill.records import LESS_IS_BETTER, Instance, ScoreRow, Verdict
from compact_distill.runs.environment import accelerator
from compact_distill.runs.files import atomic_write
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import duration, progress, say, text_table
from compact_distill.statistics import FEWEST, area, bootstrap_mean, bounded_mean, rank_correlation
from compact_distill.students.load import load_student
from compact_distill.study.material import evenly
from compact_distill.study.page import diagnosis_page
from compact_distill.training.prepare import Prepared, prepare
from compact_distill.training.run import adapter_settings

FORMAT = 1
_OPTIONS = PassOptions(gold=False)
_PENALTIES = tuple(10.0**power for power in range(-2, 4))
_FOLDS = 5
_STEP = 0.1  # of AdamW's first
_SCORE_READINGS = 4  # of a problem for its scores: three settings, and the probes of two of them


@dataclass(frozen=True)
class Effect:
    """What one rationale does to the student: fall of the validation loss in nats a token, cosine of gradients."""

    effectiveness: float
    cosine: float


def diagnose(config: RunConfig, problems: int = 12, validation: int = 8) -> dict[str, Any]:
    """Measure a sample of rationales and what predicts their effect.

    Args:
        config: the run that would be trained.
        problems: how many problems' rationales are tried.
        validation: how many other problems' verified rationales the loss is measured on.

    Returns:
        What `diagnosis.json` holds: a row for each rationale, and the summary of `analyse`.

    Raises:
        InputError: everything that is wrong with the run, or too few problems with right rationales.
    """
    prepared = _with_rationales(prepare(config.model_copy(update={"example": "problem"})))
    with Verifier() as verifier:
        encoded = [prepared.encoder(instance, verifier) for instance in prepared.instances]
    sample, held = choose(encoded, problems, validation)
    model, tokenizer = load_student(
        config.student, dtype="auto" if config.lora else torch.float32, device=accelerator()
    )
    tried, right = [encoded[i] for i in sample], [encoded[i] for i in held]
    _tell_cost(model, tried, right, config.max_tokens_per_pass)
    rows = _scores(model, tokenizer, [prepared.instances[i] for i in sample], config)
    model = _with_adapter(model, prepared)
    effects = measure(model, tried, right, config.train["learning_rate"], config.max_tokens_per_pass)
    for row in rows:
        row.update(asdict(effects[row["problem"]][row["index"]]))
        verdict = next(p for p in tried if p.id == row["problem"]).verdicts[row["index"]]
        row["right"] = None if verdict is None else verdict == Verdict.CORRECT
    own = config.compatibility
    called = {"consensus": {"joint": "consensus", "heads": "consensus_heads"}[own.attention],
              "adaptability": f"adaptability_{own.estimator}"}  # fmt: skip
    configured = {called.get(name, name): value for name, value in prepared.scorer.coefficients.items()}
    return {
        "format": FORMAT, "student": config.student, "problems": len(sample), "validation": len(held),
        "step": _STEP, "rationales": rows, **analyse(rows, configured, prepared.scorer.less_is_better),
    }  # fmt: skip


def choose(encoded: Sequence[EncodedProblem], problems: int, validation: int) -> tuple[list[int], list[int]]:
    """Indices of problems to try (two rationales at least), and of others with a right one to validate on.

    Raises:
        DataError: there are too few of either.
    """
    useful = [i for i, problem in enumerate(encoded) if len(problem.present) > 1]
    sample = evenly(useful, problems)
    others = [i for i, problem in enumerate(encoded) if i not in set(sample) and problem.right]
    held = evenly(others, validation)
    if len(sample) < FEWEST or not held:
        raise DataError(
            f"diagnose needs {FEWEST} problems with several rationales and another one with a right rationale, got "
            f"{len(sample)} and {len(others)} of {len(encoded)}; give more data, or gold answers"
        )
    return sample, held


def work(tried: Sequence[EncodedProblem], held: Sequence[EncodedProblem]) -> int:
    """What a diagnosis reads, in tokens of a forward; one with its backward counts as three.

    Tried problems for their scores, each of their rationales with its backward, and the validation rationales once with
    their backward and after each step.
    """

    def tokens(problem: EncodedProblem, kept: Sequence[int]) -> int:
        return len(problem.prompt) + sum(len(problem.branches[k] or ()) for k in kept)

    validation = sum(tokens(problem, problem.right) for problem in held)
    steps = [(problem, k) for problem in tried for k in problem.present]
    scores = sum(_SCORE_READINGS * tokens(problem, problem.present) for problem in tried)
    return scores + 3 * validation + sum(3 * tokens(problem, (k,)) + validation for problem, k in steps)


def _tell_cost(model: nn.Module, tried: Sequence[EncodedProblem], held: Sequence[EncodedProblem],
               max_tokens: int) -> None:  # fmt: skip
    """Say before the work how long it will take, from one timed reading of a validation rationale."""
    attach(model)
    model.eval()
    one = [_only(held[0], held[0].right[:1])]
    _loss(model, one, max_tokens)  # the first reading pays for what is set up once
    started = time.monotonic()
    _loss(model, one, max_tokens)
    read = len(one[0].prompt) + sum(len(branch) for branch in one[0].branches if branch is not None)
    left = duration(round((time.monotonic() - started) / read * work(tried, held)))
    count = sum(len(problem.present) for problem in tried)
    say(f"diagnose: {count} rationales of {len(tried)} problems take about {left}; --problems N tries fewer or more")


def measure(model: nn.Module, tried: Sequence[EncodedProblem], held: Sequence[EncodedProblem], learning_rate: float,
            max_tokens: int) -> dict[str, dict[int, Effect]]:  # fmt: skip
    """Effect of each present rationale of the tried problems, by the problem's id and the teacher's index.

    The model's trained parameters are the same afterwards, bit for bit; dropout is off.
    """
    attach(model)
    model.eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = [parameter.detach().clone() for parameter in trained]
    jobs = [(problem, k) for problem in tried for k in problem.present]
    right = [_only(problem, problem.right) for problem in held]
    direction, before = _gradient(model, right, trained, max_tokens)
    found: dict[str, dict[int, Effect]] = {}
    with progress("diagnose", len(jobs)) as shown:
        for problem, k in jobs:
            gradient, _ = _gradient(model, [_only(problem, (k,))], trained, max_tokens)
            norm = math.sqrt(sum(float(part.double().square().sum()) for part in gradient))
            entries = sum(int((part != 0).sum()) for part in gradient)
            length = _STEP * learning_rate * math.sqrt(entries)
            with torch.no_grad():
                for parameter, part in zip(trained, gradient, strict=True):
                    parameter.sub_(part.to(parameter.dtype), alpha=length / max(norm, 1e-30))
                after = _loss(model, right, max_tokens)
                for parameter, value in zip(trained, kept, strict=True):
                    parameter.copy_(value)
            found.setdefault(problem.id, {})[k] = Effect(before - after, _cosine(gradient, direction, norm))
            shown.advance()
    return found


def _only(problem: EncodedProblem, kept: Sequence[int]) -> EncodedProblem:
    return replace(problem, branches=tuple(b if k in kept else None for k, b in enumerate(problem.branches)))


def _gradient(
    model: nn.Module, problems: Sequence[EncodedProblem], trained: Sequence[nn.Parameter], max_tokens: int
) -> tuple[list[Tensor], float]:
    """Gradient of the mean over rationales of their nats a token, and that mean; 0 where a parameter has none."""
    count = sum(len(problem.present) for problem in problems)
    total = 0.0
    gradient = [torch.zeros_like(parameter) for parameter in trained]
    for loss in _losses(model, problems, max_tokens):
        parts = torch.autograd.grad(loss / count, trained, allow_unused=True)
        for whole, part in zip(gradient, parts, strict=True):
            if part is not None:
                whole += part
        total += float(loss.detach()) / count
    return gradient, total


@torch.no_grad()
def _loss(model: nn.Module, problems: Sequence[EncodedProblem], max_tokens: int) -> float:
    count = sum(len(problem.present) for problem in problems)
    return sum(float(loss) for loss in _losses(model, problems, max_tokens)) / count


def _losses(model: nn.Module, problems: Sequence[EncodedProblem], max_tokens: int) -> Iterator[Tensor]:
    """Of each pass the sum over rationales of their mean nats a token."""
    device = next(model.parameters()).device
    for job in plan_jobs(problems, _OPTIONS, max_tokens, device):
        yield difficulty(read_job(model, job, _OPTIONS)).sum()


def _cosine(one: Sequence[Tensor], other: Sequence[Tensor], norm: float) -> float:
    product = sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
    length = math.sqrt(sum(float(b.double().square().sum()) for b in other))
    return product / max(norm * length, 1e-30)


def _with_rationales(prepared: Prepared) -> Prepared:
    if prepared.instances:
        return prepared
    path = RunFolder(Path(prepared.config.output), None, {}).training_path
    if not path.exists():
        raise DataError(f"{path} does not exist yet: `compact generate` asks the teachers for their rationales")
    return prepared.with_rationales(load_instances(path))


def _with_adapter(model: Any, prepared: Prepared) -> Any:
    """The model with the parameters that training would train: a new adapter, as the run's seed makes it."""
    config = prepared.config
    if config.lora is None or hasattr(model, "peft_config"):
        return model
    from peft import get_peft_model

    torch.manual_seed(config.seed)
    return get_peft_model(model, adapter_settings(config.lora, None))


def _scores(model: Any, tokenizer: Any, instances: Sequence[Instance], config: RunConfig) -> list[dict[str, Any]]:
    """A row for each present rationale: problem, teacher, weight as configured, and every score."""
    own, further = config.compatibility, dict.fromkeys(FURTHER, 0.0)

    def read(compatibility: CompatibilityConfig, weighting: Any) -> list[ScoreRow]:
        limits = (config.max_length, config.max_tokens_per_pass)
        return list(score(model, tokenizer, instances, compatibility, config.text, *limits, weighting, config.seed,
                          config.answers.infer))  # fmt: skip

    say("diagnose: scores")
    lens = read(own.model_copy(update={"estimator": "lens", "attention": "joint", "extra_scores": further}), "equal")
    probe = read(own.model_copy(update={"estimator": "probe", "attention": "heads", "extra_scores": {}}), "equal")
    configured = read(own, config.weighting)
    rows = []
    for first, second, third in zip(lens, probe, configured, strict=True):
        for k, teacher in enumerate(first.teachers):
            if first.difficulty[k] is None:
                continue
            scores = {
                "consensus": first.consensus[k], "consensus_heads": second.consensus[k],
                "adaptability_lens": first.adaptability[k], "adaptability_probe": second.adaptability[k],
                "difficulty": first.difficulty[k],
                **{name: values[k] for name, values in {**first.extra_scores, **third.extra_scores}.items()},
            }  # fmt: skip
            rows.append({"problem": first.id, "teacher": teacher, "index": k, "weight": third.weights[k], **scores})
    return rows


# ---- what predicts the effect


def analyse(rows: Sequence[Any], configured: Mapping[str, float], turned: Sequence[str] = ()) -> dict[str, Any]:
    """Correlations within problems, areas, redundancy, teachers and a regression, from rows of rationales.

    Args:
        rows: each with `problem`, `teacher`, `right`, `effectiveness`, `cosine`, `weight` and scores by name.
        configured: today's coefficients, by score.
        turned: scores of one's own of which less is better.
    """
    fixed = ("problem", "teacher", "index", "right", "effectiveness", "cosine", "weight")
    names = [name for name in rows[0] if name not in fixed]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["problem"], []).append(row)
    measured, judged = ["weight", "cosine", *names], ["weight", "effectiveness", "cosine", *names]
    return {
        "predicts": {name: _mean(_within(groups, name, "effectiveness"), -1) for name in measured},
        "tells_right": {name: _mean(_areas(groups, name, turned), 0) for name in judged},
        "redundancy": {a: {b: _mean(_within(groups, a, b), -1) for b in names} for a in names},
        "teachers": _teachers(rows),
        "coefficients": {"configured": dict(configured), **_regression(groups, names)},
    }


def _within(groups: Mapping[str, Sequence[Mapping[str, Any]]], one: str, other: str) -> list[float]:
    found = [rank_correlation([r[one] for r in group], [r[other] for r in group]) for group in groups.values()]
    return [value for value in found if value is not None]


def _areas(groups: Mapping[str, Sequence[Mapping[str, Any]]], name: str, turned: Sequence[str]) -> list[float]:
    sign = -1 if name in (*LESS_IS_BETTER, *turned) else 1
    judged = [[row for row in group if row["right"] is not None] for group in groups.values()]
    found = [area([sign * row[name] for row in group], [row["right"] for row in group]) for group in judged]
    return [value for value in found if value is not None]


def _mean(values: Sequence[float], least: int | None = None) -> dict[str, float] | None:
    """Mean over problems with its 95 % interval (of values from `least`, 0 or -1, to 1); None where few have one."""
    if len(values) < FEWEST:
        return None
    found = bootstrap_mean(values, seed=0) if least is None else bounded_mean(values, least, seed=0)
    return {"value": found.value, "low": found.low, "high": found.high, "problems": len(values)}


def _teachers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(row["teacher"] for row in rows))
    own = {name: [row for row in rows if row["teacher"] == name] for name in names}
    return {
        name: {
            "effectiveness": _mean([row["effectiveness"] for row in mine]),
            "weight": float(np.mean([row["weight"] for row in mine])),
            "right": float(np.mean(told)) if (told := [r["right"] for r in mine if r["right"] is not None]) else None,
        }
        for name, mine in own.items()
    }


def _regression(groups: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> dict[str, Any]:
    """Ridge regression of effectiveness on scores, both standardised within problems; its penalty by cross-validation.

    Returns:
        `regression`: coefficient by score; `explained`: share of the variance of problems left out that it explains
        (below 0: nothing); `penalty`.
    """
    parts = []
    for group in groups.values():
        if len(group) > 1:
            columns = [_standard([row[name] for row in group]) for name in names]
            parts.append((np.stack(columns, axis=1), _standard([row["effectiveness"] for row in group])))
    folds = [fold for i in range(_FOLDS) if (fold := parts[i::_FOLDS])]
    if len(folds) < 2:
        return {"regression": None, "explained": None, "penalty": None}

    def left_out(penalty: float) -> float:
        error = total = 0.0
        for i, fold in enumerate(folds):
            b = _ridge([part for j, other in enumerate(folds) if j != i for part in other], penalty)
            error += sum(float(((y - x @ b) ** 2).sum()) for x, y in fold)
            total += sum(float((y**2).sum()) for _, y in fold)
        return 1 - error / max(total, 1e-30)

    scores = {penalty: left_out(penalty) for penalty in _PENALTIES}
    best = max(scores, key=lambda penalty: scores[penalty])
    found = _ridge(parts, best)
    return {"regression": dict(zip(names, found.tolist(), strict=True)), "explained": scores[best], "penalty": best}


def _standard(values: Sequence[float]) -> Any:
    array = np.asarray(values, dtype=np.float64)
    return (array - array.mean()) / (array.std(ddof=1) + 1e-12) if len(array) > 1 else array * 0


def _ridge(parts: Sequence[tuple[Any, Any]], penalty: float) -> Any:
    x, y = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def describe(document: Mapping[str, Any]) -> list[str]:
    """The diagnosis as lines: what predicts the effect, and which teacher helps."""
    table = [["score", "predicts the effect (95 %)", "right over wrong (95 %)"]]
    for name, found in document["predicts"].items():
        table.append([name, _shown(found), _shown(document["tells_right"][name])])
    teachers = [["teacher", "effect, millinats a token (95 %)", "weight", "right"]]
    for name, own in document["teachers"].items():
        right = "-" if own["right"] is None else f"{100 * own['right']:.0f} %"
        teachers.append([name, _shown(own["effectiveness"], 1000), f"{own['weight']:.3f}", right])
    part = document["coefficients"]["explained"]
    told = "not enough problems" if part is None else f"{100 * part:.0f} % of the variance of problems left out"
    return [*text_table(table), "", *text_table(teachers), "", f"a regression on all scores explains {told}"]


def _shown(estimate: Mapping[str, float] | None, factor: float = 1) -> str:
    if estimate is None:
        return "-"
    value, low, high = (factor * estimate[key] for key in ("value", "low", "high"))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def write_diagnosis(document: Mapping[str, Any], out: Path) -> Path:
    """Write `diagnosis.json` and `diagnosis.html` into a folder; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "diagnosis.json", keep=True) as file:
        json.dump(document, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    with atomic_write(out / "diagnosis.html", keep=True) as file:
        file.write(diagnosis_page(document))
    return out / "diagnosis.html"
