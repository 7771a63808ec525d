"""The deterministic predictor: exact for a point, of second order, fitted, in a run."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk import paths
from numpyro_rtk.core.annealed import Local, num_evals_predicted, predict_down
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.multistep import (
    Flow,
    clean_mean,
    fit_multistep,
    multistep_between,
    predict,
    probability_flow,
    remember,
)
from numpyro_rtk.core.uld import ULD
from numpyro_rtk.density import standardised
from numpyro_rtk.noise import angle_ladder, log_snr_ladder
from tests.oracles import SKEWED, assert_mean, summaries, z_score

PRIOR = SKEWED.standardised()


def solve(t, x, score, slope=True, steps=None, end=1):
    """Down to level ``end``; ``score(x, t)``."""
    steps = multistep_between(jnp.asarray(t)) if steps is None else steps
    if not slope:  # all weight on the latest clean value
        total = jnp.sum(steps.clean, axis=1)
        steps = steps._replace(clean=jnp.zeros_like(steps.clean).at[:, 0].set(total))
    cleans = jnp.zeros((len(t) - 1, *x.shape))
    for k in range(len(t) - 2, end - 1, -1):
        step = jax.tree.map(lambda leaf, k=k: leaf[k], steps)
        cleans = remember(cleans, clean_mean(step, x, score(x, t[k + 1])))
        x = predict(step, x, cleans)
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
    assert steps.keep.shape == (num_segments,)
    assert steps.clean.shape == (num_segments, num_segments)
    assert all(np.all(np.isfinite(leaf)) for leaf in steps)
    np.testing.assert_allclose([steps.keep[0], steps.clean[0, 0]], [0.0, 1.0])
    assert np.all(steps.clean[[0, -1], 1:] == 0.0)
    assert np.all(steps.clean[1:-1, 1] < 0.0)


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


def score(u, t):
    return standardised(PRIOR.jax())(u, t).score


SCORES = jax.jit(jax.vmap(score, in_axes=(0, None)))


def test_flow_of_a_gaussian():
    """It keeps (x - a m) / sqrt(a**2 c + s**2) at every level, and knows its scores."""
    t, mean, variance = angle_ladder(5), np.array([[0.6, -0.2]]), np.array([[0.3, 1.5]])
    a = np.exp(-t)[:, None, None]
    spread = a**2 * variance + 1.0 - a**2
    scores = lambda x, u: (
        (jnp.exp(-u) * mean - x) / (jnp.exp(-2 * u) * (variance - 1.0) + 1.0)
    )
    top = np.asarray(jr.normal(jr.key(3), (7, 2)))
    flow = probability_flow(scores, t, jnp.asarray(top))
    z = (top - a[-1] * mean) / np.sqrt(spread[-1])
    np.testing.assert_allclose(flow.position, a * mean + np.sqrt(spread) * z, atol=5e-3)
    at = [scores(x, u) for x, u in zip(flow.position, t, strict=True)]
    np.testing.assert_allclose(flow.score, at, rtol=1e-5, atol=1e-5)


def test_a_fitted_rule_is_closer_to_the_flow():
    """On trajectories that it has not seen, five wide steps: a third of 2M's error.

    Nor do trajectories without finite values, or gone astray, spoil the fit.
    """
    t = angle_ladder(5)
    seen, fresh = (jr.normal(jr.key(i), (256, 2)) for i in (0, 1))
    flow = probability_flow(SCORES, t, seen)
    truth = probability_flow(SCORES, t, fresh).position[0]
    error = lambda steps: np.sqrt(
        np.mean((solve(t, fresh, SCORES, steps=steps, end=0) - truth) ** 2)
    )
    by_theory = error(multistep_between(jnp.asarray(t)))
    fitted = error(fit_multistep(SCORES, t, flow))
    assert fitted < by_theory / 3.0
    wild = flow.position.at[2, 0].set(jnp.nan).at[0, 1].set(1e6)
    spoilt = error(fit_multistep(SCORES, t, Flow(wild, flow.score)))
    assert spoilt < 1.1 * fitted
    # and a control: with the goals in another order there is nothing to learn
    shuffled = flow.position.at[:-1].set(flow.position[:-1, ::-1])
    assert error(fit_multistep(SCORES, t, Flow(shuffled, flow.score))) > by_theory


@functools.cache
def problem(num_segments):
    times = angle_ladder(num_segments)
    path = paths.prior_path(standardised(PRIOR.jax()))
    flow = probability_flow(SCORES, times, jr.normal(jr.key(2), (256, 2)))
    steps = fit_multistep(SCORES, times, flow)
    moments = jnp.mean(jnp.square(flow.score), axis=1)
    return path, paths.levels_of(times, 1.0), steps, jax.lax.rsqrt(moments[0])


def run(key, num_segments, num_steps, inner, n, score_factor=1.0):
    path, levels, steps, scale = problem(num_segments)
    local = Local(num_steps, jnp.asarray(0.3), scale)

    def wrong(u, level):
        value, score = path(u, level)
        return type(path(u, level))(value, score_factor * score)

    def one(key):
        key_top, key_down = jr.split(key)
        top = jr.normal(key_top, (2,))
        return predict_down(key_down, top, wrong, levels, steps, local, inner)

    return jax.jit(jax.vmap(one))(jr.split(key, n))


@pytest.mark.parametrize("inner", [MALA(), ULD().unadjusted()], ids=["mala", "uld"])
def test_a_run_has_the_targets_law(inner, key):
    """Three unequal modes: n = 4,000 independent runs, z = 5; and a control.

    At 16 segments the bias is below the standard error; scores a fifth too large are
    seen.
    """
    expected = summaries(PRIOR.draws(5, 400_000)).mean(axis=0)
    good = run(key, 16, 3, inner, 4000)
    assert_mean(summaries(good.position), expected)
    bad = run(key, 16, 3, inner, 4000, score_factor=1.2)
    assert np.max(np.abs(z_score(summaries(bad.position), expected))) > 8.0


def test_steps_at_the_end_repair_a_wrong_rule(key):
    """All runs end .1 off; MALA at level 0 brings back its law, steps of no length do not.

    2,000 runs; 60 steps of a kernel that leaves the law invariant.
    """
    path, levels, steps, scale = problem(4)
    truth = jnp.asarray(PRIOR.draws(6, 2000), jnp.float32)
    expected = summaries(PRIOR.draws(5, 400_000)).mean(axis=0)
    # a rule that copies its top
    still = steps._replace(
        keep=jnp.ones(4), clean=jnp.zeros((4, 4)), clean_score=jnp.zeros(4)
    )

    def end(size):
        local = Local(60, jnp.asarray(size), scale)
        draw = lambda k, top: (
            predict_down(k, top, path, levels, still, local, MALA()).position
        )
        return summaries(jax.jit(jax.vmap(draw))(jr.split(key, 2000), truth + 0.1))

    assert np.max(np.abs(z_score(end(1e-6), expected))) > 5.0
    assert_mean(end(0.8), expected)


@pytest.mark.parametrize("num_steps", [0, 2])
def test_what_a_run_reports(num_steps, key):
    """No weight; with steps the end's evaluation and the acceptance in the lowest row."""
    path, levels, _, _ = problem(4)
    got = run(key, 4, num_steps, MALA(), 5)
    assert np.all(np.isfinite(got.position))
    np.testing.assert_array_equal(got.log_weight, np.zeros(5))
    is_nan = np.isnan(got.accept_prob)
    np.testing.assert_array_equal(is_nan, [[num_steps == 0, True, True, True]] * 5)
    if num_steps:
        bottom = jax.tree.map(lambda leaf: leaf[0], levels)
        expected = jax.vmap(path, in_axes=(0, None))(got.position, bottom)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
        jax.tree.map(close, got.evaluation, expected)


