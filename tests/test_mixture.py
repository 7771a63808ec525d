"""The exact noised mixture against NumPy, quadrature and its own gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rtk.mixture import GaussianMixture
from tests.oracles import SKEWED, Mixture, assert_mean

ONE_D = Mixture([0.7, 0.3], [[-2.0], [1.5]], [[[0.2]], [[0.6]]])
MIXTURES = {"1d": ONE_D, "2d": SKEWED}
SHIFTED = Mixture(SKEWED.weights, 3.0 * SKEWED.means + 5.0, 9.0 * SKEWED.covariances)


def points(mixture, n=40):
    mean, covariance = mixture.moments()
    spread = 2.0 * np.sqrt(np.diag(covariance))
    return mean + spread * np.random.default_rng(1).normal(size=(n, mean.size))


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=list(MIXTURES))
@pytest.mark.parametrize("t", [0.0, 0.05, 0.9, 4.0])
def test_density_is_numpys(mixture, t):
    x = points(mixture)
    got = mixture.jax().log_density(jnp.asarray(x), t)
    expected = mixture.noised(t).log_density(x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [0.0, 0.4, 4.0])
def test_density_with_standardise_is_numpys(t):
    mean, covariance = SHIFTED.moments()
    scale = np.sqrt(np.diag(covariance))
    model = SHIFTED.jax(standardise=True)
    np.testing.assert_allclose(model.loc, mean, rtol=1e-6)
    np.testing.assert_allclose(model.scale, scale, rtol=1e-6)
    x = points(SHIFTED)
    expected = SHIFTED.noised(t, mean, scale).log_density(x)
    got = model.log_density(jnp.asarray(x), t)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("t", [0.0, 0.7])
@pytest.mark.parametrize("mixture", [ONE_D, SHIFTED], ids=["1d", "2d"])
def test_density_integrates_to_one(mixture, t, standardise):
    # trapezoids on a grid of 12 sds: spectrally accurate for smooth densities
    model = mixture.jax(standardise=standardise)
    mean, covariance = mixture.noised(t, model.loc, model.scale).moments()
    reach = 6.0 * np.sqrt(np.diag(covariance))
    axes = [np.linspace(m - r, m + r, 301) for m, r in zip(mean, reach, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    density = np.exp(np.asarray(model.log_density(jnp.asarray(grid), t), np.float64))
    for axis in reversed(axes):
        density = np.trapezoid(density, axis, axis=-1)
    np.testing.assert_allclose(density, 1.0, atol=1e-4)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("t", [0.0, 0.3, 3.0])
def test_score_is_the_gradient(t, standardise):
    model = SHIFTED.jax(standardise=standardise)
    x = jnp.asarray(points(SHIFTED))
    expected = jax.vmap(jax.grad(model.log_density), in_axes=(0, None))(x, t)
    np.testing.assert_allclose(model.score(x, t), expected, rtol=1e-3, atol=1e-4)
    value, score = model.log_density_and_score(x, t)
    np.testing.assert_array_equal(score, model.score(x, t))
    np.testing.assert_array_equal(value, model.log_density(x, t))


@pytest.mark.parametrize("standardise", [False, True])
def test_samples_have_the_moments(key, standardise):
    # n = 50,000 independent draws; the errors are the draws' own, z = 5
    mean, covariance = SHIFTED.moments()
    draws = SHIFTED.jax(standardise=standardise).sample(key, (50_000,))
    assert_mean(draws, mean)
    centred = np.asarray(draws) - mean
    assert_mean(centred[:, :, None] * centred[:, None, :], covariance)
    exact = SHIFTED.draws(3, 1_000_000)
    threshold = mean[0] + 2.0
    assert_mean(np.asarray(draws)[:, 0] > threshold, (exact[:, 0] > threshold).mean())


def test_shapes_and_batches():
    model = SKEWED.jax()
    assert model.event_shape == (2,)
    assert model.sample(jax.random.key(0)).shape == (2,)
    assert model.sample(jax.random.key(0), (3, 4)).shape == (3, 4, 2)
    x = jnp.zeros((3, 4, 2))
    assert model.log_density(x, 0.1).shape == (3, 4)
    assert model.score(x, jnp.full((4,), 0.1)).shape == (3, 4, 2)


def test_a_time_per_point():
    model, times = SKEWED.jax(), jnp.array([0.0, 0.2, 1.0])
    x = jnp.asarray(points(SKEWED, 3), jnp.float32)
    one_by_one = [model.log_density(x[i], times[i]) for i in range(3)]
    np.testing.assert_allclose(model.log_density(x, times), one_by_one, rtol=1e-5)


def test_weights_are_normalised_to_the_last_digit():
    model = GaussianMixture([0.3, 0.700005], [[0.0], [1.0]], np.ones((2, 1, 1)))
    np.testing.assert_allclose(model.weights.sum(), 1.0, rtol=1e-7)


EYE = [[[1.0, 0.0], [0.0, 1.0]]]
REFUSED = [
    ([], np.zeros((0, 2)), np.zeros((0, 2, 2)), r"`weights` must have shape \(comp"),
    ([[1.0]], [[0.0, 0.0]], EYE, r"`weights` must have shape .*\(1, 1\)"),
    ([1.0], [0.0, 0.0], EYE, r"`means` must have shape \(1, dim\); got \(2,\)"),
    ([1.0], [[0.0, 0.0]] * 2, EYE, r"`means` must have shape \(1, dim\)"),
    ([1.0], [[0.0, 0.0]], EYE[0], r"`covariances` must have shape \(1, 2, 2\)"),
    ([1.0], [[0.0]], EYE, r"`covariances` must have shape \(1, 1, 1\)"),
    ([0.5], [[0.0, 0.0]], EYE, "sum to one; got a sum of 0.5"),
    ([1.5, -0.5], [[0.0, 0.0]] * 2, EYE * 2, "positive.*smallest weight of -0.5"),
    ([1.0, 0.0], [[0.0, 0.0]] * 2, EYE * 2, "positive.*smallest weight of 0"),
    ([np.nan], [[0.0, 0.0]], EYE, "sum to one; got a sum of nan"),
    ([1.0], [[0.0, np.nan]], EYE, "must be finite"),
    ([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, np.inf]]], "must be finite"),
    ([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]], "must be symmetric"),
    ([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]], "smallest eigenvalue of -1"),
    ([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 0.0]]], "positive definite"),
]


@pytest.mark.parametrize(("weights", "means", "covariances", "message"), REFUSED)
def test_refusals(weights, means, covariances, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(weights, means, covariances)


@pytest.mark.parametrize("standardise", [False, True])
def test_a_scale_that_is_not_resolved_is_said(standardise):
    build = lambda offset, sd: GaussianMixture(
        [0.5, 0.5],
        [[0.0, 1.0], [0.0, offset]],
        [np.eye(2), np.diag([1.0, sd**2])],
        standardise=standardise,
    )
    message = r"`means` must have a scale that float32.*index \(1, 1\)"
    with pytest.raises(ValueError, match=message + ".*0.16 of them.*jax_enable_x64"):
        build(1e6, 0.01)
    with pytest.warns(UserWarning, match=message):
        build(1e4, 0.1)
    build(1e4, 10.0)  # 10,240 numbers in a standard deviation


def test_in_double_precision_it_is_resolved(x64):
    far = GaussianMixture([1.0], [[1e6]], [[[1e-4]]], standardise=True)
    draws = np.asarray(far.sample(jax.random.key(0), (2000,)))
    # standard error of a standard deviation from 2,000 draws: 1.6 %
    np.testing.assert_allclose(draws.std(), 0.01, rtol=0.08)
    np.testing.assert_allclose(
        far.log_density(jnp.array([1e6]), 0.0), 3.68623, rtol=1e-4
    )
