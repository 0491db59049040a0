"""Multi-Dimensional Evaluator: the formulas of the scores, from what the student's pass yielded to [B, K] and weights.

A score is a function from `StudentOutputs` to a [B, K] tensor. Three are the paper's; `register_score` adds others,
whose coefficients the config names under `compatibility.extra_scores`.

Shape letters: B problems, K teachers, T tokens, P points at which the belief is read, H query heads, G key heads,
D width of a head.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from compact_distill.answers import Verifier
from compact_distill.config.models import CompatibilityConfig, Weighting
from compact_distill.errors import ConfigError, nearest
from compact_distill.method.encode import EncodedProblem, Encoder
from compact_distill.method.forward import PassOptions
from compact_distill.method.outputs import StudentOutputs
from compact_distill.method.weights import ALL_RULES, RuleSettings, RunningStatistics, build_rule, weigh
from compact_distill.records import LESS_IS_BETTER, Instance
from compact_distill.runs.files import content_hash, fingerprint

Score = Callable[[StudentOutputs], Tensor]


@dataclass(frozen=True)
class _Extra:
    function: Score
    direction: float  # 1: more is better; -1: less is


_EXTRA: dict[str, _Extra] = {}  # of users
# The paper's, which are always read, and others that are read where a coefficient or a rule asks for them.
BUILT_IN = ("consensus", "adaptability", "difficulty")
FURTHER = ("rank_surprisal", "local_naturalness", "agreement")


def register_score(name: str, score: Score, more_is_better: bool = True) -> None:
    """Make a score of your own known under `name`: for `compatibility.extra_scores`, `weighting: {best: NAME}`.

    Example: `register_score("brevity", lambda outputs: -outputs.length_BK.float())`.

    Args:
        name: what configurations call it.
        score: from what the pass yields to a [B, K] tensor.
        more_is_better: which end `weighting: {best: NAME}` takes; coefficients have signs of their own.

    Raises:
        ConfigError: the name is taken by a built-in score.
    """
    taken = (*BUILT_IN, *FURTHER)
    if name in taken:
        raise ConfigError(f"score name must differ from the built-in {', '.join(taken)}, got {name!r}; rename it")
    _EXTRA[name] = _Extra(score, 1.0 if more_is_better else -1.0)


# What each file or module of a user's registered, by its place and content: scores and rules.
_REGISTERED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}


def import_scores(source: str) -> None:
    """Import the Python file or module that registers a user's scores; a file anew where it has changed.

    What was imported before is not imported again, and what it registered counts again.

    Raises:
        ConfigError: it cannot be found or fails.
    """
    path = Path(source)
    is_file = path.suffix == ".py"
    try:
        name = f"compact_scores_{fingerprint([str(path.resolve()), content_hash(path)])}" if is_file else source
        if name not in _REGISTERED:
            scores, rules = dict(_EXTRA), dict(ALL_RULES)
            if is_file:
                _run_file(path, name)
            else:
                importlib.import_module(source)
            _REGISTERED[name] = _new(_EXTRA, scores), _new(ALL_RULES, rules)
    except Exception as error:
        raise ConfigError(
            f"compatibility.scores_from must be a Python file or module that imports, got {source!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    _EXTRA.update(_REGISTERED[name][0])
    ALL_RULES.update(_REGISTERED[name][1])


def _new(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in now.items() if value is not before.get(name)}


def _run_file(path: Path, name: str) -> None:
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # before it runs: dataclasses look up the module that they are made in
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise


def consensus(outputs: StudentOutputs, attention: Literal["joint", "heads"] = "joint") -> Tensor:
    """C_k = sum over i != k of A_ik, [B, K]; 0 for missing and for single teachers. Query head h reads key head g(h).

    `joint` (published): A = softmax over j of L, L_ij = sum over h of <q_i,h , key_j,g(h)> / sqrt(heads * head_dim).
    `heads`: A = mean over h of softmax over j of <q_i,h , key_j,g(h)> / sqrt(head_dim), as attention itself does; the
    joint softmax is one-hot where the sum over heads is large, and this is not.
    """
    query_BKHD, key_BKGD = outputs.query_BKHD, outputs.key_BKGD
    heads, width = query_BKHD.shape[2:]
    key_BKHD = key_BKGD.repeat_interleave(heads // key_BKGD.shape[2], dim=2)
    present_BK = outputs.present_BK
    if attention == "joint":
        logits_BHKK = torch.einsum("bihd,bjhd->bij", query_BKHD, key_BKHD)[:, None] / (heads * width) ** 0.5
    else:
        logits_BHKK = torch.einsum("bihd,bjhd->bhij", query_BKHD, key_BKHD) / width**0.5
    # A row of a problem without any teacher is all masked; its softmax is NaN and is replaced below.
    attention_BKK = torch.softmax(logits_BHKK.masked_fill(~present_BK[:, None, None, :], -torch.inf), dim=-1).mean(1)
    others = present_BK[:, :, None] & present_BK[:, None, :]
    others &= ~torch.eye(len(present_BK[0]), dtype=torch.bool, device=others.device)
    return torch.where(others, attention_BKK, 0.0).sum(1)


def adaptability(
    outputs: StudentOutputs, gain: Literal["positive", "net", "peak"] = "positive", off_weight: float = 0.1
) -> Tensor:
    """S_k from the belief l at each reading point, [B, K] in nats.

    Rises r_p = max(l_p - l_(p-1), 0) count w_p: 1 where the step to p is part of a thinking expression (always, for
    probes), `off_weight` elsewhere. `positive`: sum of w r; `peak`: largest w r; `net`: l_end - l_0, where weights
    have no meaning.
    """
    belief_BKP = outputs.belief_BKP
    if gain == "net":
        last_BK1 = (outputs.point_BKP.sum(-1, keepdim=True) - 1).clamp_min(0)
        return belief_BKP.gather(-1, last_BK1)[..., 0] - belief_BKP[..., 0]
    exists = outputs.point_BKP[..., 1:]
    rises = torch.where(exists, belief_BKP[..., 1:] - belief_BKP[..., :-1], 0.0).clamp_min(0)
    weighted = torch.where(outputs.thinking_BKP[..., 1:], rises, rises * off_weight)
    if gain == "positive":
        return weighted.sum(-1)
    return weighted.amax(-1) if weighted.shape[-1] else weighted.sum(-1)


def difficulty(outputs: StudentOutputs) -> Tensor:
    """D_k = mean negative log-likelihood of the completion's tokens, [B, K] in nats per token; differentiable."""
    return outputs.nll_BKT.sum(-1) / outputs.length_BK.clamp_min(1)


