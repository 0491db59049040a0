"""Two real servers, `transformers serve` on two tiny models: one that samples, and one that always says the same."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter

import pytest
import torch
from transformers import AutoTokenizer

import models
from compact_distill import pipeline
from compact_distill.config.file import config_from
from compact_distill.config.teachers import SYSTEM
from compact_distill.errors import InputError
from compact_distill.records import Verdict
from compact_distill.teachers.store import RowStatus, StoreReader
from teachers.conftest import teacher

_ABSENT = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(_ABSENT), reason=f"transformers serve needs {' and '.join(_ABSENT)}")

TOKENS = 40
SENTENCE = "Two and two.\nThe answer is 4."


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_model(folder, samples):
    """A random model that samples, or one that has learned a single sentence and does not."""
    models.byte_level_tokenizer(chat=True).save_pretrained(folder)
    model = models.tiny_model("llama", dtype=torch.float32, layers=2)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)  # the server's, which splits text in its own way
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.do_sample = samples
    if not samples:
        rows = []
        for question in ("What is 2 + 2, in problem p0?", "Reply with the one word: ready", "2 + 2"):
            chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
            rows.append((prompt, [*tokenizer(SENTENCE)["input_ids"], tokenizer.eos_token_id]))
        optimizer = torch.optim.Adam(model.train().parameters(), 3e-3)
        for step in range(150):
            prompt, completion = rows[step % len(rows)]
            labels = torch.tensor([[-100] * len(prompt) + completion])
            model(input_ids=torch.tensor([prompt + completion]), labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)


@contextlib.contextmanager
def serve(folder, samples):
    make_model(folder, samples)
    port = free_port()
    command = ["-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, *command, "--device", "cpu"], stdout=log, stderr=log)
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_healthy(folder, process, url):
    deadline = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            log = (folder / "log").read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"the server ended: {log}"
            assert time.monotonic() < deadline, f"the server did not start: {log}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Addresses of a server that samples and of one that does not, and their folders."""
    folders = [tmp_path_factory.mktemp(name) for name in ("sampling", "greedy")]
    with serve(folders[0], True) as sampling, serve(folders[1], False) as greedy:
        for folder, (process, url) in zip(folders, (sampling, greedy), strict=True):
            wait_until_healthy(folder, process, url)
        yield [(f"{url}/v1", str(folder)) for folder, (_, url) in zip(folders, (sampling, greedy), strict=True)]


def test_two_servers_answer_side_by_side_and_a_second_run_asks_nothing(servers, ask, problems, stored):
    teachers = [
        teacher(url, name=name, model=folder, max_tokens=TOKENS, concurrency=2)
        for name, (url, folder) in zip(("a", "b"), servers, strict=True)
    ]
    outcome = ask(teachers, problems(4))
    for name, counts in zip(("a", "b"), outcome, strict=True):
        rows = stored(name)
        assert sorted(row.id for row in rows) == ["p0", "p1", "p2", "p3"]
        assert all(1 <= row.completion_tokens <= TOKENS for row in rows)
        assert all(row.prompt_tokens > 10 for row in rows)
        assert {row.finish_reason for row in rows} <= {"stop", "length"}
        assert all(row.status is RowStatus.TRUNCATED for row in rows if row.finish_reason == "length")
        assert counts.answers == 4
    again = ask(teachers, problems(4))
    assert [counts.answers for counts in again] == [0, 0]


def test_samples_differ_where_the_server_samples(servers, ask, problems, stored):
    url, folder = servers[0]
    ask(teacher(url, model=folder, samples=3, max_tokens=TOKENS, temperature=1.0), problems(3))
    assert len({(row.id, row.text) for row in stored()}) == 9


def test_a_server_that_ignores_temperature_and_seed_is_noticed_and_named(servers, ask, problems, stored, capsys):
    url, folder = servers[1]
    ask(teacher(url, model=folder, samples=3, max_tokens=TOKENS, temperature=1.0), problems(4))
    assert {row.text for row in stored()} == {SENTENCE}
    assert set(Counter((row.id, row.text) for row in stored()).values()) == {3}
    assert Counter(row.status is RowStatus.DUPLICATE for row in stored()) == {True: 8, False: 4}
    assert "every further sample repeats an earlier one" in capsys.readouterr().err


def test_the_list_of_models_is_never_asked_for(servers, ask, problems):
    # Without a cache folder this server answers 500 there; a preflight that asks it would turn good servers away.
    url, folder = servers[0]
    with pytest.raises(urllib.error.HTTPError), urllib.request.urlopen(f"{url}/models", timeout=30):
        pass
    ask(teacher(url, model=folder, max_tokens=2), problems(1))


def test_a_wrong_model_name_is_found_before_the_run(servers, ask, problems, stored):
    url, _ = servers[0]
    with pytest.raises(InputError, match="teacher t: "):
        ask(teacher(url, model="no-such/model", max_tokens=2), problems(2))
    assert stored() == []


@pytest.fixture
def configure(servers, tmp_path):
    """A run from problems to a trained student, with both servers as teachers."""
    student = models.tiny_model("qwen2", dtype=torch.float32, layers=1)
    models.save_student(tmp_path / "student", student, models.byte_level_tokenizer())
    rows = [{"id": f"p{i}", "question": f"What is 2 + 2, in problem p{i}?", "answer": "4"} for i in range(6)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config_from(
        {
            "student": str(tmp_path / "student"),
            "problems": {"path": str(tmp_path / "problems.jsonl")},
            "teachers": [
                {"name": name, "model": folder, "base_url": url, "max_tokens": TOKENS, "concurrency": 2}
                for name, (url, folder) in zip(("sampling", "greedy"), servers, strict=True)
            ],
            "output": str(tmp_path / "run"),
            "lora": {"r": 2},
            "train": {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "use_cpu": True},
        }
    )


def test_one_run_with_two_real_servers_trains_a_student_stopped_and_resumed_at_every_stage(configure, monkeypatch):
    def breaks(*_, **__):
        raise KeyboardInterrupt

    stages = [
        "compact_distill.teachers.pool._preflight",
        "compact_distill.teachers.stages._verify",
        "compact_distill.teachers.training_data.json_line",
        "compact_distill.pipeline.load_instances",
        "compact_distill.pipeline.train_student",
        "compact_distill.training.trainer.CompactTrainer.save_model",
    ]
    for stage in stages:
        with monkeypatch.context() as patch:
            patch.setattr(stage, breaks)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(configure)
    folder = pipeline.run(configure)
    assert (folder.student_path / "adapter_model.safetensors").exists()
    rows = {name: list(StoreReader(folder.rationales_path, name).rows()) for name in ("sampling", "greedy")}
    assert [len(found) for found in rows.values()] == [6, 6]  # nothing was asked twice
    assert {(row.status, row.verdict) for row in rows["greedy"]} == {(RowStatus.OK, Verdict.CORRECT)}
    weights = [row["weights"] for row in folder.read_scores()]
    assert weights
    assert all(row[1] > 0 for row in weights)
