"""Where rationales come from: servers, local models, a Ray cluster, files, the lab; made from the YAML's teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.errors import ConfigError, InputError
from compact_distill.teachers.ask import Limits
from compact_distill.teachers.protocol import Prompting, Redactor, TeacherBackend

_SERVER_SECONDS = 600.0
_EMPTY_RETRIES = 2


@dataclass(frozen=True, slots=True)
class Member:
    """One teacher of the pool with everything that its configuration says."""

    config: TeacherConfig
    teacher: TeacherBackend
    prompting: Prompting
    limits: Limits
    redact: Redactor


def build(teachers: Sequence[TeacherConfig], generation: GenerationConfig) -> list[Member]:
    """Prepare every teacher; nothing is sent and no model is loaded.

    Raises:
        ConfigError: keys that are not set, files that cannot be read, missing extras; of all teachers at once.
    """
    redact = Redactor(t.api_key_env for t in teachers)
    members, wrong = [], []
    for config in teachers:
        try:
            teacher = _teacher(config, redact)
        except InputError as error:
            wrong += [p if config.name in p else f"teacher {config.name}: {p}" for p in error.problems]
        else:
            members.append(Member(config, teacher, Prompting(config), limits(config, generation), redact))
    if wrong:
        raise ConfigError(wrong)
    return members


def _teacher(config: TeacherConfig, redact: Redactor) -> TeacherBackend:
    if config.ray is None:
        return local_teacher(config, redact)
    from compact_distill.teachers.backends.ray import RayTeacher

    return RayTeacher(config, config.ray)


def limits(config: TeacherConfig, generation: GenerationConfig) -> Limits:
    """The limits within which this teacher is asked."""
    return Limits(
        timeout=config.timeout or (_SERVER_SECONDS if config.backend == "openai" else None),
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
        max_retries=generation.max_retries,
        max_wait=generation.max_wait,
        patience=generation.patience,
        max_empty=_EMPTY_RETRIES if config.backend == "openai" else 0,
    )


def local_teacher(config: TeacherConfig, redact: Redactor) -> TeacherBackend:
    """Make the teacher in this process, whatever `ray:` says.

    Raises:
        InputError: the teacher cannot be made.
    """
    if config.backend == "openai":
        from compact_distill.teachers.backends.openai import OpenAITeacher

        return OpenAITeacher(config.name, str(config.model), str(config.base_url), config.api_key_env, redact)
    if config.backend == "transformers":
        from compact_distill.teachers.backends.transformers import TransformersTeacher

        return TransformersTeacher(
            config.name, str(config.model), config.batch_size, config.device, config.template_options
        )
    if config.backend == "jsonl":
        from compact_distill.teachers.backends.file import FileTeacher

        return FileTeacher(config.name, str(config.path))
    from compact_distill.teachers.backends.file import LabTeacher

    return LabTeacher(config.name, str(config.model))
