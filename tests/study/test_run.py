"""The runner: what it refuses before any work, what it leaves, and that a killed study ends as one left alone."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compact_distill.cli import app
from compact_distill.config.file import load_config
from compact_distill.data.write import optimizer_steps
from compact_distill.errors import ConfigError, InputError
from compact_distill.evaluation.result_files import write_result
from compact_distill.method.passes import ProblemDataset
from compact_distill.runs.files import fingerprint
from compact_distill.students.load import load_student
from compact_distill.study.arms import load_study
from compact_distill.study.findings import describe, write_results
from compact_distill.study.material import changed_since, same_study
from compact_distill.study.merge import main as merge_step
from compact_distill.study.merge import merge_students
from compact_distill.study.page import write_page
from compact_distill.study.run import Plan, run_study
from compact_distill.teachers.stages import problem_stream
from compact_distill.training.prepare import prepare, read_exam, read_problems

EQUAL = {"weighting": "equal", "consistency": 0}
UNION = {"example": "rationale", "weighting": "equal", "consistency": 0}
COMMAND = [sys.executable, "-c", "from compact_distill.cli import app; app()", "study"]


def prepared(path, **more):
    study = load_study(path, **more)
    plan = Plan(study, Path(study.config.output))
    plan.check()
    return plan


def refused(path):
    with pytest.raises(InputError) as caught:
        prepared(path)
    return "\n".join(caught.value.problems)


def rewritten(base, path, change):
    """The base with another file of rationales, each line of which was changed."""
    rows = [{**row, **change(row)} for row in map(json.loads, Path(base["rationales"]).read_text().splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**base, "rationales": str(path)}


def one_teacher(base, tmp_path):
    return rewritten(base, tmp_path / "one.jsonl", lambda row: {"rationales": row["rationales"][:1]})


def without_gold(base, tmp_path):
    return rewritten(base, tmp_path / "text.jsonl", lambda row: {"answer": "a translation"})


def test_a_merge_of_one_teacher_is_refused(write_study, base, tmp_path):
    told = refused(write_study(base=one_teacher(base, tmp_path), arms={"ties": {"merge": "ties"}}))
    assert told == "arm ties: a merge needs at least two teachers, but the rationales are all of terse"


def test_a_single_teacher_that_nobody_knows_is_refused(write_study, base):
    told = refused(write_study(base=base, arms={"one": {"single": "tense"}}))
    assert told == "arm one: no rationale is of teacher 'tense'; teachers are terse, verbose, erring, foreign"


def again(world):
    """The tuning rows in another file."""
    (world / "again.jsonl").write_text((world / "tune.jsonl").read_text())
    return str(world / "again.jsonl")


def test_tuning_and_test_rows_that_overlap_are_refused(write_study, base, world):
    base["eval"] = {"learned": [str(world / "tune.jsonl")], "max_new_tokens": 8}
    told = refused(write_study(base=base, arms={"a": {}}, tune=[again(world)]))
    assert "4 rows of tune are tuning rows too ('tuning-0-0' is one)" in told


def test_a_verified_rule_without_gold_answers_is_refused(write_study, base, tmp_path):
    arms = {"equal": EQUAL, "verified": {"weighting": "verified"}}
    told = refused(write_study(base=without_gold(base, tmp_path), arms=arms))
    assert "arm verified: weighting verified needs gold answers, but no rationale is right by them" in told
    assert "arm equal" not in told


def as_benchmark(base, path, *indices):
    """A benchmark of the tuning rows and, before them, of these problems that the base is trained on."""
    lines = Path(base["rationales"]).read_text().splitlines()
    rows = [{k: json.loads(lines[i])[k] for k in ("id", "question", "answer")} for i in indices]
    rest = (Path(base["rationales"]).parent / "tune.jsonl").read_text()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + rest)
    return {"learned": [str(path)], "max_new_tokens": 8, "drift_rows": 0}


def asked_by(plan, name):
    """The rows of the first benchmark that the run of a step asks."""
    step = next(job for job in plan.jobs() if job.name == name)
    config = load_config(step.command()[2])
    return [row.id for row in read_exam(config, read_problems(config)).rows[0][1].rows]


def test_arms_without_some_problems_are_asked_the_same_rows_as_the_others(write_study, base, world, tmp_path):
    def lost(row):  # the second problem has no text of one teacher, the third none at all
        number = int(row["id"].rpartition("-")[2])
        gone = {1: ("verbose",), 2: ("terse", "verbose", "erring", "foreign")}.get(number, ())
        return {"rationales": [{**r, "text": None if r["teacher"] in gone else r["text"]} for r in row["rationales"]]}

    eval_ = as_benchmark(base, tmp_path / "bench.jsonl", 1, 2)
    base = {**rewritten(base, world / "lost.jsonl", lost), "eval": eval_}
    arms = {"equal": EQUAL, "one": {"single": "verbose"}, "mixed": {"mix": "long_short"}, "best": {"single": "best"},
            "apart": {**UNION, "single": "verbose"}}  # fmt: skip
    plan = prepared(write_study(base=base, arms=arms, seeds=[0], tune=["lab_facts"]))
    train = next(job.name for job in plan.jobs() if "/verbose/" in job.name and job.name.startswith("train/"))
    unseen = [f"tuning-0-{i}" for i in range(4)]
    assert [asked_by(plan, f"{arm}/seed-0") for arm in ("equal", "one", "mixed", "apart")] == [unseen] * 4
    assert asked_by(plan, train) == unseen
    counted = [plan.workshop.material(plan.study.base, *kind).problems for kind in ((), (None, "verbose"))]
    assert counted == [11, 10], "a problem without any text is no problem of an epoch"


def test_an_arm_whose_own_rationales_would_change_its_benchmarks_is_refused(write_study, base, world, tmp_path):
    lines = (world / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[:6]))
    base["eval"] = as_benchmark(base, tmp_path / "bench.jsonl", 1, 8)
    arms = {
        "compact": {},
        "same": {**EQUAL, "rationales": str(world / "train.jsonl")},
        "own": {"rationales": str(tmp_path / "fewer.jsonl")},
        "text": {"text": {"prompt_template": "{question}"}},
    }
    told = refused(write_study(base=base, arms=arms))
    assert told.startswith("arm own: bench: this arm would be asked other rows than the base, since ")
    assert "\n" not in told


def asking(base, *teachers):
    """The base with teachers of the lab that have yet to be asked."""
    rows = [json.loads(line) for line in Path(base["rationales"]).read_text().splitlines()]
    problems = Path(base["rationales"]).with_name("problems.jsonl")
    problems.write_text("".join(json.dumps({k: row[k] for k in ("id", "question", "answer")}) + "\n" for row in rows))
    asked = [{"name": name, "backend": "lab", "model": name} for name in teachers]
    return {**base, "rationales": [], "problems": {"path": str(problems)}, "teachers": asked}


def test_what_is_wrong_is_told_before_teachers_are_asked(write_study, base, world):
    base = asking(base, "terse")
    base["eval"] = {"learned": [str(world / "tune.jsonl")], "max_new_tokens": 8}
    arms = {"ties": {"merge": "ties"}, "one": {"single": "tense"}, "both": {"single": "best"}}
    study = load_study(write_study(base=base, arms=arms, tune=[again(world)]))
    with pytest.raises(InputError) as caught:
        run_study(study)
    told = "\n".join(caught.value.problems)
    assert "4 rows of tune are tuning rows too" in told
    assert "arm ties: a merge needs at least two teachers, but the rationales are all of terse" in told
    assert "arm one: no rationale is of teacher 'tense'; teachers are terse" in told
    assert "arm both: a choice of the best single teacher needs at least two teachers" in told
    assert not (Path(study.config.output) / "teachers").exists()


@pytest.mark.parametrize(
    ("limit", "own", "asked"), [(3, None, 3), (3, 2, 2), (3, 5, 3), (None, 5, 5), (None, None, 12)]
)
def test_teachers_are_asked_about_the_first_problems_that_the_study_reads_and_no_others(
    write_study, base, limit, own, asked
):
    base = asking(base, "terse", "verbose")
    base["problems"] = {**base["problems"], "limit": own}
    study = load_study(write_study(base=base, arms={"compact": {}}, limit=limit))
    plan = Plan(study, Path(study.config.output))
    plan.check(before_asking=True)
    *_, path = plan.ask_teachers().command()
    assert len(list(problem_stream(load_config(path)))) == asked


def of_another_study(write_study, base, out):
    same_study(load_study(write_study(base={**base, "max_length": 100}, arms={"compact": {}})), out, 1)
    (out / "base").mkdir()  # it has begun


BAD = {
    "an unknown arm": ({}, ["--arms", "compat"], r"no arm is named 'compat'; arms are compact; did you mean 'compact'"),
    "a merge of one teacher": ({"arms": {"ties": {"merge": "ties"}}}, [], "arm ties: a merge needs at least two"),
    "an arm without effect": (
        {"arms": {"a": {}, "b": {"lora": {"r": 16}}}},
        [],
        "arm b is the same as arm a: its settings have no effect; remove one of them",
    ),
    "seeds twice": ({"seeds": [1, 1]}, [], "seeds must name each seed once, got 1 twice"),
    "seeds twice on the command line": ({}, ["--seeds", "3,3"], "--seeds names 3 twice; name it once"),
    "a folder of another study": ({}, [], "belongs to another study (base.max_length differ); choose another"),
    "a verified rule without gold answers": (
        {"arms": {"verified": {"weighting": "verified"}}},
        [],
        "arm verified: weighting verified needs gold answers",
    ),
    "rows of tuning and test that overlap": ({}, [], "4 rows of tune are tuning rows too"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_error_before_any_work(what, write_study, base, world, tmp_path):
    keys, options, told = BAD[what]
    out = tmp_path / "out"
    out.mkdir()
    if what == "a folder of another study":
        of_another_study(write_study, base, out)
    elif what == "a merge of one teacher":
        base = one_teacher(base, tmp_path)
    elif what == "a verified rule without gold answers":
        base = without_gold(base, tmp_path)
    elif what == "rows of tuning and test that overlap":
        base["eval"] = {"learned": [str(world / "tune.jsonl")], "max_new_tokens": 8}
        keys = {"tune": [again(world)]}
    path = write_study(**{"base": base, "arms": {"compact": {}}, **keys})
    before = {str(file) for file in out.rglob("*")}
    result = CliRunner().invoke(app, ["study", str(path), *options])
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert told in errors[0]
    assert "Traceback" not in result.output
    made = {Path(file).name for file in {str(file) for file in out.rglob("*")} - before}
    assert made <= {".study.lock", "inputs.json"}, "nothing was begun"


def test_a_study_that_was_refused_can_be_mended_in_its_folder(write_study, base):
    study = load_study(write_study(base={**base, "max_length": 100}, arms={"compact": {}, "equal": EQUAL}))
    out = Path(study.config.output)
    out.mkdir()
    assert same_study(study, out, 2) == 2
    assert same_study(load_study(write_study(base=base, arms={"compact": {}, "equal": EQUAL})), out, 1) == 1


def test_a_fault_of_the_base_is_told_once_and_not_again_for_each_arm(write_study, base, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"id": "1"}\n')
    faulty = {**base, "rationales": str(tmp_path / "bad.jsonl")}
    study = load_study(write_study(base=faulty, arms={"compact": {}, "equal": EQUAL}))
    with pytest.raises(InputError) as caught:
        Plan(study, tmp_path / "out").check()
    assert caught.value.problems
    assert all(problem.startswith("base: ") for problem in caught.value.problems)


def test_a_row_that_cannot_be_read_is_told_once_and_not_again_for_each_arm(write_study, base, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"id": "1"}\n{"id": "2"}\n')
    base["eval"] = {**base["eval"], "learned": [str(tmp_path / "bad.jsonl")]}
    told = refused(write_study(base=base, arms={"compact": {}, "equal": EQUAL, "union": UNION})).splitlines()
    assert len(told) == len({line.partition(": ")[2].removeprefix("eval: ") for line in told})
    assert all(line.startswith("base: ") for line in told)


def test_a_student_that_cannot_be_fetched_is_told_once(write_study, base):
    (told,) = refused(write_study(base={**base, "student": "nobody/nothing"}, arms={"a": {}})).splitlines()
    assert "student 'nobody/nothing', which is no folder here" in told


def test_what_is_wrong_in_several_arms_is_told_once_with_their_names(write_study, base):
    fixed = {"weighting": {"fixed": {"nobody": 1.0}}}
    arms = {"compact": {}, "soft": {**fixed, "consistency": 0.5}, "hard": fixed}
    (told,) = refused(write_study(base=base, arms=arms)).splitlines()
    assert told.startswith("arm soft, hard: weighting.fixed names teacher 'nobody'")
    (told,) = refused(write_study(base={**base, **fixed}, arms={"a": {}, "b": {"consistency": 0.5}})).splitlines()
    assert told.startswith("all arms: weighting.fixed names teacher 'nobody'")


def test_a_limit_by_name_bounds_the_tuning_rows_too_and_no_run_is_asked_them(write_study, base, world):
    base["eval"] = {**base["eval"], "limit": {"lab_facts": 3, "tune": 2}}
    path = write_study(base=base, arms={"best": {"single": "best"}}, seeds=[0], tune=[str(world / "tune.jsonl")])
    plan = prepared(path)
    assert plan._shared(plan.study.base).eval.limit == {"lab_facts": 3}
    single = plan._of_teacher("singles", plan._shared(plan.study.base), "terse", 0)
    _, config, _, *tune = plan._tune(single)
    ((_, rows),) = read_exam(load_config(config), [], tune).rows
    assert len(rows.rows) == 2
    base["eval"]["limit"] = {"tuen": 2}
    assert "base: limit names 'tuen', which is none of the benchmarks" in refused(
        write_study(base=base, arms={"a": {}})
    )


def test_a_folder_older_than_a_setting_is_that_of_the_same_study_and_what_differs_is_named(write_study, base):
    arms = {"compact": {}, "equal": EQUAL, "older": {"consistency": 0.5}}
    study = load_study(write_study(base=base, arms=arms))
    out = Path(study.config.output)
    (out / "base").mkdir(parents=True)
    same_study(study, out, 1)
    noted = json.loads((out / "inputs.json").read_text())
    (older,) = (arm for arm in study.arms if arm.name == "older")
    options = {key: older.made_of[key] for key in type(older.options).model_fields}
    settings = {key: value for key, value in older.made_of.items() if key not in options}
    noted["arms"]["older"] = fingerprint([settings, options])  # as it was noted before
    del noted["base"]["report"], noted["base"]["lora"]["dropout"], noted["arms"]["equal"]["max_length"]
    (out / "inputs.json").write_text(json.dumps(noted))
    same_study(study, out, 1)
    for key, value, told in (
        ("report", {"gains": False}, r"belongs to another study \(base.report.gains differ\)"),
        ("lora", {"dropout": 0.2}, r"belongs to another study \(base.lora.dropout differ\)"),
    ):
        (out / "inputs.json").write_text(json.dumps(noted))
        with pytest.raises(ConfigError, match=told):
            same_study(load_study(write_study(base={**base, key: value}, arms=arms)), out, 1)
    (out / "inputs.json").write_text(json.dumps(noted))
    other = {"compact": {}, "equal": {**EQUAL, "max_length": 99}, "older": {"consistency": 0.25}}
    with pytest.raises(ConfigError) as caught:
        same_study(load_study(write_study(base=base, arms=other)), out, 1)
    assert [problem.partition(" (")[2].partition(")")[0] for problem in caught.value.problems] == [
        "max_length differ", "its settings differ"
    ]  # fmt: skip
    noted["base"]["gone"] = 1
    (out / "inputs.json").write_text(json.dumps(noted))
    with pytest.raises(ConfigError, match=r"base.gone"):
        same_study(study, out, 1)


def test_the_folder_of_another_study_is_refused(write_study, base):
    study = load_study(write_study(base=base, arms={"compact": {}, "equal": EQUAL}))
    out = Path(study.config.output)
    out.mkdir()
    assert same_study(study, out, 2) == 2
    (out / "base").mkdir()  # work has begun
    more = load_study(write_study(base=base, arms={"compact": {}, "soft": {"consistency": 0.5}}, seeds=[7]))
    assert same_study(more, out, 1) == 2, "arms and seeds may be added; the threads stay"
    changed = load_study(write_study(base=base, arms={"equal": {"weighting": "random"}}))
    with pytest.raises(ConfigError, match="arm equal was something else"):
        same_study(changed, out, 2)
    other = load_study(write_study(base={**base, "max_length": 100}, arms={"compact": {}}))
    with pytest.raises(ConfigError, match=r"belongs to another study \(base.max_length differ"):
        same_study(other, out, 2)


def require_unchanged(study, out, folder, *names):
    """The study is refused, by name, while one of these files or folders is another, and goes on where none is."""
    for name in names:
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before + b"\n")
        told = str(folder / name.partition("/")[0])
        with pytest.raises(ConfigError, match=rf"belongs to another study \({re.escape(told)} differ\)"):
            same_study(study, out, 1)
        (folder / name).write_bytes(before)
    same_study(study, out, 1)


def test_files_and_students_that_changed_since_a_studys_runs_are_refused(write_study, base, world, tmp_path):
    for name in ("train.jsonl", "tune.jsonl"):
        shutil.copyfile(world / name, tmp_path / name)
    student = shutil.copytree(world / "student", tmp_path / "student")
    (tmp_path / "own.jsonl").write_bytes((world / "train.jsonl").read_bytes())
    base |= {"student": str(student), "rationales": str(tmp_path / "train.jsonl")}
    base["eval"] = {**base["eval"], "learned": [f"sums={tmp_path / 'tune.jsonl'}"]}
    arms = {"compact": {}}
    path = write_study(base=base, arms=arms)
    study = load_study(path)
    out = Path(study.config.output)
    out.mkdir()
    same_study(study, out, 1)
    (out / "base").mkdir()  # work has begun
    more = load_study(write_study(base=base, arms={**arms, "own": {"rationales": [str(tmp_path / "own.jsonl")]}}))
    for allowed in (more, study):  # an arm with data of its own may be added, and left out again
        same_study(allowed, out, 1)
    (student / "README.md").write_text("a note")
    same_study(more, out, 1)
    require_unchanged(more, out, tmp_path, "train.jsonl", "tune.jsonl", "own.jsonl", "student/config.json")
    inputs = json.loads((out / "inputs.json").read_text())
    inputs["data"] = {name: digest for name, digest in inputs["data"].items() if name.endswith("train.jsonl")}
    (out / "inputs.json").write_text(json.dumps(inputs))  # as it was written before the others were noted
    same_study(study, out, 1)


def test_files_that_other_files_name_may_not_change_either(write_study, base, world, tmp_path):
    for name in ("rows.jsonl", "lines.jsonl", "folder/part.jsonl", "tuning.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(world / "tune.jsonl", tmp_path / name)
    for task, data in (("mine", "rows.jsonl"), ("tuning", "tuning.jsonl")):
        (tmp_path / f"{task}.yaml").write_text(f"name: {task}\nversion: 1\ndata: {{path: {tmp_path / data}}}\n")
    (tmp_path / "scores.py").write_text("")
    base = asking(base, "terse") | {"rationales": []}
    base["teachers"] = [{"name": "t", "backend": "jsonl", "path": str(tmp_path / "lines.jsonl")}]
    base["eval"] = {"learned": [str(tmp_path / "mine.yaml"), str(tmp_path / "folder")], "retained": ["gsm9k"]}
    arms = {"compact": {}, "own": {"compatibility": {"scores_from": str(tmp_path / "scores.py")}}}
    study = load_study(write_study(base=base, arms=arms, tune=[str(tmp_path / "tuning.yaml")]))
    out = Path(study.config.output)
    (out / "base").mkdir(parents=True)
    same_study(study, out, 1)
    names = ("rows.jsonl", "lines.jsonl", "folder/part.jsonl", "tuning.jsonl", "mine.yaml", "scores.py")
    require_unchanged(study, out, tmp_path, *names)


def test_a_folder_with_other_files_is_refused(write_study, base, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    study = load_study(write_study(base=base, arms={"compact": {}}, output=str(tmp_path / "mine")))
    with pytest.raises(ConfigError, match="holds other files"):
        run_study(study)


def test_an_output_that_is_a_file_is_refused(write_study, base, tmp_path):
    (tmp_path / "mine").write_text("mine")
    study = load_study(write_study(base=base, arms={"compact": {}}, output=str(tmp_path / "mine")))
    with pytest.raises(ConfigError, match=r"output must be a folder, but .*mine is a file"):
        run_study(study)


def train_of(plan, name):
    """The `train` section that a step's run would have."""
    next(job for job in plan.jobs() if job.name == name).command()
    path = plan.out / "configs" / f"{name.replace('branch/', '').replace('/', '.')}.yaml"
    arms = plan.out / "configs" / f"arms.{name.replace('/', '.')}.yaml"
    import yaml

    return yaml.safe_load((arms if arms.exists() else path).read_text())


