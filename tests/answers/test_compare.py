"""Comparing answers: letters, yes/no and words at once; mathematics in processes that end whatever they meet."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact_distill.answers import AnswerKind, Verifier, answer_kind, compare, compare_answers
from compact_distill.answers.stated import tidy
from compact_distill.errors import RunError
from compact_distill.records import Verdict

CORRECT, WRONG, UNPARSED, TIMED_OUT = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED, Verdict.TIMED_OUT


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
        ("A, B", WRONG),  # chooses neither
        ("(B) and (C)", WRONG),
        ("B or C", WRONG),
        ("(a) and (b)", WRONG),
        ("(B) 5 and (C) 6", WRONG),
        ("(A) 5, (B) 6", WRONG),
        ("B, and C", WRONG),
        ("A, B, and C", WRONG),
        ("(B) f(x) and g(x)", CORRECT),
        ("(B) the roots and (B) alone", CORRECT),
        ("(B) the parts (a) and (b)", CORRECT),
        ("B—bookstore", CORRECT),
        ("(B)—bookstore", CORRECT),
        ("B (bookstore)", CORRECT),
        ("B, bookstore", CORRECT),
        ("(B), bookstore", CORRECT),
        ("\\textbf{(B)}\\ 42", CORRECT),
        ("\\textbf{(B)}~42", CORRECT),
        ("\\textbf{(B)}\\ \\frac{1}{2}", CORRECT),
        ("C (bank)", WRONG),
        ("\\textbf{(C)}\\ 42", WRONG),
        ("B \\cdot 3", UNPARSED),
        ("(B) andirons", CORRECT),
        ("B)bookstore", CORRECT),
        ("B.bookstore", CORRECT),
        ("the option B", CORRECT),
        ("letter (B)", CORRECT),
        ("B.C.", UNPARSED),
        ("[B]", CORRECT),
        ("«B»", CORRECT),
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
        ("«yes»", "yes", CORRECT),
        ("“No”", "yes", WRONG),
        ("yes - it is", "yes", CORRECT),
        ("yes—it can", "yes", CORRECT),
        ("no—it cannot", "yes", WRONG),
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
        ("C - library", "C", CORRECT),
        ("(C)library", "C", CORRECT),
        ('"C"', "C", CORRECT),
        ("**(C)**", "(C)", CORRECT),
        ("C - library", "B", WRONG),
        ("New  York", "new york", CORRECT),
    ],
)
def test_words_compare_by_their_letters(answer: str, gold: str, verdict: Verdict) -> None:
    assert compare_answers(answer, gold) is verdict


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("2020-12-05", "2020-05-12", WRONG),
        ("2020/05/12", "2020-05-12", CORRECT),
        ("12/5/2020", "5/12/2020", WRONG),
        ("3-4", "4-5", WRONG),
        ("3–4", "3-4", CORRECT),
        ("20%-30%", "30%-40%", WRONG),
        ("1999-2001", "1998-2000", WRONG),
        ("192.168.0.1", "10.0.0.1", WRONG),
        ("2.10.1", "2.1.1", WRONG),
        ("2.10.1", "2.10.1.", CORRECT),
        ("3:30 pm", "3:30 am", WRONG),
        ("3:30 PM", "3:30 p.m.", CORRECT),
        ("3:30", "3:30 pm", CORRECT),
        ("3:31 pm", "3:30 pm", WRONG),
        ("3 pm", "3:00 pm", CORRECT),
        ("half past three", "3:30 pm", UNPARSED),
        ("3:30", "about 3:30", CORRECT),
        ("IV", "VI", WRONG),
        ("iv", "IV", CORRECT),
        ("TV", "VT", WRONG),
        ("Ag", "Ga", WRONG),
        ("f'(x)", "f(x)", WRONG),
        ("f'(x)", "f''(x)", WRONG),
    ],
)
def test_dates_times_ranges_and_codes_compare_as_they_are_written(answer: str, gold: str, verdict: Verdict) -> None:
    assert compare_answers(answer, gold) is verdict


@pytest.mark.parametrize("gold", ["x-4", "3 - x", "PI", "1,-2", "3:2", "AB + C", "-3", "2-\\sqrt{3}"])
def test_what_only_looks_like_a_range_or_a_code_is_mathematics(gold: str) -> None:
    assert answer_kind(gold) in (AnswerKind.MATHEMATICS, AnswerKind.NUMBER)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("\\sqrt{324}", "18"), ("5,3", "3, 5"), ("(0,1)", "(0, 1)"), ("2k", "2 k"), ("3pi", "\\pi"), ("c+ab", "ab+c")],
)
def test_mathematics_is_left_undecided(answer: str, gold: str) -> None:
    assert compare_answers(answer, gold) is None


def test_mathematics_that_is_written_the_same_is_correct_at_once() -> None:
    assert compare_answers("$\\frac{\\pi}{2}$", "\\frac{\\pi}{2}") is CORRECT


def test_an_empty_gold_answer_is_an_error() -> None:
    with pytest.raises(ValueError, match="gold answer must not be empty"):
        compare_answers("18", " ")


@given(answer=st.text(max_size=60), gold=st.text(max_size=60).filter(tidy))
def test_any_two_texts_compare_without_an_error(answer: str, gold: str) -> None:
    assert compare_answers(answer, gold) in (*Verdict, None)


@pytest.fixture(scope="module")
def pool() -> Iterator[Verifier]:
    with Verifier(workers=1, timeout=20.0) as shared:
        yield shared


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("\\sqrt{324}", "18", CORRECT),
        ("\\frac{\\sqrt{12}}{2}", "\\sqrt{3}", CORRECT),
        ("1.7320508", "\\sqrt{3}", CORRECT),
        ("5, 3", "3, 5", CORRECT),
        ("$3$ and $5$", "3, 5", CORRECT),
        ("\\{1, -2\\}", "1,-2", CORRECT),
        ("x=1 or x=-2", "1,-2", CORRECT),
        ("(2, 3)", "(2, 3]", WRONG),
        ("-2 \\le x \\le 7", "x \\in [-2,7]", CORRECT),
        ("(5+a)(2+b)", "(a+5)(b+2)", CORRECT),
        ("2x + 3", "y = 2x + 3", CORRECT),
        ("2x + 4", "y = 2x + 3", WRONG),
        ("1 \\pm \\sqrt{19}", "1 - \\sqrt{19}, 1 + \\sqrt{19}", CORRECT),
        ("4\\pi", "12", WRONG),
        ("\\frac{", "\\pi", UNPARSED),
        ("\\begin{pmatrix} 1/3 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} \\frac13 \\\\ 2 \\end{pmatrix}", CORRECT),
    ],
)
def test_mathematics_compares_by_meaning(pool: Verifier, answer: str, gold: str, verdict: Verdict) -> None:
    assert pool.verify(answer, gold) is verdict


def test_a_tower_of_powers_ends_with_timed_out_and_the_next_pair_is_answered() -> None:
    with Verifier(workers=1, timeout=1.5) as pool:
        start = time.monotonic()
        verdicts = pool.verify_many([("9^(9^(9^9))", "18"), ("9^{9^{9^{9}}}", "\\pi"), ("\\sqrt{324}", "18")])
        assert verdicts[:2] == [TIMED_OUT, TIMED_OUT]
        assert verdicts[2] in (CORRECT, TIMED_OUT)  # a busy machine may need longer than 1.5 s for the third
        assert time.monotonic() - start < 60


# A worker that does what the answer says, in the real protocol.
PROGRAM = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('"ready"', flush=True)
for line in sys.stdin:
    seconds, answer, gold = json.loads(line)
    if "hang" in answer:
        time.sleep(120)  # and nothing but SIGKILL ends it sooner
    if "die" in answer:
        os.kill(os.getpid(), signal.SIGKILL)
    if "late" in answer:
        time.sleep(0.2)
    print(json.dumps("correct" if answer == gold + "+0" else "wrong"), flush=True)
    if "leave" in answer:
        os._exit(0)
"""


