"""Particle filters down the noise, from scores: one population, resampled on its way."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks.posteriors.rivals.plain import CUTS
from benchmarks.posteriors.rivals.reverse import (
    HORIZON,
    Measured,
    downward,
    every,
    ladder,
    measured,
    reverse_kernel,
    reverse_of,
    tuned,
)
from benchmarks.shared.solvers import ancestral
from numpyro_rtk.core.resampling import sample_size, systematic
from numpyro_rtk.noise import (
    noise_to_signal,
    noise_variance,
    signal,
    time_from_noise_to_signal,
)

# Particles that the network sees at a time: what a step keeps beside them is large.
BATCH = 2048


def twisted(problem, seed, budget, cuts=CUTS):
    """TDS (Wu et al., NeurIPS 2023, arXiv 2306.17775): exact as particles grow.

    Particles of the ancestral chain, weighed and pushed by the likelihood at Tweedie's
    mean,
    its gradient taken through the score; resampled (systematically) where half their
    number is lost. For a linear measurement the twist's noise is widened by ``widen`` times
    the clean value's variance given the noise, r^2 / (1 + r^2) (for 0 it is the plain
    likelihood), else the likelihood's exponent is lowered as if by so much. Levels,
    smallest noise and ``widen`` are tuned (see :func:`reverse.tuned`); all particles count
    as draws.
    """
    grid = every(num_steps=[50, 200], smallest_noise=[1e-4, 1e-2], widen=[0.0, 1.0])
    prepare = partial(_prepare, ladder, partial(_twisted_filter, problem))
    return tuned(problem, seed, cuts, grid, prepare, budget)


def guided_particles(problem, seed, budget, cuts=CUTS):
    """MCGDiff (Cardoso et al., ICLR 2024, arXiv 2308.07983): exact as particles grow.

    A datum is an exact value of its direction at the noise that the measurement has. Above
    that level particles are proposed given it, and weighed by how well their parents
    foretold it; below it that direction is free. The number of levels is tuned (see
    :func:`reverse.tuned`), the data's own levels come on top.
    """
    seen = measured(problem)
    grid = every(num_steps=[25, 50, 200], smallest_noise=[1e-2])
    times_of = partial(_with_levels_of, seen)
    prepare = partial(_prepare, times_of, partial(_guided_filter, problem, seen))
    return tuned(problem, seed, cuts, grid, prepare, budget)


def _prepare(times_of, make, budget):
    """What :func:`reverse.tuned` asks for; as many particles as all levels leave room for.

    Args:
        times_of: ``(num_steps, smallest_noise) -> times``.
        make: ``(times, n) -> draw(key, **rest)``.
        budget: evaluations of a run.
    """

    def size(times, part):
        n = max(budget // (len(times) - 1) // part, 2)
        return n if n < BATCH else n // BATCH * BATCH

    @lru_cache
    def made(num_steps, smallest_noise, part):
        times = times_of(num_steps, smallest_noise)
        return make(times, size(times, part))

    def run(part, key, options):
        rest = dict(options)
        one = made(rest.pop("num_steps"), rest.pop("smallest_noise"), part)
        return one(key, **rest)

    def evals(options):
        times = times_of(options["num_steps"], options["smallest_noise"])
        return size(times, 1) * (len(times) - 1)

    return partial(run, 1), partial(run, 4), evals


def _in_batches(function, x: jax.Array) -> jax.Array:
    """``function`` of rows, so many at a time."""
    if len(x) <= BATCH:
        return function(x)
    parts = x.reshape(-1, BATCH, x.shape[1])
    found = jax.lax.map(function, parts)
    return jax.tree.map(lambda leaf: leaf.reshape(len(x), *leaf.shape[2:]), found)


def _resample(uniform, log_weight, *rows):
    """Where half of the particles is lost: the rows that are left, and equal weights."""
    n = len(log_weight)
    log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
    is_due = sample_size(log_weight) < 0.5
    chosen = jnp.where(is_due, systematic(uniform, log_weight), jnp.arange(n))
    kept = jnp.where(is_due, jnp.zeros(n), log_weight)
    return kept, *(row[chosen] for row in rows)


def _log_normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + jnp.log(2.0 * jnp.pi * variance))


def _twist(problem, reverse):
    """``(clean (dim,), t, widen) -> ()``; log likelihood at t = 0."""
    if problem.measurement is None:

        def tempered(clean, t, widen):
            return reverse.log_likelihood(clean) / (
                1.0 + widen * noise_to_signal(t) ** 2
            )

        return tempered
    seen = measured(problem)

    def widened(clean, t, widen):
        variance = seen.noise**2 + widen * noise_variance(t)  # r^2/(1 + r^2) = s^2
        return jnp.sum(_log_normal(seen.right @ clean, seen.data, variance))

    return widened


def _twisted_filter(problem, times: np.ndarray, n: int):
    reverse = reverse_of(problem)
    twist = _twist(problem, reverse)

    def look(t, widen, x):
        def total(x):
            clean = reverse.denoise(x, t)
            value = jax.vmap(twist, in_axes=(0, None, None))(clean, t, widen)
            return jnp.sum(value), (clean, value)

        gradient, (clean, value) = jax.grad(total, has_aux=True)(x)
        return clean, value, gradient

    def step(widen, carry, inputs):
        x, log_weight = carry  # without what is seen from here
        key, t, u = inputs
        clean, value, gradient = _in_batches(partial(look, t, widen), x)
        key_resample, key_step = jr.split(key)
        log_weight, x, clean, value, gradient = _resample(
            jr.uniform(key_resample), log_weight + value, x, clean, value, gradient
        )
        pushed = clean + noise_variance(t) / signal(t) * gradient
        mean, variance = reverse_kernel(x, clean, t, u)
        other, _ = ancestral(x, pushed, t, u)
        z = other + jnp.sqrt(variance) * jr.normal(key_step, x.shape)
        forward = jnp.sum((z - other) ** 2 - (z - mean) ** 2, axis=1) / (2 * variance)
        return (z, log_weight + forward - value), None

    @jax.jit
    def draw(key, widen):
        key_start, key_steps, key_last = jr.split(key, 3)
        x = jr.normal(key_start, (n, reverse.dim))
        steps = (jr.split(key_steps, len(times) - 1), *downward(times))
        (x, log_weight), _ = jax.lax.scan(
            partial(step, widen), (x, jnp.zeros(n)), steps
        )
        log_weight += jax.vmap(reverse.log_likelihood)(x)
        chosen = systematic(jr.uniform(key_last), log_weight)
        return reverse.to_user(jr.permutation(key_last, x[chosen]))

    return draw


def _own_level(seen: Measured) -> np.ndarray:
    """Where each datum's noise is on the ladder, ``(rank,)``."""
    return np.minimum(time_from_noise_to_signal(seen.noise), np.float32(HORIZON))


