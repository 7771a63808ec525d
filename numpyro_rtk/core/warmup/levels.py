r"""Where the levels of a ladder lie: at equal shares of a barrier.

*Barrier*: what rises with every stretch of the ladder that is passed less easily. Levels
at equal shares of it are refused equally often on every edge (Syed et al., JRSS-B 2022,
arXiv 1905.02939).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from numpyro_rtk.core.covariance import like

__all__ = [
    "LEAST_ACCEPTANCE",
    "MEMORY",
    "Barrier",
    "Moved",
    "levels_by_barrier",
    "moved_ladder",
    "place_of",
    "suggest_levels",
]

# Once levels move, what was seen before counts by this much.
MEMORY = 0.5
# Where levels may lie: interpolation runs in log(r**2 + r_0**2), which level 0 has too;
# r_0**2 is this, or a part of the likelihood's variance where that is smaller.
_SMALLEST_VARIANCE = 0.02**2
_PART_OF_LIKELIHOOD = 0.1
# Levels move by what the draws are refused, and by this part by the whole population's
# barrier: where the draws hold one mode alone, its narrow part must not take them all.
_SHARE_OF_POPULATION = 0.1
# No edge counts as easier than this, so that levels cannot run away from it.
_SMALLEST_REJECTION = 0.02
# Nor as harder than this: the spread of its increments would be infinite.
_LARGEST_REJECTION = 1.0 - 1e-4
# Below this mean acceptance of the exchanges there are too few levels.
LEAST_ACCEPTANCE = 0.3
# Standard deviation of normal log-weight increments of which half are accepted.
_SPREAD_AT_HALF = 1.349
_TINY = 1e-6


class Barrier(NamedTuple):
    """What rises along the ladder, from level 0 up to a time.

    Attributes:
        times: increasing, or staying, ``(L + 1,)``.
        height: of the barrier from level 0 to there, in no unit.
        log_ratio: of normalising constants, level 0's to that time's.
    """

    times: jax.Array
    height: jax.Array
    log_ratio: jax.Array


class Moved(NamedTuple):
    """A ladder that has moved, and where it lies on the former one.

    Attributes:
        times: of the levels, ``(K + 1,)``.
        index: of each on the former ladder, a real number, ``(K + 1,)``.
    """

    times: jax.Array
    index: jax.Array

    def levels(self, rows: jax.Array) -> jax.Array:
        """What belonged to the levels below the top, ``(K, ...)``, at the new ones."""
        return _between(rows, self.index[:-1])

    def edges(self, rows: jax.Array) -> jax.Array:
        """What belonged to the edges, ``(K, ...)``, at the new ones."""
        return _between(rows, 0.5 * (self.index[:-1] + self.index[1:]) - 0.5)

    def totals(self, parts: jax.Array) -> jax.Array:
        """What adds up along the edges, ``(K,)``, shared out to the new ones."""
        total = jnp.concatenate([jnp.zeros(1, parts.dtype), jnp.cumsum(parts)])
        former = jnp.arange(len(total), dtype=parts.dtype)
        return jnp.diff(jnp.interp(self.index, former, total))


def moved_ladder(
    times: jax.Array,
    rejection: jax.Array,
    barrier: Barrier,
    likelihood_variance: jax.Array,
) -> Moved:
    """Levels at equal shares of what the draws, and the population, found in the way.

    Args:
        times: the ladder, ``(K + 1,)``.
        rejection: of its edges, ``(K,)``.
        barrier: what the population found.
        likelihood_variance: c of the path.
    """
    # The increments' spread grows about as the square of a narrow edge's width (its
    # proposal is right to first order), so the roots are what adds up.
    rejection = jnp.clip(rejection, _SMALLEST_REJECTION, _LARGEST_REJECTION)
    share = jnp.sqrt(_spread(1.0 - rejection))
    cumulative = jnp.concatenate([jnp.zeros(1, share.dtype), jnp.cumsum(share)])
    former = jnp.arange(times.shape[0], dtype=share.dtype)
    place = place_of(times, likelihood_variance)
    new_place = _equal_shares(place, cumulative, barrier, likelihood_variance)
    index = jnp.interp(new_place, place, former)
    new = _time_at(new_place, likelihood_variance)
    return Moved(new.at[0].set(0.0).at[-1].set(times[-1]), index)


def suggest_levels(accept_prob: jax.Array | np.ndarray) -> int:
    """Number of levels at which edges would accept about half.

    Args:
        accept_prob: mean acceptance of each edge, ``(K,)``.
    """
    accept = np.clip(np.asarray(accept_prob, float), _TINY, 1.0 - _TINY)
    spread = np.asarray(_spread(accept))
    return int(np.ceil(len(accept) * spread.mean() / _SPREAD_AT_HALF))


def _spread(accept_prob: jax.Array | np.ndarray) -> jax.Array:
    """Standard deviation s of normal increments that are accepted so often, 2 Phi(-s / 2).

    It grows with an edge's width for good. The acceptance itself ends at 0: a gap that
    nothing passes would look no worse than its neighbours.
    """
    return -2.0 * ndtri(0.5 * accept_prob)


def place_of(times: jax.Array, likelihood_variance: jax.Array) -> jax.Array:
    """Where levels lie on the axis that interpolation runs along."""
    smallest = jnp.minimum(
        _SMALLEST_VARIANCE, _PART_OF_LIKELIHOOD * likelihood_variance
    )
    return jnp.log(jnp.expm1(2.0 * times) + smallest)


def _time_at(place: jax.Array, likelihood_variance: jax.Array) -> jax.Array:
    smallest = jnp.exp(place_of(jnp.zeros(()), likelihood_variance))
    return 0.5 * jnp.log1p(jnp.maximum(jnp.exp(place) - smallest, 0.0))


def levels_by_barrier(
    barrier: Barrier, likelihood_variance: jax.Array, num: int
) -> jax.Array:
    """``num`` times from 0 to the barrier's last, at equal shares of its height."""
    theirs = place_of(barrier.times, likelihood_variance)
    goal = jnp.linspace(0.0, 1.0, num) * barrier.height[-1]
    # strictly increasing also where nothing was in the way
    rising = barrier.height + _TINY * barrier.height[-1] * (theirs - theirs[0])
    goal = goal * rising[-1] / jnp.maximum(barrier.height[-1], 1e-30)
    times = _time_at(jnp.interp(goal, rising, theirs), likelihood_variance)
    return times.at[0].set(0.0).at[-1].set(barrier.times[-1])


def _equal_shares(
    place: jax.Array, cumulative: jax.Array, found: Barrier, likelihood_variance
) -> jax.Array:
    """Places of levels between which the draws' barrier and the population's are equal."""
    theirs = place_of(found.times, likelihood_variance)
    height = found.height[-1]
    weight = jnp.where(height > 0.0, _SHARE_OF_POPULATION, 0.0)
    everywhere = jnp.sort(jnp.concatenate([place, theirs]))
    own = jnp.interp(everywhere, place, cumulative) / cumulative[-1]
    of_all = jnp.interp(everywhere, theirs, found.height) / jnp.maximum(height, 1e-30)
    total = (1.0 - weight) * own + weight * of_all
    return jnp.interp(jnp.linspace(0.0, 1.0, place.shape[0]), total, everywhere)


def _between(rows: jax.Array, index: jax.Array) -> jax.Array:
    """Linear interpolation of rows at real indices; constant beyond the ends."""
    last = rows.shape[0] - 1
    index = jnp.clip(index, 0.0, float(last))
    low = jnp.clip(jnp.floor(index).astype(int), 0, max(last - 1, 0))
    part = like(index - low, rows)
    return (1.0 - part) * rows[low] + part * rows[jnp.minimum(low + 1, last)]
