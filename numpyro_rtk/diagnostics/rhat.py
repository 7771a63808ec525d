"""Split R-hat of many coordinates, where some stand still or are not finite."""

import numpy as np
from numpyro.diagnostics import split_gelman_rubin

__all__ = ["rhat_of"]


def rhat_of(values: np.ndarray) -> np.ndarray:
    """Of each coordinate, ``(n,)``; ``values``: ``(chains, draws, n)``.

    1 where all chains stand still at one place, inf where each does at its own, NaN where
    some value is not finite.
    """
    is_finite = np.all(np.isfinite(values), axis=(0, 1))
    values = np.where(is_finite, values, 0.0)
    varies = np.ptp(values, axis=(0, 1)) > 0.0
    rhat = np.ones(values.shape[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.asarray(split_gelman_rubin(values[..., varies]))
    # chains that each stand still, and apart, have no variance within
    rhat[varies] = np.where(np.isnan(found), np.inf, found)
    return np.where(is_finite, rhat, np.nan)
