"""One task, one student: every row asked once, every reply kept, what is counted, and what a crash costs."""

from __future__ import annotations

import json
import math

import pytest
import torch

from compact_distill.config.models import TextConfig
from compact_distill.errors import InputError, RunError, StudentError
from compact_distill.evaluation.harness import Subject, describe, evaluate_task
from compact_distill.evaluation.result_files import read_attempts, read_result
from compact_distill.evaluation.task import Task
from compact_distill.evaluation.task_rows import TaskRow, TaskRows
from compact_distill.evaluation.writers import Reply, StudentWriter
from compact_distill.statistics import wilson
from compact_distill.students.generate import Generator
from models import byte_level_tokenizer, tiny_model

BASE = Subject("base", "tiny", "0" * 8, 0, 0.0)


class Script:
    """A writer that says what it was told to; `fail_after` requests it breaks off."""

    def __init__(self, replies: list[str | Reply], fail_after: int | None = None) -> None:
        self.replies, self.fail_after = replies, fail_after
        self.asked: list[int] = []

    at_once = 1
    independent = False

    def settings(self):
        return {"backend": "script"}

    def decoding(self, decoding):
        return decoding

    def write(self, requests, decoding, done):
        for index in reversed(range(len(requests))):
            if index in done:
                continue
            if self.fail_after is not None and len(self.asked) == self.fail_after:
                raise RunError("the machine stopped")
            self.asked.append(index)
            reply = self.replies[index]
            yield [(index, reply if isinstance(reply, Reply) else Reply(reply, True, 5, len(reply)))]


def rows_of(count: int, task: Task | None = None) -> TaskRows:
    task = task or Task(name="sums", version=1, data={"path": "sums.jsonl"}, parser=("statement", "last_number"))
    rows = [TaskRow(f"p{n}", f"What is {n} + 1?", f"What is {n} + 1?", str(n + 1), {}) for n in range(count)]
    return TaskRows(task, tuple(rows), 0, None)


def right(n: int) -> str:
    return f"The answer is {n + 1}."


def test_verdicts_parse_failures_and_truncations_are_counted_beside_the_accuracy(tmp_path):
    replies = [
        right(0),
        "That makes 2",  # right, found by the second finder
        "The answer is 7.",
        "I cannot tell",
        Reply("The answer is 5. But", False, 5, 9),  # right, and cut
        Reply("2 and 3 and 6", False, 5, 9),  # cut before an answer: its last number is none
    ]
    document = evaluate_task(Script(replies), BASE, rows_of(6), tmp_path / "base", role="learned")
    assert document["result"] == {
        "rows": 6,
        "samples": 1,
        "attempts": 6,
        "metric": "accuracy",
        "metrics": {"accuracy": {"value": 0.5, "low": wilson(0.5, 6).low, "high": wilson(0.5, 6).high}},
        "accuracy": 0.5,
        "low": wilson(0.5, 6).low,
        "high": wilson(0.5, 6).high,
        "verdicts": {"correct": 3, "wrong": 1, "unparsed": 2, "timed_out": 0},
        "truncated": 2,
        "parsed_by": {"statement": 3, "last_number": 1},
        "completion_tokens": sum(len(r) for r in replies if isinstance(r, str)) + 18,
    }
    assert describe(document) == ("sums, base: 50.0 % correct (18.8 to 81.2) of 6 rows, 2 unparsed, 2 truncated")
    rows = read_attempts(tmp_path / "base" / "sums.rows.jsonl")
    assert [r["id"] for r in rows] == [f"p{n}" for n in range(6)]
    assert [r["verdict"] for r in rows] == ["correct", "correct", "wrong", "unparsed", "correct", "unparsed"]
    assert [r["parsed_by"] for r in rows] == ["statement", "last_number", "statement", None, "statement", None]
    assert read_result(tmp_path / "base" / "sums.json") == document


def test_all_that_decides_a_result_is_pinned_in_it(tmp_path):
    task = Task(name="sums", version=3, data={"path": "sums.jsonl"}, prompt="{{ question }} Think.", max_new_tokens=9)
    document = evaluate_task(Script([right(0)]), BASE, rows_of(1, task), tmp_path, seed=5)
    assert document["task"] == {
        "kind": "generate",
        "name": "sums",
        "version": 3,
        "prompt": "{{ question }} Think.",
        "parser": ["statement"],
    }
    assert document["student"] == {
        "label": "base",
        "name": "tiny",
        "hash": "0" * 8,
        "step": 0,
        "epoch": 0.0,
        "backend": "script",
    }
    assert document["decoding"] == {
        "max_new_tokens": 9,
        "temperature": 0.0,
        "top_p": 1.0,
        "stop": [],
        "samples": 1,
        "seed": 5,
    }
    assert document["data"]["source"] == "sums.jsonl"
    assert {"torch", "transformers", "compact-distill"} <= set(document["versions"])


