"""Bad data: everything wrong is told at once, with its line, before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compact_distill.data import load_instances, load_problems
from compact_distill.errors import DataError

GOOD: dict[str, Any] = {
    "id": "a",
    "question": "How many?",
    "answer": "18",
    "rationales": [{"teacher": "t", "text": "A: 18"}],
}


def messages(path: Path, **options: Any) -> list[str]:
    """What is wrong with training data, without the file's name."""
    with pytest.raises(DataError) as caught:
        load_instances(path, **options)
    return [message.removeprefix(f"{path}, ") for message in caught.value.problems]


def write(path: Path, *lines: object) -> Path:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "line 1: id must be text or a whole number, got ''; write the problem's id"),
        ({"id": None}, "line 1: id must be text or a whole number, got None; write the problem's id"),
        ({"id": True}, "line 1: id must be text or a whole number, got True; write the problem's id"),
        ({"question": " \n"}, "line 1: question must be text, got ' \\n'; write the question"),
        ({"question": 5}, "line 1: question must be text, got 5; write the question"),
        (
            {"answer": None},
            "line 1: answer must be the gold answer as text or a number, got None; write it or remove the row",
        ),
        (
            {"answer": True},
            "line 1: answer must be the gold answer as text or a number, got True; write it or remove the row",
        ),
        (
            {"answer": "*"},
            "line 1: answer must be more than the marks around an answer, got '*'; write it in words",
        ),
        (
            {"answer": "8\n#### **"},
            "line 1: answer must be more than the marks around an answer, got '8\\n#### **'; write it in words",
        ),
        ({"rationales": []}, "line 1: has no rationale at all; write at least one or remove the row"),
        (
            {
                "rationales": [
                    {"teacher": "t", "text": "A: 18", "status": "OK"},
                    {"teacher": "u", "text": "A", "status": "done"},
                ]
            },
            "line 1: has no rationale at all (status 'OK', 'done', and only 'ok' takes part); write at least one or "
            "remove the row",
        ),
        (
            {"rationales": [{"teacher": "t", "text": None}, {"teacher": "u", "text": " "}]},
            "line 1: has no rationale at all; write at least one or remove the row",
        ),
        (
            {"rationales": "A: 18"},
            "line 1: rationales must be a list of objects with teacher and text, got 'A: 18'; write such a list",
        ),
        (
            {"rationales": ["A: 18"]},
            "line 1, rationale 1: must be an object with teacher and text, got 'A: 18'; write such an object",
        ),
        (
            {"rationales": [{"text": "A: 18"}]},
            "line 1, rationale 1: teacher must be text, but it is not there, only text; write the teacher's name",
        ),
        (
            {"rationales": [{"teacher": "t", "txt": "A: 18"}]},
            "line 1, rationale 1: text must be text, but it is not there, only teacher, txt; write null where "
            "the teacher failed",
        ),
        (
            {"rationales": [{"teacher": "t", "text": "A", "answer": [18]}]},
            "line 1, rationale 1: answer must be text or a number, got [18]; write null where there is none",
        ),
        (
            {"rationales": [{"teacher": "t", "text": "A", "sample": -1}]},
            "line 1, rationale 1: sample must be a whole number >= 0, got -1; number samples from 0",
        ),
        (
            {"rationales": [{"teacher": "t", "text": "A", "verdict": "good"}]},
            "line 1, rationale 1: verdict must be one of correct, wrong, unparsed, timed_out, got 'good'; "
            "write one of them or null",
        ),
        (
            {"rationales": [{"teacher": "t", "text": "A", "status": 1}]},
            'line 1, rationale 1: status must be text, got 1; write "ok" or leave it out',
        ),
        (
            {
                "rationales": [
                    {"teacher": "t", "text": "A"},
                    {"teacher": "u", "text": "B"},
                    {"teacher": "t", "text": "C"},
                ]
            },
            "line 1, rationale 3: 't' stands already in rationale 1; number further samples: \"sample\": 1",
        ),
        (
            {"rationales": [{"teacher": "t", "text": "A", "sample": 1}, {"teacher": "t#1", "text": "B"}]},
            "line 1, rationale 2: 't#1' stands already in rationale 1; number further samples: \"sample\": 1",
        ),
    ],
)
def test_each_wrong_field_gives_value_rule_and_remedy(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert messages(write(tmp_path / "bad.jsonl", {**GOOD, **change})) == [message]


@pytest.mark.parametrize("key", ["id", "question", "answer", "rationales"])
def test_a_field_that_is_not_there_is_told(tmp_path: Path, key: str) -> None:
    (message,) = messages(write(tmp_path / "bad.jsonl", {k: v for k, v in GOOD.items() if k != key}))
    assert message.startswith(f"line 1: {key} must be ")
    assert f"but it is not there, only {', '.join(k for k in GOOD if k != key)}; " in message


def test_a_row_that_holds_one_rationale_of_a_problem_says_where_to_put_it(tmp_path: Path) -> None:
    row = {"id": "1", "question": "2 + 3?", "answer": "5", "teacher": "qwq", "text": "The answer is 5."}
    (message,) = messages(write(tmp_path / "long.jsonl", row))
    assert message.startswith("line 1: holds one rationale; write all of a problem into the list `rationales`")


def test_all_that_is_wrong_with_a_file_is_told_at_once_with_its_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.jsonl",
        GOOD,
        b'{"id": "b", ',
        b"",
        {**GOOD, "question": "", "answer": None},
        b'{"id": "caf\xe9"}',
        [1, 2],
        GOOD,
        {**GOOD, "id": "c"},
    )
    assert [message.split(":")[0] for message in messages(path)] == [
        "line 2", "line 4", "line 4", "line 4", "line 5", "line 6", "line 7",
    ]  # fmt: skip


