"""The levels that particles come down, and the kernels that lead from one to the next."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.covariance import like
from numpyro_rtk.core.segment import Segment, noising_between
from numpyro_rtk.core.twist import Sharpness, Twist, twist_of
from numpyro_rtk.noise import noise_variance, signal

__all__ = ["Entry", "Levels", "ParticlePlan", "plan_of_rows", "segments_of"]

# The last step is not narrower than this part of its noise's variance: how narrow it is was
# estimated.
_LAST_PART, _TINY = 0.02, 1e-30


class Levels(NamedTuple):
    """The levels of a ladder, level 0 first; one slice is one level.

    Attributes:
        time: OU time, ``(K + 1,)``.
        signal: ``a_k``, ``(K + 1,)``.
        noise_variance: ``s_k ** 2``, ``(K + 1,)``.
        twist: how particles look ahead.
    """

    time: jax.Array
    signal: jax.Array
    noise_variance: jax.Array
    twist: Twist


class Entry(NamedTuple):
    """How particles enter at the top level: ``N(lift @ parts, narrow**2)`` along its axes.

    That is the reference, which the twist has moved and narrowed: data that are far from
    what the prior expects have something to say at all noise.

    Attributes:
        axes: ``(dim, dim)``, in columns; or ones, ``(dim,)``.
        lift: from the parts of the twist at the prior's mean, like ``axes``.
        narrow: ``(dim,)``.
    """

    axes: jax.Array
    lift: jax.Array
    narrow: jax.Array


class ParticlePlan(NamedTuple):
    """Levels, and what leads from one to the next; arrays, so that a new one is no retrace.

    Shapes are those of one row; of R rows each leaf has a further axis, after that of
    levels where it has one, but for the levels' time and noise.

    A proposal is a reverse kernel that the twist has moved and narrowed: in units of the
    kernel's spread, along the columns of its root, ``N(lift @ parts, narrow**2)``.

    Attributes:
        levels: see :class:`Levels`.
        segments: the network's reverse kernels, diagonal or dense; leading axis K, lowest
            first.
        lift: from the parts of the upper level's twist, ``(K, dim, dim)`` or ``(K, dim)``.
        narrow: ``(K, dim)``.
        entry: at the top level.
    """

    levels: Levels
    segments: Segment
    lift: jax.Array
    narrow: jax.Array
    entry: Entry


def plan_of_rows(
    times: jax.Array, unknown: jax.Array, sharpness: Sharpness
) -> ParticlePlan:
    """The plans of R rows on one ladder.

    Args:
        times: ``(K + 1,)``.
        unknown: mean covariance of the clean value at them, ``(K + 1, dim, dim)``, or its
            diagonal, ``(K + 1, dim)``; the same for all rows.
        sharpness: of each row's likelihood, on the standardised scale, leading axis R.
    """
    t = jnp.asarray(times, unknown.dtype)
    a, s2 = signal(t), noise_variance(t)
    # the mean derivative of Tweedie's mean by the position; at level 0 they are the same
    slope = like(a / jnp.maximum(s2, _TINY), unknown) * unknown
    one = jnp.ones(unknown.shape[-1], unknown.dtype)
    slope = slope.at[0].set(one if unknown.ndim == 2 else jnp.diag(one))
    segments = segments_of(t, unknown)
    of_row = lambda row: _of_row(slope, unknown, segments, row)
    # not at once: two batched decompositions at a time can wait for one another forever
    *by_level, entry = jax.lax.map(of_row, sharpness)
    swapped = lambda leaf: jnp.swapaxes(leaf, 0, 1)
    twist, segments, lift, narrow = jax.tree.map(swapped, by_level)
    levels = Levels(time=t, signal=a, noise_variance=s2, twist=twist)
    return ParticlePlan(levels, segments, lift, narrow, entry)


def _of_row(slope, unknown, segments: Segment, sharpness: Sharpness) -> tuple:
    """What is a row's own: its twists, kernels, lift, narrowing, and its entry."""
    twist, back = twist_of(slope, unknown, sharpness)
    root = jnp.sqrt(twist.inverse_temperature)
    bend = back * (root if back.ndim == 2 else root[:, None])
    segments, narrow = _narrowed(segments, bend[:-1], sharpness.is_even)
    # the proposal's mean is Tweedie's, of a score that the twist's gradient is added to
    lift = like(segments.mean_score, segments.inverse_root) * segments.inverse_root
    lift = lift * back[1:] if lift.ndim == 2 else lift @ back[1:]
    entry = _entry(back[-1], bend[-1], sharpness.is_even)
    return twist, segments, lift, narrow, entry


