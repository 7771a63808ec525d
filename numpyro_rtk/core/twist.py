r"""Twists: how particles look ahead to the likelihood.

A particle of a noised level is worth what the likelihood will be of the clean value that it
leads to, of which Tweedie's mean :math:`\hat x_0` is known, and about the covariance C. Of
a likelihood whose curvature G is the same everywhere,

.. math:: \log \int \ell(\hat x_0 + u)\, N(u; 0, C)\, du
          = \text{const} - \sum_i \beta_i q_i, \qquad
          \beta_i = \frac{1}{1 + \Lambda_i},

where :math:`\Lambda_i` are the eigenvalues of :math:`G^{1/2} C G^{1/2}` and :math:`q_i` the
parts of :math:`\log\ell_{max} - \log\ell(\hat x_0)` along its eigenvectors: every direction
has a temperature of its own, the higher the better the data know it. Of a likelihood that
is no Gaussian the gradient says how its misfit is divided among them,

.. math:: \log\psi(x) = p - \bar\beta\,(p - \log\ell(\hat x_0)), \qquad
          \bar\beta = \sum_i \beta_i q_i \Big/ \sum_i q_i,

with p its peak: a tempered likelihood, whatever the curvature is elsewhere. Where prior and
likelihood are Gaussian it is exact, and so are proposals narrowed by it: on the way down
weights then do not change. With all directions alike, as of :math:`G = I / c` and a C that
is a number, it is :math:`\ell^\beta, \beta = c / (c + C)` (as Wu et al. 2023, arXiv
2306.17775, temper).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk.core.covariance import diagonal_of, stretch

__all__ = [
    "LikelihoodFn",
    "Sharpness",
    "Twist",
    "even_sharpness",
    "look_ahead",
    "sharpness_at",
    "twist_of",
]

# Log of a twist where the likelihood is zero: a twist must not be, since the state that it
# looks ahead to may have one.
_LEAST_TWIST = -1e5
# The least curvature, as a part of the largest: below it float32 knows no direction.
_LEAST_CURVATURE, _TINY = 1e-7, 1e-30
# Random directions that a diagonal of second derivatives is taken from.
_NUM_PROBES = 16

LikelihoodFn = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""``x (dim,) -> (value, gradient)`` of the log likelihood."""


class Sharpness(NamedTuple):
    """What twists take the likelihood for.

    Attributes:
        variance: c; where directions differ, the least that one is known to.
        curvature: G, of minus the log likelihood, ``(dim, dim)`` or its diagonal.
        peak: p.
        is_even: whether all directions are alike, by c; the other two do not count then.
    """

    variance: jax.Array
    curvature: jax.Array
    peak: jax.Array
    is_even: jax.Array


class Twist(NamedTuple):
    """The twists of levels, leading axis K + 1, or of one.

    Attributes:
        along: takes a gradient of the log likelihood to its parts along the eigenvectors,
            in units of their curvature, ``(dim, dim)``, or ``(dim,)`` where it is diagonal.
        inverse_temperature: ``beta`` of each, ``(dim,)``.
        peak: p, a scalar.
    """

    along: jax.Array
    inverse_temperature: jax.Array
    peak: jax.Array


def even_sharpness(variance: jax.Array, dim: int, *, dense: bool) -> Sharpness:
    """Of c alone."""
    nothing = jnp.zeros((dim, dim) if dense else (dim,), variance.dtype)
    return Sharpness(variance, nothing, jnp.zeros_like(variance), jnp.array(True))


def sharpness_at(
    likelihood: LikelihoodFn, position: jax.Array, *, dense: bool, forward_mode: bool
) -> Sharpness:
    """The likelihood's mean curvature at positions, as far as it is one.

    Args:
        likelihood: see :data:`LikelihoodFn`; differentiable once more.
        position: ``(n, dim)``.
        dense: whether curvatures are matrices.
        forward_mode: how to differentiate.
    """
    dim = position.shape[1]
    value, gradient = jax.vmap(likelihood)(position)
    directions = jnp.eye(dim, dtype=position.dtype)
    if not dense:
        directions = jr.rademacher(jr.key(0), (_NUM_PROBES, dim), position.dtype)

    def at(x):
        by = lambda z: _second_derivative(likelihood, x, z, forward_mode)
        rows = jax.vmap(by)(directions)
        return rows if dense else jnp.mean(directions * rows, axis=0)

    bend = jax.lax.map(at, position)
    usable = jnp.isfinite(value + jnp.sum(bend, axis=tuple(range(1, bend.ndim))))
    usable = usable & jnp.all(jnp.isfinite(gradient), axis=1)
    bend = jnp.where(usable.reshape((-1,) + (1,) * (bend.ndim - 1)), bend, 0.0)
    bend = -jnp.sum(bend, axis=0) / jnp.maximum(jnp.sum(usable), 1)
    spread, axes = _eigen(bend)
    curvature = spread if axes is None else (axes * spread[None]) @ axes.T
    best = jnp.argmax(jnp.where(usable, value, -jnp.inf))
    # one step of Newton's method: of a Gaussian to its peak
    parts = gradient[best] if axes is None else gradient[best] @ axes
    step = parts / spread if axes is None else axes @ (parts / spread)
    ahead, _ = likelihood(position[best] + step)
    peak = jnp.where(ahead > value[best], ahead, value[best])
    variance = 1.0 / jnp.max(spread)
    return Sharpness(variance, curvature, peak, jnp.array(False))


