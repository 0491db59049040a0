"""COMPACT's training, without a trainer: the method as one loop, for who wants to understand or change it.

    python examples/recipes/loop.py STUDENT DATA OUT --weighting '{"gate": "compact"}'

STUDENT is a folder or hub name, DATA problems with rationales (docs/files.md). What CompactTrainer adds is everything
around this: resuming, LoRA, many ranks, evaluation, a report. Its losses are these (tests/method/test_recipe.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from compact_distill import (
    CompatibilityConfig,
    EncodedProblem,
    Encoder,
    Instance,
    Scorer,
    aggregate,
    attach,
    load_instances,
    load_student,
    plan_jobs,
    read_job,
)


def train(
    model: torch.nn.Module,
    tokenizer: Any,
    instances: Sequence[Instance],
    *,
    compatibility: CompatibilityConfig | None = None,
    weighting: Any = "compact",
    consistency: float = 0.0,
    learning_rate: float = 1e-5,
    epochs: int = 5,
    batch: int = 4,
    max_tokens: int = 16384,
    seed: int = 42,
) -> Iterator[float]:
    """Train `model` in place; yield the loss of each step.

    Args:
        model: a supported causal language model, or a peft model of one.
        tokenizer: its tokenizer.
        instances: problems with rationales.
        compatibility: how rationales are scored.
        weighting: the weight rule.
        consistency: lambda.
        learning_rate: at the start; it falls linearly to 0.
        epochs: how often all problems are read, in their order.
        batch: problems of a step.
        max_tokens: read at once; a longer problem is read branch by branch.
        seed: of what the rule draws.
    """
    # 1. Texts to tokens. The scorer compares answers where its scores or its rule ask whether they are right.
    attach(model)
    scorer = Scorer(compatibility, weighting, seed)
    encoder = Encoder(tokenizer, thinking_expressions=scorer.config.thinking_expressions)
    encoded = [problem for _, problem in scorer.encode(encoder, instances)]
    problems = [problem for problem in encoded if scorer.rule.candidates(problem)]
    steps = [problems[start : start + batch] for start in range(0, len(problems), batch)]

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs * len(steps))
    model.train()
    for epoch in range(epochs):
        for step in steps:
            yield train_step(model, scorer, step, consistency, max_tokens, epoch)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def train_step(
    model: torch.nn.Module,
    scorer: Scorer,
    problems: Sequence[EncodedProblem],
    consistency: float,
    max_tokens: int,
    epoch: int = 0,
) -> float:
    """Leave the gradient of the mean loss over `problems` in the parameters, and return that loss."""
    options = scorer.pass_options(consistency)
    device = next(model.parameters()).device
    loss = 0.0
    # 2. Problems share passes of the student as far as `max_tokens` allows.
    for job in plan_jobs(problems, options, max_tokens, device):
        # 3. One pass reads each prompt once, and its K branches, which do not see each other.
        outputs = read_job(model, job, options)
        # 4. What it yielded says how compatible each rationale is with this student, now: [B, K] each.
        scores = scorer.scores(outputs)
        # 5. Scores, or verdicts, become weights; no gradient flows through them.
        weights_BK = scorer.weights(scores, outputs.problems, epoch)
        # 6. The loss is reduced once: weighted losses, and a pull towards one answer; then its mean over the step.
        terms = aggregate(scores["difficulty"], weights_BK, outputs.gold_logprob, outputs.problems, consistency)
        (terms.total / len(problems)).backward()
        loss += terms.total.item() / len(problems)
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--weighting", default="compact", help="a rule's name, or JSON")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    weighting = json.loads(given.weighting) if given.weighting.startswith("{") else given.weighting
    model, tokenizer = load_student(given.student, dtype=torch.float32)
    instances = load_instances(given.data)
    losses = train(
        model, tokenizer, instances, weighting=weighting, learning_rate=given.learning_rate, epochs=given.epochs
    )
    for step, loss in enumerate(losses, start=1):
        print(f"step {step}: loss {loss:.4f}")
    model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)


if __name__ == "__main__":
    main()
