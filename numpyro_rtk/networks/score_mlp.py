"""A vector score network."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from numpyro_rtk._checks import check_positive_int
from numpyro_rtk.networks.base import AbstractScoreNetwork
from numpyro_rtk.networks.shapes import as_condition_shape, as_event_shape, untrained
from numpyro_rtk.networks.trunk import Trunk

__all__ = ["ScoreMLP"]


class ScoreMLP(AbstractScoreNetwork):
    """Residual perceptron with one number out per coordinate: a correction to a score.

    Cheaper than an energy (no backward pass), but it has no density: nothing can be
    accepted, weighted or exchanged with it.

    Attributes:
        event_shape: shape of one sample; its coordinates are flattened.
        condition_shape: of what the density is conditional on; None for nothing.
        trunk: the hidden layers.
        readout: ``(width, dim)``.
    """

    event_shape: tuple[int, ...] = eqx.field(static=True)
    condition_shape: tuple[int, ...] | None = eqx.field(static=True)
    trunk: Trunk
    readout: jax.Array

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
        self.readout = untrained((width, dim))

    def __call__(
        self, z: jax.Array, log_r: jax.Array, condition: jax.Array | None = None
    ) -> jax.Array:
        """Map ``z`` (event_shape), ``log_r`` () and a condition to ``event_shape``."""
        out = self.trunk(jnp.ravel(z), log_r, condition) @ self.readout
        return out.reshape(self.event_shape)

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
