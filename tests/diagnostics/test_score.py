"""check_prior of a score alone: silent where it is right, and names what was mistaken.

The rows are 2,000 of a mixture of two Gaussians, whose exact networks are at hand. A level
is accused from 5 standard errors on: chance does that in fewer than one check of 100,000.
"""

import functools

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_rtk as rtk
from numpyro_rtk import schedules
from numpyro_rtk.diagnostics.score import ScoreCheck
from tests.networks.exact_networks import (
    COVARIANCES,
    LOC,
    MEANS,
    SCALE,
    WEIGHTS,
    exact,
    wrapped,
)


def rows_of(seed, num=2000):
    mixture = rtk.GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
    return LOC + SCALE * np.asarray(mixture.sample(jr.key(seed), (num,)))


ROWS = rows_of(5)


class Own:
    """A user's own object: a network that is said to give a score in OU time."""

    event_shape = (2,)
    loc, scale = LOC, SCALE

    def __init__(self, network):
        self.network = network

    def score(self, x, t):
        return self.network((x - LOC) / SCALE, t) / SCALE


@pytest.mark.parametrize(
    ("name", "predicts"),
    [
        ("VP", "noise"),
        ("DDPM", "velocity"),
        ("VE", "score"),
        ("EDM", "data"),
        ("FlowMatching", "velocity"),
        ("OU", "score"),
    ],
)
def test_the_right_network_is_not_accused(name, predicts):
    found = rtk.check_prior(wrapped(name, predicts), ROWS)
    assert isinstance(found, ScoreCheck)
    assert found.problems == ()
    assert found.mistake is None
    assert np.max(found.excess / found.excess_error) < 5.0
    # of noise that can be found at all; its standard error is below .03
    assert np.max(np.abs(found.slope[2:] - 1.0)) < 0.1
    assert "nothing found" in str(found)


@pytest.mark.parametrize("seed", range(6))
def test_nor_by_other_rows_and_noise(seed):
    num = (100, 300, 1000)[seed % 3]
    found = rtk.check_prior(
        wrapped("VP", "noise"), rows_of(10 + seed, num), key=jr.key(seed)
    )
    assert found.problems == ()


def test_a_density_of_ones_own_is_not_accused_either():
    assert rtk.check_prior(Own(exact("OU", "score")), ROWS).problems == ()


def thousandth(network, x, time):
    return network(x, time / 1000.0)


SHIFTED = {"loc": ROWS.mean(axis=0), "scale": ROWS.std(axis=0)}
WRONG = {
    "noise for score": (
        wrapped("VP", "score", fn=exact("VP", "noise")),
        "the output is noise, taken for a score",
        'predicts="noise"',
    ),
    "score for noise": (
        wrapped("VP", "noise", fn=exact("VP", "score")),
        "the output is a score, taken for noise",
        'predicts="score"',
    ),
    "noise for data": (
        wrapped("VP", "data", fn=exact("VP", "noise")),
        "the output is noise, taken for data",
        'predicts="noise"',
    ),
    "data for noise": (
        wrapped("VE", "noise", fn=exact("VE", "data")),
        "the output is data (a denoiser), taken for noise",
        'predicts="data"',
    ),
    "velocity for noise": (
        wrapped("DDPM", "noise", fn=exact("DDPM", "velocity")),
        "the output is a velocity, taken for noise",
        'predicts="velocity"',
    ),
    "noise for velocity": (
        wrapped("DDPM", "velocity", fn=exact("DDPM", "noise")),
        "the output is noise, taken for a velocity",
        'predicts="noise"',
    ),
    "sign": (
        wrapped("VP", "noise", fn=exact("VP", "noise", sign=-1.0)),
        "the sign of the output is flipped",
        "minus the output",
    ),
    "direction of a flow": (
        wrapped("FlowMatching", "velocity", fn=exact("RectifiedFlow", "velocity")),
        "the clock of RectifiedFlow",
        "RectifiedFlow()",
    ),
    "time not mapped": (
        wrapped("OU", "noise", fn=exact("VP", "noise")),
        "the time is not mapped as in training",
        "VP(beta_min=0.1, beta_max=20.0",
    ),
    "index": (
        wrapped("VP", "noise", fn=functools.partial(thousandth, exact("VP", "noise"))),
        "1000 times that of VP",
        "1000 * time",
    ),
    "score for noise, of EDM": (
        wrapped("EDM", "noise", fn=exact("VE", "score")),
        "the output is a score, taken for noise",
        'predicts="score"',
    ),
    "no loc and scale": (
        wrapped("VP", "noise", fn=exact("VP", "noise"), loc=0.0, scale=1.0),
        None,
        "not have mean zero",
    ),
    "another rate": (
        # noticed; too small to be told from what training leaves
        wrapped("VP", "noise", schedule=schedules.VP(0.1, 14.0)),
        None,
        "not have mean zero",
    ),
    "own density in its network's time": (
        Own(exact("VP", "score")),
        "the clock of VP(0.1, 20.0)",
        "VP(beta_min=0.1, beta_max=20.0",
    ),
    "own density of noise": (
        Own(exact("OU", "noise")),
        "the output is noise, taken for a score",
        'predicts="noise"',
    ),
}


