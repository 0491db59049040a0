"""Loading problems and rationales: formats, joining, order, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact_distill.data import load_instances, load_problems
from compact_distill.data.read import Faults, read_rows
from compact_distill.errors import DataError
from compact_distill.records import Rationale, Verdict

ROW: dict[str, Any] = {
    "id": "a",
    "question": "How many?",
    "answer": "18",
    "rationales": [
        {"teacher": "terse", "text": "6 * 3\nA: 18", "is_correct": True},
        {"teacher": "wordy", "text": "Let us see.\nA: 17", "answer": "17", "verdict": "wrong", "cost": 0.5},
    ],
    "level": 3,
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return path


def numbered(count: int) -> list[dict[str, Any]]:
    return [{**ROW, "id": f"p{i}"} for i in range(count)]


def test_training_data_becomes_instances_and_other_fields_are_kept(tmp_path: Path) -> None:
    (instance,) = load_instances(write_rows(tmp_path / "train.jsonl", [ROW]))
    assert (instance.id, instance.question, instance.answer) == ("a", "How many?", "18")
    assert instance.teachers == ("terse", "wordy")
    assert instance.extra == {"level": 3}
    assert instance.rationales == (
        Rationale("terse", "6 * 3\nA: 18", extra={"is_correct": True}),
        Rationale("wordy", "Let us see.\nA: 17", answer="17", verdict=Verdict.WRONG, extra={"cost": 0.5}),
    )


def test_instances_come_in_the_order_of_the_input_and_k_may_differ(tmp_path: Path) -> None:
    rows = [{**ROW, "id": str(i), "rationales": ROW["rationales"][: 1 + i % 2]} for i in (3, 1, 2)]
    instances = load_instances(write_rows(tmp_path / "train.jsonl", rows))
    assert [(i.id, len(i.rationales)) for i in instances] == [("3", 2), ("1", 2), ("2", 1)]


def test_several_files_of_training_data_follow_each_other(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "1.jsonl", numbered(2))
    second = write_rows(tmp_path / "2.jsonl", [{**ROW, "id": "q"}])
    assert [i.id for i in load_instances([second, str(first)])] == ["q", "p0", "p1"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("$1,800", "$1,800"), (" 18 ", "18"), (18, "18"), (18.0, "18"), (-2.5, "-2.5"), (10**20, str(10**20))],
)
def test_an_answer_is_kept_as_text(tmp_path: Path, given: object, kept: str) -> None:
    (problem,) = load_problems(write_rows(tmp_path / "p.jsonl", [{**ROW, "answer": given}]))
    assert problem.answer == kept


def test_a_whole_number_is_an_id(tmp_path: Path) -> None:
    assert load_problems(write_rows(tmp_path / "p.jsonl", [{**ROW, "id": 7}]))[0].id == "7"


@pytest.mark.parametrize(
    "rationale",
    [
        {"text": None},
        {"text": ""},
        {"text": " \n"},
        {"text": None, "status": "failed"},
        {"status": "failed"},
        {"text": "half a tex", "status": "failed"},
    ],
)
def test_a_failed_teacher_leaves_a_missing_rationale_in_its_place(tmp_path: Path, rationale: dict[str, Any]) -> None:
    row = {**ROW, "rationales": [{"teacher": "broken", **rationale}, *ROW["rationales"]]}
    (instance,) = load_instances(write_rows(tmp_path / "train.jsonl", [row]))
    assert instance.teachers == ("broken", "terse", "wordy")
    assert instance.rationales[0].text == ""
    assert instance.rationales[0].extra.get("status") == rationale.get("status")


def test_byte_order_mark_crlf_blank_lines_and_a_missing_last_line_end_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(row).encode() for row in numbered(3)]
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n\r\n   \n" + lines[1] + b"\n" + lines[2])
    assert [i.id for i in load_instances(path)] == ["p0", "p1", "p2"]
    assert [row.where for row in read_rows(path, "train", Faults(path))] == ["line 1", "line 4", "line 5"]


@given(text=st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip))
def test_any_text_comes_back_unchanged(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "train.jsonl"
    separators = f"a\u2028b\u2029c\u0085d\x0be{text}"  # a line end for str.splitlines, none for JSONL
    row = {**ROW, "question": separators, "rationales": [{"teacher": "t", "text": text}]}
    (instance,) = load_instances(write_rows(path, [row]))
    assert (instance.question, instance.rationales[0].text) == (separators, text)


def test_limit_takes_the_first_problems(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", numbered(3))
    assert [i.id for i in load_instances(path, limit=2)] == ["p0", "p1"]
    assert [p.id for p in load_problems(path, limit=5)] == ["p0", "p1", "p2"]
    for limit in (0, "5", 1.5, True):
        with pytest.raises(DataError, match=rf"limit must be a whole number >= 1, got {limit!r}; leave it out"):
            load_problems(path, limit=limit)


def test_parquet_and_datasets_folders_hold_the_same_instances_as_jsonl(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = numbered(3)
    rows[1]["rationales"] = [{"teacher": "terse", "text": None}, ROW["rationales"][1]]
    expected = load_instances(write_rows(tmp_path / "train.jsonl", rows))
    dataset = Dataset.from_list(rows)
    dataset.to_parquet(tmp_path / "train.parquet")
    dataset.save_to_disk(tmp_path / "single")
    DatasetDict({"train": dataset, "test": dataset.select([2])}).save_to_disk(tmp_path / "splits")
    for source in ("train.parquet", "single", "splits"):
        found = load_instances(tmp_path / source)
        assert [(i.id, i.question, i.answer, i.teachers, i.extra) for i in found] == [
            (i.id, i.question, i.answer, i.teachers, i.extra) for i in expected
        ]
        for mine, theirs in zip(found, expected, strict=True):
            assert [(r.text, r.answer, r.verdict) for r in mine.rationales] == [
                (r.text, r.answer, r.verdict) for r in theirs.rationales
            ]
    assert [i.id for i in load_instances(tmp_path / "splits", split="test")] == ["p2"]


def test_a_hub_name_is_loaded_by_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(path: str, name: str | None, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list(numbered(2))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [p.id for p in load_problems("somebody/problems", split="test")] == ["p0", "p1"]
    assert [p.id for p in load_problems("somebody/problems:easy", split="test")] == ["p0", "p1"]
    assert asked == [("somebody/problems", None, "test"), ("somebody/problems", "easy", "test")]


def test_the_published_format_gets_ids_from_rows_and_names_from_positions(tmp_path: Path) -> None:
    rows = [
        {"Question": "1 + 1?", "CoT": ["2.\n#### 2", "3.\n#### 3"], "Answer": 2, "source": "x"},
        {"Question": "2 + 2?", "CoT": [None, "4.\n#### 4", "5"], "Answer": "4"},
        {"Question": "3 + 3?", "CoT": ["6"], "Answer": "6", "id": "mine"},
    ]
    path = write_rows(tmp_path / "cot.jsonl", rows)
    instances = load_instances(path)
    assert [i.id for i in instances] == ["0", "1", "mine"]
    assert [i.answer for i in instances] == ["2", "4", "6"]
    assert instances[0].extra == {"source": "x"}
    assert instances[1].teachers == ("teacher_0", "teacher_1", "teacher_2")
    assert [r.text for r in instances[1].rationales] == ["", "4.\n#### 4", "5"]
    assert [p.question for p in load_problems(path)] == ["1 + 1?", "2 + 2?", "3 + 3?"]


def _stores(tmp_path: Path) -> tuple[Path, Path]:
    problems = write_rows(
        tmp_path / "problems.jsonl",
        [{"id": i, "question": f"{i}?", "answer": "1", "kind": "k"} for i in ("x", "y", "z")],
    )
    folder = tmp_path / "rationales"
    folder.mkdir()
    write_rows(
        folder / "a.jsonl",
        [
            {"id": "z", "teacher": "a", "sample": 0, "text": "a on z", "status": "ok", "tokens": 3},
            {"id": "y", "teacher": "a", "sample": 1, "text": "a#1 on y", "answer": "1", "verdict": "correct"},
            {"id": "y", "teacher": "a", "sample": 0, "text": "a on y"},
            {"id": "x", "teacher": "a", "sample": 0, "text": None, "status": "failed"},
        ],
    )
    write_rows(
        folder / "b.jsonl",
        [
            {"id": "x", "teacher": "b", "sample": 0, "text": "b on x"},
            {"id": "z", "teacher": "b", "sample": 0, "text": "b on z"},
        ],
    )
    return problems, folder


def test_stores_join_on_id_and_never_on_position(tmp_path: Path) -> None:
    problems, folder = _stores(tmp_path)
    for source in (folder, [folder / "a.jsonl", folder / "b.jsonl"]):
        x, y, z = load_instances(source, problems=problems)
        assert [r.text for r in x.rationales] == ["", "b on x"]
        assert [r.text for r in y.rationales] == ["a on y", "a#1 on y"]
        assert [r.text for r in z.rationales] == ["a on z", "b on z"]
        assert (x.teachers, y.teachers, z.teachers) == (("a", "b"), ("a", "a#1"), ("a", "b"))
        assert (x.question, x.extra) == ("x?", {"kind": "k"})
        assert (y.rationales[1].answer, y.rationales[1].verdict) == ("1", Verdict.CORRECT)
        assert z.rationales[0].extra == {"status": "ok", "tokens": 3}


def test_the_order_of_a_stores_rows_changes_nothing(tmp_path: Path) -> None:
    problems, folder = _stores(tmp_path)
    expected = load_instances(folder, problems=problems)
    for name in ("a.jsonl", "b.jsonl"):
        lines = (folder / name).read_bytes().split(b"\n")
        (folder / name).write_bytes(b"\n".join(reversed(lines)))
    assert load_instances(folder, problems=problems) == expected


def test_a_limit_leaves_rationales_of_later_problems_alone(tmp_path: Path) -> None:
    problems, folder = _stores(tmp_path)
    (only,) = load_instances(folder, problems=problems, limit=1)
    assert only.id == "x"


def test_a_problem_nobody_solved_may_be_kept_for_the_caller_to_count(tmp_path: Path) -> None:
    problems, folder = _stores(tmp_path)
    (folder / "b.jsonl").unlink()
    with pytest.raises(DataError, match="line 1: problem 'x' has no rationale at all"):
        load_instances(folder, problems=problems)
    x, _, _ = load_instances(folder, problems=problems, require_rationale=False)
    assert [r.text for r in x.rationales] == [""]


def test_real_data_loads_whole(data_folder: Path) -> None:
    instances = load_instances(data_folder / "gsm8k_four_teachers.jsonl")
    assert len(instances) == 1000
    assert {len(i.rationales) for i in instances} == {4}
    assert sum(r.extra["is_correct"] for i in instances for r in i.rationales) == 1507
    choices = load_problems(data_folder / "csqa_dev.jsonl", limit=1)[0].extra["choices"]
    assert sorted(choices) == ["A", "B", "C", "D", "E"]
