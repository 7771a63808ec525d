r"""A large population down the ladder: what a posterior looks like before any chain runs.

Particles at the top are draws of the standard normal. The ladder is found on the way: a
segment is as wide as leaves the particles' weights even enough, so that none is wider
than the population found passable. Half of the particles cross it by the Gaussian
proposal of the reverse transition kernel, half by a plain change of scale; both have
weights, so whichever of them fits takes over. Below a level whose density ends at a
boundary all are scaled, half of them the other way: the noising leads back over it, where
no particle can have come from, and the proposal's weights would miss that part. Then they
are resampled and make a local move: a sequential Monte Carlo sampler (Del Moral, Doucet,
Jasra, JRSS-B 2006), adaptive in its levels and step sizes.

The products of the mean weights estimate the normalising constants, without bias but for
what the adaptation adds (of order 1 / n). How far they, and shares of particles, can be
trusted follows from the ancestors at the top that the last particles go back to (Lee &
Whiteley, *Biometrika* 2018): where few are left, the error is large, and says so.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk.core.annealed import Path, log_reference
from numpyro_rtk.core.curvature import mean_product, mean_square
from numpyro_rtk.core.exchange.local_move import ParticleNoise, move_particles
from numpyro_rtk.core.inner import InnerSampler
from numpyro_rtk.core.resampling import sample_size, some_of, systematic
from numpyro_rtk.core.segment import (
    Evaluation,
    log_weight_increment,
    sample_proposal,
    segment_between,
)
from numpyro_rtk.noise import noise_to_signal, time_from_noise_to_signal

__all__ = ["MOST_LEVELS", "Descent", "descend", "narrowest_found", "share_of"]

MOST_LEVELS = 96
# Particles whose weights are worth less than the first part of them have gone too far in
# one step; the step is chosen to keep about the second.
_LEAST_SIZE, _AIMED_SIZE = 0.3, 0.6
_SMALLEST_SIZE = 1e-6
# Steps in log noise-to-signal: the widest, and what is taken whatever the weights say.
_WIDEST, _NARROWEST = 1.2, 0.03
_MOST_ATTEMPTS = 400
# Where more of the particles than this have come to no density, the level has a boundary.
_AT_A_BOUNDARY = 0.01
# Beyond this the few that are left only happened to be there, and must find the rest.
_LOST = 0.9
# The local moves' step size: the first one, the least, and the acceptance that is aimed at.
_FIRST_STEP_SIZE, _SMALLEST_STEP_SIZE = 0.3, 1e-3
_AIMED_ACCEPTANCE, _GAIN = 0.65, 2.0
# The next step is at most so much narrower or wider, by a size of the weights within these.
_NARROWER, _WIDER = 0.5, 1.6
_SIZES = (0.05, 0.99)
# Particles that a mode needs where it has fewest, to be found for sure.
_ENOUGH_PARTICLES = 10


class Descent(NamedTuple):
    """One run of n particles; arrays of levels start at the top, ``num`` of them count.

    Attributes:
        num: segments crossed.
        times: of the levels, ``(L + 1,)``; 0 beyond those that count.
        kept: some particles of each level, ``(L + 1, m, dim)``.
        curvature: ``E[s s^T]`` of each level's scores, ``(L + 1, dim, dim)``, or its
            diagonal ``(L + 1, dim)``.
        step_size: of the local moves at the end.
        log_ratio: of normalising constants, lower to upper level, ``(L,)``.
        spread: of the log-weight increments, as if normal, ``(L,)``.
        position: the particles at level 0, ``(n, dim)``.
        evaluation: of the path there.
        ancestor: of each at the top, ``(n,)``.
        num_evals: evaluations spent.
    """

    num: jax.Array
    times: jax.Array
    kept: jax.Array
    curvature: jax.Array
    step_size: jax.Array
    log_ratio: jax.Array
    spread: jax.Array
    position: jax.Array
    evaluation: Evaluation
    ancestor: jax.Array
    num_evals: jax.Array

    @property
    def num_ancestors(self) -> jax.Array:
        """Particles at the top that the last ones go back to."""
        seen = jnp.zeros(self.ancestor.shape[0], bool).at[self.ancestor].set(True)
        return jnp.sum(seen)

    @property
    def log_evidence(self) -> jax.Array:
        """Of level 0, the reference's being 0."""
        return jnp.sum(self.log_ratio)

    @property
    def log_evidence_error(self) -> jax.Array:
        """Its standard error, from the ancestors that are left; 1 and more: unknown."""
        n = self.ancestor.shape[0]
        share = jnp.zeros(n, self.log_ratio.dtype).at[self.ancestor].add(1.0 / n)
        # log of (n / (n - 1))^(num + 1)
        correction = -(self.num + 1.0) * jnp.log1p(-1.0 / n)
        apart = jnp.maximum(1.0 - jnp.sum(jnp.square(share)), 1e-30)
        variance = -jnp.expm1(correction + jnp.log(apart))
        error = jnp.sqrt(jnp.maximum(variance, 1.0 / n))
        return jnp.where(jnp.isfinite(self.log_evidence), error, 1.0)


