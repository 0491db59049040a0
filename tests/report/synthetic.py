"""Run folders made on the spot: every file that docs/report.md names, in its documented format, from a seed.

Written with plain json on purpose: the tests hold the report to the documented formats, not to our own writers.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compact_distill.evaluation.result_files import write_result
from compact_distill.runs.files import content_hash

TEACHERS = ("qwq", "llama-70b", "qwen-72b", "r1-distill")
TASKS = (("gsm8k", "learned"), ("svamp", "learned"), ("csqa", "retained"), ("strategyqa", "retained"))
_ROWS = 200  # of a benchmark
WORDS = (
    "first",
    "we",
    "add",
    "so",
    "then",
    "because",
    "eggs",
    "each",
    "day",
    "half",
    "of",
    "the",
    "total",
    "therefore",
)


def make_run(
    folder: Path,
    *,
    problems: int = 24,
    teachers: Sequence[str] = TEACHERS,
    epochs: int = 5,
    tokens: int = 40,
    seed: int = 0,
    students: Sequence[str] = ("before", "after"),
    texts: Sequence[tuple[str, str, str]] = (),
    config: dict[str, Any] | None = None,
    layers: int = 6,
    checkpoints: bool = False,
    likelihood: bool = False,
) -> Path:
    """Write a complete run folder.

    Args:
        tokens: mean length of a rationale; a token is a word with its space.
        students: whose gains are written.
        texts: (question, rationale, answer) in place of made-up ones, for as many problems as there are.
        checkpoints: also write results of two checkpoints.
        likelihood: also write results of a choice task and of texts.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    names = list(teachers)
    data = [_problem(rng, i, names, tokens, texts) for i in range(problems)]
    _lines(folder / "data.jsonl", data)
    _lines(folder / "scores.jsonl", _trace(rng, data, names, epochs))
    _lines(folder / "training_log.jsonl", _log(rng, problems, epochs))
    _lines(folder / "gains.jsonl", [_gains(rng, row, student) for student in students for row in data])
    _manifest(folder, names)
    (folder / "config.yaml").write_text(
        json.dumps(config or {"student": "Qwen/Qwen2.5-1.5B", "seed": 42, "train": {"learning_rate": 1e-5}}, indent=1)
    )
    _store(folder / "rationales", data)
    _evaluation(rng, folder / "eval", epochs, checkpoints, likelihood)
    _drift(rng, folder / "eval" / "drift.json", layers)
    return folder


