"""Text to tokens, against the reference: same prompt, reasoning, answer segment, thinking tokens and probe stops."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

import reference
from compact_distill.answers import Verifier
from compact_distill.config.models import CompatibilityConfig, TextConfig
from compact_distill.errors import DataError
from compact_distill.method import encode
from compact_distill.method.encode import Encoder, _mark_thinking, thinking_spans
from compact_distill.method.score import score
from compact_distill.records import Instance, Rationale, Verdict
from models import byte_level_tokenizer, sentencepiece_tokenizer, tiny_model

TOKENIZERS = {
    "byte_level": byte_level_tokenizer,
    "chat": lambda: byte_level_tokenizer(chat=True),
    "sentencepiece": sentencepiece_tokenizer,
    "sentencepiece_with_eos": lambda: sentencepiece_tokenizer(append_eos=True),
}
TEMPLATES = ["The answer is {answer}.", "#### {answer}", "{answer}", "\\boxed{answer}"]
# Texts without a statement of the answer, so that the reasoning is the text: finding statements is answers.py's job.
REASONINGS = [
    "First we add 7 and 5. So we get 12.",
    "We add 7 and 5! That gives 3.5 apples? Yes.\n\n  She sells 12.\nDone",
    "x",
    "Wait, wait... in summary, therefore; THUS absolutely sofa but-then",
    "é√ 中文。 Hmm\tokay\r\nnote",
    "let me check: so we get 12 apples",
    "However",
]
ANSWERS = ["12", "1,250.5", "\\frac{1}{2}", "√3 é", "yes", "{12}"]


def encode_both(tokenizer, template, expressions=(), gold="12"):
    settings = reference.Settings(answer_template=template, thinking_expressions=expressions)
    pairs = [(reasoning, ANSWERS[i % len(ANSWERS)]) for i, reasoning in enumerate(REASONINGS)]
    slow = reference.encode(tokenizer, "Why {question}?", gold, pairs, settings)
    rationales = tuple(Rationale(f"t{i}", text, answer=answer) for i, (text, answer) in enumerate(pairs))
    encoder = Encoder(tokenizer, TextConfig(answer_template=template), thinking_expressions=expressions)
    return encoder(Instance("p", "Why {question}?", gold, rationales)), slow


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_the_reference(name: str, template: str) -> None:
    for gold in ANSWERS:
        fast, slow = encode_both(TOKENIZERS[name](), template, gold=gold)
        assert list(fast.prompt) == slow.prompt
        assert list(fast.gold) == slow.gold_segment
        assert range(fast.gold_start, fast.gold_stop) == slow.gold_span
        for mine, theirs in zip(fast.branches, slow.branches, strict=True):
            assert list(mine.completion) == theirs.completion
            assert list(mine.reasoning) == theirs.reasoning


@pytest.mark.parametrize("expressions", [(), (r"apples?",), (r"let me check", r"so we get \d+"), (r"(\w)\1",)])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_thinking_tokens_are_those_of_the_reference(name: str, expressions: tuple[str, ...]) -> None:
    fast, slow = encode_both(TOKENIZERS[name](), TEMPLATES[0], expressions)
    for mine, theirs in zip(fast.branches, slow.branches, strict=True):
        expected = {i for first, last in theirs.thinking for i in range(first, last + 1)}
        assert {i for i, thinks in enumerate(mine.thinking) if thinks} == expected
        assert set(mine.stops) == {last + 1 for _, last in theirs.thinking}
        assert mine.steps == theirs.steps
        assert expected, "each of these reasonings has thinking expressions or first words"


# --- thinking expressions, by hand ---


def words(text, extra=()):
    return [text[a:b] for a, b in thinking_spans(text, extra)]


def test_whole_words_in_any_case():
    assert words("SO we sort. Wait, so-so! In  summary: butter") == ["SO", "Wait", "so", "so", "In  summary"]


def test_users_add_regular_expressions():
    assert words("aha! so it is", [r"aha+"]) == ["aha", "so"]


@pytest.mark.parametrize("pattern", ["(?:a|aa)+b", "(?:aa|a)+?[bc]", "(?:a|aa|aaa)+d"])
def test_an_expression_that_does_not_get_through_a_text_is_an_error_not_a_hang(pattern, monkeypatch):
    monkeypatch.setattr(encode, "_PATTERN_SECONDS", 0.2)
    text = "a" * 40 + "!"
    start = time.monotonic()
    with pytest.raises(DataError, match=r"must get through a rationale within 0\.2 seconds"):
        thinking_spans(text * 50, (pattern,))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("chat", [False, True])
def test_an_expression_that_starts_the_text_is_found_with_and_without_a_chat_template(chat):
    encoder = Encoder(byte_level_tokenizer(chat=chat), thinking_expressions=["^we add"])
    rationale = Rationale("t", "We add 7 and 5. We add no more.\nThe answer is 12.")
    (branch,) = encoder(Instance("p", "Why?", "12", (rationale,))).branches
    marked = [token for token, mark in zip(branch.reasoning, branch.thinking, strict=True) if mark]
    assert encoder.tokenizer.decode(marked).strip() == "We add"
    assert len(branch.stops) == 1


def test_without_any_the_starts_of_sentences_and_lines_count():
    assert words("Two plus two. Is four!\nAlways 3.5 more") == ["Two", "Is", "Always"]


def test_nothing_is_found_in_nothing():
    assert words("") == []


def test_tokens_that_overlap_an_expression_are_marked():
    offsets = [(0, 2), (2, 5), (5, 6), (6, 9), (9, 12)]
    assert _mark_thinking([(3, 6), (9, 10)], offsets) == ((False, True, True, False, True), (3, 5))


# --- verdicts, agreement, statuses ---


def test_answers_are_compared_where_the_data_does_not_say_what_they_are() -> None:
    texts = ["So 12.\nThe answer is 12.", "So 12.\nThe answer is 12.0.", "So 7.\nThe answer is 7.", "", "Nobody knows."]
    rationales = [Rationale(f"t{k}", text) for k, text in enumerate(texts)]
    rationales[2] = replace(rationales[2], verdict=Verdict.CORRECT)  # what the data says stands
    instance = Instance("p", "Why?", "12", tuple(rationales))
    encoder = Encoder(byte_level_tokenizer())
    with Verifier() as verifier:
        problem = encoder(instance, verifier)
    assert problem.verdicts == (Verdict.CORRECT, Verdict.CORRECT, Verdict.CORRECT, None, None)
    assert problem.right == (0, 1, 2)
    assert problem.agreement == (0.5, 0.5, 0.0, 0.0, 0.0)  # of the two others that take part
    assert encoder(instance).verdicts == (None, None, Verdict.CORRECT, None, None)


def test_a_rationale_that_takes_no_part_keeps_the_reason() -> None:
    said = ["rejected", "truncated", "refused", "empty", "duplicate", "unparsed", "missing", "ok", "odd", None]
    rationales = tuple(Rationale(f"t{k}", "", extra={"status": status}) for k, status in enumerate(said))
    statuses = Encoder(byte_level_tokenizer())(Instance("p", "Why?", "12", rationales)).statuses
    assert [str(status) for status in statuses] == [*said[:7], "missing", "missing", "missing"]


# --- rationales that are the answer itself ---


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_that_is_the_answer_is_learned_as_it_is(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    texts = [" Ich habe 3 Äpfel. \n", "The answer is 3.", ""]
    instance = Instance(
        "p", "Translate.", "Ich habe drei Äpfel.", tuple(Rationale(f"t{k}", x) for k, x in enumerate(texts))
    )
    problem = Encoder(tokenizer, TextConfig(rationale="answer"))(instance)
    lead = "" if tokenizer.chat_template else " "
    plain = lambda text: tuple(tokenizer(lead + text, add_special_tokens=False)["input_ids"])  # noqa: E731
    assert [b and (b.reasoning, b.answer) for b in problem.branches] == [
        ((), plain("Ich habe 3 Äpfel.")),
        ((), plain("The answer is 3.")),
        None,
    ]
    assert problem.gold == plain("Ich habe drei Äpfel.")
    assert problem.gold_stop == len(problem.gold)
    assert problem.statuses[2] == "missing"


def test_scores_that_need_reasoning_count_as_0_without_it() -> None:
    texts = ["Ich habe drei Äpfel.", "Ich hab 3 Äpfel.", "Drei"]
    instance = Instance("p", "Translate.", texts[0], tuple(Rationale(f"t{k}", x) for k, x in enumerate(texts)))
    further = {"local_naturalness": 1.0, "agreement": 1.0, "rank_surprisal": -1.0}
    for estimator in ("lens", "probe"):
        config = CompatibilityConfig(estimator=estimator, extra_scores=further)
        model, tokenizer = tiny_model("qwen2"), byte_level_tokenizer()
        (row,) = score(model, tokenizer, [instance], config, TextConfig(rationale="answer"))
        assert row.adaptability == (0.0, 0.0, 0.0)
        assert row.extra_scores["local_naturalness"] == (0.0, 0.0, 0.0)
        assert all(value > 0 for value in (*row.difficulty, *row.consensus, *row.extra_scores["rank_surprisal"]))
        assert sum(row.weights) == pytest.approx(1.0)


@pytest.mark.parametrize("rationale", ["reasoning", "answer"])
@pytest.mark.parametrize("chat", [False, True])
def test_measuring_counts_what_encoding_gives(chat, rationale):
    texts = ("So 7.\nThe answer is 7.", "no statement", "long " * 200 + "\nThe answer is 8.", "", "The answer is 7.")
    rationales = tuple(Rationale(f"t{k}", text) for k, text in enumerate(texts))
    refused = Rationale("t9", "", extra={"status": "refused"})
    instances = [Instance(f"p{n}", f"Ann has {n}?", "7", (*rationales, refused)) for n in range(300)]
    encoder = Encoder(byte_level_tokenizer(chat=chat), TextConfig(rationale=rationale), max_length=120)
    measured = list(encoder.measure(instances))
    for size, problem in zip(measured, encoder.encode_all(instances), strict=True):
        assert size.teachers == problem.teachers
        assert size.statuses == problem.statuses
        assert size.answers_from == problem.answers_from
        assert size.prompt == len(problem.prompt)
        assert size.lengths == tuple(None if branch is None else len(branch) for branch in problem.branches)
