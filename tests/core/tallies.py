"""Settings of four edges, and windows' sums as if draws had shown what is told."""

import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk.core.exchange.sweep import SweepInfo
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.segment import proposal_mean
from numpyro_rtk.core.warmup.exchange import Method
from numpyro_rtk.core.warmup.proposals import edges_of
from numpyro_rtk.core.warmup.settings import first_settings, no_sweeps
from numpyro_rtk.core.warmup.tally import add_sweep
from numpyro_rtk.noise import log_snr_ladder

K, DIM = 4, 3
TIMES = log_snr_ladder(K)
ZERO = jnp.zeros((1, 1, DIM))
METHOD = Method(
    inner=MALA(),
    times=TIMES,
    follows_likelihood=True,
    adapt_ladder=True,
    exchange="best",
    dense=True,
    step_size=None,
    target_accept_prob=0.6,
    num_particles=64,
    has_likelihood=True,
)


def settings(times=TIMES, dim=DIM, dense=True):
    k = len(times) - 1
    return first_settings(
        jnp.asarray(times, jnp.float32),
        jnp.float32(0.1),
        jnp.full((k, dim), 0.7),
        jnp.full((k, dim), 4.0),
        0.5,
        dense=dense,
    )


def edges_in(current):
    """The segments that the settings put in force."""
    return edges_of(current.times, current.proposals)


def sums_of(current, lower, upper, score, accept_prob, is_swap=None):
    """A window's sums of n chains, ``(n, K, DIM)``; acceptances ``(K,)`` of the edges."""
    n = len(lower)
    each = jax.vmap(jax.vmap(proposal_mean), in_axes=(None, 0, 0))  # chains, edges
    info = SweepInfo(
        local_accept_prob=jnp.full((n, K), 0.6),
        swap_accept_prob=jnp.tile(jnp.asarray(accept_prob), (n, 1)),
        is_swap=jnp.zeros((n, K)) if is_swap is None else is_swap,
        down_increment=jnp.full((n, K), 1.0),
        up_increment=jnp.full((n, K), 1.0),
        residual=lower - each(edges_in(current), upper, score),
        upper=upper,
        upper_score=score,
        is_diverging=jnp.zeros(n, bool),
    )
    empty = no_sweeps(current)
    return add_sweep(empty, info, 2.0 * score, current.log_ratio)


def tally_of(current, key, n, factor_x, factor_s, shift, root):
    """The sums of n chains whose lower states are linear in u and its score."""
    edges = edges_in(current)
    keys = jr.split(key, 3)
    upper, score, noise = (jr.normal(k, (n, K, DIM)) for k in keys)
    upper = upper + 0.4  # not centred: the shift must not be mistaken for a factor
    a, v = edges.a[None, :, None], edges.v[None, :, None]
    width, pull = jnp.sqrt(v), v / a * (score + upper)
    mean = factor_x * a * upper + factor_s * pull + width * jnp.asarray(shift)
    lower = mean + width * jnp.einsum("ab,nkb->nka", root, noise)
    return sums_of(current, lower, upper, score, [0.4] * K)
