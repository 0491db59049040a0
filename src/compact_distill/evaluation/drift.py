"""How far a student moved from its base, on the prompts of what it learned and of what it was to retain.

For each set of prompts and each decoder layer: PCA shift (`pca_shift`, in a plane fitted on the base's states
of the last prompt token) and linear CKA (`linear_cka`); for each set the mean KL between the two models'
next-token distributions (`Readings`). docs/evaluation.md defines the file.

Arrays [N, D]: N rows (prompts) and D dimensions of the hidden state, fp64; row n of both models' arrays is the same
prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compact_distill.config.models import TextConfig
from compact_distill.errors import DataError, StudentError
from compact_distill.evaluation.result_files import FORMAT
from compact_distill.evaluation.task_rows import TaskRows
from compact_distill.method.encode import Encoder
from compact_distill.runs.environment import versions
from compact_distill.statistics import bootstrap_mean
from compact_distill.students.generate import pad_left, plan_batches
from compact_distill.students.identity import student_hash
from compact_distill.students.load import adapter_base, innermost, load_student, load_tokenizer

Array = NDArray[np.float64]

_BATCH_TOKENS = 4096
_LOGITS_AT_ONCE = 2**24
MIN_PROMPTS = 3
"""Fewer points than these always lie in a plane."""


def measure_drift(
    base: str,
    student: str,
    sets: Mapping[str, Sequence[TaskRows]],
    *,
    text: TextConfig | None = None,
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 42,
) -> dict[str, Any]:
    """Measure the drift of a student from its base, as `drift.json` has it (but for `changes`).

    An adapter is never merged: where it belongs to the base, one model is loaded and the adapter switched off for the
    base's part.

    Args:
        base: hub name, model folder or adapter folder.
        student: the same.
        sets: tasks whose prompts are read, by role: `learned`, `retained`.
        text: the prompt template of students without chat template.
        dtype: of the weights; coarser ones add rounding to the drift.
        device: where the models go; None: the CPU.
        seed: of the bootstrap.

    Raises:
        StudentError: models that cannot be loaded or compared; tokenizers or chat templates that differ.
        DataError: fewer than 3 prompts in a set.
    """
    check_sets(sets)
    prompts = _encode(base, student, text, sets)
    readers = _load(base, student, dtype, device)
    layers, width, _ = readers[0].shape
    return {
        "format": FORMAT,
        "base": {"name": base, "hash": student_hash(base)},
        "student": {"name": student, "hash": student_hash(student)},
        "dtype": dtype,
        "layers": layers,
        "width": width,
        "sets": [_measure_set(role, tasks, prompts[role], readers, seed) for role, tasks in sets.items()],
        "versions": versions(),
    }


def describe_drift(document: Mapping[str, Any]) -> list[str]:
    """A line for each set: the last layer's numbers."""
    lines = []
    for found in document["sets"]:
        last = found["layers"][-1]
        shift = "-" if last["centroid_shift"] is None else f"{last['centroid_shift']:.3f}"
        cka = "-" if last["cka"] is None else f"{last['cka']:.4f}"
        lines.append(
            f"{found['role']}, {found['rows']} prompts: KL {found['kl_last']['mean']:.4f} nats after the prompt, last "
            f"layer: centroid moved {shift} spreads, CKA {cka}"
        )
    return lines


def prompts_in(tasks: Sequence[TaskRows]) -> int:
    """How many prompts tasks hold together."""
    return sum(len(task.rows) for task in tasks)


def check_sets(sets: Mapping[str, Sequence[TaskRows]]) -> None:
    """Raise DataError unless every set has enough prompts."""
    if not sets:
        raise DataError("drift needs prompts: name learned or retained benchmarks, and drift_rows > 0")
    for role, tasks in sets.items():
        if prompts_in(tasks) < MIN_PROMPTS:
            raise DataError(
                f"{role}: drift needs at least {MIN_PROMPTS} prompts for a plane, got {prompts_in(tasks)}; "
                "raise the limit"
            )


