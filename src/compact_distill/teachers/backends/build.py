"""From the YAML's teachers to teachers that can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.errors import ConfigError, InputError
from compact_distill.teachers.ask import Manners
from compact_distill.teachers.backends.local import local_teacher
from compact_distill.teachers.prompt import Prompting
from compact_distill.teachers.protocol import Teacher
from compact_distill.teachers.secrets import Redactor

_SERVER_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Member:
    """One teacher of the pool with everything that its configuration says."""

    config: TeacherConfig
    teacher: Teacher
    prompting: Prompting
    manners: Manners
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
            members.append(Member(config, teacher, Prompting(config), manners(config, generation), redact))
    if wrong:
        raise ConfigError(wrong)
    return members


def _teacher(config: TeacherConfig, redact: Redactor) -> Teacher:
    if config.ray is None:
        return local_teacher(config, redact)
    from compact_distill.teachers.backends.ray import RayTeacher

    return RayTeacher(config, config.ray)


def manners(config: TeacherConfig, generation: GenerationConfig) -> Manners:
    """The limits within which this teacher is asked."""
    return Manners(
        timeout=config.timeout or (_SERVER_SECONDS if config.backend == "openai" else None),
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
        max_retries=generation.max_retries,
        max_wait=generation.max_wait,
        patience=generation.patience,
    )
