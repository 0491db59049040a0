"""The `train:` section takes transformers' settings, by their types, and keeps the defaults of the others."""

from __future__ import annotations

MINIMAL = "student: my-student\nrationales: data.jsonl\n"


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
