"""RTKReplicaExchange and NumPyro's driver; its posterior is tested in test_posterior."""

import copy
import pickle
from types import SimpleNamespace

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_rtk as rtk
from numpyro_rtk.diagnostics.exchange import _disagreeing_edges
from tests.kernels.conftest import MIXTURE, make_mcmc, model
from tests.kernels.test_refusals import ScoreOnly

DATA, K = jnp.array(0.5), 5


def kernel(**options):
    return rtk.RTKReplicaExchange(model, **({"num_levels": K} | options))


@pytest.fixture(scope="module")
def exchanged():
    """One run, warmed up on its own, that what follows looks at or goes on with."""
    mcmc = make_mcmc(
        kernel(),
        num_chains=2,
        chain_method="vectorized",
        num_warmup=40,
        jit_model_args=True,
    )
    mcmc.warmup(jr.key(0), DATA)
    mcmc.run(jr.key(1), DATA)
    return mcmc


def test_samples_and_fields(exchanged):
    samples = exchanged.get_samples(group_by_chain=True)
    assert {k: v.shape for k, v in samples.items()} == {
        "x": (2, 30, 2),
        "sigma": (2, 30),
        "total": (2, 30),
    }
    fields = exchanged.get_extra_fields(group_by_chain=True)
    for name in ("swap_accept_prob", "level_accept_prob", "bridge_down", "bridge_up"):
        assert fields[name].shape == (2, 30, K)
        assert np.all((fields[name] >= 0) & (fields[name] <= 1))
    for name in ("accept_prob", "potential_energy", "log_evidence"):
        assert np.all(np.isfinite(fields[name]))
    assert np.all(np.diff(fields["round_trips"], axis=1) >= 0)
    assert np.all((fields["jump_accept_prob"] >= 0) & (fields["jump_accept_prob"] <= 1))
    assert fields["jump_accept_prob"].shape == fields["mode"].shape == (2, 30)
    # evaluated anew (K + 1), 4 local rounds of 2 leapfrogs, 4 rounds of 3 pairs, a jump
    evals = K + 1 + 4 * (2 * K + 2 * 3) + 1
    assert set(np.ravel(fields["num_score_evals"])) == {evals}


def test_potential_energy_is_that_of_nuts(exchanged):
    from numpyro.infer.util import potential_energy

    state = exchanged.last_state
    of_nuts = jax.jit(jax.vmap(lambda z: potential_energy(model, (DATA,), {}, z)))
    np.testing.assert_allclose(state.potential_energy, of_nuts(state.z), rtol=1e-4)


def test_warmup_moves_the_levels_and_then_freezes(exchanged):
    tuned = exchanged.post_warmup_state.shared
    jax.tree.map(np.testing.assert_array_equal, tuned, exchanged.last_state.shared)
    times = np.asarray(tuned.settings.times)
    assert times[0] == 0.0
    assert np.all(np.diff(times) > 0)
    assert not np.allclose(times, rtk.noise.log_snr_ladder(K), atol=1e-3)


