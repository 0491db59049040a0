"""Colours that readers with other eyes can tell apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from compact_distill.report.palette import DARK, LIGHT, SERIES, with_colours

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "usual": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colour):
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    x, y, z = np.where((t := xyz / [0.9505, 1.0, 1.089]) > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(a, b):
    dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(a), linear(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_series_and_verdicts_differ_for_every_kind_of_colour_vision(theme, vision):
    pairs = [*itertools.combinations([f"s{i}" for i in range(SERIES)], 2), ("right", "wrong"), ("before", "after")]
    for a, b in pairs:
        distance = np.linalg.norm(lab(VISION[vision] @ linear(theme[a])) - lab(VISION[vision] @ linear(theme[b])))
        assert distance > 12, (a, b, distance)  # 2.3 is just noticeable


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_is_readable_on_both_backgrounds(theme):
    for back in ("bg", "panel"):
        assert contrast(theme["ink"], theme[back]) > 12
        assert contrast(theme["muted"], theme[back]) > 4.5  # WCAG AA


def test_both_themes_name_the_same_colours_and_pictures_hold_no_variables():
    assert LIGHT.keys() == DARK.keys()
    assert (
        with_colours("a{fill:var(--ink);color:rgba(var(--up),.5)}", LIGHT)
        == "a{fill:#1b1d21;color:rgba(0, 114, 178,.5)}"
    )
