"""Guided diffusion: draws of the prior's reverse process, pushed towards the data."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks.posteriors.rivals.plain import CUTS
from benchmarks.posteriors.rivals.reverse import (
    downward,
    every,
    ladder,
    reverse_kernel,
    reverse_of,
    tuned,
)

NUM_DRAWS, BATCH = 4000, 250
SCORE = every(form=["score"], scale=[0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
RESIDUAL = every(form=["residual"], scale=[3e-4, 1e-3, 0.003, 0.01, 0.03, 0.1])


def posterior_sampling(problem, seed, budget, cuts=CUTS, num_draws=NUM_DRAWS):
    """DPS (Chung et al., ICLR 2023, arXiv 2209.14687); biased.

    Ancestral steps of the prior, plus the likelihood's gradient at the Tweedie mean of the
    clean value, taken through the score. Two forms of it: ``"residual"``, the paper's,
    where a step is a multiple of the gradient of ``-||y - A x||`` (for measurements with
    Gaussian noise), and ``"score"``, a multiple of the likelihood's gradient added to the
    score. Form and multiple are tuned (see :func:`reverse.tuned`). One step counts as one
    evaluation, though it needs second derivatives. All draws are independent.
    """
    grid = SCORE if np.isnan(problem.peak) else SCORE + RESIDUAL
    num_batches = -(-num_draws // BATCH)

    def prepare(budget):
        num_steps = max(budget // num_draws, 2)
        sampler = lru_cache(lambda form: _sampler(problem, form, num_steps))

        def trial(key, options):
            return sampler(options["form"])(key, options["scale"])

        def draw(key, options):
            each = [trial(k, options) for k in jr.split(key, num_batches)]
            return jnp.concatenate(each)[:num_draws]

        return draw, trial, lambda options: num_draws * num_steps

    return tuned(problem, seed, cuts, grid, prepare, budget)


def _sampler(problem, form: str, num_steps: int):
    """``(key, scale) -> draws (BATCH, dim)``."""
    reverse = reverse_of(problem)

    def fit(z, t):
        clean = reverse.denoise(z, t)
        value = jax.vmap(reverse.log_likelihood)(clean)
        if form == "residual":  # in units of the noise's sd
            value = -jnp.sqrt(2.0 * jnp.maximum(problem.peak - value, 1e-6))
        return jnp.sum(value), clean

    def step(scale, z, inputs):
        key, t, u = inputs
        push, clean = jax.grad(fit, has_aux=True)(z, t)
        mean, variance = reverse_kernel(z, clean, t, u)
        # what the mean would gain were the gradient a part of the score
        in_score = -jnp.expm1(2.0 * (u - t)) / jnp.exp(u - t)
        mean += scale * push * (1.0 if form == "residual" else in_score)
        return mean + jnp.sqrt(variance) * jr.normal(key, z.shape), None

    @jax.jit
    def draw(key, scale):
        key_start, key_steps = jr.split(key)
        start = jr.normal(key_start, (BATCH, reverse.dim))
        steps = (jr.split(key_steps, num_steps), *downward(ladder(num_steps, 0.01)))
        return reverse.to_user(jax.lax.scan(partial(step, scale), start, steps)[0])

    return draw
