"""LoRA that keeps its input alone computes what peft's own forward does, with dropout and without."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoRALinear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compact_distill.method.forward import attach
from compact_distill.method.kernels import lora
from compact_distill.method.kernels.layers import patch_layers
from compact_distill.method.kernels.lora import Adapter, LowRank
from method.kernels.test_layers import assert_close, numbers_kept, outcome, random
from models import ARCHITECTURES, tiny_model

WIDTH = 32


def adapted(
    dtype: torch.dtype = torch.float64, dropout: float = 0.0, architecture: str = "llama", **fields: Any
) -> nn.Module:
    """A decoder layer's modules with adapters, in training mode."""
    model = tiny_model(architecture, layers=1, lora=fields or True, lora_dropout=dropout, dtype=dtype)
    return model.get_base_model().model.layers[0].train()


class Replayed(nn.Module):
    """Dropout as peft's forward would do it, with the mask that ours draws from its seed, tile by tile."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, states: Tensor) -> Tensor:
        dropped = round(self.rate * 2**16)
        seed = int(torch.empty((), dtype=torch.int64).random_())
        width = states.shape[-1]
        draw = LowRank(torch.zeros(1, width, dtype=states.dtype), torch.zeros(1, 1), (1.0, dropped, seed), states.dtype)
        rows = states.reshape(-1, width)
        keep = torch.cat([draw.keep(rows[tile]) for tile in lora.tiles(rows)])
        return states * keep.view_as(states) * 2**16 / (2**16 - dropped)


def both(layer: nn.Module, part: str, states: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outcome of a patched copy, and of peft's own forward with the same masks."""
    patched, plain = copy.deepcopy(layer), copy.deepcopy(layer)
    patch_layers(patched)
    for module in plain.modules():
        if isinstance(module, LoRALinear) and isinstance(module.lora_dropout["default"], nn.Dropout):
            module.lora_dropout["default"] = Replayed(module.lora_dropout["default"].p)
    found = []
    for one in (patched, plain):
        torch.manual_seed(5)
        found.append(outcome(one.get_submodule(part), states))
    return found[0], found[1]


PARTS = ("mlp", "self_attn.q_proj", "self_attn.v_proj")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("tile", [1, 4, 100])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_it_is_pefts_forward_and_backward(
    architecture: str, tile: int, dropout: float, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "TILE_ROWS", tile)
    layer = adapted(architecture=architecture, dropout=dropout)
    ours, theirs = both(layer, part, random(2, 5, WIDTH))
    assert_close(ours, theirs)
    assert len(ours) == 2 + (6 if part == "mlp" else 2)  # output, input, and the adapters' matrices alone


@pytest.mark.parametrize("fields", [{"use_rslora": True}, {"r": 1}, {"target_modules": ["gate_proj", "q_proj"]}])
@pytest.mark.parametrize("part", PARTS)
def test_other_ranks_scales_and_targets_are_pefts(fields: dict[str, Any], part: str) -> None:
    layer = adapted(dropout=0.2, **fields)
    if isinstance(layer.get_submodule(part), LoRALinear) or part == "mlp":
        assert_close(*both(layer, part, random(1, 11, WIDTH)))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_under_autocast_it_is_pefts_to_rounding(part: str, dropout: float) -> None:
    layer = adapted(torch.float32, dropout)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = both(layer, part, random(1, 11, WIDTH, dtype=torch.float32))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= 2e-2 * other.norm()


@pytest.mark.parametrize("part", PARTS)
def test_adapters_more_precise_than_their_base_stay_so(part: str) -> None:
    layer = adapted(torch.bfloat16, 0.2)
    for module in layer.modules():
        if isinstance(module, LoRALinear):  # as peft makes them for a base in half precision
            module.lora_A.float()
            module.lora_B.float()
    ours, theirs = both(layer, part, random(1, 11, WIDTH, dtype=torch.bfloat16))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert (one.float() - other.float()).norm() <= 2e-2 * other.float().norm()