def test_with_a_budget_of_tokens_every_arm_reads_as_many(write_study, base):
    arms = {"compact": {}, "union": UNION, "short": {"mix": "long_short"}}
    plan = prepared(write_study(base=base, arms=arms, seeds=[0]))
    whole = plan.workshop.material(plan.study.base)
    for name, mix in (("compact", None), ("short", "long_short")):
        epochs = train_of(plan, f"{name}/seed-0")["train"]["num_train_epochs"]
        read = epochs * plan.workshop.material(plan.study.base, mix).tokens
        assert read == pytest.approx(2 * whole.tokens, rel=1e-3), name
    union = plan.workshop.material(plan.study.arms[1].config)
    assert (len(union.instances), union.tokens) == (4 * len(whole.instances), whole.tokens)

    assert plan.workshop.material(plan.study.base, "long_short").tokens < whole.tokens / 3


def test_with_a_budget_of_tokens_smaller_steps_are_more_steps_also_where_the_base_says_how_many(write_study, base):
    base["train"] = {**base["train"], "max_steps": 3}  # 12 problems, 4 a step: one epoch
    arms = {"compact": {}, "small": {"train": {"per_device_train_batch_size": 1}}, "mix": UNION}
    plan = prepared(write_study(base=base, arms=arms, seeds=[0]))
    assert train_of(plan, "compact/seed-0")["train"]["max_steps"] == 3
    for name in ("small", "mix"):
        train = train_of(plan, f"{name}/seed-0")["train"]
        assert (train["max_steps"], train["num_train_epochs"]) == (-1, 1.0), name


