"""One pass = two-phase = the slow reference: scores, weights, losses and gradients, whatever the architecture.

What a pass yields before scores are made of it is judged by `compact doctor`'s own check, so that its user runs these
claims: each architecture, precision and kernel against the plain reading. The plain reading is held to the reference in
test_plain.py. Scores, weights and the loss made of them are compared with the reference here.

Problems are random token ids, so that their shapes can be chosen freely: one-token prompts and rationales, no
reasoning at all, rationales far longer than the sliding window, gold answers that share all, some or none of their
segment with the branch's own.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from torch.distributed.fsdp import fully_shard

import reference
from compact_distill.config.models import CompatibilityConfig
from compact_distill.errors import StudentError
from compact_distill.method import doctor
from compact_distill.method.encode import Branch, EncodedProblem
from compact_distill.method.forward import attach
from compact_distill.method.kernels import choose, head
from compact_distill.method.loss import aggregate
from compact_distill.method.packing import choose_points
from compact_distill.method.passes import plan_jobs, read_job
from compact_distill.method.plain import students
from compact_distill.method.scores import Scorer
from compact_distill.records import RationaleStatus
from models import ARCHITECTURES, SLIDING_WINDOW, randomise, tiny_model
from reference import Encoded, Settings

WHOLE = 100_000  # a token budget that everything fits
BRANCHWISE = 2  # a token budget that no two branches fit
EOS = 1
SCORES = ("consensus", "adaptability", "difficulty")
TOLERANCE = {torch.float64: (1e-12, 1e-10), torch.float32: (1e-5, 1e-4)}  # of values, of gradients


# --- random problems ----------------------------------------------------------------------------------------------


def make_problem(
    seed: int,
    prompt: int = 6,
    reasonings: tuple[int | None, ...] = (9, 4, 14),
    gold_span: range = range(3, 5),
    gold_length: int = 6,
) -> Encoded:
    """Return a random problem; `reasonings` are lengths, None for a missing rationale.

    Of the branches' answer segments the first is the gold one, the second shares its first two tokens, the third is
    a shorter one, the fourth a longer one, and so on.
    """
    rng = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(2, 440) for _ in range(count)]

    gold = tokens(gold_length)
    branches: list[reference.Branch | None] = []
    for k, length in enumerate(reasonings):
        answer = [gold, gold[:2] + tokens(gold_length - 2), tokens(1), gold + tokens(2)][k % 4]
        thinking = [(t, min(t + rng.randrange(2), length - 1)) for t in range(length or 0) if rng.random() < 0.25]
        steps = tuple(t for t in range(length or 0) if t == 0 or seed * t * (k + 3) % 7 < 2)
        branch = None if length is None else reference.Branch(tokens(length), thinking, answer, EOS, steps)
        branches.append(branch)
    return Encoded(tokens(prompt), branches, gold, gold_span)


PROBLEMS = (
    make_problem(1, prompt=7, reasonings=(12, 3 * SLIDING_WINDOW, 5, 2)),
    make_problem(2, prompt=1, reasonings=(1, None, 0, 6), gold_span=range(2), gold_length=3),
    make_problem(3, prompt=2 * SLIDING_WINDOW, reasonings=(4,), gold_span=range(2, 3), gold_length=3),
    make_problem(4, prompt=3, reasonings=(None, 1, 10), gold_span=range(3, 6)),
)


def as_package(problem: Encoded, name: str = "p") -> EncodedProblem:
    """Return the package's record of the same problem."""
    branches = []
    for branch in problem.branches:
        if branch is None:
            branches.append(None)
            continue
        marked = {i for first, last in branch.thinking for i in range(first, last + 1)}
        branches.append(
            Branch(
                reasoning=tuple(branch.reasoning),
                answer=tuple(branch.answer),
                eos=branch.eos,
                thinking=tuple(i in marked for i in range(len(branch.reasoning))),
                stops=tuple(sorted({last + 1 for _, last in branch.thinking})),
                steps=branch.steps,
            )
        )
    return EncodedProblem(
        id=name,
        teachers=tuple(f"t{k}" for k in range(len(branches))),
        prompt=tuple(problem.prompt),
        branches=tuple(branches),
        statuses=tuple(RationaleStatus.MISSING if b is None else RationaleStatus.OK for b in branches),
        gold=tuple(problem.gold_segment),
        gold_start=problem.gold_span.start,
        gold_stop=problem.gold_span.stop,
    )


