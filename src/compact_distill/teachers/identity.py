"""What stands for a model in a request's hash: whatever it is called, a changed model is asked again."""

from __future__ import annotations

import hashlib
from pathlib import Path

from compact_distill.config.teachers import TeacherConfig
from compact_distill.errors import ConfigError
from compact_distill.runs.files import content_hash

_WHOLE_FILE = 1 << 24
"""Bytes up to which a model's file is hashed whole; of larger ones the size and both ends are."""
_END = 1 << 20


def model_identity(config: TeacherConfig) -> str:
    """Return the model's name at its server, or a hash of the files that hold it.

    Raises:
        ConfigError: the file of existing rationales cannot be read.
    """
    if config.backend == "jsonl":
        path = str(config.path)
        try:
            return f"jsonl/{content_hash(path)[:16]}"
        except OSError as error:
            message = f"teacher {config.name}: {path} must be readable: {error.strerror}; check `path`"
            raise ConfigError(message) from None
    if config.backend == "transformers" and Path(str(config.model)).is_dir():
        return f"folder/{_folder_hash(Path(str(config.model)))[:16]}"
    return f"{config.backend}/{config.model}"


def _folder_hash(folder: Path) -> str:
    state = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
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
