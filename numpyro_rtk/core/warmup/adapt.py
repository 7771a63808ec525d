"""Warm-up: step sizes by stochastic approximation, and the frame of the ordinary sites.

Everything is a pure update of a NamedTuple, frozen once warm-up ends.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Frame",
    "Moments",
    "StepSize",
    "Trials",
    "adapt_step_size",
    "add_draw",
    "best_trial",
    "followed",
    "no_draws",
    "record_trial",
    "spread_of",
    "wider_reference",
]

_DECAY = 0.6
_SMALLEST = 1e-3
# A reference that is fitted, where a site has no prior, is so much wider than the draws.
_ROOM = 2.0
# Windows of the frame end at these eighths of warm-up, each twice as long as the last.
_WINDOW_ENDS = (1, 3, 7)


class Frame(NamedTuple):
    """What a model's positions and log density are measured from.

    Attributes:
        loc: centre of the ordinary sites, unconstrained, ``(num_ordinary,)``.
        scale: their scale.
        origin: a position, ``(dim,)``, learned sites standardised, ordinary ones
            unconstrained: each term of the model's log density counts from its value
            there, so that the size of a term does not round off what it changes by.
    """

    loc: jax.Array
    scale: jax.Array
    origin: jax.Array

    def scaled(self, position: jax.Array) -> jax.Array:
        """From positions such as the origin to those of the path: ordinary sites scaled."""
        first = len(position) - len(self.loc)
        ordinary = (position[first:] - self.loc) / self.scale
        return jnp.concatenate([position[:first], ordinary])

    def unscaled(self, position: jax.Array) -> jax.Array:
        """Back."""
        first = len(position) - len(self.loc)
        ordinary = self.loc + self.scale * position[first:]
        return jnp.concatenate([position[:first], ordinary])


class StepSize(NamedTuple):
    """Step sizes ``(K,)`` and the running average that warm-up ends with."""

    current: jax.Array
    log_average: jax.Array


def adapt_step_size(
    state: StepSize,
    accept_prob: jax.Array,
    target: float,
    iteration: jax.Array,
    num_warmup: int,
    largest: float = 10.0,
) -> StepSize:
    """One Robbins-Monro step on the log step size (Andrieu & Thoms 2008).

    The iterates of the second half of warm-up are averaged (Polyak & Ruppert), and the
    last iteration puts the average in force.

    Args:
        state: current step sizes.
        accept_prob: ``(K,)``; segments without inner steps have NaN and stay.
        target: acceptance probability aimed at.
        iteration: 0-based.
        num_warmup: length of warm-up.
        largest: bound of the step size.
    """
    gain = jnp.power(iteration + 1.0, -_DECAY)
    error = jnp.where(jnp.isnan(accept_prob), 0.0, accept_prob - target)
    log_step = jnp.log(state.current) + gain.astype(error.dtype) * error
    log_step = jnp.clip(log_step, jnp.log(_SMALLEST), jnp.log(largest))
    averaged = iteration - num_warmup // 2 + 1
    weight = jnp.where(averaged >= 1, 1.0 / jnp.maximum(averaged, 1), 1.0)
    average = state.log_average + weight * (log_step - state.log_average)
    is_last = iteration == num_warmup - 1
    return StepSize(jnp.exp(jnp.where(is_last, average, log_step)), average)


class Trials(NamedTuple):
    """Values of one constant tried in turn: each ``(n,)``, with their summed outcomes."""

    values: jax.Array
    total: jax.Array
    count: jax.Array


def record_trial(trials: Trials, index: jax.Array, outcome: jax.Array) -> Trials:
    """Add the outcome (larger is better) of one trial of the value at ``index``."""
    return trials._replace(
        total=trials.total.at[index].add(outcome), count=trials.count.at[index].add(1)
    )


def best_trial(trials: Trials) -> jax.Array:
    """The value with the largest mean outcome; untried values do not count."""
    mean = trials.total / jnp.maximum(trials.count, 1)
    return trials.values[jnp.argmax(jnp.where(trials.count > 0, mean, -jnp.inf))]


class Moments(NamedTuple):
    """Welford's running moments of vectors ``(n,)``."""

    count: jax.Array
    mean: jax.Array
    sum_squares: jax.Array


def no_draws(like: jax.Array) -> Moments:
    """Moments of nothing yet."""
    return Moments(jnp.zeros((), int), jnp.zeros_like(like), jnp.zeros_like(like))


def add_draw(moments: Moments, draw: jax.Array) -> Moments:
    """Include one more draw."""
    count = moments.count + 1
    delta = draw - moments.mean
    mean = moments.mean + delta / count
    return Moments(count, mean, moments.sum_squares + delta * (draw - mean))


def spread_of(
    moments: Moments, loc: jax.Array, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation, pulled to ``loc``, ``scale`` while draws are few.

    The former values count as five draws, as in Stan's windowed adaptation.
    """
    count, prior = moments.count.astype(scale.dtype), 5.0
    mean = (count * moments.mean + prior * loc) / (count + prior)
    variance = (moments.sum_squares + prior * jnp.square(scale)) / (count + prior)
    return mean, jnp.sqrt(variance)


def wider_reference(moments: Moments, frame: Frame, has_prior: np.ndarray) -> Frame:
    """The prior's reference, wider where draws lie outside: it is never drawn in.

    Drawn in onto the mode that the chains are in, the top of the ladder would be that
    mode, and no other could ever be found. A site without a prior has nothing else to go
    by than the draws.

    Args:
        moments: of the draws.
        frame: so far; its origin stays.
        has_prior: whether a coordinate's reference was taken from a prior.
    """
    loc, scale, origin = frame
    count = jnp.maximum(moments.count, 1)
    about = moments.sum_squares / count + jnp.square(moments.mean - loc)
    wider = jnp.maximum(scale, jnp.sqrt(about))
    fitted_loc, fitted_scale = spread_of(moments, loc, scale / _ROOM)
    new_loc = jnp.where(has_prior, loc, fitted_loc)
    new_scale = jnp.where(has_prior, wider, _ROOM * fitted_scale)
    new = Frame(new_loc, new_scale, origin)
    return jax.tree.map(partial(jnp.where, moments.count > 0), new, frame)


def followed(
    frame: Frame,
    moments: Moments,
    num_warmup: int,
    iteration: jax.Array,
    ordinary: jax.Array,
    has_prior: np.ndarray,
) -> tuple[Frame, Moments]:
    """A frame that follows the draws of one chain, in three windows of warm-up.

    Args:
        frame: so far.
        moments: of this window's draws.
        num_warmup: draws of warm-up.
        iteration: of the draw, from 0.
        ordinary: ordinary sites of the draw, unconstrained, ``(num_ordinary,)``.
        has_prior: which of them have a prior that the frame was taken from.
    """
    moments = add_draw(moments, ordinary)
    ends = jnp.asarray([(num_warmup * eighths) // 8 for eighths in _WINDOW_ENDS])
    is_end = jnp.any(iteration + 1 == ends)
    wider = wider_reference(moments, frame, has_prior)
    return jax.tree.map(partial(jnp.where, is_end), wider, frame), jax.tree.map(
        lambda leaf: jnp.where(is_end, jnp.zeros_like(leaf), leaf), moments
    )
