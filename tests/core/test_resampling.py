"""Resampling of weighted particles."""

import jax.numpy as jnp
import numpy as np

from numpyro_rtk.core.resampling import sample_size, systematic


def test_systematic_resampling_counts_by_weight():
    """Each index floor or ceil of n times its share; nothing for what has no weight."""
    n = 1000
    rng = np.random.default_rng(0)
    log_weight = jnp.asarray(rng.normal(size=n), jnp.float32).at[::3].set(-jnp.inf)
    log_weight = log_weight.at[1].set(jnp.inf).at[4].set(jnp.nan)
    weight = np.where(
        np.isfinite(log_weight), np.exp(np.asarray(log_weight, float)), 0.0
    )
    for uniform in rng.uniform(size=20):
        times = np.bincount(systematic(uniform, log_weight), minlength=n)
        assert np.all(np.abs(times - n * weight / weight.sum()) < 1.01)
        assert not np.any(times[weight == 0.0])
    np.testing.assert_array_equal(systematic(0.7, jnp.full(5, -jnp.inf)), np.arange(5))


def test_sample_size_is_kishs():
    """Equal weights of a part count as that part; none has weight, none counts."""
    some = jnp.full(10, -jnp.inf).at[:4].set(3.0)
    np.testing.assert_allclose(sample_size(some), 0.4, rtol=1e-5)
    uneven = jnp.log(jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(sample_size(uneven), 16.0 / 10.0 / 2.0, rtol=1e-5)
    assert sample_size(jnp.full(10, -jnp.inf)) == 0.0


def test_systematic_resampling_is_unbiased():
    """Over 200 uniforms in equal steps each index comes n times its share in the mean.

    Either end of a share is met by one of them too many or too few: 2 / 200.
    """
    weight = np.array([0.05, 0.3, 0.02, 0.33, 0.3])
    uniforms = (np.arange(200) + 0.5) / 200
    chosen = [systematic(u, jnp.log(jnp.asarray(weight))) for u in uniforms]
    times = np.bincount(np.ravel(chosen), minlength=5) / len(chosen)
    np.testing.assert_allclose(times, 5.0 * weight, atol=0.0101)
