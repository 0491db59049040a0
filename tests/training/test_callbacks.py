"""Beside training: a resumed run's log is whole, signals stop in good order, only complete checkpoints are resumed."""

from __future__ import annotations

import json
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from compact_distill.errors import RunError
from compact_distill.method.encode import Branch, EncodedProblem
from compact_distill.method.loss import LossTerms
from compact_distill.records import RationaleStatus
from compact_distill.runs.files import read_jsonl
from compact_distill.training.callbacks import (
    STATE,
    StopInOrder,
    TrainingHistory,
    TrainingMetrics,
    damage,
    newest_complete,
    numbered,
    require_complete,
    rotate,
    seal,
    trace_damage,
    trace_so_far,
)

LOADER = SimpleNamespace(dataset=range(20))


def state(step, epoch, first=True):
    return SimpleNamespace(global_step=step, epoch=epoch, is_world_process_zero=first)


def train(path, start, stop):
    """Log after every step from `start` to `stop`; a step is a tenth of an epoch."""
    history = TrainingHistory(path)
    history.on_train_begin(None, state(start, start / 10), None, train_dataloader=LOADER)
    for step in range(start + 1, stop + 1):
        logs = {"loss": 1 / step, "weight/a b": 0.25}
        history.on_log(None, state(step, step / 10), None, logs=logs)
    history.on_train_end(None, state(stop, stop / 10), None)
    return list(read_jsonl(path))


def test_a_line_holds_what_was_logged_and_the_cost_of_it(tmp_path):
    rows = train(tmp_path / "log.jsonl", 0, 3)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["epoch"] for row in rows] == [0.1, 0.2, 0.3]
    assert rows[1]["loss"] == 0.5
    assert rows[1]["weight/a b"] == 0.25
    assert all(row["memory_mib"] > 1 for row in rows)
    assert rows[0]["seconds"] <= rows[1]["seconds"] <= rows[2]["seconds"]


def test_throughput_counts_problems_since_the_line_before(tmp_path, monkeypatch):
    clock = iter([0.0, 100.0, 104.0, 108.0])  # made, begun, two lines
    monkeypatch.setattr("compact_distill.training.callbacks.time.monotonic", lambda: next(clock))
    rows = train(tmp_path / "log.jsonl", 0, 2)
    assert [row["problems_per_second"] for row in rows] == [0.5, 0.5]  # 2 problems a step in 4 s
    assert [row["seconds"] for row in rows] == [4.0, 8.0]


def test_a_resume_cuts_what_came_after_its_checkpoint_and_goes_on_counting_time(tmp_path):
    path = tmp_path / "log.jsonl"
    before = train(path, 0, 6)
    rows = train(path, 4, 6)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[:4] == before[:4]
    assert rows[4]["seconds"] >= before[3]["seconds"]


def test_a_run_that_went_on_took_the_time_and_memory_of_all_its_parts(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 10.0, 20.0, 30.0, 500.0, 500.0, 512.0])  # made, begun, three lines; the third is cut off
    monkeypatch.setattr("compact_distill.training.callbacks.time.monotonic", lambda: next(clock))
    peaks = iter([100.0, 900.0, 950.0, 300.0])
    monkeypatch.setattr("compact_distill.training.callbacks.peak_memory_mib", lambda: next(peaks))
    train(tmp_path / "log.jsonl", 0, 3)
    history = TrainingHistory(tmp_path / "log.jsonl")
    history.on_train_begin(None, state(2, 0.2), None, train_dataloader=LOADER)
    history.on_log(None, state(3, 0.3), None, logs={"loss": 1.0})
    assert (history.seconds, history.memory_mib) == (32.0, 900.0)


def test_the_loss_of_a_run_is_the_mean_over_the_steps_of_all_its_parts(tmp_path):
    path = tmp_path / "log.jsonl"

    def logged(start, *lines):
        history = TrainingHistory(path)
        history.on_train_begin(None, state(start, start / 10), None, train_dataloader=LOADER)
        for step, loss in lines:
            history.on_log(None, state(step, step / 10), None, logs={"loss": loss})
        history.on_log(None, state(step if lines else start, 1), None, logs={"train_loss": 0.0})
        history.on_train_end(None, state(0, 0), None)
        return history.loss

    mean = (2 * 8.0 + 2 * 5.0 + 1 * 2.0) / 5  # a line is the mean over the steps since the one before
    assert logged(0, (2, 8.0), (4, 5.0), (5, 2.0)) == pytest.approx(mean)
    assert logged(2, (4, 5.0), (5, 2.0)) == pytest.approx(mean)
    assert logged(5) == pytest.approx(mean)
    assert TrainingHistory(tmp_path / "none.jsonl").loss == 0.0


