"""Merges: hand values, a slow reference, agreement with peft's adapters on a two-layer model, properties."""

from __future__ import annotations

import json
import sys
from typing import get_args

import pytest
import torch
from torch import nn

import models
from compact_distill import pipeline
from compact_distill.config.file import config_from, dump_config
from compact_distill.errors import ConfigError, RunError
from compact_distill.runs.folder import RunFolder
from compact_distill.students.load import revision_of
from compact_distill.study import merge
from compact_distill.study.arms import MergeMethod
from compact_distill.study.merge import merge_adapters, merge_students, merge_weights, pin_as_trained

METHODS = get_args(MergeMethod)
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


@pytest.fixture
def coins(monkeypatch):
    """Let DARE keep what the given lists of 0 and 1 say, one list a student, instead of drawing."""

    def take(*masks):
        left = iter(masks)
        monkeypatch.setattr(torch, "bernoulli", lambda chances: torch.tensor(next(left)).view_as(chances))

    return take


@pytest.mark.parametrize(
    ("method", "scale", "expected"),
    [
        # kept and doubled: [8, -2, 0, 0] and [4, 6, -2, 2], of sum [12, 4, -2, 2]
        ("dare_linear", None, [1 + 0.4 * 12, 1 + 0.4 * 4, 1 - 0.4 * 2, 1 + 0.4 * 2]),
        ("dare_linear", 1.0, [13.0, 5.0, -1.0, 3.0]),
        # The second entry's sum is positive, so its -2 is left out; where one student alone has one, that is the mean.
        ("dare_ties", None, [1 + 6.0, 1 + 6.0, 1 - 2.0, 1 + 2.0]),
        ("dare_ties", 0.5, [1 + 3.0, 1 + 3.0, 1 - 1.0, 1 + 1.0]),
    ],
)
def test_hand_values_of_dare(method, scale, expected, coins):
    coins([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0])
    assert merge_weights(BASE, STUDENTS, method, 0.5, scale)["w"].tolist() == pytest.approx(expected)


def slow_merge(method, base, students, density=0.5, scale=None, masks=()):
    """Entry by entry, as the papers say it in words; `masks` are what DARE keeps of each student."""
    changes = [[w - b for w, b in zip(student, base, strict=True)] for student in students]
    if method == "ties":
        for change in changes:
            largest = sorted(range(len(change)), key=lambda i: -abs(change[i]))[: int(density * len(change))]
            change[:] = [value if i in largest else 0.0 for i, value in enumerate(change)]
    elif method.startswith("dare"):
        for change, mask in zip(changes, masks, strict=True):
            change[:] = [value / density if kept else 0.0 for value, kept in zip(change, mask, strict=True)]
    merged = []
    for start, *column in zip(base, *changes, strict=True):
        if method in ("average", "mot"):
            change = sum(column) / len(column)
        elif method in ("task_arithmetic", "dare_linear"):
            change = (0.4 if scale is None else scale) * sum(column)
        else:
            sign = 1 if sum(column) >= 0 else -1
            agreeing = [value for value in column if value * sign > 0]
            change = (1.0 if scale is None else scale) * (sum(agreeing) / len(agreeing) if agreeing else 0.0)
        merged.append(start + change)
    return merged


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("method", METHODS)
def test_every_merge_is_the_slow_reference(method, density, scale, coins):
    random = torch.Generator().manual_seed(0)
    base = torch.randn(40, generator=random)
    students = [base + torch.randn(40, generator=random) for _ in range(3)]
    masks = [(torch.rand(40, generator=random) < density).float().tolist() for _ in students]
    coins(*masks)
    found = merge_weights({"w": base}, [{"w": student} for student in students], method, density, scale)["w"]
    slow = slow_merge(method, base.tolist(), [s.tolist() for s in students], density, scale, masks)
    assert found.tolist() == pytest.approx(slow, abs=1e-5)


def test_dare_keeps_the_expected_change_and_about_its_density():
    base = {"w": torch.zeros(20_000)}
    students = [{"w": torch.ones(20_000)}, {"w": torch.ones(20_000)}]
    found = merge_weights(base, students, "dare_linear", 0.25, scale=0.5)["w"]
    assert set(found.tolist()) == {0.0, 2.0, 4.0}  # 0.5 / 0.25 a student that kept the entry
    assert float(found.mean()) == pytest.approx(1.0, abs=0.05)
    again = merge_weights(base, students, "dare_linear", 0.25, scale=0.5)["w"]
    assert torch.equal(found, again), "the same seed keeps the same entries"
    assert not torch.equal(found, merge_weights(base, students, "dare_linear", 0.25, scale=0.5, seed=1)["w"])


