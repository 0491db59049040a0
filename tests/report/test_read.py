"""Reading runs: whole, half written, damaged, empty. Nothing but a folder that is no run is an error."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from compact_distill.errors import InputError
from compact_distill.report import read_run, summary, write_report
from compact_distill.report.explorer import read_gains
from compact_distill.report.headline import stage_seconds
from report.synthetic import make_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "whole", problems=8)


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_a_whole_run_lacks_nothing(whole):
    run = read_run(whole)
    assert run.missing == []
    assert run.teachers == ("qwq", "llama-70b", "qwen-72b", "r1-distill")
    assert len(run.problems) == 8
    assert len(run.results) == 8
    assert [c.difference for c in run.changes if c.task == "gsm8k"] == [0.13]
    assert stage_seconds(run) == {"generate": 4320.0, "train": 3030.0, "eval": 1710.0}
    assert run.costs["answers"] == 32
    assert len(run.drift) == 2


FILES = {
    "manifest.json": "manifest.json cannot be used",
    "config.yaml": "config.yaml is missing",
    "data.jsonl": "data.jsonl is missing",
    "scores.jsonl": "scores.jsonl is missing",
    "training_log.jsonl": "training_log.jsonl is missing",
    "gains.jsonl": "gains.jsonl is missing",
    "eval": "eval/ holds no results",
    "eval/changes.json": "eval/changes.json is missing",
    "eval/drift.json": "eval/drift.json is missing",
}


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_the_rest_is_reported(run, name):
    remove(run / name)
    page = write_report([run]).read_text()
    assert any(FILES[name] in line for line in read_run(run).missing)
    assert FILES[name].split(" ")[0] in page
    assert "<h1>" in page


def test_a_run_that_was_never_examined_says_so_once(run):
    remove(run / "eval")
    assert [line for line in read_run(run).missing if "eval" in line] == [
        "eval/ holds no results: whether the student got better is unknown; "
        "name benchmarks under `eval:` and run `compact eval`"
    ]


@pytest.mark.parametrize("name", [name for name in FILES if "." in name])
def test_any_single_file_is_enough_for_a_page(whole, tmp_path, name):
    (tmp_path / "eval").mkdir()
    shutil.copy(whole / name, tmp_path / name)
    assert "What this report could not show" in write_report([tmp_path]).read_text()


@pytest.mark.parametrize("name", ["data.jsonl", "scores.jsonl", "training_log.jsonl", "gains.jsonl"])
def test_damaged_lines_are_counted_and_a_torn_last_one_is_left_out(run, name):
    path = run / name
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{not json\n", b"[1]\n", *lines[1:], lines[-1][:-5]]))
    page = write_report([run]).read_text()
    assert f"{name} has 2 damaged lines, left out" in page


@pytest.mark.parametrize("name", ["data.jsonl", "scores.jsonl", "training_log.jsonl", "gains.jsonl"])
def test_an_empty_file_is_named(run, name):
    (run / name).write_text("")
    write_report([run])
    assert any(line.startswith(name) for line in read_run(run).missing) or name == "gains.jsonl"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("manifest.json", {"format": 0, "stages": {}}, "must have format 1, got 0"),
        ("manifest.json", [], "damaged"),
        ("eval/base/gsm8k.json", {"score": 0.5}, "eval/base/gsm8k.json cannot be read"),
        ("eval/changes.json", {"changes": [{"task": "gsm8k"}]}, "eval/changes.json holds an entry"),
        ("eval/changes.json", [1], "eval/changes.json"),
        ("eval/drift.json", {"sets": [{"role": "learned"}]}, "eval/drift.json holds a set"),
    ],
)
def test_files_of_another_format_are_named_not_guessed(run, name, content, told):
    (run / name).write_text(json.dumps(content))
    write_report([run])
    assert any(told in line for line in read_run(run).missing)


def places(value, at=()):
    """Where each value of a JSON document stands."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*at, key))


def replaced(document, at, value):
    if not at:
        return value
    copy = list(document) if isinstance(document, list) else dict(document)
    copy[at[0]] = replaced(copy[at[0]], at[1:], value)
    return copy


