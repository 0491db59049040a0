"""Multi-Dimensional Evaluator: what the student's pass yielded, to named scores [B, K] and to weights.

A score is a function from `StudentOutputs` to a [B, K] tensor. Three are built in; `register_score` adds others, whose
coefficients the config names under `compatibility.extra_scores`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compact_distill.config.models import CompatibilityConfig
from compact_distill.errors import ConfigError, nearest
from compact_distill.method.adaptability import adaptability
from compact_distill.method.consensus import consensus
from compact_distill.method.difficulty import difficulty
from compact_distill.method.forward import PassOptions
from compact_distill.method.outputs import StudentOutputs
from compact_distill.method.weights import RunningStatistics, compatibility_weights

Score = Callable[[StudentOutputs], Tensor]

_EXTRA: dict[str, Score] = {}
BUILT_IN = ("consensus", "adaptability", "difficulty")


def register_score(name: str, score: Score) -> None:
    """Make a score of your own known under `name`; give it a coefficient in `compatibility.extra_scores`.

    Example: `register_score("brevity", lambda outputs: -outputs.length_BK.float())`.

    Raises:
        ConfigError: the name is taken by a built-in score.
    """
    if name in BUILT_IN:
        raise ConfigError(f"score name must differ from the built-in {', '.join(BUILT_IN)}, got {name!r}; rename it")
    _EXTRA[name] = score


class Evaluator:
    """Scores and weights under one configuration.

    Raises:
        ConfigError: `extra_scores` names a score that nobody registered.
    """

    def __init__(self, config: CompatibilityConfig | None = None) -> None:
        self.config = config or CompatibilityConfig()
        for name in self.config.extra_scores:
            if name not in _EXTRA:
                known = ", ".join(sorted(_EXTRA)) or "none"
                raise ConfigError(
                    f"compatibility.extra_scores: no score {name!r} is registered (registered: {known})"
                    f"{nearest(name, _EXTRA)}; call register_score({name!r}, ...) first"
                )
        self.running = RunningStatistics() if self.config.normalise == "running" else None

    @property
    def coefficients(self) -> dict[str, float]:
        """Coefficient of each score in the weights; difficulty lowers them."""
        config = self.config
        return {
            "consensus": config.consensus,
            "adaptability": config.adaptability,
            "difficulty": -config.difficulty,
            **config.extra_scores,
        }

    def pass_options(self, consistency: float) -> PassOptions:
        """What the student's pass must yield for these scores and a consistency term with this coefficient."""
        max_probes = self.config.max_probes if self.config.estimator == "probe" else None
        return PassOptions(gold=consistency > 0, max_probes=max_probes, pool=self.config.pool)

    def scores(self, outputs: StudentOutputs) -> dict[str, Tensor]:
        """All scores, [B, K] each, in fp32 at least whatever autocast is on; difficulty is differentiable."""
        with torch.autocast(outputs.present_BK.device.type, enabled=False):
            return self._scores(outputs)

    def _scores(self, outputs: StudentOutputs) -> dict[str, Tensor]:
        scores = {
            "consensus": consensus(outputs),
            "adaptability": adaptability(outputs, self.config.gain, self.config.off_weight),
            "difficulty": difficulty(outputs),
        }
        for name in self.config.extra_scores:
            scores[name] = _EXTRA[name](outputs)
            if scores[name].shape != outputs.present_BK.shape:
                raise ConfigError(
                    f"score {name!r} must return a [B, K] tensor of shape {tuple(outputs.present_BK.shape)}, "
                    f"got {tuple(scores[name].shape)}"
                )
        return scores

    def weights(self, scores: dict[str, Tensor], present_BK: Tensor) -> Tensor:
        """alpha, [B, K]: rows sum to 1, missing teachers have 0, no gradient."""
        return compatibility_weights(scores, self.coefficients, present_BK, self.config.temperature, self.running)

    @torch.no_grad()
    def observe(self, scores: dict[str, Tensor], present_BK: Tensor) -> None:
        """Take scores into the running statistics (a no-op for `normalise: problem`)."""
        if self.running is not None:
            for name, score_BK in scores.items():
                self.running.update(name, score_BK[present_BK])
