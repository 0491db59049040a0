"""A kernel is used when it was tried and agrees; what does not is passed over, aloud."""

from __future__ import annotations

import logging

import pytest
import torch

from compact_distill.errors import ConfigError, StudentError
from compact_distill.method.kernels import attention, choose
from compact_distill.method.kernels.attention import AttentionPlan
from compact_distill.method.kernels.choose import (
    Case,
    candidates,
    choose_kernel,
    force_kernel,
    segment_attention,
    try_kernel,
)
from method.kernels.test_attention import SEGMENTS, TOKENS, dense, fake_varlen_attn, inputs, rows_seen

CPU = torch.device("cpu")
SIZES = (64, 80, 96, 128, 256)
LONGEST = 7  # prompt of 3 and branch of 4


@pytest.fixture(autouse=True)
def _untried(monkeypatch: pytest.MonkeyPatch):
    """Every test as in a new process."""
    monkeypatch.delenv("COMPACT_ATTENTION", raising=False)
    choose._chosen.cache_clear()
    yield
    choose._chosen.cache_clear()


def case(dtype=torch.float32, heads=4, key_heads=2, head_size=8, windowed=False) -> Case:
    return Case(CPU, dtype, heads, key_heads, head_size, windowed)


def chosen(dtype=torch.float32, window=None):
    query = torch.zeros(1, 4, TOKENS, 8, dtype=dtype)
    return choose_kernel(query, query[:, :2], AttentionPlan(SEGMENTS), window)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_the_definition_is_dense_attention_over_each_tokens_path(window):
    query, key, value = inputs()
    out = choose.plain_attention(query, key, value, AttentionPlan(SEGMENTS), 0.3, window)
    torch.testing.assert_close(out, dense(query, key, value, rows_seen(SEGMENTS, window), 0.3), atol=1e-12, rtol=0)