@pytest.fixture
def obedient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "worker.py"
    program.write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setattr(compare, "_PROGRAM", program)


@pytest.mark.usefixtures("obedient")
@pytest.mark.parametrize("workers", [1, 3])
def test_hanging_and_dying_workers_cost_only_their_own_verdict(workers: int) -> None:
    pairs = [(f"{i}+0", str(i)) for i in range(30)]
    pairs[4] = ("\\hang", "\\pi")
    pairs[11] = ("\\die", "\\pi")
    pairs[12] = ("\\leave", "\\pi")
    pairs[13] = ("\\late", "\\pi")
    pairs[20] = ("19", "20")
    expected = [CORRECT] * 30
    expected[4] = expected[11] = TIMED_OUT
    expected[12] = expected[13] = expected[20] = WRONG
    with Verifier(workers=workers, timeout=2.0) as pool:
        assert pool.verify_many(pairs) == expected
        assert pool.verify("7+0", "7") is CORRECT


@pytest.mark.usefixtures("obedient")
def test_a_worker_that_ignores_signals_is_gone_after_close() -> None:
    pool = Verifier(workers=2, timeout=600.0)
    done: list[object] = []

    def ask() -> None:
        try:
            done.append(pool.verify("\\hang", "\\pi"))
        except BaseException as error:
            done.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    while not any(worker._process for worker in pool._workers):
        time.sleep(0.01)
    processes = [worker._process for worker in pool._workers if worker._process]
    time.sleep(0.3)
    pool.close()
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert done
    assert done[0] is not CORRECT
    assert [process.poll() is not None for process in processes] == [True] * len(processes)


