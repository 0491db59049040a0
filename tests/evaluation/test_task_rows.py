"""Rows of a task: read, checked, limited, and those left out that the student was trained on."""

from __future__ import annotations

import pytest

from compact_distill.errors import DataError
from compact_distill.evaluation.task import Task, load_task
from compact_distill.evaluation.task_rows import Training, read_task
from compact_distill.records import Problem
from evaluation.task_files import row, write

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


def test_an_id_that_is_a_number_alone_says_nothing_about_rows_of_other_files(tmp_path):
    rows = [{"id": n, "question": f"What is {n} + 1?", "answer": n + 1} for n in range(3)]
    training = Training([Problem("0", "Who?", "2"), Problem("1", "Where?", "2"), Problem("9", "What is 2 + 1?", "3")])
    found = read_task(load_task(write(tmp_path / "mine.jsonl", rows)), training=training)
    assert [r.id for r in found.rows] == ["0", "1"]
    assert found.seen_in_training == 1  # by its question


def test_the_lab_examines_on_problems_that_no_teacher_sees():
    from compact_distill.lab import arithmetic

    rows = read_task(load_task("lab_arithmetic"), limit=50).rows
    assert len(rows) == 50
    trained = {problem.question for problem in arithmetic("train", 300, seed=0)}
    assert not trained & {r.question for r in rows}
    assert read_task(load_task("lab_facts")).rows[0].prompt == "what color has frog ?"
    assert {r.gold for r in read_task(load_task("lab_yes_no")).rows} == {"yes", "no"}


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
        ({"id": "a", "question": "What?", "answer": "**"}, "answer must be more than the marks"),
        ({"question": "What?", "answer": "3"}, "id must be text or a whole number"),
        (row(0), "id 'p0' stands already in line 1"),
        ({**row(1), "choices": {"A": "x"}}, "answer must be one of the choices' labels A, got '2'"),
        ({**row(1), "choices": ["x", "y"]}, "choices must be an object"),
        ({**row(1), "choices": {"label": ["1", "2", "3"], "text": ["x", "y"]}}, "each label once and with its text"),
        ({**row(1), "choices": {"label": ["1", "2", "2"], "text": ["x", "y", "z"]}}, "each label once"),
        ({**row(1), "choices": {"label": ["1", "2"], "text": "xy"}}, "each label once and with its text"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, bad, message):
    task = load_task(write(tmp_path / "mine.jsonl", [row(0), bad]))
    with pytest.raises(DataError) as error:
        read_task(task)
    assert message in str(error.value)
    assert "line 2" in str(error.value)


def test_the_hash_sees_choices_that_the_prompt_does_not_show(tmp_path):
    rows = [{**row(0), "answer": "A", "choices": {"A": "bank", "B": text}} for text in ("pub", "library")]
    one, other = (read_task(load_task(write(tmp_path / "mine.jsonl", [fields]))) for fields in rows)
    assert one.rows[0].prompt == other.rows[0].prompt
    assert one.hash != other.hash  # whether "pub" is an answer depends on them


def test_empty_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no rows"):
        read_task(load_task(write(tmp_path / "mine.jsonl", [])))


def test_a_prompt_that_names_a_missing_field_tells_the_row(tmp_path):
    task = Task(name="t", version=1, data={"path": write(tmp_path / "t.jsonl", [row(0)])}, prompt="{{ hint }}")
    with pytest.raises(DataError, match=r"line 1: template .* 'hint' is undefined"):
        read_task(task)


def test_a_benchmark_is_asked_of_the_hub_by_name_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(path, configuration, split):
        asked.append((path, configuration, split))
        return [HUB_ROWS["gsm8k" if "gsm8k" in path else "svamp"]]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert read_task(load_task("gsm8k")).rows[0].gold == "1,800"
    assert read_task(load_task("svamp")).rows[0].id == "chal-1"
    assert asked == [("openai/gsm8k", "main", "test"), ("ChilleD/SVAMP", None, "train+test")]
