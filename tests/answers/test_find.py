"""What counts as the final answer, and which finder is said to have found it."""

from __future__ import annotations

import time

import pytest

from compact_distill.answers import (
    FoundAnswer,
    answers_of,
    choices_of,
    find_answer,
    places_in,
    read_rationale,
    split_answer,
)
from compact_distill.records import AnswerFrom, Instance, Rationale, RationaleStatus

NUMBER = ("statement", "last_number")
CHOICE = ("statement", "choice")
PLACES = {"A": "bank", "B": "library", "C": "department store"}


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("There is no definitive answer to this question.", "yes"),
        ("I cannot find a good answer to this question.", "no"),
        ("Breakdancing strains tendons. Thus, it is not safe for them.", "no"),  # meant perhaps, and not said
        ("It is impossible to determine.", "True"),
        ("The price cannot be determined from what is given.", "18"),
    ],
)
def test_a_finished_text_without_a_possible_answer_gives_none(text: str, gold: str) -> None:
    found = read_rationale(text, gold)
    assert (found.answer, found.status) == (None, RationaleStatus.NO_ANSWER)


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("The answer could be yes, but the wheelbarrow is not the cause.", "yes"),
        ("Some say no, others do not.", "no"),
        ("It is not true of everybody.", "True"),
        ("Half of them stay there with the rest of the family.", "18"),
        ("There is no definitive answer to this", "yes"),  # cut
        ("There is no definitive answer.", "x + 1"),  # nothing is inferred of that kind
    ],
)
def test_a_text_that_may_hold_an_answer_is_unparsed(text: str, gold: str) -> None:
    found = read_rationale(text, gold)
    assert (found.answer, found.status) == (None, RationaleStatus.UNPARSED)


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
        ("Books are lent there, so option (B) is right.", CHOICE, PLACES, ("B", "choice")),
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


INFERRED, STATED = AnswerFrom.INFERRED, AnswerFrom.STATED


