"""Rows without a density are refused, with a remedy; their sound neighbours pass."""

import re

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer import MCMC, SA
from sklearn.datasets import load_digits

import numpyro_rtk as rtk
from numpyro_rtk.sites import unconstrain_rows
from numpyro_rtk.training.no_density import find_doubts, labels_of, stretches

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(2000, 3))
FEW = RNG.normal(size=(60, 3))
ONE_GAUSSIAN = rtk.Training(num_components=1)
QUICK = {
    "num_steps": 5,
    "batch_size": 16,
    "training": ONE_GAUSSIAN,
    "progress_bar": False,
}


def doubts(rows):
    """What is said of rows on the smallest noise of a default fit."""
    rows = np.asarray(rows, float)
    rows = rows.reshape(len(rows), -1)
    return find_doubts(rows, 0.02 * rows.std(axis=0), labels_of(rows.shape[1:]))


def refused_chain(num, moved, seed=0):
    """A chain of three numbers of which a share of the proposals is taken."""
    rng = np.random.default_rng(seed)
    place = np.cumsum(rng.uniform(size=num) < moved)
    return rng.normal(size=(num, 3))[place - place[0]]


def with_column(values, rows=NORMAL):
    return np.column_stack([rows, values])


SHARES = RNG.dirichlet([3.0, 2.0, 1.0], size=2000)
KINDS = RNG.integers(0, 3, size=2000)
WET = np.where(RNG.uniform(size=2000) < 0.3, 0.0, RNG.exponential(size=2000))
LEVELS = RNG.integers(0, 17, size=2000).astype(float)
COUNTS = RNG.poisson(4.0, size=2000).astype(float)
FAILED = np.where(RNG.uniform(size=(2000, 1)) < 0.1, -999.0, NORMAL)

NO_DENSITY = {
    "two values": (with_column(KINDS > 1), r"\(3,\) takes only 2 values, 0 in \d\d %"),
    "two values, sorted": (with_column(np.sort(KINDS > 1)), r"\(3,\) takes only 2 values"),
    "two values, few rows": (
        with_column(np.arange(60) % 2, FEW),
        r"\(3,\) takes only 2 values, 0 in 50 %.*Drop it, give it as `condition=`",
    ),
    "grey levels": (LEVELS, r"the value takes only 17 values.*dequantisation"),
    "counts": (with_column(COUNTS), r"\(3,\) takes only 1\d values, 4 in"),
    "one hot": (with_column(np.eye(3)[KINDS]), r"\(3,\) takes.*\(4,\) takes.*\(5,\) takes"),
    "zeros": (with_column(WET), r"\(3,\) is 0 in \d\d % of the rows.*its own probability"),
    "zeros, sorted": (np.sort(WET), r"the value is 0 in 27 % of the rows"),
    "nearly constant": (
        with_column(np.where(RNG.uniform(size=2000) < 0.95, 1.5, NORMAL[:, 0])),
        r"\(3,\) is 1.5 in \d\d %",
    ),
    "a row many times": (FAILED, r"the row \[-999. -999. -999.\] \d+ times.*failed runs"),
    "nine rows": (np.tile(NORMAL[:9], (20, 1)), "only 9 distinct rows among 180"),
    "a column twice": (
        with_column(NORMAL[:, 1]),
        r"functions of each other, coordinate \(1,\), coordinate \(3,\)\. Leave out",
    ),
    "a column twice, single": (
        with_column(NORMAL[:, 1]).astype(np.float32),
        r"coordinate \(1,\), coordinate \(3,\)",
    ),
    "a sum": (with_column(NORMAL.sum(axis=1) + 3.0), r"\(0,\).*\(1,\).*\(2,\).*\(3,\)"),
    "shares": (SHARES.astype(np.float32), r"linear functions.*`constraints.simplex`"),
    "an event": (
        np.stack([NORMAL, NORMAL[:, ::-1]], axis=1),
        "linear functions of each other",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), NO_DENSITY.values(), ids=NO_DENSITY)
def test_no_density(rows, message):
    with pytest.raises(
        ValueError, match=f"`samples` must have a density; got .*{message}"
    ):
        rtk.fit(jr.key(0), rows, support=constraints.real, **QUICK)