# --- both sides ---------------------------------------------------------------------------------------------------


@dataclass
class Values:
    """What is compared: per problem scores and weights [K] (NaN where missing), the mean loss and its gradient."""

    scores: dict[str, list[Tensor]]
    weights: list[Tensor]
    loss: Tensor
    gradients: dict[str, Tensor]


def compatibility(settings: Settings) -> CompatibilityConfig:
    names = ("consensus", "adaptability", "difficulty", "temperature", "estimator", "gain", "off_weight")
    return CompatibilityConfig(**{n: getattr(settings, n) for n in (*names, "max_probes", "pool", "attention")})


def packages(
    model: Any, problems: tuple[Encoded, ...], settings: Settings, budget: int = WHOLE, backward: bool = True
) -> Values:
    """Return what the package computes; gradients of every trainable parameter."""
    attach(model)
    scorer = Scorer(compatibility(settings))
    options = scorer.pass_options(settings.consistency)
    scores: dict[str, list[Tensor]] = {name: [] for name in SCORES}
    weights: list[Tensor] = []
    total = torch.zeros((), dtype=torch.float64)
    model.zero_grad(set_to_none=True)
    encoded = [as_package(problem) for problem in problems]
    with torch.set_grad_enabled(backward):
        for job in plan_jobs(encoded, options, budget):
            outputs = read_job(model, job, options)
            got = scorer.scores(outputs)
            alpha_BK = scorer.weights(got, outputs.problems)
            assert not alpha_BK.requires_grad
            terms = aggregate(got["difficulty"], alpha_BK, outputs.gold_logprob, outputs.problems, settings.consistency)
            total = total + terms.total
            for b, problem in enumerate(job.problems):
                count = len(problem.branches)
                weights.append(alpha_BK[b, :count])
                missing = [k for k in range(count) if problem.branches[k] is None]
                for name in SCORES:
                    row = got[name].detach()[b, :count].clone()
                    row[missing] = torch.nan
                    scores[name].append(row)
    loss = total / len(problems)
    found = {}
    if backward:
        loss.backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
    return Values(scores, weights, loss.detach(), found)


def references(model: Any, problems: tuple[Encoded, ...], settings: Settings, backward: bool = True) -> Values:
    """Return what the reference computes."""
    with torch.no_grad():
        results = [reference.evaluate(model, problem, settings) for problem in problems]
    return Values(
        {name: [getattr(result, name) for result in results] for name in SCORES},
        [result.weights for result in results],
        torch.stack([result.loss for result in results]).mean(),
        reference.gradients(model, list(problems), settings) if backward else {},
    )


def assert_equal(got: Values, expected: Values, dtype: torch.dtype = torch.float64) -> None:
    """Fail unless both agree to the tolerances that docs/definitions.md promises."""
    of_values, of_gradients = TOLERANCE[dtype]

    def close(a: Tensor, b: Tensor, tolerance: float, what: str) -> None:
        torch.testing.assert_close(
            a.double(), b.double(), atol=tolerance, rtol=tolerance, equal_nan=True, msg=lambda m: f"{what}: {m}"
        )

    for name in SCORES:
        for b, (mine, theirs) in enumerate(zip(got.scores[name], expected.scores[name], strict=True)):
            close(mine, theirs, of_values, f"{name} of problem {b}")
    for b, (mine, theirs) in enumerate(zip(got.weights, expected.weights, strict=True)):
        close(mine, theirs, of_values, f"weights of problem {b}")
    close(got.loss, expected.loss, of_values, "loss")
    assert got.gradients.keys() == expected.gradients.keys()
    for name, gradient in got.gradients.items():
        close(gradient, expected.gradients[name], of_gradients, f"gradient of {name}")


