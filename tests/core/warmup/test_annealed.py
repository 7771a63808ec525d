"""Warm-up of the annealed kernels on runs whose best variance is known; no NumPyro."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.core.annealed import Run
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.core.uld import ULD
from numpyro_rtk.core.warmup.adapt import Frame
from numpyro_rtk.core.warmup.annealed import (
    AnnealedMethod,
    _unsteadiness,
    first_adaptation,
    learn,
    pick_start,
    pilot,
)

SEGMENTS, DIM = 3, 10
BEST = 0.1
FRAME = Frame(jnp.zeros(2), jnp.ones(2), jnp.zeros(DIM))


def method(**options):
    usual = {
        "inner": MALA(),
        "num_segments": SEGMENTS,
        "step_size": None,
        "target_accept_prob": 0.8,
        "has_likelihood": True,
        "is_corrected": True,
    }
    return AnnealedMethod(**(usual | options))


def first(**options):
    return first_adaptation(
        method(**options), jnp.ones((SEGMENTS + 1, DIM)), None, FRAME
    )


def run(key, variance):
    """A run whose log weight scatters the more, the farther c is from the best."""
    spread = 0.1 + jnp.abs(jnp.log(variance / BEST))
    position = jr.normal(key, (DIM,))
    return Run(
        position=position,
        evaluation=Evaluation(-0.5 * jnp.sum(position**2), -position),
        log_weight=spread * position[0],
        accept_prob=jnp.ones(SEGMENTS),
        is_diverging=jnp.array(False),
    )


def test_pilot_takes_the_steadiest_variance_and_those_below(key):
    """64 runs a value, of a grid in ratio 3.2: the least spread stands far out."""
    adapt, runs = jax.jit(lambda k: pilot(k, run, first(), method()))(key)
    values = np.asarray(adapt.trials.values)
    np.testing.assert_allclose(values, BEST * 10.0 ** (-0.5 * np.arange(4)), rtol=1e-4)
    assert adapt.likelihood_variance == values[1]
    assert np.std(runs.log_weight) < 0.2
    assert runs.position.shape == (64, DIM)
    np.testing.assert_array_equal(adapt.trials.count, 0.0)


def test_pilot_without_a_likelihood_has_nothing_to_choose(key):
    adapt, runs = pilot(key, run, first(), method(has_likelihood=False))
    np.testing.assert_array_equal(adapt.trials.values, 1.0)
    assert adapt.likelihood_variance == 1.0
    assert runs.position.shape == (64, DIM)


def test_dead_runs_are_unsteady():
    alive = jnp.array([0.0, 1.0, -1.0, 0.5])
    assert _unsteadiness(alive) == jnp.var(alive)
    half = alive.at[2:].set(-jnp.inf)
    assert 50.0 < _unsteadiness(half) < 150.0  # 20 nats below the least
    assert _unsteadiness(jnp.full(4, -jnp.inf)) == jnp.inf


def test_a_start_follows_the_weights_and_has_a_density(key):
    position = jnp.arange(4.0)[:, None]
    value = jnp.array([0.0, 0.0, -jnp.inf, 0.0])
    weight = jnp.log(jnp.array([0.1, 0.3, 0.6, 0.0]))
    runs = Run(position, Evaluation(value, position), weight, value, value)
    pick = jax.jit(jax.vmap(lambda k, runs: pick_start(k, runs), in_axes=(0, None)))
    found, usable = pick(jr.split(key, 4000), runs)
    assert np.all(usable)
    # of 4,000, in proportion 1 : 3; the standard error is .007
    assert abs(np.mean(found == 1.0) - 0.75) < 0.035
    assert np.all(found < 2.0)
    # all weights gone: any point with a density
    lost = runs._replace(log_weight=jnp.full(4, -jnp.inf))
    found, usable = pick(jr.split(key, 100), lost)
    assert set(np.ravel(found)) == {0.0, 1.0, 3.0}
    nowhere = lost._replace(evaluation=Evaluation(jnp.full(4, -jnp.inf), position))
    assert not np.any(pick(jr.split(key, 3), nowhere)[1])


def warm_up(adapt, how, num_warmup, accept_of, num_draws=None, ordinary=None):
    """Adaptation after each draw; ``accept_of`` the variance in force is its outcome."""
    ordinary = jnp.zeros((num_draws or num_warmup, 0)) if ordinary is None else ordinary

    def body(adapt, inputs):
        i, values = inputs
        new = learn(
            adapt,
            how,
            num_warmup,
            i,
            accept_of(adapt.likelihood_variance),
            jnp.exp(-adapt.steps.current),
            values,
            np.ones(ordinary.shape[1], bool),
        )
        return new, new

    inputs = (jnp.arange(len(ordinary)), ordinary)
    return jax.lax.scan(body, adapt, inputs)[1]


def outcome(variance):
    """A chain that accepts most at a tenth of the pilot's value."""
    return jnp.exp(-jnp.abs(jnp.log(variance / (0.1 * BEST))))


