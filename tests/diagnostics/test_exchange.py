"""What ``rtk.diagnose`` says of small real runs.

Of numbers alone, sentence by sentence, it is in ``test_exchange_sentences``.
"""

import copy

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size

import numpyro_rtk as rtk
from tests.kernels.conftest import make_mcmc

TWO = rtk.GaussianMixture(
    [0.5, 0.5], [-np.ones(10), np.ones(10)], [0.1 * np.eye(10)] * 2
)


def squares(y):
    """Both modes fit the data alike."""
    x = numpyro.sample("x", rtk.LearnedPrior(TWO))
    numpyro.sample("y", dist.Normal(x[:5] ** 2, 0.02).to_event(1), obs=y)


def driver(kernel, warmup=40, draws=60, **options):
    return make_mcmc(
        kernel,
        num_chains=4,
        chain_method="vectorized",
        num_warmup=warmup,
        num_samples=draws,
        **options,
    )


def run(kernel, *args, init_params=None, **options):
    mcmc = driver(kernel, **options)
    mcmc.run(jr.key(0), *args, init_params=init_params)
    return mcmc


def with_fields(mcmc, **fields):
    """The same run with other collected fields."""
    other = copy.copy(mcmc)
    other._states = {**mcmc._states, **fields}
    other._states_flat = None
    return other


@pytest.fixture(scope="module")
def bad():
    """Ten dimensions and a precise likelihood on one level, with far too long steps."""
    kernel = rtk.RTKReplicaExchange(
        squares, num_levels=1, num_particles=128, step_size=30.0, exchange="swap"
    )
    start = {"x": jnp.ones((4, 10))}
    return run(kernel, jnp.ones(5), warmup=0, draws=20, init_params=start)


@pytest.fixture(scope="module")
def edge():
    """Well sampled, on one side of a hard edge, informative in five dimensions."""
    prior = rtk.GaussianMixture(
        [0.4, 0.6], [-np.ones(5), np.ones(5)], [0.3 * np.eye(5)] * 2
    )

    def model(y):
        x = numpyro.sample("x", rtk.LearnedPrior(prior))
        numpyro.factor("edge", jnp.where(x[0] > 0.0, 0.0, -jnp.inf))
        numpyro.sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)

    kernel = rtk.RTKReplicaExchange(model, num_levels=5, num_particles=1024)
    return run(kernel, jnp.array([-0.2, 0.1, 0.1, 0.1, 0.1]), warmup=60, draws=200)


@pytest.fixture(scope="module")
def lines():
    """``(y in the middle of the prior's rows, y four sd out)``; the base is left."""
    rows = np.random.default_rng(0).normal(size=(500, 1))
    learned, _ = rtk.fit(
        jr.key(0),
        rows,
        num_steps=50,
        learning_rate=1e-8,
        training=rtk.Training(num_components=1),
        progress_bar=False,
    )
    assert not learned.uses_network

    def model(y, scale):
        x = numpyro.sample("x", rtk.LearnedPrior(learned))
        numpyro.sample("y", dist.Normal(x[0], scale), obs=y)

    kernel = rtk.RTKReplicaExchange(model, num_levels=4, num_particles=512)
    middle = driver(kernel, jit_model_args=True)
    out = copy.copy(middle)  # the same programs
    middle.run(jr.key(0), jnp.array(0.0), jnp.array(1.5))
    out.run(jr.key(0), jnp.array(4.0), jnp.array(0.2))
    return middle, out


def text(mcmc):
    return str(rtk.diagnose(mcmc))


# the sentences that are about a run whose chains get nowhere
NOWHERE = {
    "too few levels": "Too few levels: ",
    "no round trip": "No replica has gone",
    "unknown evidence": "The log evidence is unknown: ",
    "stuck": "Local moves are refused at level",
    "diverging": "has a diverging local move",
}


@pytest.mark.parametrize("sentence", NOWHERE.values(), ids=NOWHERE)
def test_a_run_that_gets_nowhere(sentence, bad, edge):
    assert sentence in text(bad)
    assert sentence not in text(edge)
    # of what is unknown nothing more is said
    assert "is below the population's" not in text(bad)


def test_the_progress_bar_warns_of_few_levels_once(edge):
    """After warm-up, by its last window; one edge of .05 in the mean."""
    kernel = copy.copy(edge.sampler)
    tally = edge.last_state.shared.tally
    full = jnp.full_like(tally.count, 100.0)
    shared = edge.last_state.shared._replace(
        tally=tally._replace(count=full, rejection=0.95 * full)
    )
    few = edge.last_state._replace(shared=shared)
    with pytest.warns(UserWarning, match=r"too few levels.*Set `num_levels=\d+`"):
        kernel.get_diagnostics_str(few)
    kernel.get_diagnostics_str(few)


