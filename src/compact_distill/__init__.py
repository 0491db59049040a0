"""Teach a small language model to reason from several large ones (COMPACT, arXiv 2601.13992)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compact_distill.config.models import load_config
    from compact_distill.data import load_instances
    from compact_distill.method.score import score
    from compact_distill.method.scores import register_score
    from compact_distill.pipeline import run
    from compact_distill.training.trainer import CompactConfig, CompactTrainer

__all__ = ["CompactConfig", "CompactTrainer", "load_config", "load_instances", "register_score", "run", "score"]

_HOME = {
    "CompactConfig": "compact_distill.training.trainer",
    "CompactTrainer": "compact_distill.training.trainer",
    "load_config": "compact_distill.config.models",
    "load_instances": "compact_distill.data",
    "register_score": "compact_distill.method.scores",
    "run": "compact_distill.pipeline",
    "score": "compact_distill.method.score",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import compact_distill` does not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'compact_distill' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
