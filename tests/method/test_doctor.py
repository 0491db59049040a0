"""The doctor finds this machine right, and finds every fault that is put into a kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from compact_distill.method import doctor
from compact_distill.method.doctor import AGREES, DIFFERS, NOT_HERE, NOT_REACHED, check_student, examine
from compact_distill.method.kernels import attention, choose, head, layers, lora
from compact_distill.method.kernels.attention import AttentionPlan, loop_kernel
from compact_distill.method.plain import build, students

CPU = torch.device("cpu")
FULL = [torch.float64, torch.float32]
STUDENTS = {student.name: student for student in students()}


@pytest.fixture(autouse=True)
def _untried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COMPACT_ATTENTION", raising=False)
    choose._chosen.cache_clear()
    yield
    choose._chosen.cache_clear()


def test_tiny_students_are_of_every_supported_architecture_and_head_size() -> None:
    from compact_distill.students.load import SUPPORTED

    assert {student.model_type for student in STUDENTS.values()} == set(SUPPORTED)
    assert {student.fields["head_dim"] for student in STUDENTS.values()} == set(doctor.HEAD_SIZES)
    assert any(student.fields.get("sliding_window") for student in STUDENTS.values())


# ---- faults


def wrong_sign(kernel: Any) -> Any:
    return lambda q, k, v, plan, scale, window: kernel(-q, k, v, plan, scale, window)


def unscaled_gradient(kernel: Any) -> Any:
    def faulty(q, k, v, plan, scale, window):
        half = k.detach() + 0.5 * (k - k.detach())
        return kernel(q, half, v, plan, scale, window)

    return faulty


def off_by_one(plan: AttentionPlan, segment: Any, window: int | None, device: torch.device) -> torch.Tensor:
    keys = torch.arange(segment.position + segment.length)
    return keys[None] < segment.position + torch.arange(segment.length)[:, None] + (segment.position == 0)


def verdicts(student: str = "llama", dtypes: Any = (torch.float32,), kernel: str | None = None) -> set[str]:
    return {finding.verdict for finding in check_student(STUDENTS[student], dtypes, CPU, kernel)}


@pytest.mark.parametrize("fault", [wrong_sign, unscaled_gradient])
@pytest.mark.parametrize("name", ["loop", "flash"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fault_in_an_attention_kernel_is_found(fault: Any, name: str, dtype: Any, monkeypatch) -> None:
    if name == "flash" and dtype == torch.bfloat16:
        pytest.skip("flash is not used in half precision")
    faulty = fault(getattr(attention, f"{name}_kernel"))
    monkeypatch.setattr(attention, f"{name}_kernel", faulty)
    assert doctor.check_attention(name, dtype, CPU, [(4, 2, 64)]).verdict == DIFFERS
    monkeypatch.setattr(choose, "chosen_name", lambda case: name)  # as if no trial had passed it over
    found = list(check_student(STUDENTS["llama"], [dtype], CPU))
    assert {finding.verdict for finding in found} == {DIFFERS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_off_by_one_is_found(dtype: Any, monkeypatch) -> None:
    monkeypatch.setattr(AttentionPlan, "mask", off_by_one)
    assert doctor.check_attention("loop", dtype, CPU, [(4, 2, 64)]).verdict == DIFFERS
    monkeypatch.setattr(choose, "chosen_name", lambda case: "loop")
    assert verdicts(dtypes=[dtype]) == {DIFFERS}


def test_a_window_off_by_one_is_found(monkeypatch) -> None:
    wide = lambda q, k, v, plan, scale, window: loop_kernel(q, k, v, plan, scale, window and window + 1)  # noqa: E731
    monkeypatch.setattr(attention, "loop_kernel", wide)
    assert doctor.check_attention("loop", torch.float32, CPU, [(4, 2, 64)]).verdict == DIFFERS
    monkeypatch.setattr(choose, "chosen_name", lambda case: "loop")
    assert verdicts("mistral, sliding") == {DIFFERS}


def test_a_fault_in_flex_is_found_also_where_it_has_no_backward(monkeypatch) -> None:
    check = lambda: doctor.check_attention("flex", torch.float32, CPU, [(4, 2, 64)])  # noqa: E731
    assert check().verdict == NOT_HERE
    with monkeypatch.context() as context:
        context.setattr(attention, "flex_kernel", wrong_sign(attention.flex_kernel))
        assert check().verdict == DIFFERS
    rule = attention._flex_rule

    def shifted(plan: AttentionPlan, window: int | None, device: torch.device) -> Any:
        sees = rule(plan, window, device)
        return lambda batch, head, query, key: sees(batch, head, query, key) & (query != key)

    monkeypatch.setattr(attention, "_flex_rule", shifted)
    choose._trial_plans.cache_clear()  # plans keep the masks they were read with
    assert check().verdict == DIFFERS
    choose._trial_plans.cache_clear()


def test_a_fault_in_varlen_is_found_where_it_runs(monkeypatch) -> None:
    from method.kernels.test_attention import fake_varlen_attn

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", fake_varlen_attn)
    check = lambda: doctor.check_attention("varlen", torch.bfloat16, CPU, [(4, 2, 64)])  # noqa: E731
    assert check().verdict == AGREES
    for fault in (wrong_sign, unscaled_gradient):
        with monkeypatch.context() as context:
            context.setattr(attention, "varlen_kernel", fault(attention.varlen_kernel))
            assert check().verdict == DIFFERS


def half_gradient(real: Any) -> Any:
    """An autograd function's backward, with the input's gradient halved."""

    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        first, *rest = real(ctx, *grads)
        return (first if first is None else 0.5 * first, *rest)  # the first layer's input wants none

    return staticmethod(backward)


@pytest.mark.parametrize(
    ("function", "kernel", "student"),
    [
        (head._Head, "head", "qwen3"),
        (layers._RMSNorm, "norm", "qwen3"),
        (layers._MLP, "mlp", "qwen3"),
        (lora._Projections, "lora", "llama, LoRA"),
        (layers._MLP, "mlp", "llama, LoRA"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_fault_in_another_kernel_is_found(function: Any, kernel: str, student: str, monkeypatch) -> None:
    monkeypatch.setattr(function, "backward", half_gradient(function.backward))
    for dtype in (torch.float32, torch.bfloat16):
        alone = {finding.what: finding.verdict for finding in doctor.check_other_kernels(dtype, CPU)}
        assert alone.pop(kernel) == DIFFERS
        assert set(alone.values()) == {AGREES}
    assert verdicts(student) == {DIFFERS}


def test_a_norm_without_its_weight_and_an_unscaled_dropout_are_found(monkeypatch) -> None:
    with monkeypatch.context() as context:
        context.setattr(layers, "rms_norm", lambda s, w, eps, offset=0.0: s * (s.square().mean(-1, True) + eps).rsqrt())
        assert verdicts() == {DIFFERS}
    add = lora.LowRank.add

    def unscaled(self: Any, *tensors: torch.Tensor) -> None:
        self.scale = 1.5
        add(self, *tensors)

    monkeypatch.setattr(lora.LowRank, "add", unscaled)
    alone = {finding.what: finding.verdict for finding in doctor.check_other_kernels(torch.float32, CPU)}
    assert alone["lora"] == DIFFERS


def test_a_value_that_is_missing_or_not_a_number_differs() -> None:
    one = {"a": torch.ones(2), "b": torch.ones(1)}
    assert doctor.compare((one, one), (one, one))[:2] == (0.0, 0.0)
    assert doctor.compare(({"a": one["a"]}, one), (one, one))[0] == float("inf")
    assert doctor.compare((one | {"b": torch.tensor([float("nan")])}, one), (one, one))[0] == float("inf")


# ---- the whole


def test_it_says_what_was_not_reached_and_what_cannot_run_here() -> None:
    found = list(examine(CPU, seconds=0.0))
    assert {finding.verdict for finding in found} == {NOT_REACHED}
    flex = doctor.check_attention("flex", torch.float32, CPU, [(4, 2, 64)])
    assert flex.verdict == NOT_HERE
    assert "backward" in flex.note
    said = doctor.summary([flex, *found[:2]], {"full attention, fp32": "flash"})
    assert said == "1 not here, 2 not reached; training uses flash (full attention, fp32)"


def test_a_students_own_shape_is_examined(tmp_path) -> None:
    from transformers import Qwen2Config

    heads = {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}
    shape = {"vocab_size": 9000, "num_hidden_layers": 30, "intermediate_size": 4000, "tie_word_embeddings": True}
    Qwen2Config(**heads, **shape).save_pretrained(tmp_path)
    own = doctor.students_like(tmp_path)
    assert [student.lora for student in own] == [False, True]
    model = build(own[0], torch.float32, CPU)
    attention = model.model.layers[0].self_attn
    assert (attention.q_proj.weight.shape, attention.k_proj.weight.shape) == ((72, 72), (24, 72))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (len(model.model.layers), len(model.lm_head.weight)) == (2, 512)
    assert doctor.training_uses(CPU, tmp_path) == {"full attention, fp32": "flash"}
    assert {finding.verdict for finding in check_student(own[1], FULL, CPU)} == {AGREES}


@pytest.mark.parametrize("kind", ["SmolLM3Config", "Olmo3Config"])
def test_two_layers_of_a_student_are_one_of_each_kind(tmp_path, kind: str) -> None:
    getattr(transformers, kind)(sliding_window=64).save_pretrained(tmp_path)
    fields = doctor.students_like(tmp_path)[0].fields
    assert len(fields["layer_types"]) == 2
    if kind == "SmolLM3Config":  # every fourth layer has no rotary embedding
        assert fields["no_rope_layers"] == [1, 0]
    else:  # three of four see a window
        assert sorted(fields["layer_types"]) == ["full_attention", "sliding_attention"]


def test_a_student_that_cannot_be_read_is_an_error(tmp_path) -> None:
    from transformers import GPT2Config

    from compact_distill.errors import StudentError

    with pytest.raises(StudentError, match="its config cannot be read"):
        doctor.require_student(tmp_path)
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(StudentError, match="'gpt2' is not supported"):
        doctor.require_student(tmp_path)
