"""YAML is read as it was written, and traps in it are errors with a line."""

from __future__ import annotations

import math

import pytest

from compact_distill.config.yaml import parse, parse_value
from compact_distill.errors import ConfigError

MINIMAL = "student: my-student\nrationales: data.jsonl\n"


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "0.00001", "1.0e-5", "+1e-05", ".1e-4"])
def test_numbers_in_scientific_notation_are_numbers(load, text):
    config = load(MINIMAL + f"consistency: {text}\ntrain: {{learning_rate: {text}}}\n")
    assert config.consistency == config.train["learning_rate"] == 1e-5


def test_a_teacher_may_be_named_no(load):
    rest = "backend: lab, model: terse"
    text = f"student: s\nproblems: {{path: p.jsonl}}\nteachers: [{{name: no, {rest}}}, {{name: 2024-01-01, {rest}}}]\n"
    assert [teacher.name for teacher in load(text).teachers] == ["no", "2024-01-01"]


def test_merge_keys_can_be_overridden_without_counting_as_duplicates(load):
    text = (
        "student: s\nproblems: {path: p.jsonl}\nteachers:\n"
        "  - &server {name: a, model: m, base_url: 'http://localhost:1/v1'}\n  - {<<: *server, name: b}\n"
    )
    first, second = load(text).teachers
    assert (second.name, second.base_url) == ("b", first.base_url)


def test_a_key_in_the_wrong_section_names_the_right_one(problems_of):
    assert (
        "temperature is not a known key; it belongs under `teachers:` or `compatibility:`"
        in problems_of(MINIMAL + "temperature: 2\n")[0]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- student: x\n", "got a list"),
        ("just words\n", "got a single value"),
        ("student: [x\n", "line 2, column 1: must be valid YAML"),
        ("student: x\n\tseed: 1\n", "line 2, column 1: must be valid YAML"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: must be valid YAML"),
        ("student: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("student: *nobody\n", "undefined alias"),
        ("seed: !!int many\n", "!!tag does not fit"),
        ("student: " + "[" * 5000, "nested this deep"),
        ("student: \x01\n", "must be plain text"),
        (MINIMAL + 'output: "a\\0b"\n', "line 3: output must not hold a NUL character"),
        (MINIMAL + 'eval: {learned: ["a\\0b"]}\n', "line 3: eval.learned[0] must not hold a NUL character"),
        (MINIMAL + "5: x\n", "line 3: key must be text, got '5'"),
    ],
)
def test_broken_yaml_gives_one_clear_error(problems_of, text, expected):
    found = problems_of(text)
    assert len(found) == 1
    assert expected in found[0]


def test_aliases_cannot_explode():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="use fewer aliases"):
        parse("\n".join(lines))
    with pytest.raises(ConfigError, match="use fewer aliases"):
        parse("a: &a {b: *a}")


def test_override_values_follow_the_files_rules():
    assert [parse_value(text) for text in ("1e-5", "no", "true", "[1, 2]", "x", "null")] == [
        1e-5, "no", True, [1, 2], "x", None,
    ]  # fmt: skip


def test_a_wrong_override_value_names_no_place_in_a_file_and_may_not_say_a_key_twice():
    with pytest.raises(ConfigError) as caught:
        parse_value("Q: {question}")
    assert caught.value.problems[0].startswith("must be valid YAML: mapping values are not allowed here")
    with pytest.raises(ConfigError, match=r"^key 'r' stands twice; keep one of them$"):
        parse_value("{r: 1, r: 2}")
    with pytest.raises(ConfigError, match=r"^must be one value, got 'tiny\\nseed: 3'; set each key on its own$"):
        parse_value("tiny\nseed: 3")


def test_of_a_key_with_two_types_both_are_told_once(problems_of):
    assert problems_of(MINIMAL + "weighting: 3\n") == [
        "run.yaml, line 3: weighting must be text or hold `key: value` lines, got 3; the default is compact"
    ]


def test_bounds_are_told_to_the_last_digit(problems_of):
    assert "seed must be < 4294967296, got 4294967296" in problems_of(MINIMAL + "seed: 4294967296\n")[0]
    assert "lora.dropout must be < 1, got 1.5" in problems_of(MINIMAL + "lora: {dropout: 1.5}\n")[0]


def test_yaml_scalars_are_read_as_written():
    data = parse("[off, 010, 1:30, 0x10, 1_000, -.5, .inf, ~, '']".join(["a: ", ""])).data["a"]
    assert data == ["off", "010", "1:30", 16, 1000, -0.5, math.inf, None, ""]
