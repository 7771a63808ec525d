"""Rivals that have a score are right where they should be: on a Gaussian."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from benchmarks.posteriors import levy
from benchmarks.posteriors.problem import Measurement
from benchmarks.posteriors.rivals import filters, guided, split
from benchmarks.posteriors.rivals.reverse import ladder, measured
from benchmarks.posteriors.score_problems import (
    BOX,
    SLCPTruth,
    case_of,
    folded,
    linear_case,
    mixture,
    slcp_data,
    slcp_log_likelihood,
    slcp_posterior,
)
from benchmarks.posteriors.score_rivals import run_case

NUM = 4000
DESIGN, NOISE, DATUM = np.array([[1.2, -0.9, 0.0]]), 0.6, 1.5


class Gaussian:
    """N(loc, 4 I) in three dimensions, exact noised scores; ``scale`` is 2."""

    event_shape, loc, scale = (3,), jnp.array([1.0, 0.0, -1.0]), 2.0

    def score(self, x, t):
        return -(x - self.loc) / 4.0


@pytest.fixture(scope="module")
def problem():
    measurement = Measurement(DESIGN, np.array([DATUM]), NOISE)
    return linear_case(Gaussian(), measurement, lambda x: {"error": 0.0}).problem


def truth():
    """Mean and covariance of the posterior."""
    gain = 4.0 * DESIGN.T / (4.0 * DESIGN @ DESIGN.T + NOISE**2)
    loc = np.asarray(Gaussian.loc)
    mean = loc + (gain @ (DATUM - DESIGN @ loc))
    return mean, 4.0 * (np.eye(3) - gain @ DESIGN)


# each by one choice of what is tuned; the biased ones by one that is right on a Gaussian
def twisted(p):
    return filters._twisted_filter(p, ladder(100, 1e-2), 4096)(jr.key(0), widen=1.0)


def guided_particles(p):
    times = filters._with_levels_of(measured(p), 100, 1e-2)
    return filters._guided_filter(p, measured(p), times, 4096)(jr.key(0))


def split_gibbs(p):
    return split._split(p, measured(p), NUM // 4, 160, 16)(jr.key(0), 0.05)


def decoupled(p):
    return split._decoupled(p, measured(p), NUM, 100, 1)(jr.key(0), 1.0)


SAMPLERS = (twisted, guided_particles, split_gibbs, decoupled)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_posterior_of_a_gaussian(sampler, problem):
    x = np.asarray(sampler(problem))
    assert x.shape[1] == 3
    mean, covariance = truth()
    axes = np.linalg.eigh(covariance)
    off = (x - mean) @ axes.eigenvectors / np.sqrt(axes.eigenvalues)
    assert np.abs(off.mean(axis=0)).max() < 0.06
    assert np.abs(off.std(axis=0) - 1.0).max() < 0.06


def test_filters_spend_their_budget(problem):
    """The levels that the data add are paid for."""
    times_of = partial(filters._with_levels_of, measured(problem))
    assert len(times_of(50, 1e-2)) > 51
    _, _, evals = filters._prepare(times_of, None, 20_000)
    spent = evals({"num_steps": 50, "smallest_noise": 1e-2})
    assert 19_000 < spent <= 20_000


def test_tuning_takes_the_least_error(problem):
    """DPS with an error that only one end of its grid can have."""
    spread = lambda x: float((np.asarray(x) @ DESIGN[0]).std())
    far = problem._replace(error=lambda x: -spread(x))
    run = guided.posterior_sampling(far, 0, 250 * 20, cuts=(1,), num_draws=250)[0]
    assert run.evals == 250 * 20
    assert run.draws.shape == (250, 3)
    near = guided.posterior_sampling(
        problem._replace(error=spread), 0, 250 * 20, cuts=(1,), num_draws=250
    )[0]
    assert near.note != run.note
    assert 3.0 * spread(near.draws) < spread(run.draws)


def test_truth_of_the_mixture():
    """Exact draws are at the floor, draws of the prior far from it."""
    case = mixture(0, 5.0, False, dim=8)
    exact = case.figures.__self__.draw(1000, 99)
    assert case.figures(exact)["sliced W1 / floor"] < 1.6
    assert abs(case.figures(exact)["misfit"] - 1.0) < 0.15
    prior = np.asarray(case.problem.prior.sample(jr.key(0), (1000,)))
    assert case.figures(prior)["sliced W1 / floor"] > 4.0


def test_gold_signals_of_gaussian_jumps():
    """Gibbs against the closed form, on an operator that leaves much open."""
    law = levy.LAWS["Gauss .25"]
    design, data, noise_sd = levy.observed(law, levy.OPERATORS["sampling"], 0)
    found = levy.gold(law, Measurement(design, data, noise_sd), num_chains=16, n=60)
    total = np.tril(np.ones((levy.DIM, levy.DIM)))
    precision = 4.0 * np.eye(levy.DIM) + design.T @ design / noise_sd**2
    sd = np.sqrt(np.diag(total @ np.linalg.inv(precision) @ total.T))
    mean = total @ np.linalg.solve(precision, design.T @ data) / noise_sd**2
    assert np.abs((found.signals.mean(axis=(0, 1)) - mean) / sd).max() < 0.2
    assert np.abs(found.signals.std(axis=(0, 1)) / sd - 1.0).max() < 0.15


def test_gold_signals_need_no_other_start():
    """Jumps of which nine in ten are none: all chains, begun apart, find the same."""
    law = levy.LAWS["Bernoulli-Laplace (.1, 1)"]
    measurement = levy.observed(law, levy.OPERATORS["identity"], 0)
    found = levy.gold(law, measurement, num_chains=32, n=100)
    assert found.apart < 0.3
    exact = np.diff(found.signals.reshape(-1, levy.DIM), axis=1, prepend=0.0)
    assert abs(found.figures(exact)["coverage of 90 %"] - 0.9) < 0.02
    assert found.figures(exact)["gap to the MMSE, dB"] < 1e-9
    shrunk = exact.mean(axis=0) + 0.5 * (exact - exact.mean(axis=0))
    assert found.figures(shrunk)["coverage of 90 %"] < 0.8


def test_noised_jumps_have_the_score_of_their_mixture():
    """Against the derivative by differences of the density of draws that are noised."""
    prior = levy.JumpPrior(levy.LAWS["Laplace 1"], dim=1)
    t, place = 0.2, np.array([-0.7, 0.4, 1.6])
    x = np.asarray(prior.sample(jr.key(0), (20_000,)), float)[:, 0]
    a, sd = np.exp(-t), prior.scale * np.sqrt(-np.expm1(-2.0 * t))
    z = (place[:, None] - a * x) / sd
    kernel = np.exp(-0.5 * z**2)
    exact = -(kernel * z).mean(axis=1) / kernel.mean(axis=1) / sd
    found = [float(prior.score(jnp.array([v]), t)[0]) for v in place]
    assert np.abs(found - exact).max() < 0.05


def weighed_slcp(data, least_sd, n=1_000_000):
    """Rows of SLCP's prior, its modes on one, and their shares of the posterior."""
    rows = np.random.default_rng(1).uniform(-BOX, BOX, size=(n, 5))
    likelihood = jax.jit(jax.vmap(slcp_log_likelihood(data, least_sd)))
    log_weight = np.asarray(likelihood(jnp.asarray(rows, jnp.float32)), float)
    assert np.isfinite(log_weight).all()
    weight = np.exp(log_weight - log_weight.max())
    return folded(rows), weight / weight.sum()


