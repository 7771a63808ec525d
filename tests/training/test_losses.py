"""The losses have their minimum at the truth, and their targets have the right mean.

Every claim is a mean over n = 20,000 points against 0, in standard errors: beyond 5 of
them is a failure (once in two million by chance). Each has a negative control that must
go beyond.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rtk.gaussians import GaussianMixture, NoisedMixture, noised_gaussian
from numpyro_rtk.networks import (
    AbstractEnergyNetwork,
    AbstractScoreNetwork,
    EnergyModel,
    ScoreModel,
)
from numpyro_rtk.training.losses import (
    ScoreDistillation,
    denoising_score_matching,
    dual_score_matching,
    slopes_of_score,
    variance_exploding,
)

NUM = 20_000
# Asymmetric on purpose: a symmetric target cannot see a sign error.
WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-1.5, 0.4], [0.6, 0.2], [0.0, -0.6]])
VARIANCE = 0.09


def mixture_energy(z, t):
    """-log p_t(z) of the mixture above under the noising process; z (2,), t ()."""
    signal = jnp.exp(-t)
    variance = VARIANCE * signal**2 - jnp.expm1(-2.0 * t)
    distances = jnp.sum((z[None, :] - signal * jnp.asarray(MEANS)) ** 2, axis=-1)
    parts = jnp.log(jnp.asarray(WEIGHTS)) - 0.5 * distances / variance
    return -jax.nn.logsumexp(parts) + jnp.log(2.0 * math.pi * variance)


class ExactMixture(AbstractEnergyNetwork):
    """What a perfect network would return, plus a fault to be found out.

    ``tilt`` moves the score, ``drift`` the constant with the noise level alone.
    """

    base: NoisedMixture
    tilt: jax.Array
    drift: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,))

    def __call__(self, z, log_r):
        t = 0.5 * jnp.log1p(jnp.exp(2.0 * log_r))
        rest = mixture_energy(z, t) + self.base.log_density(z, t) + self.drift * log_r
        return rest * jnp.exp(2.0 * t) + self.tilt * z[0]

    def hyperparameters(self):
        return {}


def exact_model(tilt=0.0, drift=0.0):
    base = noised_gaussian(jnp.eye(2), jnp.array([0.7, 0.4]))
    return EnergyModel(
        network=ExactMixture(
            base=base, tilt=jnp.asarray(tilt), drift=jnp.asarray(drift)
        ),
        base=base,
        loc=jnp.zeros(2),
        scale=jnp.ones(2),
        noise_range=(0.02, 20.0),
    )


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    which = rng.choice(len(WEIGHTS), size=NUM, p=WEIGHTS)
    z0 = MEANS[which] + math.sqrt(VARIANCE) * rng.normal(size=(NUM, 2))
    e = rng.normal(size=(NUM, 2))
    log_r = rng.uniform(np.log(0.02), np.log(20.0), size=NUM)
    return tuple(jnp.asarray(part, jnp.float32) for part in (z0, e, log_r))


@eqx.filter_jit
def map_points(function, model, drawn):
    return jax.vmap(lambda *point: function(model, *point))(*drawn)


def z_score(values):
    values = np.asarray(values, float)
    return values.mean() / (values.std() / math.sqrt(len(values)))


@pytest.mark.parametrize("fault", [{"tilt": 0.5}, {"tilt": -0.5}, {"drift": 0.2}])
def test_dual_loss_of_the_truth_is_below_that_of_a_faulty_energy(drawn, fault):
    faulty = map_points(dual_score_matching, exact_model(**fault), drawn)
    true = map_points(dual_score_matching, exact_model(), drawn)
    assert z_score(faulty - true) > 5.0


def test_gradient_of_the_dual_loss_vanishes_at_the_truth(drawn):
    def by_fault(model, *point):
        loss = lambda faults: dual_score_matching(exact_model(*faults), *point)
        return jax.grad(loss)((model.network.tilt, model.network.drift))

    for gradient in map_points(by_fault, exact_model(), drawn):
        assert abs(z_score(gradient)) < 5.0
    for gradient in map_points(by_fault, exact_model(0.3, 0.2), drawn):
        assert abs(z_score(gradient)) > 5.0


def noise_residual(model, z0, e, log_r):
    y = z0 + jnp.exp(log_r) * e
    by_noise = jax.grad(variance_exploding, argnums=2)(model, y, log_r)
    return by_noise - (e.size - jnp.sum(e**2))


def point_residual(model, z0, e, log_r):
    r = jnp.exp(log_r)
    return r * jax.grad(variance_exploding, argnums=1)(model, z0 + r * e, log_r) - e


def test_targets_of_the_dual_loss_have_the_right_mean(drawn):
    # Mean zero given y: also against functions of y, here its first coordinate after
    # squashing, and the noise level.
    y = drawn[0] + jnp.exp(drawn[2])[:, None] * drawn[1]
    weights = np.stack([np.ones(NUM), np.tanh(y[:, 0]), drawn[2]])
    noise = np.asarray(map_points(noise_residual, exact_model(), drawn))
    point = np.asarray(map_points(point_residual, exact_model(), drawn))
    for weight in weights:
        assert abs(z_score(weight * noise)) < 5.0
        assert abs(z_score(weight * point[:, 0])) < 5.0
        assert abs(z_score(weight * point[:, 1])) < 5.0
    drifting = map_points(noise_residual, exact_model(drift=0.2), drawn)
    assert abs(z_score(drifting)) > 5.0
    tilted = np.asarray(map_points(point_residual, exact_model(tilt=0.3), drawn))
    assert abs(z_score(tilted[:, 0])) > 5.0


class ExactScore(AbstractScoreNetwork):
    """The exact score of the mixture in the place of a score network."""

    fault: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,))

    def __call__(self, z, log_r):
        t = 0.5 * jnp.log1p(jnp.exp(2.0 * log_r))
        base = noised_gaussian(jnp.eye(2), jnp.ones(2))
        rest = -jax.grad(mixture_energy)(z, t) - base.score(z, t)
        return jnp.sqrt(jnp.exp(2.0 * log_r) + 0.01) * rest + self.fault

    def hyperparameters(self):
        return {}


def exact_score(fault):
    return ScoreModel(
        network=ExactScore(fault=jnp.asarray(fault)),
        base=noised_gaussian(jnp.eye(2), jnp.ones(2)),
        loc=jnp.zeros(2),
        scale=jnp.ones(2),
        noise_range=(0.02, 20.0),
    )


@pytest.mark.parametrize("fault", [0.1, -0.1])
def test_denoising_loss_of_the_truth_is_below_that_of_a_faulty_score(drawn, fault):
    true = map_points(denoising_score_matching, exact_score(0.0), drawn)
    faulty = map_points(denoising_score_matching, exact_score(fault), drawn)
    assert z_score(faulty - true) > 5.0


class OtherUnits:
    """The score of the mixture along noise that has another origin and another unit."""

    event_shape = (2,)
    loc, scale = jnp.array([0.5, -0.2]), 2.0 * jnp.ones(2)

    def score(self, x, t):
        mixture = GaussianMixture(
            WEIGHTS,
            (MEANS - np.array([0.5, -0.2])) / 2.0,
            [0.25 * VARIANCE * np.eye(2)] * 3,
        )
        return mixture.score((x - self.loc) / self.scale, t) / self.scale


SIGNS = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def both_slopes(model, z0, e, log_r):
    """Of the exact energy, and as the score gives them; of all probes, the divergence."""
    y = z0 + jnp.exp(log_r) * e
    by_point, by_noise = jax.grad(variance_exploding, argnums=(1, 2))(model, y, log_r)
    noise, rates = jax.vmap(
        lambda probe: slopes_of_score(OtherUnits(), model, y, log_r, probe)
    )(SIGNS)
    return jnp.exp(log_r) * by_point, noise[0], by_noise, rates.mean()


def test_a_score_gives_both_slopes_of_its_energy(drawn):
    few = tuple(part[:200] for part in drawn)
    point, noise, change, rate = map_points(both_slopes, exact_model(), few)
    np.testing.assert_allclose(noise, point, atol=2e-4)
    np.testing.assert_allclose(rate, change, atol=2e-3)
    _, _, drifting, _ = map_points(both_slopes, exact_model(drift=0.2), few)
    assert np.abs(rate - drifting).min() > 0.1


def test_gradient_of_the_distilling_loss_vanishes_at_the_truth(drawn):
    """The probes' own variance has mean zero; other scores and rates have not."""

    def by_fault(model, *point):
        loss = ScoreDistillation(OtherUnits())
        of_faults = lambda faults: loss(exact_model(*faults), *point)
        return jax.grad(of_faults)((model.network.tilt, model.network.drift))

    for gradient in map_points(by_fault, exact_model(), drawn):
        assert abs(z_score(gradient)) < 5.0
    for gradient in map_points(by_fault, exact_model(0.02, 0.02), drawn):
        assert abs(z_score(gradient)) > 5.0
