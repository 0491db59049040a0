"""Colours of the report, light and dark: Okabe and Ito's, which colour-blind readers can tell apart.

Yellow is too pale for white paper, so black (white in the dark) and grey stand in for it. Every series also has a
marker of its own, so no figure depends on colour alone.
"""

from __future__ import annotations

SERIES = 8  # then colours repeat, and lines become dashed

LIGHT: dict[str, str] = {
    "bg": "#fbfbf9",
    "panel": "#ffffff",
    "ink": "#1b1d21",
    "muted": "#5f646d",
    "rule": "#e4e4df",
    "accent": "#0072b2",
    "s0": "#0072b2",
    "s1": "#d55e00",
    "s2": "#009e73",
    "s3": "#b95c91",
    "s4": "#e69f00",
    "s5": "#56b4e9",
    "s6": "#1b1d21",
    "s7": "#a3aaa6",
    "right": "#0072b2",
    "wrong": "#d55e00",
    "before": "#7b8089",
    "after": "#0072b2",
    "up": "0, 114, 178",
    "down": "213, 94, 0",
}
DARK: dict[str, str] = {
    "bg": "#121418",
    "panel": "#191c22",
    "ink": "#e9e9e6",
    "muted": "#a0a6b0",
    "rule": "#2d323b",
    "accent": "#62b5ea",
    "s0": "#3d9bd9",
    "s1": "#f2793a",
    "s2": "#1fb98f",
    "s3": "#e08fbd",
    "s4": "#efb22e",
    "s5": "#9bd7ff",
    "s6": "#f2f2ef",
    "s7": "#878d98",
    "right": "#56b4e9",
    "wrong": "#f0894d",
    "before": "#9aa0aa",
    "after": "#56b4e9",
    "up": "86, 180, 233",
    "down": "240, 137, 77",
}


def css_variables(colours: dict[str, str]) -> str:
    """Declarations such as `--ink:#1b1d21;`."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def with_colours(css: str, colours: dict[str, str]) -> str:
    """CSS with `var(--name)` replaced by the colour itself, for pictures that leave the page."""
    for name, value in colours.items():
        css = css.replace(f"var(--{name})", value)
    return css