def _lines(path: Path, rows: Any) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _problem(
    rng: random.Random, i: int, teachers: list[str], tokens: int, texts: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    a, b = rng.randint(2, 60), rng.randint(2, 60)
    question, gold = f"Ann has {a} apples and buys {b} more. How many apples does she have now?", str(a + b)
    rationales = []
    for k, teacher in enumerate(teachers):
        right = rng.random() < 0.85 - 0.5 * k / max(len(teachers), 1)
        status = "ok" if rng.random() < 0.93 else rng.choice(["over_length", "unparsed", "missing"])
        length = max(3, round(rng.gauss(tokens, tokens / 4)))
        answer = gold if right else str(a + b + rng.randint(1, 5))
        text = " ".join(rng.choices(WORDS, k=length)) + f" = {answer}.\nThe answer is {answer}."
        if i < len(texts):
            question, text, gold = texts[i]
        if status == "missing":
            text = ""
        rationales.append(
            {
                "teacher": teacher,
                "sample": 0,
                "text": text,
                "answer": None if status != "ok" else answer,
                "verdict": None
                if status == "missing"
                else "unparsed"
                if status == "unparsed"
                else "correct"
                if right
                else "wrong",
                "status": status,
                "tokens": length + 8 if status == "ok" else None,
            }
        )
    return {"id": f"made/{i}", "question": question, "answer": gold, "prompt_tokens": 30, "rationales": rationales}


def _trace(rng: random.Random, data: list[dict[str, Any]], teachers: list[str], epochs: int) -> list[dict[str, Any]]:
    """Weights are the softmax of scores; one teacher becomes easier with time, so a curriculum shows."""
    rows, step = [], 0
    taste = [[rng.gauss(0, 0.4) for _ in teachers] for _ in data]
    for epoch in range(epochs):
        order = list(range(len(data)))
        rng.shuffle(order)
        for place, i in enumerate(order):
            progress = epoch + place / len(data)
            consensus: list[float | None] = []
            adaptability: list[float | None] = []
            difficulty: list[float | None] = []
            logits = []
            for k, rationale in enumerate(data[i]["rationales"]):
                if rationale["status"] != "ok":
                    consensus.append(None)
                    adaptability.append(None)
                    difficulty.append(None)
                    continue
                right = rationale["verdict"] == "correct"
                easier = 0.10 * progress * (1.5 if k == 0 else 1.0)
                consensus.append(max(0.0, 0.8 + 0.3 * right + taste[i][k] * 0.3 + rng.gauss(0, 0.12)))
                adaptability.append(max(0.0, 1.2 + 0.7 * right + taste[i][k] + rng.gauss(0, 0.3)))
                difficulty.append(max(0.2, 1.6 + 0.25 * k - easier + rng.gauss(0, 0.15)))
                logits.append((k, consensus[-1] + 0.6 * adaptability[-1] - 0.9 * difficulty[-1]))
            top = max((v for _, v in logits), default=0.0)
            total = sum(math.exp(v - top) for _, v in logits)
            weights = [0.0] * len(teachers)
            for k, v in logits:
                weights[k] = math.exp(v - top) / total
            rows.append(
                {
                    "epoch": round(progress, 6),
                    "step": step + place // 4,
                    "id": data[i]["id"],
                    "teachers": teachers,
                    "consensus": consensus,
                    "adaptability": adaptability,
                    "difficulty": difficulty,
                    "weights": weights,
                    "statuses": [r["status"] for r in data[i]["rationales"]],
                }
            )
        step += math.ceil(len(data) / 4)
    return rows


def _log(rng: random.Random, problems: int, epochs: int) -> list[dict[str, Any]]:
    steps = math.ceil(problems / 4) * epochs
    rows = []
    for step in range(1, steps + 1):
        loss = 1.1 + 0.9 * math.exp(-3 * step / steps) + rng.gauss(0, 0.05)
        rows.append(
            {
                "step": step,
                "epoch": round(step * epochs / steps, 6),
                "seconds": round(step * 1.9, 3),
                "memory_mib": 3900.0 + min(step, 20),
                "problems_per_second": round(abs(rng.gauss(2.1, 0.12)), 4),
                "loss": round(loss, 4),
                "grad_norm": round(0.8 + abs(rng.gauss(0, 0.2)), 4),
                "learning_rate": 1e-5 * (1 - step / steps),
                "loss_likelihood": round(loss - 0.04, 4),
                "loss_consistency": round(0.4 * math.exp(-2 * step / steps), 4),
                "weight_entropy": 1.2,
            }
        )
    return [
        *rows,
        {"step": steps, "epoch": float(epochs), "train_runtime": 99.0, "train_loss": 1.3, "memory_mib": 3920.0},
    ]


def _gains(rng: random.Random, row: dict[str, Any], student: str) -> dict[str, Any]:
    pool = [round(rng.gauss(0.02, 0.05), 4) for _ in range(64)] + [round(rng.gauss(0.4, 0.3), 4) for _ in range(6)]
    rationales = []
    for rationale in row["rationales"]:
        if rationale["status"] != "ok":
            rationales.append(None)
            continue
        text = rationale["text"]
        reasoning = text.rsplit("\n", 1)[0]
        ends = [place.start() for place in re.finditer(" ", reasoning)] + [len(reasoning)]
        gains = rng.choices(pool, k=len(ends))
        thinking = []
        for word in ("first", "so", "then", "therefore"):
            at = reasoning.find(f" {word} ")
            if at >= 0:
                thinking.append([at + 1, at + 1 + len(word)])
        rationales.append(
            {
                "teacher": rationale["teacher"],
                "sample": 0,
                "start": 0,
                "belief": -4.0,
                "ends": ends,
                "gains": gains,
                "thinking": sorted(thinking),
            }
        )
    return {"id": row["id"], "student": student, "estimator": "lens", "rationales": rationales}


def _manifest(folder: Path, teachers: list[str]) -> None:
    stages = {
        "generate": ("2026-01-05T08:00:00+00:00", "2026-01-05T09:12:00+00:00"),
        "train": ("2026-01-05T09:12:00+00:00", "2026-01-05T10:02:30+00:00"),
        "eval": ("2026-01-05T10:02:30+00:00", "2026-01-05T10:31:00+00:00"),
    }
    _json(
        folder / "manifest.json",
        {
            "format": 1,
            "started": "2026-01-05T08:00:00+00:00",
            "finished": "2026-01-05T10:31:00+00:00",
            "stages": {k: {"inputs": "x", "started": a, "finished": b, "summary": {}} for k, (a, b) in stages.items()},
            "versions": {"python": "3.11.2", "compact-distill": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "hardware": {"gpus": ["one of them"], "cores": 16},
            "seeds": {"seed": 42},
            "student": {"name": "Qwen/Qwen2.5-1.5B", "sha256": None},
            "data": {"files": {"problems.jsonl": "ab" * 32}, "problems": 24},
            "teachers": sorted(teachers),
        },
    )


def _store(folder: Path, data: list[dict[str, Any]]) -> None:
    folder.mkdir()
    rows = [
        {
            "id": row["id"],
            "teacher": r["teacher"],
            "prompt_tokens": 80,
            "completion_tokens": r["tokens"] or 0,
            "cost": 0.0004,
        }
        for row in data
        for r in row["rationales"]
    ]
    _lines(folder / "all.jsonl", rows)


def _evaluation(rng: random.Random, folder: Path, epochs: int, checkpoints: bool, likelihood: bool) -> None:
    changes = []
    accuracies = {"gsm8k": (0.48, 0.61), "svamp": (0.62, 0.69), "csqa": (0.71, 0.705), "strategyqa": (0.64, 0.62)}
    students = [("base", 0.0, 0.0), ("student", float(epochs), 1.0)]
    students += [("checkpoint-10", 1.0, 0.5), ("checkpoint-20", 2.0, 0.8)] if checkpoints else []
    for task, role in TASKS:
        before, after = accuracies[task]
        for student, epoch, share in students:
            right = round((before + (after - before) * share) * _ROWS)
            verdicts = rng.sample(["correct"] * right + ["wrong"] * (_ROWS - right), _ROWS)
            rows = [{"id": f"{task}/{i}", "sample": 0, "verdict": verdict} for i, verdict in enumerate(verdicts)]
            (folder / student).mkdir(parents=True, exist_ok=True)
            _lines(folder / student / f"{task}.rows.jsonl", rows)
            made_of = {"rows_hash": content_hash(folder / student / f"{task}.rows.jsonl")}
            result = _result(task, role, student, epoch, right) | made_of
            write_result(folder / student / f"{task}.json", result)
        spread = 0.04
        changes.append(
            {
                "task": task,
                "version": 1,
                "role": role,
                "kind": "generate",
                "metric": "accuracy",
                "better": "higher",
                "rows": 200,
                "samples": 1,
                "before": {"accuracy": before, "low": before - 0.07, "high": before + 0.07},
                "after": {"accuracy": after, "low": after - 0.07, "high": after + 0.07},
                "difference": round(after - before, 4),
                "low": round(after - before - spread, 4),
                "high": round(after - before + spread, 4),
                "gained": 31,
                "lost": 7,
                "mcnemar_p": 0.0001,
                "resamples": 10000,
                "seed": 42,
            }
        )
        change = changes[-1]
        change["metrics"] = {
            "accuracy": {key: change[key] for key in ("difference", "low", "high", "gained", "lost", "mcnemar_p")}
            | {when: {"value": change[when]["accuracy"]} for when in ("before", "after")}
        }
    if likelihood:
        changes += _likelihood(folder)
    _json(
        folder / "changes.json", {"format": 1, "before": "base", "after": "student", "changes": changes, "missing": []}
    )


# Task, the measure that counts, and by measure: before, after, and half of the intervals' widths.
LIKELIHOODS: tuple[tuple[str, str, dict[str, tuple[float, float, float]]], ...] = (
    (
        "csqa_likelihood",
        "acc_norm",
        {"acc": (0.3, 0.31, 0.06), "acc_norm": (0.36, 0.35, 0.06), "nats_per_token": (2.5, 2.2, 0.1)},
    ),
    ("texts", "bits_per_byte", {"bits_per_byte": (1.1, 1.4, 0.05), "nats_per_token": (3.1, 3.9, 0.1)}),
)


def _likelihood(folder: Path) -> list[dict[str, Any]]:
    """Results of a choice task and of texts, as docs/evaluation.md has them; returns their comparisons."""
    changes = []
    for task, main, measures in LIKELIHOODS:
        for index, student in enumerate(("base", "student")):
            document = _result(task, "retained", student, float(5 * index), 0)
            metrics = {
                name: {"value": v[index], "low": round(v[index] - v[2], 4), "high": round(v[index] + v[2], 4)}
                for name, v in measures.items()
            }
            plain = {"accuracy": None, "low": None, "high": None, "verdicts": dict.fromkeys(("correct", "unparsed"), 0)}
            document["result"] |= plain | {"metric": main, "metrics": metrics, "truncated": 0}
            write_result(folder / student / f"{task}.json", document)
        found = {
            name: {
                "before": {"value": before},
                "after": {"value": after},
                "difference": round(after - before, 4),
                "low": round(after - before - width, 4),
                "high": round(after - before + width, 4),
                **dict.fromkeys(("gained", "lost", "mcnemar_p")),
            }
            for name, (before, after, width) in measures.items()
        }
        common = {"task": task, "version": 1, "role": "retained", "metric": main, "rows": 200, "metrics": found}
        unknown = {when: {"accuracy": None} for when in ("before", "after")}
        changes.append(common | unknown | {key: found[main][key] for key in ("difference", "low", "high")})
    return changes


def _result(task: str, role: str, student: str, epoch: float, right: int) -> dict[str, Any]:
    accuracy = right / _ROWS
    span = {"low": round(accuracy - 0.068, 4), "high": round(accuracy + 0.066, 4)}
    return {
        "format": 1,
        "role": role,
        "task": {"kind": "generate", "name": task, "version": 1, "prompt": "{{ question }}", "max_new_tokens": 512},
        "student": {"label": student, "step": 10, "epoch": epoch},
        "data": {"source": f"{task}.jsonl", "rows": _ROWS, "hash": task},
        "decoding": {"samples": 1, "temperature": 0.0, "top_p": 1.0, "seed": 42},
        "result": {
            "rows": _ROWS,
            "samples": 1,
            "attempts": _ROWS,
            "metric": "accuracy",
            "metrics": {"accuracy": {"value": accuracy} | span},
            "accuracy": accuracy,
            **span,
            "verdicts": {"correct": right, "wrong": _ROWS - 6 - right, "unparsed": 6, "timed_out": 0},
            "truncated": 4,
        },
    }


def _drift(rng: random.Random, path: Path, layers: int) -> None:
    sets = []
    for role, push in (("learned", 0.5), ("retained", 0.12)):
        ids = [f"{role}/{i}" for i in range(60)]
        base, student, measures = [], [], []
        for layer in range(1, layers + 1):
            far = push * layer / layers
            cloud = [[rng.gauss(0, 3), rng.gauss(0, 1.2)] for _ in ids]
            moved = [[x + far * 3 + rng.gauss(0, 0.2), y - far + rng.gauss(0, 0.2)] for x, y in cloud]
            base.append(cloud)
            student.append(moved)
            measures.append(
                {
                    "layer": layer,
                    "explained": [0.4, 0.1],
                    "spread": 3.2,
                    "centroid_distance": far * 3.2,
                    "centroid_shift": far,
                    "row_distance": far * 3.5,
                    "row_shift": far * 1.1,
                    "cka": 1 - 0.2 * far,
                }
            )
        sets.append(
            {
                "role": role,
                "tasks": [{"name": "gsm8k", "version": 1, "rows": 60, "data_hash": "x"}],
                "rows": 60,
                "kl_last": {"mean": 0.1 * push, "low": 0.08 * push, "high": 0.13 * push},
                "kl_prompt": {"mean": 0.05 * push, "low": 0.04 * push, "high": 0.06 * push},
                "layers": measures,
                "plane": {"ids": ids, "base": base, "student": student},
            }
        )
    _json(path, {"format": 1, "layers": layers, "width": 64, "sets": sets, "changes": []})