def test_only_the_first_twenty_are_told_but_all_are_counted(tmp_path: Path) -> None:
    told = messages(write(tmp_path / "bad.jsonl", GOOD, *[{**GOOD, "id": str(i), "answer": ""} for i in range(50)]))
    assert len(told) == 21
    assert told[19].startswith("line 21:")
    assert told[20].endswith("and 30 more like these")


def test_broken_json_tells_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", GOOD, b'{"id": "b" "question": 1}')
    assert messages(path) == ["line 2: broken JSON at column 12: Expecting ',' delimiter; write one object a line"]


def test_a_key_that_stands_twice_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", b'{"id": "b", "answer": 1, "answer": 2}')
    assert messages(path) == ["line 1: unreadable JSON: key 'answer' stands twice in one object; mend the line"]


def test_wrong_encoding_tells_the_byte(tmp_path: Path) -> None:
    first = json.dumps(GOOD).encode()
    path = write(tmp_path / "bad.jsonl", first, '{"id": "café"}'.encode("latin-1"))
    (message,) = messages(path)
    at = 11 + len(first) + 1
    assert (
        message == f"line 2: not UTF-8: byte 0xe9 at position 11 of the line, {at} of the file; save the file as UTF-8"
    )
    path.write_bytes(b"\xef\xbb\xbf" + '{"id": "café"}'.encode("latin-1"))
    assert messages(path)[0].startswith("line 1: not UTF-8: byte 0xe9 at position 14 of the line, 14 of the file")
    path.write_text(json.dumps(GOOD), encoding="utf-16")
    assert messages(path) == ["line 1: is UTF-16; save the file as UTF-8"]


def test_half_a_surrogate_pair_is_told(tmp_path: Path) -> None:
    (message,) = messages(write(tmp_path / "bad.jsonl", {**GOOD, "rationales": [{"teacher": "t", "text": "\ud83d"}]}))
    assert message.startswith("line 1: holds half of a surrogate pair")


