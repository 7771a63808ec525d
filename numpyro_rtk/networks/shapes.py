"""Shapes of events and weights."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

__all__ = ["as_condition_shape", "as_event_shape", "untrained"]


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