@cache
def judged(
    architecture: str, settings: Settings, lora: bool = False, dtype: torch.dtype = torch.float64, **changes: Any
) -> tuple[Any, Values]:
    """Return a model and the reference's values for PROBLEMS; computed before the package touches the model."""
    model = tiny_model(architecture, lora=lora, dtype=dtype, **changes)
    return model, references(model, PROBLEMS, settings)


# --- what `compact doctor` says --------------------------------------------------------------------------------------

STUDENTS = {student.name: student for student in students()}
CPU = torch.device("cpu")


@pytest.mark.parametrize("kernel", [None, "loop"], ids=["chosen", "loop"])
@pytest.mark.parametrize("name", STUDENTS)
def test_one_pass_two_phase_and_probes_are_the_plain_reading(name: str, kernel: str | None) -> None:
    dtypes = [torch.float64, torch.float32, torch.bfloat16]
    found = list(doctor.check_student(STUDENTS[name], dtypes, CPU, kernel))
    assert [finding.verdict for finding in found] == [doctor.AGREES] * 3 * len(doctor.MODES), found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=doctor.precision)
def test_each_kernel_alone_is_its_definition(dtype: torch.dtype) -> None:
    shapes = [(4, 2, size) for size in doctor.HEAD_SIZES] + [(3, 3, 64), (9, 3, 64)]
    names = ["loop"] if dtype == torch.bfloat16 else ["loop", "flash"]
    found = [*doctor.check_other_kernels(dtype, CPU), *(doctor.check_attention(n, dtype, CPU, shapes) for n in names)]
    assert {finding.what: finding.verdict for finding in found} == dict.fromkeys(
        ["head", "norm", "mlp", "lora", *names], doctor.AGREES
    ), found


# --- every architecture -------------------------------------------------------------------------------------------

PROBE = Settings(estimator="probe", max_probes=4, consistency=0.7)


@pytest.mark.parametrize("settings", [Settings(consistency=0.7), PROBE], ids=["lens", "probe"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_pass_and_two_phase_are_the_reference(architecture: str, settings: Settings) -> None:
    model, expected = judged(architecture, settings)
    for budget in (WHOLE, 40, BRANCHWISE):
        assert_equal(packages(model, PROBLEMS, settings, budget), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_students_are_the_reference(architecture: str) -> None:
    model, expected = judged(architecture, PROBE, lora=True)
    for budget in (WHOLE, BRANCHWISE):
        assert_equal(packages(model, PROBLEMS, PROBE, budget), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_single_precision_is_the_reference(architecture: str) -> None:
    settings = Settings(consistency=0.7)
    model, expected = judged(architecture, settings, dtype=torch.float32)
    for budget in (WHOLE, BRANCHWISE):
        assert_equal(packages(model, PROBLEMS, settings, budget), expected, torch.float32)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing_changes_nothing(architecture: str, lora: bool) -> None:
    model, expected = judged(architecture, PROBE, lora=lora)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if lora:
        model.enable_input_require_grads()
    model.train()
    try:
        for budget in (WHOLE, BRANCHWISE):
            assert_equal(packages(model, PROBLEMS, PROBE, budget), expected)
    finally:
        model.gradient_checkpointing_disable()
        model.eval()


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"use_dora": True},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
    ],
    ids=["embeddings", "dora", "saved_head"],
)
def test_other_adapters_are_the_reference(fields: dict[str, Any]) -> None:
    model = tiny_model("llama", layers=2, lora=fields)
    expected = references(model, PROBLEMS[:2], PROBE)
    assert_equal(packages(model, PROBLEMS[:2], PROBE), expected)


def test_adapters_that_the_pass_would_leave_out_are_refused() -> None:
    with pytest.raises(StudentError, match=r"LM head is unsupported.*modules_to_save"):
        attach(tiny_model("llama", layers=1, lora={"target_modules": ["q_proj", "lm_head"]}))
    virtual = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(StudentError, match="PROMPT_TUNING adds tokens of its own"):
        attach(get_peft_model(tiny_model("llama", layers=1), virtual))


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 1), (8, 4)])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_heads_and_ties_are_the_reference(heads: int, key_heads: int, tied: bool) -> None:
    settings = Settings(pool="attention", consistency=0.7)
    for architecture in ("llama", "qwen3"):
        model = tiny_model(architecture, heads=heads, key_heads=key_heads, tied=tied, layers=2)
        expected = references(model, PROBLEMS[:2], settings)
        assert_equal(packages(model, PROBLEMS[:2], settings), expected)