# ---- dropout


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    eye = torch.eye(64, dtype=torch.float64)
    mean = torch.zeros(64, dtype=torch.float64)
    zeros, count = 0, 400
    for seed in range(count):
        out = torch.zeros(16, 64, dtype=torch.float64)
        LowRank(eye, eye, (1.0, round(0.1 * 2**16), seed), None).add(out, torch.ones(16, 64, dtype=torch.float64))
        zeros += int((out == 0).sum())
        mean += out.mean(0) / count
        assert set(out.flatten().tolist()) <= {0.0, 65536 / (65536 - 6554)}
    total = count * 16 * 64
    assert abs(zeros / total - 0.1) < 4 * (0.09 / total) ** 0.5
    assert (mean - 1).abs().max() < 5 * (0.1 / 0.9 / (count * 16)) ** 0.5


def test_random_bits_go_on_where_a_tile_ended_and_repeat() -> None:
    whole = lora.random_bits(1000, 7, 0)
    parts = [lora.random_bits(count, 7, start) for start, count in ((0, 1), (1, 299), (300, 700))]
    assert torch.equal(torch.cat(parts), whole)
    # By hand, in Python's integers: a counter, and twice: xor with itself shifted (signed), times an odd number.
    signed = lambda z: (z + 2**63) % 2**64 - 2**63  # noqa: E731
    z = signed(7 + 3 * -7046029254386353131)
    z = signed((z ^ (z >> 32)) * -4658895280553007687)
    z = signed((z ^ (z >> 29)) * -7723592293110705685)
    assert whole[3].item() == z


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_drops_the_same_again_and_as_often_as_told() -> None:
    x_ND = torch.ones(200, 300, device="cuda", dtype=torch.bfloat16)
    first, again, other = (
        lora.LowRank(x_ND[:8], x_ND[:8, :8], (1.0, 2**16 // 10, seed), None).keep(x_ND) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.float().mean()) == pytest.approx(0.9, abs=0.01)


def test_random_bits_are_uniform_and_unrelated() -> None:
    n = 100_000
    for seed in (0, 1, 2**62 + 12345, -5):
        bits = lora.random_bits(n, seed, 0)
        assert len(bits.unique()) == n
        levels = bits.view(torch.int16).view(n, 4).double()
        counts = torch.stack([torch.histc(levels[:, lane], 64, -(2**15), 2**15) for lane in range(4)])
        expected = n / 64
        chi_square = ((counts - expected) ** 2 / expected).sum(1)
        assert (chi_square < 63 + 5 * (2 * 63) ** 0.5).all()  # 63 degrees of freedom
        assert (chi_square > 63 - 5 * (2 * 63) ** 0.5).all()
        other = lora.random_bits(n, seed + 1, 0).view(torch.int16).view(n, 4).double()
        columns = [*levels.t(), *levels.roll(1, 0).t(), *levels.roll(144, 0).t(), *other.t()]
        related = torch.corrcoef(torch.stack(columns)) - torch.eye(16, dtype=torch.float64)
        assert related.abs().max() < 6 / n**0.5


def test_every_projection_and_every_step_has_a_mask_of_its_own() -> None:
    layer = adapted(dropout=0.5)
    attention = layer.self_attn
    first, second = (Adapter.of(m) for m in (attention.q_proj, attention.k_proj))
    assert len({first.seed, second.seed, Adapter.of(attention.q_proj).seed}) == 3
    attention.q_proj.eval()
    assert Adapter.of(attention.q_proj).dropped == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_an_activation_checkpoint_replays_the_mask(reentrant: bool) -> None:
    layer = adapted(dropout=0.4)
    patch_layers(layer)
    states = random(1, 9, WIDTH).requires_grad_()
    found = []
    for run in (layer.mlp, lambda x: checkpoint(layer.mlp, x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        out = run(states)
        layer.zero_grad()
        states.grad = None
        out.sum().backward()
        found.append([out.detach(), states.grad, *(p.grad for p in layer.mlp.parameters() if p.requires_grad)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


# ---- what is kept


def test_projections_of_one_input_keep_it_once() -> None:
    layer = adapted(dropout=0.1)
    attention = layer.self_attn
    run = nn.Module()
    run.parts = nn.ModuleList([attention.q_proj, attention.k_proj, attention.v_proj])
    run.forward = lambda states: sum(part(states).sum() for part in run.parts)
    tokens, states = 10, random(1, 10, WIDTH).requires_grad_()
    before = numbers_kept(run, states)
    patch_layers(layer)
    assert numbers_kept(run, states) == tokens * (WIDTH + 3 * 4)  # and rank numbers for each
    assert before >= 3 * tokens * WIDTH


def test_an_adapted_mlp_keeps_its_input_and_two_factors() -> None:
    layer = adapted(dropout=0.1)
    patch_layers(layer)
    assert numbers_kept(layer.mlp, random(1, 10, WIDTH).requires_grad_()) == 10 * (WIDTH + 2 * 48 + 3 * 4)


# ---- what is left to peft


def disable(module: Any) -> None:
    module.enable_adapters(False)


def merge(module: Any) -> None:
    module.merge()


def listen(module: Any) -> None:
    module.lora_A["default"].register_forward_hook(lambda m, i, out: 2 * out)


def thaw(module: Any) -> None:
    module.base_layer.weight.requires_grad_(True)


def replace_base(module: Any) -> None:
    module.base_layer.forward = lambda states: torch.ones(*states.shape[:-1], module.out_features, dtype=states.dtype)


@pytest.mark.parametrize("change", [disable, merge, listen, thaw, replace_base])
@pytest.mark.parametrize("part", PARTS)
def test_what_we_do_not_know_goes_through_pefts_own_forward(change: Any, part: str) -> None:
    layer = adapted()
    own = layer.get_submodule(part)
    change(own.up_proj if part == "mlp" else own)
    theirs = outcome_of_used(copy.deepcopy(layer).get_submodule(part))
    patch_layers(layer)
    assert_close(outcome_of_used(layer.get_submodule(part)), theirs)


def outcome_of_used(module: nn.Module) -> list[Tensor]:
    """Output and gradients, of what takes part."""
    states = random(1, 7, WIDTH).requires_grad_()
    out = module(states)
    parameters = [p for p in module.parameters() if p.requires_grad]
    grads = torch.autograd.grad(out.square().sum(), [states, *parameters], allow_unused=True)
    return [out.detach(), *(g for g in grads if g is not None)]


@pytest.mark.parametrize(
    "fields",
    [{"use_dora": True}, {"lora_bias": True}, {"init_lora_weights": "pissa"}, {"target_modules": ["embed_tokens"]}],
    ids=["dora", "bias of the adapter", "pissa", "embeddings"],
)
def test_other_kinds_of_adapters_are_pefts(fields: dict[str, Any]) -> None:
    model = tiny_model("qwen2", layers=1, dtype=torch.float32)
    config = LoraConfig(**({"target_modules": ["q_proj", "up_proj"]} | fields))
    model = get_peft_model(model, config)
    ids = torch.arange(2, 12)[None]
    expected = model(ids).logits
    attach(model)
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_two_active_adapters_are_pefts() -> None:
    model = tiny_model("llama", layers=1, lora=True)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    q_proj = model.get_base_model().model.layers[0].self_attn.q_proj
    q_proj.lora_B["other"].weight.data.fill_(0.3)
    assert Adapter.of(q_proj) is None
    expected = outcome_of_used(q_proj)
    patch_layers(q_proj)
    assert_close(outcome_of_used(q_proj), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_added_after_attaching_are_taken_over_by_attaching_again(architecture: str) -> None:
    model = tiny_model(architecture, layers=1)
    attach(model)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj"]))
    adapted = [module for module in model.modules() if isinstance(module, LoRALinear)]
    assert len(adapted) == 2
    assert not any("forward" in vars(module) for module in adapted)
    attach(model)
    assert all("forward" in vars(module) for module in adapted)
