"""Rivals that temper: sequential Monte Carlo, and replica exchange in temperature."""

import time
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from blackjax.smc import adaptive_tempered, resampling

from benchmarks.posteriors.rivals.plain import CHAINS, CUTS, Run
from numpyro_rtk.core.annealed import log_reference
from numpyro_rtk.core.exchange.replicas import (
    ExchangePlan,
    Replicas,
    draw_sweeps,
    evaluate_all,
)
from numpyro_rtk.core.exchange.sweep import sweep
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.segment import Evaluation, Segment
from numpyro_rtk.core.warmup.adapt import StepSize, adapt_step_size

LONGEST = 500  # temperatures of SMC


def tempered_smc(
    problem,
    seed,
    budget,
    num_particles=4000,
    num_steps=4,
    num_leapfrog=5,
    ess=0.5,
    cuts=CUTS,
):
    """BlackJAX's adaptive tempered SMC from exact prior draws, with tuned HMC moves.

    Mass matrix from the particles and step size from the last acceptance (aim .8), both
    at each temperature. The number of moves a temperature is raised until the budget is
    spent: a first pass measures what one costs.
    """

    def cost(temperatures, num_steps):
        # per move the leapfrogs; per temperature the start and the weights
        return num_particles * temperatures * (num_steps * num_leapfrog + 2)

    down = _down_the_temperatures(problem, num_particles, num_leapfrog, ess)
    runs, key = [], jr.key(seed)
    _, expected, _, _ = down(key, num_steps)
    for part in cuts:
        steps = 1
        while cost(expected, steps + 1) <= budget / part:
            steps += 1
        start = time.time()
        draws, used, evidence, accept = down(jr.fold_in(key, part), steps)
        runs.append(
            Run(
                draws,
                cost(used, steps),
                time.time() - start,
                evidence,
                note=f"{steps} moves, {used} temperatures, acceptance {accept:.2f}",
                failure="did not finish" if used >= LONGEST else "",
            )
        )
    return runs


def _down_the_temperatures(problem, num_particles, num_leapfrog, ess):
    """``(key, moves) -> draws, temperatures, log evidence, last acceptance``."""
    hmc = blackjax.hmc.build_kernel()

    def move(key, state, logdensity, step_size, inverse_mass_matrix):
        return hmc(key, state, logdensity, step_size, inverse_mass_matrix, num_leapfrog)

    kernel = adaptive_tempered.build_kernel(
        problem.log_prior,
        problem.log_likelihood,
        move,
        blackjax.hmc.init,
        resampling.systematic,
        ess,
    )
    step = jax.jit(kernel, static_argnums=2)

    def run(key, num_steps):
        key, key_prior = jr.split(key)
        state = adaptive_tempered.init(problem.draw_prior(key_prior, (num_particles,)))
        evidence, temperatures, step_size, accept = 0.0, 0, 0.5, np.nan
        while float(state.tempering_param) < 1.0 and temperatures < LONGEST:
            key, now = jr.split(key)
            # what one temperature leaves is the next one's scale
            variances = jnp.var(state.particles, axis=0, ddof=1) + 1e-6
            parameters = {
                "step_size": jnp.full((1,), step_size),
                "inverse_mass_matrix": variances[None],
            }
            state, info = step(now, state, num_steps, parameters)
            accept = float(jnp.mean(info.update_info.acceptance_rate))
            step_size *= float(np.clip(np.exp(2.0 * (accept - 0.8)), 0.4, 2.0))
            evidence += float(info.log_likelihood_increment)
            temperatures += 1
        return np.asarray(state.particles), temperatures, evidence, accept

    return run


class Tempered(NamedTuple):
    """What one draw of the exchange in temperature needs; adapted in warm-up.

    Attributes:
        betas: inverse temperatures, 1 first, 0 last, ``(K + 1,)``.
        steps: step sizes of the local moves, ``(K,)`` each.
        spread: their diagonal spreads, ``(K, dim)``.
    """

    betas: jax.Array
    steps: StepSize
    spread: jax.Array


