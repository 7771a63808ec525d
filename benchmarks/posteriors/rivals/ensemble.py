"""NumPyro's ensemble samplers; an evaluation of theirs is one log density, no gradient.

Both have 4 walkers a dimension, 128 at least, started from prior draws, and a fifth of
the budget as warm-up. What a walker knows already is not counted again.
"""

import time

import jax.random as jr
import numpy as np
from numpyro.infer import AIES, ESS, MCMC

from benchmarks.posteriors.rivals.plain import CUTS, Run
from benchmarks.shared.runs import vectorised

MOST_DRAWS = 50_000  # of all walkers together; longer runs are thinned
WARMUP = 0.2  # of the budget


def aies(problem, seed, budget):
    """Affine-invariant ensemble: differential evolution, stretches, jumps of mode.

    Without the moves of length 1 (ter Braak, 2006) it crosses no valley.
    """
    moves = {AIES.DEMove(): 0.6, AIES.DEMove(g0=1.0): 0.2, AIES.StretchMove(): 0.2}
    num = _walkers(problem)
    num_iterations = int(budget / num)
    num_warmup = int(WARMUP * num_iterations)
    kernel = AIES(problem.model, moves=moves)
    mcmc = _mcmc(kernel, num, num_warmup, num_iterations - num_warmup)
    start, key = time.time(), jr.key(seed)
    mcmc.run(key, *problem.args, init_params=_starts(problem, key, num))
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    seconds = time.time() - start
    accept = float(mcmc.last_state.inner_state.mean_accept_prob)
    return [
        Run(
            x[:, : x.shape[1] // cut],
            num * (num_warmup + (num_iterations - num_warmup) // cut),
            seconds,
            note=f"{num} walkers, acceptance {accept:.2f}",
        )
        for cut in CUTS
    ]


def ensemble_slice(problem, seed, budget):
    """Ensemble slice sampling; its walkers change places, so there are no chains.

    The scale is tuned in warm-up, then kept, so that the evaluations can be counted: those
    of warm-up, which NumPyro does not count, are taken to cost what the later ones do. An
    update takes both ends of the interval, every expansion, every contraction, and the
    new position.
    """
    moves = {ESS.DifferentialMove(): 0.8, ESS.GaussianMove(): 0.2}
    num = _walkers(problem)
    # about eight log densities an update: what is left over is seen in the count
    num_iterations = max(int(budget / (8 * num)), 8)
    num_warmup = int(WARMUP * num_iterations)
    start, key = time.time(), jr.key(seed)
    options = {"moves": moves, "max_steps": 100, "max_iter": 100}
    tune = _mcmc(ESS(problem.model, **options), num, num_warmup, 1)
    tune.run(key, *problem.args, init_params=_starts(problem, key, num))
    scale = float(tune.last_state.inner_state.mu)
    kernel = ESS(problem.model, **options, init_mu=scale, tune_mu=False)
    num_kept = num_iterations - num_warmup
    mcmc = _mcmc(kernel, num, 0, num_kept)
    mcmc.run(jr.fold_in(key, 1), *problem.args, init_params=tune.last_state.z)
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    inner = mcmc.last_state.inner_state
    per_update = 3.0 + int(inner.n_expansions + inner.n_contractions) / (num * num_kept)
    seconds = time.time() - start
    return [
        Run(
            x[:, : x.shape[1] // cut].reshape(-1, problem.dim),
            per_update * num * (num_warmup + num_kept // cut),
            seconds,
            note=f"{num} walkers, {per_update:.1f} evaluations an update",
        )
        for cut in CUTS
    ]


def _walkers(problem) -> int:
    return max(128, 4 * problem.dim)


def _starts(problem, key, num: int) -> dict:
    return {"x": problem.draw_prior(jr.fold_in(key, 1), (num,))}


def _mcmc(kernel, num: int, num_warmup: int, num_samples: int) -> MCMC:
    thinning = max(num * num_samples // MOST_DRAWS, 1)
    return vectorised(kernel, num_warmup, num_samples, num, thinning=thinning)
