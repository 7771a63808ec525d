r"""A large population down the ladder: what a posterior looks like before any chain runs.

Particles at the top are draws of the standard normal. The ladder is found on the way: a
segment is as wide as leaves the particles' weights even enough, so that none is wider
than the population found passable. Half of the particles cross it by the Gaussian
proposal of the reverse transition kernel, half by a plain change of scale; both have
weights, so whichever of them fits takes over. Below a level whose density ends at an edge
all are scaled, half of them the other way: the noising leads back over the edge, where no
particle can have come from, and the proposal's weights would miss that part. Then they are
resampled and make local moves: a sequential Monte Carlo sampler (Del Moral, Doucet, Jasra,
JRSS-B 2006), adaptive in its levels and step sizes.

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
from numpyro_rtk.core.covariance import shrunk
from numpyro_rtk.core.inner import (
    InnerNoise,
    InnerSampler,
    StepNoise,
    cut_draws,
    normal_shapes,
)
from numpyro_rtk.core.segment import (
    Evaluation,
    log_noising,
    log_start,
    sample_start,
    segment_between,
)
from numpyro_rtk.noise import noise_to_signal, time_from_noise_to_signal

__all__ = [
    "Descent",
    "LevelNoise",
    "descend",
    "mean_square",
    "narrowest_found",
    "share_of",
    "some_of",
    "systematic",
]

# Particles whose weights are worth less than the first part of them have gone too far in
# one step; the step is chosen to keep about the second.
_LEAST_SIZE, _AIMED_SIZE = 0.3, 0.6
# Steps in log noise-to-signal: the widest, and what is taken whatever the weights say.
_WIDEST, _NARROWEST = 1.2, 0.03
_MOST_ATTEMPTS = 400
# Where more of the particles than this have come to no density, the level has edges.
_AT_AN_EDGE = 0.01
# Beyond this the few that are left only happened to be there, and must find the rest.
_LOST = 0.9
_AIMED_ACCEPTANCE = 0.65
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


class LevelNoise(NamedTuple):
    """Random numbers of n particles that go down one level.

    Attributes:
        cross: normals of the proposal, ``(n, dim)``.
        choose: the uniform of resampling.
        move: of the local moves, leading axis n.
    """

    cross: jax.Array
    choose: jax.Array
    move: InnerNoise

    @classmethod
    def draw(
        cls,
        key: jax.Array,
        inner: InnerSampler,
        leading: tuple[int, ...],
        num_moves: int,
        dim: int,
        dtype: Any,
    ) -> "LevelNoise":
        """For ``leading``, which ends in n, in two calls: each costs time to compile."""
        key_normal, key_uniform = jr.split(key)
        shapes = [(dim,), *normal_shapes(inner, num_moves, dim)]
        cross, start, steps = cut_draws(jr.normal, key_normal, leading, shapes, dtype)
        choose, accept = cut_draws(
            jr.uniform, key_uniform, leading, [(), (num_moves,)], dtype
        )
        # one number for all particles
        choose = choose[..., 0]
        return cls(cross, choose, InnerNoise(start, StepNoise(steps, accept)))


class _Carry(NamedTuple):
    key: jax.Array
    t: jax.Array
    step: jax.Array  # in log noise-to-signal
    last_noise: jax.Array  # from below which level 0 is tried
    step_size: jax.Array
    position: jax.Array
    evaluation: Evaluation
    has_edge: jax.Array  # whether the density ends somewhere at this level
    ancestor: jax.Array
    attempts: jax.Array
    num: jax.Array
    times: jax.Array
    kept: jax.Array
    curvature: jax.Array
    log_ratio: jax.Array
    spread: jax.Array


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
    num_moves: int = 1,
    num_kept: int = 64,
    max_levels: int = 96,
) -> Descent:
    """Run ``num_particles`` particles from the reference at ``horizon`` to level 0.

    Args:
        key: PRNG key.
        path: the intermediate targets.
        level_at: from an OU time ``()`` to the level that the path is asked for.
        horizon: OU time of the top level.
        last_noise: noise-to-signal from below which level 0 is tried.
        inner: sampler of the local moves, adjusted.
        num_particles: n, ``n (1 + num_moves * evals_per_step)`` evaluations a level.
        dim: length of a position.
        dense: whether curvatures are matrices.
        thorough: whether a step must suit all particles, so that steps are narrow where one
            of the two kinds fails; else the kind that it suits better.
        num_moves: local moves of each particle at each level.
        num_kept: m, particles of each level that are kept for the chains.
        max_levels: L; the last segment goes to level 0 whatever its weights.
    """
    key, key_top = jr.split(key)
    dtype = horizon.dtype
    top = jr.normal(key_top, (num_particles, dim), dtype)
    at_top = Evaluation(jax.vmap(log_reference)(top), -top)
    rows = lambda *shape: jnp.zeros((max_levels, *shape), dtype)
    kept = jnp.zeros((max_levels + 1, num_kept, dim), dtype)
    one = jnp.eye(dim, dtype=dtype) if dense else jnp.ones(dim, dtype)
    carry = _Carry(
        key=key,
        t=horizon,
        step=jnp.asarray(_WIDEST, dtype),
        last_noise=jnp.asarray(last_noise, dtype),
        step_size=jnp.asarray(0.3, dtype),
        position=top,
        evaluation=at_top,
        has_edge=jnp.array(False),
        ancestor=jnp.arange(num_particles),
        attempts=jnp.zeros((), int),
        num=jnp.zeros((), int),
        times=jnp.zeros(max_levels + 1, dtype).at[0].set(horizon),
        kept=kept.at[0].set(some_of(top, num_kept)),
        curvature=jnp.tile(one, (max_levels + 1,) + (1,) * one.ndim),
        log_ratio=rows(),
        spread=rows(),
    )

    def attempt(carry: _Carry) -> _Carry:
        key, key_level = jr.split(carry.key)
        numbers = LevelNoise.draw(
            key_level, inner, (num_particles,), num_moves, dim, dtype
        )
        noise = noise_to_signal(carry.t) * jnp.exp(-carry.step)
        must_end = carry.num == max_levels - 1
        is_last = (noise < carry.last_noise) | must_end
        t = jnp.where(is_last, 0.0, time_from_noise_to_signal(noise))
        crossed = _cross(numbers.cross, carry, t, path, level_at(t), thorough)
        can_narrow = (carry.step > _NARROWEST) & ~must_end
        goes_on = (crossed.size > _LEAST_SIZE) | ~can_narrow
        carry = carry._replace(key=key, attempts=carry.attempts + 1)
        moved = lambda: _arrive(
            numbers, carry, t, crossed, path, level_at(t), inner, num_moves
        )
        refused = lambda: carry._replace(
            step=jnp.maximum(0.5 * carry.step, _NARROWEST),
            last_noise=jnp.where(is_last, 0.5, 1.0) * carry.last_noise,
        )
        return jax.lax.cond(goes_on, moved, refused)

    def is_under_way(carry: _Carry) -> jax.Array:
        return (carry.t > 0.0) & (carry.attempts < _MOST_ATTEMPTS)

    end = jax.lax.while_loop(is_under_way, attempt, carry)
    per_level = 1 + num_moves * inner.evals_per_step
    return Descent(
        num=end.num,
        times=end.times,
        kept=end.kept,
        curvature=end.curvature,
        step_size=end.step_size,
        log_ratio=end.log_ratio,
        spread=end.spread,
        position=end.position,
        evaluation=end.evaluation,
        ancestor=end.ancestor,
        num_evals=num_particles * (end.attempts + end.num * (per_level - 1)),
    )


class _Crossed(NamedTuple):
    position: jax.Array
    evaluation: Evaluation
    log_weight: jax.Array
    size: jax.Array  # what the weights leave, as a part of the particles
    spread: jax.Array
    has_edge: jax.Array


def _cross(noise, carry: _Carry, t, path, level, thorough: bool) -> _Crossed:
    """Across one segment: every second particle by the proposal, the others scaled."""
    x, upper = carry.position, carry.evaluation
    n, dim = x.shape
    segment = segment_between(t, carry.t, mean_square(upper.score))
    each = jax.vmap(sample_start, in_axes=(None, 0, 0, 0))
    is_second = jnp.arange(n) % 2 == 1
    is_scaled = is_second | carry.has_edge
    # along with the signal, as modes move; or so that the likelihood is asked where it
    # was before, and no edge is crossed
    factor = jnp.where(is_second, 1.0 / segment.a, segment.a)
    z = jnp.where(
        is_scaled[:, None], factor[:, None] * x, each(segment, x, upper.score, noise)
    )
    z = jnp.where(jnp.isfinite(z), z, x)  # a proposal without a score is not made
    at_z = jax.vmap(path, in_axes=(0, None))(z, level)

    def proposal_ratio(z, x, score):
        return log_noising(segment, x, z) - log_start(segment, z, x, score)

    by_proposal = jax.vmap(proposal_ratio)(z, x, upper.score)
    log_weight = at_z.log_density - upper.log_density
    log_weight += jnp.where(is_scaled, _log_volume_of_scaling(factor, dim), by_proposal)
    # +inf: from where there is no density; if that is all of them, all go on
    log_weight = jnp.where(log_weight < jnp.inf, log_weight, -jnp.inf)
    sizes = jnp.stack(
        [
            _size(jnp.where(kind, log_weight, -jnp.inf))
            for kind in (is_second, ~is_second)
        ]
    )
    best = jnp.clip(2.0 * jnp.max(sizes), 1e-6, 1.0)
    lost = jnp.mean(~jnp.isfinite(at_z.log_density))
    return _Crossed(
        position=z,
        evaluation=at_z,
        log_weight=log_weight,
        size=_size(log_weight) if thorough else best,
        spread=jnp.sqrt(-jnp.log(best)),
        has_edge=(carry.has_edge | (lost > _AT_AN_EDGE)) & (lost < _LOST),
    )


def _log_volume_of_scaling(factor: jax.Array, dim: int) -> jax.Array:
    return dim * jnp.log(factor)


def _arrive(
    numbers, carry: _Carry, t, crossed: _Crossed, path, level, inner, num_moves
):
    """Resample, move at the new level, and take down what it looks like."""
    n, noise = carry.position.shape[0], numbers.move
    chosen = systematic(numbers.choose, crossed.log_weight)
    take = lambda tree: jax.tree.map(lambda leaf: leaf[chosen], tree)
    x, evaluation = take((crossed.position, crossed.evaluation))

    def move(carry, noise):
        x, evaluation, step_size = carry
        scale = jax.lax.rsqrt(mean_square(evaluation.score))

        def one(start, noise, x, evaluation):
            state = inner.init(start, x, evaluation)
            target = lambda u: path(u, level)
            state, info = inner.step(noise, state, target, step_size, scale)
            return state.position, state.evaluation, info.accept_prob

        start, steps = noise
        x, evaluation, accept_prob = jax.vmap(one)(start, steps, x, evaluation)
        change = jnp.exp(2.0 * (jnp.mean(accept_prob) - _AIMED_ACCEPTANCE))
        step_size = jnp.clip(step_size * change, 1e-3, inner.largest_step)
        return (x, evaluation, step_size), None

    by_move = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), noise.steps)
    starts = jnp.broadcast_to(noise.start, (num_moves, *noise.start.shape))
    (x, evaluation, step_size), _ = jax.lax.scan(
        move, (x, evaluation, carry.step_size), (starts, by_move)
    )
    size = jnp.clip(crossed.size, 0.05, 0.99)
    factor = jnp.sqrt(jnp.log(_AIMED_SIZE) / jnp.log(size))
    total = jax.nn.logsumexp(crossed.log_weight)
    index, place = carry.num, carry.num + 1
    return carry._replace(
        t=t,
        step=jnp.clip(carry.step * jnp.clip(factor, 0.5, 1.6), _NARROWEST, _WIDEST),
        step_size=step_size,
        position=x,
        evaluation=evaluation,
        has_edge=crossed.has_edge,
        ancestor=carry.ancestor[chosen],
        num=place,
        times=carry.times.at[place].set(t),
        kept=carry.kept.at[place].set(some_of(x, carry.kept.shape[1])),
        curvature=carry.curvature.at[place].set(
            _mean_product(evaluation.score, carry.curvature.ndim == 3)
        ),
        log_ratio=carry.log_ratio.at[index].set(total - jnp.log(1.0 * n)),
        spread=carry.spread.at[index].set(crossed.spread),
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


def mean_square(scores: jax.Array) -> jax.Array:
    """Per coordinate of scores ``(n, dim)``; a few wild ones do not set the scale.

    1, as at the reference, where none is known.
    """
    return jnp.nan_to_num(jnp.nanmean(jnp.square(_tamed(scores)), axis=0), nan=1.0)


def _mean_product(scores: jax.Array, dense: bool) -> jax.Array:
    """``E[s s^T]``, or its diagonal; correlations as far as they are known."""
    if not dense:
        return mean_square(scores)
    tame = jnp.nan_to_num(_tamed(scores))
    full = jnp.einsum("na,nb->ab", tame, tame) / len(tame)
    return shrunk(full[None], jnp.asarray(len(tame), full.dtype))[0]


def _tamed(scores: jax.Array) -> jax.Array:
    """Without the few wild ones.

    The limit is far above what one in twenty has: where a density is flat but for its
    edges, most scores are 0.
    """
    # a trajectory that a learned score has lost does not count
    scores = jnp.where(jnp.isfinite(scores), scores, jnp.nan)
    usual = jnp.nanquantile(jnp.abs(scores), 0.95, axis=0, keepdims=True)
    limit = 3.0 * usual + 1e-3
    return jnp.clip(scores, -limit, limit)


def systematic(uniform: jax.Array, log_weight: jax.Array) -> jax.Array:
    """Systematic resampling: n indices; all of them where no weight is positive.

    ``uniform``: one random number in [0, 1).

    A weight that is not finite counts as none.
    """
    n = log_weight.shape[0]
    log_weight = jnp.where(jnp.isfinite(log_weight), log_weight, -jnp.inf)
    usable = jnp.any(jnp.isfinite(log_weight))
    shares = jax.nn.softmax(jnp.where(usable, log_weight, 0.0))
    points = (jnp.arange(n) + uniform) / n
    # rounded, they do not sum to 1: the last point must not fall behind all of them
    total = jnp.cumsum(shares)
    return jnp.clip(jnp.searchsorted(total, points * total[-1]), 0, n - 1)


def _size(log_weight: jax.Array) -> jax.Array:
    """Kish's sample size as a part of all; 0 where nothing has weight."""
    total = jax.nn.logsumexp(log_weight)
    size = jnp.exp(2.0 * total - jax.nn.logsumexp(2.0 * log_weight))
    return jnp.where(jnp.isfinite(total), size / log_weight.shape[0], 0.0)


def some_of(x: jax.Array, num: int) -> jax.Array:
    """Particles at equal distances: neighbours often have one ancestor."""
    return x[jnp.linspace(0, len(x) - 1, num).astype(int)]
