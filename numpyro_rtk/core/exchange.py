r"""Replica exchange along the noise ladder, with moves by reverse transition kernels.

The state holds one replica per level, :math:`(x_0, \dots, x_K)` with the target
:math:`\prod_k \pi_k(x_k)`; the top level is the standard normal, whatever the path says
there. A sweep moves every replica at its own level (inner samplers with a Metropolis
test), draws the top one anew, and proposes an *exchange* on every second edge
:math:`(k-1, k)`:

.. math:: z \sim q(\cdot \mid x_k), \qquad u \sim N(a\,x_{k-1}, v I),

with the Gaussian start :math:`q` of the segment. The *works*

.. math:: W &= \log\frac{\pi_{k-1}(z)\,N(x_k; a z, v)}{\pi_k(x_k)\,q(z \mid x_k)}, \\
          W' &= \log\frac{\pi_{k-1}(x_{k-1})\,N(u; a x_{k-1}, v)}
                         {\pi_k(u)\,q(x_{k-1} \mid u)}

decide: both replicas move, :math:`x_{k-1} \to z` and :math:`x_k \to u`, with probability
:math:`\min(1, e^{W - W'})`. Inner steps on the reverse transition kernel may follow the
start; on the way up the same steps are undone first (they are reversible) and both works
are taken at the start. A plain swap (:math:`z = x_k / a`, :math:`u = a x_{k-1}`, with the
Jacobians :math:`a^{\mp d}`) is the other kind of exchange. Where the levels differ less by
noise than by temperature, as of narrow modes, it passes more easily; each try takes it
with the edge's own probability, and a mixture of two exact moves is exact.

Exact for any path: a poor one costs acceptance. Even and odd edges alternate (Okabe et
al. 2001; Syed et al., JRSS-B 2022, arXiv 1905.02939). As :math:`E_\downarrow[e^W] = Z_{k-1}
/ Z_k` and :math:`E_\uparrow[e^{-W'}] = Z_k / Z_{k-1}`, the works also give every ratio of
normalising constants, by bridge sampling (Bennett 1976) in :func:`bridge_terms`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk.core.annealed import Path, inner_steps, log_reference
from numpyro_rtk.core.inner import (
    InnerNoise,
    InnerSampler,
    StepNoise,
    accept,
    cut_draws,
    normal_shapes,
    stretch,
)
from numpyro_rtk.core.segment import Evaluation, noising_misfit, sample_noising

__all__ = [
    "Edges",
    "ExchangePlan",
    "Replicas",
    "SweepInfo",
    "SweepNoise",
    "bridge_terms",
    "draw_sweeps",
    "evals_per_sweep",
    "evaluate_all",
    "sweep",
]


class Edges(NamedTuple):
    """The edges of the ladder, lowest first; leading axis K.

    The start of an exchange is Gaussian with mean ``mean_x * x + mean_score * score +
    shift`` and covariance ``root @ root.T``; a root is a matrix ``(K, dim, dim)`` or, where
    the covariance is diagonal, ``(K, dim)``.

    Attributes:
        a: signal kept by the noising of the edge.
        v: its variance.
        mean_x: factor of the upper state, ``(K,)``.
        mean_score: factor of its score, ``(K,)``.
        shift: ``(K, dim)``.
        root: root of the start's covariance.
        inverse_root: its inverse.
        log_det: log determinant of the root, ``(K,)``.
    """

    a: jax.Array
    v: jax.Array
    mean_x: jax.Array
    mean_score: jax.Array
    shift: jax.Array
    root: jax.Array
    inverse_root: jax.Array
    log_det: jax.Array


class ExchangePlan(NamedTuple):
    """What sweeps need besides the path; arrays, so that adapting costs no retrace.

    Attributes:
        levels: pytree with leading axis K + 1, level 0 first; handed to the path.
        edges: see :class:`Edges`.
        step_size: of the local moves at the levels below the top, ``(K,)``.
        scale: their spread, ``(K, dim)`` or a root of it ``(K, dim, dim)``.
        swap_share: how often an edge tries the plain swap, ``(K,)``.
    """

    levels: Any
    edges: Edges
    step_size: jax.Array
    scale: jax.Array
    swap_share: jax.Array


class Replicas(NamedTuple):
    """One state per level, ``(K + 1, dim)``, the path's evaluations, and lineages.

    A lineage is handed from level to level by accepted exchanges. ``phase`` ``(K + 1,)``
    says where it has been: 0 nowhere, 1 last at the bottom, 2 at the top after that.
    """

    position: jax.Array
    evaluation: Evaluation
    phase: jax.Array
    round_trips: jax.Array


class SweepNoise(NamedTuple):
    """Random numbers of one sweep; see :func:`draw_sweeps`.

    Attributes:
        local: of the local moves, leading axis K.
        top: the new top replica, ``(dim,)``.
        exchange: of the starts and of the noised states, ``(2, pairs, dim)``.
        down: of inner steps after the starts, leading axis of pairs.
        up: of those that are undone.
        accept: uniforms of the exchanges, ``(pairs,)``.
        kind: uniforms that choose between the kinds of exchange, ``(pairs,)``.
    """

    local: InnerNoise
    top: jax.Array
    exchange: jax.Array
    down: InnerNoise
    up: InnerNoise
    accept: jax.Array
    kind: jax.Array


class SweepInfo(NamedTuple):
    """What a sweep reports; edges that were not tried hold NaN.

    Attributes:
        local_accept_prob: of the local moves, ``(K,)``.
        swap_accept_prob: of the exchanges, ``(K,)``.
        is_swap: 1 where the exchange was a plain swap, ``(K,)``.
        down_work: W, ``(K,)``.
        up_work: W', ``(K,)``.
        residual: ``x_{k-1}`` minus the start's mean given u, ``(K, dim)``; what a
            better start would be fitted to.
        upper: u, ``(K, dim)``.
        upper_score: the score there, ``(K, dim)``.
        is_diverging: whether a local move at level 0 diverged.
    """

    local_accept_prob: jax.Array
    swap_accept_prob: jax.Array
    is_swap: jax.Array
    down_work: jax.Array
    up_work: jax.Array
    residual: jax.Array
    upper: jax.Array
    upper_score: jax.Array
    is_diverging: jax.Array


def evals_per_sweep(inner: InnerSampler, num_levels: int, num_steps: int = 0) -> int:
    """Evaluations of a pair of sweeps (even edges, then odd ones), as executed.

    Args:
        inner: the inner sampler.
        num_levels: K, levels below the top.
        num_steps: inner steps in each exchange.
    """
    edges = (num_levels + 1) // 2
    exchange = edges * (2 + 2 * num_steps * inner.evals_per_step)
    return 2 * (num_levels * inner.evals_per_step + exchange)


def evaluate_all(path: Path, levels: Any, position: jax.Array) -> Evaluation:
    """The path at every level, ``(K + 1, dim)``; the top is the standard normal."""
    index = jnp.arange(position.shape[0])
    return _evaluate(path, levels, position, index)


def draw_sweeps(
    key: jax.Array,
    plan: ExchangePlan,
    inner: InnerSampler,
    num_sweeps: int,
    num_steps: int = 0,
) -> SweepNoise:
    """The random numbers of ``num_sweeps`` sweeps, which are the leading axis.

    Args:
        key: PRNG key.
        plan: of which the sizes and the type are read.
        inner: the inner sampler.
        num_sweeps: how many.
        num_steps: inner steps in each exchange.
    """
    num_levels, dim = plan.edges.shift.shape
    dtype, pairs = plan.edges.shift.dtype, (num_levels + 1) // 2
    key_normal, key_uniform = jr.split(key)
    # chains and steps of: local moves, inner steps down, inner steps undone
    chains = ((num_levels, 1), (pairs, num_steps), (pairs, num_steps))
    normals = [
        (count, *shape)
        for count, num in chains
        for shape in normal_shapes(inner, num, dim)
    ]
    # two calls for all of it: the generator's loop costs more than its numbers
    *inner_normals, top, exchange = cut_draws(
        jr.normal,
        key_normal,
        (num_sweeps,),
        [*normals, (dim,), (2, pairs, dim)],
        dtype,
    )
    *uniforms, decisions, kinds = cut_draws(
        jr.uniform, key_uniform, (num_sweeps,), [*chains, (pairs,), (pairs,)], dtype
    )
    local, down, up = (
        InnerNoise(start, StepNoise(steps, uniform))
        for start, steps, uniform in zip(
            inner_normals[::2], inner_normals[1::2], uniforms, strict=True
        )
    )
    return SweepNoise(local, top, exchange, down, up, decisions, kinds)


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
        noise: of one sweep, see :func:`draw_sweeps`.
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
    return _count_round_trips(replicas), info._replace(
        local_accept_prob=local_accept, is_diverging=is_diverging
    )


def _move(noise, replicas, path, plan, inner):
    """One inner step at every level below the top, which is drawn anew."""
    num_levels = plan.step_size.shape[0]

    def step(noise, x, evaluation, level, step_size, scale):
        state = inner.init(noise.start, x, evaluation)
        target = lambda z: path(z, level)
        only = jax.tree.map(lambda leaf: leaf[0], noise.steps)
        state, info = inner.step(only, state, target, step_size, scale)
        return state.position, state.evaluation, info.accept_prob, info.is_diverging

    below = lambda tree: jax.tree.map(lambda leaf: leaf[:num_levels], tree)
    x, evaluation, accept_prob, is_diverging = jax.vmap(step)(
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
    return moved, accept_prob, is_diverging[0]


def _exchange(noise, replicas, path, plan, inner, parity, num_steps):
    num_edges = plan.edges.shift.shape[0]
    pairs = (num_edges + 1) // 2
    low = parity + 2 * jnp.arange(pairs)
    is_edge = low < num_edges  # with an odd number of edges the last pair may be none
    index = jnp.minimum(low, num_edges - 1)
    edges = _take(plan.edges, index)
    state = (replicas.position, replicas.evaluation, replicas.phase)
    lower, upper = _pairs(state, parity, pairs)
    (x_low, e_low, phase_low), (x_high, e_high, phase_high) = lower, upper

    is_swap = noise.kind < plan.swap_share[index]
    start, u = jax.vmap(_propose)(
        is_swap, edges, x_low, x_high, e_high.score, *noise.exchange
    )
    both = _evaluate(
        path,
        plan.levels,
        jnp.concatenate([start, u]),
        jnp.concatenate([index, index + 1]),
    )
    at_start, at_u = (
        jax.tree.map(lambda leaf, part=part: leaf[part], both)
        for part in (slice(None, pairs), slice(pairs, None))
    )
    # down: inner steps after the start; up: the same steps, undone
    steps = _reverse_steps(path, plan, inner, index, edges, num_steps)
    z, at_z = steps(noise.down, x_high, start, at_start)
    undone, at_undone = steps(noise.up, u, x_low, e_low)

    down = jax.vmap(_work_of)(is_swap, edges, start, x_high, at_start, e_high)
    up = jax.vmap(_work_of)(is_swap, edges, undone, u, at_undone, at_u)
    log_ratio = down - up
    log_ratio = jnp.where(jnp.isnan(log_ratio) | ~is_edge, -jnp.inf, log_ratio)
    accept_prob = jnp.exp(jnp.minimum(log_ratio, 0.0))
    accepted = noise.accept < accept_prob

    pick = jax.vmap(accept)
    lower = pick(accepted, (z, at_z, phase_high), lower)
    upper = pick(accepted, (u, at_u, phase_low), upper)
    position, evaluation, phase = _from_pairs(state, lower, upper, parity)
    residual = x_low - jax.vmap(start_mean)(edges, u, at_u.score)
    replicas = replicas._replace(position=position, evaluation=evaluation, phase=phase)

    def spread(values):
        """On the edges' axis, NaN where none was tried."""
        none = jnp.full_like(values, jnp.nan)
        rest = jnp.full((num_edges, *values.shape[1:]), jnp.nan, values.dtype)
        return _from_pairs(rest, values, none, parity)

    return replicas, SweepInfo(
        local_accept_prob=jnp.zeros(num_edges, x_low.dtype),  # not known here
        swap_accept_prob=spread(accept_prob),
        is_swap=spread(is_swap.astype(accept_prob.dtype)),
        down_work=spread(down),
        up_work=spread(up),
        residual=spread(residual),
        upper=spread(u),
        upper_score=spread(at_u.score),
        is_diverging=jnp.array(False),
    )