# --- every option -------------------------------------------------------------------------------------------------

OPTIONS = [
    Settings(gain="net"),
    Settings(gain="peak", off_weight=0.6),
    Settings(off_weight=0.0),
    Settings(pool="attention", consistency=0.0),
    Settings(attention="heads"),
    Settings(attention="heads", pool="attention"),
    Settings(estimator="probe", max_probes=2, gain="net"),
    Settings(estimator="probe", max_probes=3, gain="peak", pool="attention"),
    Settings(estimator="probe", max_probes=50),
    Settings(consensus=0.0, adaptability=2.0, difficulty=1.5, temperature=0.3),
    Settings(consensus=3.0, adaptability=0.0, difficulty=0.0, temperature=5.0, consistency=2.0),
]


@pytest.mark.parametrize("settings", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_every_option_is_the_reference(architecture: str, settings: Settings) -> None:
    model = tiny_model(architecture)
    expected = references(model, PROBLEMS, settings, backward=False)
    for budget in (WHOLE, BRANCHWISE):
        assert_equal(packages(model, PROBLEMS, settings, budget, backward=False), expected)


@pytest.mark.parametrize("count", range(1, 9))
def test_any_number_of_teachers_is_the_reference(count: int) -> None:
    model = tiny_model("gemma3", layers=2)
    lengths = (5, 11, 3, 9, 1, 0, 7, 12)[:count]
    problems = (make_problem(count, reasonings=lengths),)
    expected = references(model, problems, PROBE)
    for budget in (WHOLE, 40, BRANCHWISE):
        assert_equal(packages(model, problems, PROBE, budget), expected)


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes_are_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    model = tiny_model(rng.choice(ARCHITECTURES), layers=2, seed=seed, dtype=torch.float64)
    problems = []
    for index in range(rng.randrange(1, 5)):
        lengths: list[int | None] = [rng.choice([None, 0, 1, 2, 5, 9, 20]) for _ in range(rng.randrange(1, 6))]
        if all(length is None for length in lengths):
            lengths[0] = 3
        start = rng.randrange(3)
        span = range(start, start + rng.randrange(1, 4))
        longer = span.stop + rng.randrange(3)
        problems.append(make_problem(100 * seed + index, rng.choice([1, 2, 9]), tuple(lengths), span, max(longer, 3)))
    settings = Settings(
        estimator=rng.choice(["lens", "probe"]), max_probes=rng.randrange(2, 6), pool=rng.choice(["last", "attention"])
    )
    expected = references(model, tuple(problems), settings)
    for budget in (WHOLE, rng.randrange(10, 60)):
        assert_equal(packages(model, tuple(problems), settings, budget), expected)


@pytest.mark.parametrize("estimator", ["lens", "probe"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_further_scores_are_the_reference(architecture: str, estimator: str) -> None:
    model = tiny_model(architecture)
    for window, clip in ((1, 100), (2, 3), (50, 10**6)):
        expected = [
            (reference.rank_surprisal(model, p, b, clip), reference.local_naturalness(model, p, b, window))
            for p in PROBLEMS
            for b in p.branches
            if b is not None
        ]
        coefficients = {"rank_surprisal": -1.0, "local_naturalness": 1.0}
        config = CompatibilityConfig(
            estimator=estimator, max_probes=4, local_steps=window, rank_clip=clip, extra_scores=coefficients
        )
        attach(model)
        scorer = Scorer(config)
        for budget in (WHOLE, 40, BRANCHWISE):
            found = []
            for job in plan_jobs([as_package(p) for p in PROBLEMS], scorer.pass_options(0.1), budget):
                with torch.no_grad():
                    got = scorer.scores(outputs := read_job(model, job, scorer.pass_options(0.1)))
                pair_BK2 = torch.stack([got["rank_surprisal"], got["local_naturalness"]], -1)
                found += pair_BK2[outputs.present_BK].tolist()
                assert not pair_BK2[~outputs.present_BK].any()
            torch.testing.assert_close(
                torch.tensor(found, dtype=torch.float64),
                torch.tensor(expected, dtype=torch.float64),
                atol=1e-11,
                rtol=1e-11,
            )
        model = tiny_model(architecture)


def test_probe_points_are_those_of_the_reference() -> None:
    for count in range(1, 60):
        branch = reference.Branch(list(range(count)), [(t, t) for t in range(count - 1)], [0], EOS)
        stops = tuple(last + 1 for _, last in branch.thinking)
        for most in range(2, count + 3):
            assert choose_points(stops, count, most) == reference.probe_points(branch, most)


@pytest.mark.parametrize("keep", [0, 2**24], ids=["logits_again", "logits_kept"])
def test_chunks_of_logits_change_nothing(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_ROWS", 5)
    monkeypatch.setattr(head, "KEEP_NUMBERS", keep)
    model, expected = judged("llama", PROBE)
    assert_equal(packages(model, PROBLEMS, PROBE), expected)


def test_attaching_twice_is_attaching_once() -> None:
    model, expected = judged("llama", PROBE)
    attach(model)
    taught = model.forward
    attach(model)
    assert model.forward == taught
    assert_equal(packages(model, PROBLEMS, PROBE), expected)


def test_a_copy_of_an_attached_student_is_a_student_of_its_own() -> None:
    model = tiny_model("llama", layers=1)
    tokens = torch.arange(2, 9)[None]
    attach(model)
    alone = copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert not model(tokens).logits.any()
    assert alone(tokens).logits.any()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("fields", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 5, 7]}])
def test_a_head_that_is_adapted_after_attaching_is_read_and_called_as_it_is_trained(
    fields: dict[str, Any], tied: bool
) -> None:
    """As after `score` and before a trainer with such a `peft_config`."""

    def adapted(first: bool) -> Any:
        model = tiny_model("llama", layers=1, tied=tied)
        if first:
            attach(model)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields), autocast_adapter_dtype=False)
        randomise(model, 1)
        return model

    tokens = torch.arange(2, 9)[None]
    plain, model = adapted(first=False), adapted(first=True)
    assert torch.allclose(model(tokens).logits, plain(tokens).logits, rtol=0, atol=1e-10)
    expected = references(plain, PROBLEMS[:2], PROBE)
    assert_equal(packages(model, PROBLEMS[:2], PROBE), expected)


