r"""Underdamped Langevin dynamics: the paper's integrator, and an adjusted form.

In coordinates divided by ``scale``, :math:`dz = u\,d\tau`,
:math:`du = -\gamma u\,d\tau + s(z)\,d\tau + \sqrt{2\gamma}\,dB`.

*Unadjusted* (algorithm 3 of the RTK paper, arXiv 2405.16387; Cheng et al. 2018): the
score is frozen over a step and the linear equation solved exactly,

.. math:: z^+ &= z + \gamma^{-1}(1 - e^{-\gamma\tau}) u
          + \gamma^{-1}(\tau - \gamma^{-1}(1 - e^{-\gamma\tau})) s + \xi_z \\
          u^+ &= e^{-\gamma\tau} u + \gamma^{-1}(1 - e^{-\gamma\tau}) s + \xi_u ,

with :math:`(\xi_z, \xi_u)` jointly Gaussian. Its law is biased by the step size.

*Adjusted*: the momentum is refreshed by half, one leapfrog step is accepted or refused
with a flip of the momentum, and the momentum is refreshed by half again (Horowitz 1991;
OBABO with a Metropolis test, Bou-Rabee & Vanden-Eijnden 2010). The sequence is a
palindrome, hence reversible once the momentum is drawn anew and dropped.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk._checks import check_positive
from numpyro_rtk.core.inner import (
    LARGEST_ENERGY_ERROR,
    InnerInfo,
    InnerSampler,
    StepNoise,
    accept,
    accept_probability,
    stretch,
    unstretch_score,
)
from numpyro_rtk.core.segment import DensityFn, Evaluation

__all__ = ["ULD", "ULDState", "UnadjustedULD"]


class ULDState(NamedTuple):
    """``position``, ``velocity`` ``(dim,)`` and the target's evaluation there."""

    position: jax.Array
    velocity: jax.Array
    evaluation: Evaluation


@dataclass(frozen=True)
class ULD(InnerSampler):
    r"""Metropolis-adjusted underdamped Langevin steps; given as ``inner=``.

    In units of the target's spread, with a velocity u of law :math:`N(0, I)`,

    .. math:: dz = u\,d\tau, \qquad du = -\gamma u\,d\tau + \nabla\log\pi(z)\,d\tau
              + \sqrt{2\gamma}\,dB .

    A step costs one evaluation; it refreshes half of the velocity, makes one leapfrog step,
    which is accepted or refused, and refreshes the other half. ``RTKULD`` without
    ``adjusted=True`` takes the paper's steps in its place, which have no such test.

    Args:
        friction: gamma, per unit of time in those units; the paper takes about the square
            root of the target's smoothness, which is 1 in them.

    Raises:
        ValueError, TypeError: for a friction that is not a positive number.

    References:
        A. Horowitz, *A generalized guided Monte Carlo algorithm*, Phys. Lett. B 1991;
        N. Bou-Rabee, E. Vanden-Eijnden, *Pathwise accuracy and ergodicity of metropolized
        integrators for SDEs*, CPAM 2010. Algorithm 3 of X. Huang et al., *Reverse
        Transition Kernel*, NeurIPS 2024, arXiv 2405.16387.
    """

    friction: float = 2.0
    normals_per_start = 1
    normals_per_step = 2
    largest_step = 1.0

    def __post_init__(self):
        check_positive("friction", self.friction)

    def unadjusted(self) -> "UnadjustedULD":
        """The paper's steps of the same friction."""
        return UnadjustedULD(self.friction)

    def init(
        self, noise: jax.Array, position: jax.Array, evaluation: Evaluation
    ) -> ULDState:
        """See :class:`InnerSampler`."""
        return ULDState(position, noise[0], evaluation)

    def step(
        self,
        noise: StepNoise,
        state: ULDState,
        target: DensityFn,
        step_size: jax.Array,
        scale: jax.Array,
    ) -> tuple[ULDState, InnerInfo]:
        """See :class:`InnerSampler`."""
        keep = jnp.exp(-0.5 * self.friction * step_size)
        velocity = _refresh(noise.normal[0], state.velocity, keep)

        force = unstretch_score(scale, state.evaluation.score)
        half = velocity + 0.5 * step_size * force
        position = state.position + step_size * stretch(scale, half)
        evaluation = target(position)
        end = half + 0.5 * step_size * unstretch_score(scale, evaluation.score)
        gain = evaluation.log_density - state.evaluation.log_density
        kinetic = 0.5 * (jnp.sum(velocity**2) - jnp.sum(end**2))
        accept_prob, is_diverging = accept_probability(gain + kinetic)
        is_accepted = noise.uniform < accept_prob
        moved = accept(
            is_accepted,
            ULDState(position, end, evaluation),
            ULDState(state.position, -velocity, state.evaluation),
        )
        moved = moved._replace(velocity=_refresh(noise.normal[1], moved.velocity, keep))
        return moved, InnerInfo(accept_prob, is_accepted, is_diverging)