def temperature_exchange(
    problem, seed, budget, num_levels=16, num_warmup=400, hottest=1e-3
):
    """Replica exchange in temperature: ``N(0, I)^(1 - b) posterior^b``.

    Plain swaps, two-leapfrog moves with step sizes and diagonal spreads per level, and
    temperatures at equal rejection, all adapted in warm-up. The engine is our own.
    """
    per_draw = CHAINS * (4 * num_levels + 2 * num_levels)
    window = min(num_warmup, int(budget / per_draw) // 3) // 4
    num_kept = int(budget / per_draw) - 4 * window
    start, key = time.time(), jr.key(seed)
    keys = jr.split(key, 7)
    draws = problem.draw_prior(keys[0], (10_000,))
    loc, scale = jnp.mean(draws, axis=0), jnp.std(draws, axis=0)
    warm, keep = _phases(_tempered_path(problem, loc, scale), problem.dim, num_levels)
    first = problem.draw_prior(keys[1], (CHAINS, num_levels + 1))
    position, one = (first - loc) / scale, jnp.ones(num_levels)
    tuned = Tempered(
        jnp.append(jnp.geomspace(1.0, hottest, num_levels), 0.0),
        StepSize(0.3 * one, jnp.log(0.3 * one)),
        jnp.ones((num_levels, problem.dim)),
    )
    for i in range(4):
        now = jr.split(keys[2 + i], window)
        position, steps, square, swap = warm(now, position, tuned, i * window)
        betas = tuned.betas
        if i < 3:
            betas = _equal_rejection(betas, np.asarray(swap), hottest)
        tuned = Tempered(betas, steps, 1.0 / jnp.sqrt(square + 1e-6))
    u, swap = keep(jr.split(keys[6], num_kept), position, tuned)
    x = np.swapaxes(np.asarray(loc + scale * u), 0, 1)
    seconds = time.time() - start
    note = f"swaps {float(jnp.mean(swap)):.2f}, hottest {float(tuned.betas[-2]):.2g}"
    return [
        Run(
            x[:, : num_kept // cut],
            per_draw * (4 * window + num_kept // cut),
            seconds,
            note=note,
        )
        for cut in CUTS
    ]


def _tempered_path(problem, loc, scale):
    def target(u):
        x = loc + scale * u
        return problem.log_prior(x) + problem.log_likelihood(x)

    value_and_grad = jax.value_and_grad(target)

    def path(u, beta):
        value, gradient = value_and_grad(u)
        hot = 1.0 - beta
        return Evaluation(
            beta * value + hot * log_reference(u), beta * gradient - hot * u
        )

    return path


def _phases(path, dim: int, num_levels: int):
    """Jitted ``warm`` and ``keep`` over a sequence of keys, one a draw."""
    inner = MALA(num_leapfrog=2)
    zero, one = jnp.zeros(num_levels), jnp.ones(num_levels)
    edges = Segment(one, zero, one, one, *(jnp.zeros((num_levels, dim)),) * 3, zero)

    def draw(key, state, tuned, steps):
        # swaps alone
        plan = ExchangePlan(tuned.betas, edges, steps.current, tuned.spread, one)
        nowhere = jnp.zeros(num_levels + 1, int)
        before = Replicas(*state, nowhere, jnp.zeros((), int))

        def body(replicas, inputs):
            noise, parity = inputs
            replicas, info = sweep(noise, replicas, path, plan, inner, parity)
            return replicas, (info.local_accept_prob, info.swap_accept_prob)

        noise = draw_sweeps(key, plan, inner, 2)
        after, info = jax.lax.scan(body, before, (noise, jnp.arange(2)))
        return (after.position, after.evaluation), info

    def every_chain(key, state, tuned, steps):
        chains = jax.vmap(draw, in_axes=(0, 0, None, None))
        return chains(jr.split(key, CHAINS), state, tuned, steps)

    def start(position, tuned):
        evaluate = lambda x: evaluate_all(path, tuned.betas, x)
        return position, jax.vmap(evaluate)(position)

    @jax.jit
    def warm(keys, position, tuned, first):
        """A window of warm-up: also the mean squared score and the swaps."""

        def body(carry, inputs):
            state, steps = carry
            key, i = inputs
            state, info = every_chain(key, state, tuned, steps)
            local = jnp.mean(info[0], axis=(0, 1))
            steps = adapt_step_size(steps, local, 0.65, first + i, 10**9)
            square = jnp.mean(jnp.square(state[1].score[:, :-1]), axis=0)
            return (state, steps), (square, jnp.nanmean(info[1], axis=(0, 1)))

        carry = (start(position, tuned), tuned.steps)
        inputs = (keys, jnp.arange(len(keys)))
        (state, steps), (squares, swaps) = jax.lax.scan(body, carry, inputs)
        return state[0], steps, jnp.mean(squares, axis=0), jnp.mean(swaps, axis=0)

    @jax.jit
    def keep(keys, position, tuned):
        def body(state, key):
            state, info = every_chain(key, state, tuned, tuned.steps)
            return state, (state[0][:, 0], jnp.nanmean(info[1]))

        return jax.lax.scan(body, start(position, tuned), keys)[1]

    return warm, keep


def _equal_rejection(betas: jax.Array, swap: np.ndarray, hottest: float) -> jax.Array:
    """Temperatures moved so that all swaps would be refused alike."""
    total = np.append(0.0, np.cumsum(np.maximum(1.0 - swap, 0.02)))
    goal = np.linspace(0.0, total[-1], len(betas))
    logs = np.log(np.append(np.asarray(betas)[:-1], hottest / 10.0))
    moved = np.exp(np.interp(goal, total, logs))
    return jnp.asarray(np.append(moved[:-1], 0.0), betas.dtype)
