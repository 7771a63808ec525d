r"""Warm-up of the replica exchange, from nothing to frozen settings.

1. *The likelihood's variance* c: a small pilot goes down a ladder for each of a grid, and
   the one that varies least on the way is taken.
2. *The population* (``population.py``) goes down with that c. What it saw, all of it, sets
   the levels, the local spreads, the mixture that jumps propose, and where every chain
   starts; its evidence and its shares of modes are kept, to hold the run against.
3. *Windows* of draws then fit what the exchange needs more exactly (``ladder.py``).

All of it is pure, knows no model and no network, and is shared by vectorised chains.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.adapt import (
    Frame,
    Moments,
    adapt_step_size,
    add_draw,
    no_draws,
    wider_reference,
)
from numpyro_rtk.core.annealed import Path
from numpyro_rtk.core.covariance import diagonal_of
from numpyro_rtk.core.exchange import ExchangePlan, SweepInfo
from numpyro_rtk.core.inner import InnerSampler
from numpyro_rtk.core.ladder import (
    LEAST_SHARE,
    Barrier,
    LadderAdapt,
    Tally,
    add_sweep,
    edges_of,
    empty_tally,
    first_settings,
    levels_by_barrier,
    next_settings,
    place_of,
)
from numpyro_rtk.core.modes import (
    Modes,
    ModeTally,
    add_draws,
    empty_mode_tally,
    fit_modes,
    membership,
    moved_modes,
    refit_modes,
)
from numpyro_rtk.core.pilot import population_down
from numpyro_rtk.core.population import (
    Descent,
    descend,
    narrowest_found,
    share_of,
    some_of,
    systematic,
)
from numpyro_rtk.core.segment import segment_between
from numpyro_rtk.noise import noise_to_signal, time_from_noise_to_signal

__all__ = [
    "NUM_PILOT",
    "NUM_PILOTS",
    "Adaptation",
    "Findings",
    "Method",
    "Prior",
    "first_adaptation",
    "learn",
    "plan_of",
    "starts_of",
]

# The pilots that choose the likelihood's variance c, on the standardised scale: so many
# over the whole range, then as many beside what they found. How hard a ladder is falls
# slowly up to the best c and rises steeply beyond; far apart they miss it by much.
_VARIANCES, _NUM_BESIDE = (1e-9, 10.0), 8
NUM_PILOTS, NUM_PILOT = 2 * _NUM_BESIDE, 64
# Of those as good as the best, up to these factors, the largest c is taken: on the slow
# side one of several is the best by chance, and may be smaller by orders of magnitude.
_AS_GOOD = (1.2, 1.05)
# A second population goes down with so much smaller a c: the pilot chooses for what its few
# particles see, and at its c a narrow mode may be lost on the way. Of modes of the second
# number's width, on the standardised scale, the narrowest that can be found beside them is
# to stand out. In more dimensions than these one that is any narrower is lost at every c.
_FINER, _USUAL_WIDTH = 0.1, 0.1
_FEW_DIMENSIONS = 10
# No segment counts as easier: levels must not leave a stretch without any.
_LEAST_SPREAD = 0.05
# Nats by which that one must find more, beyond the error, for its c to be taken.
_CLEARLY_MORE = 0.2
# Particles of each level that chains choose from. They are in the chains' shares of modes
# for long: few would make all chains err alike, and many cost nothing but memory.
_MOST_KEPT = 1024
# The smallest noise of a ladder, as a part of the likelihood's standard deviation.
_PART_OF_NOISE = 0.3
_SMALLEST_NOISE = 0.05
# Windows of warm-up end at these fractions of it; the levels stay after `_LAST_MOVE`, the
# proposals go on to be fitted, and what is left measures the acceptance.
_WINDOW_ENDS = (0.06, 0.11, 0.16, 0.22, 0.29, 0.36, 0.64, 0.92)
_LAST_MOVE = 0.37
_LAST_TRY = 0.9
# Variances of modes are not believed below this part of the local spread's square.
_NARROWEST_MODE = 0.01

LevelsOf = Callable[[jax.Array, jax.Array], Any]
"""``(times, c) -> levels``, a pytree with the leading axes of the times."""


class Method(NamedTuple):
    """What the user chose; static.

    Attributes:
        inner: sampler of the local moves.
        times: the first ladder, ``(K + 1,)``.
        follows_likelihood: whether that ladder's small end may follow the likelihood.
        adapt_ladder: whether warm-up moves the levels.
        exchange: ``"best"``, ``"rtk"`` or ``"swap"``.
        dense: whether covariances are matrices.
        step_size: of the local moves; None: adapted.
        target_accept_prob: aim of that.
        num_particles: of the population.
        has_likelihood: whether there is a c to choose.
    """

    inner: InnerSampler
    times: np.ndarray
    follows_likelihood: bool
    adapt_ladder: bool
    exchange: str
    dense: bool
    step_size: float | None
    target_accept_prob: float
    num_particles: int
    has_likelihood: bool

    @property
    def first_swap_share(self) -> float:
        """How often edges try the plain swap before anything is known of them."""
        return {"best": LEAST_SHARE, "rtk": 0.0, "swap": 1.0}[self.exchange]

    def num_populations(self, dim: int) -> int:
        """How many go down; see the constants above."""
        return 2 if self.has_likelihood and dim <= _FEW_DIMENSIONS else 1


class Prior(NamedTuple):
    """Mean squared scores of the noised prior, ``(n, dim)``, at ``times`` ``(n,)``."""

    times: jax.Array
    curvature: jax.Array

    def at(self, times: jax.Array) -> jax.Array:
        """Between them, ``(m, dim)``; constant beyond."""
        place = lambda t: jnp.log(noise_to_signal(t) + 1e-6)
        one = lambda row: jnp.interp(place(times), place(self.times), row)
        return jax.vmap(one, in_axes=1, out_axes=1)(self.curvature)


class Findings(NamedTuple):
    """What the population says of level 0, to hold the run against.

    Attributes:
        log_evidence: on the standardised scale.
        log_evidence_error: its standard error.
        share: of each component of :class:`Modes`, ``(M,)``.
        share_error: standard errors.
        num_levels: segments that it needed.
        num_ancestors: particles at the top that the last ones go back to.
        num_informed: directions in which the posterior is narrower than the prior.
        num_evals: evaluations spent.
    """

    log_evidence: jax.Array
    log_evidence_error: jax.Array
    share: jax.Array
    share_error: jax.Array
    num_levels: jax.Array
    num_ancestors: jax.Array
    num_informed: jax.Array
    num_evals: jax.Array


class Adaptation(NamedTuple):
    """What warm-up tunes; frozen afterwards.

    Attributes:
        settings: levels, proposals, local spreads; see ``ladder.py``.
        tally: sums of the present window.
        modes: what jumps propose.
        regions: the same as the population left it: what shares of modes are counted by.
        mode_tally: their sums of the present window.
        found: what the population found.
        frame: what positions and log densities are measured from.
        moments: running moments of their draws.
        reference: the other blocks' values that the levels above 0 are bound to, in a
            ``Gibbs`` block; None otherwise.
    """

    settings: LadderAdapt
    tally: Tally
    modes: Modes
    regions: Modes
    mode_tally: ModeTally
    found: Findings
    frame: Frame
    moments: Moments
    reference: Any


def plan_of(settings: LadderAdapt, levels_of: LevelsOf) -> ExchangePlan:
    """What sweeps need, from the settings."""
    return ExchangePlan(
        levels_of(settings.times, settings.likelihood_variance),
        edges_of(settings),
        settings.step_size,
        settings.scale,
        settings.swap_share,
    )


# -- before the first draw -----------------------------------------------------------


def first_adaptation(
    key: jax.Array,
    path: Path,
    levels_of: LevelsOf,
    method: Method,
    prior: Prior,
    frame: Frame,
    reference: Any,
) -> tuple[Adaptation, Descent]:
    """From nothing: choose c, send the population down, take the settings from it.

    Args:
        key: PRNG key.
        path: the intermediate targets.
        levels_of: see :data:`LevelsOf`.
        method: see :class:`Method`.
        prior: see :class:`Prior`.
        frame: that the path is in.
        reference: see :class:`Adaptation`.

    Returns:
        The adaptation, and the population that chains start from.
    """
    key_pilot, key_down, key_modes = jr.split(key, 3)
    dim, dtype = prior.curvature.shape[1], prior.curvature.dtype
    variance = jnp.ones((), dtype)
    if method.has_likelihood:
        variance = _choose_variance(key_pilot, path, levels_of, method, prior)
    variances = variance[None]
    if method.num_populations(dim) == 2:
        # at a smaller c narrow modes stand out from earlier on
        width = _USUAL_WIDTH * narrowest_found(method.num_particles, dim)
        finer = jnp.minimum(_FINER * variance, width**2)
        variances = jnp.stack([variance, finer])
    horizon = jnp.asarray(method.times[-1], dtype)

    def down(inputs):
        key, c = inputs
        smallest = jnp.minimum(_PART_OF_NOISE * jnp.sqrt(c), _SMALLEST_NOISE)
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
            thorough=dim <= _FEW_DIMENSIONS,
            num_kept=min(method.num_particles, _MOST_KEPT),
        )

    runs = jax.lax.map(down, (jr.split(key_down, len(variances)), variances))
    chosen = _found_more(runs)
    found = jax.tree.map(lambda leaf: leaf[chosen], runs)
    variance = variances[chosen]
    settings = _settings_from(found, variance, method)
    floor = _NARROWEST_MODE / diagonal_of(found.curvature)[found.num]
    points, found = _together(key_modes, runs, found)
    modes = fit_modes(key_modes, points, floor, dense=method.dense)
    informed = (
        1.0 - prior.at(jnp.zeros(1, dtype))[0] / diagonal_of(found.curvature)[found.num]
    )
    findings = _findings_of(runs, modes, jnp.sum(jnp.maximum(informed, 0.0)))
    adapt = Adaptation(
        settings=settings,
        tally=empty_tally(settings),
        modes=modes,
        regions=modes,
        mode_tally=empty_mode_tally(modes),
        found=findings,
        frame=frame,
        moments=no_draws(frame.loc),
        reference=reference,
    )
    return adapt, found


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


def _choose_variance(key, path, levels_of, method: Method, prior: Prior) -> jax.Array:
    """The c whose log-weight increments vary least down a ladder of K levels."""
    low, high = np.log(_VARIANCES)
    dtype = prior.curvature.dtype

    def pilot(inputs):
        key, variance = inputs
        settings = _pilot_settings(variance, method, prior)
        found = population_down(
            key, path, plan_of(settings, levels_of), method.inner, NUM_PILOT
        )
        return _hardness(found.work)

    def look(centre, inputs):
        key, width, as_good = inputs
        grid = centre + width * jnp.linspace(-1.0, 1.0, _NUM_BESIDE, dtype=dtype)
        # the same random numbers, so that the difference is that of c
        keys = jnp.broadcast_to(key, grid.shape)
        hardness = jax.lax.map(pilot, (keys, jnp.exp(grid)))
        return jnp.clip(_largest_as_good(grid, hardness, as_good), low, high), None

    widths = 0.5 * (high - low) * np.array([1.0, 2.0 / (_NUM_BESIDE - 1)])
    inputs = jr.split(key, 2), jnp.asarray(widths, dtype), jnp.asarray(_AS_GOOD, dtype)
    chosen, _ = jax.lax.scan(look, jnp.asarray(0.5 * (low + high), dtype), inputs)
    return jnp.exp(chosen)


def _pilot_settings(variance: jax.Array, method: Method, prior: Prior) -> LadderAdapt:
    """Tweedie's means along a ladder whose small end is fine enough for this c."""
    times = jnp.asarray(method.times, prior.curvature.dtype)
    if method.follows_likelihood and len(method.times) > 2:
        noise = noise_to_signal(times[1:])
        smallest = jnp.minimum(_PART_OF_NOISE * jnp.sqrt(variance), noise[0])
        part = jnp.linspace(0.0, 1.0, len(noise))
        finer = smallest ** (1.0 - part) * noise[-1] ** part
        inside = time_from_noise_to_signal(finer[:-1])
        times = jnp.concatenate([times[:1], inside, times[-1:]])
    curvature = prior.at(times)
    return _first_settings(
        times, variance, curvature, _first_step(method, prior), method
    )


