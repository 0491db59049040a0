"""Settings by name: what `preset:` fills in where a file says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Settings by name: `preset:` fills in what a file does not say. `paper` is the published runs' (arXiv 2601.13992, 4.1).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "weighting": "compact",
        "compatibility": {
            "consensus": 1.0,
            "adaptability": 1.0,
            "difficulty": 0.5,
            "temperature": 1.0,
            "estimator": "lens",
            "gain": "positive",
            "off_weight": 0.1,
            "pool": "last",
            "attention": "joint",
            "normalise": "problem",
        },
        "consistency": 0.1,
        "lora": {"r": 16, "alpha": 32.0, "dropout": 0.1},
        "max_length": 2560,
        "train": {
            "learning_rate": 1e-5,
            "num_train_epochs": 5,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
        },
    }
}


def with_preset(data: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings with what its `preset` says where they say nothing; an unknown name is left to the check."""
    preset = PRESETS.get(str(data.get("preset")), {})
    merged = dict(data)
    for key, value in preset.items():
        own = merged.get(key)
        if key not in merged:
            merged[key] = dict(value) if isinstance(value, dict) else value
        elif isinstance(value, dict) and isinstance(own, dict):
            merged[key] = {**value, **own}
    return merged
