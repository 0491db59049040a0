"""The same job on a local Ray cluster of two workers."""

from __future__ import annotations

import importlib.util
import threading

import psutil
import pytest

from compact_distill.errors import InputError
from compact_distill.teachers.protocol import FaultKind
from teachers.conftest import teacher
from teachers.server import Server, fails, says

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra [ray]")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One cluster for all tests here; starting it takes seconds."""
    import os

    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def actors():
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("_Actor" in part for part in child.cmdline()[:1])]


def on_ray(url, **given):
    return teacher(url, ray={"actors": 2, "num_cpus": 0.5}, **given)


def answer(body, number):
    question = body["messages"][-1]["content"]
    if "p3?" in question:
        return fails(400, "not this one")
    return says(f"{question}\nThe answer is 4.", delay=0.05)


def test_two_workers_ask_what_one_process_would_have_asked_and_stored(ask, problems, stored, capsys):
    with Server(answer) as server:
        outcome = ask(on_ray(server.url, concurrency=4), problems(20))
        assert len(server.seen) == 21  # with the preflight
        assert len({seen.headers["user-agent"] for seen in server.seen}) == 1
        assert sorted(row.id for row in stored()) == sorted(f"p{i}" for i in range(20) if i != 3)
        assert outcome[0].failed == {FaultKind.BAD_REQUEST: 1}
        # The same store without Ray: only what failed is asked.
        ask(teacher(server.url), problems(20))
        assert len(server.seen) == 23
    said = capsys.readouterr().err
    assert "HTTP 400: not this one" in said
    assert "Traceback" not in said


def test_a_worker_that_dies_loses_only_what_it_had_in_flight(ask, problems, stored):
    killed = []

    def kill_one(body, number):
        if number == 10 and not killed:
            victim = actors()[0]
            killed.append(victim.pid)
            threading.Thread(target=victim.kill).start()
        return says(f"{body['seed']}: the answer is 4.", delay=0.1)

    with Server(kill_one) as server:
        outcome = ask(on_ray(server.url, concurrency=4), problems(20), max_retries=6, patience=60.0)
    assert killed
    assert sorted(row.id for row in stored()) == sorted(p.id for p in problems(20))
    assert outcome[0].unanswered == 0


def test_a_key_that_is_missing_on_a_worker_is_found_before_the_run(ask, problems, monkeypatch):
    # The workers' environment is that of the cluster, which does not have it.
    monkeypatch.setenv("ONLY_HERE", "sk-0123456789abcdef")
    with (
        Server(answer) as server,
        pytest.raises(InputError, match="on a machine of the cluster: environment variable ONLY_HERE") as caught,
    ):
        ask(on_ray(server.url, api_key_env="ONLY_HERE"), problems(3))
    assert "sk-0123" not in str(caught.value)
