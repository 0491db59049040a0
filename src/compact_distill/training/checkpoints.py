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
from compact_distill.runs.files import atomic_write, content_hash, read_jsonl

logger = logging.getLogger(__name__)

SEAL = "complete.json"
STATE = "compact_state.json"


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
    except (OSError, ValueError):
        return f"{SEAL} is not valid JSON"
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        return f"{SEAL} lists no files"
    if not any(name.endswith(".safetensors") or "/" in name for name in files):  # shards lie in folders
        return f"{SEAL} lists no weights"
    for name, expected in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if content_hash(file) != expected:
            return f"{name} has changed since it was written"
    return None


def trace_damage(checkpoint: Path, trace: Path) -> str | None:
    """What a trace lacks of the rows that were written before a checkpoint, or None where it has them all."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        step, expected = int(state["step"]), int(state.get("trace_rows", -1))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{STATE} cannot be read ({error!r})"
    if expected < 0:
        return None  # of a version that did not count them
    found = sum(row.get("step", step) < step for row in read_jsonl(trace, until_damage=True))
    return None if found == expected else f"{trace.name} holds {found} rows of the steps before it, not {expected}"


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
        raise RunError(
            f"none of the {len(found)} checkpoints in {folder} is complete; move them elsewhere to start anew"
        )
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
