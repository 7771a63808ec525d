"""Pilots: their law at every level, and the c that is taken by what they show."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.core.warmup.pilot import _largest_as_good, _total_spread, pilot_down
from tests.core.exchange.test_sweep import MALA, PRIOR, TIMES, path, plan


def test_population_has_the_law_of_every_level(key):
    """400 populations of 64: means of a bounded statistic over levels, z = 5.

    Resampled particles are right up to O(1 / n); the limit allows for that.
    """
    one = lambda key: pilot_down(key, path, plan(), MALA, 64)
    found = jax.jit(jax.vmap(one))(jr.split(key, 400))
    assert found.position.shape == (400, 4, 64, 2)
    for k, t in enumerate(TIMES[:-1]):
        truth = np.tanh(PRIOR.noised(t).draws(3, 400_000)).mean(axis=0)
        means = np.tanh(np.asarray(found.position[:, k])).mean(axis=1)
        error = means.std(axis=0, ddof=1) / np.sqrt(len(means))
        assert np.all(np.abs(means.mean(axis=0) - truth) < 5.0 * error + 0.02)


def test_population_without_any_density_spoils_no_number(key):
    dead = lambda u, level: Evaluation(jnp.full((), -jnp.inf), jnp.zeros(2))
    found = jax.jit(lambda k: pilot_down(k, dead, plan(), MALA, 8))(key)
    assert np.all(np.isfinite(found.position))
    assert np.all(np.isneginf(found.evaluation.log_density[:-1]))


def test_lost_particles_spread_the_increments():
    """Spreads add up over edges; a particle without density is 20 nats below the least."""
    rows = jnp.array([[1.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, -jnp.inf]])
    lost = np.std([2.0, 2.0, 2.0, -18.0])
    np.testing.assert_allclose(_total_spread(rows), 1.0 + lost, rtol=1e-5)
    assert np.isfinite(_total_spread(jnp.full((2, 4), -jnp.inf)))


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        ([9.0, 4.0, 1.0, 1.05**3, 5.0], 2.0 + 1.0 / 3.0),  # a third of the way to it
        ([1.03, 1.0, 1.02, 1e9, jnp.inf], 2.0),  # the largest of equals; none beyond
        ([1.0, 2.0, 3.0, 4.0, jnp.inf], 0.0704),
        ([1.0, jnp.inf, jnp.inf, jnp.inf, jnp.inf], 0.0),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 4.0),  # at the end of the grid
        ([3.0, 3.0, 3.0, 3.0, 3.0], 4.0),  # nothing to choose between
    ],
    ids=["between", "equals", "first", "only", "last", "level"],
)
def test_the_variance_is_the_largest_that_is_as_good(spread, expected):
    found = _largest_as_good(jnp.arange(5.0), jnp.array(spread), 1.05)
    np.testing.assert_allclose(found, expected, atol=0.05)
