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
    "NUM_RUNS",
    "ParticleAdapt",
    "RunOf",
    "choose_variance",
    "first_path",
    "plan_at",
]

# Values of c, on the standardised scale, and runs down for each; runs that a chain's first
# path is taken from.
_VARIANCES, _NUM_TRIALS = np.geomspace(1e-4, 10.0, 6), 8
NUM_RUNS = 4
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


def choose_variance(key: jax.Array, run: RunOf) -> jax.Array:
    """The c.

    Args:
        key: PRNG key.
        run: see :data:`RunOf`.
    """
    keys = jr.split(key, _NUM_TRIALS)
    grid = jnp.asarray(_VARIANCES, jnp.result_type(float))
    log_evidence = jax.lax.map(lambda c: _runs(keys, run, c)[1], grid)
    # of all runs, so that a c whose every run was lost does not look good
    counted = without_lost(jnp.ravel(log_evidence)).reshape(log_evidence.shape)
    mean = jnp.mean(counted, axis=1)
    return grid[jnp.argmax(mean >= jnp.max(mean) - _AS_GOOD)]


def first_path(
    key: jax.Array, run: RunOf, likelihood_variance: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A path that came down, of several runs in proportion to their evidence.

    Args:
        key: PRNG key.
        run: see :data:`RunOf`.
        likelihood_variance: c.

    Returns:
        The path ``(K + 1, dim)``, and whether any run has found a density.
    """
    key_runs, key_pick = jr.split(key)
    paths, weight = _runs(jr.split(key_runs, NUM_RUNS), run, likelihood_variance)
    any_usable = jnp.any(jnp.isfinite(weight))
    return paths[
        jr.categorical(key_pick, jnp.where(any_usable, weight, 0.0))
    ], any_usable


def _runs(keys, run: RunOf, likelihood_variance) -> tuple[jax.Array, jax.Array]:
    """Paths of runs, and the log evidence of each, -inf where its path has no density."""
    found = jax.vmap(lambda key: run(key, likelihood_variance))(keys)
    usable = jnp.isfinite(found.log_likelihood + found.log_density)
    return found.path, jnp.where(usable, found.log_evidence, -jnp.inf)
