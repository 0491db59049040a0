"""Base and student side by side: states and predictions read right, with and without adapters, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from scipy.special import rel_entr

from compact_distill.errors import DataError, StudentError
from compact_distill.evaluation.drift import describe_drift, measure_drift
from compact_distill.evaluation.geometry import Plane, linear_cka, pca_shift
from compact_distill.evaluation.rows import TaskRow, TaskRows
from compact_distill.evaluation.states import Reader, read_both
from compact_distill.evaluation.task import Task
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

    from compact_distill.evaluation.states import _kl

    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    assert _kl(Fixed(None), Fixed(None), p, q).item() == pytest.approx(0.25 * np.log(2))
    assert _kl(Fixed(None), Fixed(None), p, p).item() == 0


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
