"""A scalar energy network for sets."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk._checks import check_positive_int
from numpyro_rtk.networks.base import AbstractEnergyNetwork
from numpyro_rtk.networks.features import NUM_NOISE_FEATURES, noise_features
from numpyro_rtk.networks.shapes import as_event_shape, untrained

__all__ = ["EnergySet"]


class EnergySet(AbstractEnergyNetwork):
    r"""Energy of a set of ``n`` vectors, the same in whatever order they are written.

    Every element has a hidden state, and every layer sees the mean of all of them:

    .. math:: h_i \leftarrow h_i + \text{silu}\Big(W h_i
              + V \frac1n \sum_j h_j + b(\log r)\Big), \qquad
              f(z, \log r) = \sum_i \left(w \cdot h_i + z_i \cdot P h_i\right).

    ``fit`` makes the Gaussian base exchangeable as well (one ``loc`` and ``scale`` for
    all elements, one covariance of an element and one between two), so that the whole
    density is. Starts at zero: an untrained model is that Gaussian.

    Args:
        event_shape: (n, d): n elements of d numbers.
        width: of the hidden states.
        depth: number of layers.
        key: random key.

    Attributes:
        event_shape: shape of one set.
        inward: ``(d, width)``.
        own, shared: ``W`` and ``V`` of every layer but the first, transposed,
            ``(depth - 1, width, width)``.
        noise: weights of the noise features, ``(NUM_NOISE_FEATURES, depth * width)``.
        bias: ``(depth * width,)``.
        readout: ``w``, ``(width,)``.
        pull: ``P``, transposed, ``(width, d)``.

    Raises:
        TypeError: for sizes that are no integers.
        ValueError: for shapes that are not (n, d).

    References:
        Zaheer et al.: "Deep sets" (NeurIPS 2017), arXiv 1703.06114, equation 4.
    """

    exchangeable: ClassVar[bool] = True

    event_shape: tuple[int, ...] = eqx.field(static=True)
    inward: jax.Array
    own: jax.Array
    shared: jax.Array
    noise: jax.Array
    bias: jax.Array
    readout: jax.Array
    pull: jax.Array

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        width: int = 64,
        depth: int = 3,
        key: jax.Array,
    ):
        check_positive_int("width", width)
        check_positive_int("depth", depth)
        self.event_shape = as_event_shape(event_shape)
        if len(self.event_shape) != 2:
            raise ValueError(
                "`event_shape` must be (n, d), n elements of d numbers; got "
                f"{self.event_shape}. For numbers write (n, 1)."
            )
        dim = self.event_shape[1]
        keys = jr.split(key, 5)
        normal = lambda key, shape: jr.normal(key, shape, jnp.float32)
        layers = (depth - 1, width, width)
        self.inward = normal(keys[0], (dim, width)) / math.sqrt(dim)
        self.own = normal(keys[1], layers) / math.sqrt(width)
        self.shared = normal(keys[2], layers) / math.sqrt(width)
        self.noise = normal(keys[3], (NUM_NOISE_FEATURES, depth * width)) * (
            0.5 / math.sqrt(NUM_NOISE_FEATURES)
        )
        self.bias = 0.5 * normal(keys[4], (depth * width,))
        self.readout = untrained((width,))
        self.pull = untrained((width, dim))

    def __call__(self, z: jax.Array, log_r: jax.Array) -> jax.Array:
        """Map ``z`` (event_shape) and ``log_r`` () to a scalar."""
        depth = self.own.shape[0] + 1
        biases = (noise_features(log_r) @ self.noise + self.bias).reshape(depth, -1)
        h = jax.nn.silu(z @ self.inward + biases[0])
        for layer in range(depth - 1):
            common = jnp.mean(h, axis=0) @ self.shared[layer] + biases[layer + 1]
            h = h + jax.nn.silu(h @ self.own[layer] + common)
        return jnp.sum(h * (self.readout + z @ self.pull.T))

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, except ``key``."""
        return {
            "event_shape": list(self.event_shape),
            "width": self.readout.shape[0],
            "depth": self.own.shape[0] + 1,
        }
