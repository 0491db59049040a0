"""PCA shift and CKA: by hand, against scikit-learn, and by what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import linear_kernel
from sklearn.preprocessing import KernelCenterer

from compact_distill.evaluation.geometry import Plane, linear_cka, pca_shift

RANDOM = np.random.default_rng(7)


def states(rows: int = 12, width: int = 9) -> np.ndarray:
    return RANDOM.normal(size=(rows, width)) * np.linspace(1, 4, width) + RANDOM.normal(size=width)


@pytest.mark.parametrize(("rows", "width"), [(12, 9), (5, 30), (3, 2)])
def test_a_plane_is_scikit_learns_with_its_signs(rows, width):
    base, student = states(rows, width), states(rows, width)
    peer = PCA(n_components=2, svd_solver="full").fit(base)
    plane = Plane.fit(base)
    assert plane.explained == pytest.approx(tuple(peer.explained_variance_ratio_))
    np.testing.assert_allclose(plane.axes_2D, peer.components_, atol=1e-10)
    np.testing.assert_allclose(plane.project(student), peer.transform(student), atol=1e-10)


def test_shift_of_a_square_by_hand():
    # Corners of a 4 x 2 rectangle in the first two of three dimensions: spread sqrt(2^2 + 1^2).
    base = np.array([[2.0, 1, 0], [2, -1, 0], [-2, 1, 0], [-2, -1, 0]])
    plane = Plane.fit(base)
    assert plane.spread == pytest.approx(5**0.5)
    assert plane.explained == pytest.approx((0.8, 0.2))
    moved = base + np.array([3, 4, 100])  # the third dimension is outside of the plane
    shift = pca_shift(plane, base, moved)
    assert shift.centroid_distance == pytest.approx(5)
    assert shift.row_distance == pytest.approx(5)
    assert shift.centroid_shift == pytest.approx(5 / 5**0.5)
    turned = -base  # every row crosses the center; the cloud stays where it is
    shift = pca_shift(plane, base, turned)
    assert shift.centroid_distance == pytest.approx(0)
    assert shift.row_distance == pytest.approx(2 * 5**0.5)
    assert shift.row_shift == pytest.approx(2)


def test_a_base_that_does_not_move_has_not_shifted_and_shares_are_undefined_without_spread():
    base = states()
    shift = pca_shift(Plane.fit(base), base, base)
    assert (shift.centroid_distance, shift.row_distance) == (0, 0)
    still = np.ones((4, 3))
    plane = Plane.fit(still)
    shift = pca_shift(plane, still, still + 1)
    assert plane.explained == (0, 0)
    assert shift.centroid_shift is None
    assert shift.row_shift is None


def test_the_shift_over_the_spread_has_no_unit():
    base, student = states(), states()
    one = pca_shift(Plane.fit(base), base, student)
    scaled = pca_shift(Plane.fit(10 * base), 10 * base, 10 * student)
    assert scaled.centroid_distance == pytest.approx(10 * one.centroid_distance)
    assert scaled.centroid_shift == pytest.approx(one.centroid_shift)
    assert scaled.row_shift == pytest.approx(one.row_shift)


def test_cka_by_hand():
    # Centred x = (-1, 0, 1), y = (-1, 2, -1): orthogonal. z = (-2, 1, 1): (x.z)^2 / (x.x z.z) = 9 / 12.
    x, y, z = (np.array(v, dtype=float)[:, None] for v in ([0, 1, 2], [0, 3, 0], [-2, 1, 1]))
    assert linear_cka(x, y) == pytest.approx(0)
    assert linear_cka(x, z) == pytest.approx(0.75)
    assert linear_cka(x, x) == pytest.approx(1)


def test_cka_is_that_of_scikit_learns_centred_kernels():
    x, y = states(10, 6), states(10, 20)
    k, m = (KernelCenterer().fit_transform(linear_kernel(s)) for s in (x, y))
    assert linear_cka(x, y) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def test_cka_does_not_see_rotation_shift_and_scale():
    x, y = states(), states()
    rotation = np.linalg.qr(RANDOM.normal(size=(9, 9)))[0]
    assert linear_cka(3 * x @ rotation + 5, y) == pytest.approx(linear_cka(x, y))
    assert linear_cka(x @ rotation, x) == pytest.approx(1)


def test_cka_of_states_that_do_not_vary_is_none():
    assert linear_cka(np.ones((4, 3)), states(4, 3)) is None


def test_two_rows_make_no_plane():
    with pytest.raises(ValueError, match="at least 3 rows"):
        Plane.fit(np.ones((2, 5)))
