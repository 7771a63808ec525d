"""Warm-up: step sizes reach their target, running moments are NumPy's."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.core.warmup.adapt import (
    Frame,
    Moments,
    StepSize,
    Trials,
    adapt_step_size,
    add_draw,
    best_trial,
    record_trial,
    spread_of,
    wider_reference,
)

SCALES = jnp.array([0.1, 1.0, 3.0])


def response(step_size):
    """A toy acceptance probability that falls with the step size."""
    return jnp.exp(-step_size / SCALES)


def warm_up(key, num_warmup, target, noise=0.0, start=1.0):
    def body(state, inputs):
        i, key = inputs
        error = noise * jr.normal(key, SCALES.shape)
        accept_prob = jnp.clip(response(state.current) + error, 0.0, 1.0)
        state = adapt_step_size(state, accept_prob, target, i, num_warmup)
        return state, state

    first = StepSize(jnp.full(3, start), jnp.log(jnp.full(3, start)))
    inputs = (jnp.arange(num_warmup), jr.split(key, num_warmup))
    return jax.lax.scan(body, first, inputs)


@pytest.mark.parametrize("target", [0.6, 0.9])
def test_step_size_reaches_the_target(key, target):
    last, _ = warm_up(key, 500, target)
    np.testing.assert_allclose(response(last.current), target, atol=0.02)


def test_noise_averages_out(key):
    """Acceptances scattered by .2: the average is closer than a single iterate."""
    last, history = warm_up(key, 2000, 0.7, noise=0.2)
    np.testing.assert_allclose(response(last.current), 0.7, atol=0.03)
    iterates = np.log(history.current[1000:-1])
    assert np.all(np.abs(np.log(last.current) - iterates.mean(axis=0)) < 1e-3)


def test_average_of_the_second_half_is_in_force_at_the_end(key):
    _, history = warm_up(key, 11, 0.7, noise=0.1)
    # current holds the iterates, except at the end; recover the last from its average
    iterates = np.log(np.asarray(history.current, np.float64))
    averages = np.asarray(history.log_average, np.float64)
    np.testing.assert_allclose(averages[5:10], _running_mean(iterates[5:10]), rtol=1e-4)
    np.testing.assert_allclose(iterates[10], averages[10], rtol=1e-5)
    assert np.abs(averages[10] - averages[9]).max() < np.abs(np.ptp(iterates[5:]))


def _running_mean(x):
    return np.cumsum(x, axis=0) / np.arange(1, len(x) + 1)[:, None]


def test_one_iteration_of_warm_up(key):
    last, _ = warm_up(key, 1, 0.7)
    expected = np.log(1.0) + (response(jnp.ones(3)) - 0.7)
    np.testing.assert_allclose(np.log(last.current), expected, rtol=1e-5)


def test_segments_without_inner_steps_keep_theirs():
    state = StepSize(jnp.array([0.3, 0.4]), jnp.log(jnp.array([0.3, 0.4])))
    accept_prob = jnp.array([jnp.nan, 0.2])
    for i in range(5):
        state = adapt_step_size(state, accept_prob, 0.7, jnp.array(i), 5)
    np.testing.assert_allclose(state.current[0], 0.3, rtol=1e-6)
    assert state.current[1] < 0.4


def test_step_sizes_stay_in_bounds():
    low = high = StepSize(jnp.ones(1), jnp.zeros(1))
    for i in range(200):
        low = adapt_step_size(low, jnp.zeros(1), 0.9, jnp.array(i), 1000)
        high = adapt_step_size(high, jnp.ones(1), 0.1, jnp.array(i), 1000)
    np.testing.assert_allclose([low.current[0], high.current[0]], [1e-3, 10.0])


def test_moments_are_numpys():
    draws = 100.0 + np.random.default_rng(0).normal(size=(300, 2)) * [0.1, 5.0]
    empty = Moments(jnp.zeros((), jnp.int32), jnp.zeros(2), jnp.zeros(2))
    moments, _ = jax.lax.scan(
        lambda m, x: (add_draw(m, x), None), empty, jnp.asarray(draws, jnp.float32)
    )
    assert moments.count == 300
    np.testing.assert_allclose(moments.mean, draws.mean(axis=0), rtol=1e-5)
    variance = moments.sum_squares / 300
    np.testing.assert_allclose(variance, draws.var(axis=0), rtol=1e-2)


def test_spread_starts_from_the_former_values_and_leaves_them():
    loc, scale = jnp.array([1.0, -1.0]), jnp.array([2.0, 0.5])
    empty = Moments(jnp.zeros((), jnp.int32), jnp.zeros(2), jnp.zeros(2))
    mean, sd = spread_of(empty, loc, scale)
    np.testing.assert_allclose(mean, loc)
    np.testing.assert_allclose(sd, scale)
    # 95 draws of mean 10, variance 4, and five of the former values
    many = Moments(jnp.array(95), jnp.full(2, 10.0), jnp.full(2, 4.0 * 95))
    mean, sd = spread_of(many, loc, scale)
    np.testing.assert_allclose(mean, 0.95 * 10.0 + 0.05 * loc, rtol=1e-6)
    np.testing.assert_allclose(sd**2, 0.95 * 4.0 + 0.05 * scale**2, rtol=1e-6)


def test_best_trial_has_the_largest_mean_outcome():
    values = jnp.array([0.1, 1.0, 10.0, 100.0])
    trials = Trials(values, jnp.zeros(4), jnp.zeros(4, jnp.int32))
    assert best_trial(trials) == values[0]  # nothing tried: the first
    for index, outcome in [(0, 0.3), (0, 0.3), (0, 0.3), (1, 0.1), (2, 0.4)]:
        trials = record_trial(trials, jnp.array(index), jnp.array(outcome))
    assert best_trial(trials) == 10.0  # not the largest sum (0), not an untried one (3)
    np.testing.assert_array_equal(trials.count, [3, 1, 1, 0])
    negative = record_trial(
        Trials(values, jnp.zeros(4), jnp.zeros(4, jnp.int32)), 2, jnp.array(-5.0)
    )
    assert best_trial(negative) == 10.0  # the only one tried


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
