"""Teach a small language model to reason from several large ones (COMPACT, arXiv 2601.13992).

What users import comes from here: the trainer, data and scores, records and errors, and the parts of one training step
(`examples/recipes/loop.py` puts them together). Everything is imported on first use, so that `import compact_distill`
does not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compact_distill.config.file import load_config
    from compact_distill.config.models import CompatibilityConfig, EvalConfig, LoraConfig, RunConfig, TextConfig
    from compact_distill.data import load_instances, load_problems
    from compact_distill.errors import CompactError, ConfigError, DataError, InputError, RunError, StudentError
    from compact_distill.evaluation.examine import evaluate
    from compact_distill.evaluation.side_by_side import SideBySide, Trial
    from compact_distill.method.encode import EncodedProblem, Encoder
    from compact_distill.method.forward import attach
    from compact_distill.method.loss import LossTerms, aggregate
    from compact_distill.method.outputs import StudentOutputs
    from compact_distill.method.passes import plan_jobs, read_job
    from compact_distill.method.score import score
    from compact_distill.method.scores import Scorer, adaptability, consensus, difficulty, register_score
    from compact_distill.method.weights import Evidence, Rule, RuleSettings, compatibility_weights, register_rule
    from compact_distill.pipeline import run
    from compact_distill.records import Instance, Problem, Rationale, RationaleStatus, ScoreRow, Verdict
    from compact_distill.report import write_report
    from compact_distill.runs.files import read_jsonl
    from compact_distill.students.load import load_student
    from compact_distill.teachers.stages import ask
    from compact_distill.training.arguments import CompactConfig
    from compact_distill.training.trainer import CompactTrainer

_NAMES = {
    "config.file": ("load_config",),
    "config.models": ("CompatibilityConfig", "EvalConfig", "LoraConfig", "RunConfig", "TextConfig"),
    "data": ("load_instances", "load_problems"),
    "errors": ("CompactError", "ConfigError", "DataError", "InputError", "RunError", "StudentError"),
    "evaluation.examine": ("evaluate",),
    "method.encode": ("EncodedProblem", "Encoder"),
    "method.forward": ("attach",),
    "method.loss": ("LossTerms", "aggregate"),
    "method.outputs": ("StudentOutputs",),
    "method.passes": ("plan_jobs", "read_job"),
    "method.score": ("score",),
    "method.scores": ("Scorer", "adaptability", "consensus", "difficulty", "register_score"),
    "method.weights": ("Evidence", "Rule", "RuleSettings", "compatibility_weights", "register_rule"),
    "pipeline": ("run",),
    "evaluation.side_by_side": ("SideBySide", "Trial"),
    "records": ("Instance", "Problem", "Rationale", "RationaleStatus", "ScoreRow", "Verdict"),
    "report": ("write_report",),  # not `report`: that name is the package, once anything has imported it
    "runs.files": ("read_jsonl",),
    "students.load": ("load_student",),
    "teachers.stages": ("ask",),
    "training.trainer": ("CompactConfig", "CompactTrainer"),
}
_HOME = {name: f"compact_distill.{module}" for module, names in _NAMES.items() for name in names}

__all__ = [
    "CompactConfig",
    "CompactError",
    "CompactTrainer",
    "CompatibilityConfig",
    "ConfigError",
    "DataError",
    "EncodedProblem",
    "Encoder",
    "EvalConfig",
    "Evidence",
    "InputError",
    "Instance",
    "LoraConfig",
    "LossTerms",
    "Problem",
    "Rationale",
    "RationaleStatus",
    "Rule",
    "RuleSettings",
    "RunConfig",
    "RunError",
    "ScoreRow",
    "Scorer",
    "SideBySide",
    "StudentError",
    "StudentOutputs",
    "TextConfig",
    "Trial",
    "Verdict",
    "adaptability",
    "aggregate",
    "ask",
    "attach",
    "compatibility_weights",
    "consensus",
    "difficulty",
    "evaluate",
    "load_config",
    "load_instances",
    "load_problems",
    "load_student",
    "plan_jobs",
    "read_job",
    "read_jsonl",
    "register_rule",
    "register_score",
    "run",
    "score",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'compact_distill' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
