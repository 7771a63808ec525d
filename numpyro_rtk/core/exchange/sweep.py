r"""Replica exchange along the noise ladder, with moves by reverse transition kernels.

The state holds one replica per level, :math:`(x_0, \dots, x_K)` with the target
:math:`\prod_k \pi_k(x_k)`; the top level is the standard normal, whatever the path says
there. A sweep moves every replica at its own level (inner samplers with a Metropolis
test), draws the top one anew, and proposes an *exchange* on every second edge
:math:`(k-1, k)`:

.. math:: z \sim q(\cdot \mid x_k), \qquad u \sim N(a\,x_{k-1}, v I),

with the Gaussian proposal :math:`q` of the segment. The *log-weight increments* of the way
down and of the way up,

.. math:: W &= \log\frac{\pi_{k-1}(z)\,N(x_k; a z, v)}{\pi_k(x_k)\,q(z \mid x_k)}, \\
          W' &= \log\frac{\pi_{k-1}(x_{k-1})\,N(u; a x_{k-1}, v)}
                         {\pi_k(u)\,q(x_{k-1} \mid u)},

decide: both replicas move, :math:`x_{k-1} \to z` and :math:`x_k \to u`, with probability
:math:`\min(1, e^{W - W'})`. Inner steps on the reverse transition kernel may follow the
proposal; on the way up the same steps are undone first (they are reversible) and both
increments are taken at what is proposed. A plain swap (:math:`z = x_k / a`, :math:`u = a
x_{k-1}`, with the Jacobians :math:`a^{\mp d}`) is the other kind of exchange. Where the
levels differ less by noise than by temperature, as of narrow modes, it passes more easily;
each try takes it with the edge's own probability: a mixture of two exact moves is exact.

Exact for any path: a poor one costs acceptance. Even and odd edges alternate (Okabe et
al. 2001; Syed et al., JRSS-B 2022, arXiv 1905.02939). The increments give the ratios of
normalising constants as well: ``bridge.py``.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.annealed import Path, inner_steps, log_reference
from numpyro_rtk.core.exchange.local_move import local_move
from numpyro_rtk.core.exchange.neighbours import pairs_of, with_pairs
from numpyro_rtk.core.exchange.replicas import (
    ExchangePlan,
    Replicas,
    SweepNoise,
    count_round_trips,
    evaluate_at,
    take,
)
from numpyro_rtk.core.inner import InnerSampler, accept
from numpyro_rtk.core.segment import (
    Evaluation,
    Segment,
    log_weight_increment,
    proposal_mean,
    sample_noising,
    sample_proposal,
)

__all__ = ["SweepInfo", "sweep", "sweep_pairs"]


class SweepInfo(NamedTuple):
    """What a sweep reports; edges that were not tried hold NaN.

    Attributes:
        local_accept_prob: of the local moves, ``(K,)``.
        swap_accept_prob: of the exchanges, ``(K,)``.
        is_swap: 1 where the exchange was a plain swap, ``(K,)``.
        down_increment: W, ``(K,)``.
        up_increment: W', ``(K,)``.
        residual: ``x_{k-1}`` minus the proposal's mean given u, ``(K, dim)``; what a
            better proposal would be fitted to.
        upper: u, ``(K, dim)``.
        upper_score: the score there, ``(K, dim)``.
        is_diverging: whether a local move at level 0 diverged.
    """

    local_accept_prob: jax.Array
    swap_accept_prob: jax.Array
    is_swap: jax.Array
    down_increment: jax.Array
    up_increment: jax.Array
    residual: jax.Array
    upper: jax.Array
    upper_score: jax.Array
    is_diverging: jax.Array


def sweep_pairs(
    noise: SweepNoise,
    replicas: Replicas,
    path: Path,
    plan: ExchangePlan,
    inner: InnerSampler,
    num_steps: int = 0,
) -> tuple[Replicas, SweepInfo, jax.Array]:
    """A sweep on the even edges and one on the odd ones, and so on.

    Args:
        noise: of an even number of sweeps, which are the leading axis.
        replicas: see :func:`sweep`, and so the rest.
        path: the intermediate targets.
        plan: levels, edges, step sizes and scales.
        inner: the inner sampler.
        num_steps: inner steps in each exchange.

    Returns:
        The replicas, what each sweep reports, and the scores of the levels below the top
        after each, ``(num_sweeps, K, dim)``.
    """

    def body(replicas, inputs):
        one, parity = inputs
        replicas, info = sweep(
            one, replicas, path, plan, inner, parity, num_steps=num_steps
        )
        return replicas, (info, replicas.evaluation.score[:-1])

    inputs = (noise, jnp.arange(len(noise.top)) % 2)
    replicas, (info, scores) = jax.lax.scan(body, replicas, inputs)
    return replicas, info, scores


def sweep(
    noise: SweepNoise,
    replicas: Replicas,
    path: Path,
    plan: ExchangePlan,
    inner: InnerSampler,
    parity: jax.Array,
    *,
    num_steps: int = 0,
) -> tuple[Replicas, SweepInfo]:
    """Local moves, a new top, and exchanges on the edges of one parity.

    Args:
        noise: of one sweep.
        replicas: the state; its evaluations belong to ``path`` and ``plan.levels``.
        path: the intermediate targets.
        plan: levels, edges, step sizes and scales.
        inner: must be adjusted, with an acceptance from energies.
        parity: 0 for the edges (0, 1), (2, 3), ...; 1 for the others. May be traced.
        num_steps: inner steps in each exchange, a static integer; with them no edge may
            try plain swaps.
    """
    replicas, local_accept, is_diverging = _move(noise, replicas, path, plan, inner)
    replicas, info = _exchange(noise, replicas, path, plan, inner, parity, num_steps)
    return count_round_trips(replicas), info._replace(
        local_accept_prob=local_accept, is_diverging=is_diverging
    )


def _move(noise, replicas, path, plan, inner):
    """A local move at every level below the top, which is drawn anew."""
    num_levels = plan.step_size.shape[0]

    def one(noise, x, evaluation, level, step_size, scale):
        return local_move(noise, x, evaluation, path, level, inner, step_size, scale)

    below = lambda tree: jax.tree.map(lambda leaf: leaf[:num_levels], tree)
    x, evaluation, info = jax.vmap(one)(
        noise.local,
        below(replicas.position),
        below(replicas.evaluation),
        below(plan.levels),
        plan.step_size,
        plan.scale,
    )
    top = Evaluation(log_reference(noise.top), -noise.top)
    position, evaluation = jax.tree.map(
        lambda rest, last: jnp.concatenate([rest, last[None]]),
        (x, evaluation),
        (noise.top, top),
    )
    moved = replicas._replace(position=position, evaluation=evaluation)
    return moved, info.accept_prob, info.is_diverging[0]


class _Tried(NamedTuple):
    """The edges of one parity; leading axis of pairs."""

    index: jax.Array
    is_edge: jax.Array  # with an odd number of edges the last pair may be none
    is_swap: jax.Array
    segment: Segment


class _Side(NamedTuple):
    """The replicas below these edges, or those above; leading axis of pairs."""

    position: jax.Array
    evaluation: Evaluation
    phase: jax.Array


class _Way(NamedTuple):
    """Across these edges, down or up; leading axis of pairs."""

    position: jax.Array  # where the way ends
    evaluation: Evaluation
    increment: jax.Array  # log-weight increment: W down, W' up


def _exchange(noise, replicas, path, plan, inner, parity, num_steps):
    """Both ways across each edge of the parity are proposed, and accepted together."""
    num_edges = plan.edges.shift.shape[0]
    tried = _tried_edges(noise, plan, parity)
    state = _Side(replicas.position, replicas.evaluation, replicas.phase)
    lower, upper = pairs_of(state, parity, len(tried.index))
    down, up = _both_ways(noise, lower, upper, path, plan, inner, tried, num_steps)

    log_accept = down.increment - up.increment
    is_refused = jnp.isnan(log_accept) | ~tried.is_edge
    log_accept = jnp.where(is_refused, -jnp.inf, log_accept)
    accept_prob = jnp.exp(jnp.minimum(log_accept, 0.0))
    accepted = noise.accept < accept_prob

    # a lineage goes with the state that it is handed to the other level in
    pick = jax.vmap(accept)
    come_down = _Side(down.position, down.evaluation, upper.phase)
    gone_up = _Side(up.position, up.evaluation, lower.phase)
    new_lower = pick(accepted, come_down, lower)
    new_upper = pick(accepted, gone_up, upper)
    position, evaluation, phase = with_pairs(state, new_lower, new_upper, parity)
    replicas = replicas._replace(position=position, evaluation=evaluation, phase=phase)

    def spread(values):
        """On the edges' axis, NaN where none was tried."""
        none = jnp.full_like(values, jnp.nan)
        rest = jnp.full((num_edges, *values.shape[1:]), jnp.nan, values.dtype)
        return with_pairs(rest, values, none, parity)

    means = jax.vmap(proposal_mean)(tried.segment, up.position, up.evaluation.score)
    return replicas, SweepInfo(
        local_accept_prob=jnp.zeros(num_edges, accept_prob.dtype),  # not known here
        swap_accept_prob=spread(accept_prob),
        is_swap=spread(tried.is_swap.astype(accept_prob.dtype)),
        down_increment=spread(down.increment),
        up_increment=spread(up.increment),
        residual=spread(lower.position - means),
        upper=spread(up.position),
        upper_score=spread(up.evaluation.score),
        is_diverging=jnp.array(False),
    )


