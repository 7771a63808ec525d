"""Where levels lie: equal shares of the draws' barrier and of the population's."""

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.core.warmup import levels
from numpyro_rtk.noise import log_snr_ladder

K, VARIANCE = 6, jnp.float32(0.05)
TIMES = jnp.asarray(log_snr_ladder(K), jnp.float32)


def test_levels_leave_to_no_edge_more_than_its_part_of_the_population(monkeypatch):
    """Draws of one mode find everything in the way in one place, the population in another.

    Levels follow both: no edge may hold more than 1 / K of the whole, .3 of which is the
    population's: 1 / (.3 K) of its barrier at most. Without it one edge would hold all.
    """
    monkeypatch.setattr(levels, "_SHARE_OF_POPULATION", 0.3)
    place = levels.place_of(TIMES, VARIANCE)
    # the draws: all in the lowest edge
    cumulative = jnp.concatenate(
        [jnp.zeros(1), jnp.full(K, 10.0).at[1:].add(0.01 * jnp.arange(1, K))]
    )
    fine = jnp.linspace(0.0, 1.0, 40)
    times = levels._time_at(place[0] + fine * (place[-1] - place[0]), VARIANCE)
    times = times.at[0].set(0.0).at[-1].set(TIMES[-1])
    height = 5.0 * jax.nn.sigmoid(40.0 * (fine - 0.8))
    height = height - height[0]

    def held(barrier):
        """Of the population's barrier, by the edge that holds most of it."""
        moved = levels._equal_shares(place, cumulative, barrier, VARIANCE)
        assert np.all(np.diff(moved) > 0.0)
        at = np.interp(moved, levels.place_of(times, VARIANCE), height)
        return np.max(np.diff(at)) / height[-1], moved

    most, _ = held(levels.Barrier(times, height, 0.0 * height))
    assert most <= 1.0 / (0.3 * K) + 0.02
    ignored, moved = held(levels.Barrier(times, 0.0 * height, 0.0 * height))
    assert ignored > 0.9  # the control: of the draws alone
    own = np.interp(moved, place, cumulative)
    np.testing.assert_allclose(np.diff(own), cumulative[-1] / K, rtol=1e-2)


def test_the_first_levels_hold_equal_shares_of_the_barrier():
    place = jnp.linspace(levels.place_of(jnp.float32(0.0), VARIANCE), 4.0, 30)
    times = levels._time_at(place, VARIANCE).at[0].set(0.0)
    height = jnp.square(jnp.linspace(0.0, 3.0, 30))
    found = levels.levels_by_barrier(
        levels.Barrier(times, height, 0.0 * height), VARIANCE, K + 1
    )
    at = np.interp(levels.place_of(found, VARIANCE), place, height)
    np.testing.assert_allclose(np.diff(at), 9.0 / K, rtol=0.03)
    assert found[0] == 0.0
    assert found[-1] == times[-1]
    # where nothing was in the way they still increase
    flat = levels.Barrier(times, 0.0 * height, 0.0 * height)
    assert np.all(np.isfinite(levels.levels_by_barrier(flat, VARIANCE, K + 1)))


def test_what_belongs_to_levels_and_edges_moves_with_them():
    """On a ladder that stays everything stays; else it is taken from between its ends."""
    rows = jnp.array([[1.0, 9.0], [3.0, 5.0], [7.0, 3.0]])
    still = levels.Moved(jnp.arange(4.0), jnp.arange(4.0))
    for kind in (still.levels, still.edges):
        np.testing.assert_allclose(kind(rows), rows)
    np.testing.assert_allclose(still.totals(rows[:, 0]), rows[:, 0])
    moved = levels.Moved(jnp.arange(4.0), jnp.array([0.0, 0.5, 1.5, 3.0]))
    # middles at .25, 1 and 2.25 of edges whose middles were at .5, 1.5 and 2.5
    np.testing.assert_allclose(moved.edges(rows[:, 0]), [1.0, 2.0, 6.0])
    np.testing.assert_allclose(moved.levels(rows[:, 0]), [1.0, 2.0, 5.0])
    np.testing.assert_allclose(moved.totals(rows[:, 0]), [0.5, 2.0, 8.5])
