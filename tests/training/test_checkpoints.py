"""Only complete checkpoints are resumed; a damaged one is named."""

from __future__ import annotations

import json
import logging

import pytest

from compact_distill.errors import RunError
from compact_distill.training.callbacks import (
    STATE,
    damage,
    newest_complete,
    require_complete,
    seal,
    trace_damage,
    trace_so_far,
)


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


def test_a_trace_that_is_not_what_a_checkpoint_saw_is_known(tmp_path):
    path, trace = checkpoint(tmp_path, 2), tmp_path / "scores.jsonl"
    rows = "".join(json.dumps({"step": step}) + "\n" for step in (0, 0, 1))
    trace.write_text(rows)
    (path / STATE).write_text(json.dumps({"step": 2, **trace_so_far(trace)}))
    for grown in (rows, rows + '{"step": 2}\n', rows + '{"st'):
        trace.write_text(grown)
        assert trace_damage(path, trace) is None
    trace.write_text(rows[:-4])
    assert trace_damage(path, trace) == f"scores.jsonl lacks 4 of its {len(rows)} bytes"
    trace.write_text(rows.replace("1", "3"))
    assert trace_damage(path, trace) == "scores.jsonl has changed since"
    trace.unlink()
    assert "lacks" in trace_damage(path, trace)
    (path / STATE).write_text("[]")
    assert "cannot be read" in trace_damage(path, trace)


def test_a_checkpoint_before_the_first_row_fits_any_trace(tmp_path):
    path = checkpoint(tmp_path, 1)
    (path / STATE).write_text(json.dumps({"step": 0, **trace_so_far(tmp_path / "none.jsonl")}))
    assert trace_damage(path, tmp_path / "none.jsonl") is None
