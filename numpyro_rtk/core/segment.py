r"""The reverse transition kernel of one segment, and its Gaussian proposal.

A segment joins the levels ``t_{k-1} < t_k``. With :math:`a = e^{-(t_k - t_{k-1})}` and
:math:`v = 1 - a^2` the noising kernel is :math:`N(x_k; a z, v I)`, and the reverse
transition kernel (Huang et al., NeurIPS 2024, arXiv 2405.16387, eq. 4) is

.. math:: p(z \mid x_k) \propto \pi_{k-1}(z)\, N(x_k; a z, v I),
          \qquad \nabla = \nabla\log\pi_{k-1}(z) + a (x_k - a z) / v .

Its *proposal* is a Gaussian

.. math:: q(z \mid x_k) = N\bigl(z;\; m_x x_k + m_s \nabla\log\pi_k(x_k) + b,\; R R^T\bigr).

The *analytic* one, :func:`segment_between`, has the mean
:math:`\tfrac{1}{a}(x_k + v \nabla\log\pi_k(x_k))`, which is exact by Tweedie's formula
when :math:`\pi_k` is the noised :math:`\pi_{k-1}`, and the covariance that is best then,
:math:`\tfrac{v}{a^2} (I - v\,E[ss^T])` of scores :math:`s = \nabla\log\pi_k`, or its
diagonal (analytic-DPM, Bao et al., ICLR 2022, arXiv 2201.06503). ``proposals.py`` fits one.
Having a density, it is what makes weights possible: those of a step from :math:`x_k` down
to z change by

.. math:: W = \log\frac{\pi_{k-1}(z)\,N(x_k; a z, v I)}{\pi_k(x_k)\,q(z \mid x_k)},

the *log-weight increment*.

Positions are vectors ``(dim,)`` on the standardised scale. An *edge* of a ladder is the
segment between two neighbouring levels.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.covariance import stretch
from numpyro_rtk.noise import noise_variance

__all__ = [
    "DensityFn",
    "Evaluation",
    "Segment",
    "analytic_variance",
    "log_noising",
    "log_proposal",
    "log_volume_ratio",
    "log_weight_increment",
    "noising_between",
    "noising_misfit",
    "paper_segment_between",
    "proposal_mean",
    "proposal_misfit",
    "reverse_kernel",
    "sample_noising",
    "sample_proposal",
    "segment_between",
    "with_noising",
    "without_noising",
]

_LOG_2PI = 1.8378770664093453
# A proposal narrower than this fraction of a standard normal's reverse kernel is not to be
# believed: the moment that it is computed from is an estimate.
_SMALLEST_FRACTION = 0.02


class Evaluation(NamedTuple):
    """A log density ``()`` and its gradient ``(dim,)`` at one point."""

    log_density: jax.Array
    score: jax.Array


DensityFn = Callable[[jax.Array], Evaluation]


class Segment(NamedTuple):
    """One segment, or those of a ladder with a leading axis K, lowest first.

    Attributes:
        a: signal that the noising keeps, a scalar.
        v: the noising's variance, a scalar.
        mean_x: factor of the upper state in the proposal's mean, a scalar.
        mean_score: factor of its score, a scalar.
        shift: rest of the mean, ``(dim,)``.
        root: a root of the proposal's covariance, ``(dim, dim)``, or where that is
            diagonal ``(dim,)``.
        inverse_root: its inverse.
        log_det: log determinant of the root, a scalar.
    """

    a: jax.Array
    v: jax.Array
    mean_x: jax.Array
    mean_score: jax.Array
    shift: jax.Array
    root: jax.Array
    inverse_root: jax.Array
    log_det: jax.Array


def noising_between(t_low: jax.Array, t_high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``a`` and ``v`` of the noising from ``t_low`` to ``t_high`` (OU time, any shape)."""
    return jnp.exp(t_low - t_high), -jnp.expm1(2.0 * (t_low - t_high))


