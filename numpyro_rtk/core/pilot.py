r"""A population down the ladder: where the replicas of an exchange start.

Particles at the top are draws of the standard normal. Down each edge they take the
Gaussian start, are resampled in proportion to :math:`e^W` (``exchange.py``), and make
one local move: a sequential Monte Carlo sampler (Del Moral, Doucet, Jasra, JRSS-B 2006).
Every level then holds a weighted-correct population of its own target, and the works
show which edges are too wide before the first exchange is tried.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk.core.annealed import Path, log_reference
from numpyro_rtk.core.exchange import ExchangePlan, start_mean, work
from numpyro_rtk.core.inner import InnerSampler, stretch
from numpyro_rtk.core.population import LevelNoise, mean_square, systematic
from numpyro_rtk.core.segment import Evaluation

__all__ = ["Population", "population_down"]


class Population(NamedTuple):
    """Particles and works of one run.

    Attributes:
        position: ``(K + 1, n, dim)``, level 0 first.
        evaluation: of the path there, leading axes ``(K + 1, n)``.
        work: W of each edge and particle, ``(K, n)``.
        accept_prob: mean of the local moves, ``(K,)``.
    """

    position: jax.Array
    evaluation: Evaluation
    work: jax.Array
    accept_prob: jax.Array


def population_down(
    key: jax.Array,
    path: Path,
    plan: ExchangePlan,
    inner: InnerSampler,
    num_particles: int,
) -> Population:
    """Run ``num_particles`` particles from the top level to level 0.

    Args:
        key: PRNG key.
        path: the intermediate targets.
        plan: as of the exchange.
        inner: sampler of the one local move at each level.
        num_particles: n; ``n (1 + evals_per_step)`` evaluations a level.
    """
    dim = plan.edges.shift.shape[1]
    key_top, key_down = jr.split(key)
    top = jr.normal(key_top, (num_particles, dim), plan.step_size.dtype)
    at_top = Evaluation(jax.vmap(log_reference)(top), -top)

    def descend(carry, inputs):
        x, upper = carry
        noise, level, edge, step_size = inputs
        means = jax.vmap(start_mean, in_axes=(None, 0, 0))(edge, x, upper.score)
        z = means + jax.vmap(stretch, in_axes=(None, 0))(edge.root, noise.cross)
        at_z = jax.vmap(path, in_axes=(0, None))(z, level)
        works = jax.vmap(work, in_axes=(None, 0, 0, 0, 0))(edge, z, x, at_z, upper)
        works = jnp.where(jnp.isnan(works), -jnp.inf, works)
        chosen = systematic(noise.choose, works)
        z, at_z = jax.tree.map(lambda leaf: leaf[chosen], (z, at_z))
        # what the particles feel, likelihood included: the prior's spread may be far wider
        scale = jax.lax.rsqrt(mean_square(at_z.score))

        def move(noise, z, at_z):
            state = inner.init(noise.start, z, at_z)
            target = lambda u: path(u, level)
            only = jax.tree.map(lambda leaf: leaf[0], noise.steps)
            state, info = inner.step(only, state, target, step_size, scale)
            return state.position, state.evaluation, info.accept_prob

        z, at_z, accept_prob = jax.vmap(move)(noise.move, z, at_z)
        return (z, at_z), (z, at_z, works, jnp.mean(accept_prob))

    leading = (plan.step_size.shape[0], num_particles)
    noise = LevelNoise.draw(key_down, inner, leading, 1, dim, top.dtype)
    below = jax.tree.map(lambda leaf: leaf[:-1], plan.levels)
    xs = (noise, below, plan.edges, plan.step_size)
    _, outputs = jax.lax.scan(descend, (top, at_top), xs, reverse=True)
    position, evaluation, works, accept_prob = outputs
    position, evaluation = jax.tree.map(
        lambda rest, last: jnp.concatenate([rest, last[None]]),
        (position, evaluation),
        (top, at_top),
    )
    return Population(position, evaluation, works, accept_prob)
