"""What a user would run instead to draw from a trained diffusion model.

A solver is ``solver(key, score, start, times, ...) -> draws``. ``score`` is
``(x (dim,), t ()) -> (dim,)``, ``start`` are draws of N(0, I), ``(n, dim)``, ``times`` a
ladder of OU times ``(K + 1,)`` from 0 up. Everything is on the standardised scale, in the
process ``x_t = a_t x_0 + s_t e`` of the package. All end with the denoised value, as the
reference implementations do. :func:`num_segments` says how many segments a number of
evaluations pays for.

``python -m benchmarks.drawing.check_solvers`` compares them with Hugging Face's diffusers.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.density import loc_and_scale, standardised
from numpyro_rtk.noise import (
    angle_ladder,
    log_snr_ladder,
    noise_to_signal,
    noise_variance,
    signal,
    time_from_noise_to_signal,
    uniform_ladder,
)

__all__ = [
    "SOLVERS",
    "ancestral",
    "annealed_langevin",
    "ddim",
    "ddpm",
    "dpm_solver_2m",
    "grids",
    "heun",
    "num_segments",
    "predictor_corrector",
    "random_key",
    "solve",
]

Score = Callable[[jax.Array, jax.Array], jax.Array]


def _steps(key: jax.Array, times: jax.Array) -> tuple[jax.Array, ...]:
    """Keys, upper and lower times of the segments, from the noise down."""
    upper, lower = jnp.flip(times[1:]), jnp.flip(times[:-1])
    return jr.split(key, len(times) - 1), upper, lower


def _denoised(score: Score, x: jax.Array, t: jax.Array) -> jax.Array:
    """The clean value's mean given ``x``, by Tweedie's formula."""
    return (x + noise_variance(t) * score(x, t)) / signal(t)


def _batched(score: Score) -> Score:
    return jax.vmap(score, in_axes=(0, None))


def random_key(seed: int) -> jax.Array:
    # the device's own generator: it compiles in half the time of the default
    return jr.key(seed, impl="unsafe_rbg")


@eqx.filter_jit
def solve(
    density: Any,
    solver: Callable[..., jax.Array],
    times: jax.Array,
    options: dict[str, Any],
    key: jax.Array,
    num: int,
) -> jax.Array:
    """A solver's draws ``(num, *event_shape)`` of a density, on the density's own scale."""
    base = standardised(density)
    loc, scale = loc_and_scale(density)
    key_start, key = jr.split(key)
    start = jr.normal(key_start, (num, loc.size))
    score = lambda z, t: base(z, t).score
    z = solver(key, score, start, times, **options)
    return loc + scale * z.reshape(num, *loc.shape)


def ancestral(
    x: jax.Array, clean: jax.Array, t: jax.Array, u: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and variance at ``u < t`` given the value ``x`` at ``t`` and the clean one."""
    s2_t, s2_u, v = noise_variance(t), noise_variance(u), -jnp.expm1(2.0 * (u - t))
    mean = (signal(u) * v * clean + jnp.exp(u - t) * s2_u * x) / s2_t
    return mean, v * s2_u / s2_t


def ddpm(
    key: jax.Array,
    score: Score,
    start: jax.Array,
    times: jax.Array,
    variance: str = "small",
) -> jax.Array:
    """Ancestral sampling (Ho et al., 2020, arXiv 2006.11239).

    ``variance``: ``"small"``, the posterior's given the clean value (their beta tilde);
    ``"large"``, the noising's (their beta); ``"analytic"``, the best isotropic one, from
    the mean squared score of the batch (analytic-DPM, Bao et al., 2022, arXiv 2201.06503).
    """
    score = _batched(score)

    def body(x, inputs):
        k, t, u = inputs
        s2_t, v = noise_variance(t), -jnp.expm1(2.0 * (u - t))
        value = score(x, t)
        mean, small = ancestral(x, (x + s2_t * value) / signal(t), t, u)
        if variance == "large":
            spread = v
        elif variance == "analytic":
            left = jnp.maximum(1.0 - s2_t * jnp.mean(jnp.square(value)), 0.0)
            spread = small + (signal(u) * v / signal(t)) ** 2 / s2_t * left
        else:
            spread = small
        noise = jnp.where(u > 0.0, jnp.sqrt(spread), 0.0)
        return mean + noise * jr.normal(k, x.shape), None

    return jax.lax.scan(body, start, _steps(key, times))[0]


