"""What ArviZ makes of our output; runs with ArviZ 0.23 and 1.x alike."""

import arviz as az
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

import numpyro_rtk as rtk

MIXTURE = rtk.GaussianMixture(
    [0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2 * np.eye(2), 0.1 * np.eye(2)]
)
NUM_CHAINS, NUM_SAMPLES, NUM_SEGMENTS = 2, 30, 6


def model(y):
    x = numpyro.sample("x", rtk.LearnedPrior(MIXTURE))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.deterministic("total", x.sum())
    numpyro.sample("y", dist.Normal(x[0], sigma), obs=y)


def run(kernel, *args):
    mcmc = MCMC(
        kernel,
        num_warmup=20,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jr.key(0), *args)
    return mcmc


@pytest.fixture(scope="module")
def from_model():
    kernel = rtk.RTKMALA(
        model, num_segments=NUM_SEGMENTS, num_steps=1, num_candidates=2
    )
    mcmc = run(kernel, jnp.asarray([0.4, 0.6, 0.5]))
    return az.from_numpyro(mcmc, log_likelihood=True)


@pytest.fixture(scope="module")
def from_score():
    kernel = rtk.RTKMALA(
        score=MIXTURE, num_segments=NUM_SEGMENTS, num_steps=1, predictor="gaussian"
    )
    return az.from_numpyro(run(kernel))


def test_posterior_has_every_site(from_model):
    posterior = from_model.posterior
    assert {"x", "sigma", "total"} <= set(posterior.data_vars)
    assert posterior["x"].shape == (NUM_CHAINS, NUM_SAMPLES, 2)
    assert np.isfinite(posterior["x"].values).all()
    np.testing.assert_allclose(
        posterior["total"].values, posterior["x"].values.sum(-1), rtol=1e-5
    )


def test_sample_stats_of_a_model(from_model):
    stats = from_model.sample_stats
    assert stats["acceptance_rate"].shape == (NUM_CHAINS, NUM_SAMPLES)
    assert stats["segment_accept_prob"].shape == (NUM_CHAINS, NUM_SAMPLES, NUM_SEGMENTS)
    assert "tree_depth" not in stats
    assert "n_steps" not in stats
    # every segment has inner steps here, so none of the documented NaN
    for name, values in stats.data_vars.items():
        assert not np.isnan(np.asarray(values, float)).any(), name


def test_lp_is_the_joint_density(from_model):
    posterior = from_model.posterior
    x = posterior["x"].values.reshape(-1, 2)
    sigma = posterior["sigma"].values.reshape(-1)
    y = np.asarray([0.4, 0.6, 0.5])
    expected = (
        np.asarray(MIXTURE.log_density(jnp.asarray(x), 0.0))
        + np.asarray(dist.HalfNormal(1.0).log_prob(sigma))
        + np.log(sigma)  # unconstrained, as NUTS reports it
        + np.asarray(dist.Normal(x[:, :1], sigma[:, None]).log_prob(y)).sum(-1)
    )
    lp = from_model.sample_stats["lp"].values.reshape(-1)
    np.testing.assert_allclose(lp, expected, atol=1e-3)


def test_log_likelihood_has_the_observed_site_only(from_model):
    log_likelihood = from_model.log_likelihood
    assert set(log_likelihood.data_vars) == {"y"}
    assert log_likelihood["y"].shape == (NUM_CHAINS, NUM_SAMPLES, 3)


def test_observed_data(from_model):
    np.testing.assert_allclose(from_model.observed_data["y"], [0.4, 0.6, 0.5])


def test_summary_has_no_holes(from_model):
    table = az.summary(from_model, var_names=["x", "sigma"])
    assert len(table) == 3
    # ArviZ 1.x returns numbers as strings
    assert np.isfinite(table["mean"].astype(float)).all()


def test_unconditional_draws(from_score):
    (draws,) = from_score.posterior.data_vars.values()
    assert draws.shape == (NUM_CHAINS, NUM_SAMPLES, 2)
    stats = from_score.sample_stats
    assert stats["log_weight"].shape == (NUM_CHAINS, NUM_SAMPLES)
    assert stats["segment_accept_prob"].shape == (NUM_CHAINS, NUM_SAMPLES, NUM_SEGMENTS)
    assert "tree_depth" not in stats


def test_segments_without_inner_steps_are_nan():
    kernel = rtk.RTKMALA(score=MIXTURE, num_segments=3, num_steps=(1,))
    stats = az.from_numpyro(run(kernel)).sample_stats
    is_nan = np.isnan(stats["segment_accept_prob"].values).all(axis=(0, 1))
    np.testing.assert_array_equal(is_nan, [False, True, True])
