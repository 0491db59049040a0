"""Dynamic Weight Generator: scores and verdicts to weights alpha [B, K] (docs/definitions.md; paper section 3.2).

A *rule* decides: the method's own, or a baseline. All rules share the one pass, the loss, the trace and the report, so
each baseline is a configuration (`weighting:`). `register_rule` adds others. No gradient flows through a weight.

Shape letters: B problems, K teachers, N values of one score.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from compact_distill.errors import ConfigError, DataError, nearest
from compact_distill.method.encode import EncodedProblem

EPSILON = 1e-4  # in z(x) = (x - mean) / (std + EPSILON)


def standardise(score_BK: Tensor, present_BK: Tensor) -> Tensor:
    """z(x) = (x - mean) / (std + 1e-4) over a problem's present teachers (unbiased std); 0 where absent or single."""
    count_B1 = present_BK.sum(-1, keepdim=True)
    score_BK = torch.where(present_BK, score_BK, 0.0)
    mean_B1 = score_BK.sum(-1, keepdim=True) / count_B1.clamp_min(1)
    centred_BK = torch.where(present_BK, score_BK - mean_B1, 0.0)
    std_B1 = (centred_BK.square().sum(-1, keepdim=True) / (count_B1 - 1).clamp_min(1)).sqrt()
    return centred_BK / (std_B1 + EPSILON)


@dataclass
class RunningStatistics:
    """Count, mean and sum of squared deviations of each score over all problems seen (`normalise: running`).

    They are updated once an optimizer step, so that weights do not depend on how a step is divided.
    """

    moments: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def update(self, score: str, values_N: Tensor) -> None:
        """Take in values of a score (Chan et al.'s parallel update)."""
        if not values_N.numel():
            return
        values = values_N.detach().double()
        added, mean = float(values.numel()), float(values.mean())
        spread = float((values - mean).square().sum())
        count, old, squares = self.moments.get(score, (0.0, 0.0, 0.0))
        total = count + added
        shift = mean - old
        self.moments[score] = (
            total,
            old + shift * added / total,
            squares + spread + shift * shift * count * added / total,
        )

    def standardise(self, score: str, score_BK: Tensor, present_BK: Tensor) -> Tensor:
        """z(x) by the statistics; by problem as long as fewer than two values were seen."""
        count, mean, squares = self.moments.get(score, (0.0, 0.0, 0.0))
        if count < 2:
            return standardise(score_BK, present_BK)
        std = (squares / (count - 1)) ** 0.5
        return torch.where(present_BK, (score_BK - mean) / (std + EPSILON), 0.0)


@torch.no_grad()
def compatibility_weights(
    scores: Mapping[str, Tensor],
    coefficients: Mapping[str, float],
    present_BK: Tensor,
    temperature: float = 1.0,
    running: RunningStatistics | None = None,
) -> Tensor:
    """alpha_k = softmax over the present k of sum over scores s of b_s z(s) / T; 0 for missing teachers.

    Args:
        scores: [B, K] tensors by name.
        coefficients: b_s by name; a coefficient of 0 leaves the score out. Difficulty's is negative (it lowers the
            weight).
        present_BK: which teachers take part.
        temperature: T > 0.
        running: standardise by these statistics instead of over each problem.
    """
    total_BK = torch.zeros_like(present_BK, dtype=next(iter(scores.values())).dtype)
    for name, coefficient in coefficients.items():
        if coefficient:
            standard = standardise if running is None else (lambda s, p, n=name: running.standardise(n, s, p))
            total_BK = total_BK + coefficient * standard(scores[name], present_BK)
    weights_BK = torch.softmax((total_BK / temperature).masked_fill(~present_BK, -torch.inf), dim=-1)
    return torch.where(present_BK, weights_BK, 0.0)


# ---- rules


@dataclass(frozen=True)
class Evidence:
    """What a rule weighs: B problems, their scores [B, K] by name, and which rationales may get weight."""

    problems: Sequence[EncodedProblem]
    scores: Mapping[str, Tensor]
    candidate_BK: Tensor
    epoch: int = 0