class _Record(NamedTuple):
    """Of the levels so far; see :class:`Descent`."""

    times: jax.Array
    kept: jax.Array
    curvature: jax.Array
    log_ratio: jax.Array
    spread: jax.Array


class _Carry(NamedTuple):
    key: jax.Array
    t: jax.Array
    step: jax.Array  # in log noise-to-signal
    last_noise: jax.Array  # from below which level 0 is tried
    step_size: jax.Array
    position: jax.Array
    evaluation: Evaluation
    has_boundary: jax.Array  # whether the density ends somewhere at this level
    ancestor: jax.Array
    attempts: jax.Array
    num: jax.Array
    record: _Record


class _Target(NamedTuple):
    """What particles are to follow; static."""

    path: Path
    level_at: Callable[[jax.Array], Any]
    inner: InnerSampler
    thorough: bool


def descend(
    key: jax.Array,
    path: Path,
    level_at: Callable[[jax.Array], Any],
    horizon: jax.Array,
    last_noise: jax.Array,
    inner: InnerSampler,
    num_particles: int,
    dim: int,
    *,
    dense: bool = False,
    thorough: bool = True,
    num_kept: int = 64,
    max_levels: int = MOST_LEVELS,
) -> Descent:
    """Run ``num_particles`` particles from the reference at ``horizon`` to level 0.

    Args:
        key: PRNG key.
        path: the intermediate targets.
        level_at: from an OU time ``()`` to the level that the path is asked for.
        horizon: OU time of the top level.
        last_noise: noise-to-signal from below which level 0 is tried.
        inner: sampler of the local moves, adjusted.
        num_particles: n, ``n (1 + evals_per_step)`` evaluations a level.
        dim: length of a position.
        dense: whether curvatures are matrices.
        thorough: whether a step must suit all particles, so that steps are narrow where one
            of the two kinds fails; else the kind that it suits better.
        num_kept: m, particles of each level that are kept for the chains.
        max_levels: L; the last segment goes to level 0 whatever its weights.
    """
    key, key_top = jr.split(key)
    top = jr.normal(key_top, (num_particles, dim), horizon.dtype)
    target = _Target(path, level_at, inner, thorough)
    first = _at_top(key, top, horizon, last_noise, num_kept, max_levels, dense)

    def is_under_way(carry: _Carry) -> jax.Array:
        return (carry.t > 0.0) & (carry.attempts < _MOST_ATTEMPTS)

    end = jax.lax.while_loop(is_under_way, lambda carry: _attempt(carry, target), first)
    return Descent(
        num=end.num,
        step_size=end.step_size,
        position=end.position,
        evaluation=end.evaluation,
        ancestor=end.ancestor,
        num_evals=num_particles * (end.attempts + end.num * inner.evals_per_step),
        **end.record._asdict(),
    )


