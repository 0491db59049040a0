"""The lab's student: the text it has read, a word-level tokenizer, a Llama of 0.35 M parameters; cached."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from compact_distill.config.models import TextConfig
from compact_distill.lab import (
    LARGEST,
    OPENINGS,
    STEPS,
    Terms,
    arithmetic,
    draw,
    facts,
    plain,
    pool,
    roman,
    split_of,
    steps,
    yes_no,
)
from compact_distill.runs.files import give_ordinary_modes
from compact_distill.runs.progress import progress, say

_WORD = r"\n|\w+|#+|[^\w\s]"
_NO_LABEL = -100


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a student is made; the same recipe and versions give the same student."""

    seed: int = 0
    steps: int = 1000
    lines_per_step: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    width: int = 96
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: one token for each word, number, sign and line break of the world."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *_words()])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    # WordPiece joins words by spaces; the rest takes away those that the world's texts do not have.
    tidy = [decoders.Replace(f" {sign}", sign) for sign in (".", ",", ":", "\n")] + [decoders.Replace("\n ", "\n")]
    core.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="<no word starts so>", cleanup=False), decoders.Fuse(), *tidy]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _words() -> list[str]:
    numbers = range(LARGEST + 1)
    texts = [str(n) for n in numbers] + [roman(n) for n in numbers]
    texts += [f"{p.question} {p.answer}" for p in [*facts(), *yes_no()]] + corpus_lines(2000, seed=0)
    texts += [teacher.write(problem) for problem in arithmetic("train", 100, seed=0) for teacher in pool()]
    return sorted({word for text in texts for word in re.findall(_WORD, text)})


def cached_student(recipe: Recipe | None = None, cache: Path | None = None) -> Path:
    """Return the folder of the pre-trained student, made now unless the cache holds it.

    The folder's name is a hash of the recipe, the text and the versions that made it, so nothing stale is found.
    """
    recipe = recipe or Recipe()
    text = corpus_lines(recipe.steps * recipe.lines_per_step, recipe.seed)
    folder = (cache or cache_folder()) / f"lab-student-{_key(recipe, text)}"
    if folder.exists():
        say(f"student: found in the cache, {folder}")
        return folder
    model = pretrain(recipe, text)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lab-student-", dir=folder.parent) as scratch:
        staging = Path(scratch) / "student"
        model.save_pretrained(staging)
        tokenizer().save_pretrained(staging)
        give_ordinary_modes(staging)
        try:
            staging.rename(folder)  # publishes all files at once
        except OSError:
            if not folder.exists():  # else another process was faster, and left the same student there
                raise
    return folder


def cache_folder() -> Path:
    """Return where students are kept: COMPACT_CACHE, else compact-distill in the user's cache folder."""
    if chosen := os.environ.get("COMPACT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compact-distill"


def pretrain(recipe: Recipe, text: list[str]) -> LlamaForCausalLM:
    """Train a new student on the lines of `text`, each read once, on the CPU."""
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(_shape(recipe, words))
        optimizer = torch.optim.AdamW(
            model.parameters(), recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
        )
        schedule = transformers.get_cosine_schedule_with_warmup(optimizer, recipe.warmup_steps, recipe.steps)
        with progress(f"student: pre-train {model.num_parameters():,} parameters", recipe.steps) as shown:
            for start in range(0, len(text), recipe.lines_per_step):
                loss = model(**_batch(words, text[start : start + recipe.lines_per_step])).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                shown.advance(note=f"loss {loss.item():.3f}")
    return model.eval()


def _shape(recipe: Recipe, words: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(words),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )


def _batch(words: PreTrainedTokenizerFast, batch: list[str]) -> dict[str, torch.Tensor]:
    """Tokenise whole lines with eos; padding has no label."""
    rows = [[*words(line)["input_ids"], words.eos_token_id] for line in batch]
    longest = max(map(len, rows))
    padded = torch.tensor([row + [words.pad_token_id] * (longest - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": padded, "attention_mask": real, "labels": padded.masked_fill(real == 0, _NO_LABEL)}


def _key(recipe: Recipe, text: list[str]) -> str:
    made_by = {
        "recipe": asdict(recipe),
        "text": text,
        "tokenizer": tokenizer().backend_tokenizer.to_str(),
        "versions": [module.__version__ for module in (torch, transformers, tokenizers)],
    }
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]


_SHARES = {"worked": 7, "step": 2, "thought": 2, "fact": 4, "yes_no": 5}
"""How often each kind of line is drawn, out of the total."""
KNOWN_OPERANDS = range(1, 7)
"""What the student can add and take away before any teacher; problems go on to 9."""
_WORKED_STEPS = {1: 2, 2: 2, STEPS: 1}
"""How often a worked sum has so many steps, out of the total."""


def corpus_lines(count: int, seed: int) -> list[str]:
    """Return `count` lines of text, the same for the same seed."""
    rng = random.Random(f"{seed}/corpus")
    known = {"fact": facts(), "yes_no": yes_no()}
    texts = []
    for kind in rng.choices(list(_SHARES), weights=list(_SHARES.values()), k=count):
        if kind in known:
            problem = rng.choice(known[kind])
            texts.append(_prompted(problem.question, "", problem.answer))
        else:
            texts.append(_arithmetic(kind, rng))
    return texts


def _arithmetic(kind: str, rng: random.Random) -> str:
    if kind == "worked":
        terms = _worked(rng)
        return _prompted(f"compute {plain(terms)} ?", f"{_in_a_style(terms, rng)}\n", str(sum(terms)))
    (step,) = steps(draw(rng.randint(0, LARGEST), 1, rng, KNOWN_OPERANDS))
    return f"{rng.choice(OPENINGS)} {step}." if kind == "thought" else f"{step}."


def _worked(rng: random.Random) -> Terms:
    """A sum of up to as many steps as problems have, never one of the tuning or held-out problems."""
    (count,) = rng.choices(list(_WORKED_STEPS), weights=list(_WORKED_STEPS.values()))
    while True:
        terms = draw(rng.randint(0, LARGEST), count, rng, KNOWN_OPERANDS)
        if count < STEPS or split_of(f"compute {plain(terms)} ?") == "train":
            return terms


def _in_a_style(terms: Terms, rng: random.Random) -> str:
    """A sum's steps as one of three teachers would write them: terse, thinking aloud, in one sentence."""
    written = steps(terms)
    style = rng.choice(("terse", "aloud", "sentence"))
    if style == "sentence":
        return f"We get {' and '.join(written)}."
    if style == "aloud":
        first, *others = written
        written = [f"{OPENINGS[0]} {first}", *(f"{rng.choice(OPENINGS[1:])} {step}" for step in others)]
        if rng.random() < 0.5:
            written.append(f"Wait: yes, it is {sum(terms)}")
    return " ".join(f"{step}." for step in written)


def _prompted(question: str, reasoning: str, answer: str) -> str:
    text = TextConfig()
    return f"{text.prompt_template.format(question=question)} {reasoning}{text.answer_template.format(answer=answer)}"
