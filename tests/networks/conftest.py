import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.gaussians import noised_gaussian
from numpyro_rtk.networks import EnergyMLP, EnergyModel, ScoreMLP, ScoreModel

EVENT_SHAPES = {"scalar": (), "matrix": (3, 2)}


def build_model(kind, event_shape, seed=0):
    """A model with random weights throughout: nothing is zero or symmetric."""
    dim = int(np.prod(event_shape))
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    network_class = EnergyMLP if kind == "energy" else ScoreMLP
    loc, scale = rng.normal(size=event_shape), rng.uniform(0.5, 2.0, size=event_shape)
    network = network_class(event_shape, width=8, depth=2, key=jr.key(seed))
    readout = jnp.asarray(rng.normal(size=network.readout.shape), jnp.float32)
    network = eqx.tree_at(lambda network: network.readout, network, readout)
    return (EnergyModel if kind == "energy" else ScoreModel)(
        network=network,
        base=noised_gaussian(axes, rng.uniform(0.3, 1.5, size=dim)),
        loc=jnp.asarray(loc, jnp.float32),
        scale=jnp.asarray(scale, jnp.float32),
        noise_range=(0.02, 20.0),
    )


@pytest.fixture(params=EVENT_SHAPES.values(), ids=list(EVENT_SHAPES))
def event_shape(request):
    return request.param


@pytest.fixture
def energy_model(event_shape):
    return build_model("energy", event_shape)


@pytest.fixture
def score_model(event_shape):
    """With the same location and scale as the energy model."""
    return build_model("score", event_shape)
