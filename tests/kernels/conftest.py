import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

import numpyro_rtk as rtk

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.5, 0.5], [1.0, -0.5]])
COVARIANCES = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.05], [-0.05, 0.4]]])
MIXTURE = rtk.GaussianMixture(WEIGHTS, MEANS, COVARIANCES, standardise=True)

# Few segments and candidates: these tests are about the driver, not about efficiency.
SMALL = {"num_segments": 6, "num_steps": (1,), "num_candidates": 2}


def model(y=None):
    x = numpyro.sample("x", rtk.LearnedPrior(MIXTURE))
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.5))
    numpyro.deterministic("total", x[0] + x[1])
    numpyro.sample("y", dist.Normal(x[0] + x[1], sigma), obs=y)


def make_mcmc(kernel=None, **options):
    kernel = rtk.RTKMALA(model, **SMALL) if kernel is None else kernel
    settings = {"num_warmup": 20, "num_samples": 30, "progress_bar": False}
    return MCMC(kernel, **(settings | options))


@pytest.fixture(scope="session")
def finished():
    """One run that every read-only test looks at."""
    mcmc = make_mcmc(num_chains=2, chain_method="vectorized")
    mcmc.run(jr.key(0), jnp.array(0.5))
    return mcmc
