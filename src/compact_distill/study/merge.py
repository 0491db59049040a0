"""Several students of one base, merged into one: the baselines that merge instead of weighing rationales.

With tau_k = (weights of student k) - (weights of the base), K students, density d, scale s (default in brackets):

    average          base + 1/K sum of tau_k; also each round of MoT (arXiv 2509.08814)
    task_arithmetic  base + s sum of tau_k (s 0.4; Ilharco et al., arXiv 2212.04089)
    dare_linear      the same of tau_k / d, of which each entry is kept with chance d (s 0.4; arXiv 2311.03099)
    ties             of each tau_k the largest d; base + s mean of those that agree with the sign of their sum
                     (s 1; Yadav et al., arXiv 2306.01708)
    dare_ties        the same with DARE's random choice in place of the largest (s 1)

Adapters are merged by peft's `add_weighted_adapter`. Its `linear` and TIES kinds merge the two factors A and B of each
tau = B A, not their product, so those are approximations, as peft says; `average` is exact (its `cat`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compact_distill.config.file import load_config
from compact_distill.errors import ConfigError, RunError
from compact_distill.runs.files import fingerprint, give_ordinary_modes, move_aside
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import say
from compact_distill.students.load import load_student, pin
from compact_distill.study.arms import MergeMethod

_LINEAR = ("task_arithmetic", "dare_linear")
_PEFT = {"task_arithmetic": "linear", "average": "cat", "mot": "cat"}
_MERGED = "merged"


def scale_of(method: MergeMethod, scale: float | None) -> float:
    """The scale that is used: the one given, else the method's own."""
    return scale if scale is not None else 0.4 if method in _LINEAR else 1.0


