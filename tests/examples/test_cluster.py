"""examples/cluster: the Ray example runs whole on a local Ray of two workers; the scripts are sound shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import byte_level_tokenizer, save_student, tiny_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "cluster"


@pytest.fixture
def config(tmp_path) -> Path:
    save_student(tmp_path / "student", tiny_model("qwen2", layers=2, dtype=torch.float32), byte_level_tokenizer())
    text = "So {0} + 1 = {1}.\nThe answer is {1}."
    rows = [
        {
            "id": f"p{n}",
            "question": f"What is {n} + 1?",
            "answer": str(n + 1),
            "rationales": [{"teacher": t, "text": text.format(n, n + 1)} for t in ("a", "b")],
        }
        for n in range(8)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        f"student: {tmp_path / 'student'}\nrationales: {tmp_path / 'data.jsonl'}\noutput: {tmp_path / 'run'}\n"
        "train: {num_train_epochs: 1, per_device_train_batch_size: 2, use_cpu: true}\n"
    )
    return tmp_path / "run.yaml"


def test_ray_runs_all_stages_on_two_workers(config, tmp_path):
    pytest.importorskip("ray")
    config.write_text(config.read_text().replace(f"{tmp_path}/", ""))  # as users write it
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, EXAMPLES / "ray_train.py", "run.yaml", "--workers", "2"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=400,
        cwd=tmp_path,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["stages"]["train"]["summary"]["steps"] == 2  # 8 problems, two ranks of two
    assert (tmp_path / "run" / "student" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_the_scripts_are_sound_and_say_what_they_need(name):
    subprocess.run(["bash", "-n", EXAMPLES / name], check=True)
    called = subprocess.run(["bash", EXAMPLES / name], capture_output=True, text=True, check=False)
    assert called.returncode != 0
    assert "CONFIG" in called.stdout + called.stderr or "run.yaml" in called.stdout + called.stderr


def test_torchrun_sh_trains_on_two_agents(config, tmp_path):
    tests = os.pathsep.join(sys.path)
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": tests,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
    }
    nodes = [
        subprocess.Popen(
            ["bash", EXAMPLES / "torchrun.sh", config, str(node), "2", "127.0.0.1", "1"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    try:
        outputs = [node.communicate(timeout=300)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs[0][-3000:]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["finished"]