def ddim(key: jax.Array, score: Score, start: jax.Array, times: jax.Array) -> jax.Array:
    """The first-order solver of the probability flow (Song et al., arXiv 2010.02502)."""
    score = _batched(score)

    def body(x, inputs):
        _, t, u = inputs
        clean = _denoised(score, x, t)
        keep = jnp.sqrt(noise_variance(u) / noise_variance(t))
        return keep * (x - signal(t) * clean) + signal(u) * clean, None

    return jax.lax.scan(body, start, _steps(key, times))[0]


def dpm_solver_2m(
    key: jax.Array, score: Score, start: jax.Array, times: jax.Array
) -> jax.Array:
    """DPM-Solver++ (2M) (Lu et al., 2022, arXiv 2211.01095), the last step first order."""
    score = _batched(score)

    def body(carry, inputs):
        x, former, h_former = carry
        _, t, u = inputs
        clean = _denoised(score, x, t)
        h = jnp.log(noise_to_signal(t)) - jnp.log(noise_to_signal(u))
        # neither the first step nor the last, whose h is infinite, has a slope
        slope = jnp.where((h_former > 0.0) & (u > 0.0), 0.5 * h / h_former, 0.0)
        target = clean + jnp.where(slope > 0.0, slope * (clean - former), 0.0)
        keep = jnp.sqrt(noise_variance(u) / noise_variance(t))
        x = keep * x + (signal(u) - keep * signal(t)) * target
        return (x, clean, h), None

    first = (start, jnp.zeros_like(start), jnp.zeros(()))
    return jax.lax.scan(body, first, _steps(key, times))[0][0]


def heun(key: jax.Array, score: Score, start: jax.Array, times: jax.Array) -> jax.Array:
    """EDM's deterministic sampler (Karras et al., 2022, arXiv 2206.00364, algorithm 1).

    In ``y = x / a`` with the noise's sd r as time; the step to 0 is Euler's.
    """
    score = _batched(score)
    keys, upper, lower = _steps(key, times)

    def slope(y, t):
        return (y - _denoised(score, signal(t) * y, t)) / noise_to_signal(t)

    def body(y, inputs):
        t, u = inputs
        change = noise_to_signal(u) - noise_to_signal(t)
        first = slope(y, t)
        second = slope(y + change * first, u)
        return y + 0.5 * change * (first + second), None

    y = start / signal(upper[0])
    y, _ = jax.lax.scan(body, y, (upper[:-1], lower[:-1]))
    return _denoised(score, signal(upper[-1]) * y, upper[-1])


def predictor_corrector(
    key: jax.Array,
    score: Score,
    start: jax.Array,
    times: jax.Array,
    snr: float = 0.16,
) -> jax.Array:
    """Ancestral predictor, one Langevin corrector (Song et al., 2021, arXiv 2011.13456).

    The corrector's step follows their algorithm 5: ``2 alpha (snr |noise| / |score|)^2``.
    It is left out after the last step.
    """
    batched = _batched(score)
    keys, upper, lower = _steps(key, times)

    def predict(k, x, t, u):
        mean, variance = ancestral(x, _denoised(batched, x, t), t, u)
        return mean + jnp.sqrt(variance) * jr.normal(k, x.shape)

    def body(x, inputs):
        k, t, u = inputs
        key_predict, key_correct = jr.split(k)
        x = predict(key_predict, x, t, u)
        gradient, noise = batched(x, u), jr.normal(key_correct, x.shape)
        norm = lambda rows: jnp.mean(jnp.linalg.norm(rows, axis=-1))
        step = 2.0 * jnp.exp(u - t) ** 2 * (snr * norm(noise) / norm(gradient)) ** 2
        return x + step * gradient + jnp.sqrt(2.0 * step) * noise, None

    x, _ = jax.lax.scan(body, start, (keys[:-1], upper[:-1], lower[:-1]))
    return predict(keys[-1], x, upper[-1], lower[-1])


