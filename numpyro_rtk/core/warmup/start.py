r"""Before the first draw: c, the population with it, and the settings from what it saw."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.annealed import Path
from numpyro_rtk.core.covariance import diagonal_of
from numpyro_rtk.core.exchange.modes import (
    Modes,
    empty_mode_tally,
    fit_modes,
    membership,
)
from numpyro_rtk.core.exchange.replicas import evaluate_all
from numpyro_rtk.core.resampling import some_of, systematic
from numpyro_rtk.core.warmup.adapt import Frame, no_draws
from numpyro_rtk.core.warmup.exchange import (
    FEW_DIMENSIONS,
    NARROWEST_MODE,
    Adaptation,
    Findings,
    Method,
    PriorCurvature,
)
from numpyro_rtk.core.warmup.levels import Barrier, levels_by_barrier, place_of
from numpyro_rtk.core.warmup.pilot import PART_OF_NOISE, choose_variance
from numpyro_rtk.core.warmup.population import (
    MOST_LEVELS,
    Descent,
    descend,
    narrowest_found,
    share_of,
)
from numpyro_rtk.core.warmup.settings import (
    LevelsOf,
    Settings,
    analytic_settings,
    next_settings,
    no_sweeps,
)
from numpyro_rtk.noise import noise_variance, signal

__all__ = ["first_adaptation", "noised_start", "starts_of"]

# A second population goes down with so much smaller a c: the pilot chooses for what its few
# particles see, and at its c a narrow mode may be lost on the way. Of modes of the second
# number's width, on the standardised scale, the narrowest that can be found beside them is
# to stand out. In more dimensions than these one that is any narrower is lost at every c.
_FINER, _USUAL_WIDTH = 0.1, 0.1
# No segment counts for less: levels must not leave a stretch without any.
_LEAST_SPREAD = 0.05
# Nats by which that one must find more, beyond the error, for its c to be taken.
_CLEARLY_MORE = 0.2
# Particles of each level that chains choose from. They are in the chains' shares of modes
# for long: few would make all chains err alike, and many cost nothing but memory; of that,
# so many numbers at most.
_MOST_KEPT, _MOST_NUMBERS = 1024, 2**24
_LEAST_KEPT = 16
# The smallest noise of the ladder at most; less where the likelihood is precise.
_SMALLEST_NOISE = 0.05


def first_adaptation(
    key: jax.Array,
    path: Path,
    levels_of: LevelsOf,
    method: Method,
    prior: PriorCurvature,
    frame: Frame,
    reference: Any,
) -> tuple[Adaptation, Descent]:
    """From nothing: choose c, send the population down, take the settings from it.

    Args:
        key: PRNG key.
        path: the intermediate targets.
        levels_of: levels of times and c.
        method: what the user chose.
        prior: curvature of the noised prior.
        frame: that the path is in.
        reference: the other blocks' values in a ``Gibbs`` block; None otherwise.

    Returns:
        The adaptation, and the population that chains start from.
    """
    key_pilot, key_down, key_modes = jr.split(key, 3)
    dtype = prior.curvature.dtype
    variance = jnp.ones((), dtype)
    if method.has_likelihood:
        variance = choose_variance(key_pilot, path, levels_of, method, prior)
    runs, variances = _populations(key_down, path, levels_of, method, prior, variance)
    chosen = _found_more(runs)
    found = jax.tree.map(lambda leaf: leaf[chosen], runs)
    settings = _settings_from(found, variances[chosen], method)
    curvature = diagonal_of(found.curvature)[found.num]
    points, found = _together(key_modes, runs, found)
    floor = NARROWEST_MODE / curvature
    modes = fit_modes(key_modes, points, floor, dense=method.dense)
    informed = 1.0 - prior.at(jnp.zeros(1, dtype))[0] / curvature
    findings = _findings_of(runs, modes, jnp.sum(jnp.maximum(informed, 0.0)))
    adapt = Adaptation(
        settings=settings,
        tally=no_sweeps(settings),
        modes=modes,
        regions=modes,
        mode_tally=empty_mode_tally(modes),
        found=findings,
        frame=frame,
        moments=no_draws(frame.loc),
        reference=reference,
    )
    return adapt, found


def _populations(
    key, path, levels_of, method: Method, prior: PriorCurvature, variance: jax.Array
) -> tuple[Descent, jax.Array]:
    """All that go down, with a leading axis, and the c of each."""
    dim = prior.curvature.shape[1]
    variances = variance[None]
    if method.num_populations(dim) == 2:
        # at a smaller c narrow modes stand out from earlier on
        width = _USUAL_WIDTH * narrowest_found(method.num_particles, dim)
        finer = jnp.minimum(_FINER * variance, width**2)
        variances = jnp.stack([variance, finer])
    horizon = jnp.asarray(method.times[-1], prior.curvature.dtype)

    def down(inputs):
        key, c = inputs
        smallest = jnp.minimum(PART_OF_NOISE * jnp.sqrt(c), _SMALLEST_NOISE)
        return descend(
            key,
            path,
            lambda t: levels_of(t, c),
            horizon,
            smallest,
            method.inner,
            method.num_particles,
            dim,
            dense=method.dense,
            thorough=dim <= FEW_DIMENSIONS,
            num_kept=_num_kept(method.num_particles, dim),
        )

    return jax.lax.map(down, (jr.split(key, len(variances)), variances)), variances


def _num_kept(num_particles: int, dim: int) -> int:
    """Particles to keep of each level, for chains to start from."""
    room = _MOST_NUMBERS // ((MOST_LEVELS + 1) * dim)
    return min(num_particles, _MOST_KEPT, max(room, _LEAST_KEPT))


def _found_more(runs: Descent) -> jax.Array:
    """Which run: the first, unless another found clearly more evidence."""
    value = jax.vmap(lambda run: run.log_evidence)(runs)
    error = jax.vmap(lambda run: run.log_evidence_error)(runs)
    gain = value - value[0]
    needed = _CLEARLY_MORE + jnp.sqrt(error**2 + error[0] ** 2)
    return jnp.argmax(jnp.where(gain > needed, gain, jnp.where(gain == 0.0, 0.0, -1.0)))


def _weights_of(value: jax.Array) -> jax.Array:
    """Of runs, by their log evidences; equal where none has found any."""
    return jax.nn.softmax(jnp.where(jnp.any(value > -jnp.inf), value, 0.0))


def _together(key, runs: Descent, found: Descent) -> tuple[jax.Array, Descent]:
    """Particles of all runs at level 0, each run by its evidence; chains start there.

    The mean of the runs' weighted particles is as unbiased as each of them.
    """
    value = jax.vmap(lambda run: run.log_evidence)(runs)
    num_runs, n, dim = runs.position.shape
    log_weight = jnp.repeat(jnp.log(_weights_of(value)), n)
    chosen = systematic(jr.uniform(key, dtype=log_weight.dtype), log_weight)
    chosen = chosen[jnp.linspace(0, len(chosen) - 1, n).astype(int)]
    points = runs.position.reshape(num_runs * n, dim)[chosen]
    return points, found._replace(
        kept=found.kept.at[found.num].set(some_of(points, found.kept.shape[1]))
    )


def _findings_of(runs: Descent, modes: Modes, num_informed: jax.Array) -> Findings:
    """Evidence and shares of all runs together, and what they may be off by."""
    value = jax.vmap(lambda run: run.log_evidence)(runs)
    error = jax.vmap(lambda run: run.log_evidence_error)(runs)
    weight = _weights_of(value)
    share, share_error = jax.vmap(
        lambda run: share_of(run, membership(modes, run.position))
    )(runs)
    mean = weight @ share
    # a run's share moves with its particles, and with the weight of the run
    parts = jnp.square(weight[:, None] * share_error) + jnp.square(
        (weight * error)[:, None] * (share - mean[None])
    )
    apart = jnp.max(jnp.abs(share - mean[None]), axis=0) / len(value)
    return Findings(
        log_evidence=jax.nn.logsumexp(value) - np.log(len(value)),
        log_evidence_error=jnp.sqrt(jnp.sum(jnp.square(weight * error))),
        share=mean,
        share_error=jnp.maximum(jnp.sqrt(jnp.sum(parts, axis=0)), apart),
        num_levels=jnp.max(runs.num),
        num_ancestors=jnp.max(jax.vmap(lambda run: run.num_ancestors)(runs)),
        num_informed=num_informed,
        num_evals=jnp.sum(runs.num_evals),
    )


def _settings_from(found: Descent, variance: jax.Array, method: Method) -> Settings:
    """Levels at equal shares of the population's barrier, and what they look like."""
    barrier = _barrier_of(found)
    times = jnp.asarray(method.times, found.times.dtype)
    if method.adapt_ladder:
        times = levels_by_barrier(barrier, variance, len(method.times))
    nearest = _nearest(found, times, variance)
    curvature = found.curvature[nearest]
    step_size = found.step_size
    if method.step_size is not None:
        step_size = method.step_size
    settings = analytic_settings(
        times,
        variance,
        diagonal_of(curvature),
        step_size,
        swap_share=method.first_swap_share,
        dense=method.dense,
    )
    total = jnp.interp(times, barrier.times, barrier.log_ratio)
    settings = settings._replace(
        curvature=curvature[:-1], log_ratio=-jnp.diff(total), barrier=barrier
    )
    # nothing is counted yet: this only takes the roots
    return next_settings(settings, no_sweeps(settings), move_levels=False)


