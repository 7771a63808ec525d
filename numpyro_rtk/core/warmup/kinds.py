"""The kind of exchange on each edge: by reverse transition kernel, or a plain swap."""

import jax
import jax.numpy as jnp

from numpyro_rtk.core.warmup.tally import Tally

__all__ = ["LEAST_SHARE", "choose_kind", "rejection_of_preferred"]

# While warm-up explores, an edge tries its worse kind of exchange so often.
LEAST_SHARE = 0.1
# A plain swap must pass more often by this to be preferred, and by so many standard errors:
# it is tried seldom, and of many edges one would pass by chance.
_MARGIN, _BEYOND_CHANCE = 0.02, 2.0
# An edge that tries plain swaps more often than this prefers them.
_PREFERS_SWAP = 0.5
# Rejection of an edge that was not tried.
_UNKNOWN_REJECTION = 0.5


def choose_kind(
    swap_share: jax.Array, tally: Tally, explore: bool | jax.Array
) -> jax.Array:
    """How often each edge tries the plain swap, by what passed in the window, ``(K,)``.

    Args:
        swap_share: so far, ``(K,)``.
        tally: the window's sums.
        explore: whether the other kind is tried now and then.
    """
    count = tally.count - tally.count_rtk
    by_swap, swap_error = _passed(count, tally.rejection - tally.rejection_rtk)
    by_rtk, rtk_error = _passed(tally.count_rtk, tally.rejection_rtk)
    by_chance = _BEYOND_CHANCE * jnp.hypot(swap_error, rtk_error)
    is_better = by_swap > by_rtk + _MARGIN + by_chance
    is_known = (count > 1.0) & (tally.count_rtk > 1.0)
    prefers_swap = jnp.where(is_known, is_better, swap_share > _PREFERS_SWAP)
    least = jnp.where(explore, LEAST_SHARE, 0.0)
    return jnp.where(prefers_swap, 1.0 - least, least)


def rejection_of_preferred(swap_share: jax.Array, tally: Tally) -> jax.Array:
    """Of the kind of exchange that each edge prefers, ``(K,)``.

    Trials of the other end with warm-up: levels that made room for them, where a plain swap
    hardly ever passes, would be lacking elsewhere.
    """
    by_swap = swap_share > _PREFERS_SWAP
    count = jnp.where(by_swap, tally.count - tally.count_rtk, tally.count_rtk)
    total = jnp.where(
        by_swap, tally.rejection - tally.rejection_rtk, tally.rejection_rtk
    )
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), _UNKNOWN_REJECTION)


def _passed(count: jax.Array, rejection: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean acceptance, and its standard error at most."""
    count = jnp.maximum(count, 1.0)
    mean = jnp.clip(1.0 - rejection / count, 0.0, 1.0)
    return mean, jnp.sqrt(mean * (1.0 - mean) / count)
