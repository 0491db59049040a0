"""The pool's stages in a run folder: ask and verify, then join into training data. Each resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compact_distill.answers import Verifier
from compact_distill.config.file import dump_config
from compact_distill.config.models import RunConfig
from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.config.yaml import messages
from compact_distill.data.load import from_published, load_instances, load_problems, to_problem
from compact_distill.data.read import Faults, Row, raise_if_any, read_rows
from compact_distill.errors import ConfigError, InputError, RunError
from compact_distill.records import Instance, Problem
from compact_distill.runs.files import fingerprint
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import say, text_table
from compact_distill.teachers.answer import Golds, verify_store
from compact_distill.teachers.backends import build
from compact_distill.teachers.backends.transformers import template_problems
from compact_distill.teachers.pool import generate
from compact_distill.teachers.protocol import model_identity
from compact_distill.teachers.store import Store, StoreReader
from compact_distill.teachers.training_data import StoreTable, select, summarise
from compact_distill.teachers.worker import estimate

_POLL_SECONDS = 1.0
_KEPT_PROBLEMS = 20_000  # some 20 MB
# Settings of how fast, from where and at which price; none of them changes an answer.
_NO_CONTENT = {
    "base_url", "api_key_env", "rationale", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout",
    "prices", "batch_size", "device", "ray",
}  # fmt: skip


def ask(
    problems: str | Path | Sequence[Problem],
    teachers: Sequence[TeacherConfig | Mapping[str, Any]],
    folder: str | Path,
    **generation: Any,
) -> list[Instance]:
    """Ask every teacher for rationales of every problem, and return the problems with what was written.

    Each answer is stored at once under `folder` and verified; a second call asks only for what is missing there, and
    a killed one loses only what was in flight.

        instances = ask(
            "problems.jsonl",
            [{"name": "qwq", "model": "Qwen/QwQ-32B", "base_url": "http://localhost:8000/v1"},
             {"name": "gpt", "model": "gpt-6.1-terra", "base_url": "https://api.openai.com/v1",
              "api_key_env": "OPENAI_API_KEY", "temperature": None, "top_p": None, "seed": None}],
            "runs/pool",
            rejection="correct_only",
        )
        CompactTrainer(..., train_dataset=instances)

    Args:
        problems: a file of problems, or problems that are in memory.
        teachers: the keys of `teachers:` (docs/teachers.md).
        folder: where stores (`rationales/`) and joined rationales (`rationales.jsonl`) go.
        generation: the keys of `generation:`, such as `max_errors`.

    Raises:
        InputError: settings, problems, keys or addresses that do not work, all of them at once.
        RunError: too many rationales got no answer, a store is in use, or no problem has a rationale.
    """
    wrong: list[str] = []
    configs = []
    for teacher in teachers:
        try:
            configs.append(TeacherConfig.model_validate(teacher))
        except ValidationError as error:
            wrong += [text for _, text in messages(error, TeacherConfig)]
    try:
        settings = GenerationConfig(**generation)
    except ValidationError as error:
        wrong += [text for _, text in messages(error, GenerationConfig)]
    names = [config.name for config in configs]
    wrong += [f"teachers must have different names, got {n!r} twice; rename one" for n in names if names.count(n) > 1]
    if wrong:
        raise ConfigError(list(dict.fromkeys(wrong)))
    asked = load_problems(problems) if isinstance(problems, str | Path) else _checked(problems)
    stores, joined = Path(folder) / "rationales", Path(folder) / "rationales.jsonl"
    generate(configs, settings, asked, stores)
    for note in select(configs, settings, asked, stores, joined).notes():
        say(f"join: {note}")
    return load_instances(joined)


def _checked(problems: Sequence[Problem]) -> list[Problem]:
    """Problems that are in memory, by the rules of those in a file; raises a DataError with all that is wrong."""
    faults = Faults("problems")
    found = []
    for index, p in enumerate(problems):
        fields = {**p.extra, "id": p.id, "question": p.question, "answer": p.answer}
        found.append(to_problem(Row(fields, index, f"item {index + 1}"), faults))
    for identity, count in Counter(str(p.id) for p in problems).items():
        if count > 1:
            faults.add("", f"id {identity!r} stands {count} times; give each problem its own id")
    raise_if_any([faults])
    return [problem for problem in found if problem is not None]


def check_teachers(config: RunConfig, problems: ProblemStream | None = None) -> list[str]:
    """Everything that would keep the teachers from being asked, as messages; nothing is sent."""
    wrong = []
    if config.rationales:
        wrong.append("give `teachers:` or `rationales:`, not both; a teacher with backend jsonl reads rationales too")
    try:
        build(config.teachers, config.generation)
    except InputError as error:
        wrong += error.problems
    for teacher in config.teachers:
        if teacher.backend == "transformers" and teacher.ray is None:  # else its model is on other machines
            wrong += template_problems(teacher)
    try:
        (problems or problem_stream(config)).check()
    except InputError as error:
        wrong += error.problems
    return wrong


def ask_teachers(config: RunConfig) -> Path:
    """Ask for every rationale that the run's stores lack, also where that failed before, and join what there is.

    Returns:
        The file of training data.

    Raises:
        InputError: everything that keeps teachers from being asked.
        RunError: too many got no answer, a store cannot be written, or no problem has a rationale.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM; what was in flight is stored.
    """
    problems = problem_stream(config)
    wrong = check_teachers(config, problems)
    if wrong:
        raise InputError(wrong)
    inputs = _inputs(config, problems.check())
    with RunFolder.claim(config.output) as folder:
        _ask(config, folder, problems, inputs)
        _join(config, folder, problems, inputs)
        return folder.training_path


def rationales(config: RunConfig, folder: RunFolder, problems: ProblemStream) -> Path:
    """Return the file of training data, after asking, verifying and joining whatever of it is not done yet.

    With several ranks the first one works, and the others wait for it.

    Raises:
        InputError, RunError, KeyboardInterrupt, SystemExit: as `ask_teachers`.
    """
    inputs = _inputs(config, problems.check())
    if folder.is_follower:
        while not _is_joined(config, folder.path, inputs):
            time.sleep(_POLL_SECONDS)
    elif not folder.stage_is_done("generate", inputs):
        _ask(config, folder, problems, inputs)
        _join(config, folder, problems, inputs)
    elif not _is_joined(config, folder.path, inputs):
        _join(config, folder, problems, inputs)
    else:
        say("generate: done already with these inputs")
    return folder.training_path


def joined(config: RunConfig, folder: RunFolder, problems: ProblemStream) -> Path:
    """The file of training data as the stores hold it, joined again where it is gone or not what was written.

    Raises:
        RunError: the run holds no rationales yet.
    """
    inputs = _inputs(config, problems.check())
    if not folder.is_follower and not _is_joined(config, folder.path, inputs):
        if not any(folder.rationales_path.glob("*.jsonl")):
            raise RunError(f"{folder.path} holds no rationales yet; `compact generate` asks the teachers for them")
        _join(config, folder, problems, inputs)
    return folder.training_path


def verify_teachers(config: RunConfig) -> int:
    """Verify every stored answer anew, by today's rules and gold answers, and join; return how many were verified.

    Raises:
        InputError: wrong problems.
        RunError: the run or a store is in use, or no problem has a rationale.
    """
    problems = problem_stream(config)
    inputs = _inputs(config, problems.check())
    with RunFolder.claim(config.output) as folder:
        count = _verify(config, folder.rationales_path, problems, everything=True)
        _join(config, folder, problems, inputs)
    return count


def stores_path(config: RunConfig) -> Path:
    """Where the run's stores are, or will be."""
    return RunFolder(Path(config.output), None, {}).rationales_path


