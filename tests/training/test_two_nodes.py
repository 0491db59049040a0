"""Two nodes, as torchrun sees them: two agents that meet at a rendezvous, one rank each. One of them is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

# Every optimizer step is saved; in the first run the second node waits in step 3 until it is killed.
NODE = """
import os, sys, time
import torch
from training.test_trainer import instances, trainer
from transformers import TrainerCallback
folder, hold = sys.argv[1:]

class Hold(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and int(os.environ["RANK"]) == 1:
            open(hold, "w").write(str(os.getpid()))
            time.sleep(120)

one = trainer(folder, data=instances(8), max_steps=4, save_strategy="steps", save_steps=1, seed=3, lora=True,
              per_device_train_batch_size=2, ddp_timeout=120)
if hold:
    one.add_callback(Hold())
one.train(resume_from_checkpoint=True)
one.save_model(folder + "/student")
"""


def _node(rank: int, port: int, script: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start one node's agent with its one rank, in a process group of its own."""
    rendezvous = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}", "--max-restarts=0", "--rdzv-id=two"]
    # Both agents are on the host of the endpoint, so either could become the meeting's host. The one that stays must
    # be it: an agent whose host dies ends its own rank before that rank has noticed anything.
    host = f"--rdzv-conf=is_host={int(rank == 0)}"
    where = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", host]
    tests = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *rendezvous, *where, str(script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _end(nodes: list[subprocess.Popen[str]]) -> None:
    for node in nodes:
        if node.poll() is None:
            os.killpg(node.pid, signal.SIGKILL)
        node.communicate()


def test_a_killed_node_ends_the_run_with_a_message_and_the_run_resumes(tmp_path):
    script = tmp_path / "node.py"
    script.write_text(NODE)
    waiting = tmp_path / "waiting"
    port = _free_port()
    nodes = [_node(rank, port, script, str(tmp_path / "killed"), str(waiting)) for rank in (0, 1)]
    try:
        deadline = time.monotonic() + 120
        while not waiting.exists():
            assert time.monotonic() < deadline, "the second node never came to its third step"
            assert all(node.poll() is None for node in nodes), [n.communicate()[0][-2000:] for n in nodes]
            time.sleep(0.2)
        os.kill(int(waiting.read_text()), signal.SIGKILL)  # its rank, then its agent: the machine is gone
        os.killpg(nodes[1].pid, signal.SIGKILL)
        output, _ = nodes[0].communicate(timeout=120)
    finally:
        _end(nodes)
    assert nodes[0].returncode != 0
    assert "rank 0 lost another rank at step 2" in output
    assert "training goes on from the newest complete checkpoint" in output
    assert (tmp_path / "killed" / "checkpoint-2" / "complete.json").is_file()

    port = _free_port()
    for folder in ("killed", "alone"):  # resumed; never stopped
        nodes = [_node(rank, port, script, str(tmp_path / folder), "") for rank in (0, 1)]
        try:
            outputs = [node.communicate(timeout=180)[0] for node in nodes]
        finally:
            _end(nodes)
        assert all(node.returncode == 0 for node in nodes), outputs[0][-3000:]
    resumed, alone = (
        load_file(tmp_path / folder / "student" / "adapter_model.safetensors") for folder in ("killed", "alone")
    )
    assert all(torch.equal(resumed[name], alone[name]) for name in alone)
