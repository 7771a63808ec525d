"""Twists: the convolved likelihood of a Gaussian, and what they are of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from numpyro_rtk.core.particle_plan import plan_of_rows
from numpyro_rtk.core.particles import SweepNoise, Target, sweep
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.core.twist import (
    even_sharpness,
    look_ahead,
    sharpness_at,
    twist_of,
)
from numpyro_rtk.core.warmup.prior_spread import PriorSpread
from numpyro_rtk.noise import angle_ladder, noise_variance, signal

DESIGN = np.array([[1.0, 0.4, -0.3], [0.2, -1.0, 0.5]])
DATA, SD = np.array([0.8, -0.5]), np.array([0.02, 0.3])  # of very different precision
ROOT = np.array([[0.7, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.3, 0.2, 0.6]])
COVARIANCE = ROOT @ ROOT.T
FAR = np.array([6.0, -5.0])  # seven standard deviations from the prior's mean


def evidence_of(data):
    total = DESIGN @ COVARIANCE @ DESIGN.T + np.diag(SD**2)
    return multivariate_normal.logpdf(data, np.zeros(2), total)


def gaussian(x, data=DATA):
    residual = (jnp.asarray(data) - jnp.asarray(DESIGN) @ x) / jnp.asarray(SD)
    volume = jnp.sum(jnp.log(jnp.asarray(SD))) + jnp.log(2.0 * jnp.pi)
    return -0.5 * jnp.sum(jnp.square(residual)) - volume


def sharpness_of(log_likelihood, at, **options):
    """Of one row; leading axis 1."""
    likelihood = jax.vmap(jax.value_and_grad(log_likelihood))
    kinds = {"dense": True, "forward_mode": False} | options
    return sharpness_at(likelihood, jnp.asarray(at, jnp.float32)[:, None], **kinds)


def twist_at(sharpness, unknown):
    """Of a level whose slope is the identity, with its way back."""
    unknown = jnp.asarray(unknown, jnp.float32)[None]
    eye = jnp.eye(unknown.shape[-1])[None]
    slope = eye if unknown.ndim == 3 else jnp.ones_like(unknown)
    sharpness = jax.tree.map(lambda leaf: leaf[0], sharpness)
    twist, back = twist_of(slope, unknown, sharpness)
    return jax.tree.map(lambda leaf: leaf[0], twist), back[0]


@pytest.mark.parametrize("forward_mode", [False, True])
def test_a_gaussians_twist_is_its_convolution(forward_mode):
    """Up to one constant, log N(y; A x, S + A C A^T); its gradient too."""
    sharpness = sharpness_of(gaussian, [[0.1, 0.2, 0.3]], forward_mode=forward_mode)
    np.testing.assert_allclose(1.0 / sharpness.variance, 1.25 / SD[0] ** 2, rtol=0.01)
    unknown = 0.1 * COVARIANCE
    total = np.diag(SD**2) + DESIGN @ unknown @ DESIGN.T
    exact = lambda x: multivariate_normal.logpdf(DATA, DESIGN @ x, total)
    twist, back = twist_at(sharpness, unknown)
    points = np.array([[0.2, -0.1, 0.4], [1.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    found = [
        look_ahead(twist, *jax.value_and_grad(gaussian)(jnp.asarray(x, jnp.float32)))
        for x in points
    ]
    offsets = [
        float(value) - exact(x) for (value, _), x in zip(found, points, strict=True)
    ]
    np.testing.assert_allclose(offsets, offsets[0], atol=2e-3)
    for (_, parts), x in zip(found, points, strict=True):
        gradient = back @ parts
        expected = DESIGN.T @ np.linalg.solve(total, DATA - DESIGN @ x)
        np.testing.assert_allclose(gradient, expected, rtol=2e-3, atol=2e-3)


def test_a_diagonal_curvature_is_found_by_probes():
    """As of the pixels that are seen: exact, and 0 for the others."""
    weight = jnp.array([4.0, 0.0, 25.0])
    log_likelihood = lambda x: -0.5 * jnp.sum(weight * jnp.square(x - 1.0))
    sharpness = sharpness_of(log_likelihood, np.zeros((2, 3)), dense=False)
    np.testing.assert_allclose(sharpness.curvature[0], weight, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sharpness.peak, 0.0, atol=1e-4)
    twist, _ = twist_at(sharpness, [0.1, 0.1, 0.1])
    np.testing.assert_allclose(
        twist.inverse_temperature, 1.0 / (1.0 + 0.1 * weight), rtol=1e-4
    )


OTHERS = {
    "heavy tails": lambda x: -2.0 * jnp.sum(jnp.log1p(jnp.square(x - 0.5) / 0.01)),
    "two modes": lambda x: jnp.logaddexp(
        -50.0 * jnp.sum(jnp.square(x - 1.0)), -5.0 * jnp.sum(jnp.square(x + 1.0))
    ),
    "flat": lambda x: 0.0 * jnp.sum(x),
    "no bound": lambda x: jnp.sum(jnp.where(x > 0.3, 0.0, -jnp.inf)),
}


@pytest.mark.parametrize("log_likelihood", OTHERS.values(), ids=OTHERS)
def test_of_any_likelihood_it_is_between_that_and_its_peak(log_likelihood, key):
    """However wrong the curvature is: it cannot grow where the likelihood falls."""
    sharpness = sharpness_of(log_likelihood, [[0.9, 1.1], [0.4, 0.6]])
    twist, _ = twist_at(sharpness, 0.2 * np.eye(2))
    points = 3.0 * jax.random.normal(key, (500, 2))
    value, gradient = jax.vmap(jax.value_and_grad(log_likelihood))(points)
    found, parts = jax.vmap(look_ahead, (None, 0, 0))(twist, value, gradient)
    assert np.all(np.isfinite(found))
    assert np.all(np.isfinite(parts))
    alive = np.isfinite(value)
    low, high = np.sort([value, np.full_like(value, sharpness.peak[0])], axis=0)
    slack = 1e-3 * (1.0 + np.abs(low))
    assert np.all((found >= low - slack)[alive])
    assert np.all((found <= high + slack)[alive])


def test_even_twists_temper_by_the_mean_variance():
    """c / (c + mean of the variances), whatever the gradient."""
    sharpness = even_sharpness(jnp.asarray(0.5), (1, 2), dense=True)
    twist, back = twist_at(sharpness, [[0.3, 0.1], [0.1, 0.7]])
    value, parts = look_ahead(twist, jnp.asarray(-3.0), jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(value, -1.5, rtol=1e-6)
    np.testing.assert_allclose(back @ parts, [0.5, 1.0], rtol=1e-6)


def plan_of(sharpness, num_levels=8):
    times = jnp.asarray(angle_ladder(num_levels), jnp.float32)
    a2, s2 = np.square(signal(times)), np.asarray(noise_variance(times))
    total = a2[:, None, None] * COVARIANCE + s2[:, None, None] * np.eye(3)
    moment = jnp.asarray(np.linalg.inv(total), jnp.float32)
    spread = PriorSpread.of(times, moment, jnp.asarray(COVARIANCE, jnp.float32))
    return plan_of_rows(times, spread.unknown(times), sharpness)


def weights_vary(sharpness, key, data=DATA, change=lambda plan: plan):
    """Of a Gaussian prior and likelihood: error of the evidence, and least ESS."""

    def base(x, t):
        total = jnp.square(signal(t)) * jnp.asarray(COVARIANCE, x.dtype)
        total = total + noise_variance(t) * jnp.eye(3)
        return Evaluation(jnp.zeros(()), -jnp.linalg.solve(total, x))

    plan = change(plan_of(sharpness))
    likelihood = jax.vmap(jax.value_and_grad(lambda x: gaussian(x, data)))
    target = Target(jax.vmap(base, (0, None)), likelihood, False)

    def one(key):
        noise = SweepNoise.draw(key, 8, 32, (1, 3), jnp.float32)
        found = sweep(noise, None, target, plan)
        return found.log_evidence, found.sample_size

    value, size = jax.jit(jax.vmap(one))(jax.random.split(key, 200))
    error = np.sqrt(np.mean((value - evidence_of(data)) ** 2))
    return float(error), float(size.min())


def test_of_gaussians_all_particles_weigh_the_same(key):
    """Nothing is lost on eight levels.

    Data of sd .02 and .3 in one likelihood. The control: all directions alike, by the
    best of three c.
    """
    error, least = weights_vary(sharpness_of(gaussian, np.zeros((1, 3))), key)
    assert error < 0.01, error
    assert least > 31.5, least
    even = [
        weights_vary(even_sharpness(jnp.asarray(c), (1, 3), dense=True), key)
        for c in (1e-3, 1e-2, 1e-1)
    ]
    assert min(error for error, _ in even) > 0.1, even


def test_so_they_do_of_data_that_the_prior_did_not_expect(key):
    """The control: particles enter by the reference, which such data are far from."""
    sharpness = sharpness_of(lambda x: gaussian(x, FAR), np.zeros((1, 3)))
    error, least = weights_vary(sharpness, key, FAR)
    assert error < 0.02, error
    assert least > 31.5, least

    def by_the_reference(plan):
        entry = plan.entry
        still = entry._replace(lift=0.0 * entry.lift, narrow=jnp.ones((1, 3)))
        return plan._replace(entry=still)

    lost, least = weights_vary(sharpness, key, FAR, by_the_reference)
    assert lost > 0.04, lost
    assert least < 28.0, least


def test_reverse_kernels_of_a_gaussian_are_exact():
    """On any ladder; a moment that is off by its error does not spoil the top."""
    plan = plan_of(even_sharpness(jnp.ones(()), (1, 3), dense=True), num_levels=4)
    segments = jax.tree.map(lambda leaf: np.asarray(leaf[:, 0]), plan.segments)
    a, v = segments.a, segments.v
    times = angle_ladder(4)
    for k in range(4):
        low = signal(times[k]) ** 2 * COVARIANCE + noise_variance(times[k]) * np.eye(3)
        exact = np.linalg.inv(np.linalg.inv(low) + a[k] ** 2 / v[k] * np.eye(3))
        root = segments.root[k]
        np.testing.assert_allclose(root @ root.T, exact, rtol=2e-3, atol=2e-4)
        inverse = segments.inverse_root[k]
        np.testing.assert_allclose(inverse @ root, np.eye(3), atol=1e-4)


def test_an_unknown_part_stays_between_nothing_and_a_gaussians():
    """Whatever moments were measured, of a sample or of a network that is wrong."""
    times = jnp.asarray(angle_ladder(8), jnp.float32)
    rng = np.random.default_rng(0)
    wild = rng.normal(size=(9, 3, 3)) * 3.0
    moment = jnp.asarray(wild @ np.swapaxes(wild, 1, 2), jnp.float32)
    covariance = jnp.asarray(COVARIANCE, jnp.float32)
    unknown = np.asarray(PriorSpread.of(times, moment, covariance).unknown(times))
    gaussian = np.asarray(
        PriorSpread.of(times, 0.0 * moment, covariance).unknown(times)
    )
    assert np.linalg.eigvalsh(unknown).min() > -1e-5
    assert np.linalg.eigvalsh(gaussian - unknown).min() > -1e-5