PERHAPS = {
    "one decimal": (
        np.round(NORMAL, 1),
        "on a grid of .* 0.1 apart.*Add uniform noise",
    ),
    "counts": (
        RNG.poisson(16.0, size=2000).astype(float),
        "on a grid of 2. values, 1 apart, 1. in 1?. % of",
    ),
    "some zeros": (
        with_column(np.where(np.arange(2000) % 33 == 0, 0.0, 2 + NORMAL[:, 0])),
        r"\(3,\) is 0 in 3 % of the rows",
    ),
    "a chain that stood still": (
        refused_chain(2000, 0.1),
        "distinct rows.*Thin the chain",
    ),
    "a chain of one number that did": (
        refused_chain(2000, 0.1)[:, 0],
        "only 211 distinct",
    ),
    "a thin direction": (
        with_column(NORMAL[:, 1] + 0.002 * RNG.normal(size=2000)),
        r"to within 1 % of their spread.*\(1,\), coordinate \(3,\)",
    ),
}


@pytest.mark.parametrize(("rows", "message"), PERHAPS.values(), ids=PERHAPS)
def test_perhaps_no_density(rows, message):
    (doubt,) = doubts(rows)
    assert not doubt.severe
    assert re.search(message, f"{doubt.found}. {doubt.remedy}")


def test_what_is_perhaps_none_is_warned_of():
    with pytest.warns(UserWarning, match="must have a density; got .* on a grid"):
        rtk.fit(jr.key(0), np.round(NORMAL, 1)[:, :2], **QUICK)


def copies(rows):
    return rows[np.random.default_rng(1).integers(0, len(rows), 2 * len(rows))]


DIGITS = load_digits(return_X_y=True)[0]
MIXED = np.where(RNG.uniform(size=(2000, 2)) < 0.5, 0.003, 1.0) * NORMAL[:, :2]

SOUND = {
    "normal": NORMAL,
    "one number": NORMAL[:, 0],
    "few": FEW[:12],
    "single": NORMAL.astype(np.float32),
    "half": NORMAL.astype(np.float16),
    "brain": np.asarray(jnp.asarray(NORMAL, jnp.bfloat16)).astype(float),
    "three digits": np.round(NORMAL, 3),
    "two digits": np.round(NORMAL, 2),
    "one decimal, few": np.round(FEW, 1)[:20],
    "large counts": RNG.poisson(1000.0, size=(2000, 2)).astype(float),
    "a chain": refused_chain(2000, 0.3),
    "a chain of one number": refused_chain(2000, 0.25)[:, 0],
    "one coordinate at a time": np.column_stack(
        [refused_chain(2000, 0.15, seed)[:, 0] for seed in range(3)]
    ),
    "resampled": copies(NORMAL),
    "resampled, one number": copies(NORMAL[:, 0]),
    "tails": RNG.standard_t(2.0, size=(2000, 3)),
    "Cauchy, rounded": np.round(RNG.standard_cauchy(size=2000), 3),
    "one far row": np.vstack([NORMAL, [[1e5, 1e5, 1e5]]]),
    "narrow and wide": MIXED,
    "correlated": with_column(NORMAL[:, 1] + 0.05 * RNG.normal(size=2000)),
    "a curve": with_column(NORMAL[:, 1] ** 2),
    "more columns than rows": RNG.normal(size=(50, 100)),
    "digits": DIGITS + RNG.uniform(size=DIGITS.shape),
    "shares, two of three": SHARES[:, :2],
    "sorted": np.sort(NORMAL[:, 0]),
}


@pytest.mark.parametrize("rows", SOUND.values(), ids=SOUND)
def test_sound_neighbours_pass(rows):
    assert doubts(rows) == []


def test_a_score_claims_no_density_and_is_warned():
    network = rtk.ScoreMLP(3, width=8, depth=2, key=jr.key(1))
    rows = np.c_[FEW[:, :2], np.arange(60) % 2]
    with pytest.warns(UserWarning, match="takes only 2 values"):
        rtk.fit(jr.key(0), rows, network=network, **QUICK)


