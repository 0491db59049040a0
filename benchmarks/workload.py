"""What is trained on in the benchmark: student shapes with random weights, and problems as tokens.

Every contender gets the same token sequences: problems are encoded once, by the package's own encoder, and whoever
trains on plain sequences gets prompt + completion of each rationale from there.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compact_distill.method.encode import Branch, EncodedProblem, Encoder
from compact_distill.method.packing import lay_out
from compact_distill.records import Instance, Rationale, RationaleStatus

PROMPT, RATIONALE = 72, 128  # tokens, the means of gsm8k_four_teachers under the tokenizer made here
PAD, EOS = "<pad>", "<eos>"
# How Qwen2 splits text before its BPE: words with the sign or space before them, digits one by one.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ANSWER = 8  # tokens of a synthetic answer segment; its middle two are the answer


@dataclass(frozen=True)
class Shape:
    """Size of a Qwen2 student; the smaller Qwen2.5 models tie embedding and LM head, and so do we."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int


SHAPES = {
    "toy": Shape(2, 64, 2, 1, 96, 8192),
    "small": Shape(6, 256, 4, 2, 1024, 8192),
    "smollm2-135m": Shape(30, 576, 9, 3, 1536, 49152),
    "qwen2.5-0.5b": Shape(24, 896, 14, 2, 4864, 151936),
    "qwen2.5-1.5b": Shape(28, 1536, 12, 2, 8960, 151936),
}


@dataclass(frozen=True)
class Workload:
    """Problems that are trained on in each round, in optimizer steps of `step` problems.

    `max_tokens_per_pass` is for our trainer; None: its default.
    """

    name: str
    problems: tuple[EncodedProblem, ...]
    step: int
    max_tokens_per_pass: int | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps a round."""
        return len(self.problems) // self.step


def make_model(shape: Shape, dtype: torch.dtype, device: str) -> Any:
    """A Qwen2 student with random weights, the same for every contender."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

    set_seed(0)
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.device(device):
        return Qwen2ForCausalLM(config).to(dtype)


def sequences(problems: Iterable[EncodedProblem]) -> Iterator[tuple[list[int], list[int]]]:
    """Input ids and labels (-100 on the prompt) of each rationale, one sequence each, as plain fine-tuning reads it."""
    for problem in problems:
        for branch in problem.branches:
            if branch is not None:
                completion = list(branch.completion)
                yield [*problem.prompt, *completion], [-100] * len(problem.prompt) + completion


def data_folder() -> Path | None:
    """The folder with the real data: COMPACT_DATA, or `../shared/data` beside the checkout; None where absent."""
    named = os.environ.get("COMPACT_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder if (folder / "gsm8k_four_teachers.jsonl").is_file() else None


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE of up to `vocabulary` tokens, as Qwen2's, with pad token 0 and eos token 1."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=EOS)


def gsm8k(folder: Path) -> tuple[Any, list[EncodedProblem]]:
    """Tokenizer trained on GSM8K's training texts, and the problems that have all four rationales, in file order."""
    with (folder / "gsm8k_train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    tokenizer = train_tokenizer((f"{row['question']}\n{row['solution']}" for row in rows), 8192)
    encoder = Encoder(tokenizer)
    with (folder / "gsm8k_four_teachers.jsonl").open(encoding="utf-8") as file:
        encoded = [encoder(_instance(json.loads(line))) for line in file]
    return tokenizer, [problem for problem in encoded if len(problem.present) == len(problem.branches)]


def _instance(row: dict[str, Any]) -> Instance:
    rationales = tuple(Rationale(r["teacher"], r["text"]) for r in row["rationales"])
    return Instance(row["id"], row["question"], row["answer"], rationales)


def synthetic(
    count: int, teachers: int, rationale: int, vocabulary: int, prompt: int = PROMPT, spread: float = 0.0
) -> list[EncodedProblem]:
    """Random problems: every second rationale ends in the gold answer, every tenth token is a thinking expression.

    Args:
        count: problems.
        teachers: rationales a problem.
        rationale: mean tokens of a completion.
        vocabulary: token ids are below it.
        prompt: mean tokens of a prompt.
        spread: standard deviation of the logarithm of lengths; 0: all alike.
    """
    rng = random.Random(0)
    return [_synthetic_problem(rng, index, teachers, rationale, vocabulary, prompt, spread) for index in range(count)]


def _synthetic_problem(
    rng: random.Random, index: int, teachers: int, rationale: int, vocabulary: int, prompt: int, spread: float
) -> EncodedProblem:
    def tokens(mean: int) -> tuple[int, ...]:
        length = max(1, round(mean * rng.lognormvariate(-spread * spread / 2, spread)))
        return tuple(rng.randrange(2, vocabulary) for _ in range(length))

    gold = tuple(rng.randrange(2, vocabulary) for _ in range(_ANSWER))
    branches = []
    for k in range(teachers):
        reasoning = tokens(rationale - _ANSWER - 1)
        wrong = (*gold[:4], *(rng.randrange(2, vocabulary) for _ in gold[4:6]), *gold[6:])
        thinking = tuple(t % 10 == 9 for t in range(len(reasoning)))
        stops = tuple(t + 1 for t, thinks in enumerate(thinking) if thinks)
        branches.append(Branch(reasoning, wrong if k % 2 else gold, 1, thinking, stops))
    return EncodedProblem(
        id=f"synthetic/{index}",
        teachers=tuple(f"teacher{k}" for k in range(teachers)),
        prompt=tokens(prompt),
        branches=tuple(branches),
        statuses=(RationaleStatus.OK,) * teachers,
        gold=gold,
        gold_start=4,
        gold_stop=6,
        answers_from=(None,) * teachers,
    )


@dataclass(frozen=True)
class TokenCounts:
    """Tokens a problem, on average: `unique` counts a shared prompt once, `repeated` once a rationale.

    `labelled` go through the LM head; `gold` are the extra tokens that the consistency term reads.
    """

    unique: float
    repeated: float
    labelled: float
    gold: float


def count_tokens(problems: Sequence[EncodedProblem]) -> TokenCounts:
    """Average token counts of some problems."""
    n = len(problems)
    labelled = sum(len(b) for p in problems for b in p.branches if b is not None)
    plain = len(lay_out(problems, with_gold=False).tokens)
    return TokenCounts(
        unique=plain / n,
        repeated=sum(len(ids) for ids, _ in sequences(problems)) / n,
        labelled=labelled / n,
        gold=(len(lay_out(problems, with_gold=True).tokens) - plain) / n,
    )
