"""The kernels' posteriors against quadrature, and the test's power to see an error.

The model: x from an asymmetric one-dimensional mixture (weights .3 / .7), an ordinary
log-normal scale, one datum. The posterior of (x, log sigma) is integrated on a grid.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro.infer import MCMC, NUTS

import numpyro_rtk as rtk
from numpyro_rtk.core import metropolised
from numpyro_rtk.core.warmup import population
from numpyro_rtk.kernels.problem.problem import Problem

PRIOR = rtk.GaussianMixture(
    [0.3, 0.7], [[-1.2], [0.9]], [[[0.05]], [[0.25]]], standardise=True
)
Y = 0.1
OPTIONS = {"num_segments": 8, "num_steps": (1, 1), "num_candidates": 3}
CHAINS, DRAWS = 20, 150


def model(y):
    x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.3, 0.4))
    numpyro.sample("y", dist.Normal(x[0], sigma), obs=y)


STATISTICS = {
    "left mode": lambda x, sigma: (x < -0.3) * 1.0,
    "x": lambda x, sigma: x,
    "x squared": lambda x, sigma: x**2,
    "log sigma": lambda x, sigma: np.log(sigma),
    "x times log sigma": lambda x, sigma: x * np.log(sigma),
}


def truth() -> dict[str, float]:
    x, log_sigma = np.meshgrid(
        np.linspace(-4, 5, 1501), np.linspace(-2.5, 1.8, 501), indexing="ij"
    )
    sigma = np.exp(log_sigma)
    prior = 0.3 * st.norm.pdf(x, -1.2, 0.05**0.5) + 0.7 * st.norm.pdf(x, 0.9, 0.5)
    density = prior * st.norm.pdf(log_sigma, -0.3, 0.4) * st.norm.pdf(Y, x, sigma)
    density /= density.sum()
    return {
        name: float((f(x, sigma) * density).sum()) for name, f in STATISTICS.items()
    }


def evidence() -> float:
    grid = np.linspace(-2.5, 1.8, 4001)
    scale = np.exp(grid)
    likelihood = 0.3 * st.norm.pdf(Y, -1.2, np.sqrt(0.05 + scale**2)) + 0.7 * (
        st.norm.pdf(Y, 0.9, np.sqrt(0.25 + scale**2))
    )
    return float(np.trapezoid(likelihood * st.norm.pdf(grid, -0.3, 0.4), grid))


def worst_z(mcmc) -> float:
    """Largest |z| over the statistics; the standard error is that of 20 chain means.

    The chains are independent, so the chain means are, whatever the autocorrelation:
    their standard deviation over sqrt(20) is an honest standard error.
    """
    samples = mcmc.get_samples(group_by_chain=True)
    x = np.asarray(samples["x"])[..., 0]
    sigma = np.asarray(samples["sigma"])
    exact = truth()
    scores = []
    for name, statistic in STATISTICS.items():
        means = statistic(x, sigma).mean(axis=1)
        error = means.std(ddof=1) / np.sqrt(len(means))
        scores.append(abs(means.mean() - exact[name]) / error)
    return max(scores)


def run(kernel, seed=11, **options) -> MCMC:
    settings = {
        "num_warmup": 40,
        "num_samples": DRAWS,
        "num_chains": CHAINS,
        "chain_method": "vectorized",
        "progress_bar": False,
    }
    mcmc = MCMC(kernel, **(settings | options))
    mcmc.run(jr.key(seed), jnp.array(Y))
    return mcmc


# Student's t with 19 degrees of freedom: |t| > 5 has probability 8e-5 per statistic.
THRESHOLD = 5.0


def slow(*values, name):
    return pytest.param(*values, id=name, marks=pytest.mark.slow)


KERNELS = [
    pytest.param(lambda: rtk.RTKMALA(model, **OPTIONS), id="RTKMALA"),
    slow(
        lambda: rtk.RTKMALA.as_published(model, num_steps=2, num_candidates=8),
        name="RTKMALA, paper's start",
    ),
    slow(lambda: rtk.RTKULD(model, adjusted=True, **OPTIONS), name="RTKULD adjusted"),
]


@pytest.mark.parametrize("build", KERNELS)
def test_corrected_kernels_have_the_exact_posterior(build):
    assert worst_z(run(build())) < THRESHOLD


def test_nuts_accepts_the_learned_prior_as_a_density():
    """Valid, if not quick: two modes close enough for NUTS to cross."""
    mcmc = MCMC(
        NUTS(model),
        num_warmup=200,
        num_samples=400,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(2), jnp.array(Y))
    assert worst_z(mcmc) < THRESHOLD


BREAKAGES = {
    "backward pass without weight": lambda log_w, chosen, current: jnp.zeros(()),
    "backward weight ignored": lambda log_w, chosen, current: (
        log_w[chosen] - log_w.max()
    ),
}


@pytest.mark.parametrize("broken", BREAKAGES.values(), ids=BREAKAGES.keys())
def test_a_wrong_backward_pass_is_seen(monkeypatch, broken):
    """Negative control: few segments and one candidate make the correction matter."""
    monkeypatch.setattr(metropolised, "_log_accept", broken)
    options = {"num_segments": 3, "num_steps": (1,), "num_candidates": 1}
    assert worst_z(run(rtk.RTKMALA(model, **options))) > 2 * THRESHOLD


def test_the_same_setting_unbroken_is_exact():
    options = {"num_segments": 3, "num_steps": (1,), "num_candidates": 1}
    assert worst_z(run(rtk.RTKMALA(model, **options))) < THRESHOLD


def test_weights_of_raw_draws_give_evidence_and_posterior():
    mcmc = run(rtk.RTKMALA(model, corrected=False, **OPTIONS))
    log_w = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["log_weight"])
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])[..., 0]
    estimates = np.exp(log_w).mean(axis=1)
    error = estimates.std(ddof=1) / np.sqrt(CHAINS)
    assert abs(estimates.mean() - evidence()) < THRESHOLD * error
    assert error < 0.05 * evidence()
    left = (np.exp(log_w) * (x < -0.3)).mean(axis=1)
    expected = truth()["left mode"]
    error = (left - expected * estimates).std(ddof=1) / np.sqrt(CHAINS)
    assert abs(left.mean() - expected * estimates.mean()) < THRESHOLD * error


def run_gibbs(kernel) -> MCMC:
    """The learned site in a block of ``kernel``, the scale in one of NUTS."""
    gibbs = pytest.importorskip("numpyro.infer.gibbs")
    if not hasattr(numpyro.infer, "Gibbs"):
        pytest.skip("NumPyro < 0.22")
    mcmc = MCMC(
        gibbs.Gibbs([(kernel, ["x"]), (NUTS(model), None)]),
        num_warmup=50,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method=jax.vmap,
        progress_bar=False,
    )
    mcmc.run(jr.key(4), jnp.array(Y))
    return mcmc


def test_gibbs_block_beside_nuts_has_the_exact_posterior():
    assert worst_z(run_gibbs(rtk.RTKMALA(model, **OPTIONS))) < THRESHOLD


EXCHANGES = [
    pytest.param({}, id="mala"),
    slow({"inner": rtk.ULD()}, name="uld"),
    slow({"dense": False}, name="diagonal"),
    slow({"num_inner_steps": 1}, name="inner steps"),
    slow({"exchange": "swap"}, name="swap"),
]


@pytest.mark.parametrize("options", EXCHANGES)
def test_replica_exchange_has_the_exact_posterior_and_evidence(options):
    mcmc = run(rtk.RTKReplicaExchange(model, num_levels=8, **options))
    assert worst_z(mcmc) < THRESHOLD
    value, error = rtk.log_evidence(mcmc)
    assert abs(value - np.log(evidence())) < THRESHOLD * error
    # .006 as a rule; in one run of fifty an edge hardly passes after so short a warm-up
    assert error < 0.1


def test_replica_exchange_in_a_gibbs_block_has_the_exact_posterior():
    mcmc = run_gibbs(rtk.RTKReplicaExchange(model, num_levels=8))
    assert worst_z(mcmc) < THRESHOLD


def starts_off() -> float:
    """The left mode's share in the starts of 400 chains, in standard errors."""
    kernel = rtk.RTKReplicaExchange(model, num_levels=8)
    keys = jr.split(jr.key(5), 400)
    x = np.asarray(kernel.init(keys, 0, None, (jnp.array(Y),)).z["x"])[:, 0]
    exact = truth()["left mode"]
    return abs(np.mean(x < -0.3) - exact) / np.sqrt(exact * (1.0 - exact) / 400)