@pytest.mark.parametrize("head_size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (9, 3), (2, 1)])
def test_kernels_of_a_cpu_pass_their_trial(dtype, head_size, heads, key_heads):
    for windowed in (False, True):
        it = case(dtype, heads, key_heads, head_size, windowed)
        for name in candidates(it):
            assert try_kernel(choose.kernel_named(name), it).failure is None, (name, it)


def test_varlen_passes_its_trial_where_torch_does_what_it_says(monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", fake_varlen_attn)
    for windowed in (False, True):
        trial = try_kernel(attention.varlen_kernel, case(torch.float64, windowed=windowed))
        assert trial.failure is None
        assert trial.error < 1e-12 > trial.gradient_error


def test_a_trial_sees_a_missing_backward():
    # FlexAttention computes rightly on a CPU, but only forward.
    trial = try_kernel(attention.flex_kernel, case())
    assert "backward" in trial.failure or "NotImplemented" in trial.failure or "requires_grad" in trial.failure
    assert trial.raised
    assert trial.error < 1e-5
    assert trial.gradient_error != trial.gradient_error  # NaN: never computed


def test_a_kernel_that_yields_nan_ran_and_is_wrong():
    trial = try_kernel(lambda *args: attention.loop_kernel(*args) * float("nan"), case())
    assert not trial.raised
    assert "its output is off by nan" in trial.failure


def shift(kernel, where):
    """A kernel with a fault."""

    def faulty(query, key, value, plan, scale, window):
        if where == "sign":
            query = -query
        elif where == "window" and window is not None:
            window += 1
        elif where == "heads":
            key, value = key.flip(1), value.flip(1)
        elif where == "gradient":
            value = value.detach() + 0.5 * (value - value.detach())
        elif where == "scale":
            scale = 0.9 * scale
        elif where == "probes" and plan.first:
            key = key.roll(1, 2)
        elif where == "raises":
            raise AssertionError("the compiler gave up")
        elif where == "not a number":
            return kernel(query, key, value, plan, scale, window) * float("nan")
        return kernel(query, key, value, plan, scale, window)

    return faulty


FAULTS = ("sign", "window", "heads", "gradient", "scale", "probes", "raises", "not a number")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["loop", "flash", "varlen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trial_sees_every_fault(name, fault, dtype, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", fake_varlen_attn)
    windowed = fault == "window"
    if name == "flash" and (windowed or dtype == torch.bfloat16):
        pytest.skip("flash has neither windows nor half precision")
    it = case(dtype, head_size=64, windowed=windowed)
    assert try_kernel(choose.kernel_named(name), it).failure is None
    assert try_kernel(shift(choose.kernel_named(name), fault), it).failure is not None


@pytest.mark.parametrize("off", [-1, 1])
def test_a_trial_sees_a_segment_that_is_off_by_one(off, monkeypatch):
    real = AttentionPlan.mask

    def wrong(plan, segment, window, device):
        seen = real(plan, segment, window, device)
        return torch.arange(seen.shape[1])[None] <= torch.arange(seen.shape[0])[:, None] + segment.position + off

    monkeypatch.setattr(AttentionPlan, "mask", wrong)
    for dtype in (torch.float32, torch.bfloat16):
        assert try_kernel(attention.loop_kernel, case(dtype, head_size=64)).failure is not None


# ---- which one is taken


def test_on_a_cpu_windows_that_cut_and_half_precision_take_the_loop():
    for window, dtype, kernel in (
        (None, torch.float32, attention.flash_kernel),
        (LONGEST, torch.float64, attention.flash_kernel),
        (LONGEST - 1, torch.float32, attention.loop_kernel),
        (None, torch.bfloat16, attention.loop_kernel),
    ):
        assert chosen(dtype, window) is kernel


def test_a_gpu_tries_varlen_flex_and_the_loop_in_this_order():
    gpu = case(torch.bfloat16)._replace(device=torch.device("cuda"))
    assert candidates(gpu) == ["varlen", "flex", "loop"]
    assert candidates(gpu._replace(dtype=torch.float32)) == ["flex", "loop"]
    assert candidates(gpu._replace(device=torch.device("mps"))) == ["loop"]


@pytest.mark.parametrize(
    ("broken", "taken"), [((), "varlen"), (("varlen",), "flex"), (("varlen", "flex"), "loop"), (("flex",), "varlen")]
)
def test_the_first_that_agrees_is_taken_and_what_was_passed_over_is_said_once(broken, taken, monkeypatch, caplog):
    monkeypatch.setattr(choose, "candidates", lambda case: ["varlen", "flex", "loop"])
    for name in ("varlen", "flex"):  # neither runs here, so that the loop stands in for those that work
        kernel = shift(attention.loop_kernel, "raises" if name == "flex" else "gradient")
        monkeypatch.setattr(attention, f"{name}_kernel", kernel if name in broken else attention.loop_kernel)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert chosen() is choose.kernel_named(taken)
    passed_over = [name for name in broken if name != "flex" or taken != "varlen"]
    assert len(caplog.records) == bool(passed_over)
    for name in passed_over:
        assert f"{name} is passed over" in caplog.text
        assert f"using {taken}" in caplog.text


@pytest.mark.parametrize("kernels", ["missing", "other arguments", "other values"])
def test_a_torch_whose_cpu_kernels_are_missing_or_differ_gets_the_loop(kernels, monkeypatch):
    real = attention._CPU_FLASH

    def wrong(*args, **kwargs):
        if kernels == "other arguments":
            raise TypeError("unexpected keyword argument 'scale'")
        out, sums = real(*args, **kwargs)
        return 2 * out, sums

    monkeypatch.setattr(attention, "_CPU_FLASH", None if kernels == "missing" else wrong)
    assert chosen() is attention.loop_kernel


def test_a_machine_on_which_no_kernel_is_right_is_refused(monkeypatch):
    for name in ("flash", "loop"):
        monkeypatch.setattr(attention, f"{name}_kernel", shift(attention.loop_kernel, "sign"))
    with pytest.raises(StudentError, match=r"no attention kernel .* flash is passed over .* loop is passed over"):
        chosen()


def test_the_environment_forces_a_kernel_and_a_wrong_name_is_an_error(monkeypatch):
    monkeypatch.setenv("COMPACT_ATTENTION", "flex")
    assert chosen() is attention.flex_kernel
    with force_kernel("loop"):
        assert chosen() is attention.loop_kernel
    assert chosen() is attention.flex_kernel
    monkeypatch.setenv("COMPACT_ATTENTION", "fast")
    with pytest.raises(ConfigError, match="COMPACT_ATTENTION must be one of loop, flex, varlen, got 'fast'"):
        choose.register()


def test_a_trial_leaves_a_checkpoint_autocast_and_inference_alone():
    from torch.utils.checkpoint import checkpoint

    def layer(states):
        assert try_kernel(attention.loop_kernel, case()).failure is None
        choose._chosen.cache_clear()
        return chosen()(states, states[:, :2], states[:, :2], AttentionPlan(SEGMENTS), 0.3, None)

    states = inputs()[0].float().requires_grad_()
    grads = []
    for run in (lambda: layer(states), lambda: checkpoint(layer, states, use_reentrant=False)):
        grads.append(torch.autograd.grad(run().sum(), states)[0])
    assert torch.equal(*grads)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert try_kernel(attention.flash_kernel, case()).failure is None
        assert torch.is_inference_mode_enabled()


# ---- what transformers calls


def test_without_a_plan_it_is_transformers_sdpa():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    query, key, value = inputs()
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    module.is_causal = True
    ours, _ = segment_attention(module, query, key, value, None, scaling=0.3)
    theirs, _ = sdpa_attention_forward(module, query, key, value, None, scaling=0.3)
    assert torch.equal(ours, theirs)
