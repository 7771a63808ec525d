"""Sums of a window: what counts, and for what."""

import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from numpyro_rtk.core.exchange.sweep import SweepInfo
from numpyro_rtk.core.warmup.settings import no_sweeps
from numpyro_rtk.core.warmup.tally import add_sweep
from tests.core.tallies import DIM, ZERO, K, settings, sums_of, tally_of


def test_edges_that_were_not_tried_do_not_count(key):
    current = settings()
    tally = tally_of(current, key, 50, 1.0, 1.0, ZERO, jnp.eye(DIM))
    nothing = jnp.full((2, K), jnp.nan)
    vectors = jnp.full((2, K, DIM), jnp.nan)
    info = SweepInfo(
        nothing,
        nothing,
        nothing,
        nothing,
        nothing,
        vectors,
        vectors,
        vectors,
        jnp.zeros(2, bool),
    )
    after = add_sweep(tally, info, jnp.zeros((2, K, DIM)), current.log_ratio)
    for name in ("count", "rejection", "sum_e", "sum_ee", "sum_us", "bridge_down"):
        np.testing.assert_array_equal(getattr(after, name), getattr(tally, name))


def test_plain_swaps_show_nothing_of_the_proposal():
    """They count as trials, and for the bridge; a residual of theirs fits no proposal."""
    current = settings()
    rows = jnp.ones((4, K, DIM))
    is_swap = jnp.zeros((4, K)).at[1:, 0].set(1.0)
    tally = sums_of(current, 9.0 * rows, rows, rows, [0.25] * K, is_swap)
    np.testing.assert_array_equal(tally.count, 4.0)
    np.testing.assert_array_equal(tally.count_rtk, [1.0, 4.0, 4.0, 4.0])
    np.testing.assert_allclose(tally.rejection, 3.0)
    np.testing.assert_allclose(tally.rejection_rtk, [0.75, 3.0, 3.0, 3.0])
    np.testing.assert_allclose(tally.sum_u[0], 1.0)
    np.testing.assert_allclose(tally.sum_u[1:], 4.0)
    assert np.all(tally.bridge_down > 0.0)


def test_the_bridges_sums_are_of_their_own_direction():
    """Four chains, of W = 2 and W' = -1: each side's term, four times."""
    current = settings()._replace(log_ratio=jnp.linspace(-0.5, 1.0, K))
    rows, edges = jnp.ones((4, K, DIM)), jnp.ones((4, K))
    info = SweepInfo(
        local_accept_prob=edges,
        swap_accept_prob=0.3 * edges,
        is_swap=0.0 * edges,
        down_increment=2.0 * edges,
        up_increment=-1.0 * edges,
        residual=rows,
        upper=rows,
        upper_score=rows,
        is_diverging=jnp.zeros(4, bool),
    )
    tally = add_sweep(no_sweeps(current), info, rows, current.log_ratio)
    c = np.asarray(current.log_ratio)
    np.testing.assert_allclose(tally.bridge_down, 4.0 * expit(2.0 - c), rtol=1e-5)
    np.testing.assert_allclose(tally.bridge_up, 4.0 * expit(c + 1.0), rtol=1e-5)
