"""Signs of the ways in which this method fails, each a number with two limits; docs/report.md says why these limits.

Every check looks at the last reading of each problem, unless it says otherwise, and gives ok, look, bad, or unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from compact_distill.report.drawing import listed, number, percent, plural, share_text, short
from compact_distill.report.figures_results import log_number
from compact_distill.report.figures_weights import lengths_PK, pair_sums, verdicts_PK
from compact_distill.report.html import Check
from compact_distill.report.read import RIGHT, WRONG, RunData
from compact_distill.report.trace import Floats, mean_sem, rank_correlation

EVEN_LOOK, EVEN_BAD = 0.95, 0.99  # effective number of teachers, as a share of those present
ONE_TEACHER = 0.9  # of a problem's consensus
ONE_HOT_LOOK, ONE_HOT_BAD = 0.25, 0.5  # share of the problems
LOSS_LOOK, LOSS_BAD = 1.5, 2.0  # times the median of the lines before
LOSS_LINES = 5  # in a row: a single batch may be hard
GRADIENT_LOOK, GRADIENT_BAD = 5.0, 10.0
BEFORE_A_SPIKE = (5, 20)  # fewest and most lines that make the median
KL_LOOK, KL_BAD = 0.1, 0.5  # nats
SHIFT_LOOK, SHIFT_BAD = 0.5, 1.0  # spreads of the base
RARE = 0.02  # share of wins
ENOUGH = 30  # problems, before "never" means anything
FOLLOWS_LOOK, FOLLOWS_BAD = 0.5, 0.8  # rank correlation
_RESAMPLES = 2000
# Rules that look at no score, and what they do instead: their weights say nothing about the student.
_ASKED = {
    "equal": "asks for equal weights",
    "verified": "asks for equal weights",
    "random": "draws one rationale of each problem",
    "fixed": "gives the weights beforehand",
}


def signatures(run: RunData) -> list[Check]:
    """All checks of a run; those whose data is missing are `unknown`."""
    return [
        near_uniform(run),
        noisy_teacher(run),
        one_hot_consensus(run),
        spikes(run),
        retained_drift(run),
        never_chosen(run),
        follows_length(run),
    ]


def near_uniform(run: RunData) -> Check:
    """Weights near 1/K: the student learns the mean of its teachers, good and bad alike."""
    name = "Weights near uniform"
    trace = run.trace
    several = trace.last[trace.present_N[trace.last] > 1] if trace else np.array([], dtype=np.int64)
    if trace is None or not len(several):
        return _unknown(name, "needs weights of problems with two teachers or more")
    share = float((np.exp(trace.entropy_N[several]) / trace.present_N[several]).mean())
    value = f"{percent(share, 0)} even"
    rule, setting = _rule(run)
    if rule in _ASKED:
        return Check(name, "ok", value, f"`weighting: {setting}` {_ASKED[rule]}")
    text = (
        "the student tells its teachers apart; equal weights would be 100 %",
        "the weights hardly differ, so this is close to plain averaging",
        "the weights do not differ: this is plain averaging, at the cost of the scores",
    )
    return _graded(name, value, text, (share, EVEN_LOOK, EVEN_BAD))


def noisy_teacher(run: RunData) -> Check:
    """Wrong rationales that weigh more than right ones of the same problem."""
    name = "Wrong outweighs right"
    trace = run.trace
    if trace is None:
        return _unknown(name, "needs weights and verdicts")
    verdict = verdicts_PK(run, trace)
    wins_P, pairs_P = pair_sums(trace.weights_NK[trace.last], verdict == RIGHT, verdict == WRONG)
    mixed = pairs_P > 0
    if mixed.sum() < 2:
        return _unknown(name, "needs problems with a right and a wrong rationale")
    chance = float(wins_P.sum() / pairs_P.sum())
    drawn = np.random.default_rng(0).multinomial(mixed.sum(), np.full(mixed.sum(), 1 / mixed.sum()), _RESAMPLES)
    low, high = np.percentile((drawn @ wins_P[mixed]) / (drawn @ pairs_P[mixed]), [2.5, 97.5])
    state = "ok" if low > 0.5 else "bad" if high < 0.5 else "look"
    text = {
        "ok": "right rationales weigh more than wrong ones of the same problem",
        "look": "the weights do not tell right rationales from wrong ones (50 % is chance)",
        "bad": "wrong rationales weigh more than right ones: `weighting: {gate: compact}` keeps wrong ones out",
    }[state]
    if state != "ok":
        of_wrong = np.where(verdict == WRONG, trace.weights_NK[trace.last], np.nan)
        means = [(mean_sem(weights)[0], name) for name, weights in zip(trace.teachers, of_wrong.T, strict=True)]
        most, worst = max(pair for pair in means if not math.isnan(pair[0]))
        text += f"; the wrong ones of {short(worst, 40)} weigh most, {share_text(most)} on average"
    return Check(name, state, f"right wins {percent(chance, 0)} ({percent(low, 0)} to {percent(high, 0)})", text)


def one_hot_consensus(run: RunData) -> Check:
    """One teacher holds nearly all of a problem's consensus, so that the score says no more than its name."""
    name = "One-hot consensus"
    if run.trace is None or "consensus" not in run.trace.scores:
        return _unknown(name, "needs the score consensus")
    last = np.nan_to_num(run.trace.scores["consensus"][run.trace.last])
    several = (run.trace.present_N[run.trace.last] > 1) & (last.sum(1) > 0)
    if not several.any():
        return _unknown(name, "needs problems with two teachers or more")
    share = float((last.max(1) > ONE_TEACHER * last.sum(1))[several].mean())
    text = (
        "several teachers share the consensus",
        "in many problems one teacher takes over 90 % of the consensus",
        "in most problems one teacher takes over 90 % of the consensus; try `compatibility: {attention: heads}`",
    )
    return _graded(name, f"{percent(share, 0)} of problems", text, (share, ONE_HOT_LOOK, ONE_HOT_BAD))


