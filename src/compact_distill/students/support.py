"""Which students can be read in one pass, and why others are refused, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

# Each of these is tested against the slow reference. Others may well work; none is trusted untested.
SUPPORTED = ("llama", "qwen2", "qwen3", "gemma3_text", "mistral")

_LINEAR_ATTENTION = ("linear_attention", "mamba", "recurrent", "conv", "chunked_attention")


def architecture_problems(config: Any) -> list[str]:
    """Everything in a model's config that the one pass cannot follow, as messages; empty where it is fine."""
    name = getattr(config, "model_type", type(config).__name__)
    layers = set(getattr(config, "layer_types", None) or ())
    foreign = sorted(layers - {"full_attention", "sliding_attention"})
    if foreign:
        kind = "hybrid or linear-attention" if any(f in _LINEAR_ATTENTION for f in foreign) else "unknown attention"
        return [
            f"student architecture '{name}' has {kind} layers ({', '.join(foreign)}): branches cannot share a prompt "
            f"there; use one of {', '.join(SUPPORTED)}"
        ]
    if name not in SUPPORTED:
        return [f"student architecture '{name}' is not supported; use one of {', '.join(SUPPORTED)}"]
    wrong = []
    if getattr(config, "attention_dropout", 0.0):
        wrong.append(f"student config attention_dropout must be 0, got {config.attention_dropout}; set it to 0.0")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None) is not None:
            wrong.append(
                f"student config {key} must be null, got {getattr(config, key)}; capped logits are unsupported"
            )
    if getattr(config, "use_bidirectional_attention", False):
        wrong.append("student config use_bidirectional_attention must be false: a student must read left to right")
    return wrong


def adapter_problems(model: nn.Module) -> list[str]:
    """Everything in a model's adapters that the one pass would leave out, as messages; empty where it is fine."""
    wrong = []
    for config in (getattr(model, "peft_config", None) or {}).values():
        if getattr(config, "is_prompt_learning", False):
            wrong.append(f"adapter {config.peft_type.value} adds tokens of its own, which is unsupported; use LoRA")
    if hasattr(innermost(model).get_output_embeddings(), "base_layer"):
        wrong.append(
            "an adapter on the LM head is unsupported (the head is read in chunks, past it); take lm_head out of "
            "target_modules, or train it whole with modules_to_save=['lm_head']"
        )
    return wrong


def innermost(model: nn.Module) -> Any:
    """The causal language model inside wrappers (DistributedDataParallel, torch.compile, peft)."""
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif type(inner).__name__ in ("DistributedDataParallel", "DeepSpeedEngine"):
            inner = inner.module
        else:
            return inner
