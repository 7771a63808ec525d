"""Jumps between modes: what is fitted, and that a bad fit costs acceptance alone."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.core.exchange import modes as modes_module
from numpyro_rtk.core.exchange.modes import (
    add_draws,
    empty_mode_tally,
    fit_modes,
    jump,
    jump_bottom,
    log_shares,
    membership,
    moved_modes,
    refit_modes,
)
from numpyro_rtk.core.exchange.replicas import JumpNoise, Replicas
from numpyro_rtk.core.segment import Evaluation
from tests.oracles import SKEWED, Mixture, assert_mean, summaries, z_score

FLOOR = jnp.full(2, 1e-6)
# A wide and a narrow mode, turned, of unequal weights.
TWO = Mixture(
    [0.75, 0.25],
    [[-1.0, 0.5], [2.0, -1.0]],
    [[[0.5, 0.2], [0.2, 0.3]], [[0.01, -0.006], [-0.006, 0.02]]],
)


@functools.cache
def fitted(dense=True, n=2000):
    x = jnp.asarray(TWO.draws(1, n), jnp.float32)
    fit = jax.jit(lambda key, x: fit_modes(key, x, FLOOR, dense=dense))
    return fit(jr.key(2), x), x


def pooled(modes, x, sign):
    """Weight, mean and covariance of the components on one side, as one Gaussian."""
    here = sign * np.asarray(modes.mean[:, 0]) > 0.5 * sign
    w = np.exp(np.asarray(modes.log_weight, float)) * here
    mixture = Mixture(w / w.sum(), modes.mean, modes.covariance)
    return w.sum(), *mixture.moments()


def test_fit_recovers_two_modes_of_different_widths():
    """n = 2,000: standard errors are .01 of weights, 3 % of a mean's and a variance's unit.

    Eight components share two modes: what they say together is compared. No weight is
    below .02, which may add to the narrow one's; and covariances are widened by 3 / count.
    """
    modes, x = fitted()
    for j, sign in enumerate((-1, 1)):
        weight, mean, covariance = pooled(modes, x, sign)
        truth = TWO.covariances[j]
        np.testing.assert_allclose(weight, TWO.weights[j], atol=0.06)
        sd = np.sqrt(np.diag(truth))
        np.testing.assert_allclose((mean - TWO.means[j]) / sd, 0.0, atol=0.2)
        scaled = covariance / np.outer(sd, sd)
        np.testing.assert_allclose(scaled, truth / np.outer(sd, sd), atol=0.2)
    own = membership(modes, x)
    np.testing.assert_array_equal(own.sum(axis=1), 1.0)
    assert np.all(np.argmax(log_shares(modes, x), axis=1) == np.argmax(own, axis=1))
    assert np.all(np.isfinite(jax.tree.leaves(modes)[0]))


def test_a_few_equal_points_are_a_mixture_too():
    """Repeats, as of resampled particles: nothing is NaN, nothing narrower than told."""
    x = jnp.tile(jnp.array([[0.3, -0.2], [1.0, 1.0]]), (30, 1))
    for dense in (False, True):
        modes = fit_modes(jr.key(0), x, jnp.full(2, 0.01), dense=dense)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(modes))
        diagonal = modes.covariance
        if dense:
            diagonal = jnp.diagonal(diagonal, axis1=1, axis2=2)
        assert np.all(diagonal >= 0.0099)


def poor_modes():
    """Fitted to other draws: too wide, in wrong places, of wrong weights."""
    modes, _ = fitted()
    return moved_modes(modes, jnp.array([0.2, -0.1]), jnp.array([0.7, 1.3]))


def jump_noise(key, dim=2):
    key_normal, key_uniform = jr.split(key)
    return JumpNoise(jr.normal(key_normal, (dim,)), *jr.uniform(key_uniform, (2,)))


def jumps(key, n=4000, num=6):
    """Exact draws of the skewed mixture, and where each is after ``num`` jumps."""
    target, modes = SKEWED.target(), poor_modes()
    path = lambda x, level: target(x)
    before = jnp.asarray(SKEWED.draws(5, n), jnp.float32)

    def chain(key, x):
        def body(carry, key):
            x, at_x, accept_prob = jump(jump_noise(key), *carry, path, None, modes)
            return (x, at_x), accept_prob

        (x, _), accept_prob = jax.lax.scan(body, (x, target(x)), jr.split(key, num))
        return x, accept_prob

    after, accept_prob = jax.jit(jax.vmap(chain))(jr.split(key, n), before)
    return summaries(after) - summaries(before), accept_prob


def test_jumps_leave_the_target_invariant_however_poor_the_mixture(key):
    """n = 4,000 exact draws, 6 jumps: paired changes within z = 5."""
    change, accept_prob = jumps(key)
    assert 0.03 < np.mean(accept_prob) < 0.9  # some are taken, and some refused
    assert_mean(change)


@pytest.mark.parametrize("broken", ["none of it", "no widths"])
def test_negative_control_of_jumps(broken, key, monkeypatch):
    """Without the proposal's density, or with a wrong one, draws leave their law."""
    wrong = {
        "none of it": lambda modes, x: jnp.zeros_like(modes.log_weight),
        "no widths": lambda modes, x: (
            modes.log_weight - 0.5 * jnp.sum(jnp.square(x[None] - modes.mean), axis=1)
        ),
    }
    monkeypatch.setattr(modes_module, "_by_component", wrong[broken])
    change, _ = jumps(key)
    assert np.max(np.abs(z_score(change))) > 8.0


