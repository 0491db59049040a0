"""Settings of training: which change the student, and which cannot be used here."""

from __future__ import annotations

import pytest
import torch

from compact_distill.training.arguments import CompactConfig, setting_problems, settings_that_matter


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"logging_steps": 10, "save_steps": 3, "report_to": "none", "disable_tqdm": True}),
        ({}, {"dataloader_num_workers": 4, "gradient_checkpointing": True, "use_cpu": True, "torch_compile": False}),
        ({}, {"weight_decay": 0.0, "warmup_steps": 0, "lr_scheduler_type": "linear"}),
        ({}, {"learning_rate": 1e-5, "num_train_epochs": 5}),  # our defaults
        (
            {"per_device_train_batch_size": 4},
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        ),
    ],
)
def test_what_is_said_of_speed_memory_and_defaults_does_not_matter(first, second):
    assert settings_that_matter(first) == settings_that_matter(second)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 2e-5},
        {"num_train_epochs": 4},
        {"max_steps": 10},
        {"warmup_steps": 3},
        {"lr_scheduler_type": "cosine"},
        {"bf16": True},
        {"data_seed": 3},
        {"per_device_train_batch_size": 8},
        {"dataloader_drop_last": True},
        {"train_sampling_strategy": "group_by_length"},
    ],
)
def test_what_the_student_learns_by_matters(settings):
    assert settings_that_matter(settings) != settings_that_matter({})


def test_ranks_count_as_batch_size_does():
    assert settings_that_matter({"per_device_train_batch_size": 2}, ranks=2) == settings_that_matter(
        {"per_device_train_batch_size": 4}
    )


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_bf16_works_where_there_is_no_accelerator_and_fp16_is_told(tmp_path):
    assert CompactConfig(output_dir=str(tmp_path), bf16=True).device.type == "cpu"
    assert setting_problems(CompactConfig(output_dir=str(tmp_path), bf16=True)) == []
    wrong = setting_problems(CompactConfig(output_dir=str(tmp_path), fp16=True, use_cpu=True))
    assert any("train.fp16 needs a GPU" in message for message in wrong)


def test_pushing_to_the_hub_needs_a_login_and_takes_one(tmp_path, monkeypatch):
    args = CompactConfig(output_dir=str(tmp_path), push_to_hub=True, use_cpu=True)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert ["needs a login" in message for message in setting_problems(args)] == [True]
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_of_the_user")
    assert setting_problems(args) == []


def test_settings_without_effect_are_told_with_their_reason(tmp_path):
    args = CompactConfig(output_dir=str(tmp_path), label_smoothing_factor=0.1, use_cpu=True)
    (message,) = setting_problems(args)
    assert message == (
        "train.label_smoothing_factor has no effect here, got 0.1: the loss here is COMPACT's own; remove it"
    )
    assert setting_problems(CompactConfig(output_dir=str(tmp_path), use_cpu=True)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"torch_empty_cache_steps": 2}, "train.torch_empty_cache_steps has no effect here, got 2"),
        ({"length_column_name": "size"}, "train.length_column_name has no effect here, got 'size'"),
        ({"include_num_input_tokens_seen": True}, "train.include_num_input_tokens_seen has no effect here, got 'all'"),
        ({"save_only_model": True}, "train.save_only_model cannot be used: training could not go on"),
        ({"eval_on_start": True}, "train.eval_on_start cannot be used"),
        ({"save_strategy": "best", "metric_for_best_model": "x"}, "train.save_strategy 'best' cannot be used"),
        ({"average_tokens_across_devices": False}, "train.average_tokens_across_devices False cannot be used"),
        ({"optim": "lomo"}, "train.optim 'lomo' cannot be used: it changes weights inside a backward"),
        ({"optim": "adalomo"}, "train.optim 'adalomo' cannot be used"),
        ({"train_sampling_strategy": "batch_rebalance"}, "train.train_sampling_strategy 'batch_rebalance' cannot be"),
        ({"neftune_noise_alpha": 5.0}, "train.neftune_noise_alpha cannot be used, got 5.0: its noise"),
        ({"accelerator_config": {"even_batches": False}}, "train.accelerator_config.even_batches must be true"),
    ],
)
def test_settings_that_a_step_here_cannot_follow_are_told(tmp_path, settings, message):
    found = setting_problems(CompactConfig(output_dir=str(tmp_path), use_cpu=True, **settings))
    assert [text for text in found if text.startswith(message)], found