def table(config: RunConfig) -> StoreTable:
    """What the run's stores hold. Nothing is locked, sent or changed."""
    problems = problem_stream(config)
    problems.check()
    return summarise(config.teachers, config.generation, problems, stores_path(config))


def plan(config: RunConfig) -> str:
    """What would be asked: requests, prompt tokens and cost of each teacher, as text. Nothing is sent."""
    folder = stores_path(config)
    problems = problem_stream(config)
    problems.check()
    rows = [["teacher", "rationales", "stored", "requests", "prompt tokens", "cost"]]
    total: float | None = 0.0
    for teacher in config.teachers:
        count = estimate(teacher, problems, StoreReader(folder, teacher.name), config.generation)
        requests = _range(count.requests, count.most_requests)
        cost = "no prices" if count.prompt_cost is None else f"{count.prompt_cost:.4f}"
        cost += f" to {count.most_cost:.4f}" if count.most_cost is not None else ""
        total = None if total is None or count.most_cost is None else total + count.most_cost
        stored = str(count.slots - count.requests)
        rows.append([teacher.name, str(count.slots), stored, requests, f"~{count.prompt_tokens}", cost])
    lines = text_table(rows, left=range(len(rows[0])))
    if total is not None:
        lines.append(f"cost at most {total:.4f}: every answer as long as max_tokens")
    return "\n".join(lines)


def teachers_in_manifest(config: RunConfig) -> list[dict[str, Any]]:
    """What the manifest says of the teachers: all their settings; of keys, the variables' names."""
    return [teacher.model_dump(mode="json", exclude_none=True) for teacher in config.teachers]


def _ask(config: RunConfig, folder: RunFolder, problems: ProblemStream, inputs: str) -> None:
    folder.write_config(dump_config(config))
    folder.update_manifest(teachers=[t.name for t in config.teachers], decoding=teachers_in_manifest(config))
    with folder.stage("generate", inputs) as summary:
        all_counts = generate(config.teachers, config.generation, problems, folder.rationales_path)
        for counts in all_counts:
            summary[counts.teacher] = {
                "asked": counts.answers,
                "stored before": counts.stored,
                "statuses": {str(status): n for status, n in counts.statuses.items()},
                "verdicts": {str(verdict): n for verdict, n in counts.verdicts.items()},
                "no answer": {str(kind): n for kind, n in counts.failed.items()},
                "prompt_tokens": counts.prompt_tokens,
                "completion_tokens": counts.completion_tokens,
                "cost": counts.cost,
            }


