"""The definitions of docs/definitions.md, done slowly and plainly: the judge of the fast implementation.

One problem, one branch, one full forward at a time: no packing, no padding, no cache, no chunks. It imports nothing
from the package. Shapes: K rationales, T tokens, V vocabulary, D width, A gold-answer tokens; a missing rationale is
None and its scores are NaN. Log-probabilities are in nats.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEXICON = (
    "therefore|thus|hence|so|consequently|wait|but|however|although|first|second|finally|specifically|in summary|"
    "basically|let|assuming|suppose|hmm|okay|note"
)


@dataclass(frozen=True)
class Settings:
    """The options of the definitions, with their defaults."""

    prompt_template: str = "Question: {question}\nAnswer:"
    answer_template: str = "The answer is {answer}."
    consensus: float = 1.0
    adaptability: float = 1.0
    difficulty: float = 0.5
    temperature: float = 1.0
    estimator: str = "lens"
    gain: str = "positive"
    off_weight: float = 0.1
    max_probes: int = 16
    pool: str = "last"
    thinking_expressions: tuple[str, ...] = ()
    consistency: float = 0.1
    attention: str = "joint"
    rank_clip: int = 100
    local_steps: int = 1


@dataclass(frozen=True)
class Branch:
    """One rationale as token ids; `thinking` holds (first, last) reasoning token of each thinking expression."""

    reasoning: list[int]
    thinking: list[tuple[int, int]]
    answer: list[int]
    eos: int
    steps: tuple[int, ...] = ()  # reasoning tokens at which its sentences and lines start

    @property
    def completion(self) -> list[int]:
        return [*self.reasoning, *self.answer, self.eos]


@dataclass(frozen=True)
class Encoded:
    """One problem as token ids; `gold_span` is the range of the gold answer's tokens within the gold segment."""

    prompt: list[int]
    branches: list[Branch | None]
    gold_segment: list[int]
    gold_span: range

    @property
    def gold_tokens(self) -> list[int]:
        return [self.gold_segment[i] for i in self.gold_span]


@dataclass(frozen=True)
class Result:
    """Scores and weights [K] of one problem, and its loss with its terms (scalars that carry gradient)."""

    consensus: Tensor
    adaptability: Tensor
    difficulty: Tensor
    weights: Tensor
    likelihood_loss: Tensor
    consistency_loss: Tensor
    loss: Tensor


# --- text to tokens ---------------------------------------------------------------------------------------------


def encode(
    tokenizer: Any, question: str, gold: str, rationales: list[tuple[str, str] | None], settings: Settings
) -> Encoded:
    """Return the tokens of one problem; each rationale is (reasoning, the teacher's own answer)."""
    branches = [None if r is None else encode_branch(tokenizer, r[0], r[1], settings) for r in rationales]
    gold_segment, gold_span = answer_segment(tokenizer, gold, settings.answer_template)
    prompt = prompt_tokens(tokenizer, question, settings.prompt_template)
    return Encoded(prompt, branches, gold_segment, gold_span)


def prompt_tokens(tokenizer: Any, question: str, prompt_template: str) -> list[int]:
    """Return the prompt: the chat template's, else the prompt template's with the tokenizer's own special tokens."""
    if tokenizer.chat_template is not None:
        chat = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    before, after = prompt_template.split("{question}")
    ids = tokenizer(before + question + after)["input_ids"]
    if ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids


def encode_branch(tokenizer: Any, reasoning: str, answer: str, settings: Settings) -> Branch:
    """Return the tokens of one rationale."""
    reasoning = reasoning.strip()
    if tokenizer.chat_template is None and reasoning:
        reasoning = " " + reasoning
    ids, offsets = tokens_and_offsets(tokenizer, reasoning)
    thinking = []
    for start, end in thinking_spans(reasoning, settings.thinking_expressions):
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and start < b]
        thinking.append((inside[0], inside[-1]))
    segment, _ = answer_segment(tokenizer, answer, settings.answer_template)
    steps = [0] if ids else []
    for start, _ in first_words(reasoning)[1:]:
        step = next(i for i, (_, b) in enumerate(offsets) if b > start)
        if step not in steps:
            steps.append(step)
    return Branch(ids, thinking, segment, tokenizer.eos_token_id, tuple(steps))