def rank_surprisal(outputs: StudentOutputs, clip: int = 100) -> Tensor:
    """RSR: sum of ranks, each at most `clip`, over sum of surprisals of the completion, [B, K]; less is better.

    Yang et al. 2026 (arXiv 2601.14249), with their code's clipping at 100. The rank of the likeliest token is 1.
    """
    assert outputs.rank_BKT is not None
    surprisal_BK = outputs.nll_BKT.detach().sum(-1)
    ratio_BK = outputs.rank_BKT.clamp_max(clip).sum(-1) / surprisal_BK.clamp_min(1e-12)
    return torch.where(outputs.present_BK, ratio_BK, 0.0)


def local_naturalness(outputs: StudentOutputs) -> Tensor:
    """LALP: mean over steps of their mean log-probability, given prompt and a few steps before, [B, K], nats per token.

    Just et al. 2025 (arXiv 2510.03988). Without reasoning there is no step, and it counts as 0.
    """
    assert outputs.local_BK is not None
    return outputs.local_BK


def agreement(outputs: StudentOutputs) -> Tensor:
    """Share of the other present rationales whose final answer is equivalent, [B, K]; 0 for a single one.

    Raises:
        ConfigError: nobody compared the answers (see `Scorer.encode`).
    """
    values_BK = torch.zeros(outputs.shape, dtype=outputs.nll_BKT.dtype)
    for b, problem in enumerate(outputs.problems):
        if len(problem.agreement) != len(problem.branches):
            raise ConfigError(
                f"agreement needs answers that were compared, those of problem {problem.id!r} were not; "
                "encode problems with Scorer.encode"
            )
        values_BK[b, : len(problem.agreement)] = torch.tensor(problem.agreement, dtype=values_BK.dtype)
    return values_BK.to(outputs.nll_BKT.device)


