"""A student behind a server: asked by the pool's rules, resumed, and never half counted."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from compact_distill.cli import app
from compact_distill.errors import ConfigError, RunError
from compact_distill.evaluation.harness import Subject, evaluate_task
from compact_distill.evaluation.result_files import read_attempts, read_result
from compact_distill.evaluation.task import Task
from compact_distill.evaluation.task_rows import TaskRow, TaskRows
from compact_distill.evaluation.writers import ServedWriter
from teachers.server import Server, fails, says

SUBJECT = Subject("served", "m", "0")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Retries wait milliseconds instead of seconds."""
    monkeypatch.setattr("compact_distill.teachers.ask.FIRST_DELAY", 0.01)
    monkeypatch.setattr("compact_distill.teachers.ask._SPREAD", 0.0)


def rows_of(count: int, **settings) -> TaskRows:
    task = Task(name="sums", version=1, data={"path": "x"}, max_new_tokens=9, **settings)
    rows = [TaskRow(f"p{n}", f"{n} + 1?", f"{n} + 1?", str(n + 1), {}) for n in range(count)]
    return TaskRows(task, tuple(rows), 0, None)


def number_in(body) -> int:
    return int(body["messages"][0]["content"].split()[0])


def right(body, number):
    return says(f"The answer is {number_in(body) + 1}.", finish_reason="length" if number_in(body) == 1 else "stop")


def test_a_served_student_is_asked_every_row_with_its_decoding_and_seed(tmp_path):
    with Server(right) as server:
        rows = rows_of(3, samples=2, temperature=0.5, top_p=0.9)
        document = evaluate_task(ServedWriter("m", server.url), SUBJECT, rows, tmp_path)
        bodies = [seen.body for seen in server.seen]
    assert document["result"]["accuracy"] == 1
    assert document["result"]["truncated"] == 2
    assert document["student"]["base_url"] == server.url
    assert [a["completion_tokens"] for a in read_attempts(tmp_path / "sums.rows.jsonl")] == [7] * 6
    assert len({body["seed"] for body in bodies}) == 6
    for body in bodies:
        assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("m", 0.5, 0.9, 9)
        assert [message["role"] for message in body["messages"]] == ["user"]


def test_a_fault_is_asked_again_and_a_row_without_reply_makes_no_result(tmp_path):
    broken = True

    def behave(body, number):
        if number_in(body) == 2 and broken:
            return fails(400, "too long")
        return fails(500) if number == 0 else right(body, number)

    with Server(behave) as server:
        writer = ServedWriter("m", server.url)
        with pytest.raises(RunError, match=r"1 of 4 requests got no reply, .* too long.*asks for them again"):
            evaluate_task(writer, SUBJECT, rows_of(4), tmp_path)
        assert not (tmp_path / "sums.json").exists()
        broken, before = False, len(server.seen)
        document = evaluate_task(writer, SUBJECT, rows_of(4), tmp_path)
        assert [number_in(seen.body) for seen in server.seen[before:]] == [2]
    assert document["result"]["accuracy"] == 1


