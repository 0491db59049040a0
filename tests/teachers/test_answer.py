from __future__ import annotations

import pytest

from compact_distill.teachers.answer import split_reasoning


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
    ],
)
def test_thoughts_are_told_from_what_is_said(text, field, thought, said):
    assert split_reasoning(text, field) == (thought, said)


def test_a_million_tags_are_split_in_no_time():
    thought, said = split_reasoning("<think>a</think>" * 20_000)
    assert thought.count("a") == 20_000
    assert said == ""
