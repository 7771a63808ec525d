r"""Which likelihood variance c: small pilots down a ladder, one for each of a grid.

Particles at the top are draws of the standard normal. Down each edge they take its
Gaussian proposal, are resampled in proportion to their log-weight increments, and make one
local move: a sequential Monte Carlo sampler (Del Moral, Doucet, Jasra, JRSS-B 2006). The c
is taken at which the increments vary least, over all edges together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.annealed import Path, log_reference
from numpyro_rtk.core.exchange.local_move import ParticleNoise, move_particles
from numpyro_rtk.core.exchange.replicas import ExchangePlan
from numpyro_rtk.core.inner import InnerSampler
from numpyro_rtk.core.resampling import systematic, without_lost
from numpyro_rtk.core.segment import (
    Evaluation,
    log_weight_increment,
    sample_proposal,
)
from numpyro_rtk.core.warmup.exchange import Method, PriorCurvature
from numpyro_rtk.core.warmup.settings import (
    LevelsOf,
    Settings,
    analytic_settings,
    plan_of,
)
from numpyro_rtk.noise import noise_to_signal, time_from_noise_to_signal

__all__ = [
    "NUM_PILOT",
    "NUM_PILOTS",
    "PART_OF_NOISE",
    "Pilot",
    "choose_variance",
    "pilot_down",
]

# The pilots that choose the likelihood's variance c, on the standardised scale: so many
# over the whole range, then as many beside what they found. The spread of the increments
# falls slowly up to the best c and rises steeply beyond; far apart they miss it by much.
_VARIANCES, _NUM_BESIDE = (1e-9, 10.0), 8
NUM_PILOTS, NUM_PILOT = 2 * _NUM_BESIDE, 64
# Of those as good as the best, up to these factors, the largest c is taken: on the slow
# side one of several is the best by chance, and may be smaller by orders of magnitude.
_AS_GOOD = (1.2, 1.05)
# The smallest noise of a ladder, as a part of the likelihood's standard deviation.
PART_OF_NOISE = 0.3
# Step size where none is given: this, less in more dimensions than these.
_FIRST_STEP_SIZE, _FEW_DIMENSIONS = 0.8, 4.0


class Pilot(NamedTuple):
    """Particles of one run, level 0 first.

    Attributes:
        position: ``(K + 1, n, dim)``.
        evaluation: of the path there, leading axes ``(K + 1, n)``.
        increment: log-weight increment of each edge and particle, ``(K, n)``.
    """

    position: jax.Array
    evaluation: Evaluation
    increment: jax.Array


def choose_variance(
    key: jax.Array,
    path: Path,
    levels_of: LevelsOf,
    method: Method,
    prior: PriorCurvature,
) -> jax.Array:
    """The c whose log-weight increments vary least down a ladder of K levels.

    Args:
        key: PRNG key.
        path: the intermediate targets.
        levels_of: levels of times and c.
        method: what the user chose.
        prior: curvature of the noised prior.
    """
    low, high = np.log(_VARIANCES)
    dtype = prior.curvature.dtype

    def pilot(inputs):
        key, variance = inputs
        settings = _pilot_settings(variance, method, prior)
        plan = plan_of(settings, levels_of)
        found = pilot_down(key, path, plan, method.inner, NUM_PILOT)
        return _total_spread(found.increment)

    def look(middle, inputs):
        key, width, as_good = inputs
        grid = middle + width * jnp.linspace(-1.0, 1.0, _NUM_BESIDE, dtype=dtype)
        # the same random numbers, so that the difference is that of c
        keys = jnp.broadcast_to(key, grid.shape)
        spread = jax.lax.map(pilot, (keys, jnp.exp(grid)))
        return jnp.clip(_largest_as_good(grid, spread, as_good), low, high), None

    widths = 0.5 * (high - low) * np.array([1.0, 2.0 / (_NUM_BESIDE - 1)])
    inputs = jr.split(key, 2), jnp.asarray(widths, dtype), jnp.asarray(_AS_GOOD, dtype)
    chosen, _ = jax.lax.scan(look, jnp.asarray(0.5 * (low + high), dtype), inputs)
    return jnp.exp(chosen)


def pilot_down(
    key: jax.Array,
    path: Path,
    plan: ExchangePlan,
    inner: InnerSampler,
    num_particles: int,
) -> Pilot:
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

    def down(carry, inputs):
        x, upper = carry
        noise, level, edge, step_size = inputs
        each = jax.vmap(sample_proposal, in_axes=(None, 0, 0, 0))
        z = each(edge, x, upper.score, noise.cross)
        at_z = jax.vmap(path, in_axes=(0, None))(z, level)
        each = jax.vmap(log_weight_increment, in_axes=(None, 0, 0, 0, 0))
        increment = each(edge, z, x, at_z, upper)
        increment = jnp.where(jnp.isnan(increment), -jnp.inf, increment)
        chosen = systematic(noise.choose, increment)
        z, at_z = jax.tree.map(lambda leaf: leaf[chosen], (z, at_z))
        z, at_z, _ = move_particles(noise.move, z, at_z, path, level, inner, step_size)
        return (z, at_z), (z, at_z, increment)

    leading = (plan.step_size.shape[0], num_particles)
    noise = ParticleNoise.draw(key_down, inner, leading, dim, top.dtype)
    below = jax.tree.map(lambda leaf: leaf[:-1], plan.levels)
    inputs = (noise, below, plan.edges, plan.step_size)
    _, outputs = jax.lax.scan(down, (top, at_top), inputs, reverse=True)
    position, evaluation, increment = outputs
    position, evaluation = jax.tree.map(
        lambda rest, last: jnp.concatenate([rest, last[None]]),
        (position, evaluation),
        (top, at_top),
    )
    return Pilot(position, evaluation, increment)


def _pilot_settings(
    variance: jax.Array, method: Method, prior: PriorCurvature
) -> Settings:
    """Tweedie's means along a ladder whose small end is fine enough for this c."""
    times = jnp.asarray(method.times, prior.curvature.dtype)
    if method.follows_likelihood and len(method.times) > 2:
        noise = noise_to_signal(times[1:])
        smallest = jnp.minimum(PART_OF_NOISE * jnp.sqrt(variance), noise[0])
        part = jnp.linspace(0.0, 1.0, len(noise))
        finer = smallest ** (1.0 - part) * noise[-1] ** part
        inside = time_from_noise_to_signal(finer[:-1])
        times = jnp.concatenate([times[:1], inside, times[-1:]])
    curvature = prior.at(times)
    step_size = _first_step_size(method, prior.curvature.shape[1])
    return analytic_settings(
        times,
        variance,
        curvature,
        step_size,
        swap_share=method.first_swap_share,
        dense=method.dense,
    )


def _first_step_size(method: Method, dim: int) -> float:
    if method.step_size is not None:
        return method.step_size
    return _FIRST_STEP_SIZE * min(1.0, (dim / _FEW_DIMENSIONS) ** -(1.0 / 6.0))


def _total_spread(increment: jax.Array) -> jax.Array:
    """Sum over the edges of the standard deviations of their log-weight increments.

    Not bounded: once levels have moved to equal rejection the sum is what counts, and a
    c so small that one edge holds everything must not look good.
    """
    return jnp.sum(jnp.std(without_lost(increment), axis=1))


def _largest_as_good(place: jax.Array, spread: jax.Array, factor) -> jax.Array:
    """Up to where the spread, interpolated in logarithms, exceeds its least by this."""
    limit = jnp.log(factor * jnp.min(spread))
    last = len(place) - 1 - jnp.argmax((jnp.log(spread) <= limit)[::-1])
    above = jnp.minimum(last + 1, len(place) - 1)
    here, there = jnp.log(spread[last]), jnp.log(spread[above])
    part = jnp.where(there > limit, (limit - here) / (there - here), 0.0)
    return place[last] + part * (place[above] - place[last])
