from __future__ import annotations

import pytest

from compact_distill.records import Problem
from compact_distill.teachers.answer import split_reasoning, to_row
from compact_distill.teachers.protocol import SamplingParams, TeacherAnswer, TeacherRequest
from compact_distill.teachers.store import RowStatus, parse_row, row_line


@pytest.mark.parametrize(
    ("text", "field", "thought", "said"),
    [
        ("The answer is 4.", "", "", "The answer is 4."),
        ("<think>\n2 + 2\n</think>\n\nThe answer is 4.", "", "2 + 2", "The answer is 4."),
        ("2 + 2\n</think>\nThe answer is 4.", "", "2 + 2", "The answer is 4."),  # the template opened the tag
        ("<think>cut off he", "", "cut off he", ""),
        ("Well. <think>a</think> So <think>b</think> 4", "", "a\nb", "Well.  So  4"),
        ("The answer is 4.", " 2 + 2 ", "2 + 2", "The answer is 4."),
        ("<think></think>The answer is 4.", "2 + 2", "2 + 2", "The answer is 4."),
        ("", "2 + 2", "2 + 2", ""),
        ("", "", "", ""),
        ("<think>a</think>", "", "a", ""),
        ("<thinking>a</thinking>4", "", "a", "4"),
        ("<seed:think>a</seed:think>4", "", "a", "4"),
        ("[THINK]a[/THINK]4", "", "a", "4"),
        ("a</THINK>4", "", "a", "4"),
        ("◁think▷a◁/think▷4", "", "a", "4"),
        ("<|begin_of_thought|>a<|end_of_thought|>4", "", "a", "4"),
        ("<|START_THINKING|>a<|END_THINKING|>4", "", "a", "4"),
        ("<|channel>thought\na<channel|>4", "", "a", "4"),
        ("<|inner_prefix|>a<|inner_suffix|>4", "", "a", "4"),
        ("<mm:think>a</mm:think>4", "", "a", "4"),
        ("[THINK]cut off he", "", "cut off he", ""),
        ("the [thinking] of a <channel> and ◁ 4", "", "", "the [thinking] of a <channel> and ◁ 4"),
        ("<think>a <think> b</think>4", "", "a <think> b", "4"),
        ("so x < think > y and <thinker> 4", "", "", "so x < think > y and <thinker> 4"),
        # The same thoughts in tags and in a field count once; other ones do not.
        ("<think>\na\n</think>4", "a", "a", "4"),
        ("<think>b</think>4", "a", "a\nb", "4"),
        # Channels of gpt-oss, with their markers and without.
        (
            "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
            "", "2 + 2", "4",
        ),
        ("<|channel|>analysis<|message|>2 + 2 and then", "", "2 + 2 and then", ""),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=x<|message|>b<|call|>"
            "<|start|>assistant<|channel|>final<|message|>4", "", "a\nb", "4",
        ),
        (
            "<|start|>assistant to=x<|channel|>commentary json<|message|>b<|call|><|start|>assistant<|channel|>final "
            '<|constrain|>json<|message|>{"answer": 4}<|return|>', "", "b", '{"answer": 4}',
        ),
        ("analysis2 + 2assistantfinal4", "", "2 + 2", "4"),
        ('analysis2 + 2assistantfinal json{"answer": 4}', "", "2 + 2", '{"answer": 4}'),
        ("analysis of the assistant: final answer 4", "", "", "analysis of the assistant: final answer 4"),
    ],
)  # fmt: skip
def test_thoughts_are_told_from_what_is_said(text, field, thought, said):
    assert split_reasoning(text, field) == (thought, said)


def test_a_million_tags_are_split_in_no_time():
    for text in ("<think>a</think>", "a</think>", "<|channel|>analysis<|message|>a<|end|>"):
        thought, said = split_reasoning(text * 20_000)
        assert thought.count("a") == 20_000
        assert said == ""


@pytest.fixture
def made():
    """The row that becomes of an answer."""

    def make(text, reasoning="", **given):
        request = TeacherRequest(Problem("p0", "2 + 2?", "4"), 0, None, "2 + 2?", SamplingParams(), 7, "k")
        answer = TeacherAnswer(text, reasoning, **given)
        return to_row("t", request, answer, 0.1, None, lambda text: text, set())

    return make


@pytest.mark.parametrize("text", ["half \ud83d a pair", "nul \0 byte", "\udc00\ud800"])
def test_any_reply_becomes_a_row_that_any_file_can_hold(made, text):
    row = made(f"{text} The answer is 4.", text, model=text, finish_reason="stop")
    assert row.status is RowStatus.OK
    line = row_line(row)
    assert b"\\u0000" not in line
    assert b"\\ud8" not in line
    assert parse_row(line) == row
    assert "\ufffd" in row.text


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (None, RowStatus.OK),
        ("", RowStatus.OK),
        ("stop", RowStatus.OK),
        ("STOP", RowStatus.OK),
        ("eos_token", RowStatus.OK),
        ("end_turn", RowStatus.OK),
        ("length", RowStatus.TRUNCATED),
        ("MAX_TOKENS", RowStatus.TRUNCATED),
        ("model_length", RowStatus.TRUNCATED),
        ("tool_calls", RowStatus.INTERRUPTED),
        ("nobody_knows", RowStatus.INTERRUPTED),
    ],
)
def test_part_of_a_text_is_no_rationale(made, reason, status):
    assert made("2 + 2 = 4. The answer is 4.", finish_reason=reason).status is status


def test_an_answer_that_its_hidden_thoughts_used_up_is_truncated_not_empty(made):
    assert made("", finish_reason="length").status is RowStatus.TRUNCATED
    assert made("", finish_reason="stop").status is RowStatus.EMPTY
