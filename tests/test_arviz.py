"""What ArviZ makes of our output; runs with ArviZ 0.23 and 1.x alike."""

import subprocess
import sys

import arviz as az
import jax
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


def test_pareto_k_knows_the_tail():
    """Weights x**k, x Pareto(1), have exactly the tail index k; 20,000 of them.

    ArviZ's two generations take their argument with opposite signs: with the sign wrong
    both values below come out near zero or negative.
    """
    uniform = np.random.default_rng(0).uniform(size=20_000)
    for k in (0.3, 0.9):
        assert abs(rtk.pareto_k(-k * np.log(uniform)) - k) < 0.12


def test_pareto_k_of_chains_and_dead_draws():
    log_weight = np.random.default_rng(1).normal(size=(4, 250))
    flat = rtk.pareto_k(log_weight)
    assert flat == rtk.pareto_k(log_weight.ravel())
    with_dead = np.where(np.arange(1000).reshape(4, 250) < 10, -np.inf, log_weight)
    assert np.isfinite(rtk.pareto_k(with_dead))
    assert rtk.pareto_k(np.full(100, -np.inf)) == np.inf
    assert rtk.pareto_k(np.zeros(100)) == -np.inf


def test_pareto_k_refuses_nan():
    with pytest.raises(ValueError, match="must not be NaN"):
        rtk.pareto_k([0.0, np.nan])


def test_weighted_sample_size():
    assert rtk.weighted_sample_size(jnp.zeros((2, 5))) == pytest.approx(10.0)
    assert rtk.weighted_sample_size(jnp.array([0.0, -jnp.inf])) == pytest.approx(1.0)
    assert rtk.weighted_sample_size(jnp.full(3, -jnp.inf)) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        rtk.weighted_sample_size(jnp.zeros(0))


def test_importance_resample_follows_the_weights():
    samples = {"x": jnp.arange(3.0), "y": jnp.arange(6.0).reshape(3, 2)}
    log_weight = jnp.log(jnp.array([0.25, 0.0, 0.75]))
    drawn = rtk.importance_resample(jr.key(0), samples, log_weight, 8)
    # systematic: counts are the expected ones, rounded up or down; here no rounding
    np.testing.assert_array_equal(np.bincount(drawn["x"].astype(int)), [2, 0, 6])
    np.testing.assert_array_equal(drawn["y"][:, 0], 2 * drawn["x"])


@pytest.mark.parametrize(
    ("log_weight", "match"),
    [
        (jnp.zeros((3, 1)), "must have shape"),
        (jnp.zeros(2), "must have shape"),
        (jnp.full(3, -jnp.inf), "finite largest"),
    ],
)
def test_importance_resample_refuses(log_weight, match):
    with pytest.raises(ValueError, match=match):
        rtk.importance_resample(jr.key(0), jnp.zeros((3, 2)), log_weight, 4)


def test_import_loads_neither_arviz_nor_matplotlib():
    code = (
        "import sys, numpyro_rtk\n"
        "heavy = {'arviz', 'arviz_base', 'arviz_stats', 'matplotlib', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


def test_pareto_k_names_the_remedy_without_arviz(monkeypatch):
    for name in ("arviz", "arviz_stats", "arviz_stats.base"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install numpyro-rtk\[arviz\]"):
        rtk.pareto_k(jax.numpy.zeros(10))
