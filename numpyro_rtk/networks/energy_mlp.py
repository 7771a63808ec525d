"""A scalar energy network for vectors."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from numpyro_rtk._checks import check_positive_int
from numpyro_rtk.networks.base import AbstractEnergyNetwork
from numpyro_rtk.networks.shapes import as_condition_shape, as_event_shape, untrained
from numpyro_rtk.networks.trunk import Trunk

__all__ = ["EnergyMLP"]


class EnergyMLP(AbstractEnergyNetwork):
    r"""Residual perceptron with one number out: a correction to an energy.

    .. math:: f(z, \log r) = w \cdot h + z \cdot P h

    with ``h`` the last hidden state. The second term gives the network the quadratic
    forms that separate the covariances of modes. Starts at zero, so that an untrained
    model is the Gaussian that fits the data.

    Attributes:
        event_shape: shape of one sample; its coordinates are flattened.
        condition_shape: of what the density is conditional on; None for nothing.
        trunk: the hidden layers.
        readout: ``w``, ``(width,)``.
        pull: ``P``, transposed, ``(width, dim)``.
    """

    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True)
    trunk: Trunk
    readout: jax.Array
    pull: jax.Array

    def __init__(
        self,
        event_shape: tuple[int, ...] | int,
        *,
        width: int = 128,
        depth: int = 3,
        condition_shape: tuple[int, ...] | int | None = None,
        key: jax.Array,
    ):
        check_positive_int("width", width)
        check_positive_int("depth", depth)
        self.event_shape = as_event_shape(event_shape)
        self.condition_shape = as_condition_shape(condition_shape)
        dim = math.prod(self.event_shape)
        condition_dim = (
            None if self.condition_shape is None else math.prod(self.condition_shape)
        )
        self.trunk = Trunk(dim, width, depth, key, condition_dim)
        self.readout = untrained((width,))
        self.pull = untrained((width, dim))

    def __call__(
        self, z: jax.Array, log_r: jax.Array, condition: jax.Array | None = None
    ) -> jax.Array:
        """Map ``z`` (event_shape), ``log_r`` () and a condition to a scalar."""
        z = jnp.ravel(z)
        h = self.trunk(z, log_r, condition)
        return h @ (self.readout + self.pull @ z)

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, except ``key``."""
        described = {
            "event_shape": list(self.event_shape),
            "width": self.readout.shape[0],
            "depth": self.trunk.hidden.shape[0] + 1,
        }
        if self.condition_shape is not None:
            described["condition_shape"] = list(self.condition_shape)
        return described
