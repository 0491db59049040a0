"""Numbers as people write them: what is read, what it equals, and what is no number."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact_distill.answers import compare_answers
from compact_distill.answers.numbers import Number, parse_number
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


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        # other scripts and keyboards
        ("２５", "25", CORRECT),
        ("－5", "-5", CORRECT),
        ("－5", "5", WRONG),
        ("﹣5", "-5", CORRECT),
        ("—5", "-5", CORRECT),
        ("＋5", "5", CORRECT),
        ("１，８００", "1800", CORRECT),
        ("½", "\\frac{1}{2}", CORRECT),
        ("¾", "0.75", CORRECT),
        ("1½", "1.5", CORRECT),
        ("3½", "0.5", WRONG),
        ("⅓", "1/3", CORRECT),
        ("½", "2", WRONG),
        ("pi", "\\pi", CORRECT),
        ("2π", "2\\pi ", CORRECT),
        ("∞", "\\infty", CORRECT),
        ("infinity", "\\infty", CORRECT),
        # decimal commas, where they cannot be thousands
        ("3,14", "3.14", CORRECT),
        ("3,14159", "3.14159", CORRECT),
        ("1.234,56 euros", "1234.56", CORRECT),
        ("3,14", "314", WRONG),
        ("3,140", "3140", CORRECT),
        ("3,140", "3.14", WRONG),
        ("0,125", "0.125", CORRECT),  # nobody groups thousands behind a zero
        ("0,125", "125", WRONG),
        ("-3,5", "-3.5", CORRECT),
        ("12,5%", "12.5", CORRECT),
        ("1 234,5", "1234.5", CORRECT),
        ("1’234.50", "1234.5", CORRECT),
        ("3,14", "3", WRONG),
        # repeating decimals
        ("0.\\overline{3}", "1/3", CORRECT),
        ("0.1\\overline{6}", "\\frac{1}{6}", CORRECT),
        ("0.\\bar{36}", "4/11", CORRECT),
        ("0.\\dot{3}", "1/3", CORRECT),
        ("0.\\dot{1}4285\\dot{7}", "1/7", CORRECT),
        ("0.1(6)", "1/6", CORRECT),
        ("0.3\u0305", "1/3", CORRECT),
        ("0.333...", "1/3", CORRECT),
        ("0.1212…", "4/33", CORRECT),
        ("0.333...", "0.333", WRONG),
        ("3.14159...", "3.14159", CORRECT),  # shows nothing that is repeated
        ("0.\\overline{3}", "0.3", WRONG),
        # ordinals
        ("12^{\\mathrm{th}} grade", "12", CORRECT),
        ("12^{th}", "12", CORRECT),
        ("$12^{\\mathrm{th}}$ grade", "12", CORRECT),
        ("1^{\\rm st}", "1", CORRECT),
        ("21^{\\text{st}} century", "21", CORRECT),
        ("the 12th grade", "12", CORRECT),
        ("the 13th grade", "12", WRONG),
        ("12^{\\text{th}}", "13", WRONG),
        # exclaimed
        ("18!", "18", CORRECT),
        ("eighteen!", "18", CORRECT),
        ("eighteen!", "17", UNPARSED),
        ("6 dollars!", "6", CORRECT),
        ("18!", "18!", CORRECT),
        ("$3!$", "3", CORRECT),
        # a unit of one letter behind a space, squared ones, inches, whole hours
        ("506 m", "506", CORRECT),
        ("3600 g.", "3600", CORRECT),
        ("x = 2.5 L", "2.5", CORRECT),
        ("507 m", "506", WRONG),
        ("60 cm2", "60", CORRECT),
        ("60cm3", "60", CORRECT),
        ("60 cm2", "602", WRONG),
        ("49 inches squared", "49", CORRECT),
        ("20 square meters", "20", CORRECT),
        ("7 meters cubed", "343", WRONG),
        ("7 squared", "7", UNPARSED),
        ('67"', "67", CORRECT),
        ("67″", "67", CORRECT),
        ("2:00 pm", "2", CORRECT),
        ("2:00", "2", CORRECT),
        ("3:00 p.m.", "2", WRONG),
        # words
        ("seventeen", "17", CORRECT),
        ("Seventeen eggs.", "17", CORRECT),
        ("twenty-one", "21", CORRECT),
        ("one hundred and five", "105", CORRECT),
        ("two thousand", "2000", CORRECT),
        ("zero", "0", CORRECT),
        ("eighteen", "17", WRONG),
        ("two or three", "2", UNPARSED),
        ("one and two", "1", UNPARSED),
        ("just seventeen", "17", CORRECT),
        ("just 17 eggs", "17", CORRECT),
        ("seventeen (17) eggs", "17", CORRECT),
        ("seventeen (18)", "17", UNPARSED),
        ("minus five", "-5", CORRECT),
        ("minus five", "5", WRONG),
        ("a dozen", "12", CORRECT),
        ("two dozen eggs", "24", CORRECT),
        ("half a dozen", "6", UNPARSED),
        ("a hundred", "100", CORRECT),
        ("a few", "1", UNPARSED),
        ("one half", "0.5", CORRECT),
        ("three quarters of it", "0.75", CORRECT),
        ("five and a half", "5.5", CORRECT),
        ("five and a half", "5", WRONG),
        ("negative 5", "-5", CORRECT),
        ("negative 5", "5", WRONG),
        ("minus 5 degrees", "-5", CORRECT),
        # halves of the day and of all years
        ("8 AM", "8 PM", WRONG),
        ("8 a.m.", "8 AM", CORRECT),
        ("8", "8 PM", CORRECT),
        ("8 pm", "8", CORRECT),
        ("2:00 am", "2 pm", WRONG),
        ("44 BC", "44 AD", WRONG),
        ("44 B.C.", "44 BCE", CORRECT),
        # scales and parts
        ("5 hundreds", "5", WRONG),
        ("5 thousands", "5000", CORRECT),
        ("5 hundred thousand", "500000", CORRECT),
        ("five hundreds", "500", CORRECT),
        ("two dozens", "24", CORRECT),
        ("5 lakh", "500000", CORRECT),
        ("5 crore", "5", WRONG),
        ("5 bn", "5", WRONG),
        ("$2.5 bn", "2500000000", CORRECT),
        ("$1.5M", "1500000", CORRECT),
        ("$250k a year", "250000", CORRECT),
        ("5 hundredths", "0.05", CORRECT),
        ("5 hundredths", "5", WRONG),
        ("3 fifths", "3/5", CORRECT),
        ("three fifths", "3", WRONG),
        ("1 tenth of it", "0.1", CORRECT),
        ("one fifth", "1", WRONG),
        ("12 fifth graders", "12", CORRECT),
        ("five fifth graders", "5", CORRECT),
        ("4 halves", "4", UNPARSED),
        ("6 months", "6", CORRECT),
        # what stands before an equals sign
        ("x = 3 + 2 = 5", "5", CORRECT),
        ("Total = 18", "18", CORRECT),
        ("a total of 3 * 6 = 18", "18", CORRECT),
        ("y = 5", "x = 5", WRONG),
        # bases
        ("52_{9}", "52_9", CORRECT),
        ("52", "52_9", CORRECT),
        ("52₉", "52_9", CORRECT),
        ("52 (base 9)", "52_9", CORRECT),
        ("52 in base 9", "52_{9}", CORRECT),
        ("52_{\\text{nine}}", "52_9", CORRECT),
        ("52₈", "52_9", WRONG),
        ("52 base 8", "52_9", WRONG),
        ("52_{\\text{eight}}", "52_9", WRONG),
        ("52 base 9", "52", WRONG),
        ("52_9", "52_8", WRONG),
        ("52_9", "47", WRONG),
        ("47", "52_9", WRONG),
        ("52_9", "52", WRONG),
        ("(101)_2", "101_2", CORRECT),
    ],
)
def test_numbers_are_read_as_people_write_them(answer: str, gold: str, verdict: Verdict) -> None:
    assert compare_answers(answer, gold) is verdict


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        *(("x+y=5", "5"), ("5", "x+y=5"), ("5x = 10", "10"), ("19!", "18")),
        *(("7m", "7"), ("$5 m", "5"), ("2 k", "2"), ("250K", "250"), ("2:30", "2"), ("5'7\"", "5")),
    ],
)
def test_what_only_holds_the_number_is_left_undecided(answer: str, gold: str) -> None:
    assert compare_answers(answer, gold) is None


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


def test_a_thousand_simple_answers_take_less_than_a_second() -> None:
    pairs = [(f"${i:,}.00 per day", str(i)) for i in range(1000)]
    start = time.process_time()
    verdicts = [compare_answers(answer, gold) for answer, gold in pairs]
    assert time.process_time() - start < 1.0
    assert set(verdicts) == {CORRECT}