def test_branches_of_a_merge_read_together_what_an_arm_reads(write_study, base):
    plan = prepared(
        write_study(base=base, arms={"ties": {"merge": "ties"}, "mot": {"merge": "mot", "rounds": 4}}, seeds=[0])
    )
    whole = plan.workshop.material(plan.study.base)
    names = [job.name for job in plan.jobs() if job.name.startswith("branch/")]
    assert len(names) == 4 + 4 * 4
    read = {"branches": 0.0, "mot": 0.0}
    for name in names:
        config = train_of(plan, name)
        teacher = Path(config["rationales"][0]).stem.rpartition("-")[0]
        tokens = plan.workshop.material(plan.study.base, teacher=teacher).tokens
        read[name.split("/")[1]] += config["train"]["num_train_epochs"] * tokens
    assert read == pytest.approx({"branches": 2 * whole.tokens, "mot": 2 * whole.tokens}, rel=1e-3)


@pytest.mark.parametrize(("given", "budget", "steps"), [({}, "none", 50), ({"steps": 7}, "tokens", 7)])
def test_mot_is_five_rounds_of_fifty_steps_a_branch_where_nothing_else_is_said(write_study, base, given, budget, steps):
    plan = prepared(write_study(base=base, arms={"mot": {"merge": "mot", **given}}, seeds=[0], budget=budget))
    names = [job.name for job in plan.jobs()]
    assert sum(name.startswith("branch/") for name in names) == 5 * 4
    assert [name for name in names if name.startswith("mot/")] == [
        *(f"mot/seed-0/round-{number}" for number in range(1, 5)),
        "mot/seed-0",
    ]
    config = train_of(plan, next(name for name in names if name.startswith("branch/")))
    assert config["train"]["max_steps"] == steps