def annealed_langevin(
    key: jax.Array,
    score: Score,
    start: jax.Array,
    times: jax.Array,
    step_size: float = 0.1,
    num_steps: int = 1,
) -> jax.Array:
    """Unadjusted Langevin steps at each level (Song & Ermon, 2019, arXiv 1907.05600).

    The step is ``step_size`` times the level's noise variance, as theirs; levels are all
    of ``times`` but 0, and the end is denoised (Jolicoeur-Martineau et al., 2021).
    """
    score = _batched(score)

    def level(x, inputs):
        keys, t = inputs
        step = step_size * noise_variance(t)

        def body(x, k):
            noise = jr.normal(k, x.shape)
            return x + step * score(x, t) + jnp.sqrt(2.0 * step) * noise, None

        return jax.lax.scan(body, x, keys)[0], None

    keys, upper, _ = _steps(key, times)
    each = jax.vmap(lambda k: jr.split(k, num_steps))(keys)
    x, _ = jax.lax.scan(level, start, (each, upper))
    return _denoised(score, x, upper[-1])


SOLVERS: dict[str, Callable[..., jax.Array]] = {
    "DDPM, small variance": ddpm,
    "DDPM, large variance": lambda *args: ddpm(*args, variance="large"),
    "analytic-DPM": lambda *args: ddpm(*args, variance="analytic"),
    "DDIM": ddim,
    "DPM-Solver++ (2M)": dpm_solver_2m,
    "EDM Heun": heun,
    **{
        f"predictor-corrector, snr {snr}": (
            lambda *args, snr=snr: predictor_corrector(*args, snr=snr)
        )
        for snr in (0.08, 0.16, 0.3, 0.5)
    },
}


def num_segments(name: str, evals: int) -> int:
    """Segments that cost at most ``evals`` evaluations."""
    if name == "EDM Heun" or name.startswith("predictor-corrector"):
        return (evals + 1) // 2
    return evals


def karras_ladder(
    num_segments: int, horizon: float, smallest_noise: float, rho: float = 7.0
) -> np.ndarray:
    """EDM's levels: equal steps of ``r**(1 / rho)`` (Karras et al., 2022, eq. 5)."""
    largest = float(noise_to_signal(jnp.asarray(horizon)))
    roots = np.linspace(
        smallest_noise ** (1.0 / rho), largest ** (1.0 / rho), num_segments
    )
    times = np.asarray(time_from_noise_to_signal(jnp.asarray(roots**rho)))
    return np.concatenate([[0.0], times])


def quadratic_ladder(num_segments: int, horizon: float) -> np.ndarray:
    """Equal steps of the root of t: DDIM's quadratic schedule."""
    return np.linspace(0.0, np.sqrt(horizon), num_segments + 1) ** 2


def grids(num_segments: int) -> dict[str, np.ndarray]:
    """Ladders to choose from: families, horizons, least noise above 0."""
    found: dict[str, Any] = {}
    for horizon in (2.0, 3.0, 4.0):
        end = f"T {horizon:g}"
        found[f"uniform, {end}"] = uniform_ladder(num_segments, horizon)
        found[f"quadratic, {end}"] = quadratic_ladder(num_segments, horizon)
        for least in (0.02, 0.05, 0.1, 0.2, 0.3):
            here = f"{end}, least noise {least}"
            found[f"log-SNR, {here}"] = log_snr_ladder(num_segments, horizon, least)
            found[f"angle, {here}"] = angle_ladder(num_segments, horizon, least)
            found[f"Karras, {here}"] = karras_ladder(num_segments, horizon, least)
    return found