def test_a_duplicate_id_names_its_first_place(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", {**GOOD, "id": 1}, {**GOOD, "id": "1"})
    assert messages(path) == ["line 2: id '1' stands already in line 1; give each problem its own id"]
    other = write(tmp_path / "other.jsonl", {**GOOD, "id": "2"}, {**GOOD, "id": "1"})
    path = write(tmp_path / "good.jsonl", {**GOOD, "id": "1"})
    with pytest.raises(DataError, match=rf"^{other}, line 2: id '1' stands already in {path}, line 1;"):
        load_instances([path, other])


@pytest.mark.parametrize("name", ["no/such/file.jsonl", "nothing.jsonl", "./nothing", "nothing.parquet"])
def test_a_missing_file_is_told(name: str) -> None:
    with pytest.raises(DataError, match="no such file or folder; check the path"):
        load_problems(name)


def test_a_name_that_is_neither_a_file_nor_on_the_hub_is_told() -> None:
    with pytest.raises(
        DataError, match=r"somebody/nothing: no such file or folder, and split 'train' of a hub dataset"
    ):
        load_problems("somebody/nothing")


def test_a_runs_folder_given_as_data_names_the_data_in_it(tmp_path: Path) -> None:
    for name in ("manifest.json", "data.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"is a run's folder; its training data is .*data\.jsonl"):
        load_problems(tmp_path)


def test_an_empty_file_is_told(tmp_path: Path) -> None:
    assert messages(write(tmp_path / "bad.jsonl", b"", b"  ")) == [
        f"{tmp_path / 'bad.jsonl'}: holds no rows; write at least one"
    ]


def test_files_of_other_kinds_are_told(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match=r"bad\.parquet: not a readable Parquet file"):
        load_problems(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="is a folder, but not one that `datasets` saved"):
        load_problems(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"broken: cannot be loaded by `datasets`: \w+"):
        load_problems(tmp_path / "broken")


def test_an_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list([GOOD])}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="split must be one of train, got 'test'; choose one of them"):
        load_problems(tmp_path / "saved", split="test")


def test_the_published_format_is_checked_too(tmp_path: Path) -> None:
    path = write(
        tmp_path / "cot.jsonl",
        {"Question": "1?", "CoT": "text", "Answer": "1"},
        {"Question": "", "CoT": ["text"], "Answer": "1"},
        {"Question": "1?", "CoT": [None], "Answer": "1"},
    )
    assert messages(path) == [
        "line 1: CoT must be a list of texts, one a teacher, got 'text'; write such a list",
        "line 2: question must be text, got ''; write the question",
        "line 3: has no rationale at all; write at least one or remove the row",
    ]


def test_everything_wrong_with_problems_and_stores_is_told_together(tmp_path: Path) -> None:
    problems = write(tmp_path / "problems.jsonl", {**GOOD, "id": "x"}, {**GOOD, "id": "y"})
    store = write(
        tmp_path / "store.jsonl",
        {"id": "x", "teacher": "t", "text": "A: 1"},
        {"id": "w", "teacher": "t", "text": "A: 1"},
        {"id": "x", "teacher": "t", "text": "A: 2"},
        {"teacher": "t", "text": "A: 2"},
        {"id": "y", "teacher": 5, "text": "A: 2"},
        GOOD,
    )
    missing = tmp_path / "missing.jsonl"
    with pytest.raises(DataError) as caught:
        load_instances([store, missing], problems=problems)
    assert caught.value.problems == [
        f"{store}, line 2: id 'w' is of no problem in {problems}; remove the row or add the problem",
        f"{store}, line 3: 't' of problem 'x' stands already in {store}, line 1; keep one of them",
        f"{store}, line 4: id must be text or a whole number, but it is not there, only teacher, text; "
        "write the problem's id",
        f"{store}, line 5: teacher must be text, got 5; write the teacher's name",
        f"{store}, line 6: is training data, with its problem in the row; leave `problems` out",
        f"{missing}: no such file or folder; check the path",
    ]


def test_broken_problems_do_not_make_their_rationales_unknown(tmp_path: Path) -> None:
    problems = write(tmp_path / "problems.jsonl", {**GOOD, "id": "x", "question": ""}, b"{")
    # "w" may be the id in the broken line.
    store = write(tmp_path / "store.jsonl", *({"id": i, "teacher": "t", "text": "A: 1"} for i in ("x", "w")))
    with pytest.raises(DataError) as caught:
        load_instances(store, problems=problems)
    assert [message.removeprefix(f"{problems}, ").split(":")[0] for message in caught.value.problems] == [
        "line 1",
        "line 2",
    ]


def test_a_store_without_its_problems_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "store.jsonl", {"id": "x", "teacher": "t", "text": "A: 1"})
    assert messages(path) == ["line 1: is a row of a rationale store; say where its problems are too (`problems:`)"]


def test_no_source_at_all_is_told() -> None:
    with pytest.raises(DataError, match="source must name at least one file"):
        load_instances([])