def answer_segment(tokenizer: Any, answer: str, answer_template: str) -> tuple[list[int], range]:
    """Return the segment's tokens, and the range of those whose characters overlap the answer's."""
    before, after = answer_template.split("{answer}")
    start = len("\n" + before)
    ids, offsets = tokens_and_offsets(tokenizer, "\n" + before + answer + after)
    inside = [i for i, (a, b) in enumerate(offsets) if a < start + len(answer) and start < b]
    return ids, range(inside[0], inside[-1] + 1)


def tokens_and_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return token ids and the (start, end) characters of each."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoding["input_ids"], encoding["offset_mapping"]


def thinking_spans(reasoning: str, expressions: tuple[str, ...] = ()) -> list[tuple[int, int]]:
    """Return the characters (start, end) of thinking expressions; where there are none, of first words.

    First words are those of each sentence (after `.`, `!` or `?` and white space) and of each line.
    """
    spans = []
    for pattern in (rf"\b(?:{LEXICON})\b", *expressions):
        spans += [match.span() for match in re.finditer(pattern, reasoning, re.IGNORECASE)]
    return spans or first_words(reasoning)


def first_words(reasoning: str) -> list[tuple[int, int]]:
    """Return the characters (start, end) of the first word of each sentence and line."""
    spans = []
    for word in re.finditer(r"\S+", reasoning):
        before = reasoning[: word.start()]
        space = before[len(before.rstrip()) :]
        if before.strip() == "" or "\n" in space or before.rstrip()[-1] in ".!?":
            spans.append(word.span())
    return spans


# --- the student, one sequence at a time --------------------------------------------------------------------------


