"""Warm-up of particle Gibbs: how particles look ahead, where the path starts, the frame.

The likelihood's curvature says how, where it is about the same everywhere; else one number
c, a variance of the likelihood in all directions. With c too large particles follow the
likelihood of blurred guesses, and a narrow mode is left for a wide one before it can be
seen: nothing that comes down says so. With c too small they come down blind. Both make the
estimate of the evidence vary, and a mode that is missed makes it small; so the *smallest* c
is taken at which it is about as large as at any; and the curvature only where with it the
evidence is as large.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.particle_plan import ParticlePlan, plan_of_rows, segments_of
from numpyro_rtk.core.particles import Sweep
from numpyro_rtk.core.resampling import without_lost
from numpyro_rtk.core.segment import Segment
from numpyro_rtk.core.twist import Sharpness
from numpyro_rtk.core.warmup.adapt import Frame, Moments
from numpyro_rtk.core.warmup.prior_spread import PriorSpread
from numpyro_rtk.noise import (
    noise_to_signal,
    refined,
    time_from_noise_to_signal,
)

__all__ = [
    "NUM_CHOICE_RUNS",
    "NUM_RUNS",
    "ParticleAdapt",
    "RunOf",
    "choose_sharpness",
    "first_path",
    "law_gap",
    "plan_at",
]

# Values of c, on the standardised scale, at the first of which particles come down blind,
# and runs down for each and for the curvature; runs that a chain's first path is taken
# from. A run is lost where it ends beyond so many spreads of the prior; log evidence that
# it counts with where the best trial is looked for.
_BLIND, _SMALLEST_C, _NUM_TRIALS = 1e-12, 1e-6, 8
_VARIANCES = np.append(_BLIND, np.geomspace(_SMALLEST_C, 1.0, 7))
_FAR, _LOST = 100.0, -1e30
NUM_RUNS = 4
NUM_CHOICE_RUNS = _NUM_TRIALS * (len(_VARIANCES) + 1)
# Nats of mean log evidence that a smaller c may cost.
_AS_GOOD = 0.25
# The smallest noise of a ladder, as a part of the likelihood's standard deviation; and one
# level in so many is spent on noise below the first one's.
_PART_OF_NOISE, _FINE = 0.3, 5

RunOf = Callable[[jax.Array, Sharpness], Sweep]
"""``(key, sharpness) -> Sweep``: one plain run down."""


class ParticleAdapt(NamedTuple):
    """What warm-up tunes; frozen afterwards.

    Attributes:
        likelihood_variance: c of the twist, on the standardised scale, of each row,
            ``(R,)``; where it has the likelihood's curvature, the least variance that one
            direction is known to.
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
    sharpness: Sharpness,
    *,
    follows_likelihood: bool,
) -> ParticlePlan:
    """The plan of a ladder, which is one for all rows.

    Args:
        prior: what the reverse kernels' covariances are measured by.
        times: the ladder, ``(K + 1,)``.
        sharpness: of each row, see :class:`Sharpness`.
        follows_likelihood: whether a part of the levels is spent on smaller noise where
            the likelihood is more precise than the ladder's first level.
    """
    num_fine = (len(times) - 1) // _FINE
    if follows_likelihood and num_fine:
        noise = noise_to_signal(times[1:])
        # blind particles say nothing of how precise the likelihood is
        is_blind = sharpness.is_even & (sharpness.variance <= _BLIND)
        variance = jnp.where(is_blind, _SMALLEST_C, sharpness.variance)
        smallest = _PART_OF_NOISE * jnp.sqrt(jnp.min(variance))
        # the rest keeps the ladder's shape: levels far apart would spoil the law of draws
        place = jnp.linspace(0.0, len(noise) - 1.0, len(noise) - num_fine)
        coarse = jnp.interp(place, jnp.arange(len(noise)), jnp.log(noise))
        part = jnp.arange(num_fine) / num_fine
        fine = (1.0 - part) * jnp.log(smallest) + part * jnp.log(noise[0])
        finer = time_from_noise_to_signal(jnp.exp(jnp.concatenate([fine, coarse])))
        finer = jnp.concatenate([times[:1], finer[:-1], times[-1:]])
        times = jnp.where(smallest < noise[0], finer, times)
    return plan_of_rows(times, prior.unknown(times), sharpness)


def law_gap(prior: PriorSpread, plan: ParticlePlan) -> jax.Array:
    r"""About how far the law that a network draws on a ladder is from that on a fine one.

    Of one row: nats of the Kullback-Leibler divergence of the chains' paths, of which the
    draws are a part: theirs is less. With exact scores the finest ladder draws the data's
    law. A segment's best Gaussian loses :math:`\tfrac12\log\det(I - v\,E[ss^T])`, up to
    what all ladders have in common, and the loss falls with the square of a segment's
    length. Averaged over data that the model itself would give it holds for posteriors too.

    An estimate: in tests within a third for 8 levels and more; for fewer it can be far
    too small.

    Args:
        prior: what the reverse kernels' covariances are measured by.
        plan: of the ladder.
    """
    finer = refined(refined(plan.levels.time))
    quarters = segments_of(finer, prior.unknown(finer))
    # an estimate below 0 says as much of its error
    one_row = jax.tree.map(lambda leaf: leaf[:, 0], plan.segments)
    return jnp.abs(16.0 / 15.0 * (_loss(one_row) - _loss(quarters)))