def segments_of(times: jax.Array, unknown: jax.Array) -> Segment:
    """The network's reverse kernels, leading axis K.

    Of a clean value that is known a lower state varies as a bridge does between it and the
    upper one; of one that is not, by that much more.

    Args:
        times: ``(K + 1,)``.
        unknown: see :func:`plan_of_rows`.
    """
    a, v = noising_between(times[:-1], times[1:])
    s2 = noise_variance(times[:-1])
    total = jnp.square(a) * s2 + v
    bridge, share = s2 * v / total, signal(times[:-1]) * v / total
    bridge = bridge.at[0].max(_LAST_PART * v[0])
    rest = like(jnp.square(share), unknown) * unknown[1:]
    if unknown.ndim == 2:
        root = jnp.sqrt(bridge[:, None] + rest)
        inverse, diagonal = 1.0 / root, root
    else:
        eye = jnp.eye(unknown.shape[-1], dtype=unknown.dtype)[None]
        root, inverse = jax.lax.map(_root, bridge[:, None, None] * eye + rest)
        diagonal = jnp.diagonal(root, axis1=1, axis2=2)
    log_det = jnp.sum(jnp.log(diagonal), axis=1)
    shift = jnp.zeros_like(diagonal)
    return Segment(a, v, 1.0 / a, v / a, shift, root, inverse, log_det)


def _root(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    root = jnp.linalg.cholesky(matrix)
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    return root, jax.scipy.linalg.solve_triangular(root, eye, lower=True)


def _narrowed(
    segments: Segment, bend: jax.Array, is_even: jax.Array
) -> tuple[Segment, jax.Array]:
    """The same kernels with roots along what narrows them, and by how much.

    The twist of the lower level has a curvature, ``bend @ bend.T``. One of a c that stands
    for the likelihood says nothing on the spread.
    """
    wide = jnp.ones_like(segments.shift)

    def one(inputs):
        segment, bend = inputs
        axes, narrow = _along_axes(segment.root, bend)
        turned = segment._replace(
            root=segment.root @ axes, inverse_root=axes.T @ segment.inverse_root
        )
        return turned, narrow

    def by_coordinate():
        return segments, jax.lax.rsqrt(1.0 + jnp.square(bend * segments.root))

    by_matrices = lambda: jax.lax.map(one, (segments, bend))
    narrowed = by_coordinate if bend.ndim == 2 else by_matrices
    return jax.lax.cond(is_even, lambda: (segments, wide), narrowed)


def _along_axes(root: jax.Array, bend: jax.Array) -> tuple[jax.Array, jax.Array]:
    """In units of a root: axes of a curvature ``bend @ bend.T``, how narrow it makes."""
    seen = root.T @ bend
    precision, axes = jnp.linalg.eigh(seen @ seen.T)
    return axes, jax.lax.rsqrt(1.0 + jnp.maximum(precision, 0.0))


def _entry(back: jax.Array, bend: jax.Array, is_even: jax.Array) -> Entry:
    """Of the top level's twist, as :func:`_narrowed` has it of the others."""
    wide = jnp.ones(back.shape[-1], back.dtype)
    eye = wide if back.ndim == 1 else jnp.diag(wide)

    def narrowed():
        if bend.ndim == 1:
            axes, narrow, along = wide, jax.lax.rsqrt(1.0 + jnp.square(bend)), back
        else:
            axes, narrow = _along_axes(eye, bend)
            along = axes.T @ back
        return Entry(axes, like(jnp.square(narrow), along) * along, narrow)

    return jax.lax.cond(is_even, lambda: Entry(eye, back, wide), narrowed)
