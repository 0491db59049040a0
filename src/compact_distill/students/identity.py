"""What identifies a student: a hash of its weights, configuration and tokenizer, not of where it lies."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from compact_distill.runs.files import content_hash, fingerprint
from compact_distill.students.load import adapter_base

_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
# Where an adapter's base lies, and what peft writes in an order of its own, are no part of the student.
_IN_ANY_ORDER = ("target_modules", "modules_to_save", "exclude_modules", "layers_to_transform")


def student_hash(student: str | Path) -> str:
    """SHA-256 of what a student computes with: of an adapter folder its base's too; of a hub name its commit.

    Checkpoints below the folder, notes of the training and the like do not count.
    """
    folder = Path(student)
    if not folder.is_dir():
        return fingerprint(["hub", str(student), _commit(str(student))])
    files = sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()})
    stamps = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    base = adapter_base(folder)
    return fingerprint([_files_hash(stamps), None if base is None else student_hash(base)])


@lru_cache(maxsize=64)
def _files_hash(stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Hash of files by name; the stamps make that a file of gigabytes is read once."""
    return fingerprint([[Path(path).name, _file_hash(Path(path))] for path, _, _ in stamps])


def _file_hash(path: Path) -> str:
    if path.name != "adapter_config.json":
        return content_hash(path)
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("base_model_name_or_path", None)
    for name in _IN_ANY_ORDER:
        if isinstance(settings.get(name), list):
            settings[name] = sorted(settings[name])
    return fingerprint(settings)


@lru_cache(maxsize=64)
def _commit(name: str) -> str | None:
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(name, trust_remote_code=False), "_commit_hash", None)
