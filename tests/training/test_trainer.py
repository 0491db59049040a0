"""The trainer: what its users rely on from transformers, with COMPACT's loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

import models
from compact_distill.config.models import CompatibilityConfig
from compact_distill.errors import ConfigError, DataError, RunError
from compact_distill.method.passes import ProblemDataset
from compact_distill.records import Instance, Rationale
from compact_distill.runs.files import read_jsonl
from compact_distill.training.trainer import CompactConfig, CompactTrainer


def instances(count=10, teachers=3, long=()):
    """Sums with `teachers` rationales each; those of the problems in `long` take three times the tokens."""
    made = []
    for i in range(count):
        j = i * 7 % 5
        more = " More." * (30 if i in long else i % 3)
        texts = [
            f"First we add {i} and {j}. So we get {i + j + k}.{more}\nThe answer is {i + j + k}."
            for k in range(teachers)
        ]
        rationales = tuple(Rationale(f"t{k}", text) for k, text in enumerate(texts))
        made.append(Instance(f"p{i}", f"Ann has {i} apples and buys {j} more.", str(i + j), rationales))
    return made


def trainer(folder, *, lora=False, data=None, model=None, **settings):
    defaults = {"num_train_epochs": 2, "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True, "seed": 3}
    adapter = LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    return CompactTrainer(
        model=model or models.tiny_model("qwen2", dtype=torch.float32),
        args=CompactConfig(output_dir=str(folder), **{**defaults, **settings}),
        train_dataset=instances() if data is None else data,
        processing_class=models.byte_level_tokenizer(),
        peft_config=adapter if lora else None,
    )


def weights(of):
    return {name: value.detach().clone() for name, value in of.model.state_dict().items()}


def largest_difference(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora": True},
        {"lora": True, "train_sampling_strategy": "group_by_length", "gradient_accumulation_steps": 2},
        {"lora": True, "max_tokens_per_pass": 150},  # two-phase: dropout is replayed
        {"compatibility": {"normalise": "running", "estimator": "probe"}},
    ],
)
def test_stopped_and_resumed_training_ends_with_the_same_weights_bit_for_bit(tmp_path, settings):
    settings = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2, **settings}
    whole = trainer(tmp_path, **settings)
    whole.train()
    trace = (tmp_path / "scores.jsonl").read_text()
    for stopped_at in (1, 3):
        resumed = trainer(tmp_path, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stopped_at}"))
        assert largest_difference(weights(whole), weights(resumed)) == 0.0
        assert (tmp_path / "scores.jsonl").read_text() == trace


def test_a_trainer_that_was_interrupted_inside_a_step_resumes_as_a_new_one_does(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    settings |= {"gradient_accumulation_steps": 2, "compatibility": {"normalise": "running"}}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    whole.train()  # from the start, though with other weights
    assert whole.scorer.running.moments["difficulty"][0] == 60  # rationales of two epochs

    class Interrupt(TrainerCallback):
        count = 0

        def on_substep_end(self, *args, **kwargs):
            self.count += 1
            if self.count == 2:
                raise KeyboardInterrupt

    uninterrupted = trainer(tmp_path / "new", **settings)
    uninterrupted.train()
    again = trainer(tmp_path / "again", **settings)
    again.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        again.train()
    again.train(resume_from_checkpoint=True)
    assert largest_difference(weights(uninterrupted), weights(again)) == 0.0
    assert again.scorer.running.moments == uninterrupted.scorer.running.moments
    assert again.trace.path.read_text() == uninterrupted.trace.path.read_text()


def test_resuming_takes_the_newest_complete_checkpoint(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path, **settings)
    whole.train()
    (tmp_path / "checkpoint-6" / "optimizer.pt").unlink()
    resumed = trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(whole), weights(resumed)) == 0.0
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    with pytest.raises(RunError, match=r"optimizer\.pt is missing"):
        trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_log_line_that_a_resume_falls_into_is_that_of_the_uninterrupted_run(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 3, "per_device_train_batch_size": 1}
    settings["gradient_accumulation_steps"] = 2
    whole = trainer(tmp_path, **settings)
    whole.train()
    lines = [line for line in whole.state.log_history if "learning_rate" in line]
    assert [line["step"] for line in lines] == [3, 6, 9]
    for stopped_at in (2, 3, 4):
        resumed = trainer(tmp_path, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stopped_at}"))
        assert [line for line in resumed.state.log_history if "learning_rate" in line] == lines


def test_checkpoints_of_weights_alone_are_never_gone_on_from(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer(tmp_path, save_only_model=True, **settings).train()
    for named in (True, str(tmp_path / "checkpoint-2")):
        with pytest.raises(RunError, match=r"is complete; move them|lists weights alone"):
            trainer(tmp_path, **settings).train(resume_from_checkpoint=named)


def test_a_step_is_the_mean_over_its_problems_however_it_is_divided(tmp_path):
    common = {"optim": "sgd", "train_sampling_strategy": "sequential", "max_steps": 1, "data": instances(8)}
    divisions = [
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 8, "max_tokens_per_pass": 150},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "gradient_checkpointing": True},
    ]
    results = []
    for division in divisions:
        made = trainer(tmp_path, **common, **division, model=models.tiny_model("qwen2"))
        made.train()
        results.append((weights(made), made.state.log_history[0]["loss"]))
    start = models.tiny_model("qwen2").state_dict()
    assert largest_difference(results[0][0], start) > 1e-5
    for other, loss in results[1:]:
        assert largest_difference(results[0][0], other) < 1e-9
        assert loss == pytest.approx(results[0][1], rel=1e-5)


RANK = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import models
from compact_distill.training.trainer import CompactTrainer
from test_trainer import instances, trainer
in_parts, alone = sys.argv[3] == "in parts", sys.argv[3] == "whole, a long problem alone"
CompactTrainer._in_parts = in_parts
settings = {"optim": "sgd", "train_sampling_strategy": "sequential", "num_train_epochs": 1,
            "max_tokens_per_pass": 500 if in_parts else 400,  # 400: the longest problem takes two passes
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
            **({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4} if alone else {}),
            "compatibility": {"normalise": "running"},
            "use_cpu": torch.accelerator.is_available()}  # else nobody says so: ranks of a CPU are ranks all the same
long = (1, 6) if alone else (1, 4)  # the sixth is then the first rank's last one of a step
made = trainer(sys.argv[2], data=instances(9, long=long), model=models.tiny_model("qwen2"), **settings)
passes = []
job_loss = made._job_loss
made._job_loss = lambda model, job, *counts: passes.append(job) or job_loss(model, job, *counts)
made.train()
# Of two batches each: unequal work, or made equal where ranks must stay in step. Then the ninth problem, for nothing on
# the second rank.
assert alone or len(passes) == 1 + (4 if made.accelerator.process_index == 0 or made._in_parts else 2)
if made.is_world_process_zero():
    torch.save(made.model.state_dict(), sys.argv[2] + "/weights.pt")
    print(made.state.log_history[0]["weight/t0"], made.scorer.running.moments["difficulty"][0])
"""