@pytest.mark.parametrize("num_steps", [0, 2])
def test_costs_what_a_run_costs(num_steps):
    """``num_evals_predicted`` counts what is executed."""
    calls = []
    path, levels, steps, scale = problem(4)

    def counted(u, level):
        jax.debug.callback(lambda: calls.append(1), ordered=True)
        return path(u, level)

    local = Local(num_steps, jnp.asarray(0.3), scale)
    run = predict_down(
        jr.key(1), jnp.ones(2), counted, levels, steps, local, MALA(num_leapfrog=2)
    )
    jax.block_until_ready(run)
    jax.effects_barrier()
    assert len(calls) == num_evals_predicted(MALA(num_leapfrog=2), 4, num_steps)


def test_coefficients_are_those_of_the_published_rule():
    """DPM-Solver++ (2M) row by row, on a ladder whose steps are of different widths."""
    t = angle_ladder(5)
    a, s = np.exp(-t), np.sqrt(-np.expm1(-2.0 * t))
    steps = multistep_between(jnp.asarray(t))
    width = np.full(6, np.nan)  # of the step down from a level; infinite from level 1
    width[2:] = np.diff(np.log(s[1:] / a[1:]))
    assert np.nanmax(width) > 1.5 * np.nanmin(width)
    for k in range(2, 5):
        keep = s[k - 1] / s[k]
        latest = a[k - 1] - keep * a[k]
        slope = width[k] / (2.0 * width[k + 1])
        np.testing.assert_allclose(steps.keep[k - 1], keep, rtol=1e-4)
        expected = [latest * (1.0 + slope), -latest * slope, 0.0, 0.0, 0.0]
        np.testing.assert_allclose(steps.clean[k - 1], expected, rtol=1e-4, atol=1e-6)


def test_a_run_follows_the_rule_level_by_level(key):
    """Without steps at the end: what the rule gives, each score at its own level."""
    path, levels, steps, scale = problem(4)
    local, tops = Local(0, jnp.asarray(0.3), scale), jr.normal(key, (10, 2))
    down = lambda k, top: predict_down(k, top, path, levels, steps, local, MALA())
    found = jax.vmap(down)(jr.split(key, 10), tops).position
    expected = solve(angle_ladder(4), tops, SCORES, steps=steps, end=0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
