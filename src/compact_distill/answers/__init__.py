"""Final answers: find them in a text, and compare them with the gold answer."""

from compact_distill.answers.compare import AnswerKind, Verifier, answer_kind, compare_answers
from compact_distill.answers.find import (
    FoundAnswer,
    answers_of,
    choices_of,
    find_answer,
    places_in,
    read_rationale,
    split_answer,
)
from compact_distill.answers.stated import extract_answer

__all__ = [
    "AnswerKind",
    "FoundAnswer",
    "Verifier",
    "answer_kind",
    "answers_of",
    "choices_of",
    "compare_answers",
    "extract_answer",
    "find_answer",
    "places_in",
    "read_rationale",
    "split_answer",
]
