"""Base and student side by side: states and predictions read right, with and without adapters, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import linear_kernel
from sklearn.preprocessing import KernelCenterer

from compact_distill.errors import DataError, StudentError
from compact_distill.evaluation.drift import (
    Plane,
    Reader,
    describe_drift,
    linear_cka,
    measure_drift,
    pca_shift,
    read_both,
)
from compact_distill.evaluation.task import Task
from compact_distill.evaluation.task_rows import TaskRow, TaskRows
from compact_distill.students.identity import student_hash
from models import byte_level_tokenizer, randomise, save_student, tiny_model

QUESTIONS = ["What is 1 + 1?", "How many apples does Ann have?", "Is it so?", "Thus", "She sells 18 eggs. Why?"]


def task_rows(questions=QUESTIONS, name: str = "mine") -> TaskRows:
    rows = [TaskRow(f"{name}{n}", q, q, "2", {}) for n, q in enumerate(questions)]
    return TaskRows(Task(name=name, version=1, data={"path": "mine.jsonl"}), tuple(rows), 0, None)


def prompts() -> list[list[int]]:
    tokenizer = byte_level_tokenizer()
    return [tokenizer(f"Question: {q}\nAnswer:")["input_ids"] for q in QUESTIONS]


def moved(model, seed: int):
    """The same model with other weights in its last layers."""
    other = tiny_model("llama", dtype=torch.float64)
    other.load_state_dict(model.state_dict())
    randomise(other.model.layers[1], seed)
    return other


def slow(model, prompt: list[int]):
    """States of the last token by layer, and all next-token distributions, of one prompt alone."""
    with torch.no_grad():
        out = model(torch.tensor([prompt]), output_hidden_states=True)
    states = [layer[0, -1].numpy() for layer in out.hidden_states[1:]]
    return states, torch.softmax(out.logits[0].double(), -1).numpy()


@pytest.fixture(scope="module")
def pair():
    base = tiny_model("llama")
    return base, moved(base, 1)


def test_states_and_kl_are_those_of_each_prompt_read_alone(pair):
    base, student = pair
    readings = read_both(Reader(base), Reader(student), prompts(), batch_tokens=60)
    for row, prompt in enumerate(prompts()):
        base_states, base_p = slow(base, prompt)
        student_states, student_p = slow(student, prompt)
        for layer in range(3):
            np.testing.assert_allclose(readings.base_LND[layer, row], base_states[layer], atol=1e-10)
            np.testing.assert_allclose(readings.student_LND[layer, row], student_states[layer], atol=1e-10)
        kl = rel_entr(base_p, student_p).sum(axis=-1)
        assert readings.kl_last_N[row] == pytest.approx(kl[-1], rel=1e-9)
        assert readings.kl_prompt_N[row] == pytest.approx(kl.mean(), rel=1e-9)


def test_layers_before_the_first_change_have_not_moved(pair):
    readings = read_both(Reader(pair[0]), Reader(pair[1]), prompts(), 4096)
    np.testing.assert_array_equal(readings.base_LND[0], readings.student_LND[0])
    assert not np.allclose(readings.base_LND[1], readings.student_LND[1])


def test_kl_of_two_known_distributions_by_hand():
    # KL([1/2, 1/4, 1/4] || [1/4, 1/2, 1/4]) = 1/2 ln 2 - 1/4 ln 2.
    class Fixed(Reader):
        @property
        def shape(self):
            return (1, 1, 3)

        def log_probs(self, hidden_ND):
            return hidden_ND.log()

    from compact_distill.evaluation.drift import _kl

    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    assert _kl(Fixed(None), Fixed(None), p, q).item() == pytest.approx(0.25 * np.log(2))
    assert _kl(Fixed(None), Fixed(None), p, p).item() == 0


def test_an_adapter_that_trains_single_tokens_can_be_read():
    model = tiny_model("llama", lora={"trainable_token_indices": [5, 7]})
    readings = read_both(Reader(model, model.disable_adapter), Reader(model), [(3, 5, 9), (4, 8)], 64)
    assert (readings.kl_last_N > 0).all()


def test_reading_leaves_a_model_in_training_as_it_was_and_drops_nothing_out():
    model = tiny_model("llama", lora=True, lora_dropout=0.5)
    model.train()
    once = read_both(Reader(model, model.disable_adapter), Reader(model), prompts(), 4096)
    twice = read_both(Reader(model, model.disable_adapter), Reader(model), prompts(), 4096)
    np.testing.assert_array_equal(once.student_LND, twice.student_LND)
    assert model.training


# ---- folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, an adapter on it, the same adapter merged, and the base again."""
    root = tmp_path_factory.mktemp("students")
    tokenizer = byte_level_tokenizer()
    adapted = tiny_model("llama", lora=True, dtype=torch.float32)
    with adapted.disable_adapter():
        base = tiny_model("llama", dtype=torch.float32)
        base.load_state_dict(
            {
                name.replace(".base_layer", "").removeprefix("base_model.model."): value
                for name, value in adapted.state_dict().items()
                if "lora_" not in name
            }
        )
    save_student(root / "base", base, tokenizer)
    adapted.peft_config["default"].base_model_name_or_path = str(root / "base")
    save_student(root / "adapter", adapted, tokenizer)
    save_student(root / "merged", adapted.merge_and_unload(), tokenizer)
    return root


