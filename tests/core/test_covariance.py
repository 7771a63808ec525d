"""Covariances in either form: roots, and correlations that are not believed."""

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rtk.core.covariance import (
    definite,
    diagonal_of,
    inverse_rooted,
    like,
    rooted,
    roots,
    shrunk,
)


def test_variances_that_rounding_made_negative_stay_finite():
    """Of two draws of a narrow edge; a root must exist all the same."""
    for matrices in (jnp.full((2, 1, 1), -1e-9), -1e-9 * jnp.eye(3)[None]):
        kept = shrunk(matrices, jnp.full(len(matrices), 2.0))
        assert np.all(np.isfinite(kept))
        assert np.all(np.isfinite(roots(definite(kept))[0]))


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_roots_are_cholesky_roots(dim):
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(5, dim, dim))
    matrices = matrices @ np.swapaxes(matrices, 1, 2) + 0.1 * np.eye(dim)
    root, inverse = roots(jnp.asarray(matrices, jnp.float32))
    np.testing.assert_allclose(root, np.linalg.cholesky(matrices), atol=1e-4)
    np.testing.assert_allclose(
        np.asarray(inverse) @ np.asarray(root),
        np.tile(np.eye(dim), (5, 1, 1)),
        atol=1e-4,
    )


def test_spurious_correlations_are_dropped_and_real_ones_kept():
    """40 independent coordinates, 100 draws; then two that go together."""
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(100, 40))
    off = ~np.eye(40, dtype=bool)

    def pulled(x):
        observed = jnp.asarray(x.T @ x / len(x), jnp.float32)[None]
        return np.asarray(shrunk(observed, jnp.float32(len(x)))[0])

    before = np.sqrt(np.mean(np.square(draws.T @ draws / 100)[off]))
    after = np.sqrt(np.mean(np.square(pulled(draws))[off]))
    assert after < 0.4 * before
    together = rng.normal(size=(4000, 2)) @ np.array([[1.0, 0.9], [0.0, 0.4]])
    np.testing.assert_allclose(
        pulled(together), together.T @ together / 4000, rtol=0.01
    )


def test_diagonals_pass_as_they_are():
    rows = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    np.testing.assert_array_equal(diagonal_of(rows), rows)
    np.testing.assert_array_equal(shrunk(rows, jnp.float32(3.0)), rows)
    matrices = rows[:, :, None] * jnp.eye(2)[None]
    np.testing.assert_array_equal(diagonal_of(matrices), rows)
    scalars = jnp.arange(3.0)
    assert like(scalars, rows).shape == (3, 1)
    assert like(scalars, matrices).shape == (3, 1, 1)


def test_what_is_added_for_a_root_follows_each_coordinates_units():
    """Two coordinates a billion apart and all but the same: the root is finite."""
    sd = jnp.array([1.0, 1e-9])
    matrix = (jnp.ones((2, 2)) * jnp.outer(sd, sd))[None]
    np.testing.assert_allclose(
        diagonal_of(definite(matrix)) / diagonal_of(matrix), 1.0, rtol=1e-4
    )
    root, inverse = roots(definite(matrix / jnp.outer(sd, sd)[None]))
    assert np.all(np.isfinite(root))
    assert np.all(np.isfinite(inverse))


@pytest.mark.parametrize("dense", [False, True])
def test_roots_of_either_form_are_roots_of_it_and_of_its_inverse(dense):
    """Of covariances with correlations, so that a transposed root shows.

    The ridge of 1e-5, at condition numbers up to about 50, is the largest error.
    """
    factor = np.random.default_rng(2).normal(size=(4, 3, 3))
    matrices = factor @ np.swapaxes(factor, 1, 2) + 0.3 * np.eye(3)
    if not dense:
        matrices = matrices * np.eye(3)
    given = jnp.asarray(matrices, jnp.float32)
    given = given if dense else diagonal_of(given)
    full = lambda r: np.asarray(r) if dense else np.asarray(r)[:, :, None] * np.eye(3)
    square = lambda root: full(root) @ np.swapaxes(full(root), 1, 2)
    root, inverse = rooted(given)
    np.testing.assert_allclose(square(root), matrices, rtol=1e-3, atol=1e-3)
    identity = np.tile(np.eye(3), (4, 1, 1))
    np.testing.assert_allclose(full(inverse) @ full(root), identity, atol=1e-3)
    whitened = square(inverse_rooted(given)) @ matrices
    np.testing.assert_allclose(whitened, identity, atol=1e-2)
