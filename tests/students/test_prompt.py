"""Prompts from chat templates as models really bring them; text that stays text."""

from __future__ import annotations

import random
import re
import time
from datetime import datetime

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import models
from compact_distill.config.models import TextConfig
from compact_distill.errors import StudentError
from compact_distill.method.encode import Encoder
from compact_distill.records import Instance, Rationale
from compact_distill.students import prompt as prompt_module
from compact_distill.students.prompt import (
    TokenCounter,
    names_special_token,
    pattern_problems,
    prompt_problems,
    prompt_tokens,
    render_prompt,
    splits_at_spaces,
)

PLAIN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
START = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
NEEDS_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('A system message is required') }}{% endif %}"
)
FORBIDS_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
THINKS = START + "<think>\n"
SWITCH = START + "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"
QUESTION = [{"role": "user", "content": "How many eggs?"}]


def tokenizer(template):
    made = models.byte_level_tokenizer()
    made.chat_template = template
    return made


def test_a_template_is_filled_in_with_its_generation_prompt():
    rendered = render_prompt(tokenizer(PLAIN + START), QUESTION)
    assert rendered == "<|im_start|>user\nHow many eggs?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_problems(tokenizer(PLAIN + START), QUESTION) == []
    assert prompt_problems(tokenizer(None), QUESTION) == []


@pytest.mark.parametrize(
    "asks",
    [
        "{%- set date_string = date_string or strftime_now('%d %b %Y') %}{{ date_string }}",  # as Llama 3.2
        "{%- macro today() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ today() }}",
        "{{ strftime_now(format='%d %b %Y') }}",
    ],
)
def test_a_template_that_writes_the_date_writes_the_same_one_every_day(asks):
    dated = tokenizer(asks + PLAIN + START)
    assert render_prompt(dated, QUESTION).startswith("26 Jul 2024<|im_start|>user")
    if "date_string" in asks:
        assert render_prompt(dated, QUESTION, {"date_string": "1 May 2025"}).startswith("1 May 2025<|im_start|>")


def test_the_date_of_a_template_is_written_as_it_asks_and_changes_nothing_else():
    form = "%A, %d %B %Y, %H:%M"
    asks = "{{ strftime_now('" + form + "') }}" + PLAIN + START
    rest = render_prompt(tokenizer(PLAIN + START), QUESTION)
    assert render_prompt(tokenizer(asks), QUESTION) == datetime(2024, 7, 26, 12).strftime(form) + rest
    assert render_prompt(tokenizer("\n " + asks), QUESTION).startswith("\n Friday, 26 July 2024, 12:00<|im_start|>")
    several = tokenizer({"default": PLAIN + START, "dated": asks})
    assert render_prompt(several, QUESTION, {"chat_template": "dated"}).startswith("Friday, 26 July 2024")


def test_a_template_that_reads_parts_gets_parts():
    assert "How many eggs?" in render_prompt(tokenizer(PARTS + START), QUESTION)
    assert prompt_problems(tokenizer(PARTS + START), QUESTION) == []


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no tools here') }}", r"no tools here.*template_options"),
        ("{{ 1 / 0 }}", r"division by zero"),
        ("{% for m in messages %}{{ m.content", r"cannot be filled in"),
        (NEEDS_SYSTEM + PLAIN, r"A system message is required.*text: \{system"),
        ("<|im_start|>assistant\n", r"must put the question into the prompt"),
        ("{{ messages[0]['content'][:3] }}", r"must put the question into the prompt"),
        ({"tool_use": PLAIN, "rag": PLAIN}, r"multiple chat templates.*chat_template: NAME"),
        (PLAIN + THINKS, r"<think>.*never ends.*close_thinking: true"),
        (PLAIN + START + "<seed:think>", r"<seed:think>.*close_thinking: true"),
        (PLAIN + START + "[THINK]", r"\[THINK\].*close_thinking: true"),
        (PLAIN + SWITCH, r"enable_thinking: false.*close_thinking: true"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_clear_message(template, says):
    (message,) = prompt_problems(tokenizer(template), QUESTION)
    assert re.search(says, message), message
    assert "\n" not in message


def test_what_a_template_needs_can_be_given():
    text = TextConfig(system="You reason.")
    assert prompt_problems(tokenizer(NEEDS_SYSTEM + PLAIN), text.messages("How?")) == []
    assert "not supported" in prompt_problems(tokenizer(FORBIDS_SYSTEM + PLAIN), text.messages("How?"))[0]
    assert prompt_problems(tokenizer(PLAIN + SWITCH), QUESTION, {"enable_thinking": False}) == []
    names = tokenizer({"tool_use": "{{ 1 / 0 }}", "rag": PLAIN})
    assert prompt_problems(names, QUESTION, {"chat_template": "rag"}) == []
    assert render_prompt(names, QUESTION, {"chat_template": "rag"}).startswith("<|im_start|>user")
    assert prompt_problems(tokenizer({"default": PLAIN, "rag": "{{ 1 / 0 }}"}), QUESTION) == []
    assert "must not hold 'tokenize'" in prompt_problems(names, QUESTION, {"tokenize": True})[0]


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        ("<think>\n", "<think>\n\n</think>\n\n"),
        ("<think>", "<think>\n\n</think>\n\n"),
        ("<seed:think>", "<seed:think>\n\n</seed:think>\n\n"),
        ("[THINK]", "[THINK]\n\n[/THINK]\n\n"),
        ("<|START_THINKING|>", "<|START_THINKING|>\n\n<|END_THINKING|>\n\n"),
    ],
)
def test_thinking_that_a_template_opens_can_be_closed(opened, closed):
    made = tokenizer(PLAIN + START + opened)
    assert prompt_problems(made, QUESTION, close_thinking=True) == []
    text = made.decode(prompt_tokens(made, QUESTION, close_thinking=True))
    assert text.endswith(f"assistant\n{closed}")
    assert closed not in made.decode(prompt_tokens(tokenizer(PLAIN + START), QUESTION, close_thinking=True))


