"""Gains for the explorer: they tell the same as the scores, and point at the right characters."""

from __future__ import annotations

import pytest
import torch

import models
from compact_distill.config.models import CompatibilityConfig
from compact_distill.method import score as score_module
from compact_distill.method.score import gains, score
from compact_distill.records import Instance, Rationale

TEXTS = (
    "\n  First we add 3 and 4. Therefore we get 7.\nThe answer is 7.",
    "Café: 3 + 4 🙂, so 7.\nThe answer is 7.",
    "no statement at all",
)
INSTANCES = [
    Instance(
        "p0", "Ann has 3 apples and buys 4.", "7", tuple(Rationale(f"t{k}", text) for k, text in enumerate(TEXTS))
    ),
    Instance("p1", "Nobody answers this.", "1", (Rationale("t0", "  "),)),
]


def lines(estimator="lens", chat=False, **options):
    model = models.tiny_model("qwen2", dtype=torch.float64)
    tokenizer = models.byte_level_tokenizer(chat=chat)
    config = CompatibilityConfig(**{"estimator": estimator, "gain": "positive", **options})
    found = list(gains(model, tokenizer, INSTANCES, "after", config))
    return found, next(iter(score(model, tokenizer, INSTANCES, config)))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("estimator", "options"), [("lens", {}), ("probe", {}), ("probe", {"max_probes": 2})])
def test_the_sum_of_rises_is_the_adaptability_score_and_of_all_steps_the_net_one(estimator, options, chat):
    found, row = lines(estimator, chat, off_weight=1.0, **options)
    _, net_row = lines(estimator, chat, gain="net", **options)
    assert [line["id"] for line in found] == ["p0"]  # p1 has nothing to read
    for rationale, positive, net in zip(found[0]["rationales"], row.adaptability, net_row.adaptability, strict=True):
        if positive is None:
            assert rationale is None
        else:
            rounding = 1e-4 * len(rationale["gains"])
            assert sum(max(gain, 0.0) for gain in rationale["gains"]) == pytest.approx(positive, abs=rounding)
            assert sum(rationale["gains"]) == pytest.approx(net, abs=rounding)


@pytest.mark.parametrize("chat", [False, True])
def test_steps_cover_the_reasoning_and_nothing_else(chat):
    found, _ = lines(chat=chat)
    first, second, third = found[0]["rationales"]
    assert third is None
    for rationale, text, reasoning in (
        (first, TEXTS[0], "First we add 3 and 4. Therefore we get 7."),
        (second, TEXTS[1], "Café: 3 + 4 🙂, so 7."),
    ):
        assert len(rationale["ends"]) == len(rationale["gains"])
        assert rationale["ends"] == sorted(rationale["ends"])
        assert text[rationale["start"] : rationale["ends"][-1]] == reasoning


def test_thinking_expressions_are_found_as_characters_of_the_text():
    found, _ = lines(chat=True)
    marked = [[TEXTS[k][start:end].strip() for start, end in found[0]["rationales"][k]["thinking"]] for k in (0, 1)]
    assert [[word for word in words if word] for words in marked] == [["First", "Therefore"], ["so"]]


def test_the_model_is_left_in_the_mode_it_was_in():
    model = models.tiny_model("qwen2").train()
    list(gains(model, models.byte_level_tokenizer(), INSTANCES, "before"))
    assert model.training


def test_on_a_cpu_gains_are_read_in_rows_of_1024_tokens_as_training_reads(monkeypatch):
    model, tokenizer = models.tiny_model("qwen2"), models.byte_level_tokenizer()
    text = "We add 3 and 4. " * 40 + "\nThe answer is 7."
    instances = [Instance(f"p{i}", "Ann has 3 apples.", "7", (Rationale("t0", text),)) for i in range(8)]
    rows, read_job = [], score_module.read_job

    def noting(model, job, options):
        rows.extend(len(layout.tokens) for layout in job.layouts)
        return read_job(model, job, options)

    monkeypatch.setattr(score_module, "read_job", noting)
    assert len(list(gains(model, tokenizer, instances, "after"))) == 8
    assert max(rows) <= 1024 < sum(rows)
