"""How far a cloud of hidden states moved: PCA shift and linear CKA, in numpy and fp64.

All arrays are [N, D]: N rows (prompts) and D dimensions of the hidden state; row n of both arrays is the same prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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