@pytest.mark.parametrize("dense", [False, True])
def test_draws_move_their_own_component_and_no_other(dense):
    """2,000 draws of one mode, shifted and half as wide; none of the other."""
    modes, _ = fitted(dense)
    rng = np.random.default_rng(3)
    shifted = np.array([2.1, -1.1]) + 0.05 * rng.normal(size=(2000, 2))
    draws = jnp.asarray(shifted, jnp.float32)
    tally = add_draws(empty_mode_tally(modes), modes, draws[:500])
    tally = add_draws(tally, modes, draws[500:])
    np.testing.assert_allclose(jnp.sum(tally.count), 2000.0, rtol=1e-3)
    new = refit_modes(modes, tally, FLOOR)
    visited = np.asarray(tally.count) > 1.0
    far = np.asarray(modes.mean[:, 0]) < 0.0
    assert np.any(visited)
    assert np.any(far)
    assert not np.any(visited & far)
    for name in ("mean", "covariance", "root"):
        new_rows, rows = (np.asarray(getattr(m, name))[far] for m in (new, modes))
        np.testing.assert_array_equal(new_rows, rows)
    before, after = (
        np.abs(np.asarray(m.mean)[visited] - shifted.mean(axis=0)) for m in (modes, new)
    )
    weight = np.asarray(tally.count)[visited, None]
    assert np.sum(weight * after) < 0.6 * np.sum(weight * before)
    # what it rests on is half of what it was, and the draws
    rests_on = jnp.where(visited, 0.5 * modes.count + tally.count, modes.count)
    np.testing.assert_allclose(new.count, rests_on, rtol=1e-4)
    # the weight goes towards what the draws say, and the far mode keeps some
    kept = np.exp(np.asarray(new.log_weight))[far].sum()
    assert 0.2 < kept < 0.5
    np.testing.assert_allclose(jnp.sum(jnp.exp(new.log_weight)), 1.0, rtol=1e-4)


def test_a_window_without_draws_changes_no_component():
    """Nor do ten of them: what a chain has not found yet is not to be forgotten."""
    modes, _ = fitted()
    new = modes
    for _ in range(10):
        new = refit_modes(new, empty_mode_tally(new), FLOOR)
    for name in ("mean", "covariance", "root", "inverse_root", "count"):
        np.testing.assert_array_equal(getattr(new, name), getattr(modes, name))
    np.testing.assert_allclose(new.log_weight, modes.log_weight, atol=0.05)


@pytest.mark.parametrize("dense", [False, True])
def test_moved_modes_are_the_same_law_in_other_coordinates(dense):
    modes, x = fitted(dense)
    shift, factor = jnp.array([0.4, -2.0]), jnp.array([0.25, 3.0])
    moved = moved_modes(modes, shift, factor)
    there = factor[None] * x[:50] + shift[None]
    log_q = lambda m, x: jax.vmap(
        lambda z: jax.nn.logsumexp(modes_module._by_component(m, z))
    )(x)
    jacobian = np.log(0.25 * 3.0)
    np.testing.assert_allclose(
        log_q(moved, there) + jacobian, log_q(modes, x[:50]), atol=1e-2
    )
    if dense:
        np.testing.assert_allclose(
            moved.root @ jnp.swapaxes(moved.root, 1, 2),
            moved.covariance,
            rtol=1e-3,
            atol=1e-6,
        )


def test_diagonals_are_as_matrices_where_coordinates_are_independent(key):
    """The same mixture in both forms: the same density, shares and jumps."""
    diagonal, x = fitted(False)
    as_matrices = jax.vmap(jnp.diag)
    dense = diagonal._replace(
        covariance=as_matrices(diagonal.covariance),
        root=as_matrices(diagonal.root),
        inverse_root=as_matrices(diagonal.inverse_root),
    )
    np.testing.assert_allclose(
        log_shares(diagonal, x[:50]), log_shares(dense, x[:50]), atol=1e-3
    )
    target = TWO.target()
    noise = jump_noise(key)
    found = [
        jump(noise, x[0], target(x[0]), lambda u, level: target(u), None, modes)
        for modes in (diagonal, dense)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *found
    )
    tallies = [
        add_draws(empty_mode_tally(modes), modes, x[:200])
        for modes in (diagonal, dense)
    ]
    np.testing.assert_allclose(
        tallies[0].square,
        jnp.diagonal(tallies[1].square, axis1=1, axis2=2),
        rtol=1e-2,
        atol=1e-3,
    )


