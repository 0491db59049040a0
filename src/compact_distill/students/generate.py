"""Let a model write, student or local teacher: padded batches, greedily or by sampling, each row by its own numbers.

Nothing of the model folder's sampling defaults gets in. A batch gets smaller as its rows finish, so that one long row
does not make the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compact_distill.errors import StudentError
from compact_distill.students.prompt import turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLED_AT_ONCE = 2**24
"""Probabilities, in numbers, that are summed at once while sampling; bounds the memory (128 MiB in fp64)."""
_SHRINK_AT = 0.75
"""A batch is cut down to its unfinished rows once this share or less is left: copying the cache costs time too."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a model writes. Temperature 0 is greedy; `stop` are texts that end a row and are cut off it."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}; use 0 for greedy")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be > 0 and <= 1, got {self.top_p}; use 1.0 for all tokens")
        if not all(self.stop):
            raise ValueError("stop must not hold an empty text; remove it")


@dataclass(frozen=True, slots=True)
class Written:
    """What the model wrote after one prompt; `finished` is False where the token limit cut it.

    `tokens` counts what was written, with the end token or the stop text.
    """

    text: str
    finished: bool
    tokens: int


class Cancelled(Exception):
    """Writing was called off; what was written so far is gone."""


def plan_batches(prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Divide prompts into batches of like length, the longest first; the same prompts give the same batches.

    Args:
        prompts: token ids.
        max_new_tokens: most tokens written after each.
        batch_tokens: most tokens of a batch, padding and what is to be written included; one row always fits.

    Returns:
        Indices of the prompts, batch by batch.
    """
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    batches: list[list[int]] = []
    room = 0
    for row in order:
        if room == 0:
            room = max(1, batch_tokens // (len(prompts[row]) + max_new_tokens))
            batches.append([])
        batches[-1].append(row)
        room -= 1
    return batches


class Generator:
    """Writes with one model, tokenizer and decoding.

    Args:
        model: a causal language model; also a PeftModel, and a model in training (its mode is put back).
        tokenizer: its tokenizer. A row ends at one of its `end_tokens`.
        decoding: the settings.
        reshape: changes each step's logits, given all tokens so far, such as transformers' LogitsProcessorList;
            short prompts repeat their first token at the left. None: the logits stay as the model gives them.
        cancelled: asked before each token; once it says yes, `Cancelled` is raised.
        keep: special tokens that belong to the text, by what they say; others are left out of it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        reshape: Callable[[Tensor, Tensor], Tensor] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        keep: Callable[[str], bool] = lambda token: False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.decoding = decoding
        self._reshape = reshape
        self._cancelled = cancelled
        special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._left_out = {number for number, text in special.items() if not keep(text)}
        self._keeps_some = len(self._left_out) < len(special)
        self.ends = end_tokens(model, tokenizer)
        self._stoppers = _tokens_that_may_stop(tokenizer, decoding.stop, model.config.get_text_config().vocab_size)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None = None) -> list[Written]:
        """Continue each prompt (token ids); all of them are one batch.

        Args:
            prompts: token ids, none empty.
            seeds: one a prompt, of the random numbers that choose its tokens; needed where the temperature is not 0.

        Raises:
            Cancelled: `cancelled` said so.
        """
        if not prompts:
            return []
        if self.decoding.temperature > 0 and (seeds is None or len(seeds) != len(prompts)):
            raise ValueError(f"seeds must be one a prompt where temperature > 0, got {seeds!r:.80}")
        was_training = self.model.training
        self.model.eval()
        # The last token's states are a slice of the prompt's: torch would copy the head's frozen weight once a row.
        head = self.model.get_output_embeddings().register_forward_pre_hook(_contiguous)
        try:
            tokens, lengths, finished = self._write(prompts, seeds)
        finally:
            head.remove()
            self.model.train(was_training)
        return [self._written(row[:length], done) for row, length, done in zip(tokens, lengths, finished, strict=True)]

    def _write(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None
    ) -> tuple[list[list[int]], list[int], list[bool]]:
        """The new tokens of each prompt, how many of them count, and whether the row ended by itself."""
        device, limit = self.model.device, self.decoding.max_new_tokens
        ids, mask = pad_left(prompts, self.ends[0], device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        uniforms = None if self.decoding.temperature == 0 else _uniforms(seeds or (), limit).to(device)
        written = torch.full((len(prompts), limit), self.ends[0], device=device)
        lengths = [limit] * len(prompts)
        done = [False] * len(prompts)
        active = list(range(len(prompts)))  # rows of the batch, by index of their prompts
        ends = torch.tensor(self.ends, device=device)
        # Padding must not look like end tokens that were written: what reshapes logits may count tokens.
        read = torch.where(mask == 0, ids.gather(1, mask.argmax(1, keepdim=True)), ids)
        cache = None
        for step in range(limit):
            if self._cancelled():
                raise Cancelled
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            logits = out.logits[:, -1]
            if not bool(logits.amax(-1).isfinite().all()):
                raise StudentError(
                    "the model's scores for the next token must be numbers, but some are not (NaN or infinite): its "
                    "weights are damaged or its training diverged; train again, or take an earlier checkpoint"
                )
            if self._reshape is not None:
                logits = self._reshape(torch.cat([read[active], written[active, :step]], dim=1), logits)
            token = self._choose(logits, None if uniforms is None else uniforms[active, step])
            written[active, step] = token
            for place in self._ended(token, ends, written, active, step):
                row = active[place]
                if not done[row]:
                    done[row], lengths[row] = True, step + 1
            keep = [place for place, row in enumerate(active) if not done[row]]
            if not keep:
                break
            ids, positions = token[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            if len(keep) <= _SHRINK_AT * len(active):
                chosen = torch.tensor(keep, device=device)
                cache.batch_select_indices(chosen)
                ids, positions, mask = ids[chosen], positions[chosen], mask[chosen]
                active = [active[place] for place in keep]
        return written.tolist(), lengths, done

    def _ended(self, token_N: Tensor, ends: Tensor, written: Tensor, active: list[int], step: int) -> list[int]:
        """Places in the batch whose row ends with this token."""
        ended = torch.isin(token_N, ends)
        if self._stoppers is None:
            return ended.nonzero()[:, 0].tolist()
        may_stop = self._stoppers.to(token_N.device)[token_N]
        places = (ended | may_stop).nonzero()[:, 0].tolist()
        tail = max(map(len, self.decoding.stop)) + 8  # a token holds one character at least, but for pieces of one
        return [
            place
            for place in places
            if int(token_N[place]) in self.ends
            or self._stops(written[active[place], max(0, step + 1 - tail) : step + 1].tolist())
        ]

    def _stops(self, tokens: list[int]) -> bool:
        text = self._text(tokens)
        return any(stop in text for stop in self.decoding.stop)

    def _choose(self, logits_NV: Tensor, uniform_N: Tensor | None) -> Tensor:
        if uniform_N is None:
            return logits_NV.argmax(-1)
        rows = max(1, _SAMPLED_AT_ONCE // logits_NV.shape[1])
        parts = zip(logits_NV.split(rows), uniform_N.split(rows), strict=True)
        return torch.cat([sample(part, uniform, self.decoding) for part, uniform in parts])

    def _text(self, tokens: list[int]) -> str:
        kept = [token for token in tokens if token not in self._left_out] if self._keeps_some else tokens
        return str(self.tokenizer.decode(kept, skip_special_tokens=not self._keeps_some))

    def _written(self, tokens: list[int], finished: bool) -> Written:
        own = tokens[:-1] if tokens[-1] in self.ends else tokens
        text = self._text(own)
        cuts = [text.find(stop) for stop in self.decoding.stop if stop in text]
        return Written(text[: min(cuts)] if cuts else text, finished or bool(cuts), len(tokens))


def sample(logits_NV: Tensor, uniform_N: Tensor, decoding: Decoding) -> Tensor:
    """Draw one token a row by inverting its cumulative distribution at `uniform_N` in [0, 1); [N] token ids.

    With top_p < 1 only the most probable tokens count, as many as it takes to reach top_p (Holtzman et al. 2020).
    """
    prob_NV = torch.softmax(logits_NV.double() / decoding.temperature, dim=-1)
    if decoding.top_p < 1:
        prob_NV, order_NV = prob_NV.sort(dim=-1, descending=True)
        prob_NV = prob_NV.masked_fill(prob_NV.cumsum(-1) - prob_NV >= decoding.top_p, 0.0)
    cumulative_NV = prob_NV.cumsum(-1)
    target_N1 = uniform_N[:, None].to(cumulative_NV) * cumulative_NV[:, -1:]
    # The first token whose cumulative probability is above the target; rounding must not lead past the last one.
    index_N1 = torch.searchsorted(cumulative_NV, target_N1, right=True)
    last_N1 = torch.searchsorted(cumulative_NV, cumulative_NV[:, -1:].contiguous())
    index_N1 = torch.minimum(index_N1, last_N1)
    return (order_NV.gather(1, index_N1) if decoding.top_p < 1 else index_N1)[:, 0]


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end a text: the tokenizer's eos, those of the model's generation config, its chat template's own."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    others = configured if isinstance(configured, list) else [configured]
    found = (tokenizer.eos_token_id, *others, turn_end(tokenizer))
    return tuple(dict.fromkeys(int(token) for token in found if token is not None))


def _contiguous(_head: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(states.contiguous() for states in inputs)


def pad_left(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [N, T] of prompts that end together."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _uniforms(seeds: Sequence[int], limit: int) -> Tensor:
    """[N, limit] uniform numbers, each row from its own seed: neighbours in the batch do not change it."""
    return torch.stack(
        [torch.rand(limit, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    )


def _tokens_that_may_stop(tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], vocabulary: int) -> Tensor | None:
    """bool [V]: tokens that can complete a stop text, because they hold its last character; None without stop texts."""
    if not stop:
        return None
    last = {text[-1] for text in stop}
    if not all(sign.isascii() for sign in last):  # may be spread over several tokens
        return torch.ones(vocabulary, dtype=torch.bool)
    may = torch.zeros(vocabulary, dtype=torch.bool)
    for token, text in enumerate(tokenizer.batch_decode([[token] for token in range(len(tokenizer))])):
        may[token] = any(sign in text for sign in last)
    return may
