r"""Intermediate targets: what the levels of a ladder mean.

A *density* is anything with ``event_shape``, ``score(x, t)`` and, where an energy is
needed, ``log_density(x, t)``: an :class:`~numpyro_rtk.EnergyModel`, a
:class:`~numpyro_rtk.GaussianMixture`, a user's own object. ``log_density_and_score``
saves a pass where it exists; ``loc`` and ``scale`` say where its noise process is
centred (0 and 1 without them). Inside the package positions are flat vectors on that
standardised scale; this module is where the two meet.

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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.annealed import Path, log_reference
from numpyro_rtk.core.curvature import mean_square
from numpyro_rtk.core.multistep import Multistep, fit_multistep, probability_flow
from numpyro_rtk.core.segment import (
    Evaluation,
    Segment,
    paper_segment_between,
    proposal_mean,
    segment_between,
)
from numpyro_rtk.noise import noise_variance, signal

__all__ = [
    "BaseFn",
    "Levels",
    "Noised",
    "Part",
    "calibrate",
    "calibrate_multistep",
    "coupled_base",
    "has_energy",
    "levels_of",
    "loc_and_scale",
    "plan_segments",
    "posterior_path",
    "prior_path",
    "product_base",
    "standardised",
]


class Noised(Protocol):
    """The least that a density must offer; see the module's first paragraph."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one draw."""
        ...

    def score(self, x: jax.Array, t: Any) -> jax.Array:
        """Gradient of the log density of ``x_t`` at ``x``."""
        ...


BaseFn = Callable[[jax.Array, jax.Array], Evaluation]
"""``(z (dim,) standardised, t ()) -> Evaluation`` of the noised prior."""


class Part(NamedTuple):
    """Independent copies of one density, side by side in the position vector.

    ``density``: of one copy, a ``BaseFn``. ``dim``: of one copy. ``copies``: how many.
    ``conditions``: further arguments of ``density``, arrays or trees of them, each with a
    leading axis of copies.
    """

    density: Callable[..., Evaluation]
    dim: int
    copies: int
    conditions: tuple[Any, ...] = ()

    def at(self, block: jax.Array, t: jax.Array) -> Evaluation:
        """Of each copy; ``block`` (copies, dim)."""
        axes = (0, None, *(0 for _ in self.conditions))
        return jax.vmap(self.density, in_axes=axes)(block, t, *self.conditions)

    def of_one(self, block: jax.Array, t: jax.Array) -> Evaluation:
        """Of the only copy; ``block`` (1, dim)."""
        first = jax.tree.map(lambda leaf: leaf[0], self.conditions)
        return self.density(block[0], t, *first)


class Levels(NamedTuple):
    """The levels of a posterior path, each ``(K + 1,)``; one slice is one level."""

    t: jax.Array
    signal: jax.Array
    inverse_temperature: jax.Array


def has_energy(density: Any) -> bool:
    """Whether the density knows its log density and not the score alone."""
    return callable(getattr(density, "log_density", None))


def loc_and_scale(density: Any) -> tuple[jax.Array, jax.Array]:
    """Centre and scale of the density's noise process, each of ``event_shape``."""
    shape = tuple(density.event_shape)
    loc = jnp.broadcast_to(jnp.asarray(getattr(density, "loc", 0.0)), shape)
    scale = jnp.broadcast_to(jnp.asarray(getattr(density, "scale", 1.0)), shape)
    dtype = jnp.result_type(float)
    return loc.astype(dtype), scale.astype(dtype)


def standardised(
    density: Any, *, process: Any = None, with_score: bool = True
) -> BaseFn:
    """The density as a function of a flat standardised position.

    Without an energy the evaluation's log density is 0: only samplers that never read
    it may be given such a function.

    Args:
        density: of ``x`` alone.
        process: whose noise process it follows, where it is not its own: that of p(x | c)
            for a density at one ``c``.
        with_score: False where the log density will be differentiated; the score is 0.
    """
    shape = tuple(density.event_shape)
    loc, scale = loc_and_scale(density if process is None else process)
    log_jacobian = jnp.sum(jnp.log(scale))

    def evaluate(z: jax.Array, t: jax.Array) -> Evaluation:
        x = loc + scale * z.reshape(shape)
        if not with_score:
            value = density.log_density(x, t) + log_jacobian
            return _usable(value, jnp.zeros_like(z))
        if not has_energy(density):
            value, score = jnp.zeros((), z.dtype), density.score(x, t)
        else:
            if hasattr(density, "log_density_and_score"):
                value, score = density.log_density_and_score(x, t)
            else:
                value, score = density.log_density(x, t), density.score(x, t)
            value = value + log_jacobian
        return _usable(value, jnp.ravel(scale * score))

    return evaluate


def product_base(parts: Sequence[tuple], num_normal: int) -> BaseFn:
    """Independent copies of several densities and standard normals, side by side.

    Args:
        parts: :class:`Part` or ``(density, dim, copies)``, in the order of the position.
        num_normal: trailing coordinates with a standard normal law at every level.
    """
    parts = [Part(*part) for part in parts]

    def evaluate(u: jax.Array, t: jax.Array) -> Evaluation:
        value, scores, start = jnp.zeros((), u.dtype), [], 0
        for part in parts:
            stop = start + part.dim * part.copies
            block = u[start:stop].reshape(part.copies, part.dim)
            if part.copies == 1:
                found = part.of_one(block, t)
                value = value + found.log_density
            else:
                found = part.at(block, t)
                value = value + jnp.sum(found.log_density)
            scores.append(jnp.ravel(found.score))
            start = stop
        if num_normal:
            value = value + log_reference(u[start:])
            scores.append(-u[start:])
        return Evaluation(value, jnp.concatenate(scores))

    return evaluate


