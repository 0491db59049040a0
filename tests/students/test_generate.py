"""The student writes what transformers' own `generate` writes, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from compact_distill.method.forward import attach
from compact_distill.students.generate import Cancelled, Decoding, Generator, Written, plan_batches, sample
from models import ARCHITECTURES, byte_level_tokenizer, sentencepiece_tokenizer, tiny_model

PROMPTS = [
    "Question: Ann has 7 apples and buys 5 more. How many apples does she have?\nAnswer:",
    "Question: 3 * 4?\nAnswer:",
    "First we add",
    "She sells 18 eggs for 2 dollars each. Hence 18 * 2 = 36. The answer is 36.",
    "Thus",
]


def encode(tokenizer, texts=PROMPTS) -> list[list[int]]:
    return [tokenizer(text)["input_ids"] for text in texts]


def peer(model, tokenizer, prompt: list[int], limit: int) -> list[int]:
    """The new tokens of one prompt by transformers' generate, greedily, unbatched, and beyond any end token."""
    settings = GenerationConfig(max_new_tokens=limit, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_writes_what_transformers_writes_row_by_row(architecture):
    tokenizer = byte_level_tokenizer()
    model = tiny_model(architecture)
    prompts = encode(tokenizer)
    expected = [peer(model, tokenizer, prompt, 24) for prompt in prompts]
    ends = {expected[0][7], tokenizer.eos_token_id}  # so that rows end at different times, and the batch shrinks
    model.generation_config.eos_token_id = [expected[0][7]]
    lengths = [next((n for n, token in enumerate(row, 1) if token in ends), 24) for row in expected]
    assert len(set(lengths)) > 1
    written = Generator(model, tokenizer, Decoding(24))(prompts)
    for row, length, own in zip(expected, lengths, written, strict=True):
        ended = row[length - 1] in ends
        text = tokenizer.decode(row[: length - ended], skip_special_tokens=True)
        assert own == Written(text, ended, length)


def test_the_heads_weight_is_not_copied_for_each_row_where_it_is_frozen():
    tokenizer, model = byte_level_tokenizer(), tiny_model("llama", lora=True).to(torch.bfloat16)
    prompts = encode(tokenizer)
    with torch.profiler.profile(profile_memory=True) as profile:
        Generator(model, tokenizer, Decoding(2))(prompts)
    head = model.get_output_embeddings().weight
    assert not head.requires_grad
    products = [event.name for event in profile.events() if event.name in ("aten::mm", "aten::bmm", "aten::addmm")]
    assert "aten::mm" in products
    assert "aten::bmm" not in products  # a product of batches copies the weight for each row
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_model_in_training_with_adapters_and_our_attention_writes_the_same_and_stays_in_training():
    tokenizer = byte_level_tokenizer()
    model = tiny_model("llama", lora=True, lora_dropout=0.5)
    prompts = encode(tokenizer)
    expected = Generator(model, tokenizer, Decoding(12))(prompts)
    attach(model)
    model.train()
    assert Generator(model, tokenizer, Decoding(12))(prompts) == expected
    assert model.training


def test_a_model_whose_adapter_trains_single_tokens_writes_what_transformers_writes():
    tokenizer = byte_level_tokenizer()
    model = tiny_model("llama", lora={"trainable_token_indices": [5, 7]})
    prompts = encode(tokenizer)
    written = Generator(model, tokenizer, Decoding(6, stop=("never written",)))(prompts)
    assert [own.text for own in written] == [tokenizer.decode(peer(model, tokenizer, p, 6)) for p in prompts]


def test_a_stop_text_ends_a_row_and_is_cut_off():
    tokenizer = byte_level_tokenizer()
    model = tiny_model("qwen2")
    prompts = encode(tokenizer)
    free = Generator(model, tokenizer, Decoding(24))(prompts)
    texts = [own.text for own in free]
    stop = texts[0][9:12]
    stopped = Generator(model, tokenizer, Decoding(24, stop=(stop, "never written")))(prompts)
    for before, after in zip(texts, stopped, strict=True):
        assert after.text == before.split(stop)[0]
        assert after.finished == (stop in before)
    assert stopped[0].tokens < 24


def test_an_end_token_of_the_models_own_config_ends_a_row_too():
    tokenizer = byte_level_tokenizer()
    model = tiny_model("qwen2")
    prompt = encode(tokenizer)[:1]
    first = peer(model, tokenizer, prompt[0], 6)
    assert tokenizer.eos_token_id not in first
    model.generation_config.eos_token_id = [first[3]]
    index = first.index(first[3])
    assert Generator(model, tokenizer, Decoding(6))(prompt) == [
        Written(tokenizer.decode(first[:index]), True, index + 1)
    ]


def test_the_token_that_ends_a_turn_of_the_chat_template_ends_a_row_where_eos_is_another_one():
    tokenizer = byte_level_tokenizer(chat=True)
    tokenizer.eos_token = "<|endoftext|>"  # as Qwen2.5's base models have it
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = tiny_model("qwen2")
    prompt = encode(tokenizer)[:1]
    first = peer(model, tokenizer, prompt[0], 6)
    assert end not in first
    with torch.no_grad():  # what it would have written there is the end of its turn now
        head = model.lm_head.weight
        head[[end, first[3]]] = head[[first[3], end]]
    index = first.index(first[3])
    assert Generator(model, tokenizer, Decoding(6))(prompt) == [
        Written(tokenizer.decode(first[:index]), True, index + 1)
    ]
    tokenizer.chat_template = None
    assert Generator(model, tokenizer, Decoding(6))(prompt)[0].tokens == 6


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
def test_sampling_depends_on_a_rows_seed_and_not_on_its_neighbours(make):
    tokenizer = make()
    model = tiny_model("llama")
    prompts = encode(tokenizer)
    generator = Generator(model, tokenizer, Decoding(10, temperature=0.8, top_p=0.9))
    together = generator(prompts, [11, 12, 13, 14, 15])
    assert generator(prompts[2:3], [13]) == together[2:3]
    assert generator(prompts[2:3], [14]) != together[2:3]


def test_samples_follow_the_distribution_cut_at_top_p():
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.3, 0.1]]))
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000

    def shares(decoding: Decoding) -> list[float]:
        drawn = sample(logits.expand(1000, 4), uniform, decoding)
        return (torch.bincount(drawn, minlength=4) / 1000).tolist()

    assert shares(Decoding(1, temperature=1.0)) == pytest.approx([0.1, 0.5, 0.3, 0.1], abs=0.002)
    # 0.5 alone is below 0.6, 0.5 + 0.3 is above: two tokens count, 0.5 / 0.8 and 0.3 / 0.8.
    assert shares(Decoding(1, temperature=1.0, top_p=0.6)) == pytest.approx([0, 0.625, 0.375, 0], abs=0.002)
    # p ** 2, normalised: 0.01, 0.25, 0.09, 0.01 over 0.36.
    assert shares(Decoding(1, temperature=0.5)) == pytest.approx([1 / 36, 25 / 36, 9 / 36, 1 / 36], abs=0.002)