def test_no_process_starts_before_the_first_pair_that_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_PROGRAM", Path("does-not-exist.py"))
    with Verifier() as pool:
        pairs = [("18.0", "18"), ("b", "(B)"), ("no", "yes"), (None, "\\pi"), ("\\pi", "\\pi")]
        assert pool.verify_many(pairs) == [CORRECT, CORRECT, WRONG, UNPARSED, CORRECT]
        with pytest.raises(RunError, match="cannot start a process that runs math-verify"):
            pool.verify("2\\pi", "\\pi")


def test_no_pairs_give_no_verdicts() -> None:
    with Verifier() as pool:
        assert pool.verify_many([]) == []


def test_a_closed_verifier_refuses_mathematics() -> None:
    pool = Verifier()
    pool.close()
    assert pool.verify("18.0", "18") is CORRECT
    with pytest.raises(RunError, match="closed"):
        pool.verify("2\\pi", "\\pi")


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"timeout": 0.0}, {"timeout": float("nan")}])
def test_limits_must_be_positive(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Verifier(**arguments)  # type: ignore[arg-type]


EQUAL = [
    ("2x+2y+2z=0", "x+y+z=0"),
    ("0 = x+y+z", "x+y+z=0"),
    ("y = 2x+3", "2x-y+3=0"),
    ("-2x-2y=-2z", "x+y=z"),
    ("x = 5", "5"),
    ("5 = x", "5"),
    ("f(x)=x^2", "x^2"),
    ("x^2", "f(x)=x^2"),
    ("x=\\frac{1}{2}", "0.5"),
    ("e^{1000}", "e^{1000}"),
    ("2^{5000}", "4^{2500}"),
    ("5, 3", "3, 5"),
    ("3, 4, and 5", "3,4,5"),
    ("3 and 5", "5,3"),
    ("(3,5)", "3, 5"),
    ("(x, y) = (3, 5)", "(3,5)"),
    ("(3,5)", "\\left(x,y\\right) = (3,5)"),
    ("\\{5,3\\}", "\\{3,5\\}"),
    ("3 & 5", "3, 5"),
    ("5; 3", "3, 5"),
    ("(2; 3]", "(2,3]"),
    ("\\begin{pmatrix} 1 & 2 \\end{pmatrix}", "\\begin{pmatrix}1&2\\end{pmatrix}"),
    ("5, 3", "\\{3,5\\}"),
    ("2pi", "2\\pi"),
    ("10²", "100"),
    ("x⁻²", "x^{-2}"),
    ("4\\sqrt(2)", "4\\sqrt{2}"),
    ("4sqrt(2)", "4\\sqrt{2}"),
    ("3√2", "3\\sqrt{2}"),
    ("5!", "120"),
    ("6402373705728000", "18!"),
    ("(-∞, 2)", "(-\\infty,2)"),
    ("[2, ∞)", "[2,\\infty)"),
]
DIFFERENT = [
    ("5x-7y+11z+4=0", "x+y+z=0"),
    ("x+y+z=0", "5x-7y+11z+4=0"),
    ("0", "x+y+z=0"),
    ("x+y+z=0", "0"),
    ("2x+3y=0", "0"),
    ("y = 2x+4", "2x-y+3=0"),
    ("x^2+y^2=4", "x^2+y^2=9"),
    ("x+y=5", "5"),
    ("5", "x+y=5"),
    ("x+2=7", "5"),
    ("5x = 10", "10"),
    ("10^{400}", "10^{500}"),
    ("2^{5000}", "3^{5000}"),
    ("e^{1000}", "e^{1001}"),
    ("(5,3)", "3, 5"),
    ("(5,3)", "(3,5)"),
    ("(x, y) = (5, 3)", "(3,5)"),
    ("\\{3,5\\}", "(3,5)"),
    ("(3,5)", "\\{3,5\\}"),
    ("3 and 6", "3,5"),
    ("3 & 6", "3,5"),
    ("35", "3, 5"),
    ("3pi", "2\\pi"),
    ("10²", "102"),
    ("4\\sqrt(3)", "4\\sqrt{2}"),
    ("18", "18!"),
    ("(2, ∞)", "[2,\\infty)"),
    ("5^{t}", "5"),
    ("1 and 2", "12"),
]


def test_what_is_written_otherwise_is_equal_and_what_looks_alike_is_not() -> None:
    with Verifier(workers=1, timeout=20.0) as pool:
        verdicts = pool.verify_many(EQUAL + DIFFERENT)
    equal, different = verdicts[: len(EQUAL)], verdicts[len(EQUAL) :]
    assert [p for p, verdict in zip(EQUAL, equal, strict=True) if verdict is not Verdict.CORRECT] == []
    assert [p for p, verdict in zip(DIFFERENT, different, strict=True) if verdict is Verdict.CORRECT] == []
