"""Draw the pictures of docs/method.md and docs/results.md: python docs/figures/draw.py

example.json holds one problem's numbers, as `compact score` and the gains of a run give them for a real student;
diagnosis.json what `compact diagnose` found, studies.json what studies found (docs/results.md has the commands).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE.parent / "images"
RIGHT, WRONG, INK, SOFT = "#00796b", "#c2571a", "#444", "#9aa0a6"


def svg(width: int, height: int, title: str, body: str) -> str:
    """A picture that is readable on light and dark pages."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}" font-family="sans-serif" font-size="13">'
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>{body}</svg>\n'
    )


def text(x: float, y: float, words: str, *, anchor: str = "start", fill: str = INK, bold: bool = False) -> str:
    """A line of text."""
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{fill}"{weight}>{escape(words)}</text>'


def bars(names: Sequence[str], right: Sequence[bool], columns: Sequence[tuple[str, Sequence[float], str]]) -> str:
    """One row a teacher, one column of bars a measure; colours tell right rationales from wrong ones."""
    left, wide, gap = 150, 190, 60
    parts = []
    for c, (title, values, shown) in enumerate(columns):
        x = left + c * (wide + gap)
        parts.append(text(x, 24, title, bold=True))
        top = max(values) or 1.0
        for row, value in enumerate(values):
            y = 42 + row * 26
            colour = RIGHT if right[row] else WRONG
            length = max(wide * value / top, 1)
            parts.append(f'<rect x="{x}" y="{y}" width="{length:.0f}" height="16" rx="2" fill="{colour}"/>')
            parts.append(text(x + length + 5, y + 13, shown.format(value)))
    for row, name in enumerate(names):
        parts.append(text(left - 10, 55 + row * 26, name, anchor="end", fill=RIGHT if right[row] else WRONG))
    bottom = 42 + len(names) * 26 + 18
    parts.append(text(left, bottom, "right rationale", fill=RIGHT) + text(left + 110, bottom, "wrong one", fill=WRONG))
    return svg(left + len(columns) * (wide + gap), bottom + 14, columns[0][0], "".join(parts))


