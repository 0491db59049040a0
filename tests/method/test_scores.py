"""Each score by hand, on outputs made by hand and on a student whose probabilities are known."""

from __future__ import annotations

import dataclasses
import sys
from math import log, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from compact_distill.answers import Verifier
from compact_distill.config.models import CompatibilityConfig
from compact_distill.errors import ConfigError
from compact_distill.method.encode import Branch, EncodedProblem, Encoder
from compact_distill.method.forward import attach
from compact_distill.method.outputs import StudentOutputs
from compact_distill.method.passes import plan_jobs, read_job
from compact_distill.method.scores import (
    _EXTRA,
    Scorer,
    adaptability,
    agreement,
    consensus,
    difficulty,
    local_naturalness,
    rank_surprisal,
    register_score,
)
from compact_distill.records import Instance, Rationale, RationaleStatus
from models import byte_level_tokenizer, tiny_model


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


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0.01, 9)), min_size=1, max_size=8), st.integers(1, 600))
def test_rank_surprisal_lies_between_one_and_the_clip_over_the_mean_surprisal(tokens, clip):
    ranks, surprisals = zip(*tokens, strict=True)
    made = outputs(
        rank_BKT=torch.tensor([[ranks, ranks[::-1]]]),
        nll_BKT=torch.tensor([[surprisals, surprisals[::-1]]], dtype=torch.float64),
    )
    forwards, backwards = rank_surprisal(made, clip)[0].tolist()
    assert forwards == pytest.approx(backwards), "the order of tokens does not matter"
    mean = sum(surprisals) / len(surprisals)
    assert 1 / mean * (1 - 1e-9) <= forwards <= min(clip, max(ranks)) / mean * (1 + 1e-9)
    assert forwards <= rank_surprisal(made, clip + 1)[0, 0].item() * (1 + 1e-9)


# What follows each of the tokens 0..3 of the student below, and how likely.
FOLLOWS = torch.tensor(
    [[1 / 2, 1 / 4, 1 / 8, 1 / 8], [1 / 8, 1 / 2, 1 / 4, 1 / 8], [1 / 4] * 4, [1 / 16, 1 / 16, 1 / 8, 3 / 4]],
    dtype=torch.float64,
)


def bigram_student():
    """A Llama whose layers add nothing, so that the next token depends on the last one alone, by FOLLOWS."""
    model = tiny_model("llama", layers=1, rms_norm_eps=1e-30)
    width = model.config.hidden_size
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight[:4] = torch.eye(4, width)  # a norm makes it sqrt(width) long
        model.lm_head.weight.fill_(-1000.0)
        model.lm_head.weight[:4] = 0.0
        model.lm_head.weight[:4, :4] = FOLLOWS.log().T / sqrt(width)
    attach(model)
    return model


def test_scores_of_a_student_whose_probabilities_are_known():
    # 0 -> 1 (1/4, rank 2), 1 -> 2 (1/4, 2), 2 -> 0 (1/4, 1), 0 -> 0 (1/2, 1), 0 -> 3 (1/8, 3), 3 -> eos = 3 (3/4, 1);
    # steps [1, 2] and [0, 0]. The gold answer, 3, is 1/8 after 0, 1/8 after 1 and 1/4 after 2.
    branch = Branch((1, 2, 0, 0), (3,), 3, (True, True, True, True), (), (0, 2))
    problem = EncodedProblem("p", ("a",), (0,), (branch,), (RationaleStatus.OK,), (3,), 0, 1)
    further = {"rank_surprisal": -1.0, "local_naturalness": 1.0}
    scorer = Scorer(CompatibilityConfig(estimator="lens", gain="positive", extra_scores=further))
    options = scorer.pass_options(0.0)
    model = bigram_student()
    (job,) = plan_jobs([problem], options, 1000, torch.device("cpu"))
    with torch.no_grad():
        found = {name: score.item() for name, score in scorer.scores(read_job(model, job, options)).items()}
    surprisal = 10 * log(2) - log(3 / 4)
    assert found["difficulty"] == pytest.approx(surprisal / 6, abs=1e-12)
    assert found["rank_surprisal"] == pytest.approx(10 / surprisal, abs=1e-12)
    assert found["local_naturalness"] == pytest.approx(-(2 + 1.5) / 2 * log(2), abs=1e-12)
    assert found["adaptability"] == pytest.approx(log(2), abs=1e-12)
    assert found["consensus"] == 0.0