@dataclass(frozen=True)
class RuleSettings:
    """What rules are built with: `compatibility:` as numbers, the run's seed, and the known scores.

    `directions` has 1 for a score of which more is better, -1 for one of which less is.
    """

    coefficients: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    running: RunningStatistics | None = None
    seed: int = 42
    directions: Mapping[str, float] = field(default_factory=dict)


class Rule(Protocol):
    """Decides which of a problem's rationales may get weight, and how much each gets.

    `scores` names what `weigh` reads besides the scores with a coefficient; with `needs_verdicts`, answers are
    compared with the gold answer where the data does not say so already.
    """

    scores: tuple[str, ...]
    needs_verdicts: bool

    def candidates(self, problem: EncodedProblem) -> Sequence[int]:
        """Teachers, by index, that may get weight; a problem without any is skipped and counted."""

    def weigh(self, evidence: Evidence) -> Tensor:
        """alpha [B, K]: 0 except for candidates; a row with candidates sums to 1."""

    def check(self, teachers: Iterable[str]) -> list[str]:
        """What is wrong with the rule for data of these teachers, as messages."""


class _Equal:
    """1 / K over the candidates, which are all present rationales; the other rules build on it."""

    scores: tuple[str, ...] = ()
    needs_verdicts = False

    def candidates(self, problem: EncodedProblem) -> Sequence[int]:
        return problem.present

    def weigh(self, evidence: Evidence) -> Tensor:
        candidate_BK = evidence.candidate_BK
        share_BK = candidate_BK.to(_dtype(evidence))
        return share_BK / share_BK.sum(-1, keepdim=True).clamp_min(1)

    def check(self, teachers: Iterable[str]) -> list[str]:
        return []


def may_skip(rule: Rule) -> bool:
    """Whether a rule may leave out problems that have a rationale."""
    return type(rule).candidates is not _Equal.candidates


class _Compact(_Equal):
    """The method: a softmax over standardised scores."""

    def __init__(self, settings: RuleSettings) -> None:
        self._settings = settings

    def weigh(self, evidence: Evidence) -> Tensor:
        settings = self._settings
        return compatibility_weights(
            evidence.scores, settings.coefficients, evidence.candidate_BK, settings.temperature, settings.running
        )


class _Random(_Equal):
    """One candidate a problem, drawn anew each epoch; a draw depends on seed, epoch and the problem's id alone."""

    def __init__(self, settings: RuleSettings) -> None:
        self._seed = settings.seed

    def weigh(self, evidence: Evidence) -> Tensor:
        draws = [_draw(f"{self._seed}/{evidence.epoch}/{problem.id}") for problem in evidence.problems]
        place_BK = evidence.candidate_BK.cumsum(-1)
        count_B = evidence.candidate_BK.sum(-1)
        drawn_B = torch.tensor(draws, dtype=torch.float64, device=count_B.device) * count_B
        chosen_BK = evidence.candidate_BK & (place_BK == drawn_B.long()[:, None] + 1)
        return chosen_BK.to(_dtype(evidence))


class _Best(_Equal):
    """The one candidate that a score puts first; the earlier one where two are equal."""

    def __init__(self, score: str, settings: RuleSettings) -> None:
        if score not in settings.directions:
            known = ", ".join(settings.directions)
            raise ConfigError(
                f"weighting.best must be one of the scores {known}, got {score!r}{nearest(score, settings.directions)}"
            )
        self.scores = (score,)
        self._sign = settings.directions[score]

    def weigh(self, evidence: Evidence) -> Tensor:
        score_BK = self._sign * evidence.scores[self.scores[0]].detach()
        best_B = score_BK.masked_fill(~evidence.candidate_BK, -torch.inf).argmax(-1)
        one_hot_BK = torch.nn.functional.one_hot(best_B, score_BK.shape[1]).bool()
        return (one_hot_BK & evidence.candidate_BK).to(score_BK.dtype)