SETS = {"learned": [task_rows(QUESTIONS[:4], "sums")], "retained": [task_rows(), task_rows(["Why?"], "more")]}


def test_an_adapter_that_is_switched_off_drifts_like_the_merged_student(folders):
    adapter = measure_drift(str(folders / "base"), str(folders / "adapter"), SETS)
    merged = measure_drift(str(folders / "base"), str(folders / "merged"), SETS)
    for one, other in zip(adapter["sets"], merged["sets"], strict=True):
        assert one["rows"] == other["rows"]
        assert one["kl_last"]["mean"] == pytest.approx(other["kl_last"]["mean"], rel=1e-3)
        assert one["kl_last"]["mean"] > 0.01
        for a, b in zip(one["layers"], other["layers"], strict=True):
            for name in ("spread", "centroid_shift", "row_shift", "cka"):
                assert a[name] == pytest.approx(b[name], rel=1e-3), name


def test_the_file_holds_what_the_definitions_give(folders, monkeypatch):
    seen = []

    def spy(*args):
        seen.append(read_both(*args))
        return seen[-1]

    monkeypatch.setattr("compact_distill.evaluation.drift.read_both", spy)
    document = measure_drift(str(folders / "base"), str(folders / "merged"), SETS)
    assert [found["role"] for found in document["sets"]] == ["learned", "retained"]
    assert (document["layers"], document["width"]) == (3, 32)
    retained, readings = document["sets"][1], seen[1]
    assert [(t["name"], t["rows"]) for t in retained["tasks"]] == [("mine", 5), ("more", 1)]
    assert retained["plane"]["ids"] == [f"mine{n}" for n in range(5)] + ["more0"]
    for number, layer in enumerate(retained["layers"]):
        base, student = readings.base_LND[number], readings.student_LND[number]
        shift = pca_shift(Plane.fit(base), base, student)
        assert layer["layer"] == number + 1
        assert layer["cka"] == linear_cka(base, student)
        assert layer["centroid_distance"] == shift.centroid_distance
        assert layer["row_shift"] == shift.row_shift
        np.testing.assert_allclose(retained["plane"]["student"][number], shift.student_N2, rtol=1e-5)
    assert retained["kl_prompt"]["mean"] == pytest.approx(readings.kl_prompt_N.mean())
    assert retained["kl_prompt"]["low"] <= retained["kl_prompt"]["mean"] <= retained["kl_prompt"]["high"]
    json.dumps(document, allow_nan=False)
    assert len(describe_drift(document)) == 2


