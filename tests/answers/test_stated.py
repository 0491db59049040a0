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
        "6 * 3 = 18.\nShe makes $\\boxed{18}$ dollars.",
        "6 * 3 = 18.\nThe answer is $x = \\boxed{18}$.",
        "A: 18\nI hope this helps!",
        "A: 18. That is all.",
    ],
)
def test_a_statement_with_other_text_beside_it_stays(text: str) -> None:
    assert split_answer(f"  {text}\n") == (text, "18")


EIGHTEEN = [
    # labels inside a box
    "Hence $\\boxed{\\text{The answer is } 18}$.",
    "\\boxed{\\text{Answer: }18}",
    "\\boxed{The final answer is 18}",
    "\\boxed{\\text{The answer is 18}}",
    "\\boxed{\\mathrm{Answer:}\\ 18}",
    "\\[ \\text{The answer is } 18 \\]",
    "$\\text{So the answer is } 18$",
    # special tokens of any tokenizer
    "The answer is 18.<|im_end|>",
    "The answer is 18<|eot_id|>\n",
    "#### 18</s>",
    "The answer is 18.<end_of_turn>\n",
    "\\boxed{18}<｜end▁of▁sentence｜>",
    "The answer is 18.<|im_end|><|endoftext|>",
    "The answer is 18.<turn|>",
    "The answer is 18.<end_of_utterance>",
    "The answer is 18.[DONE]",
    # the end of a tag that the prompt opened
    "The answer is 18.</answer>",
    "The answer is 18</answer>\n",
    "#### 18</final_answer><|im_end|>",
    "<answer>3 * 6 = 18. The answer is 18.</answer>",
    # thinking in any tags
    "<think>\\boxed{5}</think>\nThe answer is 18.",
    "<thinking>The answer is 5.</thinking>\\boxed{18}",
    "<seed:think>\\boxed{5}</seed:think>Answer: 18",
    "so \\boxed{5}</think>\nThe answer is 18.",
    "<think>Is it 5? The answer is 18.</think>",
    "<|channel|>analysis<|message|>the answer is 5<|channel|>final<|message|>The answer is 18.",
    "[THINK]\\boxed{5}[/THINK]The answer is 18.",
    "◁think▷\\boxed{5}◁/think▷The answer is 18.",
    "<|begin_of_thought|>\\boxed{5}<|end_of_thought|><|begin_of_solution|>The answer is 18.<|end_of_solution|>",
    "<|START_THINKING|>\\boxed{5}<|END_THINKING|><|START_RESPONSE|>The answer is 18.<|END_RESPONSE|>",
    "<|channel>thought\nThe answer is 5.<channel|>The answer is 18.<turn|>",
    "<|inner_prefix|>The answer is 5.<|inner_suffix|>#### 18",
    "<mm:think>\\boxed{5}</mm:think>Answer: 18",
    # bold halves
    "Answer: __18__",
    "**Answer: 18**",
    "Answer: *18*",
    # headings
    "**Final Answer**\n18",
    "✅ **Final Answer**\n\n18",
    "### Final Answer\n**18**",
    "**Answer**\n\n$18$",
    "🎯 Final Answer: 18",
    "- 🏁 **Answer:** 18",
    "The answer is\n\\[\n18\n\\]",
    "**Final Answer**\n\\[\n18\n\\]",
    "The answer is:\n$$\n18\n$$",
    "The answer is:\n```\n18\n```",
    "So the answer is\n\\begin{equation}\n18\n\\end{equation}",
    "Final Answer:\n- 18",
    "__Final Answer__\n18",
    # marks
    "<answer>18</answer>",
    "<answer>\n18\n</answer>",
    "<final_answer>18</final_answer>",
    "<ans>18</ans>",
    '{"steps": "3 * 6", "answer": 18}',
    '```json\n{"final_answer": "18"}\n```',
    "The answer is <|begin_of_box|>18<|end_of_box|>.",
    "<|begin_of_box|>18<|end_of_box|>",
    "So \\boxed 18",
    "It is $\\boxed 18$.",
    "\\fbox 18",
    # other languages
    "答案：18",
    "所以答案是18。",
    "最终答案：18",
    "答えは18です",
    "정답: 18",
    "Respuesta: 18",
    "La respuesta es 18.",
    "La réponse est 18.",
    "Réponse : 18",
    "Die Antwort ist 18.",
    "Antwort: 18",
    "Ответ: 18",
    "La risposta è 18.",
    "A resposta é 18.",
    "Ответ — 18.",
    "Відповідь: 18",
    "Jibu ni 18.",
    "సమాధానం 18.",
    "คำตอบคือ 18",
    "উত্তর হল 18।",
    "उत्तर: 18",
    "الإجابة هي 18",
    "Het antwoord is 18.",
    "Svaret är 18.",
    "Odpowiedź to 18.",
    "Đáp án: 18",
    "Jawaban: 18",
    "답: 18",
    "答：18",
    # other words
    "Ans: 18",
    "Ans. 18",
    "Ans = 18",
    "Answer → 18",
    "So our answer: 18",
    "Result: 18",
    "**Solution:** 18",
    "The answer equals 18",
    "so the answer equals 18",
    "The answer is equal to 18.",
    "The answer comes out to be 18",
    "18 is the correct answer.",
    "18 is the correct answer",
    "So **18** is the final answer.",
    "Therefore, 18 is the answer to the question.",
    "Final answer - 18",
    # tails
    "The answer is 18, in total, so she has 18.",
    "The answer is a total of 18.",
    "The answer is a grand total of 18.",
    "The answer is in total 18.",
    "The answer is, in total, 18.",
    "The answer is, therefore, 18.",
    "The answer is 18 in all.",
    "The answer is 18, meaning that 9 + 9 are sold.",
    "The answer is 18, so she makes a profit.",
    # remarks after a box
    "\\boxed{18}. The final answer is positive, because 6 is.",
    "\\boxed{18}. The answer is an integer.",
    "\\boxed{18}\nThe answer is in dollars.",
    "\\boxed{18}\nThe answer is a number.",
    "\\boxed{18}\nThe answer is greater than 0.",
    "\\boxed{18}\nSo the answer is twice 9.",
    "\\boxed{18}\nThe answer is consistent with 3 * 6.",
]


