"""What identifies a model: its weights, configuration and tokenizer, not where it lies or what it is called.

`student_hash` is the identity of a student, `commit_of` of what the hub has, `weights_hash` of weights in memory and
`folder_hash` of a folder too large to be read whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from compact_distill.config.models import RunConfig
from compact_distill.errors import RunError, StudentError
from compact_distill.runs.files import content_hash, fingerprint
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import say
from compact_distill.students.load import adapter_base, adapter_on_adapter, pin, revision_of, split_revision

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
    "additional_chat_templates/*",
)
# Where an adapter's base lies, and what peft writes in an order of its own, are no part of the student.
_ELSEWHERE = ("base_model_name_or_path", "revision")
_IN_ANY_ORDER = ("target_modules", "modules_to_save", "exclude_modules", "layers_to_transform")

_WHOLE_FILE = 1 << 24  # of larger files, `folder_hash` reads the ends
_END = 1 << 20


def student_hash(student: str | Path) -> str:
    """SHA-256 of what a student computes with: of an adapter folder its base's too; of a hub name its commit.

    Checkpoints below the folder, its README, notes of the training and the like do not count.

    Raises:
        StudentError: an adapter whose base is an adapter, perhaps itself; a hub that cannot be reached.
    """
    folder = Path(student)
    if not folder.is_dir():
        return fingerprint(["hub", commit_of(student) or str(student)])
    files = _model_files(folder)
    stamps = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    base = adapter_base(folder)
    if base is not None and adapter_base(base) is not None:
        raise StudentError(adapter_on_adapter(folder, base))
    return fingerprint([_files_hash(stamps), None if base is None else student_hash(base)])


def hub_names(student: str | Path) -> list[str]:
    """The hub models that a student is loaded from: itself, or the base under an adapter; without revisions."""
    if Path(student).is_dir():
        base = adapter_base(student)
        return [] if base is None or Path(base).is_dir() else [split_revision(base)[0]]
    return [split_revision(student)[0]]


def commit_of(student: str | Path) -> str | None:
    """The commit of a hub model at the revision that it is loaded at; None where the hub does not say."""
    return _commit(split_revision(student)[0], revision_of(student))


def newest_commit(name: str) -> str | None:
    """The commit that the hub has now, whatever is pinned; None where the hub does not say."""
    return _commit(name, None)


def pin_student(config: RunConfig) -> dict[str, str]:
    """Load the student's hub models at the commits that the run started with, or that the hub has now.

    Returns:
        The commit of each hub model (the student, or the base under an adapter), for the manifest.
    """
    known: dict[str, str] = {}
    with contextlib.suppress(RunError, OSError):  # no run yet, or no name of a folder: `output_problem` tells that
        known = RunFolder.open(config.output).manifest.get("student", {}).get("commits", {})
    commits: dict[str, str] = {}
    # What keeps a student or the hub from being read is told by check_student, in its own words.
    with contextlib.suppress(StudentError):
        for name in hub_names(config.student):
            pin(name, known.get(name))
            commit = commit_of(config.student) if split_revision(config.student)[1] else known.get(name)
            newest = None
            with contextlib.suppress(StudentError) if commit else contextlib.nullcontext():
                newest = newest_commit(name)
            commit = commit or newest
            if commit is not None:
                pin(name, commit)
                commits[name] = commit
            if commit and newest and newest != commit:
                say(
                    f"student: the hub has {name} at {newest[:12]} now; this run keeps {commit[:12]}; "
                    f"write `{name}@{newest}` to use the new one"
                )
    return commits


def weights_hash(model: Any) -> str:
    """SHA-256 of the weights in memory that are trained, by name."""
    import torch

    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def folder_hash(folder: Path) -> str:
    """SHA-256 of a model's files by name, size and both ends: fast, for models of a hundred gigabytes."""
    state = hashlib.sha256()
    for file in _model_files(folder):
        size = file.stat().st_size
        state.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE_FILE:
                state.update(stream.read())
            else:
                state.update(stream.read(_END))
                stream.seek(size - _END)
                state.update(stream.read())
    return state.hexdigest()


def _model_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()})


@lru_cache(maxsize=64)
def _files_hash(stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Hash of files by name; the stamps make that a file of gigabytes is read once."""
    return fingerprint([[Path(path).name, _file_hash(Path(path))] for path, _, _ in stamps])


def _file_hash(path: Path) -> str:
    if path.name != "adapter_config.json":
        return content_hash(path)
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name in _ELSEWHERE:
        settings.pop(name, None)
    for name in _IN_ANY_ORDER:
        if isinstance(settings.get(name), list):
            settings[name] = sorted(settings[name])
    return fingerprint(settings)


@lru_cache(maxsize=64)
def _commit(name: str, revision: str | None) -> str | None:
    from transformers.utils import cached_file

    try:
        path = cached_file(name, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        told = str(error).strip().partition("\n")[0]
        what = f"student {name!r}, which is no folder here"
        raise StudentError(f"{what}, cannot be read ({told}); check name, network or folder") from error
    # The hub's cache keeps each commit in a folder of that name.
    parts = Path(str(path)).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
