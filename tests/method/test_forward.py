"""What the pass reads outside the model's own forward: projections without dropout and without autocast."""

from __future__ import annotations

import pytest
import torch

from compact_distill.method.encode import Branch, EncodedProblem
from compact_distill.method.forward import _project, attach
from compact_distill.method.packing import lay_out
from compact_distill.records import RationaleStatus
from compact_distill.students.load import innermost
from models import tiny_model

BRANCHES = tuple(Branch(tuple(range(3, 3 + length)), (7, 8), 1, (False,) * length, ()) for length in (5, 2, 9))
PROBLEM = EncodedProblem("p", ("a", "b", "c"), (4, 5), BRANCHES, (RationaleStatus.OK,) * 3, (7, 8), 0, 1)


def projections(model, pool):
    layout = lay_out([PROBLEM], with_gold=False)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(layout.tokens), 32, generator=generator, dtype=next(model.parameters()).dtype)
    return _project(innermost(model), hidden, layout.branches, pool)


@pytest.mark.parametrize("pool", ["last", "attention"])
def test_projections_are_read_without_dropout_which_is_on_again_afterwards(pool):
    model = tiny_model("qwen3", lora=True, lora_dropout=0.5)
    attach(model)
    expected = projections(model.eval(), pool)
    found = projections(model.train(), pool)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts
    assert all(module.training for module in dropouts)


@pytest.mark.parametrize("pool", ["last", "attention"])
def test_autocast_rounds_neither_projections_nor_scores(pool):
    model = tiny_model("qwen3", dtype=torch.float32)
    attach(model)
    expected = projections(model, pool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = projections(model, pool)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
