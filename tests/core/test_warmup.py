"""Warm-up: where the first settings come from, and what a window may change."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.core import ladder, warmup
from numpyro_rtk.core.adapt import Frame, Moments, wider_reference
from numpyro_rtk.core.population import Descent
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.noise import log_snr_ladder

K, DIM = 6, 2
TIMES = jnp.asarray(log_snr_ladder(K), jnp.float32)


def settings(swap_share=0.5):
    return ladder.first_settings(
        TIMES,
        jnp.float32(0.05),
        jnp.full((K, DIM), 0.7),
        jnp.full((K, DIM), 4.0),
        0.5,
        swap_share=swap_share,
        dense=False,
    )


@pytest.mark.parametrize(
    ("hardness", "expected"),
    [
        ([9.0, 4.0, 1.0, 1.05**3, 5.0], 2.0 + 1.0 / 3.0),  # a third of the way to it
        ([1.03, 1.0, 1.02, 1e9, jnp.inf], 2.0),  # the largest of equals; none beyond
        ([1.0, 2.0, 3.0, 4.0, jnp.inf], 0.0704),
        ([1.0, jnp.inf, jnp.inf, jnp.inf, jnp.inf], 0.0),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 4.0),  # at the end of the grid
        ([3.0, 3.0, 3.0, 3.0, 3.0], 4.0),  # nothing to choose between
    ],
    ids=["between", "equals", "first", "only", "last", "level"],
)
def test_the_variance_is_the_largest_that_is_as_good(hardness, expected):
    found = warmup._largest_as_good(jnp.arange(5.0), jnp.array(hardness), 1.05)
    np.testing.assert_allclose(found, expected, atol=0.05)


def moments_of(draws):
    mean = draws.mean(axis=0)
    square = np.sum((draws - mean) ** 2, axis=0)
    return Moments(jnp.array(len(draws)), *map(jnp.float32, (mean, square)))


def test_reference_is_widened_never_narrowed_and_fitted_without_a_prior():
    """Of four coordinates the draws are narrow, wide, far out, and without a prior."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(500, 4)) * [0.1, 3.0, 0.2, 0.3] + [0.2, 0.0, 5.0, 7.0]
    loc, scale = jnp.zeros(4), jnp.ones(4)
    has_prior = np.array([True, True, True, False])
    frame = Frame(loc, scale, jnp.zeros(4))
    new = wider_reference(moments_of(draws), frame, has_prior)
    new_loc, new_scale, _ = new
    np.testing.assert_array_equal(new_loc[:3], 0.0)  # the prior's centre stays
    assert new_scale[0] == 1.0
    np.testing.assert_allclose(new_scale[1], 3.0, rtol=0.1)
    np.testing.assert_allclose(new_scale[2], 5.0, rtol=0.1)
    np.testing.assert_allclose(new_loc[3], 7.0, rtol=0.02)
    # twice the draws' spread, and a little for the former values, 7 away
    np.testing.assert_allclose(new_scale[3], 0.6, rtol=0.1)
    # what has been widened is not drawn in by later draws of one mode
    later = moments_of(0.01 * rng.normal(size=(500, 4)))
    last = wider_reference(later, new, has_prior).scale
    assert np.all(last[:3] >= new_scale[:3])
    assert last[3] < 20.0


def test_a_reference_without_draws_stays():
    nothing = Moments(jnp.array(0), jnp.zeros(2), jnp.zeros(2))
    frame = Frame(jnp.array([1.0, 2.0]), jnp.array([0.3, 4.0]), jnp.ones(2))
    found = wider_reference(nothing, frame, np.array([True, False]))
    jax.tree.map(np.testing.assert_array_equal, found, frame)