@pytest.mark.parametrize("text", EIGHTEEN)
def test_what_real_models_write_is_read(text: str) -> None:
    assert extract_answer(f"3 * 6 is it.\n{text}") == "18"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: **18** eggs", "18 eggs"),
        ("**Answer: 18** eggs", "18 eggs"),
        ("Answer: *18* eggs", "18 eggs"),
        ("Answer: _18_ eggs", "18 eggs"),
        ("Answer: ***18*** eggs", "18 eggs"),
        ("Answer: 2**3", "2**3"),
        ("Answer: 2*3", "2*3"),
        ("Answer: x_1", "x_1"),
        ("The answer is A* search.", "A* search"),
        ("**Correct option: (C)**", "(C)"),
        ("Correct answer: C - library", "C - library"),
        ("Correct choice: (C)library", "(C)library"),
        ('The answer is "C".', "C"),
        ("The answer is “yes”.", "yes"),
        ("Option (C) is out, so (B) is the correct choice.", "(B)"),
        ('It snows in May.\n"No."', "No"),
        ('The answer is 67".', '67"'),
        ("\\boxed{5}\nThe answer is (B).", "(B)"),
        ("\\boxed{\\text{Evelyn}}. The answer is Navin.", "Navin"),
        ("\\boxed{x+1}. The final answer is a polynomial, because x is.", "x+1"),
        ("\\boxed{\\frac{a}{b}}. The final answer is negative.", "\\frac{a}{b}"),
        ("\\boxed{B}. The answer is correct as it stands there.", "B"),
        ("\\boxed{x+1}\nThe answer is x+2.", "x+2"),
        ("\\boxed{5}\nThe answer is 6 apples.", "6 apples"),
        ("\\boxed{5}\nThe answer is no.", "no"),
        ("\\boxed{B}\nThe answer is C - bank", "C - bank"),
        ("La respuesta es no.", "no"),
        ("The answer is -18.", "-18"),
        ("Final Answer:\n-18", "-18"),
        ("Is it cold?\n'No.'", "No"),
        ("Is it cold?\n«yes»", "yes"),
        ("The answer is (x, y] \\cup [1, 2).", "(x, y] \\cup [1, 2)"),
        ("x <|y|> z, so the answer is 3.", "3"),
        # periods that end no sentence
        ("The answer is George W. Bush. He won.", "George W. Bush"),
        ("The answer is J. K. Rowling, I think.", "J. K. Rowling, I think"),
        ("The answer is J.K. Rowling because she wrote it.", "J.K. Rowling"),
        ("The answer is George R. R. Martin.", "George R. R. Martin"),
        ("The answer is 5 U.S. dollars. That is all.", "5 U.S. dollars"),
        ("The answer is the U.S. It is large.", "the U.S"),
        ("The answer is Prof. Smith. She knew.", "Prof. Smith"),
        ("The answer is Ms. Smith.", "Ms. Smith"),
        ("The answer is Rs. 500. He pays it.", "Rs. 500"),
        ("The answer is 500 Rs. He pays it.", "500 Rs"),
        ("The answer is approx. 18 eggs. That is all.", "approx. 18 eggs"),
        ("The answer is No. 5.", "No. 5"),
        ("So the answer is No. 5 of them are green.", "No"),
        ("The answer is B. Paris. It is in France.", "B"),
        ("The answer is B. The library is quiet.", "B"),
        ("The answer is vitamin C. Oranges hold it.", "vitamin C"),
        ("The answer is Malcolm X. The film says so.", "Malcolm X"),
        ("The answer is x. y is 3.", "x"),
        ("\\boxed{\\text{the answer}}", "\\text{the answer}"),
    ],
)
def test_an_answer_is_kept_whole(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 18. This makes sense since the answer is less than 20.", "18"),
        ("Answer: 18\nWe check: the answer is consistent with 3 * 6.", "18"),
        ("#### 18\n\nThe answer is in dollars.", "18"),
        ("The answer is 18 eggs. The answer is a whole number because eggs are.", "18 eggs"),
        ("The answer is (B). The answer is positive.", "(B)"),
        ("The answer is Paris. All agree that the answer is in line with the map.", "Paris"),
        # what only looks like a remark
        ("The answer is 18. No: the answer is a dozen.", "a dozen"),
        ("The answer is 18. No: the answer is in the box.", "in the box"),
        ("The answer is 18. Wait, the answer is negative 18.", "negative 18"),
        ("The answer is Lyon. No: the answer is a city in Italy.", "a city in Italy"),
        # where nothing else states an answer
        ("So the answer is less than 20.", "less than 20"),
        ("The answer is in dollars. The answer is positive.", "positive"),
    ],
)
def test_a_remark_on_the_answer_is_not_the_answer(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "<think>\\boxed{18}, but wait",  # cut before its end
        "<thinking>The answer is 18.",
        "<think>The answer is 5.</think><think>The answer is 18",
        "<think>The answer is 18.</think>\nI am not sure.",
        "[THINK]The answer is 18.",
        "◁think▷The answer is 18.",
        "<|begin_of_thought|>The answer is 18.<|end_of_thought|>I am not sure.",
        "<|channel>thought\nThe answer is 18.",
        "Result: 18\nThat is the first step.",
        "Final Answer\nShe has 18 eggs. They are brown.",
        "**Final Answer**\nAnn has 18 eggs.",
        "Is 18 the answer?",
        "18 is the answer only if 3 is odd.",
        "18 is the answer to the first part",
        "18 is the answer to everything.",
        "The answers in the book help.",
        "Antworten: 18",
        "Die Antwort ist nicht 18.",
        "La respuesta no es 18.",
        "答案不是18。",
        "答えは18ではありません。",
        "정답은 18이 아닙니다.",
        "She svarade: 18 eggs",
        "\\boxed xy is no answer",
        "<answer></answer>",
        "<answers>18</answers>",
        '{"answers": [18]}',
        '"answer": yes',
        "Solutions: 18",
        "18 is not the correct answer.",
        "18 might be the answer.",
        "Answer key == 18",
    ],
)
def test_what_only_looks_like_a_statement_is_none(text: str) -> None:
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    "ending",
    [
        "<answer>18</answer>",
        "答案：18",
        "✅ **Final Answer**\n18",
        "**Final Answer**\n\\[\n18\n\\]",
        "So **18** is the final answer.",
        "Die Antwort ist 18.",
        "$\\boxed 18$.",
        "The answer is 18 in total.",
        "The answer is 18.<|im_end|>",
        "The answer is 18.</answer>",
        "\\boxed{\\text{The answer is } 18}</s>\n",
    ],
)
def test_these_statements_are_removed_too(ending: str) -> None:
    assert split_answer(f"6 * 3 = 18.\n{ending}") == ("6 * 3 = 18.", "18")


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("40 + 32 = 72. The answer is 72, in total, so she has enough.", "40 + 32 = 72."),
        ("40 + 32 = 72. The answer is 72, so Ann is right.", "40 + 32 = 72."),
        ("40 + 32 = 72.\n#### 72 in total, so ...", "40 + 32 = 72."),
        ("We add. So the answer is 72, which is even.", "We add."),
        ("40 + 32 = 72.\nThe answer is 72 because 40 + 32 = 72.", "40 + 32 = 72. Because 40 + 32 = 72."),
        ("We add. The answer is 72, because 40 + 32 = 72.", "We add. Because 40 + 32 = 72."),
        ("We add. The answer is 72, since 40.5 + 31.5 = 72.", "We add. Since 40.5 + 31.5 = 72."),
    ],
)
def test_a_statement_that_comes_first_in_its_sentence_is_said_once(text: str, reasoning: str) -> None:
    assert split_answer(text) == (reasoning, "72")


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 72. Then 40 + 32 = 72.",  # a sentence of reasoning follows
        "She says the answer is 72, so Ann is right.",  # the statement is no sentence of its own
        "The answer is 72, so Ann is right.\nBut wait.",
    ],
)
def test_a_statement_that_more_follows_stays(text: str) -> None:
    assert split_answer(text) == (text, "72")


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        ("<think>40 + 32 = 72. The answer is 72.</think>", "<think>40 + 32 = 72.</think>"),
        ("<think>\n40 + 32 = 72.\n\\boxed{72}\n</think>\n", "<think>\n40 + 32 = 72.\n</think>"),
        ("<thinking>We add. So far so good</thinking><|im_end|>", "<thinking>We add. So far so good</thinking>"),
        ("<seed:think>We add.\nAnswer: 72</seed:think>", "<seed:think>We add.</seed:think>"),
    ],
)
def test_a_text_that_is_all_thinking_keeps_its_closing_tag(text: str, reasoning: str) -> None:
    assert split_answer(text)[0] == reasoning


