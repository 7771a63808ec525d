r"""The reverse transition kernel of one segment, and its Gaussian start.

A segment joins the levels ``t_{k-1} < t_k``. With :math:`a = e^{-(t_k - t_{k-1})}` and
:math:`v = 1 - a^2` the noising kernel is :math:`N(x_k; a z, v I)`, and the reverse
transition kernel (Huang et al., NeurIPS 2024, arXiv 2405.16387, eq. 4) is

.. math:: p(z \mid x_k) \propto \pi_{k-1}(z)\, N(x_k; a z, v I),
          \qquad \nabla = \nabla\log\pi_{k-1}(z) + a (x_k - a z) / v .

Its *Gaussian start* is the one-step approximation

.. math:: q(z \mid x_k) = N\Bigl(z; \tfrac{1}{a}(x_k + v \nabla\log\pi_k(x_k)),
          \operatorname{diag}(\text{start variance})\Bigr),

whose mean is exact by Tweedie's formula when :math:`\pi_k` is the noised
:math:`\pi_{k-1}`, and whose best variance then is
:math:`\tfrac{v}{a^2} (1 - v\,E[(\nabla\log\pi_k)^2])` (analytic-DPM, Bao et al., ICLR
2022, arXiv 2201.06503). Having a density, it is what makes weights possible.

Positions are vectors ``(dim,)`` on the standardised scale.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.noise import noise_variance

__all__ = [
    "DensityFn",
    "Evaluation",
    "Segment",
    "analytic_start_variance",
    "log_noising",
    "log_start",
    "log_volume_ratio",
    "noising_between",
    "noising_misfit",
    "paper_segment_between",
    "reverse_kernel",
    "sample_noising",
    "sample_start",
    "segment_between",
    "start_mean",
    "start_misfit",
    "with_noising",
    "without_noising",
]

_LOG_2PI = 1.8378770664093453
# A start narrower than this fraction of a standard normal's reverse kernel is not to be
# believed: the moment that it is computed from is an estimate.
_SMALLEST_START_FRACTION = 0.02


class Evaluation(NamedTuple):
    """A log density ``()`` and its gradient ``(dim,)`` at one point."""

    log_density: jax.Array
    score: jax.Array


DensityFn = Callable[[jax.Array], Evaluation]


class Segment(NamedTuple):
    """One segment: ``a`` and ``v`` are scalars, and its Gaussian start.

    The start has mean ``start_x * x + start_score * score`` (scalars) and variance
    ``start_variance`` ``(dim,)``.
    """

    a: jax.Array
    v: jax.Array
    start_x: jax.Array
    start_score: jax.Array
    start_variance: jax.Array


def noising_between(t_low: jax.Array, t_high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``a`` and ``v`` of the noising from ``t_low`` to ``t_high`` (OU time, any shape)."""
    return jnp.exp(t_low - t_high), -jnp.expm1(2.0 * (t_low - t_high))


def segment_between(
    t_low: jax.Array, t_high: jax.Array, second_moment: jax.Array
) -> Segment:
    """The segment from ``t_high`` down to ``t_low`` (OU time) with an analytic start.

    Args:
        t_low: scalar or ``(K,)``.
        t_high: like ``t_low``.
        second_moment: mean squared score at ``t_high`` per coordinate, ``(..., dim)``.
    """
    a, v = noising_between(t_low, t_high)
    variance = analytic_start_variance(a, v, second_moment, noise_variance(t_low))
    return Segment(a, v, 1.0 / a, v / a, variance)


def paper_segment_between(
    t_low: jax.Array, t_high: jax.Array, smoothness: jax.Array, dim: int
) -> Segment:
    """A segment with the paper's start ``N(x e^eta / 2, I / (4 L))``.

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
    return Segment(a, v, 0.5 / a, jnp.zeros_like(a), variance)


def analytic_start_variance(
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
        a: the segment's, like ``v`` a scalar or ``(K,)``.
        v: see there.
        second_moment: mean squared score at the upper level, ``(..., dim)``.
        lower_noise: the noise's variance at the lower level, like ``v``.
    """
    a, v, lower_noise = (jnp.asarray(x)[..., None] for x in (a, v, lower_noise))
    widest = v / jnp.square(a)
    bridge = lower_noise * v / (lower_noise * jnp.square(a) + v)
    smallest = jnp.maximum(bridge, _SMALLEST_START_FRACTION * v)
    return jnp.clip(widest * (1.0 - v * second_moment), smallest, widest)


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


def start_mean(segment: Segment, x: jax.Array, score: jax.Array) -> jax.Array:
    """Mean of the start of ``z`` given ``x``; Tweedie's ``(x + v score) / a``."""
    return segment.start_x * x + segment.start_score * score


def sample_start(
    segment: Segment, x: jax.Array, score: jax.Array, noise: jax.Array
) -> jax.Array:
    """A draw of the Gaussian start from standard normal ``noise`` ``(dim,)``.

    ``score`` is the upper level's at ``x``.
    """
    return start_mean(segment, x, score) + jnp.sqrt(segment.start_variance) * noise


def start_misfit(
    segment: Segment, z: jax.Array, x: jax.Array, score: jax.Array
) -> jax.Array:
    """Half the squared distance of ``z`` from the start's mean, in its variances."""
    residual = z - start_mean(segment, x, score)
    return 0.5 * jnp.sum(jnp.square(residual) / segment.start_variance)


def log_start(
    segment: Segment, z: jax.Array, x: jax.Array, score: jax.Array
) -> jax.Array:
    """Log density of the Gaussian start at ``z``, a scalar."""
    volume = 0.5 * jnp.sum(_LOG_2PI + jnp.log(segment.start_variance))
    return -start_misfit(segment, z, x, score) - volume


def log_volume_ratio(segments: Segment) -> jax.Array:
    """The part of ``log_noising - log_start`` that no position enters.

    One number per segment, for any leading axes: apart, so that a run takes its
    logarithms once and not at every point.
    """
    variance = segments.start_variance
    dim = variance.shape[-1]
    return 0.5 * (jnp.sum(jnp.log(variance), axis=-1) - dim * jnp.log(segments.v))
