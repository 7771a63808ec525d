"""Features of the noise level for the networks."""

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["NUM_NOISE_FEATURES", "noise_features"]

_MIDDLE, _HALF_WIDTH = -0.5, 4.0  # log r from 0.011 to 33: the usual range and a margin
_NUM_WAVES = 5
NUM_NOISE_FEATURES = 1 + _NUM_WAVES


def noise_features(log_r: jax.Array) -> jax.Array:
    """A few slow functions of the log noise-to-signal ratio.

    The energy varies smoothly with ``log_r``; fast waves would only let a network
    fit noise level by level. With ``u`` going from -1 to 1 over the usual range, the
    features are ``u`` and ``cos(k pi (u + 1) / 2)`` for k = 1..5.

    Args:
        log_r: scalar.

    Returns:
        Features of shape ``(NUM_NOISE_FEATURES,)``.
    """
    u = (log_r - _MIDDLE) / _HALF_WIDTH
    waves = np.arange(1, _NUM_WAVES + 1, dtype=np.float32) * np.float32(0.5 * np.pi)
    return jnp.concatenate([jnp.reshape(u, (1,)), jnp.cos(waves * (u + 1.0))])
