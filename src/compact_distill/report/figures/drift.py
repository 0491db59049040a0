"""What moved inside the student: planes of hidden states, curves over layers, next-token distributions."""

from __future__ import annotations

import math

from compact_distill.report.charts import Line, Mark, interval_chart, line_chart, plane_chart
from compact_distill.report.figure import Figure, Key, Table
from compact_distill.report.read import RunData
from compact_distill.report.text import number

_PLANES = 3  # layers shown per set of prompts
_LEGEND = [Key("base", "before", 0), Key("student", "after", 2)]


def planes(run: RunData) -> Figure | None:
    """Base and student in the plane of the base's two principal components."""
    sheets, table = [], []
    for part in run.drift:
        for index in spaced(len(part.layers), _PLANES):
            layer = part.layers[index].layer
            if not part.base[index]:
                continue
            sheets.append(
                plane_chart(f"{part.role} prompts, layer {layer}", part.base[index], part.student[index], part.ids)
            )
            for who, cloud in (("base", part.base[index]), ("student", part.student[index])):
                table += [(part.role, layer, who, name, x, y) for name, (x, y) in zip(part.ids, cloud, strict=True)]
    if not sheets:
        return None
    return Figure(
        "drift_planes",
        "Where prompts sit: base and student",
        "Each point is the hidden state of a prompt's last token, in the plane where the base varies most; a thin line "
        "joins a prompt's two states and the large marks are centroids. Clouds that lie on each other mean that "
        "training left this layer's picture of the prompts alone; a common shift of all points is the mark of "
        "forgetting on retained prompts.",
        sheets,
        Table(("role", "layer", "student", "id", "x", "y"), table),
        "python -c \"import json; print('role,layer,student,id,x,y'); [print(s['role'],l['layer'],w,i,*q,sep=',') "
        "for s in json.load(open('eval/drift.json'))['sets'] for w in ('base','student') "
        "for l,p in zip(s['layers'],s['plane'][w]) for i,q in zip(s['plane']['ids'],p)]\"",
        legend=_LEGEND,
    )


def layer_curves(run: RunData) -> Figure | None:
    """Shift and similarity of each layer."""
    parts = [part for part in run.drift if part.layers]
    if not parts:
        return None
    layers = sorted({float(layer.layer) for part in parts for layer in part.layers})
    whole = layers if len(layers) <= 6 else []  # else round numbers are whole ones
    shifts, same = [], []
    for index, part in enumerate(parts):
        at = {layer.layer: layer for layer in part.layers}
        own = [at.get(int(layer)) for layer in layers]
        css = f"s{_role_index(part.role, index)}"
        for key, name, dashes in (("centroid_shift", "centre", ""), ("row_shift", "rows", " dashed")):
            values = [_or_nan(getattr(layer, key) if layer else None) for layer in own]
            shifts.append(Line(f"{part.role} {name}", values, _role_index(part.role, index), css=css + dashes))
        same.append(
            Line(part.role, [_or_nan(layer.cka if layer else None) for layer in own], _role_index(part.role, index))
        )
    sheets = [
        line_chart("Shift, in spreads of the base", layers, shifts, x_label="layer", zero=True, x_ticks=whole),
        line_chart("Linear CKA (1 = the same)", layers, same, x_label="layer", x_ticks=whole),
    ]
    columns = ("layer", "centroid_shift", "row_shift", "centroid_distance", "row_distance", "cka")
    table = [(part.role, *(getattr(layer, c) for c in columns)) for part in parts for layer in part.layers]
    return Figure(
        "drift_layers",
        "How far each layer moved",
        "Look for layers where learned and retained prompts part: learned ones may move, retained ones should not. A "
        "shift of 1 is as far as the base's own prompts lie from their centre; solid lines show how far all moved "
        "together, dashed ones how far each did. CKA looks at all dimensions and ignores rotations.",
        sheets,
        Table(("role", *columns), table),
        "python -c \"import json; print('role,layer,centroid_shift,row_shift,cka'); [print(s['role'],*(l[k] for k in "
        "('layer','centroid_shift','row_shift','cka')),sep=',') for s in json.load(open('eval/drift.json'))['sets'] "
        "for l in s['layers']]\"",
    )


def divergence(run: RunData) -> Figure | None:
    """KL between the next-token distributions of base and student."""
    if not run.drift:
        return None
    rows, table = [], []
    for part in run.drift:
        marks = []
        for name, where, shape in (("kl_last", "after the prompt", 2), ("kl_prompt", "over the prompt's tokens", 0)):
            mean, low, high = getattr(part, name)
            marks.append(Mark(where, mean, low, high, "after" if name == "kl_last" else "before", shape))
            table.append((part.role, name, mean, low, high))
        rows.append((f"{part.role}: {number(part.kl_last[0])} nats after the prompt", marks))
    return Figure(
        "divergence",
        "How differently it goes on",
        "KL(base ‖ student) of the next-token distributions, in nats. A large value on retained prompts warns of "
        "changed habits even where accuracy held. It looks one token ahead, so a value near 0 proves nothing about "
        "what follows. 95 % intervals.",
        [interval_chart("KL divergence, nats", rows, x_label="nats", reference=0.0)],
        Table(("role", "where", "mean", "low", "high"), table),
        "python -c \"import json; print('role,where,mean,low,high'); [print(s['role'],k,*(s[k][m] for m in "
        "('mean','low','high')),sep=',') for s in json.load(open('eval/drift.json'))['sets'] "
        "for k in ('kl_last','kl_prompt')]\"",
        legend=[Key("after the prompt", "after", 2), Key("mean over the prompt", "before", 0)],
    )


def spaced(count: int, most: int) -> list[int]:
    """At most `most` indices of `count`, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _role_index(role: str, index: int) -> int:
    return {"learned": 0, "retained": 1}.get(role, index + 2)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
