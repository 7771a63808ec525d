"""What ArviZ computes for us; the one module that imports it, inside its functions."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

__all__ = ["pareto_k"]


def pareto_k(log_weight: Any) -> float:
    """Pareto k of importance weights: are weighted means to be trusted?

    The shape of the generalised Pareto law fitted to the largest weights. Below .5 their
    variance is finite and weighted means converge as usual; up to .7 they converge
    slowly; above .7 they are not to be trusted at this number of draws.

    Args:
        log_weight: raw log weights of any shape, such as
            ``mcmc.get_extra_fields()["log_weight"]``; all entries are one sample,
            ``-inf`` weighs nothing.

    Returns:
        The estimate; ``inf`` where fewer than five weights are above zero, from which
        nothing can be told.

    Raises:
        ImportError: without ArviZ (0.23 or 1.x).
        ValueError: for NaN weights.

    References:
        A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, *Pareto Smoothed Importance
        Sampling*, JMLR 2024, arXiv 1507.02646.
    """
    log_weight = np.ravel(np.asarray(log_weight, dtype=float))
    if np.isnan(log_weight).any():
        raise ValueError("`log_weight` must not be NaN; got at least one that is.")
    estimate = _estimator()
    alive = np.isfinite(log_weight)
    if alive.sum() < 5:
        return float("inf")
    # A dead draw weighs nothing: far below the least of the others, but finite.
    filled = np.where(alive, log_weight, log_weight[alive].min() - 100.0)
    if np.ptp(filled) == 0.0:
        return float("-inf")  # equal weights have no tail
    return float(np.asarray(estimate(filled)))


def _estimator() -> Callable[[np.ndarray], Any]:
    """ArviZ's estimate from log weights, wherever this version keeps it."""
    # by name: no environment has both, and type checkers look into the one they run in
    try:
        try:
            array_stats = import_module("arviz_stats.base").array_stats
        except ImportError:
            psislw = import_module("arviz").psislw  # 0.23
            return lambda log_weight: psislw(log_weight)[1]
        # 1.x takes log likelihoods, the negated log weights of leaving one out
        return lambda log_weight: array_stats.psislw(-log_weight)[1]
    except ImportError as error:
        raise ImportError(
            "`pareto_k` needs ArviZ. Install it with `pip install numpyro-rtk[arviz]`."
        ) from error
