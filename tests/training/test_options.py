"""The options of a fit that have an object of their own."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from numpyro_rtk.training.options import Training


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ema_decay": 1.0}, ValueError, "`ema_decay` must be between 0 and 1; got 1"),
        ({"patience": 0}, ValueError, "`patience` must be at least 1; got 0"),
        ({"num_components": 0}, ValueError, "`num_components` must be at least 1"),
        ({"standardise": "none"}, ValueError, "`standardise` must be .*got 'none'"),
        ({"noise_range": 0.1}, ValueError, "`noise_range` must be the smallest and"),
        ({"noise_range": (0.1, np.nan)}, ValueError, "`noise_range` must be positive"),
        ({"noise_range": (2.0, 1.0)}, ValueError, "`noise_range` must increase"),
        ({"optimizer": optax.adam}, TypeError, "`optimizer` must be an optax Gradient"),
        ({"optimizer": 1e-3}, TypeError, r"such as `optax.adam\(1e-3\)`, or None; got"),
        ({"on_host": 1}, TypeError, "`on_host` must be True, False or None; got 1"),
        ({"devices": "cpu"}, TypeError, "`devices` must be a sequence of JAX devices"),
        ({"devices": []}, ValueError, "`devices` must hold at least one"),
        ({"devices": 2 * jax.devices()[:1]}, ValueError, "none twice"),
        (
            {"devices": Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("a", "b"))},
            ValueError,
            "mesh of one axis.*mesh.devices.flat",
        ),
    ],
)
def test_refused_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        Training(**options)


def test_it_is_plain_data():
    devices = jax.devices()[:1]
    one = Training(noise_range=[1, 2], devices=np.array(devices))
    assert one == Training(noise_range=(1.0, 2.0), devices=Mesh(devices, ("x",)))
    assert hash(one) == hash(dataclasses.replace(one))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.patience = 3
    with pytest.raises(TypeError):
        Training(8)  # by name alone


def test_it_is_printed_readably():
    text = str(Training(patience=None, optimizer=optax.adam(1e-3)))
    assert "\n    patience=None,\n    ema_decay=0.998,\n" in text
    assert "optimizer=<optax GradientTransformation>" in text
    assert "0x" not in text
