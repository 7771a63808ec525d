"""Neighbouring levels as pairs: of every second edge the lower and the upper rows.

Neighbours lie side by side, so both directions are slices, not gathers and scatters, which
are slow on a CPU. The last pair may reach beyond the axis: it is padded there.
"""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["pairs_of", "with_pairs"]


def pairs_of(tree: Any, parity: jax.Array, num_pairs: int) -> tuple[Any, Any]:
    """Rows ``parity, parity + 2, ...`` of every leaf, and those above them."""

    def rows(leaf):
        room = _padded(leaf, 2 * num_pairs + 1)
        both = jax.lax.dynamic_slice_in_dim(room, parity, 2 * num_pairs)
        return both.reshape(num_pairs, 2, *leaf.shape[1:])

    both = jax.tree.map(rows, tree)
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[:, i], both) for i in (0, 1))


def with_pairs(tree: Any, lower: Any, upper: Any, parity: jax.Array) -> Any:
    """The tree with such rows put back; the inverse of :func:`pairs_of`."""

    def place(leaf, low, high):
        both = jnp.stack([low, high], axis=1).reshape(-1, *leaf.shape[1:])
        room = _padded(leaf, both.shape[0] + 1)
        room = jax.lax.dynamic_update_slice_in_dim(room, both, parity, 0)
        return room[: leaf.shape[0]]

    return jax.tree.map(place, tree, lower, upper)


def _padded(leaf: jax.Array, length: int) -> jax.Array:
    return jnp.pad(leaf, [(0, length - leaf.shape[0])] + [(0, 0)] * (leaf.ndim - 1))
