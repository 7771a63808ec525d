"""The deterministic predictor: exact for a point, of second order, and in a run."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk import paths
from numpyro_rtk.core.annealed import Plan, num_evals, predict_down
from numpyro_rtk.core.mala import mala
from numpyro_rtk.core.multistep import clean_mean, multistep_between, predict
from numpyro_rtk.core.uld import uld
from numpyro_rtk.noise import angle_ladder, log_snr_ladder
from tests.oracles import SKEWED, assert_mean, summaries, z_score

PRIOR = SKEWED.standardised()


def solve(t, x, score, slope=True):
    """Down to level 1; ``score(x, t)``."""
    steps = multistep_between(jnp.asarray(t))
    last = jnp.zeros_like(x)
    for k in range(len(t) - 2, 0, -1):
        step = jax.tree.map(lambda leaf, k=k: leaf[k], steps)
        if not slope:
            step = step._replace(slope=jnp.zeros_like(step.slope))
        clean = clean_mean(step, x, score(x, t[k + 1]))
        x, last = predict(step, x, clean, clean - last), clean
    return x


def test_exact_for_a_point_mass():
    """The flow keeps the noise (x - a m) / s of a point m."""
    t, point, noise = angle_ladder(4), np.array([0.7, -1.1]), np.array([1.3, 0.2])
    a, s = np.exp(-t), np.sqrt(-np.expm1(-2.0 * t))
    start = jnp.asarray(a[-1] * point + s[-1] * noise)
    got = solve(t, start, lambda x, u: (np.exp(-u) * point - x) / -np.expm1(-2.0 * u))
    np.testing.assert_allclose(got, a[1] * point + s[1] * noise, rtol=1e-5)


@pytest.mark.parametrize("num_segments", [1, 2, 3])
def test_coefficients_of_short_ladders(num_segments):
    """One row a segment, all finite; nothing before the first step and none at 0."""
    t = jnp.asarray(angle_ladder(num_segments))
    steps = multistep_between(t)
    for leaf in steps:
        assert leaf.shape == (num_segments,)
        assert np.all(np.isfinite(leaf))
    assert steps.slope[0] == steps.slope[-1] == 0.0
    np.testing.assert_allclose([steps.keep[0], steps.clean[0]], [0.0, 1.0])
    assert np.all(steps.slope[1:-1] > 0.0)


def test_second_order_for_a_gaussian(x64):
    """Twice the steps: a quarter of the error; without the slope, half.

    The flow of N(m, c) keeps (x - a m) / sqrt(a**2 c + s**2).
    """
    mean, variance = 0.6, 0.3

    def moments(t):
        return np.exp(-t) * mean, np.exp(-2.0 * t) * variance - np.expm1(-2.0 * t)

    def error(num_segments, slope):
        t = log_snr_ladder(num_segments, smallest_noise=0.2)
        centre, spread = moments(t[-1])
        start = jnp.array([centre + 1.7 * np.sqrt(spread)])
        score = lambda x, u: (moments(u)[0] - x) / moments(u)[1]
        centre, spread = moments(t[1])
        return abs(solve(t, start, score, slope)[0] - centre - 1.7 * np.sqrt(spread))

    for slope, order in ((True, 2.0), (False, 1.0)):
        rates = np.log2([error(k, slope) / error(2 * k, slope) for k in (64, 128)])
        np.testing.assert_allclose(rates, order, atol=0.2)


@functools.cache
def problem(num_segments):
    times = angle_ladder(num_segments)
    path = paths.prior_path(paths.standardised(PRIOR.jax()))
    moment = []
    for t in times:
        draws = jnp.asarray(PRIOR.noised(t).draws(1, 20_000), jnp.float32)
        moment.append(np.mean(np.square(PRIOR.jax().score(draws, t)), axis=0))
    segments, scale = paths.plan_segments(times, jnp.asarray(np.stack(moment)))
    steps = jnp.full(num_segments, 0.7)
    return path, Plan(paths.levels_of(times, 1.0), segments, steps, scale)


def run(key, num_segments, num_steps, inner, n, score_factor=1.0):
    path, plan = problem(num_segments)

    def wrong(u, level):
        value, score = path(u, level)
        return type(path(u, level))(value, score_factor * score)

    def one(key):
        key_top, key_down = jr.split(key)
        return predict_down(
            key_down,
            jr.normal(key_top, (2,)),
            wrong,
            plan,
            multistep_between(plan.levels.t),
            inner,
            num_steps,
        )

    return jax.jit(jax.vmap(one))(jr.split(key, n))


@pytest.mark.parametrize("inner", [mala(), uld()], ids=["mala", "uld"])
def test_a_run_has_the_targets_law(inner, key):
    """Three unequal modes: n = 4,000 independent runs, z = 5; and a control.

    At 32 segments the bias is below the standard error; scores a fifth too large are
    seen.
    """
    expected = summaries(PRIOR.draws(5, 400_000)).mean(axis=0)
    steps = (3, 1, *(0,) * 30)
    good = run(key, 32, steps, inner, 4000)
    assert_mean(summaries(good.position), expected)
    bad = run(key, 32, steps, inner, 4000, score_factor=1.2)
    assert np.max(np.abs(z_score(summaries(bad.position), expected))) > 8.0


@pytest.mark.parametrize("num_steps", [(0,) * 4, (2, 0, 1, 0), (1,) * 4])
def test_what_a_run_reports(num_steps, key):
    """The end's evaluation, no weight, and an acceptance where there are steps."""
    path, plan = problem(4)
    got = run(key, 4, num_steps, mala(), 5)
    bottom = jax.tree.map(lambda leaf: leaf[0], plan.levels)
    expected = jax.vmap(path, in_axes=(0, None))(got.position, bottom)
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-4),
        got.evaluation,
        expected,
    )
    np.testing.assert_array_equal(got.log_weight, np.zeros(5))
    np.testing.assert_array_equal(
        np.isnan(got.accept_prob), [np.array(num_steps) == 0] * 5
    )


@pytest.mark.parametrize("num_steps", [(0,) * 4, (2, 0, 1, 0)])
def test_costs_what_a_run_costs(num_steps):
    """``num_evals`` counts a predicted run as well, as executed."""
    calls = []
    path, plan = problem(4)

    def counted(u, level):
        jax.debug.callback(lambda: calls.append(1), ordered=True)
        return path(u, level)

    jax.block_until_ready(
        predict_down(
            jr.key(1),
            jnp.ones(2),
            counted,
            plan,
            multistep_between(plan.levels.t),
            mala(),
            num_steps,
        )
    )
    jax.effects_barrier()
    assert len(calls) == num_evals(mala(), num_steps)
