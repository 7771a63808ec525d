r"""Ratios of normalising constants from exchanges: Bennett's bridge (1976).

An edge's log-weight increments W on the way down and W' on the way up (``sweep.py``)
obey :math:`E_\downarrow[e^W] = Z_{k-1} / Z_k` and :math:`E_\uparrow[e^{-W'}] = Z_k /
Z_{k-1}`. For any number C

.. math:: \log\frac{Z_{k-1}}{Z_k} = C + \log E_\downarrow[\sigma(W - C)]
          - \log E_\uparrow[\sigma(C - W')],

and C equal to the log ratio is the best: warm-up goes there by a fixed point, and calls
its C the *log-ratio estimate*.
"""

import jax
import jax.numpy as jnp

__all__ = ["bridge_terms", "log_evidence_of", "next_log_ratio"]

# Added to each side, as a part of the trials: a side of nothing must have a logarithm.
_SMALL_PART = 1e-3
_SMALLEST_SUM = 1e-30


def bridge_terms(
    down: jax.Array, up: jax.Array, log_ratio: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The two sides of the bridge for an edge.

    Args:
        down: W, of any shape.
        up: W', of the same shape.
        log_ratio: C, broadcastable to it.

    Returns:
        The terms to average, of the same shape.
    """
    return jax.nn.sigmoid(down - log_ratio), jax.nn.sigmoid(log_ratio - up)


def next_log_ratio(
    log_ratio: jax.Array, count: jax.Array, sum_down: jax.Array, sum_up: jax.Array
) -> jax.Array:
    """One step of the fixed point, ``(K,)``, from sums of so many trials' terms."""
    small = _SMALL_PART * jnp.maximum(count, 1.0)
    change = jnp.log(sum_down + small) - jnp.log(sum_up + small)
    return log_ratio + jnp.where(count > 0, change, 0.0)


def log_evidence_of(log_ratio: jax.Array, sums: jax.Array) -> jax.Array:
    """Of level 0, the reference's being 0; from the terms' sums ``(2, K)``."""
    log_down, log_up = jnp.log(jnp.maximum(sums, _SMALLEST_SUM))
    return jnp.sum(log_ratio + log_down - log_up)