@dataclass(frozen=True)
class UnadjustedULD(InnerSampler):
    """The paper's steps, biased by the step size; made by :meth:`ULD.unadjusted`."""

    friction: float
    normals_per_start = 1
    normals_per_step = 2
    is_adjusted = False
    uses_energy = False
    largest_step = 1.0

    def init(
        self, noise: jax.Array, position: jax.Array, evaluation: Evaluation
    ) -> ULDState:
        """See :class:`InnerSampler`."""
        return ULDState(position, noise[0], evaluation)

    def step(
        self,
        noise: StepNoise,
        state: ULDState,
        target: DensityFn,
        step_size: jax.Array,
        scale: jax.Array,
    ) -> tuple[ULDState, InnerInfo]:
        """See :class:`InnerSampler`."""
        friction = self.friction
        sd_u, slope, sd_rest = exponential_noise(friction, step_size)
        noise_u = sd_u * noise.normal[0]
        noise_z = slope * noise_u + sd_rest * noise.normal[1]

        moved = -jnp.expm1(-friction * step_size) / friction
        force = unstretch_score(scale, state.evaluation.score)
        shift = (step_size - moved) / friction * force
        move = moved * state.velocity + shift + noise_z
        position = state.position + stretch(scale, move)
        velocity = (1.0 - friction * moved) * state.velocity + moved * force + noise_u
        evaluation = target(position)
        # Not a Metropolis test, but no step may leave the target: to where there is no
        # density, or by an unstable integrator's leap of 1,000 nats.
        gain = evaluation.log_density - state.evaluation.log_density
        proposed = ULDState(position, velocity, evaluation)
        finite = jnp.all(jnp.isfinite(position)) & jnp.all(
            jnp.isfinite(evaluation.score)
        )
        taken = (gain > -LARGEST_ENERGY_ERROR) & finite  # not where it is NaN
        one = jnp.ones_like(noise.uniform)
        return accept(taken, proposed, state), InnerInfo(one, taken, ~taken)


def exponential_noise(
    friction: float, step_size: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""The noise of the exact linear step, as the factors of its 2 x 2 covariance.

    :math:`\xi_u = \sigma_u e_1` and :math:`\xi_z = b\,\xi_u + \sigma_r e_2` with
    independent standard normals. With :math:`\theta = \gamma\tau`, the paper's moments
    are :math:`\sigma_u^2 = 1 - e^{-2\theta}`, :math:`b = \tanh(\theta/2) / \gamma` and
    :math:`\sigma_r^2 = 2(\theta - 2\tanh(\theta/2)) / \gamma^2`.

    Returns:
        ``sd_u``, ``slope`` b and ``sd_rest``, scalars.
    """
    theta = friction * step_size
    tanh = jnp.tanh(0.5 * theta)
    # the difference of order theta**3 / 12 loses its digits where theta is small
    series = theta**3 / 12.0 * (1.0 - theta**2 / 10.0 + 17.0 * theta**4 / 1680.0)
    rest = jnp.where(theta < 0.3, series, theta - 2.0 * tanh)
    sd_u = jnp.sqrt(-jnp.expm1(-2.0 * theta))
    return sd_u, tanh / friction, jnp.sqrt(2.0 * rest) / friction


def _refresh(noise: jax.Array, velocity: jax.Array, keep: jax.Array) -> jax.Array:
    return keep * velocity + jnp.sqrt(1.0 - jnp.square(keep)) * noise