def spikes(run: RunData) -> Check:
    """A loss that stays far above the lines before it or is no number, or a gradient norm that jumps."""
    name = "Spikes while training"
    # NaN is null in JSON, and infinity is no number there either.
    loss, gradient = (
        np.array([log_number(row[key]) for row in run.log if key in row]) for key in ("loss", "grad_norm")
    )
    if len(loss) < BEFORE_A_SPIKE[0] + LOSS_LINES:
        return _unknown(name, f"needs at least {BEFORE_A_SPIKE[0] + LOSS_LINES} log lines with a loss")
    # Under fp16 a gradient that overflows is skipped, which is no fault; anywhere else the trainer stops there.
    known = gradient[np.isfinite(gradient)]
    if not np.isfinite(loss).all() or len(gradient) > len(known) == 0:
        return Check(name, "bad", "not a number", "a loss or gradient norm is not finite; lower train.learning_rate")
    worst, norms = _largest_jump(loss, LOSS_LINES), _largest_jump(known, 1)
    norm_text = f", gradient {number(norms, 2)} x" if norms else ""
    text = (
        "no line stands out from those before it",
        "a step stands out: see the figure, and the learning rate",
        "training was thrown off: lower train.learning_rate, or set train.max_grad_norm",
    )
    value = f"loss {number(worst, 2)} x{norm_text} the usual"
    return _graded(name, value, text, (worst, LOSS_LOOK, LOSS_BAD), (norms, GRADIENT_LOOK, GRADIENT_BAD))


def _largest_jump(values: Floats, lines: int) -> float:
    """The largest median of `lines` values in a row over that of the 5 to 20 before them; 0 where there are too few."""
    fewest, most = BEFORE_A_SPIKE
    places = range(fewest, len(values) - lines + 1)
    pairs = [(np.median(values[i : i + lines]), np.median(values[max(i - most, 0) : i])) for i in places]
    return float(max((now / before for now, before in pairs if before > 0), default=0.0))


