"""Files of every kind that people bring: read, or refused in one line."""

from __future__ import annotations

import csv
import gzip
import json

import pytest

from compact_distill.data import load_instances, load_problems
from compact_distill.errors import DataError

ROWS = [{"id": f"p{n}", "question": f"What is {n} + 1?\nSay it.", "answer": str(n + 1)} for n in range(300)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def csv_text(separator=","):
    import io

    out = io.StringIO()
    writer = csv.DictWriter(out, ["id", "question", "answer"], delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", JSONL.encode()),
        ("p.json", json.dumps(ROWS).encode()),
        ("p.jsonl", json.dumps(ROWS, indent=2).encode()),
        ("p.jsonl", b"\xef\xbb\xbf\n[\n" + json.dumps(ROWS)[1:].encode()),
        ("p.json", json.dumps({"data": ROWS}, indent=1).encode()),
        ("p.csv", csv_text().encode()),
        ("p.csv", csv_text().encode("utf-8-sig")),
        ("p.tsv", csv_text("\t").encode()),
        ("p.jsonl.gz", gzip.compress(JSONL.encode())),
        ("p.jsonl", gzip.compress(JSONL.encode())),
        ("p.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("p.csv.gz", gzip.compress(csv_text().encode())),
    ],
)
def test_the_same_rows_come_from_every_kind_of_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    problems = load_problems(tmp_path / name)
    assert [(p.id, p.question, p.answer) for p in problems] == [tuple(row.values()) for row in ROWS]


def test_a_csv_file_ends_its_lines_where_csv_says_and_holds_fields_of_any_length(tmp_path):
    asked = ["What is\u2028three?", "What is\x0cfour\x85?", "What\nis\r\nfive?", "x" * 200_000]
    limit = csv.field_size_limit()
    with (tmp_path / "p.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "question", "answer"], *([n, text, n] for n, text in enumerate(asked))])
    assert [p.question for p in load_problems(tmp_path / "p.csv")] == asked
    assert csv.field_size_limit() == limit


def test_parquet_is_read_whatever_its_name(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "p.jsonl")
    assert len(load_problems(tmp_path / "p.jsonl")) == 300


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "p.jsonl",
            csv_text().encode(),
            "is no JSONL: its first line is 'id,question,answer'; give a CSV file the suffix",
        ),
        ("p.txt", b"What is 3 + 4?\n" * 300, "is no JSONL: its first line is 'What is 3"),
        ("p.jsonl", b"PK\x03\x04" + b"x\n" * 300, "is a zip archive; unpack it"),
        ("p.jsonl.bz2", b"BZh91AY&" + b"x\n" * 300, "is a bzip2 archive"),
        ("p.jsonl.gz", gzip.compress(JSONL.encode())[:-40], "damaged gzip file"),
        ("p.json", json.dumps(ROWS, indent=1)[:-1].encode(), "neither JSONL nor one JSON array"),
        ("p.json", json.dumps({"a": [1], "b": [2]}, indent=1).encode(), "one JSON value, and no list of objects"),
        ("p.csv", b"id,question,answer\n1,2\n", "must have 3 columns"),
        ("p.csv", b"id,question,answer\n1,2,3,4\n", "line 2: must have 3 columns"),
        ("p.csv", "id,question,answer\n1,Where is the caf\u00e9?,3\n".encode("latin-1"), "not UTF-8"),
        ("p.csv", b'id,question,answer\n1,"what"?,3\n', "line 2: broken CSV"),
        ("p.csv", b"id,question,answer,answer\n1,what?,3,4\n", "line 1: has two columns of the name 'answer'; rename"),
        ("p.tsv", b'id\tquestion\tanswer\n1\t"what?\t3\n', "broken CSV: unexpected end of data"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_problems(tmp_path / name)
    (message,) = caught.value.problems
    assert says in message


def test_rationales_as_datasets_keeps_them_are_read(tmp_path):
    rationales = {"teacher": ["a", "b"], "text": ["The answer is 1.", None]}
    (tmp_path / "r.jsonl").write_text(json.dumps({**ROWS[0], "rationales": rationales}))
    (instance,) = load_instances(tmp_path / "r.jsonl")
    assert [(r.teacher, r.text) for r in instance.rationales] == [("a", "The answer is 1."), ("b", "")]
    rationales |= {"answer": ["1", None], "sample": [0, 3], "note": ["x", "y"]}
    (tmp_path / "r.jsonl").write_text(json.dumps({**ROWS[0], "rationales": rationales}))
    first, second = load_instances(tmp_path / "r.jsonl")[0].rationales
    assert (first.answer, first.sample, first.extra["note"]) == ("1", 0, "x")
    assert (second.answer, second.sample, second.extra["note"]) == (None, 3, "y")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": ["only one"]}, "rationales must be a list"),
        ({"text": "The answer is 1."}, "rationales must be a list"),
        ({"teacher": None}, "rationales must be a list"),
        ({"teacher": ["a", ""]}, "rationale 2: teacher must be text"),
    ],
)
def test_columns_that_are_no_rationales_are_told(tmp_path, change, says):
    rationales = {"teacher": ["a", "b"], "text": ["The answer is 1.", None], **change}
    (tmp_path / "r.jsonl").write_text(json.dumps({**ROWS[0], "rationales": rationales}))
    with pytest.raises(DataError, match=says):
        load_instances(tmp_path / "r.jsonl")


def test_rationales_of_a_parquet_file_that_are_columns_are_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{**row, "rationales": {"teacher": ["a"], "text": [f"The answer is {row['answer']}."]}} for row in ROWS]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    instances = load_instances(tmp_path / "r.parquet")
    assert [i.rationales[0].text for i in instances] == [f"The answer is {row['answer']}." for row in ROWS]


def test_the_answer_of_a_gsm8k_solution_is_what_stands_after_its_hashes_and_that_is_said_once(tmp_path, capsys):
    answers = [
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n48+24 = <<48+24=72>>72 in all.\n#### 72",
        "16 - 7 = <<16-7=9>>9\n#### 9",
        "#### 1,072",
        "x\n#### -3 ",
        "72",
        "# 4 of\nthem",
        "a #### b\nc",
        "##### 5",
    ]
    rows = [{**row, "answer": answer} for row, answer in zip(ROWS, answers, strict=False)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = load_problems(tmp_path / "p.jsonl")
    assert [p.answer for p in problems] == ["72", "9", "1,072", "-3", *(a.strip() for a in answers[4:])]
    load_problems(tmp_path / "p.jsonl")
    assert capsys.readouterr().err.count("4 gold answers are solutions") == 1