def test_a_hard_edge_is_no_divergence(edge):
    """Moves leave the support, and the posterior is right: 800 draws of 4 chains; z = 5.

    The standard error is by the draws' effective number: four chains' means may lie
    together by chance.
    """
    diverging = np.asarray(edge.get_extra_fields()["diverging"])
    assert diverging.mean() > 0.01
    assert "diverging" not in text(edge)
    x = np.asarray(edge.get_samples(group_by_chain=True)["x"])
    assert np.all(x[..., 0] > 0)
    grid = np.linspace(-3, 3, 6001)
    normal = lambda x, m, v: np.exp(-0.5 * (x - m) ** 2 / v) / np.sqrt(v)
    parts = [w * normal(0.1, m, 0.39) ** 4 for w, m in ((0.4, -1), (0.6, 1))]
    first = [
        normal(grid, m, 0.3) * normal(grid, -0.2, 0.09) * (grid > 0) for m in (-1, 1)
    ]
    density = sum(p * f for p, f in zip(parts, first, strict=True))
    density /= density.sum()
    mean = x[..., 0].mean()
    error = x[..., 0].std() / np.sqrt(effective_sample_size(x[..., 0]))
    assert error < 0.02
    assert abs(mean - density @ grid) < 5 * error
    # without the edge the mean is elsewhere: the test would see it
    free = sum(p * normal(grid, m, 0.3) for p, m in zip(parts, (-1, 1), strict=True))
    free = free * normal(grid, -0.2, 0.09)
    assert abs(mean - free @ grid / free.sum()) > 8 * error


def test_the_populations_evidence_beside_a_hard_edge(edge):
    """2 x 1024 particles; counting those of the proposal it is 1.4 too low."""
    grid = np.linspace(0, 4, 4001)
    normal = lambda x, m, v: np.exp(-0.5 * (x - m) ** 2 / v) / np.sqrt(2 * np.pi * v)
    first = lambda m: np.trapezoid(
        normal(grid, m, 0.3) * normal(grid, -0.2, 0.09), grid
    )
    truth = np.log(
        sum(w * normal(0.1, m, 0.39) ** 4 * first(m) for w, m in ((0.4, -1), (0.6, 1)))
    )
    report = rtk.diagnose(edge)
    value, error = report.population_log_evidence
    assert abs(value - truth) < 4 * error < 1.3
    value, error = report.log_evidence
    assert abs(value - truth) < 4 * error
    assert "is below the population's" not in str(report)


def test_modes_that_the_chains_have_lost(edge):
    whole = text(edge)
    assert "have lost modes" not in whole
    assert "Chains disagree" not in whole
    share = np.asarray(edge.last_state.shared.found.share)
    order = np.argsort(share)
    shape = np.shape(edge._states["mode"])
    lost = text(with_fields(edge, mode=np.full(shape, order[0])))
    assert "The chains have lost modes that the population found (around x[" in lost
    split = np.where(np.arange(shape[0])[:, None] < 2, order[-1], order[-2])
    assert "Chains disagree" in text(with_fields(edge, mode=split * np.ones(shape)))


def test_an_evidence_that_is_not_the_populations(lines):
    middle, _ = lines
    assert "is below the population's" not in text(middle)
    value, error = rtk.log_evidence(middle)
    half = with_fields(middle, bridge_down=0.5 * middle._states["bridge_down"])
    assert "is below the population's" in text(half)
    less, larger = rtk.log_evidence(half)
    np.testing.assert_allclose(less, value - 4 * np.log(2.0), atol=1e-3)
    assert larger > 1.0 > 10 * error


def test_a_gap(edge):
    assert "Little passes between" not in text(edge)
    accept = np.full_like(edge._states["swap_accept_prob"], 0.6)
    accept[..., 3] = 0.05
    other = text(with_fields(edge, swap_accept_prob=accept))
    assert "Little passes between levels 3 and 4" in other


def test_modes_that_are_not_excluded(edge, lines):
    assert "Not excluded: modes less than" in text(edge)
    assert "2048 particles may lose them" in text(edge)
    assert "Not excluded" not in text(lines[0])


def test_a_weak_likelihood(lines, edge):
    middle, _ = lines
    assert "The likelihood is weak: about" in text(middle)
    assert "fewer levels pass as well" in text(middle)
    assert "likelihood is weak" not in text(edge)
    assert "fewer levels pass" not in text(edge)


def test_a_posterior_far_out(lines, edge):
    middle, out = lines
    assert "The posterior lies where the learned prior has few samples" in text(out)
    assert "has few samples" not in text(middle)
    # a mixture that was not learned is as right in its tails
    assert np.isnan(rtk.diagnose(edge).share_further_out)


class Wrong:
    """A density whose score is three times that of its noise ladder; right at t = 0."""

    event_shape = (2,)

    def __init__(self):
        means = [[-1.5, 0.5], [1.0, -0.5]]
        self.right = rtk.GaussianMixture(
            [0.3, 0.7], means, [0.3 * np.eye(2), 0.2 * np.eye(2)]
        )

    def log_density(self, x, t):
        return self.right.log_density(x, t) * self.factor(t)

    def score(self, x, t):
        return self.right.score(x, t) * self.factor(t)[..., None]

    def factor(self, t):
        return jnp.where(jnp.asarray(t) > 1e-6, 3.0, 1.0)


def test_a_prior_that_disagrees_with_its_ladder(monkeypatch):
    """The chain stays exact; the same run is silent of a density that cannot be wrong."""

    def model(y):
        x = numpyro.sample("x", rtk.LearnedPrior(Wrong()))
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)

    kernel = rtk.RTKReplicaExchange(
        model, num_levels=5, num_particles=64, exchange="rtk"
    )
    mcmc = run(kernel, jnp.array(0.5), warmup=60)
    assert "The prior's scores disagree with its own noise ladder" in text(mcmc)
    problem = mcmc.sampler._problem
    monkeypatch.setattr(problem, "noted", problem.noted._replace(uses_network=False))
    assert "scores disagree" not in text(mcmc)
