"""RTKParticleGibbs: its posterior with an energy and with a score alone, and the driver."""

import pickle
import warnings

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
from numpyro_rtk.core.warmup.particles import _VARIANCES
from numpyro_rtk.diagnostics.particles import _says_coarse
from tests.kernels import test_posterior as reference
from tests.kernels.test_posterior import (
    PRIOR,
    THRESHOLD,
    Y,
    evidence,
    run,
    truth,
    worst_z,
)

FEW = {"num_particles": 16, "num_levels": 8}


class ScoreAlone:
    """The mixture of the reference, of which only the score is known."""

    event_shape = (1,)
    loc, scale = PRIOR.loc, PRIOR.scale

    def score(self, x, t):
        return PRIOR.score(x, t)


def by_score(y):
    x = numpyro.sample("x", rtk.LearnedPrior(ScoreAlone()))
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.3, 0.4))
    numpyro.sample("y", dist.Normal(x[0], sigma), obs=y)


@pytest.fixture(scope="module")
def finished():
    return run(rtk.RTKParticleGibbs(reference.model, **FEW))


def test_the_posterior_is_exact_with_an_energy(finished):
    """A coarse ladder and few particles, an ordinary site beside; 20 chains, z = 5."""
    assert worst_z(finished) < THRESHOLD
    assert finished.sampler.guarantee.startswith("exact")
    assert "learned density" in finished.sampler.guarantee


def test_the_guarantee_of_a_kernel_that_has_not_run_names_both_laws():
    text = rtk.RTKParticleGibbs(reference.model, num_levels=7).guarantee
    assert text.startswith("exact")
    assert "learned density" in text
    assert "with a score alone" in text
    assert "draws in 7 Gaussian steps" in text


def test_the_evidence_is_right(finished):
    value = np.asarray(finished.get_extra_fields(group_by_chain=True)["log_evidence"])
    inverse = np.exp(-value.astype(float)).mean(axis=1)
    error = inverse.std(ddof=1) / np.sqrt(len(inverse))
    assert abs(inverse.mean() - 1.0 / evidence()) < THRESHOLD * error
    assert error < 0.05 / evidence()


def test_evidence_and_report(finished):
    value, error = rtk.log_evidence(finished)
    assert abs(value - np.log(evidence())) < THRESHOLD * error
    assert error < 0.05
    report = rtk.diagnose(finished)
    assert not report.problems
    assert "no fault found" in str(report)
    assert report.sample_size.shape == (9,)
    np.testing.assert_allclose(report.log_evidence, (value, error))


def test_particles_that_do_not_reach_the_bottom_are_said():
    """A look ahead that sees nothing of the datum."""

    def narrow(y):
        x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
        numpyro.sample("y", dist.Normal(x[0], 2e-3), obs=y)

    kernel = rtk.RTKParticleGibbs(
        narrow,
        num_particles=16,
        ladder=np.array([0.0, 0.1, 0.5, 1.5, 3.0]),
        likelihood_variance=1e-6,
    )
    report = rtk.diagnose(run(kernel, num_chains=4))
    assert any("moves in" in text for text in report.problems)
    assert any("Few particles are left at level(s) 0" in t for t in report.problems)


def test_fields_are_finite_and_count_evaluations(finished):
    fields = finished.get_extra_fields(group_by_chain=True)
    chains, draws = np.shape(fields["accept_prob"])
    assert fields["sample_size"].shape == (chains, draws, 9)
    assert np.all(fields["sample_size"] >= 1.0 - 1e-4)
    assert np.all(fields["sample_size"] <= 16.0 + 1e-3)
    assert set(np.ravel(fields["num_score_evals"])) == {16 * (8 + 1)}
    assert finished.sampler.num_evals == 16 * (8 + 1)
    before = (65 + 7) * (1024 + 2 * 16) + (9 * 8 + 4 * 3) * 16 * (8 + 1)
    assert finished.sampler.num_init_evals(2, 3) == before
    assert all(np.all(np.isfinite(value)) for value in fields.values())
    assert not np.any(fields["diverging"])
    assert 0.5 < np.mean(fields["accept_prob"]) < 1.0
    assert "16 particles" in finished.sampler.get_diagnostics_str(finished.last_state)


def test_arviz_takes_it(finished):
    data = az.from_numpyro(finished)
    assert set(data.posterior.data_vars) == {"x", "sigma"}
    assert "accept_prob" in data.sample_stats or "acceptance_rate" in data.sample_stats


