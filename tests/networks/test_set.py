"""Sets: the whole density does not care for the order; a perceptron's does."""

import itertools

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_rtk as rtk
from numpyro_rtk.networks import EnergyMLP, EnergySet
from numpyro_rtk.training.standardise import (
    exchangeable_covariance,
    fit_loc_and_scale,
)

SHAPE = (3, 2)
ORDERS = list(itertools.permutations(range(3)))


@pytest.fixture(scope="module")
def sets():
    """Three points around a common centre, written from the left to the right."""
    rng = np.random.default_rng(0)
    points = rng.gamma(1.5, size=(300, 1, 2)) + 0.5 * rng.normal(size=(300, *SHAPE))
    order = np.argsort(points[..., 0], axis=1)
    return np.take_along_axis(points, order[..., None], axis=1)


def spread_over_orders(network, sets):
    """Largest difference between the log densities of a set in all of its orders."""
    options = {"num_steps": 30, "batch_size": 64, "progress_bar": False}
    model, _ = rtk.fit(jr.key(0), sets, network=network, **options)
    assert np.any(model.network.readout != 0.0)
    x = jnp.asarray(sets[:20], jnp.float32)
    written = jnp.stack([x[:, jnp.asarray(order)] for order in ORDERS])
    values = [eqx.filter_jit(model.log_density)(written, t) for t in (0.0, 0.3)]
    return max(float(np.max(np.ptp(np.asarray(v), axis=0))) for v in values)


def test_log_density_does_not_depend_on_the_order(sets):
    energy_set = EnergySet(SHAPE, width=8, depth=2, key=jr.key(1))
    assert spread_over_orders(energy_set, sets) < 1e-4
    # control: a network, and a base, that depend on it
    energy_mlp = EnergyMLP(SHAPE, width=8, depth=2, key=jr.key(1))
    assert spread_over_orders(energy_mlp, sets) > 0.5


def test_covariance_is_the_mean_over_all_orders(sets):
    rows = sets - sets.mean(axis=(0, 1))
    flat = np.stack([rows[:, order] for order in ORDERS]).reshape(-1, 6)
    own = rows.reshape(len(rows), 6)
    got = exchangeable_covariance(own.T @ own / len(own), 3)
    np.testing.assert_allclose(got, flat.T @ flat / len(flat), atol=1e-12)
    one = np.array([[2.0, 0.5], [0.5, 1.0]])
    np.testing.assert_array_equal(exchangeable_covariance(one, 1), one)


@pytest.mark.parametrize("standardise", ["coordinate", "global"])
def test_location_and_scale_are_those_of_all_elements(sets, standardise):
    loc, scale = fit_loc_and_scale(sets, standardise, exchangeable=True)
    pooled = sets.reshape(-1, 2)
    want = pooled.std(axis=0)
    if standardise == "global":
        want = np.full(2, np.sqrt(np.mean(want**2)))
    np.testing.assert_allclose(loc, np.tile(pooled.mean(axis=0), (3, 1)))
    np.testing.assert_allclose(scale, np.tile(want, (3, 1)))


def test_network_sees_the_whole_set_and_rebuilds():
    network = EnergySet(SHAPE, width=4, depth=3, key=jr.key(0))
    again = EnergySet(**network.hyperparameters(), key=jr.key(0))
    assert bool(eqx.tree_equal(again, network))
    assert abs(float(network(jnp.ones(SHAPE), jnp.float32(0.1)))) < 1e-25
    network = eqx.tree_at(lambda n: n.readout, network, jnp.ones(4))
    energy = lambda z: network(z, jnp.float32(0.1))
    # not a sum over elements: moving one changes what another adds
    z, a, b = jnp.zeros(SHAPE), jnp.eye(3, 2)[:, :2], jnp.eye(3, 2)[::-1]
    assert abs(energy(a + b) - energy(a) - energy(b) + energy(z)) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"event_shape": (3,)}, ValueError, r"must be \(n, d\).*For numbers write"),
        ({"event_shape": (3, 2, 1)}, ValueError, r"must be \(n, d\)"),
        ({"width": 0}, ValueError, "`width` must be at least 1"),
        ({"depth": 0}, ValueError, "`depth` must be at least 1"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        EnergySet(**{"event_shape": SHAPE, "key": jr.key(0), **arguments})
