"""One segment between Gaussians, where everything has a closed form."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from numpyro_rtk.core import segment as seg
from numpyro_rtk.core.segment import Evaluation
from tests.oracles import assert_mean, gaussian_target

LOW, HIGH = 0.15, 0.6
MEAN, VARIANCE = np.array([0.7, -1.2, 0.1]), np.array([0.3, 1.5, 0.04])
X = jnp.array([1.1, -0.4, 0.6])
A = np.exp(LOW - HIGH)
V = 1.0 - A**2


def moments_at(t):
    a = np.exp(-t)
    return a * MEAN, a**2 * VARIANCE + 1.0 - a**2


def exact_reverse():
    """Mean and variance of z given x for the diagonal Gaussian, by Bayes's rule."""
    mean, variance = moments_at(LOW)
    posterior = 1.0 / (1.0 / variance + A**2 / V)
    return posterior * (mean / variance + A * np.asarray(X) / V), posterior


def gaussian_segment():
    """With the analytic proposal, from the exact second moment of the score."""
    return seg.segment_between(
        jnp.array(LOW), jnp.array(HIGH), jnp.asarray(1.0 / moments_at(HIGH)[1])
    )


def upper_score():
    return gaussian_target(*moments_at(HIGH))(X).score


def test_segment_is_the_noising_between_its_levels():
    segment = gaussian_segment()
    np.testing.assert_allclose(segment.a, A, rtol=1e-6)
    np.testing.assert_allclose(segment.v, V, rtol=1e-6)
    mean, variance = moments_at(LOW)
    np.testing.assert_allclose(A * mean, moments_at(HIGH)[0])
    np.testing.assert_allclose(A**2 * variance + V, moments_at(HIGH)[1])


def test_a_short_segment_keeps_its_digits():
    segment = seg.segment_between(jnp.array(1.0), jnp.array(1.0 + 2**-20), jnp.ones(1))
    np.testing.assert_allclose(segment.v, 2**-19, rtol=1e-5)


def test_segments_of_a_ladder_at_once():
    t, moment = jnp.array([0.0, 0.1, 0.5, 2.0]), jnp.ones((3, 2)) * 1.3
    together = seg.segment_between(t[:-1], t[1:], moment)
    for k in range(3):
        alone = seg.segment_between(t[k], t[k + 1], moment[k])
        jax.tree.map(
            lambda many, one, k=k: np.testing.assert_allclose(many[k], one, rtol=1e-6),
            together,
            alone,
        )


def test_a_dense_proposal_of_a_correlated_gaussian_is_its_reverse_kernel():
    covariance = np.array([[1.0, 0.9, 0.0], [0.9, 1.2, -0.3], [0.0, -0.3, 0.5]])
    at = lambda t: np.exp(-2 * t) * covariance + (1 - np.exp(-2 * t)) * np.eye(3)
    t = jnp.array([0.0, LOW, HIGH])
    moment = jnp.asarray(np.stack([np.linalg.inv(at(x)) for x in (LOW, HIGH)]))
    segments = seg.segment_between(t[:-1], t[1:], moment.astype(jnp.float32))
    root = np.asarray(segments.root[1], float)
    exact = np.linalg.inv(np.linalg.inv(at(LOW)) + A**2 / V * np.eye(3))
    np.testing.assert_allclose(root @ root.T, exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(root @ segments.inverse_root[1], np.eye(3), atol=1e-5)
    np.testing.assert_allclose(
        segments.log_det[1], 0.5 * np.linalg.slogdet(exact)[1], atol=1e-4
    )
    alone = seg.segment_between(t[1], t[2], moment[1].astype(jnp.float32))
    np.testing.assert_allclose(alone.root, segments.root[1], atol=1e-6)


def test_a_dense_proposal_stays_definite_where_the_moment_is_off():
    """A wide segment, where 1 - v E[s s^T] of an estimate has a negative direction."""
    t = jnp.array([0.05, 3.0])
    moment = jnp.array([[[1.0, 0.05], [0.05, 1.01]]])
    segment = seg.segment_between(t[:-1], t[1:], moment)
    root = np.asarray(segment.root[0], float)
    _, v = seg.noising_between(t[0], t[1])
    assert np.linalg.eigvalsh(np.eye(2) - float(v) * np.asarray(moment[0])).min() < 0.0
    assert np.all(np.isfinite(root))
    bridge = seg.analytic_variance(
        *seg.noising_between(t[0], t[1]), jnp.ones(1) * 9, 0.095
    )
    assert np.linalg.eigvalsh(root @ root.T).min() > 0.9 * float(bridge[0])


def test_reverse_kernel_is_the_exact_conditional():
    """Its gradient is exact; its log density is, up to one constant: log p(x)."""
    segment = gaussian_segment()
    kernel = seg.reverse_kernel(segment, X, gaussian_target(*moments_at(LOW)))
    mean, variance = exact_reverse()
    log_evidence = stats.norm.logpdf(X, *_mean_sd(moments_at(HIGH))).sum()
    for z in np.random.default_rng(0).normal(size=(5, 3)):
        got = kernel(jnp.asarray(z))
        expected = stats.norm.logpdf(z, mean, np.sqrt(variance)).sum() + log_evidence
        np.testing.assert_allclose(got.log_density, expected, rtol=1e-4)
        np.testing.assert_allclose(got.score, (mean - z) / variance, rtol=1e-4)
        gradient = jax.grad(lambda u: kernel(u).log_density)(jnp.asarray(z))
        np.testing.assert_allclose(got.score, gradient, rtol=1e-4, atol=1e-4)


def _mean_sd(moments):
    return moments[0], np.sqrt(moments[1])


def test_with_noising_is_the_kernel_and_without_undoes_it():
    segment, lower_fn = gaussian_segment(), gaussian_target(*moments_at(LOW))
    z = jnp.array([0.2, 0.9, -0.3])
    kernel = seg.with_noising(segment, X, z, lower_fn(z))
    there = seg.reverse_kernel(segment, X, lower_fn)(z)
    back = seg.without_noising(segment, X, z, kernel)
    for got, expected in ((kernel, there), (back, lower_fn(z))):
        jax.tree.map(
            lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-5),
            got,
            expected,
        )


