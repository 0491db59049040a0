"""The benchmark compares like with like: the naive step computes our loss, and the floor is the formula."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import beside_trl
from compact_distill.config.file import load_config
from compact_distill.config.models import CompatibilityConfig, RunConfig
from compact_distill.errors import ConfigError
from compact_distill.method.forward import attach
from compact_distill.method.loss import aggregate
from compact_distill.method.passes import plan_jobs, read_job
from compact_distill.method.scores import Scorer
from compact_distill.students.load import load_tokenizer
from compact_distill.study.arms import load_study
from compact_distill.study.findings import write_results
from compact_distill.study.page import write_page
from compact_distill.study.run import run_study
from compact_distill.study.training import StepTimes
from contenders import Setup
from models import byte_level_tokenizer, save_student, tiny_model
from naive import CONSISTENCY, PUBLISHED, naive_outputs
from step import floor_operations
from tables import Row, Section, markdown, ratio
from workload import Shape, TokenCounts, Workload, count_tokens, make_model, sequences, synthetic

TINY = Shape(layers=2, width=32, heads=4, kv_heads=2, feed_forward=48, vocabulary=97)


@pytest.mark.parametrize("wrong", [False, True], ids=["all answers gold", "one answer wrong"])
def test_naive_step_computes_our_loss_and_gradients(wrong: bool) -> None:
    (problem,) = synthetic(1, 3, 20, TINY.vocabulary, prompt=5, spread=0.4)
    assert sum(branch.answer != problem.gold for branch in problem.branches if branch is not None) == 1
    if not wrong:
        branches = tuple(replace(branch, answer=problem.gold) for branch in problem.branches if branch is not None)
        problem = replace(problem, branches=branches)
    scorer = Scorer(CompatibilityConfig(**PUBLISHED))
    found = []
    for naive in (True, False):
        model = make_model(TINY, torch.float32, "cpu").double()
        if naive:
            outputs = naive_outputs(model, problem)
        else:
            attach(model)
            options = scorer.pass_options(CONSISTENCY)
            (job,) = plan_jobs([problem], options, 10_000)
            outputs = read_job(model, job, options)
        scores = scorer.scores(outputs)
        weights = scorer.weights(scores, outputs.problems)
        loss = aggregate(scores["difficulty"], weights, outputs.gold_logprob, outputs.problems, CONSISTENCY).total
        loss.backward()
        found.append((loss.item(), weights, model.model.layers[0].mlp.up_proj.weight.grad))
    (one, weights_one, grad_one), (other, weights_other, grad_other) = found
    assert one == pytest.approx(other, rel=1e-5)  # the naive step takes its log-softmax in fp32
    torch.testing.assert_close(weights_one.double(), weights_other, atol=1e-4, rtol=0)
    torch.testing.assert_close(grad_one, grad_other, atol=1e-6, rtol=1e-4)


def test_synthetic_problems_have_the_lengths_asked_for() -> None:
    problems = synthetic(3, 4, 50, 100, prompt=7)
    tokens = count_tokens(problems)
    assert (tokens.unique, tokens.repeated, tokens.labelled) == (7 + 4 * 49, 4 * (7 + 50), 4 * 50)
    for ids, labels in sequences(problems):
        assert len(ids) == len(labels) == 57
        assert labels[:7] == [-100] * 7
        assert labels[7:] == ids[7:]


@pytest.mark.parametrize(("lora", "each"), [(False, 6), (True, 4)])
def test_floor_counts_each_parameter_once_a_token(lora: bool, each: int) -> None:
    setup = Setup(TINY, "cpu", torch.float32, lora=lora, checkpointing=False, rounds=1, tokenizer="")
    model = make_model(TINY, torch.float32, "cpu")
    matrices = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.dim() == 2)
    head = model.lm_head.weight.numel()
    tokens = TokenCounts(unique=10, repeated=99, labelled=3, gold=0)
    assert floor_operations(setup, tokens) == each * (matrices * 10 + head * 3)


def row(contender: str, seconds: list[float], peak: int, failure: str | None = None) -> Row:
    return Row(contender, contender, 4, 128, {}, 0.1, seconds, seconds, peak, 1.0, failure)


def test_ratios_are_medians_of_paired_rounds() -> None:
    # The machine was ten times slower in the second round: the pairs still say 0.5, medians of each would not.
    ours, theirs = row("lens", [1.0, 10.0, 3.0], 50), row("trl-single", [2.0, 20.0, 3.0], 100)
    assert ratio(ours, theirs, "time") == 0.5
    assert ratio(ours, theirs, "memory") == 0.5
    table = markdown([Section("main", "T", [ours, theirs, row("naive", [], 0, "boom\ntrace")])])
    assert "| lens / TRL's best (trl-single) | 0.50 | 0.50 | 0.50 | 0.50, 0.60 |" in table
    assert "| naive | failed: boom |" in table


def test_packing_fills_whole_optimizer_steps() -> None:
    pytest.importorskip("trl", reason="the extra `bench` is not installed")
    from datasets import Dataset

    from contenders import _packing

    pairs = list(sequences(synthetic(8, 4, 40, 100, prompt=10, spread=0.5)))
    dataset = Dataset.from_dict({"input_ids": [ids for ids, _ in pairs], "labels": [labels for _, labels in pairs]})
    rows, length = _packing(dataset, steps=2, wanted=8)
    assert rows % 2 == 0 or rows < 8
    assert length >= max(len(ids) for ids, _ in pairs)
    assert rows * length >= sum(len(ids) for ids, _ in pairs)


def test_results_take_the_whole_name_they_are_given(tmp_path: Path) -> None:
    import step

    setup = Setup(TINY, "cpu", torch.float32, False, False, 1, "")
    for name in ("qwen2.5-0.5b-lora", "qwen2.5-0.5b-all"):
        step.write(argparse.Namespace(out=tmp_path / name, device="cpu", dtype="fp32"), setup, [], 0.0)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"qwen2.5-0.5b-lora.json", "qwen2.5-0.5b-all.json", "qwen2.5-0.5b-all.md"}


def test_the_gpu_benchmark_takes_names_of_parts_and_refuses_others(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    for words, code in ((["--only", "generation"], 0), (["--only", "generatio"], 2), (["--quick"], 2)):
        command = [script, "--toy", *words, tmp_path / "out"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == code, done.stdout + done.stderr
    assert "- generation: done in" in (tmp_path / "out" / "gpu.md").read_text()


def test_the_gpu_benchmark_runs_through_at_a_toy_shape_on_a_cpu(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [script, "--toy", tmp_path / "out"], capture_output=True, text=True, timeout=560, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "out" / "gpu.md").read_text()
    for part in ("doctor", "step-toy-lora", "long-toy-lora", "generation"):
        assert f"- {part}: done in" in text
    assert "agrees" in text
    assert "MFU (6 N)" in text
    assert "tokens/s" in text
    assert json.loads((tmp_path / "out" / "machine.json").read_text())["torch"] == torch.__version__


def test_the_reading_benchmark_compares_scores_with_a_plain_forward_and_loads(tmp_path: Path) -> None:
    student = save_student(
        tmp_path / "student", tiny_model("qwen2", layers=2, dtype=torch.float32), byte_level_tokenizer()
    )
    row = {"question": "What is 1 plus 1?", "answer": "2"}
    texts = ["One and one. Thus 2. The answer is 2.", "It is two. The answer is 2."]
    rationales = [{"teacher": f"t{n}", "text": text} for n, text in enumerate(texts)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"id": f"p{n}", **row, "rationales": rationales}) + "\n" for n in range(3)))
    script, out = Path(__file__).parents[1] / "benchmarks" / "reading.py", tmp_path / "out.json"
    command = [sys.executable, script, student, data, "--problems", "3", "--rounds", "1", "--load", "500", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert len(found["reading"]) == 4
    assert all(row["problems_per_second"] > 0 for row in found["reading"].values())
    assert found["loading"]["list"]["problems"] == 500
    assert found["loading"]["first"]["problems"] == 200
    assert "| plain forward, one at a time |" in done.stdout
    command = [sys.executable, script, student, data, "--problems", "3", "--gains", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    again = json.loads(out.read_text())["gains"]
    assert again["lines"] == 2  # one problem, with the student before and after
    assert min(again["training"], again["gains"]) > 0


# ---- a study's arms beside TRL


def save_data(path: Path, problems: int) -> str:
    """Problems of two rationales, the second one wrong; the last problem has but one."""
    rows = []
    for n in range(problems):
        texts = (f"So {n} + 1 = {n + 1}.\nThe answer is {n + 1}.", f"It is {n} again.\nThe answer is {n}.")
        rationales = [{"teacher": t, "text": text} for t, text in zip(("right", "wrong"), texts, strict=True)]
        kept = rationales if n < problems - 1 else rationales[:1]
        rows.append({"id": f"p{n}", "question": f"What is {n} + 1?", "answer": str(n + 1), "rationales": kept})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two arms and a union, run through with a tiny student."""
    folder = tmp_path_factory.mktemp("study")
    save_student(folder / "student", tiny_model("qwen2", layers=2, dtype=torch.float32), byte_level_tokenizer())
    base = {
        "student": str(folder / "student"), "rationales": save_data(folder / "data.jsonl", 5), "lora": {"r": 2},
        "report": {"gains": False},
        "train": {"num_train_epochs": 1, "per_device_train_batch_size": 2, "use_cpu": True, "warmup_steps": 0.1},
    }  # fmt: skip
    arms: dict[str, Any] = {
        "union": {"example": "rationale", "weighting": "equal"},
        "verified": {"weighting": "verified"},
        "equal": {"weighting": "equal"},
    }
    arms["one"] = {"train": {"per_device_train_batch_size": 1}}
    study = {"base": base, "arms": arms, "seeds": [3], "output": str(folder / "out")}
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    outcome = run_study(load_study(folder / "study.yaml"))
    assert outcome.failed == {}
    write_page(outcome.out, *write_results(outcome))
    return outcome.out