def test_the_mean_over_samples_is_pass_at_1(tmp_path):
    task = Task(name="sums", version=1, data={"path": "x"}, samples=2, temperature=1.0)
    replies = [right(0), "no", right(1), right(1), "no", "no"]  # shares 1/2, 1, 0
    document = evaluate_task(Script(replies), BASE, rows_of(3, task), tmp_path)
    assert document["result"]["accuracy"] == 0.5
    assert document["result"]["attempts"] == 6
    assert [(r["id"], r["sample"]) for r in read_attempts(tmp_path / "sums.rows.jsonl")] == [
        (f"p{n}", s) for n in range(3) for s in range(2)
    ]


def test_what_was_done_is_not_done_again(tmp_path):
    first = evaluate_task(Script([right(n) for n in range(3)]), BASE, rows_of(3), tmp_path)
    again = Script([right(n) for n in range(3)])
    assert evaluate_task(again, BASE, rows_of(3), tmp_path) == first
    assert again.asked == []


@pytest.mark.parametrize("change", ["student", "rows", "seed", "version", "rows_file"])
def test_what_changed_is_done_again(tmp_path, change):
    task = Task(name="sums", version=1, data={"path": "x"}, temperature=0.5)
    evaluate_task(Script([right(n) for n in range(3)]), BASE, rows_of(3, task), tmp_path)
    subject, rows, seed = BASE, rows_of(3, task), 42
    if change == "student":
        subject = Subject("base", "tiny", "1" * 8)
    elif change == "rows":
        rows = rows_of(2, task)
    elif change == "seed":
        seed = 43
    elif change == "version":
        rows = rows_of(3, rows.task.changed(version=2))
    else:
        (tmp_path / "sums.rows.jsonl").write_text("{}\n")
    again = Script([right(n) for n in range(3)])
    evaluate_task(again, subject, rows, tmp_path, seed=seed)
    assert len(again.asked) == len(rows.rows)


def test_another_seed_asks_nobody_again_where_nothing_is_drawn(tmp_path):
    first = evaluate_task(Script([right(n) for n in range(3)]), BASE, rows_of(3), tmp_path, seed=1)
    again = Script([right(n) for n in range(3)])
    assert evaluate_task(again, BASE, rows_of(3), tmp_path, seed=2)["result"] == first["result"]
    assert again.asked == []


def test_a_role_that_changed_is_noted_without_asking_again(tmp_path):
    evaluate_task(Script([right(0)]), BASE, rows_of(1), tmp_path, role="learned")
    again = Script([])
    assert evaluate_task(again, BASE, rows_of(1), tmp_path, role="retained")["role"] == "retained"
    assert read_result(tmp_path / "sums.json")["role"] == "retained"