def coupled_base(
    parts_at: Callable[[jax.Array], Sequence[tuple]],
    num_normal: int,
    forward_mode: bool = False,
) -> BaseFn:
    r"""As :func:`product_base`, where densities are conditional on other coordinates.

    .. math:: \sum_i \log p_t(u_i \mid c_i(a_t u)) + \log N(u_\text{normal})

    A condition is what it would be at the clean guess ``a_t u``, as the likelihood of a
    posterior path is; the gradient has the terms through it. Exact at ``t = 0``.

    Args:
        parts_at: the parts for a clean position; of their densities only the log density
            is used, which JAX must be able to differentiate.
        num_normal: as there.
        forward_mode: see :func:`posterior_path`.
    """

    def log_density(u, t):
        return product_base(parts_at(signal(t) * u), num_normal)(u, t).log_density

    value_and_grad = _value_and_grad(log_density, forward_mode)
    return lambda u, t: _usable(*value_and_grad(u, t))


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
        forward_mode: differentiate it forwards, which costs as many passes as there are
            coordinates but goes through a ``lax.while_loop``.
    """
    value_and_grad = _value_and_grad(log_likelihood, forward_mode)

    def evaluate(u: jax.Array, level: Levels) -> Evaluation:
        prior = base(u, level.t)
        value, gradient = value_and_grad(level.signal * u)
        beta = level.inverse_temperature
        return _usable(
            prior.log_density + beta * value,
            prior.score + beta * level.signal * gradient,
        )

    return evaluate


def _value_and_grad(function: Callable, forward_mode: bool) -> Callable:
    """Value and gradient with respect to the first of the arguments."""
    if forward_mode:

        def twice(*args):
            value = function(*args)
            return value, value

        forwards = jax.jacfwd(twice, has_aux=True)
        return lambda *args: forwards(*args)[::-1]
    backwards = jax.value_and_grad(function)

    def evaluate(*args):
        try:
            return backwards(*args)
        except ValueError as error:
            if "Reverse-mode differentiation" not in str(error):
                raise
            raise ValueError(
                "`forward_mode_differentiation` must be True for this model: it has a "
                "`lax.while_loop` or `lax.fori_loop` of unknown length, which JAX cannot "
                "differentiate backwards; got False. Pass it to the kernel, as to NUTS."
            ) from error

    return evaluate


def _usable(value: jax.Array, score: jax.Array) -> Evaluation:
    """No density where it is NaN or +inf, no drift where the gradient is not finite."""
    value = jnp.where(value < jnp.inf, value, -jnp.inf)
    return Evaluation(value, jnp.where(jnp.isfinite(score), score, 0.0))


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
    scores_at = jax.vmap(lambda u, time: base(u, time).score, in_axes=(0, None))
    top = _balanced_normal(key, num_particles, dim, jnp.result_type(float))
    flow = probability_flow(scores_at, times, top)
    moments = jax.vmap(mean_square)(flow.score)
    return fit_multistep(scores_at, times, flow), moments


def calibrate(
    key: jax.Array, base: BaseFn, times: np.ndarray, dim: int, num_particles: int = 256
) -> jax.Array:
    """Mean squared score of the prior at every level, from a population run down.

    A population starts at N(0, I) and takes one Gaussian start per segment, whose
    variance comes from the moment just measured; no density is needed.

    Args:
        key: PRNG key.
        base: the noised prior.
        times: ladder, ``(K + 1,)``.
        dim: length of a position.
        num_particles: size of the population.

    Returns:
        ``(K + 1, dim)``, level 0 first.
    """
    t = jnp.asarray(times, jnp.result_type(float))
    key_top, key_down = jr.split(key)
    scores_at = jax.vmap(lambda u, time: base(u, time).score, in_axes=(0, None))

    def descend(population, inputs):
        low, high, key = inputs
        scores = scores_at(population, high)
        second_moment = mean_square(scores)
        segment = segment_between(low, high, second_moment)
        means = jax.vmap(proposal_mean, in_axes=(None, 0, 0))(
            segment, population, scores
        )
        noise = _balanced_normal(key, num_particles, dim, t.dtype)
        return means + segment.root * noise, second_moment

    top = _balanced_normal(key_top, num_particles, dim, t.dtype)
    keys = jr.split(key_down, t.shape[0] - 1)
    bottom, moments = jax.lax.scan(descend, top, (t[:-1], t[1:], keys), reverse=True)
    last = mean_square(scores_at(bottom, t[0]))
    return jnp.concatenate([last[None], moments])


def _balanced_normal(key: jax.Array, n: int, dim: int, dtype: Any) -> jax.Array:
    """Normal draws ``(n, dim)`` of mean exactly 0 and variance exactly 1.

    A wide segment's start variance is ``1 - v E[score**2]`` with both factors near 1:
    without this it is the sampling error of the population's own variance.
    """
    draws = jr.normal(key, (n, dim), dtype)
    return (draws - jnp.mean(draws, axis=0)) / jnp.std(draws, axis=0)
