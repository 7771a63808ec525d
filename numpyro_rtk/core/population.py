r"""A large population down the ladder: what a posterior looks like before any chain runs.

Particles at the top are draws of the standard normal. The ladder is found on the way: a
segment is as wide as leaves the particles' weights even enough, so that none is wider
than the population found passable. Half of the particles cross it by the Gaussian
proposal of the reverse transition kernel, half by a plain change of scale; both have
weights, so whichever of them fits takes over. Then they are resampled and make local
moves: a sequential Monte Carlo sampler (Del Moral, Doucet, Jasra, JRSS-B 2006), adaptive
in its levels and step sizes.

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
from numpyro_rtk.core.inner import InnerSampler, draw_noise
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
    "descend",
    "mean_square",
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
_AIMED_ACCEPTANCE = 0.65
# Particles with which each segment looks for a hard edge.
_NUM_AT_EDGE = 64


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
        return jnp.sqrt(jnp.maximum(variance, 1.0 / n))


class _Carry(NamedTuple):
    key: jax.Array
    t: jax.Array
    step: jax.Array  # in log noise-to-signal
    last_noise: jax.Array  # from below which level 0 is tried
    step_size: jax.Array
    position: jax.Array
    evaluation: Evaluation
    ancestor: jax.Array
    has_edge: jax.Array  # seen so far: from then on only scaled particles count
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
        ancestor=jnp.arange(num_particles),
        has_edge=jnp.array(False),
        attempts=jnp.zeros((), int),
        num=jnp.zeros((), int),
        times=jnp.zeros(max_levels + 1, dtype).at[0].set(horizon),
        kept=kept.at[0].set(some_of(top, num_kept)),
        curvature=jnp.tile(one, (max_levels + 1,) + (1,) * one.ndim),
        log_ratio=rows(),
        spread=rows(),
    )

    def attempt(carry: _Carry) -> _Carry:
        key, key_cross, key_move = jr.split(carry.key, 3)
        noise = noise_to_signal(carry.t) * jnp.exp(-carry.step)
        must_end = carry.num == max_levels - 1
        is_last = (noise < carry.last_noise) | must_end
        t = jnp.where(is_last, 0.0, time_from_noise_to_signal(noise))
        crossed = _cross(key_cross, carry, t, path, level_at(t), level_at(carry.t))
        can_narrow = (carry.step > _NARROWEST) & ~must_end
        goes_on = (crossed.size > _LEAST_SIZE) | ~can_narrow
        carry = carry._replace(
            key=key, attempts=carry.attempts + 1, has_edge=crossed.has_edge
        )
        moved = lambda: _arrive(
            key_move, carry, t, crossed, path, level_at(t), inner, num_moves
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
        num_evals=num_particles * (end.attempts + end.num * (per_level - 1))
        + _NUM_AT_EDGE * end.attempts,
    )


class _Crossed(NamedTuple):
    position: jax.Array
    evaluation: Evaluation
    log_weight: jax.Array
    size: jax.Array  # what the weights leave, as a part of the particles that count
    spread: jax.Array
    has_edge: jax.Array


def _cross(key, carry: _Carry, t, path, level, level_above) -> _Crossed:
    """Across one segment: every second particle by the proposal, the others scaled.

    The proposal's weights are right where noise takes every particle of the lower level to
    where the upper one has density. Beside a hard edge it does not: only the scaled count.
    """
    x, upper = carry.position, carry.evaluation
    n, dim = x.shape
    segment = segment_between(t, carry.t, mean_square(upper.score))
    key, key_edge, key_back = jr.split(key, 3)
    noise = jr.normal(key, x.shape, x.dtype)
    each = jax.vmap(sample_start, in_axes=(None, 0, 0, 0))
    is_scaled = jnp.arange(n) % 2 == 1
    z = jnp.where(
        is_scaled[:, None], x / segment.a, each(segment, x, upper.score, noise)
    )
    at_z = jax.vmap(path, in_axes=(0, None))(z, level)

    def proposal_ratio(z, x, score):
        return log_noising(segment, x, z) - log_start(segment, z, x, score)

    by_proposal = jax.vmap(proposal_ratio)(z, x, upper.score)
    log_weight = at_z.log_density - upper.log_density
    log_weight += jnp.where(is_scaled, -dim * jnp.log(segment.a), by_proposal)
    log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
    of_scaled = jnp.where(is_scaled, log_weight, -jnp.inf)
    some = some_of(z[systematic(key_edge, of_scaled)], _NUM_AT_EDGE)
    back = segment.a * some + jnp.sqrt(segment.v) * jr.normal(
        key_back, some.shape, x.dtype
    )
    at_back = jax.vmap(path, in_axes=(0, None))(back, level_above)
    # the reference at the top has no edge
    is_out = (carry.num > 0) & (n > 1) & jnp.any(~jnp.isfinite(at_back.log_density))
    has_edge = carry.has_edge | is_out
    share = jnp.where(has_edge, (n // 2) / n, 1.0)
    log_weight = jnp.where(has_edge, of_scaled - jnp.log(share), log_weight)
    sizes = jnp.stack(
        [
            _size(jnp.where(kind, log_weight, -jnp.inf))
            for kind in (is_scaled, ~is_scaled)
        ]
    )
    best = jnp.clip(2.0 * jnp.max(sizes), 1e-6, 1.0)
    return _Crossed(
        z,
        at_z,
        log_weight,
        _size(log_weight) / share,
        jnp.sqrt(-jnp.log(best)),
        has_edge,
    )


def _arrive(key, carry: _Carry, t, crossed: _Crossed, path, level, inner, num_moves):
    """Resample, move at the new level, and take down what it looks like."""
    n, dim = carry.position.shape
    key_choose, key_move = jr.split(key)
    chosen = systematic(key_choose, crossed.log_weight)
    take = lambda tree: jax.tree.map(lambda leaf: leaf[chosen], tree)
    x, evaluation = take((crossed.position, crossed.evaluation))
    noise = draw_noise(key_move, inner, (n,), num_moves, dim, x.dtype)

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
    off = (membership - share) / n
    by_ancestor = jnp.zeros_like(off).at[descent.ancestor].add(off)
    return share, jnp.sqrt(jnp.sum(jnp.square(by_ancestor), axis=0))


def mean_square(scores: jax.Array) -> jax.Array:
    """Per coordinate of scores ``(n, dim)``; a few wild ones do not set the scale."""
    return jnp.nanmean(jnp.square(_tamed(scores)), axis=0)


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
    limit = 3.0 * jnp.nanquantile(jnp.abs(scores), 0.95, axis=0) + 1e-3
    return jnp.clip(scores, -limit, limit)


def systematic(key: jax.Array, log_weight: jax.Array) -> jax.Array:
    """Systematic resampling: n indices; all of them where no weight is positive."""
    n = log_weight.shape[0]
    usable = jnp.any(jnp.isfinite(log_weight))
    shares = jax.nn.softmax(jnp.where(usable, log_weight, 0.0))
    points = (jnp.arange(n) + jr.uniform(key, (), shares.dtype)) / n
    return jnp.clip(jnp.searchsorted(jnp.cumsum(shares), points), 0, n - 1)


def _size(log_weight: jax.Array) -> jax.Array:
    """Kish's sample size as a part of all; 0 where nothing has weight."""
    total = jax.nn.logsumexp(log_weight)
    size = jnp.exp(2.0 * total - jax.nn.logsumexp(2.0 * log_weight))
    return jnp.where(jnp.isfinite(total), size / log_weight.shape[0], 0.0)


def some_of(x: jax.Array, num: int) -> jax.Array:
    """Particles at equal distances: neighbours often have one ancestor."""
    return x[jnp.linspace(0, len(x) - 1, num).astype(int)]