def test_a_score_alone_has_the_posterior_of_its_own_chain():
    """32 levels: within .02 of the mode's share, where raw runs are off by much more."""
    kernel = rtk.RTKParticleGibbs(by_score, num_particles=32, num_levels=32)
    mcmc = run(kernel)
    samples = mcmc.get_samples()
    x, sigma = np.asarray(samples["x"])[:, 0], np.asarray(samples["sigma"])
    exact = truth()
    assert abs(np.mean(x < -0.3) - exact["left mode"]) < 0.025
    assert abs(x.mean() - exact["x"]) < 0.04
    assert abs(np.log(sigma).mean() - exact["log sigma"]) < 0.03
    assert "that the network draws in 32 Gaussian steps" in kernel.guarantee
    report = rtk.diagnose(mcmc)
    assert not report.problems
    assert "twice the `num_levels`" in str(report)
    assert "too far to say" in _says_coarse(report._replace(sample_size=np.ones(8)))
    # as in a Gibbs block, beside other values of the other sites
    state = mcmc.last_state
    times = state.adapt_state.times.at[0].multiply(1.5)
    mcmc._last_state = state._replace(
        adapt_state=state.adapt_state._replace(times=times)
    )
    assert any("different levels" in text for text in rtk.diagnose(mcmc).problems)


def precise(y):
    x = numpyro.sample("x", rtk.LearnedPrior(Standard()))
    numpyro.sample("y", dist.Normal(x[1], 0.1), obs=y)


class Standard:
    event_shape = (2,)

    def score(self, x, t):
        return -x


def test_a_precise_datum_and_a_score_alone():
    """The spread is the posterior's; raw runs of RTKULD have three times of it."""
    exact = 0.1 / np.sqrt(1.01)
    x = np.asarray(run(rtk.RTKParticleGibbs(precise)).get_samples()["x"])
    assert abs(x[:, 1].std() / exact - 1.0) < 0.05
    assert abs(x[:, 0].std() - 1.0) < 0.05
    published = rtk.RTKULD(precise)
    assert "`rtk.RTKParticleGibbs`" in published.guarantee
    raw = np.asarray(run(published).get_samples()["x"])
    assert raw[:, 1].std() / exact > 2.0


WIDTHS = np.array([0.5, 1.0, 2.0, 1.0, 0.7])
NOISE = np.array([1e-3, 1e-2, 0.3, 1.0])
MIX = np.array(
    [[1.0, 0.3, 0, 0, -0.2], [0, 1, 0.5, 0, 0], [0.3, 0, 1, 0.2, 0], [0, 0, 0, 1, 0.4]]
)


class Gauss:
    event_shape = (5,)
    loc, scale = jnp.zeros(5), jnp.ones(5)

    def score(self, x, t):
        a2 = jnp.exp(-2.0 * t)
        return -x / (a2 * jnp.asarray(WIDTHS) ** 2 + 1.0 - a2)


def as_it_is(x):
    return x


def by_a_callback(x):
    """Its derivative comes from outside: it has no second one."""

    @jax.custom_vjp
    def fixed(x):
        return x

    def backward(_, cotangent):
        shape = jax.ShapeDtypeStruct(cotangent.shape, cotangent.dtype)
        return (
            jax.pure_callback(np.asarray, shape, cotangent, vmap_method="expand_dims"),
        )

    fixed.defvjp(lambda x: (fixed(x), None), backward)
    return fixed(x)


def stiff(through, times=1.0):
    def model(y):
        x = numpyro.sample("x", rtk.LearnedPrior(Gauss()))
        mean = jnp.asarray(MIX) @ through(x)
        numpyro.sample(
            "y", dist.Normal(mean, times * jnp.asarray(NOISE)).to_event(1), obs=y
        )

    return model


