"""Errors: everything wrong at once, and the nearest valid name."""

from __future__ import annotations

import pytest

from compact_distill.errors import CompactError, ConfigError, InputError, nearest


def test_an_input_error_holds_each_problem_and_reads_as_all_of_them():
    error = ConfigError(["a must be > 0, got 0", "b is missing"])
    assert error.problems == ["a must be > 0, got 0", "b is missing"]
    assert str(error) == "a must be > 0, got 0\nb is missing"
    assert InputError("only one").problems == ["only one"]


@pytest.mark.parametrize(("name", "said"), [("temperatur", "; did you mean 'temperature'?"), ("xyz", ""), ("", "")])
def test_the_nearest_name_is_offered_only_where_one_is_near(name, said):
    assert nearest(name, ["temperature", "top_p"]) == said


def test_every_kind_of_error_is_ended_by_the_command_line():
    assert issubclass(ConfigError, InputError)
    assert issubclass(InputError, CompactError)