def run_two_ranks(folder, text, *given):
    """Run a script on two ranks that write to `folder`/two; returns what they print."""
    script = folder / "rank.py"
    script.write_text(text)
    (folder / "two").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    command += [str(script), str(Path(__file__).parent), str(folder / "two"), *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("weights_are", ["whole", "in parts", "whole, a long problem alone"])
def test_two_ranks_give_the_steps_of_one_and_read_no_problem_twice(tmp_path, weights_are):
    alone = trainer(
        tmp_path / "alone",
        optim="sgd",
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        # The last step has one problem; its batches have room for eight.
        data=instances(9, long=(1, 6 if "alone" in weights_are else 4)),
        model=models.tiny_model("qwen2"),
        per_device_train_batch_size=8,
        compatibility={"normalise": "running"},
    )
    alone.train()
    said = run_two_ranks(tmp_path, RANK, weights_are)
    together = torch.load(tmp_path / "two" / "weights.pt", weights_only=True)
    assert largest_difference(weights(alone), together) < 1e-9
    weight, count = (float(x) for x in said.split()[-2:])
    assert weight == pytest.approx(alone.state.log_history[0]["weight/t0"], rel=1e-5)
    assert count == 27  # 9 problems x 3 teachers, seen by both ranks
    rows = list(read_jsonl(tmp_path / "two" / "scores.jsonl"))
    assert sorted((row["step"], row["id"]) for row in rows) == [*((0, f"p{i}") for i in range(8)), (1, "p8")]


RESUMED_RANK = """
import sys
sys.path.insert(0, sys.argv[1])
from test_trainer import instances, largest_difference, trainer, weights
def made():
    return trainer(sys.argv[2], data=instances(9, long=(1, 4)), num_train_epochs=3, save_strategy="steps", save_steps=1,
                   train_sampling_strategy="group_by_length", per_device_train_batch_size=1, logging_steps=4)
def losses(of):
    return [(line["step"], round(line["loss"], 5)) for line in of.state.log_history if "learning_rate" in line]
whole = made()
whole.train()
assert whole.state.global_step == 15
resumed = made()
resumed.train(resume_from_checkpoint=sys.argv[2] + "/checkpoint-7")  # two steps into the second epoch
assert largest_difference(weights(whole), weights(resumed)) == 0.0
assert [step for step, _ in losses(whole)] == [4, 8, 12]
assert losses(resumed) == losses(whole)  # the stop fell into the second line
"""


def test_ranks_that_resume_inside_a_later_epoch_of_grouped_problems_read_its_rest(tmp_path):
    run_two_ranks(tmp_path, RESUMED_RANK)
    rows = list(read_jsonl(tmp_path / "two" / "scores.jsonl"))
    assert sorted((row["id"], int(row["epoch"])) for row in rows) == sorted(
        (f"p{i}", e) for i in range(9) for e in range(3)
    )


LAUNCHED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_trainer import trainer
made = trainer(sys.argv[2], max_steps=2, lora=True)
made.train()
made.save_model(sys.argv[2] + "/student")
"""


def test_accelerate_launch_runs_a_training_script_as_python_does(tmp_path):
    # One process: accelerate starts several on CPUs through MPI only; torchrun's ranks are tested above.
    script = tmp_path / "train.py"
    script.write_text(LAUNCHED)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"]
    command += ["--mixed_precision=no", "--dynamo_backend=no", str(script), str(Path(__file__).parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(tmp_path / "launched")], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = trainer(tmp_path / "alone", max_steps=2, lora=True)
    alone.train()
    alone.save_model(str(tmp_path / "alone" / "student"))
    launched, here = (
        load_file(tmp_path / name / "student" / "adapter_model.safetensors") for name in ("launched", "alone")
    )
    assert largest_difference(launched, here) < 1e-9


def test_report_to_sends_the_curves_that_the_log_holds(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = trainer(tmp_path, max_steps=2, report_to="tensorboard", logging_steps=1)
    made.train()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    sent = EventAccumulator(str(events))
    sent.Reload()
    logged = [entry["weight/t0"] for entry in made.state.log_history if "weight/t0" in entry]
    assert [event.value for event in sent.Scalars("train/weight/t0")] == pytest.approx(logged)
    assert len(logged) == 2


def test_where_ranks_hold_parts_of_the_weights_a_problem_must_fit_one_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(CompactTrainer, "_in_parts", True)
    made = trainer(tmp_path, data=instances(4, long=(2,)), max_tokens_per_pass=400)
    with pytest.raises(ConfigError, match=r"max_tokens_per_pass must be >= 4\d\d under FSDP.*'p2'.*got 400; raise it"):
        made.train()


def test_equal_weights_without_consistency_are_the_mean_of_plain_losses(tmp_path):
    off = CompatibilityConfig(consensus=0, adaptability=0, difficulty=0)
    made = trainer(tmp_path, compatibility=off, consistency=0.0, model=models.tiny_model("llama"), max_steps=1)
    problems = made.train_dataset.problems
    model = models.tiny_model("llama")
    plain = []
    for problem in problems:
        for branch in problem.branches:
            ids = torch.tensor([[*problem.prompt, *branch.completion]])
            labels = ids.clone()
            labels[:, : len(problem.prompt)] = -100
            plain.append(model(input_ids=ids, labels=labels).loss.item())
    assert made.evaluate(problems and made.train_dataset)["eval_loss"] == pytest.approx(
        sum(plain) / len(plain), abs=1e-6
    )


def test_each_step_logs_weights_wins_scores_entropy_and_loss_terms(tmp_path):
    made = trainer(tmp_path, max_steps=2)
    made.train()
    steps = [entry for entry in made.state.log_history if "loss" in entry]
    assert len(steps) == 2
    for entry in steps:
        teachers = ("t0", "t1", "t2")
        assert sum(entry[f"weight/{t}"] for t in teachers) == pytest.approx(1)
        assert sum(entry[f"wins/{t}"] for t in teachers) == pytest.approx(1)
        assert 0 <= entry["weight_entropy"] <= 1.0986124
        assert entry["loss"] == pytest.approx(entry["loss_likelihood"] + 0.1 * entry["loss_consistency"], rel=1e-4)
        for score in ("consensus", "adaptability", "difficulty"):
            assert f"{score}/t0" in entry


def test_the_trace_holds_every_problem_of_every_epoch(tmp_path):
    trainer(tmp_path).train()
    rows = list(read_jsonl(tmp_path / "scores.jsonl"))
    assert sorted((row["id"], int(row["epoch"])) for row in rows) == sorted(
        (f"p{i}", e) for i in range(10) for e in (0, 1)
    )
    assert all(sum(row["weights"]) == pytest.approx(1) for row in rows)
    assert all(len(row["consensus"]) == 3 for row in rows)


def test_rationales_that_do_not_take_part_are_counted(tmp_path):
    data = instances(2)
    long = Rationale("t0", "so " * 400 + "\nThe answer is 3.")
    data += [
        Instance("x", "q", "3", (long, Rationale("t1", ""), Rationale("t2", "no idea"), Rationale("t3", "3\nA: 3")))
    ]
    data += [Instance("y", "q", "3", (Rationale("t1", ""),))]
    made = trainer(tmp_path, data=data, max_length=300)
    summary = made.train_dataset.summary()
    assert summary == (
        "3 problems, 7 rationales, 2 missing, 1 over_length, 1 unparsed, 1 problems without any rationale left out"
    )


@pytest.mark.parametrize("infer", [True, False])
def test_an_answer_that_is_not_stated_is_inferred_unless_the_settings_say_no(tmp_path, infer):
    texts = ("We add.\nThe answer is 5.", "So Ann has 5 apples.")
    data = [Instance("p", "2 + 3?", "5", tuple(Rationale(f"t{k}", text) for k, text in enumerate(texts)))]
    summary = trainer(tmp_path, data=data, infer_answers=infer).train_dataset.summary()
    inferred = "1 problems, 2 rationales, 1 of them with an inferred answer"
    assert summary == (inferred if infer else "1 problems, 1 rationales, 1 unparsed")


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no rationale is left to train on"):
        trainer(tmp_path, data=[Instance("x", "q", "3", (Rationale("t", ""),))])


def test_missing_tokenizer_and_values_out_of_range_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="processing_class"):
        CompactTrainer(model=models.tiny_model("llama"), args=CompactConfig(output_dir=str(tmp_path)), train_dataset=[])
    with pytest.raises(ConfigError, match="consistency must be >= 0, got -1"):
        CompactConfig(output_dir=str(tmp_path), consistency=-1)


def test_bf16_trains_and_settings_are_saved_without_pickle(tmp_path):
    made = trainer(tmp_path, bf16=True, lora=True, max_steps=1, save_strategy="steps", save_steps=1)
    made.train()
    exact = trainer(tmp_path / "exact", lora=True, max_steps=1)
    exact.train()
    assert made.state.log_history[0]["loss"] == pytest.approx(exact.state.log_history[0]["loss"], rel=0.02)
    folder = tmp_path / "checkpoint-1"
    assert not (folder / "training_args.bin").exists()
    saved = json.loads((folder / "training_args.json").read_text())
    assert saved["compatibility"]["temperature"] == 0.5


def test_the_dataset_can_be_made_beforehand(tmp_path):
    made = trainer(tmp_path)
    again = trainer(tmp_path, data=ProblemDataset(made.encoder.encode_all(instances(4)), 100))
    assert len(again.train_dataset) == 4


def chosen(folder):
    """Epoch, problem and the chosen rationale of each line of a trace in which one has all the weight."""
    return {(int(row["epoch"]), row["id"]): row["weights"].index(1.0) for row in _trace(folder)}


def _trace(folder):
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_random_weighting_redraws_each_epoch_whatever_the_batches(tmp_path):
    found = []
    for name, division in {
        "four": {"per_device_train_batch_size": 4},
        "one": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
        "short": {"per_device_train_batch_size": 4, "max_tokens_per_pass": 150},
    }.items():
        made = trainer(tmp_path / name, weighting="random", **division)
        made.train()
        found.append(chosen(tmp_path / name))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 20
    first, second = ([found[0][epoch, f"p{i}"] for i in range(10)] for epoch in (0, 1))
    assert first != second


def test_verified_trains_on_right_rationales_alone_and_skips_problems_without_one(tmp_path):
    data = instances(6)  # t0 is right
    wrong = Instance("w", "Ann has 9 apples.", "9", data[0].rationales[1:])
    made = trainer(tmp_path, weighting="verified", data=[*data, wrong])
    assert "1 problems skipped by the weight rule" in made.train_dataset.summary()
    made.train()
    rows = _trace(tmp_path)
    assert {row["id"] for row in rows} == {f"p{i}" for i in range(6)}
    assert all(row["weights"] == [1.0, 0.0, 0.0] for row in rows)


def test_a_rule_that_leaves_nothing_to_train_on_is_an_error(tmp_path):
    wrong = [Instance("w", "Ann has 9 apples.", "9", instances(1)[0].rationales[1:])]
    with pytest.raises(DataError, match="leaves no rationale to train on: none of 1 problems"):
        trainer(tmp_path, weighting={"gate": "compact"}, data=wrong)
    with pytest.raises(DataError, match=r"weighting\.fixed names teacher 't9'"):
        trainer(tmp_path, weighting={"fixed": {"t9": 1.0}})