def _encode(
    base: str, student: str, text: TextConfig | None, sets: Mapping[str, Sequence[TaskRows]]
) -> dict[str, list[tuple[int, ...]]]:
    """Every set's prompts as tokens. Raises StudentError where the two tokenizers do not make the same of them."""
    encoders = [Encoder(load_tokenizer(name), text) for name in (base, student)]
    mine, theirs = (encoder.tokenizer for encoder in encoders)
    remedy = "drift compares states after the same tokens: give both models the same tokenizer files"
    if mine.get_vocab() != theirs.get_vocab():
        raise StudentError(
            f"base {base} and student {student} must have the same tokenizer, but their vocabularies ({len(mine)} "
            f"and {len(theirs)} tokens) differ; {remedy}"
        )
    encoded: dict[str, list[tuple[int, ...]]] = {}
    for role, tasks in sets.items():
        rows = [row for task in tasks for row in task.rows]
        encoded[role] = [encoders[0].encode_prompt(row.prompt) for row in rows]
        for row, prompt in zip(rows, encoded[role], strict=True):
            if encoders[1].encode_prompt(row.prompt) != prompt:
                templates_differ = mine.chat_template != theirs.chat_template
                where = "their chat templates differ" if templates_differ else "they split it differently"
                raise StudentError(
                    f"base {base} and student {student} must read the same tokens, but not so for row {row.id!r} "
                    f"({where}); {remedy}"
                )
    return encoded


def _load(base: str, student: str, dtype: str, device: str | None) -> tuple[Reader, Reader]:
    model, _ = load_student(student, dtype=dtype, device=device)
    beneath = adapter_base(student)
    if beneath is not None and _same_place(beneath, base):
        return Reader(model, model.disable_adapter), Reader(model)
    return Reader(load_student(base, dtype=dtype, device=device)[0]), Reader(model)


def _same_place(one: str, other: str) -> bool:
    return one == other or (
        Path(one).exists() and Path(other).exists() and Path(one).resolve() == Path(other).resolve()
    )


def _measure_set(
    role: str,
    tasks: Sequence[TaskRows],
    prompts: Sequence[Sequence[int]],
    readers: tuple[Reader, Reader],
    seed: int,
) -> dict[str, Any]:
    rows = [row for task in tasks for row in task.rows]
    readings = read_both(*readers, prompts, _BATCH_TOKENS)
    layers, base_plane, student_plane = _measure_layers(readings)
    return {
        "role": role,
        "tasks": [
            {"name": t.task.name, "version": t.task.version, "rows": len(t.rows), "data_hash": t.hash} for t in tasks
        ],
        "rows": len(rows),
        "kl_last": _interval(readings.kl_last_N, seed),
        "kl_prompt": _interval(readings.kl_prompt_N, seed),
        "layers": layers,
        "plane": {"ids": [row.id for row in rows], "base": base_plane, "student": student_plane},
    }


def _measure_layers(readings: Readings) -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
    layers, base_plane, student_plane = [], [], []
    for number, (base_ND, student_ND) in enumerate(zip(readings.base_LND, readings.student_LND, strict=True), start=1):
        plane = Plane.fit(base_ND)
        shift = pca_shift(plane, base_ND, student_ND)
        layers.append(
            {
                "layer": number,
                "explained": list(plane.explained),
                "spread": plane.spread,
                "centroid_distance": shift.centroid_distance,
                "centroid_shift": shift.centroid_shift,
                "row_distance": shift.row_distance,
                "row_shift": shift.row_shift,
                "cka": linear_cka(base_ND, student_ND),
            }
        )
        base_plane.append(_short(shift.base_N2))
        student_plane.append(_short(shift.student_N2))
    return layers, base_plane, student_plane


def _interval(values_N: np.ndarray, seed: int) -> dict[str, float]:
    estimate = bootstrap_mean(values_N.tolist(), seed)
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def _short(points_N2: np.ndarray) -> list[list[float]]:
    """Coordinates with six significant digits: more are not seen, and fill the file."""
    return [[float(f"{value:.6g}") for value in point] for point in points_N2.tolist()]


