"""Which kind of exchange each edge takes."""

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rtk.core.warmup.kinds import choose_kind
from numpyro_rtk.core.warmup.settings import first_settings, next_settings, no_sweeps
from numpyro_rtk.noise import log_snr_ladder

K, DIM = 6, 2
TIMES = jnp.asarray(log_snr_ladder(K), jnp.float32)


def settings(swap_share=0.5):
    return first_settings(
        TIMES,
        jnp.float32(0.05),
        jnp.full((K, DIM), 0.7),
        jnp.full((K, DIM), 4.0),
        0.5,
        swap_share=swap_share,
        dense=False,
    )


def window(current, passed_by_swap, passed_by_rtk, count=100.0, count_rtk=100.0):
    """Sums in which each kind of exchange passes so often on every edge."""
    per_edge = jnp.ones(K)
    rejection_rtk = count_rtk * (1.0 - jnp.asarray(passed_by_rtk) * per_edge)
    rejection = rejection_rtk + count * (1.0 - jnp.asarray(passed_by_swap) * per_edge)
    return no_sweeps(current)._replace(
        count=(count + count_rtk) * per_edge,
        rejection=rejection,
        count_rtk=count_rtk * per_edge,
        rejection_rtk=rejection_rtk,
    )


def test_each_edge_takes_the_kind_that_passes_more_often():
    """Edge by edge; the other goes on to be tried while warm-up explores, then not."""
    current = settings()
    by_swap = jnp.array([0.9, 0.1, 0.50, 0.52, 0.0, 1.0])
    by_rtk = jnp.array([0.2, 0.7, 0.51, 0.51, 0.9, 0.0])
    tally = window(current, by_swap, by_rtk)
    exploring = choose_kind(current.swap_share, tally, True)
    # a swap that is hardly better is not taken
    np.testing.assert_allclose(exploring, [0.9, 0.1, 0.1, 0.1, 0.1, 0.9], rtol=1e-5)
    ended = choose_kind(current.swap_share, tally, False)
    np.testing.assert_array_equal(ended, [1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    after = next_settings(
        current, tally, move_levels=False, choose_kinds=True, explore=False
    )
    np.testing.assert_array_equal(after.swap_share, ended)
    kept = next_settings(current, tally, move_levels=False)
    np.testing.assert_array_equal(kept.swap_share, current.swap_share)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_kind_that_was_not_tried_is_not_judged(share):
    """What an edge preferred so far it keeps, and ends sharp."""
    current = settings(share)
    for counts in ({"count": 0.0}, {"count_rtk": 0.0}):
        tally = window(current, 0.5, 0.5, **counts)
        np.testing.assert_allclose(
            choose_kind(current.swap_share, tally, True), share, rtol=1e-5
        )
        np.testing.assert_array_equal(
            choose_kind(current.swap_share, tally, False), round(share)
        )
