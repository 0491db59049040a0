from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact_distill.config.teachers import TeacherConfig
from compact_distill.errors import ConfigError
from compact_distill.records import Problem
from compact_distill.teachers.protocol import Prompting, Redactor, read_key

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
    keys = [prompting(backend="transformers", model=letter * 5000, base_url=None).key(PROBLEM) for letter in "mn"]
    assert keys[0] != keys[1]


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


KEY = "sk-proj-Zx81+/AbcdEfgh0123456789qrstuv"


@pytest.fixture
def redact(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    return Redactor(["MY_KEY", None])


def test_a_key_is_cut_out_wherever_it_stands(redact):
    assert redact(f"Bearer {KEY}, and again {KEY}.") == "Bearer [MY_KEY], and again [MY_KEY]."


def test_a_key_is_cut_out_in_its_url_form_too(redact):
    assert "0123456789" not in redact("key=sk-proj-Zx81%2B%2FAbcdEfgh0123456789qrstuv")


@given(start=st.integers(0, len(KEY) - 12), length=st.integers(12, len(KEY)))
def test_twelve_characters_of_a_key_are_cut_out(start, length):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_KEY", KEY)
        part = KEY[start : start + length]
        assert Redactor(["MY_KEY"])(f"before {part} after") == "before [MY_KEY] after"


def test_other_text_stays_as_it_is(redact):
    text = "The sk-proj- project, 0123 and Abcd: the answer is 4."
    assert redact(text) == text


def test_a_placeholder_is_no_secret(monkeypatch):
    monkeypatch.setenv("MY_KEY", "EMPTY")
    assert Redactor(["MY_KEY"])("The set is EMPTY.") == "The set is EMPTY."


def test_a_key_that_is_not_set_says_which_and_how(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"MY_KEY must hold the key, but it is not set; `export MY_KEY=\.\.\.`"):
        read_key("MY_KEY")
    assert read_key(None) is None
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert read_key("MY_KEY") == KEY


@pytest.mark.parametrize("value", ["sk-\u00e9" * 4, "two words", "line\nbreak"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigError, match="the key in MY_KEY must be plain ASCII") as caught:
        read_key("MY_KEY")
    assert value not in str(caught.value)