def branch_by_hand(config, entry):
    """Stand in for a branch's training: an adapter that adds `entry` to each entry of all query projections."""
    import torch
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_student(config.student, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=1, lora_alpha=1, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.fill_(1.0 if "lora_A" in name else entry)
    adapted.save_pretrained(Path(config.output) / "student")
    tokenizer.save_pretrained(Path(config.output) / "student")


def test_the_largest_seed_is_one_for_the_branches_of_mot_too(write_study, base):
    plan = prepared(write_study(base=base, arms={"mot": {"merge": "mot", "steps": 1}}, seeds=[2**32 - 1]))
    branches = [job for job in plan.jobs() if "/round-1-" in job.name]
    assert len({load_config(job.command()[-1]).seed for job in branches}) == 1


def test_mot_averages_its_branches_and_starts_each_round_from_the_average(write_study, base, world, monkeypatch):
    # Four teachers, two rounds: the first moves all query projections by (1 + 2 + 3 + 4) / 40 = 0.25 on average, the
    # second, from there, by (5 + 5 + 5 + 9) / 40 = 0.6; together 0.85.
    moves = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.9])
    arms = {"mot": {"merge": "mot", "rounds": 2}}
    plan = prepared(write_study(base={**base, "lora": {"r": 1}}, arms=arms, seeds=[0]))
    starts, out = [], {}
    for job in plan.jobs()[1:]:  # after the base's evaluation
        command = job.command()
        if job.name.startswith("branch/"):
            config = load_config(command[2])
            starts.append(config.student)
            branch_by_hand(config, next(moves))
        elif job.name == "mot/seed-0/round-1":
            monkeypatch.setattr(sys, "argv", ["", command[1]])
            merge_step()
        else:  # the last one is evaluated too, which is not looked at here
            task = json.loads(Path(command[1]).read_text())
            assert task.pop("config").endswith(".yaml")
            out = {**task, "students": [Path(s) for s in task["students"]], "out": Path(task["out"])}
            merge_students(**out)
    merged = str(plan.out / "mot" / "mot" / "seed-0" / "merged-1")
    assert starts == [base["student"]] * 4 + [merged] * 4
    before = load_student(world / "student")[0].state_dict()
    for folder, moved in ((merged, 0.25), (out["out"], 0.85)):
        for name, value in load_student(folder)[0].state_dict().items():
            change = (value - before[name]).unique()
            expected = moved if "q_proj" in name else 0.0
            assert change.tolist() == pytest.approx([expected] * len(change), abs=1e-5), name


