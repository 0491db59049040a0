"""The reference itself, against values computed by hand: it judges the package, so it is judged first."""

from __future__ import annotations

from math import exp, log, sqrt
from types import SimpleNamespace

import pytest
import torch
from torch import nn, tensor

from models import byte_level_tokenizer, sentencepiece_tokenizer, tiny_model
from reference import (
    Branch,
    Encoded,
    Settings,
    adaptability,
    agreement,
    answer_segment,
    batch_loss,
    consensus,
    difficulty,
    divergence,
    encode,
    encode_branch,
    evaluate,
    gain,
    gold_distributions,
    gradients,
    lens_beliefs,
    local_naturalness,
    probe_beliefs,
    probe_points,
    prompt_tokens,
    queries_and_keys,
    rank_surprisal,
    thinking_spans,
    weights,
)

NAN = float("nan")
LOG2 = log(2)
# What follows each of the tokens 0..3, and the final state of each.
FOLLOWS = tensor(
    [[1 / 2, 1 / 4, 1 / 8, 1 / 8], [1 / 8, 1 / 2, 1 / 4, 1 / 8], [1 / 4] * 4, [1 / 16, 1 / 16, 1 / 8, 3 / 4]],
    dtype=torch.float64,
)
STATES = tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)


class Bigram(nn.Module):
    """A student whose next token depends on the last one alone: probabilities can be read off FOLLOWS."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(FOLLOWS.log() + 3.0)  # a softmax does not see the shift
        eye = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        eye.weight.data.copy_(torch.eye(2))
        attention = nn.Module()
        attention.q_proj, attention.k_proj, attention.head_dim = eye, eye, 2
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([nn.Module()])
        self.model.layers[0].self_attn = attention

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[input_ids], hidden_states=(None, STATES[input_ids]))


class Summing(Bigram):
    """A student whose next token depends on the sum of all tokens before it, so that none can be left out unseen."""

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return super().forward(input_ids.cumsum(-1) % 4)


def branch(
    reasoning: list[int],
    answer: list[int],
    thinking: tuple[tuple[int, int], ...] = (),
    steps: tuple[int, ...] = (),
) -> Branch:
    return Branch(reasoning, list(thinking), answer, eos=3, steps=steps)


def problem(*branches: Branch | None, gold_segment: tuple[int, ...] = (2,), gold_span: range = range(1)) -> Encoded:
    return Encoded([0], list(branches), list(gold_segment), gold_span)


def test_difficulty_is_the_mean_over_the_completion_with_eos() -> None:
    # 0 -> 1 (1/4), 1 -> 2 (1/4), 2 -> 3 (1/4), 3 -> eos = 3 (3/4)
    one = branch([1, 2], [3])
    expected = (3 * 2 * LOG2 - log(3 / 4)) / 4
    assert difficulty(Bigram(), problem(one), one).item() == pytest.approx(expected, abs=1e-14)


def test_rank_surprisal_is_the_sum_of_ranks_over_the_sum_of_surprisals() -> None:
    # Likeliest first: after 0 the tokens 0, 1, 2 = 3; after 1: 1, 2, 0 = 3; after 3: 3, 2, 0 = 1; all alike after 2.
    # 0 -> 3 is 1/8 (two are likelier: rank 3), 3 -> 0 is 1/16 (3), 0 -> 1 is 1/4 (2), 1 -> eos = 3 is 1/8 (3).
    one = branch([3, 0], [1])
    assert rank_surprisal(Bigram(), problem(one), one, clip=100) == pytest.approx(11 / (12 * LOG2), abs=1e-14)
    assert rank_surprisal(Bigram(), problem(one), one, clip=2) == pytest.approx(8 / (12 * LOG2), abs=1e-14)
    # 0 -> 1 (1/4, 2), 1 -> 2 (1/4, 2), 2 -> 3 (1/4, 1), 3 -> eos (3/4, 1)
    other = branch([1, 2], [3])
    expected = 6 / (6 * LOG2 - log(3 / 4))
    assert rank_surprisal(Bigram(), problem(other), other, clip=100) == pytest.approx(expected, abs=1e-14)


def test_local_naturalness_reads_each_step_after_the_prompt_and_its_window_alone() -> None:
    # Steps [1, 2], [2], [1, 1] after the prompt [0]; what follows depends on the sum before it, modulo 4.
    stepped = branch([1, 2, 2, 1, 1], [0], steps=(0, 2, 3))
    first = (2 + 2) / 2  # sum 0: 1 is 1/4; sum 1: 2 is 1/4
    second = 3.0  # after the first step, sum 3: 2 is 1/8
    third = (2 + 4) / 2  # after the second step alone, sum 2: 1 is 1/4; sum 3: 1 is 1/16
    in_full = (1 + 2) / 2  # after both, sum 5: 1 is 1/2; sum 6: 1 is 1/4
    narrow = local_naturalness(Summing(), problem(stepped), stepped, window=1)
    wide = local_naturalness(Summing(), problem(stepped), stepped, window=2)
    assert narrow == pytest.approx(-(first + second + third) / 3 * LOG2, abs=1e-14)
    assert wide == pytest.approx(-(first + second + in_full) / 3 * LOG2, abs=1e-14)
    bare = branch([], [0])
    assert local_naturalness(Summing(), problem(bare), bare, window=1) == 0.0


def test_agreement_is_the_share_of_the_others_that_are_there() -> None:
    # Of four, one is missing: 3 and 3.0 each find one of two others, 4 finds none.
    found = agreement(["3", "3.0", None, "4"], lambda a, b: float(a) == float(b))
    assert found == [0.5, 0.5, 0.0, 0.0]
    assert agreement(["3"], lambda a, b: a == b) == [0.0]


def test_lens_reads_the_gold_tokens_at_the_prompt_end_and_at_each_reasoning_token() -> None:
    one = branch([1, 3, 2], [0])
    both = problem(one, gold_segment=(0, 1, 2), gold_span=range(1, 3))  # gold tokens 1 and 2
    after_0 = (log(1 / 4) + log(1 / 8)) / 2
    after_1 = (log(1 / 2) + log(1 / 4)) / 2
    after_3 = (log(1 / 16) + log(1 / 8)) / 2
    after_2 = log(1 / 4)
    assert lens_beliefs(Bigram(), both, one) == pytest.approx([after_0, after_1, after_3, after_2], abs=1e-14)


def test_lens_weighs_rises_by_thinking_expressions() -> None:
    one = branch([1, 3, 2], [0], thinking=((2, 2),))
    # gold token 2: 1/8, then 1/4 (rise log 2, off), 1/8 (fall), 1/4 (rise log 2, thinking)
    assert adaptability(Bigram(), problem(one), one, Settings()) == pytest.approx(1.1 * LOG2, abs=1e-14)
    peak = Settings(gain="peak", off_weight=0.5)
    assert adaptability(Bigram(), problem(one), one, peak) == pytest.approx(LOG2, abs=1e-14)
    assert adaptability(Bigram(), problem(one), one, Settings(gain="net")) == pytest.approx(LOG2, abs=1e-14)


def test_probe_forces_the_segment_after_each_probe_point() -> None:
    one = branch([1, 3, 2], [0], thinking=((0, 0),))
    # Probed after 0, 1 and 3 tokens; the gold answer is tokens 2, 2 straight after the context.
    forced = problem(one, gold_segment=(2, 2), gold_span=range(2))
    beliefs = [(log(p) + log(1 / 4)) / 2 for p in (1 / 8, 1 / 4, 1 / 4)]
    assert probe_beliefs(Bigram(), forced, one, 16) == pytest.approx(beliefs, abs=1e-14)
    probe = Settings(estimator="probe", off_weight=0.0)
    assert adaptability(Bigram(), forced, one, probe) == pytest.approx(LOG2 / 2, abs=1e-14)


def test_probe_reads_gold_tokens_only() -> None:
    one = branch([], [0])
    forced = problem(one, gold_segment=(3, 3, 1), gold_span=range(1, 2))  # 0 -> 3 -> [3] -> 1
    assert probe_beliefs(Bigram(), forced, one, 16) == pytest.approx([log(3 / 4)], abs=1e-14)


@pytest.mark.parametrize(("kind", "expected"), [("positive", 2.0 * 1.0 + 0.1 * 3.0), ("net", 3.5), ("peak", 2.0 * 1.0)])
def test_gain(kind: str, expected: float) -> None:
    assert gain([-5.0, -4.0, -4.5, -1.5], [2.0, 1.0, 0.1], kind) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["positive", "net", "peak"])
def test_no_reasoning_gains_nothing(kind: str) -> None:
    assert gain([-5.0], [], kind) == 0.0


def test_falls_count_for_net_alone() -> None:
    assert [gain([0.0, -2.0], [1.0], kind) for kind in ("positive", "net", "peak")] == [0.0, -2.0, 0.0]


def test_probe_points_keep_first_and_last() -> None:
    many = branch(list(range(20)), [0], thinking=tuple((i, i + 1) for i in range(0, 18, 3)))
    assert probe_points(many, 16) == [0, 2, 5, 8, 11, 14, 17, 20]
    assert probe_points(many, 8) == [0, 2, 5, 8, 11, 14, 17, 20]
    assert probe_points(many, 2) == [0, 20]
    assert probe_points(many, 3) == [0, 11, 20]  # 3.5 rounds to the even 4
    assert probe_points(many, 4) == [0, 5, 14, 20]  # 2.33 and 4.67
    assert probe_points(branch([1], [0], thinking=((0, 0),)), 16) == [0, 1]
    assert probe_points(branch([], [0]), 16) == [0]


def test_thinking_expressions_are_whole_words_in_any_case() -> None:
    def found(text: str, *expressions: str) -> list[str]:
        return [text[a:b] for a, b in thinking_spans(text, expressions)]

    assert found("So they said: WAIT, soon. In summary, therefore") == ["So", "WAIT", "In summary", "therefore"]
    assert found("absolutely so, in  SUMMARY aha", "aha") == ["so", "aha"]
    assert found("We add 3.5 and 2! Then? stop.\n\n  new line\nend") == ["We", "Then?", "stop.", "new", "end"]
    assert found("") == []


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), sentencepiece_tokenizer()], ids=["bpe", "spm"])
@pytest.mark.parametrize("answer", ["12", "1,250.5", "√3 é", "Answer", "\\frac{1}{2}"])
def test_answer_tokens_spell_the_answer(tokenizer: object, answer: str) -> None:
    ids, span = answer_segment(tokenizer, answer, "The answer is {answer}.")
    assert tokenizer.decode(ids).strip() == f"The answer is {answer}."
    # A token may spell more than the answer (`12.`), but no token more than needed is taken.
    assert answer in tokenizer.decode(ids[span.start : span.stop])
    assert answer not in tokenizer.decode(ids[span.start + 1 : span.stop])
    assert answer not in tokenizer.decode(ids[span.start : span.stop - 1])


def test_thinking_tokens_overlap_the_expression() -> None:
    tokenizer = byte_level_tokenizer()
    got = encode_branch(tokenizer, "  It is 3.\nTherefore it is 4. ", "4", Settings())
    assert tokenizer.decode(got.reasoning) == " It is 3.\nTherefore it is 4."
    assert [tokenizer.decode(got.reasoning[a : b + 1]) for a, b in got.thinking] == ["Therefore"]
    assert tokenizer.decode(got.completion) == " It is 3.\nTherefore it is 4.\nThe answer is 4.<|endoftext|>"


def test_prompt_keeps_bos_and_drops_eos() -> None:
    template = Settings().prompt_template
    plain, ending = (prompt_tokens(sentencepiece_tokenizer(eos), "Why?", template) for eos in (False, True))
    assert plain == ending
    assert plain[0] == sentencepiece_tokenizer().bos_token_id
    assert sentencepiece_tokenizer().decode(plain[1:]) == "Question: Why?\nAnswer:"


def test_chat_template_replaces_prompt_template_and_leading_space() -> None:
    tokenizer = byte_level_tokenizer(chat=True)
    got = encode(tokenizer, "Why?", "12", [("Because.", "12"), None], Settings())
    assert tokenizer.decode(got.prompt) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(got.branches[0].completion) == "Because.\nThe answer is 12.<|im_end|>"
    assert got.branches[0].answer == got.gold_segment
    assert got.branches[1] is None


def test_consensus_of_two_paths() -> None:
    # Final states before eos: tokens 1 and 3, so e = (1, 0) and (1, 1); L = [[1, 1], [1, 2]] / sqrt(1 * 2).
    pair = problem(branch([0], [1]), branch([2], [3]))
    a_01 = 1 / 2
    a_10 = 1 / (1 + exp(1 / sqrt(2)))
    assert consensus(Bigram(), pair).tolist() == pytest.approx([a_10, a_01], abs=1e-14)


def test_consensus_by_heads_of_two_paths() -> None:
    # Heads of width 1: e = (1, 0) and (1, 1). Head 0: L_00 = L_01 = L_10 = L_11 = 1; head 1: L_11 = 1, else 0.
    model = Bigram()
    model.model.layers[0].self_attn.head_dim = 1
    pair = problem(branch([0], [1]), branch([2], [3]))
    a_01 = (1 / 2 + 1 / 2) / 2
    a_10 = (1 / 2 + 1 / (1 + exp(1))) / 2
    assert consensus(model, pair, kind="heads").tolist() == pytest.approx([a_10, a_01], abs=1e-14)


def test_consensus_leaves_missing_paths_out() -> None:
    first, second = branch([0], [1]), branch([2], [3])
    got = consensus(Bigram(), problem(first, None, second))
    assert got[1].isnan()
    assert got[[0, 2]].tolist() == consensus(Bigram(), problem(first, second)).tolist()
    assert consensus(Bigram(), problem(None, second)).tolist() == pytest.approx([NAN, 0.0], nan_ok=True)


def test_attention_pool_weighs_reasoning_by_the_last_token() -> None:
    # Path 0: last state (1, 0) on reasoning states (1, 0), (0, 1): logits 1/sqrt(2), 0. Path 1: one reasoning token.
    pair = problem(branch([1, 2], [1]), branch([2], [3]))
    a = 1 / (1 + exp(-1 / sqrt(2)))
    e = [(a, 1 - a), (0.0, 1.0)]
    logits = [[sum(x * y for x, y in zip(q, k, strict=True)) / sqrt(2) for k in e] for q in e]
    c_0 = 1 / (1 + exp(logits[1][1] - logits[1][0]))
    c_1 = 1 / (1 + exp(logits[0][0] - logits[0][1]))
    assert consensus(Bigram(), pair, "attention").tolist() == pytest.approx([c_0, c_1], abs=1e-14)


def test_queries_share_keys_by_group_and_are_normed_by_head() -> None:
    attention = tiny_model("qwen3").model.layers[-1].self_attn
    state = torch.randn(1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    queries, keys = queries_and_keys(attention, state)
    assert queries.shape == (1, 4, 12)
    assert keys.shape == (1, 2, 12)
    raw = attention.k_proj.weight @ state[0]
    head = raw[12:24] / raw[12:24].pow(2).mean().sqrt() * attention.k_norm.weight
    assert keys[0, 1].tolist() == pytest.approx(head.tolist(), rel=1e-4)  # the norm itself works in fp32


def test_weights_of_two() -> None:
    # z = +-1 / (sqrt(2) + 1e-4); difficulty of half the coefficient pulls the other way.
    settings = Settings(temperature=2.0)
    got = weights(tensor([0.0, 2.0]).double(), tensor([1.0, 3.0]).double(), tensor([5.0, 7.0]).double(), settings)
    z = 1 / (sqrt(2) + 1e-4)
    assert got[1].item() == pytest.approx(1 / (1 + exp(-2 * z * (1 + 1 - 0.5) / 2)), abs=1e-14)
    assert got.sum().item() == pytest.approx(1.0, abs=1e-15)


def test_weights_of_present_teachers_alone() -> None:
    scores = tensor([0.5, NAN, 0.25]).double()
    got = weights(scores, scores, scores, Settings())
    assert got[1] == 0
    assert got[[0, 2]].tolist() == weights(*(scores[[0, 2]],) * 3, Settings()).tolist()
    lonely = tensor([NAN, 3.0]).double()
    assert weights(lonely, lonely, lonely, Settings()).tolist() == [0.0, 1.0]
    same = torch.full((4,), 0.7).double()
    assert weights(same, same, same, Settings()).tolist() == [0.25] * 4


def test_divergence_is_symmetric_kl() -> None:
    p, q = (tensor([row, [0.5, 0.5]]).double().log() for row in ([0.75, 0.25], [0.25, 0.75]))
    assert divergence(p, q).item() == pytest.approx(log(3) / 2, abs=1e-14)  # (0.5 + 0.5) log 3, mean with 0


def test_loss_of_two_paths_by_hand() -> None:
    # Zero coefficients: alpha 1/2 each. Gold answer is one token straight after the reasoning's last token: 0 or 1.
    flat = Settings(consensus=0, adaptability=0, difficulty=0, consistency=0.5)
    got = evaluate(Bigram(), problem(branch([0], [2]), branch([1], [2])), flat)
    d_0 = (log(2) + log(8) + log(4)) / 3  # 0 -> 0 -> 2 -> eos
    d_1 = (log(4) + log(4) + log(4)) / 3  # 0 -> 1 -> 2 -> eos
    p, q = FOLLOWS[0].tolist(), FOLLOWS[1].tolist()
    kl = sum((a - b) * (log(a) - log(b)) for a, b in zip(p, q, strict=True))
    assert got.weights.tolist() == [0.5, 0.5]
    assert got.difficulty.tolist() == pytest.approx([d_0, d_1], abs=1e-14)
    assert got.likelihood_loss.item() == pytest.approx((d_0 + d_1) / 2, abs=1e-14)
    assert got.consistency_loss.item() == pytest.approx(kl / 4, abs=1e-14)
    assert got.loss.item() == pytest.approx((d_0 + d_1) / 2 + 0.5 * kl / 4, abs=1e-14)


def test_missing_path_has_no_part_in_the_loss() -> None:
    first, second = branch([0], [2]), branch([1], [2])
    with_gap = evaluate(Bigram(), problem(first, None, second), Settings())
    without = evaluate(Bigram(), problem(first, second), Settings())
    assert with_gap.loss.item() == without.loss.item()
    assert with_gap.weights.tolist() == [without.weights[0], 0.0, without.weights[1]]


def test_gold_distributions_are_those_before_each_gold_token() -> None:
    one = branch([1], [2])
    both = problem(one, gold_segment=(0, 3, 2, 1), gold_span=range(1, 3))
    assert torch.allclose(gold_distributions(Bigram(), both, one).exp(), FOLLOWS[[0, 3]], atol=1e-14)


def test_gradient_is_that_of_the_mean_loss_with_fixed_weights() -> None:
    problems = [
        problem(branch([0], [2]), branch([1], [2])),
        problem(branch([3, 1], [2]), None, branch([2, 1, 1], [0])),
    ]
    model = Bigram()
    got = gradients(model, problems, Settings())["logits"]
    fixed = [evaluate(model, p, Settings()).weights for p in problems]

    def mean_loss() -> float:
        total = 0.0
        for p, alpha in zip(problems, fixed, strict=True):
            present = [k for k, b in enumerate(p.branches) if b is not None]
            total += sum(alpha[k] * difficulty(model, p, p.branches[k]) for k in present)
            spread = {k: gold_distributions(model, p, p.branches[k]) for k in present}
            pairs = [(i, j) for i in present for j in present if i < j]
            total += 0.1 * sum(alpha[i] * alpha[j] * divergence(spread[i], spread[j]) for i, j in pairs)
        return float(total) / len(problems)

    with torch.no_grad():
        assert batch_loss(model, problems, Settings()).item() == pytest.approx(mean_loss(), abs=1e-14)
        for row, column in [(0, 1), (1, 2), (2, 0), (3, 3)]:
            there = []
            for step in (1e-6, -1e-6):
                model.logits[row, column] += step
                there.append(mean_loss())
                model.logits[row, column] -= step
            assert got[row, column].item() == pytest.approx((there[0] - there[1]) / 2e-6, abs=1e-8)


def test_a_later_token_changes_no_earlier_state_of_tiny_models() -> None:
    # What makes branches comparable at all, and what the sliding window cuts off.
    ids = torch.randint(0, 400, (1, 24), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[0, 3] = (other[0, 3] + 1) % 400
    for architecture, reaches_the_end in (("mistral", False), ("gemma3", True)):
        model = tiny_model(architecture, layers=2)
        change = (model(input_ids=ids).logits - model(input_ids=other).logits)[0].abs().amax(-1)
        assert change[:3].max() == 0
        assert (change[23] > 0) == reaches_the_end
