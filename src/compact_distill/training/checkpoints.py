"""Only complete checkpoints are resumed: a seal, written last, lists every file of a checkpoint with its hash.

transformers resumes a checkpoint whose optimizer file is missing without a word, with other weights than the
uninterrupted run; here a damaged checkpoint is named and the newest complete one before it is taken.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from compact_distill.errors import RunError
from compact_distill.runs.files import atomic_write, content_hash

logger = logging.getLogger(__name__)

SEAL = "complete.json"


def seal(checkpoint: Path) -> None:
    """Write the list of the checkpoint's files; a checkpoint counts from this moment on."""
    files = {
        str(path.relative_to(checkpoint)): content_hash(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != SEAL
    }
    with atomic_write(checkpoint / SEAL) as file:
        json.dump(files, file, indent=1)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None where it is complete."""
    path = checkpoint / SEAL
    if not path.is_file():
        return f"no {SEAL}: it was interrupted while it was written"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return f"{SEAL} is not valid JSON"
    for name, expected in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if content_hash(file) != expected:
            return f"{name} has changed since it was written"
    return None


def newest_complete(folder: Path) -> Path | None:
    """The newest complete `checkpoint-N` of a folder, or None where there is no checkpoint at all.

    Raises:
        RunError: there are checkpoints, and none is complete.
    """
    found = [(int(m[1]), path) for path in folder.glob("checkpoint-*") if (m := re.fullmatch(r"\D+-(\d+)", path.name))]
    for _, path in sorted(found, reverse=True):
        wrong = damage(path)
        if wrong is None:
            return path
        logger.warning("checkpoint %s is damaged (%s); falling back to the one before it", path, wrong)
    if found:
        raise RunError(f"none of the {len(found)} checkpoints in {folder} is complete; delete them to start anew")
    return None


def require_complete(checkpoint: Path) -> Path:
    """Return the checkpoint if it is complete.

    Raises:
        RunError: it is not.
    """
    wrong = damage(checkpoint) if checkpoint.is_dir() else "no such folder"
    if wrong is not None:
        raise RunError(f"cannot resume from {checkpoint}: {wrong}; name a complete checkpoint")
    return checkpoint
