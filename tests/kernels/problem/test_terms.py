"""Log densities of large terms: what single precision leaves of the posterior."""

import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from scipy.special import logsumexp

import numpyro_rtk as rtk
from numpyro_rtk.kernels.problem import runs, terms

PRIOR = rtk.GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], [[[0.04]], [[0.09]]])
NUM_ROWS, NOISE = 10_000, 40.0
# residuals of 45 standard deviations: each row counts for -1,000 nats
ROWS = np.float32(np.tile([-1800.0, 1800.0], NUM_ROWS // 2) + 0.3)


def many_rows(y):
    x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
    numpyro.sample("y", dist.Normal(x[0], NOISE), obs=y)


def beside_a_constant(y, constant):
    x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
    numpyro.sample("y", dist.Normal(x[0], 0.8), obs=y)
    numpyro.factor("constant", constant)


def within_one_term(y, constant):
    x = numpyro.sample("x", rtk.LearnedPrior(PRIOR))
    numpyro.factor("y", constant + dist.Normal(x[0], 0.8).log_prob(y))


def exact(y, noise):
    """Posterior mean and log evidence, on a grid in double precision."""
    x = np.linspace(-3.0, 3.0, 6001)
    parts = [
        np.log(w / s) - 0.5 * ((x - m) / s) ** 2 - 0.5 * np.log(2 * np.pi)
        for w, m, s in ((0.3, -1.0, 0.2), (0.7, 1.0, 0.3))
    ]
    y = np.atleast_1d(np.float64(y))
    squares = np.sum(y**2) - 2 * x * y.sum() + len(y) * x**2
    log_joint = logsumexp(parts, axis=0) - 0.5 * squares / noise**2
    log_joint -= len(y) * np.log(noise * np.sqrt(2 * np.pi))
    weight = np.exp(log_joint - log_joint.max())
    log_evidence = logsumexp(log_joint) + np.log(x[1] - x[0])
    return np.sum(weight * x) / weight.sum(), log_evidence


def run(model, *args):
    kernel = rtk.RTKReplicaExchange(model, num_levels=6, num_particles=256)
    mcmc = MCMC(
        kernel,
        num_warmup=60,
        num_samples=200,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The model's log density")
        mcmc.run(jr.key(0), *args)
    return mcmc


def compare(mcmc, mean, log_evidence):
    """Mean and evidence, in standard errors; the chains move between both modes."""
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])[..., 0]
    error = np.std(x) / np.sqrt(numpyro.diagnostics.effective_sample_size(x))
    value, evidence_error = rtk.log_evidence(mcmc)
    return abs(x.mean() - mean) / error, abs(value - log_evidence) / evidence_error


@pytest.fixture(scope="module")
def mcmc():
    return run(many_rows, ROWS)


def test_ten_thousand_rows_of_a_thousand_nats(mcmc):
    """A log likelihood of -1e7, which one single-precision sum resolves to a nat."""
    energy = np.asarray(mcmc.get_extra_fields()["potential_energy"])
    assert np.all(energy > 9.9e6)
    off = compare(mcmc, *exact(ROWS, NOISE))
    assert off[0] < 4.0
    # of the rows' own rounding, the mean part: up to 1e-7 of each thousand nats
    assert abs(rtk.log_evidence(mcmc)[0] - exact(ROWS, NOISE)[1]) < 1.0
    assert not any("resolve" in text for text in rtk.diagnose(mcmc).problems)


def test_a_constant_changes_nothing_but_the_evidence():
    """Of 1e10, where single precision leaves nothing of the rest."""
    mcmc = run(beside_a_constant, 0.1, jnp.float32(1e10))
    mean, log_evidence = exact(0.1, 0.8)
    assert max(compare(mcmc, mean, log_evidence + 1e10)) < 4.0


def test_all_terms_in_one_sum_are_warned_of(monkeypatch):
    """Negative control: added up at once, as NumPyro's potential is, it is said."""

    def added_up(*args):
        found, trace = terms.log_terms(*args)
        return {"all": sum(jnp.sum(t) for t in found.values())}, trace

    monkeypatch.setattr(runs, "log_terms", added_up)
    with pytest.raises(UserWarning, match=r"resolve it to \d"):
        run(many_rows, ROWS)


@pytest.mark.parametrize(("constant", "kind"), [(1e7, UserWarning), (1e10, ValueError)])
def test_what_is_rounded_off_within_a_term_is_said_or_refused(constant, kind):
    with pytest.raises(kind, match="terms so large"):
        run(within_one_term, 0.1, jnp.float32(constant))


class Large:
    """A density that is not normalised, by 1e7 nats."""

    event_shape = (2,)

    def score(self, x, t):
        return -x

    def log_density(self, x, t):
        return 1e7 - 0.5 * jnp.sum(x**2)


def large_prior():
    numpyro.sample("x", rtk.LearnedPrior(Large()))


@pytest.mark.parametrize("options", [{"score": Large()}, {"model": large_prior}])
def test_a_learned_prior_too_large_for_its_type_is_said(options):
    kernel = rtk.RTKReplicaExchange(**options, num_levels=3, num_particles=32)
    with pytest.warns(UserWarning, match="terms so large"):
        kernel.init(jr.key(0), 10, None, (), {})


def test_other_kernels_count_alike():
    draws = []
    kernel = rtk.RTKMALA(beside_a_constant, num_segments=4)
    options = {"progress_bar": False, "jit_model_args": True}
    mcmc = MCMC(kernel, num_warmup=20, num_samples=20, **options)
    for constant in (0.0, 1e9):
        mcmc.run(jr.key(1), 0.1, jnp.float32(constant))
        draws.append(mcmc.get_samples()["x"])
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 100_001])
def test_a_sum_in_two_parts_keeps_what_one_would_round_off(n):
    values = np.float32(np.random.default_rng(n).normal(-700.0, 30.0, n))
    found = jax.jit(terms.sum_in_two)({"a": values[: n // 2], "b": values[n // 2 :]})
    expected = np.sum(values, dtype=np.float64)
    np.testing.assert_allclose(np.float64(found).sum(), expected, rtol=1e-12)


def test_terms_without_a_value_are_not_counted_from():
    origin = {"a": jnp.array([-jnp.inf, 2.0]), "b": jnp.array(jnp.nan)}
    here = {"a": jnp.array([-1.0, 5.0]), "b": jnp.array(4.0)}
    assert terms.counted_from(origin, here) == -1.0 + 3.0 + 4.0
    np.testing.assert_array_equal(terms.sum_in_two(origin), [2.0, 0.0])
    assert terms.counted_from({}, {}).dtype == jnp.zeros(()).dtype
