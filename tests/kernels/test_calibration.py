"""Simulation-based calibration (Talts et al. 2018, arXiv 1804.06788) of exact kernels.

Parameters from the prior, data from the model: the rank of the parameter among posterior
draws is uniform when, and only when, the posterior is right on average over data. 240 data
sets and 15 thinned draws each: ranks 0 to 15 in 8 bins of 2, chi-square with 7 degrees of
freedom, refused below p = 1e-5. Thinned draws that are still correlated widen the
statistic, so the thinning is generous.
"""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import stats

import numpyro_rtk as rtk
from numpyro_rtk.core import particles
from numpyro_rtk.core.exchange import sweep as exchange
from numpyro_rtk.kernels import replica_exchange

NUM_DATA, NUM_DRAWS, THINNING, WARMUP = 240, 15, 12, 60
SKEWED = rtk.GaussianMixture(
    [0.3, 0.7], [[-1.2, 0.4], [0.9, -0.3]], [0.05 * np.eye(2), 0.3 * np.eye(2)]
)
LINE = rtk.GaussianMixture([0.6, 0.4], [[-1.0], [1.3]], [[[0.1]], [[0.3]]])


def one_prior(y=None):
    x = numpyro.sample("x", rtk.LearnedPrior(SKEWED))
    numpyro.deterministic("first", x[0])
    numpyro.deterministic("second", x[1])
    numpyro.sample("y", dist.Normal(x[0] + 0.5 * x[1] ** 2, 0.6), obs=y)


def hierarchical_scale(y=None):
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.6))
    with numpyro.plate("groups", 3):
        x = numpyro.sample("x", rtk.LearnedPrior(LINE))
        numpyro.sample("y", dist.Normal(x[:, 0], sigma), obs=y)
    numpyro.deterministic("first", x[0, 0])
    numpyro.deterministic("second", sigma)


def two_priors(y=None):
    x = numpyro.sample("x", rtk.LearnedPrior(SKEWED))
    w = numpyro.sample("w", rtk.LearnedPrior(LINE))
    numpyro.deterministic("first", w[0])
    numpyro.deterministic("second", x[0] * w[0])
    numpyro.sample("y", dist.Normal(x[0] * w[0], 0.3), obs=y)


exchange_of = functools.partial(rtk.RTKReplicaExchange, num_levels=6)
particles_of = functools.partial(rtk.RTKParticleGibbs, num_particles=16, num_levels=8)


def ranks(kernel, key):
    """``(NUM_DATA, 2)``, of both deterministic sites."""
    model = kernel.model

    def one(key):
        key_data, key_init = jr.split(key)
        drawn = handlers.trace(handlers.seed(model, key_data)).get_trace()
        y = drawn["y"]["value"]
        state = kernel.init(key_init, WARMUP, None, model_args=(y,), model_kwargs={})
        replay = kernel.postprocess_fn((y,), {})

        def step(state, _):
            return kernel.sample(state, (y,), {}), None

        def keep(state, _):
            state, _ = jax.lax.scan(step, state, None, length=THINNING)
            values = replay(state.z)
            return state, jnp.stack([values["first"], values["second"]])

        state, _ = jax.lax.scan(step, state, None, length=WARMUP)
        _, draws = jax.lax.scan(keep, state, None, length=NUM_DRAWS)
        true = jnp.stack([drawn[name]["value"] for name in ("first", "second")])
        return jnp.sum(draws < true[None], axis=0)

    batches = jr.split(key, NUM_DATA).reshape(6, NUM_DATA // 6)
    found = jax.jit(lambda keys: jax.lax.map(jax.vmap(one), keys))(batches)
    return np.asarray(found).reshape(NUM_DATA, 2)


def p_values(found):
    counts = [np.bincount(column // 2, minlength=8) for column in found.T]
    return [stats.chisquare(count).pvalue for count in counts]


MODELS = {
    "learned prior": one_prior,
    "in a plate, with a hierarchical scale": hierarchical_scale,
    "two learned priors": two_priors,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel_of", [exchange_of, particles_of], ids=["exchange", "particles"]
)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_ranks_are_uniform(model, kernel_of, key):
    assert min(p_values(ranks(kernel_of(model), key))) > 1e-5


@pytest.mark.slow
def test_a_wrong_acceptance_is_seen(key, monkeypatch):
    """Negative control: every swap is accepted, whatever its increments; nothing jumps."""
    right = exchange._increment
    monkeypatch.setattr(exchange, "_increment", lambda *a: 0.0 * right(*a))
    stay = lambda noise, replicas, *_: (replicas, jnp.zeros(()))
    monkeypatch.setattr(replica_exchange, "jump_bottom", stay)
    model = functools.partial(one_prior)
    found = ranks(rtk.RTKReplicaExchange(model, num_levels=3, exchange="swap"), key)
    assert min(p_values(found)) < 1e-8


@pytest.mark.slow
def test_a_wrong_weight_is_seen(key, monkeypatch):
    """Negative control: the prior's density at the end is left out of the weights."""
    right = particles._at_bottom

    def without_prior(*inputs):
        prior, likelihood = right(*inputs)
        return 0.0 * prior, likelihood

    monkeypatch.setattr(particles, "_at_bottom", without_prior)
    found = ranks(particles_of(functools.partial(one_prior)), key)
    assert min(p_values(found)) < 1e-8
