"""Norms and MLPs that keep less compute what transformers' own do."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from compact_distill.method.kernels import layers
from compact_distill.method.kernels.layers import gated, patch_layers, rms_norm
from models import ARCHITECTURES, tiny_model


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_close(ours: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def outcome(module: nn.Module, states: Tensor) -> list[Tensor]:
    """Output, gradient of the input, and gradients of all trainable parameters."""
    states = states.clone().requires_grad_()
    out = module(states)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    upstream = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [states, *parameters], upstream)]


def both(module: nn.Module, states: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outcome of a patched copy, and of the module as it was."""
    patched = copy.deepcopy(module)
    patch_layers(patched)
    return outcome(patched, states), outcome(module, states)


def numbers_kept(module: nn.Module, states: Tensor) -> int:
    """How many numbers the backward of `module` keeps, its parameters not counted."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        alive.append(tensor)  # so that no address is used twice
        return tensor

    alive: list[Tensor] = []
    with saved_tensors_hooks(note, lambda tensor: tensor):
        alive.append(module(states))
    return sum(size for address, size in kept.items() if address not in parameters)


# --- RMSNorm ------------------------------------------------------------------------------------------------------


def test_a_norm_by_hand() -> None:
    states = torch.tensor([[3.0, 4.0]], requires_grad=True)  # mean square 12.5
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    out = rms_norm(states, weight, 0.0)
    torch.testing.assert_close(out, torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))
    out[0, 0].backward()
    # d (x / sqrt((x^2 + y^2) / 2)) / dx = y^2 / (x^2 + y^2) / rms, / dy = -x y / (x^2 + y^2) / rms
    torch.testing.assert_close(states.grad, torch.tensor([[16.0, -12.0]]) / 25 / math.sqrt(12.5))
    torch.testing.assert_close(weight.grad, torch.tensor([3.0 / math.sqrt(12.5), 0.0]))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_and_its_gradients_are_autograds(offset: float) -> None:
    states, weight = random(2, 3, 4, 6).requires_grad_(), random(6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, w: rms_norm(s, w, 1e-3, offset), (states, weight))


def test_a_norm_does_not_see_the_length_of_its_input() -> None:
    states, weight = random(4, 6).requires_grad_(), random(6, seed=1)
    torch.testing.assert_close(rms_norm(7 * states, weight, 0.0), rms_norm(states, weight, 0.0))
    (slope,) = torch.autograd.grad(rms_norm(states, weight, 0.0).sum(), states)
    torch.testing.assert_close((slope * states).sum(-1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_norms_are_those_of_transformers(architecture: str, dtype: torch.dtype) -> None:
    norm = tiny_model(architecture, dtype=dtype, layers=1).model.norm
    ours, theirs = both(norm, random(2, 5, 32, dtype=dtype))
    assert torch.equal(ours[0], theirs[0])
    assert_close(ours, theirs, 1e-5 if dtype == torch.float32 else 3e-2)


# --- gated MLP ----------------------------------------------------------------------------------------------------


def test_a_gate_by_hand() -> None:
    gate, up = torch.tensor([1.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    out = gated(torch.square, gate, up)
    out.backward()
    assert (out.item(), gate.grad.item(), up.grad.item()) == (3.0, 6.0, 1.0)


def test_a_gate_and_its_gradients_are_autograds() -> None:
    gate, up = random(4, 6).requires_grad_(), random(4, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda g, u: gated(nn.functional.silu, g, u), (gate, up))


@pytest.mark.parametrize(
    "frozen", [(), ("gate_proj",), ("up_proj", "down_proj"), ("gate_proj", "up_proj", "down_proj")]
)
@pytest.mark.parametrize("tile", [1, 4, 100])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_mlps_are_those_of_transformers(
    architecture: str, tile: int, frozen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "TILE_ROWS", tile)
    mlp = tiny_model(architecture, layers=1).model.layers[0].mlp
    for name in frozen:
        getattr(mlp, name).requires_grad_(False)
    assert_close(*both(mlp, random(1, 11, 32)))


class Listener(nn.Linear):
    """A matrix of somebody else's kind, as quantised ones are."""

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, 3 * self.weight)