def test_nan_and_infinity_become_null(tmp_path):
    history = TrainingHistory(tmp_path / "log.jsonl")
    history.on_log(None, state(1, 0.1), None, logs={"loss": math.nan, "grad_norm": math.inf})
    (row,) = read_jsonl(tmp_path / "log.jsonl")
    assert row["loss"] is None
    assert row["grad_norm"] is None


@pytest.mark.parametrize("logs", [None, {}])
def test_other_ranks_and_empty_logs_write_nothing(tmp_path, logs):
    history = TrainingHistory(tmp_path / "log.jsonl")
    history.on_log(None, state(1, 0.1), None, logs=logs)
    history.on_log(None, state(1, 0.1, first=False), None, logs={"loss": 1.0})
    assert not (tmp_path / "log.jsonl").exists()


# ---- stopping


def test_the_first_signal_stops_after_the_step_and_the_second_at_once():
    class Control:
        should_save = should_training_stop = False

    class Arguments:
        world_size = 1

    control = Control()

    def work() -> None:
        with StopInOrder() as stop:
            stop.on_step_end(Arguments, None, control)
            assert not control.should_training_stop
            os.kill(os.getpid(), signal.SIGINT)
            stop.on_step_end(Arguments, None, control)
            assert control.should_save
            assert control.should_training_stop

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert signal.getsignal(signal.SIGINT) is before

    reached = []

    def impatient() -> None:
        with StopInOrder():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("the end")

    with pytest.raises(SystemExit) as caught:
        impatient()
    assert caught.value.code == 143
    assert not reached


BRANCH = Branch((1,), (2,), 0, (False,), ())


def problem(name: str, *present: bool) -> EncodedProblem:
    return EncodedProblem(
        id=name,
        teachers=tuple(f"t{k}" for k in range(len(present))),
        prompt=(1, 2),
        branches=tuple(BRANCH if there else None for there in present),
        statuses=tuple(RationaleStatus.OK if there else RationaleStatus.MISSING for there in present),
        gold=(3,),
        gold_start=0,
        gold_stop=1,
    )


def collected(problems: list[EncodedProblem], weights: list[list[float]]) -> dict[str, float]:
    metrics = TrainingMetrics()
    weights_BK = torch.tensor(weights, dtype=torch.float64)
    terms = LossTerms(torch.tensor(3.1), torch.tensor(3.0), torch.tensor(1.0))
    metrics.add(problems, {"difficulty": weights_BK * 10}, weights_BK, terms)
    return metrics.collect()


def test_a_tie_for_the_largest_weight_is_shared_and_no_other_teacher_wins():
    found = collected([problem("a", True, True, True, True)], [[0.4, 0.4, 0.15, 0.05]])
    assert [found[f"wins/t{k}"] for k in range(4)] == [0.5, 0.5, 0, 0]


