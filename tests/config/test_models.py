"""The configuration: defaults, every error at once, YAML without traps, round trips."""

from __future__ import annotations

import pytest
import yaml

from compact_distill.config.file import dump_config
from compact_distill.config.models import RunConfig

MINIMAL = "student: my-student\nrationales: data.jsonl\n"


def test_defaults_are_those_that_evidence_chose_and_else_the_published_ones(load):
    config = load(MINIMAL)
    scores = config.compatibility
    assert (scores.estimator, scores.gain) == ("probe", "net")  # docs/results.md, Right from wrong
    assert (scores.consensus, scores.adaptability, scores.difficulty, scores.temperature) == (0.25, 1.0, 0.25, 0.5)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (16, 32, 0.1)
    assert (config.max_length, config.consistency) == (2560, 0.0)
    assert config.train == {
        "learning_rate": 5e-4,
        "num_train_epochs": 5,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "save_strategy": "epoch",
        "save_total_limit": 2,
    }


def test_python_and_yaml_give_the_same_configuration(load):
    assert RunConfig(student="my-student", rationales="data.jsonl") == load(MINIMAL)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("train: {output_dir: x}", "train.output_dir is the run's own; set `output:` at the top level"),
        ("train: {seed: 1}", "train.seed is the run's own; set `seed:` at the top level"),
        ("train: {save_strategy: epoc}", "train.save_strategy must be one of no, steps, epoch, best, got 'epoc'"),
        ("train: {learning_rate: 0}", "train.learning_rate must be > 0, got 0; the default is 0.0005 with LoRA"),
        ("train: {max_steps: true}", "train.max_steps must be a number, got true"),
        ("train: {learning_rate: .nan}", "train.learning_rate must be a number, got nan"),
        ("train: 3", "train must hold `key: value` lines, got 3"),
        ("lora: {dropout: 1}", "lora.dropout must be < 1, got 1; the default is 0.1"),
        ("compatibility: {consensus: .inf}", "compatibility.consensus must be finite, got inf"),
        ("compatibility: {thinking_expressions: ['(']}", "must be regular expressions, got '('"),
        ("compatibility: {thinking_expressions: ['a*']}", "must not match the empty string, got 'a*'"),
        ("text: {prompt_template: hello}", "text.prompt_template must hold {question} exactly once, got 'hello'"),
        ("rationales: []", "needs `rationales: FILE` (they exist already) or `teachers:`"),
        ("teachers: [{name: a, backend: lab, model: terse}]", "`teachers:` needs `problems: {path: FILE}`"),
        ("seed: 1.5", "seed must be a whole number, got 1.5; the default is 42"),
    ],
)
def test_a_value_out_of_range_names_key_rule_and_value(problems_of, extra, expected):
    text = MINIMAL.replace("rationales: data.jsonl\n", "") if extra.startswith("rationales") else MINIMAL
    found = problems_of(text + extra + "\n")
    assert len(found) == 1
    assert expected in found[0]


def test_duplicate_teacher_names_are_found_beside_other_errors(problems_of):
    teacher = "{name: a, backend: lab, model: terse}"
    found = problems_of(f"problems: {{path: p}}\nteachers: [{teacher}, {teacher}]\nseed: -1\nstudent: s\n")
    assert "seed must be >= 0" in found[0]
    assert "teachers must have different names, got 'a' twice" in found[1]


@pytest.mark.parametrize(
    "teacher",
    ["api_key: SECRET123", "api_key_env: SECRET-123", "base_url: 'http://user:SECRET123@host/v1'", "SECRET: SECRET123"],
)
def test_a_secret_in_the_file_is_refused_and_never_repeated(problems_of, teacher):
    found = problems_of(f"student: s\nproblems: {{path: p}}\nteachers: [{{name: a, {teacher}}}]\n")
    assert len(found) == 1
    assert "SECRET123" not in found[0]
    assert "SECRET-123" not in found[0]


def test_lora_null_trains_all_weights_at_the_published_rate(load):
    config = load(MINIMAL + "lora: null\n")
    assert config.lora is None
    assert config.train["learning_rate"] == 1e-5
    assert load(MINIMAL + "lora: null\ntrain: {learning_rate: 5e-4}\n").train["learning_rate"] == 5e-4


def test_the_paper_preset_is_the_published_settings_and_is_written_out(load):
    config = load(MINIMAL + "preset: paper\n")
    scores = config.compatibility
    assert (scores.consensus, scores.adaptability, scores.difficulty, scores.temperature) == (1.0, 1.0, 0.5, 1.0)
    assert (scores.estimator, scores.gain, scores.off_weight) == ("lens", "positive", 0.1)
    assert (scores.pool, scores.attention, scores.normalise) == ("last", "joint", "problem")
    assert (config.weighting, config.consistency, config.max_length) == ("compact", 0.1, 2560)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (16, 32, 0.1)
    train = config.train
    assert (train["learning_rate"], train["num_train_epochs"]) == (1e-5, 5)
    assert train["per_device_train_batch_size"] * train["gradient_accumulation_steps"] == 4
    written = yaml.safe_load(dump_config(config))
    assert written["compatibility"]["estimator"] == "lens"
    assert load(dump_config(config)) == config


def test_a_preset_fills_in_only_what_the_user_did_not_say(load):
    own = "preset: paper\nlora: null\ntrain: {learning_rate: 2.0e-4}\ncompatibility: {estimator: probe}\n"
    config = load(MINIMAL + own, {"compatibility.temperature": 0.5})
    assert (config.compatibility.estimator, config.compatibility.temperature) == ("probe", 0.5)
    assert config.compatibility.consensus == 1.0
    assert config.lora is None
    assert (config.train["learning_rate"], config.train["num_train_epochs"]) == (2e-4, 5)


def test_an_unknown_preset_is_named(problems_of):
    (problem,) = problems_of(MINIMAL + "preset: papper\n")
    assert "preset must be" in problem
    assert "papper" in problem


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("", ["weighting 'compact' weighs the rationales of a problem against each other; write `weighting: equal`"]),
        ("weighting: {best: difficulty}", ["weighting {'best': 'difficulty'} weighs the rationales"]),
        ("weighting: equal\nconsistency: 0.1", ["consistency 0.1 asks them to agree", "write `consistency: 0.0`"]),
        ("weighting: random\nconsistency: 0.1", ["weighting 'random' weighs", ", and consistency 0.1 asks"]),
    ],
)
def test_rationales_alone_have_nothing_to_be_compared_with(load, problems_of, settings, words):
    (found,) = problems_of(f"{MINIMAL}example: rationale\n{settings}")
    assert found.startswith("run.yaml, line 3: example must be problem here: ")
    assert all(part in found for part in words)
    assert load(f"{MINIMAL}example: rationale\nweighting: verified").example == "rationale"