@dataclass(frozen=True)
class Plane:
    """The plane of the two principal components of some states.

    Attributes:
        mean_D: the states' mean, the origin.
        axes_2D: unit vectors; of each, the entry that is largest in size is positive, which fixes its sign.
        explained: each axis' share of the states' variance, 0 to 1; 0 where they do not vary.
        spread: root mean square distance of the states from their mean, within the plane, in units of the state.
    """

    mean_D: Array
    axes_2D: Array
    explained: tuple[float, float]
    spread: float

    @classmethod
    def fit(cls, states_ND: Array) -> Plane:
        """Principal components by singular value decomposition of the centred states. Raises ValueError for N < 3."""
        if len(states_ND) < 3 or states_ND.shape[1] < 2:
            raise ValueError(f"a plane needs at least 3 rows of 2 dimensions, got {states_ND.shape}; read more prompts")
        mean_D = states_ND.mean(axis=0)
        _, singular, axes = np.linalg.svd(states_ND - mean_D, full_matrices=False)
        axes_2D = axes[:2]
        largest = np.abs(axes_2D).argmax(axis=1)
        axes_2D = axes_2D * np.where(axes_2D[[0, 1], largest] < 0, -1.0, 1.0)[:, None]
        variances = singular**2
        total = variances.sum()
        first, second = (variances[:2] / total).tolist() if total > 0 else (0.0, 0.0)
        return cls(mean_D, axes_2D, (first, second), float(np.sqrt(variances[:2].sum() / len(states_ND))))

    def project(self, states_ND: Array) -> Array:
        """Coordinates in the plane, [N, 2], in units of the state."""
        return (states_ND - self.mean_D) @ self.axes_2D.T


@dataclass(frozen=True)
class Shift:
    """How far the student's states lie from the base's, in the base's plane.

    Attributes:
        centroid_distance: distance of the two clouds' means.
        row_distance: mean over rows of the distance between the row's two states.
        centroid_shift, row_shift: the same over the base's spread, without unit; None where the spread is 0.
        base_N2, student_N2: coordinates in the plane.
    """

    centroid_distance: float
    row_distance: float
    centroid_shift: float | None
    row_shift: float | None
    base_N2: Array
    student_N2: Array


def pca_shift(plane: Plane, base_ND: Array, student_ND: Array) -> Shift:
    """Measure the shift of paired states in a plane that was fitted on the base's."""
    base_N2, student_N2 = plane.project(base_ND), plane.project(student_ND)
    centroid = float(np.linalg.norm(student_N2.mean(axis=0) - base_N2.mean(axis=0)))
    row = float(np.linalg.norm(student_N2 - base_N2, axis=1).mean())
    over = [value / plane.spread if plane.spread > 0 else None for value in (centroid, row)]
    return Shift(centroid, row, over[0], over[1], base_N2, student_N2)


def linear_cka(x_ND: Array, y_NE: Array) -> float | None:
    """Linear centred kernel alignment of two sets of states, 0 to 1 (Kornblith et al. 2019, equation 4).

    CKA = |Yc' Xc|^2 / (|Xc' Xc| |Yc' Yc|), Frobenius norms, Xc and Yc centred by column; 1 for states that are equal up
    to rotation, shift and scale. With fewer rows than dimensions it is biased upwards, for every pair alike.
    Computed from the [N, N] Gram matrices, which is the same.

    Returns:
        None where one of the two does not vary.
    """
    grams = [centred @ centred.T for centred in (x_ND - x_ND.mean(axis=0), y_NE - y_NE.mean(axis=0))]
    norms = [float(np.linalg.norm(gram)) for gram in grams]
    if not all(norms):
        return None
    return float((grams[0] * grams[1]).sum() / (norms[0] * norms[1]))