def _join(config: RunConfig, folder: RunFolder, problems: ProblemStream, inputs: str) -> None:
    damaged = folder.damage("join", verify=True)
    if damaged:
        aside = folder.put_damage_aside(damaged)
        where = f"; what was there is now in {aside}" if aside else ""
        say(f"join: {folder.training_path.name} is not what was written; joined again from the stores{where}")
    with folder.stage("join", _join_inputs(config, inputs), lambda: [folder.training_path]) as summary:
        _verify(config, folder.rationales_path, problems, everything=False)
        selection = select(config.teachers, config.generation, problems, folder.rationales_path, folder.training_path)
        for note in selection.notes():
            say(f"join: {note}")
        summary.update(problems=selection.problems, left_out=selection.left_out)
        summary.update(statuses={teacher: dict(counts) for teacher, counts in selection.statuses.items()})


def _is_joined(config: RunConfig, path: Path, inputs: str) -> bool:
    try:
        folder = RunFolder.open(path)
    except RunError:
        return False  # the first rank has not made it yet
    done = folder.stage_is_done("join", _join_inputs(config, inputs)) and folder.training_path.exists()
    return done and not folder.damage("join", verify=True)


def _join_inputs(config: RunConfig, inputs: str) -> str:
    return fingerprint([inputs, [teacher.rationale for teacher in config.teachers]])


def _verify(config: RunConfig, folder: Path, problems: ProblemStream, everything: bool) -> int:
    golds = Golds(problems)
    with ExitStack() as stack:
        verifier = stack.enter_context(Verifier())
        stores = [stack.enter_context(Store(folder, teacher.name)) for teacher in config.teachers]
        return sum(verify_store(store, verifier, golds, everything) for store in stores)


class ProblemStream:
    """What `load_problems` would load. Few problems are read once and kept; of more, each time only one at a time."""

    def __init__(self, source: str | Path, *, limit: int | None = None, split: str = "train") -> None:
        self._source = source
        self._limit = limit
        self._split = split
        self._hash: str | None = None
        self._kept: list[Problem] | None = None

    def __iter__(self) -> Iterator[Problem]:
        """Yield the problems in the order of the input.

        Raises:
            DataError: the input is wrong, or has become wrong since it was checked.
        """
        if self._hash is not None and self._kept is not None:
            return iter(self._kept)
        return islice(self._read(Faults(self._source)), self._limit)

    def check(self) -> str:
        """Read all rows, the first time; return a hash of the problems that will be yielded.

        Raises:
            DataError: everything that is wrong with the input, each with its line.
        """
        if self._hash is not None:
            return self._hash
        faults = Faults(self._source)
        state = hashlib.sha256()
        seen: set[int] = set()
        kept: list[Problem] | None = []
        for number, problem in enumerate(self._read(faults)):
            if hash(problem.id) in seen:
                load_problems(self._source, split=self._split)  # names both rows, if they are really the same
            seen.add(hash(problem.id))
            if self._limit is None or number < self._limit:
                content = [problem.id, problem.question, problem.answer, *([problem.extra] if problem.extra else [])]
                state.update(json.dumps(content, sort_keys=True).encode() + b"\n")
                if kept is not None and len(kept) < _KEPT_PROBLEMS:
                    kept.append(problem)
                else:
                    kept = None
        self._kept, self._hash = kept, state.hexdigest()
        return self._hash

    def _read(self, faults: Faults) -> Iterator[Problem]:
        for row in read_rows(self._source, self._split, faults):
            renamed = from_published(row, faults)
            problem = None if renamed is None else to_problem(renamed, faults)
            if problem is None or faults.count:
                break
            yield problem
        if faults.count:
            load_problems(self._source, split=self._split)  # tells everything that is wrong, not only the first
            raise_if_any([faults])


def problem_stream(config: RunConfig) -> ProblemStream:
    """The problems that teachers are asked. Raises ConfigError where the configuration names none."""
    if config.problems is None or not config.teachers:
        raise ConfigError("needs `problems:` and `teachers:`; write who is to be asked what")
    return ProblemStream(config.problems.path, limit=config.problems.limit, split=config.problems.split)


def _inputs(config: RunConfig, problems: str) -> str:
    """Fingerprint of what is asked."""
    teachers: Sequence[Any] = [
        [model_identity(teacher), teacher.model_dump(mode="json", exclude=_NO_CONTENT)] for teacher in config.teachers
    ]
    rejection = config.generation.model_dump(mode="json", include={"rejection", "attempts"})
    return fingerprint([problems, teachers, rejection])


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
