"""Conditional models: normalised at the noise end for every c, and what they refuse."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.networks import EnergyMLP, EnergyModel, ScoreMLP, ScoreModel
from numpyro_rtk.networks.condition import fit_conditioning
from numpyro_rtk.training.standardise import fit_gaussian

C = jnp.array([0.7, -1.2])


# compiled once for all tests
BOTH = jax.jit(lambda m, c, x, t: m.given(c).log_density_and_score(x, t))
LOG_DENSITY = jax.jit(lambda m, c, x, t: m.given(c).log_density(x, t))


def linear_data(n=4000, seed=0):
    """z of two coordinates that is linear in c of two, with a correlated rest."""
    rng = np.random.default_rng(seed)
    c = np.array([3.0, -1.0]) + rng.normal(size=(n, 2)) * [2.0, 0.1]
    slope = np.array([[0.3, 4.0], [-0.1, 1.0]])
    rest = rng.normal(size=(n, 2)) @ np.array([[0.4, 0.1], [0.0, 0.2]])
    return c, (c - c.mean(0)) @ slope.T + rest, slope


def conditional_model(kind="energy", seed=0):
    """With random weights throughout; zero readouts would hide the network."""
    c, z, _ = linear_data()
    z = (z - z.mean(0)) / z.std(0)
    conditioning, residual = fit_conditioning(z, c)
    network_class = EnergyMLP if kind == "energy" else ScoreMLP
    network = network_class(2, width=8, depth=2, condition_shape=2, key=jr.key(seed))
    readout = 0.3 * jr.normal(jr.key(seed + 1), network.readout.shape)
    network = eqx.tree_at(lambda network: network.readout, network, readout)
    return (EnergyModel if kind == "energy" else ScoreModel)(
        network=network,
        base=fit_gaussian(residual),
        loc=jnp.array([0.5, -1.0]),
        scale=jnp.array([1.5, 0.7]),
        noise_range=(0.02, 20.0),
        conditioning=conditioning,
    )


def test_regression_finds_the_slope_and_leaves_the_rest():
    c, z, slope = linear_data()
    conditioning, residual = fit_conditioning(z, c)
    found = np.asarray(conditioning.weights) / c.std(axis=0)
    # standard error sd(rest) / (sd(c) sqrt(n)): .0002 and .065 at most; 5 of them
    np.testing.assert_allclose(found[:, 0], slope[:, 0], atol=0.002)
    np.testing.assert_allclose(found[:, 1], slope[:, 1], atol=0.35)
    assert np.abs(residual.T @ (c - c.mean(0))).max() / len(c) < 1e-2
    np.testing.assert_allclose(residual.std(0), [0.4, np.hypot(0.1, 0.2)], rtol=0.06)


def test_ridge_survives_dependent_entries():
    """Three shares that sum to one: their covariance is singular."""
    c = np.random.default_rng(0).dirichlet([1.0, 2.0, 3.0], size=300)
    z = c[:, :1] + 0.1 * np.random.default_rng(1).normal(size=(300, 1))
    conditioning, residual = fit_conditioning(z - z.mean(0), c)
    assert np.all(np.isfinite(conditioning.weights))
    assert residual.std() < 0.12


def test_data_that_the_condition_determines_are_refused():
    c, z, _ = linear_data(100)
    z[:, 1] = c[:, 0]
    with pytest.raises(ValueError, match="linear function of `condition`.*index 1"):
        fit_conditioning((z - z.mean(0)) / z.std(0), c)


@pytest.mark.parametrize("shift", [0.0, 0.5, 30.0])
def test_it_is_normalised_at_the_noise_end_for_every_c(shift):
    """Sum over a grid of +-9 standard deviations; the network's share there is e^-12."""
    model = conditional_model()
    grid = jnp.stack(jnp.meshgrid(*[jnp.linspace(-9.0, 9.0, 181)] * 2), -1)
    x = model.loc + model.scale * grid
    density = jnp.exp(LOG_DENSITY(model, C + shift, x, 6.0))
    total = float(density.sum()) * 0.1**2 * float(jnp.prod(model.scale))
    assert abs(total - 1.0) < 1e-3