def test_named_sites_are_named():
    samples = {"a": FEW[:, 0], "b": np.stack([FEW[:, 1], np.arange(60) % 2.0], axis=1)}
    with pytest.raises(ValueError, match=r"got b\[1\] takes only 2 values"):
        rtk.fit(jr.key(0), samples, **QUICK)
    samples = {"a": FEW[:, 0], "b": FEW, "c": np.exp(FEW[:, 1])}
    with pytest.raises(ValueError, match=r"b\[1\], c \(unconstrained\)\."):
        rtk.fit(jr.key(0), samples, support={"c": constraints.positive}, **QUICK)


def test_rows_on_disk(tmp_path):
    rows = with_column(KINDS > 1)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    with pytest.raises(ValueError, match=r"\(3,\) takes only 2 values"):
        rtk.fit(jr.key(0), mapped, **QUICK)


def test_a_part_of_many_rows_is_looked_at_in_stretches():
    index = stretches(1_000_000, 4)
    assert index[0] == 0
    assert index[-1] == 999_999
    assert 19_000 < len(index) <= 20_000
    assert np.mean(np.diff(index) == 1) > 0.99
    assert len(stretches(1_000_000, 100_000)) < 2_001
    np.testing.assert_array_equal(stretches(500, 100_000), np.arange(500))


def test_a_memory_map_said_to_be_real_stays_one(tmp_path):
    np.save(tmp_path / "rows.npy", NORMAL)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    rows, sites = unconstrain_rows(mapped, {None: constraints.real})
    assert rows is mapped
    assert sites is None


def run(kernel, num_samples):
    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, 2.0))

    mcmc = MCMC(
        kernel(model), num_warmup=50, num_samples=num_samples, progress_bar=False
    )
    mcmc.run(jr.key(0))
    return mcmc


def test_a_run_whose_draws_were_refused_is_taken():
    mcmc = run(SA, 1500)  # a Metropolis kernel: draws repeat
    draws = np.asarray(mcmc.get_samples()["x"])
    assert 100 < len(np.unique(draws)) < 1200
    model_, _ = rtk.fit(jr.key(0), mcmc, **QUICK)
    assert [site.name for site in model_.sites] == ["x", "y"]


def test_a_run_of_one_draw_many_times_is_refused():
    mcmc = run(SA, 40)  # too short to leave where it starts
    with pytest.raises(ValueError, match="only 15 distinct rows among 40"):
        rtk.fit(jr.key(0), mcmc, **QUICK)


@pytest.mark.parametrize(
    ("offset", "found"),
    [(7e4, "refused"), (1e4, "warned"), (100.0, "taken")],
)
def test_rows_whose_scale_is_not_resolved_where_they_lie(offset, found):
    """One standard deviation of .1 holds 13, 100 and 13,000 numbers in float32."""
    rows = offset + 0.1 * FEW
    message = "`samples` must have a scale that float32.* around .*Subtract the offset"
    if found == "refused":
        with pytest.raises(ValueError, match=message):
            rtk.fit(jr.key(0), rows, support=constraints.real, **QUICK)
    elif found == "warned":
        with pytest.warns(UserWarning, match=message):
            rtk.fit(jr.key(0), rows, support=constraints.real, **QUICK)
    else:
        rtk.fit(jr.key(0), rows, support=constraints.real, **QUICK)


def test_in_double_precision_an_offset_is_nothing(x64):
    rows = 1e6 + 0.01 * FEW
    model_, _ = rtk.fit(jr.key(0), rows, **QUICK)
    prior = rtk.LearnedPrior(model_)
    spread = np.asarray(prior.sample(jr.key(1), (400,))).std(axis=0)
    np.testing.assert_allclose(spread, rows.std(axis=0), rtol=0.2)  # of 400 draws: .035
    at = lambda sds: float(prior.log_prob(rows.mean(axis=0) + sds * rows.std(axis=0)))
    # of a normal law with the shrunk covariance of 60 rows: -3/2 for one sd each
    assert -2.0 < at(1.0) - at(0.0) < -1.0