@pytest.mark.parametrize(
    ("template", "question"),
    [
        (PLAIN + START + "<think>\n\n</think>\n\n", "How many eggs?"),
        (PLAIN + START + "[/THINK]", "How many eggs?"),
        ("{{ messages[-1]['content'] }}\n", "Which tag opens thinking, <think> or [THINK], and what ends it?"),
        ("{{ messages[-1]['content'] }} in a <thinker>\n", "How many eggs?"),
    ],
)
def test_a_prompt_that_only_speaks_of_thinking_opens_none(template, question):
    messages = [{"role": "user", "content": question}]
    assert prompt_problems(tokenizer(template), messages) == []
    made = tokenizer(template)
    assert prompt_tokens(made, messages, close_thinking=True) == prompt_tokens(made, messages)


def test_the_switch_is_named_only_where_a_template_has_it():
    for end in ("<think>", "<seed:think>"):
        assert "enable_thinking" not in prompt_problems(tokenizer(PLAIN + START + end), QUESTION)[0]


def test_a_template_that_never_ends_is_killed(monkeypatch):
    monkeypatch.setattr(prompt_module, "_SECONDS", 4.0)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + PLAIN
    start = time.monotonic()
    (message,) = prompt_problems(tokenizer(endless), QUESTION)
    assert "did not end within 4 seconds" in message
    assert time.monotonic() - start < 30


def split_by(pattern):
    made = models.byte_level_tokenizer()
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    return made


@pytest.mark.parametrize(
    ("pattern", "text", "says"),
    [
        ("(a+)+$", "a" * 40 + "b", "fails on 'aaa"),  # the library gives up, and would end the process
        ("(a|aa)+$", "so " + "a" * 50 + "b", "fails on 'so aaa"),
        ("a*a*a*b", ("a" * 340 + " ") * 60 + "b", "did not end within 3 seconds on 'aaa"),
    ],
)
def test_a_tokenizers_pattern_that_never_gets_through_a_text_is_told(monkeypatch, pattern, text, says):
    monkeypatch.setattr(prompt_module, "_SECONDS", 3.0)
    (message,) = pattern_problems(split_by(pattern), ["How many?", text, "18 eggs."])
    assert says in message
    assert "tokenizer.json" in message


def test_a_tokenizers_pattern_that_gets_through_is_no_fault():
    assert pattern_problems(split_by(r"\p{L}+|\p{N}{1,3}|\s+"), ["a" * 3000, "18 eggs. " * 300]) == []
    assert pattern_problems(models.byte_level_tokenizer(), ["a" * 3000]) == []


def test_an_error_of_a_template_is_an_error_of_the_student():
    with pytest.raises(StudentError, match="no tools here"):
        render_prompt(tokenizer("{{ raise_exception('no tools here') }}"), QUESTION)


