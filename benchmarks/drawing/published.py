"""The RTK paper's samplers in its own setting, one compiled program for any length.

Algorithm 1 of Huang et al. (arXiv 2405.16387) with 5 uniform segments, the start
``N(x e^eta / 2, I / 4L)`` and as many inner steps in each: the run of ``as_published``
in the package, here with the step size and the number of steps as arguments, so that
tuning does not compile, and with the true smoothness. RTK-ULA, which the package does not
offer, is the paper's overdamped form without the Metropolis test.
"""

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk import paths
from numpyro_rtk.core.annealed import Plan, anneal_down
from numpyro_rtk.core.inner import (
    InnerInfo,
    InnerSampler,
    InnerState,
    stretch,
    unstretch_score,
)
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.run_noise import RunNoise
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.core.uld import ULD
from numpyro_rtk.density import loc_and_scale, standardised
from numpyro_rtk.noise import noise_variance, signal, uniform_ladder

__all__ = ["SAMPLERS", "draw", "evals", "steps_within"]

SEGMENTS = 5
TIMES = uniform_ladder(SEGMENTS)


@dataclass(frozen=True)
class ULA(InnerSampler):
    """Unadjusted Langevin steps ``z + h**2 M s(z) / 2 + h M**.5 xi``: MALA untested."""

    is_adjusted = uses_energy = False

    def step(self, noise, state, target, step_size, scale):
        force = unstretch_score(scale, state.evaluation.score)
        move = 0.5 * step_size**2 * force + step_size * noise.normal[0]
        position = state.position + stretch(scale, move)
        info = InnerInfo(
            jnp.ones_like(noise.uniform), jnp.array(True), jnp.array(False)
        )
        return InnerState(position, target(position)), info


SAMPLERS: dict[str, InnerSampler] = {
    "RTK-ULA": ULA(),
    "RTK-ULD": ULD().unadjusted(),
    "RTK-MALA": MALA(num_leapfrog=1),
    "RTK-MALA, Taylor": MALA(num_leapfrog=1, acceptance="taylor"),
    "RTK-MALA, trapezoid": MALA(num_leapfrog=1, acceptance="trapezoid"),
    "RTK-MALA, Simpson": MALA(num_leapfrog=1, acceptance="simpson"),
}


def evals(inner: InnerSampler, num_steps: int) -> int:
    """Evaluations of a draw, as few as the algorithm allows.

    A segment's start reads no score. A Metropolis step needs the score of its proposal
    too, an unadjusted one only that of the point that it leaves.
    """
    at_start = 1 if inner.is_adjusted else 0
    return SEGMENTS * (at_start + num_steps * inner.evals_per_step)


def steps_within(inner: InnerSampler, budget: int) -> int:
    """Inner steps per segment that a number of evaluations pays for."""
    at_start = 1 if inner.is_adjusted else 0
    return (budget // SEGMENTS - at_start) // inner.evals_per_step


class _Counted(NamedTuple):
    """An inner sampler's state and the steps that it has taken."""

    state: NamedTuple
    count: jax.Array

    @property
    def position(self) -> jax.Array:
        return self.state.position  # type: ignore[attr-defined]

    @property
    def evaluation(self) -> Evaluation:
        return self.state.evaluation  # type: ignore[attr-defined]


class FirstSteps(InnerSampler):
    """``inner``, at rest after ``limit`` steps: one program serves every number."""

    def __init__(self, inner: InnerSampler, limit: jax.Array):
        self.inner, self.limit = inner, limit
        self.normals_per_start = inner.normals_per_start
        self.normals_per_step = inner.normals_per_step

    def init(self, noise, position, evaluation):
        state = self.inner.init(noise, position, evaluation)
        return _Counted(state, jnp.zeros((), int))

    def step(self, noise, state, target, step_size, scale):
        inner, (state, count) = self.inner, state
        state, info = jax.lax.cond(
            count < self.limit,
            lambda state: inner.step(noise, state, target, step_size, scale),
            lambda state: (
                state,
                InnerInfo(jnp.ones_like(noise.uniform), *jnp.array([True, False])),
            ),
            state,
        )
        return _Counted(state, count + 1), info


@eqx.filter_jit
def plan_for(density, key: jax.Array, n: int = 20_000) -> Plan:
    """The paper's segments and start, with what it takes as known; no step sizes yet.

    The mean squared scores that stand for the smoothness L and give each kernel's spread
    are those of exact draws. The package must measure them by a run of its own, which 5
    wide segments take far from the target: at level 0 it finds too much curvature.
    """
    base = standardised(density)
    loc, scale = loc_and_scale(density)
    key_clean, key_noise = jr.split(key)
    clean = (density.sample(key_clean, (n,)) - loc) / scale
    noise = jr.normal(key_noise, clean.shape)

    def moment(t):
        x = signal(t) * clean + jnp.sqrt(noise_variance(t)) * noise
        return jnp.mean(jnp.square(jax.vmap(lambda z: base(z, t).score)(x)), axis=0)

    moments = jax.lax.map(moment, jnp.asarray(TIMES))
    segments, spread = paths.plan_segments(TIMES, moments, paper_start=True)
    return Plan(paths.levels_of(TIMES, 1.0), segments, jnp.zeros(SEGMENTS), spread)


@eqx.filter_jit
def draw(
    density,
    plan: Plan,
    inner: InnerSampler,
    num_steps: jax.Array,
    step_size: jax.Array,
    key: jax.Array,
    n: int,
    most_steps: int,
) -> jax.Array:
    """Independent draws ``(n, dim)``, ``num_steps <= most_steps`` inner steps a segment.

    Args:
        density: to draw from.
        plan: from :func:`plan_for`.
        inner: one of :data:`SAMPLERS`.
        num_steps: per segment, traced.
        step_size: in units of each reverse kernel's spread, traced.
        key: PRNG key.
        n: number of draws.
        most_steps: of all calls, so that they share a program.
    """
    plan = plan._replace(step_size=jnp.full(SEGMENTS, step_size))
    limited = FirstSteps(inner, num_steps)
    path = paths.prior_path(standardised(density))
    steps = (most_steps,) * SEGMENTS
    noise = RunNoise.draw(key, plan.scale, limited, steps, (n,))
    run = jax.vmap(lambda one: anneal_down(one, path, plan, limited, steps))(noise)
    loc, scale = loc_and_scale(density)
    return loc + scale * run.position