def test_dare_that_keeps_everything_is_what_it_is_built_on():
    for dare, plain in (("dare_linear", "task_arithmetic"), ("dare_ties", "ties")):
        one, other = (merge_weights(BASE, STUDENTS, method, 1.0)["w"] for method in (dare, plain))
        assert torch.equal(one, other)


def test_dare_ties_moves_no_entry_against_the_sign_of_what_was_kept():
    base = {"w": torch.zeros(1000)}
    students = [{"w": torch.ones(1000)}, {"w": -3 * torch.ones(1000)}]
    found = set(merge_weights(base, students, "dare_ties", 0.5)["w"].tolist())
    assert found == {0.0, 2.0, -6.0}, "neither kept, the first alone, the second with or without the first"
    again = [merge_weights(base, students, "dare_ties", 0.5, seed=seed)["w"] for seed in (3, 3, 4)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


@pytest.mark.parametrize("method", METHODS)
def test_a_scale_stretches_the_change_and_an_average_has_none(method):
    moved = [merge_weights(BASE, STUDENTS, method, 0.5, scale)["w"] - BASE["w"] for scale in (1.0, 2.0)]
    factor = 1 if method in ("average", "mot") else 2
    assert torch.allclose(moved[1], factor * moved[0])


@pytest.mark.parametrize("method", METHODS)
def test_students_that_did_not_move_leave_the_base_where_it_was(method):
    found = merge_weights(BASE, [BASE, BASE], method)["w"]
    assert torch.equal(found, BASE["w"])


def test_the_order_of_students_does_not_matter():
    for method in ("average", "mot", "task_arithmetic", "ties"):
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
    """peft scales each factor by the root of weight and alpha / r; our formulas on those factors give its adapter.

    So does the slow reference, which shares no code with peft.
    """
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
        theirs = getattr(layers[name], side)[merged].weight
        assert torch.allclose(theirs, ours, atol=1e-6)
        masks = [(torch.arange(part.numel()) % 3 > 0).tolist() for part in parts]
        flat = [part.flatten().tolist() for part in parts]
        slow = slow_merge(method, [0.0] * len(flat[0]), flat, 0.5, root, masks)
        assert theirs.flatten().tolist() == pytest.approx(slow, abs=1e-6)


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


def tiny_students(folder):
    """A base and two students of other weights, as folders."""
    made = []
    for seed in range(3):
        model = models.tiny_model("llama", layers=1, dtype=torch.float32, seed=seed)
        made.append(models.save_student(folder / f"student-{seed}", model, models.byte_level_tokenizer()))
    return str(made[0]), made[1:]


def test_a_merge_into_a_folder_that_is_there_moves_that_aside(tmp_path, capsys):
    base, students = tiny_students(tmp_path)
    out = tmp_path / "merged"
    (out / "my notes").mkdir(parents=True)
    (out / "my notes" / "one.txt").write_text("mine")
    merge_students(base, students, out, "average")
    (aside,) = tmp_path.glob("merged.*")
    assert (aside / "my notes" / "one.txt").read_text() == "mine"
    assert str(aside) in capsys.readouterr().err
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode


def test_a_merged_student_of_other_students_is_moved_aside_with_its_results(tmp_path, monkeypatch, capsys):
    base, students = tiny_students(tmp_path)
    config = config_from({"student": base, "rationales": "none.jsonl", "output": str(tmp_path / "run")})
    monkeypatch.setattr(merge, "_state", lambda student: {"global_step": 1, "epoch": 1.0})
    monkeypatch.setattr(pipeline, "evaluate", lambda *_: None)
    (tmp_path / "run.yaml").write_text(dump_config(config))

    def merged(method):
        task = {"base": base, "students": [str(s) for s in students], "out": str(tmp_path / "run" / "student")}
        task |= {"method": method, "density": 0.5, "scale": None, "seed": 0, "whole": True}
        (tmp_path / "task.json").write_text(json.dumps({**task, "config": str(tmp_path / "run.yaml")}))
        monkeypatch.setattr(sys, "argv", ["merge", str(tmp_path / "task.json")])
        merge.main()
        return (tmp_path / "run" / "student" / "model.safetensors").read_bytes()

    first = merged("average")
    (tmp_path / "run" / "eval" / "student").mkdir(parents=True)
    (tmp_path / "run" / "eval" / "student" / "gsm8k.json").write_text("{}")
    assert merged("average") == first  # done already
    assert not list((tmp_path / "run").glob("before.*"))
    assert merged("task_arithmetic") != first
    (aside,) = (tmp_path / "run").glob("before.*")
    assert str(aside) in capsys.readouterr().err
    assert (aside / "student" / "model.safetensors").read_bytes() == first
    assert (aside / "eval" / "student" / "gsm8k.json").is_file()


def test_a_merge_of_one_is_refused(tmp_path):
    with pytest.raises(RunError, match="at least two students, got 1"):
        merge_students("base", [tmp_path], tmp_path / "out", "ties")
