"""Rivals that draw from the likelihood and from the prior in turn; linear measurements."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import jax.random as jr

from benchmarks.posteriors.rivals.plain import CUTS
from benchmarks.posteriors.rivals.reverse import (
    Measured,
    downward,
    every,
    given,
    ladder,
    measured,
    reverse_kernel,
    reverse_of,
    tuned,
)
from numpyro_rtk.noise import (
    noise_to_signal,
    noise_variance,
    signal,
    time_from_noise_to_signal as time_of,
)

NUM_DRAWS, PER_CHAIN = 4000, 4


def split_gibbs(problem, seed, budget, cuts=CUTS, num_draws=NUM_DRAWS):
    """PnP-DM (Wu et al., NeurIPS 2024, arXiv 2405.18782); DPnP (Xu & Chi) is as it.

    Gibbs on (x, z), z tied to x by noise of sd rho: z given x and the data, exactly, and x
    given z by the prior's reverse process from the noise rho. Its law is the posterior as
    rho goes to 0, where it no longer moves. rho falls from 3 over the first half of a
    chain; its least value and the steps of a reverse run are tuned (see
    :func:`reverse.tuned`). ``PER_CHAIN`` draws of a chain's second half are kept.
    """
    grid = every(num_steps=[8, 32], least=[0.01, 0.03, 0.1, 0.2, 0.4])
    seen = measured(problem)

    def prepare(budget):
        num_chains = max(num_draws // PER_CHAIN, 1)
        num_turns = lambda steps: max(budget // num_chains // steps, 2 * PER_CHAIN)

        @lru_cache
        def sampler(num_chains, num_steps):
            turns = num_turns(num_steps)
            return _split(problem, seen, num_chains, turns, num_steps)

        def run(num_chains, key, options):
            return sampler(num_chains, options["num_steps"])(key, options["least"])

        def evals(options):
            steps = options["num_steps"]
            return num_chains * steps * num_turns(steps)

        return partial(run, num_chains), partial(run, num_chains // 4 + 1), evals

    return tuned(problem, seed, cuts, grid, prepare, budget)


def _split(problem, seen: Measured, num_chains: int, num_turns: int, num_steps: int):
    """``(key, least rho) -> draws``."""
    reverse = reverse_of(problem)
    part = jnp.linspace(0.0, 2.0, num_turns)

    def down(x, inputs):
        key, t, u = inputs
        mean, variance = reverse_kernel(x, reverse.denoise(x, t), t, u)
        return mean + jnp.sqrt(variance) * jr.normal(key, x.shape), None

    def turn(x, inputs):
        key, rho = inputs
        key_data, key_prior = jr.split(key)
        z = given(seen, x, rho**2, jr.normal(key_data, x.shape))
        # from the noise rho down to a hundredth of it, by the log, then to none
        noise = rho * jnp.geomspace(0.01, 1.0, num_steps)
        times = jnp.concatenate([jnp.zeros(1), time_of(noise)])
        steps = (jr.split(key_prior, num_steps), *downward(times))
        x = jax.lax.scan(down, z * signal(times[-1]), steps)[0]
        return x, x

    @jax.jit
    def draw(key, least):
        key_start, key_turns = jr.split(key)
        rho = 3.0 * (least / 3.0) ** jnp.minimum(part, 1.0)
        start = jr.normal(key_start, (num_chains, reverse.dim))
        _, x = jax.lax.scan(turn, start, (jr.split(key_turns, num_turns), rho))
        kept = num_turns - 1 - jnp.arange(PER_CHAIN) * (num_turns // (2 * PER_CHAIN))
        return jax.vmap(reverse.to_user)(x[kept]).reshape(-1, reverse.dim)

    return draw


def decoupled(problem, seed, budget, cuts=CUTS, num_draws=NUM_DRAWS):
    """DAPS (Zhang et al., CVPR 2025, arXiv 2407.01521); biased.

    At each level: the clean value by Euler steps of the probability flow, then a draw
    of N(clean, (``width`` r)^2) given the data (exact here, theirs by Langevin), then
    noise of the next level. ``width`` and the number of Euler steps are tuned (see
    :func:`reverse.tuned`). All draws are independent.
    """
    grid = every(num_euler=[1, 5], width=[0.1, 0.3, 0.6, 1.0, 2.0])
    seen = measured(problem)

    def prepare(budget):
        num_levels = lambda num_euler: max(budget // num_draws // num_euler, 2)

        @lru_cache
        def sampler(num_draws, num_euler):
            levels = num_levels(num_euler)
            return _decoupled(problem, seen, num_draws, levels, num_euler)

        def run(num_draws, key, options):
            return sampler(num_draws, options["num_euler"])(key, options["width"])

        def evals(options):
            num_euler = options["num_euler"]
            return num_draws * num_euler * num_levels(num_euler)

        return partial(run, num_draws), partial(run, num_draws // 4 + 1), evals

    return tuned(problem, seed, cuts, grid, prepare, budget)


def _decoupled(problem, seen: Measured, num_draws, num_levels: int, num_euler: int):
    """``(key, width) -> draws``."""
    reverse = reverse_of(problem)
    parts = jnp.geomspace(1.0, 0.05, num_euler)

    def flow(x, t):
        """DDIM steps from the noise at t to none."""
        times = time_of(noise_to_signal(t) * parts)
        ends = jnp.concatenate([times[1:], jnp.zeros(1)])

        def euler(x, inputs):
            t, u = inputs
            clean = reverse.denoise(x, t)
            keep = jnp.sqrt(noise_variance(u) / noise_variance(t))
            return keep * (x - signal(t) * clean) + signal(u) * clean, None

        return jax.lax.scan(euler, x, (times, ends))[0]

    def level(width, x, inputs):
        key, t, u = inputs
        key_data, key_noise = jr.split(key)
        spread = jnp.square(width * noise_to_signal(t))
        clean = given(seen, flow(x, t), spread, jr.normal(key_data, x.shape))
        noise = jnp.sqrt(noise_variance(u)) * jr.normal(key_noise, x.shape)
        return signal(u) * clean + noise, None

    @jax.jit
    def draw(key, width):
        key_start, key_levels = jr.split(key)
        start = jr.normal(key_start, (num_draws, reverse.dim))
        steps = (jr.split(key_levels, num_levels), *downward(ladder(num_levels, 0.01)))
        return reverse.to_user(jax.lax.scan(partial(level, width), start, steps)[0])

    return draw
