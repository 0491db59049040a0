"""Only complete checkpoints are resumed; a damaged one is named."""

from __future__ import annotations

import json
import logging

import pytest

from compact_distill.errors import RunError
from compact_distill.training.checkpoints import STATE, damage, newest_complete, require_complete, seal, trace_damage


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
        (lambda path: (path / "complete.json").write_text("[]"), "lists no files"),
        (lambda path: (path / "complete.json").write_text("null"), "lists no files"),
        (lambda path: (path / "complete.json").write_text("{}"), "lists no weights"),
        (lambda path: (path / "complete.json").write_text('{"a.json": 1}'), "lists no files"),
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


def test_a_trace_with_rows_missing_before_a_checkpoint_is_known(tmp_path):
    path = checkpoint(tmp_path, 2)
    (path / STATE).write_text(json.dumps({"step": 2, "trace_rows": 3}))
    trace = tmp_path / "scores.jsonl"
    rows = [json.dumps({"step": step}) for step in (0, 0, 1, 2)]
    trace.write_text("\n".join(rows) + "\n")
    assert trace_damage(path, trace) is None
    trace.write_text("\n".join(rows[:2]) + "\n")
    assert "holds 2 rows of the steps before it, not 3" in trace_damage(path, trace)
    trace.write_text("\n".join([rows[0], "garbage", *rows[1:]]) + "\n")
    assert "holds 1 rows" in trace_damage(path, trace)
    trace.unlink()
    assert "holds 0 rows" in trace_damage(path, trace)
    (path / STATE).write_text("[]")
    assert "cannot be read" in trace_damage(path, trace)
