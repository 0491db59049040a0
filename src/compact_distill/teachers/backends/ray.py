"""A teacher as actors of a Ray cluster: local models on many machines, or many machines asking servers.

The actors only ask. Limits, retries, verification and the store stay with the one process that started the run, so a
run on a cluster is stored and resumed like any other.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from compact_distill.config.teachers import RayConfig, TeacherConfig
from compact_distill.errors import ConfigError, InputError
from compact_distill.teachers.protocol import FaultKind, TeacherAnswer, TeacherBackend, TeacherFault, TeacherRequest


class RayTeacher:
    """Spreads requests over actors, each to the one with the fewest in flight."""

    def __init__(self, config: TeacherConfig, ray_config: RayConfig) -> None:
        """Check that Ray is there; the cluster is joined when the first request comes.

        Raises:
            ConfigError: the extra [ray] is not installed.
        """
        try:
            import ray
        except ImportError:
            message = "`ray:` needs the extra [ray]; pip install 'compact-distill[ray]', or remove the key"
            raise ConfigError(message) from None
        self.name = config.name
        self._ray = ray
        self._config = config
        self._settings = ray_config
        self._actors: list[Any] = []
        self._flying: list[int] = []
        self._started = asyncio.Lock()
        self._joined_here = False

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        """Let an actor ask.

        Raises:
            TeacherFault: there is no answer, or the actor's machine is gone.
        """
        async with self._started:
            if not self._actors:
                await asyncio.to_thread(self._start)
        number = min(range(len(self._actors)), key=self._flying.__getitem__)
        self._flying[number] += 1
        try:
            return await self._actors[number].ask.remote(request)
        except self._ray.exceptions.RayTaskError as error:
            # Ray wraps what the actor raised, and repeats its traceback.
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except self._ray.exceptions.RayError as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise TeacherFault(FaultKind.SERVER, message) from None
        finally:
            self._flying[number] -= 1

    async def close(self) -> None:
        """End the actors, and the local cluster if this teacher started it."""
        # Another teacher may have left the cluster already, which ended these actors too.
        if self._ray.is_initialized():
            for actor in self._actors:
                self._ray.kill(actor)
            if self._joined_here:
                await asyncio.to_thread(self._ray.shutdown)
        self._actors = []

    def _start(self) -> None:
        if not self._ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # RAY_ADDRESS names the cluster; without it Ray starts one on this machine.
            self._ray.init(log_to_driver=False, include_dashboard=False)
            self._joined_here = True
        settings, count = self._settings, self._settings.actors
        actor = self._ray.remote(_Actor).options(
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            max_concurrency=-(-self._config.concurrency // count) + 1,
            max_restarts=-1,
        )
        # The key is not in the configuration: each machine has it in its own environment.
        plain = self._config.model_dump()
        self._actors = [actor.remote(plain) for _ in range(count)]
        self._flying = [0] * count


class _Actor:
    """One copy of the teacher, somewhere in the cluster."""

    def __init__(self, plain: dict[str, Any]) -> None:
        from compact_distill.teachers.backends import local_teacher
        from compact_distill.teachers.protocol import Redactor

        config = TeacherConfig.model_validate(plain)
        try:
            self._teacher: TeacherBackend = local_teacher(config, Redactor([config.api_key_env]))
        except InputError as error:
            self._wrong: str | None = str(error)  # an exception here would only show as a dead actor
        else:
            self._wrong = None

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        if self._wrong is not None:
            raise TeacherFault(FaultKind.UNUSABLE, f"on a machine of the cluster: {self._wrong}")
        return await self._teacher.ask(request)
