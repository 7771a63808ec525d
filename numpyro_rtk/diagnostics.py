r"""Numbers about weighted draws, without ArviZ.

The raw runs of ``RTKMALA(corrected=False)`` come with a log weight each. Weighted means
are right in expectation; these functions say how many draws they are worth, and turn
them into unweighted ones.
"""

import jax
import jax.numpy as jnp
import jax.random as jr

__all__ = ["importance_resample", "weighted_sample_size"]


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


def _flat(log_weight: jax.Array) -> jax.Array:
    log_weight = jnp.ravel(jnp.asarray(log_weight))
    if log_weight.size == 0:
        raise ValueError("`log_weight` must have at least one entry; got none.")
    return log_weight
