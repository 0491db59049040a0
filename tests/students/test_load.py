"""What is wrong with a student is said before any work, and all of it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from compact_distill.errors import StudentError
from compact_distill.method.forward import attach
from compact_distill.students.load import SUPPORTED, architecture_problems, check_student, load_student


@pytest.fixture
def folder(tmp_path):
    return models.save_student(tmp_path / "student", models.tiny_model("llama"), models.byte_level_tokenizer())


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**content, **changes}.items() if v is not None}))


def test_a_saved_student_loads_with_the_same_weights(folder):
    assert check_student(folder) == []
    model, tokenizer = load_student(folder)
    original = models.tiny_model("llama").state_dict()
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    assert tokenizer.eos_token_id is not None


def test_an_adapter_folder_loads_with_its_base(folder, tmp_path):
    model = models.tiny_model("llama", lora=True)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "adapter")
    assert check_student(tmp_path / "adapter") == []
    loaded, _ = load_student(tmp_path / "adapter")
    saved = {k: v for k, v in model.state_dict().items() if "lora_" in k}
    assert saved
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in saved.items())


def test_each_missing_part_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    wrong = "\n".join(check_student(tmp_path / "empty"))
    assert "config.json" in wrong
    assert "safetensors" in wrong
    assert "tokenizer" in wrong
    assert "does not exist" in check_student(tmp_path / "nowhere" / "at" / "all")[0]


def test_a_runs_folder_given_as_student_names_the_student_in_it(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "manifest.json").write_text("{}")
    wrong = f"student folder {tmp_path} is a run's folder; its student is {tmp_path / 'student'}"
    assert check_student(tmp_path) == [wrong]


def test_pickle_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    (wrong,) = check_student(folder)
    assert "pickle" in wrong
    assert "pytorch_model.bin" in wrong
    with pytest.raises(StudentError, match="pickle"):
        load_student(folder)


def test_code_of_the_repository_is_never_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (wrong,) = check_student(folder)
    assert "code of its own" in wrong


def test_a_tokenizer_without_eos_is_refused(folder):
    edit(folder / "tokenizer_config.json", eos_token=None)
    special = folder / "special_tokens_map.json"
    if special.exists():
        edit(special, eos_token=None)
    assert any("no eos token" in message for message in check_student(folder))


def test_other_architectures_are_refused_by_name(folder):
    edit(folder / "config.json", model_type="gpt2")
    assert any("'gpt2' is not supported" in m and SUPPORTED[0] in m for m in check_student(folder))


def test_hybrid_models_are_refused_by_name():
    from transformers import Qwen3NextConfig

    (wrong,) = architecture_problems(Qwen3NextConfig())
    assert "qwen3_next" in wrong
    assert "linear_attention" in wrong


def test_attention_dropout_is_refused():
    model = models.tiny_model("llama", dropout=0.1)
    with pytest.raises(StudentError, match=r"attention_dropout must be 0, got 0\.1"):
        attach(model)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a' * 16}\nsize 12345\n"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda data: data[:-1], "bytes, not"),
        (lambda data: data[: len(data) // 2], "bytes, not"),
        (lambda data: data[:100], "is cut or no safetensors file"),
        (lambda data: data + b"x", "bytes, not"),
        (lambda data: b"", "is cut or no safetensors file"),
        (lambda data: b"\0" * 8 + data, "is cut or no safetensors file"),
        (lambda data: data[:8] + b"[" * 20 + data[28:], "header that cannot be read"),
        (lambda data: POINTER.encode(), "is a Git LFS pointer"),
    ],
)
def test_weights_that_are_cut_or_no_weights_are_told_before_loading(folder, harm, says):
    path = folder / "model.safetensors"
    path.write_bytes(harm(path.read_bytes()))
    (message,) = check_student(folder)
    assert str(path) in message
    assert says in message
    with pytest.raises(StudentError):
        load_student(folder)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pytorch_model.bin", "is no safetensors file of this folder"),
        ("../other/model.safetensors", "is no safetensors file of this folder"),
        ("/etc/model.safetensors", "is no safetensors file of this folder"),
        ("model-00002-of-00002.safetensors", "is missing"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused_before_anything_is_opened(folder, name, says, monkeypatch):
    def opened(*arguments, **named):
        raise AssertionError("something was unpickled")

    monkeypatch.setattr("pickle.Unpickler", opened)
    monkeypatch.setattr("torch.load", opened)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": name, "lm_head.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (message,) = check_student(folder)
    assert says in message
    with pytest.raises(StudentError, match=says):
        load_student(folder)


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"weight_map": []}', "{"])
def test_an_index_that_cannot_be_read_is_told(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    (message,) = check_student(folder)
    assert "must map weights to files" in message


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("harm", ["cut", "null", "list", "number", "deep", "bytes", "odd"])
def test_a_settings_file_of_a_student_that_is_damaged_or_odd_is_told(folder, name, harm):
    path = folder / name
    whole = path.read_bytes()
    if harm == "odd":
        odd = {"intermediate_size": {"a": 1}, "eos_token": 0.5, "model": [None], "max_new_tokens": [[1]]}
        path.write_text(json.dumps({**json.loads(whole), **odd}))
    else:
        contents = {"cut": whole[:-9], "null": b"null", "list": b"[]", "number": b"7", "bytes": b"\xff\xfe{"}
        path.write_bytes(contents.get(harm, b"[" * 100_000))
    told = check_student(folder)
    assert all(isinstance(message, str) and "\n" not in message for message in told)
    assert told or (name, harm) == ("tokenizer_config.json", "list")  # transformers reads that as no settings


def test_a_quantised_student_is_refused_by_that_name(folder):
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    (message,) = check_student(folder)
    assert "is quantised" in message


def test_a_cut_adapter_is_told(folder, tmp_path):
    model = models.tiny_model("llama", lora=True)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    (message,) = check_student(tmp_path / "adapter")
    assert str(path) in message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda name, weight: (name.replace("model.layers", "model.language_model.layers"), weight), "missing adapter"),
        (lambda name, weight: (f"{name}.other" if "layers.1" in name else name, weight), "missing adapter keys"),
        (lambda name, weight: (name, weight[:, :-1].contiguous()), "size mismatch"),
    ],
)
def test_an_adapter_that_does_not_fit_its_base_is_refused(folder, tmp_path, change, told):
    model = models.tiny_model("llama", lora=True, dtype=torch.float32)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(dict(change(name, weight) for name, weight in load_file(path).items()), path)
    with pytest.raises(StudentError, match=f"does not fit its base .*{told}"):
        load_student(tmp_path / "adapter")


def test_an_adapter_whose_weights_are_a_pickle_is_refused_before_anything_is_opened(folder, tmp_path, monkeypatch):
    def opened(*arguments, **named):
        raise AssertionError("something was unpickled")

    monkeypatch.setattr("pickle.Unpickler", opened)
    monkeypatch.setattr("torch.load", opened)
    model = models.tiny_model("llama", lora=True)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.rename(weights.with_name("other.safetensors"))  # something in safetensors lies there, but not the adapter
    weights.with_suffix(".bin").write_bytes(b"pickle")
    (message,) = check_student(tmp_path / "adapter")
    assert "holds no adapter_model.safetensors" in message
    with pytest.raises(StudentError, match="holds no adapter_model"):
        load_student(tmp_path / "adapter")


def _without(path, part):
    from safetensors.torch import load_file, save_file

    kept = {name: value for name, value in load_file(path).items() if part not in name}
    save_file(kept, path, metadata={"format": "pt"})


def test_weights_that_lack_layers_are_told_before_loading(folder):
    _without(folder / "model.safetensors", "layers.1.")
    (message,) = check_student(folder)
    assert "is incomplete: its weights lack 1 of" in message


def test_weights_that_would_be_random_numbers_are_refused(folder):
    _without(folder / "model.safetensors", "layers.0.mlp.up_proj")
    with pytest.raises(StudentError, match=r"1 weights are missing, such as .*up_proj"):
        load_student(folder)


@pytest.mark.parametrize(
    ("settings", "sampled"),
    [
        ({"temperature": 0.6}, True),
        ({"top_p": 0.9, "top_k": 20, "do_sample": False}, True),
        ({"num_beams": 1, "length_penalty": 2.0}, None),
    ],
)
def test_a_generation_config_that_cannot_be_saved_is_mended_aloud(folder, tmp_path, settings, sampled, capsys):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 2} | settings))
    model, _ = load_student(folder)
    model.save_pretrained(tmp_path / "checkpoint")
    saved = json.loads((tmp_path / "checkpoint" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == 2
    assert sampled is None or saved["do_sample"] is sampled
    assert capsys.readouterr().err.count("refuses to save") == 1


def test_a_generation_config_that_can_be_saved_stays(folder, capsys):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.6, "do_sample": True}))
    model, _ = load_student(folder)
    assert (model.generation_config.temperature, model.generation_config.do_sample) == (0.6, True)
    assert "refuses" not in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{"early_stopping": "maybe"}, {"max_new_tokens": -1}, {"num_return_sequences": 4}])
def test_a_generation_config_that_cannot_be_loaded_is_told(folder, settings):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    (message,) = check_student(folder)
    assert "generation_config.json cannot be read" in message
