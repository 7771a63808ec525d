"""Guided diffusion: draws of the prior's reverse process, pushed towards the data."""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks.posteriors.rivals.plain import CUTS, Run
from benchmarks.shared.solvers import ancestral
from numpyro_rtk.density import loc_and_scale
from numpyro_rtk.noise import log_snr_ladder, noise_variance, signal

NUM_DRAWS, BATCH = 4000, 500
SCALES = {
    "score": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "residual": (0.003, 0.01, 0.03, 0.1, 0.3),
}


def posterior_sampling(problem, seed, budget):
    """DPS (Chung et al., ICLR 2023, arXiv 2209.14687) with exact scores; biased.

    Ancestral steps of the prior (its exact noised score), plus the likelihood's gradient
    at the Tweedie mean of the clean value, taken through the score. Two forms of it:
    ``"residual"``, the paper's, where a step is a multiple of the gradient of
    ``-||y - A x||`` (for measurements with Gaussian noise), and ``"score"``, a multiple
    of the likelihood's gradient added to the score. Form and multiple are those with the
    least **error**, which no user could do, and that search is free. One step counts as
    one evaluation, though it needs second derivatives. All draws are independent.
    """
    forms = ["score"] if np.isnan(problem.peak) else list(SCALES)
    grid = [(form, scale) for form in forms for scale in SCALES[form]]
    start, key, runs = time.time(), jr.key(seed), []
    for cut in CUTS:
        num_steps = max(int(budget / cut / NUM_DRAWS), 2)
        times = jnp.asarray(log_snr_ladder(num_steps, smallest_noise=0.01))
        draw = {form: jax.jit(_sampler(problem, form, times)) for form in forms}
        keys = jr.split(jr.fold_in(key, cut), 1 + NUM_DRAWS // BATCH)
        tried = [
            _error(problem, np.asarray(draw[form](keys[0], scale)))
            for form, scale in grid
        ]
        form, scale = grid[int(np.argmin(tried))]
        x = np.concatenate([np.asarray(draw[form](k, scale)) for k in keys[1:]])
        note = f"{num_steps} steps, best of {len(grid)}: {form} {scale:g}"
        runs.append(Run(x, NUM_DRAWS * num_steps, time.time() - start, note=note))
    return runs


def _error(problem, x: np.ndarray) -> float:
    """Infinite where one draw in ten is not a number."""
    is_usable = np.all(np.isfinite(x), axis=1)
    return problem.error(x[is_usable]) if is_usable.mean() > 0.9 else np.inf


def _sampler(problem, form: str, times: jax.Array) -> Callable:
    """``(key, scale) -> draws (BATCH, dim)``, on the standardised scale inside."""
    loc, spread = loc_and_scale(problem.prior)

    def clean_and_score(z, t):
        score = spread * problem.prior.score(loc + spread * z, t)
        return (z + noise_variance(t) * score) / signal(t), score

    def fit(z, t):
        clean, score = clean_and_score(z, t)
        value = problem.log_likelihood(loc + spread * clean)
        if form == "residual":  # in units of the noise's sd
            value = -jnp.sqrt(2.0 * jnp.maximum(problem.peak - value, 1e-6))
        return value, (clean, score)

    def step(scale, z, inputs):
        key, t, u = inputs
        (_, (clean, _)), push = jax.vmap(
            jax.value_and_grad(fit, has_aux=True), in_axes=(0, None)
        )(z, t)
        mean, variance = ancestral(z, clean, t, u)
        # what the mean would gain were the gradient a part of the score
        in_score = -jnp.expm1(2.0 * (u - t)) / jnp.exp(u - t)
        mean += scale * push * (1.0 if form == "residual" else in_score)
        return mean + jnp.sqrt(variance) * jr.normal(key, z.shape), None

    def draw(key, scale):
        key_start, key_steps = jr.split(key)
        start = jr.normal(key_start, (BATCH, problem.dim))
        keys = jr.split(key_steps, len(times) - 1)
        inputs = (keys, jnp.flip(times[1:]), jnp.flip(times[:-1]))
        return loc + spread * jax.lax.scan(partial(step, scale), start, inputs)[0]

    return draw