def test_a_window_that_an_architecture_does_not_read_hides_nothing() -> None:
    model = tiny_model("llama", layers=1, sliding_window=SLIDING_WINDOW)
    expected = references(model, PROBLEMS, PROBE)
    assert_equal(packages(model, PROBLEMS, PROBE), expected)


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("pool", ["last", "attention"])
def test_sharded_layers_are_gathered_for_the_consensus_and_sharded_again(pool: str, one_rank: None) -> None:
    settings = Settings(pool=pool, consistency=0.7)
    expected = references(tiny_model("qwen3"), PROBLEMS, settings)
    model = tiny_model("qwen3")
    for layer in model.model.layers:
        fully_shard(layer, reshard_after_forward=True)
    fully_shard(model)
    got = packages(model, PROBLEMS, settings)
    got.gradients = {name: gradient.full_tensor() for name, gradient in got.gradients.items()}
    assert_equal(got, expected)
    packages(model, PROBLEMS, settings, backward=False)  # a backward would shard them in any case
    assert all(type(parameter).__name__ == "DTensor" for parameter in model.model.layers[-1].parameters())


# --- properties ---------------------------------------------------------------------------------------------------


def perturbed(problem: Encoded, k: int) -> Encoded:
    """Return the problem with other tokens, as many, in branch k."""
    branch = problem.branches[k]
    other = replace(branch, reasoning=[token + 1 for token in branch.reasoning])
    return replace(problem, branches=[other if i == k else b for i, b in enumerate(problem.branches)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_perturbed_branch_leaves_the_others_bit_equal(architecture: str) -> None:
    model = tiny_model(architecture)
    attach(model)
    before = [as_package(problem) for problem in PROBLEMS]
    after = [as_package(perturbed(PROBLEMS[0], 1)), *before[1:]]
    for settings in (Settings(), PROBE):
        options = Scorer(compatibility(settings)).pass_options(0.1)
        with torch.no_grad():
            (first,), (second,) = (
                [read_job(model, job, options) for job in plan_jobs(p, options, WHOLE)] for p in (before, after)
            )
        changed = first.nll_BKT != second.nll_BKT
        assert changed[0, 1].any()
        for name in ("nll_BKT", "belief_BKP", "query_BKHD", "key_BKGD"):
            one, two = getattr(first, name).flatten(2).clone(), getattr(second, name).flatten(2).clone()
            assert not torch.equal(one[0, 1], two[0, 1])
            one[0, 1] = two[0, 1] = 0
            assert torch.equal(one, two), name
        for b, (one, two) in enumerate(zip(first.gold_logprob, second.gold_logprob, strict=True)):
            others = [k for k in range(len(one)) if (b, k) != (0, 1)]
            assert torch.equal(one[others], two[others])


@pytest.mark.parametrize("settings", [Settings(), PROBE], ids=["lens", "probe"])
def test_packing_and_order_change_nothing(settings: Settings) -> None:
    model = tiny_model("gemma3")
    together = packages(model, PROBLEMS, settings)
    backwards = packages(model, PROBLEMS[::-1], settings)
    backwards.weights.reverse()
    for rows in backwards.scores.values():
        rows.reverse()
    assert_equal(backwards, together)
    alone = [packages(model, (problem,), settings) for problem in PROBLEMS]
    joined = Values(
        {name: [one.scores[name][0] for one in alone] for name in SCORES},
        [one.weights[0] for one in alone],
        torch.stack([one.loss for one in alone]).mean(),
        {name: sum(one.gradients[name] for one in alone) / len(alone) for name in together.gradients},
    )
    assert_equal(joined, together)


def test_permuting_teachers_permutes_weights() -> None:
    model = tiny_model("qwen3")
    order = [2, 0, 3, 1]
    problem = PROBLEMS[0]
    permuted = replace(problem, branches=[problem.branches[k] for k in order])
    one, two = packages(model, (problem,), PROBE), packages(model, (permuted,), PROBE)
    one.weights = [one.weights[0][order]]
    for name in SCORES:
        one.scores[name] = [one.scores[name][0][order]]
    assert_equal(two, one)
    assert one.weights[0].unique().numel() == 4


def test_a_missing_teacher_changes_nothing_else() -> None:
    model = tiny_model("gemma3")
    problem = PROBLEMS[0]
    gap = replace(problem, branches=[problem.branches[0], None, *problem.branches[1:], None])
    one, two = packages(model, (problem,), PROBE), packages(model, (gap,), PROBE)
    kept = [0, 2, 3, 4]
    assert two.weights[0][[1, 5]].tolist() == [0.0, 0.0]
    two.weights = [two.weights[0][kept]]
    for name in SCORES:
        assert two.scores[name][0][[1, 5]].isnan().all()
        two.scores[name] = [two.scores[name][0][kept]]
    assert_equal(two, one)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_equal_scores_give_equal_weights(count: int) -> None:
    same = make_problem(5, reasonings=(9,)).branches * count
    problem = replace(make_problem(5, reasonings=(9,)), branches=same)
    got = packages(tiny_model("llama"), (problem,), Settings(), backward=False)
    assert got.weights[0].tolist() == pytest.approx([1 / count] * count, abs=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equal_weights_without_consistency_are_plain_fine_tuning(architecture: str) -> None:
    flat = Settings(consensus=0, adaptability=0, difficulty=0, consistency=0)
    model = tiny_model(architecture)
    losses, problem = [], PROBLEMS[0]
    for branch in problem.branches:
        ids = torch.tensor([problem.prompt + branch.completion])
        labels = ids.clone()
        labels[:, : len(problem.prompt)] = -100
        losses.append(model(input_ids=ids, labels=labels).loss)
    plain = torch.stack(losses).mean()
    plain.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    got = packages(model, (problem,), flat)
    # transformers computes its loss in fp32, whatever the model.
    assert got.loss.item() == pytest.approx(plain.item(), rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(got.gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_no_gradient_flows_through_the_weights() -> None:
    # Weights that react strongly to the scores, against the same weights as constants.
    sharp = Settings(temperature=0.2, consistency=0.0)
    model = tiny_model("llama")
    problem = PROBLEMS[0]
    got = packages(model, (problem,), sharp)
    model.zero_grad()
    losses = [reference.difficulty(model, problem, branch) for branch in problem.branches]
    sum(alpha * loss for alpha, loss in zip(got.weights[0].tolist(), losses, strict=True)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got.gradients[name], parameter.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("budget", [WHOLE, BRANCHWISE], ids=["one_pass", "two_phase"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_backward_replays_the_dropout_of_the_forward(budget: int, checkpointing: bool) -> None:
    flat = Settings(consensus=0, adaptability=0, difficulty=0, consistency=0.5)
    model = tiny_model("qwen2", lora=True, lora_dropout=0.3).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()

    def loss(backward: bool = False) -> Values:
        torch.manual_seed(11)
        return packages(model, PROBLEMS[:2], flat, budget, backward)

    got = loss(backward=True)
    assert loss().loss == got.loss
    generator = torch.Generator().manual_seed(3)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    direction = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in trainable}
    slope = sum((got.gradients[name] * direction[name]).sum() for name, _ in trainable)
    there = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for name, p in trainable:
                p.add_(step * direction[name])
        there.append(loss().loss)
        with torch.no_grad():
            for name, p in trainable:
                p.sub_(step * direction[name])
    assert slope.item() == pytest.approx(((there[0] - there[1]) / 2e-6).item(), rel=1e-6)
    torch.manual_seed(12)
    assert packages(model, PROBLEMS[:2], flat, budget, backward=False).loss != got.loss


@pytest.mark.parametrize("how", ["gradient checkpointing", "two-phase"])
def test_the_first_pass_of_a_process_may_be_under_an_activation_checkpoint(how: str) -> None:
    model = tiny_model("llama")
    expected = references(model, PROBLEMS, Settings())
    choose._chosen.cache_clear()  # as in a new process
    if how == "gradient checkpointing":
        model.train()  # it has no dropout; transformers checkpoints only while it trains
        model.gradient_checkpointing_enable({"use_reentrant": False})
    got = packages(model, PROBLEMS, Settings(), WHOLE if how == "gradient checkpointing" else BRANCHWISE)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-12, rtol=0)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_autocast_costs_no_more_precision_than_branch_by_branch(lora: bool) -> None:
    settings = Settings(consistency=0.5)
    model, exact = judged("qwen2", settings, lora=lora, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = references(model, PROBLEMS, settings)

    def errors(rough: Values) -> dict[str, float]:
        pairs = [(rough.gradients[name], gradient) for name, gradient in exact.gradients.items()]
        lost = sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)
        found = {"loss": (rough.loss - exact.loss).abs().item(), "gradient": lost.sqrt().item()}
        for name, rows in {**rough.scores, "weights": rough.weights}.items():
            theirs = exact.weights if name == "weights" else exact.scores[name]
            found[name] = (torch.cat(rows) - torch.cat(theirs)).nan_to_num().abs().max().item()
        return found

    allowed = errors(plain)
    for budget in (WHOLE, BRANCHWISE):
        with torch.autocast("cpu", torch.bfloat16):
            rough = packages(model, PROBLEMS, settings, budget)
        assert {row.dtype for rows in (*rough.scores.values(), rough.weights) for row in rows} == {torch.float32}
        for name, error in errors(rough).items():
            assert error <= 3 * allowed[name] + 2e-3, name
