"""Draws of a density by itself: their law, what is fitted for them, and how often."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_rtk as rtk
from numpyro_rtk import draw as module
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.uld import ULD
from numpyro_rtk.draw import (
    DEFAULTS,
    Predictor,
    draw,
    draw_given,
    fit_predictor,
    predictor_of,
)
from numpyro_rtk.kernels.annealed_options import SCORE_DEFAULTS
from numpyro_rtk.noise import as_ladder
from tests.oracles import Mixture, assert_mean, z_score

# A narrow mode and one three times as wide, on a process of scales far from 1.
LAW = Mixture(
    [0.35, 0.65],
    [[-4.0, 0.6], [2.0, 0.2]],
    [[[0.25, 0.02], [0.02, 0.01]], [[2.0, -0.2], [-0.2, 0.09]]],
)
EXACT = LAW.jax(standardise=True)
NUM = 4000


class Energy(eqx.Module):
    """The exact density at every noise, with no draws of its own."""

    mixture: rtk.GaussianMixture
    event_shape = (2,)

    @property
    def loc(self):
        return self.mixture.loc

    @property
    def scale(self):
        return self.mixture.scale

    def score(self, x, t):
        return self.mixture.score(x, t)

    def log_density(self, x, t):
        return self.mixture.log_density(x, t)


class Score(Energy):
    log_density = None  # pyright: ignore[reportAssignmentType]


DENSITIES = {"energy": Energy(EXACT), "score": Score(EXACT)}


def statistics(x):
    """Weight of the narrow mode, means, and second moments, in standard deviations."""
    x = np.asarray(x, np.float64)
    mean, covariance = LAW.moments()
    z = (x - mean) / np.sqrt(np.diag(covariance))
    products = [z[:, 0] ** 2, z[:, 0] * z[:, 1], z[:, 1] ** 2]
    return np.stack([x[:, 0] < -1.5, *z.T, *products], axis=1)


EXPECTED = statistics(LAW.draws(5, 2_000_000)).mean(axis=0)
DRAW = jax.jit(
    lambda key, density, predictor: draw(key, density, (NUM,), predictor=predictor)
)


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_draws_have_the_densitys_law(density, key):
    """4,000 independent draws, z = 5: a weight within .038, a mean within .079 sd.

    The rule's own error at 13 segments is below the standard error. Control: a rule that
    keeps 5 % more of its position in every step is seen.
    """
    predictor = fit_predictor(density)
    assert_mean(statistics(DRAW(key, density, predictor)), EXPECTED)
    wrong = predictor.multistep._replace(keep=1.05 * predictor.multistep.keep)
    draws = DRAW(key, density, Predictor(wrong, predictor.second_moment))
    assert np.max(np.abs(z_score(statistics(draws), EXPECTED))) > 8.0


def test_a_prior_samples_by_it(key):
    """And holds nothing more than before."""
    prior = rtk.LearnedPrior(DENSITIES["energy"])
    before = set(vars(prior))
    draws = prior.sample(key, (2, 3))
    np.testing.assert_array_equal(draws, draw(key, DENSITIES["energy"], (2, 3)))
    assert draws.shape == (2, 3, 2)
    assert set(vars(prior)) == before


def test_a_density_that_draws_from_itself_is_asked(key):
    np.testing.assert_array_equal(draw(key, EXACT, (5,)), EXACT.sample(key, (5,)))


def test_conditions_have_draws_of_their_own(key):
    """x = c + s e on the process of scale 2 for all c: 2,000 draws, z = 5."""

    class Moved:
        event_shape, condition_shape, scale = (1,), (), 2.0

        def given(self, c):
            return MovedAt(c)

    class MovedAt:
        event_shape = (1,)

        def __init__(self, c):
            self.c = c

        def score(self, x, t):
            a = jnp.exp(-t)
            return (a * self.c - x) / (0.25 * a**2 + 4.0 * (1.0 - a**2))

    c = jnp.array([-2.0, 0.0, 3.0])
    draws = jax.jit(lambda key: draw_given(key, Moved(), c, (2000,)))(key)
    assert draws.shape == (3, 2000, 1)
    for drawn, centre in zip(draws[..., 0], c, strict=True):
        assert_mean(drawn, centre)
        assert_mean(jnp.square(drawn - centre), 0.25)


@pytest.fixture
def fits(monkeypatch):
    """Densities that a predictor was fitted to, none of them kept from before."""
    fitted = []

    def counted(density, *args, **kwargs):
        fitted.append(density)
        return FITTED

    monkeypatch.setattr(module, "fit_predictor", counted)
    monkeypatch.setattr(module, "_kept", [])
    return fitted


FITTED = Predictor(jnp.arange(3.0), jnp.ones((2, 2)))  # pyright: ignore


def test_a_predictor_is_fitted_once_to_an_array(fits):
    one, same, other = (Energy(EXACT) for _ in range(3))
    other = jax.tree.map(jnp.array, other)  # equal numbers, other arrays
    for _ in range(3):
        for density in (one, same):
            found = predictor_of(density)
            jax.tree.map(np.testing.assert_array_equal, found, FITTED)
    assert len(fits) == 1
    predictor_of(other)
    predictor_of(one, DEFAULTS._replace(num_particles=8))
    predictor_of(one, process=other)
    assert len(fits) == 4
    predictor_of(one)
    assert len(fits) == 4
    predictor_of(Score(EXACT))
    assert len(fits) == 5


def test_an_object_that_was_changed_is_another_density(fits):
    class Own:
        event_shape = (1,)

        def __init__(self, centre):
            self.centre = centre

        def score(self, x, t):
            return jnp.exp(-t) * self.centre - x

    own = Own(jnp.array(1.0))
    predictor_of(own)
    predictor_of(own)
    assert len(fits) == 1
    own.centre = jnp.array(2.0)
    predictor_of(own)
    assert len(fits) == 2


def test_no_more_predictors_are_kept_than_said(fits):
    densities = [jax.tree.map(jnp.array, Energy(EXACT)) for _ in range(10)]
    for density in densities:
        predictor_of(density)
    assert len(module._kept) == module._MOST_KEPT == 8
    predictor_of(densities[2])
    assert len(fits) == 10
    predictor_of(densities[1])
    assert len(fits) == 11


def test_what_jax_traces_is_not_kept(monkeypatch):
    monkeypatch.setattr(module, "_kept", [])
    few = DEFAULTS._replace(num_particles=4, times=(0.0, 0.5, 2.0))
    moment = lambda density: predictor_of(density, few).second_moment
    traced = jax.jit(moment)(DENSITIES["score"])
    assert not module._kept
    np.testing.assert_allclose(moment(DENSITIES["score"]), traced, rtol=1e-4)
    assert len(module._kept) == 1


def test_draws_are_compiled_once_for_a_density(key, monkeypatch):
    """Other keys and other parameters compile nothing; an object may have changed."""
    traced, right = [], module.predict_down
    monkeypatch.setattr(
        module, "predict_down", lambda *args: traced.append(None) or right(*args)
    )
    few = DEFAULTS._replace(num_particles=4, times=(0.0, 0.4, 2.5), num_steps=0)
    moved = Mixture(LAW.weights, LAW.means + 9.0, LAW.covariances).jax(standardise=True)
    ends = [
        draw(key, density, (2,), few)
        for density in (Energy(EXACT), Energy(EXACT), Energy(moved))
    ]
    assert len(traced) == 1
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_allclose(ends[2] - ends[0], 9.0, atol=0.1)

    class Own:
        event_shape = (1,)
        centre = 0.0

        def score(self, x, t):
            return self.centre * jnp.exp(-t) - x

    own, draws = Own(), []
    for own.centre in (0.0, 5.0):
        draws.append(draw(key, own, (2,), few))
    assert len(traced) == 3
    np.testing.assert_allclose(draws[1] - draws[0], 5.0, atol=0.6)


def test_the_inner_sampler_can_be_chosen(key):
    few = DEFAULTS._replace(num_particles=8, times=(0.0, 0.2, 1.0, 2.0), num_steps=1)
    draws = draw(key, DENSITIES["score"], (3,), few._replace(inner=ULD().unadjusted()))
    assert np.all(np.isfinite(draws))
    with pytest.raises(ValueError, match="`inner` must accept by scores"):
        draw(key, DENSITIES["score"], (3,), few._replace(inner=MALA()))


def test_rtkmala_has_the_same_ladder_and_steps():
    kernel = rtk.RTKMALA(score=EXACT)
    np.testing.assert_array_equal(kernel._options.times, DEFAULTS.times)
    steps = (DEFAULTS.num_steps, *(0,) * (len(DEFAULTS.times) - 2))
    assert kernel._options.num_steps == steps
    named = as_ladder(SCORE_DEFAULTS.ladder, SCORE_DEFAULTS.num_segments)
    np.testing.assert_array_equal(named, DEFAULTS.times)
    assert inspect.signature(draw).parameters["settings"].default is DEFAULTS