def test_shares_of_wins_add_up_to_one_and_a_missing_teacher_takes_no_part():
    problems = [problem("a", True, True, False), problem("b", True, True, True), problem("c", True, False, False)]
    found = collected(problems, [[0.5, 0.5, 0.0], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
    # t0: 1/2 of a, none of b, all of c; t1: 1/2 of a, none of b; t2: only in b, which it wins.
    assert found["wins/t0"] == pytest.approx(1.5 / 3)
    assert found["wins/t1"] == pytest.approx(0.5 / 2)
    assert found["wins/t2"] == 1
    assert found["weight/t2"] == pytest.approx(0.6)
    assert found["difficulty/t1"] == pytest.approx((5 + 2) / 2)


def test_entropy_is_in_nats_over_the_present_teachers_and_losses_are_means_over_problems():
    problems = [problem("a", True, True, False), problem("b", True, False, False)]
    found = collected(problems, [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert found["weight_entropy"] == pytest.approx(math.log(2) / 2)
    assert (found["loss_likelihood"], found["loss_consistency"]) == (1.5, 0.5)


def test_a_second_reading_starts_anew():
    metrics = TrainingMetrics()
    terms = LossTerms(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.0))
    metrics.add([problem("a", True)], {}, torch.ones(1, 1), terms)
    assert metrics.collect()["wins/t0"] == 1
    assert metrics.collect() == {}


def test_a_loss_is_a_mean_over_steps_and_a_batch_a_part_of_one():
    metrics = TrainingMetrics()
    for part, ends_step in ((1.0, False), (2.0, True), (5.0, True)):
        metrics.add_loss(part, ends_step, ranks=1)
    assert metrics.totals() == {"loss": [8.0, 2.0]}
    assert metrics.collect() == {"loss": 4.0}


def checkpoint(folder, step, sealed=True):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "optimizer.pt").write_bytes(b"moments")
    (path / "rng_state.pth").write_bytes(b"draws")
    if sealed:
        seal(path)
    return path


def test_the_newest_complete_checkpoint_counts_by_step(tmp_path):
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-100"


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_complete(tmp_path) is None


def leave_weights_alone(path):
    """Make a checkpoint one that `save_only_model` writes."""
    for name in ("optimizer.pt", "rng_state.pth"):
        (path / name).unlink()
    seal(path)


def test_a_checkpoint_of_weights_alone_can_be_read_but_not_gone_on_from(tmp_path):
    leave_weights_alone(checkpoint(tmp_path, 3))
    assert require_complete(tmp_path / "checkpoint-3", to_go_on=False) == tmp_path / "checkpoint-3"
    with pytest.raises(RunError, match=r"cannot resume from .*weights alone"):
        require_complete(tmp_path / "checkpoint-3")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (leave_weights_alone, "lists weights alone"),
        (lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda path: (path / "model.safetensors").write_bytes(b"w"), "model.safetensors has changed"),
        (lambda path: (path / "complete.json").unlink(), "interrupted while it was written"),
        (lambda path: (path / "complete.json").write_text("{"), "not valid JSON"),
        (lambda path: (path / "complete.json").write_text("[]"), "lists no files"),
        (lambda path: (path / "complete.json").write_text("null"), "lists no files"),
        (lambda path: (path / "complete.json").write_text("{}"), "lists no weights"),
        (lambda path: (path / "complete.json").write_text('{"a.json": 1}'), "lists no files"),
        (lambda path: (path / "complete.json").write_text("[" * 100_000), "not valid JSON"),
    ],
)
def test_a_damaged_checkpoint_falls_back_and_says_so(tmp_path, capsys, harm, says):
    checkpoint(tmp_path, 3)
    harm(checkpoint(tmp_path, 6))
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-3"
    assert says in capsys.readouterr().err
    with pytest.raises(RunError, match=says):
        require_complete(tmp_path / "checkpoint-6")


def test_a_damaged_seal_cannot_control_the_terminal(tmp_path, capsys):
    checkpoint(tmp_path, 3)
    (checkpoint(tmp_path, 6) / "complete.json").write_text(json.dumps({"x\x1b[2J.safetensors": "0"}))
    newest_complete(tmp_path)
    assert "x\ufffd[2J.safetensors is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (2, None, [20, 100]),
        (1, None, [100]),
        (1, 9, [9, 100]),
        (2, 100, [20, 100]),
        (5, None, [9, 20, 100]),
        (0, None, [9, 20, 100]),
        (None, None, [9, 20, 100]),
    ],
)
def test_old_checkpoints_go_by_their_steps_and_what_a_user_called_like_them_stays(tmp_path, keep, best, left):
    for step in (9, 20, 100):
        checkpoint(tmp_path, step)
    for own in ("checkpoint-9-best", "checkpoint-mine", "checkpoint-mine-3", "checkpoint-"):
        (tmp_path / own).mkdir()
    rotate(tmp_path / "checkpoint-100", keep, best and str(tmp_path / f"checkpoint-{best}"))
    assert [step for step, _ in numbered(tmp_path)] == left
    assert len(list(tmp_path.iterdir())) == len(left) + 4


def test_what_an_earlier_training_left_does_not_push_the_newest_checkpoint_out(tmp_path):
    for step in (100, 200, 10):
        checkpoint(tmp_path, step)
    rotate(tmp_path / "checkpoint-10", 2, None)
    assert [step for step, _ in numbered(tmp_path)] == [10, 200]


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