def _second_derivative(likelihood: LikelihoodFn, x, z, forward_mode: bool):
    """The log likelihood's, times a vector."""
    gradient = lambda x: likelihood(x)[1]
    if forward_mode:
        return jax.jvp(gradient, (x,), (z,))[1]
    return jax.vjp(gradient, x)[1](z)[0]


def _eigen(curvature: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Curvatures, none below the least, and their axes; None: those of coordinates."""
    if curvature.ndim == 1:
        value, axes = curvature, None
    else:
        value, axes = jnp.linalg.eigh(0.5 * (curvature + curvature.T))
    least = _LEAST_CURVATURE * jnp.maximum(jnp.max(value), _TINY)
    return jnp.maximum(value, jnp.maximum(least, _TINY)), axes


def twist_of(
    slope: jax.Array, unknown: jax.Array, sharpness: Sharpness
) -> tuple[Twist, jax.Array]:
    """The twists of all levels, and the way back from their parts.

    The latter, like ``slope``, takes ``beta`` times the parts to a gradient by the level's
    position. But for ``sqrt(beta)`` it is a root of the twist's curvature there.

    Args:
        slope: derivative of Tweedie's mean by the position, ``(K + 1, dim, dim)``, or
            diagonal, ``(K + 1, dim)``.
        unknown: C of every level, like ``slope``.
        sharpness: see :class:`Sharpness`.
    """
    return jax.lax.cond(
        sharpness.is_even,
        lambda: _even(slope, unknown, sharpness.variance),
        lambda: _curved(slope, unknown, sharpness),
    )


def _even(slope, unknown, variance) -> tuple[Twist, jax.Array]:
    mean = jnp.mean(diagonal_of(unknown), axis=1, keepdims=True)
    beta = jnp.broadcast_to(variance / (variance + mean), slope.shape[:2])
    if slope.ndim == 2:
        along, back = jnp.ones_like(slope), slope
    else:
        eye = jnp.eye(slope.shape[-1], dtype=slope.dtype)
        along, back = jnp.broadcast_to(eye, slope.shape), jnp.swapaxes(slope, -1, -2)
    return Twist(along, beta, jnp.zeros(len(slope), slope.dtype)), back


def _curved(slope, unknown, sharpness: Sharpness) -> tuple[Twist, jax.Array]:
    peak = jnp.broadcast_to(sharpness.peak, slope.shape[:1])
    value, axes = _eigen(sharpness.curvature)
    root = jnp.sqrt(value)
    if axes is None:
        beta = 1.0 / (1.0 + value[None] * unknown)
        along = jnp.broadcast_to(1.0 / root, slope.shape)
        return Twist(along, beta, peak), slope * root[None]
    whiten, colour = axes / root[None], axes * root[None]

    def one(level):
        slope, unknown = level
        mixed, turned = jnp.linalg.eigh(colour.T @ unknown @ colour)
        beta = 1.0 / (1.0 + jnp.maximum(mixed, 0.0))
        return (whiten @ turned).T, beta, slope.T @ colour @ turned

    along, beta, back = jax.lax.map(one, (slope, unknown))
    return Twist(along, beta, peak), back


def look_ahead(
    twist: Twist, value: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The log twist of one level at one position, and ``beta`` times its parts ``(dim,)``.

    Args:
        twist: of the level.
        value: of the log likelihood at the clean value's mean.
        gradient: its gradient there, ``(dim,)``.
    """
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
    parts = stretch(twist.along, gradient)
    beta, share = twist.inverse_temperature, jnp.square(parts)
    total = jnp.sum(share)
    mean = jnp.sum(beta * share) / jnp.maximum(total, _TINY)
    mean = jnp.where(total > _TINY, mean, jnp.max(beta))
    log_twist = twist.peak + mean * (value - twist.peak)
    log_twist = jnp.where(jnp.isfinite(log_twist), log_twist, _LEAST_TWIST)
    return log_twist, beta * parts
