"""The mixture base against the noised mixture in closed form, and who gets one."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import multivariate_normal, multivariate_t, norm
from sklearn.mixture import GaussianMixture as EM

from numpyro_rtk.mixture import GaussianMixture
from numpyro_rtk.networks import EnergySet
from numpyro_rtk.networks.mixture_base import MixtureBase, mixture_base
from numpyro_rtk.networks.standardise import GaussianBase
from numpyro_rtk.training import mixture
from numpyro_rtk.training.base import fit_base
from numpyro_rtk.training.fit import fit
from numpyro_rtk.training.mixture import Form, best_mixture, by_em
from numpyro_rtk.training.options import Training

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


def test_draws_have_the_moments_of_the_noised_mixture():
    """20,000 draws: means within 5 standard errors, second moments within 5 of theirs."""
    t, num = jnp.asarray(0.4), 20_000
    base = mixture_base(WEIGHTS, MEANS, COVARIANCES)
    z = np.asarray(
        jax.vmap(base.sample, in_axes=(0, None))(jr.split(jr.key(0), num), t)
    )
    a2 = np.exp(-0.8)
    mean = np.exp(-0.4) * WEIGHTS @ MEANS
    second = a2 * (COVARIANCES + MEANS[:, :, None] * MEANS[:, None]) + (
        1 - a2
    ) * np.eye(2)
    outer = z[:, :, None] * z[:, None]
    assert np.all(np.abs(z.mean(0) - mean) < 5 * z.std(0) / num**0.5)
    off = np.abs(outer.mean(0) - np.einsum("k,kij->ij", WEIGHTS, second))
    assert np.all(off < 5 * outer.std(0) / num**0.5)


def rows(num, seed):
    return np.asarray(TRUTH.sample(jr.key(seed), (num,)), np.float64)


def found_base(z, held_out):
    return fit_base(z, held_out, None).as_base()


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
    base = found_base(z, held_out)
    assert isinstance(base, MixtureBase)
    energy = jax.vmap(base.energy, in_axes=(0, None))(fresh, 0.0)
    assert np.mean(energy) < entropy + 0.3
    clusters = best_mixture(z, held_out)  # no more than 16
    assert -clusters.log_density(fresh).mean() > entropy + 0.9


def test_few_rows_get_a_floor():
    """From 80 rows in 12 dimensions a covariance is off by 90 / (2 * 80) = .6 nats or more.

    Independent normals: a floor, which adds to all variances, makes up for a quarter of it.
    """
    rng = np.random.default_rng(0)
    z, held_out, fresh = np.split(rng.normal(size=(3000, 12)), [80, 120])
    base = found_base(z, held_out)
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
    base = found_base(z, held_out)
    assert isinstance(base, MixtureBase)
    assert len(base.log_weights) >= 3
    truth = TRUTH.log_density(fresh, 0.0)
    error = lambda base: float(
        jnp.std(-jax.vmap(base.energy, in_axes=(0, None))(fresh, jnp.zeros(())) - truth)
    )
    one = mixture_base(np.ones(1), z.mean(0)[None], np.cov(z.T)[None])
    assert error(base) < 0.15
    assert error(one) > 0.4


def clusters(rng, num):
    """Three Gaussians that share a covariance with correlations of .9."""
    dim = 8
    centres = 3.0 * np.random.default_rng(1).normal(size=(3, dim))
    covariance = 0.1 * np.eye(dim) + 0.9
    which = rng.choice(3, p=WEIGHTS, size=num)
    return centres[which] + rng.multivariate_normal(np.zeros(dim), covariance, num)


def test_em_is_that_of_scikit_learn():
    """From one start and to the same stop, without what is ours."""
    z, fresh = rows(800, 1), rows(400, 2)
    found = by_em(z, 3, Form(count=0.0))
    again = EM(
        3,
        reg_covar=1e-5,
        tol=1e-8,
        max_iter=2000,
        weights_init=found.weights,
        means_init=found.means,
        precisions_init=np.linalg.inv(found.covariances),
    ).fit(z)
    # ours stops where an iteration gains less than 1e-3 nats
    assert 0.0 <= again.score(z) - found.log_density(z).mean() < 5e-3
    there = found._replace(
        weights=again.weights_, means=again.means_, covariances=again.covariances_
    )
    np.testing.assert_allclose(
        there.log_density(fresh), again.score_samples(fresh), rtol=1e-8
    )
    after = there.refit(z)
    np.testing.assert_allclose(after.covariances, there.covariances, atol=1e-3)


def test_few_rows_share_their_covariance():
    """100 rows in three clusters of 8 dimensions: 44 parameters each, the smallest of 20.

    A covariance of 20 rows in 8 dimensions is off by 44 / 40 = 1 nat or more, the others
    by a half; leaning on each other they are those of 100 rows.
    """
    parts = ((0, 100), (1, 40), (2, 4000))
    z, held_out, fresh = (clusters(np.random.default_rng(s), n) for s, n in parts)
    plain, found = by_em(z, 3), best_mixture(z, held_out)
    assert found.form.count > plain.form.count
    density = lambda mixture: mixture.log_density(fresh).mean()
    assert density(found) - density(plain) > 0.5


def test_heavy_tails_get_pairs():
    """Student's t of 3 degrees in 4 dimensions, 3,000 rows, against its density.

    One Gaussian is 1 nat below, and pairs .02; a mixture without pairs, of as many
    components as the held-out rows ask for, .05.
    """
    law = multivariate_t(np.zeros(4), np.eye(4), 3)
    parts = ((0, 3000), (1, 400), (2, 4000))
    z, held_out, fresh = (law.rvs(num, random_state=seed) for seed, num in parts)
    plain, found = by_em(z, 1), best_mixture(z, held_out)
    assert found.form.tail > 0.0
    short = lambda mixture: (law.logpdf(fresh) - mixture.log_density(fresh)).mean()
    assert short(plain) > 0.8
    assert short(found) < 0.06
    base = found.as_base()
    energy = jax.vmap(base.energy, in_axes=(0, None))(jnp.asarray(fresh[:50]), 0.0)
    np.testing.assert_allclose(-energy, found.log_density(fresh[:50]), rtol=1e-4)


def test_a_part_of_the_rows_chooses_and_all_are_fitted(monkeypatch):
    """A choice with 500 of 4,000 rows: as many components, at the optimum of all rows."""
    z, held_out = rows(4000, 1), rows(500, 2)
    whole = best_mixture(z, held_out)
    monkeypatch.setattr(mixture, "_CHOICE_COST", 500 * z.shape[1] ** 2)
    part = best_mixture(z, held_out)
    assert len(part.weights) == len(whole.weights)
    density = lambda found: found.log_density(z).mean()
    # iterations stop where one gains less than 1e-3 nats
    assert abs(density(part) - density(whole)) < 5e-3
    chosen = np.random.default_rng(0).permutation(len(z))[:500]
    assert density(part) > density(best_mixture(z[chosen], held_out))


def test_one_gaussian_is_enough_for_one():
    z = np.random.default_rng(0).normal(size=(1200, 3))
    assert fit_base(z[200:], z[:200], None) is None
    assert fit_base(z[200:], z[:200], 1) is None


def test_the_same_rows_give_the_same_base():
    first, second = (
        fit_base(rows(600, 1), rows(100, 2), 3).as_base() for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


OPTIONS = {"num_steps": 2, "batch_size": 16, "progress_bar": False}


def test_fit_starts_from_a_mixture_and_may_be_told_not_to():
    samples = rows(400, 4)
    model, _ = fit(jr.key(0), samples, training=Training(num_components=3), **OPTIONS)
    assert isinstance(model.base, MixtureBase)
    model, _ = fit(jr.key(0), samples, training=Training(num_components=1), **OPTIONS)
    assert isinstance(model.base, GaussianBase)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"training": Training(num_components=200)},
            "`num_components` must be at most 60",
        ),
        ({"condition": np.arange(400.0)}, "`num_components` must be None or 1 where"),
    ],
)
def test_refusals(options, message):
    options = {"training": Training(num_components=2)} | options
    with pytest.raises(ValueError, match=message):
        fit(jr.key(0), rows(400, 4), **options, **OPTIONS)


def test_an_exchangeable_network_keeps_its_gaussian():
    network = EnergySet((4, 2), key=jr.key(0))
    samples = np.random.default_rng(0).normal(size=(100, 4, 2))
    options = {"training": Training(num_components=2), **OPTIONS}
    with pytest.raises(ValueError, match="None or 1 for an exchangeable network"):
        fit(jr.key(0), samples, network=network, **options)
