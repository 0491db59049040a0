"""One teacher in this process, by its backend."""

from __future__ import annotations

from compact_distill.config.teachers import TeacherConfig
from compact_distill.teachers.protocol import Teacher
from compact_distill.teachers.secrets import Redactor


def local_teacher(config: TeacherConfig, redact: Redactor) -> Teacher:
    """Make the teacher in this process, whatever `ray:` says.

    Raises:
        InputError: the teacher cannot be made.
    """
    if config.backend == "openai":
        from compact_distill.teachers.backends.openai import OpenAITeacher

        return OpenAITeacher(config.name, str(config.model), str(config.base_url), config.api_key_env, redact)
    if config.backend == "transformers":
        from compact_distill.teachers.backends.transformers import TransformersTeacher

        return TransformersTeacher(config.name, str(config.model), config.batch_size, config.device)
    if config.backend == "jsonl":
        from compact_distill.teachers.backends.file import FileTeacher

        return FileTeacher(config.name, str(config.path))
    from compact_distill.teachers.backends.lab import LabTeacher

    return LabTeacher(config.name, str(config.model))