def test_a_base_has_not_drifted_from_itself(folders):
    document = measure_drift(str(folders / "base"), str(folders / "base"), SETS)
    for found in document["sets"]:
        assert found["kl_last"] == {"mean": 0, "low": 0, "high": 0}
        for layer in found["layers"]:
            assert (layer["centroid_shift"], layer["row_shift"]) == (0, 0)
            assert layer["cka"] == pytest.approx(1)


def test_other_vocabularies_are_refused(folders, tmp_path):
    other = save_student(tmp_path / "chat", tiny_model("llama", dtype=torch.float32), byte_level_tokenizer(chat=True))
    tokenizer = copy.deepcopy(byte_level_tokenizer(chat=True))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(
        StudentError, match=r"must have the same tokenizer, but their vocabularies \(340 and 341 tokens\)"
    ):
        measure_drift(str(folders / "base"), str(other), SETS)


def test_another_chat_template_is_refused(folders, tmp_path):
    other = save_student(tmp_path / "chat", tiny_model("llama", dtype=torch.float32), byte_level_tokenizer(chat=True))
    with pytest.raises(StudentError, match=r"row 'sums0' \(their chat templates differ\)"):
        measure_drift(str(folders / "base"), str(other), SETS)


def test_models_of_other_shape_are_refused(folders, tmp_path):
    other = save_student(tmp_path / "deep", tiny_model("llama", layers=2, dtype=torch.float32), byte_level_tokenizer())
    with pytest.raises(StudentError, match="must have the same layers, got 3 and 2"):
        measure_drift(str(folders / "base"), str(other), SETS)


def test_too_few_prompts_are_refused(folders):
    with pytest.raises(DataError, match="at least 3 prompts for a plane, got 2"):
        measure_drift(str(folders / "base"), str(folders / "base"), {"learned": [task_rows(QUESTIONS[:2])]})
    with pytest.raises(DataError, match="drift needs prompts"):
        measure_drift(str(folders / "base"), str(folders / "base"), {})


# ---- what identifies a student


def test_a_students_hash_sees_weights_and_base_but_not_checkpoints_notes_and_places(folders, tmp_path):
    before = student_hash(folders / "adapter")
    shutil.copytree(folders / "adapter", tmp_path / "elsewhere")
    copy = tmp_path / "elsewhere"
    (copy / "checkpoint-5").mkdir()
    (copy / "checkpoint-5" / "adapter_model.safetensors").write_bytes(b"other")
    (copy / "README.md").write_text("a note")
    config = json.loads((copy / "adapter_config.json").read_text())
    shutil.copytree(folders / "base", tmp_path / "base")
    config["base_model_name_or_path"] = str(tmp_path / "base")
    config["target_modules"] = sorted(config["target_modules"], reverse=True)
    (copy / "adapter_config.json").write_text(json.dumps(config))
    assert student_hash(copy) == before
    (tmp_path / "base" / "generation_config.json").write_text("{}")
    assert student_hash(copy) != before
    assert student_hash(folders / "base") != student_hash(folders / "merged")


@pytest.mark.parametrize("whose", ["base", "student"])
def test_a_model_that_yields_no_numbers_has_no_drift(whose):
    model = tiny_model("llama")
    broken = moved(model, seed=1)
    with torch.no_grad():
        broken.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    pair = (Reader(broken), Reader(model)) if whose == "base" else (Reader(model), Reader(broken))
    with pytest.raises(StudentError, match=f"the {whose}'s states and predictions must be numbers"):
        read_both(*pair, prompts(), 100)


# ---- PCA shift and CKA: by hand, against scikit-learn, and by what must not change them

RANDOM = np.random.default_rng(7)


def states(rows: int = 12, width: int = 9) -> np.ndarray:
    return RANDOM.normal(size=(rows, width)) * np.linspace(1, 4, width) + RANDOM.normal(size=width)


