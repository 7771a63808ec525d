"""The residual perceptron that the energy and the score networks share."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk.networks.features import NUM_NOISE_FEATURES, noise_features

__all__ = ["Trunk"]


class Trunk(eqx.Module):
    """Residual perceptron of a point and a noise level.

    ``h_0 = silu(W_0 z + b_0)`` and ``h_l = h_{l-1} + silu(W_l h_{l-1} + b_l)``, with
    every bias ``b_l`` linear in the noise features and in the condition, if there is one.

    Attributes:
        inward: ``(dim, width)``.
        hidden: ``(depth - 1, width, width)``.
        noise: weights of the noise features, ``(NUM_NOISE_FEATURES, depth * width)``.
        bias: ``(depth * width,)``.
        condition: weights of the condition, ``(condition_dim, depth * width)``, or None.
    """

    inward: jax.Array
    hidden: jax.Array
    noise: jax.Array
    bias: jax.Array
    condition: jax.Array | None

    def __init__(
        self,
        dim: int,
        width: int,
        depth: int,
        key: jax.Array,
        condition_dim: int | None = None,
    ):
        key_in, key_hidden, key_noise, key_bias = jr.split(key, 4)
        normal = lambda key, shape: jr.normal(key, shape, jnp.float32)
        self.inward = normal(key_in, (dim, width)) / math.sqrt(dim)
        self.hidden = normal(key_hidden, (depth - 1, width, width)) / math.sqrt(width)
        self.noise = normal(key_noise, (NUM_NOISE_FEATURES, depth * width)) * (
            0.5 / math.sqrt(NUM_NOISE_FEATURES)
        )
        self.bias = 0.5 * normal(key_bias, (depth * width,))
        self.condition = None
        if condition_dim is not None:
            key_condition = jr.fold_in(key, 4)  # the other keys are as without one
            self.condition = normal(key_condition, (condition_dim, depth * width)) / (
                math.sqrt(condition_dim)
            )

    def __call__(
        self, z: jax.Array, log_r: jax.Array, condition: jax.Array | None = None
    ) -> jax.Array:
        """Map ``z`` (dim,), ``log_r`` () and a condition to the last state (width,)."""
        depth = self.hidden.shape[0] + 1
        biases = noise_features(log_r) @ self.noise + self.bias
        if condition is not None:
            assert self.condition is not None
            biases = biases + jnp.ravel(condition) @ self.condition
        biases = biases.reshape(depth, -1)
        h = jax.nn.silu(z @ self.inward + biases[0])
        for layer in range(depth - 1):
            h = h + jax.nn.silu(h @ self.hidden[layer] + biases[layer + 1])
        return h
