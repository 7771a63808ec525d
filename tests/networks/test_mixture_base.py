"""The mixture base against the noised mixture in closed form, and who gets one."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from numpyro_rtk.mixture import GaussianMixture
from numpyro_rtk.networks import EnergySet
from numpyro_rtk.networks.mixture_base import MixtureBase, mixture_base
from numpyro_rtk.networks.standardise import GaussianBase
from numpyro_rtk.training.base import fit_base
from numpyro_rtk.training.fit import fit
from numpyro_rtk.training.mixture import best_mixture

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-2.0, 0.5], [0.3, -1.0], [1.5, 1.5]])
COVARIANCES = np.array(
    [[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.4]], [[0.05, 0.0], [0.0, 0.6]]]
)
TRUTH = GaussianMixture(WEIGHTS, MEANS, COVARIANCES)


@pytest.mark.parametrize("t", [0.0, 0.3, 2.0])
def test_energy_and_score_are_those_of_the_noised_mixture(t):
    base = mixture_base(WEIGHTS, MEANS, COVARIANCES)
    z = jr.normal(jr.key(0), (50, 2)) * 2.0
    t = jnp.asarray(t)
    energy = jax.vmap(base.energy, in_axes=(0, None))(z, t)
    score = jax.vmap(base.score, in_axes=(0, None))(z, t)
    np.testing.assert_allclose(-energy, TRUTH.log_density(z, t), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(score, TRUTH.score(z, t), rtol=2e-3, atol=2e-3)


def rows(num, seed):
    return np.asarray(TRUTH.sample(jr.key(seed), (num,)), np.float64)


def test_rings_are_laid_with_many_components():
    """Three rings: a few Gaussians are no better than one, a few dozen follow the curves.

    64 of them have 383 parameters: 3,000 rows leave the held-out density 383 / 6000 = .06
    below the rings' (minus their entropy), and the chords between them .1.
    """
    rng = np.random.default_rng(0)
    sd, radii = 0.05, np.array([1.0, 2.0, 3.0])
    angle = rng.uniform(0.0, 2.0 * np.pi, 5000)
    radius = rng.choice(radii, 5000) + sd * rng.normal(size=5000)
    rings = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    z, held_out, fresh = rings[1000:4000], rings[:1000], jnp.asarray(rings[4000:])
    entropy = (
        np.mean(np.log(6.0 * np.pi * radii))
        + 0.5 * np.log(2 * np.pi * np.e)
        + np.log(sd)
    )
    base = fit_base(z, held_out, None)
    assert isinstance(base, MixtureBase)
    energy = jax.vmap(base.energy, in_axes=(0, None))(fresh, 0.0)
    assert np.mean(energy) < entropy + 0.3
    clusters = best_mixture(z, held_out)  # no more than 16
    assert -clusters.score(fresh) > entropy + 0.9


def test_few_rows_get_a_floor():
    """From 80 rows in 12 dimensions a covariance is off by 90 / (2 * 80) = .6 nats or more.

    Independent normals: a floor, which adds to all variances, makes up for a quarter of it.
    """
    rng = np.random.default_rng(0)
    z, held_out, fresh = np.split(rng.normal(size=(3000, 12)), [80, 120])
    base = fit_base(z, held_out, None)
    assert isinstance(base, MixtureBase)
    energy = jax.vmap(base.energy, in_axes=(0, None))(jnp.asarray(fresh), 0.0)
    truth = -norm.logpdf(fresh).sum(axis=1).mean()
    plain = -multivariate_normal(z.mean(0), np.cov(z.T, bias=True)).logpdf(fresh).mean()
    assert plain - truth > 0.6
    assert np.mean(energy) - truth < 0.75 * (plain - truth)


def test_em_finds_the_mixture():
    """3,000 rows and 17 parameters: the log density is off by sqrt(17 / 3000) = .075.

    Twice that is allowed; one Gaussian, the control, is off by more than five times it.
    """
    z, held_out, fresh = rows(3000, 1), rows(500, 2), jnp.asarray(rows(4000, 3))
    base = fit_base(z, held_out, None)
    assert isinstance(base, MixtureBase)
    assert len(base.log_weights) >= 3
    truth = TRUTH.log_density(fresh, 0.0)
    error = lambda base: float(
        jnp.std(-jax.vmap(base.energy, in_axes=(0, None))(fresh, jnp.zeros(())) - truth)
    )
    one = mixture_base(np.ones(1), z.mean(0)[None], np.cov(z.T)[None])
    assert error(base) < 0.15
    assert error(one) > 0.4


def test_one_gaussian_is_enough_for_one():
    z = np.random.default_rng(0).normal(size=(1200, 3))
    assert fit_base(z[200:], z[:200], None) is None
    assert fit_base(z[200:], z[:200], 1) is None


def test_the_same_rows_give_the_same_base():
    first, second = (fit_base(rows(600, 1), rows(100, 2), 3) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


OPTIONS = {"num_steps": 2, "batch_size": 16, "progress_bar": False}


def test_fit_starts_from_a_mixture_and_may_be_told_not_to():
    samples = rows(400, 4)
    model, _ = fit(jr.key(0), samples, num_components=3, **OPTIONS)
    assert isinstance(model.base, MixtureBase)
    model, _ = fit(jr.key(0), samples, num_components=1, **OPTIONS)
    assert isinstance(model.base, GaussianBase)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 0}, "`num_components` must be at least 1"),
        ({"num_components": 200}, "`num_components` must be at most 60"),
        ({"condition": np.arange(400.0)}, "`num_components` must be None or 1 where"),
    ],
)
def test_refusals(options, message):
    options = {"num_components": 2} | options
    with pytest.raises(ValueError, match=message):
        fit(jr.key(0), rows(400, 4), **options, **OPTIONS)


def test_an_exchangeable_network_keeps_its_gaussian():
    network = EnergySet((4, 2), key=jr.key(0))
    samples = np.random.default_rng(0).normal(size=(100, 4, 2))
    with pytest.raises(ValueError, match="None or 1 for an exchangeable network"):
        fit(jr.key(0), samples, network=network, num_components=2, **OPTIONS)