class Scorer:
    """Scores and weights under one configuration: the paper's evaluator.

    Args:
        config: which scores, how they are read and weighed.
        weighting: the weight rule, as the configuration has it (see `build_rule`).
        seed: of what a rule draws.

    Raises:
        ConfigError: `extra_scores` names a score that nobody registered, or `weighting` no rule.
    """

    def __init__(
        self, config: CompatibilityConfig | None = None, weighting: Weighting = "compact", seed: int = 42
    ) -> None:
        self.config = config or CompatibilityConfig()
        if self.config.scores_from is not None:
            import_scores(self.config.scores_from)
        self._extra = dict(_EXTRA)  # as they are now: another file may register others under the same names
        known = (*FURTHER, *sorted(self._extra))
        for name in self.config.extra_scores:
            if name not in known:
                raise ConfigError(
                    f"compatibility.extra_scores: there is no score {name!r} (there are {', '.join(known)})"
                    f"{nearest(name, known)}; or register it with register_score({name!r}, ...)"
                )
        self.running = RunningStatistics() if self.config.normalise == "running" else None
        directions = {name: -1.0 if name in LESS_IS_BETTER else 1.0 for name in (*BUILT_IN, *FURTHER)}
        directions |= {name: extra.direction for name, extra in self._extra.items()}
        self._directions = directions
        temperature = self.config.temperature
        self.rule = build_rule(weighting, RuleSettings(self.coefficients, temperature, self.running, seed, directions))

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

    @property
    def names(self) -> tuple[str, ...]:
        """All scores that are read: the three of the paper, those with a coefficient, and those the rule asks for."""
        return tuple(dict.fromkeys((*self.coefficients, *self.rule.scores)))

    @property
    def less_is_better(self) -> list[str]:
        """Those of `names` of which less is better."""
        return [name for name in self.names if self._directions[name] < 0]

    @property
    def needs_verdicts(self) -> bool:
        """Whether answers must be compared before scores and weights can be told."""
        return self.rule.needs_verdicts or "agreement" in self.names

    def encode(self, encoder: Encoder, instances: Iterable[Instance]) -> Iterator[tuple[Instance, EncodedProblem]]:
        """Each instance with its tokens, in order, and with what scores and rule ask for beyond tokens."""
        with Verifier() if self.needs_verdicts else contextlib.nullcontext() as verifier:
            for instance in instances:
                yield instance, encoder(instance, verifier)

    def pass_options(self, consistency: float) -> PassOptions:
        """What the student's pass must yield for these scores and a consistency term with this coefficient."""
        config = self.config
        return PassOptions(
            gold=consistency > 0,
            max_probes=self._max_probes,
            pool=config.pool,
            ranks="rank_surprisal" in self.names,
            window=config.local_steps if "local_naturalness" in self.names else None,
        )

    @property
    def _max_probes(self) -> int | None:
        if self.config.estimator == "lens":
            return None
        return 2 if self.config.gain == "net" else self.config.max_probes  # end - start: two points are enough

    def scores(self, outputs: StudentOutputs) -> dict[str, Tensor]:
        """All scores, [B, K] each, in fp32 at least whatever autocast is on; difficulty is differentiable."""
        with torch.autocast(outputs.present_BK.device.type, enabled=False):
            return {name: self._score(name, outputs) for name in self.names}

    def _score(self, name: str, outputs: StudentOutputs) -> Tensor:
        config = self.config
        built_in: dict[str, Score] = {
            "consensus": lambda o: consensus(o, config.attention),
            "adaptability": lambda o: adaptability(o, config.gain, config.off_weight),
            "difficulty": difficulty,
            "rank_surprisal": lambda o: rank_surprisal(o, config.rank_clip),
            "local_naturalness": local_naturalness,
            "agreement": agreement,
        }
        if name in built_in:
            return built_in[name](outputs)
        return self._users_score(name, outputs)

    def _users_score(self, name: str, outputs: StudentOutputs) -> Tensor:
        try:
            score_BK = self._extra[name].function(outputs)
        except Exception as error:
            raise ConfigError(f"score {name!r} failed: {type(error).__name__}: {error}; mend its function") from error
        if not isinstance(score_BK, Tensor) or score_BK.shape != outputs.present_BK.shape:
            got = tuple(score_BK.shape) if isinstance(score_BK, Tensor) else type(score_BK).__name__
            raise ConfigError(
                f"score {name!r} must return a [B, K] tensor of shape {tuple(outputs.present_BK.shape)}, got {got}"
            )
        # Where the student itself gives no numbers, it is not the score's fault, and is told elsewhere.
        wrong_BK = outputs.present_BK & ~score_BK.isfinite() & difficulty(outputs).isfinite()
        for b, k in wrong_BK.nonzero()[:1].tolist():
            raise ConfigError(
                f"score {name!r} must be a number wherever a rationale takes part, got {float(score_BK[b, k])} for "
                f"{outputs.problems[b].teachers[k]!r} on {outputs.problems[b].id!r}; mend its function"
            )
        return score_BK

    def weights(self, scores: Mapping[str, Tensor], problems: Sequence[EncodedProblem], epoch: int = 0) -> Tensor:
        """alpha, [B, K], by the rule: missing teachers have 0, a row sums to 1 or the rule skips it; no gradient."""
        return weigh(self.rule, problems, scores, epoch)

    @torch.no_grad()
    def observe(self, scores: dict[str, Tensor], present_BK: Tensor) -> None:
        """Take scores into the running statistics (a no-op for `normalise: problem`)."""
        if self.running is not None:
            for name, score_BK in scores.items():
                self.running.update(name, score_BK[present_BK])
