"""Make a small student from nothing: a tokenizer and a Qwen2-shaped model, pre-trained for a few minutes on GSM8K.

    python examples/gsm8k/make_student.py --data gsm8k_train.jsonl --out build/gsm8k-student --minutes 5

It is no good at mathematics; it is a student small enough for two CPU cores, that has read the language of the
problems. Replace it with `Qwen/Qwen2.5-1.5B` in train.yaml when you have a GPU.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

EOS = "<|endoftext|>"
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENS_PER_BATCH = 4096


def read_texts(path: Path) -> list[str]:
    """Question, solution and answer as the trainer will show them; the calculator's <<48/2=24>> marks are left out."""
    texts = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            row = json.loads(line)
            solution = re.sub(r"<<[^>]*>>", "", row["solution"])
            texts.append(f"Question: {row['question']}\nAnswer: {solution}\nThe answer is {row['answer']}.")
    return texts


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that splits text as Qwen2's does, so that it loads as a Qwen2 tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[EOS], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def make_model(tokenizer: PreTrainedTokenizerFast, layers: int, width: int) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def batches(sequences: list[list[int]], seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of sequences of similar length, padded: ids and labels, [B, T]."""
    shuffle = random.Random(seed)
    while True:
        order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), shuffle.random()))
        groups: list[list[int]] = [[]]
        for index in order:
            if (len(groups[-1]) + 1) * len(sequences[index]) > TOKENS_PER_BATCH:
                groups.append([])
            groups[-1].append(index)
        shuffle.shuffle(groups)
        for group in groups:
            longest = max(len(sequences[i]) for i in group)
            ids = torch.tensor([sequences[i] + [0] * (longest - len(sequences[i])) for i in group])
            labels = torch.tensor([sequences[i] + [-100] * (longest - len(sequences[i])) for i in group])
            yield ids, labels


def pretrain(model: Qwen2ForCausalLM, sequences: list[list[int]], minutes: float, seed: int) -> None:
    """AdamW with warm-up and a linear decay over the time given."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    model.train()
    start = said = time.perf_counter()
    for step, (ids, labels) in enumerate(batches(sequences, seed), start=1):
        done = (time.perf_counter() - start) / (60 * minutes)
        if done >= 1:
            return
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(step / 20, 1.0) * max(1 - done, 0.05)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if time.perf_counter() - said > 15:
            said = time.perf_counter()
            print(f"step {step}, {100 * done:.0f} % of the time, loss {loss.item():.2f} nats/token", flush=True)


def main() -> None:
    """Read, tokenise, pre-train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="gsm8k_train.jsonl: id, question, solution, answer")
    parser.add_argument("--out", type=Path, required=True, help="folder for model and tokenizer")
    parser.add_argument("--minutes", type=float, default=5, help="how long to pre-train")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    texts = read_texts(options.data)
    tokenizer = make_tokenizer(texts, options.vocabulary)
    model = make_model(tokenizer, options.layers, options.width)
    print(f"{len(texts)} texts, {len(tokenizer)} tokens, {model.num_parameters() / 1e6:.1f} M parameters", flush=True)
    # What others will load is what it must be trained with, so both are saved first and the tokenizer is read again.
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    tokenizer = AutoTokenizer.from_pretrained(options.out)
    sequences = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    pretrain(model, sequences, options.minutes, options.seed)
    model.save_pretrained(options.out)
    print(f"student saved in {options.out}")


if __name__ == "__main__":
    main()
