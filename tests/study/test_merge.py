"""Merges: hand values, a slow reference, agreement with peft's adapters on a two-layer model, properties."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compact_distill.errors import ConfigError, RunError
from compact_distill.runs.folder import RunFolder
from compact_distill.students.load import revision_of
from compact_distill.study.merge import merge_adapters, merge_students, merge_weights, pin_as_trained

BASE = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}
OLD, NEW = "a" * 40, "b" * 40  # commits of the fixture `hub`
# tau: [4, -1, 2, 0] and [2, 3, -1, 1]
STUDENTS = [{"w": torch.tensor([5.0, 0.0, 3.0, 1.0])}, {"w": torch.tensor([3.0, 4.0, 0.0, 2.0])}]


@pytest.mark.parametrize(
    ("method", "scale", "expected"),
    [
        ("average", None, [4.0, 2.0, 1.5, 1.5]),
        ("mot", None, [4.0, 2.0, 1.5, 1.5]),
        ("task_arithmetic", None, [1 + 0.4 * 6, 1 + 0.4 * 2, 1 + 0.4 * 1, 1 + 0.4 * 1]),
        ("task_arithmetic", 1.0, [7.0, 3.0, 2.0, 2.0]),
        # half of each is kept: [4, 0, 2, 0] and [2, 3, 0, 0]; all agree, so each entry is the mean of who has one.
        ("ties", None, [1 + 3.0, 1 + 3.0, 1 + 2.0, 1.0]),
        ("ties", 0.5, [1 + 1.5, 1 + 1.5, 1 + 1.0, 1.0]),
    ],
)
def test_hand_values(method, scale, expected):
    assert merge_weights(BASE, STUDENTS, method, 0.5, scale)["w"].tolist() == pytest.approx(expected)


def slow_ties(base, students, density, scale):
    """Entry by entry, as the paper says it in words."""
    changes = [[w - b for w, b in zip(student, base, strict=True)] for student in students]
    kept = []
    for change in changes:
        order = sorted(range(len(change)), key=lambda i: -abs(change[i]))[: int(density * len(change))]
        kept.append([value if i in order else 0.0 for i, value in enumerate(change)])
    merged = []
    for i, start in enumerate(base):
        column = [change[i] for change in kept]
        sign = 1 if sum(column) >= 0 else -1
        agreeing = [value for value in column if value * sign > 0]
        merged.append(start + scale * (sum(agreeing) / len(agreeing) if agreeing else 0.0))
    return merged


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_ties_is_the_slow_reference(density):
    torch.manual_seed(0)
    base = torch.randn(40)
    students = [base + torch.randn(40) for _ in range(3)]
    found = merge_weights({"w": base}, [{"w": student} for student in students], "ties", density)["w"]
    slow = slow_ties(base.tolist(), [s.tolist() for s in students], density, 1.0)
    assert found.tolist() == pytest.approx(slow, abs=1e-6)


def test_dare_keeps_the_expected_change_and_about_its_density():
    base = {"w": torch.zeros(20_000)}
    students = [{"w": torch.ones(20_000)}, {"w": torch.ones(20_000)}]
    found = merge_weights(base, students, "dare_linear", 0.25, scale=0.5)["w"]
    assert set(found.tolist()) == {0.0, 2.0, 4.0}  # 0.5 / 0.25 a student that kept the entry
    assert float(found.mean()) == pytest.approx(1.0, abs=0.05)
    again = merge_weights(base, students, "dare_linear", 0.25, scale=0.5)["w"]
    assert torch.equal(found, again), "the same seed keeps the same entries"
    assert not torch.equal(found, merge_weights(base, students, "dare_linear", 0.25, scale=0.5, seed=1)["w"])


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "ties", "dare_ties", "dare_linear"])
def test_students_that_did_not_move_leave_the_base_where_it_was(method):
    found = merge_weights(BASE, [BASE, BASE], method)["w"]
    assert torch.equal(found, BASE["w"])


def test_the_order_of_students_does_not_matter():
    for method in ("average", "task_arithmetic", "ties"):
        one, other = merge_weights(BASE, STUDENTS, method), merge_weights(BASE, STUDENTS[::-1], method)
        assert torch.allclose(one["w"], other["w"])


class TwoLayers(nn.Module):
    """What peft adapts in a test: two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))


def adapted(seed, count):
    """A two-layer model with `count` adapters whose A are equal, as branches of one seed have them at the start."""
    import peft

    torch.manual_seed(seed)
    names = [f"branch{i}" for i in range(count)]
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["one", "two"], lora_dropout=0.0)
    model = peft.PeftModel(TwoLayers(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter)
    return model, names


def change_of(model, layer, name):
    return getattr(model.base_model.model, layer).get_delta_weight(name)


def test_the_average_of_adapters_is_that_of_whole_weights():
    model, names = adapted(0, 3)
    changes = {layer: [change_of(model, layer, name).clone() for name in names] for layer in ("one", "two")}
    merged = merge_adapters(model, names, "average")
    for layer, parts in changes.items():
        base = {"w": torch.zeros_like(parts[0])}
        whole = merge_weights(base, [{"w": part} for part in parts], "average")["w"]
        assert torch.allclose(change_of(model, layer, merged), whole, atol=1e-6)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "dare_linear"])
def test_adapters_are_merged_by_the_formulas_of_whole_weights_on_their_factors(method, monkeypatch):
    """peft scales each factor by the root of weight and alpha / r; our formulas on those factors give its adapter."""
    # peft draws random numbers of its own between; both sides get DARE's choice from this instead.
    monkeypatch.setattr(
        torch, "bernoulli", lambda chances: (torch.arange(chances.numel()) % 3 > 0).float().view_as(chances)
    )
    model, names = adapted(1, 3)
    scale = {"task_arithmetic": 0.4 / 3, "dare_linear": 0.4 / 3}.get(method, 1.0)
    layers = {name: getattr(model.base_model.model, name) for name in ("one", "two")}
    factors = {
        (name, side): [getattr(layer, side)[own].weight.detach().clone() for own in names]
        for name, layer in layers.items()
        for side in ("lora_A", "lora_B")
    }
    merged = merge_adapters(model, names, method, density=0.5)
    for (name, side), parts in factors.items():
        root = (scale * 2.0) ** 0.5  # alpha / r = 2
        ours = merge_weights({"w": torch.zeros_like(parts[0])}, [{"w": part} for part in parts], method, 0.5, root)["w"]
        assert torch.allclose(getattr(layers[name], side)[merged].weight, ours, atol=1e-6)


def test_a_merge_loads_the_hubs_base_at_the_commit_that_its_students_started_from(hub, tmp_path):
    runs = []
    for name, commit in (("one", OLD), ("two", OLD), ("late", NEW)):
        with RunFolder.claim(tmp_path / name) as folder:
            folder.update_manifest(student={"name": "org/tiny", "commits": {"org/tiny": commit}})
        runs.append(tmp_path / name / "student")
    hub.move(NEW)
    assert pin_as_trained(runs[:2]) == {"org/tiny": OLD}
    assert revision_of("org/tiny") == OLD
    assert pin_as_trained([tmp_path / "elsewhere"]) == {}
    with pytest.raises(ConfigError, match="started from org/tiny at aaaaaaaaaaaa and at bbbbbbbbbbbb"):
        pin_as_trained(runs)


def test_a_merge_of_one_is_refused(tmp_path):
    with pytest.raises(RunError, match="at least two students, got 1"):
        merge_students("base", [tmp_path], tmp_path / "out", "ties")