def _barrier_of(found: Descent) -> Barrier:
    """Upwards; what does not count lies at level 0."""
    counts = jnp.arange(len(found.spread)) < found.num
    share = jnp.where(counts, jnp.maximum(found.spread, _LEAST_SPREAD), 0.0)
    zero = jnp.zeros(1, share.dtype)
    height = jnp.concatenate([zero, jnp.cumsum(share[::-1])])
    ratio = jnp.concatenate(
        [zero, jnp.cumsum(jnp.where(counts, found.log_ratio, 0.0)[::-1])]
    )
    return Barrier(found.times[::-1], height, -ratio)


def _nearest(found: Descent, times: jax.Array, variance: jax.Array) -> jax.Array:
    """Index of the population's level next to each time."""
    counts = jnp.arange(len(found.times)) <= found.num
    theirs = jnp.where(counts, place_of(found.times, variance), jnp.inf)
    apart = jnp.abs(place_of(times, variance)[:, None] - theirs[None])
    return jnp.argmin(apart, axis=1)


def starts_of(key: jax.Array, found: Descent, settings: Settings) -> jax.Array:
    """Replicas of one chain, ``(K + 1, dim)``: an own particle at every level."""
    nearest = _nearest(found, settings.times, settings.likelihood_variance)
    chosen = jr.randint(key, nearest.shape, 0, found.kept.shape[1])
    # the same clean guess, so the same likelihood
    ratio = jnp.exp(found.times[nearest] - settings.times)
    return found.kept[nearest, chosen] * ratio[:, None]


def noised_start(
    key: jax.Array, start: jax.Array, replicas: jax.Array, path: Path, levels: Any
) -> jax.Array:
    """The user's start at level 0, and with each level's noise above it, ``(K + 1, dim)``.

    Where that has no density the population's particle stays.

    Args:
        key: PRNG key.
        start: standardised, ``(dim,)``.
        replicas: the population's, ``(K + 1, dim)``.
        path: the intermediate targets.
        levels: their levels, with the times in ``t``.
    """
    t = levels.t[:, None]
    noise = jr.normal(key, replicas.shape, replicas.dtype).at[0].set(0.0)
    noised = signal(t) * start + jnp.sqrt(noise_variance(t)) * noise
    usable = jnp.isfinite(evaluate_all(path, levels, noised).log_density)
    return jnp.where(usable.at[0].set(True)[:, None], noised, replicas)
