"""Thinking expressions, by hand."""

from __future__ import annotations

from compact_distill.method.encode import _mark_thinking
from compact_distill.method.thinking import thinking_spans


def words(text, extra=()):
    return [text[a:b] for a, b in thinking_spans(text, extra)]


def test_whole_words_in_any_case():
    assert words("SO we sort. Wait, so-so! In  summary: butter") == ["SO", "Wait", "so", "so", "In  summary"]


def test_users_add_regular_expressions():
    assert words("aha! so it is", [r"aha+"]) == ["aha", "so"]


def test_without_any_the_starts_of_sentences_and_lines_count():
    assert words("Two plus two. Is four!\nAlways 3.5 more") == ["Two", "Is", "Always"]


def test_nothing_is_found_in_nothing():
    assert words("") == []


def test_tokens_that_overlap_an_expression_are_marked():
    offsets = [(0, 2), (2, 5), (5, 6), (6, 9), (9, 12)]
    assert _mark_thinking([(3, 6), (9, 10)], offsets) == ((False, True, True, False, True), (3, 5))
