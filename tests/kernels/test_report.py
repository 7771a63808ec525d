"""What ``rtk.diagnose`` says, sentence by sentence: of numbers, and of small real runs."""

import copy
import re
from types import SimpleNamespace
from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_rtk as rtk
from numpyro_rtk import report
from numpyro_rtk.core.population import narrowest_found
from tests.kernels.conftest import make_mcmc

# -- of numbers ------------------------------------------------------------------------

QUIET = report._Run(
    accept=np.full(6, 0.6),
    local=np.full(6, 0.65),
    trips=np.array([3.0, 4.0]),
    num_draws=100,
    energy=np.full((2, 100), 3.0),
    rounding=1e-6,
    diverging=0.0,
    evidence=(-1.0, 0.05),
    found_evidence=(-1.1, 0.05),
    shares=np.array([[0.25, 0.75], [0.35, 0.65]]),
    found_share=np.array([0.3, 0.7]),
    found_error=np.array([0.03, 0.03]),
    places=("x[0] = -1", "x[0] = 1"),
    disagreeing=np.array([], int),
    efficiency=0.001,
    further_out=0.3,
    num_particles=2048,
    num_informed=0.4,
    has_likelihood=True,
)
EDGES = lambda *values: np.array(values, float)

# name: (sentence, pattern, numbers where it appears, numbers where it does not)
SENTENCES = {
    "too few levels": (
        report._says_too_few_levels,
        r"accepted with 0\.20 on average. Set `num_levels=\d+`",
        {"accept": np.full(6, 0.2)},
        [{"accept": np.full(6, 0.31)}, {"accept": EDGES(0.01, 0.8, 0.8)}],
    ),
    "gap": (
        report._says_gap,
        r"between levels 1 and 2 \(acceptance 0\.05\)",
        {"accept": EDGES(0.6, 0.05, 0.6)},
        # an even ladder, and one that the sentence before is about
        [{"accept": EDGES(0.6, 0.12, 0.6)}, {"accept": EDGES(0.2, 0.05, 0.2)}],
    ),
    "no round trip": (
        report._says_no_round_trip,
        r"No replica has gone .* in 100 draws.*`num_levels=6`",
        {"trips": np.zeros(2)},
        [{"trips": EDGES(0, 1)}],
    ),
    "lost modes": (
        report._says_lost_modes,
        r"around x\[0\] = -1: 0\.30 \+- 0\.03 of the particles, 0\.005 of the draws",
        {"shares": np.array([[0.0, 1.0], [0.01, 0.99]])},
        [
            {"shares": np.array([[0.0, 1.0], [0.2, 0.8]])},  # one chain has it
            # the particles do not know of it either; a region of nothing
            {"shares": np.array([[0.0, 1.0]] * 2), "found_error": np.full(2, 0.25)},
            {
                "shares": np.array([[0.0, 1.0]] * 2),
                "found_share": np.array([0.005, 0.995]),
                "found_error": np.full(2, 0.001),
            },
            {"shares": np.zeros((2, 0)), "found_share": np.zeros(0)},  # sequential
        ],
    ),
    "chains disagree": (
        report._says_chains_disagree,
        r"around x\[0\] = -1: 0\.10 to 0\.50 by chain",
        {"shares": np.array([[0.1, 0.9], [0.5, 0.5]])},
        [
            {"shares": np.array([[0.2, 0.8], [0.45, 0.55]])},
            {"shares": np.array([[0.1, 0.9]])},  # one chain alone
            # few draws
            {"shares": np.array([[0.1, 0.9], [0.5, 0.5]]), "num_draws": 30},
            {"shares": np.zeros((2, 0))},
        ],
    ),
    "other evidence": (
        report._says_other_evidence,
        r"-1\.00, is below the population's, -0\.60 \+- 0\.05",
        {"found_evidence": (-0.6, 0.05)},
        [
            {"found_evidence": (-0.75, 0.01)},  # under .3 nats
            {"found_evidence": (-0.5, 0.2)},  # within three errors
            {"found_evidence": (-1.7, 0.05)},  # the run has found more
            {"found_evidence": (-0.2, np.inf)},  # of too few ancestors
            # where it is unknown there is nothing to compare
            {"evidence": (8.0, np.inf)},
        ],
    ),
    "unknown evidence": (
        report._says_unknown_evidence,
        r"log evidence is unknown.*\(\d+ for an acceptance of a half\)",
        {"evidence": (8.0, np.inf)},
        [{"evidence": (8.0, 3.0)}],
    ),
    "no density": (
        report._says_no_density,
        r"50 % of the draws have no density",
        {"energy": np.array([[3.0, np.inf], [3.0, np.inf]])},
        [{"energy": np.array([[3.0, 900.0]])}],
    ),
    "coarse": (
        report._says_coarse,
        r"so large that numbers of this type resolve it to 1\.2 nats",
        {"rounding": 1.2},
        [{"rounding": 0.01, "energy": np.array([[1e7, 1e7]])}],
    ),
    "stuck": (
        report._says_stuck,
        r"refused at level\(s\) 0, 2 \(acceptance 0\.05\)",
        {"local": EDGES(0.1, 0.6, 0.05)},
        [{"local": EDGES(0.2, 0.6, 0.16)}],
    ),
    "prior disagrees": (
        report._says_prior_disagrees,
        r"at levels 4, 5 the best factor",
        {"disagreeing": np.array([3, 4])},
        # one edge may be off by chance, and of 16 edges two
        [
            {"disagreeing": np.array([3])},
            {"disagreeing": np.array([3, 4]), "accept": np.full(16, 0.6)},
        ],
    ),
    "diverging": (
        report._says_diverging,
        r"More than one draw in a hundred has a diverging local move",
        {"diverging": 0.02, "local": np.full(6, 0.3)},
        [
            {"diverging": 0.02},  # beside a hard edge
            {"diverging": 0.005, "local": np.full(6, 0.3)},
        ],
    ),
    "far out": (
        report._says_far_out,
        r"0\.5 % of the prior's own draws are less probable",
        {"further_out": 0.005},
        [{"further_out": 0.02}, {"further_out": np.nan}],
    ),
    "not excluded": (
        report._says_not_excluded,
        # (10 / 2048)^(1 / 5)
        r"less than 0\.34 times as wide.*all 5 directions.*2048 particles may lose",
        {"num_informed": 4.97},
        [{"num_informed": 0.9}, {"num_informed": 4.97, "has_likelihood": False}],
    ),
    "likelihood weak": (
        report._says_likelihood_weak,
        r"about 30 in 100 independent prior draws",
        {"efficiency": 0.3},
        [{"efficiency": 0.01}, {"efficiency": np.nan}],
    ),
    "many levels": (
        report._says_many_levels,
        r"accepted with 0\.90: fewer levels pass as well.*`num_levels=3`",
        {"accept": np.full(6, 0.9)},
        [{"accept": np.full(6, 0.84)}],
    ),
}