def _loss(segments: Segment) -> jax.Array:
    dim = segments.shift.shape[-1]
    widest = segments.v / jnp.square(segments.a)
    return jnp.sum(segments.log_det - 0.5 * dim * jnp.log(widest))


class Ends(NamedTuple):
    """Where the runs of one trial have ended.

    Attributes:
        position: ``(n, R, dim)``; the prior's mean for one that was lost.
        log_evidence: mean over the runs, ``(R,)``.
    """

    position: jax.Array
    log_evidence: jax.Array


def choose_sharpness(
    key: jax.Array,
    run: RunOf,
    shape: tuple[int, int],
    even: Callable[[jax.Array], Sharpness],
    sharpness_at: Callable[[jax.Array], Sharpness] | None,
) -> Sharpness:
    """What twists take the likelihood for.

    At first alike in all directions, by decades of c; then with its curvature where the
    best of these runs have ended, which is taken where it is about as good as any. Else it
    is the smallest such c. For each row what is best for it.

    Args:
        key: PRNG key.
        run: see :data:`RunOf`.
        shape: of a position, ``(R, dim)``.
        even: the sharpness of c.
        sharpness_at: that of the likelihood, from positions ``(n, R, dim)``; None: it has
            no second derivative.
    """
    keys, dtype = jr.split(key, _NUM_TRIALS), jnp.result_type(float)
    grid, num_even = jnp.asarray(_VARIANCES, dtype), len(_VARIANCES)
    curved = sharpness_at or (lambda position: even(grid[0]))

    def trial(best: Ends, i):
        by_c = lambda: even(grid[jnp.minimum(i, num_even - 1)])
        sharpness = jax.lax.cond(i < num_even, by_c, lambda: curved(best.position))
        paths, log_evidence = _runs(keys, lambda key: run(key, sharpness))
        is_lost = ~jnp.all(jnp.abs(paths[:, 0]) < _FAR, axis=2, keepdims=True)
        ends = jnp.where(is_lost, 0.0, paths[:, 0])
        here = Ends(ends, jnp.mean(jnp.maximum(log_evidence, _LOST), axis=0))
        better = here.log_evidence > best.log_evidence
        best = Ends(
            jnp.where(better[None, :, None], here.position, best.position),
            jnp.maximum(here.log_evidence, best.log_evidence),
        )
        return best, (log_evidence, sharpness)

    nothing = jnp.full(shape[:1], -jnp.inf, dtype)
    first = Ends(jnp.zeros((_NUM_TRIALS, *shape), dtype), nothing)
    trials = jnp.arange(num_even + (sharpness_at is not None))
    _, (log_evidence, tried) = jax.lax.scan(trial, first, trials)
    chosen = jax.vmap(_best_trial, in_axes=(2, 1))(log_evidence, tried.is_even)
    return jax.tree.map(lambda leaf: leaf[chosen, jnp.arange(shape[0])], tried)


def _best_trial(log_evidence: jax.Array, is_even: jax.Array) -> jax.Array:
    """Of one row's trials: their evidences ``(trials, n)``, and which are by a c."""
    # of all runs, so that one whose every run was lost does not look good
    counted = without_lost(jnp.ravel(log_evidence)).reshape(log_evidence.shape)
    mean = jnp.mean(counted, axis=1)
    is_good = mean >= jnp.max(mean) - _AS_GOOD
    is_curved = is_good & ~is_even
    return jnp.argmax(jnp.where(jnp.any(is_curved), is_curved, is_good))


def first_path(
    key: jax.Array, run: Callable[[jax.Array], Sweep]
) -> tuple[jax.Array, jax.Array]:
    """A path that came down, of several runs in proportion to their evidence, by row.

    Args:
        key: PRNG key.
        run: ``key -> Sweep``, one plain run down.

    Returns:
        The path ``(K + 1, R, dim)``, and whether for every row some run has found a
        density.
    """
    key_runs, key_pick = jr.split(key)
    paths, weight = _runs(jr.split(key_runs, NUM_RUNS), run)
    is_usable = jnp.any(jnp.isfinite(weight), axis=0)
    weight = jnp.where(is_usable[None], weight, 0.0)
    chosen = jr.categorical(key_pick, weight, axis=0)
    path = paths[chosen, :, jnp.arange(len(chosen))]
    return jnp.swapaxes(path, 0, 1), jnp.all(is_usable)


def _runs(keys, run) -> tuple[jax.Array, jax.Array]:
    """Paths of runs, and the log evidence of each, -inf where its path has no density."""
    found = jax.vmap(run)(keys)
    usable = jnp.isfinite(found.log_likelihood + found.log_density)
    return found.path, jnp.where(usable, found.log_evidence, -jnp.inf)