def _reverse_steps(path, plan, inner, index, edges, num_steps):
    """Inner steps on the reverse kernels of all pairs; none leaves the point as it is."""

    def one(noise, edge, level, step_size, scale, x, z, lower):
        settings = (edge, step_size, scale)
        z, lower, _ = inner_steps(
            noise, x, z, lower, level, settings, path, inner, num_steps
        )
        return z, lower

    def steps(noise, x, z, lower):
        if num_steps == 0:
            return z, lower
        levels, step_size, scale = _take(
            (plan.levels, plan.step_size, plan.scale), index
        )
        return jax.vmap(one)(noise, edges, levels, step_size, scale, x, z, lower)

    return steps


def _propose(is_swap, edge, x_low, x_high, score_high, noise_down, noise_up):
    """The lower state given the upper one, and the upper one given the lower."""
    z = start_mean(edge, x_high, score_high) + stretch(edge.root, noise_down)
    down = jnp.where(is_swap, x_high / edge.a, z)
    up = jnp.where(is_swap, edge.a * x_low, sample_noising(edge, x_low, noise_up))
    return down, up


def start_mean(edge: Edges, x: jax.Array, score: jax.Array) -> jax.Array:
    """Mean of an exchange's start given the upper state ``(dim,)`` and its score."""
    return edge.mean_x * x + edge.mean_score * score + edge.shift


