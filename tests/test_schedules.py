"""Schedules of other people's networks: their own formulas, inverted."""

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rtk import schedules

ALL = [
    schedules.VP(0.1, 20.0),
    schedules.VP(1.0, 1.0, end=10.0),
    schedules.DDPM(np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))),
    schedules.VE(0.01, 50.0),
    schedules.EDM(0.5),
    schedules.FlowMatching(),
    schedules.RectifiedFlow(),
    schedules.OU(),
]


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("r", [0.02, 0.7, 15.0])
def test_noise_over_signal_is_r(schedule, r):
    r = jnp.asarray(r)
    np.testing.assert_allclose(schedule.sigma(r) / schedule.alpha(r), r, rtol=1e-6)
    assert schedule.time(r).shape == ()


@pytest.mark.parametrize("schedule", ALL[:3], ids=["VP", "constant", "DDPM"])
def test_variance_is_preserved(schedule):
    r = jnp.asarray(0.8)
    total = schedule.alpha(r) ** 2 + schedule.sigma(r) ** 2
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


def test_steps_of_ddpm_are_met_exactly():
    products = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    r = np.sqrt(1.0 / products - 1.0)
    times = schedules.DDPM(products).time(jnp.asarray(r))
    np.testing.assert_allclose(times, np.arange(1000), atol=0.02)
    np.testing.assert_allclose(schedules.DDPM(products).noise_range, r[[0, -1]], 1e-5)


def test_ends_of_the_trained_noise(x64):
    vp = schedules.VP(0.1, 20.0)
    low, high = vp.noise_range
    assert low is None
    np.testing.assert_allclose(vp.time(jnp.asarray(high)), 1.0)
    assert schedules.VE(0.01, 50.0).noise_range == (0.01, 50.0)
    for schedule in (schedules.EDM(), schedules.OU(), schedules.FlowMatching()):
        assert schedule.noise_range == (None, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.VP(0.0, 20.0), "`beta_min` must be positive"),
        (lambda: schedules.VP(20.0, 0.1), "`beta_max` must be at least `beta_min`"),
        (lambda: schedules.VP(0.1, 20.0, end=-1.0), "`end` must be positive"),
        (lambda: schedules.VE(50.0, 0.01), "`sigma_max` must be above"),
        (lambda: schedules.VE(0.01, 50.0, "log"), "`time_is` must be 'sigma'"),
        (lambda: schedules.EDM(0.0), "`sigma_data` must be positive"),
        (lambda: schedules.DDPM([0.9]), r"shape \(steps,\)"),
        (lambda: schedules.DDPM([0.9, 0.5, 0.0]), "leave out a last one that is 0"),
        (lambda: schedules.DDPM([1.0, 0.5]), r"within \(0, 1\)"),
        (lambda: schedules.DDPM([0.1, 0.5]), r"jnp.cumprod\(1 - betas\)"),
        (lambda: schedules.DDPM([0.9, np.nan]), "must fall strictly"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_anything_but_numbers_is_refused():
    with pytest.raises(TypeError, match="`alphas_cumprod` must be an array of numbers"):
        schedules.DDPM("linear")
    with pytest.raises(TypeError, match="`beta_min` must be a real number"):
        schedules.VP("0.1", 20.0)