ODD = [None, -1, float("inf"), float("nan"), "x", [], {}, [[1]], True, "9" * 40, {"a": 1}, ["gsm8k"]]


@pytest.mark.parametrize(
    "name",
    ["eval/student/gsm8k.json", "eval/changes.json", "eval/drift.json", "data.jsonl", "scores.jsonl", "gains.jsonl"],
)
def test_a_value_of_any_other_kind_anywhere_is_no_traceback(run, name):
    path, draw = run / name, random.Random(name)
    text = path.read_text()
    first, *others = text.splitlines() if name.endswith("l") else [text]
    document = json.loads(first)
    top = [at for at in places(document) if len(at) <= 2]
    deep = [at for at in places(document) if len(at) > 2]
    for at in (*top, *draw.sample(deep, min(len(deep), 20))):
        line = json.dumps(replaced(document, at, draw.choice(ODD)))
        path.write_text("\n".join([line, *others, ""]))
        found = read_run(run)
        read_gains(found)
        summary(found)
    path.write_text("[" * 100_000)
    assert any(Path(name).name in line for line in read_run(run).missing) or name == "gains.jsonl"


def test_costs_add_up_what_the_stores_say(run):
    stores = {
        "a": [{"prompt_tokens": 4, "completion_tokens": 1000, "cost": 0.5}, {"prompt_tokens": 6, "cost": None}],
        "b": [{"prompt_tokens": 5, "completion_tokens": 500.0, "cost": 0.25}],
    }
    shutil.rmtree(run / "rationales")
    (run / "rationales").mkdir()
    assert read_run(run).costs == {}
    for name, rows in stores.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (run / "rationales" / f"{name}.jsonl").write_text(lines)
    assert read_run(run).costs == {"answers": 3, "prompt_tokens": 15, "completion_tokens": 1500, "cost": 0.75}


def test_a_run_that_goes_on_says_so(run):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["finished"] = None
    manifest["stages"]["eval"]["finished"] = None
    (run / "manifest.json").write_text(json.dumps(manifest))
    found = read_run(run)
    assert "has not finished" in found.missing[0]
    assert "eval" not in stage_seconds(found)


def test_results_without_attempts_are_left_out(run):
    path = run / "eval" / "base" / "gsm8k.json"
    result = json.loads(path.read_text())
    nothing = {"accuracy": {"value": None, "low": None, "high": None}}
    result["result"] |= {"rows": 0, "attempts": 0, "accuracy": None, "metrics": nothing}
    path.write_text(json.dumps(result))
    write_report([run])
    assert len(read_run(run).results) == 7


def test_data_without_verdicts_says_what_that_costs(run):
    rows = [json.loads(line) for line in (run / "data.jsonl").read_text().splitlines()]
    for row in rows:
        for rationale in row["rationales"]:
            rationale["verdict"] = None
    (run / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report([run])
    assert any("no verdicts" in line for line in read_run(run).missing)


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds none of"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="at least one run folder"):
        write_report([])


def test_a_target_that_cannot_be_written_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="existing folder"):
        write_report([run], tmp_path / "nowhere" / "report.html")
    with pytest.raises(InputError, match="existing folder"):
        write_report([run], tmp_path)


def test_a_second_sample_joins_its_scores_under_its_own_name(tmp_path):
    rationales = [{"teacher": "t", "sample": n, "verdict": v} for n, v in enumerate(("correct", "wrong"))]
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "p", "rationales": rationales}) + "\n")
    score = {"id": "p", "teachers": ["t#1", "t"], "difficulty": [1.0, 2.0], "weights": [0.3, 0.7]}
    (tmp_path / "scores.jsonl").write_text(json.dumps(score) + "\n")
    run = read_run(tmp_path)
    assert run.teachers == ("t", "t#1")
    assert run.trace.weights_NK.tolist() == [[0.7, 0.3]]
    assert [run.rationale("p", name).verdict for name in run.teachers] == ["correct", "wrong"]
