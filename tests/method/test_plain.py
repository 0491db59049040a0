"""The plain reading of the package is the tests' own slow reference."""

from __future__ import annotations

import pytest
import torch

import reference
from compact_distill.method.forward import PassOptions
from compact_distill.method.plain import exact_norms, read_plainly
from method.test_exactness import PROBLEMS, as_package
from models import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_the_reference(architecture: str) -> None:
    model = tiny_model(architecture, layers=2)
    given = [as_package(problem, str(i)) for i, problem in enumerate(PROBLEMS)]
    lens = read_plainly(model, given, PassOptions(gold=True))
    probes = read_plainly(model, given, PassOptions(max_probes=3))
    for b, problem in enumerate(PROBLEMS):
        present = [k for k, branch in enumerate(problem.branches) if branch is not None]
        assert lens.present_BK[b].nonzero()[:, 0].tolist() == present
        for place, k in enumerate(present):
            branch = problem.branches[k]
            mean = lens.nll_BKT[b, k].sum() / lens.length_BK[b, k]
            torch.testing.assert_close(mean, reference.difficulty(model, problem, branch), atol=1e-12, rtol=0)
            beliefs = lens.belief_BKP[b, k][lens.point_BKP[b, k]].tolist()
            assert beliefs == pytest.approx(reference.lens_beliefs(model, problem, branch), abs=1e-12)
            beliefs = probes.belief_BKP[b, k][probes.point_BKP[b, k]].tolist()
            assert beliefs == pytest.approx(reference.probe_beliefs(model, problem, branch, 3), abs=1e-12)
            gold = reference.gold_distributions(model, problem, branch)
            torch.testing.assert_close(lens.gold_logprob[b][place], gold, atol=1e-12, rtol=0)
            state = reference.path_state(model, problem, branch, "last")
            query, key = reference.queries_and_keys(reference.last_attention(model), state[None])
            torch.testing.assert_close(lens.query_BKHD[b, k], query[0], atol=1e-12, rtol=0)
            torch.testing.assert_close(lens.key_BKGD[b, k], key[0], atol=1e-12, rtol=0)


def test_exact_norms_change_nothing_but_rounding() -> None:
    model = tiny_model("qwen3", layers=1, dtype=torch.float32)
    ids = torch.arange(2, 9)[None]
    before = model(ids).logits
    exact_norms(model)
    torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-5)
