"""Networks trained elsewhere: exact ones of every kind give the exact score.

In double precision, in a module of its own: JAX keeps programs of the other kind.
"""

import numpy as np
import pytest

from numpyro_rtk import schedules
from tests.networks.exact_networks import (
    CASES,
    LOC,
    LOG_NOISE,
    SCALE,
    error,
    exact,
    wrapped,
)


@pytest.mark.parametrize(("name", "predicts"), CASES)
def test_the_exact_network_gives_the_exact_score(x64, name, predicts):
    """In double precision: near the data single precision is the limit, below."""
    assert error(wrapped(name, predicts)) < 1e-5


@pytest.mark.parametrize(
    ("name", "predicts", "change"),
    [
        ("VP", "noise", {"fn": exact("VP", "noise", sign=-1.0)}),
        ("FlowMatching", "velocity", {"fn": exact("RectifiedFlow", "velocity")}),
        ("VP", "noise", {"schedule": schedules.OU()}),
        ("VP", "noise", {"schedule": schedules.VP(0.1, 15.0)}),
        ("DDPM", "velocity", {"fn": exact("DDPM", "noise")}),
        ("VE", "score", {"schedule": schedules.VE(0.01, 50.0, time_is="fraction")}),
        ("raw EDM", "data", {"schedule": schedules.EDM(0.5, raw=True)}),
        ("OU", "data", {"scale": 1.05 * SCALE}),
        ("OU", "data", {"loc": LOC + 0.05}),
    ],
)
def test_a_wrong_reading_is_far_off(x64, name, predicts, change):
    """What the test above would see: a sign, a time, a prediction, a scale."""
    assert error(wrapped(name, predicts, **change)) > 1e-2


def test_the_ends_of_the_noise_are_held(x64):
    model_ = wrapped("DDPM", "noise", noise_range=(0.1, 6.0))
    ends = [0.5 * np.log1p(r**2) for r in (0.1, 6.0)]
    x = LOC + 0.3 * SCALE
    for beyond, end in ((0.0, ends[0]), (1e-3, ends[0]), (5.0, ends[1])):
        np.testing.assert_allclose(model_.score(x, beyond), model_.score(x, end))
    between = model_.score(x, 1.01 * ends[0])
    assert not np.allclose(between, model_.score(x, ends[0]), rtol=1e-4)
    low, high = wrapped("DDPM", "noise").noise_range
    np.testing.assert_allclose((low, high), np.exp(LOG_NOISE[[0, -1]]), rtol=1e-6)
    assert "held below noise 0.1 and above 6" in repr(model_)