def read(model: Any, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Return logits [T, V] and final hidden states [T, D] of one sequence."""
    device = next(model.parameters()).device
    out = model(input_ids=torch.tensor([ids], device=device), output_hidden_states=True, use_cache=False)
    return out.logits[0], out.hidden_states[-1][0]


def log_softmax(logits: Tensor) -> Tensor:
    """Return log-probabilities, in fp32 at least."""
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def log_probabilities_after(model: Any, context: list[int], continuation: list[int]) -> Tensor:
    """Return [len(continuation), V]: the log-distribution from which each token of the continuation is drawn."""
    logits, _ = read(model, context + continuation)
    return log_softmax(logits)[len(context) - 1 : -1]


# --- difficulty ---------------------------------------------------------------------------------------------------


def difficulty(model: Any, problem: Encoded, branch: Branch) -> Tensor:
    """Return D_k: mean negative log-likelihood of the completion's tokens, nats per token."""
    log_p_TV = log_probabilities_after(model, problem.prompt, branch.completion)
    losses = [-log_p_TV[t, token] for t, token in enumerate(branch.completion)]
    return torch.stack(losses).mean()


# --- further scores -----------------------------------------------------------------------------------------------


def rank_surprisal(model: Any, problem: Encoded, branch: Branch, clip: int) -> float:
    """Return mean min(rank, clip) over mean surprisal (nats) of the completion's tokens; the likeliest has rank 1."""
    with torch.no_grad():
        log_p_TV = log_probabilities_after(model, problem.prompt, branch.completion)
    ranks, surprisals = [], []
    for t, token in enumerate(branch.completion):
        larger = sum(1 for other in log_p_TV[t].tolist() if other > log_p_TV[t, token].item())
        ranks.append(min(1 + larger, clip))
        surprisals.append(-log_p_TV[t, token].item())
    return (sum(ranks) / len(ranks)) / (sum(surprisals) / len(surprisals))


def local_naturalness(model: Any, problem: Encoded, branch: Branch, window: int) -> float:
    """Return the mean over steps of a step's mean log-probability after the prompt and `window` steps before it."""
    bounds = [*branch.steps, len(branch.reasoning)]
    steps = [branch.reasoning[a:b] for a, b in pairwise(bounds)]
    means = []
    for s, step in enumerate(steps):
        before = [token for earlier in steps[max(0, s - window) : s] for token in earlier]
        with torch.no_grad():
            log_p_TV = log_probabilities_after(model, problem.prompt + before, step)
        means.append(sum(log_p_TV[t, token].item() for t, token in enumerate(step)) / len(step))
    return sum(means) / len(means) if means else 0.0


def agreement(answers: list[str | None], same: Any) -> list[float]:
    """Return for each answer the share of the others that there are for which `same(a, b)`; None: not there."""
    shares = []
    for k, answer in enumerate(answers):
        others = [other for i, other in enumerate(answers) if i != k and other is not None]
        found = sum(same(answer, other) for other in others) if answer is not None else 0
        shares.append(found / len(others) if others else 0.0)
    return shares


# --- adaptability -------------------------------------------------------------------------------------------------


def lens_beliefs(model: Any, problem: Encoded, branch: Branch) -> list[float]:
    """Return l_0 .. l_n: the gold tokens' mean log-probability at the prompt's end and at each reasoning token."""
    logits_TV, _ = read(model, problem.prompt + branch.reasoning)
    log_p_TV = log_softmax(logits_TV)[len(problem.prompt) - 1 :]
    return [log_p_TV[t, problem.gold_tokens].mean().item() for t in range(len(branch.reasoning) + 1)]


def probe_points(branch: Branch, max_probes: int) -> list[int]:
    """Return the numbers of reasoning tokens after which to probe: 0, after each expression, the end."""
    points = sorted({0, *(last + 1 for _, last in branch.thinking), len(branch.reasoning)})
    n = len(points)
    if n <= max_probes:
        return points
    return [points[int(np.rint(i * (n - 1) / (max_probes - 1)))] for i in range(max_probes)]


def probe_beliefs(model: Any, problem: Encoded, branch: Branch, max_probes: int) -> list[float]:
    """Return the gold tokens' mean teacher-forced log-probability if the student stopped at each probe point."""
    beliefs = []
    for point in probe_points(branch, max_probes):
        log_p_TV = log_probabilities_after(model, problem.prompt + branch.reasoning[:point], problem.gold_segment)
        gold = [log_p_TV[i, problem.gold_segment[i]].item() for i in problem.gold_span]
        beliefs.append(sum(gold) / len(gold))
    return beliefs


def gain(beliefs: list[float], rise_weights: list[float], kind: str) -> float:
    """Return how much the belief rose; rise_weights[i] belongs to the step from beliefs[i] to beliefs[i + 1]."""
    if kind == "net":
        return beliefs[-1] - beliefs[0]
    rises = [w * max(after - before, 0.0) for w, before, after in zip(rise_weights, beliefs, beliefs[1:], strict=False)]
    return sum(rises) if kind == "positive" else max(rises, default=0.0)


def adaptability(model: Any, problem: Encoded, branch: Branch, settings: Settings) -> float:
    """Return S_k in nats."""
    with torch.no_grad():
        if settings.estimator == "probe":
            beliefs = probe_beliefs(model, problem, branch, settings.max_probes)
            rise_weights = [1.0] * (len(beliefs) - 1)
        else:
            beliefs = lens_beliefs(model, problem, branch)
            thinking = {i for first, last in branch.thinking for i in range(first, last + 1)}
            rise_weights = [1.0 if i in thinking else settings.off_weight for i in range(len(branch.reasoning))]
    return gain(beliefs, rise_weights, settings.gain)


# --- consensus ----------------------------------------------------------------------------------------------------


def last_attention(model: Any) -> Any:
    """Return the self-attention module of the last decoder layer."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.model.layers[-1].self_attn


def queries_and_keys(attention: Any, states_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries [N, heads, head_dim] and keys [N, key heads, head_dim] of final states, without rotary."""
    queries, keys = attention.q_proj(states_ND), attention.k_proj(states_ND)
    if type(attention).__name__ in ("Olmo2Attention", "Olmo3Attention"):  # one norm over all heads
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        return queries.unflatten(-1, (-1, attention.head_dim)), keys.unflatten(-1, (-1, attention.head_dim))
    queries = queries.unflatten(-1, (-1, attention.head_dim))
    keys = keys.unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, "q_norm"):
        queries = attention.q_norm(queries)
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys)
    return queries, keys