def with_trials(adapt):
    values = BEST * 10.0 ** (-0.5 * jnp.arange(4))
    trials = adapt.trials._replace(values=values)
    return adapt._replace(trials=trials, likelihood_variance=values[1])


def test_trials_take_turns_and_the_best_on_the_chain_stays():
    history = warm_up(with_trials(first()), method(), 40, outcome)
    used = np.asarray(history.likelihood_variance)
    values = np.asarray(history.trials.values[0])
    np.testing.assert_array_equal(used[:19], values[np.arange(1, 20) % 4])
    np.testing.assert_array_equal(used[20:], values[2])  # a tenth of the pilot's
    # the first draw was made before any value's turn
    np.testing.assert_array_equal(history.trials.count[-1], [4, 5, 5, 5])


@pytest.mark.parametrize(
    ("options", "num_warmup"), [({"is_corrected": False}, 40), ({}, 7), ({}, 0)]
)
def test_nothing_is_tried_of_raw_draws_or_in_a_short_warm_up(options, num_warmup):
    start = with_trials(first())
    history = warm_up(start, method(**options), num_warmup, outcome, num_draws=10)
    np.testing.assert_array_equal(
        history.likelihood_variance, start.likelihood_variance
    )


def test_step_sizes_reach_the_target_and_freeze():
    """Acceptance exp(-step): .8 at a step of .223."""
    history = warm_up(first(), method(), 300, outcome, num_draws=310)
    steps = np.asarray(history.steps.current)
    np.testing.assert_allclose(np.exp(-steps[299]), 0.8, atol=0.02)
    for leaf in jax.tree.leaves(history):
        np.testing.assert_array_equal(
            leaf[300:], jnp.broadcast_to(leaf[299], leaf[300:].shape)
        )


@pytest.mark.parametrize(
    "options",
    [{"step_size": 0.3}, {"inner": ULD().unadjusted(), "is_corrected": False}],
)
def test_given_step_sizes_and_those_of_unadjusted_steps_stay(options):
    start = first(**options)
    history = warm_up(start, method(**options), 20, outcome)
    np.testing.assert_allclose(history.steps.current, 0.3, rtol=1e-6)


@pytest.mark.parametrize(("dim", "expected"), [(10, 0.7), (160, 0.35), (10**9, 0.05)])
def test_first_step_falls_with_the_dimension(dim, expected):
    moment = jax.ShapeDtypeStruct((SEGMENTS + 1, dim), jnp.float32)
    adapt = first_adaptation(method(), moment, None, FRAME)  # type: ignore[arg-type]
    np.testing.assert_allclose(adapt.steps.current, expected, rtol=1e-6)


def test_frame_moves_at_the_ends_of_three_windows():
    """Draws at 30, far outside of the unit scale: it widens and stays where it is."""
    draws = jnp.full((88, 2), 30.0)
    history = warm_up(first(), method(), 80, outcome, ordinary=draws)
    scale = np.asarray(history.frame.scale)[:, 0]
    changed = 1 + np.flatnonzero(np.diff(scale))
    np.testing.assert_array_equal(changed[0], 9)  # the tenth draw
    assert set(changed) <= {9, 29, 69}
    np.testing.assert_allclose(scale[-1], 30.0, rtol=1e-5)
    np.testing.assert_array_equal(history.frame.loc, 0.0)  # both have a prior
    count = np.asarray(history.moments.count)
    assert list(count[[8, 9, 28, 29, 69, 79, 87]]) == [9, 0, 19, 0, 0, 10, 10]
    # raw draws are no chain: their frame stays
    raw = method(is_corrected=False)
    history = warm_up(first(), raw, 80, outcome, ordinary=draws)
    np.testing.assert_array_equal(history.frame.scale, 1.0)