def retained_drift(run: RunData) -> Check:
    """The student reads prompts of retained tasks otherwise than its base does."""
    name = "Drift on retained tasks"
    found = next((part for part in run.drift if part.role == "retained"), None)
    if found is None:
        return _unknown(name, "needs eval/drift.json with retained prompts")
    kl, shift = found.kl_last[0], max((n.centroid_shift or 0.0 for n in found.layers), default=0.0)
    text = (
        "next words and hidden states stayed close to the base's",
        "the student has moved where it should not have: compare the retained benchmarks row by row",
        "the student is another model on these prompts: fewer epochs, a lower learning rate, a smaller lora.r",
    )
    value = f"KL {number(kl, 2)} nats, shift {number(shift, 2)} spreads"
    return _graded(name, value, text, (kl, KL_LOOK, KL_BAD), (shift, SHIFT_LOOK, SHIFT_BAD))


def never_chosen(run: RunData) -> Check:
    """A teacher whose rationale is hardly ever the heaviest one of a problem: it may not be worth its price."""
    name = "A teacher never chosen"
    trace = run.trace
    if trace is None or len(trace.active) < 2:
        return _unknown(name, "needs weights of two teachers or more")
    rule, setting = _rule(run)
    if rule in _ASKED:
        return Check(name, "ok", "–", f"`weighting: {setting}` does not choose")
    wins = trace.wins_NK[trace.last]
    took_part = (~np.isnan(wins)).sum(0)
    shares = {k: float(np.nansum(wins[:, k]) / took_part[k]) for k in trace.active if took_part[k]}
    rarest = min(shares, key=lambda k: (shares[k], -took_part[k]))
    share, problems = shares[rarest], int(took_part[rarest])
    never = [k for k in shares if took_part[k] >= ENOUGH and not (trace.wins_NK[:, k] > 0).any()]
    state = "ok" if share >= RARE else "bad" if rarest in never else "look"
    won = number(round(float(np.nansum(wins[:, rarest])), 1))
    value = f"{short(trace.teachers[rarest], 28)}: heaviest in {won} of {plural(problems, 'problem')}"
    if state == "bad" and len(never) > 1:
        names = listed([short(trace.teachers[k], 28) for k in never])
        text = "the solutions of these teachers never weighed most, in no epoch: leaving them out saves their cost"
        return Check(name, state, f"{names}: heaviest in 0 of {plural(len(wins), 'problem')}", text)
    text = {
        "ok": "the solution of every teacher weighs most somewhere; the rarest is named",
        "look": "the solutions of this teacher hardly ever weigh most; leaving it out may cost little",
        "bad": "the solutions of this teacher never weighed most, in no epoch: leaving it out saves its cost",
    }[state]
    return Check(name, state, value, text)


def follows_length(run: RunData) -> Check:
    """Adaptability that is long rationales' by habit: a sum of rises grows with the number of tokens."""
    name = "Adaptability follows length"
    trace = run.trace
    if trace is None or "adaptability" not in trace.scores:
        return _unknown(name, "needs the score adaptability, and lengths")
    correlation = rank_correlation(trace.scores["adaptability"][trace.last], lengths_PK(run, trace))
    if math.isnan(correlation):
        return _unknown(name, "needs lengths of rationales in data.jsonl")
    text = (
        "the score says something else than how long a rationale is",
        "much of the score is how long a rationale is: `compatibility: {gain: net}` does not grow with length",
        "the score is little else than length: use `compatibility: {gain: net}`, or `gain: peak`",
    )
    value = f"rank correlation {share_text(correlation)}"
    return _graded(name, value, text, (correlation, FOLLOWS_LOOK, FOLLOWS_BAD))


def _graded(name: str, value: str, text: Sequence[str], *measured: tuple[float, float, float]) -> Check:
    """The worst state of some values, each with the limits above which it is to be looked at, and is bad."""
    worst = max((found > look) + (found > bad) for found, look, bad in measured)
    return Check(name, ("ok", "look", "bad")[worst], value, text[worst])


def _unknown(name: str, needs: str) -> Check:
    return Check(name, "unknown", "–", needs)


def _rule(run: RunData) -> tuple[str, str]:
    """The rule that the configuration names, which a gate may hold, and how the setting is written."""
    rule = run.settings.get("weighting", "compact")
    gated = isinstance(rule, dict) and "gate" in rule
    while isinstance(rule, dict) and "gate" in rule:
        rule = rule["gate"]
    name = str(next(iter(rule), "compact")) if isinstance(rule, dict) else str(rule)
    return name, f"{{gate: {name}}}" if gated else name
