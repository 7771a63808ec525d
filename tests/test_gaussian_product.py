"""The product of noised mixtures against NumPy, its own gradient and draws; its checks."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import special_ortho_group

from numpyro_rtk.gaussian_product import noised_product
from numpyro_rtk.gaussians import noised_mixture
from tests.oracles import SKEWED, Mixture, assert_mean

AXES = special_ortho_group(3, seed=1).rvs()
SUBSPACES = [AXES[:, :2], AXES[:, 2:]]
NARROW = Mixture([0.3, 0.7], [[-1.4], [0.6]], np.full((2, 1, 1), 0.08))
TRUTHS = [SKEWED, NARROW]


def product():
    """Factors of different sizes and numbers of components, so both fillings are seen."""
    parts = [noised_mixture(p.weights, p.means, p.covariances) for p in TRUTHS]
    return noised_product(SUBSPACES, parts)


@pytest.mark.parametrize("t", [0.0, 0.3, 2.0])
def test_log_density_and_score_are_those_of_the_noised_product(t):
    base = product()
    z, t = jr.normal(jr.key(0), (50, 3)) * 2.0, jnp.asarray(t)
    along = [np.asarray(z, float) @ u for u in SUBSPACES]
    laws = [p.noised(float(t)) for p in TRUTHS]
    expected = sum(p.log_density(x) for p, x in zip(laws, along, strict=True))
    log_density = jax.vmap(base.log_density, (0, None))(z, t)
    np.testing.assert_allclose(log_density, expected, rtol=2e-4, atol=2e-4)
    gradient = jax.vmap(jax.grad(base.log_density), (0, None))(z, t)
    score = jax.vmap(base.score, (0, None))(z, t)
    np.testing.assert_allclose(score, gradient, rtol=1e-3, atol=1e-4)


def test_draws_are_those_of_the_product():
    """20,000 draws, one at a time and all at once: two moments within 5 errors."""
    base, t = product(), jnp.asarray(0.4)
    means, covariances = zip(*(p.noised(0.4).moments() for p in TRUTHS), strict=True)
    mean = sum(u @ m for u, m in zip(SUBSPACES, means, strict=True))
    pairs = zip(SUBSPACES, covariances, strict=True)
    covariance = sum(u @ c @ u.T for u, c in pairs)
    keys = jr.split(jr.key(0), 20_000)
    singly = jax.vmap(base.sample, in_axes=(0, None))(keys, t)
    for z in (singly, base.sample(jr.key(1), t, (20_000,))):
        assert_mean(z, mean)
        centred = np.asarray(z) - mean
        assert_mean(centred[:, :, None] * centred[:, None, :], covariance)


def test_what_is_no_product_is_said():
    base = product()
    base.check("base")
    broken = dataclasses.replace(base, subspaces=base.subspaces[:, ::-1] * 1.1)
    with pytest.raises(ValueError, match="`base.subspaces` must be orthogonal"):
        broken.check("base")
    broken = dataclasses.replace(base, subspaces=base.subspaces.at[1].set(0.0))
    with pytest.raises(ValueError, match="together have 3 axes that are not 0"):
        broken.check("base")
    for part in ("centres", "variances", "axes"):
        array = getattr(base.factors, part)
        other = dataclasses.replace(base.factors, **{part: array.at[1, 1, 1].add(0.5)})
        broken = dataclasses.replace(base, factors=other)
        with pytest.raises(ValueError, match=rf"factors\[1\].{part}` must be N\(0, 1"):
            broken.check("base")