def test_no_density_stays_none_through_the_noising():
    segment, z = gaussian_segment(), jnp.zeros(3)
    none = Evaluation(jnp.array(-jnp.inf), jnp.zeros(3))
    back = seg.without_noising(segment, X, z, seg.with_noising(segment, X, z, none))
    assert back.log_density == -jnp.inf


def test_noising_is_normalised_and_its_draws_have_its_law(key):
    segment, z = gaussian_segment(), jnp.array([0.2, 0.9, -0.3])
    expected = stats.norm.logpdf(X, A * np.asarray(z), np.sqrt(V)).sum()
    np.testing.assert_allclose(seg.log_noising(segment, X, z), expected, rtol=1e-5)
    # n = 20,000 independent draws, z = 5
    noise = jr.normal(key, (20_000, 3))
    draws = jax.vmap(seg.sample_noising, in_axes=(None, None, 0))(segment, z, noise)
    assert_mean(draws, A * np.asarray(z))
    assert_mean((draws - A * z[None]) ** 2, V)


def test_analytic_proposal_is_the_exact_conditional_of_a_gaussian():
    segment = gaussian_segment()
    mean, variance = exact_reverse()
    got = seg.proposal_mean(segment, X, upper_score())
    np.testing.assert_allclose(got, mean, rtol=1e-4, atol=1e-5)
    # 1 - v E[score**2] cancels where the data are narrow: the digits of float32
    np.testing.assert_allclose(segment.root**2, variance, rtol=1e-4)


def test_tweedies_mean_is_exact_without_a_gaussian():
    """E[z | x] by quadrature, for a lower level with two unequal modes."""
    weights, means, variances = [0.7, 0.3], np.array([-1.0, 1.4]), np.array([0.1, 0.3])
    z = np.linspace(-8.0, 8.0, 20_001)

    def mixture(grid, a, v):
        parts = [
            w * stats.norm.pdf(grid, a * m, np.sqrt(a**2 * s + v))
            for w, m, s in zip(weights, means, variances, strict=True)
        ]
        return np.sum(parts, axis=0)

    for x in (-0.9, 0.2, 1.3):
        joint = mixture(z, 1.0, 0.0) * stats.norm.pdf(x, A * z, np.sqrt(V))
        expected = np.trapezoid(z * joint, z) / np.trapezoid(joint, z)
        step = 1e-4
        score = np.diff(np.log(mixture(np.array([x - step, x + step]), A, V)))
        segment = seg.segment_between(jnp.array(LOW), jnp.array(HIGH), jnp.ones(1))
        got = seg.proposal_mean(
            segment, jnp.array([x]), jnp.asarray(score / (2 * step))
        )
        np.testing.assert_allclose(got, [expected], rtol=1e-4, atol=1e-5)


def test_proposal_density_is_that_of_its_draws(key):
    segment, score = gaussian_segment(), upper_score()
    mean, variance = exact_reverse()
    z = jnp.array([0.5, 0.1, 0.7])
    expected = stats.norm.logpdf(z, mean, np.sqrt(variance)).sum()
    np.testing.assert_allclose(
        seg.log_proposal(segment, z, X, score), expected, rtol=1e-3
    )
    # n = 20,000 independent draws, z = 5
    noise = jr.normal(key, (20_000, 3))
    draws = jax.vmap(seg.sample_proposal, in_axes=(None, None, None, 0))(
        segment, X, score, noise
    )
    assert_mean(draws, mean)
    assert_mean((np.asarray(draws) - mean) ** 2, variance)


