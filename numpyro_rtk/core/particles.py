r"""Conditional sequential Monte Carlo down the ladder: particle Gibbs.

A score network's own *generative chain* goes from :math:`x_K \sim N(0, I)` down by Gaussian
reverse kernels :math:`q_k(x_{k-1} \mid x_k)` (the analytic proposal of a segment: Tweedie's
mean and the best covariance that is the same for all :math:`x_k`). It has a density on
paths, and so has the posterior under it,

.. math:: \pi(x_{0:K}) \propto N(x_K)\,\prod_k q_k(x_{k-1} \mid x_k)\; \ell(x_0) .

With an energy the densities :math:`p_{t_k}` take the place of the chain: the target is then
:math:`p_0(x_0)\,\ell(x_0) \prod_k N(x_k; a x_{k-1}, v)`, whose :math:`x_0` is the posterior
under the learned density itself.

Particles come down under *twisted* targets, which look ahead to the likelihood (Wu et al.
2023, arXiv 2306.17775),

.. math:: \psi_k(x) \approx \int \ell(x_0)\, p(x_0 \mid x)\, dx_0, \qquad \psi_0 = \ell

(see ``twist.py``), from
proposals that the twist has shifted. The current path is one of the particles, which
stays (Andrieu, Doucet, Holenstein, JRSS-B 2010), and the next path is drawn backwards
among all of them (Whiteley 2010): this leaves the target invariant for any number of
particles, any c and any error of the network's. All that a poor twist costs is mixing.
Particles are resampled where their weights have become unequal, and not before: each time
a part of them comes to descend from the current path.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.annealed import log_reference
from numpyro_rtk.core.covariance import like
from numpyro_rtk.core.inner import draw_numbers
from numpyro_rtk.core.resampling import sample_size
from numpyro_rtk.core.segment import (
    Evaluation,
    Segment,
    log_noising,
    log_proposal,
    noising_between,
    sample_noising,
    sample_proposal,
)
from numpyro_rtk.core.twist import (
    LikelihoodFn,
    Sharpness,
    Twist,
    look_ahead,
    narrowed,
    twist_of,
)
from numpyro_rtk.noise import noise_variance, signal

__all__ = [
    "Levels",
    "ParticlePlan",
    "Sweep",
    "SweepNoise",
    "Target",
    "noised",
    "particle_plan",
    "sweep",
]

# Particles are resampled where their effective number has fallen below this part.
_RESAMPLED = 0.5
_TINY = 1e-30


class Target(NamedTuple):
    """What particles are weighed by.

    Attributes:
        base: the noised prior, ``(x (dim,), t) -> Evaluation``.
        likelihood: ``x (dim,) -> (value, gradient)`` of the log likelihood; None without.
        has_energy: whether the base's log densities are one; static.
    """

    base: Callable[[jax.Array, jax.Array], Evaluation]
    likelihood: LikelihoodFn | None
    has_energy: bool


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


class ParticlePlan(NamedTuple):
    """Levels, and segments between them; arrays, so that adapting costs no retrace.

    Attributes:
        levels: see :class:`Levels`.
        segments: the network's reverse kernels, diagonal or dense; leading axis K, lowest
            first.
        proposals: what particles are drawn from, as narrow as their twist makes them.
    """

    levels: Levels
    segments: Segment
    proposals: Segment


def particle_plan(
    times: jax.Array, unknown: jax.Array, sharpness: Sharpness
) -> ParticlePlan:
    """The plan of a ladder.

    Args:
        times: ``(K + 1,)``.
        unknown: mean covariance of the clean value at them, ``(K + 1, dim, dim)``, or its
            diagonal, ``(K + 1, dim)``.
        sharpness: of the likelihood, on the standardised scale.
    """
    t = jnp.asarray(times, unknown.dtype)
    a, s2 = signal(t), noise_variance(t)
    # the mean derivative of Tweedie's mean by the position; at level 0 they are the same
    slope = like(a / jnp.maximum(s2, _TINY), unknown) * unknown
    one = jnp.ones(unknown.shape[-1], unknown.dtype)
    slope = slope.at[0].set(one if unknown.ndim == 2 else jnp.diag(one))
    twist = twist_of(slope, unknown, sharpness)
    segments = segments_of(t, unknown)
    lower = jax.tree.map(lambda leaf: leaf[:-1], twist)
    return ParticlePlan(
        levels=Levels(time=t, signal=a, noise_variance=s2, twist=twist),
        segments=segments,
        proposals=narrowed(segments, lower, sharpness.is_even),
    )


def segments_of(times: jax.Array, unknown: jax.Array) -> Segment:
    """The network's reverse kernels, leading axis K.

    Of a clean value that is known a lower state varies as a bridge does between it and the
    upper one; of one that is not, by that much more.

    Args:
        times: ``(K + 1,)``.
        unknown: see :func:`particle_plan`.
    """
    a, v = noising_between(times[:-1], times[1:])
    s2 = noise_variance(times[:-1])
    total = jnp.square(a) * s2 + v
    bridge, share = s2 * v / total, signal(times[:-1]) * v / total
    if unknown.ndim == 2:
        variance = bridge[:, None] + jnp.square(share)[:, None] * unknown[1:]
        root = jnp.sqrt(variance)
        inverse = 1.0 / root
        log_det = jnp.sum(jnp.log(root), axis=1)
    else:
        spread, axes = jax.lax.map(jnp.linalg.eigh, unknown[1:])
        spread = jnp.maximum(spread, 0.0)
        variance = bridge[:, None] + jnp.square(share)[:, None] * spread
        root = axes * jnp.sqrt(variance)[:, None]
        inverse = jnp.swapaxes(axes / jnp.sqrt(variance)[:, None], -1, -2)
        log_det = 0.5 * jnp.sum(jnp.log(variance), axis=1)
    shift = jnp.zeros_like(variance)
    return Segment(a, v, 1.0 / a, v / a, shift, root, inverse, log_det)


class SweepNoise(NamedTuple):
    """Random numbers of a sweep.

    Attributes:
        top: standard normals at level K, ``(n, dim)``.
        cross: of the proposals, ``(K, n, dim)``.
        resample: uniforms, ``(K, n)``.
        back: uniforms that choose the next path, level 0 first, ``(K + 1,)``.
    """

    top: jax.Array
    cross: jax.Array
    resample: jax.Array
    back: jax.Array

    @classmethod
    def draw(
        cls, key: jax.Array, num_levels: int, num_particles: int, dim: int, dtype: Any
    ) -> "SweepNoise":
        """In one call, which costs time to compile."""
        n = num_particles
        (top, cross), (resample, back) = draw_numbers(
            key,
            (),
            [(n, dim), (num_levels, n, dim)],
            [(num_levels, n), (num_levels + 1,)],
            dtype,
        )
        return cls(top, cross, resample, back)


class Sweep(NamedTuple):
    """What comes of a sweep.

    Attributes:
        path: the next one, level 0 first, ``(K + 1, dim)``.
        log_evidence: log of the product of the mean weights. Of a run that kept no path its
            exponential is an unbiased estimate of the evidence; of one that did, the
            inverse of its exponential is one of the evidence's inverse.
        sample_size: effective number of particles at every level, ``(K + 1,)``.
        log_likelihood: at the next path's end.
        log_density: the prior's there; 0 without an energy.
    """

    path: jax.Array
    log_evidence: jax.Array
    sample_size: jax.Array
    log_likelihood: jax.Array
    log_density: jax.Array


class _Level(NamedTuple):
    """The particles of one level, all that the way back needs; leading axis n.

    ``taken`` is the log of the level's own target: its twist, and with an energy its
    density. What a particle is worth at the next level is counted from it.
    """

    position: jax.Array
    score: jax.Array
    taken: jax.Array
    log_weight: jax.Array
    sample_size: jax.Array

    @property
    def is_resampled(self) -> jax.Array:
        return self.sample_size < _RESAMPLED


def sweep(
    noise: SweepNoise,
    path: jax.Array | None,
    target: Target,
    plan: ParticlePlan,
) -> Sweep:
    """Particles from the top level to level 0, and a path chosen among theirs.

    Costs ``n K`` evaluations of the network, with an energy ``n (K + 1)``.

    Args:
        noise: random numbers of a sweep.
        path: the current one, ``(K + 1, dim)``; it is particle 0 all the way. None: there
            is none, and the sweep is a plain sequential Monte Carlo run.
        target: what particles are weighed by.
        plan: levels and segments.
    """
    is_kept = path is not None
    keep = lambda x, row: x.at[0].set(row) if is_kept else x
    everyone = jnp.arange(len(noise.top))

    def down(carry, inputs):
        x, log_weight = carry
        cross, uniforms, segment, proposal, level, row = inputs
        score, taken, pull = _weigh(x, target, level)
        log_weight = _usable(log_weight + taken)
        here = _Level(x, score, taken, log_weight, sample_size(log_weight))
        chosen = _choose(log_weight, uniforms)
        chosen = chosen.at[0].set(0) if is_kept else chosen
        chosen = jnp.where(here.is_resampled, chosen, everyone)
        log_weight = _after(log_weight, here.is_resampled)
        x, score, taken, pull = (leaf[chosen] for leaf in (x, score, taken, pull))
        proposals = jax.vmap(_pulled, in_axes=(None, 0))(proposal, pull)
        z = keep(jax.vmap(sample_proposal)(proposals, x, score, cross), row)
        log_weight = log_weight + _transition(segment, target, z, x, score) - taken
        log_weight = log_weight - jax.vmap(log_proposal)(proposals, z, x, score)
        return (z, log_weight), here

    x = keep(noise.top, path[-1] if is_kept else None)
    log_weight = jnp.zeros(len(x), x.dtype)
    if target.has_energy:
        log_weight = log_weight - jax.vmap(log_reference)(x)
    upper = jax.tree.map(lambda leaf: leaf[1:], plan.levels)
    rows = path[:-1] if is_kept else jnp.zeros_like(noise.cross[:, 0])
    inputs = (noise.cross, noise.resample, plan.segments, plan.proposals, upper, rows)
    (x, log_weight), above = jax.lax.scan(down, (x, log_weight), inputs, reverse=True)
    log_prior, log_likelihood = _at_bottom(x, target)
    log_weight = _usable(log_weight + log_prior + log_likelihood)
    chosen = _choose(log_weight, noise.back[0])
    log_mean = jax.nn.logsumexp(above.log_weight, axis=1)
    log_mean = jnp.where(above.is_resampled, log_mean - jnp.log(len(x)), 0.0)
    last = jax.nn.logsumexp(log_weight) - jnp.log(len(x))
    size = jnp.append(sample_size(log_weight), above.sample_size)
    return Sweep(
        path=_way_back(noise.back[1:], x[chosen], above, target, plan.segments),
        log_evidence=last + jnp.sum(log_mean),
        sample_size=len(x) * size,
        log_likelihood=log_likelihood[chosen],
        log_density=log_prior[chosen],
    )


def _way_back(uniforms, bottom, above: _Level, target, segments) -> jax.Array:
    """From a particle of level 0 up, each level's in proportion to what led here.

    Where nothing was resampled as well: the particles of such a level, each with the way it
    came since they last were, are independent proposals of the path's upper part, and the
    choice among them and the current one leaves its law as it is.
    """

    def up(below, inputs):
        uniform, segment, level = inputs
        z = jnp.broadcast_to(below[None], level.position.shape)
        led_here = _transition(segment, target, z, level.position, level.score)
        log_weight = _usable(level.log_weight - level.taken + led_here)
        chosen = level.position[_choose(log_weight, uniform)]
        return chosen, chosen

    _, rest = jax.lax.scan(up, bottom, (uniforms, segments, above))
    return jnp.concatenate([bottom[None], rest])


def _weigh(x, target: Target, level: Levels):
    """Scores at particles ``(n, dim)``, the level's own target, the twist's gradient."""
    prior = jax.vmap(target.base, in_axes=(0, None))(x, level.time)
    taken = prior.log_density if target.has_energy else jnp.zeros(len(x), x.dtype)
    if target.likelihood is None:
        return prior.score, taken, jnp.zeros_like(x)
    clean = (x + level.noise_variance * prior.score) / level.signal
    value, gradient = jax.vmap(target.likelihood)(clean)
    twisted = jax.vmap(look_ahead, in_axes=(None, 0, 0))
    twist, pull = twisted(level.twist, value, gradient)
    return prior.score, taken + twist, pull


def _at_bottom(x, target: Target) -> tuple[jax.Array, jax.Array]:
    """Log densities of the prior (0 without an energy) and log likelihoods at level 0."""
    nothing = jnp.zeros(len(x), x.dtype)
    log_prior = log_likelihood = nothing
    if target.has_energy:
        base = jax.vmap(target.base, in_axes=(0, None))
        log_prior = base(x, jnp.zeros((), x.dtype)).log_density
    if target.likelihood is not None:
        log_likelihood, _ = jax.vmap(target.likelihood)(x)
    return log_prior, log_likelihood


def _pulled(proposal: Segment, pull: jax.Array) -> Segment:
    """One particle's proposal: Tweedie's mean of a score that the twist is added to."""
    return proposal._replace(shift=proposal.mean_score * pull)


def _transition(segment: Segment, target: Target, z, x, score) -> jax.Array:
    """Log density that leads from x to z, of the extended target; ``(n,)``."""
    if target.has_energy:
        return jax.vmap(log_noising, in_axes=(None, 0, 0))(segment, x, z)
    return jax.vmap(log_proposal, in_axes=(None, 0, 0, 0))(segment, z, x, score)


def _choose(log_weight: jax.Array, uniform: jax.Array) -> jax.Array:
    """Indices in proportion to the weights ``(n,)``, one for each uniform."""
    total = jnp.cumsum(jnp.exp(log_weight - jnp.max(log_weight)))
    chosen = jnp.searchsorted(total, uniform * total[-1], side="right")
    return jnp.minimum(chosen, len(log_weight) - 1)


def _after(log_weight: jax.Array, is_resampled: jax.Array) -> jax.Array:
    """The weights that particles go on with: they count until they are resampled."""
    return jnp.where(is_resampled, 0.0, log_weight)


def _usable(log_weight: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)


def noised(noise: jax.Array, bottom: jax.Array, segments: Segment) -> jax.Array:
    """A path ``(K + 1, dim)`` from ``bottom`` ``(dim,)`` up, from normals ``(K, dim)``.

    With an energy these are the levels above a draw, given the draw.
    """

    def up(x, inputs):
        segment, normal = inputs
        x = sample_noising(segment, x, normal)
        return x, x

    _, rest = jax.lax.scan(up, bottom, (segments, noise))
    return jnp.concatenate([bottom[None], rest])
