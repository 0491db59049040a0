"""The plain reading: each branch as a sequence of its own, by transformers' own forward with nothing of ours in it.

It is what the fast pass must match; `compact doctor` compares them on tiny students, which are made here too.

Shape letters: T tokens, N rows that predict, D width, V vocabulary, A gold-answer tokens, H query and G key
heads, R branches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compact_distill.method.encode import Branch, EncodedProblem
from compact_distill.method.forward import PassOptions
from compact_distill.method.outputs import Reading, StudentOutputs, arrange
from compact_distill.method.packing import BranchRows, choose_points, lay_out
from compact_distill.records import RationaleStatus
from compact_distill.students.load import adapter_base, innermost

WINDOW = 8  # of sliding layers: shorter than the problems, so that it cuts


def read_plainly(model: Any, given: Sequence[EncodedProblem], options: PassOptions) -> StudentOutputs:
    """What `read_job` yields, branch by branch, each token in a sequence of its own by the model's own forward."""
    readings = []
    for branch in lay_out(given, with_gold=False).branches:
        readings.append(_read_branch(model, given[branch.problem], branch, options))
    return arrange(given, readings)


def _read_branch(model: Any, problem: EncodedProblem, rows: BranchRows, options: PassOptions) -> Reading:
    branch, start = rows.branch, len(problem.prompt) - 1
    logprob_TV, hidden_TD = _sequence(model, (*problem.prompt, *branch.completion[:-1]))
    own_NV = logprob_TV[start:]
    labels = torch.tensor(branch.completion, device=own_NV.device)
    attention = innermost(model).model.layers[-1].self_attn
    gold_AV = _gold(model, problem, branch.reasoning) if options.with_gold else None
    probes = []
    if options.max_probes is not None:
        for point in choose_points(branch.stops, len(branch.reasoning), options.max_probes):
            at_AV = _gold(model, problem, branch.reasoning[:point]).detach()
            probes.append(at_AV.gather(1, torch.tensor(problem.gold_tokens, device=at_AV.device)[:, None]).mean())
    return Reading(
        branches=[rows],
        logprob_N=own_NV.gather(1, labels[:, None])[:, 0],
        belief_N=own_NV[:, list(problem.gold_tokens)].mean(1).detach(),
        query_RHD=_project(attention, "q", hidden_TD[-1:]),
        key_RGD=_project(attention, "k", hidden_TD[-1:]),
        gold_logprob=() if gold_AV is None else (gold_AV,),
        probe=(torch.stack(probes),) if probes else (),
    )


def _sequence(model: Any, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    out = model(input_ids=torch.tensor([tokens], device=device), output_hidden_states=True, use_cache=False)
    logits = out.logits[0] if out.logits.dtype == torch.float64 else out.logits[0].float()
    return logits.log_softmax(-1), out.hidden_states[-1][0]


def _gold(model: Any, problem: EncodedProblem, reasoning: Sequence[int]) -> Tensor:
    """Next-token distributions at the gold answer's tokens after some reasoning, [A, V]."""
    path = (*problem.prompt, *reasoning, *problem.gold)
    first = len(path) - len(problem.gold) + problem.gold_start - 1
    return _sequence(model, path)[0][first : first + len(problem.gold_tokens)]


@torch.no_grad()
def _project(attention: Any, which: str, states_ND: Tensor) -> Tensor:
    heads = getattr(attention, f"{which}_proj")(states_ND.detach())
    norm: Any = getattr(attention, f"{which}_norm", None)
    if type(attention).__name__.startswith("Olmo"):
        heads = norm(heads).unflatten(-1, (-1, attention.head_dim))
    else:
        heads = heads.unflatten(-1, (-1, attention.head_dim))
        heads = heads if norm is None else norm(heads)
    return heads if heads.dtype == torch.float64 else heads.float()


def exact_norms(model: nn.Module) -> None:
    """transformers' norms compute in fp32 whatever the model; those of the yardstick in fp64."""

    def forward(module: Any, states: Tensor) -> Tensor:
        gemma = type(module).__name__.startswith("Gemma")
        scale = 1.0 + module.weight if gemma else module.weight
        eps = module.eps if gemma else module.variance_epsilon
        return scale * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + eps)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


