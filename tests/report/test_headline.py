"""The verdict in words: it claims what the intervals carry, and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compact_distill.report import read_run, summary, write_report
from compact_distill.report.headline import about, headline, weight_shares
from compact_distill.report.pages import overview
from compact_distill.report.read import PairedChange, RunData, TaskResult, UsedProblem, UsedRationale
from compact_distill.report.trace import arrange_trace
from compact_distill.statistics import difference_of_tables
from report.synthetic import make_run


def change(task, difference, margin, role="learned"):
    return PairedChange(
        task, role, 200, 0.5, 0.5 + difference, difference, difference - margin, difference + margin, 3, 1, 0.5
    )


def run(*changes, trace=None, **more):
    return RunData(path=Path("r"), name="r", changes=list(changes), trace=trace, **more)


def weights(*rows, teachers=("a", "b")):
    lines = [
        {"id": f"p{i}", "epoch": 0.1, "teachers": list(teachers), "difficulty": [1.0] * len(row), "weights": list(row)}
        for i, row in enumerate(rows)
    ]
    return arrange_trace(lines)


@pytest.mark.parametrize(
    ("changes", "value", "words"),
    [
        ([change("x", 0.1, 0.05)], "Yes: +10.0 points", "The student got better at x (+10.0 percentage points)."),
        (
            [change("x", 0.1, 0.2)],
            "No clear change",
            "The student shows no clear change on x (+10.0 percentage points).",
        ),
        ([change("x", -0.1, 0.05)], "Worse: −10.0 points", "The student got worse at x (−10.0 percentage points)."),
        (
            [change("x", 0.1, 0.05), change("y", -0.2, 0.05), change("z", 0.0, 0.05)],
            "Mixed: −3.3 points",
            "The student got better at x (+10.0 percentage points), but worse at y (−20.0), "
            "with no clear change on z (+0.0).",
        ),
    ],
)
def test_better_needs_an_interval_above_zero(changes, value, words):
    head = headline(run(*changes))
    assert head.cards[0].value == value
    assert head.verdict == words


@pytest.mark.parametrize(
    ("changes", "value", "words"),
    [
        ([change("x", -0.01, 0.05, "retained")], "Nothing clear", "it shows no clear loss on x (−1.0)"),
        ([change("x", -0.1, 0.05, "retained")], "−10.0 points on x", "it lost on x (−10.0)"),
        ([change("x", 0.1, 0.05, "retained")], "Nothing", "it lost nothing: x (+10.0) rose too"),
    ],
)
def test_loss_needs_an_interval_below_zero(changes, value, words):
    head = headline(run(*changes))
    assert head.cards[1].value == value
    assert words in head.verdict


def test_a_loss_that_cannot_be_excluded_is_told():
    head = headline(run(change("x", -0.01, 0.05, "retained")))
    assert "A loss of up to 6.0 points cannot be excluded." in head.cards[1].details


def test_the_heaviest_teacher_is_named_unless_all_are_equal():
    assert headline(run(trace=weights((0.7, 0.3), (0.5, 0.5)))).cards[2].value == "Most from a"
    equal = headline(run(trace=weights((0.7, 0.3), (0.3, 0.7))))
    assert equal.cards[2].value == "All about equally"
    assert equal.verdict.endswith("it learned from all its teachers about equally.")
    alone = headline(run(trace=weights((1.0,), teachers=("only",))))
    assert "its only teacher was only" in alone.verdict


def test_shares_count_absent_rationales_as_nothing_and_sum_to_one():
    trace = arrange_trace(
        [
            {"id": "p", "teachers": ["a", "b"], "difficulty": [1.0, 1.0], "weights": [0.6, 0.4]},
            {"id": "q", "teachers": ["a", "b"], "difficulty": [None, 1.0], "weights": [0.0, 1.0]},
            {"id": "r", "teachers": ["a", "b"], "difficulty": [None, None], "weights": [0.0, 0.0]},
        ]
    )
    shares = weight_shares(run(trace=trace))
    assert [(name, pytest.approx(w), wins) for name, w, wins in shares] == [("b", 0.7, 0.5), ("a", 0.3, 0.5)]


def test_nothing_known_is_said_as_such():
    head = headline(run())
    assert [card.value for card in head.cards] == ["Not known"] * 3
    assert head.verdict.startswith("Whether the student got better is not known")


def test_results_without_a_comparison_make_no_claim():
    result = TaskResult("student", "x", "learned", 10, 0.6, 0.3, 0.8, 0, 0, 1.0)
    head = headline(run(results=[result]))
    assert head.cards[0].value == "Not known"
    assert "x: 60.0 %" in head.cards[0].details
    assert "not compared on the same rows" in head.verdict


def test_cost_is_told_with_its_tokens_and_without_a_price_as_not_known():
    costs = {"answers": 3.0, "prompt_tokens": 15.0, "completion_tokens": 2000.0, "cost": 0.75}
    facts = {name: (value, note) for name, value, note in headline(run(costs=costs)).facts}
    assert facts["cost"] == ("0.75", "in your prices' currency; 2,000 tokens written, 15 read by teachers")
    del costs["cost"]
    facts = {name: (value, note) for name, value, note in headline(run(costs=costs)).facts}
    assert facts["cost"][0] == "–"
    assert "price is not known" in facts["cost"][1]


def test_scripted_teachers_cost_nothing():
    costs = {"answers": 2.0, "prompt_tokens": 0.0, "completion_tokens": 0.0}
    facts = {name: (value, note) for name, value, note in headline(run(costs=costs)).facts}
    assert facts["cost"] == ("0", "2 answers, no tokens")


def test_the_terminal_shows_the_verdict_the_changes_and_the_weights():
    text = summary(run(change("x", 0.1, 0.05), trace=weights((0.75, 0.25)), missing=["no drift"]))
    assert "The student got better at x" in text
    assert "50.0 % →  60.0 %    +10.0 points (95 %: +5.0 to +15.0)" in text
    assert "a  ██████████████████        75 %  100 %" in text
    assert "not shown: no drift" in text


def test_right_and_wrong_are_compared_within_the_teachers_that_wrote_both():
    def problem(name, **verdicts):
        rationales = {t: UsedRationale(t, "...", "1", verdict, "ok", 9) for t, verdict in verdicts.items()}
        return UsedProblem(name, "?", "1", rationales)

    trace = weights([0.7, 0.3], [0.9, 0.1])
    mixed = {"p0": problem("p0", a="correct", b="correct"), "p1": problem("p1", a="correct", b="wrong")}
    (_, _, trust) = headline(run(trace=trace, problems=mixed)).cards
    assert trust.details[-2].endswith("their right solutions counted 30.0 % on average, their wrong ones 10.0 %.")
    apart = {"p0": problem("p0", a="correct", b="wrong"), "p1": problem("p1", a="correct", b="wrong")}
    (_, _, trust) = headline(run(trace=trace, problems=apart)).cards
    assert not any("on average" in line for line in trust.details)
    assert trust.details == [
        "How much each teacher's solutions counted in the end, and how many of them were right:",
        "a: 80 % (100 % right)",
        "b: 20 % (0 % right)",
        "What counts is how well a solution fits this student, not only whether it is right: see Scores.",
    ]
    equal = headline(run(trace=trace, problems=apart, config="weighting: equal")).cards[2]
    assert not any("fits this student" in line for line in equal.details)


def test_rows_that_all_stayed_as_they_were_do_not_exclude_a_loss_on_others():
    found = difference_of_tables([np.zeros((1, 44))])
    same = PairedChange("facts", "retained", 44, 1.0, 1.0, 0.0, found.low, found.high, 0, 0, 1.0)
    (_, kept, _) = headline(run(same)).cards
    assert kept.details[0] == "facts: 100.0 % → 100.0 % (no question gained or lost)"
    assert kept.details[-1] == "A loss of up to 8.0 points cannot be excluded."  # Wilson's limit of 0 in 44
    assert not any("in brackets" in line for line in kept.details)
    assert "+0.0 points (no question gained or lost)" in summary(run(same))


@pytest.mark.parametrize(
    ("example", "words", "kind"),
    [
        ("rationale", "was trained on 3 solutions of 2 problems, each by itself", "solutions"),
        ("problem", "was trained on 3 problems", "problems"),
    ],
)
def test_a_plain_mix_is_not_told_as_so_many_problems(example, words, kind):
    used = {"a": UsedRationale("a")}
    problems = {f"p{i}": UsedProblem(f"p{i}", question, "1", used) for i, question in enumerate("qqr")}
    told = run(problems=problems, config=f"example: {example}")
    assert f"{words}, solved" in about(told)
    assert (kind, "3", "1 teacher") in headline(told).facts


def skipping():
    """A run under `verified`: the first of three problems alone has a right rationale."""
    verdicts = [("correct", "wrong"), ("wrong", "wrong"), ("wrong", None)]
    problems = {
        f"p{i}": UsedProblem(
            f"p{i}",
            "?",
            "1",
            {t: UsedRationale(t, "...", "1", v, "ok", 9) for t, v in zip("ab", own, strict=True) if v},
        )
        for i, own in enumerate(verdicts)
    }
    return run(trace=weights((1.0, 0.0)), problems=problems, config="weighting: verified")


def test_what_the_weight_rule_left_out_was_not_trained_on():
    left_out = skipping()
    words = "was trained on 1 of 3 problems (of the other 2 no solution counted), solved step by step by another model"
    assert f"{words}, its teachers: a." in about(left_out)
    assert ("problems", "1", "of 3; 1 teacher") in headline(left_out).facts
    assert overview([left_out]).rows[0][-4:-2] == [1, 1]
    apart = replace(left_out, config="{weighting: verified, example: rationale}")
    assert "was trained on 1 of 3 solutions of 1 problem, each by itself, solved" in about(apart)
    assert "was trained on 1 solution, each by itself, solved" in about(replace(apart, problems={}))  # no data.jsonl


def test_a_rationale_that_had_weight_in_an_earlier_reading_was_trained_on():
    rows = [
        {"id": "p", "epoch": float(e), "teachers": ["a", "b", "c"], "difficulty": [1.0] * 3, "weights": own}
        for e, own in enumerate(([0.0, 1.0, 0.0], [1.0, 0.0, 0.0]))
    ]
    assert run(trace=arrange_trace(rows)).trained_on == {"p": ["a", "b"]}


def test_answers_without_reasoning_are_not_told_as_solutions_step_by_step(tmp_path):
    folder = make_run(tmp_path / "run", problems=2, config={"text": {"rationale": "answer"}})
    assert "was trained on 2 problems, answered by 4 other models, its teachers" in about(read_run(folder))
    page = write_report([folder]).read_text()
    assert "A rationale is one teacher’s answer." in page.replace("&#39;", "’").replace("'", "’")
    assert "worked-out" not in page


def test_the_time_of_a_stopped_training_is_that_of_all_its_parts():
    times = {"started": "2026-01-05T08:00:00+00:00", "finished": "2026-01-05T08:02:00+00:00"}
    stages = {"train": {**times, "summary": {"seconds": 1200.0}}, "eval": {**times, "summary": {}}}
    facts = headline(run(manifest={"stages": stages})).facts
    assert facts[0] == ("time", "22 min 0 s", "train 20 min 0 s, eval 2 min 0 s")