def work(edge, z, x, at_z: Evaluation, at_x: Evaluation) -> jax.Array:
    """Work of the path from ``x`` down to ``z``; the factors of 2 pi cancel."""
    residual = z - start_mean(edge, x, at_x.score)
    start_misfit = 0.5 * jnp.sum(jnp.square(stretch(edge.inverse_root, residual)))
    misfit = noising_misfit(edge, x, z) - start_misfit
    volume = edge.log_det - 0.5 * x.size * jnp.log(edge.v)
    return at_z.log_density - at_x.log_density - misfit + volume


def _work_of(is_swap, edge, z, x, at_z: Evaluation, at_x: Evaluation) -> jax.Array:
    """As :func:`work`, or of a plain swap."""
    swapped = at_z.log_density - at_x.log_density - x.size * jnp.log(edge.a)
    return jnp.where(is_swap, swapped, work(edge, z, x, at_z, at_x))


def _evaluate(path, levels, position, index) -> Evaluation:
    top = jax.tree.leaves(levels)[0].shape[0] - 1
    here = jax.vmap(path)(position, _take(levels, index))
    reference = Evaluation(jax.vmap(log_reference)(position), -position)
    is_top = index == top
    return Evaluation(
        jnp.where(is_top, reference.log_density, here.log_density),
        jnp.where(is_top[:, None], reference.score, here.score),
    )