def test_short_runs_are_not_biased_by_their_start(monkeypatch):
    """Chains start from a population that is weighted down the ladder."""
    assert starts_off() < 4.0
    # with the weights turned round the same share is far off
    resample = population.systematic
    monkeypatch.setattr(population, "systematic", lambda k, w: resample(k, -3.0 * w))
    assert starts_off() > 6.0


@pytest.mark.slow
def test_sequential_chains_have_the_exact_posterior():
    kernel = rtk.RTKReplicaExchange(model, num_levels=8)
    mcmc = run(kernel, 12, chain_method="sequential")
    assert worst_z(mcmc) < THRESHOLD


@pytest.mark.slow
def test_parallel_chains_have_the_exact_posterior():
    script = f"""
import jax
import numpyro_rtk as rtk
from tests.kernels.test_posterior import THRESHOLD, model, run, worst_z
assert jax.local_device_count() == {CHAINS}
kernel = rtk.RTKReplicaExchange(model, num_levels=8)
mcmc = run(kernel, 13, chain_method="parallel")
z = worst_z(mcmc)
assert z < THRESHOLD, z
"""
    flags = f"--xla_force_host_platform_device_count={CHAINS}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


# -- islands: two modes of different widths in five dimensions, under a wide prior -------

ISLAND_WEIGHTS, ISLAND_MEANS, ISLAND_SCALES = (0.3, 0.7), (-3.0, 3.0), (0.5, 0.3)
PRIOR_SCALE, DIMENSIONS = 5.0, 5


