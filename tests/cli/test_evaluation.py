"""Commands that read a student, a run or its data, and train nothing."""

from __future__ import annotations

import json


def test_export_writes_rows_for_other_trainers(compact, data, tmp_path):
    out = tmp_path / "sft.jsonl"
    result = compact("export", data, out, "--format", "messages")
    assert result.stdout == f"wrote {out}: 3 rows, left out: 3 missing, 0 unparsed\n"
    row = json.loads(out.read_text().splitlines()[0])
    assert row["messages"][0] == {"role": "user", "content": "1 + 1?"}
    assert "messages" in compact("export", data, out, "--format", "csv", code=2).stderr
