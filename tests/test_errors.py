"""Errors: everything wrong at once, and the nearest valid name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import compact_distill
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


_ADVICE = re.compile(
    r"(?i)\b(?:remove|delete|erase|wipe|discard|overwrite|rmdir|rm -|get rid of|start (?:afresh|anew))\b"
)
_PAID = re.compile(
    r"(?i)folder|student|store|rationale|run\b|checkpoint|output|eval|answer|result|repl(?:y|ies)|\.jsonl"
)
# Each has been looked at: a row, setting or file of the user's own input, what moves, or what an option does.
_LOOKED_AT = (
    "answer must be the gold answer as text or a number, {}; write it or remove the row",
    "has no rationale at all{}; write at least one or remove the row",
    "task {} stands twice; results are kept by name: remove or rename one ({})",
    "is the run's own; remove it",
    "is set by the launcher (torchrun, accelerate); remove it",
    "train.fp16 needs a GPU, and this run computes on a CPU; remove it (weights stay in fp32)",
    "row {} of {}: its prompt of {} tokens and choice {} of {} do not fit in the student's {}; lower fewshot, or "
    "remove the row",
    "row {}: its prompt of {} tokens and {} new ones do not fit in the student's {}; lower max_new_tokens of the task, "
    "or remove the row",
    "none of the {} checkpoints in {} is complete; move them elsewhere to start anew",
    "train: other inputs than before ({}). What it had made is now in {}, a run folder of its own, which "
    "`compact report` reads (--discard deletes it). To take it back: compact run {} --set output={}",
    "Delete a student of other inputs instead of moving it aside.",
)


def sentences(source: str) -> list[str]:
    """Every text of a module that may be shown: f-strings with {} for what is filled in, and no docstring."""
    tree = ast.parse(source)
    owners = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    first = [node.body[0] for node in owners if node.body]
    docstrings = {id(node.value) for node in first if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [] if id(node) in docstrings | inside else [node.value]
    return found


def advice_to_remove(text: str) -> bool:
    return bool(_ADVICE.search(text) and _PAID.search(text))


def test_no_message_advises_to_remove_what_holds_paid_answers_or_a_student():
    found = {
        sentence
        for path in Path(compact_distill.__file__).parent.rglob("*.py")
        for sentence in sentences(path.read_text(encoding="utf-8"))
        if advice_to_remove(sentence)
    }
    assert sorted(found - set(_LOOKED_AT)) == []
    assert set(_LOOKED_AT) <= found  # none is kept for a message that is gone


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ('raise RunError(f"{path} is damaged; remove the folder")', True),
        ('say(f"the store {x} is of other settings; delete " f"it")', True),
        ('say("start again: rm -r runs/compact/student")', True),
        ("say(\"key 'a' stands twice; remove one\")", False),
        ('def f():\n    """Remove the folder."""\n', False),
    ],
)
def test_advice_to_remove_is_recognised(source, told):
    assert any(map(advice_to_remove, sentences(source))) == told