def _at_top(key, top, horizon, last_noise, num_kept, max_levels, dense) -> _Carry:
    (n, dim), dtype = top.shape, top.dtype
    rows = lambda *shape: jnp.zeros(shape, dtype)
    one = jnp.eye(dim, dtype=dtype) if dense else jnp.ones(dim, dtype)
    kept = rows(max_levels + 1, num_kept, dim)
    return _Carry(
        key=key,
        t=horizon,
        step=jnp.asarray(_WIDEST, dtype),
        last_noise=jnp.asarray(last_noise, dtype),
        step_size=jnp.asarray(_FIRST_STEP_SIZE, dtype),
        position=top,
        evaluation=Evaluation(jax.vmap(log_reference)(top), -top),
        has_boundary=jnp.array(False),
        ancestor=jnp.arange(n),
        attempts=jnp.zeros((), int),
        num=jnp.zeros((), int),
        record=_Record(
            times=rows(max_levels + 1).at[0].set(horizon),
            kept=kept.at[0].set(some_of(top, num_kept)),
            curvature=jnp.tile(one, (max_levels + 1,) + (1,) * one.ndim),
            log_ratio=rows(max_levels),
            spread=rows(max_levels),
        ),
    )


def _attempt(carry: _Carry, target: _Target) -> _Carry:
    """Try a step down; too wide a one is refused, and the next is half as wide."""
    key, key_level = jr.split(carry.key)
    n, dim = carry.position.shape
    dtype = carry.position.dtype
    numbers = ParticleNoise.draw(key_level, target.inner, (n,), dim, dtype)
    noise = noise_to_signal(carry.t) * jnp.exp(-carry.step)
    must_end = carry.num == len(carry.record.spread) - 1
    is_last = (noise < carry.last_noise) | must_end
    t = jnp.where(is_last, 0.0, time_from_noise_to_signal(noise))
    crossed = _cross(numbers.cross, carry, t, target)
    can_narrow = (carry.step > _NARROWEST) & ~must_end
    goes_on = (crossed.size > _LEAST_SIZE) | ~can_narrow
    carry = carry._replace(key=key, attempts=carry.attempts + 1)
    refused = lambda: carry._replace(
        step=jnp.maximum(0.5 * carry.step, _NARROWEST),
        last_noise=jnp.where(is_last, 0.5, 1.0) * carry.last_noise,
    )
    return jax.lax.cond(
        goes_on, lambda: _arrive(numbers, carry, t, crossed, target), refused
    )


class _Crossed(NamedTuple):
    position: jax.Array
    evaluation: Evaluation
    log_weight: jax.Array
    size: jax.Array  # what the weights leave, as a part of the particles
    spread: jax.Array
    has_boundary: jax.Array


def _cross(noise, carry: _Carry, t, target: _Target) -> _Crossed:
    """Across one segment: every second particle by the proposal, the others scaled."""
    x, upper = carry.position, carry.evaluation
    n, dim = x.shape
    segment = segment_between(t, carry.t, mean_square(upper.score))
    each = jax.vmap(sample_proposal, in_axes=(None, 0, 0, 0))
    is_second = jnp.arange(n) % 2 == 1
    is_scaled = is_second | carry.has_boundary
    # along with the signal, as modes move; or so that the likelihood is asked where it
    # was before, and no boundary is crossed
    factor = jnp.where(is_second, 1.0 / segment.a, segment.a)
    z = jnp.where(
        is_scaled[:, None], factor[:, None] * x, each(segment, x, upper.score, noise)
    )
    z = jnp.where(jnp.isfinite(z), z, x)  # a proposal without a score is not made
    at_z = jax.vmap(target.path, in_axes=(0, None))(z, target.level_at(t))
    by_proposal = jax.vmap(log_weight_increment, in_axes=(None, 0, 0, 0, 0))(
        segment, z, x, at_z, upper
    )
    by_scaling = at_z.log_density - upper.log_density
    by_scaling += _log_volume_of_scaling(factor, dim)
    log_weight = jnp.where(is_scaled, by_scaling, by_proposal)
    # +inf: from where there is no density; if that is all of them, all go on
    log_weight = jnp.where(log_weight < jnp.inf, log_weight, -jnp.inf)
    of_kind = lambda kind: sample_size(jnp.where(kind, log_weight, -jnp.inf))
    sizes = jnp.stack([of_kind(is_second), of_kind(~is_second)])
    best = jnp.clip(2.0 * jnp.max(sizes), _SMALLEST_SIZE, 1.0)
    lost = jnp.mean(~jnp.isfinite(at_z.log_density))
    has_boundary = carry.has_boundary | (lost > _AT_A_BOUNDARY)
    return _Crossed(
        position=z,
        evaluation=at_z,
        log_weight=log_weight,
        size=sample_size(log_weight) if target.thorough else best,
        spread=jnp.sqrt(-jnp.log(best)),
        has_boundary=has_boundary & (lost < _LOST),
    )


