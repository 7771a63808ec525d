"""The U-Nets: shapes of any size, the convolution, a fit from end to end."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import numpyro_rtk as rtk
from numpyro_rtk.networks import EnergyUNet, ScoreUNet
from numpyro_rtk.networks.unet_trunk import _convolve, _double, _halve

SHAPES = [(5, 7), (1, 3, 2)]
NETWORKS = {"energy": EnergyUNet, "score": ScoreUNet}


@pytest.fixture(params=NETWORKS.values(), ids=list(NETWORKS))
def network_class(request):
    return request.param


def randomised(network, seed=0):
    """All weights drawn anew, those that start at zero too."""
    rng = np.random.default_rng(seed)
    draw = lambda w: jnp.asarray(0.3 * rng.normal(size=w.shape), jnp.float32)
    return jax.tree.map(draw, network)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_size_starts_at_zero_and_sees_every_pixel_and_the_noise(
    network_class, shape
):
    network = network_class(shape, channels=2, depth=2, key=jr.key(0))
    assert network.event_shape == shape
    z, log_r = jr.normal(jr.key(1), shape), jnp.float32(0.1)
    expected = shape if network_class is ScoreUNet else ()
    out = eqx.filter_jit(network)(z, log_r)
    assert out.shape == expected
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, 0.0, atol=1e-25)
    total = lambda z, log_r: jnp.sum(randomised(network)(z, log_r))
    by_point, by_noise = jax.jit(jax.grad(total, argnums=(0, 1)))(z, log_r)
    assert np.all(np.abs(by_point) > 1e-6)
    assert abs(float(by_noise)) > 1e-6


def test_convolution_is_that_of_jax():
    h, kernel = jr.normal(jr.key(0), (5, 4, 3)), jr.normal(jr.key(1), (27, 2))
    expected = jax.lax.conv_general_dilated(
        h[None],
        kernel.reshape(3, 3, 3, 2),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[0]
    np.testing.assert_allclose(_convolve(h, kernel), expected, rtol=1e-4, atol=1e-5)


def test_halving_takes_means_and_doubling_undoes_it_on_flat_pieces():
    h = jnp.arange(15.0).reshape(3, 5, 1)
    halved = _halve(h)
    np.testing.assert_array_equal(halved[..., 0], [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]])
    again = _double(halved, h.shape)
    assert again.shape == h.shape
    np.testing.assert_array_equal(_halve(again), halved)


def test_hyperparameters_rebuild_the_network(network_class):
    network = network_class((6, 3, 2), channels=3, depth=3, key=jr.key(0))
    again = network_class(**network.hyperparameters(), key=jr.key(0))
    assert again.hyperparameters() == network.hyperparameters()
    assert bool(eqx.tree_equal(again, network))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"event_shape": (4,)}, ValueError, r"must be \(H, W\) or .* got \(4,\)"),
        ({"event_shape": 16}, ValueError, r"must be \(H, W\) or .* got \(16,\)"),
        ({"event_shape": (4, 4.5)}, TypeError, "must be a tuple of integers"),
        ({"depth": 4}, ValueError, "`depth` must be at most 3 for images of 4 by 3"),
        ({"depth": 0}, ValueError, "`depth` must be at least 1"),
        ({"channels": 0}, ValueError, "`channels` must be at least 1"),
    ],
)
def test_refusals(network_class, arguments, error, message):
    with pytest.raises(error, match=message):
        network_class(**{"event_shape": (4, 3), "key": jr.key(0), **arguments})


@pytest.fixture(scope="module")
def images():
    """A pattern, its negative in 2 of 5 images, and noise: not Gaussian."""
    rng = np.random.default_rng(0)
    pattern = rng.normal(size=(5, 4))
    sign = np.where(rng.uniform(size=2000) < 0.4, -1.0, 1.0)
    return sign[:, None, None] * pattern + 0.2 * rng.normal(size=(2000, 5, 4))


def test_fit_from_end_to_end(images):
    train, fresh = images[:1500], images[1500:]
    network = EnergyUNet((5, 4), channels=4, depth=2, key=jr.key(0))
    model, _ = rtk.fit(
        jr.key(1),
        train,
        network=network,
        num_steps=500,
        batch_size=64,
        learning_rate=0.02,
        training=rtk.Training(num_components=1, ema_decay=0.98),
        progress_bar=False,
    )
    assert type(model) is rtk.EnergyModel
    # Two clumps: a density of both gains nearly 2 nats an image on the one Gaussian that
    # the network starts from (the default perceptron 1.98 in 1,000 steps); standard
    # error .05. What the density would gain by not being normalised is taken off: its
    # integral, by importance sampling from that Gaussian, standard error .1.
    untrained = eqx.tree_at(lambda m: m.network, model, network)
    gain = eqx.filter_jit(
        lambda x: model.log_density(x, 0) - untrained.log_density(x, 0)
    )
    white = jr.normal(jr.key(2), (500, 20)) * jnp.sqrt(model.base.variances)
    draws = model.loc + model.scale * (white @ model.base.axes.T).reshape(-1, 5, 4)
    log_integral = float(jnp.log(jnp.mean(jnp.exp(gain(draws)))))
    held_out = float(jnp.mean(gain(jnp.asarray(fresh, jnp.float32))))
    assert held_out - log_integral > 0.8
    # control: where images are made of noise alone, there is no such gain
    assert float(jnp.mean(gain(draws))) - log_integral < 0.0
