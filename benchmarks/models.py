"""The benchmarks' posteriors as NumPyro models, as plain functions, and their runs."""

import time

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC

import numpyro_rtk as rtk


def make_model(posterior):
    """``x ~ prior``, ``y ~ Normal(H x, sd)``."""
    prior = rtk.LearnedPrior(posterior.prior)
    design = jnp.asarray(posterior.design)

    def model(y):
        x = numpyro.sample("x", prior)
        noise = dist.Normal(design @ x, posterior.noise_sd).to_event(1)
        numpyro.sample("y", noise, obs=y)

    return model


def log_likelihood(posterior):
    """The same likelihood of a flat position."""
    design, data = jnp.asarray(posterior.design), jnp.asarray(posterior.data)

    def value(x):
        noise = dist.Normal(design @ x, posterior.noise_sd)
        return jnp.sum(noise.log_prob(data))

    return value


def sample(kernel, posterior, num_warmup, num_samples, num_chains, seed):
    """A vectorised run: ``mcmc``, draws ``(chains, draws, dim)``, seconds."""
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    start = time.time()
    mcmc.run(jr.key(seed), jnp.asarray(posterior.data))
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    return mcmc, x, time.time() - start


def exchange_evals(kernel, num_chains: int, draws: int) -> float:
    """Evaluations of a vectorised exchange, start included; ``draws`` with warm-up."""
    pilot, start = kernel.num_init_evals
    return pilot + num_chains * (start + kernel.num_evals * draws)
