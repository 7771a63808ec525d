"""What the rivals share that go down a prior's noise by its score, and their tuning.

Inside, everything is on the standardised scale of the prior's noise process.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks.posteriors.problem import Problem
from benchmarks.posteriors.rivals.plain import Run
from benchmarks.shared.solvers import ancestral
from numpyro_rtk.density import loc_and_scale
from numpyro_rtk.noise import log_snr_ladder, noise_variance, signal

HORIZON = 3.0
Draw = Callable[[jax.Array, Mapping[str, Any]], jax.Array]
"""``(key, options) -> draws (n, dim)`` on the user's scale."""


class Reverse(NamedTuple):
    """A problem as its rivals see it.

    Attributes:
        denoise: the clean value's mean, ``(z (n, dim), t ()) -> (n, dim)``; one evaluation
            of the network each.
        log_likelihood: ``z (dim,) -> ()``.
        to_user: ``(n, dim) -> (n, dim)``, on the user's scale.
        dim: of ``z``.
    """

    denoise: Callable[[jax.Array, jax.Array], jax.Array]
    log_likelihood: Callable[[jax.Array], jax.Array]
    to_user: Callable[[jax.Array], jax.Array]
    dim: int


def reverse_of(problem: Problem) -> Reverse:
    """The problem on its prior's standardised scale."""
    loc, spread = loc_and_scale(problem.prior)
    score = jax.vmap(problem.prior.score, in_axes=(0, None))

    def denoise(z, t):
        return (z + noise_variance(t) * spread * score(loc + spread * z, t)) / signal(t)

    return Reverse(
        denoise,
        lambda z: problem.log_likelihood(loc + spread * z),
        lambda z: loc + spread * z,
        problem.dim,
    )


class Measured(NamedTuple):
    """A linear measurement by its singular values, on the standardised scale.

    ``y_i = x . right_i + noise_i e``, for the rank's many i.

    Attributes:
        right: the measured directions, orthonormal, ``(rank, dim)``.
        data: ``(rank,)``.
        noise: of each, ``(rank,)``.
    """

    right: jax.Array
    data: jax.Array
    noise: jax.Array


def measured(problem: Problem) -> Measured:
    """Raises ValueError where the likelihood is no linear measurement."""
    if problem.measurement is None:
        raise ValueError("for linear measurements only")
    design, data, noise_sd = problem.measurement
    loc, spread = (np.asarray(a, float) for a in loc_and_scale(problem.prior))
    left, value, right = np.linalg.svd(design * spread, full_matrices=False)
    seen = value > 1e-6 * value.max()
    data = left.T @ (np.asarray(data, float) - design @ loc)
    return Measured(
        jnp.asarray(right[seen]),
        jnp.asarray(data[seen] / value[seen]),
        jnp.asarray(noise_sd / value[seen]),
    )


def given(seen: Measured, mean: jax.Array, variance, noise: jax.Array) -> jax.Array:
    """A draw of ``x ~ N(mean, variance)`` given the measurement, ``(n, dim)``.

    ``noise`` are standard normals, ``(n, dim)``. Exact: this is where a rival would run a
    chain on another likelihood.
    """
    x = mean + jnp.sqrt(variance) * noise
    along, normal = x @ seen.right.T, noise @ seen.right.T
    prior_mean = mean @ seen.right.T
    kept = variance / (variance + seen.noise**2)
    value = prior_mean + kept * (seen.data - prior_mean)
    value += jnp.sqrt(kept) * seen.noise * normal
    return x + (value - along) @ seen.right


def ladder(num_steps: int, smallest_noise: float) -> np.ndarray:
    """Times of ``num_steps`` steps, uniform in the log signal-to-noise ratio."""
    return log_snr_ladder(num_steps, HORIZON, smallest_noise)


def downward(times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The upper and the lower end of each step, from the noise down."""
    return jnp.flip(times[1:]), jnp.flip(times[:-1])


def reverse_kernel(x, clean, t, u) -> tuple[jax.Array, jax.Array]:
    """Mean ``(n, dim)`` and variance ``()`` of the ancestral step from t to u.

    The variance is the best isotropic one (analytic-DPM, Bao et al., ICLR 2022, arXiv
    2201.06503) by the rows' own scores: either of the usual two would shrink or widen all
    rivals' draws on few levels.
    """
    mean, small = ancestral(x, clean, t, u)
    s2 = noise_variance(t)
    score = (signal(t) * clean - x) / s2
    left = jnp.maximum(1.0 - s2 * jnp.mean(jnp.square(score)), 1e-3)
    moved = signal(u) * -jnp.expm1(2.0 * (u - t)) / signal(t)
    return mean, small + moved**2 / s2 * left


def every(**choices: Iterable) -> list[dict[str, Any]]:
    """All combinations."""
    return [
        dict(zip(choices, values, strict=True)) for values in product(*choices.values())
    ]


def tuned(
    problem: Problem,
    seed: int,
    cuts: Sequence[int],
    grid: Sequence[Mapping[str, Any]],
    prepare: Callable[[int], tuple[Draw, Draw, Callable[[Mapping[str, Any]], float]]],
    budget: float,
) -> list[Run]:
    """A run at each cut of the budget, by the options that have the least *error* there.

    No user could tune so, and the search is free: it is one run by each of the grid.

    Args:
        problem: its error decides.
        seed: of all random numbers.
        cuts: the parts of the budget.
        grid: options to try.
        prepare: ``budget -> (draw, trial, evals)``: a run, one to tune by, which may have
            fewer draws of the same kind, and the evaluations of a run by the options.
        budget: evaluations of a run.
    """
    runs = []
    for cut in cuts:
        start, key = time.time(), jr.fold_in(jr.key(seed), cut)
        draw, trial, evals = prepare(int(budget / cut))
        key_tune, key_run = jr.split(key)
        tried = [
            error_of(problem, np.asarray(trial(key_tune, options))) for options in grid
        ]
        best = grid[int(np.argmin(tried))]
        tuning = time.time() - start
        start = time.time()
        x = np.asarray(draw(key_run, best))
        chosen = ", ".join(f"{name} {value}" for name, value in best.items())
        note = f"best of {len(grid)} ({tuning:.0f} s): {chosen}"
        runs.append(Run(x, evals(best), time.time() - start, note=note))
    return runs


def error_of(problem: Problem, x: np.ndarray) -> float:
    """Infinite where one draw in ten is not a number."""
    is_usable = np.all(np.isfinite(x), axis=1)
    return problem.error(x[is_usable]) if is_usable.mean() > 0.9 else np.inf
