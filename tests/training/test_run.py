"""What is read again after training, for the report."""

from __future__ import annotations

from compact_distill.config.file import config_from
from compact_distill.method.encode import Branch, EncodedProblem
from compact_distill.records import RationaleStatus
from compact_distill.training.run import gain_stride, scores_without_effect


def test_gains_are_read_on_a_sample_that_a_twentieth_of_the_training_pays():
    prompt, branch = (0,) * 10, Branch((0,) * 8, (0,), 0, (False,) * 8, ())
    problem = EncodedProblem("p", ("t", "u"), prompt, (branch, None), (RationaleStatus.OK,) * 2, (0,), 0, 1)
    stride = lambda problems, epochs, readings: gain_stride([problem] * problems, epochs, readings)  # noqa: E731
    assert stride(100, epochs=1, readings=2) == 20  # 5 problems twice cost 10 readings, training 200 at least
    assert stride(100, epochs=5, readings=2) == 4
    assert stride(100, epochs=40, readings=2) == 1
    assert stride(100, epochs=1, readings=1) == 10
    assert stride(1_000_000, epochs=40, readings=1) == 20  # 20 M tokens, of which a million


def test_scores_that_have_no_reasoning_to_read_are_told_where_they_would_count():
    def told(**keys):
        return scores_without_effect(config_from({"student": "s", "rationales": "r", **keys}))

    answer = {"rationale": "answer"}
    assert told() == []
    assert told(text=answer) == ["adaptability"]
    assert told(text=answer, weighting="equal") == []
    assert told(text=answer, compatibility={"adaptability": 0.0}) == []
    assert told(text=answer, weighting={"best": "local_naturalness"}) == ["local_naturalness"]
