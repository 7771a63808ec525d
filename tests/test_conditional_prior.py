"""LearnedPrior of p(x | c): batches, transformations, gradients, draws, refusals."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

import numpyro_rtk as rtk
from tests.networks.test_condition import LOG_DENSITY, C, conditional_model

MODEL = conditional_model()
CS = C + jnp.array([[0.0, 0.0], [0.5, 0.1], [-1.0, 0.2]])
X = jnp.array([[0.1, -0.3], [1.0, 0.2], [-1.2, 0.6]])
PRIOR = rtk.LearnedPrior(MODEL, condition=CS)
EACH = jnp.stack([LOG_DENSITY(MODEL, c, x, 0.0) for c, x in zip(CS, X, strict=True)])
LOG_PROB = jax.jit(lambda prior, x: prior.log_prob(x))


class Shifted:
    """A user's own: a standard normal of two coordinates, moved by c; no pytree."""

    event_shape, condition_shape = (2,), ()
    scale = jnp.array([1.0, 2.0])

    def given(self, c):
        return ShiftedAt(c)


class ShiftedAt:
    event_shape = (2,)

    def __init__(self, c):
        self.c = c

    def log_density(self, x, t):
        a = jnp.exp(-t)
        spread = jnp.sqrt(a**2 + (1 - a**2) * Shifted.scale**2)
        return dist.Normal(a * self.c, spread).log_prob(x).sum()

    def score(self, x, t):
        return jax.grad(self.log_density)(x, t)


class Drawn(Shifted):
    """Draws by itself: no annealed run is needed."""

    def given(self, c):
        at = ShiftedAt(c)
        at.sample = lambda key, shape=(): c + jr.normal(key, (*shape, 2))
        return at


def test_one_condition_is_the_bound_density():
    prior = rtk.LearnedPrior(MODEL, condition=C)
    assert (prior.batch_shape, prior.event_shape) == ((), (2,))
    expected = LOG_DENSITY(MODEL, C, X, 0.0)
    np.testing.assert_allclose(LOG_PROB(prior, X), expected, rtol=1e-4)
    by_hand = rtk.LearnedPrior(MODEL.given(C))
    np.testing.assert_allclose(LOG_PROB(by_hand, X), expected, rtol=1e-4)


def test_leading_axes_are_the_batch():
    assert (PRIOR.batch_shape, PRIOR.event_shape) == ((3,), (2,))
    np.testing.assert_allclose(LOG_PROB(PRIOR, X), EACH, rtol=1e-4)
    shape_of = lambda prior, *shape: jax.eval_shape(prior.log_prob, jnp.zeros(shape))
    assert shape_of(PRIOR, 2).shape == (3,)
    assert shape_of(PRIOR, 5, 1, 2).shape == (5, 3)
    expanded = PRIOR.expand((4, 3))
    assert expanded.batch_shape == (4, 3)
    np.testing.assert_allclose(LOG_PROB(expanded, X)[2], EACH, rtol=1e-4)
    total = LOG_PROB(PRIOR.to_event(1), X)
    np.testing.assert_allclose(total, EACH.sum(), rtol=1e-4)


def test_it_crosses_jit_vmap_and_cond():
    call = lambda prior, x: prior.log_prob(x)
    at = lambda c, x: rtk.LearnedPrior(MODEL, condition=c).log_prob(x)
    other = rtk.LearnedPrior(MODEL, condition=CS + 0.1)
    choose = jax.jit(lambda flag: jax.lax.cond(flag, lambda: PRIOR, lambda: other))
    through = [
        LOG_PROB(PRIOR, X),
        jax.jit(jax.vmap(call, in_axes=(None, 0)))(PRIOR, X[None])[0],
        LOG_PROB(choose(True), X),
        jax.jit(jax.vmap(at))(CS, X),
    ]
    for found in through:
        np.testing.assert_allclose(found, EACH, rtol=1e-4)
    assert np.abs(LOG_PROB(choose(False), X) - EACH).min() > 1e-3


