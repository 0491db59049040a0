"""Comparing answers without mathematics: numbers, letters, yes/no, words."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact_distill.answers import compare_answers
from compact_distill.answers.compare import Number, parse_number
from compact_distill.answers.stated import tidy
from compact_distill.records import Verdict

CORRECT, WRONG, UNPARSED = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18),
        ("18.0", 18),
        ("18.", 18),
        (".35625", Fraction(57, 160)),
        ("-50", -50),
        ("−50", -50),
        ("1,800", 1800),
        ("10,\\!080", 10080),
        ("11,\\! 111,\\! 111,\\! 100", 11_111_111_100),
        ("70 000", 70000),
        ("$1,800", 1800),
        ("-$5.50", Fraction(-11, 2)),
        ("$-5", -5),
        ("\\$32,\\!348", 32348),
        ("18$", 18),
        ("€ 20", 20),
        ("18 dollars a day", 18),
        ("9 miles/hour", 9),
        ("5.4 \\text{ cents}", Fraction(27, 5)),
        ("864 \\mbox{ inches}^2", 864),
        ("90^\\circ", 90),
        ("5cm", 5),
        ("18美元", 18),
        ("about 18 (dollars)", 18),
        ("2.5 million dollars", 2_500_000),
        ("3/4", Fraction(3, 4)),
        ("-\\frac{35}{9}", Fraction(-35, 9)),
        ("\\frac43", Fraction(4, 3)),
        ("\\dfrac 59", Fraction(5, 9)),
        ("1\\frac{4}{5}", Fraction(9, 5)),
        ("137 1/2", Fraction(275, 2)),
        ("\\frac{270}7\\text{ degrees}", Fraction(270, 7)),
        ("1.0e+9", 10**9),
        ("1.5 \\times 10^{-3}", Fraction(3, 2000)),
        ("x = 5", 5),
        ("3 * 6 = 18 eggs", 18),
    ],
)
def test_a_plain_number_is_read_exactly(text: str, value: Fraction | int) -> None:
    assert parse_number(text) == Number(Fraction(value))


@pytest.mark.parametrize("text", ["50%", "50\\%", "50 percent", "50 % of the eggs"])
def test_a_percentage_is_marked(text: str) -> None:
    assert parse_number(text) == Number(Fraction(50), percent=True)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "eighteen",
            "5 or 6",
            "3, 5",
            "(3, 5)",
            "5 and a half",
            "5x",
            "2 k",
            "2 pi",
            "2π",
            "4 \\pi",
            "52_8",
            "6 - 5i",
        ),
        *("3\\sqrt{13}", "1/0", "\\frac{1}{0}", "1.2.3", "x <= 5", "9 + John's age", "1e999999999", "1" * 401, "--5"),
    ],
)
def test_what_is_no_plain_number_is_not_read_as_one(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("18.0", "18", CORRECT),
        ("$18 per day", "18", CORRECT),
        ("19", "18", WRONG),
        ("1800", "18", WRONG),
        ("-18", "18", WRONG),
        ("50%", "50", CORRECT),
        ("0.5", "50%", CORRECT),
        ("50%", "0.5", CORRECT),
        ("0.5", "50", WRONG),
        ("50%", "0.5%", WRONG),
        ("0.333333", "\\frac{1}{3}", CORRECT),
        ("0.3333", "\\frac{1}{3}", WRONG),
        ("1000000.4", "1000000", WRONG),
        ("0.0000670", ".0000672", WRONG),
        ("a few", "18", UNPARSED),
        ("5 or 18", "18", UNPARSED),
        ("9 + John's age", "18", UNPARSED),
        (None, "18", UNPARSED),
        ("", "18", UNPARSED),
        ("**", "18", UNPARSED),
        ("1" * 2000, "1" * 2000, UNPARSED),
    ],
)
def test_a_number_compares_by_value(answer: str | None, gold: str, verdict: Verdict) -> None:
    assert compare_answers(answer, gold) is verdict


@pytest.mark.parametrize("gold", ["B", "(B)", "b", "\\text{(B)}", "B."])
@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("B", CORRECT),
        ("b", CORRECT),
        ("(B)", CORRECT),
        ("B)", CORRECT),
        ("\\text{(B)}", CORRECT),
        ("(B) bookstore", CORRECT),
        ("B: bookstore", CORRECT),
        ("option B", CORRECT),
        ("B - bookstore", CORRECT),
        ("B – bookstore", CORRECT),
        ("(B)bookstore", CORRECT),
        ('"B"', CORRECT),
        ("“(B)”", CORRECT),
        ("C - bank", WRONG),
        ("(C)bank", WRONG),
        ("B-flat", UNPARSED),
        ("(A) or (B)", WRONG),
        ("(C)", WRONG),
        ("C. bank", WRONG),
        ("a bank", UNPARSED),
        ("A, B", UNPARSED),
        ("bookstore", UNPARSED),
        ("18", UNPARSED),
    ],
)
def test_a_letter_compares_as_a_label(answer: str, gold: str, verdict: Verdict) -> None:
    assert compare_answers(answer, gold) is verdict


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("yes", "yes", CORRECT),
        ("Yes, because it is cold.", "yes", CORRECT),
        ("no", "yes", WRONG),
        ("NO", "no", CORRECT),
        ("\\text{yes}", "yes", CORRECT),
        ("not sure", "no", UNPARSED),
        ('"yes"', "yes", CORRECT),
        ("'No.'", "no", CORRECT),
        ("yes - it is", "yes", CORRECT),
        ('"not yes"', "yes", UNPARSED),
        ("yes-man", "yes", UNPARSED),
        ("true", "yes", WRONG),
        ("maybe", "yes", UNPARSED),
        ("1", "true", UNPARSED),
    ],
)
def test_yes_and_no_are_exact_labels(answer: str, gold: str, verdict: Verdict) -> None:
    assert compare_answers(answer, gold) is verdict


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("evelyn", "\\text{Evelyn}", CORRECT),
        ("Navin", "\\text{Evelyn}", WRONG),
        ("May 5, 2020", "May 5 2020", CORRECT),
        ("New  York", "new york", CORRECT),
    ],
)
def test_words_compare_by_their_letters(answer: str, gold: str, verdict: Verdict) -> None:
    assert compare_answers(answer, gold) is verdict


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("\\sqrt{324}", "18"), ("5,3", "3, 5"), ("(0,1)", "(0, 1)"), ("2k", "2 k"), ("3pi", "\\pi"), ("c+ab", "ab+c")],
)
def test_mathematics_is_left_undecided(answer: str, gold: str) -> None:
    assert compare_answers(answer, gold) is None


def test_mathematics_that_is_written_the_same_is_correct_at_once() -> None:
    assert compare_answers("$\\frac{\\pi}{2}$", "\\frac{\\pi}{2}") is CORRECT


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        # other scripts and keyboards
        ("２５", "25", CORRECT),
        ("－5", "-5", CORRECT),
        ("－5", "5", WRONG),
        ("½", "\\frac{1}{2}", CORRECT),
        ("¾", "0.75", CORRECT),
        ("1½", "1.5", CORRECT),
        ("3½", "0.5", WRONG),
        ("pi", "\\pi", CORRECT),
        ("2π", "2\\pi ", CORRECT),
        ("∞", "\\infty", CORRECT),
        # decimal commas, where they cannot be thousands
        ("3,14", "3.14", CORRECT),
        ("3,14159", "3.14159", CORRECT),
        ("1.234,56 euros", "1234.56", CORRECT),
        ("3,14", "314", WRONG),
        ("3,140", "3140", CORRECT),
        ("3,140", "3.14", WRONG),
        # repeating decimals
        ("0.\\overline{3}", "1/3", CORRECT),
        ("0.1\\overline{6}", "\\frac{1}{6}", CORRECT),
        ("0.\\bar{36}", "4/11", CORRECT),
        ("0.\\overline{3}", "0.3", WRONG),
        # ordinals
        ("12^{\\mathrm{th}} grade", "12", CORRECT),
        ("12^{th}", "12", CORRECT),
        ("21^{\\text{st}} century", "21", CORRECT),
        ("12^{\\text{th}}", "13", WRONG),
        # exclaimed
        ("18!", "18", CORRECT),
        ("6 dollars!", "6", CORRECT),
        # words
        ("seventeen", "17", CORRECT),
        ("Seventeen eggs.", "17", CORRECT),
        ("twenty-one", "21", CORRECT),
        ("one hundred and five", "105", CORRECT),
        ("two thousand", "2000", CORRECT),
        ("zero", "0", CORRECT),
        ("eighteen", "17", WRONG),
        ("five and a half", "5", UNPARSED),
        ("two or three", "2", UNPARSED),
        # what stands before an equals sign
        ("x = 3 + 2 = 5", "5", CORRECT),
        ("Total = 18", "18", CORRECT),
        ("a total of 3 * 6 = 18", "18", CORRECT),
        ("y = 5", "x = 5", WRONG),
        # bases
        ("52_{9}", "52_9", CORRECT),
        ("52", "52_9", CORRECT),
        ("52_9", "52_8", WRONG),
        ("52_9", "47", WRONG),
        ("47", "52_9", WRONG),
    ],
)
def test_numbers_are_read_as_people_write_them(answer: str, gold: str, verdict: Verdict) -> None:
    assert compare_answers(answer, gold) is verdict


@pytest.mark.parametrize(("answer", "gold"), [("x+y=5", "5"), ("5", "x+y=5"), ("5x = 10", "10"), ("19!", "18")])
def test_what_only_holds_the_number_is_left_undecided(answer: str, gold: str) -> None:
    assert compare_answers(answer, gold) is None


def test_an_empty_gold_answer_is_an_error() -> None:
    with pytest.raises(ValueError, match="gold answer must not be empty"):
        compare_answers("18", " ")


exact = st.fractions(-(10**9), 10**9, max_denominator=1).map(int) | st.integers(-(10**15), 10**15)


def _written(value: int, cents: int, form: str) -> str:
    """`value` and `cents` hundredths in one of the ways people write numbers."""
    sign = "-" if value < 0 else ""
    digits = f"{abs(value)}.{cents:02d}"
    grouped = f"{abs(value):,}.{cents:02d}"
    return {
        "plain": f"{sign}{digits}",
        "grouped": f"{sign}{grouped}",
        "currency": f"{sign}${grouped}",
        "latex": f"{sign}\\$" + grouped.replace(",", ",\\!"),
        "unit": f"{sign}{grouped} miles per hour",
        "zeros": f"{sign}{digits}000",
        "fraction": f"{sign}{abs(value) * 100 + cents}/100",
        "frac": f"{sign}\\frac{{{abs(value) * 100 + cents}}}{{100}}",
        "exponent": f"{sign}{abs(value) * 100 + cents}e-2",
    }[form]


FORMS = ["plain", "grouped", "currency", "latex", "unit", "zeros", "fraction", "frac", "exponent"]


@given(value=exact, cents=st.integers(0, 99), form=st.sampled_from(FORMS), other=st.sampled_from(FORMS))
def test_a_number_equals_itself_however_it_is_written(value: int, cents: int, form: str, other: str) -> None:
    answer, gold = _written(value, cents, form), _written(value, cents, other)
    parsed = parse_number(answer)
    assert parsed is not None
    assert parsed.value == (-1 if value < 0 else 1) * Fraction(abs(value) * 100 + cents, 100)
    assert compare_answers(answer, gold) is CORRECT


@given(value=exact, cents=st.integers(0, 98), form=st.sampled_from(FORMS), other=st.sampled_from(FORMS))
def test_a_number_never_equals_one_that_is_a_cent_off(value: int, cents: int, form: str, other: str) -> None:
    assert compare_answers(_written(value, cents, form), _written(value, cents + 1, other)) is WRONG


@given(answer=st.text(max_size=60), gold=st.text(max_size=60).filter(tidy))
def test_any_two_texts_compare_without_an_error(answer: str, gold: str) -> None:
    assert compare_answers(answer, gold) in (*Verdict, None)


def test_a_thousand_simple_answers_take_less_than_a_second() -> None:
    pairs = [(f"${i:,}.00 per day", str(i)) for i in range(1000)]
    start = time.process_time()
    verdicts = [compare_answers(answer, gold) for answer, gold in pairs]
    assert time.process_time() - start < 1.0
    assert set(verdicts) == {CORRECT}
