"""Where the prior is known by draws alone: a density learned from them, then a sampler.

Both see the same 20,000 prior draws and sample the posterior under what they learned, so
that the error has both parts. Training is told in seconds, evaluations are of sampling.
"""

import time

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import numpyro_rtk as rtk
from benchmarks.posteriors.problem import factor_model
from benchmarks.posteriors.rivals.plain import exchange, nuts
from benchmarks.shared.learners import flow

NUM_ROWS = 20_000
FLOW = "coupling spline flow"


def flow_nuts(problem, seed, budget, max_epochs=100):
    """flowjax's coupling spline flow, the best of three learning rates, then NUTS."""
    start = time.time()
    fitted = flow(FLOW, _rows(problem, seed), seed, max_epochs=max_epochs)
    trained = f"trained {time.time() - start:.0f} s, {fitted.note}"

    def model():
        space = dist.ImproperUniform(constraints.real_vector, (), (problem.dim,))
        x = numpyro.sample("x", space)
        numpyro.factor("target", fitted.evaluate(x) + problem.log_likelihood(x))

    learned = problem._replace(model=model, args=())
    runs = nuts(learned, seed, budget)
    return [run._replace(note=trained) for run in runs]


def learned_exchange(problem, seed, budget):
    """``rtk.fit`` with its defaults, then ``RTKReplicaExchange`` with its defaults."""
    start = time.time()
    rows = jnp.asarray(_rows(problem, seed), jnp.float32)
    density, _ = rtk.fit(jr.key(seed), rows, progress_bar=False)
    trained = f"trained {time.time() - start:.0f} s"
    model = factor_model(density, problem.log_likelihood)
    runs = exchange(problem._replace(model=model, args=()), seed, budget)
    return [run._replace(note=f"{trained}, {run.note}") for run in runs]


def _rows(problem, seed: int) -> np.ndarray:
    return np.asarray(problem.draw_prior(jr.key(100 + seed), (NUM_ROWS,)), float)
