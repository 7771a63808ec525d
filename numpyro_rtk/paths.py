r"""Intermediate targets: what the levels of a ladder mean.

*Prior path*: :math:`\log\pi_k = \log p_{t_k}`.

*Posterior path*, for everything else in the model collected in :math:`\ell`,

.. math:: \log\pi_k(u) = \log p_{t_k}(u) + \beta_k \log\ell(a_k u), \qquad
          \beta_k = \frac{c}{c + s_k^2} .

Level 0 is the exact posterior. The argument :math:`a_k u` is the best linear guess of
the clean value (Tweedie's formula for a Gaussian), :math:`s_k^2` its variance on
standardised data, and :math:`\beta_k` what that uncertainty does to a Gaussian
likelihood of variance :math:`c`; for a standard normal prior the path is the exact
noised posterior. At the top the likelihood is asked for its value near the prior mean
alone, so it cannot overflow there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.annealed import Path
from numpyro_rtk.core.covariance import stretch
from numpyro_rtk.core.curvature import mean_product, mean_square
from numpyro_rtk.core.multistep import Multistep, fit_multistep, probability_flow
from numpyro_rtk.core.segment import (
    Evaluation,
    Segment,
    paper_segment_between,
    proposal_mean,
    segment_between,
)
from numpyro_rtk.density import BaseFn, usable, value_and_grad
from numpyro_rtk.noise import noise_variance, signal

__all__ = [
    "Levels",
    "calibrate",
    "calibrate_multistep",
    "levels_of",
    "plan_segments",
    "posterior_path",
    "prior_path",
    "scores_of",
]


class Levels(NamedTuple):
    """The levels of a posterior path, each ``(K + 1,)``; one slice is one level."""

    t: jax.Array
    signal: jax.Array
    inverse_temperature: jax.Array


def prior_path(base: BaseFn) -> Path:
    """``log pi_k = log p_{t_k}``."""
    return lambda u, level: base(u, level.t)


def posterior_path(
    base: BaseFn,
    log_likelihood: Callable[[jax.Array], jax.Array],
    forward_mode: bool = False,
) -> Path:
    """The module's posterior path.

    Args:
        base: the noised prior.
        log_likelihood: everything else, a scalar function of a standardised position.
        forward_mode: differentiate it forwards; see
            :func:`~numpyro_rtk.density.value_and_grad`.
    """
    likelihood_and_gradient = value_and_grad(log_likelihood, forward_mode)

    def evaluate(u: jax.Array, level: Levels) -> Evaluation:
        prior = base(u, level.t)
        value, gradient = likelihood_and_gradient(level.signal * u)
        beta = level.inverse_temperature
        return usable(
            prior.log_density + beta * value,
            prior.score + beta * level.signal * gradient,
        )

    return evaluate


def levels_of(
    times: np.ndarray | jax.Array, likelihood_variance: jax.Array | float
) -> Levels:
    """The levels at ``times`` ``(K + 1,)`` for the path's constant ``c``."""
    t = jnp.asarray(times, jnp.result_type(float))
    beta = likelihood_variance / (likelihood_variance + noise_variance(t))
    return Levels(t, signal(t), beta)


def plan_segments(
    times: np.ndarray, second_moment: jax.Array, *, paper_start: bool = False
) -> tuple[Segment, jax.Array]:
    """Segments and the inner samplers' scales, from the score's second moment.

    Args:
        times: ladder, ``(K + 1,)``.
        second_moment: mean squared score per level and coordinate, ``(K + 1, dim)``;
            its inverse is a spread, since ``E[score**2]`` is the mean curvature.
        paper_start: use the paper's start in place of the analytic one.

    Returns:
        Segments with leading axis K, and each reverse kernel's spread
        ``(a**2 / v + E[score**2])**-1/2``, ``(K, dim)``.
    """
    t = jnp.asarray(times, second_moment.dtype)
    if paper_start:
        # the largest mean curvature stands for the score's Lipschitz constant
        smoothness = jnp.max(second_moment[:-1], axis=-1)
        dim = second_moment.shape[-1]
        segments = paper_segment_between(t[:-1], t[1:], smoothness, dim)
    else:
        segments = segment_between(t[:-1], t[1:], second_moment[1:])
    stiffness = jnp.square(segments.a) / segments.v
    return segments, jax.lax.rsqrt(stiffness[:, None] + second_moment[:-1])