def beliefs(example: dict) -> str:
    """The probe's belief in the gold answer after each step of a right and of a wrong rationale."""
    width, height, left, top, bottom = 900, 420, 70, 30, 190
    start = example["belief_start"]
    low, high = -6.0, 0.5
    parts = []
    for nats in range(-6, 1):
        y = top + (high - nats) / (high - low) * (bottom - top)
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y:.0f}" y2="{y:.0f}" stroke="#e4e6e8"/>')
        parts.append(text(left - 8, y + 4, str(nats), anchor="end", fill=SOFT))
    asked = f"log-probability of the gold answer {example['answer']} (nats), asked after each step"
    parts.append(text(left, 18, asked))
    for kind, colour, row in (("right", RIGHT, 250), ("wrong", WRONG, 340)):
        level, points = start, [(left + 20, start)]
        parts.append(text(left - 8, row, kind, anchor="end", fill=colour, bold=True))
        for index, (rise, step) in enumerate(
            zip(example[f"rises_{kind}"], example[f"steps_{kind}"], strict=True), start=1
        ):
            level += rise
            x = left + 20 + index * 190
            points.append((x, level))
            cut = step.rfind(" ", 0, 28)
            words = [step[:cut], step[cut + 1 :]] if len(step) > 28 else [step]
            parts += [text(x - 178, row + 18 * line, word) for line, word in enumerate(words)]
            sign = f"{rise:+.2f}" + (" counts" if rise > 0 else "")
            parts.append(text(x - 178, row + 40, sign, fill=colour if rise > 0 else SOFT))
        path = " ".join(f"{x:.0f},{top + (high - value) / (high - low) * (bottom - top):.1f}" for x, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="3"/>')
    return svg(width, height - 20, "belief in the gold answer while reading", "".join(parts))


def intervals(panels: Sequence[tuple[str, dict, float, float, float]]) -> str:
    """Panels side by side: (title, estimates by name, left end, right end, where chance is), a row a name."""
    left, wide, gap, row_height = 150, 280, 40, 24
    names = list(panels[0][1])
    bottom = 44 + len(names) * row_height
    parts = [text(left - 10, 56 + i * row_height, name, anchor="end") for i, name in enumerate(names)]
    for p, (title, found, low, high, chance) in enumerate(panels):
        x0 = left + p * (wide + gap)
        place = lambda value, x0=x0, low=low, high=high: x0 + wide * (value - low) / (high - low)  # noqa: E731
        parts.append(text(x0, 24, title, bold=True))
        for value in (low, chance, high):
            stroke = SOFT if value == chance else "#e4e6e8"
            x = place(value)
            parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="38" y2="{bottom}" stroke="{stroke}"/>')
            parts.append(text(x, bottom + 16, f"{value:g}", anchor="middle", fill=SOFT))
        for i, name in enumerate(names):
            if name in found:
                own, y = found[name], 52 + i * row_height
                ends = f'x1="{place(own["low"]):.0f}" x2="{place(own["high"]):.0f}"'
                parts.append(f'<line {ends} y1="{y}" y2="{y}" stroke="{RIGHT}" stroke-width="2"/>')
                parts.append(f'<circle cx="{place(own["value"]):.0f}" cy="{y}" r="4" fill="{RIGHT}"/>')
    return svg(left + len(panels) * (wide + gap), bottom + 30, panels[0][0], "".join(parts))


def matrix(title: str, found: dict[str, dict[str, float]]) -> str:
    """Correlations of names with each other: the stronger the colour, the further from 0."""
    left, cell, top = 150, 88, 66
    names = list(found)
    parts = [text(left, 24, title, bold=True)]
    for c, name in enumerate(names):
        for line, word in enumerate(name.split("_")):
            parts.append(text(left + (c + 0.5) * cell, 44 + 14 * line, word, anchor="middle", fill=SOFT))
    for row, name in enumerate(names):
        y = top + row * 26
        parts.append(text(left - 10, y + 17, name, anchor="end"))
        for c, other in enumerate(names):
            value = found[name][other]
            place = f'x="{left + c * cell}" y="{y}" width="{cell - 2}" height="24"'
            colour = RIGHT if value > 0 else WRONG
            parts.append(f'<rect {place} fill="{colour}" fill-opacity="{0.75 * abs(value):.2f}"/>')
            shown = f"{value:+.2f}".replace("-", "\u2212")
            parts.append(text(left + (c + 0.5) * cell - 1, y + 17, shown, anchor="middle"))
    return svg(left + len(names) * cell + 20, top + len(names) * 26 + 14, title, "".join(parts))


def studies(found: dict) -> dict[str, str]:
    """Pictures of what studies of a real student found, by name."""
    curriculum, moved = found["curriculum"], found["moved"]
    return {
        "redundancy": matrix("rank correlation of scores within problems", found["redundancy"]),
        "curriculum": intervals(
            [
                ("change: weight with difficulty", curriculum["difficulty"], -0.6, 0.6, 0.0),
                ("change: weight with length", curriculum["length"], -0.6, 0.6, 0.0),
            ]
        ),
        "moved": intervals(
            [
                ("PCA shift of the last layer", moved["shift"], 0.0, 1.5, 0.0),
                ("KL to the base, nats a token", moved["kl"], 0.0, 1.5, 0.0),
            ]
        ),
        "translation": intervals([("weight with the raters' penalty", found["translation"], -0.3, 0.3, 0.0)]),
    }


def main() -> None:
    """Write the pictures."""
    example = json.loads((HERE / "example.json").read_text(encoding="utf-8"))
    names, right = example["teachers"], example["right"]
    pictures = {
        "difficulty": bars(names, right, [("difficulty, nats a token", example["difficulty"], "{:.2f}")]),
        "adaptability": beliefs(example),
        "estimators": bars(
            names,
            right,
            [
                ("adaptability, lens (nats)", example["adaptability_lens"], "{:.1f}"),
                ("adaptability, probe (nats)", example["adaptability_probe"], "{:.1f}"),
            ],
        ),
        "consensus": bars(
            names,
            right,
            [
                ("consensus, joint", example["consensus_joint"], "{:.2f}"),
                ("consensus, by heads", example["consensus_heads"], "{:.2f}"),
            ],
        ),
        "weights": bars(
            names,
            right,
            [
                ("weights, lens", example["weights_lens"], "{:.2f}"),
                ("weights, probe", example["weights_probe"], "{:.2f}"),
            ],
        ),
    }
    for name, picture in pictures.items():
        (OUT / f"method-{name}.svg").write_text(picture, encoding="utf-8")
    found = json.loads((HERE / "diagnosis.json").read_text(encoding="utf-8"))
    panels = [
        ("goes with what helps (Spearman)", found["predicts"], -1.0, 1.0, 0.0),
        ("tells right from wrong (AUC)", found["tells_right"], 0.0, 1.0, 0.5),
    ]
    (OUT / "results-diagnosis.svg").write_text(intervals(panels), encoding="utf-8")
    for name, picture in studies(json.loads((HERE / "studies.json").read_text(encoding="utf-8"))).items():
        (OUT / f"results-{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