def in_a_plate(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("groups", 3):
        x = numpyro.sample("x", rtk.LearnedPrior(MIXTURE))
        numpyro.sample("y", dist.Normal(mu + x[:, 0], 0.5), obs=y)


@pytest.mark.parametrize(
    "method", [jax.vmap, pytest.param("sequential", marks=pytest.mark.slow)]
)
def test_sites_in_a_plate_beside_ordinary_ones_by_other_chain_methods(method):
    mcmc = make_mcmc(
        rtk.RTKReplicaExchange(in_a_plate, num_levels=K),
        num_chains=2,
        chain_method=method,
        num_warmup=10,
        num_samples=6,
    )
    mcmc.run(jr.key(0), jnp.array([0.1, 1.0, -0.5]))
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (2, 6, 3, 2)
    assert np.isfinite(rtk.log_evidence(mcmc)[0])
    assert "exchange: 5 edges" in str(rtk.diagnose(mcmc))  # a population for each chain


def test_second_run_sees_new_data_without_new_warmup(exchanged):
    """Moved by 5: the total's mean goes from .28 to 1.15; of the same data to .43."""
    again = copy.copy(exchanged)
    again.run(jr.key(2), DATA + 5.0)
    old, new = (mcmc.get_samples()["total"].mean() for mcmc in (exchanged, again))
    assert new - old > 0.5


def test_resume_and_pickle(exchanged):
    again = pickle.loads(pickle.dumps(exchanged))
    np.testing.assert_array_equal(
        again.get_samples()["x"], exchanged.get_samples()["x"]
    )
    again.post_warmup_state = again.last_state
    again.run(again.last_state.rng_key, DATA)
    assert again.get_samples()["x"].shape == (60, 2)


def test_init_params_are_the_start():
    start = {"x": jnp.array([0.25, -0.5]), "sigma": jnp.array(-0.3)}
    state = kernel().init(jr.key(0), 0, start, model_args=(DATA,), model_kwargs={})
    jax.tree.map(np.testing.assert_allclose, state.z, start)


def test_progress_string(exchanged):
    text = kernel().get_diagnostics_str(exchanged.last_state)
    assert text.startswith(f"exact, {K + 1 + 8 * K + 24 + 1} evals/draw, exchange ")
    assert "worst edge" in text


def test_a_density_alone_has_evidence_one():
    """Exact mode weights and log evidence 0 of a normalised density; 20 chains, t = 5."""
    mcmc = make_mcmc(
        rtk.RTKReplicaExchange(score=MIXTURE, num_levels=K),
        num_chains=20,
        chain_method="vectorized",
        num_warmup=60,
        num_samples=200,
    )
    mcmc.run(jr.key(0))
    draws = np.asarray(mcmc.get_samples(group_by_chain=True))
    assert draws.shape == (20, 200, 2)
    truth = np.asarray(MIXTURE.sample(jr.key(9), (400_000,)))
    for f in (
        lambda x: x[..., 0] > -0.3,
        lambda x: x[..., 0],
        lambda x: x[..., 1] ** 2,
    ):
        means = f(draws).mean(axis=1)
        error = means.std(ddof=1) / np.sqrt(20)
        assert abs(means.mean() - f(truth).mean()) < 5 * error
    value, error = rtk.log_evidence(mcmc)
    assert abs(value) < 5 * error < 0.2
    # no data, and so no mode that they could have narrowed
    assert rtk.diagnose(mcmc).limits == ()


def test_arviz(exchanged):
    data = az.from_numpyro(exchanged)
    stats = data.sample_stats
    assert stats["swap_accept_prob"].shape == (2, 30, K)
    assert {"acceptance_rate", "lp", "diverging", "log_evidence"} <= set(
        stats.data_vars
    )


def test_diagnose_reports_numbers_and_problems(exchanged):
    report = rtk.diagnose(exchanged)
    assert report.swap_accept_prob.shape == (K,)
    assert 0 < report.barrier < K
    assert "log evidence" in str(report)
    assert "exchange: 5 edges" in str(report)
    assert np.isnan(report.prior_efficiency)  # it has an ordinary site


def test_diagnose_says_when_importance_resampling_would_do():
    prior = rtk.LearnedPrior(MIXTURE)

    def weak(y):
        x = numpyro.sample("x", prior)
        numpyro.sample("y", dist.Normal(x[0], 1.5), obs=y)

    mcmc = make_mcmc(
        rtk.RTKReplicaExchange(weak, num_levels=K),
        num_chains=16,
        chain_method="vectorized",
        num_warmup=40,
    )
    mcmc.run(jr.key(0), jnp.array(2.0))
    report = rtk.diagnose(mcmc)
    x = MIXTURE.sample(jr.key(1), (20_000,))[:, 0]
    w = np.exp(np.asarray(dist.Normal(x, 1.5).log_prob(2.0), float))
    kish = w.sum() ** 2 / np.sum(w**2) / len(w)
    # 16 draws of a weight of bounded spread: within a third
    assert abs(np.log(report.prior_efficiency / kish)) < np.log(1.5)
    assert "importance resampling" in str(report)


@pytest.mark.parametrize(
    ("fall", "blamed"),
    [(0.5, 2), (20.0, 0), (np.inf, 0)],
    ids=["weak", "strong", "none"],
)
def test_diagnose_blames_the_prior_only_where_it_alone_counts(fall, blamed):
    """At c = .01 the upper edges see the likelihood to a hundredth: of 20 nats, .2."""
    settings = SimpleNamespace(
        proposals=SimpleNamespace(mean_score=[1.0, 0.2, 0.2]),
        times=[0.0, 0.1, 1.0, 3.0],
        likelihood_variance=0.01,
        swap_share=[0.0, 0.0, 0.0],
    )
    log_likelihood = np.array([[0.0, -fall, -fall, -fall]])
    found = _disagreeing_edges(None, settings, log_likelihood)
    assert len(found) == blamed


REFUSED = {
    "inner": ({"inner": "hmc"}, TypeError, "`inner` must be an inner sampler"),
    "exchange": ({"exchange": "plain"}, ValueError, "`exchange` must be one of"),
    "levels": ({"num_levels": 0}, ValueError, "`num_levels` must be at least 1; got 0"),
    "sweeps": ({"num_sweeps": 0}, ValueError, "`num_sweeps` must be at least 1"),
    "inner steps": ({"num_inner_steps": -1}, ValueError, "`num_inner_steps` must be"),
    "steps of a swap": (
        {"exchange": "swap", "num_inner_steps": 1},
        ValueError,
        "`num_inner_steps` must be 0",
    ),
    "ladder": ({"ladder": [0.0, 1.0]}, ValueError, "`ladder` must have `num_levels`"),
    "step size": ({"step_size": -1.0}, ValueError, "`step_size`"),
    "target": ({"target_accept_prob": 1.5}, ValueError, "`target_accept_prob`"),
}


@pytest.mark.parametrize(("options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        kernel(**options)


def test_refuses_a_score_without_energy():
    with pytest.raises(TypeError, match="RTKReplicaExchange needs an energy"):
        make_mcmc(rtk.RTKReplicaExchange(score=ScoreOnly())).run(jr.key(0))


def test_refuses_a_likelihood_without_density():
    def impossible():
        x = numpyro.sample("x", rtk.LearnedPrior(MIXTURE))
        numpyro.factor("never", jnp.nan * x[0])

    with pytest.raises(RuntimeError, match="Cannot find a start of finite density"):
        make_mcmc(rtk.RTKReplicaExchange(impossible, num_levels=K)).run(jr.key(0))


def test_options_of_a_gibbs_block_cross_the_driver():
    assert "`wrap_model` needs" in str(
        pytest.raises(
            TypeError, rtk.RTKReplicaExchange(score=MIXTURE).wrap_model, lambda m: m
        ).value
    )
