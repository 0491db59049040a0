"""Scores to weights: values by hand and properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from compact_distill.errors import ConfigError, DataError
from compact_distill.method.encode import Branch, EncodedProblem
from compact_distill.method.weights import (
    ALL_RULES,
    EPSILON,
    RuleSettings,
    RunningStatistics,
    build_rule,
    compatibility_weights,
    register_rule,
    standardise,
    weigh,
)
from compact_distill.records import RationaleStatus, Verdict

ALL = torch.tensor([[True, True, True]])


def compact(scores, present=None, coefficient=1.0, temperature=1.0, running=None):
    scores = torch.tensor([scores], dtype=torch.float64)
    present = torch.ones_like(scores, dtype=torch.bool) if present is None else torch.tensor([present])
    return compatibility_weights({"s": scores}, {"s": coefficient}, present, temperature, running)[0]


def test_z_scores_by_hand():
    z = standardise(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), ALL)
    torch.testing.assert_close(z, torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64) / 1.0001)


def test_two_teachers_by_hand():
    # std of (1, 2) is 1 / sqrt 2, so z = +-0.5 / (0.70711 + 1e-4) = +-0.70701, and alpha = 1 / (1 + e^1.41401)
    assert compact([1.0, 2.0]).tolist() == pytest.approx([0.195602, 0.804398], abs=1e-6)


def test_three_scores_are_summed_with_their_coefficients():
    # consensus z = (1, 0, -1), difficulty z = (-1, 0, 1) with b = -0.5: sum = (1.5, 0, -1.5) / 1.0001
    scores = {"consensus": torch.tensor([[3.0, 2.0, 1.0]]), "difficulty": torch.tensor([[4.0, 5.0, 6.0]])}
    alpha = compatibility_weights(scores, {"consensus": 1.0, "difficulty": -0.5}, ALL)
    expected = torch.softmax(torch.tensor([[1.5, 0.0, -1.5]]) / 1.0001, -1)
    torch.testing.assert_close(alpha, expected)


def test_equal_scores_give_equal_weights():
    assert compact([2.5] * 4).tolist() == [0.25] * 4


def test_coefficients_of_zero_give_equal_weights():
    assert compact([1.0, 5.0, 9.0], coefficient=0.0).tolist() == pytest.approx([1 / 3] * 3)


def test_a_missing_teacher_weighs_nothing_and_changes_nothing_else():
    with_missing = compact([1.0, 99.0, 2.0], present=[True, False, True])
    assert with_missing.tolist() == pytest.approx([compact([1.0, 2.0])[0].item(), 0.0, compact([1.0, 2.0])[1].item()])


def test_one_present_teacher_weighs_one():
    assert compact([7.0, 1.0], present=[False, True]).tolist() == [0.0, 1.0]


def test_no_present_teacher_weighs_nothing():
    assert compact([7.0, 1.0], present=[False, False]).tolist() == [0.0, 0.0]


@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=8),
    st.randoms(use_true_random=False),
    st.floats(0.1, 10),
)
def test_rows_sum_to_one_and_permuting_teachers_permutes_weights(scores, random, temperature):
    weights = compact(scores, temperature=temperature)
    assert weights.sum().item() == pytest.approx(1.0)
    order = list(range(len(scores)))
    random.shuffle(order)
    permuted = compact([scores[i] for i in order], temperature=temperature)
    torch.testing.assert_close(permuted, weights[order], atol=1e-9, rtol=1e-9)


def test_high_temperature_levels_and_low_temperature_sharpens():
    assert compact([1.0, 2.0, 4.0], temperature=1e6).tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)
    assert compact([1.0, 2.0, 4.0], temperature=0.01)[2].item() == pytest.approx(1.0)


def test_no_gradient_flows_through_a_weight():
    scores = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert not compatibility_weights({"s": scores}, {"s": 1.0}, torch.tensor([[True, True]])).requires_grad


def test_running_statistics_do_not_depend_on_how_values_arrive():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 5
    whole, parts = RunningStatistics(), RunningStatistics()
    whole.update("s", values)
    for part in values.split([1, 2, 30, 67]):
        parts.update("s", part)
    assert whole.moments["s"] == pytest.approx(parts.moments["s"])
    count, mean, squares = parts.moments["s"]
    assert (mean, (squares / (count - 1)) ** 0.5) == pytest.approx((values.mean().item(), values.std().item()))


def test_running_standardisation_keeps_magnitude_where_two_teachers_lose_it():
    running = RunningStatistics()
    running.update("s", torch.tensor([0.0, 10.0, 20.0]))
    near = compact([10.0, 10.1], running=running)
    far = compact([0.0, 20.0], running=running)
    assert near[1].item() == pytest.approx(0.5, abs=0.01)
    assert far[1].item() == pytest.approx(1 / (1 + 2.718281828 ** (-2 / 1.00001)), abs=1e-3)


def test_running_statistics_count_as_by_problem_until_two_values_were_seen():
    score, present = torch.tensor([[1.0, 2.0, 3.0]]), ALL
    running = RunningStatistics()
    for seen in ([], [50.0]):
        running.update("s", torch.tensor(seen))
        torch.testing.assert_close(running.standardise("s", score, present), standardise(score, present))
    running.update("s", torch.tensor([52.0]))
    assert running.standardise("s", score, present)[0, 0].item() == pytest.approx((1 - 51) / (2**0.5 + EPSILON))


def test_running_statistics_without_spread_divide_by_epsilon_alone():
    running = RunningStatistics()
    running.update("s", torch.tensor([3.0, 3.0, 3.0]))
    z = running.standardise("s", torch.tensor([[3.0, 3.5, 9.0]]), torch.tensor([[True, True, False]]))
    assert z.tolist()[0] == pytest.approx([0.0, 0.5 / 1e-4, 0.0], rel=1e-5)
    assert standardise(torch.tensor([[3.0, 3.0, 3.0]]), ALL).tolist() == [[0.0, 0.0, 0.0]]


# ---- rules

RIGHT, WRONG = Verdict.CORRECT, Verdict.WRONG
SCORES = {
    "consensus": [0.1, 0.9, 0.5, 0.5],
    "adaptability": [2.0, 1.0, 4.0, 0.0],
    "difficulty": [0.5, 0.25, 1.0, 0.75],
    "rank_surprisal": [3.0, 2.0, 5.0, 4.0],
    "local_naturalness": [-3.0, -2.0, -1.0, -4.0],
}
LESS = ("difficulty", "rank_surprisal")  # is better
DIRECTIONS = {name: -1.0 if name in LESS else 1.0 for name in SCORES}
COEFFICIENTS = {"consensus": 1.0, "adaptability": 1.0, "difficulty": -0.5}
TEACHERS = ("a", "a#1", "b", "c")


def problem(present=(True,) * 4, verdicts=(RIGHT, WRONG, RIGHT, None), given=(1, 0, 3.0, 4), name="p"):
    branches = tuple(Branch((1,), (2,), 0, (False,), ()) if there else None for there in present)
    statuses = tuple(RationaleStatus.OK if there else RationaleStatus.MISSING for there in present)
    return EncodedProblem(name, TEACHERS, (1,), branches, statuses, (2,), 0, 1, verdicts=verdicts, given=given)


def by_rule(weighting, problems=None, epoch=0, seed=42, scores=None):
    problems = problems or [problem()]
    settings = RuleSettings(COEFFICIENTS, seed=seed, directions=DIRECTIONS)
    tensors = {
        name: torch.tensor([row] * len(problems), dtype=torch.float64) for name, row in (scores or SCORES).items()
    }
    return weigh(build_rule(weighting, settings), problems, tensors, epoch).tolist()


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("equal", [0.25, 0.25, 0.25, 0.25]),
        ("verified", [0.5, 0.0, 0.5, 0.0]),
        ({"best": "difficulty"}, [0.0, 1.0, 0.0, 0.0]),  # GRAPE: the likeliest
        ({"best": "rank_surprisal"}, [0.0, 1.0, 0.0, 0.0]),  # RSR: the lowest ratio
        ({"best": "adaptability"}, [0.0, 0.0, 1.0, 0.0]),
        ({"fixed": {"a": 1.0, "b": 2}}, [0.25, 0.25, 0.5, 0.0]),  # a's second sample weighs what a does
        ({"fixed": {"a": 1, "a#1": 0, "b": 3}}, [0.25, 0.0, 0.75, 0.0]),
        ({"fixed": "data"}, [0.125, 0.0, 0.375, 0.5]),
        ({"gate": {"best": "difficulty"}}, [1.0, 0.0, 0.0, 0.0]),
        ({"gate": {"fixed": "data"}}, [0.25, 0.0, 0.75, 0.0]),
        ({"gate": "verified"}, [0.5, 0.0, 0.5, 0.0]),
        ({"best": "local_naturalness"}, [0.0, 0.0, 1.0, 0.0]),  # LALP
    ],
)
def test_rules_by_hand(weighting, expected):
    assert by_rule(weighting)[0] == pytest.approx(expected, abs=1e-15)


def test_the_method_over_the_right_ones_by_hand():
    # Of a and b consensus is 0.1 and 0.5, adaptability 2 and 4, difficulty 0.5 and 1: z = -+0.706856, -+0.707057,
    # -+0.706907. With coefficients 1, 1, -0.5 the sums are -+1.060460, and alpha_a = 1 / (1 + e^2.120921).
    assert by_rule({"gate": "compact"})[0] == pytest.approx([0.107080, 0.0, 0.892920, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("seed", "epoch", "name", "all_four", "without_the_second"),
    [  # the first six digits of `printf SEED/EPOCH/ID | sha256sum`, over 16^6, times 4 or 3, without its fraction
        (42, 0, "p", 0, 0),  # 2df485: 0.1795 * 4 = 0.72, * 3 = 0.54
        (42, 1, "p", 3, 3),  # c1aee0: 0.7566 * 4 = 3.03, * 3 = 2.27: the third of those that are there
        (42, 0, "q", 1, 2),  # 60de5f: 0.3784 * 4 = 1.51, * 3 = 1.14: the second of those that are there
        (43, 0, "p", 3, 3),  # cab4eb: 0.7918 * 4 = 3.17, * 3 = 2.38
    ],
)
def test_random_draws_by_hand(seed, epoch, name, all_four, without_the_second):
    for present, drawn in (((True,) * 4, all_four), ((True, False, True, True), without_the_second)):
        row = by_rule("random", [problem(present, name=name)], epoch, seed)[0]
        assert row == [float(k == drawn) for k in range(4)]


RULES = [
    "compact",
    "equal",
    "random",
    "verified",
    {"fixed": {"a": 0.3, "c": 2.0}},
    {"fixed": "data"},
    {"best": "difficulty"},
    {"best": "consensus"},
    {"best": "rank_surprisal"},
    {"best": "local_naturalness"},
    {"gate": "compact"},
    {"gate": "random"},
    {"gate": {"best": "adaptability"}},
    {"gate": {"fixed": {"a": 1.0}}},
]
bools = st.lists(st.booleans(), min_size=4, max_size=4)


@pytest.mark.parametrize("weighting", RULES, ids=str)
@given(bools, bools, st.lists(st.floats(-5, 5), min_size=20, max_size=20), st.integers(0, 9))
def test_rules_are_the_reference(weighting, present, right, values, epoch):
    scores = {name: values[4 * i : 4 * i + 4] for i, name in enumerate(SCORES)}
    made = problem(tuple(present), tuple(RIGHT if r else WRONG for r in right))
    mine = by_rule(weighting, [made], epoch, scores=scores)[0]
    drawn_by = f"42/{epoch}/p"
    theirs = reference.rule_weights(
        weighting, scores, list(TEACHERS), present, right, [1, 0, 3.0, 4], drawn_by=drawn_by
    )
    assert mine == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("weighting", RULES, ids=str)
@given(bools, bools)
def test_a_row_sums_to_one_over_candidates_or_is_skipped(weighting, present, right):
    made = problem(tuple(present), tuple(RIGHT if r else WRONG for r in right))
    settings = RuleSettings(COEFFICIENTS, directions=DIRECTIONS)
    candidates = build_rule(weighting, settings).candidates(made)
    row = by_rule(weighting, [made])[0]
    assert sum(row) == pytest.approx(1.0 if candidates else 0.0)
    assert all(weight == 0.0 for k, weight in enumerate(row) if k not in candidates)
    assert all(present[k] for k in candidates)


def test_random_draws_one_a_problem_anew_each_epoch_the_same_whatever_the_batch():
    problems = [problem(name=f"p{i}") for i in range(400)]
    together = by_rule("random", problems)
    assert together == [by_rule("random", [p])[0] for p in problems]
    assert all(sorted(row) == [0.0, 0.0, 0.0, 1.0] for row in together)
    shares = torch.tensor(together).mean(0)
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.08)
    later, other = by_rule("random", problems, epoch=1), by_rule("random", problems, seed=43)
    for redrawn in (later, other):
        same = sum(a == b for a, b in zip(together, redrawn, strict=True))
        assert same == pytest.approx(100, abs=40)


def test_random_under_a_gate_draws_among_the_right_ones():
    rows = by_rule({"gate": "random"}, [problem(name=f"p{i}") for i in range(50)])
    assert {row.index(1.0) for row in rows} == {0, 2}


def test_a_problem_without_a_right_rationale_is_skipped():
    wrong = problem(verdicts=(WRONG, WRONG, Verdict.UNPARSED, None))
    for weighting in ("verified", {"gate": "compact"}, {"gate": "random"}):
        assert by_rule(weighting, [wrong]) == [[0.0] * 4]


def test_weights_carry_no_gradient():
    scores = {name: torch.tensor([row], requires_grad=True) for name, row in SCORES.items()}
    for weighting in RULES:
        rule = build_rule(weighting, RuleSettings(COEFFICIENTS, directions=DIRECTIONS))
        assert not weigh(rule, [problem()], scores).requires_grad


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        ("verifed", r"must be one of the rules compact, .*got 'verifed'; did you mean 'verified'\?"),
        ({"best": "dificulty"}, r"weighting.best must be one of the scores .*did you mean 'difficulty'\?"),
        ({"best": None}, "must name a score, got None"),
        ({"equal": 3}, "takes no argument, got 3"),
        ({"fixed": {"a": -1}}, "a weight >= 0 a teacher"),
        ({"fixed": {"a": 0}}, "one of them > 0"),
        ({"fixed": {"a": True}}, "a weight >= 0 a teacher"),
        ({"fixed": "date"}, "must be `data`"),
        ({"gate": None}, "must hold a rule, got nothing"),
        ({"gate": "x"}, "must be one of the rules"),
        ({"best": "difficulty", "gate": "equal"}, "one rule with its argument"),
    ],
)
def test_a_wrong_rule_is_one_clear_error(weighting, message):
    with pytest.raises(ConfigError, match=message):
        by_rule(weighting)


def test_fixed_names_teachers_that_exist():
    rule = build_rule({"gate": {"fixed": {"gpt4": 1.0}}}, RuleSettings())
    assert rule.check(["gpt-4", "qwq"]) == [
        "weighting.fixed names teacher 'gpt4', of whom the data has no rationale; did you mean 'gpt-4'?; "
        "its teachers are gpt-4, qwq"
    ]
    assert rule.check(["gpt4"]) == []


@pytest.mark.parametrize("weight", [None, -1, "1", True, float("nan")])
def test_weights_of_the_data_are_numbers(weight):
    with pytest.raises(DataError, match=r"problem 'p', 'a': weight must be a number >= 0, got"):
        by_rule({"fixed": "data"}, [problem(given=(weight, 1, 1, 1))])


def test_users_add_rules():
    class First:
        scores = ()
        needs_verdicts = False

        def candidates(self, problem):
            return problem.present[:1]

        def weigh(self, evidence):
            return evidence.candidate_BK.double()

        def check(self, teachers):
            return []

    before = dict(ALL_RULES)
    try:
        register_rule("first", lambda argument, settings: First())
        assert by_rule({"gate": "first"}) == [[1.0, 0.0, 0.0, 0.0]]
        with pytest.raises(ConfigError, match="must differ from"):
            register_rule("equal", lambda argument, settings: First())
    finally:
        ALL_RULES.clear()
        ALL_RULES.update(before)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([[1.0, 0.0, 1.0, 0.0]], r"sum to 1 .* got \[1.0, 0.0, 1.0, 0.0\] for 'p'"),
        ([[2.0, 0.0, -1.0, 0.0]], "numbers >= 0"),
        ([[0.5, 0.5, 0.0, 0.0]], "0 to the others"),  # the second is not right
        ([[math.nan] * 4], "numbers >= 0"),
        ([1.0, 0.0, 0.0, 0.0], r"a tensor of \(1, 4\), got \(4,\)"),
    ],
)
def test_a_rule_that_gives_no_shares_of_its_candidates_is_refused(found, message):
    rule = build_rule("verified", RuleSettings())
    rule.weigh = lambda evidence: torch.tensor(found)
    with pytest.raises(ConfigError, match=message):
        weigh(rule, [problem()], {"consensus": torch.tensor([SCORES["consensus"]])})


def test_shares_of_very_small_weights_of_the_data_are_exact():
    assert by_rule({"fixed": "data"}, [problem(given=(1e-300, 0, 3e-300, 0))])[0] == [0.25, 0.0, 0.75, 0.0]
    settings = RuleSettings()
    single = {"consensus": torch.tensor([SCORES["consensus"]])}
    assert weigh(build_rule({"fixed": {"a": 1e-60, "b": 2e-60}}, settings), [problem()], single)[0].tolist() == (
        [0.25, 0.25, 0.5, 0.0]
    )