@pytest.mark.parametrize(("model_", "mistake", "said"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_named(model_, mistake, said):
    found = rtk.check_prior(model_, ROWS)
    assert found.problems
    assert said in " ".join(found.problems)
    if mistake is None:
        assert found.mistake is None
        assert "No other reading" in found.problems[1]
    else:
        assert found.mistake is not None
        assert mistake in found.mistake
        assert found.problems[0].startswith("Likeliest mistake")
        assert found.mistake in str(found)


@pytest.mark.parametrize("is_given", [False, True])
def test_a_scale_is_named(is_given):
    """Trained on standardised rows, and read on the rows as they are; and the reverse."""
    plain = {"loc": 0.0, "scale": 1.0}
    right, wrong = (plain, SHIFTED) if is_given else (SHIFTED, plain)
    seen = (ROWS - right["loc"]) / right["scale"]
    mean, clean = jnp.asarray(seen.mean(axis=0)), jnp.asarray(np.cov(seen.T))

    def noise(x, t):
        a, v = jnp.exp(-t), -jnp.expm1(-2.0 * t)
        spread = a**2 * clean + v * jnp.eye(2)
        return jnp.sqrt(v) * jnp.linalg.inv(spread) @ (x - a * mean)

    make = lambda options: rtk.ScoreModel.from_network(
        noise, (2,), predicts="noise", schedule=schedules.OU(), **options
    )
    found = rtk.check_prior(make(wrong), ROWS)
    assert found.mistake == "`loc` and `scale` are not those of the training"
    asked = "the values as they are" if is_given else "deviation of every coordinate"
    assert asked in found.problems[0]
    again = rtk.check_prior(make(right), ROWS)
    assert again.mistake is None


def test_an_untrained_network_is_not_explained():
    nothing = lambda x, time: jnp.zeros_like(x)
    model_ = wrapped("VP", "noise", fn=nothing)
    found = rtk.check_prior(model_, ROWS)
    assert found.mistake is None
    assert "The score is wrong at noise" in found.problems[0]
    assert "No other reading of the network explains it" in found.problems[1]
    assert "(more than a Gaussian's" in found.problems[0]


def test_a_score_that_is_not_finite_is_said():
    nan = lambda z, t: jnp.where(t > 1.0, jnp.nan, -z)
    found = rtk.check_prior(Own(nan), ROWS)
    assert "not finite at some noised held-out rows" in " ".join(found.problems)


def test_rows_far_from_the_process_are_said():
    model_ = wrapped("VP", "noise", loc=LOC - 10.0 * SCALE)
    found = rtk.check_prior(model_, ROWS)
    assert "begin elsewhere" in found.problems[-1]


def test_bad_rows_and_a_figure():
    model_ = wrapped("VP", "noise")
    with pytest.raises(ValueError, match="at least 100 rows"):
        rtk.check_prior(model_, ROWS[:50])
    with pytest.raises(ValueError, match="rows of shape"):
        rtk.check_prior(model_, ROWS[:, :1])
    assert len(rtk.check_prior(model_, ROWS[:200]).plot().axes) == 1


def test_one_value_a_row_and_images():
    """Events without an axis and with two; N(0, 1), whose noise is s z."""
    for shape in ((), (2, 3)):
        rows = np.asarray(jr.normal(jr.key(0), (500, *shape)))
        model_ = rtk.ScoreModel.from_network(
            lambda x, t: jnp.sqrt(-jnp.expm1(-2.0 * t)) * x,
            shape,
            predicts="noise",
            schedule=schedules.OU(),
        )
        assert rtk.check_prior(model_, rows).problems == ()