def test_a_key_that_the_server_echoes_is_in_no_reply(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-0123456789abcdefghij")

    def echo(body, number):
        return says(f"Your key is sk-secret-0123456789abcdefghij, nul \0. The answer is {number_in(body) + 1}.")

    with Server(echo) as server:
        evaluate_task(ServedWriter("m", server.url, "MY_KEY"), SUBJECT, rows_of(2), tmp_path)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"Your key is [MY_KEY], nul" in written
    assert b"sk-secret-01" not in written


def test_a_server_that_refuses_the_key_is_not_asked_for_every_row(tmp_path):
    with Server(lambda body, number: fails(401, "who are you?")) as server:
        with pytest.raises(RunError, match=r"200 of 200 requests got no reply, .*who are you"):
            evaluate_task(ServedWriter("m", server.url, concurrency=4), SUBJECT, rows_of(200), tmp_path)
        assert len(server.seen) < 20


def test_no_more_requests_than_allowed_are_in_flight(tmp_path):
    with Server(lambda body, number: says("The answer is 1.", delay=0.05)) as server:
        evaluate_task(ServedWriter("m", server.url, concurrency=2), SUBJECT, rows_of(8), tmp_path)
        at = sorted(seen.at for seen in server.seen)
    assert all(later - earlier > 0.03 for earlier, later in zip(at, at[2:], strict=False))


def test_wrong_addresses_and_missing_keys_are_told_before_any_work(monkeypatch):
    with pytest.raises(ConfigError, match="must start with http"):
        ServedWriter("m", "localhost:8000")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY must hold the key"):
        ServedWriter("m", "http://localhost:1/v1", "NO_SUCH_KEY")


def test_the_command_asks_a_server_and_keeps_the_key_out_of_files_and_output(tmp_path, monkeypatch):
    monkeypatch.setenv("SERVED_KEY", "sk-very-secret-1234")
    data = tmp_path / "sums.jsonl"
    data.write_text('{"id": "p0", "question": "0 + 1?", "answer": 1}\n')
    with Server(right) as server:
        arguments = ["eval", "org/m", "--base-url", server.url, "--api-key-env", "SERVED_KEY"]
        found = CliRunner().invoke(app, [*arguments, "--task", str(data), "--out", str(tmp_path / "out")])
        assert server.seen[0].headers["authorization"] == "Bearer sk-very-secret-1234"
    assert found.exit_code == 0, found.output
    assert "sums, org--m: 100.0 % correct" in found.stdout
    assert read_result(tmp_path / "out" / "org--m" / "sums.json")["student"]["backend"] == "openai"
    written = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any("very-secret" in text for text in [*written, found.output])


# ---- what was paid for


def bodies_asked(server, before: int) -> list[int]:
    return sorted(number_in(seen.body) for seen in server.seen[before:])


def test_fewer_rows_more_samples_and_the_old_limit_again_ask_only_for_what_was_never_asked(tmp_path):
    with Server(right) as server:
        writer = ServedWriter("m", server.url)
        evaluate_task(writer, SUBJECT, rows_of(5), tmp_path)
        evaluate_task(writer, SUBJECT, rows_of(3), tmp_path)
        assert len(server.seen) == 5, "a smaller limit asked again"
        evaluate_task(writer, SUBJECT, rows_of(7), tmp_path)
        assert bodies_asked(server, 5) == [5, 6]
        before = len(server.seen)
        evaluate_task(writer, SUBJECT, rows_of(5), tmp_path)
        assert bodies_asked(server, before) == []
    assert len(read_attempts(tmp_path / "sums.rows.jsonl")) == 5


def test_one_start_with_other_settings_does_not_throw_paid_replies_away(tmp_path):
    def limited(count: int, tokens: int) -> TaskRows:
        rows = rows_of(count)
        return TaskRows(rows.task.changed(max_new_tokens=tokens), rows.rows, 0, None)

    fail = True

    def behave(body, number):
        return fails(400, "no more") if fail and number_in(body) == 3 else right(body, number)

    with Server(behave) as server:
        writer = ServedWriter("m", server.url)
        with pytest.raises(RunError):  # three of four replies are there, no result yet
            evaluate_task(writer, SUBJECT, limited(4, 9), tmp_path)
        fail = False
        evaluate_task(writer, SUBJECT, limited(4, 20), tmp_path)
        before = len(server.seen)
        document = evaluate_task(writer, SUBJECT, limited(4, 9), tmp_path)
        assert bodies_asked(server, before) == [3]
        assert document["decoding"]["max_new_tokens"] == 9
        before = len(server.seen)
        evaluate_task(writer, SUBJECT, limited(4, 20), tmp_path)
        assert bodies_asked(server, before) == []


def test_a_reply_to_another_prompt_or_of_another_model_is_not_taken(tmp_path):
    with Server(right) as server:
        evaluate_task(ServedWriter("m", server.url), SUBJECT, rows_of(2), tmp_path)
        evaluate_task(ServedWriter("m2", server.url), Subject("served", "m2", "1"), rows_of(2), tmp_path)
        assert len(server.seen) == 4
        rows = [replace(row, prompt=f"{row.prompt} Think.") for row in rows_of(2).rows]
        evaluate_task(ServedWriter("m", server.url), SUBJECT, replace(rows_of(2), rows=tuple(rows)), tmp_path)
        assert len(server.seen) == 6


def test_a_damaged_row_is_asked_again_and_the_rest_is_kept(tmp_path, capsys):
    with Server(right) as server:
        writer = ServedWriter("m", server.url)
        first = evaluate_task(writer, SUBJECT, rows_of(4), tmp_path)
        path = tmp_path / "sums.rows.jsonl"
        path.write_text(path.read_text().replace("The answer is 3.", "The answer is 8."))
        again = evaluate_task(writer, SUBJECT, rows_of(4), tmp_path)
        assert bodies_asked(server, 4) == [2]
    assert again == first
    assert "rows_hash does not fit" in capsys.readouterr().err


def test_a_key_that_a_server_echoes_stays_out_of_the_files(tmp_path, monkeypatch):
    monkeypatch.setenv("SERVED_KEY", "sk-very-secret-1234")
    with Server(lambda body, number: says("The answer is sk-very-secret-1234.")) as server:
        evaluate_task(ServedWriter("m", server.url, "SERVED_KEY"), SUBJECT, rows_of(1), tmp_path)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "very-secret" not in written
    assert "[SERVED_KEY]" in written


@pytest.mark.parametrize(("reason", "cut"), [("stop", 0), ("length", 1), ("MAX_TOKENS", 1), ("model_length", 1)])
def test_a_text_that_did_not_end_by_itself_counts_as_cut(tmp_path, reason, cut):
    with Server(lambda body, number: says("The answer is 1.", finish_reason=reason)) as server:
        document = evaluate_task(ServedWriter("m", server.url), SUBJECT, rows_of(1), tmp_path)
    assert document["result"]["truncated"] == cut


def test_nothing_is_estimated_before_as_many_replies_are_there_as_were_under_way(tmp_path, monkeypatch):
    steps: list[int] = []

    class Shown:
        def advance(self, count: int = 1, note: str = "") -> None:
            steps.append(count)

    monkeypatch.setattr("compact_distill.evaluation.harness.progress", lambda *_: nullcontext(Shown()))
    with Server(right) as server:
        evaluate_task(ServedWriter("m", server.url, concurrency=4), SUBJECT, rows_of(7), tmp_path)
    assert (steps[0], sum(steps)) == (4, 7)