def test_thinking_that_was_never_closed_is_not_closed_here() -> None:
    assert split_answer("<think>We add. The answer is 72.") == ("<think>We add. The answer is 72.", None)
    assert split_answer("<think>We add.</think>The answer is 72.") == ("<think>We add.</think>", "72")


def test_special_tokens_leave_the_end_of_a_reasoning_and_thinking_stays_in_it() -> None:
    assert split_answer("So 18 eggs.<|im_end|>\n") == ("So 18 eggs.", None)
    assert split_answer("<think>6 * 3</think>The answer is 18.</s>") == ("<think>6 * 3</think>", "18")
    assert split_answer("A <|im_end|> inside stays.") == ("A <|im_end|> inside stays.", None)


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
        "<think>" * 30_000 + "</think>" * 20_000,
        "<answer>" * 25_000,
        "<answer> 5 " * 18_000,
        "Final Answer\n" * 15_000,
        "18 is the " * 20_000,
        "so so so " * 22_000 + "answer",
        "the respuesta " * 14_000,
        "The answer is:" + "\n" * 200_000,
        "<|x|>" * 40_000 + "y",
        "\\boxed " * 28_000,
        "$1$ is " * 28_000,
        "Result: 1\n" * 20_000,
    ],
)
def test_hostile_text_of_200_000_characters_takes_no_longer_than_a_second(text: str) -> None:
    start = time.process_time()
    split_answer(text)
    assert time.process_time() - start < 1.0