def test_a_studys_arms_are_those_that_others_are_compared_with_or_those_asked_for(finished_study: Path) -> None:
    document = json.loads((finished_study / "study.json").read_text())
    assert beside_trl.arms_of(document, []) == ["equal"]
    assert beside_trl.arms_of(document, ["verified", "equal"]) == ["verified", "equal"]
    for name in ("union", "nobody"):
        with pytest.raises(ConfigError, match=f"{name} cannot be timed.*such arms are verified, equal, one"):
            beside_trl.arms_of(document, [name])


def test_arms_that_compute_otherwise_are_not_timed_together(finished_study: Path) -> None:
    arms = configs(finished_study, "equal", "verified")
    train = {**arms["verified"].train, "bf16": True, "learning_rate": 1.0}
    arms["verified"] = arms["verified"].model_copy(update={"train": train})
    with pytest.raises(ConfigError, match=r"arm verified differs from equal in train\.bf16; time them one by one"):
        beside_trl.alike(arms)


def configs(out: Path, *names: str) -> dict[str, RunConfig]:
    return {name: load_config(out / "arms" / name / "seed-3" / "config.yaml") for name in names}


def test_arms_of_other_steps_are_not_timed_together(finished_study: Path) -> None:
    beside_trl.alike(configs(finished_study, "equal", "verified"))
    with pytest.raises(ConfigError, match="arm one differs from equal in problems a step; time them one by one"):
        beside_trl.alike(configs(finished_study, "equal", "one"))