@pytest.fixture
def dense_segment():
    """A proposal with every part of a fitted one: shift, and a root that is a matrix."""
    root = np.array([[0.5, 0.0, 0.0], [0.2, 0.7, 0.0], [-0.1, 0.3, 0.4]])
    return gaussian_segment()._replace(
        mean_x=jnp.array(1.2),
        mean_score=jnp.array(0.3),
        shift=jnp.array([0.1, -0.2, 0.3]),
        root=jnp.asarray(root),
        inverse_root=jnp.asarray(np.linalg.inv(root)),
        log_det=jnp.asarray(np.linalg.slogdet(root)[1]),
    )


def test_fitted_proposal_density_is_that_of_its_draws(dense_segment, key):
    score, z = upper_score(), jnp.array([0.5, 0.1, 0.7])
    mean = 1.2 * np.asarray(X) + 0.3 * np.asarray(score) + [0.1, -0.2, 0.3]
    root = np.asarray(dense_segment.root, float)
    expected = stats.multivariate_normal(mean, root @ root.T).logpdf(z)
    got = seg.log_proposal(dense_segment, z, X, score)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    # n = 20,000 independent draws, z = 5
    noise = jr.normal(key, (20_000, 3))
    draws = jax.vmap(seg.sample_proposal, in_axes=(None, None, None, 0))(
        dense_segment, X, score, noise
    )
    assert_mean(draws, mean)
    off = np.asarray(draws, float) - mean
    assert_mean(off[:, :, None] * off[:, None, :], root @ root.T)


def test_log_weight_increment_is_the_ratio_of_both_laws(dense_segment):
    lower, upper = (gaussian_target(*moments_at(t)) for t in (LOW, HIGH))
    z = jnp.array([0.5, 0.1, 0.7])
    for segment in (gaussian_segment(), dense_segment):
        down = seg.log_proposal(segment, z, X, upper(X).score)
        expected = lower(z).log_density + seg.log_noising(segment, X, z)
        expected = expected - upper(X).log_density - down
        got = seg.log_weight_increment(segment, z, X, lower(z), upper(X))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_volume_ratio_is_what_no_position_enters():
    segment, score = gaussian_segment(), upper_score()
    z = jnp.array([0.5, 0.1, 0.7])
    expected = seg.log_noising(segment, X, z) - seg.log_proposal(segment, z, X, score)
    distances = seg.noising_misfit(segment, X, z) - seg.proposal_misfit(
        segment, z, X, score
    )
    got = seg.log_volume_ratio(segment) - distances
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), segment)
    np.testing.assert_allclose(
        seg.log_volume_ratio(both), [seg.log_volume_ratio(segment)] * 2, rtol=1e-6
    )


def test_papers_proposal():
    segment = seg.paper_segment_between(
        jnp.array(LOW), jnp.array(HIGH), jnp.array(3.0), dim=3
    )
    got = seg.proposal_mean(segment, X, upper_score())
    np.testing.assert_allclose(got, 0.5 * np.exp(HIGH - LOW) * X, rtol=1e-5)
    np.testing.assert_allclose(segment.root**2, np.full(3, 1.0 / 12.0), rtol=1e-6)
    np.testing.assert_allclose([segment.a, segment.v], [A, V], rtol=1e-6)


@pytest.mark.parametrize("moment", [1e3, 1e-3, 0.0])
def test_proposal_variance_stays_between_its_bounds(moment):
    """A moment is an estimate: the proposal never narrower than the bridge to the data."""
    last = seg.analytic_variance(A, V, jnp.array([moment]))
    assert 0.0199 * V < last[0] <= 1.00001 * V / A**2
    noise = 1.0 - np.exp(-2.0 * LOW)
    bridge = 1.0 / (A**2 / V + 1.0 / noise)
    higher = seg.analytic_variance(A, V, jnp.array([moment]), noise)
    assert 0.9999 * bridge < higher[0] <= 1.00001 * V / A**2


def test_bridge_is_the_proposal_of_a_point():
    """Data without spread: the exact proposal variance is the bridge's."""
    noise = 1.0 - np.exp(-2.0 * LOW)
    moment = jnp.array([1.0 / (A**2 * noise + V)])
    got = seg.analytic_variance(A, V, moment, noise)
    np.testing.assert_allclose(got, 1.0 / (A**2 / V + 1.0 / noise), rtol=1e-5)


def test_dtype_is_kept():
    segment = gaussian_segment()
    kernel = seg.reverse_kernel(segment, X, gaussian_target(*moments_at(LOW)))
    assert {leaf.dtype for leaf in jax.tree.leaves((segment, kernel(X)))} == {X.dtype}
