"""One step of the trainer against the reference's gradient: from texts to new weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import reference
from compact_distill.config.models import PRESETS, CompatibilityConfig
from compact_distill.records import Instance, Rationale
from compact_distill.training.trainer import CompactConfig, CompactTrainer
from models import byte_level_tokenizer, tiny_model

RATE = 0.25
LONGEST = 95  # tokens of the longest prompt and completion below: a smaller budget would drop it
PROBLEMS = [
    ("Ann has 7 apples.", "12", [("First 7 + 5 = 12.", "12"), ("So it is 2.", "2"), ("Hmm.", "12")]),
    ("Why?", "1,250", [None, ("We add. We get\nmore", "36")]),
    ("How many eggs does she sell?", "yes", [("Therefore yes, but note: 18", "yes")]),
    ("There are 3 boxes.", "36", [("Thus 12 * 3 = 36", "36"), ("Suppose 12 " * 9, "12"), None, ("x", "yes")]),
]


@pytest.mark.parametrize(
    ("lora", "division"),
    [
        (False, {"per_device_train_batch_size": 4}),
        (True, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}),
        (True, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_tokens_per_pass": LONGEST}),
    ],
    ids=["one_batch", "accumulated", "two_phase"],
)
@pytest.mark.parametrize("estimator", ["lens", "probe"])
def test_a_step_follows_the_gradient_of_the_reference(
    tmp_path: Path, estimator: str, lora: bool, division: dict[str, int]
) -> None:
    tokenizer = byte_level_tokenizer()
    settings = reference.Settings(estimator=estimator, max_probes=3, temperature=0.5, consistency=0.3)
    model = tiny_model("qwen2", layers=2, lora=lora)
    problems = [reference.encode(tokenizer, *problem, settings) for problem in PROBLEMS]
    assert max(len(p.prompt) + len(b.completion) for p in problems for b in p.branches if b is not None) == LONGEST
    gradients = reference.gradients(model, problems, settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = [
        Instance(
            f"p{i}",
            question,
            gold,
            tuple(Rationale(f"t{k}", r[0] if r else "", answer=r[1] if r else None) for k, r in enumerate(rationales)),
        )
        for i, (question, gold, rationales) in enumerate(PROBLEMS)
    ]
    arguments = CompactConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=1,
        disable_tqdm=True,
        save_strategy="no",
        consistency=settings.consistency,
        compatibility=CompatibilityConfig(
            **{**PRESETS["paper"]["compatibility"], "estimator": estimator, "temperature": 0.5}, max_probes=3
        ),
        **division,
    )
    CompactTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer).train()
    moved = 0.0
    for name, parameter in model.named_parameters():
        step = RATE * gradients[name] if name in gradients else torch.zeros_like(parameter)
        torch.testing.assert_close(parameter.detach(), before[name] - step, rtol=1e-10, atol=1e-10)
        moved += step.abs().sum().item()
    assert moved > 1.0