def test_what_is_timed_is_what_the_run_trained_on_and_nothing_that_has_changed(finished_study: Path) -> None:
    config, run = configs(finished_study, "equal")["equal"], finished_study / "arms" / "equal" / "seed-3"
    encoded = beside_trl.as_it_trained(config, run)
    assert {name: len(problem.present) for name, problem in encoded.items()} == {f"p{n}": 1 + (n < 4) for n in range(5)}
    assert beside_trl.choose([encoded], 2, 4) == ["p0", "p1", "p2", "p3"], "as many rationales each as most have"
    assert beside_trl.choose([encoded], 2, 3) == ["p0", "p2"], "whole steps, evenly spread"
    assert beside_trl.choose([encoded, {"p1": 0, "p3": 0}], 2, 4) == ["p1", "p3"], "those that all arms train on"
    with pytest.raises(ConfigError, match="the study has 4 problems with 2 rationales each, but a step takes 8"):
        beside_trl.choose([encoded], 8, 8)
    with pytest.raises(ConfigError, match=r"trained with other inputs than are here now \(lora\); run the study again"):
        beside_trl.as_it_trained(config.model_copy(update={"lora": None}), run)


def test_trl_trains_with_the_studys_own_settings_where_its_defaults_are_others(finished_study: Path) -> None:
    arms = configs(finished_study, "equal")
    setup = beside_trl.StudySetup(arms["equal"], arms, "cpu", 2)
    given = setup.arguments("folder")
    assert (given["learning_rate"], given["warmup_steps"], given["seed"]) == (5e-4, 0.1, 3)
    assert (given["bf16"], given["gradient_checkpointing"]) == (False, False), "TRL turns both on by itself"
    assert (given["num_train_epochs"], given["max_steps"]) == (3, -1)
    assert "per_device_train_batch_size" not in given
    adapter = setup.adapter()
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (2, 32, 0.1)


