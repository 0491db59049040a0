"""Tiny students for tests: random models of every supported architecture, and tokenizers made on the spot.

Nothing here is trained, and nothing is left at a value behind which a wrong implementation could hide: biases are
not 0, norms not 1, LoRA's B matrices not 0, head widths differ from width / heads, and the model's vocabulary is
larger than the tokenizer's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from tokenizers.trainers import BpeTrainer
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

ARCHITECTURES = ("llama", "qwen2", "qwen2_sliding", "qwen3", "gemma3", "mistral", "smollm3", "olmo2", "olmo3")
SLIDING_WINDOW = 8
VOCABULARY = 448
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CORPUS = [
    "Question: Ann has 7 apples and buys 5 more. How many apples does she have?\nAnswer: The answer is 12.",
    "First we add 7 and 5, so we get 12. Therefore the answer is 12. Wait, let me check: 12 - 5 = 7.",
    "There are 3 boxes with 4 pens in each box. Thus 3 * 4 = 12 pens.\nThe answer is 12.",
    "She sells 18 eggs for 2 dollars each. Hence 18 * 2 = 36. The answer is 36.",
]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(
    architecture: str,
    *,
    heads: int = 4,
    key_heads: int = 2,
    tied: bool = False,
    lora: bool | dict[str, Any] = False,
    dtype: torch.dtype = torch.float64,
    dropout: float = 0.0,
    lora_dropout: float = 0.0,
    layers: int = 3,
    seed: int = 0,
    eos_token_id: int | None = None,
    **changes: Any,
) -> Any:
    """Return a random model (a PeftModel with `lora`) in evaluation mode; the same arguments give the same weights.

    `lora` may hold fields of peft's LoraConfig. `dropout` is dropout on attention weights, `lora_dropout` dropout on
    the adapters' input; `changes` are further fields of the architecture's config.
    """
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 2048,
        "attention_dropout": dropout,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": None,
    }
    # One full layer at least, the last layer a sliding one: whoever mixes the layers up is found out.
    mixed = ["full_attention" if i == 1 else "sliding_attention" for i in range(layers)]
    if architecture == "llama":
        kind, config = LlamaForCausalLM, LlamaConfig(**shape | changes)
    elif architecture == "qwen2":
        kind, config = Qwen2ForCausalLM, Qwen2Config(**shape | changes)
    elif architecture == "qwen2_sliding":
        window = {"use_sliding_window": True, "sliding_window": SLIDING_WINDOW, "layer_types": mixed}
        kind, config = Qwen2ForCausalLM, Qwen2Config(**shape | window | changes)
    elif architecture == "qwen3":
        kind, config = Qwen3ForCausalLM, Qwen3Config(**shape | {"head_dim": 12} | changes)
    elif architecture == "gemma3":
        window = {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": SLIDING_WINDOW, "layer_types": mixed}
        kind, config = Gemma3ForCausalLM, Gemma3TextConfig(**shape | window | changes)
    elif architecture == "mistral":
        window = {"head_dim": 12, "sliding_window": SLIDING_WINDOW}
        kind, config = MistralForCausalLM, MistralConfig(**shape | window | changes)
    elif architecture == "smollm3":  # a layer without rotary embedding between two with it
        kind, config = SmolLM3ForCausalLM, SmolLM3Config(**shape | {"no_rope_layers": [1, 0, 1][:layers]} | changes)
    elif architecture == "olmo2":
        kind, config = Olmo2ForCausalLM, Olmo2Config(**shape | changes)
    elif architecture == "olmo3":
        window = {"sliding_window": SLIDING_WINDOW, "layer_types": mixed}
        kind, config = Olmo3ForCausalLM, Olmo3Config(**shape | window | changes)
    else:
        raise ValueError(f"architecture must be one of {ARCHITECTURES}, got {architecture!r}")
    model = kind(config)
    if lora:
        fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": lora_dropout, "target_modules": LINEAR}
        fields |= lora if isinstance(lora, dict) else {}
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields))
    randomise(model, seed)
    model = model.to(dtype).eval()
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                kind = type(module)  # on the class: what belongs to the module itself, `attach` leaves alone
                module.__class__ = type(kind.__name__, (kind,), {"forward": rms_norm})
    return model


def rms_norm(module: Any, states: torch.Tensor) -> torch.Tensor:
    """Do what transformers' norms do, in the states' own precision.

    Theirs work in fp32 whatever the model, so in fp64 gradients would agree no better than to 1e-6, and less than that
    could hide there. Tests in fp32 keep theirs.
    """
    gemma = type(module).__name__.startswith("Gemma")
    eps = module.eps if gemma else module.variance_epsilon
    scale = 1.0 + module.weight if gemma else module.weight
    return scale * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + eps)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter a random value in place: matrices keep the scale of their input, vectors get a spread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(0.5 * noise)
            elif "lora_" in name:
                parameter.copy_(0.3 * noise)
            elif parameter.dim() == 2:
                parameter.copy_(1.3 * noise / parameter.shape[1] ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            else:
                parameter.add_(0.3 * noise)


def _made_once(make: Callable[..., PreTrainedTokenizerFast]) -> Callable[..., PreTrainedTokenizerFast]:
    """Train a tokenizer once, and give each caller a copy: a test that changes its own changes nobody else's."""
    made = cache(make)

    @wraps(make)
    def copied(*args: Any, **kwargs: Any) -> PreTrainedTokenizerFast:
        return copy.deepcopy(made(*args, **kwargs))

    return copied


@_made_once
def byte_level_tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer in the manner of GPT-2 and Qwen: no bos; with `chat` a ChatML template."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>" if chat else "<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:],
    )
    if chat:
        fast.chat_template = CHATML
    return fast


@_made_once
def sentencepiece_tokenizer(append_eos: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer in the manner of Llama 2: ▁ for a space and before every text, byte fallback, bos.

    With `append_eos` it also ends every text that gets special tokens with eos.
    """
    trained = Tokenizer(tokenizer_models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    # Without line breaks, as SentencePiece reads its training text: "\n" falls back to its byte.
    lines = [line for text in CORPUS for line in text.splitlines()]
    trained.train_from_iterator(lines, BpeTrainer(vocab_size=150, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += sorted(state["vocab"], key=state["vocab"].get)
    tokenizer = Tokenizer(
        tokenizer_models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge) for merge in state["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if append_eos else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def save_student(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a student folder as users have them (safetensors, config, tokenizer files) and return it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
