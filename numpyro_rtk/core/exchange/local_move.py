"""The local move: one step of the inner sampler that targets a level itself.

The exchange makes it with the replica of each level, a population on its way down with
each particle.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.annealed import Path
from numpyro_rtk.core.curvature import mean_square
from numpyro_rtk.core.inner import (
    InnerInfo,
    InnerNoise,
    InnerSampler,
    StepNoise,
    draw_numbers,
    normal_shapes,
)
from numpyro_rtk.core.segment import Evaluation

__all__ = ["ParticleNoise", "local_move", "move_particles"]


class ParticleNoise(NamedTuple):
    """Random numbers of n particles that go down one level.

    Attributes:
        cross: normals of the proposal, ``(n, dim)``.
        choose: the uniform of resampling.
        move: of the local move, leading axis n.
    """

    cross: jax.Array
    choose: jax.Array
    move: InnerNoise

    @classmethod
    def draw(
        cls,
        key: jax.Array,
        inner: InnerSampler,
        leading: tuple[int, ...],
        dim: int,
        dtype: Any,
    ) -> "ParticleNoise":
        """For ``leading``, which ends in n, in one call, which costs time to compile."""
        normals = [(dim,), *normal_shapes(inner, 1, dim)]
        (cross, start, steps), (choose, accept) = draw_numbers(
            key, leading, normals, [(), (1,)], dtype
        )
        # one number for all particles
        choose = choose[..., 0]
        return cls(cross, choose, InnerNoise(start, StepNoise(steps, accept)))


def local_move(
    noise: InnerNoise,
    x: jax.Array,
    evaluation: Evaluation,
    path: Path,
    level: Any,
    inner: InnerSampler,
    step_size: jax.Array,
    scale: jax.Array,
) -> tuple[jax.Array, Evaluation, InnerInfo]:
    """One inner step from ``x`` ``(dim,)`` at a level.

    Args:
        noise: of a start and one step.
        x: the position.
        evaluation: the level's there.
        path: the intermediate targets.
        level: of them the one to target.
        inner: the inner sampler.
        step_size: dimensionless.
        scale: the level's spread, ``(dim,)`` or a root of it ``(dim, dim)``.

    Returns:
        Position, evaluation there, and the step's report.
    """
    state = inner.init(noise.start, x, evaluation)
    target = lambda z: path(z, level)
    only = jax.tree.map(lambda leaf: leaf[0], noise.steps)
    state, info = inner.step(only, state, target, step_size, scale)
    return state.position, state.evaluation, info


def move_particles(
    noise: InnerNoise,
    x: jax.Array,
    evaluation: Evaluation,
    path: Path,
    level: Any,
    inner: InnerSampler,
    step_size: jax.Array,
) -> tuple[jax.Array, Evaluation, jax.Array]:
    """The same of particles ``(n, dim)`` at one level, and their mean acceptance.

    The spread is what they feel there, likelihood included: the prior's may be far wider.
    """
    scale = jax.lax.rsqrt(mean_square(evaluation.score))

    def one(noise, x, evaluation):
        return local_move(noise, x, evaluation, path, level, inner, step_size, scale)

    x, evaluation, info = jax.vmap(one)(noise, x, evaluation)
    return x, evaluation, jnp.mean(info.accept_prob)