def islands():
    x = numpyro.sample("x", dist.Normal(0.0, PRIOR_SCALE).expand([5]).to_event(1))
    parts = [
        jnp.log(w) + dist.Normal(m, s).log_prob(x).sum()
        for w, m, s in zip(ISLAND_WEIGHTS, ISLAND_MEANS, ISLAND_SCALES, strict=True)
    ]
    numpyro.factor("islands", jnp.logaddexp(*parts))


def island_truth() -> tuple[float, float]:
    """Share of the right mode, and log evidence."""
    mass = [
        w * st.norm.pdf(m, 0.0, np.hypot(PRIOR_SCALE, s)) ** DIMENSIONS
        for w, m, s in zip(ISLAND_WEIGHTS, ISLAND_MEANS, ISLAND_SCALES, strict=True)
    ]
    return float(mass[1] / sum(mass)), float(np.log(sum(mass)))


def run_islands() -> tuple[float, tuple[float, float]]:
    """Share of the right mode and log evidence; 4 chains of 400 draws, one key."""
    mcmc = MCMC(
        rtk.RTKReplicaExchange(islands),
        num_warmup=200,
        num_samples=400,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(0))
    x = np.asarray(mcmc.get_samples()["x"])
    return float(np.mean(x[:, 0] > 0)), rtk.log_evidence(mcmc)


def are_right(share: float, evidence: tuple[float, float]) -> bool:
    """1600 draws: with an autocorrelation time of 8 the share's error is .03; two of it."""
    true_share, true_evidence = island_truth()
    value, error = evidence
    assert abs(true_share - 0.7) < 0.01
    return abs(share - 0.7) < 0.06 and abs(value - true_evidence) < 4 * error < 1.0


@pytest.mark.slow
def test_islands_without_a_learned_prior():
    assert are_right(*run_islands())


@pytest.mark.slow
def test_islands_with_a_reference_on_one_of_them_are_seen(monkeypatch):
    """Negative control: the population starts from a reference narrowed onto the left."""
    narrowed = lambda self, *a: (jnp.full(5, ISLAND_MEANS[0]), jnp.full(5, 0.5))
    monkeypatch.setattr(Problem, "ordinary_location", narrowed)
    assert not are_right(*run_islands())
