"""Files of rows for tasks."""

from __future__ import annotations

import json
from pathlib import Path


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def row(number: int = 0, **fields) -> dict:
    return {"id": f"p{number}", "question": f"What is {number} + 1?", "answer": number + 1, **fields}
