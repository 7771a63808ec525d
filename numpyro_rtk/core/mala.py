r"""Metropolis-adjusted Langevin, as leapfrog steps from a fresh momentum.

With :math:`M = \operatorname{diag}(\text{scale}^2)` and momentum
:math:`p \sim N(0, I)`, one leapfrog step of size h proposes

.. math:: z' = z + \tfrac{h^2}{2} M s(z) + h M^{1/2} p ,

which is MALA of step :math:`\tau = h^2/2` (Besag 1994; Roberts & Tweedie 1996;
algorithm 2 of the RTK paper, arXiv 2405.16387). Two leapfrog steps (``num_leapfrog=2``,
the default) are short HMC: longer moves at a higher acceptance, and three nodes through
which Simpson's rule gives a score-only acceptance at no further evaluation.

Leapfrog preserves volume and is reversible whatever field drives it, so with
``acceptance="energy"`` the step is exact also when ``score`` is not quite the gradient
of ``log_density``.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp

from numpyro_rtk._checks import check_positive, check_positive_int
from numpyro_rtk.core import acceptance as rules
from numpyro_rtk.core.inner import (
    InnerInfo,
    InnerSampler,
    InnerState,
    StepNoise,
    accept,
    accept_probability,
    stretch,
    unstretch_score,
)
from numpyro_rtk.core.segment import DensityFn

__all__ = ["MALA"]


@dataclass(frozen=True)
class MALA(InnerSampler):
    r"""Metropolis-adjusted Langevin steps, made of leapfrog steps; given as ``inner=``.

    With step size h, the target's spread S (so that it has about unit variance in units
    of S) and a fresh momentum :math:`p \sim N(0, I)` one leapfrog step proposes

    .. math:: z' = z + \tfrac{h^2}{2} S S^\top \nabla \log \pi(z) + h S p ,

    which is accepted or refused: MALA with one of them, short HMC with more.

    Args:
        num_leapfrog: leapfrog steps per inner step, an evaluation each; 1 is plain MALA.
        acceptance: ``"energy"`` (exact), or from scores alone ``"simpson"``,
            ``"trapezoid"``, ``"taylor"`` (the paper's estimate): for densities without an
            energy. Such steps are approximate: they have no weights, and no exact kernel
            takes them.
        move_radius: the paper's projection: refuse a move longer than this, on the
            standardised scale.
        ball_radius: the paper's projection: refuse a point farther than this from the
            centre, on the standardised scale.

    Raises:
        ValueError, TypeError: for options outside these.

    References:
        G. Roberts, R. Tweedie, *Exponential convergence of Langevin distributions and
        their discrete approximations*, Bernoulli 1996. Algorithm 2 of X. Huang et al.,
        *Reverse Transition Kernel*, NeurIPS 2024, arXiv 2405.16387.
    """

    num_leapfrog: int = 2
    acceptance: str = "energy"
    move_radius: float | None = None
    ball_radius: float | None = None

    def __post_init__(self):
        check_positive_int("num_leapfrog", self.num_leapfrog)
        if self.acceptance not in rules.RULES:
            raise ValueError(
                f"`acceptance` must be one of {rules.RULES}; got {self.acceptance!r}."
            )
        if not self.uses_energy and self.num_leapfrog > 2:
            raise ValueError(
                "`num_leapfrog` must be 1 or 2 when `acceptance` is estimated from "
                f"scores; got {self.num_leapfrog!r}."
            )
        for name in ("move_radius", "ball_radius"):
            radius = getattr(self, name)
            if radius is not None:
                check_positive(name, radius)

    @property
    def evals_per_step(self) -> int:
        """One for each leapfrog step, and what the acceptance costs beyond."""
        is_chord = self.acceptance == "simpson" and self.num_leapfrog == 1
        return self.num_leapfrog + (is_chord or self.acceptance == "taylor")

    @property
    def uses_energy(self) -> bool:
        """Whether acceptance reads the log density."""
        return self.acceptance == "energy"

    @property
    def largest_step(self) -> float:
        """A quarter period, over all leapfrog steps."""
        return 0.5 * math.pi / self.num_leapfrog

    def step(
        self,
        noise: StepNoise,
        state: InnerState,
        target: DensityFn,
        step_size: jax.Array,
        scale: jax.Array,
    ) -> tuple[InnerState, InnerInfo]:
        """See :class:`InnerSampler`."""
        start, momentum = state.position, noise.normal[0]
        nodes, evaluations, end_momentum = _leapfrog(
            state, momentum, target, step_size, scale, self.num_leapfrog
        )
        end, end_evaluation = nodes[-1], evaluations[-1]
        gain = _log_density_gain(self.acceptance, target, nodes, evaluations)
        kinetic = 0.5 * (jnp.sum(momentum**2) - jnp.sum(end_momentum**2))
        accept_prob, is_diverging = accept_probability(gain + kinetic)
        accept_prob = accept_prob * _is_inside(
            start, end, self.move_radius, self.ball_radius
        )
        is_accepted = noise.uniform < accept_prob
        proposed = InnerState(end, end_evaluation)
        return accept(is_accepted, proposed, state), InnerInfo(
            accept_prob, is_accepted, is_diverging
        )


def _leapfrog(state, momentum, target, step_size, scale, num_leapfrog):
    nodes, evaluations = [state.position], [state.evaluation]
    for _ in range(num_leapfrog):
        force = unstretch_score(scale, evaluations[-1].score)
        momentum = momentum + 0.5 * step_size * force
        nodes.append(nodes[-1] + step_size * stretch(scale, momentum))
        evaluations.append(target(nodes[-1]))
        force = unstretch_score(scale, evaluations[-1].score)
        momentum = momentum + 0.5 * step_size * force
    return nodes, evaluations, momentum


def _log_density_gain(acceptance, target, nodes, evaluations) -> jax.Array:
    first, last = evaluations[0], evaluations[-1]
    if acceptance == "energy":
        return last.log_density - first.log_density
    if acceptance == "taylor":
        return rules.taylor(target, nodes[0], nodes[-1], first.score)
    if acceptance == "trapezoid":
        gain = jnp.zeros_like(first.log_density)
        for i, (low, high) in enumerate(pairwise(evaluations)):
            gain += rules.trapezoid(nodes[i], nodes[i + 1], low.score, high.score)
        return gain
    if len(nodes) == 2:
        start, end = nodes
        middle = target(0.5 * (start + end)).score
        return rules.simpson_midpoint(start, end, first.score, middle, last.score)
    return rules.simpson_curve(
        jnp.stack(nodes), jnp.stack([e.score for e in evaluations])
    )


def _is_inside(start, end, move_radius, ball_radius) -> jax.Array:
    inside = jnp.array(True)
    if move_radius is not None:
        inside &= jnp.linalg.norm(end - start) <= move_radius
    if ball_radius is not None:
        inside &= jnp.linalg.norm(end) <= ball_radius
    return inside