@pytest.mark.parametrize(
    ("text", "gold", "answer"),
    [
        # the number of the closing sentence
        ("20 + 20 = 40. So Ann has 40 coins.", "40", "40"),
        ("She bakes 2 * 9 = 18 eggs.", "5", "18"),
        ("4 * 12 = 48.\n\nTherefore, 48 rows.\n", "48", "48"),
        ("He pays $65 * 170 = $11,050 to fill 170 balloons.", "11050", "11,050"),
        ("That is a total of **1,234.5** meters!", "1234.5", "1,234.5"),
        ("The dentist fixes 50% of the teeth.", "50", "50%"),
        ("It fell to -3 degrees.", "-3", "-3"),
        ("So a third is left, that is 1/3.", "\\frac{1}{3}", "1/3"),
        ("So it is $\\frac{3}{4}$.", "\\frac{3}{4}", "\\frac{3}{4}"),
        ("Ann has 40 coins because 20 + 20 is 40 and 5 are lost.", "40", "40"),
        ("It takes 4 hours, which is 4 * 60 = 240 minutes.", "240", "240"),
        ("So 40.\n\nI hope this helps!", "40", "40"),
        ("The St. Bernard weighs 80 kg.", "80", "80"),
        ("The latest time she can start is 2:00 pm.", "2", "2"),
        ("So the result is −3.", "-3", "−3"),
        ("So the result is –3 degrees.", "-3", "–3"),
        ("So the balance is −$5.", "-5", "−5"),
        ("So the result is negative 3.", "-3", "negative 3"),
        ("It falls to minus 3 degrees.", "-3", "minus 3"),
        ("Ann has three – 3 – eggs.", "3", "3"),
        ("So 7 − 16 = −9.", "-9", "−9"),
        ("She has 1 000 eggs.", "1000", "1 000"),
        ("She has 12 500 eggs.", "500", "12 500"),
        ("It takes 2 1/2 hours.", "2.5", "2 1/2"),
        ("It takes 2½ hours.", "2.5", "2½"),
        ("So half is left, ½ of it.", "0.5", "½"),
        # yes or no at either end
        ("It means a stock company. Yes, Canon Inc. is a Kabushiki gaisha.", "yes", "yes"),
        ("It is a city. No, the U.S. has it, as do Ken Griffey Jr. and others.", "yes", "no"),
        ("Yes, it is common in the north.", "yes", "yes"),
        ("No. Babies do not shave.", "yes", "no"),
        ("**Yes**, frost comes in May.", "yes", "yes"),
        ("Yes it is.", "yes", "yes"),
        ("It snows in May. So, yes, frost is common.", "yes", "yes"),
        ("Nobody did, as far as I can tell. I am going to say no.", "no", "no"),
        ('Frost comes in May. My reply: "Yes."', "yes", "yes"),
        ("Cats are mammals. So the statement is true.", "true", "true"),
        ("False. Cats are no birds.", "true", "false"),
        ("<think>So it is 5.</think>It is 18.", "18", "18"),
        ("<think>No.</think>\nYes, it is.", "yes", "yes"),
        ("So we get\n\\[\n18\n\\]", "18", "18"),
        ("We add.\n\\[ 18 \\]", "18", "18"),
        ("We add.\n$$\n18.\n$$", "18", "18"),
        ("So\n\\[\n2 + 16 = 18\n\\]", "18", "18"),
        ("So $2 + $16 = $18.", "18", "18"),
        ("We add.\n- 18 eggs are left.", "18", "18"),
        ("We add.\n* 18 eggs are left.", "18", "18"),
        ("It fell by some degrees, to -18.", "-18", "-18"),
        ("The film is for those of 18+.", "18", "18"),
        # the letter of a choice
        ("Books are lent at a library.\nB", "B", "B"),
        ("Books are lent at a library, so (B) is right.", "B", "B"),
        ("We choose option C.", "B", "C"),
    ],
)
def test_an_answer_that_is_not_stated_is_inferred_by_the_golds_kind(text: str, gold: str, answer: str) -> None:
    assert read_rationale(text, gold) == FoundAnswer(text.strip(), answer, INFERRED)
    assert read_rationale(text, gold, infer=False) == FoundAnswer(text.strip(), None, None)


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("20 + 20 = 40. So Ann has 40", "40"),  # no full stop: it may have been cut
        ("25", "25"),
        ("<think>So it is 18.", "18"),
        ("<think>So it is 18.</think>I cannot tell.", "18"),
        ("The price will be $41.472+$8.2944 = $<<41.472+8.", "92"),
        ("She has 40. I do not know how many are left.", "40"),
        ("The answer cannot be determined without the price.", "40"),
        ("So it takes x^2 + 3x.", "3"),
        ("So\n\\[\n18 = 2 + 16\n\\]", "18"),
        ("So\n\\[\nx + 18\n\\]", "18"),
        ("So Ann has 2 + 16 coins.", "18"),
        ("So it takes 2 * 9 hours.", "18"),
        ("So it is 2 \\cdot 9.", "18"),
        ("So Ann has 16 - 7 eggs.", "7"),
        ("So Ann has 16 − 7 eggs.", "7"),
        ("So Ann has 16 eggs minus 7 eggs.", "7"),
        ("It is $20 + $2.", "22"),
        ("He leaves at 2:30 pm.", "30"),
        ("It is in the base 52_9.", "52"),
        ("So the length is 3\\sqrt{2}.", "3"),
        ("There is no definitive answer to this question.", "no"),
        ("No evidence was found.", "no"),
        ("Noah built it.", "no"),
        ("It cannot be answered with yes or no.", "no"),
        ("Yes or no, who knows?", "yes"),
        ("Yes, it is true.", "Paris"),  # words and mathematics are never inferred
        ("So Ann has 40 coins.", "x + 40"),
        ("It is not false.", "false"),
        ("a bank is a place.", "A"),
        ("Both (A) and (B) fit.", "A"),
    ],
)
def test_nothing_is_inferred_from_a_text_that_does_not_close_with_its_answer(text: str, gold: str) -> None:
    assert read_rationale(text, gold) == FoundAnswer(text.strip(), None, None)


def test_a_stated_answer_goes_before_one_that_could_be_inferred() -> None:
    assert read_rationale("The answer is 18. That leaves 3 eggs.", "3").answer == "18"
    assert read_rationale("She has 40.\nThe answer is 18.", "18") == FoundAnswer("She has 40.", "18", STATED)


def test_a_text_that_is_known_to_have_ended_needs_no_full_stop_and_a_cut_one_has_only_statements() -> None:
    assert read_rationale("So Ann has 40 coins", "40", finished=True).answer == "40"
    assert read_rationale("So Ann has 40 coins.", "40", finished=False).answer is None
    assert read_rationale("The answer is 40. Then", "40", finished=False).answer == "40"


