"""The signs of trouble: for each one a run that is fine, one to look at, a bad one, and one that cannot say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from compact_distill.report import read_run, write_report
from compact_distill.report.read import DriftSet, LayerDrift, RunData, UsedProblem, UsedRationale
from compact_distill.report.signatures import (
    follows_length,
    near_uniform,
    never_chosen,
    noisy_teacher,
    one_hot_consensus,
    retained_drift,
    signatures,
    spikes,
)
from compact_distill.report.trace import arrange_trace
from report.synthetic import make_run

EMPTY = RunData(path=Path("r"), name="r")


def run(weights=None, *, scores=None, verdicts=None, tokens=None, log=(), drift=(), config=""):
    """A run by hand: a row of weights, of each score, verdicts and tokens a problem; teachers are a, b, c ..."""
    given = weights or next(iter((scores or {}).values()), None) or verdicts or tokens or []
    names = "abcdef"[: len(given[0])] if given else ""
    weights = weights or [[1 / len(names)] * len(names) for _ in given]
    rows = [
        {"id": f"p{i}", "epoch": 0.0, "teachers": list(names), "weights": w}
        | {name: values[i] for name, values in (scores or {}).items()}
        for i, w in enumerate(weights)
    ]
    problems = {
        f"p{i}": UsedProblem(
            f"p{i}",
            "?",
            "1",
            {
                t: UsedRationale(
                    t, "...", "1", verdicts[i][k] if verdicts else None, "ok", tokens[i][k] if tokens else 9
                )
                for k, t in enumerate(names)
            },
        )
        for i in range(len(given))
    }
    trace = arrange_trace(rows) if rows else None
    return RunData(
        path=Path("r"), name="r", trace=trace, problems=problems, log=list(log), drift=list(drift), config=config
    )


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ([0.4, 0.3, 0.2, 0.1], "ok"),  # exp(1.2799) / 4 = 0.899
        ([0.33, 0.27, 0.22, 0.18], "look"),  # exp(1.3611) / 4 = 0.975
        ([0.26, 0.25, 0.25, 0.24], "bad"),
    ],
)
def test_weights_that_do_not_differ_are_bad(row, state):
    check = near_uniform(run([row] * 3))
    effective = math.exp(-sum(w * math.log(w) for w in row)) / 4
    assert (check.state, check.value) == (state, f"{100 * effective:.0f} % even")


def test_equal_weights_are_fine_where_they_were_asked_for():
    assert near_uniform(run([[0.5, 0.5]] * 3, config="weighting: equal")).state == "ok"
    assert near_uniform(run([[0.5, 0.5]] * 3, config="weighting: {gate: compact}")).state == "bad"
    assert near_uniform(run([[1.0], [1.0]])).state == "unknown"  # a single teacher has no choice


@pytest.mark.parametrize(
    "weighting",
    ["{gate: equal}", "verified", "random", "{fixed: {a: 1, b: 1}}", "{fixed: data}", "{gate: {fixed: data}}"],
)
def test_rules_that_look_at_no_score_are_not_blamed_for_their_weights(weighting):
    asked = run([[0.5, 0.5]] * 40, config=f"weighting: {weighting}")
    assert near_uniform(asked).state == "ok"
    assert near_uniform(asked).text.startswith("`weighting: ")
    assert "tells its teachers apart" not in near_uniform(run([[1.0, 0.0]] * 40, config=f"weighting: {weighting}")).text
    assert never_chosen(run([[1.0, 0.0]] * 40, config=f"weighting: {weighting}")).state == "ok"
    assert never_chosen(run([[1.0, 0.0]] * 40, config="weighting: {gate: compact}")).state == "bad"


def test_a_gate_is_named_with_its_rule():
    assert near_uniform(run([[0.5, 0.5]], config="weighting: {gate: equal}")).text == (
        "`weighting: {gate: equal}` asks for equal weights"
    )


@pytest.mark.parametrize(
    ("weights", "state", "value"),
    [
        ([[0.8, 0.2]] * 20, "ok", "right wins 100 % (100 % to 100 %)"),
        ([[0.8, 0.2]] * 10 + [[0.2, 0.8]] * 10, "look", "right wins 50 %"),
        ([[0.1, 0.9]] * 18 + [[0.9, 0.1]] * 2, "bad", "right wins 10 %"),
    ],
)
def test_wrong_rationales_above_right_ones_are_bad(weights, state, value):
    check = noisy_teacher(run(weights, verdicts=[["correct", "wrong"]] * 20))
    assert check.state == state
    assert check.value.startswith(value)
    assert ("the wrong ones of b weigh most" in check.text) == (state != "ok")


def test_a_noisy_teacher_needs_problems_with_right_and_wrong():
    assert noisy_teacher(run([[0.8, 0.2]] * 20, verdicts=[["correct", "correct"]] * 20)).state == "unknown"


@pytest.mark.parametrize(("hot", "state"), [(2, "ok"), (4, "look"), (5, "look"), (6, "bad")])
def test_consensus_of_one_teacher_in_over_half_of_the_problems_is_bad(hot, state):
    consensus = [[0.95, 0.03, 0.02]] * hot + [[0.85, 0.1, 0.05]] * (10 - hot)
    check = one_hot_consensus(run(scores={"consensus": consensus}))
    assert (check.state, check.value) == (state, f"{10 * hot} % of problems")


def lines(losses, norms=None):
    return [{"loss": x, "grad_norm": g} for x, g in zip(losses, norms or [1.0] * len(losses), strict=True)]


@pytest.mark.parametrize(
    ("log", "state", "value"),
    [
        (lines([1.0, 1.0] * 20), "ok", "loss 1 x, gradient 1 x the usual"),
        (lines([1.0] * 20 + [9.0] + [1.0] * 20), "ok", "loss 1 x"),  # one hard batch is no spike of the loss
        (lines([1.0] * 20 + [1.6] * 5 + [1.0] * 5), "look", "loss 1.6 x, gradient 1 x"),
        (lines([1.0] * 20 + [2.5] * 5), "bad", "loss 2.5 x"),
        (lines([1.0] * 30, [1.0] * 25 + [6.0] * 5), "look", "loss 1 x, gradient 6 x"),
        (lines([1.0] * 30, [1.0] * 29 + [11.0]), "bad", "loss 1 x, gradient 11 x"),
        (lines([1.0] * 29 + [None]), "bad", "not a number"),  # NaN is null in JSON
        (lines([1.0] * 30, [None, *[1.0] * 9, None, *[1.0] * 19]), "ok", "loss 1 x, gradient 1 x"),  # fp16 overflowed
        (lines([1.0] * 30, [None] * 29 + [11.0]), "ok", "loss 1 x"),  # one norm alone has no usual
        (lines([1.0] * 30, [None] * 30), "bad", "not a number"),
        (lines([1.0] * 9), "unknown", "–"),
    ],
)
def test_losses_that_stay_up_and_gradients_that_jump_are_seen(log, state, value):
    check = spikes(run(log=[*log, {"train_runtime": 9.0}]))
    assert check.state == state
    assert check.value.startswith(value)


def drift(kl, shift, role="retained"):
    layer = LayerDrift(1, shift, 0.1, 1.0, 1.0, 0.9)
    return DriftSet(role, (kl, kl, kl), (kl, kl, kl), [LayerDrift(0, None, None, 0.0, 0.0, None), layer], [], [], [])


@pytest.mark.parametrize(
    ("kl", "shift", "state"),
    [(0.01, 0.1, "ok"), (0.2, 0.1, "look"), (0.01, 0.6, "look"), (0.6, 0.1, "bad"), (0.01, 1.2, "bad")],
)
def test_large_drift_on_retained_prompts_is_told(kl, shift, state):
    check = retained_drift(run(drift=[drift(9.0, 9.0, "learned"), drift(kl, shift)]))
    assert check.state == state
    assert check.value == f"KL {kl:.2g} nats, shift {shift:.2g} spreads"
    assert retained_drift(run(drift=[drift(kl, shift, "learned")])).state == "unknown"


@pytest.mark.parametrize(
    ("wins_of_b", "problems", "state"), [(2, 40, "ok"), (0, 29, "look"), (0, 30, "bad"), (1, 100, "look")]
)
def test_a_teacher_that_is_never_the_heaviest_is_named(wins_of_b, problems, state):
    check = never_chosen(run([[0.4, 0.6]] * wins_of_b + [[0.6, 0.4]] * (problems - wins_of_b)))
    assert check.state == state
    assert check.value == f"b: heaviest in {wins_of_b} of {problems} problems"


def test_all_teachers_that_are_never_the_heaviest_are_named():
    rows = [{"id": f"p{i}", "epoch": 0.0, "teachers": list("abc"), "weights": [0.6, 0.3, 0.1]} for i in range(30)]
    check = never_chosen(RunData(path=Path("r"), name="r", trace=arrange_trace(rows)))
    assert (check.state, check.value) == ("bad", "b and c: heaviest in 0 of 30 problems")
    assert "leaving them out" in check.text


def test_a_teacher_that_was_chosen_earlier_is_not_one_never_chosen():
    rows = [
        {"id": f"p{i}", "epoch": float(e), "teachers": ["a", "b"], "weights": w}
        for e, w in enumerate(([0.4, 0.6], [0.6, 0.4]))
        for i in range(40)
    ]
    assert never_chosen(RunData(path=Path("r"), name="r", trace=arrange_trace(rows))).state == "look"


@pytest.mark.parametrize(
    ("longest_first", "state", "value"),
    [(5, "ok", "rank correlation 0.00"), (8, "look", "rank correlation 0.60"), (10, "bad", "rank correlation 1.00")],
)
def test_adaptability_that_is_length_is_bad(longest_first, state, value):
    """Of ten problems with two rationales, some where the longer one has the higher score."""
    tokens = [[10, 20]] * 10
    scores = {"adaptability": [[0.1, 0.9]] * longest_first + [[0.9, 0.1]] * (10 - longest_first)}
    check = follows_length(run(scores=scores, tokens=tokens))
    assert (check.state, check.value) == (state, value)


def test_a_run_that_holds_nothing_cannot_say():
    checks = signatures(EMPTY)
    assert len(checks) == 7
    assert {check.state for check in checks} == {"unknown"}


def test_every_report_shows_all_checks_the_worst_first(tmp_path):
    folder = make_run(tmp_path / "run", problems=20)
    page = write_report([folder]).read_text()
    checks = signatures(read_run(folder))
    assert all(check.name in page for check in checks)
    (folder / "training_log.jsonl").write_text('{"loss": null}\n' * 10)
    page = write_report([folder]).read_text()
    names = [check.name for check in checks]
    assert min(names, key=page.index) == "Spikes while training"
    assert "1 bad" in page


def test_the_limits_are_documented():
    text = (Path(__file__).resolve().parents[2] / "docs" / "report.md").read_text()
    for check in signatures(EMPTY):
        assert f"| {check.name} |" in text