@pytest.mark.parametrize(("rows", "width"), [(12, 9), (5, 30), (3, 2)])
def test_a_plane_is_scikit_learns_with_its_signs(rows, width):
    base, student = states(rows, width), states(rows, width)
    peer = PCA(n_components=2, svd_solver="full").fit(base)
    plane = Plane.fit(base)
    assert plane.explained == pytest.approx(tuple(peer.explained_variance_ratio_))
    np.testing.assert_allclose(plane.axes_2D, peer.components_, atol=1e-10)
    np.testing.assert_allclose(plane.project(student), peer.transform(student), atol=1e-10)


def test_shift_of_a_square_by_hand():
    # Corners of a 4 x 2 rectangle in the first two of three dimensions: spread sqrt(2^2 + 1^2).
    base = np.array([[2.0, 1, 0], [2, -1, 0], [-2, 1, 0], [-2, -1, 0]])
    plane = Plane.fit(base)
    assert plane.spread == pytest.approx(5**0.5)
    assert plane.explained == pytest.approx((0.8, 0.2))
    moved = base + np.array([3, 4, 100])  # the third dimension is outside of the plane
    shift = pca_shift(plane, base, moved)
    assert shift.centroid_distance == pytest.approx(5)
    assert shift.row_distance == pytest.approx(5)
    assert shift.centroid_shift == pytest.approx(5 / 5**0.5)
    turned = -base  # every row crosses the center; the cloud stays where it is
    shift = pca_shift(plane, base, turned)
    assert shift.centroid_distance == pytest.approx(0)
    assert shift.row_distance == pytest.approx(2 * 5**0.5)
    assert shift.row_shift == pytest.approx(2)


def test_a_base_that_does_not_move_has_not_shifted_and_shares_are_undefined_without_spread():
    base = states()
    shift = pca_shift(Plane.fit(base), base, base)
    assert (shift.centroid_distance, shift.row_distance) == (0, 0)
    still = np.ones((4, 3))
    plane = Plane.fit(still)
    shift = pca_shift(plane, still, still + 1)
    assert plane.explained == (0, 0)
    assert shift.centroid_shift is None
    assert shift.row_shift is None


def test_the_shift_over_the_spread_has_no_unit():
    base, student = states(), states()
    one = pca_shift(Plane.fit(base), base, student)
    scaled = pca_shift(Plane.fit(10 * base), 10 * base, 10 * student)
    assert scaled.centroid_distance == pytest.approx(10 * one.centroid_distance)
    assert scaled.centroid_shift == pytest.approx(one.centroid_shift)
    assert scaled.row_shift == pytest.approx(one.row_shift)


def test_cka_by_hand():
    # Centred x = (-1, 0, 1), y = (-1, 2, -1): orthogonal. z = (-2, 1, 1): (x.z)^2 / (x.x z.z) = 9 / 12.
    x, y, z = (np.array(v, dtype=float)[:, None] for v in ([0, 1, 2], [0, 3, 0], [-2, 1, 1]))
    assert linear_cka(x, y) == pytest.approx(0)
    assert linear_cka(x, z) == pytest.approx(0.75)
    assert linear_cka(x, x) == pytest.approx(1)


def test_cka_is_that_of_scikit_learns_centred_kernels():
    x, y = states(10, 6), states(10, 20)
    k, m = (KernelCenterer().fit_transform(linear_kernel(s)) for s in (x, y))
    assert linear_cka(x, y) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def test_cka_does_not_see_rotation_shift_and_scale():
    x, y = states(), states()
    rotation = np.linalg.qr(RANDOM.normal(size=(9, 9)))[0]
    assert linear_cka(3 * x @ rotation + 5, y) == pytest.approx(linear_cka(x, y))
    assert linear_cka(x @ rotation, x) == pytest.approx(1)


def test_cka_of_states_that_do_not_vary_is_none():
    assert linear_cka(np.ones((4, 3)), states(4, 3)) is None


def test_two_rows_make_no_plane():
    with pytest.raises(ValueError, match="at least 3 rows"):
        Plane.fit(np.ones((2, 5)))
