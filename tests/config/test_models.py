"""The configuration: defaults, every error at once, YAML without traps, round trips."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compact_distill.config.models import (
    CompatibilityConfig,
    LoraConfig,
    RunConfig,
    config_from,
    dump_config,
    load_config,
)
from compact_distill.config.template import template
from compact_distill.config.yaml import parse, parse_value
from compact_distill.errors import ConfigError

MINIMAL = "student: my-student\nrationales: data.jsonl\n"


@pytest.fixture
def problems_of(tmp_path: Path):
    """The list of problems that a YAML text gives."""

    def read(text: str, **overrides) -> list[str]:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides)
        return [problem.replace(f"{path}", "run.yaml") for problem in caught.value.problems]

    return read


@pytest.fixture
def load(tmp_path: Path):
    def read(text: str, overrides=None) -> RunConfig:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)

    return read


def test_defaults_are_those_that_evidence_chose_and_else_the_published_ones(load):
    config = load(MINIMAL)
    scores = config.compatibility
    assert (scores.estimator, scores.gain) == ("probe", "net")  # docs/results.md, Right from wrong
    assert (scores.consensus, scores.adaptability, scores.difficulty, scores.temperature) == (0.25, 1.0, 0.25, 1.0)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (16, 32, 0.1)
    assert (config.max_length, config.consistency) == (2560, 0.1)
    assert config.train == {
        "learning_rate": 1e-5,
        "num_train_epochs": 5,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "save_strategy": "epoch",
        "save_total_limit": 2,
    }


def test_one_train_setting_keeps_the_other_published_ones(load):
    train = load(MINIMAL + "train: {learning_rate: 2e-4}\n").train
    assert train["learning_rate"] == 2e-4
    assert train["num_train_epochs"] == 5


def test_asking_for_checkpoints_by_steps_gives_them(load):
    assert load(MINIMAL + "train: {save_steps: 10}\n").train["save_strategy"] == "steps"
    assert load(MINIMAL + "train: {save_steps: 10, save_strategy: no}\n").train["save_strategy"] == "no"


def test_python_and_yaml_give_the_same_configuration(load):
    assert RunConfig(student="my-student", rationales="data.jsonl") == load(MINIMAL)


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "0.00001", "1.0e-5", "+1e-05", ".1e-4"])
def test_numbers_in_scientific_notation_are_numbers(load, text):
    config = load(MINIMAL + f"consistency: {text}\ntrain: {{learning_rate: {text}}}\n")
    assert config.consistency == config.train["learning_rate"] == 1e-5


def test_yes_and_no_follow_the_type_of_the_setting(load):
    train = load(MINIMAL + "train: {bf16: no, gradient_checkpointing: on, save_strategy: no}\n").train
    assert train["bf16"] is False
    assert train["gradient_checkpointing"] is True
    assert train["save_strategy"] == "no"


def test_a_teacher_may_be_named_no(load):
    rest = "backend: lab, model: terse"
    text = f"student: s\nproblems: {{path: p.jsonl}}\nteachers: [{{name: no, {rest}}}, {{name: 2024-01-01, {rest}}}]\n"
    assert [teacher.name for teacher in load(text).teachers] == ["no", "2024-01-01"]


def test_merge_keys_can_be_overridden_without_counting_as_duplicates(load):
    text = (
        "student: s\nproblems: {path: p.jsonl}\nteachers:\n"
        "  - &server {name: a, model: m, base_url: 'http://localhost:1/v1'}\n  - {<<: *server, name: b}\n"
    )
    first, second = load(text).teachers
    assert (second.name, second.base_url) == ("b", first.base_url)


def test_every_error_is_reported_at_once_with_its_line(problems_of):
    found = problems_of(
        "studnt: x\n"
        "rationales: data.jsonl\n"
        "compatibility:\n"
        "  temperature: 0.0\n"
        "  estimator: lense\n"
        "  of_weight: 1\n"
        "  max_probes: 2.5\n"
        "consistency: -1\n"
        "consistency: 2\n"
        "lora: {r: true}\n"
        "train: {learning_rat: 1e-4, num_train_epochs: many}\n"
    )
    assert found == [
        "run.yaml, line 1: studnt is not a known key; did you mean 'student'?",
        "run.yaml, line 4: compatibility.temperature must be > 0, got 0.0; use 1.0 for no sharpening",
        "run.yaml, line 5: compatibility.estimator must be one of 'lens' or 'probe', got 'lense'; did you mean 'lens'?",
        "run.yaml, line 6: compatibility.of_weight is not a known key; did you mean 'off_weight'?",
        "run.yaml, line 7: compatibility.max_probes must be a whole number, got 2.5; the default is 16",
        "run.yaml, line 8: consistency must be >= 0, got -1; the default is 0.1",
        "run.yaml, line 9: key 'consistency' stands twice (first in line 8); keep one of them",
        "run.yaml, line 10: lora.r must be a whole number, got true; the default is 16",
        "run.yaml, line 11: train.learning_rat is not a setting of transformers.TrainingArguments; "
        "did you mean 'learning_rate'?",
        "run.yaml, line 11: train.num_train_epochs must be a number, got 'many'",
        "run.yaml: student is missing; write `student: Qwen/Qwen2.5-1.5B-Instruct` (hub name or folder of the student)",
    ]


def test_a_key_in_the_wrong_section_names_the_right_one(problems_of):
    assert (
        "temperature is not a known key; it belongs under `teachers:` or `compatibility:`"
        in problems_of(MINIMAL + "temperature: 2\n")[0]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- student: x\n", "got a list"),
        ("just words\n", "got a single value"),
        ("student: [x\n", "line 2, column 1: must be valid YAML"),
        ("student: x\n\tseed: 1\n", "line 2, column 1: must be valid YAML"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: must be valid YAML"),
        ("student: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("student: *nobody\n", "undefined alias"),
        ("seed: !!int many\n", "!!tag does not fit"),
        ("student: " + "[" * 5000, "nested this deep"),
        ("student: \x01\n", "must be plain text"),
        (MINIMAL + "5: x\n", "line 3: key must be text, got '5'"),
    ],
)
def test_broken_yaml_gives_one_clear_error(problems_of, text, expected):
    found = problems_of(text)
    assert len(found) == 1
    assert expected in found[0]


def test_aliases_cannot_explode():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="use fewer aliases"):
        parse("\n".join(lines))
    with pytest.raises(ConfigError, match="use fewer aliases"):
        parse("a: &a {b: *a}")


def test_a_missing_file_a_folder_and_a_wrong_encoding_say_so(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; `compact init`"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("student: café\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="must be UTF-8, byte 12"):
        load_config(tmp_path / "latin.yaml")


def test_a_byte_order_mark_is_harmless(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_config(tmp_path / "run.yaml").student == "my-student"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("train: {output_dir: x}", "train.output_dir is the run's own; set `output:` at the top level"),
        ("train: {seed: 1}", "train.seed is the run's own; set `seed:` at the top level"),
        ("train: {save_strategy: epoc}", "train.save_strategy must be one of no, steps, epoch, best, got 'epoc'"),
        ("train: {learning_rate: 0}", "train.learning_rate must be > 0, got 0; the default is 1e-05"),
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


def test_the_hub_token_may_not_stand_in_the_file(problems_of):
    found = problems_of(MINIMAL + "train: {hub_token: hf_abc}\n")
    assert "HF_TOKEN" in found[0]
    assert "hf_abc" not in found[0]


def test_overrides_replace_values_by_dotted_key(load):
    config = load(MINIMAL + "lora: {r: 8}\n", {"train.max_steps": 3, "lora.r": 4, "output": "elsewhere"})
    assert (config.train["max_steps"], config.lora.r, config.output) == (3, 4, "elsewhere")
    assert config.lora.alpha == 32


def test_wrong_overrides_are_reported_like_the_file(problems_of):
    found = problems_of(MINIMAL, **{"student.name": 3, "lora.rr": 1})
    assert "run.yaml: lora.rr is not a known key; did you mean 'r'?" in found
    assert "student.name cannot be set: 'student' holds no keys; set 'student' itself" in found


def test_override_values_follow_the_files_rules():
    assert [parse_value(text) for text in ("1e-5", "no", "true", "[1, 2]", "x", "null")] == [
        1e-5, "no", True, [1, 2], "x", None,
    ]  # fmt: skip


def test_lora_null_trains_all_weights(load):
    assert load(MINIMAL + "lora: null\n").lora is None


def test_config_from_checks_settings_in_memory():
    assert config_from({"student": "s", "rationales": "r"}).lora == LoraConfig()
    with pytest.raises(ConfigError, match=r"train\.bf16 must be true or false, got 'maybe'"):
        config_from({"student": "s", "rationales": "r", "train": {"bf16": "maybe"}})


def test_dumped_configuration_reads_back_the_same(load, tmp_path):
    config = load(
        MINIMAL + 'text: {prompt_template: "Q: {question}\\nA:"}\nlora: null\ntrain: {save_strategy: no, bf16: yes}\n'
        "compatibility: {thinking_expressions: ['\\bso\\b', 'yes'], extra_scores: {length: -0.5}}\n"
    )
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config), encoding="utf-8")
    assert load_config(again) == config


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    student=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Cn"]), min_size=1, max_size=20),
    temperature=st.floats(min_value=1e-8, max_value=1e8),
    answer=st.sampled_from(["{answer}", "no", "1e-5 {answer}", ": {answer} #", "'{answer}\"", "\n{answer}\t"]),
)
def test_any_configuration_round_trips(student, temperature, answer, tmp_path):
    text = {"answer_template": answer if "{answer}" in answer else "{answer}"}
    config = RunConfig(
        student=student, rationales="no", compatibility=CompatibilityConfig(temperature=temperature), text=text
    )
    parsed = RunConfig.model_validate(parse(dump_config(config)).data)
    assert parsed == config


def test_the_template_is_valid_and_gives_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(template(), encoding="utf-8")
    assert load_config(path) == config_from({"student": "Qwen/Qwen2.5-1.5B-Instruct", "rationales": "rationales.jsonl"})


def test_the_template_names_every_key_and_its_choices():
    text = template()
    for model in (RunConfig, CompatibilityConfig, LoraConfig):
        for name, field in model.model_fields.items():
            assert f"{name}:" in text
            assert field.description in text, f"{name} has no description"
    assert "(positive | net | peak)" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_template_stays_valid_when_its_examples_are_switched_on(tmp_path):
    body = template().split("\n\n", 1)[1]
    on = re.sub(r"(?m)^((  )*)# ((  )*(- )?\w+:)", r"\1\3", body)
    path = tmp_path / "run.yaml"
    path.write_text(on, encoding="utf-8")
    config = load_config(path)
    assert config.problems.limit == 200
    assert config.teachers[0].api_key_env == "QWQ_KEY"
    assert config.eval.retained == ("csqa", "strategyqa")
    assert config.compatibility.extra_scores == {"my_score": 0.5}


def test_any_yaml_reader_reads_the_template_the_same(load):
    plain = yaml.safe_load(template())
    assert plain["train"]["learning_rate"] == 1e-5
    assert parse(template()).data == plain


def test_importing_the_configuration_imports_no_torch():
    code = (
        "import sys, compact_distill.config.template; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_yaml_scalars_are_read_as_written():
    data = parse("[off, 010, 1:30, 0x10, 1_000, -.5, .inf, ~, '']".join(["a: ", ""])).data["a"]
    assert data == ["off", "010", "1:30", 16, 1000, -0.5, math.inf, None, ""]


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
