"""The levels between the reference and the posterior, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from numpyro_rtk import paths
from numpyro_rtk.density import standardised
from numpyro_rtk.gaussians import GaussianMixture
from numpyro_rtk.noise import angle_ladder, noise_variance, signal
from tests.oracles import SKEWED, Mixture

TIMES = angle_ladder(5)
POINTS = jnp.asarray(np.random.default_rng(0).normal(size=(12, 2)), jnp.float32)
STANDARD = GaussianMixture([1.0], [[0.0, 0.0]], [np.eye(2)])
SHIFTED = Mixture(SKEWED.weights, 3.0 * SKEWED.means + 5.0, 9.0 * SKEWED.covariances)


def log_likelihood(u):
    return -0.5 * jnp.square(u[0] - 0.7 * u[1] - 0.4) / 0.1 + 0.3 * jnp.sin(u[1])


def level(levels, k):
    return jax.tree.map(lambda leaf: leaf[k], levels)


def test_levels_hold_what_they_say():
    levels = paths.levels_of(TIMES, 0.3)
    np.testing.assert_allclose(levels.t, TIMES, rtol=1e-6)
    np.testing.assert_allclose(levels.signal, np.exp(-TIMES), rtol=1e-6)
    expected = 0.3 / (0.3 + 1.0 - np.exp(-2.0 * TIMES))
    np.testing.assert_allclose(levels.inverse_temperature, expected, rtol=1e-6)
    assert levels.inverse_temperature[0] == 1.0


def test_level_zero_is_prior_times_likelihood():
    model = SHIFTED.jax(standardise=True)
    path = paths.posterior_path(standardised(model), log_likelihood)
    bottom = level(paths.levels_of(TIMES, 0.3), 0)
    for u in POINTS:
        x = model.loc + model.scale * u
        prior = model.log_density(x, 0.0) + jnp.sum(jnp.log(model.scale))
        expected = prior + log_likelihood(u)
        np.testing.assert_allclose(path(u, bottom).log_density, expected, rtol=1e-5)


def test_path_is_the_exact_noised_posterior_for_gaussians():
    """Prior N(0, I), y = x_1 + N(0, c): every level up to its constant."""
    y, c = 1.3, 0.2
    path = paths.posterior_path(
        standardised(STANDARD), lambda u: -0.5 * jnp.square(y - u[0]) / c
    )
    levels = paths.levels_of(TIMES, c)
    mean, variance = y / (1.0 + c), c / (1.0 + c)
    for k, t in enumerate(TIMES):
        a = np.exp(-t)
        spread = np.sqrt(a**2 * variance + 1.0 - a**2)
        expected = stats.norm.logpdf(POINTS[:, 0], a * mean, spread)
        expected += stats.norm.logpdf(POINTS[:, 1])
        got = jax.vmap(path, in_axes=(0, None))(POINTS, level(levels, k)).log_density
        difference = np.asarray(got) - expected
        np.testing.assert_allclose(difference, difference[0], atol=1e-4)


@pytest.mark.parametrize("k", range(len(TIMES)))
def test_scores_are_gradients_of_log_densities(k):
    base = standardised(SHIFTED.jax(standardise=True))
    at = level(paths.levels_of(TIMES, 0.3), k)
    for path in (paths.prior_path(base), paths.posterior_path(base, log_likelihood)):
        for u in POINTS[:4]:
            expected = jax.grad(lambda v, path=path: path(v, at).log_density)(u)
            np.testing.assert_allclose(
                path(u, at).score, expected, rtol=1e-4, atol=1e-4
            )


def test_prior_path_is_the_noised_prior():
    path = paths.prior_path(standardised(SKEWED.jax()))
    levels = paths.levels_of(TIMES, 1.0)
    for k, t in enumerate(TIMES):
        got = jax.vmap(path, in_axes=(0, None))(POINTS, level(levels, k)).log_density
        expected = SKEWED.noised(t).log_density(POINTS)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf, jnp.inf])
def test_what_is_no_density_has_none_and_no_drift(value):
    path = paths.posterior_path(standardised(STANDARD), lambda u: value * jnp.abs(u[0]))
    got = path(POINTS[0], level(paths.levels_of(TIMES, 0.3), 2))
    assert got.log_density == -jnp.inf
    assert np.all(np.isfinite(got.score))


def test_calibrate_finds_the_moments_of_a_gaussian(key):
    """E[score**2] = 1 / variance at every level, since the start is exact here.

    With n particles a mean square has relative error sqrt(2 / n) = .01 at most (the
    population is balanced); five of them, 5 %.
    """
    variances = np.array([0.15, 1.0, 2.0])
    base = standardised(GaussianMixture([1.0], [[0.3, 0, -1]], [np.diag(variances)]))
    times = angle_ladder(8)
    got, _ = paths.calibrate(key, paths.scores_of(base), times, 3, num_particles=20_000)
    assert got.shape == (9, 3)
    a = np.exp(-times)[:, None]
    np.testing.assert_allclose(got * (a**2 * variances + 1.0 - a**2), 1.0, atol=0.05)


def test_calibrate_gives_the_start_variance_of_wide_segments(key):
    """1 - v E[score**2] is .04 here: the sampling error of E[score**2] would be .09."""
    base = standardised(STANDARD)
    moment, _ = paths.calibrate(key, paths.scores_of(base), TIMES, 2)
    got = paths.plan_segments(TIMES, moment)[0].root ** 2
    a = np.exp(-np.diff(TIMES))[:, None]
    np.testing.assert_allclose(got, np.broadcast_to(1.0 - a**2, (5, 2)), rtol=0.2)


def test_calibrate_is_not_set_by_one_wild_score(key):
    class Wild:
        event_shape = (1,)

        def score(self, x, t):
            return jnp.where(x > 3.0, 1e6, -x)

    got, _ = paths.calibrate(key, paths.scores_of(standardised(Wild())), TIMES, 1)
    assert np.all(got < 5.0)


def test_plan_segments():
    moment = jnp.asarray(
        np.random.default_rng(3).uniform(0.8, 3.0, (6, 2)), jnp.float32
    )
    segments, scale = paths.plan_segments(TIMES, moment)
    a = np.exp(-np.diff(TIMES))[:, None]
    v = 1.0 - a**2
    np.testing.assert_allclose(segments.a, a[:, 0], rtol=1e-5)
    np.testing.assert_allclose(segments.v, v[:, 0], rtol=1e-5)
    noise = 1.0 - np.exp(-2.0 * TIMES[:-1, None])
    bridge = noise * v / (noise * a**2 + v)
    start = np.maximum(v / a**2 * (1.0 - v * moment[1:]), np.maximum(bridge, 0.02 * v))
    np.testing.assert_allclose(segments.root**2, start, rtol=1e-4)
    np.testing.assert_allclose(scale, (a**2 / v + moment[:-1]) ** -0.5, rtol=1e-5)


def test_plan_segments_with_the_papers_start():
    moment = jnp.asarray(
        np.random.default_rng(3).uniform(0.8, 3.0, (6, 2)), jnp.float32
    )
    segments, scale = paths.plan_segments(TIMES, moment, paper_start=True)
    _, usual_scale = paths.plan_segments(TIMES, moment)
    smoothness = np.max(moment[:-1], axis=1, keepdims=True)
    expected = np.broadcast_to(0.25 / smoothness, (5, 2))
    np.testing.assert_allclose(segments.root**2, expected, rtol=1e-6)
    np.testing.assert_allclose(segments.mean_x, 0.5 * np.exp(np.diff(TIMES)), rtol=1e-5)
    np.testing.assert_array_equal(segments.mean_score, np.zeros(5))
    np.testing.assert_array_equal(scale, usual_scale)


def test_levels_agree_with_the_noise():
    levels = paths.levels_of(TIMES, 1.0)
    np.testing.assert_array_equal(levels.signal, signal(levels.t))
    half = 1.0 / (1.0 + noise_variance(levels.t))
    np.testing.assert_allclose(levels.inverse_temperature, half, rtol=1e-6)
