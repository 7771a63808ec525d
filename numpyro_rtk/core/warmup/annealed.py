r"""Warm-up of the annealed kernels, from nothing to frozen settings.

1. *The likelihood's variance* c: 64 runs down for each value of a grid; the one whose log
   weights vary least, and the values below it, are worth trying.
2. *Trials*: fresh runs alone favour too large a c (they do not see the modes that it
   misses), so the first half of warm-up tries those values in turn on the chain, and
   keeps the one with the highest acceptance.
3. *Step sizes* follow the inner steps' acceptance, and the *frame* of the ordinary sites
   their draws in three windows (``adapt.py``).

All of it is pure and knows no model and no network: a run is a function of a key and c.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.annealed import Run
from numpyro_rtk.core.inner import InnerSampler
from numpyro_rtk.core.multistep import Multistep
from numpyro_rtk.core.resampling import without_lost
from numpyro_rtk.core.warmup.adapt import (
    Frame,
    Moments,
    StepSize,
    Trials,
    adapt_step_size,
    best_trial,
    followed,
    no_draws,
    record_trial,
)

__all__ = [
    "NUM_PILOT",
    "AnnealedAdapt",
    "AnnealedMethod",
    "RunOf",
    "first_adaptation",
    "learn",
    "pick_start",
    "pilot",
]

# Values of c, on the standardised scale, and runs of the pilot for each of them.
_VARIANCES, _NUM_RUNS = np.geomspace(1e-4, 10.0, 11), 64
NUM_PILOT = _NUM_RUNS * len(_VARIANCES)
# The pilot's value and those below it that the chain tries.
_NUM_TRIALS = 4

RunOf = Callable[[jax.Array, jax.Array], Run]
"""``(key, c) -> Run``: one run down with that variance of the likelihood."""


class AnnealedMethod(NamedTuple):
    """What the user chose; static.

    Attributes:
        inner: the inner sampler.
        num_segments: K.
        step_size: of the inner steps; None: adapted.
        target_accept_prob: aim of that.
        has_likelihood: whether there is a c to choose.
        is_corrected: whether draws are accepted or refused, or raw runs.
    """

    inner: InnerSampler
    num_segments: int
    step_size: float | None
    target_accept_prob: float
    has_likelihood: bool
    is_corrected: bool


class AnnealedAdapt(NamedTuple):
    """What warm-up tunes; frozen afterwards.

    Attributes:
        steps: step sizes and their running average.
        second_moment: the prior's mean squared score, ``(K + 1, dim)``.
        multistep: the fitted predictor; None where there is none.
        likelihood_variance: c of the posterior path, on the standardised scale.
        trials: warm-up's comparison of values for it.
        frame: what positions and log densities are measured from.
        moments: running moments of their draws.
    """

    steps: StepSize
    second_moment: jax.Array
    multistep: Multistep | None
    likelihood_variance: jax.Array
    trials: Trials
    frame: Frame
    moments: Moments


_Adapt = TypeVar("_Adapt", bound=AnnealedAdapt)

# -- before the first draw -----------------------------------------------------------


def first_adaptation(
    method: AnnealedMethod,
    second_moment: jax.Array,
    multistep: Multistep | None,
    frame: Frame,
) -> AnnealedAdapt:
    """What the pilot runs with.

    Args:
        method: see :class:`AnnealedMethod`.
        second_moment: see :class:`AnnealedAdapt`.
        multistep: the fitted predictor, if runs use one.
        frame: that the path is in.
    """
    dtype, dim = second_moment.dtype, second_moment.shape[1]
    size = method.step_size
    if size is None:
        size = _first_step_size(method.inner, dim, multistep is not None)
    step_size = jnp.full(method.num_segments, size, dtype)
    return AnnealedAdapt(
        steps=StepSize(step_size, jnp.log(step_size)),
        second_moment=second_moment,
        multistep=multistep,
        likelihood_variance=jnp.ones((), dtype),
        trials=Trials(*jnp.zeros((3, _NUM_TRIALS), dtype)),
        frame=frame,
        moments=no_draws(frame.loc),
    )


def _first_step_size(inner: InnerSampler, dim: int, is_predicted: bool) -> float:
    # the optimal scaling of MALA and short HMC falls about so with dimension
    unadjusted = 0.2 if is_predicted else 0.3
    scaled = 0.7 * (dim / 10.0) ** -0.25 if inner.is_adjusted else unadjusted
    return float(np.clip(scaled, 0.05, 1.0))


def pilot(
    key: jax.Array, run: RunOf, adapt: _Adapt, method: AnnealedMethod
) -> tuple[_Adapt, Run]:
    """Values of c worth trying, largest first, and the runs of the first.

    That is the grid value whose runs have the steadiest log weights.

    Args:
        key: PRNG key.
        run: see :data:`RunOf`.
        adapt: as :func:`first_adaptation` leaves it.
        method: see :class:`AnnealedMethod`.

    Returns:
        The adaptation with the values, the second in force (what runs without warm-up
        keep), and the runs, leading axis 64.
    """

    def runs(variance):
        return jax.vmap(lambda k: run(k, variance))(jr.split(key, _NUM_RUNS))

    if method.has_likelihood:
        grid = jnp.asarray(_VARIANCES, adapt.second_moment.dtype)
        all_runs = jax.lax.map(runs, grid)
        best = jnp.argmin(jax.vmap(_unsteadiness)(all_runs.log_weight))
        values = grid[jnp.maximum(best - jnp.arange(_NUM_TRIALS), 0)]
        found = jax.tree.map(lambda leaf: leaf[best], all_runs)
    else:
        one = adapt.likelihood_variance
        values, found = jnp.full(_NUM_TRIALS, one), runs(one)
    trials = adapt.trials._replace(values=values)
    return adapt._replace(likelihood_variance=values[1], trials=trials), found


def _unsteadiness(log_weight: jax.Array) -> jax.Array:
    """Variance of the log weights; infinite where all runs died."""
    any_alive = jnp.any(jnp.isfinite(log_weight))
    return jnp.where(any_alive, jnp.var(without_lost(log_weight)), jnp.inf)


def pick_start(key: jax.Array, runs: Run) -> tuple[jax.Array, jax.Array]:
    """The end of a run in proportion to its weight, and whether any has a density."""
    usable = jnp.isfinite(runs.evaluation.log_density)
    weight = jnp.where(usable, runs.log_weight, -jnp.inf)
    # where every weight vanished but points have density, start at one of those
    weight = jnp.where(
        jnp.any(jnp.isfinite(weight)), weight, jnp.where(usable, 0.0, -jnp.inf)
    )
    return runs.position[jr.categorical(key, weight)], jnp.any(usable)


# -- draw after draw -----------------------------------------------------------------


def learn(
    adapt: _Adapt,
    method: AnnealedMethod,
    num_warmup: int,
    iteration: jax.Array,
    accept_prob: jax.Array,
    inner_accept_prob: jax.Array,
    ordinary: jax.Array,
    has_prior: np.ndarray,
) -> _Adapt:
    """One draw of one chain.

    Args:
        adapt: so far.
        method: see :class:`AnnealedMethod`.
        num_warmup: draws of warm-up; beyond it nothing changes.
        iteration: of the draw, from 0.
        accept_prob: of the draw.
        inner_accept_prob: of its inner steps, ``(K,)``; NaN where a segment has none.
        ordinary: ordinary sites of the draw, unconstrained, ``(num_ordinary,)``.
        has_prior: which of them have a prior that the frame was taken from.
    """
    new = adapt
    if method.step_size is None and method.inner.is_adjusted:
        steps = adapt_step_size(
            adapt.steps,
            inner_accept_prob,
            method.target_accept_prob,
            iteration,
            num_warmup,
            method.inner.largest_step,
        )
        new = new._replace(steps=steps)
    if method.is_corrected:
        if method.has_likelihood:
            new = _try_variances(new, num_warmup, iteration, accept_prob)
        if ordinary.size:
            frame, moments = followed(
                new.frame, new.moments, num_warmup, iteration, ordinary, has_prior
            )
            new = new._replace(frame=frame, moments=moments)
    in_warmup = iteration < num_warmup
    return jax.tree.map(partial(jnp.where, in_warmup), new, adapt)


def _try_variances(
    adapt: _Adapt, num_warmup: int, iteration: jax.Array, accept_prob: jax.Array
) -> _Adapt:
    """First half of warm-up: use each value of c in turn; then keep the best."""
    last = (num_warmup // 2 // _NUM_TRIALS) * _NUM_TRIALS
    if last == 0:
        return adapt
    # the very first draw is made with the value for runs without warm-up
    is_trial = (iteration > 0) & (iteration < last)
    tried = record_trial(adapt.trials, iteration % _NUM_TRIALS, accept_prob)
    trials = jax.tree.map(partial(jnp.where, is_trial), tried, adapt.trials)
    following = trials.values[(iteration + 1) % _NUM_TRIALS]
    variance = jnp.where(iteration + 1 < last, following, best_trial(trials))
    return adapt._replace(trials=trials, likelihood_variance=variance)
