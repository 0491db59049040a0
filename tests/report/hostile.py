"""Text that wants to act: it goes into every place that a model, a teacher or a configuration can fill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAYLOADS = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=2</script>",
    '"><img src=x onerror=window.pwned=3>',
    "' onmouseover='window.pwned=4",
    "</style><svg onload=window.pwned=5>",
    "</textarea></title><iframe src=javascript:window.pwned=6></iframe>",
    "javascript:window.pwned=7//",
    "<!--<script>",
    "]]></svg><script>window.pwned=8</script>",
    "{{ 7*7 }}{% raw %}${window.pwned=9}`",
    "\u202eevil\u2028line\x00\x1b[2J",
    '<a href="https://example.org/x">x</a><link rel=stylesheet href=//example.org/y.css>',
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
)


def poison(folder: Path) -> Path:
    """Put payloads into a run folder's ids, questions, answers, texts, names, statuses, settings, versions, results."""
    mix = " ".join(PAYLOADS)

    def rewrite(name: str, change: Any) -> None:
        path = folder / name
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for i, row in enumerate(rows):
            change(row, PAYLOADS[i % len(PAYLOADS)])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    ids: dict[str, str] = {}
    teachers: dict[str, str] = {}

    def named(name: str) -> str:
        return teachers.setdefault(name, f"{PAYLOADS[len(teachers)]}{len(teachers)}")

    def data(row: dict[str, Any], payload: str) -> None:
        row["id"] = ids.setdefault(row["id"], f"{row['id']}{payload}")
        row["question"] += mix
        row["answer"] += payload
        for rationale in row["rationales"]:
            rationale["teacher"] = named(rationale["teacher"])
            rationale["text"] += mix  # behind the reasoning, so that gains still fit
            rationale["answer"] = payload
            if rationale["status"] != "ok":
                rationale["status"] = rationale["verdict"] = payload

    def scores(row: dict[str, Any], payload: str) -> None:
        row["id"] = ids[row["id"]]
        row["teachers"] = [named(name) for name in row["teachers"]]
        row["<b onclick=window.pwned=10>score"] = [1.0] * len(row["teachers"])

    def gains(row: dict[str, Any], payload: str) -> None:
        row["id"] = ids[row["id"]]
        for rationale in row["rationales"]:
            if rationale:
                rationale["teacher"] = named(rationale["teacher"])

    rewrite("data.jsonl", data)
    rewrite("scores.jsonl", scores)
    rewrite("gains.jsonl", gains)
    (folder / "config.yaml").write_text("student: |\n" + "".join(f"  {line}\n" for line in PAYLOADS[:10]))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["versions"][PAYLOADS[0]] = mix
    manifest["student"]["name"] = PAYLOADS[1]
    manifest["stages"][PAYLOADS[2]] = manifest["stages"]["train"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for path in (folder / "eval").glob("*/gsm8k.json"):
        result = json.loads(path.read_text())
        result["task"]["name"], result["role"] = PAYLOADS[0], PAYLOADS[2]
        path.write_text(json.dumps(result))
    changes = json.loads((folder / "eval" / "changes.json").read_text())
    changes["changes"][0]["task"] = PAYLOADS[0]
    (folder / "eval" / "changes.json").write_text(json.dumps(changes))
    drift = json.loads((folder / "eval" / "drift.json").read_text())
    drift["sets"][0]["role"] = PAYLOADS[3]
    drift["sets"][0]["plane"]["ids"][0] = PAYLOADS[1]
    (folder / "eval" / "drift.json").write_text(json.dumps(drift))
    return folder