def _first_step(method: Method, prior: Prior) -> float:
    if method.step_size is not None:
        return method.step_size
    return 0.8 * min(1.0, (prior.curvature.shape[1] / 4.0) ** -(1.0 / 6.0))


def _first_settings(times, variance, curvature, step_size, method: Method):
    """From curvatures of all levels, ``(K + 1, dim)``."""
    segments = segment_between(times[:-1], times[1:], curvature[1:])
    return first_settings(
        times,
        variance,
        segments.start_variance / segments.v[:, None],
        curvature[:-1],
        step_size,
        swap_share=method.first_swap_share,
        dense=method.dense,
    )


def _settings_from(found: Descent, variance: jax.Array, method: Method) -> LadderAdapt:
    """Levels at equal shares of what the population found hard, and what they look like."""
    barrier = _barrier_of(found)
    times = jnp.asarray(method.times, found.times.dtype)
    if method.adapt_ladder:
        times = levels_by_barrier(barrier, variance, len(method.times))
    nearest = _nearest(found, times, variance)
    curvature = found.curvature[nearest]
    step_size = found.step_size
    if method.step_size is not None:
        step_size = method.step_size
    settings = _first_settings(
        times, variance, diagonal_of(curvature), step_size, method
    )
    total = jnp.interp(times, barrier.times, barrier.log_ratio)
    settings = settings._replace(
        curvature=curvature[:-1], centre=-jnp.diff(total), barrier=barrier
    )
    # nothing is counted yet: this only takes the roots
    return next_settings(settings, empty_tally(settings), move_levels=False)


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