def test_the_table_has_every_sentence():
    said = (*report._PROBLEMS, *report._LIMITS, *report._REMARKS)
    assert {row[0] for row in SENTENCES.values()} == set(said)
    assert len(SENTENCES) == len(said)
    assert not any(say(QUIET) for say in said)


@pytest.mark.parametrize(
    ("say", "pattern", "there", "absent"), SENTENCES.values(), ids=SENTENCES
)
def test_each_sentence_of_numbers(say, pattern, there, absent):
    text = say(QUIET._replace(**there))
    assert text is not None
    assert re.search(pattern, text), text
    for numbers in absent:
        assert say(QUIET._replace(**numbers)) is None


class _Found(NamedTuple):
    """What of the population's findings the evidence reads."""

    log_evidence: float
    log_evidence_error: float
    num_ancestors: int


def _bridge_run(by_chain, found, found_error, num_draws=100, num_ancestors=200):
    """A run of one edge whose chains estimate these log evidences; no error in a chain."""
    down = np.exp(np.asarray(by_chain))[:, None, None] * np.ones((1, num_draws, 1))
    fields = {
        "bridge_down": down,
        "bridge_up": np.ones_like(down),
        "swap_accept_prob": np.ones_like(down),
    }
    settings = SimpleNamespace(log_ratio=np.zeros(1))
    shared = SimpleNamespace(
        settings=settings, found=_Found(found, found_error, num_ancestors)
    )
    return SimpleNamespace(
        get_extra_fields=lambda group_by_chain: fields,
        last_state=SimpleNamespace(shared=shared, log_offset=np.zeros(2)),
        sampler=None,
    )


