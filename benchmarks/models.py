"""The benchmarks' posteriors as NumPyro models, and as plain functions."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

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
