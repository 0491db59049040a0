"""A run's file: everything wrong is said at once; overrides, the written copy and the template read back the same."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compact_distill.config.file import config_from, dump_config, load_config, load_sound_part, template
from compact_distill.config.models import CompatibilityConfig, LoraConfig, RunConfig
from compact_distill.config.yaml import parse
from compact_distill.errors import ConfigError

MINIMAL = "student: my-student\nrationales: data.jsonl\n"


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
        "run.yaml, line 8: consistency must be >= 0, got -1; the default is 0.0",
        "run.yaml, line 9: key 'consistency' stands twice (first in line 8); keep one of them",
        "run.yaml, line 10: lora.r must be a whole number, got true; the default is 16",
        "run.yaml, line 11: train.learning_rat is not a setting of transformers.TrainingArguments; "
        "did you mean 'learning_rate'?",
        "run.yaml, line 11: train.num_train_epochs must be a number, got 'many'",
        "run.yaml: student is missing; write `student: Qwen/Qwen2.5-1.5B-Instruct` (hub name or folder of the student)",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: m", "model is not a known key; did you mean `student:`?"),
        ("datasets: d", "datasets is not a known key; did you mean `rationales:`?"),
        ("output_dir: o", "output_dir is not a known key; did you mean 'output'?"),
        ("lr: 1e-4", "lr is not a known key; did you mean `train: {learning_rate: ...}`?"),
        ("lora: {rank: 8}", "lora.rank is not a known key; did you mean `lora: {r: 16}`?"),
        ("lora: {target_modules: all}", "lora.target_modules is not a known key; leave it out: adapters go on all "),
        ("train: {epochs: 3}", "TrainingArguments; did you mean `train: {num_train_epochs: 5}`?"),
        ("train: {batch_size: 4}", "TrainingArguments; did you mean `train: {per_device_train_batch_size: 4}`?"),
        ("train: {max_seq_length: 9}", "TrainingArguments; did you mean `max_length:`, at the top level?"),
        ("eval: {tasks: [gsm8k]}", "eval.tasks is not a known key; did you mean `eval: {learned: [...], retained: "),
        ("eval: {learned: gsm8k}", "eval.learned must be a list, got 'gsm8k'; write [gsm8k]"),
        ("teachers: [{name: t, lr: 3}]", "teachers[0].lr is not a known key; known keys are name, "),
    ],
)
def test_what_other_tools_call_a_key_leads_to_it(problems_of, text, said):
    assert any(said in problem for problem in problems_of(MINIMAL + text + "\n"))


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


def test_overrides_replace_values_by_dotted_key(load):
    config = load(MINIMAL + "lora: {r: 8}\n", {"train.max_steps": 3, "lora.r": 4, "output": "elsewhere"})
    assert (config.train["max_steps"], config.lora.r, config.output) == (3, 4, "elsewhere")
    assert config.lora.alpha == 32


def test_wrong_overrides_are_reported_like_the_file(problems_of):
    found = problems_of(MINIMAL, **{"student.name": 3, "lora.rr": 1})
    assert "set over run.yaml: lora.rr is not a known key; did you mean 'r'?" in found
    assert "student.name cannot be set: 'student' holds no keys; set 'student' itself" in found


def test_a_wrong_override_of_a_key_in_the_file_is_not_blamed_on_the_files_line(problems_of):
    text = MINIMAL + "train: {max_steps: 4}\nseed: -1\n"
    assert problems_of(text, **{"train.max_steps": "many"}) == [
        "run.yaml, line 4: seed must be >= 0, got -1; the default is 42",
        "set over run.yaml: train.max_steps must be a whole number, got 'many'",
    ]


def test_a_setting_of_training_at_the_top_level_is_shown_its_place(problems_of):
    assert problems_of(MINIMAL + "learning_rate: 1e-4\nmax_steps: 3\n") == [
        "run.yaml, line 3: learning_rate is not a known key; it belongs under `train:`",
        "run.yaml, line 4: max_steps is not a known key; it belongs under `train:`",
    ]
    assert problems_of(MINIMAL + "output_dir: x\n") == [
        "run.yaml, line 3: output_dir is not a known key; did you mean 'output'?"
    ]


def test_one_name_where_a_list_belongs_is_shown_as_a_list(problems_of):
    assert problems_of(MINIMAL + "eval: {learned: gsm8k}\n") == [
        "run.yaml, line 3: eval.learned must be a list, got 'gsm8k'; write [gsm8k]"
    ]


def test_a_file_that_is_named_twice_is_told_and_not_that_its_ids_stand_twice(problems_of):
    assert problems_of("student: s\nrationales: [r.jsonl, q.jsonl, r.jsonl]\n")[0] == (
        "run.yaml, line 2: rationales must name each file once, got 'r.jsonl' twice; remove one of them"
    )


def test_an_output_in_a_home_that_nothing_expands_is_refused(problems_of, load):
    (told,) = problems_of(MINIMAL + "output: ~/runs\n")
    assert told == (
        "run.yaml, line 3: output must not start with ~, which is not expanded here, got '~/runs'; write the folder out"
    )
    assert load(MINIMAL + "output: ./~\n").output == "./~"


def test_what_is_sound_in_a_file_with_a_nul_character_can_still_be_checked(tmp_path):
    (tmp_path / "run.yaml").write_text(MINIMAL + 'output: "a\\0b"\n')
    config, problems = load_sound_part(tmp_path / "run.yaml")
    assert config is not None
    assert "\0" not in config.output
    assert [problem.partition(": ")[2] for problem in problems] == ["output must not hold a NUL character; remove it"]


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
    assert plain["train"]["learning_rate"] == 5e-4
    assert parse(template()).data == plain


def test_importing_the_configuration_imports_no_torch():
    code = "import sys, compact_distill.config.file; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_train_setting_keeps_the_other_published_ones(load):
    train = load(MINIMAL + "train: {learning_rate: 2e-4}\n").train
    assert train["learning_rate"] == 2e-4
    assert train["num_train_epochs"] == 5


def test_asking_for_checkpoints_by_steps_gives_them(load):
    assert load(MINIMAL + "train: {save_steps: 10}\n").train["save_strategy"] == "steps"
    assert load(MINIMAL + "train: {save_steps: 10, save_strategy: no}\n").train["save_strategy"] == "no"


def test_yes_and_no_follow_the_type_of_the_setting(load):
    train = load(MINIMAL + "train: {bf16: no, gradient_checkpointing: on, save_strategy: no}\n").train
    assert train["bf16"] is False
    assert train["gradient_checkpointing"] is True
    assert train["save_strategy"] == "no"


def test_the_hub_token_may_not_stand_in_the_file(problems_of):
    found = problems_of(MINIMAL + "train: {hub_token: hf_abc}\n")
    assert "HF_TOKEN" in found[0]
    assert "hf_abc" not in found[0]
