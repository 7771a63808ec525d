"""The proposals' regression: what a window's sums turn into."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.segment import proposal_mean
from numpyro_rtk.core.warmup.settings import next_settings
from tests.core.tallies import (
    DIM,
    TIMES,
    ZERO,
    K,
    edges_in,
    settings,
    sums_of,
    tally_of,
)


def test_proposals_are_the_regression_of_the_lower_states(key):
    """n = 20,000: the estimates' standard errors are below .01 in these units."""
    root = jnp.array([[0.5, 0.0, 0.0], [0.3, 0.4, 0.0], [0.0, -0.2, 0.6]])
    shift, current = jnp.array([0.2, -0.1, 0.0]), settings()
    for k in jr.split(key, 6):  # the covariance settles once the factors have
        tally = tally_of(current, k, 20_000, 0.9, 1.2, shift[None, None], root)
        current = next_settings(current, tally, move_levels=False)
    np.testing.assert_allclose(current.proposals.mean_x, 0.9, atol=0.03)
    np.testing.assert_allclose(current.proposals.mean_score, 1.2, atol=0.03)
    np.testing.assert_allclose(
        current.proposals.shift, np.tile(shift, (K, 1)), atol=0.05
    )
    expected = np.tile(root @ root.T, (K, 1, 1))
    np.testing.assert_allclose(current.proposals.covariance, expected, atol=0.03)
    product = np.einsum("kab,kcb->kac", current.proposals.root, current.proposals.root)
    np.testing.assert_allclose(product, expected, atol=0.03)


def test_diagonal_settings_are_the_diagonals_of_dense_ones(key):
    """Independent coordinates: the same factors, variances, spreads and volumes."""
    root, shift = jnp.diag(jnp.array([0.5, 0.4, 0.8])), jnp.full((1, 1, DIM), 0.2)
    found = {}
    for dense in (True, False):
        current = settings(dense=dense)
        for k in jr.split(key):
            tally = tally_of(current, k, 20_000, 0.9, 1.2, shift, root)
            current = next_settings(current, tally)
        found[dense] = current, edges_in(current)
    (full, full_edges), (diagonal, edges) = found[True], found[False]
    assert diagonal.proposals.root.shape == diagonal.scale.shape == (K, DIM)
    take = lambda matrices: np.diagonal(matrices, axis1=1, axis2=2)
    np.testing.assert_allclose(diagonal.scale, take(full.scale), rtol=0.02)
    for name in ("covariance", "root", "inverse_root"):
        got = getattr(diagonal.proposals, name)
        there = take(getattr(full.proposals, name))
        np.testing.assert_allclose(got, there, rtol=0.02)
    np.testing.assert_allclose(edges.root, take(full_edges.root), rtol=0.02)
    np.testing.assert_allclose(edges.log_det, full_edges.log_det, atol=0.02)


def sums_of_a_gaussian(current, key, n, loc, variance):
    """A window's sums where the data are ``N(loc, variance I)``."""
    edges = edges_in(current)
    each = lambda rows: rows[None, :, None]  # draws, edges, coordinates
    signal = jnp.exp(-current.times)
    spread = 1.0 - (1.0 - variance) * signal**2  # variance of each level
    lower, noise = (jr.normal(k, (n, K, DIM)) for k in jr.split(key))
    lower = each(signal[:-1] * loc) + each(jnp.sqrt(spread[:-1])) * lower
    upper = each(edges.a) * lower + each(jnp.sqrt(edges.v)) * noise
    score = (each(signal[1:] * loc) - upper) / each(spread[1:])
    return sums_of(current, lower, upper, score, [0.5, 0.5, 0.95, 0.95])


def test_a_proposal_holds_for_a_wider_edge_as_well(key):
    """Fitted by 2,000 draws, moved to easy edges three times as wide, not fitted again.

    The proposal for a Gaussian is known: its mean must agree to a fifth of its standard
    deviation, .02 nats a dimension (with factors of x and of the score it is half of one
    off), and that to a tenth, or an exchange would lose much by the move alone.
    """
    loc, variance = 0.3, 0.6
    current = settings(jnp.array([0.0, 0.4, 0.9, 1.6, 3.0], jnp.float32))
    for k in jr.split(key, 3):
        tally = sums_of_a_gaussian(current, k, 2000, loc, variance)
        current = next_settings(current, tally, move_levels=False)
    moved = next_settings(current, tally)
    assert moved.times[3] < 1.0  # the edge to the reference, before 1.6

    edge = jax.tree.map(lambda leaf: leaf[-1], edges_in(moved))
    signal = jnp.exp(-moved.times[-2])
    low = 1.0 - (1.0 - variance) * signal**2  # variance below; above it is 1
    upper = jnp.array([-1.5, 0.0, 1.5])
    truth = signal * loc + edge.a * low * upper
    sd = jnp.sqrt(low - edge.a**2 * low**2)
    np.testing.assert_allclose(proposal_mean(edge, upper, -upper), truth, atol=0.2 * sd)
    np.testing.assert_allclose(jnp.diagonal(edge.root), sd, rtol=0.1)


def test_later_windows_count_by_their_trials(key):
    """The factor of a window of 1,000 and of one of 3,000 trials: a mean so weighted."""
    current = settings()
    for n, factor, k in zip((1000, 3000), (1.0, 1.4), jr.split(key), strict=True):
        tally = tally_of(current, k, n, 1.0, factor, ZERO, jnp.eye(DIM))
        current = next_settings(current, tally, move_levels=False)
    # but for the first edge, so narrow that its factor is hardly seen
    np.testing.assert_allclose(current.proposals.mean_score[1:], 1.3, atol=0.05)
    np.testing.assert_allclose(current.proposals.count, 4010.0)


def test_a_later_windows_shift_counts_by_its_trials(key):
    """Shifts of 0 in 1,000 trials and of .8 in 3,000: .6, of standard error .014; z = 5."""
    current = settings()
    for n, size, k in zip((1000, 3000), (0.0, 0.8), jr.split(key), strict=True):
        shift = jnp.full((1, 1, DIM), size)
        tally = tally_of(current, k, n, 1.0, 1.0, shift, jnp.eye(DIM))
        current = next_settings(current, tally, move_levels=False)
    np.testing.assert_allclose(current.proposals.shift, 0.6, atol=0.07)


def test_edges_put_the_widths_in():
    current = settings()
    edges = edges_in(current)
    np.testing.assert_allclose(edges.a, np.exp(-np.diff(TIMES)), rtol=1e-5)
    np.testing.assert_allclose(edges.v, 1.0 - np.exp(-2.0 * np.diff(TIMES)), rtol=1e-4)
    identity = np.einsum("kab,kbc->kac", edges.root, edges.inverse_root)
    np.testing.assert_allclose(identity, np.tile(np.eye(DIM), (K, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(
        edges.log_det, np.linalg.slogdet(np.asarray(edges.root))[1], rtol=1e-4
    )
