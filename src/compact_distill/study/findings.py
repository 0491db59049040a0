"""What a study found, from its run folders: accuracy with intervals, paired differences, weights, drift, cost.

`study.json` and `study.csv` hold what the seeds decide, the same bytes whenever the study is run on one machine;
`costs.json` holds what a clock measured.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compact_distill.errors import CompactError, RunError
from compact_distill.evaluation.examine import ROLES
from compact_distill.evaluation.result_files import (
    main_value,
    measures,
    read_attempts,
    read_result,
    result_path,
    rows_path,
    tasks_done,
    whole_result,
)
from compact_distill.evaluation.task import load_tasks
from compact_distill.runs.files import atomic_write
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import say, text_table
from compact_distill.statistics import Table, difference_of_tables, exact_p, holm, share_of_tables
from compact_distill.study.arms import REFERENCES, Study
from compact_distill.study.material import changed_since
from compact_distill.study.training import costs_of, weights_of

FORMAT = 1


@dataclass(frozen=True)
class Outcome:
    """What was run, or had been before.

    Attributes:
        out: the study's folder.
        study: the arms and seeds that are shown.
        runs: run folder by arm and seed.
        parts: run folders whose training made a run's student, where they are others than the run itself.
        failed: steps that failed, with the reason.
        chosen: the teacher that an arm chose.
        left_out: arms that are not shown, with the reason.
    """

    out: Path
    study: Study
    runs: Mapping[str, Mapping[int, Path]]
    parts: Mapping[Path, Sequence[Path]]
    failed: Mapping[str, str]
    chosen: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)


def with_the_rest(found: Outcome, study: Study, finished: Callable[[Study], Outcome]) -> Outcome:
    """What was run of a study, and what else of it is finished in its folder; says which arms are shown.

    An arm is not shown where its settings or data are others than in the folder, or no run of it is finished.

    Args:
        found: what was run; its study is what was asked for.
        study: all of the study.
        finished: gives those runs of a study that are finished.
    """
    seeds = tuple(dict.fromkeys((*study.config.seeds, *found.study.config.seeds)))
    config = study.config.model_copy(update={"seeds": seeds})
    asked = [arm.name for arm in found.study.arms]
    left_out = changed_since(study, found.out)
    for arm in study.arms:
        # What an arm chose, it chose on the seeds that were asked for.
        if arm.name in left_out or arm.name in found.chosen:
            continue
        try:
            own = finished(replace(study, arms=(arm,), config=config))
        except CompactError as error:
            reason = str(error).splitlines()[0]
        else:
            reason = "no run of it is finished"
            if arm.name in asked or own.runs[arm.name]:
                runs = {arm.name: {**own.runs[arm.name], **found.runs.get(arm.name, {})}}
                parts, chosen = {**own.parts, **found.parts}, {**own.chosen, **found.chosen}
                found = replace(found, runs={**found.runs, **runs}, parts=parts, chosen=chosen)
        if arm.name not in found.runs:
            left_out[arm.name] = reason
    shown = tuple(arm for arm in study.arms if arm.name in found.runs)
    rest = "".join(f"; not {name}: {reason}" for name, reason in left_out.items())
    say(f"study: table and page show {', '.join(arm.name for arm in shown)}{rest}")
    runs_in_order = {arm.name: found.runs[arm.name] for arm in shown}
    return replace(found, study=Study(config, shown, study.base), runs=runs_in_order, left_out=left_out)


def tune_value(folder: Path, tasks: Sequence[str]) -> float:
    """Mean over tuning benchmarks of a student's results. Raises RunError where one is not done."""
    names = [task.name for task in load_tasks(tasks)]
    return float(np.mean([main_value(read_result(result_path(folder, name))) for name in names]))