def test_data_of_very_different_precision():
    """Of sd .001 to 1: the likelihood's curvature is found, and nothing gets lost.

    Means and spreads within 5 standard errors of 1,600 draws. The controls: by one number,
    and by a diagonal of a curvature that is none, particles get lost, and it is said.
    """
    y = np.array([0.3, -0.8, 1.2, 0.5])
    precision = np.diag(WIDTHS**-2.0) + MIX.T @ np.diag(NOISE**-2.0) @ MIX
    covariance = np.linalg.inv(precision)
    mean = covariance @ (MIX.T @ (y / NOISE**2))
    mcmc = run_on(rtk.RTKParticleGibbs(stiff(as_it_is)), y)
    off = np.asarray(mcmc.get_samples()["x"], float) - mean
    root = np.linalg.cholesky(covariance)
    z = np.linalg.solve(root, off.T).T
    assert np.all(np.abs(z.mean(0)) < 5.0 / np.sqrt(len(z)) + 0.01), z.mean(0)
    assert np.all(np.abs(z.std(0) - 1.0) < 5.0 / np.sqrt(2 * len(z)) + 0.02), z.std(0)
    report = rtk.diagnose(mcmc)
    assert not report.problems, report.problems
    assert report.sample_size.min() > 20.0
    variance = np.ravel(mcmc.last_state.adapt_state.likelihood_variance)[0]
    np.testing.assert_allclose(variance, 1e-6 / (1 + 0.3**2 + 0.2**2), rtol=0.1)
    for options in ({"likelihood_variance": 1e-8}, {"dense": False}):
        blunt = rtk.RTKParticleGibbs(stiff(as_it_is), **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that are not resolved
            report = rtk.diagnose(run_on(blunt, y, num_samples=100))
        assert report.problems, options


def test_a_likelihood_without_a_second_derivative_is_looked_at_by_one_number():
    y = np.array([0.3, -0.8, 1.2, 0.5])
    kernel = rtk.RTKParticleGibbs(stiff(by_a_callback, 100.0), num_levels=8)
    mcmc = run_on(kernel, y, num_samples=50)
    variance = np.ravel(mcmc.last_state.adapt_state.likelihood_variance)[0]
    assert np.any(np.isclose(variance, _VARIANCES, atol=0.0))


def run_on(kernel, y, num_samples=400):
    options = {"chain_method": "vectorized", "progress_bar": False, "num_chains": 4}
    mcmc = MCMC(kernel, num_warmup=5, num_samples=num_samples, **options)
    fields = ("accept_prob", "sample_size", "log_evidence", "diverging")
    mcmc.run(jr.key(0), jnp.asarray(y, jnp.float32), extra_fields=fields)
    return mcmc


class Correlated:
    """A Gaussian whose correlation its coordinates' variances do not show."""

    event_shape = (2,)
    loc, scale = jnp.zeros(2), jnp.ones(2)

    def score(self, x, t):
        rho = 0.95 * jnp.exp(-2 * t)
        return (rho * x[::-1] - x) / (1 - rho**2)


def correlated(y):
    x = numpyro.sample("x", rtk.LearnedPrior(Correlated()))
    numpyro.sample("y", dist.Normal(x[0], 0.2), obs=y)


def test_correlated_coordinates_and_few_levels():
    """Dense reverse kernels draw a Gaussian without error; diagonal ones say they err."""
    exact = np.sqrt(1.0 - 0.95**2 / 1.04)
    runs = {
        dense: run(
            rtk.RTKParticleGibbs(correlated, num_levels=8, dense=dense), num_chains=20
        )
        for dense in (None, False)
    }
    sd = {
        dense: np.asarray(mcmc.get_samples()["x"])[:, 1].std()
        for dense, mcmc in runs.items()
    }
    assert abs(sd[None] / exact - 1.0) < 0.04, sd[None] / exact
    assert abs(sd[False] / exact - 1.0) > 0.08, sd[False] / exact
    reports = {dense: rtk.diagnose(mcmc) for dense, mcmc in runs.items()}
    assert not reports[None].problems
    assert reports[None].law_gap < 0.1
    assert any("ladder is too coarse" in text for text in reports[False].problems)


def test_in_a_gibbs_block_beside_nuts():
    if not hasattr(numpyro.infer, "Gibbs"):
        pytest.skip("NumPyro < 0.22")
    mcmc = reference.run_gibbs(rtk.RTKParticleGibbs(reference.model, **FEW))
    assert worst_z(mcmc) < THRESHOLD


def test_a_density_alone():
    kernel = rtk.RTKParticleGibbs(score=PRIOR, **FEW)
    mcmc = MCMC(kernel, num_warmup=5, num_samples=2000, progress_bar=False)
    mcmc.run(jr.key(0))
    x = np.asarray(mcmc.get_samples())
    assert x.shape == (2000, 1)
    error = np.sqrt(0.3 * 0.7 / 500)
    assert abs(np.mean(x < -0.3) - 0.3) < 5 * error


def test_chain_methods_agree_and_a_run_goes_on():
    """Also: chains, whose keys differ, have one c: with a score alone it is in the law."""
    options = {"num_warmup": 4, "num_samples": 6, "num_chains": 2}
    found, variances = {}, {}
    for method in ("vectorized", "sequential"):
        kernel = rtk.RTKParticleGibbs(reference.model, **FEW)
        mcmc = run(kernel, 3, chain_method=method, **options)
        found[method] = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
        variances[method] = np.asarray(mcmc.last_state.adapt_state.likelihood_variance)
        assert len(set(map(float, variances[method][:, 0]))) == 1
    # by two programs, which round differently
    np.testing.assert_allclose(*variances.values(), rtol=1e-6)
    np.testing.assert_allclose(found["vectorized"], found["sequential"], rtol=2e-3)
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key, jnp.array(Y))
    again = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    assert not np.allclose(again, found["sequential"])
    assert mcmc.last_state.i.max() == 16
    state = pickle.loads(pickle.dumps(mcmc)).last_state
    np.testing.assert_array_equal(state.path, mcmc.last_state.path)


