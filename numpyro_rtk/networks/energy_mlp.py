"""A scalar energy network for vectors."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from numpyro_rtk._checks import check_positive_int
from numpyro_rtk.networks.base import AbstractEnergyNetwork
from numpyro_rtk.networks.shapes import as_event_shape
from numpyro_rtk.networks.trunk import Trunk

__all__ = ["EnergyMLP"]


class EnergyMLP(AbstractEnergyNetwork):
    """Residual perceptron with one number out: a correction to an energy.

    Starts at zero, so that an untrained model is the Gaussian that fits the data. Its
    growth in ``z`` is at most linear, so that the quadratic Gaussian base keeps the
    density integrable.

    Attributes:
        event_shape: shape of one sample; its coordinates are flattened.
        trunk: the hidden layers.
        readout: ``(width,)``.
    """

    event_shape: tuple[int, ...] = eqx.field(static=True)
    trunk: Trunk
    readout: jax.Array

    def __init__(
        self,
        event_shape: tuple[int, ...] | int,
        *,
        width: int = 128,
        depth: int = 3,
        key: jax.Array,
    ):
        check_positive_int("width", width)
        check_positive_int("depth", depth)
        self.event_shape = as_event_shape(event_shape)
        self.trunk = Trunk(math.prod(self.event_shape), width, depth, key)
        self.readout = jnp.zeros(width, jnp.float32)

    def __call__(self, z: jax.Array, log_r: jax.Array) -> jax.Array:
        """Map ``z`` (event_shape) and ``log_r`` () to a scalar."""
        return self.trunk(jnp.ravel(z), log_r) @ self.readout

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, except ``key``."""
        return {
            "event_shape": list(self.event_shape),
            "width": self.readout.shape[0],
            "depth": self.trunk.hidden.shape[0] + 1,
        }
