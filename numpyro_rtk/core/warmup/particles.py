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

from numpyro_rtk.core.particles import ParticlePlan, Sweep, particle_plan
from numpyro_rtk.core.resampling import without_lost
from numpyro_rtk.core.warmup.adapt import Frame, Moments
from numpyro_rtk.core.warmup.exchange import PriorCurvature
from numpyro_rtk.noise import noise_to_signal, time_from_noise_to_signal

__all__ = [
    "NUM_PILOT",
    "ParticleAdapt",
    "RunOf",
    "choose_variance",
    "plan_at",
]

# Values of c, on the standardised scale, and runs down for each.
_VARIANCES, _NUM_RUNS = np.geomspace(1e-4, 10.0, 6), 4
NUM_PILOT = _NUM_RUNS * len(_VARIANCES)
# Nats of mean log evidence that a smaller c may cost.
_AS_GOOD = 0.5
# The smallest noise of a ladder, as a part of the likelihood's standard deviation; and one
# level in so many is spent on noise below the first one's.
_PART_OF_NOISE, _FINE = 0.3, 5

RunOf = Callable[[jax.Array, jax.Array], Sweep]
"""``(key, c) -> Sweep``: one plain run down."""


class ParticleAdapt(NamedTuple):
    """What warm-up tunes; frozen afterwards.

    Attributes:
        likelihood_variance: c of the twist, on the standardised scale.
        prior: mean squared scores of the noised prior.
        frame: what positions and log densities are measured from.
        moments: running moments of the ordinary sites' draws.
    """

    likelihood_variance: jax.Array
    prior: PriorCurvature
    frame: Frame
    moments: Moments


def plan_at(
    prior: PriorCurvature, likelihood_variance: jax.Array, *, follows_likelihood: bool
) -> ParticlePlan:
    """The plan of the prior's ladder for a c.

    Args:
        prior: mean squared scores at the ladder's times.
        likelihood_variance: c.
        follows_likelihood: whether a part of the levels is spent on smaller noise where
            the likelihood is more precise than the ladder's first level.
    """
    times = prior.times
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
    return particle_plan(times, prior.at(times), likelihood_variance)


def choose_variance(
    key: jax.Array, run: RunOf
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The c, a path that came down with it, and whether any had a density.

    Args:
        key: PRNG key.
        run: see :data:`RunOf`.
    """
    key_runs, key_pick = jr.split(key)
    keys = jr.split(key_runs, _NUM_RUNS)

    def runs(variance):
        found = jax.vmap(lambda k: run(k, variance))(keys)
        usable = jnp.isfinite(found.log_likelihood + found.log_density)
        log_evidence = jnp.where(usable, found.log_evidence, -jnp.inf)
        return found.path, log_evidence

    grid = jnp.asarray(_VARIANCES, jnp.result_type(float))
    paths, log_evidence = jax.lax.map(runs, grid)
    # of all runs, so that a c whose every run was lost does not look good
    counted = without_lost(jnp.ravel(log_evidence)).reshape(log_evidence.shape)
    mean = jnp.mean(counted, axis=1)
    best = jnp.argmax(mean >= jnp.max(mean) - _AS_GOOD)
    weight = log_evidence[best]
    any_usable = jnp.any(jnp.isfinite(weight))
    chosen = jr.categorical(key_pick, jnp.where(any_usable, weight, 0.0))
    return grid[best], paths[best, chosen], any_usable
