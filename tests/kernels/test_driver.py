"""What NumPyro's driver asks of a kernel; each test is a thing that has bitten somebody."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_rtk as rtk
from numpyro_rtk.networks.site import SiteSpec
from tests.kernels.conftest import MIXTURE, SMALL, make_mcmc, model

DATA = jnp.array(0.5)
FIELDS = ("adapt_state.step_size", "i")


@pytest.fixture(scope="module")
def single():
    """One chain; runs with these numbers and fields find its programs compiled."""
    mcmc = make_mcmc()
    mcmc.run(jr.key(0), DATA, extra_fields=FIELDS)
    return mcmc


def test_samples_are_a_dict_of_constrained_sites_with_deterministics(finished):
    samples = finished.get_samples(group_by_chain=True)
    assert {k: v.shape for k, v in samples.items()} == {
        "x": (2, 30, 2),
        "sigma": (2, 30),
        "total": (2, 30),
    }
    assert bool(jnp.all(samples["sigma"] > 0))
    np.testing.assert_allclose(samples["total"], samples["x"].sum(-1), rtol=1e-5)


def test_chains_differ_and_move(finished):
    x = np.asarray(finished.get_samples(group_by_chain=True)["x"])
    assert not np.allclose(x[0], x[1])
    assert (np.unique(x[0, :, 0]).size) > 5


def test_extra_fields_are_plain_arrays(finished):
    fields = finished.get_extra_fields(group_by_chain=True)
    assert fields["segment_accept_prob"].shape == (2, 30, 6)
    assert fields["accept_prob"].shape == (2, 30)
    assert not fields["diverging"].any()
    # two candidates and the backward pass, each 1 + 6 segments + 1 step of 2 leapfrogs
    assert set(np.asarray(fields["num_score_evals"]).ravel()) == {3 * 9}
    inner = np.asarray(fields["segment_accept_prob"])
    assert np.isfinite(inner[..., 0]).all()
    assert np.isnan(inner[..., 1:]).all()
    finite = ("accept_prob", "potential_energy", "log_weight")
    assert all(np.isfinite(fields[name]).all() for name in finite)


def test_potential_energy_is_that_of_nuts(finished):
    from numpyro.infer.util import potential_energy

    state = finished.last_state
    of_nuts = jax.jit(jax.vmap(lambda z: potential_energy(model, (DATA,), {}, z)))
    np.testing.assert_allclose(state.potential_energy, of_nuts(state.z), rtol=1e-4)


def test_summary_prints(finished, capsys):
    finished.print_summary()
    printed = capsys.readouterr().out
    assert "sigma" in printed
    assert "Number of divergences: 0" in printed


def test_the_report_of_an_exchange_is_refused(finished):
    with pytest.raises(TypeError, match="must be a finished run of RTKReplicaExchange"):
        rtk.diagnose(finished)


@pytest.mark.parametrize("method", ["sequential", jax.vmap])
def test_other_chain_methods(method):
    mcmc = make_mcmc(num_chains=2, chain_method=method)
    mcmc.run(jr.key(0), DATA, extra_fields=FIELDS)
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (2, 30, 2)


def test_chain_methods_agree_draw_by_draw():
    keys = jr.split(jr.key(3), 2)
    draws = {}
    for method in ("sequential", "vectorized"):
        options = {"num_warmup": 0, "num_samples": 15}  # as the halves below
        mcmc = make_mcmc(num_chains=2, chain_method=method, **options)
        mcmc.run(keys, DATA)
        draws[method] = mcmc.get_samples(group_by_chain=True)["x"][:, :3]
    np.testing.assert_allclose(draws["sequential"], draws["vectorized"], atol=2e-3)


def test_parallel_chains_in_a_process_with_two_devices():
    script = textwrap.dedent(
        """
        import jax, jax.numpy as jnp
        from tests.kernels.conftest import make_mcmc
        assert jax.local_device_count() == 2
        mcmc = make_mcmc(num_chains=2, chain_method="parallel", num_samples=6)
        mcmc.run(jax.random.key(0), jnp.array(0.5))
        x = mcmc.get_samples(group_by_chain=True)["x"]
        assert x.shape == (2, 6, 2) and bool(jnp.all(jnp.isfinite(x)))
        """
    )
    flags = os.environ.get("XLA_FLAGS", "")
    flags += " --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.parametrize("jit_model_args", [False, True])
def test_second_run_sees_new_data(jit_model_args):
    mcmc = make_mcmc(jit_model_args=jit_model_args, num_samples=150)
    mcmc.run(jr.key(0), jnp.array(-1.5))
    low = mcmc.get_samples()["total"].mean()
    mcmc.run(jr.key(1), jnp.array(2.5))
    high = mcmc.get_samples()["total"].mean()
    assert high - low > 0.7  # the two posteriors' means are 1.6 apart


@pytest.fixture(scope="module")
def on_new_data():
    """Warmed up on one datum, run on another; and how often it was initialised."""
    calls = []
    original = rtk.RTKMALA.init
    mcmc = make_mcmc(jit_model_args=True, num_samples=150)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            rtk.RTKMALA,
            "init",
            lambda self, *a, **k: calls.append(1) or original(self, *a, **k),
        )
        mcmc.warmup(jr.key(0), jnp.array(-1.5))
        mcmc.run(jr.key(1), jnp.array(2.5))
    return mcmc, len(calls)


def test_warmup_then_run_initialises_once(on_new_data):
    mcmc, num_starts = on_new_data
    assert num_starts == 1
    tuned = mcmc.post_warmup_state.adapt_state
    jax.tree.map(
        np.testing.assert_array_equal, tuned, mcmc.last_state.adapt_state
    )  # frozen after warm-up


def test_new_data_after_warmup_needs_no_new_warmup(on_new_data):
    assert on_new_data[0].get_samples()["total"].mean() > 0.5


def test_likelihood_that_turns_nan_never_gives_a_nan_draw(on_new_data):
    """Data that make the likelihood NaN after warm-up: the chain stays and says so."""
    mcmc = copy.copy(on_new_data[0])
    before = mcmc.post_warmup_state.z
    mcmc.run(jr.key(1), jnp.array(jnp.nan))
    fields = mcmc.get_extra_fields()
    assert bool(jnp.all(fields["diverging"]))
    assert float(jnp.max(fields["accept_prob"])) == 0.0
    assert not bool(jnp.any(jnp.isnan(mcmc.get_samples()["x"])))
    jax.tree.map(np.testing.assert_array_equal, mcmc.last_state.z, before)


def test_resume_continues_the_same_chain():
    whole = make_mcmc(num_warmup=0)
    whole.run(jr.key(0), DATA)

    half = make_mcmc(num_warmup=0, num_samples=15)
    half.run(jr.key(0), DATA)
    first = half.get_samples()["x"]
    half.post_warmup_state = half.last_state
    half.run(half.post_warmup_state.rng_key, DATA)
    both = jnp.concatenate([first, half.get_samples()["x"]])
    np.testing.assert_allclose(both, whole.get_samples()["x"], rtol=1e-4)


def test_thinning_keeps_every_second_draw(single):
    thin = make_mcmc(thinning=2)
    thin.run(jr.key(0), DATA)
    assert thin.get_samples()["x"].shape == (15, 2)
    np.testing.assert_allclose(
        thin.get_samples()["x"], single.get_samples()["x"][1::2], rtol=1e-4
    )


def test_extra_fields_reach_the_step_sizes(single):
    assert single.get_extra_fields()["adapt_state.step_size"].shape == (30, 6)


def test_init_params_are_the_start():
    kernel = rtk.RTKMALA(model, **SMALL)
    start = {"x": jnp.array([0.25, -0.5]), "sigma": jnp.array(-0.3)}
    state = kernel.init(jr.key(0), 0, start, model_args=(DATA,), model_kwargs={})
    jax.tree.map(np.testing.assert_allclose, state.z, start)


def test_keyword_arguments_of_the_model():
    mcmc = make_mcmc()
    mcmc.run(jr.key(0), y=DATA, extra_fields=FIELDS)
    assert mcmc.get_samples()["x"].shape == (30, 2)


def test_finished_run_survives_pickling(finished):
    again = pickle.loads(pickle.dumps(finished))
    np.testing.assert_array_equal(again.get_samples()["x"], finished.get_samples()["x"])
    again.post_warmup_state = again.last_state
    again.run(jr.key(5), DATA)
    assert again.get_samples()["x"].shape == (60, 2)


def test_progress_string_names_the_kind_of_draw(single):
    text = single.sampler.get_diagnostics_str(single.last_state)
    assert text.startswith("exact, 27 evals/draw, acc. prob=")
    assert "inner" in text


def test_progress_bar_runs(monkeypatch, capsys):
    for hidden_in in ("CI", "PYTEST_XDIST_WORKER"):  # where NumPyro shows no bar
        monkeypatch.delenv(hidden_in, raising=False)
    mcmc = make_mcmc(progress_bar=True)
    mcmc.run(jr.key(0), DATA)
    assert "evals/draw" in capsys.readouterr().err


def test_score_gives_one_array_of_the_event_shape():
    kernel = rtk.RTKMALA(score=MIXTURE, num_segments=6)
    mcmc = make_mcmc(kernel, num_chains=3, chain_method="vectorized")
    mcmc.run(jr.key(0))
    assert mcmc.get_samples().shape == (90, 2)
    assert kernel.model is None


class OnAnInterval:
    """As a fitted model with a support: its density is of unconstrained values."""

    event_shape = (2,)
    sites = (SiteSpec(None, (2,), ("interval", 0.0, 1.0)),)

    def score(self, x, t):
        return MIXTURE.score(x, t)

    def log_density(self, x, t):
        return MIXTURE.log_density(x, t)


def test_score_gives_what_the_density_is_of_whatever_its_support():
    assert rtk.LearnedPrior(OnAnInterval()).support.base_constraint.upper_bound == 1.0
    kernel = rtk.RTKMALA(score=OnAnInterval(), num_segments=3)
    again = pickle.loads(pickle.dumps(kernel))
    start = jnp.array([-1.5, 0.5])
    state = again.init(jr.key(0), 0, start, (), {})
    np.testing.assert_allclose(state.z, start, rtol=1e-6)
    expected = -MIXTURE.log_density(start, 0.0)
    np.testing.assert_allclose(state.potential_energy, expected, rtol=1e-5)
    assert again._problem.coordinate_names() == ["draw[0]", "draw[1]"]
    draw = again.postprocess_fn((), {})(start)
    np.testing.assert_array_equal(draw, start)


def test_predictor_decides_whether_there_are_weights():
    plain = rtk.RTKMALA(score=MIXTURE)
    assert plain.guarantee.startswith("approximate")
    assert "log_weight" not in plain.default_fields
    weighted = rtk.RTKMALA(score=MIXTURE, predictor="gaussian")
    assert weighted.guarantee.startswith("weighted")
    assert "log_weight" in weighted.default_fields
    assert rtk.RTKMALA(score=MIXTURE, corrected=True).guarantee.startswith("exact")


def test_raw_model_draws_have_weights():
    mcmc = make_mcmc(rtk.RTKMALA(model, **SMALL, corrected=False))
    mcmc.run(jr.key(0), DATA)
    fields = mcmc.get_extra_fields()
    assert np.ptp(np.asarray(fields["log_weight"])) > 0
    assert np.unique(np.asarray(mcmc.get_samples()["x"])[:, 0]).size == 30


@pytest.mark.parametrize("adjusted", [False, True])
def test_uld_on_a_model(adjusted):
    kernel = rtk.RTKULD(model, **SMALL, adjusted=adjusted)
    mcmc = make_mcmc(kernel)
    mcmc.run(jr.key(0), DATA)
    assert ("log_weight" in mcmc.get_extra_fields()) == adjusted
    assert kernel.guarantee.startswith("exact" if adjusted else "approximate")


def test_learned_prior_in_a_plate_beside_ordinary_sites_as_a_model_argument():
    def plated(prior, y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        with numpyro.plate("groups", 3):
            x = numpyro.sample("x", prior)
            numpyro.sample("y", dist.Normal(mu + x[:, 0], 0.5), obs=y)

    mcmc = make_mcmc(rtk.RTKMALA(plated, **SMALL), num_samples=5, jit_model_args=True)
    mcmc.run(jr.key(0), rtk.LearnedPrior(MIXTURE), jnp.array([0.1, 1.0, -0.5]))
    samples = mcmc.get_samples()
    assert samples["x"].shape == (5, 3, 2)
    assert samples["mu"].shape == (5,)