def test_init_params_are_the_start():
    kernel = rtk.RTKParticleGibbs(reference.model, num_particles=1, num_levels=4)
    start = {"x": jnp.array([0.7]), "sigma": jnp.array(-0.1)}
    state = kernel.init(jr.key(0), 0, start, (jnp.array(Y),), {})
    state = kernel.sample(state, (jnp.array(Y),), {})
    # one particle stays where it is, to the last bit
    np.testing.assert_array_equal(state.z["x"], start["x"])
    np.testing.assert_array_equal(state.z["sigma"], start["sigma"])
    assert state.accept_prob == 0.0


def test_a_model_without_density_is_refused():
    def nowhere(y):
        numpyro.sample("x", rtk.LearnedPrior(PRIOR))
        numpyro.factor("never", jnp.where(y > 0, -jnp.inf, 0.0))

    kernel = rtk.RTKParticleGibbs(nowhere, **FEW)
    with pytest.raises(RuntimeError, match="Cannot find a start of finite density"):
        kernel.init(jr.key(0), 5, None, (jnp.array(Y),), {})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_particles": 0}, "`num_particles` must be"),
        ({"num_levels": 2.5}, "`num_levels` must be"),
        ({"likelihood_variance": -1.0}, "`likelihood_variance` must be"),
        ({"ladder": np.array([0.0, 1.0, 3.0]), "num_levels": 3}, "`ladder` must have"),
        ({"score": PRIOR}, "Exactly one of `model` and `score`"),
    ],
)
def test_refusals(options, match):
    with pytest.raises((ValueError, TypeError), match=match):
        rtk.RTKParticleGibbs(reference.model, **options)


def narrow_share(**options) -> float:
    """Of two equal modes of widths 1 and .1 in two dimensions, the narrow one's."""
    kernel = rtk.RTKParticleGibbs(widths, num_particles=256, **options)
    mcmc = run(kernel, 0, num_warmup=10, num_samples=100, num_chains=8)
    return float(np.mean(np.asarray(mcmc.get_samples()["x"])[:, 0] > 0.0))


def test_two_widths_are_both_found_at_the_c_that_is_chosen():
    """A c that is too large leaves the narrow one: the choice is what finds it."""
    share = narrow_share()
    assert abs(share - 0.5) < 0.1, share
    assert narrow_share(likelihood_variance=0.3) < 0.25


def widths(y):
    """Over N(0, 5**2), flat where it counts: modes at -3 and 3."""
    x = numpyro.sample("x", rtk.LearnedPrior(Wide()))
    log_normal = lambda m, s: -0.5 * jnp.sum(((x - m) / s) ** 2) - 2.0 * jnp.log(s)
    numpyro.factor(
        "modes",
        jnp.logaddexp(log_normal(-3.0, 1.0), log_normal(3.0, 0.1))
        + 0.5 * jnp.sum((x / 5.0) ** 2),
    )


class Wide:
    event_shape = (2,)
    loc, scale = jnp.zeros(2), jnp.full(2, 5.0)

    def score(self, x, t):
        return -x / 25.0