def change(mlp: Any, how: str) -> None:
    """Make an MLP one that cannot be read in tiles."""
    if how == "hook":
        mlp.up_proj.register_forward_hook(lambda module, inputs, out: 2 * out)
    elif how == "bias":
        mlp.down_proj.bias = nn.Parameter(random(32, seed=2))
    elif how == "kind":
        mlp.gate_proj.__class__ = Listener
    elif how == "forward":
        mlp.gate_proj.forward = lambda states: nn.functional.linear(states, 2 * mlp.gate_proj.weight)


@pytest.mark.parametrize("how", ["hook", "bias", "kind", "forward"])
def test_matrices_that_are_not_plain_are_called(how: str) -> None:
    mlp = tiny_model("llama", layers=1).model.layers[0].mlp
    change(mlp, how)
    expected = outcome(mlp, random(1, 11, 32))
    patch_layers(mlp)
    assert_close(outcome(mlp, random(1, 11, 32)), expected)


def test_an_mlp_in_another_precision_than_its_states_is_an_error_as_in_torch() -> None:
    mlp = tiny_model("llama", layers=1).model.layers[0].mlp
    patch_layers(mlp)
    mlp.gate_proj.float()
    with pytest.raises(RuntimeError, match="same dtype"):
        mlp(random(1, 11, 32).requires_grad_())


def test_mlps_are_those_of_transformers_under_autocast() -> None:
    mlp = tiny_model("llama", layers=1, dtype=torch.float32).model.layers[0].mlp
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = both(mlp, random(1, 11, 32, dtype=torch.float32))
    assert torch.equal(ours[0], theirs[0])
    assert_close(ours, theirs, 2e-2)


# --- what is kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hooked", "kept"), [(False, 320), (True, 320 + 10 * 3 * 48)], ids=["input", "factors_and_product"]
)
def test_an_mlp_keeps_its_input_or_the_factors_too(hooked: bool, kept: int) -> None:
    mlp = tiny_model("llama", layers=1).model.layers[0].mlp
    assert numbers_kept(mlp, random(1, 10, 32).requires_grad_()) == 10 * (32 + 4 * 48)
    if hooked:
        mlp.up_proj.register_forward_hook(lambda module, inputs, out: None)
    patch_layers(mlp)
    assert numbers_kept(mlp, random(1, 10, 32).requires_grad_()) == kept


@pytest.mark.parametrize("rows", [1, 3, 4, 11, 20])
def test_an_mlp_is_the_same_in_tiles_of_any_size(rows: int, monkeypatch) -> None:
    monkeypatch.setattr(layers, "TILE_ROWS", rows)
    mlp = tiny_model("llama", layers=1).model.layers[0].mlp
    assert_close(*both(mlp, random(1, 11, 32)), 1e-12)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_norm_keeps_its_input_and_a_number_a_row(architecture: str) -> None:
    norm = tiny_model(architecture, layers=1, dtype=torch.bfloat16).model.norm
    states = random(1, 10, 32, dtype=torch.bfloat16).requires_grad_()
    before = numbers_kept(norm, states)
    patch_layers(norm)
    assert numbers_kept(norm, states) == 10 * 32 + 10 < before


def test_patching_twice_changes_nothing_and_a_forward_of_ones_own_is_kept() -> None:
    model = tiny_model("llama", layers=1).model
    model.norm.forward = lambda states: 2 * states
    patch_layers(model)
    forwards = [module.forward for module in model.modules()]
    patch_layers(model)
    assert forwards == [module.forward for module in model.modules()]
    assert torch.equal(model.norm(torch.ones(1)), 2 * torch.ones(1))


def test_a_copy_uses_its_own_weights() -> None:
    mlp = tiny_model("llama", layers=1).model.layers[0].mlp
    patch_layers(mlp)
    other = copy.deepcopy(mlp)
    other.down_proj.weight.data.zero_()
    states = random(1, 3, 32).requires_grad_()
    assert other(states).abs().max() == 0 < mlp(states).abs().max()
