"""Each score by hand, on outputs made by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from compact_distill.answers import Verifier
from compact_distill.config.models import CompatibilityConfig
from compact_distill.errors import ConfigError
from compact_distill.method.encode import Branch, EncodedProblem, Encoder
from compact_distill.method.outputs import StudentOutputs
from compact_distill.method.scores import (
    _EXTRA,
    Scorer,
    adaptability,
    agreement,
    consensus,
    difficulty,
    rank_surprisal,
    register_score,
)
from compact_distill.records import Instance, Rationale, RationaleStatus
from models import byte_level_tokenizer


def outputs(**changes) -> StudentOutputs:
    """Two rationales: of 3 and 2 completion tokens, with 4 and 3 reading points."""
    made = StudentOutputs(
        problems=(),
        present_BK=torch.tensor([[True, True]]),
        nll_BKT=torch.tensor([[[1.0, 2.0, 6.0], [4.0, 2.0, 0.0]]]),
        length_BK=torch.tensor([[3, 2]]),
        belief_BKP=torch.tensor([[[-5.0, -3.0, -4.0, -1.0], [-2.0, -2.5, -1.5, 0.0]]]),
        point_BKP=torch.tensor([[[True] * 4, [True] * 3 + [False]]]),
        thinking_BKP=torch.tensor([[[False, True, False, False], [False, False, True, False]]]),
        query_BKHD=torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]]]),
        key_BKGD=torch.tensor([[[[1.0, 1.0]], [[3.0, 0.0]]]]),
        gold_logprob=(),
    )
    return dataclasses.replace(made, **changes)


def test_difficulty_is_the_mean_over_each_rationales_own_tokens():
    assert difficulty(outputs()).tolist() == [[3.0, 3.0]]


def test_positive_gain_sums_rises_and_counts_other_tokens_a_tenth():
    # first: 2 at a thinking token + 0.1 * 3; second: 1 at a thinking token (falls and padding are nothing)
    assert adaptability(outputs())[0].tolist() == pytest.approx([2.3, 1.0])
    assert adaptability(outputs(), off_weight=1.0)[0].tolist() == pytest.approx([5.0, 1.0])


def test_net_gain_is_the_end_minus_the_start():
    assert adaptability(outputs(), "net")[0].tolist() == pytest.approx([4.0, 0.5])


def test_peak_gain_is_the_largest_weighted_rise():
    assert adaptability(outputs(), "peak")[0].tolist() == pytest.approx([2.0, 1.0])
    assert adaptability(outputs(), "peak", off_weight=1.0)[0].tolist() == pytest.approx([3.0, 1.0])


def test_a_rationale_without_reasoning_gains_nothing():
    none = outputs(
        belief_BKP=torch.tensor([[[-5.0], [-2.0]]]),
        point_BKP=torch.tensor([[[True], [True]]]),
        thinking_BKP=torch.tensor([[[False], [False]]]),
    )
    for gain in ("positive", "net", "peak"):
        assert adaptability(none, gain).tolist() == [[0.0, 0.0]]


def test_consensus_of_two_by_hand():
    # Both query heads share the one key head. L_00 = 1 + 1, L_01 = 3 + 0, L_10 = 2, L_11 = 6, each over sqrt(2 * 2).
    c = consensus(outputs())
    a01 = torch.softmax(torch.tensor([1.0, 1.5]), 0)[1]
    a10 = torch.softmax(torch.tensor([1.0, 3.0]), 0)[0]
    torch.testing.assert_close(c, torch.stack([a10, a01])[None])


def test_consensus_leaves_missing_teachers_out():
    alone = consensus(outputs(present_BK=torch.tensor([[True, False]])))
    assert alone.tolist() == [[0.0, 0.0]]
    assert consensus(outputs(present_BK=torch.tensor([[False, False]]))).tolist() == [[0.0, 0.0]]


def test_consensus_by_heads_by_hand():
    # Head 0: L_00 = 1, L_01 = 3, L_10 = 2, L_11 = 6; head 1: L_00 = 1, L_01 = 0, L_10 = L_11 = 0; each over sqrt(2).
    softmax = lambda *logits: torch.softmax(torch.tensor(logits) / 2**0.5, 0)  # noqa: E731
    a01 = (softmax(1.0, 3.0)[1] + softmax(1.0, 0.0)[1]) / 2
    a10 = (softmax(2.0, 6.0)[0] + softmax(0.0, 0.0)[0]) / 2
    torch.testing.assert_close(consensus(outputs(), "heads"), torch.stack([a10, a01])[None])


def test_where_the_joint_softmax_is_one_hot_heads_are_not():
    large = outputs(query_BKHD=outputs().query_BKHD * 40)
    assert consensus(large).max() > 0.999
    assert consensus(large, "heads").max() < 0.8


def test_rank_surprisal_by_hand():
    # Ranks 1, 200, 3 count as 1, 100, 3 over surprisals 1 + 2 + 6; ranks 2, 4 over 4 + 2.
    ranked = outputs(rank_BKT=torch.tensor([[[1, 200, 3], [2, 4, 0]]]))
    assert rank_surprisal(ranked)[0].tolist() == pytest.approx([104 / 9, 1.0])
    assert rank_surprisal(ranked, clip=2)[0].tolist() == pytest.approx([5 / 9, 4 / 6])


def test_a_missing_rationale_has_no_ratio():
    ranked = outputs(rank_BKT=torch.ones(1, 2, 3, dtype=torch.long), present_BK=torch.tensor([[True, False]]))
    assert rank_surprisal(ranked)[0, 1].item() == 0.0


def test_agreement_is_read_off_the_problems_and_must_have_been_looked_for():
    branches = (Branch((1,), (2,), 0, (False,), ()),) * 2
    bare = EncodedProblem("p", ("a", "b"), (1,), branches, (RationaleStatus.OK,) * 2, (2,), 0, 1)
    looked = dataclasses.replace(bare, agreement=(1.0, 0.5))
    assert agreement(outputs(problems=(looked,))).tolist() == [[1.0, 0.5]]
    with pytest.raises(ConfigError, match="answers that were compared, those of problem 'p' were not"):
        agreement(outputs(problems=(bare,)))


@given(st.lists(st.sampled_from(["3", "3.0", "4", None]), min_size=1, max_size=6))
def test_agreement_is_the_reference(answers):
    rationales = tuple(
        Rationale(f"t{k}", "" if answer is None else f"So.\nThe answer is {answer}.")
        for k, answer in enumerate(answers)
    )
    with Verifier() as verifier:
        problem = Encoder(byte_level_tokenizer())(Instance("p", "Why?", "3", rationales), verifier)
    expected = reference.agreement(answers, lambda a, b: float(a) == float(b))
    assert problem.agreement == pytest.approx(tuple(expected))


def test_scores_are_read_where_a_coefficient_or_a_rule_asks_for_them():
    assert Scorer().names == ("consensus", "adaptability", "difficulty")
    assert not Scorer().needs_verdicts
    ranked = Scorer(weighting={"gate": {"best": "rank_surprisal"}})
    assert ranked.names[3:] == ("rank_surprisal",)
    assert ranked.pass_options(0.1).ranks
    assert ranked.pass_options(0.1).window is None
    local = Scorer(CompatibilityConfig(extra_scores={"local_naturalness": 1.0, "agreement": 0.5}, local_steps=3))
    assert local.pass_options(0.1).window == 3
    assert local.needs_verdicts


@pytest.fixture
def registry():
    before = dict(_EXTRA)
    yield
    _EXTRA.clear()
    _EXTRA.update(before)


@pytest.mark.usefixtures("registry")
def test_a_users_score_takes_part_with_its_coefficient():
    register_score("brevity", lambda outputs: -outputs.length_BK.float())
    extra = {"brevity": 1.0}
    off = CompatibilityConfig(consensus=0, adaptability=0, difficulty=0, temperature=1.0, extra_scores=extra)
    scorer = Scorer(off)
    scores = scorer.scores(outputs())
    assert scores["brevity"].tolist() == [[-3.0, -2.0]]
    branches = (Branch((1,), (2,), 0, (False,), ()),) * 2
    problem = EncodedProblem("p", ("a", "b"), (1,), branches, (RationaleStatus.OK,) * 2, (2,), 0, 1)
    weights = scorer.weights(scores, [problem])
    assert weights[0].tolist() == pytest.approx([0.195602, 0.804398], abs=1e-4)


@pytest.mark.usefixtures("registry")
def test_an_unregistered_score_is_named_with_the_nearest():
    register_score("brevity", lambda outputs: -outputs.length_BK.float())
    with pytest.raises(ConfigError, match="did you mean 'brevity'"):
        Scorer(CompatibilityConfig(extra_scores={"brevty": 1.0}))
    with pytest.raises(ConfigError, match="built-in"):
        register_score("consensus", lambda outputs: outputs.length_BK)


@pytest.mark.usefixtures("registry")
def test_a_score_of_the_wrong_shape_is_refused():
    register_score("wrong", lambda outputs: outputs.length_BK.sum())
    with pytest.raises(ConfigError, match=r"must return a \[B, K\] tensor"):
        Scorer(CompatibilityConfig(extra_scores={"wrong": 1.0})).scores(outputs())


def test_autocast_does_not_round_scores():
    made = outputs(query_BKHD=torch.randn(1, 2, 2, 2), key_BKGD=torch.randn(1, 2, 1, 2))
    plain = Scorer().scores(made)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = Scorer().scores(made)
    assert all(torch.equal(plain[name], under[name]) for name in plain)
