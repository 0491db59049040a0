"""What counts as the final answer, and which finder is said to have found it."""

from __future__ import annotations

import pytest

from compact_distill.evaluation.parse import find_answer

NUMBER = ("statement", "last_number")
CHOICE = ("statement", "choice")
PLACES = {"A": "bank", "B": "library", "C": "department store"}


@pytest.mark.parametrize(
    ("text", "parser", "choices", "expected"),
    [
        ("16 - 7 = 9\nThe answer is 18.", NUMBER, {}, ("18", "statement")),
        ("so \\boxed{18} eggs; 3 are left", NUMBER, {}, ("18", "statement")),
        ("She makes 9 * 2 = $18 every day.", NUMBER, {}, ("18", "last_number")),
        ("That is **1,234.5** in all", NUMBER, {}, ("1,234.5", "last_number")),
        ("It fell to -3", NUMBER, {}, ("-3", "last_number")),
        ("It takes 12-15", NUMBER, {}, ("15", "last_number")),
        ("I do not know.", NUMBER, {}, (None, None)),
        ("", NUMBER, {}, (None, None)),
        ("She makes 18.", ("statement",), {}, (None, None)),
        ("The answer is B.", CHOICE, PLACES, ("B", "statement")),
        ("The answer is (B) library.", CHOICE, PLACES, ("(B) library", "statement")),
        ("The answer is the library.", CHOICE, PLACES, ("the library", "statement")),
        ("The answer is Library.", CHOICE, PLACES, ("B", "statement")),
        ("It is quiet there.\nB", CHOICE, PLACES, ("B", "choice")),
        ("b) library.", CHOICE, PLACES, ("B", "choice")),
        ("**Department store**", CHOICE, PLACES, ("C", "choice")),
        ("B) bank", CHOICE, PLACES, (None, None)),  # label and text contradict each other
        ("D", CHOICE, PLACES, (None, None)),
        ("A bank is a place.", CHOICE, PLACES, (None, None)),
        ("Yes, because it snows.", ("statement", "yes_no"), {}, ("yes", "yes_no")),
        ("**No.** The Spice Girls has five members.", ("statement", "yes_no"), {}, ("no", "yes_no")),
        ("Nothing of that kind", ("statement", "yes_no"), {}, (None, None)),
        ("No way; wait.\nThe answer is yes.", ("statement", "yes_no"), {}, ("yes", "statement")),
    ],
)
def test_the_final_answer_and_its_finder(text, parser, choices, expected):
    assert find_answer(text, True, parser, choices) == expected


def test_a_text_that_was_cut_has_only_the_answer_that_it_states():
    assert find_answer("First 16 - 7 = 9. Then", False, NUMBER, {}) == (None, None)
    assert find_answer("The answer is 18. Wait", False, NUMBER, {}) == ("18", "statement")


def test_a_label_is_a_label_even_where_a_choice_reads_like_one():
    assert find_answer("The answer is A.", True, CHOICE, {"A": "B", "B": "A"}) == ("A", "statement")