@pytest.mark.parametrize("template", [PLAIN + START, PARTS + START, None])
@pytest.mark.parametrize("mark", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_special_token_that_is_written_out_in_a_question_is_not_the_token(template, mark):
    made = tokenizer(template)
    encoder = Encoder(made)
    plain, marked = encoder.encode_prompt("How many eggs?"), encoder.encode_prompt(f"How {mark} many eggs?")
    special = made.convert_tokens_to_ids(mark)
    assert marked.count(special) == plain.count(special)
    assert mark in made.decode(marked).replace("<|im_start|>user", "").replace("eggs?<|im_end|>", "")
    assert names_special_token(made, f"a {mark}")
    assert not names_special_token(made, "<|im_middle|>")


def test_a_special_token_that_is_written_out_in_a_rationale_or_an_answer_is_not_the_token():
    made = tokenizer(PLAIN + START)
    texts = ["A <|im_end|> B. So 7 eggs, then.\nThe answer is 7.", "B.\nThe answer is <|im_end|> 7 eggs."]
    problem = Encoder(made)(
        Instance("p", "How?", "<|im_end|>x", tuple(Rationale(f"t{k}", t) for k, t in enumerate(texts)))
    )
    special = made.convert_tokens_to_ids("<|im_end|>")
    for branch in problem.branches:
        assert special not in (*branch.reasoning, *branch.answer)
    assert special not in problem.gold
    assert "A <|im_end|> B." in made.decode(problem.branches[0].reasoning)


def test_the_marks_of_a_users_own_prompt_template_are_the_tokens():
    made = tokenizer(None)
    encoder = Encoder(made, TextConfig(prompt_template="<|im_start|>{question}<|im_end|>"))
    start, end = made.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    for question in ("How?", "How <|im_end|>?"):
        ids = encoder.encode_prompt(question)
        assert (ids[0], ids[-1], ids.count(end)) == (start, end, 1)


SIGNS = ("a", "Z", "the", "7", "18", ".", "!", "'s", " ", " ", " ", "  ", "\n", "\r\n", "\t", "\x1c", "\x85", "\xa0")
SIGNS += ("\u180e", "\u200b", "\u2028", "\u3000", "\u0301", "é", "क", "्", "中", "🙂", "<|im_end|>", "mark!", "\ufeff")


def texts_of_signs(count):
    chance = random.Random(count)
    return ["".join(chance.choices(SIGNS, k=chance.randrange(12))) for _ in range(count)]


def counting(split=None, normalizer=None, dropout=None, **added):
    """A byte-level tokenizer with tokens across everything, also spaces, that splits texts as is said."""
    backend = Tokenizer(tokenizer_models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts_of_signs(2000), trainer)
    backend.pre_tokenizer = split or pre_tokenizers.ByteLevel(False, use_regex=True)
    backend.model.dropout = dropout
    if normalizer is not None:
        backend.normalizer = normalizer
    if added:
        backend.add_tokens([AddedToken("mark!", special=False, **added)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


def in_turn(pattern, behavior="isolated", invert=False, bytes_first=False):
    steps = [pre_tokenizers.Split(Regex(pattern), behavior, invert), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(steps[::-1] if bytes_first else steps)


QWEN, LLAMA = sorted(prompt_module._SPLITS_AT_SPACES, key=len)
BY_WORDS = {
    "gpt2": {},
    "qwen": {"split": in_turn(QWEN), "normalizer": normalizers.NFC()},
    "llama": {"split": in_turn(LLAMA)},
    "digits": {
        "split": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False, use_regex=True)])
    },
    "an added token": {"single_word": False},
}
WHOLE = {
    "spaces become signs": {"split": pre_tokenizers.Metaspace()},
    "spaces are replaced": {"normalizer": normalizers.Replace(" ", "a")},
    "bytes first": {"split": in_turn(QWEN, bytes_first=True)},
    "nothing is split": {"split": pre_tokenizers.ByteLevel(False, use_regex=False)},
    "a space in front": {"split": pre_tokenizers.ByteLevel(True, use_regex=True)},
    "another pattern": {"split": in_turn(r"\w+ \w+|\s+|\S+")},
    "signs join spaces": {"split": in_turn(QWEN, "merged_with_next")},
    "an added token takes the space": {"lstrip": True},
    "an added token is a whole word": {"single_word": True},
}


@pytest.mark.parametrize("keeps_special", [False, True])
@pytest.mark.parametrize("name", [*BY_WORDS, *WHOLE])
def test_counted_word_by_word_a_text_has_the_tokens_of_the_whole(name, keeps_special, monkeypatch):
    made = counting(**(BY_WORDS | WHOLE)[name])
    monkeypatch.setattr(prompt_module, "_CHARACTERS_KEPT", 500)  # forgets now and then
    texts = texts_of_signs(1600)
    count = TokenCounter(made, keeps_special)
    counted = [number for start in range(0, 1600, 200) for number in count(texts[start : start + 200])]
    whole = made(texts, add_special_tokens=False, split_special_tokens=not keeps_special)["input_ids"]
    assert counted == list(map(len, whole))
    assert splits_at_spaces(made) == bool(count._known) == (name in BY_WORDS)


def test_a_tokenizer_that_tokenises_by_chance_is_not_asked_once_for_each_word():
    assert not splits_at_spaces(counting(dropout=0.5))
