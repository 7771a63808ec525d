"""The noise process and its ladders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rtk.noise import (
    angle_ladder,
    as_ladder,
    log_snr_ladder,
    noise_to_signal,
    noise_variance,
    signal,
    time_from_noise_to_signal,
    uniform_ladder,
)

NAMED = {"angle": angle_ladder, "log_snr": log_snr_ladder, "uniform": uniform_ladder}
TIMES = jnp.array([1e-6, 1e-3, 0.1, 0.7, 3.0, 8.0])


def noise_of(times):
    return np.sqrt(np.expm1(2.0 * np.asarray(times)))


def test_variance_is_preserved():
    total = jnp.square(signal(TIMES)) + noise_variance(TIMES)
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


def test_noise_to_signal_is_the_quotient():
    quotient = jnp.sqrt(noise_variance(TIMES)) / signal(TIMES)
    np.testing.assert_allclose(noise_to_signal(TIMES), quotient, rtol=1e-5)


def test_small_times_keep_their_digits():
    # 1 - exp(-2e-6) has no correct digit in float32; 2 t is right to order t
    np.testing.assert_allclose(noise_variance(jnp.array(1e-6)), 2e-6, rtol=2e-6)
    np.testing.assert_allclose(noise_to_signal(jnp.array(1e-6)) ** 2, 2e-6, rtol=2e-6)


def test_noise_to_signal_inverts():
    back = time_from_noise_to_signal(noise_to_signal(TIMES))
    np.testing.assert_allclose(back, TIMES, rtol=1e-5)
    assert time_from_noise_to_signal(jnp.zeros(())) == 0.0


def test_two_noisings_are_one():
    """Noise to s, then on to t: the process has no memory of where it stopped."""
    s, t = 0.3, 1.1
    variance = signal(t - s) ** 2 * noise_variance(s) + noise_variance(t - s)
    np.testing.assert_allclose(variance, noise_variance(t), rtol=1e-6)


def test_shape_and_dtype_are_kept():
    for function in (signal, noise_variance, noise_to_signal):
        out = function(jnp.ones((2, 3), jnp.float32))
        assert (out.shape, out.dtype) == ((2, 3), jnp.float32)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("num_segments", [1, 2, 9])
@pytest.mark.parametrize("horizon", [0.5, 3.0])
def test_named_ladders_run_from_zero_to_the_horizon(name, num_segments, horizon):
    times = NAMED[name](num_segments, horizon)
    assert times.shape == (num_segments + 1,)
    assert times[0] == 0.0
    assert times[-1] == horizon
    assert np.all(np.diff(times) > 0.0)


def test_uniform_ladder_is_uniform_in_time():
    np.testing.assert_allclose(np.diff(uniform_ladder(7)), 3.0 / 7)


def test_log_snr_ladder_is_uniform_in_log_noise():
    noise = noise_of(log_snr_ladder(7, smallest_noise=0.05)[1:])
    np.testing.assert_allclose(noise[0], 0.05)
    np.testing.assert_allclose(np.diff(np.log(noise)), np.log(noise[-1] / 0.05) / 6)


def test_angle_ladder_is_uniform_in_the_angle():
    angles = np.arctan(noise_of(angle_ladder(7, smallest_noise=0.2)[1:]))
    np.testing.assert_allclose(np.tan(angles[0]), 0.2)
    np.testing.assert_allclose(np.diff(angles), (angles[-1] - angles[0]) / 6)


@pytest.mark.parametrize("name", NAMED)
def test_as_ladder_takes_a_name_a_function_and_times(name):
    expected = NAMED[name](5)
    for ladder in (name, NAMED[name], expected, list(expected), tuple(expected)):
        np.testing.assert_array_equal(as_ladder(ladder, 5), expected)
    from_jax = as_ladder(jnp.asarray(expected), 99)  # times win over the number
    assert isinstance(from_jax, np.ndarray)
    np.testing.assert_allclose(from_jax, expected, rtol=1e-6)


def test_as_ladder_of_integers_is_of_floats():
    assert as_ladder([0, 1, 2], 2).dtype == np.float64


REFUSED = [
    (lambda: as_ladder("linear", 5), ValueError, r"one of \['angle', .*got 'linear'"),
    (lambda: as_ladder([0.0], 5), ValueError, "at least two finite times"),
    (lambda: as_ladder(0.3, 5), ValueError, "one-dimensional"),
    (lambda: as_ladder([[0.0, 1.0]], 5), ValueError, "one-dimensional"),
    (lambda: as_ladder([0.0, np.nan], 5), ValueError, "finite"),
    (lambda: as_ladder([0.0, np.inf], 5), ValueError, "finite"),
    (lambda: as_ladder([0.1, 1.0], 5), ValueError, "start at 0.*Prepend a 0"),
    (lambda: as_ladder([0.0, 1.0, 1.0], 5), ValueError, "increase strictly"),
    (lambda: as_ladder([0.0, 2.0, 1.0], 5), ValueError, "increase strictly"),
    (lambda: as_ladder(lambda k: np.ones(k), 5), ValueError, "start at 0"),
    (lambda: as_ladder("angle", 0), ValueError, "`num_segments` must be at least 1"),
    (lambda: as_ladder("angle", 2.0), TypeError, "`num_segments` must be an integer"),
    (lambda: uniform_ladder(0), ValueError, "`num_segments` must be at least 1"),
    (lambda: uniform_ladder(3, -1.0), ValueError, "`horizon` must be positive"),
    (lambda: log_snr_ladder(3, np.inf), ValueError, "`horizon` must be positive"),
    (lambda: log_snr_ladder(3, 1.0, 0.0), ValueError, "`smallest_noise` must be pos"),
    (lambda: log_snr_ladder(3, 0.1, 0.5), ValueError, "below the horizon's.*0.471"),
    (lambda: angle_ladder(3, 0.1, 0.5), ValueError, "below the horizon's.*got 0.5"),
    (lambda: angle_ladder(True), TypeError, "`num_segments` must be an integer"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_process_can_be_traced():
    jitted = jax.jit(noise_to_signal)(TIMES)
    np.testing.assert_allclose(jitted, noise_to_signal(TIMES), rtol=1e-6)
