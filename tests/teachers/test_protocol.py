from __future__ import annotations

import pytest

from compact_distill.config.teachers import TeacherConfig
from compact_distill.records import Problem
from compact_distill.teachers.protocol import Prompting

PROBLEM = Problem("p0", "What is {x} for x = 2?", "2")


def prompting(**given):
    return Prompting(TeacherConfig(**{"name": "t", "model": "m", "base_url": "http://localhost:1/v1", **given}))


def test_the_question_goes_in_as_it_is():
    asked = prompting(prompt="Q: {question} {braces}", system="S").request(PROBLEM, 0, "k")
    assert asked.prompt == "Q: What is {x} for x = 2? {braces}"
    assert asked.system == "S"


def test_by_default_a_canonical_last_line_is_asked_for():
    assert "The answer is ANSWER." in prompting().request(PROBLEM, 0, "k").system


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"system": None},
        {"system": "other"},
        {"prompt": "{question} "},
        {"temperature": 0.6},
        {"temperature": None},
        {"top_p": 0.9},
        {"max_tokens": 100},
        {"extra": {"top_k": 5}},
        {"seed": 1},
    ],
)
def test_whatever_could_change_the_answer_changes_the_key(change):
    assert prompting(**change).key(PROBLEM) != prompting().key(PROBLEM)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"base_url": "http://localhost:2/v1"},
        {"concurrency": 3},
        {"samples": 7},
        {"timeout": 5},
        {"prices": {"prompt": 1, "completion": 2}},
    ],
)
def test_whatever_could_not_change_it_does_not(change):
    assert prompting(**change).key(PROBLEM) == prompting().key(PROBLEM)


def test_a_changed_question_changes_the_key_and_a_changed_gold_answer_does_not():
    assert prompting().key(Problem("p0", "What is 1?", "2")) != prompting().key(PROBLEM)
    assert prompting().key(Problem("p0", PROBLEM.question, "3")) == prompting().key(PROBLEM)


def test_each_sample_has_a_seed_of_its_own_that_never_changes():
    seeds = [prompting().request(Problem(i, "q", "a"), s, "k").seed for i in ("p0", "p1") for s in range(50)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds[0] == prompting().request(Problem("p0", "other", "a"), 0, "k").seed
    assert prompting(seed=1).request(PROBLEM, 0, "k").seed != prompting().request(PROBLEM, 0, "k").seed


def test_retrained_weights_in_the_same_folder_are_another_model(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"a" * 100)
    before = prompting(backend="transformers", model=str(tmp_path), base_url=None).key(PROBLEM)
    assert prompting(backend="transformers", model=str(tmp_path), base_url=None).key(PROBLEM) == before
    weights.write_bytes(b"b" * 100)
    assert prompting(backend="transformers", model=str(tmp_path), base_url=None).key(PROBLEM) != before


def test_a_readme_beside_the_weights_changes_no_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a" * 100)
    before = prompting(backend="transformers", model=str(tmp_path), base_url=None).key(PROBLEM)
    (tmp_path / "README.md").write_text("a note")
    assert prompting(backend="transformers", model=str(tmp_path), base_url=None).key(PROBLEM) == before
    (tmp_path / "config.json").write_text("{}")
    assert prompting(backend="transformers", model=str(tmp_path), base_url=None).key(PROBLEM) != before


def test_a_name_that_no_file_system_takes_is_a_hub_name():
    prompting(backend="transformers", model="m" * 5000, base_url=None)


def test_the_ends_of_large_weights_tell_models_apart(tmp_path):
    weights = tmp_path / "model.safetensors"
    keys = set()
    for first, last in ((b"a", b"a"), (b"b", b"a"), (b"a", b"b")):
        with weights.open("wb") as file:
            file.write(first)
            file.truncate(1 << 25)
            file.seek(0, 2)
            file.write(last)
        keys.add(prompting(backend="transformers", model=str(tmp_path), base_url=None).key(PROBLEM))
    assert len(keys) == 3