def collect(outcome: Outcome) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read all runs that are done.

    Returns:
        What `study.json` and `costs.json` hold.

    Raises:
        RunError: students that were not asked the same benchmarks, or not the same rows.
    """
    arms: dict[str, dict[str, Any]] = {}
    what = {arm.name: arm.in_words() for arm in outcome.study.arms}
    tables: dict[str, dict[str, dict[str, Table]]] = {}  # arm, role, task: [S, N]
    costs: dict[str, Any] = {}
    rows: dict[str, list[str]] = {}
    for name, runs in outcome.runs.items():
        # In the study's order, whichever came first: a best single teacher's runs are known when they start.
        done = {seed: runs[seed] for seed in outcome.study.config.seeds if seed in runs and _is_finished(runs[seed])}
        arms[name] = {"runs": {str(seed): str(run.relative_to(outcome.out)) for seed, run in done.items()}}
        arms[name] |= {"what": what[name], "settings": outcome.study.config.arms[name]}
        if name in outcome.chosen:
            arms[name]["teacher"] = outcome.chosen[name]
        if done:
            trained = [outcome.parts.get(run, [run]) for run in done.values()]
            tables[name] = _tables(list(done.values()), rows)
            arms[name] |= _of_arm(list(done.values()), trained, tables[name])
            costs[name] = costs_of(trained)
    _require_same_benchmarks(tables, rows)
    document = {
        "format": FORMAT,
        "student": outcome.study.base.student,
        "budget": outcome.study.config.budget,
        "seeds": list(outcome.study.config.seeds),
        "base": _base(outcome, rows),
        "arms": arms,
        "differences": {ref: _differences(tables, arms, ref) for ref in REFERENCES if ref in tables},
        "rows": _rows(tables, rows),
        "failed": dict(sorted(outcome.failed.items())),
        "left_out": dict(outcome.left_out),
    }
    return document, {"format": FORMAT, "arms": costs}


def write_results(outcome: Outcome) -> tuple[dict[str, Any], dict[str, Any]]:
    """Collect and write `study.json`, `study.csv` and `costs.json`; returns what the two JSON files hold."""
    document, costs = collect(outcome)
    for name, content in (("study.json", document), ("costs.json", costs)):
        with atomic_write(outcome.out / name) as file:
            json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
    with atomic_write(outcome.out / "study.csv") as file:
        file.write(_csv(document))
    return document, costs


def describe(document: Mapping[str, Any], costs: Mapping[str, Any]) -> list[str]:
    """The table of a study as lines, and what failed."""
    references = [ref for ref in REFERENCES if ref in document["differences"]]
    head = ["arm", "runs", "learned %", "(95 %)", "retained %", "(95 %)"]
    head += [f"learned - {ref} (95 %), p" for ref in references]
    table = [[*head, "AUC", "1,000 tokens", "minutes", "GiB"]]
    for name, arm in [("base", document["base"]), *document["arms"].items()]:
        row = [name, str(len(arm["runs"])) if "runs" in arm else ""]
        for role in ROLES:
            found = arm.get(role)
            row += [f"{100 * found['value']:.1f}", f"({_points(found, '.1f')})"] if found else ["-", ""]
        for reference in references:
            own = document["differences"][reference].get(name, {}).get("learned")
            row.append(f"{100 * own['value']:+.1f} ({_points(own, '+.1f')}), {own['p_holm']:.2g}" if own else "-")
        cost = costs["arms"].get(name, {"train_seconds": [], "peak_memory_gib": []})
        row.append(f"{arm['auc']['value']:.2f}" if arm.get("auc") else "-")
        row.append(f"{np.mean(arm['tokens']) / 1000:.1f}" if arm.get("tokens") else "-")
        row.append(f"{np.mean(cost['train_seconds']) / 60:.1f}" if cost["train_seconds"] else "-")
        row.append(f"{max(cost['peak_memory_gib']):.2f}" if cost["peak_memory_gib"] else "-")
        table.append(row)
    lines = text_table(table)
    lines += [f"{name} chose {arm['teacher']}" for name, arm in document["arms"].items() if "teacher" in arm]
    if references:
        lines.append("p: exact, two-sided, over rows; corrected for the number of arms (Holm)")
    return lines + [f"failed: {name}: {reason}" for name, reason in document["failed"].items()]


def _points(estimate: Mapping[str, float], form: str) -> str:
    return " to ".join(format(100 * estimate[end], form) for end in ("low", "high"))


def _is_finished(run: Path) -> bool:
    try:
        return bool(RunFolder.open(run).manifest["finished"])
    except RunError:
        return False


def _tables(runs: Sequence[Path], known: dict[str, list[str]]) -> dict[str, dict[str, Table]]:
    """Share of correct samples by role and benchmark, [S, N]; all arms must have been asked the same rows."""
    found: dict[str, dict[str, list[list[float]]]] = {role: {} for role in ROLES}
    for run in runs:
        for role, task, ids, shares in read_shares(run / "eval" / "student"):
            _require_same_rows(run, task, ids, known.setdefault(task, ids))
            found[role].setdefault(task, []).append(shares)
    return {
        role: {task: np.array(shares) for task, shares in tasks.items() if len(shares) == len(runs)}
        for role, tasks in found.items()
    }


def _require_same_benchmarks(tables: Mapping[str, Mapping[str, Mapping[str, Table]]], known: Iterable[str]) -> None:
    for name, by_role in tables.items():
        if lacking := sorted({*known} - {task for tasks in by_role.values() for task in tasks}):
            raise RunError(
                f"not every run of arm {name} has results on {', '.join(lacking)}, as other runs have; evaluate the "
                "rest on that, or move those results away"
            )


def _require_same_rows(folder: Path, task: str, ids: Sequence[str], others: Sequence[str]) -> None:
    if ids != others:
        raise RunError(f"{folder} was not asked the same rows of {task} as other runs; evaluate it again")


def read_shares(folder: Path) -> Iterator[tuple[str, str, list[str], list[float]]]:
    """Role, benchmark, ids of its rows and each row's share of right answers, of a student's results."""
    for document, rows in _results(folder):
        measure = measures(document["task"]["kind"], rows, document["result"]["samples"])[document["result"]["metric"]]
        if measure.under is None:
            ids = [row["id"] for row in rows[:: document["result"]["samples"]]]
            yield document["role"], document["task"]["name"], ids, list(measure.over)


def _results(folder: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    for task in tasks_done(folder):
        document = whole_result(folder, task)
        if document["role"] in ROLES:
            yield document, read_attempts(rows_path(folder, task))


def _likelihoods(folders: Sequence[Path]) -> dict[str, Any]:
    """What is no share of right answers, such as bits a byte of texts: the mean over seeds, and of each seed."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for document, _ in _results(folder):
            metric = document["result"]["metric"]
            if metric in ("bits_per_byte", "nats_per_token"):
                entry = found.setdefault(document["task"]["name"], {"role": document["role"], "metric": metric})
                entry.setdefault("by_seed", []).append(main_value(document))
    return {task: {**entry, "value": float(np.mean(entry["by_seed"]))} for task, entry in found.items()}


