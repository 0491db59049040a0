"""Identity: what a student computes with counts, where it lies and what lies beside it does not; hubs are pinned."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import models
from compact_distill.config.file import config_from
from compact_distill.errors import StudentError
from compact_distill.students.identity import (
    commit_of,
    hub_names,
    newest_commit,
    pin_student,
    student_hash,
    weights_hash,
)
from compact_distill.students.load import check_student, load_student, load_tokenizer, pin

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def student(tmp_path) -> Path:
    return models.save_student(
        tmp_path / "student", models.tiny_model("qwen2", layers=1, dtype=torch.float32), models.byte_level_tokenizer()
    )


def first_weight(name: str) -> torch.Tensor:
    return next(load_student(name)[0].parameters()).detach()


@pytest.mark.parametrize(
    "name", ["README.md", "notes/mine.txt", "checkpoint-3/model.safetensors", "trainer_state.json"]
)
def test_what_lies_beside_a_student_is_no_part_of_it(student, name):
    before = student_hash(student)
    (student / name).parent.mkdir(exist_ok=True)
    (student / name).write_text("x")
    assert student_hash(student) == before


def test_one_student_has_one_identity_by_whatever_name(student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(student, tmp_path / "copy")
    same = [student_hash(name) for name in (student, "student", "./student", "student/", "copy")]
    assert len(set(same)) == 1


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "additional_chat_templates/short.jinja"]
)
def test_weights_configuration_and_tokenizer_count(student, name):
    tokenizer = models.byte_level_tokenizer(chat=True)
    tokenizer.chat_template = {"default": models.CHATML, "short": "{{ messages[0].content }}"}
    tokenizer.save_pretrained(student)
    before = student_hash(student)
    (student / name).write_bytes((student / name).read_bytes() + b" ")
    assert student_hash(student) != before


def test_an_adapter_is_its_own_files_and_its_base_wherever_that_lies(student, tmp_path):
    from peft import LoraConfig, get_peft_model

    model, _ = load_student(student)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "adapter"
    )
    before = student_hash(tmp_path / "adapter")
    shutil.move(student, tmp_path / "moved")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "moved")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    assert student_hash(tmp_path / "adapter") == before
    (tmp_path / "moved" / "config.json").write_text(
        (tmp_path / "moved" / "config.json").read_text().replace("1e-06", "1e-05")
    )
    assert student_hash(tmp_path / "adapter") != before


def test_an_adapter_on_an_adapter_is_refused_and_never_recursed_into(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    (message,) = check_student(tmp_path)
    assert "is an adapter itself" in message


def test_a_hub_student_is_its_commit_not_its_name(hub):
    before = student_hash("org/tiny")
    assert commit_of("org/tiny") == OLD
    assert student_hash(f"org/tiny@{OLD}") == before
    hub.move(NEW)
    assert student_hash("org/tiny") != before


def test_a_pinned_student_stays_what_it_was_when_the_hub_moves_on(hub):
    pin("org/tiny", OLD)
    old = first_weight("org/tiny")
    hub.move(NEW)
    assert torch.equal(first_weight("org/tiny"), old)
    assert newest_commit("org/tiny") == NEW
    assert not torch.equal(first_weight(f"org/tiny@{NEW}"), old)  # the user says otherwise
    assert check_student(f"org/tiny@{NEW}") == []
    assert len(load_tokenizer(f"org/tiny@{NEW}")) > 0


def test_the_base_under_an_adapter_is_a_hub_model_of_the_student(hub, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/tiny"}))
    assert hub_names(adapter) == ["org/tiny"]
    before = student_hash(adapter)
    pin("org/tiny", NEW)
    assert student_hash(adapter) != before
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/tiny", "revision": OLD}))
    assert student_hash(adapter) == before  # what the adapter says itself comes first


def test_weights_in_memory_are_told_apart_by_value():
    model = models.tiny_model("qwen2", layers=1, lora=True)
    before = weights_hash(model)
    assert weights_hash(models.tiny_model("qwen2", layers=1, lora=True)) == before
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1e-6)
    assert weights_hash(model) != before


@pytest.mark.parametrize("chain", [("a", "a"), ("a", "b", "a"), ("a", "b", "student")])
def test_a_chain_of_adapters_is_an_error_and_never_followed(student, tmp_path, chain):
    for name, base in pairwise(chain):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(tmp_path / base)})
        )
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"x")
    assert hub_names(tmp_path / "a") == []
    with pytest.raises(StudentError, match="is an adapter itself"):
        student_hash(tmp_path / "a")
    config = config_from({"student": str(tmp_path / "a"), "rationales": "x", "output": str(tmp_path / "run")})
    assert pin_student(config) == {}


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "null", '{"base_model_name_or_path": 3}', "{"])
def test_a_damaged_adapter_configuration_is_told(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    (message,) = check_student(tmp_path)
    assert "must name base_model_name_or_path" in message
    pin_student(config_from({"student": str(tmp_path), "rationales": "x", "output": str(tmp_path / "run")}))
