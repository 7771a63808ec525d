r"""Weighted draws: what they are worth, and unweighted ones from them.

The raw runs of ``RTKMALA(corrected=False)`` come with a log weight each. Weighted means
are right in expectation; these functions say how many draws they are worth, and turn
them into unweighted ones. ArviZ is imported inside the function that needs it.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

__all__ = ["importance_resample", "pareto_k", "weighted_sample_size"]

_FEWEST_WEIGHTS = 5  # above zero, to fit a tail to
# What a dead draw weighs for ArviZ, below the least of the others, in nats: finite.
_DEAD = 100.0


def weighted_sample_size(log_weight: jax.Array) -> jax.Array:
    r"""Kish's effective sample size of weighted draws.

    .. math:: \Big(\sum_i w_i\Big)^2 \Big/ \sum_i w_i^2

    Between 1 and the number of draws. It is computed from the weights that were seen: a
    region that no draw reached does not lower it. Read it beside
    :func:`~numpyro_rtk.pareto_k`.

    Args:
        log_weight: of any shape; all its entries are one sample. ``-inf`` weighs nothing.

    Returns:
        A scalar; 0 where no draw has any weight.

    Raises:
        ValueError: when there are no weights.

    References:
        L. Kish, *Survey Sampling*, 1965.
    """
    log_weight = _flat(log_weight)
    total = jax.nn.logsumexp(log_weight)
    size = jnp.exp(2.0 * total - jax.nn.logsumexp(2.0 * log_weight))
    return jnp.where(jnp.isneginf(total), 0.0, size)


def importance_resample(
    key: jax.Array, samples: dict | jax.Array, log_weight: jax.Array, num_samples: int
):
    """Unweighted draws from weighted ones: systematic resampling.

    Each draw appears ``num_samples`` times its normalised weight, rounded up or down.
    Repeats carry no information: the draws are worth :func:`weighted_sample_size`.

    Args:
        key: PRNG key.
        samples: pytree of arrays ``(n, ...)``, such as ``mcmc.get_samples()``.
        log_weight: ``(n,)``, such as ``mcmc.get_extra_fields()["log_weight"]``.
        num_samples: draws wanted.

    Returns:
        The same pytree with ``num_samples`` in the place of n, in random order.

    Raises:
        ValueError: when the leading axes differ, or every weight is zero or NaN.
    """
    log_weight = jnp.asarray(log_weight)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(samples)}
    if log_weight.ndim != 1 or sizes != {log_weight.shape}:
        raise ValueError(
            "`log_weight` must have shape (n,) and every array of `samples` (n, ...); "
            f"got {log_weight.shape} and leading axes {sorted(sizes)}. Pass both with "
            "`group_by_chain=False`."
        )
    largest = jnp.max(log_weight)
    if not bool(jnp.isfinite(largest)):
        raise ValueError(
            f"`log_weight` must have a finite largest entry; got {float(largest)}."
        )
    key_grid, key_order = jr.split(key)
    cumulative = jnp.cumsum(jax.nn.softmax(log_weight))
    grid = (jnp.arange(num_samples) + jr.uniform(key_grid)) / num_samples
    # rounding: the last cumulative weight is not exactly one
    chosen = jnp.searchsorted(cumulative / cumulative[-1], grid)
    chosen = jr.permutation(key_order, chosen)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], samples)


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
    if alive.sum() < _FEWEST_WEIGHTS:
        return float("inf")
    filled = np.where(alive, log_weight, log_weight[alive].min() - _DEAD)
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


def _flat(log_weight: jax.Array) -> jax.Array:
    log_weight = jnp.ravel(jnp.asarray(log_weight))
    if log_weight.size == 0:
        raise ValueError("`log_weight` must have at least one entry; got none.")
    return log_weight
