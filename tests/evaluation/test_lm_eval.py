"""lm-eval and `compact eval` on one student: the same prompts, and the same score on each row.

The student is a small model that learned by heart what it shall say: right and wrong answers, answers without a
statement, texts that run on into the next question, and texts that never end.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from compact_distill.evaluation.harness import Subject, evaluate_task
from compact_distill.evaluation.result_files import read_attempts
from compact_distill.evaluation.task import load_task
from compact_distill.evaluation.task_rows import read_task
from compact_distill.evaluation.writers import StudentWriter
from models import CHATML

pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install 'compact-distill[lm-eval]'")

LIMIT = 24
TASKS = ("csqa", "gsm8k", "math500", "strategyqa", "svamp")
PLACES = {"A": "bank", "B": "library", "C": "pub"}
EOS = "<|end|>"
CUT = "so " * 60  # never ends

# Question, fields of the row, and what the student says.
SCRIPT = {
    "gsm8k": [
        ("Ann has 7 and 5", {"answer": "12"}, f"7 + 5 = 12\nThe answer is 12.{EOS}"),
        ("Bob has 3", {"answer": "4"}, f"The answer is 5.{EOS}"),
        ("Cid has 9", {"answer": "9"}, f"He has 9 eggs.{EOS}"),
        ("Dan has 2", {"answer": "2"}, f"The answer is 2.\nQuestion: Ann has 8\nAnswer: 7{EOS}"),
        ("Eve has 6", {"answer": "6"}, f"Who knows?{EOS}"),
        ("Flo has 1", {"answer": "1"}, f"First {CUT}"),
        ("Gus has 1,800", {"answer": "1800"}, f"The answer is $1,800.00.{EOS}"),
    ],
    "svamp": [
        ("A box costs 4", {"answer": "4.0"}, f"The answer is 4.{EOS}"),
        ("A pen costs 3", {"answer": "3"}, f"It is 2 in all{EOS}"),
    ],
    "math500": [
        ("What is a half?", {"answer": "\\frac{1}{2}"}, f"It is $\\boxed{{0.5}}$.{EOS}"),
        ("What is a third?", {"answer": "\\frac{1}{3}"}, f"It is 3.{EOS}"),
    ],
    "csqa": [
        ("Where is money?", {"answer": "A", "choices": PLACES}, f"The answer is bank.{EOS}"),
        ("Where are books?", {"answer": "B", "choices": PLACES}, f"(B) library{EOS}"),
        ("Where is beer?", {"answer": "C", "choices": PLACES}, f"The answer is A.{EOS}"),
    ],
    "strategyqa": [
        ("Is snow cold?", {"answer": "yes"}, f"Yes, it is.{EOS}"),
        ("Is fire cold?", {"answer": "no"}, f"The answer is no.{EOS}"),
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    for name, script in SCRIPT.items():
        rows = [{"id": f"{name}/{n}", "question": q, **fields} for n, (q, fields, _) in enumerate(script)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(folder / f"{name}.jsonl") for name in SCRIPT}


def tokenizer_for(texts: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, BpeTrainer(vocab_size=700, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS, pad_token=EOS)


def learn_by_heart(chat: bool, data: dict[str, str]) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A student that says what the script says, in fp64, where batching does not change a word."""
    asked = [
        (row.prompt, said)
        for name, script in SCRIPT.items()
        for row, (_, _, said) in zip(read_task(load_task(f"{name}={data[name]}")).rows, script, strict=True)
    ]
    tokenizer = tokenizer_for([f"Question: {prompt}\nAnswer: {said}" for prompt, said in asked])
    if chat:
        tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    rows = []
    for prompt, said in asked:
        encoded = StudentWriter(model, tokenizer).encoder.encode_prompt(prompt)
        answer = tokenizer(said if chat else f" {said}", add_special_tokens=False)["input_ids"]
        rows.append((list(encoded), answer))
    longest = max(len(p) + len(a) for p, a in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for n, (prompt, answer) in enumerate(rows):
        ids[n, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[n, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.02:
            break
    return model.double().eval(), tokenizer


def by_lm_eval(model, tokenizer, names: list[str], data: dict[str, str], chat: bool) -> dict[str, dict[str, dict]]:
    """lm-eval's own samples, by task and row id."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from compact_distill.evaluation.task_rows import LM_EVAL_TASKS as folder

    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False, metadata=data),
        gen_kwargs=f"max_gen_toks={LIMIT}",
        apply_chat_template=chat,
        bootstrap_iters=0,
        metadata=data,
    )
    return {name: {s["doc"]["id"]: s for s in samples} for name, samples in found["samples"].items()}


@pytest.mark.parametrize("chat", [False, True])
def test_both_give_the_same_score_on_each_row(tmp_path, data, chat):
    model, tokenizer = learn_by_heart(chat, data)
    suffix = "_chat" if chat else ""
    peers = by_lm_eval(model, tokenizer, [f"compact_{name}{suffix}" for name in TASKS], data, chat)
    attempts: dict[str, dict] = {}
    differing: dict[str, str] = {}
    for name in TASKS:
        rows = read_task(load_task(f"{name}={data[name]}").changed(max_new_tokens=LIMIT))
        evaluate_task(StudentWriter(model, tokenizer), Subject("s", "s", "0"), rows, tmp_path)
        samples = peers[f"compact_{name}{suffix}"]
        for row, attempt in zip(rows.rows, read_attempts(tmp_path / f"{name}.rows.jsonl"), strict=True):
            sample = samples[row.id]
            attempts[row.id] = attempt
            prompt = StudentWriter(model, tokenizer).encoder.encode_prompt(row.prompt)
            assert tokenizer(sample["arguments"][0][0])["input_ids"] == list(prompt)
            assert sample["resps"][0][0] == attempt["text"]
            if (sample["accuracy"], sample["unparsed"]) != (
                attempt["verdict"] == "correct",
                attempt["verdict"] == "unparsed",
            ):
                differing[row.id] = attempt["text"]
    assert not differing
    # ... and it was a fair test: every kind of outcome is there.
    assert {attempt["verdict"] for attempt in attempts.values()} == {"correct", "wrong", "unparsed"}
    assert {a["parsed_by"] for a in attempts.values()} == {"statement", "last_number", "choice", "yes_no", None}
    assert not attempts["gsm8k/5"]["finished"]
    assert attempts["gsm8k/3"]["finished"]
    assert ("Question:" in attempts["gsm8k/3"]["text"]) == chat  # a student with a chat template has no such stop text


def test_the_one_difference_is_a_cut_text_whose_last_number_lm_eval_takes_for_an_answer():
    from compact_distill.answers import find_answer
    from compact_distill.evaluation.task_rows import lm_eval_score as score

    cut = "First 7 + 5 = 12, then"
    assert score({"task": "gsm8k", "gold": "12", "choices": "{}"}, [cut])["accuracy"] == 1
    assert find_answer(cut, False, load_task("gsm8k").parser, {}) == (None, None)


@pytest.mark.parametrize("suffix", ["", "_chat"])
@pytest.mark.parametrize("name", TASKS)
def test_limit_stop_and_version_are_those_of_our_definition(data, name, suffix):
    from lm_eval.tasks import TaskManager

    from compact_distill.evaluation.task_rows import LM_EVAL_TASKS as folder

    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=data)
    loaded = manager.load([f"compact_{name}{suffix}"])["tasks"][f"compact_{name}{suffix}"]
    task = load_task(name)
    assert loaded.config.generation_kwargs["max_gen_toks"] == task.max_new_tokens
    assert loaded.config.generation_kwargs["do_sample"] is False
    assert loaded.config.generation_kwargs["until"] == ([] if suffix else ["\nQuestion:"])
    assert task.version == loaded.VERSION
    assert f"compact_{name}{suffix}" in manager.all_tasks


def test_the_folder_of_the_task_files_is_where_it_is_said_to_be():
    from compact_distill.evaluation.task_rows import LM_EVAL_TASKS as folder

    generated = {f"compact_{name}{suffix}.yaml" for name in TASKS for suffix in ("", "_chat")}
    read = {f"compact_{name}_likelihood.yaml" for name in ("csqa", "strategyqa")}
    assert {p.name for p in Path(folder).glob("compact_*.yaml")} == generated | read