def starts_of(key: jax.Array, found: Descent, settings: LadderAdapt) -> jax.Array:
    """Replicas of one chain, ``(K + 1, dim)``: an own particle at every level."""
    nearest = _nearest(found, settings.times, settings.likelihood_variance)
    chosen = jr.randint(key, nearest.shape, 0, found.kept.shape[1])
    # the same clean guess, so the same likelihood
    ratio = jnp.exp(found.times[nearest] - settings.times)
    return found.kept[nearest, chosen] * ratio[:, None]


def _largest_as_good(place: jax.Array, hardness: jax.Array, factor) -> jax.Array:
    """Up to where the hardness, interpolated in logarithms, exceeds its least by this."""
    limit = jnp.log(factor * jnp.min(hardness))
    last = len(place) - 1 - jnp.argmax((jnp.log(hardness) <= limit)[::-1])
    above = jnp.minimum(last + 1, len(place) - 1)
    here, there = jnp.log(hardness[last]), jnp.log(hardness[above])
    part = jnp.where(there > limit, (limit - here) / (there - here), 0.0)
    return place[last] + part * (place[above] - place[last])


def _hardness(log_weight: jax.Array) -> jax.Array:
    """Sum over the edges of the standard deviations of the log-weight increments.

    Not bounded: once levels have moved to equal rejection the sum is what counts, and a
    c so small that one edge holds everything must not look easy.
    """
    alive = jnp.isfinite(log_weight)
    lowest = jnp.min(jnp.where(alive, log_weight, jnp.inf), axis=1, keepdims=True)
    floor = jnp.where(jnp.isfinite(lowest), lowest, 0.0) - 20.0
    return jnp.sum(jnp.std(jnp.where(alive, log_weight, floor), axis=1))


