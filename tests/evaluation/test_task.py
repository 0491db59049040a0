"""Definitions of tasks and their rows: what each benchmark asks, and what is wrong with a user's own."""

from __future__ import annotations

import time

import pytest

from compact_distill.errors import CompactError, ConfigError, DataError
from compact_distill.evaluation.task import Task, load_task, load_tasks, task_names
from compact_distill.evaluation.task_rows import read_task
from compact_distill.runs.files import fingerprint
from evaluation.task_files import row, write

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


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("where", ["prompt", "fields"])
def test_a_template_that_never_ends_is_killed_and_told_for_each_row(tmp_path, monkeypatch, where):
    monkeypatch.setattr("compact_distill.students.prompt._SECONDS", 2.0)
    endless = f"{ENDLESS}{{{{ question }}}} {where}"
    given = {"path": write(tmp_path / "t.jsonl", [row(0), row(1)])}
    given |= {"fields": {"question": endless}} if where == "fields" else {}
    task = Task(name="t", version=1, data=given, **({"prompt": endless} if where == "prompt" else {}))
    started = time.monotonic()
    with pytest.raises(DataError, match=r"line 1: template .* must end within 20 seconds[\s\S]*line 2: template"):
        read_task(task)
    assert time.monotonic() - started < 30


def test_only_a_template_that_does_more_than_put_values_in_is_tried_apart(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr("compact_distill.evaluation.task.ends_in_time", lambda *asked: tried.append(asked) or True)
    data = {"path": write(tmp_path / "t.jsonl", [row(0), row(1)])}
    for number, prompt in enumerate(
        ("{{ question }} { % {x}", "{{ question | upper }} once", "{% if 1 %}b{% endif %}")
    ):
        read_task(Task(name="t", version=1, data=data, prompt=prompt))
        assert len(tried) == number  # once each, whatever the rows