def test_the_largest_random_number_draws_a_token_that_can_be_drawn():
    logits = torch.tensor([[0.0, 0.0, -1e9]])
    nearly_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert sample(logits, nearly_one, Decoding(1, temperature=1.0)).item() == 1


def test_batches_hold_like_lengths_and_keep_to_the_budget():
    prompts = [[0] * n for n in (3, 50, 4, 48, 2)]
    batches = plan_batches(prompts, max_new_tokens=10, batch_tokens=120)
    assert batches == [[1, 3], [2, 0, 4]]
    assert plan_batches(prompts, 10, 1) == [[1], [3], [2], [0], [4]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1, got 0"),
        ({"temperature": -1.0}, "temperature must be >= 0"),
        ({"top_p": 0.0}, "top_p must be > 0"),
        ({"stop": ("",)}, "stop must not hold an empty text"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**{"max_new_tokens": 5, **changes})


def test_sampling_without_seeds_is_refused():
    tokenizer = byte_level_tokenizer()
    generator = Generator(tiny_model("llama"), tokenizer, Decoding(2, temperature=1.0))
    with pytest.raises(ValueError, match="seeds must be one a prompt"):
        generator(encode(tokenizer))


def test_writing_that_is_called_off_stops_at_the_next_token():
    tokenizer = byte_level_tokenizer()
    asked = []
    generator = Generator(
        tiny_model("llama"), tokenizer, Decoding(24), cancelled=lambda: asked.append(1) or len(asked) > 3
    )
    with pytest.raises(Cancelled):
        generator(encode(tokenizer))
    assert len(asked) == 4


def test_what_reshapes_logits_sees_every_token_so_far():
    tokenizer = byte_level_tokenizer()
    prompts = encode(tokenizer)
    seen = []

    def reshape(ids, logits):
        seen.append(ids)
        return torch.nn.functional.one_hot(torch.full((len(ids),), 70 + len(seen)), logits.shape[1]).double()

    written = Generator(tiny_model("llama"), tokenizer, Decoding(3), reshape)(prompts)
    longest = max(map(len, prompts))
    assert [row[longest:].tolist() for row in seen[2]] == [[71, 72]] * len(prompts)
    assert [row[longest - len(p) : longest].tolist() for row, p in zip(seen[0], prompts, strict=True)] == prompts
    assert {own.text for own in written} == {tokenizer.decode([71, 72, 73])}