def test_a_window_that_holds_all_steps_reads_them_in_full_context():
    model = tiny_model("llama")
    attach(model)
    steps = (0, 2, 3, 7)
    branch = Branch(tuple(range(40, 50)), (7,), 1, (False,) * 10, (), steps)
    problem = EncodedProblem("p", ("a",), (5, 6), (branch,), (RationaleStatus.OK,), (7,), 0, 1)
    found = {}
    for window in (1, 3):
        config = CompatibilityConfig(extra_scores={"local_naturalness": 1.0}, local_steps=window)
        options = Scorer(config).pass_options(0.0)
        (job,) = plan_jobs([problem], options, 1000, torch.device("cpu"))
        with torch.no_grad():
            read = read_job(model, job, options)
        in_full = [-read.nll_BKT[0, 0, a:b].mean() for a, b in zip(steps, (*steps[1:], 10), strict=True)]
        found[window] = Scorer(config).scores(read)["local_naturalness"].item(), torch.stack(in_full).mean().item()
    assert found[3][0] == pytest.approx(found[3][1], abs=1e-12)
    assert found[1][0] != pytest.approx(found[1][1], abs=1e-3), "a narrow window reads otherwise"


@given(st.permutations(range(4)), st.integers(0, 99))
def test_permuting_teachers_permutes_every_score(order, seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(1, 4, *shape, generator=random, dtype=torch.float64)  # noqa: E731
    there = torch.ones(1, 4, 5, dtype=torch.bool)
    made = outputs(
        present_BK=torch.tensor([[True, True, False, True]]), nll_BKT=draw(5).abs(), length_BK=there.sum(-1),
        belief_BKP=draw(5), point_BKP=there, thinking_BKP=draw(5) > 0, query_BKHD=draw(4, 3), key_BKGD=draw(2, 3),
        rank_BKT=torch.randint(1, 200, (1, 4, 5), generator=random), local_BK=draw(),
    )  # fmt: skip
    tensors = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    permuted = {name: value[:, order] for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    for score in (
        consensus,
        lambda o: consensus(o, "heads"),
        adaptability,
        difficulty,
        rank_surprisal,
        local_naturalness,
    ):
        torch.testing.assert_close(score(outputs(**permuted)), score(made)[:, order])


@pytest.mark.parametrize("kind", ["joint", "heads"])
@given(st.integers(0, 99), st.floats(0.1, 30))
def test_consensus_is_attention_that_each_path_gives_once(kind, seed, size):
    random = torch.Generator().manual_seed(seed)
    made = outputs(
        present_BK=torch.tensor([[True, True, False, True]]),
        query_BKHD=size * torch.randn(1, 4, 4, 3, generator=random, dtype=torch.float64),
        key_BKGD=torch.randn(1, 4, 2, 3, generator=random, dtype=torch.float64),
    )
    row = consensus(made, kind)[0]
    assert row[2] == 0.0
    assert all(0 <= value <= 2 for value in row.tolist()), "two others give at most all they have"
    assert row.sum() <= 3.0 + 1e-9, "three paths give 1 each, part of it to themselves"


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


@settings(max_examples=30, deadline=None)
@given(st.permutations(["3", "3.0", "4", None, "5"]))
def test_agreement_is_mutual_and_goes_with_its_rationale(answers):
    texts = tuple(Rationale(f"t{k}", "" if a is None else f"So.\nThe answer is {a}.") for k, a in enumerate(answers))
    with Verifier() as verifier:
        problem = Encoder(byte_level_tokenizer())(Instance("p", "Why?", "3", texts), verifier)
    expected = {"3": 1 / 3, "3.0": 1 / 3, "4": 0.0, None: 0.0, "5": 0.0}
    assert problem.agreement == pytest.approx(tuple(expected[answer] for answer in answers))


@pytest.mark.parametrize(
    ("score", "best"),
    [
        ("consensus", 1),
        ("adaptability", 1),
        ("difficulty", 0),  # GRAPE
        ("rank_surprisal", 0),  # RSR
        ("local_naturalness", 1),  # LALP
        ("agreement", 1),
    ],
)
def test_the_best_is_the_least_difficult_and_least_surprising_in_rank_and_the_most_of_all_else(score, best):
    branches = (Branch((1,), (2,), 0, (False,), ()),) * 2
    problem = EncodedProblem("p", ("a", "b"), (1,), branches, (RationaleStatus.OK,) * 2, (2,), 0, 1)
    weights = Scorer(weighting={"best": score}).weights({score: torch.tensor([[1.0, 2.0]])}, [problem])
    assert weights[0].tolist() == [float(k == best) for k in range(2)]


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
@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda outputs: outputs.length_BK.sum(), r"must return a \[B, K\] tensor of shape \(1, 2\), got \(\)"),
        (lambda outputs: outputs.length_BK.tolist(), r"must return a \[B, K\] tensor of shape \(1, 2\), got list"),
        (lambda outputs: outputs.nothing, "'wrong' failed: AttributeError: .* mend its function"),
        (lambda outputs: torch.tensor([[1.0, torch.nan]]), "wherever a rationale takes part, got nan for 'b' on 'p'"),
    ],
)
def test_a_users_score_that_fails_is_named_with_its_fault(score, message):
    register_score("wrong", score)
    branches = (Branch((1,), (2,), 0, (False,), ()),) * 2
    problem = EncodedProblem("p", ("a", "b"), (1,), branches, (RationaleStatus.OK,) * 2, (2,), 0, 1)
    with pytest.raises(ConfigError, match=message):
        Scorer(CompatibilityConfig(extra_scores={"wrong": 1.0})).scores(outputs(problems=(problem,)))