def _tried_edges(noise, plan, parity) -> _Tried:
    num_edges = plan.edges.shift.shape[0]
    low = parity + 2 * jnp.arange((num_edges + 1) // 2)
    index = jnp.minimum(low, num_edges - 1)
    return _Tried(
        index=index,
        is_edge=low < num_edges,
        is_swap=noise.kind < plan.swap_share[index],
        segment=take(plan.edges, index),
    )


def _both_ways(noise, lower: _Side, upper: _Side, path, plan, inner, tried, num_steps):
    """Down from the upper replicas to z, and up from the lower ones to u."""
    proposed, u = jax.vmap(_propose)(
        tried.is_swap,
        tried.segment,
        lower.position,
        upper.position,
        upper.evaluation.score,
        *noise.exchange,
    )
    both = evaluate_at(
        path,
        plan.levels,
        jnp.concatenate([proposed, u]),
        jnp.concatenate([tried.index, tried.index + 1]),
    )
    at_proposed, at_u = (
        jax.tree.map(lambda leaf, i=i: leaf[i * len(u) : (i + 1) * len(u)], both)
        for i in (0, 1)
    )
    # down: inner steps after the proposal; up: the same steps, undone
    steps = _reverse_steps(path, plan, inner, tried, num_steps)
    z, at_z = steps(noise.down, upper.position, proposed, at_proposed)
    undone, at_undone = steps(noise.up, u, lower.position, lower.evaluation)

    increment = partial(jax.vmap(_increment), tried.is_swap, tried.segment)
    down = increment(proposed, upper.position, at_proposed, upper.evaluation)
    up = increment(undone, u, at_undone, at_u)
    return _Way(z, at_z, down), _Way(u, at_u, up)


def _propose(is_swap, segment, x_low, x_high, score_high, noise_down, noise_up):
    """The lower state given the upper one, and the upper one given the lower."""
    z = sample_proposal(segment, x_high, score_high, noise_down)
    u = sample_noising(segment, x_low, noise_up)
    down = jnp.where(is_swap, x_high / segment.a, z)
    up = jnp.where(is_swap, segment.a * x_low, u)
    return down, up


def _reverse_steps(path, plan, inner, tried: _Tried, num_steps):
    """Inner steps on the reverse kernels of all pairs; none leaves the point as it is."""

    def one(noise, segment, level, step_size, scale, x, z, lower):
        settings = (segment, step_size, scale)
        z, lower, _ = inner_steps(
            noise, x, z, lower, level, settings, path, inner, num_steps
        )
        return z, lower

    def steps(noise, x, z, lower):
        if num_steps == 0:
            return z, lower
        levels, step_size, scale = take(
            (plan.levels, plan.step_size, plan.scale), tried.index
        )
        return jax.vmap(one)(
            noise, tried.segment, levels, step_size, scale, x, z, lower
        )

    return steps


def _increment(is_swap, segment, z, x, at_z: Evaluation, at_x: Evaluation):
    """The log-weight increment from ``x`` down to ``z``, or that of a plain swap."""
    swapped = at_z.log_density - at_x.log_density - x.size * jnp.log(segment.a)
    by_proposal = log_weight_increment(segment, z, x, at_z, at_x)
    return jnp.where(is_swap, swapped, by_proposal)