class _Fixed(_Equal):
    """Given weights, renormalised over the present: a teacher's from the configuration, or the data's own."""

    def __init__(self, weights: Mapping[str, float] | None) -> None:
        self._of_teacher = weights  # None: the data's

    def candidates(self, problem: EncodedProblem) -> Sequence[int]:
        return [k for k in problem.present if self._weight(problem, k) > 0]

    def weigh(self, evidence: Evidence) -> Tensor:
        weight_BK = torch.zeros_like(evidence.candidate_BK, dtype=_dtype(evidence))
        for b, (problem, allowed) in enumerate(zip(evidence.problems, evidence.candidate_BK.tolist(), strict=True)):
            given = {k: self._weight(problem, k) for k in self.candidates(problem) if allowed[k]}
            for k, weight in given.items():
                weight_BK[b, k] = weight / sum(given.values())
        return weight_BK

    def check(self, teachers: Iterable[str]) -> list[str]:
        if self._of_teacher is None:
            return []
        known = sorted(set(teachers))
        return [
            f"weighting.fixed names teacher {name!r}, of whom the data has no rationale{nearest(name, known)}; "
            f"its teachers are {', '.join(known)}"
            for name in self._of_teacher
            if known and name not in known
        ]

    def _weight(self, problem: EncodedProblem, k: int) -> float:
        name = problem.teachers[k]
        if self._of_teacher is not None:  # a further sample, `teacher#1`, weighs what its teacher does
            return float(self._of_teacher.get(name, self._of_teacher.get(name.partition("#")[0], 0.0)))
        given = problem.given[k] if problem.given else None
        if isinstance(given, bool) or not isinstance(given, int | float) or not (math.isfinite(given) and given >= 0):
            raise DataError(
                f"problem {problem.id!r}, {name!r}: weight must be a number >= 0, got {given!r}; "
                "`weighting: {fixed: data}` reads the `weight` of each rationale"
            )
        return float(given)


class _Gate(_Equal):
    """Another rule over the rationales whose answer is right."""

    needs_verdicts = True

    def __init__(self, inner: Rule) -> None:
        self._inner = inner
        self.scores = inner.scores

    def candidates(self, problem: EncodedProblem) -> Sequence[int]:
        return [k for k in self._inner.candidates(problem) if k in problem.right]

    def weigh(self, evidence: Evidence) -> Tensor:
        return self._inner.weigh(evidence)

    def check(self, teachers: Iterable[str]) -> list[str]:
        return self._inner.check(teachers)


def _dtype(evidence: Evidence) -> torch.dtype:
    return next((score.dtype for score in evidence.scores.values()), torch.float32)