@dataclass(frozen=True)
class Reader:
    """One of the two models, and the context in which it is itself: a PeftModel is its own base without its adapter."""

    model: Any
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def shape(self) -> tuple[int, int, int]:
        """Decoder layers, width of the hidden state, and rows of the vocabulary."""
        config = self.model.config
        return config.num_hidden_layers, config.hidden_size, config.vocab_size

    def __call__(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States of the last token, [layers, N, D], and final hidden states of all tokens, [N, T, D]."""
        inner = innermost(self.model)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with self.context():
            out = inner.base_model(
                input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True, use_cache=False
            )
        return torch.stack([layer[:, -1] for layer in out.hidden_states[1:]]), out.last_hidden_state

    def log_probs(self, hidden_ND: Tensor) -> Tensor:
        """Next-token distributions, [N, V] in nats."""
        with self.context():
            logits_NV = innermost(self.model).get_output_embeddings()(hidden_ND)
        return torch.log_softmax(logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float(), dim=-1)


@dataclass(frozen=True)
class Readings:
    """What base and student made of N prompts.

    Attributes:
        base_LND, student_LND: states of the prompt's last token after each of the L decoder layers; the last one stands
            after the final norm. Units of the hidden state.
        kl_last_N: KL(base || student) of the next-token distributions after the last token, nats.
        kl_prompt_N: the same, averaged over all tokens of the prompt.
    """

    base_LND: Array
    student_LND: Array
    kl_last_N: Array
    kl_prompt_N: Array


@torch.no_grad()
def read_both(base: Reader, student: Reader, prompts: Sequence[Sequence[int]], batch_tokens: int) -> Readings:
    """Read prompts (token ids) with both, batched by length; dropout is off meanwhile.

    Raises:
        StudentError: the two do not have the same number of layers, width or vocabulary, or yield no numbers.
    """
    for name, one, other in zip(("layers", "hidden_size", "vocab_size"), base.shape, student.shape, strict=True):
        if one != other:
            raise StudentError(
                f"base and student must have the same {name}, got {one} and {other}; compare two of one kind"
            )
    modes = [(reader.model, reader.model.training) for reader in (base, student)]
    layers, width, _ = base.shape
    states = np.empty((2, layers, len(prompts), width))
    kl_last_N, kl_prompt_N = np.empty(len(prompts)), np.empty(len(prompts))
    try:
        for model, _ in modes:
            model.eval()
        for batch in plan_batches(prompts, 0, batch_tokens):
            ids, mask = pad_left([prompts[i] for i in batch], 0, base.model.device)
            hidden = []
            for which, reader in enumerate((base, student)):
                last_LND, hidden_NTD = reader(ids.to(reader.model.device), mask.to(reader.model.device))
                states[which][:, batch] = last_LND.double().cpu().numpy()
                hidden.append(hidden_NTD)
            for place, row in enumerate(batch):
                tokens = len(prompts[row])
                kl_T = _kl(base, student, hidden[0][place, -tokens:], hidden[1][place, -tokens:])
                kl_last_N[row], kl_prompt_N[row] = float(kl_T[-1]), float(kl_T.mean())
    finally:
        for model, training in modes:
            model.train(training)
    for name, arrays in (("base", [states[0]]), ("student", [states[1], kl_last_N, kl_prompt_N])):
        if not all(np.isfinite(array).all() for array in arrays):
            raise StudentError(
                f"the {name}'s states and predictions must be numbers, but some are not (NaN or infinite): its weights "
                "are damaged or its training diverged; drift cannot be measured"
            )
    return Readings(states[0], states[1], kl_last_N, kl_prompt_N)


def _kl(base: Reader, student: Reader, base_TD: Tensor, student_TD: Tensor) -> Tensor:
    """KL(base || student) at each token, [T] in nats, fp64; rounding never makes it negative."""
    rows = max(1, _LOGITS_AT_ONCE // base.shape[2])
    parts = []
    for base_part, student_part in zip(base_TD.split(rows), student_TD.split(rows), strict=True):
        base_NV, student_NV = base.log_probs(base_part), student.log_probs(student_part).to(base_part.device)
        parts.append((base_NV.exp() * (base_NV - student_NV)).sum(-1).double().clamp_min(0))
    return torch.cat(parts)
