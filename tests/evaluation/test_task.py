"""Definitions of tasks and their rows: what each benchmark asks, and what is wrong with a user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compact_distill.errors import CompactError, ConfigError, DataError
from compact_distill.evaluation.task import Task, load_task, load_tasks, task_names
from compact_distill.evaluation.task_rows import Training, read_task
from compact_distill.records import Problem
from compact_distill.runs.files import fingerprint

# A change of what is asked or how answers are read needs a new version, and a new line here.
PINNED = {
    "csqa": (2, "3c27b160"),
    "csqa_likelihood": (1, "ab7c1da3"),
    "gsm8k": (2, "f514c729"),
    "lab_arithmetic": (1, "edf26924"),
    "lab_facts": (1, "edfa8b26"),
    "lab_yes_no": (1, "f78721c4"),
    "math500": (2, "fcce67d9"),
    "strategyqa": (2, "2f34f687"),
    "strategyqa_likelihood": (1, "c473203b"),
    "svamp": (2, "2d4f584d"),
    "text_likelihood": (1, "e305608e"),
}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def row(number: int = 0, **fields) -> dict:
    return {"id": f"p{number}", "question": f"What is {number} + 1?", "answer": number + 1, **fields}


def test_every_definition_is_pinned_to_its_version():
    found = {}
    for name in task_names():
        task = load_task(f"{name}=FILE" if name == "text_likelihood" else name)
        found[name] = (task.version, fingerprint(task.definition())[:8])
    assert found == PINNED, "a changed definition needs a new version"


def test_the_prompt_of_csqa_shows_the_choices(tmp_path):
    data = write(tmp_path / "c.jsonl", [row(answer="B", choices={"A": "bank", "B": "library"})])
    found = read_task(load_task(f"csqa={data}")).rows[0]
    assert found.prompt == (
        "What is 0 + 1?\n(A) bank\n(B) library\n"
        'Reason step by step. Finish with a line that says "The answer is X.", '
        "where X is the letter of the best choice."
    )
    assert found.choices == {"A": "bank", "B": "library"}


# One row each, as the hub has them.
HUB_ROWS = {
    "gsm8k": {"question": "How many?", "answer": "16 - 7 = 9\n#### 1,800"},
    "svamp": {"ID": "chal-1", "Body": "Dan had $ 3 left ", "Question": "How much?", "Answer": "1.0"},
    "math500": {"problem": "What is $x$?", "answer": "\\frac{1}{2}", "solution": "...", "unique_id": "test/1.json"},
    "csqa": {
        "id": "1afa",
        "question": "Where?",
        "choices": {"label": ["A", "B"], "text": ["bank", "library"]},
        "answerKey": "B",
    },
    "strategyqa": {"qid": "872b", "question": "Is it?", "answer": False, "facts": []},
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gsm8k", ("gsm8k/0", "How many?", "1,800")),
        ("svamp", ("chal-1", "Dan had $ 3 left How much?", "1.0")),
        ("math500", ("test/1.json", "What is $x$?", "\\frac{1}{2}")),
        ("csqa", ("1afa", "Where?", "B")),
        ("strategyqa", ("872b", "Is it?", "no")),
    ],
)
def test_rows_of_the_hub_become_rows_of_the_task(tmp_path, name, expected):
    task = load_task(name)
    data = task.data.model_copy(update={"path": write(tmp_path / "hub.jsonl", [HUB_ROWS[name]])})
    found = read_task(task.model_copy(update={"data": data})).rows[0]
    assert (found.id, found.question, found.gold) == expected
    assert expected[1] in found.prompt


def test_a_benchmark_is_asked_of_the_hub_by_name_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(path, configuration, split):
        asked.append((path, configuration, split))
        return [HUB_ROWS["gsm8k" if "gsm8k" in path else "svamp"]]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert read_task(load_task("gsm8k")).rows[0].gold == "1,800"
    assert read_task(load_task("svamp")).rows[0].id == "chal-1"
    assert asked == [("openai/gsm8k", "main", "test"), ("ChilleD/SVAMP", None, "train+test")]


@pytest.mark.parametrize(
    ("name", "file", "rows"),
    [
        ("gsm8k", "gsm8k_test.jsonl", 1319),
        ("svamp", "svamp.jsonl", 1000),
        ("math500", "math500.jsonl", 500),
        ("csqa", "csqa_dev.jsonl", 1221),
        ("strategyqa", "strategyqa.jsonl", 2290),
    ],
)
def test_the_real_benchmarks_are_read_whole(data_folder, name, file, rows):
    found = read_task(load_task(f"{name}={data_folder / file}"))
    assert len(found.rows) == rows
    assert len({r.id for r in found.rows}) == rows


def test_rows_that_the_student_was_trained_on_are_left_out_and_counted(data_folder):
    from compact_distill.data import load_instances

    trained = load_instances(data_folder / "gsm8k_four_teachers.jsonl")
    found = read_task(load_task(f"gsm8k={data_folder / 'gsm8k_test.jsonl'}"), limit=100, training=Training(trained))
    assert len(found.rows) == 100
    assert found.seen_in_training == 1000
    assert not {r.id for r in found.rows} & {instance.id for instance in trained}


def test_a_question_seen_under_another_id_counts_as_seen(tmp_path):
    task = load_task(write(tmp_path / "mine.jsonl", [row(0), row(1), row(2)]))
    training = Training([Problem("other", "What  is 1 + 1?\n", "2")])
    assert [r.id for r in read_task(task, training=training).rows] == ["p0", "p2"]
    with pytest.raises(DataError, match="was trained on all 3 rows"):
        read_task(task, training=Training([Problem(f"p{n}", "", "") for n in range(3)]))


def test_the_lab_examines_on_problems_that_no_teacher_sees():
    from compact_distill.lab.world import arithmetic

    rows = read_task(load_task("lab_arithmetic"), limit=50).rows
    assert len(rows) == 50
    trained = {problem.question for problem in arithmetic("train", 300, seed=0)}
    assert not trained & {r.question for r in rows}
    assert read_task(load_task("lab_facts")).rows[0].prompt == "what color has frog ?"
    assert {r.gold for r in read_task(load_task("lab_yes_no")).rows} == {"yes", "no"}


def test_a_file_of_problems_is_a_task_without_any_code(tmp_path):
    task = load_task(write(tmp_path / "my problems.jsonl", [row(4)]))
    found = read_task(task)
    assert task.name == "my_problems"
    assert (found.rows[0].prompt, found.rows[0].gold) == ("What is 4 + 1?", "5")


def test_a_yaml_file_is_a_task_of_ones_own(tmp_path):
    data = write(tmp_path / "d.jsonl", [{"nr": 7, "text": "2 + 2", "solution": {"value": 4}}])
    path = tmp_path / "sums.yaml"
    path.write_text(
        f"name: sums\nversion: 3\ndata: {{path: {data}, fields: {{id: 'n{{{{ nr }}}}', question: '{{{{ text }}}}', "
        "answer: '{{ solution.value }}'}}\nprompt: 'Compute {{ question }}!'\nsamples: 4\ntemperature: 0.7\n"
    )
    task = load_task(str(path))
    assert (task.version, task.samples, task.temperature) == (3, 4, 0.7)
    found = read_task(task).rows[0]
    assert (found.id, found.prompt, found.gold) == ("n7", "Compute 2 + 2!", "4")


def test_the_limit_takes_the_first_rows_but_checks_all(tmp_path):
    path = tmp_path / "mine.jsonl"
    task = load_task(write(path, [row(n) for n in range(5)]))
    assert [r.id for r in read_task(task, limit=2).rows] == ["p0", "p1"]
    write(path, [row(0), row(1), {"id": "p2", "question": "What?"}])
    with pytest.raises(DataError, match="line 3: answer must be the gold answer"):
        read_task(task, limit=2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "a", "question": "What?"}, "answer must be the gold answer as text or a number, but it is not there"),
        ({"id": "a", "question": "What?", "answer": None}, "answer must be the gold answer"),
        ({"id": "a", "question": "What?", "answer": "**"}, "gold answer must not be empty"),
        ({"question": "What?", "answer": "3"}, "id must be text or a whole number"),
        (row(0), "id 'p0' stands already in line 1"),
        ({**row(1), "choices": {"A": "x"}}, "answer must be one of the choices' labels A, got '2'"),
        ({**row(1), "choices": ["x", "y"]}, "choices must be an object"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, bad, message):
    task = load_task(write(tmp_path / "mine.jsonl", [row(0), bad]))
    with pytest.raises(DataError) as error:
        read_task(task)
    assert message in str(error.value)
    assert "line 2" in str(error.value)


def test_empty_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no rows"):
        read_task(load_task(write(tmp_path / "mine.jsonl", [])))


def test_a_prompt_that_names_a_missing_field_tells_the_row(tmp_path):
    task = Task(name="t", version=1, data={"path": write(tmp_path / "t.jsonl", [row(0)])}, prompt="{{ hint }}")
    with pytest.raises(DataError, match=r"line 1: template .* 'hint' is undefined"):
        read_task(task)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm9k", "did you mean 'gsm8k'"),
        ("gsm8k=", "names no data after '='"),
        ("nothing.yaml", "cannot be read"),
    ],
)
def test_an_unknown_task_is_refused_with_the_nearest_name(name, message):
    with pytest.raises(ConfigError, match=message):
        load_task(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a/b\nversion: 1\ndata: {lab: facts}\n", "name"),
        ("name: a\nversion: 1\ndata: {}\n", "needs `path`"),
        ("name: a\nversion: 1\ndata: {lab: facts}\nprompt: '{{ question'\n", "must be a Jinja template"),
        ("name: a\nversion: 1\ndata: {lab: facts}\nsamples: 4\n", "with temperature 0 all are the same"),
        ("name: a\nversion: 1\ndata: {lab: facts}\nparser: [gut]\n", "parser"),
        ("name: a\nversion: 1\ndata: {lab: facts}\ndecodings: 1\n", "decodings"),
        ("name: a\nname: b\nversion: 1\ndata: {lab: facts}\n", "line 2"),
    ],
)
def test_a_wrong_definition_is_refused(tmp_path, text, message):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(CompactError, match=message):
        load_task(str(path))


def test_everything_wrong_with_several_tasks_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_tasks(["gsm8k", "gsm9k", f"gsm8k={tmp_path}/x.jsonl", "csqb"])
    assert len(error.value.problems) == 3


def test_a_template_cannot_leave_its_sandbox(tmp_path):
    task = Task(
        name="t",
        version=1,
        data={"path": write(tmp_path / "t.jsonl", [row(0)])},
        prompt="{{ question.__class__.__mro__[1].__subclasses__() }}",
    )
    with pytest.raises(DataError, match="unsafe"):
        read_task(task)


def test_other_decoding_keeps_the_rest_and_is_checked():
    task = load_task("gsm8k").changed(samples=4, temperature=0.8, max_new_tokens=None)
    assert (task.samples, task.temperature, task.max_new_tokens) == (4, 0.8, 1024)
    with pytest.raises(ConfigError, match="temperature 0"):
        load_task("gsm8k").changed(samples=4)
