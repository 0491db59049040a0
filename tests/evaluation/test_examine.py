"""A run's exam: base and student on the same rows, what is redone, the curve while training, and the commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from typer.testing import CliRunner

from compact_distill import pipeline
from compact_distill.cli import app
from compact_distill.config.file import config_from, dump_config
from compact_distill.config.models import EvalConfig, RunConfig
from compact_distill.errors import InputError, RunError
from compact_distill.evaluation import examine as examine_module
from compact_distill.evaluation.examine import evaluate, own_limits, results_name
from compact_distill.evaluation.result_files import compare_results, read_attempts, read_result
from compact_distill.runs.files import is_aside
from compact_distill.runs.folder import RunFolder
from compact_distill.students.identity import student_hash
from compact_distill.training import prepare as prepare_module
from models import byte_level_tokenizer, save_student, tiny_model


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problem(number: int, **more) -> dict:
    return {"id": f"p{number}", "question": f"What is {number} + 1?", "answer": str(number + 1), **more}


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    model = tiny_model("qwen2", layers=2, dtype=torch.float32, seed=1)
    return save_student(tmp_path_factory.mktemp("students") / "tiny", model, byte_level_tokenizer())


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    rationales = [{"teacher": "t0", "text": "The answer is 2."}, {"teacher": "t1", "text": "So 3.\nThe answer is 3."}]
    yes = [{"id": f"y{n}", "question": f"Is {n} even?", "answer": "no" if n % 2 else "yes"} for n in range(4)]
    return {
        "train": write(folder / "train.jsonl", [problem(n, rationales=rationales) for n in range(4)]),
        "sums": write(folder / "sums.jsonl", [problem(n) for n in range(7)]),  # 0 to 3 are trained on
        "even": write(folder / "even.jsonl", yes),
    }


@pytest.fixture
def configure(student, files, tmp_path):
    def make(output: str = "run", **changes) -> RunConfig:
        exam = {"learned": [files["sums"]], "retained": [files["even"]], "max_new_tokens": 8}
        train = {"learning_rate": 0.05, "num_train_epochs": 2, "per_device_train_batch_size": 2, "use_cpu": True}
        return config_from(
            {
                "student": str(student),
                "rationales": files["train"],
                "output": str(tmp_path / output),
                "lora": {"r": 2},
                "train": {**train, **changes.pop("train", {})},
                "eval": {**exam, **changes.pop("eval", {})},
                **changes,
            }
        )

    return make


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_run_examines_base_and_student_and_measures_the_drift(configure, student, capsys):
    folder = pipeline.run(configure())
    evals = folder.eval_path
    base, after = read_result(evals / "base" / "sums.json"), read_result(evals / "student" / "sums.json")
    assert base["data"] == after["data"]
    assert (base["data"]["rows"], base["data"]["seen_in_training"]) == (3, 4)
    told = "eval: 4 of 7 rows of sums are left out: the student was trained on their problems"
    assert capsys.readouterr().err.count(told) == 1
    assert base["student"]["hash"] == student_hash(student)
    assert after["student"]["hash"] == student_hash(folder.student_path)
    assert (base["student"]["step"], after["student"]["step"], after["student"]["epoch"]) == (0, 4, 2.0)
    assert [base["role"], read_result(evals / "student" / "even.json")["role"]] == ["learned", "retained"]
    assert read_attempts(evals / "base" / "sums.rows.jsonl") != read_attempts(evals / "student" / "sums.rows.jsonl")
    changes = read_result(evals / "changes.json")
    assert [change["task"] for change in changes["changes"]] == ["even", "sums"]
    assert changes["changes"][1] == compare_results(evals / "base", evals / "student", "sums", seed=42)
    drift = read_result(evals / "drift.json")
    assert [(found["role"], found["rows"]) for found in drift["sets"]] == [("learned", 3), ("retained", 4)]
    assert drift["sets"][1]["kl_last"]["mean"] > 0
    assert drift["changes"] == changes["changes"][:1]
    assert folder.stage_summary("eval")["student"]["sums"] == after["result"]["accuracy"]


def test_two_runs_of_one_seed_write_the_same_bytes(configure):
    first, second = (pipeline.run(configure(name)).eval_path for name in ("one", "two"))
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    assert len(names) == 10
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_second_run_does_nothing_and_changed_benchmarks_redo_only_the_exam(configure, files, tmp_path, capsys):
    folder = pipeline.run(configure())
    before = times(folder.path)
    pipeline.run(configure())
    assert times(folder.path) == before
    capsys.readouterr()
    more = write(tmp_path / "more.jsonl", [problem(n) for n in range(20, 23)])
    pipeline.run(configure(eval={"learned": [files["sums"], more]}))
    said = capsys.readouterr().err
    assert "train: done already" in said
    assert "eval more, base" in said
    assert "eval sums" not in said
    assert (
        before[folder.eval_path / "base" / "sums.json"] == (folder.eval_path / "base" / "sums.json").stat().st_mtime_ns
    )


def test_another_training_moves_the_results_of_the_old_one_aside(configure, capsys):
    first = pipeline.run(configure(eval={"every_epoch": True}, train={"num_train_epochs": 3})).eval_path
    old = read_result(first / "student" / "sums.json")
    base = (first / "base" / "sums.json").stat().st_mtime_ns
    assert {p.name for p in first.iterdir() if p.is_dir()} == {
        "base",
        "student",
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    }
    pipeline.run(configure(train={"learning_rate": 0.01}))
    assert {p.name for p in first.iterdir() if p.is_dir() and not is_aside(p)} == {"base", "student"}
    assert read_result(first / "student" / "sums.json")["student"]["hash"] != old["student"]["hash"]
    [aside] = [p for p in first.parent.iterdir() if is_aside(p)]
    assert {"student", "checkpoint-2", "changes.json", "drift.json"} <= {p.name for p in (aside / "eval").iterdir()}
    assert read_result(aside / "eval" / "student" / "sums.json") == old
    assert aside.name in capsys.readouterr().err
    assert (first / "base" / "sums.json").stat().st_mtime_ns == base


@pytest.mark.parametrize(
    ("name", "cut"),
    [("base/sums.json", False), ("student/even.rows.jsonl", True), ("changes.json", False), ("drift.json", True)],
)
def test_a_finished_stage_whose_results_were_damaged_does_them_again(configure, name, cut, capsys):
    folder = pipeline.run(configure())
    path = folder.eval_path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] if cut else whole.replace(b"0", b"1", 1))
    capsys.readouterr()
    pipeline.run(configure())
    assert path.read_bytes() == whole
    said = capsys.readouterr().err
    assert f"{name.rpartition('/')[2]} " in said
    assert "train: done already" in said
    pipeline.run(configure())
    assert "eval: done already with these inputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "cut"), [("base/sums.json", False), ("base/sums.rows.jsonl", False), ("base/even.rows.jsonl", True)]
)
def test_a_result_that_is_damaged_before_its_stage_has_ended_is_noticed_and_done_again(
    configure, name, cut, capsys, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(examine_module, "write_changes", lambda *_: (_ for _ in ()).throw(RuntimeError("power lost")))
        with pytest.raises(RuntimeError, match="power lost"):
            pipeline.run(configure())
    path = Path(configure().output) / "eval" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] if cut else whole.replace(b"0", b"1", 1))
    assert any(path.name in line for line in pipeline.damage_of(RunFolder.open(configure().output)))
    capsys.readouterr()
    folder = pipeline.run(configure())
    assert f"{path.name} " in capsys.readouterr().err
    assert path.read_bytes() == whole
    assert pipeline.damage_of(RunFolder.open(folder.path), verify=True) == []


def test_limits_of_other_benchmarks_are_left_out_but_for_shared_ones_and_wrong_names():
    limits = {"lab_arithmetic": 3, "lab_facts": 2, "lab_fact": 1}
    settings = EvalConfig(learned=("lab_arithmetic",), limit=limits)
    found = own_limits(settings, ["lab_facts", "lab_arithmetic"])
    assert found.limit == {"lab_arithmetic": 3, "lab_fact": 1}, "a wrong name stays, to be told"
    assert own_limits(EvalConfig(limit={"lab_facts": 2}), ["lab_facts"]).limit is None
    assert own_limits(settings, ["no such benchmark"]) == settings, "told where it is read"


def test_models_whose_names_end_alike_keep_folders_of_their_own(student, files, tmp_path, monkeypatch):
    for owner in ("a", "b"):
        shutil.copytree(student, tmp_path / owner / "tiny")
    monkeypatch.chdir(tmp_path)
    settings = EvalConfig(max_new_tokens=2, limit=1)
    for name in ("a/tiny", "b/tiny", "./a/tiny/", str(tmp_path / "a" / "tiny")):
        found = evaluate(name, [files["sums"]], settings=settings)
        assert found["sums"]["result"]["rows"] == 1
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["a--tiny", "b--tiny"]
    assert not [path for path in (tmp_path / "eval").rglob("*") if is_aside(path)]


def test_names_of_results_are_folders_whatever_a_student_is_called():
    assert results_name("Qwen/Qwen2.5-0.5B") == "Qwen--Qwen2.5-0.5B"
    assert results_name("my model") != results_name("my_model")
    assert results_name("Qwen--Qwen2.5-0.5B") != results_name("Qwen/Qwen2.5-0.5B")
    assert len({results_name(name) for name in ("a-/b", "a/-b", "a---b")}) == 3
    assert results_name("a" * 300) != results_name("a" * 301)
    assert len(results_name("x/" * 200)) <= 120
    for name in ("..", "/", "../..", "a:b/c?d", "-x"):
        plain = results_name(name)
        assert plain.strip(".")
        assert not set(plain) & set("/:?\\ ")
        assert not plain.startswith(("-", "."))


def test_a_student_that_cannot_be_loaded_leaves_no_folder(student, files, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(student / name, tmp_path / "tokenizer")
    with pytest.raises(InputError, match="holds no weights"):
        evaluate(tmp_path / "tokenizer", [files["sums"]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_evaluate_needs_a_benchmark_and_is_public(student):
    import compact_distill

    with pytest.raises(InputError, match="needs a benchmark"):
        compact_distill.evaluate(student, [])


def test_results_of_another_base_do_not_stay_beside_the_new_ones(configure, tmp_path):
    folder = pipeline.run(configure(eval={"drift_rows": 0}))
    assert (folder.eval_path / "base" / "even.json").exists()
    other = tiny_model("qwen2", layers=2, dtype=torch.float32, seed=2)
    other = save_student(tmp_path / "other", other, byte_level_tokenizer())
    pipeline.run(configure(student=str(other), eval={"retained": [], "drift_rows": 0}))
    files = [path for path in folder.eval_path.rglob("*") if path.is_file()]
    aside = [path for path in files if is_aside(path) or is_aside(path.parent)]
    assert {path.name.partition(".2")[0] for path in aside} >= {"even.json", "even.rows.jsonl", "sums.json"}
    names = {path.relative_to(folder.eval_path).as_posix() for path in files if path not in aside}
    assert names == {
        "changes.json",
        *(f"{label}/sums{suffix}" for label in ("base", "student") for suffix in (".json", ".rows.jsonl")),
    }


class Listener(TrainerCallback):
    """What tensorboard, wandb and trackio get to hear."""

    heard: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        Listener.heard.append({"step": state.global_step, **logs})


def test_the_curve_while_training_reaches_the_reporters_and_leaves_the_training_alone(configure, monkeypatch):
    from compact_distill.training import run as fit

    class Trainer(fit.CompactTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(Listener())

    monkeypatch.setattr(fit, "CompactTrainer", Trainer)
    Listener.heard = []
    settings = {"train": {"logging_steps": 3}}
    plain = pipeline.run(configure("plain", **settings))
    without = [{k: v for k, v in logs.items() if "second" not in k and k != "train_runtime"} for logs in Listener.heard]
    Listener.heard = []
    watched = pipeline.run(configure("watched", eval={"every_epoch": True}, train={"logging_steps": 3}))
    weights = [load_file(folder.student_path / "adapter_model.safetensors") for folder in (plain, watched)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    curve = [logs for logs in Listener.heard if "eval_sums_accuracy" in logs]
    assert [logs["step"] for logs in curve] == [2, 4]
    for logs in curve:
        found = read_result(watched.eval_path / f"checkpoint-{logs['step']}" / "sums.json")
        assert found["result"]["accuracy"] == logs["eval_sums_accuracy"]
        assert found["student"]["epoch"] == logs["step"] / 2
    rest = [logs for logs in Listener.heard if logs not in curve]
    assert [{k: v for k, v in logs.items() if "second" not in k and k != "train_runtime"} for logs in rest] == without
    assert any("weight/t0" in logs and "adaptability/t1" in logs and "weight_entropy" in logs for logs in without)
    last = read_attempts(watched.eval_path / "checkpoint-4" / "sums.rows.jsonl")
    assert last == read_attempts(watched.eval_path / "student" / "sums.rows.jsonl")


def test_a_run_retains_choices_and_texts_too_and_its_curve_shows_them(configure, files, tmp_path):
    places = [problem(n, choices={str(n + 1): "bank", "no": "a library"}) for n in range(4, 9)]
    write(tmp_path / "places.jsonl", places)
    (tmp_path / "places.yaml").write_text(
        f"name: places\nversion: 1\nkind: choice\ndata: {{path: {tmp_path / 'places.jsonl'}}}\nfewshot: 1\n"
    )
    (tmp_path / "notes.txt").write_text("Ann has 7 apples.\n\nSo it is 12.\n")
    retained = [str(tmp_path / "places.yaml"), files["even"], str(tmp_path / "notes.txt")]
    folder = pipeline.run(configure(eval={"retained": retained, "every_epoch": True}))
    evals = folder.eval_path
    changes = {change["task"]: change for change in read_result(evals / "changes.json")["changes"]}
    assert {name: change["metric"] for name, change in changes.items()} == {
        "sums": "accuracy",
        "even": "accuracy",
        "places": "acc_norm",
        "notes": "bits_per_byte",
    }
    assert changes["notes"]["difference"] != 0
    after = read_result(evals / "student" / "notes.json")["result"]["metrics"]["bits_per_byte"]["value"]
    assert folder.stage_summary("eval")["student"]["notes"] == after
    [retained_set] = [found for found in read_result(evals / "drift.json")["sets"] if found["role"] == "retained"]
    assert {task["name"] for task in retained_set["tasks"]} == {"places", "even"}, "texts have no prompts"
    last = read_result(evals / "checkpoint-4" / "notes.json")["result"]["metrics"]["bits_per_byte"]["value"]
    assert last == pytest.approx(after, rel=1e-5)
    out = invoke("eval", folder.path)[1]
    assert any(line.startswith("notes, student: ") and "bits a byte" in line for line in out)
    assert any(line.startswith("places, base: acc ") and "acc_norm" in line for line in out)


def test_everything_wrong_with_the_benchmarks_stands_beside_the_rest(configure, files, tmp_path):
    bad = write(tmp_path / "bad.jsonl", [{"id": "a", "question": "What?"}])
    config = configure(
        rationales=str(tmp_path / "nowhere.jsonl"), eval={"learned": [bad, files["sums"]], "retained": ["csqb"]}
    )
    found = pipeline.validate_run(config)
    for part in ("nowhere.jsonl", "did you mean 'csqa'"):
        assert sum(part in message for message in found) == 1, (part, found)
    found = pipeline.validate_run(configure(eval={"learned": [bad]}))
    assert len(found) == 1
    assert "bad.jsonl, line 1: answer must be the gold answer" in found[0]
    found = pipeline.validate_run(configure(eval={"learned": [files["train"]]}))
    assert "the student was trained on all 4 rows" in found[0]


def test_every_epoch_needs_one_process(configure, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(prepare_module, "setting_problems", lambda *args: [])
    monkeypatch.setattr(prepare_module, "training_arguments", lambda *args: None)  # would look for the other process
    assert not pipeline.validate_run(configure())
    found = pipeline.validate_run(configure(eval={"every_epoch": True}))
    assert len(found) == 1
    assert "every_epoch works in one process only" in found[0]


def test_an_untrained_run_cannot_be_evaluated(configure, tmp_path):
    folder = pipeline.train(configure())
    folder.manifest["stages"]["train"]["finished"] = None
    (folder.path / "manifest.json").write_text(json.dumps(folder.manifest))
    with pytest.raises(RunError, match="no trained student yet"):
        pipeline.evaluate(folder.path, {})
    with pytest.raises(RunError, match="must be a run folder"):
        pipeline.evaluate(tmp_path, {})


# ---- commands


def invoke(*arguments: object) -> tuple[int, list[str], str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout.splitlines(), result.stderr


def test_compact_eval_of_a_run_its_checkpoint_and_a_student(configure, student, files, tmp_path):
    folder = pipeline.train(configure(train={"save_strategy": "epoch"}))
    code, out, err = invoke("eval", folder.path, "--set", "eval.limit=2")
    assert code == 0, err
    assert out[0].startswith("even, base: ")
    assert "drift: learned has 2 prompts, needs 3; not measured" in err
    assert "4 rows left out: the student was trained on them" in "\n".join(out)
    assert any(line.startswith("sums: ") and "2 rows, McNemar p" in line for line in out)
    code, out, err = invoke("eval", folder.path, "--checkpoint", 2, "--task", f"{files['sums']}")
    assert code == 0, err
    document = read_result(folder.eval_path / "checkpoint-2" / "sums.json")
    assert (document["student"]["step"], document["role"]) == (2, "learned")
    code, _, err = invoke("eval", folder.path, "--checkpoint", 3)
    assert code != 0
    assert "checkpoint-3" in err

    out_folder = tmp_path / "results"
    short = ("--set", "eval.max_new_tokens=4")
    code, out, err = invoke("eval", student, "--task", files["sums"], "--out", out_folder, *short)
    assert code == 0, err
    assert read_result(out_folder / results_name(student) / "sums.json")["result"]["rows"] == 7
    code, _, err = invoke("eval", student, "--out", out_folder)
    assert code == 2
    assert "needs a benchmark" in err
    code, _, err = invoke("eval", student, "--task", "gsm9k")
    assert code == 2
    assert "did you mean 'gsm8k'" in err


def test_compact_drift_of_an_adapter_with_the_retained_benchmarks(configure, student, files, tmp_path):
    folder = pipeline.train(configure())
    arguments = ["drift", student, folder.student_path, "--learned", files["sums"], "--retained", files["even"]]
    settings = ["--out", tmp_path / "drift", "--set", "eval.max_new_tokens=4"]
    code, out, err = invoke(*arguments, *settings)
    assert code == 0, err
    assert any(line.startswith("learned, 7 prompts: KL") for line in out)
    document = read_result(tmp_path / "drift" / "drift.json")
    assert [change["task"] for change in document["changes"]] == ["even"]
    assert not (tmp_path / "drift" / "base" / "sums.json").exists()
    before = (tmp_path / "drift" / "drift.json").stat().st_mtime_ns
    assert invoke(*arguments, *settings)[0] == 0
    assert (tmp_path / "drift" / "drift.json").stat().st_mtime_ns == before, "it was measured again"


def test_a_drift_takes_no_changes_of_another_student(student, files, tmp_path):
    other = save_student(
        tmp_path / "other", tiny_model("qwen2", layers=2, dtype=torch.float32, seed=2), byte_level_tokenizer()
    )
    own = save_student(
        tmp_path / "own", tiny_model("qwen2", layers=2, dtype=torch.float32, seed=3), byte_level_tokenizer()
    )
    rest = ["--retained", files["even"], "--out", tmp_path / "drift", "--set", "eval.max_new_tokens=4"]
    found = []
    for after, options in ((other, []), (own, ["--no-benchmarks"]), (other, ["--no-benchmarks"])):
        code, _, err = invoke("drift", student, after, *rest, *options)
        assert code == 0, err
        found.append([change["task"] for change in read_result(tmp_path / "drift" / "drift.json")["changes"]])
    assert found == [["even"], [], ["even"]]


def test_two_do_not_examine_a_student_on_one_benchmark_at_once_in_one_folder(student, files, tmp_path):
    settings = EvalConfig(max_new_tokens=4)
    found = evaluate(student, [files["even"]], tmp_path, settings=settings)["even"]
    folder = tmp_path / found["student"]["label"]
    held = "from compact_distill.runs.files import Lock; from pathlib import Path; import sys; p = Path(sys.argv[1]); "
    held += "lock = Lock(p, p); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", held, str(folder / ".even.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=r"even\.json is being written by process \d+"):
            evaluate(student, [files["even"]], tmp_path, settings=settings)
        assert set(evaluate(student, [files["sums"]], tmp_path, settings=settings)) == {"sums"}
        other.stdin.close()
    assert evaluate(student, [files["even"]], tmp_path, settings=settings)["even"] == found


def test_compact_train_measures_every_epoch_where_it_is_told_to(configure, tmp_path):
    config = configure()
    (tmp_path / "run.yaml").write_text(dump_config(config))
    code, _, err = invoke("train", tmp_path / "run.yaml", "--every-epoch")
    assert code == 0, err
    assert sorted(path.name for path in (Path(config.output) / "eval").iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_compact_compare_names_its_runs(configure, tmp_path):
    first = pipeline.run(configure("one", eval={"drift_rows": 0}))
    second = tmp_path / "two"
    shutil.copytree(first.path, second)
    assert not (first.eval_path / "drift.json").exists()
    code, out, err = invoke("compare", first.path, second, "--out", tmp_path / "c.json")
    assert code == 0, err
    assert "+0.0 points (-56.1 to +56.1), 3 rows, McNemar p = 1" in out[1]
    document = read_result(tmp_path / "c.json")
    assert (document["before"], document["after"]) == (str(first.path), str(second))
    (second / "eval" / "student" / "sums.json").unlink()
    code, out, err = invoke("compare", first.path, second)
    assert out[-1] == f"sums: not compared, {second} has no finished result on sums; evaluate it"
    code, _, err = invoke("compare", first.eval_path, second)
    assert code == 2
    assert f"holds none; name one of {first.eval_path / 'base'}, {first.eval_path / 'student'}" in err
    code, _, err = invoke("compare", first.path, tmp_path)
    assert (code, "holds none; run `compact eval` first" in err) == (2, True)
    code, _, err = invoke("compare", first.path, tmp_path / "nothing")
    assert code == 2
    assert "must be a run folder or a student's results" in err


def test_a_run_is_not_written_by_two(configure):
    with RunFolder.claim(pipeline.train(configure()).path), pytest.raises(RunError, match="being written"):
        pipeline.evaluate(configure().output, {})


def test_wrong_settings_of_an_evaluation_are_refused(configure):
    folder = pipeline.train(configure())
    with pytest.raises(InputError, match=r"eval\.limit must be >= 1"):
        pipeline.evaluate(folder.path, {"eval.limit": 0})
