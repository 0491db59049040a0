"""Pieces of the shell lines that compute a figure's numbers again. They use pandas and the run folder, nothing of ours.

A figure's `recompute` is a single line of shell; `docs/report.md` lists them all, and a test runs each.
"""

from __future__ import annotations

SCORES = "d=pd.read_json('scores.jsonl',lines=True,dtype={'id':str}); "
# One row per rationale that took part in a reading.
LONG = (
    "s=['weights','consensus','adaptability','difficulty']; d=d.explode(['teachers','statuses',*s]); "
    "d=d[d.statuses=='ok'].astype(dict.fromkeys(s,float)); "
)
# A point of a curve: an epoch, or an eighth of one in a run of fewer than three.
BINS = "w=1 if d.epoch.max()>=2 else 1/8; d['epoch']=(d.epoch//w+1)*w; "
# The rationales of data.jsonl with the names that scores.jsonl uses.
DATA = (
    "v=pd.json_normalize([json.loads(l) for l in open('data.jsonl')],'rationales','id'); "
    "v['teachers']=[t+(f'#{n}' if n else '') for t,n in zip(v.teacher,v['sample'])]; "
)
JOIN = "d=d.merge(v[['id','teachers','verdict']],on=['id','teachers']); "


def python(code: str, imports: str = "import json, pandas as pd; ") -> str:
    """A line of Python as a line of shell."""
    return f'python -c "{imports}{code}"'