def test_the_best_single_teacher_is_chosen_on_the_tuning_rows_over_all_seeds(write_study, base, world):
    path = write_study(base=base, arms={"one": {"single": "best"}}, seeds=[0, 1], tune=[str(world / "tune.jsonl")])
    plan = prepared(path)
    right = {"terse": (0.2, 0.4), "verbose": (0.5, 0.0), "erring": (0.1, 0.1), "foreign": (0.3, 0.2)}
    runs = {}
    for job in plan.jobs():
        if job.name.startswith("train/"):
            config = load_config(job.command()[2])
            teacher, seed = Path(config.rationales[0]).stem.rpartition("-")[0], config.seed
            runs[teacher, seed] = Path(config.output)
            folder = plan.out / "tuning" / Path(config.output).relative_to(plan.out)
            folder.mkdir(parents=True)
            value = {"metric": "accuracy", "metrics": {"accuracy": {"value": right[teacher][seed]}}}
            write_result(folder / "tune.json", {"format": 1, "result": value})
        elif job.name.startswith("tune/"):
            assert job.command() is None, "these rows were answered already"
        elif job.name.startswith("one/"):
            assert len(runs) == 8, "all singles come first"
            assert job.command()[1] == "run"
    assert plan.chosen == {"one": "terse"}, "0.3 on average; verbose was better on the first seed alone"
    outcome = plan.outcome({})
    assert outcome.runs["one"] == {seed: runs["terse", seed] for seed in (0, 1)}
    later = plan.finished_runs(plan.study)
    assert later.chosen == {"one": "terse"}, "an arm that is not asked for again has chosen the same"
    assert later.runs == {"one": {}}, "and none of its runs is finished"


