"""The exact noised mixture against NumPy, quadrature and its own gradient; its checks."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.gaussians import GaussianMixture, noised_gaussian, noised_mixture
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


def test_it_gives_back_what_it_was_made_of():
    model = SHIFTED.jax(standardise=True)
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(
            getattr(model, name), getattr(SHIFTED, name), rtol=1e-5, atol=1e-5
        )


def test_far_off_it_keeps_its_digits():
    """Components of sd 1 at 3,000, which float32 numbers resolve to 2.4e-4.

    Turned to a component's axes before the mean is subtracted, as the control does, a
    point is off by as much along each of 20 axes.
    """
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    covariance = turned * np.linspace(0.8, 1.2, 20) @ turned.T
    shift = rng.integers(-4, 4, size=20) / 4.0  # numbers of float32, and so their mean
    far = Mixture([0.5, 0.5], [3000.0 + shift, 3000.0 - shift], [covariance] * 2)
    x = jnp.asarray(far.draws(1, 100), jnp.float32)
    exact = far.log_density(np.asarray(x, float))
    error = lambda log_density: np.abs(np.asarray(log_density) - exact).max()
    assert error(far.jax().log_density(x, 0.0)) < 1e-4
    turned_first = noised_mixture(far.weights, far.means, far.covariances)
    assert error(jax.vmap(turned_first.log_density, (0, None))(x, 0.0)) > 1e-3


# -- as a base: on the standardised scale, one point and one time a call


@pytest.mark.parametrize("mixture", [ONE_D, SKEWED], ids=["1d", "2d"])
@pytest.mark.parametrize("t", [0.0, 0.3, 2.0])
def test_a_base_is_the_noised_mixture(mixture, t):
    base = noised_mixture(mixture.weights, mixture.means, mixture.covariances)
    z, t = jnp.asarray(points(mixture), jnp.float32), jnp.asarray(t)
    log_density = jax.vmap(base.log_density, in_axes=(0, None))(z, t)
    expected = mixture.noised(float(t)).log_density(np.asarray(z, float))
    np.testing.assert_allclose(log_density, expected, rtol=1e-4, atol=1e-4)
    score = jax.vmap(base.score, in_axes=(0, None))(z, t)
    gradient = jax.vmap(jax.grad(base.log_density), in_axes=(0, None))(z, t)
    np.testing.assert_allclose(score, gradient, rtol=1e-3, atol=1e-4)


def test_draws_of_a_base_have_the_moments():
    """20,000 draws, one at a time and all at once: two moments within 5 errors."""
    t, num = jnp.asarray(0.4), 20_000
    base = noised_mixture(SKEWED.weights, SKEWED.means, SKEWED.covariances)
    mean, covariance = SKEWED.noised(0.4).moments()
    singly = jax.vmap(base.sample, in_axes=(0, None))(jr.split(jr.key(0), num), t)
    for z in (singly, base.sample(jr.key(1), t, (num,))):
        assert_mean(z, mean)
        centred = np.asarray(z) - mean
        assert_mean(centred[:, :, None] * centred[:, None, :], covariance)


def test_one_gaussian_is_a_mixture_of_one():
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    variances = np.array([0.2, 0.7, 1.5])
    base, law = (
        noised_gaussian(axes, variances),
        Mixture([1.0], np.zeros((1, 3)), [axes * variances @ axes.T]).noised(0.3),
    )
    base.check("base")
    z = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    t = jnp.asarray(0.3)
    log_density, score = jax.vmap(base.log_density_and_score, (0, None))(z, t)
    np.testing.assert_allclose(log_density, law.log_density(z), rtol=1e-5)
    expected = -z @ np.linalg.inv(law.covariances[0])
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-5)
    draws = base.sample(jr.key(0), t, (50_000,))
    assert_mean(draws, 0.0)
    assert_mean(np.asarray(draws)[:, :, None] * draws[:, None], law.covariances[0])


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("log_weights", lambda a: a - 0.1, "`base.log_weights` must be logs.*sum 1"),
        ("log_weights", lambda a: a * jnp.nan, "`base.log_weights` must be logs"),
        ("axes", lambda a: 1.1 * a, "`base.axes` must be orthogonal"),
        ("centres", lambda a: a * jnp.inf, "`base.centres` must be finite"),
        ("variances", lambda a: -a, "`base.variances` must be positive"),
    ],
)
def test_what_is_no_mixture_is_said(part, change, message):
    base = noised_mixture(SKEWED.weights, SKEWED.means, SKEWED.covariances)
    base.check("base")
    broken = dataclasses.replace(base, **{part: change(getattr(base, part))})
    with pytest.raises(ValueError, match=message):
        broken.check("base")
