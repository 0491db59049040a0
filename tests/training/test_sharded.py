"""FSDP2 and DeepSpeed as transformers and accelerate run them, on gloo ranks of a CPU: one process's mathematics."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

import models
from compact_distill.training.trainer import CompactConfig, CompactTrainer
from training.test_trainer import instances

# One rank. Adapters without dropout: its masks are drawn per rank, so ranks and one process differ by it.
RANK = """
import os, sys
import torch
from training import fsdp_on_cpu
fsdp_on_cpu.allow()
from torch.distributed.tensor import DTensor
from training.test_sharded import made, zero
from training.test_trainer import instances
folder, kind, resume, stage = sys.argv[1:]
parts = {"deepspeed": zero(int(stage)), "dtype": torch.float32} if stage else {"fsdp": True}
one = made(folder, kind, ranks=int(os.environ["WORLD_SIZE"]), **parts)
assert (one.is_deepspeed_enabled if stage else one.is_fsdp_enabled) and one._in_parts
one.train(resume_from_checkpoint=resume or None)
assert stage or any(isinstance(parameter, DTensor) for parameter in one.model.parameters())
loss = one.evaluate(instances(3))["eval_loss"]
if one.is_world_process_zero():
    print("\\neval", loss, flush=True)
one.save_model(folder + "/student")
"""


# One process, apart from the tests' own: what other tests left in it must not decide the comparison.
ALONE = """
import sys
import torch
from training.test_sharded import made
from training.test_trainer import instances
folder, kind, dtype = sys.argv[1:]
one = made(folder, kind, dtype=getattr(torch, dtype))
start = {name: value.clone() for name, value in one.model.state_dict().items()}
one.train()
print("\\neval", one.evaluate(instances(3))["eval_loss"], flush=True)
one.save_model(folder + "/student")
assert any((value - start[name]).abs().max() > 1e-3 for name, value in one.model.state_dict().items())
"""


def made(folder, kind: str, ranks: int = 1, dtype: torch.dtype = torch.float64, **settings) -> CompactTrainer:
    """A trainer whose optimizer step is the same 8 problems however many ranks share them."""
    adapter = LoraConfig(r=4, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return CompactTrainer(
        model=models.tiny_model("qwen2", dtype=dtype),
        args=CompactConfig(
            output_dir=str(folder),
            use_cpu=True,
            disable_tqdm=True,
            seed=3,
            learning_rate=1e-2,
            max_steps=2,
            optim="adamw_torch",
            train_sampling_strategy="sequential",
            save_strategy="steps",
            save_steps=1,
            per_device_train_batch_size=8 // ranks,
            compatibility={"normalise": "running", "estimator": "probe"},
            fsdp_config={"transformer_layer_cls_to_wrap": "Qwen2DecoderLayer"} if settings.get("fsdp") else None,
            **settings,
        ),
        train_dataset=instances(8, long=(1, 4)),
        processing_class=models.byte_level_tokenizer(),
        peft_config=adapter if kind == "lora" else None,
    )


def zero(stage: int) -> dict:
    """A DeepSpeed configuration: ZeRO of a stage, in fp32."""
    return {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_allow_untested_optimizer": True,
    }


def run_ranks(folder: Path, kind: str, ranks: int, resume: str = "", stage: str = "") -> float:
    """Train on so many ranks; returns the evaluation's loss."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return _run(folder, RANK, command, kind, resume, stage)


def run_alone(folder: Path, kind: str, dtype: str = "float64") -> float:
    """Train in one process; returns the evaluation's loss."""
    return _run(folder, ALONE, [sys.executable], kind, dtype)


def _run(folder: Path, text: str, command: list[str], *given: str) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "rank.py"
    script.write_text(text)
    tests = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    arguments = [str(script), str(folder), *given]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return float(next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("eval")))


def difference(a: Path, b: Path) -> float:
    """Largest difference between two safetensors files, name by name."""
    first, second = load_file(a), load_file(b)
    assert sorted(first) == sorted(second)
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.parametrize(("kind", "ranks"), [("all", 2), ("lora", 2), ("all", 4), ("lora", 4)])
def test_shards_train_as_one_process_does(tmp_path, kind, ranks):
    loss = run_alone(tmp_path / "one", kind)
    shared = run_ranks(tmp_path / "parts", kind, ranks)

    file = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    assert difference(tmp_path / "one" / "student" / file, tmp_path / "parts" / "student" / file) < 1e-9
    assert shared == pytest.approx(loss, abs=1e-6)
    traces = [(tmp_path / run / "scores.jsonl").read_text().splitlines() for run in ("one", "parts")]
    rows = [{row["id"]: row for row in map(json.loads, trace) if row["step"] == 1} for trace in traces]
    assert sorted(rows[0]) == sorted(rows[1]) == [f"p{i}" for i in range(8)]
    for name in ("consensus", "adaptability", "difficulty", "weights"):
        for key, row in rows[0].items():
            assert row[name] == pytest.approx(rows[1][key][name], abs=1e-6), (name, key)


@pytest.mark.parametrize("kind", ["all", "lora"])
def test_a_sharded_checkpoint_resumes_bit_for_bit_and_loads_as_one_folder(tmp_path, kind):
    run_ranks(tmp_path, kind, 2)
    file = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    whole = (tmp_path / "student" / file).read_bytes()
    trace = (tmp_path / "scores.jsonl").read_text()
    (tmp_path / "student" / file).unlink()
    run_ranks(tmp_path, kind, 2, resume=str(tmp_path / "checkpoint-1"))
    assert (tmp_path / "student" / file).read_bytes() == whole
    assert (tmp_path / "scores.jsonl").read_text() == trace
    names = json.loads((tmp_path / "checkpoint-1" / "complete.json").read_text())
    assert file in names
    assert "optimizer.bin" in names
    assert not [name for name in load_file(tmp_path / "student" / file) if "_checkpoint" in name or "fsdp" in name]


def test_fsdp_that_would_quietly_become_ddp_is_an_error(tmp_path):
    # On a CPU accelerate drops the plugin and trains whole copies.
    script = tmp_path / "rank.py"
    script.write_text("from training.test_sharded import made\nimport sys\nmade(sys.argv[1], 'all', 2, fsdp=True)\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    tests = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    done = subprocess.run([*command, script, tmp_path], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode != 0
    assert "fsdp: True shards on accelerators only" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_deepspeed_trains_as_one_process_does(tmp_path, stage, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    run_alone(tmp_path / "one", "all", "float32")
    run_ranks(tmp_path / "parts", "all", 2, stage=stage)
    file = Path("student/model.safetensors")
    assert difference(tmp_path / "one" / file, tmp_path / "parts" / file) < 1e-5