def test_an_arms_trainer_is_raced_as_its_run_trained_it(finished_study: Path, tmp_path: Path) -> None:
    arms = configs(finished_study, "equal", "verified")
    setup = beside_trl.StudySetup(arms["equal"], arms, "cpu", 1)
    for name, config in arms.items():
        encoded = beside_trl.as_it_trained(config, finished_study / "arms" / name / "seed-3")
        workload = Workload(name, tuple(encoded[f"p{n}"] for n in range(4)), step=2)
        build, tokenizer = setup.builder(f"arm:{name}"), load_tokenizer(setup.tokenizer)
        trainer = build(setup.model(), tokenizer, setup, workload, str(tmp_path / name))
        assert trainer.args.weighting == name
        assert trainer.train().global_step == 2 * 2, "two steps in the round that warms up and in the one that counts"
        assert len(trainer.model.peft_config) == 1


def on_study(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, Path(beside_trl.__file__).with_name("step.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def test_the_command_line_of_a_study_is_checked_before_any_work(tmp_path: Path) -> None:
    done = on_study("--study", tmp_path, "--shape", "toy", "--contenders", "lens")
    assert done.returncode == 2
    assert "--shape has no effect with --study" in done.stderr
    assert "--contenders must name one of TRL's" in done.stderr
    if importlib.util.find_spec("trl") is None:
        assert "TRL, which is not installed" in done.stderr
    done = on_study("--arms", "equal")
    assert "--arms names arms of a study; give its folder with --study" in done.stderr


def test_a_study_is_timed_beside_trl_and_its_page_shows_it(finished_study: Path) -> None:
    pytest.importorskip("trl", reason="the extra `bench` is not installed")
    missing = on_study("--study", finished_study.with_name("nothing"))
    assert missing.returncode == 2
    assert "run `compact study` to its end first" in missing.stderr
    assert not finished_study.with_name("nothing").exists()
    assert "Beside TRL: not measured" in (finished_study / "study.html").read_text()
    words = [
        "--arms",
        "equal",
        "verified",
        "--contenders",
        "trl-single",
        "trl-packed",
        "--rounds",
        "1",
        "--problems",
        "4",
    ]
    done = on_study("--study", finished_study, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = StepTimes.model_validate_json((finished_study / "trl.json").read_text())
    assert (found.problems, found.step, found.rationales, found.failed) == (4, 2, 2, {})
    assert list(found.everyone) == ["equal", "verified", "TRL, one sequence at a time", "TRL, packed"]
    assert all(own.peak > 0 for own in found.everyone.values())
    page = (finished_study / "study.html").read_text()
    assert "A step beside TRL" in page
    assert "not measured" not in page
    assert f"trl {found.machine['trl']}" in page
