"""Warm-up of particle Gibbs: the twist's constant c, where the path starts, the frame.

With c too large particles follow the likelihood of blurred guesses, and a narrow mode is
left for a wide one before it can be seen: nothing that comes down says so. With c too small
they come down blind. Both make the estimate of the evidence vary, and a mode that is missed
makes it small; so the *smallest* c is taken at which it is about as large as at any.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.covariance import inverse_rooted
from numpyro_rtk.core.particles import ParticlePlan, Sweep, particle_plan
from numpyro_rtk.core.resampling import without_lost
from numpyro_rtk.core.segment import Segment, segment_between
from numpyro_rtk.core.warmup.adapt import Frame, Moments
from numpyro_rtk.noise import (
    noise_to_signal,
    noise_variance,
    refined,
    time_from_noise_to_signal,
)

__all__ = [
    "NUM_CHOICE_RUNS",
    "NUM_RUNS",
    "ParticleAdapt",
    "PriorSpread",
    "RunOf",
    "choose_variance",
    "first_path",
    "law_gap",
    "plan_at",
]

# Values of c, on the standardised scale, and runs down for each; runs that a chain's first
# path is taken from.
_VARIANCES, _NUM_TRIALS = np.geomspace(1e-6, 1.0, 13), 8
NUM_RUNS = 4
NUM_CHOICE_RUNS = _NUM_TRIALS * len(_VARIANCES)
# Nats of mean log evidence that a smaller c may cost.
_AS_GOOD = 0.25
# The smallest noise of a ladder, as a part of the likelihood's standard deviation; and one
# level in so many is spent on noise below the first one's.
_PART_OF_NOISE, _FINE = 0.3, 5

RunOf = Callable[[jax.Array, jax.Array], Sweep]
"""``(key, c) -> Sweep``: one plain run down."""


class PriorSpread(NamedTuple):
    """What the reverse kernels' covariances are measured by.

    Inverses of mean products of the noised prior's scores. They are linear in the noise's
    variance for a Gaussian, and nearly so for others: between levels far apart, what is
    linear in the products themselves would make reverse kernels too narrow.

    Attributes:
        times: ``(n,)``.
        inverse: of ``E[score**2]``, ``(n, dim)``, or of ``E[s s^T]``, ``(n, dim, dim)``.
    """

    times: jax.Array
    inverse: jax.Array

    @classmethod
    def of(cls, times: jax.Array, second_moment: jax.Array) -> "PriorSpread":
        """From the mean products at the times, ``(n, dim)`` or ``(n, dim, dim)``."""
        return cls(jnp.asarray(times, second_moment.dtype), _inverse(second_moment))

    def second_moment(self, times: jax.Array) -> jax.Array:
        """The mean products between the times, ``(m, dim)`` or ``(m, dim, dim)``."""
        place = noise_variance(self.times)
        one = lambda row: jnp.interp(noise_variance(times), place, row)
        rows = self.inverse.reshape(len(self.times), -1)
        flat = jax.vmap(one, in_axes=1, out_axes=1)(rows)
        return _inverse(flat.reshape(len(times), *self.inverse.shape[1:]))


def _inverse(matrices: jax.Array) -> jax.Array:
    root = inverse_rooted(matrices)
    if matrices.ndim == 2:
        return jnp.square(root)
    return root @ jnp.swapaxes(root, -1, -2)


class ParticleAdapt(NamedTuple):
    """What warm-up tunes; frozen afterwards.

    Attributes:
        likelihood_variance: c of the twist, on the standardised scale.
        times: of the levels, in OU time, ``(K + 1,)``.
        law_gap: see :func:`law_gap`; 0 with an energy, whose law no ladder changes.
        frame: what positions and log densities are measured from.
        moments: running moments of the ordinary sites' draws.
    """

    likelihood_variance: jax.Array
    times: jax.Array
    law_gap: jax.Array
    frame: Frame
    moments: Moments


def plan_at(
    prior: PriorSpread,
    times: jax.Array,
    likelihood_variance: jax.Array,
    *,
    follows_likelihood: bool,
) -> ParticlePlan:
    """The plan of a ladder for a c.

    Args:
        prior: what the reverse kernels' covariances are measured by.
        times: the ladder, ``(K + 1,)``.
        likelihood_variance: c.
        follows_likelihood: whether a part of the levels is spent on smaller noise where
            the likelihood is more precise than the ladder's first level.
    """
    num_fine = (len(times) - 1) // _FINE
    if follows_likelihood and num_fine:
        noise = noise_to_signal(times[1:])
        smallest = _PART_OF_NOISE * jnp.sqrt(likelihood_variance)
        # the rest keeps the ladder's shape: levels far apart would spoil the law of draws
        place = jnp.linspace(0.0, len(noise) - 1.0, len(noise) - num_fine)
        coarse = jnp.interp(place, jnp.arange(len(noise)), jnp.log(noise))
        part = jnp.arange(num_fine) / num_fine
        fine = (1.0 - part) * jnp.log(smallest) + part * jnp.log(noise[0])
        finer = time_from_noise_to_signal(jnp.exp(jnp.concatenate([fine, coarse])))
        finer = jnp.concatenate([times[:1], finer[:-1], times[-1:]])
        times = jnp.where(smallest < noise[0], finer, times)
    return particle_plan(times, prior.second_moment(times), likelihood_variance)


def law_gap(prior: PriorSpread, plan: ParticlePlan) -> jax.Array:
    r"""About how far the law that a network draws on a ladder is from that on a fine one.

    Nats of the Kullback-Leibler divergence of the chains' paths, of which the draws are a
    part: theirs is less. With exact scores the finest ladder draws the data's law. A
    segment's best Gaussian loses :math:`\tfrac12\log\det(I - v\,E[ss^T])`, up to what all
    ladders have in common, and the loss falls with the square of a segment's length.
    Averaged over data that the model itself would give it holds for posteriors too.

    An estimate: in tests within a third for 8 levels and more; for fewer it can be far
    too small.

    Args:
        prior: what the reverse kernels' covariances are measured by.
        plan: of the ladder.
    """
    finer = refined(refined(plan.levels.time))
    quarters = segment_between(finer[:-1], finer[1:], prior.second_moment(finer[1:]))
    return 16.0 / 15.0 * (_loss(plan.segments) - _loss(quarters))


def _loss(segments: Segment) -> jax.Array:
    dim = segments.shift.shape[-1]
    widest = segments.v / jnp.square(segments.a)
    return jnp.sum(segments.log_det - 0.5 * dim * jnp.log(widest))


def choose_variance(key: jax.Array, run: RunOf) -> jax.Array:
    """The c.

    Args:
        key: PRNG key.
        run: see :data:`RunOf`.
    """
    keys = jr.split(key, _NUM_TRIALS)
    grid = jnp.asarray(_VARIANCES, jnp.result_type(float))
    log_evidence = jax.lax.map(lambda c: _runs(keys, lambda key: run(key, c))[1], grid)
    # of all runs, so that a c whose every run was lost does not look good
    counted = without_lost(jnp.ravel(log_evidence)).reshape(log_evidence.shape)
    mean = jnp.mean(counted, axis=1)
    return grid[jnp.argmax(mean >= jnp.max(mean) - _AS_GOOD)]


def first_path(
    key: jax.Array, run: Callable[[jax.Array], Sweep]
) -> tuple[jax.Array, jax.Array]:
    """A path that came down, of several runs in proportion to their evidence.

    Args:
        key: PRNG key.
        run: ``key -> Sweep``, one plain run down.

    Returns:
        The path ``(K + 1, dim)``, and whether any run has found a density.
    """
    key_runs, key_pick = jr.split(key)
    paths, weight = _runs(jr.split(key_runs, NUM_RUNS), run)
    any_usable = jnp.any(jnp.isfinite(weight))
    return paths[
        jr.categorical(key_pick, jnp.where(any_usable, weight, 0.0))
    ], any_usable


def _runs(keys, run) -> tuple[jax.Array, jax.Array]:
    """Paths of runs, and the log evidence of each, -inf where its path has no density."""
    found = jax.vmap(run)(keys)
    usable = jnp.isfinite(found.log_likelihood + found.log_density)
    return found.path, jnp.where(usable, found.log_evidence, -jnp.inf)