@pytest.mark.parametrize("dense", [False, True])
def test_a_visited_component_has_the_moments_of_all_that_it_rests_on(dense):
    """One component of 4,000 points, of which half count, and 2,000 draws 5 away.

    Their pooled covariance: half of each one's own, and a quarter of the square between
    their means. It is widened by 1 + 1.5 / 4,000.
    """
    rng = np.random.default_rng(4)
    before = rng.normal(size=(4000, 2)) @ np.array([[1.0, 0.4], [0.0, 0.6]])
    draws = 0.5 * rng.normal(size=(2000, 2)) + [3.0, -4.0]
    x, new_x = (jnp.asarray(rows, jnp.float32) for rows in (before, draws))
    modes = fit_modes(jr.key(0), x, FLOOR, dense=dense, num_components=1)
    new = refit_modes(modes, add_draws(empty_mode_tally(modes), modes, new_x), FLOOR)
    means = before.mean(axis=0), draws.mean(axis=0)
    between = np.outer(means[0] - means[1], means[0] - means[1])
    own = sum(np.cov(rows.T, bias=True) for rows in (before, draws))
    expected = 0.5 * own + 0.25 * between
    expected = expected if dense else np.diag(expected)
    np.testing.assert_allclose(new.mean[0], 0.5 * (means[0] + means[1]), atol=1e-3)
    np.testing.assert_allclose(new.covariance[0], expected, rtol=0.01, atol=0.02)


def test_a_jump_at_the_bottom_takes_its_evaluation_along(key):
    """And leaves all other levels as they are; some of 100 jump, and some do not."""
    target, modes, n = SKEWED.target(), poor_modes(), 100
    path = lambda x, level: target(x)
    phase, trips = jnp.array([1, 0, 2]), jnp.zeros((), int)
    position = jnp.asarray(SKEWED.draws(5, 3 * n), jnp.float32).reshape(n, 3, 2)
    evaluation = jax.vmap(jax.vmap(target))(position)

    def one(key, position, evaluation):
        replicas = Replicas(position, evaluation, phase, trips)
        return jump_bottom(jump_noise(key), replicas, path, jnp.zeros(3), modes)[0]

    after = jax.jit(jax.vmap(one))(jr.split(key, n), position, evaluation)
    moved = np.any(np.asarray(after.position != position)[:, 0], axis=1)
    assert 0 < moved.sum() < n
    there = jax.vmap(jax.vmap(target))(after.position)
    for new, old, found in zip(after.evaluation, evaluation, there, strict=True):
        np.testing.assert_allclose(new, found, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(new[:, 1:], old[:, 1:])
    np.testing.assert_array_equal(after.position[:, 1:], position[:, 1:])


@pytest.mark.parametrize("dense", [False, True])
def test_what_is_proposed_has_the_law_that_it_is_weighed_by(dense, key):
    """From a point without density every proposal is taken: n = 20,000 of them; z = 5.

    Their mean shares are the weights, their moments the mixture's.
    """
    modes, _ = fitted(dense)
    root, inverse, covariance = (
        np.asarray(leaf if dense else jax.vmap(jnp.diag)(leaf))
        for leaf in (modes.root, modes.inverse_root, modes.covariance)
    )
    identity = np.tile(np.eye(2), (len(root), 1, 1))
    np.testing.assert_allclose(root @ inverse, identity, atol=1e-3)
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    unit = sd[:, :, None] * sd[:, None, :]
    square = root @ np.swapaxes(root, 1, 2)
    np.testing.assert_allclose(square / unit, covariance / unit, atol=1e-3)

    x, nowhere = jnp.zeros(2), Evaluation(jnp.array(-jnp.inf), jnp.zeros(2))
    path = lambda z, level: Evaluation(jnp.zeros(()), -z)
    one = lambda key: jump(jump_noise(key), x, nowhere, path, None, modes)
    z, _, accept_prob = jax.jit(jax.vmap(one))(jr.split(key, 20_000))
    np.testing.assert_array_equal(accept_prob, 1.0)
    weight = np.exp(np.asarray(modes.log_weight, float))
    used = weight > 1e-6  # others are there for the shapes' sake
    assert_mean(np.exp(np.asarray(log_shares(modes, z)))[:, used], weight[used])
    mean, whole = Mixture(weight, modes.mean, covariance).moments()
    off = np.asarray(z, float) - mean
    assert_mean(off)
    assert_mean(off[:, :, None] * off[:, None, :], whole)