def merge_weights(
    base: Mapping[str, Tensor],
    students: Sequence[Mapping[str, Tensor]],
    method: MergeMethod,
    density: float = 0.5,
    scale: float | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Merge whole weights, tensor by tensor; computed in fp32, returned in the base's precision.

    Args:
        base: weights that all students started from.
        students: their weights, by the same names.
        method: one of the module's formulas.
        density: d.
        scale: s; None for the method's own.
        seed: of DARE's choice.
    """
    from peft.utils import merge_utils

    torch.manual_seed(seed)
    factor = 1 / len(students) if method in ("average", "mot") else scale_of(method, scale)
    weights = torch.full((len(students),), factor)
    merged: dict[str, Tensor] = {}
    for name, start in base.items():
        if not start.is_floating_point():
            merged[name] = start.clone()
            continue
        changes = [student[name].float() - start.float() for student in students]
        if method in ("average", "mot", "task_arithmetic") or (density == 1 and method == "dare_linear"):
            change = merge_utils.task_arithmetic(changes, weights)
        else:
            change = getattr(merge_utils, method)(changes, weights, density)
        merged[name] = (start.float() + change).to(start.dtype)
    return merged


def merge_adapters(
    model: Any,
    adapters: Sequence[str],
    method: MergeMethod,
    density: float = 0.5,
    scale: float | None = None,
    seed: int = 0,
) -> str:
    """Add the merge of a peft model's adapters to it as one more adapter, make that the active one; return its name."""
    torch.manual_seed(seed)
    count = len(adapters)
    # The linear kinds sum A and B apart, so that their product holds K^2 terms: 1/K of the scale leaves K.
    factor = (
        1 / count if method in ("average", "mot") else scale_of(method, scale) / (count if method in _LINEAR else 1)
    )
    given = {"density": density} if method in ("ties", "dare_ties", "dare_linear") else {}
    kind = _PEFT.get(method, method)
    model.add_weighted_adapter(list(adapters), [factor] * count, _MERGED, combination_type=kind, **given)
    model.set_adapter(_MERGED)
    return _MERGED


def merge_students(
    base: str,
    students: Sequence[Path],
    out: Path,
    method: MergeMethod,
    density: float = 0.5,
    scale: float | None = None,
    seed: int = 0,
    whole: bool = False,
) -> None:
    """Merge students that are folders of adapters, or of whole weights, into a student folder.

    Args:
        base: hub name or folder of the model that all of them started from.
        students: their folders, at least two.
        out: the folder to write; it appears whole.
        method, density, scale, seed: see `merge_weights`.
        whole: write whole weights also where the students are adapters.

    Raises:
        RunError: fewer than two students.
    """
    if len(students) < 2:
        raise RunError(f"a merge needs at least two students, got {len(students)}; one teacher alone is `single:`")
    aside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    if (students[0] / "adapter_config.json").is_file():
        _merge_adapter_folders(base, students, aside, (method, density, scale, seed), whole)
    else:
        model, tokenizer = load_student(base, dtype=torch.float32)
        loaded = [load_student(student, dtype=torch.float32)[0].state_dict() for student in students]
        model.load_state_dict(merge_weights(model.state_dict(), loaded, method, density, scale, seed))
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    out.parent.mkdir(parents=True, exist_ok=True)
    give_ordinary_modes(aside)
    if out.exists():
        say(f"{out} was there already; that one is now {move_aside(out)}")
    aside.rename(out)


def _merge_adapter_folders(base: str, students: Sequence[Path], out: Path, how: tuple[Any, ...], whole: bool) -> None:
    from peft import PeftModel

    model: Any
    model, tokenizer = load_student(base, dtype=torch.float32 if whole else "auto")
    names = [f"branch{index}" for index in range(len(students))]
    model = PeftModel.from_pretrained(model, str(students[0]), adapter_name=names[0])
    for name, student in zip(names[1:], students[1:], strict=True):
        model.load_adapter(str(student), adapter_name=name)
    merged = merge_adapters(model, names, *how)
    if whole:
        model = model.merge_and_unload(adapter_names=[merged])
        model.save_pretrained(out)
    else:
        model.save_pretrained(out, selected_adapters=[merged])
        for file in (out / merged).iterdir():  # peft gives every adapter but "default" a folder of its own
            file.replace(out / file.name)
        (out / merged).rmdir()
        (out / "README.md").unlink(missing_ok=True)  # peft's empty model card with a path of this machine
    tokenizer.save_pretrained(out)


def main() -> None:
    """A step of a study: merge branches as a JSON file says; with `run`, make a run folder of the result.

    The file holds `base`, `students`, `out`, `method`, `density`, `scale`, `seed`, `whole`, and for the last merge
    `config`: the YAML of the run folder that gets the student, is evaluated and reported.
    """
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    config_path = task.pop("config", None)
    task.update(students=[Path(student) for student in task["students"]], out=Path(task["out"]))
    if config_path is None:
        pin_as_trained(task["students"])
        merge_students(**task)
        return
    from compact_distill import pipeline
    from compact_distill.config.file import dump_config
    from compact_distill.report import write_report

    config = load_config(config_path)
    commits = pin_as_trained(task["students"])
    made_of = fingerprint(
        {**{key: str(value) for key, value in task.items()}, "students": [_identity(s) for s in task["students"]]}
    )
    with RunFolder.claim(config.output) as folder:
        if not folder.stage_is_done("train", made_of):
            if not folder.stage_was_begun("train", made_of) and (aside := folder.set_aside()):
                say(f"merge: other students than before; what was here is now in {aside}")
            folder.write_config(dump_config(config))
            if commits:  # the evaluation pins what the manifest names
                folder.update_manifest(student={"name": config.student, "commits": commits})
            with folder.stage("train", made_of) as summary:
                merge_students(**task)
                states = [_state(student) for student in task["students"]]
                steps = sum(state["global_step"] for state in states)
                state = {"global_step": steps, "epoch": sum(state["epoch"] for state in states) / len(states)}
                (folder.student_path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
                summary.update({"steps": steps, "merged": [str(student) for student in task["students"]]})
    pipeline.evaluate(config.output, {})
    with RunFolder.claim(config.output) as folder:
        folder.finish()
    write_report([config.output])


def pin_as_trained(students: Sequence[Path]) -> dict[str, str]:
    """Load hub models, from now on, at the commits that the runs of these students used; returns the commits.

    Raises:
        ConfigError: two runs started from different commits of one model.
    """
    commits: dict[str, str] = {}
    for student in students:
        with contextlib.suppress(RunError):  # a student that lies in no run
            known = RunFolder.open(student.parent).manifest.get("student", {}).get("commits", {})
            for name, commit in known.items():
                if commits.setdefault(name, commit) != commit:
                    raise ConfigError(
                        f"the students to be merged started from {name} at {commits[name][:12]} and at {commit[:12]} "
                        f"({student.parent}); merge students of one commit: train one of them again"
                    )
    for name, commit in commits.items():
        pin(name, commit)
    return commits


def _state(student: Path) -> dict[str, Any]:
    return dict(json.loads((student / "trainer_state.json").read_text(encoding="utf-8")))


def _identity(student: Path) -> str:
    from compact_distill.students.identity import student_hash

    return student_hash(student)