@pytest.mark.parametrize(
    ("text", "gold", "answer"),
    [
        ("**Final Answer:** She has **42** apples left.", "42", "42"),
        ("**Answer:** Janet makes $18 per day.", "18", "$18"),
        ("So the answer is that: no.\nAnswer: Ann is left, so it was 7", "7", "Ann is left"),
        ("Answer: It takes 2 1/2 hours.", "2.5", "2 1/2"),
        ("Answer: The loss is −3 dollars.", "-3", "−3"),
        ("Answer: She has 42 apples left.", "some apples", "She has 42 apples left"),
        ("Answer: She has 5 or 18 eggs.", "18", "She has 5 or 18 eggs"),
        ("Answer: She has 5 apples and 3 pears.", "5", "She has 5 apples and 3 pears"),
        ("Answer: She has not 18 eggs.", "18", "She has not 18 eggs"),
        ("Answer: She hasn't 18 eggs.", "18", "She hasn't 18 eggs"),
        ("Answer: She has more than 18 eggs.", "18", "She has more than 18 eggs"),
        ("Answer: It is 2 + 16.", "2", "It is 2 + 16"),
        ("Answer: 18 eggs.", "18", "18 eggs"),
        ("Answer: x is 18.", "18", "18"),
    ],
)
def test_a_stated_sentence_that_tells_one_number_is_that_number(text: str, gold: str, answer: str) -> None:
    found = read_rationale(text, gold)
    assert (found.answer, found.source) == (answer, STATED)


def test_a_benchmark_that_asks_for_a_number_reads_it_in_a_stated_sentence() -> None:
    assert find_answer("Answer: She has **42** apples left.", True, NUMBER, {}) == ("42", "statement")
    assert find_answer("Answer: She has 42 apples left.", True, CHOICE, PLACES) == (
        "She has 42 apples left",
        "statement",
    )


def test_the_text_of_a_choice_is_its_label() -> None:
    assert read_rationale("The answer is library.", "B", choices=PLACES) == FoundAnswer("", "B", STATED)
    assert read_rationale("It is quiet there.\nLibrary.", "B", choices=PLACES).answer == "B"
    assert choices_of({"label": ["A", "B"], "text": ["bank", "park"]}) == {"A": "bank", "B": "park"}
    assert choices_of({"A": 1}) == choices_of("A") == choices_of(None) == {}


def test_the_answer_of_the_row_goes_before_one_in_the_text_and_an_inferred_one_can_be_turned_off() -> None:
    rationales = (
        Rationale("given", "The answer is 18.", "19"),
        Rationale("inferred", "So 18 eggs.", "18", answer_from=INFERRED),
        Rationale("text", "So 18 eggs."),
        Rationale("choice", "Library."),
    )
    instance = Instance("p", "How many?", "18", rationales[:3])
    assert [(found.answer, found.source) for found in answers_of(instance)] == [
        ("19", STATED),
        ("18", INFERRED),
        ("18", INFERRED),
    ]
    assert [found.answer for found in answers_of(instance, infer=False)] == ["19", None, None]
    (found,) = answers_of(Instance("q", "Where?", "B", rationales[3:], {"choices": PLACES}))
    assert found == FoundAnswer("Library.", "B", INFERRED)


@pytest.mark.parametrize(
    "text", ["1" * 200_000, "So 1 = " * 30_000 + "5.", "no " * 60_000, ". " * 100_000, "$" * 10**5]
)
def test_hostile_text_is_read_within_a_second(text: str) -> None:
    start = time.process_time()
    for gold in ("5", "yes", "B"):
        read_rationale(text, gold, finished=True)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    ("text", "reasoning", "start", "end"),
    [
        (" 40 + 32 = 72.\nThe answer is 72.", "40 + 32 = 72.", " 40", "72."),
        ("We add. The answer is 72, because 40 + 32 = 72.", "We add. Because 40 + 32 = 72.", "We", "= 72"),
        ("<think>We add. The answer is 72.</think>", "<think>We add.</think>", "<th", "/think"),
    ],
)
def test_the_characters_of_a_reasoning_are_found_in_its_text(text, reasoning, start, end) -> None:
    assert split_answer(text)[0] == reasoning
    found = "".join(text[place] for place in places_in(text, reasoning)[:-1])
    assert found.startswith(start.strip())
    assert found[:-1].endswith(end.rstrip(".")) or found.endswith(end)
