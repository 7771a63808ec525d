"""The mapping of functions, written for one event, over batch axes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["map_over_batch"]


def map_over_batch(
    function: Callable[[jax.Array, jax.Array], Any],
    event_shape: tuple[int, ...],
    x: jax.Array,
    t: jax.Array | float,
) -> Any:
    """Call ``function(x, t)``, written for one event and one time, over a batch.

    A scalar ``t`` stays unmapped, so that whatever depends on the time alone is
    computed once; without batch axes the function is called as it is.

    Args:
        function: of ``x`` (event_shape) and ``t`` ().
        event_shape: shape of one event.
        x: ``batch + event_shape``.
        t: a scalar, or broadcastable to ``batch``.

    Returns:
        What ``function`` returns, with the axes of ``batch`` in front.

    Raises:
        ValueError: where ``x`` does not end in ``event_shape``, or ``t`` does not
            broadcast to the batch.
    """
    x, t = jnp.asarray(x), jnp.asarray(t)
    batch_rank = x.ndim - len(event_shape)
    if batch_rank < 0 or x.shape[batch_rank:] != event_shape:
        raise ValueError(
            f"`x` must have shape batch + event_shape with event_shape {event_shape}; "
            f"got shape {x.shape}."
        )
    batch = x.shape[:batch_rank]
    time_axis = None
    if t.ndim > 0:
        try:
            t = jnp.broadcast_to(t, batch)
        except ValueError:
            raise ValueError(
                f"`t` must be a scalar or broadcastable to the batch shape {batch} of "
                f"`x`; got shape {t.shape}."
            ) from None
        time_axis = 0
    for _ in range(batch_rank):
        function = jax.vmap(function, in_axes=(0, time_axis))
    return function(x, t)
