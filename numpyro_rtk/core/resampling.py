"""Weighted particles: how many they are worth, and equally many without weights."""

import jax
import jax.numpy as jnp

__all__ = ["sample_size", "some_of", "systematic", "without_lost"]

# Where weights are compared by their spread, one that is lost counts as so many nats below
# the least of the others.
_LOST_NATS = 20.0


def systematic(uniform: jax.Array, log_weight: jax.Array) -> jax.Array:
    """Systematic resampling: n indices; all of them where no weight is positive.

    A weight that is not finite counts as none.

    Args:
        uniform: one random number in [0, 1).
        log_weight: of the particles, ``(n,)``.
    """
    n = log_weight.shape[0]
    log_weight = jnp.where(jnp.isfinite(log_weight), log_weight, -jnp.inf)
    usable = jnp.any(jnp.isfinite(log_weight))
    shares = jax.nn.softmax(jnp.where(usable, log_weight, 0.0))
    points = (jnp.arange(n) + uniform) / n
    # rounded, they do not sum to 1: the last point must not fall behind all of them
    total = jnp.cumsum(shares)
    return jnp.clip(jnp.searchsorted(total, points * total[-1]), 0, n - 1)


def sample_size(log_weight: jax.Array) -> jax.Array:
    """Kish's sample size as a part of all; 0 where nothing has weight."""
    total = jax.nn.logsumexp(log_weight)
    size = jnp.exp(2.0 * total - jax.nn.logsumexp(2.0 * log_weight))
    return jnp.where(jnp.isfinite(total), size / log_weight.shape[0], 0.0)


def without_lost(log_weight: jax.Array) -> jax.Array:
    """Log weights with a finite number, 20 nats below the least, for each that is none.

    Args:
        log_weight: ``(..., n)``; groups of n have a least one of their own.
    """
    alive = jnp.isfinite(log_weight)
    lowest = jnp.min(jnp.where(alive, log_weight, jnp.inf), axis=-1, keepdims=True)
    floor = jnp.where(jnp.isfinite(lowest), lowest, 0.0) - _LOST_NATS
    return jnp.where(alive, log_weight, floor)


def some_of(x: jax.Array, num: int) -> jax.Array:
    """``num`` particles at equal distances: neighbours often have one ancestor."""
    return x[jnp.linspace(0, len(x) - 1, num).astype(int)]