def _draw(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, whatever the machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


# ---- the registry

Factory = Callable[[Any, RuleSettings], Rule]
"""Builds a rule from its argument, as the configuration has it (None where it has none), and the settings."""

ALL_RULES: dict[str, Factory] = {}


def register_rule(name: str, factory: Factory) -> None:
    """Make a weight rule of your own known under `name`: `weighting: NAME`, or `weighting: {NAME: argument}`.

    Raises:
        ConfigError: the name is taken by a built-in rule.
    """
    if name in BUILT_IN_RULES:
        raise ConfigError(f"rule name must differ from {', '.join(BUILT_IN_RULES)}, got {name!r}; rename it")
    ALL_RULES[name] = factory


def build_rule(weighting: Any, settings: RuleSettings) -> Rule:
    """The rule that a configuration's `weighting` names: `equal`, or with an argument `{best: difficulty}`.

    Raises:
        ConfigError: it names no rule, or a rule with a wrong argument.
    """
    if isinstance(weighting, str):
        name, argument = weighting, None
    elif isinstance(weighting, Mapping) and len(weighting) == 1:
        ((name, argument),) = weighting.items()
    else:
        raise ConfigError(
            f"weighting must be the name of a rule, or one rule with its argument, got {weighting!r}; "
            "as in `weighting: verified` or `weighting: {best: difficulty}`"
        )
    if name not in ALL_RULES:
        raise ConfigError(
            f"weighting must be one of the rules {', '.join(ALL_RULES)}, got {name!r}{nearest(str(name), ALL_RULES)}"
        )
    return ALL_RULES[name](argument, settings)


def weigh(rule: Rule, evidence_of: Sequence[EncodedProblem], scores: Mapping[str, Tensor], epoch: int = 0) -> Tensor:
    """alpha [B, K] of problems by a rule; a row without any candidate is 0. No gradient.

    Raises:
        ConfigError: what the rule gives is no such tensor.
    """
    some_BK = next(iter(scores.values()))
    candidate_BK = torch.zeros(some_BK.shape, dtype=torch.bool)
    for b, problem in enumerate(evidence_of):
        candidate_BK[b, list(rule.candidates(problem))] = True
    candidate_BK = candidate_BK.to(some_BK.device)
    with torch.no_grad():
        found = rule.weigh(Evidence(evidence_of, scores, candidate_BK, epoch))
        if not isinstance(found, Tensor) or found.shape != some_BK.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(f"{type(rule).__name__}.weigh must give a tensor of {tuple(some_BK.shape)}, got {got}")
        weights_BK = found.detach().to(some_BK.dtype)
        right_BK = torch.where(candidate_BK, weights_BK >= 0, weights_BK == 0)
        right_B = right_BK.all(-1) & ((weights_BK.sum(-1) - candidate_BK.any(-1).to(weights_BK.dtype)).abs() < 1e-3)
        for score_BK in scores.values():  # a student that gives no numbers is told elsewhere
            right_B |= (candidate_BK & ~score_BK.isfinite()).any(-1)
    for b in [] if bool(right_B.all()) else (~right_B).nonzero()[:1, 0].tolist():
        raise ConfigError(
            f"{type(rule).__name__}.weigh must give numbers >= 0 that sum to 1 over a problem's candidates, and 0 to "
            f"the others, got {weights_BK[b].tolist()} for {evidence_of[b].id!r}; mend the rule"
        )
    return weights_BK


def _alone(name: str, make: Callable[[RuleSettings], Rule]) -> Factory:
    def factory(argument: Any, settings: RuleSettings) -> Rule:
        if argument is not None:
            raise ConfigError(f"weighting {name!r} takes no argument, got {argument!r}; write `weighting: {name}`")
        return make(settings)

    return factory


def _best(argument: Any, settings: RuleSettings) -> Rule:
    if not isinstance(argument, str):
        raise ConfigError(
            f"weighting.best must name a score, got {argument!r}; as in `weighting: {{best: difficulty}}`"
        )
    return _Best(argument, settings)


def _fixed(argument: Any, settings: RuleSettings) -> Rule:
    if argument == "data":
        return _Fixed(None)
    numbers = isinstance(argument, Mapping) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
        for value in argument.values()
    )
    if not numbers or not any(argument.values()):
        raise ConfigError(
            f"weighting.fixed must be `data` or a weight >= 0 a teacher, one of them > 0, got {argument!r}; "
            "as in `weighting: {fixed: {gpt-4: 1.0, qwq: 0.5}}`"
        )
    return _Fixed(argument)


def _gate(argument: Any, settings: RuleSettings) -> Rule:
    if argument is None:
        raise ConfigError("weighting.gate must hold a rule, got nothing; as in `weighting: {gate: compact}`")
    return _Gate(build_rule(argument, settings))


ALL_RULES |= {
    "compact": _alone("compact", _Compact),
    "equal": _alone("equal", lambda settings: _Equal()),
    "random": _alone("random", _Random),
    "verified": _alone("verified", lambda settings: _Gate(_Equal())),
    "fixed": _fixed,
    "best": _best,
    "gate": _gate,
}
BUILT_IN_RULES = tuple(ALL_RULES)
