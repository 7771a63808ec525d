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

from numpyro_rtk.core.covariance import diagonal_of, like, stretch

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
"""``x (R, dim) -> (value (R,), gradient (R, dim))`` of R rows' log likelihoods."""


class Sharpness(NamedTuple):
    """What twists take the likelihood for; of one row, or with a leading axis R.

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


def even_sharpness(
    variance: jax.Array, shape: tuple[int, int], *, dense: bool
) -> Sharpness:
    """Of c alone, the same for all rows; ``shape``: ``(R, dim)``."""
    num_rows, dim = shape
    nothing = jnp.zeros((num_rows, dim, dim) if dense else shape, variance.dtype)
    c = jnp.broadcast_to(variance, (num_rows,))
    return Sharpness(c, nothing, jnp.zeros_like(c), jnp.ones(num_rows, bool))


def sharpness_at(
    likelihood: LikelihoodFn, position: jax.Array, *, dense: bool, forward_mode: bool
) -> Sharpness:
    """The mean curvatures of rows' likelihoods at positions, as far as they are one.

    Args:
        likelihood: see :data:`LikelihoodFn`; differentiable once more.
        position: ``(n, R, dim)``.
        dense: whether curvatures are matrices.
        forward_mode: how to differentiate.
    """
    shape, dtype = position.shape[1:], position.dtype
    value, gradient = jax.vmap(likelihood)(position)
    # one direction in all rows at a time: no row's gradient depends on another's values
    directions = jnp.eye(shape[1], dtype=dtype)
    if not dense:
        directions = jr.rademacher(jr.key(0), (_NUM_PROBES, shape[1]), dtype)
    directions = jnp.broadcast_to(directions[:, None], (len(directions), *shape))

    def at(x):
        by = lambda z: _second_derivative(likelihood, x, z, forward_mode)
        rows = jax.vmap(by)(directions)
        return (
            jnp.swapaxes(rows, 0, 1) if dense else jnp.mean(directions * rows, axis=0)
        )

    bend = jax.lax.map(at, position)
    usable = jnp.isfinite(value + jnp.sum(bend, axis=tuple(range(2, bend.ndim))))
    usable = usable & jnp.all(jnp.isfinite(gradient), axis=2)
    bend = jnp.where(usable.reshape(usable.shape + (1,) * (bend.ndim - 2)), bend, 0.0)
    count = jnp.maximum(jnp.sum(usable, axis=0), 1)
    bend = -jnp.sum(bend, axis=0) / like(count.astype(dtype), bend[0])
    best = jnp.argmax(jnp.where(usable, value, -jnp.inf), axis=0)
    at_best = lambda leaf: leaf[best, jnp.arange(shape[0])]
    curvature, variance, step = jax.lax.map(_of_one_row, (bend, at_best(gradient)))
    # one step of Newton's method: of a Gaussian to its peak
    ahead, _ = likelihood(at_best(position) + step)
    peak = jnp.where(ahead > at_best(value), ahead, at_best(value))
    return Sharpness(variance, curvature, peak, jnp.zeros(shape[0], bool))


def _of_one_row(row: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A curvature that is none below the least, 1 / its largest, a step to the peak."""
    bend, gradient = row
    spread, axes = _eigen(bend)
    if axes is None:
        return spread, 1.0 / jnp.max(spread), gradient / spread
    curvature = (axes * spread[None]) @ axes.T
    return curvature, 1.0 / jnp.max(spread), axes @ ((gradient @ axes) / spread)


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
