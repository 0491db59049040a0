"""What is read again after training, for the report."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from compact_distill.config.file import config_from
from compact_distill.method.encode import Branch, EncodedProblem
from compact_distill.records import RationaleStatus
from compact_distill.training import run
from compact_distill.training.run import ExamineEveryEpoch, gain_stride, scores_without_effect

BRANCH = Branch((0,) * 8, (0,), 0, (False,) * 8, ())
EXAMPLE = EncodedProblem("p", ("t", "u"), (0,) * 10, (BRANCH, None), (RationaleStatus.OK,) * 2, (0,), 0, 1)


def test_gains_are_read_on_a_sample_that_a_twentieth_of_the_training_pays():
    stride = lambda problems, epochs, readings: gain_stride([EXAMPLE] * problems, epochs, readings)  # noqa: E731
    assert stride(100, epochs=1, readings=2) == 20  # 5 problems twice cost 10 readings, training 200 at least
    assert stride(100, epochs=5, readings=2) == 4
    assert stride(100, epochs=40, readings=2) == 1
    assert stride(100, epochs=1, readings=1) == 10
    assert stride(1_000_000, epochs=40, readings=1) == 20  # 20 M tokens, of which a million


@pytest.mark.parametrize(("epochs", "readings"), [(1, 1), (1, 2), (3, 1), (5, 2)])
def test_the_sample_stays_within_its_twentieth_also_where_it_meets_long_problems(epochs, readings):
    rng = random.Random(0)
    for long_ones in (2, 5, 20):
        lengths = [rng.randrange(20, 60) * (30 if i % long_ones == 0 else 1) for i in range(200)]
        problems = [replace(EXAMPLE, id=str(i), prompt=(0,) * length) for i, length in enumerate(lengths)]
        costs = [length + len(EXAMPLE.branches[0]) for length in lengths]
        chosen = costs[:: gain_stride(problems, epochs, readings)]
        assert chosen
        assert readings * sum(chosen) <= 2 * epochs * sum(costs) / 20


def test_scores_that_have_no_reasoning_to_read_are_told_where_they_would_count():
    def told(**keys):
        return scores_without_effect(config_from({"student": "s", "rationales": "r", **keys}))

    answer = {"rationale": "answer"}
    assert told() == []
    assert told(text=answer) == ["adaptability"]
    assert told(text=answer, weighting="equal") == []
    assert told(text=answer, compatibility={"adaptability": 0.0}) == []
    assert told(text=answer, weighting={"best": "local_naturalness"}) == ["local_naturalness"]


@pytest.mark.parametrize(("epoch", "exams"), [(0.4, 0), (1.0, 1), (1.5, 0), (2.0, 1)])
def test_an_exam_is_held_at_the_end_of_an_epoch_and_not_where_training_stops_inside_one(
    tmp_path, monkeypatch, epoch, exams
):
    held = []
    monkeypatch.setattr(run, "examine", lambda *given: held.append(given) or [])
    monkeypatch.setattr(run, "weights_hash", lambda model: "0")
    monkeypatch.setattr(run, "StudentWriter", lambda *given: None)
    model = SimpleNamespace(training=True, eval=lambda: None, train=lambda mode: None)
    trainer = SimpleNamespace(model=model, processing_class=None, log=lambda logs: None)
    exam = SimpleNamespace(text=None, settings=SimpleNamespace(batch_tokens=1))
    callback = ExamineEveryEpoch(trainer, exam, tmp_path)
    callback.on_epoch_end(None, SimpleNamespace(global_step=2, epoch=epoch), SimpleNamespace())
    assert len(held) == exams
