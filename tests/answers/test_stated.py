"""Finding the final answer that a writer stated, and taking its statement off the reasoning."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact_distill.answers import extract_answer, split_answer
from compact_distill.answers.stated import MAX_CHARACTERS, tidy


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("6 * 3 = <<6*3=18>>18\nA: 18", "18"),
        ("6 * 3 = 18\n#### 18", "18"),
        ("The answer is 18.", "18"),
        ("So the answer is: 18", "18"),
        ("Therefore, the answer (arabic numerals) is 18.", "18"),
        ("Hence $x$ is $\\boxed{\\frac{\\sqrt{3}}{2}}$.", "\\frac{\\sqrt{3}}{2}"),
        ("the set is \\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("It must be a bank, so the answer is (B).", "(B)"),
        ("The correct choice is C.", "C"),
        ("Frost comes in May. So the answer is yes.", "yes"),
        ("**Final Answer:** $1,800 per week", "$1,800 per week"),
        ("The answer is **18** dollars.", "18 dollars"),
        ("The answer is $18$.", "18"),
        ("The answer is:\n\n18", "18"),
        ("Answer: 5\r\n", "5"),
        ("The answer is 3.14.", "3.14"),
        ("The answer is 0.333...", "0.333..."),
        ("The answer is 18 because 6 * 3 = 18.", "18"),
        ("The answers are 3 and 5.", "3 and 5"),
        ("#### -1,200", "-1,200"),
        ("Is it cold?\nNo.", "No"),
        ("Only one fits.\n(C)", "(C)"),
    ],
)
def test_every_way_to_state_an_answer_is_read(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n ",
        "She has 18 eggs.",
        "The total is\n25",  # a bare number may be a cut-off text
        "A:",
        "\\boxed{18",
        "\\boxed{}",
        "The answer is not 18.",
        "So the answer is correct.",
        "A: bank\nB: park\nIt could be either.",
        "#### Step 1: add\n3 + 4 = 7",
        "the answer is " + "x" * (MAX_CHARACTERS + 1),
    ],
)
def test_a_text_without_a_stated_answer_gives_none(text: str) -> None:
    assert extract_answer(text) is None
    assert split_answer(text) == (text.strip(), None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 5. No, wait. The answer is 6.", "6"),
        ("\\boxed{5} is wrong, so \\boxed{6}", "6"),
        ("A: 5\nA: 6", "6"),
        ("\\boxed{5}\nThe answer is 6 apples.", "6 apples"),
        ("The answer is 5.\n\\boxed{6}", "6"),
        ("#### 5\nThe answer is not 6.", "5"),
        ("\\boxed{5} and then \\boxed{6", "5"),
        ("yes\nThe answer is no.\nyes", "no"),  # a bare label counts only where nothing else states an answer
    ],
)
def test_the_last_statement_wins(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "ending",
    [
        "A: 18",
        "#### 18",
        "The answer is 18.",
        "So, the final answer is 18",
        "Therefore, the answer (arabic numerals) is 18.",
        "**The answer is 18.**",
        "\\boxed{18}",
        "\\boxed{\\boxed{18}}",
        "Thus, $\\boxed{18}$.",
        "The final answer is $\\boxed{18}$.",
        "\\[\n\\boxed{18}\n\\]",
        "**Final Answer**\n\n\\[ \\boxed{18} \\]",
        "Final Answer: The final answer is $18$. I hope it is correct.",
        "The answer is:\n18",
    ],
)
@pytest.mark.parametrize("after", ["", "\n", "\n  \n\n"])
def test_a_statement_alone_on_the_last_line_is_removed(ending: str, after: str) -> None:
    assert split_answer(f"\n 6 * 3 = 18.\nDone. \n\n{ending}{after}") == ("6 * 3 = 18.\nDone.", "18")


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("6 * 3 = 18 eggs. The answer is 18.", "6 * 3 = 18 eggs."),
        ("6 * 3 = 18. So the answer is 18.", "6 * 3 = 18."),
        ("6 * 3 = 18. Therefore, the final answer is **18**.", "6 * 3 = 18."),
        ("First.\nIs it 6 * 3? It is! Thus the answer is 18.", "First.\nIs it 6 * 3? It is!"),
        ('She said "it is 18." The answer is 18.', 'She said "it is 18."'),
        ("6 * 3 = 18. $\\boxed{18}$", "6 * 3 = 18."),
        ("\\[ 6 * 3 = 18 \\] The answer is 18.", "\\[ 6 * 3 = 18 \\]"),
        ("She sells 9 of them, so the answer is 18.", "She sells 9 of them"),
        ("She sells 9 of them; therefore, the answer is 18", "She sells 9 of them"),
    ],
)
def test_a_statement_that_ends_the_last_line_is_removed_too(text: str, reasoning: str) -> None:
    assert split_answer(f"  {text}\n") == (reasoning, "18")


@pytest.mark.parametrize(
    "text",
    [
        "6 * 3 = 18.\nBecause 6 * 3 = 18, the answer is 18.",
        "6 * 3 = 18.\nWe are told that the answer is 18.",
        "6 * 3 = 18.\nThe answer is 18 because 6 * 3 = 18.",
        "6 * 3 = 18.\nShe makes $\\boxed{18}$ dollars.",
        "6 * 3 = 18.\nThe answer is $x = \\boxed{18}$.",
        "A: 18\nI hope this helps!",
        "A: 18. That is all.",
    ],
)
def test_a_statement_with_other_text_beside_it_stays(text: str) -> None:
    assert split_answer(f"  {text}\n") == (text, "18")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (" $1,800 ", "$1,800"),
        ("18.", "18"),
        ("**18**.", "18"),
        ("$\\boxed{18.}$", "18"),
        ("\\( \\frac{1}{2} \\)", "\\frac{1}{2}"),
        ("$3$ and $5$", "$3$ and $5$"),
        ("\\boxed{3} or \\boxed{5}", "\\boxed{3} or \\boxed{5}"),
        ("2**3", "2**3"),
        ("\\$5", "\\$5"),
        ("$5\\$", "$5\\$"),
    ],
)
def test_only_what_surrounds_an_answer_is_taken_off(written: str, kept: str) -> None:
    assert tidy(written) == kept


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_tidying_twice_changes_nothing_more(text: str) -> None:
    assert tidy(tidy(text)) == tidy(text)


@given(
    reasoning=st.text(st.sampled_from("abc .,\n$\\{}*#:=1"), max_size=80),
    answer=st.from_regex(r"\A-?[1-9][0-9]{0,6}(\.[0-9]{1,3})?\Z"),
    form=st.sampled_from(["A: {}", "#### {}", "The answer is {}.", "\\boxed{{{}}}", "Answer: {}"]),
)
def test_what_was_stated_last_comes_back_after_any_reasoning(reasoning: str, answer: str, form: str) -> None:
    reasoning = reasoning.rstrip("\\{$*[(")  # these would open something that the statement closes
    split = split_answer(f"{reasoning}x.\n{form.format(answer)}")
    assert split == (f"{reasoning}x.".strip(), answer)


@pytest.mark.parametrize(
    "text",
    [
        "answer is " * 20_000,
        "answer to " * 20_000,
        "answer" + " " * 200_000,
        "\\boxed{" * 20_000 + "5" + "}" * 20_000,
        "\\boxed{" * 30_000,
        "#### " * 40_000 + "word",
        "A:\n" * 60_000,
        "x\n" + "*" * 200_000 + "x \\boxed{5}",
        "The answer is " + "$" * 200_000,
        "The answer is \\boxed{5" + " ." * 80_000 + "}",
    ],
)
def test_hostile_text_of_200_000_characters_takes_no_longer_than_a_second(text: str) -> None:
    start = time.process_time()
    split_answer(text)
    assert time.process_time() - start < 1.0
