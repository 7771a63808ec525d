"""Vectorised runs of kernels, on densities and on the models of known posteriors."""

import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC

import numpyro_rtk as rtk


def vectorised(
    kernel, num_warmup: int, num_samples: int, num_chains: int, **options
) -> MCMC:
    """A run to come: all chains in one batch, no progress bar."""
    return MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
        **options,
    )


def make_model(posterior):
    """``x ~ prior``, ``y ~ Normal(H x, sd)``: a posterior of ``known_posteriors.py``."""
    prior = rtk.LearnedPrior(posterior.prior)
    design = jnp.asarray(posterior.design)

    def model(y):
        x = numpyro.sample("x", prior)
        noise = dist.Normal(design @ x, posterior.noise_sd).to_event(1)
        numpyro.sample("y", noise, obs=y)

    return model


def sample(
    kernel, posterior, num_warmup: int, num_samples: int, num_chains: int, seed: int
) -> tuple[MCMC, np.ndarray, float]:
    """A run on :func:`make_model`: draws ``(chains, draws, dim)`` and seconds with it."""
    mcmc = vectorised(kernel, num_warmup, num_samples, num_chains)
    start = time.time()
    mcmc.run(jr.key(seed), jnp.asarray(posterior.data))
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    return mcmc, x, time.time() - start


def draw(
    kernel, n: int, key: jax.Array, num_chains: int = 100, num_warmup: int = 100
) -> tuple[np.ndarray, dict]:
    """``n`` draws of a density by a kernel, as a user runs it, and the extra fields."""
    mcmc = vectorised(kernel, num_warmup, n // num_chains, num_chains)
    mcmc.run(key)
    return np.asarray(mcmc.get_samples()), mcmc.get_extra_fields()


def exchange_evals(kernel, state, num_chains: int, draws: int) -> float:
    """Evaluations of a vectorised exchange, start included; ``draws`` with warm-up."""
    return kernel.num_init_evals(state) + num_chains * kernel.num_evals * draws
