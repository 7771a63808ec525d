"""Small fits that the tests of training share, and ways to disturb them."""

import dataclasses

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.networks import EnergyMLP
from numpyro_rtk.training import descent as descent_module
from numpyro_rtk.training.fit import fit
from numpyro_rtk.training.options import Training

# One Gaussian: a mixture would leave the network of these tests nothing to learn.
ONE_GAUSSIAN = Training(num_components=1)
QUICK = {
    "num_steps": 60,
    "batch_size": 16,
    "progress_bar": False,
    "training": ONE_GAUSSIAN,
}


def quick(**options):
    """With these options of ``Training``."""
    return {**QUICK, "training": dataclasses.replace(ONE_GAUSSIAN, **options)}


def draw_clusters(num, event_shape):
    """Two tight clusters: a few steps are enough to beat the Gaussian base."""
    rng = np.random.default_rng(0)
    side = np.where(rng.uniform(size=num) < 0.3, -2.0, 1.0)
    centre = side.reshape(num, *(1 for _ in event_shape))
    return 5.0 + centre + 0.1 * rng.normal(size=(num, *event_shape))


SAMPLES = draw_clusters(60, (2,)) * [1.0, 5.0]


def tiny(event_shape=(2,), network_class=EnergyMLP):
    return network_class(event_shape, width=8, depth=2, key=jr.key(1))


def weights(model):
    return jax.tree.leaves(eqx.filter(model, eqx.is_array))


def equal(one, two):
    pairs = zip(weights(one), weights(two), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def spoil_after(monkeypatch, calls, spoil):
    """Let ``spoil`` act on what the compiled steps return, after a few calls."""
    run_steps, count = descent_module.run_steps, iter(range(1000))

    def run(*arguments):
        result = run_steps(*arguments)
        return spoil(result) if next(count) >= calls else result

    monkeypatch.setattr(descent_module, "run_steps", run)


def interrupt(_):
    raise KeyboardInterrupt


def interrupted_after(monkeypatch, calls, path, **options):
    """A fit that is stopped from the keyboard, with its checkpoint left behind."""
    with monkeypatch.context() as patch:
        spoil_after(patch, calls, interrupt)
        with pytest.warns(UserWarning, match="interrupted"):
            fit(jr.key(0), SAMPLES, network=tiny(), checkpoint=path, **options)


RESUMED = {
    "num_steps": 1000,
    "batch_size": 16,
    "training": Training(patience=None),
    "progress_bar": False,
}