def affinity(attention: Any, querying_ND: Tensor, keyed_ND: Tensor) -> Tensor:
    """Return L [N, M]: each query state against each key state, summed over heads."""
    queries, _ = queries_and_keys(attention, querying_ND)
    _, keys = queries_and_keys(attention, keyed_ND)
    heads, head_dim = queries.shape[1:]
    group = heads // keys.shape[1]
    total = queries.new_zeros(len(querying_ND), len(keyed_ND))
    for h in range(heads):
        total = total + queries[:, h] @ keys[:, h // group].T
    return total / (heads * head_dim) ** 0.5


def path_state(model: Any, problem: Encoded, branch: Branch, pool: str) -> Tensor:
    """Return e_k [D]: the state at the last token before eos, or the reasoning's states that it attends to."""
    _, hidden_TD = read(model, problem.prompt + branch.reasoning + branch.answer)
    last_D = hidden_TD[-1]
    if pool == "last" or not branch.reasoning:
        return last_D
    start = len(problem.prompt)
    reasoning_TD = hidden_TD[start : start + len(branch.reasoning)]
    attention_T = torch.softmax(affinity(last_attention(model), last_D[None], reasoning_TD)[0], dim=0)
    return attention_T @ reasoning_TD


def head_attention(attention: Any, states_KD: Tensor) -> Tensor:
    """Return [K, K]: the mean over heads of each head's own softmax over j of <q_i, key_j> / sqrt(head_dim)."""
    queries, keys = queries_and_keys(attention, states_KD)
    heads, head_dim = queries.shape[1:]
    group = heads // keys.shape[1]
    each = [torch.softmax(queries[:, h] @ keys[:, h // group].T / head_dim**0.5, dim=1) for h in range(heads)]
    return sum(each) / heads


def consensus(model: Any, problem: Encoded, pool: str = "last", kind: str = "joint") -> Tensor:
    """Return C [K]: the attention each path gets from the other present paths; NaN where missing."""
    present = [k for k, branch in enumerate(problem.branches) if branch is not None]
    with torch.no_grad():
        states_KD = torch.stack([path_state(model, problem, problem.branches[k], pool) for k in present])
        attention_KK = torch.softmax(affinity(last_attention(model), states_KD, states_KD), dim=1)
        if kind == "heads":
            attention_KK = head_attention(last_attention(model), states_KD)
    scores = attention_KK.new_full((len(problem.branches),), torch.nan)
    for column, k in enumerate(present):
        scores[k] = sum(attention_KK[row, column] for row in range(len(present)) if row != column)
    return scores


# --- weights ------------------------------------------------------------------------------------------------------


def standardise(scores_K: Tensor) -> Tensor:
    """Return z over the present rationales: (x - mean) / (unbiased std + 1e-4); NaN stays NaN."""
    present = ~scores_K.isnan()
    return (scores_K - scores_K[present].mean()) / (scores_K[present].std(unbiased=True) + 1e-4)


def weights(consensus_K: Tensor, adaptability_K: Tensor, difficulty_K: Tensor, settings: Settings) -> Tensor:
    """Return alpha [K]: 1 for the only present rationale, 0 for a missing one, else the softmax of the definitions."""
    present = ~difficulty_K.isnan()
    if present.sum() == 1:
        return present.to(difficulty_K.dtype)
    logits = (
        settings.consensus * standardise(consensus_K)
        + settings.adaptability * standardise(adaptability_K)
        - settings.difficulty * standardise(difficulty_K)
    ) / settings.temperature
    alpha = torch.zeros_like(difficulty_K)
    alpha[present] = torch.softmax(logits[present], dim=0)
    return alpha


def rule_weights(
    rule: Any,
    scores: dict[str, list[float]],
    teachers: list[str],
    present: list[bool],
    right: list[bool],
    given: list[float] | None = None,
    settings: Settings | None = None,
    drawn_by: str = "",
) -> list[float]:
    """Return alpha [K] by a weight rule (docs/definitions.md, Weights) for one problem; all 0 where it is skipped.

    `drawn_by` is "SEED/EPOCH/ID", what the rule random draws by.
    """
    count = len(teachers)
    if rule == "verified":
        return rule_weights({"gate": "equal"}, scores, teachers, present, right, given, settings)
    if isinstance(rule, dict) and "gate" in rule:
        both = [p and r for p, r in zip(present, right, strict=True)]
        return rule_weights(rule["gate"], scores, teachers, both, right, given, settings, drawn_by)
    if not any(present):
        return [0.0] * count
    if rule == "equal":
        raw = [1.0] * count
    elif rule == "random":
        places = [k for k in range(count) if present[k]]
        first_48_bits = int(hashlib.sha256(drawn_by.encode()).hexdigest()[:12], base=16)
        drawn = places[first_48_bits * len(places) // 2**48]
        raw = [float(k == drawn) for k in range(count)]
    elif rule == "compact":
        nan = float("nan")
        columns = [
            torch.tensor([x if p else nan for x, p in zip(scores[name], present, strict=True)], dtype=torch.float64)
            for name in ("consensus", "adaptability", "difficulty")
        ]
        return weights(*columns, settings or Settings()).tolist()
    elif "best" in rule:
        sign = -1 if rule["best"] in ("difficulty", "rank_surprisal") else 1
        order = sorted((k for k in range(count) if present[k]), key=lambda k: (-sign * scores[rule["best"]][k], k))
        raw = [float(k == order[0]) for k in range(count)]
    elif rule["fixed"] == "data":
        raw = given or []
    else:
        raw = [rule["fixed"].get(name, rule["fixed"].get(name.split("#")[0], 0.0)) for name in teachers]
    total = sum(raw[k] for k in range(count) if present[k])
    return [raw[k] / total if present[k] and total else 0.0 for k in range(count)]


# --- loss ---------------------------------------------------------------------------------------------------------


def gold_distributions(model: Any, problem: Encoded, branch: Branch) -> Tensor:
    """Return log p_k [A, V] at the gold answer's positions after this branch's reasoning.

    A branch whose own answer segment is the gold one gives the same: attention is causal.
    """
    log_p_TV = log_probabilities_after(model, problem.prompt + branch.reasoning, problem.gold_segment)
    return log_p_TV[problem.gold_span.start : problem.gold_span.stop]


def divergence(log_p_AV: Tensor, log_q_AV: Tensor) -> Tensor:
    """Return the mean over positions of KL(p || q) + KL(q || p)."""
    p_to_q = (log_p_AV.exp() * (log_p_AV - log_q_AV)).sum(dim=-1)
    q_to_p = (log_q_AV.exp() * (log_q_AV - log_p_AV)).sum(dim=-1)
    return (p_to_q + q_to_p).mean()


def evaluate(model: Any, problem: Encoded, settings: Settings) -> Result:
    """Return the scores, weights and loss of one problem; the loss carries gradient, the weights do not."""
    present = [k for k, branch in enumerate(problem.branches) if branch is not None]
    losses = {k: difficulty(model, problem, problem.branches[k]) for k in present}
    consensus_K = consensus(model, problem, settings.pool, settings.attention)
    difficulty_K = torch.full_like(consensus_K, torch.nan)
    adaptability_K = torch.full_like(consensus_K, torch.nan)
    for k in present:
        difficulty_K[k] = losses[k].detach()
        adaptability_K[k] = adaptability(model, problem, problem.branches[k], settings)
    alpha_K = weights(consensus_K, adaptability_K, difficulty_K, settings)
    likelihood = sum(alpha_K[k] * losses[k] for k in present)
    distributions = {k: gold_distributions(model, problem, problem.branches[k]) for k in present}
    consistency = torch.zeros_like(likelihood)
    for i in present:
        for j in present:
            if i < j:
                consistency = consistency + alpha_K[i] * alpha_K[j] * divergence(distributions[i], distributions[j])
    loss = likelihood + settings.consistency * consistency
    return Result(consensus_K, adaptability_K, difficulty_K, alpha_K, likelihood, consistency, loss)


def batch_loss(model: Any, problems: list[Encoded], settings: Settings) -> Tensor:
    """Return the mean of the problems' losses."""
    return torch.stack([evaluate(model, problem, settings).loss for problem in problems]).mean()


def gradients(model: Any, problems: list[Encoded], settings: Settings) -> dict[str, Tensor]:
    """Return the gradient of the mean loss by parameter name, by plain autograd."""
    model.zero_grad(set_to_none=True)
    batch_loss(model, problems, settings).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found
