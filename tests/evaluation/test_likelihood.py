"""Choices and texts by likelihood: the numbers of a plain forward, and lm-eval's own, row by row."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from compact_distill.config.models import TextConfig
from compact_distill.errors import ConfigError, DataError, InputError, StudentError
from compact_distill.evaluation.harness import Subject, describe, evaluate_task
from compact_distill.evaluation.likelihood import LikelihoodMeasure, Passage, plan_passes, read_passages
from compact_distill.evaluation.result_files import compare_results, describe_changes, read_attempts
from compact_distill.evaluation.task import Task, load_task
from compact_distill.evaluation.task_rows import TaskRows, read_task
from compact_distill.evaluation.writers import ServedWriter, StudentWriter
from compact_distill.method.forward import attach
from compact_distill.statistics import share_of_rows
from models import CHATML, byte_level_tokenizer, tiny_model

BASE = Subject("base", "tiny", "0")
PLACES = {"A": "bank", "B": "library", "C": "a department store", "D": "mall"}


@pytest.fixture(scope="module")
def tiny():
    return tiny_model("qwen2"), byte_level_tokenizer()


def choice_rows(folder: Path, count: int = 6, **settings) -> TaskRows:
    path = folder / "places.jsonl"
    rows = [
        {"id": f"p{n}", "question": f"Where are {n} books?", "answer": "ABCD"[n % 4], "choices": PLACES}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "places", "version": 1, "kind": "choice", "data": {"path": str(path)}}
    return read_task(Task(**task, prompt="Question: {{ question }}\nAnswer:", **settings))


@torch.no_grad()
def alone(model, context, tokens) -> float:
    """Log-probability of `tokens` after `context`, by a plain forward of one sequence."""
    ids = torch.tensor([[*context, *tokens]])
    logprob = torch.log_softmax(model(input_ids=ids).logits[0], -1)
    return float(sum(logprob[len(context) + n - 1, token] for n, token in enumerate(tokens)))


# ---- reading


@pytest.mark.parametrize("architecture", ["llama", "qwen2_sliding", "gemma3"])
def test_each_continuation_is_read_as_if_it_stood_alone(architecture):
    model = tiny_model(architecture)
    random = np.random.default_rng(0)

    def some(count: int) -> tuple[int, ...]:
        return tuple(random.integers(5, 300, count).tolist())

    start = some(20)  # what all begin with, long enough to be read once
    passages = [
        Passage(0, (*start, *some(9)), (some(1), some(4), some(1))),
        Passage(1, (*start, *some(3)), (some(7),)),
        Passage(2, (*start, *some(1)), (some(2), some(2))),
    ]
    groups = (passages, passages[:1], [*passages, Passage(3, some(1), (some(5),))])
    plain = [[[alone(model, p.context, tokens) for tokens in p.continuations] for p in group] for group in groups]
    attach(model)
    for group, expected in zip(groups, plain, strict=True):
        found = read_passages(model, group)
        for mine, theirs in zip(found, expected, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-9)


def test_what_prompts_have_in_common_is_read_once(tiny, monkeypatch):
    lengths = []
    from compact_distill.evaluation import likelihood

    read = likelihood.read_labels
    monkeypatch.setattr(
        likelihood, "read_labels", lambda m, layout, *rest: lengths.append(len(layout.tokens)) or read(m, layout, *rest)
    )
    start = tuple(range(10, 110))
    passages = [Passage(n, (*start, 200 + n), ((7, 8, 9),)) for n in range(10)]
    attach(tiny[0])
    read_passages(tiny[0], passages)
    assert lengths == [100 + 10 * (1 + 2)]


def test_passes_keep_to_the_limit_and_to_the_order():
    random = np.random.default_rng(1)
    start = tuple(range(40))
    passages = [
        Passage(n, (*(start if n % 3 else start[: n % 7]), *random.integers(50, 90, 5).tolist()), ((1, 2, 3), (4,)))
        for n in range(60)
    ]
    passes = plan_passes(passages, 150)
    assert [index for group in passes for index in group] == list(range(60))
    from compact_distill.evaluation.likelihood import _lay_out

    sizes = [len(_lay_out([passages[i] for i in group])[0].tokens) for group in passes]
    assert max(sizes) <= 150
    assert len(passes) < 60
    huge = Passage(0, tuple(range(500)), ((1, 2),))
    assert plan_passes([huge, huge], 150) == [[0], [1]]


# ---- choices


def test_choices_are_scored_as_by_hand(tmp_path, tiny):
    model, tokenizer = tiny
    rows = choice_rows(tmp_path)
    document = evaluate_task(StudentWriter(model, tokenizer), BASE, rows, tmp_path, role="retained")
    attempts = read_attempts(tmp_path / "places.rows.jsonl")
    gold_nats = gold_tokens = 0.0
    for row, attempt in zip(rows.rows, attempts, strict=True):
        context = tokenizer(f"Question: {row.question}\nAnswer:")["input_ids"]
        parts = {label: tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for label, text in PLACES.items()}
        nats = {label: -alone(model, context, tokens) for label, tokens in parts.items()}
        assert attempt["nats"] == pytest.approx(nats, abs=1e-9)
        by_character = {label: nats[label] / len(text) for label, text in PLACES.items()}
        assert attempt["acc"] == (min(nats, key=nats.get) == row.gold)
        assert attempt["acc_norm"] == (min(by_character, key=by_character.get) == row.gold)
        assert attempt["answer"] == min(by_character, key=by_character.get)
        assert (attempt["verdict"] == "correct") == attempt["acc_norm"]
        gold_nats, gold_tokens = gold_nats + nats[row.gold], gold_tokens + len(parts[row.gold])
    result = document["result"]
    norm = share_of_rows([attempt["acc_norm"] for attempt in attempts])
    assert result["metric"] == "acc_norm"
    assert result["metrics"]["acc_norm"] == {"value": norm.value, "low": norm.low, "high": norm.high}
    assert (result["accuracy"], result["low"], result["high"]) == (norm.value, norm.low, norm.high)
    assert result["metrics"]["nats_per_token"]["value"] == pytest.approx(gold_nats / gold_tokens)
    assert document["task"]["kind"] == "choice"
    assert document["decoding"] is None
    assert "acc_norm " in describe(document)
    assert "nats a token" in describe(document)


def test_thinking_that_the_chat_template_opens_is_closed_before_the_choices(tmp_path, tiny):
    tokenizer = byte_level_tokenizer(chat=True)
    tokenizer.chat_template = CHATML.replace("assistant\n{%", "assistant\n<think>\n{%")
    rows = choice_rows(tmp_path, chat=True)
    writer = StudentWriter(tiny[0], tokenizer, TextConfig(close_thinking=True))
    passage = LikelihoodMeasure(writer, rows.task, rows.rows, 42).passages[0]
    assert tokenizer.decode(passage.context).endswith("<think>\n\n</think>")
    assert [tokenizer.decode(tokens) for tokens in passage.continuations] == [f"\n\n{p}" for p in PLACES.values()]


def test_examples_are_the_same_for_every_row_but_for_the_row_itself(tmp_path):
    rows = choice_rows(tmp_path, 12, fewshot=3).rows
    shown = [[part.split("\n")[0] for part in row.prompt.split("\n\n")[:-1]] for row in rows]
    for row, examples in zip(rows, shown, strict=True):
        assert len(examples) == 3
        assert f"Question: {row.question}" not in examples
        assert row.prompt.endswith(f"Question: {row.question}\nAnswer:")
    everybody = {tuple(examples) for examples in shown}
    assert len(everybody) == 4, "three rows are examples themselves; all others have the same three"
    solved = next(
        row for row in rows if f"Question: {row.question}" in shown[0] or f"Question: {row.question}" in shown[1]
    )
    assert any(f"Question: {solved.question}\nAnswer: {PLACES[solved.gold]}\n\n" in row.prompt for row in rows)


def test_the_limit_does_not_change_what_a_row_is_asked(tmp_path):
    whole = choice_rows(tmp_path, 12, fewshot=3)
    assert read_task(whole.task, limit=4).rows == whole.rows[:4]


def test_more_examples_than_other_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match="fewshot is 6, but only 5 rows ask something else than row 'p0'"):
        choice_rows(tmp_path, 6, fewshot=6)


def test_a_task_brings_the_choices_that_its_rows_lack(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"id": "a", "question": "Is snow cold?", "answer": "yes"}\n'
        '{"id": "b", "question": "Is ice hot?", "answer": "no"}\n'
    )
    task = load_task(f"strategyqa_likelihood={path}").changed(fewshot=1)
    first = read_task(task).rows[0]
    assert first.choices == {"yes": "yes", "no": "no"}
    assert first.prompt == "Question: Is ice hot?\nAnswer: no\n\nQuestion: Is snow cold?\nAnswer:"
    bare = Task(name="t", version=1, kind="choice", data={"path": str(path)})
    with pytest.raises(DataError, match="choices must be two or more for kind: choice, got 0"):
        read_task(bare)


# ---- texts


def text_rows(folder: Path, texts: list[str], window: int = 2048) -> TaskRows:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return read_task(Task(name="texts", version=1, kind="likelihood", data={"path": str(path)}, window=window))


def test_texts_are_measured_in_nats_a_token_and_bits_a_byte(tmp_path, tiny):
    model, tokenizer = tiny
    texts = ["Ann has 7 apples.", "Größe: 3 boxes with 4 pens — so 12."]
    document = evaluate_task(StudentWriter(model, tokenizer), BASE, text_rows(tmp_path, texts), tmp_path)
    nats, tokens, size = 0.0, 0, 0
    for text, attempt in zip(texts, read_attempts(tmp_path / "texts.rows.jsonl"), strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        own = -alone(model, [begin], ids)
        assert attempt["nats"] == pytest.approx(own, abs=1e-9)
        assert (attempt["tokens"], attempt["bytes"]) == (len(ids), len(text.encode()))
        nats, tokens, size = nats + own, tokens + len(ids), size + len(text.encode())
    metrics = document["result"]["metrics"]
    assert metrics["nats_per_token"]["value"] == pytest.approx(nats / tokens)
    assert metrics["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / size)
    assert document["result"]["metric"] == "bits_per_byte"
    assert document["result"]["accuracy"] is None
    assert "bits a byte" in describe(document)


def test_a_long_text_is_read_in_windows_and_every_token_is_predicted_once(tmp_path, tiny):
    model, tokenizer = tiny
    text = "Ann has 7 apples and buys 5 more. " * 6
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = text_rows(tmp_path, [text], window=50)
    measure = LikelihoodMeasure(StudentWriter(model, tokenizer), rows.task, rows.rows, 0)
    assert [token for p in measure.passages for token in p.continuations[0]] == ids
    assert all(len(p.context) + len(p.continuations[0]) - 1 <= 50 for p in measure.passages)
    assert len(measure.passages[-1].context) + len(measure.passages[-1].continuations[0]) - 1 == 50
    evaluate_task(StudentWriter(model, tokenizer), BASE, rows, tmp_path)
    expected = -sum(alone(model, p.context, p.continuations[0]) for p in measure.passages)
    assert read_attempts(tmp_path / "texts.rows.jsonl")[0]["nats"] == pytest.approx(expected, abs=1e-9)


def test_a_plain_file_is_a_task_whose_texts_stand_between_empty_lines(tmp_path):
    path = tmp_path / "my notes.txt"
    path.write_text("First line\nand second.\n\n  \nThird\n", encoding="utf-8")
    for name in (str(path), f"text_likelihood={path}"):
        rows = read_task(load_task(name))
        assert [row.prompt for row in rows.rows] == ["First line\nand second.", "Third"]
    assert load_task(str(path)).name == "my_notes"
    path.write_text(" \n\n")
    with pytest.raises(DataError, match="holds no text"):
        read_task(load_task(str(path)))
    with pytest.raises(ConfigError, match="write text_likelihood=FILE"):
        load_task("text_likelihood")
    with pytest.raises(DataError, match="only kind: likelihood reads"):
        read_task(load_task(f"gsm8k={path}"))


# ---- two students, and what is refused


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"\xef\xbb\xbfAnn has 7.")
    assert [row.prompt for row in read_task(load_task(str(tmp_path / "notes.txt"))).rows] == ["Ann has 7."]


def test_a_text_whose_id_is_null_has_none_and_a_list_is_no_id(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"id": null, "text": "a"}\n{"text": "b"}\n{"id": 7, "text": "c"}\n')
    found = read_task(load_task(f"text_likelihood={path}"))
    assert [row.id for row in found.rows] == ["text_likelihood/0", "text_likelihood/1", "7"]
    path.write_text('{"id": [7], "text": "a"}\n')
    with pytest.raises(DataError, match="line 1: id must be text or a whole number"):
        read_task(load_task(f"text_likelihood={path}"))


def test_two_students_are_compared_on_every_measure(tmp_path, tiny):
    other = tiny_model("qwen2", seed=3)
    for name, model in (("base", tiny[0]), ("student", other)):
        writer = StudentWriter(model, tiny[1])
        evaluate_task(writer, Subject(name, name, name), choice_rows(tmp_path, 30), tmp_path / name, role="retained")
        evaluate_task(
            writer, Subject(name, name, name), text_rows(tmp_path, ["So it is.", "Not at all", "12"]), tmp_path / name
        )
    found = compare_results(tmp_path / "base", tmp_path / "student", "places")
    rows = [read_attempts(tmp_path / name / "places.rows.jsonl") for name in ("base", "student")]
    for metric in ("acc", "acc_norm"):
        change = found["metrics"][metric]
        assert change["gained"] == sum(b[metric] > a[metric] for a, b in zip(*rows, strict=True))
        assert change["difference"] == pytest.approx(change["after"]["value"] - change["before"]["value"])
    assert (found["metric"], found["better"], found["gained"]) == (
        "acc_norm",
        "higher",
        found["metrics"]["acc_norm"]["gained"],
    )
    texts = compare_results(tmp_path / "base", tmp_path / "student", "texts")
    assert (texts["metric"], texts["better"], texts["mcnemar_p"], texts["gained"]) == (
        "bits_per_byte",
        "lower",
        None,
        None,
    )
    assert texts["before"] == {"accuracy": None, "low": None, "high": None}
    change = texts["metrics"]["nats_per_token"]
    assert change["difference"] == pytest.approx(change["after"]["value"] - change["before"]["value"])
    assert change["low"] <= change["difference"] <= change["high"]
    lines = describe_changes({"changes": [found, texts], "missing": []})
    assert "points" in lines[0]
    assert "bits a byte" in lines[1]
    assert "less is better" in lines[1]


def test_a_server_is_refused_before_it_is_asked(tmp_path):
    with pytest.raises(
        InputError, match=r"kind: choice\), which no server tells; evaluate the student in this process"
    ):
        evaluate_task(ServedWriter("m", "http://localhost:1/v1"), BASE, choice_rows(tmp_path), tmp_path)


def test_a_student_that_yields_no_numbers_is_an_error_and_no_result(tmp_path):
    model = tiny_model("qwen2")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(StudentError, match=r"must be numbers, got nan for row 'p0' of places"):
        evaluate_task(StudentWriter(model, byte_level_tokenizer()), BASE, choice_rows(tmp_path), tmp_path)
    assert not (tmp_path / "places.json").exists()


def test_rows_that_do_not_fit_the_student_are_named(tmp_path):
    model = tiny_model("qwen2", max_position_embeddings=20)
    with pytest.raises(InputError) as error:
        evaluate_task(StudentWriter(model, byte_level_tokenizer()), BASE, choice_rows(tmp_path), tmp_path)
    assert len(error.value.problems) == 6
    assert "do not fit in the student's 20; lower fewshot" in error.value.problems[0]


def test_settings_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="samples, temperature says nothing where kind is choice"):
        Task(name="t", version=1, kind="choice", data={"path": "x"}, samples=2, temperature=1.0)
    with pytest.raises(ValueError, match="fewshot says nothing where kind is generate"):
        Task(name="t", version=1, data={"path": "x"}, fewshot=2)


def test_a_stopped_reading_goes_on_and_ends_in_the_same_bytes(tmp_path, tiny, monkeypatch):
    rows = choice_rows(tmp_path, 9)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    evaluate_task(StudentWriter(*tiny, batch_tokens=60), BASE, rows, whole)
    from compact_distill.evaluation import likelihood

    read, passes = likelihood.read_passages, []

    def breaks(model, passages):
        passes.append(len(passages))
        if len(passes) == 3:
            raise RuntimeError("the machine stopped")
        return read(model, passages)

    monkeypatch.setattr(likelihood, "read_passages", breaks)
    with pytest.raises(RuntimeError):
        evaluate_task(StudentWriter(*tiny, batch_tokens=60), BASE, rows, stopped)
    done = sum(passes[:2])
    passes.extend([0] * 3)
    evaluate_task(StudentWriter(*tiny, batch_tokens=60), BASE, rows, stopped)
    assert sum(passes[6:]) == 9 - done
    for name in ("places.json", "places.rows.jsonl"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


# ---- lm-eval itself


def by_lm_eval(model, tokenizer, output_type: str, rows: list[dict], chat: bool = False) -> list[dict]:
    """lm-eval's samples of rows {prompt, texts, target} or {text}, in order."""
    from datasets import Dataset
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    config = {
        "task": "peer",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": output_type,
        "num_fewshot": 0,
    }
    if output_type == "multiple_choice":
        config |= {"doc_to_text": "{{ prompt }}", "doc_to_choice": "{{ texts }}", "doc_to_target": "{{ target }}"}
        config["metric_list"] = [{"metric": "acc"}, {"metric": "acc_norm"}]
    else:
        config |= {"doc_to_text": "", "doc_to_target": "{{ text }}", "metric_list": [{"metric": "bits_per_byte"}]}
    model.config._attn_implementation = "sdpa"
    lm = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=64 if output_type != "multiple_choice" else 2048
    )
    found = simple_evaluate(model=lm, tasks=[config], apply_chat_template=chat, bootstrap_iters=0)
    return sorted(found["samples"]["peer"], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize(("fewshot", "chat"), [(0, False), (5, False), (0, True)])
def test_lm_eval_gives_the_same_numbers_on_each_row_of_csqa(tmp_path, data_folder, fewshot, chat):
    pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install 'compact-distill[lm-eval]'")
    model, tokenizer = tiny_model("llama", eos_token_id=0), byte_level_tokenizer()
    if chat:
        tokenizer.chat_template = CHATML
    task = load_task(f"csqa_likelihood={data_folder / 'csqa_dev.jsonl'}").changed(fewshot=fewshot, chat=chat)
    rows = read_task(task, limit=20)
    document = evaluate_task(StudentWriter(tiny_model("llama", eos_token_id=0), tokenizer), BASE, rows, tmp_path)
    asked = [
        {"prompt": row.prompt, "texts": list(row.choices.values()), "target": list(row.choices).index(row.gold)}
        for row in rows.rows
    ]
    samples = by_lm_eval(model, tokenizer, "multiple_choice", asked, chat)
    attempts = read_attempts(tmp_path / "csqa_likelihood.rows.jsonl")
    assert len(samples) == len(attempts) == 20
    for sample, attempt in zip(samples, attempts, strict=True):
        assert list(attempt["nats"].values()) == pytest.approx([-float(r[0][0]) for r in sample["resps"]], abs=1e-8)
        assert (attempt["acc"], attempt["acc_norm"]) == (sample["acc"], sample["acc_norm"])
    assert 0 < sum(a["acc"] for a in attempts) < 20
    assert any(a["acc"] != a["acc_norm"] for a in attempts)
    assert document["result"]["metrics"]["acc"]["value"] == np.mean([sample["acc"] for sample in samples])


def test_lm_eval_gives_the_same_likelihood_of_each_text(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install 'compact-distill[lm-eval]'")
    model, tokenizer = tiny_model("llama", eos_token_id=0), byte_level_tokenizer()
    texts = ["Ann has 7 apples.", "Größe: 3 boxes. " * 20, "So " * 64, "x"]
    rows = text_rows(tmp_path, texts, window=64)
    document = evaluate_task(StudentWriter(tiny_model("llama", eos_token_id=0), tokenizer), BASE, rows, tmp_path)
    samples = by_lm_eval(model, tokenizer, "loglikelihood_rolling", [{"text": text} for text in texts])
    attempts = read_attempts(tmp_path / "texts.rows.jsonl")
    for sample, attempt in zip(samples, attempts, strict=True):
        assert attempt["nats"] == pytest.approx(-float(sample["bits_per_byte"][0]), abs=1e-8)
        assert attempt["bytes"] == sample["bits_per_byte"][1]
    peer = sum(-s["bits_per_byte"][0] for s in samples) / sum(s["bits_per_byte"][1] for s in samples) / math.log(2)
    assert document["result"]["metrics"]["bits_per_byte"]["value"] == pytest.approx(peer)
