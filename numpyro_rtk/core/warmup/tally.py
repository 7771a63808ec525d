"""Sums over the sweeps of a window of warm-up, from which new settings are fitted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.exchange.bridge import bridge_terms
from numpyro_rtk.core.exchange.sweep import SweepInfo

__all__ = ["Tally", "add_sweep", "empty_tally"]


class Tally(NamedTuple):
    """Sums over sweeps and chains.

    Attributes:
        count: an edge's trials, ``(K,)``.
        rejection: of them, ``(K,)``.
        count_rtk: trials that were no plain swaps, ``(K,)``.
        rejection_rtk: of those, ``(K,)``.
        sum_e: of the residual e of the proposal's mean, ``(K, dim)``.
        sum_u: of the noised state u, ``(K, dim)``.
        sum_s: of its score + u, ``(K, dim)``.
        sum_ee: of products of e, ``(K, dim, dim)``, or of its squares ``(K, dim)``.
        sum_eu: of scalar products, ``(K,)``, as the four after it.
        sum_es: likewise.
        sum_uu: likewise.
        sum_us: likewise.
        sum_ss: likewise.
        bridge_down: of the bridge's terms, ``(K,)``.
        bridge_up: likewise.
        sum_scores: of ``s s^T`` over the states of each level, as ``sum_ee``.
        num_states: how many those are.
    """

    count: jax.Array
    rejection: jax.Array
    count_rtk: jax.Array
    rejection_rtk: jax.Array
    sum_e: jax.Array
    sum_u: jax.Array
    sum_s: jax.Array
    sum_ee: jax.Array
    sum_eu: jax.Array
    sum_es: jax.Array
    sum_uu: jax.Array
    sum_us: jax.Array
    sum_ss: jax.Array
    bridge_down: jax.Array
    bridge_up: jax.Array
    sum_scores: jax.Array
    num_states: jax.Array


def empty_tally(shift: jax.Array, covariance: jax.Array) -> Tally:
    """Zeros.

    Args:
        shift: any array of the shape ``(K, dim)``.
        covariance: any of the shape of the proposals' covariances.
    """
    scalar = jnp.zeros_like(shift[:, 0])
    vector, matrix = jnp.zeros_like(shift), jnp.zeros_like(covariance)
    return Tally(
        count=scalar,
        rejection=scalar,
        count_rtk=scalar,
        rejection_rtk=scalar,
        sum_e=vector,
        sum_u=vector,
        sum_s=vector,
        sum_ee=matrix,
        sum_eu=scalar,
        sum_es=scalar,
        sum_uu=scalar,
        sum_us=scalar,
        sum_ss=scalar,
        bridge_down=scalar,
        bridge_up=scalar,
        sum_scores=matrix,
        num_states=jnp.zeros((), scalar.dtype),
    )


def add_sweep(
    tally: Tally, info: SweepInfo, scores: jax.Array, log_ratio: jax.Array
) -> Tally:
    """Add the same sweep of several chains.

    Args:
        tally: the sums.
        info: with a leading axis of chains; NaN where an edge was not tried.
        scores: of the replicas below the top after it, ``(chains, K, dim)``.
        log_ratio: log-ratio estimates in force, ``(K,)``.
    """
    tried = ~jnp.isnan(info.swap_accept_prob)
    # a plain swap shows nothing of the proposal
    by_rtk = tried & (info.is_swap == 0.0)
    clean = lambda x: jnp.where(_along(tried, x) & jnp.isfinite(x), x, 0.0)
    of_rtk = lambda x: jnp.where(_along(by_rtk, x), clean(x), 0.0)
    pull = info.upper_score + info.upper
    e, u, s = map(of_rtk, (info.residual, info.upper, pull))
    rejection = clean(1.0 - info.swap_accept_prob)
    increments = info.down_increment, info.up_increment
    down, up = bridge_terms(*increments, log_ratio[None])
    dot = lambda p, q: jnp.sum(p * q, axis=(0, 2))
    squares = "cka,cka->ka" if tally.sum_ee.ndim == 2 else "cka,ckb->kab"
    new = Tally(
        count=jnp.sum(tried.astype(scores.dtype), axis=0),
        rejection=jnp.sum(rejection, axis=0),
        count_rtk=jnp.sum(by_rtk.astype(scores.dtype), axis=0),
        rejection_rtk=jnp.sum(of_rtk(rejection), axis=0),
        sum_e=jnp.sum(e, axis=0),
        sum_u=jnp.sum(u, axis=0),
        sum_s=jnp.sum(s, axis=0),
        sum_ee=jnp.einsum(squares, e, e),
        sum_eu=dot(e, u),
        sum_es=dot(e, s),
        sum_uu=dot(u, u),
        sum_us=dot(u, s),
        sum_ss=dot(s, s),
        bridge_down=jnp.sum(clean(down), axis=0),
        bridge_up=jnp.sum(clean(up), axis=0),
        sum_scores=jnp.einsum(squares, scores, scores),
        num_states=jnp.asarray(scores.shape[0], scores.dtype),
    )
    return jax.tree.map(jnp.add, tally, new)


def _along(mask: jax.Array, x: jax.Array) -> jax.Array:
    """A mask ``(chains, K)`` with as many axes as x has."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - 2))