def window(current, passed_by_swap, passed_by_rtk, count=100.0, count_rtk=100.0):
    """Sums in which each kind of exchange passes so often on every edge."""
    per_edge = jnp.ones(K)
    rejection_rtk = count_rtk * (1.0 - jnp.asarray(passed_by_rtk) * per_edge)
    rejection = rejection_rtk + count * (1.0 - jnp.asarray(passed_by_swap) * per_edge)
    return ladder.empty_tally(current)._replace(
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
    exploring = ladder._choose_kind(current, tally, True)
    # a swap that is hardly better is not taken
    np.testing.assert_allclose(exploring, [0.9, 0.1, 0.1, 0.1, 0.1, 0.9], rtol=1e-5)
    ended = ladder._choose_kind(current, tally, False)
    np.testing.assert_array_equal(ended, [1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    after = ladder.next_settings(
        current, tally, move_levels=False, choose_kind=True, explore=False
    )
    np.testing.assert_array_equal(after.swap_share, ended)
    kept = ladder.next_settings(current, tally, move_levels=False)
    np.testing.assert_array_equal(kept.swap_share, current.swap_share)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_kind_that_was_not_tried_is_not_judged(share):
    """What an edge preferred so far it keeps, and ends sharp."""
    current = settings(share)
    for counts in ({"count": 0.0}, {"count_rtk": 0.0}):
        tally = window(current, 0.5, 0.5, **counts)
        np.testing.assert_allclose(
            ladder._choose_kind(current, tally, True), share, rtol=1e-5
        )
        np.testing.assert_array_equal(
            ladder._choose_kind(current, tally, False), round(share)
        )


def test_levels_leave_to_no_edge_more_than_its_part_of_the_population(monkeypatch):
    """Draws of one mode find everything hard in one place, the population in another.

    Levels follow both: no edge may hold more than 1 / K of the whole, .3 of which is the
    population's: 1 / (.3 K) of its barrier at most. Without it one edge would hold all.
    """
    monkeypatch.setattr(ladder, "_SHARE_OF_POPULATION", 0.3)
    current = settings()
    place = ladder.place_of(TIMES, current.likelihood_variance)
    # the draws: all in the lowest edge
    cumulative = jnp.concatenate(
        [jnp.zeros(1), jnp.full(K, 10.0).at[1:].add(0.01 * jnp.arange(1, K))]
    )
    fine = jnp.linspace(0.0, 1.0, 40)
    times = ladder._time_at(
        place[0] + fine * (place[-1] - place[0]), current.likelihood_variance
    )
    times = times.at[0].set(0.0).at[-1].set(TIMES[-1])
    height = 5.0 * jax.nn.sigmoid(40.0 * (fine - 0.8))
    height = height - height[0]

    def held(barrier):
        """Of the population's barrier, by the edge that holds most of it."""
        moved = ladder._equal_shares(
            place, cumulative, current._replace(barrier=barrier)
        )
        assert np.all(np.diff(moved) > 0.0)
        at = np.interp(
            moved, ladder.place_of(times, current.likelihood_variance), height
        )
        return np.max(np.diff(at)) / height[-1], moved

    most, _ = held(ladder.Barrier(times, height, 0.0 * height))
    assert most <= 1.0 / (0.3 * K) + 0.02
    ignored, moved = held(ladder.Barrier(times, 0.0 * height, 0.0 * height))
    assert ignored > 0.9  # the control: of the draws alone
    own = np.interp(moved, place, cumulative)
    np.testing.assert_allclose(np.diff(own), cumulative[-1] / K, rtol=1e-2)


def test_the_first_levels_hold_equal_shares_of_the_barrier():
    variance = jnp.float32(0.05)
    place = jnp.linspace(ladder.place_of(jnp.float32(0.0), variance), 4.0, 30)
    times = ladder._time_at(place, variance).at[0].set(0.0)
    height = jnp.square(jnp.linspace(0.0, 3.0, 30))
    found = ladder.levels_by_barrier(
        ladder.Barrier(times, height, 0.0 * height), variance, K + 1
    )
    at = np.interp(ladder.place_of(found, variance), place, height)
    np.testing.assert_allclose(np.diff(at), 9.0 / K, rtol=0.03)
    assert found[0] == 0.0
    assert found[-1] == times[-1]
    # where nothing was hard they still increase
    flat = ladder.Barrier(times, 0.0 * height, 0.0 * height)
    assert np.all(np.isfinite(ladder.levels_by_barrier(flat, variance, K + 1)))


def descent(log_ratio, ancestor, num=4, kept=16):
    """A run as if: of which only what is told matters."""
    levels, n = 8, len(ancestor)
    times = (
        jnp.zeros(levels + 1).at[: num + 1].set(jnp.array([3.0, 1.0, 0.3, 0.05, 0.0]))
    )
    values = 100.0 * jnp.arange(levels + 1)[:, None] + jnp.arange(kept)[None]
    return Descent(
        num=jnp.array(num),
        times=times,
        kept=jnp.stack([values, -values], axis=-1),
        curvature=jnp.ones((levels + 1, DIM)),
        step_size=jnp.float32(0.5),
        log_ratio=jnp.zeros(levels).at[0].set(log_ratio),
        spread=jnp.full(levels, 0.5),
        position=jnp.zeros((n, DIM)),
        evaluation=Evaluation(jnp.zeros(n), jnp.zeros((n, DIM))),
        ancestor=jnp.asarray(ancestor),
        num_evals=jnp.array(1),
    )


def test_chains_start_at_different_particles_of_the_nearest_levels():
    found = descent(0.0, np.arange(100))
    times = jnp.array([0.0, 0.04, 0.35, 1.1, 3.0])
    current = ladder.first_settings(
        times, jnp.float32(0.05), jnp.ones((4, DIM)), jnp.ones((4, DIM)), 0.5
    )
    starts = np.asarray(
        jax.vmap(lambda key: warmup.starts_of(key, found, current))(
            jr.split(jr.key(0), 40)
        )
    )
    assert starts.shape == (40, 5, DIM)
    np.testing.assert_array_equal(starts[..., 0], -starts[..., 1])  # whole particles
    # their level's, which is counted from the top, moved along with the signal
    ratio = np.exp(np.array([0.0, 0.05, 0.3, 1.0, 3.0]) - np.asarray(times))
    level, index = np.divmod(np.round(starts[..., 0] / ratio), 100)
    np.testing.assert_array_equal(level, np.tile([4, 3, 2, 1, 0], (40, 1)))
    assert np.all((index >= 0) & (index < 16))
    # 40 chains of 16 particles: 15 different ones are expected at each level
    assert all(len(np.unique(index[:, k])) >= 10 for k in range(5))
    assert len(np.unique(index, axis=0)) == 40


def stacked(*runs):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)


def test_a_finer_run_is_taken_where_it_found_clearly_more():
    """Beyond .2 nats and the errors; a run that goes back to one ancestor proves none."""
    many, one = np.arange(1000), np.zeros(1000, int)
    few = np.repeat(np.arange(10), 100)
    cases = [
        (0.0, many, 1.0, many, 1),
        (0.0, many, 0.1, many, 0),
        (0.0, many, -3.0, many, 0),
        (0.0, many, 0.9, one, 0),  # its error is 1
        (0.0, one, 0.9, many, 0),
        (0.0, many, 0.5, few, 0),  # an error of .7
        (-np.inf, many, 0.5, many, 1),
        (0.0, many, -np.inf, many, 0),
        (-np.inf, many, -np.inf, many, 0),
    ]
    for first, its_own, second, other, expected in cases:
        runs = stacked(descent(first, its_own), descent(second, other))
        assert warmup._found_more(runs) == expected, (first, second)
        weight = warmup._weights_of(jnp.array([first, second], jnp.float32))
        np.testing.assert_allclose(jnp.sum(weight), 1.0, rtol=1e-5)