# ---- tiny students and problems


@dataclass(frozen=True)
class Student:
    """A tiny student: transformers' model type with fields of its config, and whether it trains LoRA."""

    name: str
    model_type: str
    fields: dict[str, Any]
    lora: bool = False


def students() -> list[Student]:
    """Tiny students: every supported architecture, with grouped heads, q/k norms, biases, windows, all head sizes."""
    mixed = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
    tiny = [
        Student("llama", "llama", {"head_dim": 64}),
        Student("llama, LoRA", "llama", {"head_dim": 80}, lora=True),
        Student("qwen2", "qwen2", {"head_dim": 128}, lora=True),
        Student("qwen2, sliding", "qwen2", {"head_dim": 96, "use_sliding_window": True, **mixed}),
        Student("qwen3", "qwen3", {"head_dim": 128}),
        Student("gemma3", "gemma3_text", {"head_dim": 256, "query_pre_attn_scalar": 200, **mixed}),
        Student("mistral, sliding", "mistral", {"head_dim": 96, "sliding_window": WINDOW}),
        Student("smollm3", "smollm3", {"head_dim": 64, "no_rope_layers": [1, 0]}),
        Student("olmo2", "olmo2", {"head_dim": 80}),
        Student("olmo3", "olmo3", {"head_dim": 128, **mixed}),
    ]
    shape = {
        "vocab_size": 160,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": None,
    }
    return [replace(student, fields=shape | student.fields) for student in tiny]


def students_like(name: str | Path) -> list[Student]:
    """A student's own heads, head size, width, norms and biases, with all weights and with LoRA; few layers and tokens.

    Args:
        name: hub name, model folder (a config is enough) or adapter folder.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(adapter_base(name) or name, trust_remote_code=False)
    fields = config.to_dict()
    kinds = list(dict.fromkeys(fields.get("layer_types") or ["full_attention"]))
    fields |= {"num_hidden_layers": 2, "vocab_size": min(fields["vocab_size"], 512)}
    fields["intermediate_size"] = min(fields["intermediate_size"], 512)
    if fields.get("layer_types"):
        fields["layer_types"] = (kinds * 2)[:2]
    if fields.get("no_rope_layers"):
        fields["no_rope_layers"] = (list(dict.fromkeys(fields["no_rope_layers"])) * 2)[:2]
    if fields.get("sliding_window"):
        fields["sliding_window"] = WINDOW
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        fields[token] = None
    model_type = fields.pop("model_type")
    return [Student("this student", model_type, fields), Student("this student, LoRA", model_type, fields, lora=True)]


def build(student: Student, dtype: torch.dtype, device: torch.device) -> Any:
    """The student with random weights that bf16 holds exactly, the same in every precision; nothing of ours in it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(student.model_type, **student.fields)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if student.lora:
        from peft import LoraConfig, get_peft_model

        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        adapter = LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                noise *= 1.0 if "embed" in name else 1.3 / max(parameter.shape) ** 0.5
            else:
                noise = 0.3 * noise + (0.0 if name.endswith("bias") or "gemma" in student.model_type else 1.0)
            parameter.copy_(noise.bfloat16())
    return model.to(device).eval()


def problems(vocabulary: int) -> list[EncodedProblem]:
    """Two problems: a missing rationale, one without reasoning, wrong and right answers, longer than the window."""
    rng = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, vocabulary) for _ in range(count))

    made = []
    for name, prompt, lengths in (("a", 7, (13, 21, 4)), ("b", 1, (0, None, 5))):
        gold = tokens(5)
        branches: list[Branch | None] = []
        for k, length in enumerate(lengths):
            if length is None:
                branches.append(None)
                continue
            thinking = tuple(t % 4 == 1 for t in range(length))
            stops = tuple(t + 1 for t in range(length) if thinking[t])
            answer = (gold, (*gold[:2], *tokens(3)), tokens(1))[k]
            branches.append(Branch(tokens(length), answer, 1, thinking, stops))
        statuses = tuple(RationaleStatus.MISSING if b is None else RationaleStatus.OK for b in branches)
        teachers = ("t0", "t1", "t2")
        made.append(EncodedProblem(name, teachers, tokens(prompt), tuple(branches), statuses, gold, 2, 4))
    return made
