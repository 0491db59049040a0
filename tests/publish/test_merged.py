"""One model of adapter and base: the same logits, whole or not at all."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from compact_distill.errors import ConfigError, RunError
from compact_distill.publish import merged
from compact_distill.publish.merged import merge
from compact_distill.students.load import load_student


def test_the_merged_model_computes_what_adapter_and_base_did(finished, tmp_path):
    out = tmp_path / "whole"
    difference = merge(finished / "student", out)
    assert 0 < difference < 1e-4
    assert not (out / "adapter_config.json").exists()
    assert (out / "README.md").is_file()
    adapter, tokenizer = load_student(finished / "student")
    adapter.eval()
    base, _ = load_student(finished.parent / "student")
    whole = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([tokenizer("What is 2 + 1?")["input_ids"]])
    with torch.no_grad():
        expected, got, plain = adapter(input_ids=ids).logits, whole(input_ids=ids).logits, base(input_ids=ids).logits
    assert torch.allclose(expected, got, atol=1e-5)
    assert not torch.allclose(expected, plain, atol=1e-3)


def test_a_merge_that_changes_the_model_is_refused_and_leaves_nothing(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(merged._TOLERANCE, "torch.float32", 0.0)
    with pytest.raises(RunError, match=r"merged model differs .* nothing was written"):
        merge(finished / "student", tmp_path / "whole")
    assert list(tmp_path.iterdir()) == []


def test_bad_targets_and_whole_models_are_refused_before_anything_is_loaded(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(merged, "load_student", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="must be an adapter's folder"):
        merge(finished.parent / "student", tmp_path / "whole")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(ConfigError, match="must be a new or empty folder"):
        merge(finished / "student", tmp_path / "full")
    with pytest.raises(ConfigError, match="does not exist; make it first"):
        merge(finished / "student", tmp_path / "no" / "where")
