"""The perceptrons: shapes, growth, hyperparameters, refusals."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.networks import EnergyMLP, EnergySet, EnergyUNet, ScoreMLP
from numpyro_rtk.networks.features import NUM_NOISE_FEATURES, noise_features

NETWORKS = {"energy": EnergyMLP, "score": ScoreMLP}


@pytest.fixture(params=NETWORKS.values(), ids=list(NETWORKS))
def network_class(request):
    return request.param


@pytest.mark.parametrize("event_shape", [(), (3,), (2, 3)])
def test_output_shape_and_start_at_zero(network_class, event_shape):
    network = network_class(event_shape, width=8, depth=2, key=jr.key(0))
    out = network(jnp.ones(event_shape), jnp.float32(0.1))
    assert out.shape == (event_shape if network_class is ScoreMLP else ())
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, 0.0, atol=1e-25)


@pytest.mark.parametrize(
    ("build", "event_shape"),
    [
        (EnergyMLP, (10,)),
        (EnergyMLP, (64,)),
        (ScoreMLP, (64,)),
        (EnergySet, (5, 32)),
        (EnergyUNet, (4, 4)),
    ],
)
def test_start_at_zero_in_a_large_compiled_batch(build, event_shape):
    """With the weights as constants of the program: XLA once returned garbage there."""
    network = build(event_shape, key=jr.key(0))
    z = jr.normal(jr.key(1), (2048, *event_shape))
    out = jax.jit(jax.vmap(lambda one: network(one, jnp.float32(-1.0))))(z)
    np.testing.assert_allclose(out, 0.0, atol=1e-25)


def test_hyperparameters_rebuild_the_network(network_class):
    network = network_class((2, 3), width=5, depth=4, key=jr.key(0))
    again = network_class(**network.hyperparameters(), key=jr.key(0))
    assert again.hyperparameters() == network.hyperparameters()
    assert again.event_shape == (2, 3)
    np.testing.assert_array_equal(network.trunk.hidden, again.trunk.hidden)


def test_one_integer_is_a_vector(network_class):
    assert network_class(3, width=4, depth=1, key=jr.key(0)).event_shape == (3,)


def test_noise_features_are_bounded_and_distinct():
    log_r = jnp.linspace(jnp.log(0.02), jnp.log(20.0), 50)
    features = np.stack([noise_features(value) for value in log_r])
    assert features.shape == (50, NUM_NOISE_FEATURES)
    assert np.max(np.abs(features)) <= 1.0
    assert np.linalg.matrix_rank(features, tol=1e-3) == NUM_NOISE_FEATURES


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": 0}, ValueError, "`width` must be at least 1; got 0"),
        ({"width": 2.5}, TypeError, "`width` must be an integer; got 2.5"),
        ({"depth": 0}, ValueError, "`depth` must be at least 1; got 0"),
        ({"event_shape": (2.5,)}, TypeError, "`event_shape` must be a tuple of int"),
        ({"event_shape": (0,)}, ValueError, "`event_shape` must have sizes of at"),
        ({"event_shape": "ab"}, TypeError, "`event_shape` must be a tuple of int"),
    ],
)
def test_refusals(network_class, arguments, error, message):
    with pytest.raises(error, match=message):
        network_class(**{"event_shape": (2,), "key": jr.key(0), **arguments})
