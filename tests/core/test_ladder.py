"""Warm-up of the replica exchange: what a window's sums turn into."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.stats import norm

from numpyro_rtk.core import ladder
from numpyro_rtk.core.exchange import SweepInfo, start_mean
from numpyro_rtk.noise import log_snr_ladder

K, DIM = 4, 3
TIMES = log_snr_ladder(K)
ZERO = jnp.zeros((1, 1, DIM))


def settings(times=TIMES, dim=DIM, dense=True):
    k = len(times) - 1
    return ladder.first_settings(
        jnp.asarray(times, jnp.float32),
        jnp.float32(0.1),
        jnp.full((k, dim), 0.7),
        jnp.full((k, dim), 4.0),
        0.5,
        dense=dense,
    )


def sums_of(current, lower, upper, score, accept_prob, is_swap=None):
    """A window's sums of n chains, ``(n, K, DIM)``; acceptances ``(K,)`` of the edges."""
    n = len(lower)
    each = jax.vmap(jax.vmap(start_mean), in_axes=(None, 0, 0))  # chains, edges
    info = SweepInfo(
        local_accept_prob=jnp.full((n, K), 0.6),
        swap_accept_prob=jnp.tile(jnp.asarray(accept_prob), (n, 1)),
        is_swap=jnp.zeros((n, K)) if is_swap is None else is_swap,
        down_work=jnp.full((n, K), 1.0),
        up_work=jnp.full((n, K), 1.0),
        residual=lower - each(ladder.edges_of(current), upper, score),
        upper=upper,
        upper_score=score,
        is_diverging=jnp.zeros(n, bool),
    )
    empty = ladder.empty_tally(current)
    return ladder.add_sweep(empty, info, 2.0 * score, current.centre)


def tally_of(current, key, n, factor_x, factor_s, shift, root):
    """The sums of n chains whose lower states are linear in u and its score."""
    edges = ladder.edges_of(current)
    keys = jr.split(key, 3)
    upper, score, noise = (jr.normal(k, (n, K, DIM)) for k in keys)
    upper = upper + 0.4  # not centred: the shift must not be mistaken for a factor
    a, v = edges.a[None, :, None], edges.v[None, :, None]
    width, pull = jnp.sqrt(v), v / a * (score + upper)
    mean = factor_x * a * upper + factor_s * pull + width * jnp.asarray(shift)
    lower = mean + width * jnp.einsum("ab,nkb->nka", root, noise)
    return sums_of(current, lower, upper, score, [0.4] * K)


def test_starts_are_the_regression_of_the_lower_states(key):
    """n = 20,000: the estimates' standard errors are below .01 in these units."""
    root = jnp.array([[0.5, 0.0, 0.0], [0.3, 0.4, 0.0], [0.0, -0.2, 0.6]])
    shift, current = jnp.array([0.2, -0.1, 0.0]), settings()
    for k in jr.split(key, 6):  # the covariance settles once the factors have
        tally = tally_of(current, k, 20_000, 0.9, 1.2, shift[None, None], root)
        current = ladder.next_settings(current, tally, move_levels=False)
    np.testing.assert_allclose(current.mean_x, 0.9, atol=0.03)
    np.testing.assert_allclose(current.mean_score, 1.2, atol=0.03)
    np.testing.assert_allclose(current.shift, np.tile(shift, (K, 1)), atol=0.05)
    expected = np.tile(root @ root.T, (K, 1, 1))
    np.testing.assert_allclose(current.covariance, expected, atol=0.03)
    product = np.einsum("kab,kcb->kac", current.root, current.root)
    np.testing.assert_allclose(product, expected, atol=0.03)


def test_diagonal_settings_are_the_diagonals_of_dense_ones(key):
    """Independent coordinates: the same factors, variances, spreads and volumes."""
    root, shift = jnp.diag(jnp.array([0.5, 0.4, 0.8])), jnp.full((1, 1, DIM), 0.2)
    found = {}
    for dense in (True, False):
        current = settings(dense=dense)
        for k in jr.split(key):
            tally = tally_of(current, k, 20_000, 0.9, 1.2, shift, root)
            current = ladder.next_settings(current, tally)
        found[dense] = current, ladder.edges_of(current)
    (full, full_edges), (diagonal, edges) = found[True], found[False]
    assert diagonal.root.shape == diagonal.scale.shape == (K, DIM)
    take = lambda matrices: np.diagonal(matrices, axis1=1, axis2=2)
    for name in ("covariance", "root", "inverse_root", "scale"):
        got, there = getattr(diagonal, name), take(getattr(full, name))
        np.testing.assert_allclose(got, there, rtol=0.02)
    np.testing.assert_allclose(edges.root, take(full_edges.root), rtol=0.02)
    np.testing.assert_allclose(edges.log_det, full_edges.log_det, atol=0.02)


def test_local_spread_is_the_inverse_curvature(key):
    """Scores of covariance 4 I: a spread of 1 / 2, as a root of it."""
    current = settings()
    tally = tally_of(current, key, 20_000, 1.0, 1.0, ZERO, jnp.eye(DIM))
    current = ladder.next_settings(current, tally, move_levels=False)
    spread = np.einsum("kab,kcb->kac", current.scale, current.scale)
    np.testing.assert_allclose(
        spread, np.tile(0.25 * np.eye(DIM), (K, 1, 1)), atol=0.02
    )