# -- windows of draws ----------------------------------------------------------------


def learn(
    adapt: Adaptation,
    method: Method,
    num_warmup: int,
    iteration: jax.Array,
    info: SweepInfo,
    scores: jax.Array,
    draws: jax.Array,
    ordinary: jax.Array,
    has_prior: np.ndarray,
) -> Adaptation:
    """One draw of all chains; a window that ends here gives new settings.

    Args:
        adapt: so far.
        method: see :class:`Method`.
        num_warmup: draws of warm-up; beyond it nothing changes.
        iteration: of the draw, from 0.
        info: of its sweeps, leading axes (sweeps, chains).
        scores: of the levels below the top after each, ``(sweeps, chains, K, dim)``.
        draws: positions at level 0, ``(chains, dim)``.
        ordinary: ordinary sites there, unconstrained, ``(chains, num_ordinary)``.
        has_prior: which of them have a prior that the reference was taken from.
    """
    if num_warmup == 0:
        return adapt
    ends = sorted({int(f * num_warmup) for f in _WINDOW_ENDS})
    ends = [end for end in ends if end > 1]

    def learned():
        new = _add(adapt, method, num_warmup, iteration, info, scores, draws, ordinary)
        if not ends:
            return new
        is_end = jnp.any(iteration + 1 == jnp.asarray(ends))
        end = lambda: _end_window(new, method, num_warmup, iteration, has_prior)
        return jax.lax.cond(is_end, end, lambda: new)

    return jax.lax.cond(iteration < num_warmup, learned, lambda: adapt)