def segment_between(
    t_low: jax.Array, t_high: jax.Array, second_moment: jax.Array
) -> Segment:
    """The segment from ``t_high`` down to ``t_low`` (OU time) with the analytic proposal.

    Args:
        t_low: scalar or ``(K,)``.
        t_high: like ``t_low``.
        second_moment: mean squared score at ``t_high`` per coordinate, ``(..., dim)``, for
            a diagonal proposal; or ``E[s s^T]``, ``(..., dim, dim)``, for a dense one.
    """
    a, v = noising_between(t_low, t_high)
    if second_moment.ndim == a.ndim + 1:
        variance = analytic_variance(a, v, second_moment, noise_variance(t_low))
        return _with_variance(a, v, 1.0 / a, v / a, variance)
    one = lambda inputs: _dense_segment(*inputs)
    if a.ndim == 0:
        return one((a, v, noise_variance(t_low), second_moment))
    return jax.lax.map(one, (a, v, noise_variance(t_low), second_moment))


def _dense_segment(a, v, lower_noise, second_moment: jax.Array) -> Segment:
    """Nowhere narrower than the least variance, and nowhere wider than ``v / a**2``."""
    eye = jnp.eye(second_moment.shape[-1], dtype=second_moment.dtype)
    part, axes = jnp.linalg.eigh(eye - v * second_moment)
    variance = (
        jnp.clip(part, _smallest_part(a, v, lower_noise), 1.0) * v / jnp.square(a)
    )
    root = jnp.sqrt(variance)
    return Segment(
        a=a,
        v=v,
        mean_x=1.0 / a,
        mean_score=v / a,
        shift=jnp.zeros_like(root),
        root=axes * root[None],
        inverse_root=(axes / root[None]).T,
        log_det=jnp.sum(jnp.log(root)),
    )


def paper_segment_between(
    t_low: jax.Array, t_high: jax.Array, smoothness: jax.Array, dim: int
) -> Segment:
    """A segment with the paper's proposal ``N(x e^eta / 2, I / (4 L))``.

    It is built for a worst-case bound (arXiv 2405.16387, theorem on MALA) and poor in
    practice; kept for reproduction.

    Args:
        t_low: scalar or ``(K,)``.
        t_high: like ``t_low``.
        smoothness: L, the score's Lipschitz constant at the lower level; like
            ``t_low``.
        dim: length of a position.
    """
    a, v = noising_between(t_low, t_high)
    variance = jnp.broadcast_to(
        (0.25 / smoothness)[..., None], (*jnp.shape(smoothness), dim)
    )
    return _with_variance(a, v, 0.5 / a, jnp.zeros_like(a), variance)


def _with_variance(a, v, mean_x, mean_score, variance: jax.Array) -> Segment:
    root = jnp.sqrt(variance)
    log_det = 0.5 * jnp.sum(jnp.log(variance), axis=-1)
    shift = jnp.zeros_like(root)
    return Segment(a, v, mean_x, mean_score, shift, root, 1.0 / root, log_det)


def analytic_variance(
    a: jax.Array,
    v: jax.Array,
    second_moment: jax.Array,
    lower_noise: jax.Array | float = 0.0,
) -> jax.Array:
    """``v / a**2 * (1 - v E[score**2])`` per coordinate, kept within its bounds.

    Knowing the clean value too, ``z`` would have the bridge's variance
    ``1 / (a**2 / v + 1 / lower_noise)``; not knowing it, ``z`` varies at least as much.
    The bound matters in wide segments, where the difference from 1 is small.

    Args:
        a: signal that the segment's noising keeps, a scalar or ``(K,)``.
        v: that noising's variance, like ``a``.
        second_moment: mean squared score at the upper level, ``(..., dim)``.
        lower_noise: the noise's variance at the lower level, like ``v``.
    """
    a, v, lower_noise = (jnp.asarray(x)[..., None] for x in (a, v, lower_noise))
    smallest = _smallest_part(a, v, lower_noise)
    return v / jnp.square(a) * jnp.clip(1.0 - v * second_moment, smallest, 1.0)


def _smallest_part(a, v, lower_noise):
    """The least variance as a part of ``v / a**2``."""
    bridge = lower_noise / (lower_noise * jnp.square(a) + v)
    return jnp.square(a) * jnp.maximum(bridge, _SMALLEST_FRACTION)


def noising_misfit(segment: Segment, x: jax.Array, z: jax.Array) -> jax.Array:
    """``|x - a z|**2 / (2 v)``, a scalar, for ``x`` and ``z`` of shape ``(dim,)``."""
    return 0.5 * jnp.sum(jnp.square(x - segment.a * z)) / segment.v