def _of_arm(
    runs: Sequence[Path], trained: Sequence[Sequence[Path]], tables: Mapping[str, Mapping[str, Table]]
) -> dict[str, Any]:
    found: dict[str, Any] = {"tasks": {}}
    for role in ROLES:
        if tables[role]:
            found[role] = asdict(share_of_tables(list(tables[role].values())))
        for task, table in tables[role].items():
            estimate = asdict(share_of_tables([table]))
            found["tasks"][task] = {"role": role, "rows": table.shape[1], **estimate}
            found["tasks"][task]["by_seed"] = [float(value) for value in table.mean(axis=1)]
    found |= weights_of(trained)
    found["likelihood"] = _likelihoods([run / "eval" / "student" for run in runs])
    found["drift"] = _drift(runs)
    return found


def _drift(runs: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What drift.json says of each set of prompts, KL and the last layer's shifts: mean over seeds, and by seed.

    A number that not every run has is left out: a mean of others would stand for it.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        path = run / "eval" / "drift.json"
        for part in read_result(path)["sets"] if path.is_file() else []:
            last = part["layers"][-1]
            values = {"kl": part["kl_last"]["mean"], "shift": last["centroid_shift"], "cka": last["cka"]}
            for name, value in values.items():
                if value is not None:
                    found.setdefault(part["role"], {}).setdefault(name, []).append(value)
    whole = {role: {k: v for k, v in values.items() if len(v) == len(runs)} for role, values in found.items()}
    return {
        role: {**{name: float(np.mean(v)) for name, v in values.items()}, "by_seed": values}
        for role, values in whole.items()
        if values
    }


def _rows(tables: Mapping[str, Mapping[str, Mapping[str, Table]]], ids: Mapping[str, list[str]]) -> dict[str, Any]:
    """By benchmark: ids of the rows, and of each arm the share of right answers to each, over seeds and samples."""
    return {
        task: {
            "ids": names,
            "arms": {
                arm: [round(float(share), 4) for share in by_role[role][task].mean(axis=0)]
                for arm, by_role in tables.items()
                for role in ROLES
                if task in by_role[role]
            },
        }
        for task, names in ids.items()
    }


def _base(outcome: Outcome, known: Mapping[str, list[str]]) -> dict[str, Any]:
    found: dict[str, Any] = {"tasks": {}, "likelihood": _likelihoods([outcome.out / "base"])}
    tables: dict[str, list[Table]] = {}
    for role, task, ids, shares in read_shares(outcome.out / "base"):
        _require_same_rows(outcome.out / "base", task, ids, known.get(task, ids))
        table = np.array([shares])
        tables.setdefault(role, []).append(table)
        found["tasks"][task] = {"role": role, "rows": len(shares), **asdict(share_of_tables([table]))}
    return found | {role: asdict(share_of_tables(parts)) for role, parts in tables.items()}


def _differences(
    tables: Mapping[str, Mapping[str, Mapping[str, Table]]], arms: Mapping[str, Any], reference: str
) -> dict[str, Any]:
    """Each arm minus the reference, on the seeds that both have done; p corrected over the arms, for each role."""
    found: dict[str, Any] = {}
    for role in ROLES:
        p_values: dict[str, float] = {}
        for name in tables:
            if name == reference or not tables[name][role]:
                continue
            mine, theirs = (list(arms[arm]["runs"]) for arm in (name, reference))
            both = [seed for seed in mine if seed in theirs]
            tasks = [task for task in tables[name][role] if task in tables[reference][role]]
            if not both or not tasks:
                continue
            a, b = ([row.index(seed) for seed in both] for row in (mine, theirs))
            differences = [tables[name][role][t][a] - tables[reference][role][t][b] for t in tasks]
            p_values[name] = exact_p(differences)
            found.setdefault(name, {})[role] = {
                "seeds": len(both),
                **asdict(difference_of_tables(differences)),
                "p": p_values[name],
            }
        for name, p in holm(p_values).items():
            found[name][role]["p_holm"] = p
    return found


def _csv(document: Mapping[str, Any]) -> str:
    """One line an arm and benchmark, and one for the mean of each role."""
    text = io.StringIO()
    numbers = ("mean", "low", "high")
    against = [f"minus_{ref}_{n}" for ref in document["differences"] for n in (*numbers, "p", "p_holm")]
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["arm", "seeds", "role", "benchmark", "rows", *numbers, *against, "auc", "tokens"])
    for name, arm in [("base", document["base"]), *document["arms"].items()]:
        for role in ROLES:
            lines = [(task, found) for task, found in arm.get("tasks", {}).items() if found["role"] == role]
            if role in arm:
                lines.insert(0, ("all", arm[role]))
            for task, found in lines:
                cells: list[Any] = []
                for differences in document["differences"].values():
                    own = differences.get(name, {}).get(role) if task == "all" else None
                    cells += [own[key] for key in ("value", "low", "high", "p", "p_holm")] if own else [""] * 5
                auc = (arm.get("auc") or {}).get("value", "")
                tokens = round(float(np.mean(arm["tokens"]))) if arm.get("tokens") else ""
                start = [name, len(arm.get("runs", {})) or "", role, task, found.get("rows", "")]
                out.writerow([*start, found["value"], found["low"], found["high"], *cells, auc, tokens])
    return text.getvalue()