def _log_volume_of_scaling(factor: jax.Array, dim: int) -> jax.Array:
    return dim * jnp.log(factor)


def _arrive(numbers, carry: _Carry, t, crossed: _Crossed, target: _Target) -> _Carry:
    """Resample, move at the new level, and take down what it looks like."""
    n, record = carry.position.shape[0], carry.record
    chosen = systematic(numbers.choose, crossed.log_weight)
    x, evaluation = jax.tree.map(
        lambda leaf: leaf[chosen], (crossed.position, crossed.evaluation)
    )
    path, level, inner = target.path, target.level_at(t), target.inner
    x, evaluation, accept_prob = move_particles(
        numbers.move, x, evaluation, path, level, inner, carry.step_size
    )
    change = jnp.exp(_GAIN * (accept_prob - _AIMED_ACCEPTANCE))
    size = jnp.clip(crossed.size, *_SIZES)
    factor = jnp.sqrt(jnp.log(_AIMED_SIZE) / jnp.log(size))
    step = carry.step * jnp.clip(factor, _NARROWER, _WIDER)
    total = jax.nn.logsumexp(crossed.log_weight)
    index, place = carry.num, carry.num + 1
    curvature = mean_product(evaluation.score, record.curvature.ndim == 3)
    return carry._replace(
        t=t,
        step=jnp.clip(step, _NARROWEST, _WIDEST),
        step_size=jnp.clip(
            carry.step_size * change, _SMALLEST_STEP_SIZE, inner.largest_step
        ),
        position=x,
        evaluation=evaluation,
        has_boundary=crossed.has_boundary,
        ancestor=carry.ancestor[chosen],
        num=place,
        record=_Record(
            times=record.times.at[place].set(t),
            kept=record.kept.at[place].set(some_of(x, record.kept.shape[1])),
            curvature=record.curvature.at[place].set(curvature),
            log_ratio=record.log_ratio.at[index].set(total - jnp.log(1.0 * n)),
            spread=record.spread.at[index].set(crossed.spread),
        ),
    )


def narrowest_found(num_particles: int, num_informed: float) -> float:
    r"""Relative width of the narrowest mode that a population finds for sure.

    At the level where it has least, a tempered mode of relative width :math:`\rho` in d
    directions has :math:`\rho^d` of the mass of one that will have the same: ten of n
    particles for :math:`\rho = (10 / n)^{1/d}`.

    Args:
        num_particles: n.
        num_informed: d, directions in which the data narrow the prior.
    """
    return float((_ENOUGH_PARTICLES / num_particles) ** (1.0 / num_informed))


def share_of(descent: Descent, membership: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Shares of the particles at level 0, and their errors, from common ancestors.

    Args:
        descent: the run.
        membership: of the particles in each group, ``(n, groups)``.

    Returns:
        Shares and standard errors, each ``(groups,)``.
    """
    n = membership.shape[0]
    share = jnp.mean(membership, axis=0)
    off = (membership - share[None]) / n
    by_ancestor = jnp.zeros_like(off).at[descent.ancestor].add(off)
    return share, jnp.sqrt(jnp.sum(jnp.square(by_ancestor), axis=0))