def scores_of(base: BaseFn) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Scores of the noised prior at many positions, ``((n, dim), t) -> (n, dim)``."""
    return jax.vmap(lambda u, time: base(u, time).score, in_axes=(0, None))


def calibrate_multistep(
    key: jax.Array, base: BaseFn, times: np.ndarray, dim: int, num_particles: int = 256
) -> tuple[Multistep, jax.Array]:
    """A fitted predictor, and the mean squared score of the prior at every level.

    From finely solved trajectories of the probability flow: ``num_particles`` times about
    64 evaluations, and as many again for each level.

    Args:
        key: PRNG key.
        base: the noised prior.
        times: ladder, ``(K + 1,)``.
        dim: length of a position.
        num_particles: trajectories.

    Returns:
        The coefficients, leading axis K, and ``(K + 1, dim)``, level 0 first.
    """
    scores_at = scores_of(base)
    top = _balanced_normal(key, num_particles, dim, jnp.result_type(float))
    flow = probability_flow(scores_at, times, top)
    moments = jax.vmap(mean_square)(flow.score)
    return fit_multistep(scores_at, times, flow), moments


def calibrate(
    key: jax.Array,
    scores_at: Callable[[jax.Array, jax.Array], jax.Array],
    times: np.ndarray | jax.Array,
    dim: int,
    num_particles: int = 256,
    *,
    dense: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Mean squared score of the prior at every level, from a population run down.

    A population starts at N(0, I) and takes one Gaussian start per segment, whose
    variance comes from the moment just measured; no density is needed.

    Args:
        key: PRNG key.
        scores_at: of the noised prior, ``((n, dim), t) -> (n, dim)``; see
            :func:`scores_of`.
        times: ladder, ``(K + 1,)``.
        dim: length of a position.
        num_particles: size of the population.
        dense: whether to return the mean products ``E[s s^T]``.

    Returns:
        ``(K + 1, dim)``, level 0 first; dense ``(K + 1, dim, dim)``. And where the
        population ended, ``(num_particles, dim)``.
    """
    t = jnp.asarray(times, jnp.result_type(float))
    key_top, key_down = jr.split(key)

    def descend(population, inputs):
        low, high, key = inputs
        scores = scores_at(population, high)
        second_moment = mean_product(scores, dense)
        segment = segment_between(low, high, second_moment)
        means = jax.vmap(proposal_mean, in_axes=(None, 0, 0))(
            segment, population, scores
        )
        noise = _balanced_normal(key, num_particles, dim, t.dtype)
        spread = jax.vmap(stretch, in_axes=(None, 0))(segment.root, noise)
        return means + spread, second_moment

    top = _balanced_normal(key_top, num_particles, dim, t.dtype)
    keys = jr.split(key_down, t.shape[0] - 1)
    bottom, moments = jax.lax.scan(descend, top, (t[:-1], t[1:], keys), reverse=True)
    last = mean_product(scores_at(bottom, t[0]), dense)
    return jnp.concatenate([last[None], moments]), bottom


def _balanced_normal(key: jax.Array, n: int, dim: int, dtype: Any) -> jax.Array:
    """Normal draws ``(n, dim)`` of mean exactly 0 and variance exactly 1.

    A wide segment's start variance is ``1 - v E[score**2]`` with both factors near 1:
    without this it is the sampling error of the population's own variance.
    """
    draws = jr.normal(key, (n, dim), dtype)
    return (draws - jnp.mean(draws, axis=0)) / jnp.std(draws, axis=0)
