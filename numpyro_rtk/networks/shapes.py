"""Shapes of events and weights, and the mapping of functions over batch axes."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

__all__ = ["as_condition_shape", "as_event_shape", "map_over_batch", "untrained"]


def as_event_shape(event_shape: Any) -> tuple[int, ...]:
    """A tuple of positive integers from a tuple, a list or one integer.

    Raises:
        TypeError: where it holds anything but integers.
        ValueError: where a size is below 1.
    """
    return _as_shape("event_shape", event_shape)


def as_condition_shape(condition_shape: Any) -> tuple[int, ...] | None:
    """The same of a condition's shape; None, for no condition, stays None."""
    if condition_shape is None:
        return None
    return _as_shape("condition_shape", condition_shape)


def _as_shape(name: str, value: Any) -> tuple[int, ...]:
    sizes = value if isinstance(value, tuple | list) else (value,)
    try:
        shape = tuple(operator.index(size) for size in sizes)
    except TypeError:
        raise TypeError(
            f"`{name}` must be a tuple of integers; got {value!r}."
        ) from None
    if any(size < 1 for size in shape):
        raise ValueError(f"`{name}` must have sizes of at least 1; got {value!r}.")
    return shape


def untrained(shape: tuple[int, ...]) -> jax.Array:
    """Weights of a last layer that has learned nothing: zero to the last digit of a sum.

    Not exact zeros, nor any one number: where a matrix of these is a constant of the
    program, XLA on a CPU (JAX 0.10.2) reads memory that nothing has written (compare
    github.com/jax-ml/jax/issues/39120).
    """
    return 1e-30 * jr.normal(jr.key(0), shape, jnp.float32)


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
