"""Local models: real ones, tiny and random."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import models
from compact_distill.records import Problem
from compact_distill.teachers.backends.transformers import TransformersTeacher
from compact_distill.teachers.protocol import FaultKind, SamplingParams, TeacherFault, TeacherRequest

QUESTIONS = ["2 + 2?", "Ann has 7 apples and buys 5 more. How many apples does she have?", "3 * 4", "18 eggs", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = models.byte_level_tokenizer(chat=True)
    # fp64, so that padding cannot change which token is the likeliest.
    model = models.tiny_model("qwen2", dtype=torch.float64, layers=2, eos_token_id=tokenizer.eos_token_id)
    return str(models.save_student(tmp_path_factory.mktemp("teacher"), model, tokenizer))


def requests(count=5, **decoding):
    settings = SamplingParams(**{"temperature": 1.0, "top_p": 0.95, "max_tokens": 12, **decoding})
    return [
        TeacherRequest(Problem(f"p{i}", QUESTIONS[i], "4"), 0, "be brief", QUESTIONS[i], settings, 100 + i, "k")
        for i in range(count)
    ]


def answers(folder, asked, batch_size=4, one_by_one=False):
    async def all_of_them():
        teacher = TransformersTeacher("t", folder, batch_size, "cpu")
        try:
            if one_by_one:
                return [await teacher.ask(request) for request in asked]
            return await asyncio.gather(*map(teacher.ask, asked))
        finally:
            await teacher.close()

    return asyncio.run(all_of_them())


def test_a_rationale_does_not_depend_on_its_neighbours_in_the_batch(folder):
    together = answers(folder, requests())
    alone = answers(folder, requests(), one_by_one=True)
    assert [a.text for a in together] == [a.text for a in alone]
    assert len({a.text for a in together}) == len(QUESTIONS)


def test_another_seed_gives_another_rationale_and_the_same_seed_the_same(folder):
    (request,) = requests(1)
    first, again, other = answers(folder, [request, request, replace(request, seed=5)])
    assert first.text == again.text != other.text


def test_temperature_zero_takes_the_likeliest_token(folder):
    (request,) = requests(1, temperature=0.0)
    first, other = answers(folder, [request, replace(request, seed=5)])
    assert first.text == other.text
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": QUESTIONS[0]}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert first.prompt_tokens == len(ids)
    for _ in range(first.completion_tokens):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    assert tokenizer.decode(ids[first.prompt_tokens :], skip_special_tokens=True) == first.text


def test_a_rationale_that_reaches_its_limit_is_cut_off_and_says_so(folder):
    found = answers(folder, requests(max_tokens=3))
    assert all(a.completion_tokens == 3 for a in found if a.finish_reason == "length")
    assert any(a.finish_reason == "length" for a in found)


def test_a_prompt_that_does_not_fit_is_a_bad_request(folder):
    with pytest.raises(TeacherFault, match="must fit in 2048 tokens") as caught:
        answers(folder, requests(1, max_tokens=3000))
    assert caught.value.kind is FaultKind.BAD_REQUEST


def test_a_prompt_that_does_not_fit_costs_no_others_of_its_batch(folder):
    long = replace(requests(1)[0], prompt="x " * 2100)

    async def all_of_them():
        teacher = TransformersTeacher("t", folder, 8, "cpu")
        try:
            return await asyncio.gather(*map(teacher.ask, [*requests(), long]), return_exceptions=True)
        finally:
            await teacher.close()

    *found, last = asyncio.run(all_of_them())
    assert [a.text for a in found] == [a.text for a in answers(folder, requests())]
    assert isinstance(last, TeacherFault)
    assert "must fit in 2048 tokens" in str(last)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (("[THINK]", "[/THINK]"), "[THINK]a[/THINK]b"),
        (("<|START_THINKING|>", "<|END_THINKING|>"), "<|START_THINKING|>a<|END_THINKING|>b"),
        (("<|channel>", "<channel|>"), "<|channel>a<channel|>b"),
        (("<|channel|>", "<|message|>"), "<|channel|>a<|message|>b"),
        (("<|message|>", "<|end|>"), "ab"),  # no channels: these mean something else
        (("<tool>", "</tool>"), "ab"),
    ],
)
def test_special_tokens_that_are_thinking_tags_stay_in_the_text(folder, tmp_path, monkeypatch, tags, said):
    from compact_distill.students.generate import Generator

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tags)})
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(max(len(tokenizer), model.get_input_embeddings().num_embeddings))
    models.save_student(tmp_path / "tags", model, tokenizer)
    opens, closes, other = tokenizer.convert_tokens_to_ids([*tags, "<|endoftext|>"])
    (a,), (b,) = tokenizer("a")["input_ids"], tokenizer("b")["input_ids"]
    tokens = [opens, a, other, closes, b, tokenizer.eos_token_id]
    monkeypatch.setattr(Generator, "_write", lambda self, prompts, seeds: ([tokens], [len(tokens)], [True]))
    (answer,) = answers(str(tmp_path / "tags"), requests(1))
    assert answer.text == said


def test_a_folder_without_a_model_is_of_no_use(tmp_path):
    with pytest.raises(TeacherFault, match="model must be a folder or hub name") as caught:
        answers(str(tmp_path), requests(1))
    assert caught.value.kind is FaultKind.UNUSABLE


def test_pickled_weights_are_refused(folder, tmp_path):
    from pathlib import Path

    for file in Path(folder).iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(TeacherFault, match="safetensors") as caught:
        answers(str(tmp_path), requests(1))
    assert caught.value.kind is FaultKind.UNUSABLE


def test_different_decodings_never_share_a_batch(folder):
    mixed = requests(2, max_tokens=2) + requests(2, max_tokens=5)
    found = answers(folder, mixed)
    assert all(a.completion_tokens <= 2 for a in found[:2])
    assert all(2 < a.completion_tokens <= 5 for a in found[2:])


def test_batches_hold_prompts_of_like_length(folder, monkeypatch):
    batches = []
    write = TransformersTeacher._write

    def note(self, batch):
        if not batches:
            time.sleep(0.5)  # meanwhile all others arrive, whatever the first batch could take
        batches.append([len(pending.tokens) for pending in batch])
        return write(self, batch)

    monkeypatch.setattr(TransformersTeacher, "_write", note)
    asked = [replace(requests(1)[0], prompt="x " * length) for length in (5, 60, 6, 61, 7, 62, 8, 63)]
    answers(folder, asked, batch_size=4)
    assert sum(map(len, batches)) == 8
    ranges = sorted((min(batch), max(batch)) for batch in batches[1:])
    assert ranges
    assert all(shorter[1] <= longer[0] for shorter, longer in itertools.pairwise(ranges))


def test_what_reshapes_the_probabilities_is_heeded_whatever_the_batch(folder):
    greedy = answers(folder, requests(temperature=0.0))
    assert [a.text for a in answers(folder, requests(extra={"top_k": 1}))] == [a.text for a in greedy]
    assert [a.text for a in answers(folder, requests(extra={"min_p": 1.0}))] == [a.text for a in greedy]
    # Short prompts are padded; what fills them must not count as a token that was written.
    asked = requests(temperature=0.0, extra={"repetition_penalty": 1.5}, max_tokens=24)
    together, alone = answers(folder, asked), answers(folder, asked, one_by_one=True)
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.text for a in together] != [a.text for a in answers(folder, requests(temperature=0.0, max_tokens=24))]


@pytest.fixture
def with_template(folder, tmp_path):
    """Ask a copy of the model whose chat template is this; returns the prompt as text."""
    import shutil

    def ask_with(template, options=None, system="be brief"):
        shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "copy")
        teacher = TransformersTeacher("t", str(tmp_path / "copy"), 4, "cpu", options)
        (request,) = requests(1)
        return tokenizer.decode(teacher._tokenise(replace(request, system=system)))

    return ask_with


THINKING = "{{ messages[-1]['content'] }}{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"


def test_the_chat_template_of_a_local_teacher_gets_its_options(with_template):
    assert with_template(THINKING) == QUESTIONS[0]
    assert with_template(THINKING, {"enable_thinking": False}) == f"{QUESTIONS[0]}</think>"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[0]['content'] }}", "must put the question into the prompt"),
        ("{{ messages | nofilter }}", "chat template cannot be filled in"),
    ],
)
def test_a_template_that_cannot_be_used_ends_the_teacher_and_says_where_the_keys_are(with_template, template, said):
    with pytest.raises(TeacherFault, match=said) as caught:
        with_template(template)
    assert caught.value.kind is FaultKind.UNUSABLE
    assert "keys of its own in `teachers:`" in str(caught.value)


def test_a_template_that_opens_thinking_is_left_to_think(with_template):
    assert with_template("{{ messages[-1]['content'] }}<think>\n").endswith("<think>")


def test_template_options_belong_to_local_teachers_and_are_part_of_the_request():
    from compact_distill.config.teachers import TeacherConfig
    from compact_distill.teachers.protocol import Prompting

    local = {"name": "t", "backend": "transformers", "model": "some/model"}
    problem = Problem("p0", "q", "4")
    plain, quiet = (
        Prompting(TeacherConfig(**local, template_options=options)).key(problem)
        for options in ({}, {"enable_thinking": False})
    )
    assert plain != quiet
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        TeacherConfig(name="t", model="m", base_url="http://localhost:1/v1", template_options={"a": 1})


def test_a_stop_text_ends_a_rationale_and_is_cut_off(folder):
    (free,) = answers(folder, requests(1, temperature=0.0))
    (stopped,) = answers(folder, requests(1, temperature=0.0, extra={"stop": [free.text[3:5]]}))
    assert stopped.text == free.text.split(free.text[3:5])[0]
    assert stopped.finish_reason == "stop"


def test_a_local_model_works_in_the_pool(folder, ask, stored):
    from compact_distill.config.teachers import TeacherConfig

    config = TeacherConfig(name="t", backend="transformers", model=folder, max_tokens=8, samples=2, batch_size=4)
    asked = [Problem(f"p{i}", question, "4") for i, question in enumerate(QUESTIONS)]
    outcome = ask(config, asked)
    assert sorted((row.id, row.sample) for row in stored()) == [(f"p{i}", s) for i in range(5) for s in range(2)]
    assert outcome[0].completion_tokens > 0


def test_closing_ends_a_batch_that_nobody_waits_for(folder):
    async def give_up():
        teacher = TransformersTeacher("t", folder, 4, "cpu")
        (asked,) = requests(1, temperature=0.0, max_tokens=1900)  # it repeats itself without end
        waiting = asyncio.create_task(teacher.ask(asked))
        while teacher._loaded is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        waiting.cancel()
        began = time.monotonic()
        await teacher.close()
        return time.monotonic() - began

    assert asyncio.run(give_up()) < 2


@pytest.mark.parametrize("extra", [{"top_k": 0}, {"min_p": 7}, {"repetition_penalty": "a"}])
def test_a_value_that_transformers_refuses_ends_the_teacher(folder, extra):
    with pytest.raises(TeacherFault, match=f"extra: .*{next(iter(extra))}|penalty") as caught:
        answers(folder, requests(1, extra=extra))
    assert caught.value.kind is FaultKind.UNUSABLE


@pytest.mark.parametrize("extra", [{"guided_json": {}}, {"stop": "."}, {"stop": [""]}])
def test_what_a_local_model_cannot_do_is_refused_where_it_is_configured(extra):
    from compact_distill.config.teachers import TeacherConfig

    with pytest.raises(ValueError, match=f"extra.{next(iter(extra))}"):
        TeacherConfig(name="t", backend="transformers", model="m", extra=extra)
    TeacherConfig(name="t", model="m", base_url="http://localhost:1/v1", extra=extra)
