"""What a user would run instead on a posterior: each rival at a budget of evaluations.

A rival is a function ``(problem, seed, budget, ...) -> list[Run]``, one :class:`Run` per
point of its curve; ``problem`` is a :class:`problem.Problem`. An evaluation is one log
density with its gradient of one position, prior and likelihood together; draws from the
exact prior cost nothing. Here is what needs no temperatures; see ``tempering.py``,
``ensemble.py``, ``guided.py`` and ``learned.py`` for the others.
"""

import time
from typing import NamedTuple

import jax
import jax.random as jr
import numpy as np
from numpyro.infer import NUTS

import numpyro_rtk as rtk
from benchmarks.posteriors.problem import ScoreAlone, factor_model
from benchmarks.shared.runs import exchange_evals, vectorised

CHAINS = 16
CUTS = (4, 2, 1)  # points of a curve: these parts of the whole
SMALL_BUDGET = 1e7  # evaluations that particle Gibbs takes half as many levels for


class Run(NamedTuple):
    """Draws at one point of a curve.

    Attributes:
        draws: ``(chains, n, dim)``, or ``(n, dim)`` where they come in no chains.
        evals: evaluations, everything included.
        seconds: of the whole run, compilation included.
        log_evidence: nan where the method has none.
        evidence_error: its standard error, nan likewise.
        note: what was chosen, and how it went.
        failure: what went wrong; empty for nothing.
    """

    draws: np.ndarray
    evals: float
    seconds: float
    log_evidence: float = np.nan
    evidence_error: float = np.nan
    note: str = ""
    failure: str = ""


def exchange(problem, seed, budget, num_warmup=None, cuts=CUTS, **options):
    """``RTKReplicaExchange`` with its defaults; one run, cut at parts of its draws.

    The 200 draws of warm-up that the kernel advises would be half of so short a run: here
    two a dimension, and no less than 100.
    """
    num_warmup = max(100, 2 * problem.dim) if num_warmup is None else num_warmup
    kernel = rtk.RTKReplicaExchange(problem.model, **{**problem.options, **options})
    mcmc = vectorised(kernel, num_warmup, max(cuts), CHAINS)
    start = time.time()
    mcmc.warmup(jr.key(seed), *problem.args)
    # only now is it known what the start took; the rest of the budget is for draws
    state = mcmc.post_warmup_state
    evals = lambda draws: exchange_evals(kernel, state, CHAINS, num_warmup + draws)
    num_samples = int((budget - evals(0)) / (CHAINS * kernel.num_evals))
    if num_samples < max(cuts):
        raise ValueError(f"a budget of {budget:.0f} does not pay for start and warm-up")
    mcmc.num_samples = num_samples
    mcmc.run(state.rng_key, *problem.args)
    jax.block_until_ready(mcmc.last_state)
    seconds, report = time.time() - start, rtk.diagnose(mcmc)
    note = (
        f"exchange {report.swap_accept_prob.mean():.2f}, worst "
        f"{report.swap_accept_prob.min():.2f}, round trips {report.round_trips.sum()}"
    )
    return _cut(mcmc, report, evals, seconds, note, cuts)


def particle_gibbs(problem, seed, budget, cuts=CUTS, num_warmup=5, **options):
    """``RTKParticleGibbs`` by scores alone; one run, cut at its parts.

    With its defaults, but for a small budget's levels: draws are worth more to it.
    """
    model = factor_model(ScoreAlone(problem.prior), problem.log_likelihood)
    if budget < SMALL_BUDGET:
        options = {"num_levels": 32} | options
    kernel = rtk.RTKParticleGibbs(model, **options)
    (dim,) = problem.prior.event_shape
    draw_evals = kernel.num_particles * kernel.num_levels
    first = kernel.num_init_evals(dim, CHAINS)
    evals = lambda draws: first + draw_evals * CHAINS * (num_warmup + draws)
    num_samples = int((budget - evals(0)) / (CHAINS * draw_evals))
    if num_samples < 2 * max(cuts):
        raise ValueError(f"a budget of {budget:.0f} does not pay for start and warm-up")
    mcmc = vectorised(kernel, num_warmup, num_samples, CHAINS)
    start = time.time()
    mcmc.run(jr.key(seed))
    jax.block_until_ready(mcmc.last_state)
    seconds, report = time.time() - start, rtk.diagnose(mcmc)
    least = report.sample_size.min()
    note = (
        f"moved {report.moved.mean():.2f}, least {report.moved.min():.2f}; least ESS "
        f"{least:.1f} of {report.num_particles}"
    )
    return _cut(mcmc, report, evals, seconds, note, cuts)


def _cut(mcmc, report, evals, seconds, note, cuts) -> list[Run]:
    """A finished run of ours at parts of its draws; ``evals`` of so many draws."""
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    failure = "; ".join(sentence.split(". ")[0] for sentence in report.problems)
    parts = [x.shape[1] // cut for cut in cuts]
    return [
        Run(x[:, :n], evals(n), seconds, *report.log_evidence, note, failure)
        for n in parts
    ]


def plain_swaps(problem, seed, budget, **options):
    """The same kernel and ladder with plain swaps."""
    return exchange(problem, seed, budget, exchange="swap", **options)


def nuts(problem, seed, budget, num_chains=64, num_warmup=200):
    """NUTS from prior draws; the chains' number is for it to choose."""
    mcmc = vectorised(NUTS(problem.model), num_warmup, 50, num_chains)
    start, key = time.time(), jr.key(seed)
    first = problem.draw_prior(jr.fold_in(key, 1), (num_chains,))
    fields = ("num_steps", "diverging")
    mcmc.warmup(
        key,
        *problem.args,
        extra_fields=fields,
        init_params={"x": first},
        collect_warmup=True,
    )
    evals = float(np.sum(mcmc.get_extra_fields()["num_steps"]))
    runs, draws, diverging, goal = [], [], [], budget / 4
    while evals < budget:
        mcmc.run(mcmc.last_state.rng_key, *problem.args, extra_fields=fields)
        mcmc.post_warmup_state = mcmc.last_state
        found = mcmc.get_extra_fields()
        evals += float(np.sum(found["num_steps"]))
        diverging.append(np.mean(found["diverging"]))
        draws.append(np.asarray(mcmc.get_samples(group_by_chain=True)["x"]))
        if evals >= goal or evals >= budget:
            share = np.mean(diverging)
            runs.append(
                Run(
                    np.concatenate(draws, axis=1),
                    evals,
                    time.time() - start,
                    failure=f"{share:.1%} diverging" if share > 0.001 else "",
                )
            )
            goal *= 2
    return runs


def importance(problem, seed, budget, num_kept=4000):
    """Prior draws resampled by their likelihood."""
    start, size = time.time(), 20_000
    key, kept, weights = jr.key(seed), [], []
    likelihood = jax.jit(jax.vmap(problem.log_likelihood))
    draw = jax.jit(lambda k: problem.draw_prior(k, (size,)))
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
            float(w.std() / w.mean() / np.sqrt(len(w))),
            f"effective {ess:.0f} of {len(w)}",
            "" if ess > 10 else "weights degenerate",
        )
    ]