def test_two_steps_never_write_one_run_folder_at_once(write_study, base, world):
    arms = {"best": {"single": "best"}, "one": {"single": "verbose"}, "other": {"single": "terse", **EQUAL},
            "ties": {"merge": "ties"}, "dare": {"merge": "dare_ties"}}  # fmt: skip
    plan = prepared(write_study(base=base, arms=arms, seeds=[0, 1], tune=[str(world / "tune.jsonl")]))
    steps = {job.name: job for job in plan.jobs()}

    def before(name):
        return {name}.union(*(before(needed) for needed in steps[name].needs))

    writers = {}
    for name, job in steps.items():
        if name == "base" or name.startswith(("best/", "tune/")):  # these choose, or write beside the run
            continue
        command = job.command()
        path = Path(command[-1])
        output = json.loads(path.read_text())["out"] if path.suffix == ".json" else load_config(path).output
        writers.setdefault(output, []).append(name)
    shared = {output: names for output, names in writers.items() if len(names) > 1}
    assert sorted(len(names) for names in shared.values()) == [2, 2], "verbose alone, with both seeds"
    for first, second in shared.values():
        assert first in before(second), f"{first} and {second} write the same folder"


def test_with_a_budget_of_steps_every_arm_takes_as_many(write_study, base):
    arms = {"compact": {}, "union": UNION}
    plan = prepared(write_study(base=base, arms=arms, seeds=[0], budget="steps"))
    assert train_of(plan, "union/seed-0")["train"]["max_steps"] == 6  # 12 problems, 4 a step, twice
    assert train_of(plan, "compact/seed-0")["train"].get("max_steps", -1) == -1