def test_untrained_it_is_the_linear_gaussian():
    model = conditional_model()
    model = eqx.tree_at(lambda m: m.network, model, replace_fn=still)
    c, z, _ = linear_data()
    c_tilde = (C - c.mean(0)) / c.std(0)
    a = np.exp(-0.3)
    b = np.asarray(model.conditioning.weights, float)
    base = model.base
    covariance = np.asarray((base.axes * base.variances_at(0.3)) @ base.axes.T, float)
    at = np.array([[0.1, -0.4], [1.3, 0.2]])
    off = (at - np.asarray(model.loc)) / np.asarray(model.scale) - a * b @ c_tilde
    quadratic = np.einsum("ni,ij,nj->n", off, np.linalg.inv(covariance), off)
    expected = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1])
    expected -= np.log(np.asarray(model.scale)).sum()
    got = LOG_DENSITY(model, C, jnp.asarray(at, jnp.float32), 0.3)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def still(network):
    return eqx.tree_at(lambda n: n.readout, network, jnp.zeros_like(network.readout))


def test_score_is_the_gradient_and_c_matters():
    model, x = conditional_model(), jnp.array([0.3, -0.8])
    value, score = BOTH(model, C, x, 0.1)
    gradient = jax.jit(jax.grad(LOG_DENSITY, argnums=2))(model, C, x, 0.1)
    np.testing.assert_allclose(score, gradient, rtol=1e-5)
    assert abs(float(value - LOG_DENSITY(model, C + 0.3, x, 0.1))) > 0.1


def test_gradient_through_c_is_that_of_finite_differences():
    """In float32: rounding 1e-6 / step and truncation step**2, both below 1e-3."""
    model, x, step = conditional_model(), jnp.array([0.3, -0.8]), 3e-3
    at = lambda c: float(LOG_DENSITY(model, c, x, 0.1))
    rise = lambda e: (at(C + step * e) - at(C - step * e)) / (2 * step)
    numeric = [rise(e) for e in jnp.eye(2)]
    gradient = jax.jit(jax.grad(LOG_DENSITY, argnums=1))(model, C, x, 0.1)
    np.testing.assert_allclose(gradient, numeric, rtol=0.01)
    assert np.abs(numeric).min() > 0.1


def test_a_score_model_is_given_its_condition_too():
    model = conditional_model("score")
    score = jax.jit(lambda c: model.given(c).score(jnp.zeros((3, 2)), 0.2))
    one, two = score(C), score(C + 0.1)
    assert one.shape == (3, 2)
    assert float(jnp.abs(one - two).max()) > 1e-3


def test_given_crosses_jit_and_vmap():
    model, x = conditional_model(), jnp.array([0.3, -0.8])
    cs = jnp.stack([C, C + 0.5])
    together = jax.jit(
        lambda m, cs: jax.vmap(lambda c: m.given(c).log_density(x, 0.0))(cs)
    )(model, cs)
    alone = [LOG_DENSITY(model, c, x, 0.0) for c in cs]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-4)


def test_shapes_are_known():
    model = conditional_model()
    assert model.condition_shape == (2,)
    assert model.given(C).condition_shape is None
    assert dataclasses.replace(model, conditioning=None).condition_shape is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: m.log_density(jnp.zeros(2), 0.0),
            ValueError,
            r"`model_.given\(c\)`",
        ),
        (lambda m: m.given(1.0), ValueError, r"must have shape \(2,\); got \(\)"),
        (lambda m: m.given([1.0, np.nan]), ValueError, "`condition` must be finite"),
        (
            lambda m: m.given(["a", "b"]),
            TypeError,
            "`condition` must be an array of num",
        ),
        (lambda m: m.given(C + 1j), TypeError, "numbers; got type complex64"),
        (lambda m: m.given(C).given(C), ValueError, "already bound"),
        (
            lambda m: dataclasses.replace(m, conditioning=None).given(C),
            ValueError,
            "learned without a condition",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(conditional_model())


def test_network_refuses_odd_shapes():
    with pytest.raises(
        TypeError, match="`condition_shape` must be a tuple of integers"
    ):
        EnergyMLP(2, condition_shape=(1.5,), key=jr.key(0))