@pytest.mark.usefixtures("registry")
def test_a_users_score_is_not_blamed_for_a_student_without_numbers_nor_for_missing_rationales():
    register_score("mine", lambda outputs: outputs.nll_BKT.sum(-1))
    scorer = Scorer(CompatibilityConfig(extra_scores={"mine": 1.0}))
    nll_BKT = torch.tensor([[[1.0, 2.0, 6.0], [torch.nan, 2.0, 0.0]]])
    for present_BK in (torch.tensor([[True, True]]), torch.tensor([[True, False]])):
        assert scorer.scores(outputs(nll_BKT=nll_BKT, present_BK=present_BK))["mine"][0, 1].isnan()


def test_autocast_does_not_round_scores():
    made = outputs(query_BKHD=torch.randn(1, 2, 2, 2), key_BKGD=torch.randn(1, 2, 1, 2))
    plain = Scorer().scores(made)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = Scorer().scores(made)
    assert all(torch.equal(plain[name], under[name]) for name in plain)


FILE = """
from __future__ import annotations
from dataclasses import dataclass
from compact_distill import register_score

@dataclass
class Scaled:
    factor: float

register_score("mine", lambda outputs: outputs.length_BK * Scaled({}).factor)
"""


@pytest.mark.usefixtures("registry")
def test_each_configuration_reads_the_scores_of_its_own_file_as_it_is_now(tmp_path):
    def scorer(folder):
        config = CompatibilityConfig(
            scores_from=str(tmp_path / folder / "my_scores.py"), extra_scores={"mine": 1.0}, consensus=0.0
        )
        return Scorer(config)

    def write(folder, factor):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "my_scores.py").write_text(FILE.format(factor))

    def read(scorer):
        return scorer.scores(outputs())["mine"].tolist()

    write("a", 1.0)
    write("b", 2.0)
    first, second = scorer("a"), scorer("b")
    assert read(second) == [[6.0, 4.0]]  # another file of the same name
    assert read(first) == [[3.0, 2.0]]  # and the first goes on with its own
    assert read(scorer("a")) == [[3.0, 2.0]]  # which counts again where it is named again
    write("a", 5.0)
    assert read(scorer("a")) == [[15.0, 10.0]]  # edited
    assert read(first) == [[3.0, 2.0]]


@pytest.mark.usefixtures("registry")
def test_a_file_of_scores_runs_once_and_one_that_fails_leaves_no_module(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text(f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n")
    for _ in range(2):
        Scorer(CompatibilityConfig(scores_from=str(path)))
    assert (tmp_path / "runs").read_text() == "x"
    before = set(sys.modules)
    path.write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        Scorer(CompatibilityConfig(scores_from=str(path)))
    assert set(sys.modules) == before
