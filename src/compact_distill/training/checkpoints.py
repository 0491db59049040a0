"""Only complete checkpoints are resumed: a seal, written last, lists every file of a checkpoint with its hash.

transformers resumes a checkpoint whose optimizer file is missing without a word, with other weights than the
uninterrupted run; here a damaged checkpoint is named and the newest complete one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from compact_distill.errors import RunError
from compact_distill.runs.files import atomic_write, content_hash

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


def trace_so_far(trace: Path) -> dict[str, Any]:
    """What a checkpoint keeps of the trace as it stands: its size in bytes and hash."""
    if not trace.exists():
        return {"trace_bytes": 0, "trace_sha256": hashlib.sha256().hexdigest()}
    return {"trace_bytes": trace.stat().st_size, "trace_sha256": content_hash(trace)}


def trace_damage(checkpoint: Path, trace: Path) -> str | None:
    """How a trace differs from what it was when a checkpoint was written, or None where it has only grown."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        size, expected = int(state["trace_bytes"]), str(state["trace_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{STATE} cannot be read ({error!r})"
    digest, left = hashlib.sha256(), size
    if trace.exists():
        with trace.open("rb") as file:
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    if left:
        return f"{trace.name} lacks {left} of its {size} bytes"
    return None if digest.hexdigest() == expected else f"{trace.name} has changed since"


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