@pytest.mark.parametrize("least_sd", [1e-3, 0.1])
def test_truth_of_slcp(least_sd):
    """Means and second moments against rows of the prior, within four standard errors.

    An effective 2,200 of a million rows, so a moment's error is .02 of a sd; those of
    300,000 exact draws are a tenth of it. Of other data they are tens of errors off.
    """
    data = slcp_data(np.random.default_rng(2))
    rows, share = weighed_slcp(data, least_sd)

    def z_scores(data):
        exact, worst = folded(slcp_posterior(data, 1_000_000, 0)), []
        for power in (1, 2):
            mean = share @ rows**power
            error = np.sqrt(share**2 @ (rows**power - mean) ** 2)
            worst.append(np.abs(mean - (exact**power).mean(axis=0)) / error)
        return np.max(worst)

    assert z_scores(data) < 4.0
    assert z_scores(data + [0.0, 0.5]) > 8.0


def test_figures_of_slcp():
    """Exact draws are as good as others are; a lost mode and a shift are seen."""
    exact = slcp_posterior(slcp_data(np.random.default_rng(0)), 200_000, 0)
    truth = SLCPTruth.of(exact)
    cells, chance, modes, modes_chance, away, outside = truth.figures(
        exact[:4000]
    ).values()
    assert cells < 1.3 * chance
    assert modes < 3.0 * modes_chance
    assert away < 0.06
    assert outside == 0.0
    lost = exact[exact[:, 2] > 0][:4000]
    assert truth.figures(lost)["TV of the four modes"] > 0.45
    found = list(truth.figures(exact[:4000] * [1, 1, 1.1, 1, 1]).values())
    assert found[0] > 2.0 * chance
    assert found[4] > 0.2


@pytest.mark.parametrize("method", ["DAPS", "PnP-DM", "MCGDiff"])
def test_other_likelihoods_are_refused_in_words(method):
    case = case_of(Gaussian(), lambda x: -jnp.sum(x**4), lambda x: {"error": 0.0})
    run = run_case(case, method, 0, 1000.0)
    assert "linear measurements only" in run.failure
    assert len(run.draws) == 0
