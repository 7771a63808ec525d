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
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk._checks import check_positive, check_positive_int
from numpyro_rtk.core import acceptance as rules
from numpyro_rtk.core.inner import (
    InnerInfo,
    InnerSampler,
    StepNoise,
    accept,
    accept_probability,
    stretch,
    unstretch_score,
)
from numpyro_rtk.core.segment import DensityFn, Evaluation

__all__ = ["MALAState", "mala"]


class MALAState(NamedTuple):
    """``position`` ``(dim,)`` and the target's evaluation there."""

    position: jax.Array
    evaluation: Evaluation


def _init(noise: jax.Array, position: jax.Array, evaluation: Evaluation) -> MALAState:
    del noise  # every step has a momentum of its own
    return MALAState(position, evaluation)


def mala(
    *,
    num_leapfrog: int = 2,
    acceptance: str = "energy",
    move_radius: float | None = None,
    ball_radius: float | None = None,
) -> InnerSampler:
    """Build the sampler.

    Args:
        num_leapfrog: leapfrog steps per inner step; 1 is plain MALA.
        acceptance: ``"energy"`` (exact); from scores alone: ``"simpson"``,
            ``"trapezoid"`` or ``"taylor"`` (the paper's).
        move_radius: the paper's projection: refuse a move longer than this.
        ball_radius: the paper's projection: refuse a proposal farther than this from 0.

    Raises:
        ValueError: for options outside these.
    """
    check_positive_int("num_leapfrog", num_leapfrog)
    if acceptance not in rules.RULES:
        raise ValueError(
            f"`acceptance` must be one of {rules.RULES}; got {acceptance!r}."
        )
    if acceptance != "energy" and num_leapfrog > 2:
        raise ValueError(
            "`num_leapfrog` must be 1 or 2 when `acceptance` is estimated from scores; "
            f"got {num_leapfrog!r}."
        )
    for name, radius in (("move_radius", move_radius), ("ball_radius", ball_radius)):
        if radius is not None:
            check_positive(name, radius)

    extra_evals = {
        "energy": 0,
        "simpson": 1 if num_leapfrog == 1 else 0,
        "trapezoid": 0,
        "taylor": 1,
    }[acceptance]

    def step(
        noise: StepNoise,
        state: MALAState,
        target: DensityFn,
        step_size: jax.Array,
        scale: jax.Array,
    ) -> tuple[MALAState, InnerInfo]:
        start, momentum = state.position, noise.normal[0]
        nodes, evaluations, end_momentum = _leapfrog(
            state, momentum, target, step_size, scale, num_leapfrog
        )
        end, end_evaluation = nodes[-1], evaluations[-1]
        gain = _log_density_gain(acceptance, target, nodes, evaluations)
        kinetic = 0.5 * (jnp.sum(momentum**2) - jnp.sum(end_momentum**2))
        accept_prob, is_diverging = accept_probability(gain + kinetic)
        accept_prob = accept_prob * _is_inside(start, end, move_radius, ball_radius)
        is_accepted = noise.uniform < accept_prob
        proposed = MALAState(end, end_evaluation)
        return accept(is_accepted, proposed, state), InnerInfo(
            accept_prob, is_accepted, is_diverging
        )

    return InnerSampler(
        init=_init,
        step=step,
        normals_per_start=0,
        normals_per_step=1,
        evals_per_step=num_leapfrog + extra_evals,
        is_adjusted=True,
        uses_energy=acceptance == "energy",
        largest_step=0.5 * math.pi / num_leapfrog,
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
