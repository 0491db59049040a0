"""What the explorer's packed data says, unpacked again."""

from __future__ import annotations

import base64
import json
import zlib

import pytest

from compact_distill.report import read_run
from compact_distill.report.explorer import pack_explorer, read_gains
from report.synthetic import make_run

ROOM = 10_000_000


def pack(run, room=ROOM):
    return pack_explorer(run, read_gains(run), room)


def unpack(text):
    return json.loads(zlib.decompress(base64.b64decode(text)))


def problems_of(explorer):
    return [unpack(line) for line in explorer.problems.split("\n")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", problems=12)


@pytest.fixture(scope="module")
def packed(folder):
    return pack(read_run(folder))


def test_every_problem_is_there_in_the_datas_order(folder, packed):
    data = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    index = unpack(packed.index)
    assert [p["id"] for p in index["problems"]] == [row["id"] for row in data]
    for row, problem in zip(data, problems_of(packed), strict=True):
        assert (problem["question"], problem["answer"]) == (row["question"], row["answer"])
        texts = {index["teachers"][r["teacher"]]: r["text"] for r in problem["rationales"]}
        assert texts == {r["teacher"]: r["text"] for r in row["rationales"]}
    assert (packed.shown, packed.total, packed.has_gains) == (12, 12, True)


def test_weights_and_scores_follow_the_epochs(folder, packed):
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    index = unpack(packed.index)
    name, problem = index["problems"][3]["id"], problems_of(packed)[3]
    own = [row for row in rows if row["id"] == name]
    assert problem["epochs"] == pytest.approx([row["epoch"] for row in own], abs=1e-4)
    for rationale in problem["rationales"]:
        k = rationale["teacher"]
        absent = own[0]["statuses"][k] != "ok"
        assert rationale["weights"] == (
            [None] * 5 if absent else pytest.approx([row["weights"][k] for row in own], abs=1e-4)
        )
        for name, values in zip(index["scores"], rationale["scores"], strict=True):
            expected = [row[name][k] for row in own]
            assert values == (expected if absent else pytest.approx(expected, abs=1e-4))


def test_gains_are_those_of_the_file_but_for_what_no_eye_can_see(folder, packed):
    lines = [json.loads(line) for line in (folder / "gains.jsonl").read_text().splitlines()]
    index, problems = unpack(packed.index), problems_of(packed)
    place = {p["id"]: i for i, p in enumerate(index["problems"])}
    for line in lines:
        by_teacher = {index["teachers"][r["teacher"]]: r["gains"] for r in problems[place[line["id"]]]["rationales"]}
        for rationale in line["rationales"]:
            if rationale is None:
                continue
            steps = by_teacher[rationale["teacher"]][line["student"]]
            at, ends, thinking = 0, {}, set()
            for length, gain, thinks in zip(steps["lengths"], steps["gains"], steps["thinking"], strict=True):
                thinking |= set(range(at, at + length)) if thinks else set()
                at += length
                ends[at] = gain
            assert at == rationale["ends"][-1]
            assert thinking == {i for a, b in rationale["thinking"] for i in range(a, b)}
            visible = {e: g for e, g in zip(rationale["ends"], rationale["gains"], strict=True) if ends.get(e)}
            for end, gain in visible.items():
                assert ends[end] == pytest.approx(100 * gain, abs=0.51)
            hidden = [abs(g) for e, g in zip(rationale["ends"], rationale["gains"], strict=True) if not ends.get(e)]
            assert max(hidden, default=0) < 0.15 * index["full_colour"] + 0.006


@pytest.mark.parametrize("ends", [[10**6], [5, 3], [-1]])
def test_steps_that_lie_outside_the_text_or_run_back_are_left_out(tmp_path, ends):
    rationale = {"teacher": "t", "text": "five and six", "verdict": "correct", "tokens": 5}
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "p", "rationales": [rationale]}) + "\n")
    steps = {"start": 0, "ends": ends, "gains": [1.0] * len(ends), "thinking": []}
    line = {"id": "p", "student": "after", "rationales": [{"teacher": "t", **steps}]}
    (tmp_path / "gains.jsonl").write_text(json.dumps(line) + "\n")
    assert read_gains(read_run(tmp_path)).pieces == {}


def test_pieces_count_as_javascript_does_and_are_cut_where_the_look_changes(tmp_path):
    rationale = {"teacher": "t", "text": "🙂🙂 So 7 it is. 7.", "verdict": "correct", "tokens": 5}
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "p", "rationales": [rationale]}) + "\n")
    steps = {"start": 1, "ends": [2, 5, 5, 8, 12], "gains": [0.0, 0.9, 0.9, 0.9, 0.01], "thinking": [[3, 5], [9, 11]]}
    line = {"id": "p", "student": "after", "rationales": [{"teacher": "t", **steps}]}
    (tmp_path / "gains.jsonl").write_text(json.dumps(line) + "\n")
    assert read_gains(read_run(tmp_path)).pieces["p", "t"]["after"] == {
        "lengths": [4, 1, 2, 3, 1, 2, 1],
        "gains": [0, 90, 90, 90, 0, 0, 0],
        "thinking": [0, 0, 1, 0, 0, 1, 0],
    }


def test_a_small_budget_keeps_evenly_spaced_problems_and_says_how_many(folder, packed):
    run = read_run(folder)
    half = pack(run, packed.size - 1)  # one byte too few for all
    assert [p["id"] for p in unpack(half.index)["problems"]] == [f"made/{i}" for i in range(0, 12, 2)]
    assert (half.shown, half.total) == (6, 12)
    third = pack(run, half.size - 1)
    assert third.size < half.size
    assert [p["id"] for p in unpack(third.index)["problems"]] == [f"made/{i}" for i in range(0, 12, 3)]
    assert len(problems_of(third)) == 4
    assert pack(run, 10).shown == 1  # never none


def test_gains_that_do_not_fit_their_text_are_left_out(folder, tmp_path):
    lines = (folder / "gains.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    rationale = next(r for r in row["rationales"] if r)
    rationale["ends"][-1] = 10**6
    (tmp_path / "gains.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "data.jsonl").write_text((folder / "data.jsonl").read_text())
    found = problems_of(pack(read_run(tmp_path)))[0]
    with_gains = {r["teacher"] for r in found["rationales"] if r["gains"]}
    assert with_gains == {k for k, r in enumerate(row["rationales"]) if r and r is not rationale}


def test_a_run_without_problems_has_no_explorer(tmp_path):
    (tmp_path / "config.yaml").write_text("student: x\n")
    assert pack(read_run(tmp_path)) is None


def test_the_trace_alone_gives_an_explorer_without_texts(folder, tmp_path):
    (tmp_path / "scores.jsonl").write_text((folder / "scores.jsonl").read_text())
    found = problems_of(pack(read_run(tmp_path)))
    assert len(found) == 12
    assert all("text" not in r and r["weights"] for problem in found for r in problem["rationales"])
