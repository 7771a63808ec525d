"""What a user would run instead on a posterior: each rival at a budget of evaluations.

A rival is a function ``(posterior, seed, budget, ...) -> list[Run]``, one :class:`Run` per
point of its curve. An evaluation is one log density with its gradient of one position,
prior and likelihood together; draws from the exact prior cost nothing. All draws are
flat ``(n, dim)``.
"""

import time
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from blackjax.smc import adaptive_tempered, resampling
from models import exchange_evals, log_likelihood, make_model, sample
from numpyro.infer import MCMC, NUTS

import numpyro_rtk as rtk
from numpyro_rtk.core.adapt import StepSize, adapt_step_size
from numpyro_rtk.core.annealed import log_reference
from numpyro_rtk.core.exchange import Edges, ExchangePlan, Replicas, evaluate_all, sweep
from numpyro_rtk.core.mala import mala
from numpyro_rtk.core.segment import Evaluation

CHAINS = 16
CUTS = (4, 2, 1)  # points of a curve: these parts of the whole


class Run(NamedTuple):
    """Draws at one point of a curve."""

    draws: np.ndarray
    evals: float
    seconds: float
    log_evidence: float = np.nan
    note: str = ""


def exchange(posterior, seed, budget, num_warmup=50, **options):
    """``RTKReplicaExchange`` with its defaults; one run, cut at parts of its draws."""
    kernel = rtk.RTKReplicaExchange(make_model(posterior), **options)
    evals = lambda draws: exchange_evals(kernel, CHAINS, num_warmup + draws)
    num_samples = int((budget - evals(0)) / (CHAINS * kernel.num_evals))
    mcmc, x, seconds = sample(kernel, posterior, num_warmup, num_samples, CHAINS, seed)
    report = rtk.diagnose(mcmc)
    note = (
        f"exchange {report.swap_accept_prob.mean():.2f}, worst "
        f"{report.swap_accept_prob.min():.2f}, round trips {report.round_trips.sum()}"
    )
    return [
        Run(
            x[:, : num_samples // cut].reshape(-1, x.shape[-1]),
            evals(num_samples // cut),
            seconds,
            report.log_evidence[0],
            note,
        )
        for cut in CUTS
    ]


def plain_swaps(posterior, seed, budget, **options):
    """The same kernel and ladder with plain swaps."""
    return exchange(posterior, seed, budget, exchange="swap", **options)


def nuts(posterior, seed, budget, num_chains=64, num_warmup=200):
    """NUTS from prior draws; the chains' number is for it to choose."""
    mcmc = MCMC(
        NUTS(make_model(posterior)),
        num_warmup=num_warmup,
        num_samples=50,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    start, key = time.time(), jr.key(seed)
    first = posterior.prior.sample(jr.fold_in(key, 1), (num_chains,))
    fields = ("num_steps",)
    data = jnp.asarray(posterior.data)
    mcmc.warmup(
        key, data, extra_fields=fields, init_params={"x": first}, collect_warmup=True
    )
    evals = float(np.sum(mcmc.get_extra_fields()["num_steps"]))
    runs, draws, goal = [], [], budget / 4
    while evals < budget:
        mcmc.run(mcmc.last_state.rng_key, data, extra_fields=fields)
        mcmc.post_warmup_state = mcmc.last_state
        evals += float(np.sum(mcmc.get_extra_fields()["num_steps"]))
        draws.append(np.asarray(mcmc.get_samples()["x"]))
        if evals >= goal or evals >= budget:
            runs.append(Run(np.concatenate(draws), evals, time.time() - start))
            goal *= 2
    return runs


def importance(posterior, seed, budget, num_kept=4000):
    """Prior draws resampled by their likelihood."""
    start, size = time.time(), 20_000
    key, kept, weights = jr.key(seed), [], []
    likelihood = jax.jit(jax.vmap(log_likelihood(posterior)))
    draw = jax.jit(lambda k: posterior.prior.sample(k, (size,)))
    for k in jr.split(key, max(int(budget // size), 1)):
        x = draw(k)
        kept.append(np.asarray(x))
        weights.append(np.asarray(likelihood(x), float))
    x, log_w = np.concatenate(kept), np.concatenate(weights)
    w = np.exp(log_w - log_w.max())
    evidence = np.log(w.mean()) + log_w.max()
    ess = w.sum() ** 2 / np.sum(w**2)
    chosen = np.random.default_rng(seed).choice(len(w), num_kept, p=w / w.sum())
    return [
        Run(
            x[chosen],
            len(w),
            time.time() - start,
            float(evidence),
            f"effective {ess:.0f} of {len(w)}",
        )
    ]


def tempered_smc(
    posterior, seed, budget, num_particles=4000, num_steps=4, num_leapfrog=5, ess=0.5
):
    """BlackJAX's adaptive tempered SMC from exact prior draws, with tuned HMC moves.

    Mass matrix from the particles and step size from the last acceptance (aim .8), both
    at each temperature. The number of moves a temperature is raised until the budget is
    spent: a first pass measures what one costs.
    """
    log_prior = lambda x: posterior.prior.log_density(x, 0.0)
    likelihood = log_likelihood(posterior)
    hmc = blackjax.hmc.build_kernel()

    def move(key, state, logdensity, step_size, inverse_mass_matrix):
        return hmc(key, state, logdensity, step_size, inverse_mass_matrix, num_leapfrog)

    kernel = adaptive_tempered.build_kernel(
        log_prior,
        likelihood,
        move,
        blackjax.hmc.init,
        resampling.systematic,
        ess,
    )
    step = jax.jit(kernel, static_argnums=2)

    def run(key, num_steps):
        key, key_prior = jr.split(key)
        state = adaptive_tempered.init(
            posterior.prior.sample(key_prior, (num_particles,))
        )
        evidence, temperatures, step_size = 0.0, 0, 0.5
        while float(state.tempering_param) < 1.0:
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
            if temperatures > 500:
                break
        return np.asarray(state.particles), temperatures, evidence, accept

    def cost(temperatures, num_steps):
        # per move the leapfrogs; per temperature the start and the weights
        return num_particles * temperatures * (num_steps * num_leapfrog + 2)

    runs, key = [], jr.key(seed)
    _, expected, _, _ = run(key, num_steps)
    for part in CUTS:
        steps = 1
        while cost(expected, steps + 1) <= budget / part:
            steps += 1
        start = time.time()
        draws, used, evidence, accept = run(jr.fold_in(key, part), steps)
        seconds = time.time() - start
        note = f"{steps} moves, {used} temperatures, last acceptance {accept:.2f}"
        runs.append(Run(draws, cost(used, steps), seconds, evidence, note))
    return runs


def temperature_exchange(
    posterior, seed, budget, num_levels=16, num_warmup=400, hottest=1e-3
):
    """Replica exchange in temperature: ``N(0, I)^(1 - b) posterior^b``.

    Plain swaps, two-leapfrog moves with step sizes and diagonal spreads per level, and
    temperatures at equal rejection, all adapted in warm-up. The engine is our own.
    """
    prior, likelihood = posterior.prior, log_likelihood(posterior)
    loc, scale = rtk.paths.loc_and_scale(prior)
    dim = int(np.prod(prior.event_shape))

    def target(u):
        x = loc + scale * u
        return prior.log_density(x, 0.0) + likelihood(x)

    value_and_grad = jax.value_and_grad(target)

    def path(u, beta):
        value, gradient = value_and_grad(u)
        cold = Evaluation(beta * value, beta * gradient)
        hot = 1.0 - beta
        return Evaluation(
            cold.log_density + hot * log_reference(u), cold.score - hot * u
        )

    inner = mala(num_leapfrog=2)
    zero, one = jnp.zeros(num_levels), jnp.ones(num_levels)
    edges = Edges(one, zero, one, one, *(jnp.zeros((num_levels, dim)),) * 3, zero)

    def draw(key, carry, betas, steps, spread):
        position, evaluation = carry
        plan = ExchangePlan(betas, edges, steps, spread)
        before = Replicas(
            position, evaluation, jnp.zeros(num_levels + 1, int), jnp.zeros((), int)
        )

        def body(replicas, inputs):
            k, parity = inputs
            replicas, info = sweep(
                k, replicas, path, plan, inner, parity, exchange="swap"
            )
            return replicas, (info.local_accept_prob, info.swap_accept_prob)

        after, info = jax.lax.scan(body, before, (jr.split(key), jnp.arange(2)))
        return (after.position, after.evaluation), info

    def evaluate(position, betas):
        plan = ExchangePlan(betas, edges, one, one)
        return jax.vmap(lambda x: evaluate_all(path, plan.levels, x))(position)

    @jax.jit
    def warm(key, position, betas, steps, spread, first):
        """A window of warm-up: also the mean squared score and rejections."""
        carry = (position, evaluate(position, betas))

        def body(carry, inputs):
            state, step = carry
            k, i = inputs
            state, info = jax.vmap(draw, in_axes=(0, 0, None, None, None))(
                jr.split(k, CHAINS), state, betas, step.current, spread
            )
            local = jnp.mean(info[0], axis=(0, 1))
            step = adapt_step_size(step, local, 0.65, first + i, 10**9)
            square = jnp.mean(jnp.square(state[1].score[:, :-1]), axis=0)
            return (state, step), (square, jnp.nanmean(info[1], axis=(0, 1)))

        window = num_warmup // 4
        inputs = (jr.split(key, window), jnp.arange(window))
        (state, step), (squares, swaps) = jax.lax.scan(body, (carry, steps), inputs)
        return state[0], step, jnp.mean(squares, axis=0), jnp.mean(swaps, axis=0)

    @jax.jit
    def keep(key, position, betas, steps, spread):
        carry = (position, evaluate(position, betas))

        def body(carry, k):
            carry, info = jax.vmap(draw, in_axes=(0, 0, None, None, None))(
                jr.split(k, CHAINS), carry, betas, steps, spread
            )
            return carry, (carry[0][:, 0], jnp.nanmean(info[1]))

        return jax.lax.scan(body, carry, jr.split(key, num_kept))

    per_draw = CHAINS * (4 * num_levels + 2 * num_levels)
    num_kept = int(budget / per_draw) - num_warmup
    start, key = time.time(), jr.key(seed)
    key, now = jr.split(key)
    first = (prior.sample(now, (CHAINS, num_levels + 1)) - loc) / scale
    betas = jnp.append(jnp.geomspace(1.0, hottest, num_levels), 0.0)
    position = first.reshape(CHAINS, num_levels + 1, dim)
    steps = StepSize(0.3 * one, jnp.log(0.3 * one))
    spread = jnp.ones((num_levels, dim))
    for window in range(4):
        key, now = jr.split(key)
        position, steps, square, swap = warm(
            now, position, betas, steps, spread, window * (num_warmup // 4)
        )
        spread = 1.0 / jnp.sqrt(square + 1e-6)
        if window < 3:
            share = np.maximum(1.0 - np.asarray(swap), 0.02)
            total = np.concatenate([[0.0], np.cumsum(share)])
            goal = np.linspace(0.0, total[-1], num_levels + 1)
            logs = np.log(np.append(np.asarray(betas)[:-1], hottest / 10.0))
            moved = np.exp(np.interp(goal, total, logs))
            betas = jnp.asarray(np.append(moved[:-1], 0.0), betas.dtype)
    key, now = jr.split(key)
    _, (draws, swap) = keep(now, position, betas, steps.current, spread)
    x = np.asarray(loc + scale * draws)
    seconds = time.time() - start
    note = f"swaps {float(jnp.mean(swap)):.2f}, hottest {float(betas[-2]):.2g}"
    return [
        Run(
            x[: num_kept // cut].reshape(-1, dim),
            per_draw * (num_warmup + num_kept // cut),
            seconds,
            note=note,
        )
        for cut in CUTS
    ]