def test_a_stopped_evaluation_goes_on_and_ends_in_the_same_bytes(tmp_path):
    replies = [right(n) for n in range(5)]
    evaluate_task(Script(replies), BASE, rows_of(5), tmp_path / "whole")
    with pytest.raises(RunError, match="the machine stopped"):
        evaluate_task(Script(replies, fail_after=2), BASE, rows_of(5), tmp_path / "stopped")
    partial = tmp_path / "stopped" / "sums.partial.jsonl"
    with partial.open("a") as file:
        file.write('{"request": 0, "text": "torn by a cra')
    assert not (tmp_path / "stopped" / "sums.json").exists()
    with pytest.raises(RunError):
        evaluate_task(Script(replies, fail_after=1), BASE, rows_of(5), tmp_path / "stopped")
    rest = Script(replies)
    evaluate_task(rest, BASE, rows_of(5), tmp_path / "stopped")
    assert sorted(rest.asked) == [0, 1]
    for name in ("sums.json", "sums.rows.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not partial.exists()


def test_replies_to_other_settings_are_not_taken(tmp_path):
    task = Task(name="sums", version=1, data={"path": "x"}, temperature=0.5)
    with pytest.raises(RunError):
        evaluate_task(Script(["old"] * 3, fail_after=2), BASE, rows_of(3, task), tmp_path, seed=1)
    rest = Script([right(n) for n in range(3)])
    assert evaluate_task(rest, BASE, rows_of(3, task), tmp_path, seed=2)["result"]["accuracy"] == 1
    assert len(rest.asked) == 3


def test_rows_without_reply_make_no_result(tmp_path):
    class Deaf(Script):
        def write(self, requests, decoding, done):
            yield [(0, Reply(right(0), True, 1, 1))]

    with pytest.raises(RunError, match="2 of 3 rows got no reply; the same command asks for them again"):
        evaluate_task(Deaf([]), BASE, rows_of(3), tmp_path)
    assert not (tmp_path / "sums.json").exists()


def test_text_of_a_model_cannot_break_the_files(tmp_path):
    hostile = 'The answer is 1.\u2028{"id": "p9"}\n</script>\x00\ud800'
    evaluate_task(Script([hostile]), BASE, rows_of(1), tmp_path)
    rows = read_attempts(tmp_path / "sums.rows.jsonl")
    assert len(rows) == 1
    assert rows[0]["text"] == hostile


# ---- the student in this process


@pytest.fixture(scope="module")
def tiny():
    return tiny_model("llama", max_position_embeddings=200), byte_level_tokenizer()


def test_the_student_writes_what_its_generator_writes(tmp_path, tiny):
    model, tokenizer = tiny
    task = Task(name="sums", version=1, data={"path": "x"}, max_new_tokens=6)
    rows = rows_of(4, task)
    writer = StudentWriter(model, tokenizer, batch_tokens=150)
    document = evaluate_task(writer, BASE, rows, tmp_path)
    assert document["decoding"]["stop"] == ["\nQuestion:"]
    assert document["student"]["prompt_template"] == TextConfig().prompt_template
    for attempt in read_attempts(tmp_path / "sums.rows.jsonl"):
        prompt = tokenizer(f"Question: {attempt['question']}\nAnswer:")["input_ids"]
        alone = Generator(model, tokenizer, writer.decoding(document_decoding(document)))([prompt])[0]
        assert (attempt["text"], attempt["completion_tokens"]) == (alone.text, alone.tokens)
        assert attempt["prompt_tokens"] == len(prompt)


def document_decoding(document):
    from compact_distill.students.generate import Decoding

    pinned = document["decoding"]
    return Decoding(pinned["max_new_tokens"], pinned["temperature"], pinned["top_p"])


def test_two_evaluations_of_one_seed_are_the_same_bytes_and_another_seed_samples_others(tmp_path, tiny):
    task = Task(name="sums", version=1, data={"path": "x"}, max_new_tokens=6, samples=3, temperature=1.0)
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        evaluate_task(StudentWriter(*tiny), BASE, rows_of(3, task), tmp_path / name, seed=seed)
    files = [(tmp_path / name / "sums.rows.jsonl").read_bytes() for name in ("one", "two", "three")]
    assert files[0] == files[1]
    assert files[0] != files[2]
    assert (tmp_path / "one" / "sums.json").read_bytes() == (tmp_path / "two" / "sums.json").read_bytes()
    texts = [json.loads(line)["text"] for line in files[0].splitlines()]
    assert len(set(texts[:3])) > 1, "the samples of a row are all the same"


def test_a_batch_that_was_cut_off_is_written_again_whole(tiny, monkeypatch):
    task = Task(name="sums", version=1, data={"path": "x"}, max_new_tokens=4)
    from compact_distill.evaluation.harness import to_attempts
    from compact_distill.students.generate import Decoding

    requests = to_attempts(rows_of(4, task).rows, task, 42)
    writer = StudentWriter(*tiny, batch_tokens=2 * (4 + 20))
    batches = [index for replies in writer.write(requests, Decoding(4), set()) for index, _ in replies]

    def indices(done: set[int]) -> list[int]:
        return [index for replies in writer.write(requests, Decoding(4), done) for index, _ in replies]

    assert indices(set(batches[:2])) == batches[2:]
    written: list[int] = []
    write = Generator.__call__
    monkeypatch.setattr(Generator, "__call__", lambda self, p, s=None: written.append(len(p)) or write(self, p, s))
    assert indices(set(batches[:3])) == batches[3:]
    assert written == [2], "the third prompt's neighbour was not written beside it"


def test_prompts_that_do_not_fit_the_student_are_named_before_any_work(tmp_path, tiny):
    rows = rows_of(2, Task(name="sums", version=1, data={"path": "x"}, max_new_tokens=190))
    with pytest.raises(InputError) as error:
        evaluate_task(StudentWriter(*tiny), BASE, rows, tmp_path)
    assert len(error.value.problems) == 2
    assert "do not fit in the student's 200; lower max_new_tokens" in error.value.problems[0]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_student_that_yields_no_numbers_is_an_error_and_no_0_percent(tmp_path, temperature):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = math.nan
    task = Task(name="sums", version=1, data={"path": "x"}, max_new_tokens=4, temperature=temperature)
    with pytest.raises(StudentError, match="must be numbers, but some are not"):
        evaluate_task(StudentWriter(model, byte_level_tokenizer()), BASE, rows_of(2, task), tmp_path)
    assert not (tmp_path / "sums.json").exists()