def test_gradient_through_the_condition_reaches_numpyro():
    """Against a closed form: d/dc of log N(x; c, 1) is the sum of x - c."""

    def model():
        c = numpyro.sample("c", dist.Normal(0.3, 0.8))
        numpyro.sample("x", rtk.LearnedPrior(Shifted(), condition=c))

    x = jnp.array([0.4, -1.0])
    joint = lambda c: log_density(model, (), {}, {"c": c, "x": x})[0]
    expected = -(0.9 - 0.3) / 0.8**2 + float(jnp.sum(x - 0.9))
    np.testing.assert_allclose(jax.grad(joint)(jnp.array(0.9)), expected, rtol=1e-5)


def test_support_and_condition_go_together():
    prior = rtk.LearnedPrior(
        Drawn(), condition=jnp.zeros(3), support=constraints.positive
    )
    value = jnp.exp(X)
    expected = dist.LogNormal(0.0, 1.0).log_prob(value).sum(-1)
    np.testing.assert_allclose(prior.log_prob(value), expected, rtol=1e-5)
    assert bool(jnp.all(prior.sample(jr.key(0)) > 0))


def test_each_draw_is_at_its_own_condition():
    """2,000 draws: standard error of a mean 1 / sqrt(2000) = .022; 5 of them, and .05
    for the annealed run's own bias."""
    c = jnp.array([-2.0, 0.0, 3.0])
    draws = rtk.LearnedPrior(Shifted(), condition=c).sample(jr.key(0), (2000,))
    assert draws.shape == (2000, 3, 2)
    np.testing.assert_allclose(draws.mean(0), jnp.stack([c, c], -1), atol=0.16)
    np.testing.assert_allclose(draws.std(0), 1.0, atol=0.1)


def test_plates_and_predictive():
    c = jnp.array([-2.0, 0.0, 3.0])

    def model():
        with numpyro.plate("groups", 3):
            numpyro.sample("x", rtk.LearnedPrior(Drawn(), condition=c))
            numpyro.sample("w", rtk.LearnedPrior(Drawn(), condition=c[0]))

    draws = Predictive(model, num_samples=400)(jr.key(0))
    assert draws["x"].shape == draws["w"].shape == (400, 3, 2)
    # standard error of a mean .05; 5 of them
    np.testing.assert_allclose(draws["x"].mean(0)[:, 0], c, atol=0.25)
    np.testing.assert_allclose(draws["w"].mean(0), c[0], atol=0.25)
    value, _ = log_density(model, (), {}, {"x": X, "w": X})
    expected = dist.Normal(c[:, None], 1.0).log_prob(X).sum()
    expected += dist.Normal(c[0], 1.0).log_prob(X).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-4)


MIXTURE = rtk.GaussianMixture([1.0], [[0.0, 0.0]], [np.eye(2)])


@pytest.mark.parametrize(
    ("density", "condition", "error", "message"),
    [
        (MODEL, None, ValueError, "`condition` must be given.*condition=c"),
        (MIXTURE, C, ValueError, "`condition` must be None unless the density is cond"),
        (MODEL.given(C), C, ValueError, "`condition` must be None"),
        (MODEL, jnp.zeros(3), ValueError, r"ends in \(2,\).*; got \(3,\)"),
        (MODEL, 0.0, ValueError, r"ends in \(2,\).*; got \(\)"),
        (MODEL, C.at[0].set(jnp.nan), ValueError, "`condition` must be finite; got 1"),
        (
            MODEL,
            {"c": C},
            TypeError,
            "`condition` must be an array of numbers; got dict",
        ),
    ],
)
def test_refusals(density, condition, error, message):
    with pytest.raises(error, match=message):
        rtk.LearnedPrior(density, condition=condition)


def test_a_conditional_density_alone_is_refused_with_the_remedy():
    for call in (
        lambda: rtk.RTKReplicaExchange(score=MODEL),
        lambda: rtk.RTKMALA(score=MODEL),
    ):
        with pytest.raises(ValueError, match=r"`score` must be .* `score.given\(c\)`"):
            call()
    with pytest.raises(ValueError, match=r"Pass `model_.given\(c\)`"):
        rtk.check_prior(MODEL, np.zeros((100, 2)))


def test_whole_numbers_are_a_condition():
    prior = rtk.LearnedPrior(Shifted(), condition=2)
    expected = ShiftedAt(2.0).log_density(X[0], 0.0)
    np.testing.assert_allclose(prior.log_prob(X[0]), expected, rtol=1e-6)
