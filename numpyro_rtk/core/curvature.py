"""What particles say of the spread of a level: its covariance, its mean curvature.

``E[s s^T]`` of a density's scores is its mean curvature, and the inverse of that a spread
that fits the narrow directions.
"""

import jax
import jax.numpy as jnp

from numpyro_rtk.core.covariance import shrunk
from numpyro_rtk.core.resampling import some_of

__all__ = ["covariance_of", "mean_product", "mean_square"]

# A score counts up to so many times what one in twenty exceeds. That is far above usual:
# where a density is flat but for its edges, most scores are 0.
_WILD, _SMALLEST_LIMIT = 3.0, 1e-3
# As known from so many: to sort more of them takes longer than all the rest.
_USUAL_QUANTILE, _NUM_USUAL = 0.95, 1024


def mean_square(scores: jax.Array) -> jax.Array:
    """Per coordinate of scores ``(n, dim)``; a few wild ones do not set the scale.

    1, as at the reference, where none is known.
    """
    return jnp.nan_to_num(jnp.nanmean(jnp.square(_tamed(scores)), axis=0), nan=1.0)


def mean_product(scores: jax.Array, dense: bool) -> jax.Array:
    """``E[s s^T]``, or its diagonal; correlations as far as they are known."""
    if not dense:
        return mean_square(scores)
    tame = jnp.nan_to_num(_tamed(scores))
    full = jnp.einsum("na,nb->ab", tame, tame) / len(tame)
    return shrunk(full[None], jnp.asarray(len(tame), full.dtype))[0]


def covariance_of(draws: jax.Array, dense: bool) -> jax.Array:
    """Of draws ``(n, dim)``, or variances; a few wild ones do not set the scale.

    Correlations as they are: shrunk ones would hide the directions that hardly vary.
    """
    centre = jnp.nanmedian(jnp.where(jnp.isfinite(draws), draws, jnp.nan), axis=0)
    tame = jnp.nan_to_num(_tamed(draws - centre[None]))
    tame = tame - jnp.mean(tame, axis=0, keepdims=True)
    return tame.T @ tame / len(tame) if dense else jnp.mean(jnp.square(tame), axis=0)


def _tamed(scores: jax.Array) -> jax.Array:
    """Without the few wild ones, and NaN for those that are not finite."""
    # a trajectory that a learned score has lost does not count
    scores = jnp.where(jnp.isfinite(scores), scores, jnp.nan)
    some = jnp.abs(some_of(scores, min(len(scores), _NUM_USUAL)))
    usual = jnp.nanquantile(some, _USUAL_QUANTILE, axis=0, keepdims=True)
    limit = _WILD * usual + _SMALLEST_LIMIT
    return jnp.clip(scores, -limit, limit)