@pytest.mark.parametrize(
    ("found", "found_error", "error"),
    [
        (-1.0, 0.2, 0.1),  # the same: that of the chains
        (-1.4, 0.2, 0.1),  # within twice the population's error
        (-0.6, 0.2, 0.1),
        (-2.0, 0.2, 0.1),  # the run has found more
        (0.0, 0.2, np.hypot(0.1, 0.6)),  # 1 nat less, of which .4 are its error
        (0.0, 0.0, np.hypot(0.1, 1.0)),
        (np.nan, 0.2, 0.1),  # a population that knows nothing
        (-np.inf, 0.2, 0.1),
    ],
)
def test_the_evidences_error_grows_by_what_the_population_says(
    found, found_error, error
):
    """Chains at -1.1 and -.9: between them an error of .1."""
    run = _bridge_run([-1.1, -0.9], found, found_error)
    value, own = rtk.log_evidence(run)
    np.testing.assert_allclose([value, own], [-1.0, error], rtol=1e-5)


def test_a_population_of_few_ancestors_is_not_compared_with():
    assert rtk.log_evidence(_bridge_run([-1.1, -0.9], 5.0, 0.1, num_ancestors=12))[
        1
    ] == pytest.approx(0.1)


def test_the_evidence_is_unknown_where_nothing_passes():
    run = _bridge_run([-np.inf, -0.9], -1.0, 0.2)
    assert rtk.log_evidence(run)[1] == np.inf


def test_the_narrowest_mode():
    assert narrowest_found(1000, 1.0) == pytest.approx(0.01)
    assert narrowest_found(1000, 2.0) == pytest.approx(0.1)


# -- of runs ---------------------------------------------------------------------------

TWO = rtk.GaussianMixture(
    [0.5, 0.5], [-np.ones(10), np.ones(10)], [0.1 * np.eye(10)] * 2
)


def squares(y):
    """Both modes fit the data alike."""
    x = numpyro.sample("x", rtk.LearnedPrior(TWO))
    numpyro.sample("y", dist.Normal(x[:5] ** 2, 0.02).to_event(1), obs=y)


def run(kernel, *args, chains=4, warmup=40, draws=60, **options):
    mcmc = make_mcmc(
        kernel,
        num_chains=chains,
        chain_method="vectorized",
        num_warmup=warmup,
        num_samples=draws,
    )
    mcmc.run(jr.key(0), *args, **options)
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
        jr.key(0), rows, num_steps=50, learning_rate=1e-8, progress_bar=False
    )
    assert not learned.uses_network

    def model(y, scale):
        x = numpyro.sample("x", rtk.LearnedPrior(learned))
        numpyro.sample("y", dist.Normal(x[0], scale), obs=y)

    def one(y, scale):
        kernel = rtk.RTKReplicaExchange(model, num_levels=4, num_particles=512)
        return run(kernel, jnp.array(y), jnp.array(scale))

    return one(0.0, 1.5), one(4.0, 0.2)


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
    """Moves leave the support, and the posterior is right: 800 draws of 4 chains.

    x[0] is independent of the others given its mode; the standard error is that of the
    chains' means, t with 3 degrees of freedom: 8 errors have p = .004 for each of two.
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
    means = x[..., 0].mean(axis=1)
    error = means.std(ddof=1) / 2.0
    assert error < 0.02
    assert abs(means.mean() - density @ grid) < 8 * error
    # without the edge the mean is elsewhere: the test would see it
    free = sum(p * normal(grid, m, 0.3) for p, m in zip(parts, (-1, 1), strict=True))
    free = free * normal(grid, -0.2, 0.09)
    assert abs(means.mean() - free @ grid / free.sum()) > 8 * error


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
    monkeypatch.setattr(mcmc.sampler._problem, "uses_network", False)
    assert "scores disagree" not in text(mcmc)
