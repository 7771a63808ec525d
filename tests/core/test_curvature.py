"""Mean curvatures from scores: what they are, and that a few wild ones do not set them."""

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rtk.core.curvature import mean_product, mean_square


def scores(n=4000):
    """Correlated, and not centred: of particles beside a mode, or beyond an edge."""
    rng = np.random.default_rng(0)
    root = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.3, 0.1]])
    return rng.normal(size=(n, 3)) @ root.T + [3.0, 0.0, -0.1]


@pytest.mark.parametrize("dense", [False, True])
def test_the_mean_curvature_is_the_mean_product(dense):
    """About 0 and not about the mean: to rounding, and what shrinking takes, 1 / n."""
    s = scores()
    expected = s.T @ s / len(s)
    got = mean_product(jnp.asarray(s, jnp.float32), dense)
    if not dense:
        expected = np.diag(expected)
    sd = np.sqrt(np.mean(s**2, axis=0))
    unit = np.outer(sd, sd) if dense else sd**2
    np.testing.assert_allclose(got / unit, expected / unit, atol=5e-3)


def test_wild_scores_and_those_that_are_no_numbers_do_not_set_the_scale():
    """One in a hundred is a thousand times too large; of another one nothing is finite."""
    s = scores(1000)
    wild = s.copy()
    wild[::100] *= 1e3
    wild[1::100] = np.nan
    usual = np.mean(s**2, axis=0)
    for dense in (False, True):
        got = np.asarray(mean_product(jnp.asarray(wild, jnp.float32), dense))
        got = np.diagonal(got) if dense else got
        assert np.all((got > 0.8 * usual) & (got < 2.0 * usual))


def test_where_no_score_is_known_it_is_the_references():
    np.testing.assert_array_equal(mean_square(jnp.full((5, 2), jnp.nan)), 1.0)


@pytest.mark.parametrize("dense", [True, False])
def test_particles_that_lie_by_their_ancestors_count_alike(dense):
    """Of more than are sorted: a narrow mode's scores, all in the last quarter of them."""
    scores = np.random.default_rng(1).normal(size=(4096, 2))
    scores[3072:] *= 30.0
    got = np.asarray(mean_product(jnp.asarray(scores, jnp.float32), dense))
    got = np.diagonal(got) if dense else got
    np.testing.assert_allclose(got, 0.75 + 0.25 * 900.0, rtol=0.1)