def sums_of_a_gaussian(current, key, n, loc, variance):
    """A window's sums where the data are ``N(loc, variance I)``."""
    edges = ladder.edges_of(current)
    each = lambda rows: rows[None, :, None]  # draws, edges, coordinates
    signal = jnp.exp(-current.times)
    spread = 1.0 - (1.0 - variance) * signal**2  # variance of each level
    lower, noise = (jr.normal(k, (n, K, DIM)) for k in jr.split(key))
    lower = each(signal[:-1] * loc) + each(jnp.sqrt(spread[:-1])) * lower
    upper = each(edges.a) * lower + each(jnp.sqrt(edges.v)) * noise
    score = (each(signal[1:] * loc) - upper) / each(spread[1:])
    return sums_of(current, lower, upper, score, [0.5, 0.5, 0.95, 0.95])


def test_a_start_holds_for_a_wider_edge_as_well(key):
    """Fitted by 2,000 draws, moved to easy edges three times as wide, not fitted again.

    The start of a Gaussian is known: its mean must agree to a fifth of its standard
    deviation, .02 nats a dimension (with factors of x and of the score it is half of one
    off), and that to a tenth, or an exchange would lose much by the move alone.
    """
    loc, variance = 0.3, 0.6
    current = settings(jnp.array([0.0, 0.4, 0.9, 1.6, 3.0], jnp.float32))
    for k in jr.split(key, 3):
        tally = sums_of_a_gaussian(current, k, 2000, loc, variance)
        current = ladder.next_settings(current, tally, move_levels=False)
    moved = ladder.next_settings(current, tally)
    assert moved.times[3] < 1.0  # the edge to the reference, before 1.6

    edge = jax.tree.map(lambda leaf: leaf[-1], ladder.edges_of(moved))
    signal = jnp.exp(-moved.times[-2])
    low = 1.0 - (1.0 - variance) * signal**2  # variance below; above it is 1
    upper = jnp.array([-1.5, 0.0, 1.5])
    truth = signal * loc + edge.a * low * upper
    sd = jnp.sqrt(low - edge.a**2 * low**2)
    np.testing.assert_allclose(start_mean(edge, upper, -upper), truth, atol=0.2 * sd)
    np.testing.assert_allclose(jnp.diagonal(edge.root), sd, rtol=0.1)


def test_later_windows_count_by_their_trials(key):
    """The factor of a window of 1,000 and of one of 3,000 trials: a mean so weighted."""
    current = settings()
    for n, factor, k in zip((1000, 3000), (1.0, 1.4), jr.split(key), strict=True):
        tally = tally_of(current, k, n, 1.0, factor, ZERO, jnp.eye(DIM))
        current = ladder.next_settings(current, tally, move_levels=False)
    # but for the first edge, so narrow that its factor is hardly seen
    np.testing.assert_allclose(current.mean_score[1:], 1.3, atol=0.05)
    np.testing.assert_allclose(current.count, 4010.0)


def test_edges_put_the_widths_in():
    current = settings()
    edges = ladder.edges_of(current)
    np.testing.assert_allclose(edges.a, np.exp(-np.diff(TIMES)), rtol=1e-5)
    np.testing.assert_allclose(edges.v, 1.0 - np.exp(-2.0 * np.diff(TIMES)), rtol=1e-4)
    identity = np.einsum("kab,kbc->kac", edges.root, edges.inverse_root)
    np.testing.assert_allclose(identity, np.tile(np.eye(DIM), (K, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(
        edges.log_det, np.linalg.slogdet(np.asarray(edges.root))[1], rtol=1e-4
    )


def after_windows(current, num_windows, count, rejection):
    """Settings after windows of ``count`` sweeps whose edges are refused as told."""
    for _ in range(num_windows):
        empty = ladder.empty_tally(current)
        counts = jnp.full(len(current.times) - 1, count)
        rates = jnp.asarray(rejection(current.times), jnp.float32)
        tally = empty._replace(
            count=counts,
            rejection=rates * counts,
            count_rtk=counts,
            rejection_rtk=rates * counts,
        )
        current = ladder.next_settings(current, tally)
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

    Works of spread s are refused 2 Phi(s / 2) - 1; roots of s add up along
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
    empty = ladder.empty_tally(current)
    after = ladder.next_settings(current, empty, move_levels=False)
    jax.tree.map(
        lambda new, old: np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-4),
        after,
        current,
    )


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
    after = ladder.add_sweep(tally, info, jnp.zeros((2, K, DIM)), current.centre)
    for name in ("count", "rejection", "sum_e", "sum_ee", "sum_us", "bridge_down"):
        np.testing.assert_array_equal(getattr(after, name), getattr(tally, name))


def test_plain_swaps_show_nothing_of_the_start():
    """They count as trials, and for the bridge; a residual of theirs fits no start."""
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


def test_bridge_centre_steps_to_the_log_ratio(key):
    """Normal works with E[e^W] = e: of mean 1 - s**2 / 2 down and 1 + s**2 / 2 up."""
    n, sd, current = 20_000, 1.3, settings()
    keys = jr.split(key)
    down = 1.0 - sd**2 / 2 + sd * jr.normal(keys[0], (n, K))
    up = 1.0 + sd**2 / 2 + sd * jr.normal(keys[1], (n, K))
    tally = tally_of(current, key, 50, 1.0, 1.0, ZERO, jnp.eye(DIM))
    for _ in range(3):
        terms = ladder.bridge_terms(down, up, current.centre[None])
        tally = tally._replace(
            count=jnp.full(K, float(n)),
            bridge_down=jnp.sum(terms[0], axis=0),
            bridge_up=jnp.sum(terms[1], axis=0),
        )
        current = current._replace(centre=ladder._fit_centre(current, tally))
    # the bridge's standard error is below .012
    np.testing.assert_allclose(current.centre, 1.0, atol=0.06)
