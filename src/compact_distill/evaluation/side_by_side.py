"""Base and student answer the same questions: `compact try`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compact_distill.config.file import load_config
from compact_distill.errors import InputError, RunError
from compact_distill.evaluation.writers import Attempt, StudentWriter
from compact_distill.report.drawing import clean
from compact_distill.report.read import RunData, UsedProblem, read_run
from compact_distill.runs.environment import accelerator
from compact_distill.students.generate import Decoding
from compact_distill.students.identity import pin_student
from compact_distill.students.load import adapter_base, load_student


@dataclass(frozen=True, slots=True)
class TeacherText:
    """What a teacher wrote for a known problem, its verdict, and its mean weight in the last epoch (None: no part)."""

    teacher: str
    text: str
    verdict: str | None
    weight: float | None


@dataclass(frozen=True, slots=True)
class SideBySide:
    """One question with both answers; `gold` and `teachers` only where the run knows the problem."""

    question: str
    base: str
    student: str
    gold: str | None = None
    teachers: tuple[TeacherText, ...] = ()


class Trial:
    """A run's base and student, loaded once, to be asked as often as one likes. Greedy decoding.

    ```python
    from compact_distill import Trial

    (answers,) = Trial("runs/compact", max_new_tokens=8).ask(["Ann has 7 apples and buys 5 more. How many?"])
    print(answers.base, answers.student, answers.gold, sep="\\n")  # gold: None where the run does not know it
    ```

    Args:
        run: a run folder whose training has finished.
        max_new_tokens: most tokens of an answer.

    Raises:
        InputError: no run folder.
        RunError: no trained student yet.
        StudentError: base or student cannot be loaded.
    """

    def __init__(self, run: str | Path, max_new_tokens: int = 256) -> None:
        self._run = read_run(run)
        config = load_config(Path(run) / "config.yaml", {"output": str(run)})
        pin_student(config)
        folder = Path(run) / "student"
        if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
            raise RunError(f"{run} holds no trained student yet; finish the training with `compact run`")
        self._decoding = Decoding(max_new_tokens)
        self._by_question = {problem.question.strip(): problem for problem in self._run.problems.values()}
        student, tokenizer = load_student(folder, device=accelerator())
        student.eval()
        self._student = StudentWriter(student, tokenizer, config.text)
        # A new adapter leaves its base as it was: one model in memory serves as both.
        self._adapted: Any = student if adapter_base(folder) and not adapter_base(config.student) else None
        self._base = self._student
        if self._adapted is None:
            base, its_tokenizer = load_student(config.student, device=accelerator())
            base.eval()
            self._base = StudentWriter(base, its_tokenizer, config.text)

    def questions(self, count: int) -> list[str]:
        """Some of the questions that the student was trained on, evenly spread."""
        known = list(self._by_question)
        return known[:: max(1, len(known) // count)][:count] if count else []

    def ask(self, questions: Sequence[str]) -> Iterator[SideBySide]:
        """Both answers to each question, one after the other."""
        for question in questions:
            if self._adapted is None:
                base = self._write(self._base, question)
            else:
                with self._adapted.disable_adapter():
                    base = self._write(self._base, question)
            student = self._write(self._student, question)
            problem = self._by_question.get(question.strip())
            gold = problem.answer if problem else None
            yield SideBySide(question, base, student, gold, _teachers(self._run, problem) if problem else ())

    def _write(self, writer: StudentWriter, question: str) -> str:
        decoding = writer.decoding(self._decoding)
        (((_, reply),),) = writer.write([Attempt("question", 0, question, 0)], decoding, set())
        return reply.text.strip() + ("" if reply.finished else " [cut]")


def _teachers(run: RunData, problem: UsedProblem) -> tuple[TeacherText, ...]:
    weights = _last_weights(run, problem.id)
    texts = [
        TeacherText(name, rationale.text, rationale.verdict, weights.get(name))
        for name, rationale in problem.rationales.items()
    ]
    return tuple(sorted(texts, key=lambda text: -(text.weight or 0.0)))


def _last_weights(run: RunData, problem: str) -> dict[str, float]:
    if run.trace is None or problem not in run.trace.ids:
        return {}
    readings = np.flatnonzero(run.trace.problem_N == run.trace.ids.index(problem))
    last_K = run.trace.weights_NK[readings[-1]]
    return {
        name: float(weight) for name, weight in zip(run.trace.teachers, last_K, strict=True) if not np.isnan(weight)
    }


def _gradio() -> Any:
    try:
        import gradio
    except ImportError:
        raise InputError("--serve needs gradio; run `pip install 'compact-distill[serve]'`") from None
    return gradio


def page(trial: Trial) -> Any:
    """The trial as a gradio page. All that models wrote stands in text boxes, which show it as plain text.

    Raises:
        InputError: gradio is not installed.
    """
    gradio = _gradio()

    def answer(question: str) -> tuple[str, str, str]:
        (found,) = trial.ask([question])
        return clean(found.base), clean(found.student), clean("\n\n".join(known(found)))

    with gradio.Blocks(analytics_enabled=False, title="compact try") as shown:
        question = gradio.Textbox(label="Question", lines=3, autofocus=True)
        asked = gradio.Button("Ask both")
        with gradio.Row():
            base, student = (gradio.Textbox(label=name, lines=12, interactive=False) for name in ("base", "student"))
        teachers = gradio.Textbox(label="What the run knows of this problem", lines=4, interactive=False)
        gradio.Examples(trial.questions(5), question)
        asked.click(answer, question, [base, student, teachers], api_visibility="private")
    return shown


def serve(run: str | Path, max_new_tokens: int = 256) -> None:
    """Show the page of a run's trial to this machine alone, until Ctrl-C, at the first free port from 7860 on.

    Raises:
        InputError: gradio is not installed; before any model is loaded.
    """
    # System fonts: the theme's own would be asked of another host.
    theme = _gradio().themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page(Trial(run, max_new_tokens)).launch(server_name="127.0.0.1", share=False, theme=theme, footer_links=[])


def known(answers: SideBySide) -> Iterator[str]:
    """What the run knows of the problem: its gold answer, and what each teacher wrote, with weight and verdict."""
    if answers.gold is not None:
        yield f"gold answer: {answers.gold}"
    for told in answers.teachers:
        weight = "took no part" if told.weight is None else f"weight {told.weight:.2f}"
        yield f"{told.teacher} ({weight}{f', {told.verdict}' if told.verdict else ''}): {told.text}"
