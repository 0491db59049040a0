"""What is said of the machine: versions, hardware, and the doctor's last words; no names and no paths."""

from __future__ import annotations

import getpass
import importlib.metadata
import json

import pytest
import torch

from compact_distill.errors import ConfigError
from compact_distill.runs.environment import accelerator, hardware, last_doctor, peak_memory_mib, store_doctor, versions


def test_versions_are_those_that_are_installed():
    found = versions()
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["compact-distill"] == importlib.metadata.version("compact-distill")


def test_hardware_names_neither_user_nor_folder():
    text = json.dumps(hardware())
    assert getpass.getuser() not in text.split()
    assert "/home" not in text


def test_peak_memory_never_falls():
    before = peak_memory_mib()
    held = bytearray(32 * 2**20)
    assert peak_memory_mib() >= before > 0
    del held
    assert peak_memory_mib() >= before


def test_the_doctors_last_words_are_kept_and_are_old_under_another_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert last_doctor().startswith("not run")
    assert store_doctor("89 agree", "CPU")
    assert last_doctor().startswith("89 agree (")
    assert "CPU" in last_doctor()
    path = tmp_path / "compact-distill" / "doctor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch": "0.1"}))
    assert last_doctor().endswith("torch has changed since, run it again")


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not store_doctor("89 agree", "CPU")


def test_a_model_goes_where_it_is_asked_to_or_to_the_gpu_and_only_writers_to_apples(monkeypatch):
    def on(cuda, apple):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
        return accelerator(), accelerator(writes_only=True), accelerator("cpu", writes_only=True)

    assert on(cuda=False, apple=False) == ("cpu", "cpu", "cpu")
    assert on(cuda=False, apple=True) == ("cpu", "mps", "cpu")
    assert on(cuda=True, apple=True) == ("cuda", "cuda", "cpu")
    assert accelerator("cuda:1") == "cuda:1"
    on(cuda=False, apple=True)
    with pytest.raises(ConfigError, match="device cuda:1 needs a GPU that torch sees"):
        accelerator("cuda:1", writes_only=True)
