"""Settings after a window: levels, local spreads, and what an empty one changes."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from numpyro_rtk.core.warmup.levels import place_of
from numpyro_rtk.core.warmup.settings import (
    analytic_settings,
    next_settings,
    no_sweeps,
)
from numpyro_rtk.noise import log_snr_ladder
from tests.core.tallies import DIM, TIMES, ZERO, K, settings, tally_of


def test_local_spread_is_the_inverse_curvature(key):
    """Scores of covariance 4 I: a spread of 1 / 2, as a root of it."""
    current = settings()
    tally = tally_of(current, key, 20_000, 1.0, 1.0, ZERO, jnp.eye(DIM))
    current = next_settings(current, tally, move_levels=False)
    spread = np.einsum("kab,kcb->kac", current.scale, current.scale)
    np.testing.assert_allclose(
        spread, np.tile(0.25 * np.eye(DIM), (K, 1, 1)), atol=0.02
    )


def after_windows(current, num_windows, count, rejection):
    """Settings after windows of ``count`` sweeps whose edges are refused as told."""
    for _ in range(num_windows):
        empty = no_sweeps(current)
        counts = jnp.full(len(current.times) - 1, count)
        rates = jnp.asarray(rejection(current.times), jnp.float32)
        tally = empty._replace(
            count=counts,
            rejection=rates * counts,
            count_rtk=counts,
            rejection_rtk=rates * counts,
        )
        current = next_settings(current, tally)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(current))
    return current


def test_levels_move_to_equal_rejection():
    """Rejection as the square of a width in an uneven measure of noise; 4 windows."""
    times = jnp.asarray(log_snr_ladder(8), jnp.float32)

    def rejection(times):
        place = np.arctan(3.0 * np.sqrt(np.expm1(2.0 * np.asarray(times))))
        return 6.0 * np.diff(place) ** 2

    before = rejection(times)
    current = after_windows(settings(times), 4, 100.0, rejection)
    after = rejection(current.times)
    assert before.max() / before.min() > 20.0
    assert after.max() / after.min() < 2.0
    assert current.times[0] == 0.0
    np.testing.assert_allclose(current.times[-1], times[-1])
    assert np.all(np.diff(current.times) > 0.0)


def test_levels_move_into_a_gap_that_nothing_passes():
    """A narrow posterior: all of the first edge is refused, which says nothing of how wide.

    Increments of spread s are refused 2 Phi(s / 2) - 1; roots of s add up along
    log(r^2 + .003^2).
    """
    times = jnp.asarray(log_snr_ladder(14), jnp.float32)

    def rejection(times):
        place = 0.5 * np.log(np.expm1(2.0 * np.asarray(times, float)) + 3e-3**2)
        return 2.0 * norm.cdf(2.0 * np.diff(place) ** 2) - 1.0

    current = after_windows(settings(times), 6, 300.0, rejection)
    assert rejection(times).max() > 0.99
    assert rejection(current.times).max() < 0.8  # by the rejections themselves: .99


def test_an_empty_window_changes_nothing():
    current = settings()
    empty = no_sweeps(current)
    after = next_settings(current, empty, move_levels=False)
    jax.tree.map(
        lambda new, old: np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-4),
        after,
        current,
    )


def test_first_proposals_are_those_of_the_curvature_at_the_upper_level():
    """Data N(0, .3): the variance of z given x is known, and each level's curvature."""
    t = jnp.asarray(TIMES, jnp.float32)
    a = jnp.exp(-t)
    level = 0.3 * a**2 + 1.0 - a**2
    rows = jnp.tile(level[:, None], (1, 2))
    first = analytic_settings(
        t, jnp.float32(0.1), 1.0 / rows, 0.5, swap_share=0.0, dense=False
    )
    a, v = jnp.exp(t[:-1] - t[1:]), 1.0 - jnp.exp(2.0 * (t[:-1] - t[1:]))
    expected = 1.0 / (1.0 / level[:-1] + a**2 / v) / v
    np.testing.assert_allclose(
        first.proposals.covariance, jnp.tile(expected[:, None], (1, 2)), rtol=2e-3
    )
    np.testing.assert_allclose(first.scale, jnp.sqrt(rows[:-1]), rtol=1e-5)


def test_levels_that_move_take_the_log_ratios_along():
    """The sum stays, which is the evidence; each edge takes what lies between its ends."""
    times = jnp.asarray(log_snr_ladder(8), jnp.float32)
    current = settings(times)._replace(log_ratio=jnp.arange(1.0, 9.0))
    uneven = np.array([0.9, 0.8, 0.5, 0.3, 0.2, 0.1, 0.05, 0.05])
    after = after_windows(current, 1, 100.0, lambda times: uneven)
    assert np.max(np.abs(after.times - times)) > 0.02
    # an empty bridge changes no estimate by more than its small part
    np.testing.assert_allclose(jnp.sum(after.log_ratio), 36.0, rtol=1e-4)
    height = np.interp(
        place_of(after.times, jnp.float32(0.1)),
        place_of(times, jnp.float32(0.1)),
        np.concatenate([[0.0], np.cumsum(np.arange(1.0, 9.0))]),
    )
    np.testing.assert_allclose(after.log_ratio, np.diff(height), atol=0.02)