def log_noising(segment: Segment, x: jax.Array, z: jax.Array) -> jax.Array:
    """``log N(x; a z, v I)``, a scalar, for ``x`` and ``z`` of shape ``(dim,)``."""
    volume = 0.5 * x.size * (_LOG_2PI + jnp.log(segment.v))
    return -noising_misfit(segment, x, z) - volume


def sample_noising(segment: Segment, z: jax.Array, noise: jax.Array) -> jax.Array:
    """A draw ``x ~ N(a z, v I)`` from standard normal ``noise`` ``(dim,)``."""
    return segment.a * z + jnp.sqrt(segment.v) * noise


def _noising_score(segment: Segment, x: jax.Array, z: jax.Array) -> jax.Array:
    return segment.a * (x - segment.a * z) / segment.v


def reverse_kernel(segment: Segment, x: jax.Array, lower: DensityFn) -> DensityFn:
    """The unnormalised log density of ``z`` given ``x``, with its gradient in ``z``.

    Args:
        segment: the segment.
        x: state at the upper level, ``(dim,)``.
        lower: log density and score of the lower level.
    """

    def target(z: jax.Array) -> Evaluation:
        value, score = lower(z)
        return Evaluation(
            value + log_noising(segment, x, z), score + _noising_score(segment, x, z)
        )

    return target


def with_noising(
    segment: Segment, x: jax.Array, z: jax.Array, lower: Evaluation
) -> Evaluation:
    """What :func:`reverse_kernel` gives at ``z``, from the lower level's evaluation."""
    return Evaluation(
        lower.log_density + log_noising(segment, x, z),
        lower.score + _noising_score(segment, x, z),
    )


def without_noising(
    segment: Segment, x: jax.Array, z: jax.Array, kernel: Evaluation
) -> Evaluation:
    """The lower level's evaluation at ``z``, from that of the reverse kernel."""
    return Evaluation(
        kernel.log_density - log_noising(segment, x, z),
        kernel.score - _noising_score(segment, x, z),
    )


def proposal_mean(segment: Segment, x: jax.Array, score: jax.Array) -> jax.Array:
    """Mean ``(dim,)`` of the proposal of ``z``, given ``x`` and the upper score there."""
    return segment.mean_x * x + segment.mean_score * score + segment.shift


def sample_proposal(
    segment: Segment, x: jax.Array, score: jax.Array, noise: jax.Array
) -> jax.Array:
    """A draw of the proposal from standard normal ``noise`` ``(dim,)``.

    ``score`` is the upper level's at ``x``.
    """
    return proposal_mean(segment, x, score) + stretch(segment.root, noise)


def proposal_misfit(
    segment: Segment, z: jax.Array, x: jax.Array, score: jax.Array
) -> jax.Array:
    """Half the squared distance of ``z`` from the proposal's mean, in its spread."""
    residual = z - proposal_mean(segment, x, score)
    return 0.5 * jnp.sum(jnp.square(stretch(segment.inverse_root, residual)))


def log_proposal(
    segment: Segment, z: jax.Array, x: jax.Array, score: jax.Array
) -> jax.Array:
    """Log density of the proposal at ``z``, a scalar."""
    volume = segment.log_det + 0.5 * z.size * _LOG_2PI
    return -proposal_misfit(segment, z, x, score) - volume


def log_volume_ratio(segments: Segment) -> jax.Array:
    """The part of ``log_noising - log_proposal`` that no position enters.

    One number per segment, for any leading axes: apart, so that a run takes its
    logarithms once and not at every point.
    """
    dim = segments.shift.shape[-1]
    return segments.log_det - 0.5 * dim * jnp.log(segments.v)


def log_weight_increment(
    segment: Segment,
    z: jax.Array,
    x: jax.Array,
    at_z: Evaluation,
    at_x: Evaluation,
) -> jax.Array:
    """W of a step from ``x`` down to ``z``, a scalar; see the module.

    Args:
        segment: the segment.
        z: state at the lower level, ``(dim,)``.
        x: state at the upper level, ``(dim,)``.
        at_z: the lower level's evaluation at ``z``.
        at_x: the upper level's at ``x``.
    """
    misfit = noising_misfit(segment, x, z) - proposal_misfit(segment, z, x, at_x.score)
    ratio = at_z.log_density - at_x.log_density
    return ratio - misfit + log_volume_ratio(segment)
