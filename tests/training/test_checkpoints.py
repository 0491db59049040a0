"""Only complete checkpoints are resumed; a damaged one is named."""

from __future__ import annotations

import logging

import pytest

from compact_distill.errors import RunError
from compact_distill.training.checkpoints import damage, newest_complete, require_complete, seal


def checkpoint(folder, step, sealed=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "optimizer.pt").write_bytes(b"moments")
    if sealed:
        seal(path)
    return path


def test_the_newest_complete_checkpoint_counts_by_step(tmp_path):
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-100"


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_complete(tmp_path) is None


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda path: (path / "model.safetensors").write_bytes(b"w"), "model.safetensors has changed"),
        (lambda path: (path / "complete.json").unlink(), "interrupted while it was written"),
        (lambda path: (path / "complete.json").write_text("{"), "not valid JSON"),
    ],
)
def test_a_damaged_checkpoint_falls_back_and_says_so(tmp_path, caplog, harm, says):
    checkpoint(tmp_path, 3)
    harm(checkpoint(tmp_path, 6))
    with caplog.at_level(logging.WARNING):
        assert newest_complete(tmp_path) == tmp_path / "checkpoint-3"
    assert says in caplog.text
    with pytest.raises(RunError, match=says):
        require_complete(tmp_path / "checkpoint-6")


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    checkpoint(tmp_path, 3, sealed=False)
    with pytest.raises(RunError, match="none of the 1 checkpoints"):
        newest_complete(tmp_path)


def test_a_sealed_checkpoint_is_whole(tmp_path):
    assert damage(checkpoint(tmp_path, 1)) is None
