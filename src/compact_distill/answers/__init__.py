"""Final answers: find them in a text, and compare them with the gold answer."""

from compact_distill.answers.compare import compare_answers
from compact_distill.answers.extract import extract_answer, split_answer
from compact_distill.answers.verifier import Verifier

__all__ = ["Verifier", "compare_answers", "extract_answer", "split_answer"]
