"""What is still to be asked: each problem's rationales, less what the store holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.records import Problem, Verdict
from compact_distill.teachers.answer import cost
from compact_distill.teachers.ask import estimate_tokens
from compact_distill.teachers.prompt import Prompting
from compact_distill.teachers.rows import DrawStatus
from compact_distill.teachers.store import StoreReader

UNTIL_CORRECT = "until_correct"


@dataclass(slots=True)
class Slot:
    """One rationale that a problem still needs from a teacher: the samples to ask for, one after the other."""

    problem: Problem
    key: str
    samples: list[int]
    others: set[str]  # digests of the problem's samples so far; the problem's slots share it


def draws(slot: int, teacher: TeacherConfig, generation: GenerationConfig) -> list[int]:
    """Numbers of the samples that may fill one slot, in the order of asking.

    The first samples fill the slots in order whatever the rejection policy, so changing it asks nothing twice.
    """
    attempts = generation.attempts if generation.rejection == UNTIL_CORRECT else 1
    return [slot + teacher.samples * attempt for attempt in range(attempts)]


def accepted(status: DrawStatus, verdict: Verdict | None, generation: GenerationConfig) -> bool:
    """Whether a row may take part in training."""
    return status is DrawStatus.OK and (generation.rejection == "none" or verdict is Verdict.CORRECT)


def open_slots(
    config: TeacherConfig,
    prompting: Prompting,
    problems: Iterable[Problem],
    store: StoreReader,
    generation: GenerationConfig,
) -> Iterator[Slot | None]:
    """Yield each slot in the problems' order; None for one that needs nothing more."""
    for problem in problems:
        key = prompting.key(problem)
        others: set[str] = set()
        for number in range(config.samples):
            missing, filled = [], False
            for sample in draws(number, config, generation):
                stored = store.seen(problem.id, sample, key)
                if stored is None:
                    missing.append(sample)
                else:
                    others.add(stored.digest)
                    filled = filled or accepted(stored.status, stored.verdict, generation)
            yield Slot(problem, key, missing, others) if missing and not filled else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one teacher would still be asked. Tokens are estimates; `None` costs have no prices."""

    teacher: str
    slots: int
    requests: int  # those without an answer so far; until_correct may need up to `most_requests`
    most_requests: int
    prompt_tokens: int
    most_completion_tokens: int | None  # every answer as long as max_tokens lets it be
    prompt_cost: float | None
    most_cost: float | None


def estimate(
    config: TeacherConfig, problems: Iterable[Problem], store: StoreReader, generation: GenerationConfig
) -> Estimate:
    """Count what is missing. Nothing is sent, and no key is needed."""
    prompting = Prompting(config)
    slots = requests = most = prompt_tokens = most_prompt_tokens = 0
    for slot in open_slots(config, prompting, problems, store, generation):
        slots += 1
        if slot is not None:
            tokens = estimate_tokens((config.system or "") + prompting.prompt(slot.problem))
            requests += 1
            most += len(slot.samples)
            prompt_tokens += tokens
            most_prompt_tokens += tokens * len(slot.samples)
    written = None if config.max_tokens is None else most * config.max_tokens
    return Estimate(
        teacher=config.name,
        slots=slots,
        requests=requests,
        most_requests=most,
        prompt_tokens=prompt_tokens,
        most_completion_tokens=written,
        prompt_cost=cost(config.prices, prompt_tokens, 0),
        most_cost=cost(config.prices, most_prompt_tokens, written),
    )
