"""`compact try`: base and student on the same question, and what the run knows of it."""

from __future__ import annotations

import re
import shutil
import sys

import pytest
from typer.testing import CliRunner

from compact_distill.cli import app
from compact_distill.errors import RunError
from compact_distill.evaluation.side_by_side import SideBySide, TeacherText, Trial, page
from compact_distill.method.encode import Encoder
from compact_distill.students.generate import Decoding, Generator
from compact_distill.students.load import load_student


def written(student, question: str) -> str:
    model, tokenizer = load_student(student)
    model.eval()
    (reply,) = Generator(model, tokenizer, Decoding(6))([Encoder(tokenizer).encode_prompt(question)])
    return reply.text.strip()


def test_each_side_is_the_model_it_says(finished):
    question = "What is 2 + 1?"
    (answers,) = Trial(finished, max_new_tokens=6).ask([question])
    base, student = written(finished.parent / "student", question), written(finished / "student", question)
    assert answers.base.removesuffix(" [cut]") == base
    assert answers.student.removesuffix(" [cut]") == student
    assert base != student


def test_a_known_problem_comes_with_gold_teachers_verdicts_and_weights(finished):
    trial = Trial(finished, max_new_tokens=2)
    (answers,) = trial.ask(["What is 2 + 1? "])
    assert answers.gold == "3"
    assert {t.teacher: t.verdict for t in answers.teachers} == {"right": "correct", "wr|ong": "wrong"}
    weights = [t.weight for t in answers.teachers]
    assert sum(weights) == pytest.approx(1, abs=1e-6)
    assert weights == sorted(weights, reverse=True)
    (unknown,) = trial.ask(["Who?"])
    assert unknown.gold is None
    assert unknown.teachers == ()
    assert trial.questions(2) == ["What is 0 + 1?", "What is 3 + 1?"]


def test_the_command_shows_both_and_what_the_teachers_wrote(finished):
    shown = CliRunner().invoke(app, ["try", str(finished), "What is 2 + 1?", "--max-new-tokens", "2"])
    assert shown.exit_code == 0, shown.output
    for text in ("base", "student", "gold answer: 3", "right (weight 0.", "wr|ong (weight 0."):
        assert text in shown.output
    piped = CliRunner().invoke(app, ["try", str(finished), "--max-new-tokens", "1"], input="What is 1 + 1?\n")
    assert "gold answer: 2" in piped.output


@pytest.mark.parametrize("sign", ["\x1b", "\x07", "\x9b", "\x08", "\u202e", "\u2066", "\u200f"])
def test_the_terminal_obeys_no_text_that_is_shown_beside_another(finished, monkeypatch, sign):
    told = f"a{sign}[2Jb"
    shown = SideBySide(told, told, told, told, (TeacherText(told, told, "correct", 0.5),))
    monkeypatch.setattr(Trial, "ask", lambda *_: [shown])
    output = CliRunner().invoke(app, ["try", str(finished), "a question"]).output
    assert sign not in output
    assert output.count("a\ufffd[2Jb") >= 6  # question, both answers, gold, teacher, text


def test_a_run_without_student_says_what_to_do(finished, tmp_path):
    for name in ("manifest.json", "config.yaml"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    with pytest.raises(RunError, match="no trained student yet"):
        Trial(tmp_path)


def test_serving_without_gradio_names_the_extra_before_a_model_is_loaded(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("compact_distill.evaluation.side_by_side.load_student", None)
    done = CliRunner().invoke(app, ["try", str(finished), "--serve"])
    assert done.exit_code == 2
    assert "compact-distill[serve]" in done.output


def test_the_page_answers_in_a_browser_and_shows_model_text_as_text(finished):
    pytest.importorskip("gradio")
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    shown = page(Trial(finished, max_new_tokens=2))
    _, address, _ = shown.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        with api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            tab = browser.new_page()
            tab.goto(address)
            tab.get_by_label("Question").fill("What is 2 + 1?")
            tab.get_by_role("button", name="Ask both").click()
            known = tab.get_by_label("What the run knows of this problem")
            api.expect(known).to_have_value(re.compile("gold answer: 3"), timeout=60_000)
            assert "<b>So</b> 2 + 1 = 2." in known.input_value()
            assert tab.get_by_label("student").input_value()
            assert tab.locator("b", has_text="So").count() == 0
            browser.close()
    finally:
        shown.close()