def test_with_a_budget_of_steps_a_rule_that_skips_problems_takes_as_many_too(write_study, base, tmp_path):
    def half_wrong(row):  # one teacher, wrong about every second problem
        own = [r for r in row["rationales"] if r["teacher"] == "terse"]
        return {"rationales": own, **({"answer": "-1"} if int(row["id"].rpartition("-")[2]) % 2 else {})}

    base = rewritten(base, tmp_path / "half.jsonl", half_wrong)
    arms = {
        "compact": {},
        "verified": {"weighting": "verified"},
        "gate": {"weighting": {"gate": "compact"}},
        "one": {"single": "terse", "weighting": "verified"},
        "best": {"weighting": {"best": "difficulty"}},
    }
    plan = prepared(write_study(base=base, arms=arms, seeds=[0], budget="steps"))
    for name in arms:
        config = load_config(next(job for job in plan.jobs() if job.name == f"{name}/seed-0").command()[2])
        found = prepare(config)
        used = ProblemDataset(found.encoded, found.encoder.max_length, found.scorer.rule)
        assert len(used) == (12 if name in ("compact", "best") else 6), name
        assert optimizer_steps(len(used), config.train) == 6, f"{name}: 12 problems, 4 a step, twice"


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A study of two arms, one of which fails, run through."""
    import yaml

    folder = tmp_path_factory.mktemp("finished")
    base = {
        "student": str(world / "student"), "rationales": str(world / "train.jsonl"), "report": {"gains": False},
        "train": {"learning_rate": 1e-3, "num_train_epochs": 1},
        "eval": {"learned": ["lab_arithmetic"], "limit": 6, "max_new_tokens": 16, "drift_rows": 6},
    }  # fmt: skip
    keys = {"base": base, "output": str(folder / "out"), "arms": {"compact": {}, "equal": EQUAL}, "seeds": [0]}
    (folder / "study.yaml").write_text(yaml.safe_dump(keys))
    study = load_study(folder / "study.yaml")
    damaged = folder / "out" / "arms" / "compact" / "seed-0"
    damaged.mkdir(parents=True)
    same_study(study, folder / "out", 1)
    (damaged / "manifest.json").write_text("damaged")  # so that this arm fails when it starts
    outcome = run_study(study, jobs=2)
    return outcome, folder


def test_an_arm_that_fails_is_reported_and_the_others_go_on(finished):
    outcome, _ = finished
    document, costs = write_results(outcome)
    assert list(document["failed"]) == ["compact/seed-0"]
    assert "is damaged" in document["failed"]["compact/seed-0"]
    assert document["arms"]["compact"]["runs"] == {}
    assert "tasks" not in document["arms"]["compact"]
    assert document["arms"]["equal"]["runs"] == {"0": "arms/equal/seed-0"}
    assert "failed: compact/seed-0: " in "\n".join(describe(document, costs))


def test_it_leaves_run_folders_and_a_table(finished):
    outcome, folder = finished
    run = folder / "out" / "arms" / "equal" / "seed-0"
    document, costs = write_results(outcome)
    arm = document["arms"]["equal"]
    used = {row["id"]: row for row in map(json.loads, (run / "data.jsonl").open())}
    assert arm["tokens"] == [sum(r["tokens"] or 0 for row in used.values() for r in row["rationales"])]
    assert arm["tokens_with_weight"] == arm["tokens"]
    assert arm["auc"]["value"] == 0.5, "equal weights tell nothing"
    assert arm["tasks"]["lab_arithmetic"]["rows"] == document["base"]["tasks"]["lab_arithmetic"]["rows"] == 6
    assert costs["arms"]["equal"]["train_seconds"][0] > 0
    assert (run / "report.html").is_file()
    for name in ("study.json", "study.csv", "costs.json"):
        assert (folder / "out" / name).is_file()


def test_the_base_is_evaluated_once(finished):
    _, folder = finished
    log = (folder / "out" / "logs" / "equal.seed-0.log").read_text()
    assert "eval lab_arithmetic, student" in log
    assert "eval lab_arithmetic, base" not in log
    assert (folder / "out" / "arms" / "equal" / "seed-0" / "eval" / "base" / "lab_arithmetic.json").is_file()


def test_run_again_only_what_is_not_done_is_started(finished, capsys):
    outcome, _ = finished
    run_study(outcome.study, jobs=1)
    told = capsys.readouterr().err
    assert "equal/seed-0 started" not in told
    assert "base started" not in told


def asked_again(folder, capsys, keys, seeds=()):
    """The study run again for the arm that fails, with other keys in its file: what is shown, and what was said."""
    import yaml

    text = yaml.safe_load((folder / "study.yaml").read_text())
    path = folder / "again.yaml"
    path.write_text(yaml.safe_dump({**text, **keys}, sort_keys=False))
    document, costs = write_results(run_study(load_study(path), 1, ["compact"], seeds))
    return document, costs, capsys.readouterr().err


def test_arms_that_are_finished_stay_in_the_results_where_only_others_are_asked_for(finished, capsys):
    outcome, folder = finished
    before = write_results(outcome)[0]
    more = {"soft": {"consistency": 0.5}, "equal": EQUAL, "compact": {}}
    document, costs, told = asked_again(folder, capsys, {"arms": more})
    assert list(document["arms"]) == ["equal", "compact"], "in the file's order"
    assert document["arms"]["equal"] == before["arms"]["equal"]
    assert document["left_out"] == {"soft": "no run of it is finished"}
    assert "study: table and page show equal, compact; not soft: no run of it is finished\n" in told
    assert "equal/seed-0 started" not in told
    assert "soft is not shown: no run of it is finished" in write_page(folder, document, costs).read_text()
    assert not (folder / "out" / "arms" / "soft").exists()
    whole = write_results(run_study(outcome.study))[0]
    assert asked_again(folder, capsys, {})[0] == whole, "all is shown as if all had been asked for"


def test_a_seed_that_is_not_asked_for_stays_in_the_results(finished, capsys):
    _, folder = finished
    document, _, told = asked_again(folder, capsys, {"seeds": [0, 1]}, [0])
    assert (document["seeds"], list(document["arms"]["equal"]["runs"])) == ([0, 1], ["0"])
    assert "seed-1" not in told


def test_finished_arms_that_are_no_longer_what_the_file_names_are_not_shown(finished, capsys):
    _, folder = finished
    document, *_ = asked_again(folder, capsys, {"arms": {"compact": {}}})
    assert list(document["arms"]) == ["compact"], "the file does not name the other one any more"
    other = {"compact": {}, "equal": {"weighting": "random"}}
    document, _, told = asked_again(folder, capsys, {"arms": other})
    assert list(document["arms"]) == ["compact"]
    assert "(weighting differ)" in document["left_out"]["equal"]
    assert "; not equal: it was something else when" in told


def test_a_finished_arm_whose_own_rationales_have_changed_is_not_shown(write_study, base, world, tmp_path):
    own = shutil.copyfile(world / "train.jsonl", tmp_path / "own.jsonl")
    study = load_study(write_study(base=base, arms={"compact": {}, "own": {"rationales": str(own)}}))
    out = Path(study.config.output)
    out.mkdir()
    same_study(study, out, 1)
    assert changed_since(study, out) == {}
    own.write_text(own.read_text() + "\n")
    assert changed_since(study, out) == {"own": f"it was something else when {out} was made ({own} differ)"}


def test_results_that_are_no_longer_as_written_are_measured_again(finished):
    outcome, folder = finished
    run = folder / "out" / "arms" / "equal" / "seed-0"
    for student in (run / "eval" / "student", folder / "out" / "base"):
        rows = student / "lab_arithmetic.rows.jsonl"
        before = rows.read_bytes()
        rows.write_bytes(before[: len(before) // 2])
        made = (run / "student" / "trainer_state.json").stat().st_mtime_ns
        run_study(outcome.study, jobs=1)
        assert rows.read_bytes() == before, "the same command does it again"
        assert (run / "student" / "trainer_state.json").stat().st_mtime_ns == made, "it trains nothing again"
    write_results(outcome)


def study_process(path, stop_after=None):
    """Run the command to its end, or kill it so many seconds after its first step started.

    Returns:
        How long it went on from there, and whether it had ended by itself.
    """
    log = path.with_suffix(".log")
    with log.open("w") as errors:
        process = subprocess.Popen([*COMMAND, str(path), "--jobs", "2"], stdout=subprocess.DEVNULL, stderr=errors)
    deadline = time.monotonic() + 120
    while " started" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    began = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(500 if stop_after is None else stop_after)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return time.monotonic() - began, ended


@pytest.mark.slow
def test_a_study_killed_five_times_ends_in_the_same_bytes_as_one_left_alone(base, tmp_path):
    import yaml

    base["report"] = {"gains": False}
    contents, alone = [], 0.0
    for name, kills in (("alone", 0), ("killed", 5)):
        keys = {
            "base": base,
            "output": str(tmp_path / name),
            "seeds": [0, 1],
            "arms": {"compact": {}, "equal": EQUAL, "union": UNION},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(keys, sort_keys=False))
        # Seven steps, two at a time: a quarter of the whole is about a step. With this seed the five times add up to
        # 0.69 of the whole, so that the study cannot be over before, however fast the machine is.
        random_source = random.Random(1)
        times = [random_source.uniform(0.1, 1.0) * alone / 4 for _ in range(kills)]
        assert not any(study_process(path, seconds)[1] for seconds in times), "it was over before it was killed"
        alone, ended = study_process(path)
        assert ended
        out = tmp_path / name
        kept = [out / "study.json", out / "study.csv", *out.glob("arms/*/*/scores.jsonl")]
        kept += [*out.glob("arms/*/*/student/*.safetensors"), *out.glob("arms/*/*/eval/student/*.rows.jsonl")]
        contents.append({str(file.relative_to(out)): file.read_bytes() for file in kept})
    assert len(contents[0]) == 2 + 6 + 6 + 12
    assert contents[0] == contents[1]


def test_a_limit_takes_the_first_problems_for_every_arm(write_study, base):
    plan = prepared(write_study(base=base, arms={"compact": {}, "union": UNION}, seeds=[0], limit=5))
    first = plan.workshop.material(plan.workshop.first(plan.study.base, 5))
    assert (
        first.problems,
        len(plan.workshop.material(plan._shared(plan.study.arms[1].config)).instances),
    ) == (5, 20)
    assert train_of(plan, "compact/seed-0")["train"]["num_train_epochs"] == 2
