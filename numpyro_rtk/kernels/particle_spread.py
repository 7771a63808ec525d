"""Measuring how the prior spreads at every level, for the reverse kernels of particles."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk import paths
from numpyro_rtk.core.curvature import covariance_of
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.core.warmup.prior_spread import PriorSpread
from numpyro_rtk.noise import (
    noise_to_signal,
    refined_to,
    time_from_noise_to_signal,
)

__all__ = ["num_spread_evals", "spread_of"]

# Particles that it is measured by, and for each dimension of a dense one so many more:
# their error is one of the network's law.
_NUM_PARTICLES, _PER_DIMENSION = 1024, 16
# On as many levels, or more: on few, the particles' law would be another one.
_NUM_LEVELS = 64
# And at smaller noise, as parts of the first level's: as far as precise data may ask.
_FINER_NOISE = np.geomspace(1e-3, 1.0, 8)[:-1]


def spread_of(
    key: jax.Array,
    base: Callable[[jax.Array, jax.Array], Evaluation],
    times: np.ndarray,
    shape: tuple[int, int],
    num_ordinary: int,
    *,
    dense: bool,
) -> PriorSpread:
    """From particles that the network's own chain takes down a fine ladder.

    Each row is one of them: where rows have different priors it is their mean.

    Args:
        key: PRNG key.
        base: the noised prior, of ``(R, dim)``.
        times: the kernel's ladder, ``(K + 1,)``.
        shape: ``(R, dim)``.
        num_ordinary: the last so many coordinates are of ordinary sites, whose reference is
            a standard normal and needs no measuring.
        dense: whether covariances are matrices.
    """
    levels, (num_rows, dim) = _levels(times), shape
    num_particles = num_rows * _num_copies(shape, dense)

    def scores_at(x, t):
        each = jax.vmap(lambda rows: base(rows, t).score)
        return each(x.reshape(-1, *shape)).reshape(-1, dim)

    moment, draws = paths.calibrate(
        key, scores_at, levels, dim, num_particles, dense=dense
    )
    covariance = covariance_of(draws, dense)
    is_ordinary = jnp.arange(dim) >= dim - num_ordinary
    if dense:
        is_ordinary = is_ordinary[:, None] | is_ordinary[None]
    one = jnp.eye(dim, dtype=moment.dtype) if dense else jnp.ones_like(moment[0])
    moment = jnp.where(is_ordinary[None], one[None], moment)
    return PriorSpread.of(levels, moment, jnp.where(is_ordinary, one, covariance))


def num_spread_evals(times: np.ndarray, shape: tuple[int, int], *, dense: bool) -> int:
    """Evaluations of all rows of :func:`spread_of`."""
    return len(_levels(times)) * _num_copies(shape, dense)


def _levels(times: np.ndarray) -> jax.Array:
    fine = refined_to(times, _NUM_LEVELS)
    finer = time_from_noise_to_signal(
        jnp.asarray(_FINER_NOISE) * noise_to_signal(fine[1])
    )
    return jnp.concatenate([fine[:1], finer, fine[1:]])


def _num_copies(shape: tuple[int, int], dense: bool) -> int:
    """Of all rows, so that there are particles enough."""
    num_rows, dim = shape
    return math.ceil((_NUM_PARTICLES + dense * _PER_DIMENSION * dim) / num_rows)