def _add(adapt, method, num_warmup, iteration, info, scores, draws, ordinary):
    settings = adapt.settings
    # a few wild scores of a learned network must not set the scale of all
    spread = jnp.sqrt(diagonal_of(settings.curvature))
    scores = jnp.clip(scores, -10.0 * spread, 10.0 * spread)

    def add(tally, inputs):
        sweeps, states = inputs
        return add_sweep(tally, sweeps, states, settings.centre), None

    tally, _ = jax.lax.scan(add, adapt.tally, (info, scores))
    if method.step_size is None:
        steps = adapt_step_size(
            settings.steps,
            jnp.mean(info.local_accept_prob, axis=(0, 1)),
            method.target_accept_prob,
            iteration,
            num_warmup,
            method.inner.largest_step,
        )
        settings = settings._replace(steps=steps)
    moments = adapt.moments
    if ordinary.shape[1]:
        moments, _ = jax.lax.scan(
            lambda moments, value: (add_draw(moments, value), None), moments, ordinary
        )
    mode_tally = add_draws(adapt.mode_tally, adapt.modes, draws)
    return adapt._replace(
        settings=settings, tally=tally, moments=moments, mode_tally=mode_tally
    )


def _end_window(adapt: Adaptation, method: Method, num_warmup, iteration, has_prior):
    may_move = iteration < _LAST_MOVE * num_warmup
    settings = next_settings(
        adapt.settings,
        adapt.tally,
        move_levels=method.adapt_ladder & may_move,
        choose_kind=method.exchange == "best",
        explore=iteration < _LAST_TRY * num_warmup,
    )
    floor = _NARROWEST_MODE / diagonal_of(settings.curvature)[0]
    modes = refit_modes(adapt.modes, adapt.mode_tally, floor)
    frame, regions = adapt.frame, adapt.regions
    if len(has_prior):
        wider = wider_reference(adapt.moments, frame, has_prior)
        frame = jax.tree.map(partial(jnp.where, may_move), wider, frame)
        follow = lambda modes: _follow(modes, adapt.frame, frame)
        modes, regions = follow(modes), follow(regions)
    return adapt._replace(
        settings=settings,
        tally=jax.tree.map(jnp.zeros_like, adapt.tally),
        modes=modes,
        regions=regions,
        mode_tally=jax.tree.map(jnp.zeros_like, adapt.mode_tally),
        frame=frame,
        moments=jax.tree.map(jnp.zeros_like, adapt.moments),
    )


def _follow(modes: Modes, old: Frame, new: Frame) -> Modes:
    """The modes where the reference of the ordinary sites, which come last, has moved."""
    rest = jnp.zeros(modes.mean.shape[1] - old.loc.shape[0], old.loc.dtype)
    factor = jnp.concatenate([rest + 1.0, old.scale / new.scale])
    shift = jnp.concatenate([rest, (old.loc - new.loc) / new.scale])
    return moved_modes(modes, shift, factor)
