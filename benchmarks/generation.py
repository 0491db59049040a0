"""Tokens a second of the student's generator against transformers' `generate`, on the same prompts and batches.

    python benchmarks/generation.py            # 6 layers, width 256, vocabulary 8,192
    python benchmarks/generation.py --device cuda --layers 28 --width 1536 --vocabulary 151936

The weights are random, so both sides sample, and a token in a hundred ends a text: lengths spread as those of real
answers do. Every contender writes all prompts once per round, in turn; what counts is its best round.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from compact_distill.students.generate import Decoding, Generator

END_SHARE = 0.01
PROMPT_TOKENS = (40, 110)


def make_model(arguments: argparse.Namespace) -> Qwen2ForCausalLM:
    """A student of random weights."""
    torch.manual_seed(0)
    heads = arguments.width // 64
    config = Qwen2Config(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.width,
        intermediate_size=arguments.width * 8 // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(shared for shared in range(1, max(heads // 4, 1) + 1) if heads % shared == 0),
        tie_word_embeddings=True,
        eos_token_id=list(range(int(END_SHARE * arguments.vocabulary))),
        pad_token_id=0,
        bos_token_id=None,
    )
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    return Qwen2ForCausalLM(config).to(arguments.device, dtype).eval()


def make_prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Prompts of random tokens, sorted by length, as every good harness does."""
    chance = random.Random(0)
    lengths = [chance.randint(*PROMPT_TOKENS) for _ in range(count)]
    return [[chance.randrange(vocabulary) for _ in range(length)] for length in sorted(lengths, reverse=True)]


def ours(model: Qwen2ForCausalLM, prompts: list[list[int]], batch: int, limit: int) -> int:
    """Tokens that our generator writes."""
    core = Tokenizer(models.WordLevel({str(n): n for n in range(model.config.vocab_size)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="0")
    generator = Generator(model, tokenizer, Decoding(limit, temperature=1.0))
    written = 0
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        written += sum(own.tokens for own in generator(part, range(start, start + len(part))))
    return written


def peer(model: Qwen2ForCausalLM, prompts: list[list[int]], batch: int, limit: int, cache: str) -> int:
    """Tokens that transformers' generate writes, up to each row's end token."""
    ends = torch.tensor(model.config.eos_token_id, device=model.device)
    settings = GenerationConfig(
        max_new_tokens=limit,
        do_sample=True,
        top_k=0,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=0,
        cache_implementation=cache,
    )
    written = 0
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        longest = max(map(len, part))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in part], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in part], device=model.device)
        with torch.no_grad():
            out = model.generate(ids, attention_mask=mask, generation_config=settings)[:, longest:]
        ended = torch.isin(out, ends)
        first = torch.where(ended.any(1), ended.int().argmax(1) + 1, out.shape[1])
        written += int(first.sum())
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 96])
    parser.add_argument("--caches", nargs="+", default=["dynamic"], help="static needs a compiler, and minutes")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    model = make_model(arguments)
    prompts = make_prompts(arguments.prompts, arguments.vocabulary)
    contenders: dict[str, Callable[[], int]] = {}
    for batch in arguments.batches:
        contenders[f"ours, batch {batch}"] = lambda b=batch: ours(model, prompts, b, arguments.limit)
        for cache in arguments.caches:
            name = f"generate, {cache} cache, batch {batch}"
            contenders[name] = lambda b=batch, c=cache: peer(model, prompts, b, arguments.limit, c)
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(arguments.rounds):
        for name, write in contenders.items():
            # On a shared machine the processor's time says more than the clock's; on a GPU only the clock counts.
            clock = time.process_time if arguments.device == "cpu" else time.perf_counter
            started = clock()
            written = write()
            best[name] = max(best[name], written / (clock() - started))
    for name, rate in best.items():
        print(f"{name:40s} {rate:8.0f} tokens/s")


if __name__ == "__main__":
    main()