def _with_levels_of(seen: Measured, num_steps, smallest_noise) -> np.ndarray:
    """A ladder with a level where each datum's noise is."""
    times, levels = ladder(num_steps, smallest_noise), np.unique(_own_level(seen))
    near = np.abs(np.log(times[1:-1, None] / levels)).min(axis=1) < 0.02
    kept = np.concatenate([times[:1], times[1:-1][~near], times[-1:]])
    return np.unique(np.concatenate([kept.astype(np.float32), levels]))


def _guided_filter(problem, seen: Measured, times: np.ndarray, n: int):
    reverse = reverse_of(problem)
    own = jnp.asarray(_own_level(seen))

    def foretold(t):
        """Mean and variance of each direction at t given its datum."""
        return signal(t) * seen.data, jnp.maximum(-jnp.expm1(2.0 * (own - t)), 0.0)

    def step(carry, inputs):
        x, log_weight = carry  # without the past level's term
        key, t, u = inputs
        clean = _in_batches(lambda x: reverse.denoise(x, t), x)
        mean, variance = reverse_kernel(x, clean, t, u)
        mean_seen = mean @ seen.right.T
        target, spread = foretold(u)
        above = u >= own
        past, past_spread = foretold(t)
        hit = _log_normal(target, mean_seen, variance + spread)
        before = _log_normal(past, x @ seen.right.T, jnp.maximum(past_spread, 1e-30))
        # at its own level a datum has been met exactly, and below it says nothing
        counted = jnp.where(above, hit, 0.0) - jnp.where(t > own, before, 0.0)
        key_resample, key_step = jr.split(key)
        log_weight, mean, mean_seen = _resample(
            jr.uniform(key_resample),
            log_weight + jnp.sum(counted, axis=1),
            mean,
            mean_seen,
        )
        normal = jr.normal(key_step, x.shape)
        z = mean + jnp.sqrt(variance) * normal
        gain = variance / (variance + spread)
        moved = mean_seen + gain * (target - mean_seen)
        moved += jnp.sqrt(gain * spread) * (normal @ seen.right.T)
        along = z @ seen.right.T
        z += jnp.where(above, moved - along, 0.0) @ seen.right
        return (z, log_weight), None

    @jax.jit
    def draw(key):
        key_start, key_steps, key_last = jr.split(key, 3)
        x = jr.normal(key_start, (n, reverse.dim))
        upper, lower = downward(jnp.asarray(times))
        target, spread = foretold(upper[0])
        spread = jnp.maximum(spread, 1e-30)
        first = jnp.where(
            upper[0] > own, _log_normal(target, x @ seen.right.T, spread), 0.0
        )
        steps = (jr.split(key_steps, len(times) - 1), upper, lower)
        start = (x, jnp.sum(first, axis=1))
        (x, log_weight), _ = jax.lax.scan(step, start, steps)
        chosen = systematic(jr.uniform(key_last), log_weight)
        return reverse.to_user(jr.permutation(key_last, x[chosen]))

    return draw