def _count_round_trips(replicas: Replicas) -> Replicas:
    """A round trip goes from the bottom to the top and back."""
    phase = replicas.phase
    finished = phase[0] == 2
    phase = phase.at[0].set(1)
    phase = phase.at[-1].set(jnp.where(phase[-1] == 1, 2, phase[-1]))
    return replicas._replace(
        phase=phase, round_trips=replicas.round_trips + finished.astype(phase.dtype)
    )


def bridge_terms(
    down_work: jax.Array, up_work: jax.Array, centre: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""The two sides of Bennett's bridge for :math:`Z_{k-1} / Z_k`.

    For any ``centre`` C, :math:`\log E_\downarrow[\sigma(W - C)] - \log
    E_\uparrow[\sigma(C - W')] + C` is the log ratio, and C equal to it is the best.

    Args:
        down_work: W, of any shape.
        up_work: W', of the same shape.
        centre: C, broadcastable to it.

    Returns:
        The terms to average, of the same shape.
    """
    return jax.nn.sigmoid(down_work - centre), jax.nn.sigmoid(centre - up_work)


def _take(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


# Neighbours lie side by side, so both directions are slices, not gathers and scatters,
# which are slow on a CPU. The last pair may reach beyond the axis: it is padded there.


def _pairs(tree: Any, parity: jax.Array, pairs: int) -> tuple[Any, Any]:
    """Rows ``parity, parity + 2, ...`` of every leaf, and those above them."""

    def rows(leaf):
        room = _padded(leaf, 2 * pairs + 1)
        both = jax.lax.dynamic_slice_in_dim(room, parity, 2 * pairs)
        return both.reshape(pairs, 2, *leaf.shape[1:])

    both = jax.tree.map(rows, tree)
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[:, i], both) for i in (0, 1))


def _from_pairs(tree: Any, lower: Any, upper: Any, parity: jax.Array) -> Any:
    """The tree with such rows put back; the inverse of :func:`_pairs`."""

    def place(leaf, low, high):
        both = jnp.stack([low, high], axis=1).reshape(-1, *leaf.shape[1:])
        room = _padded(leaf, both.shape[0] + 1)
        room = jax.lax.dynamic_update_slice_in_dim(room, both, parity, 0)
        return room[: leaf.shape[0]]

    return jax.tree.map(place, tree, lower, upper)


def _padded(leaf: jax.Array, length: int) -> jax.Array:
    return jnp.pad(leaf, [(0, length - leaf.shape[0])] + [(0, 0)] * (leaf.ndim - 1))
