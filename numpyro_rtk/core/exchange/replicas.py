"""One replica per level: the state of a replica exchange, and what its sweeps are given.

The top level is the standard normal, whatever the path says there.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.annealed import Path, log_reference
from numpyro_rtk.core.inner import (
    InnerNoise,
    InnerSampler,
    StepNoise,
    draw_numbers,
    normal_shapes,
)
from numpyro_rtk.core.segment import Evaluation, Segment

__all__ = [
    "ExchangePlan",
    "JumpNoise",
    "Replicas",
    "SweepNoise",
    "count_round_trips",
    "draw_sweeps",
    "evals_per_sweep",
    "evaluate_all",
    "evaluate_at",
    "take",
]


class ExchangePlan(NamedTuple):
    """What sweeps need besides the path; arrays, so that adapting costs no retrace.

    Attributes:
        levels: pytree with leading axis K + 1, level 0 first; handed to the path.
        edges: the segments between neighbouring levels, leading axis K.
        step_size: of the local moves at the levels below the top, ``(K,)``.
        scale: their spread, ``(K, dim)`` or a root of it ``(K, dim, dim)``.
        swap_share: how often an edge tries the plain swap, ``(K,)``.
    """

    levels: Any
    edges: Segment
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


class JumpNoise(NamedTuple):
    """Random numbers of one jump: normals ``(dim,)``; uniforms of choice and acceptance."""

    normal: jax.Array
    choose: jax.Array
    accept: jax.Array


class SweepNoise(NamedTuple):
    """Random numbers of one sweep, as :func:`draw_sweeps` draws them.

    Attributes:
        local: of the local moves, leading axis K.
        top: the new top replica, ``(dim,)``.
        exchange: of the proposals and of the noised states, ``(2, pairs, dim)``.
        down: of inner steps after the proposals, leading axis of pairs.
        up: of those that are undone.
        accept: uniforms of the exchanges, ``(pairs,)``.
        kind: uniforms that choose between the kinds of exchange, ``(pairs,)``.
        jump: of a jump at the bottom, if one follows.
    """

    local: InnerNoise
    top: jax.Array
    exchange: jax.Array
    down: InnerNoise
    up: InnerNoise
    accept: jax.Array
    kind: jax.Array
    jump: JumpNoise


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
    return evaluate_at(path, levels, position, index)


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
    # chains and steps of: local moves, inner steps down, inner steps undone
    chains = ((num_levels, 1), (pairs, num_steps), (pairs, num_steps))
    normals = [
        (count, *shape)
        for count, num in chains
        for shape in normal_shapes(inner, num, dim)
    ]
    # one call for all of it: the generator's loop costs more than its numbers
    (
        (*inner_normals, top, exchange, jump),
        (*uniforms, decisions, kinds, choose, accept),
    ) = draw_numbers(
        key,
        (num_sweeps,),
        [*normals, (dim,), (2, pairs, dim), (dim,)],
        [*chains, (pairs,), (pairs,), (), ()],
        dtype,
    )
    local, down, up = (
        InnerNoise(start, StepNoise(steps, uniform))
        for start, steps, uniform in zip(
            inner_normals[::2], inner_normals[1::2], uniforms, strict=True
        )
    )
    jump = JumpNoise(jump, choose, accept)
    return SweepNoise(local, top, exchange, down, up, decisions, kinds, jump)


def evaluate_at(
    path: Path, levels: Any, position: jax.Array, index: jax.Array
) -> Evaluation:
    """The path at positions ``(n, dim)``, each at the level of its index ``(n,)``."""
    top = jax.tree.leaves(levels)[0].shape[0] - 1
    here = jax.vmap(path)(position, take(levels, index))
    reference = Evaluation(jax.vmap(log_reference)(position), -position)
    is_top = index == top
    return Evaluation(
        jnp.where(is_top, reference.log_density, here.log_density),
        jnp.where(is_top[:, None], reference.score, here.score),
    )


def count_round_trips(replicas: Replicas) -> Replicas:
    """A round trip goes from the bottom to the top and back."""
    phase = replicas.phase
    finished = phase[0] == 2
    phase = phase.at[0].set(1)
    phase = phase.at[-1].set(jnp.where(phase[-1] == 1, 2, phase[-1]))
    return replicas._replace(
        phase=phase, round_trips=replicas.round_trips + finished.astype(phase.dtype)
    )


def take(tree: Any, index: jax.Array) -> Any:
    """The rows ``index`` of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
