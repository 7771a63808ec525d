"""The population that goes down before any chain runs: evidence, shares, hard cases."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from numpyro_rtk import paths
from numpyro_rtk.core.annealed import log_reference
from numpyro_rtk.core.exchange.local_move import ParticleNoise
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.resampling import systematic
from numpyro_rtk.core.segment import Evaluation, log_weight_increment
from numpyro_rtk.core.warmup import population
from numpyro_rtk.core.warmup.population import descend, share_of
from tests.oracles import assert_mean, z_score

RUNS, PARTICLES, DIM, HORIZON = 64, 512, 2, 3.0

# A likelihood of two bumps under N(0, I): the posterior has a mode at each, of different
# widths, neither the other's mirror image, and of shares that are not equal.
CENTRES = np.array([[-1.2, 0.5], [1.4, -0.3]])
WIDTHS = np.array([0.15, 0.5])
SHARES = np.array([0.3, 0.7])
EVIDENCE = 0.2
WEIGHTS = (
    EVIDENCE
    * SHARES
    / [
        stats.multivariate_normal(np.zeros(2), (1.0 + s**2) * np.eye(2)).pdf(m)
        for m, s in zip(CENTRES, WIDTHS, strict=True)
    ]
)


def normal(u, t):
    """The standard normal is its own noised law."""
    return Evaluation(log_reference(u), -u)


def two_bumps(x):
    square = jnp.sum(jnp.square(x[None] - CENTRES.astype(x.dtype)), axis=1)
    volume = np.log(WEIGHTS) - DIM * np.log(WIDTHS) - np.log(2.0 * np.pi)
    parts = volume.astype(x.dtype) - 0.5 * square / (WIDTHS**2).astype(x.dtype)
    return jax.nn.logsumexp(parts)


def once(key, log_likelihood, variance, base=normal, n=PARTICLES, dense=False):
    """One run."""
    return descend(
        key,
        paths.posterior_path(base, log_likelihood),
        lambda t: paths.levels_of(t, jnp.float32(variance)),
        jnp.float32(HORIZON),
        jnp.float32(min(0.3 * variance**0.5, 0.05)),
        MALA(num_leapfrog=1),
        n,
        DIM,
        dense=dense,
    )


def runner(log_likelihood, variance):
    """``keys (runs,) -> Descent``."""
    return jax.jit(jax.vmap(lambda key: once(key, log_likelihood, variance)))


@functools.cache
def found():
    """64 runs of 512 particles, and what they say."""
    runs = runner(two_bumps, 0.05)(jr.split(jr.key(11), RUNS))
    return runs, properties(runs)


def properties(runs):
    names = ("log_evidence", "log_evidence_error", "num_ancestors")
    each = jax.vmap(lambda run: tuple(getattr(run, name) for name in names))(runs)
    return dict(zip(names, map(np.asarray, each), strict=True))


def shares(runs):
    """Shares of the two modes in each run, and their errors, ``(runs, 2)``."""
    narrow = is_narrow(runs).astype(jnp.float32)
    return map(
        np.asarray, jax.vmap(share_of)(runs, jnp.stack([narrow, 1 - narrow], -1))
    )


def is_narrow(runs):
    """Within four standard deviations of the narrow mode; all but none of the other."""
    centre = (CENTRES[0] / (1.0 + WIDTHS[0] ** 2)).astype(np.float32)
    apart = jnp.sum(jnp.square(runs.position - centre[None, None]), axis=-1)
    return apart < 0.6**2


def test_evidence_is_that_of_the_closed_form():
    """n = 64 runs: exp(log_evidence) has a standard error of 1.6 %; z = 5."""
    runs, says = found()
    assert_mean(np.exp(says["log_evidence"].astype(float)), EVIDENCE)
    assert np.all(np.asarray(runs.times).min(axis=1) == 0.0)
    # the ladder was found: level after level, none of the same noise
    for num, times in zip(np.asarray(runs.num), np.asarray(runs.times), strict=True):
        assert np.all(np.diff(times[: num + 1]) < 0.0)
        assert not np.any(times[num:])
    least = 2 * PARTICLES * np.asarray(runs.num)  # a crossing and a leapfrog step each
    assert np.all(np.asarray(runs.num_evals) >= least)


def test_evidence_error_is_of_the_size_of_the_spread():
    """Between 64 runs, whose spread is itself known to 9 %: within a factor of 3."""
    _, says = found()
    spread = says["log_evidence"].std(ddof=1)
    claimed = np.sqrt(np.mean(np.square(says["log_evidence_error"])))
    assert spread / 3.0 < claimed < 3.0 * spread


def test_modes_of_different_widths_have_their_shares():
    """Pooled by evidence, over n = 64 runs: z = 5, of a standard error of .007."""
    runs, says = found()
    share, error = shares(runs)
    weight = np.exp(says["log_evidence"].astype(float))
    assert_mean(weight[:, None] * (share - SHARES))
    spread = share.std(axis=0, ddof=1)
    assert np.all(
        (spread / 3.0 < error.mean(axis=0)) & (error.mean(axis=0) < 3 * spread)
    )
    narrow = np.asarray(runs.position)[np.asarray(is_narrow(runs))]
    # 10,000 particles, of hundreds of ancestors: the width within 5 %
    np.testing.assert_allclose(
        narrow.std(axis=0), 0.15 / np.sqrt(1.0 + 0.15**2), rtol=0.05
    )


BROKEN = {
    "a volume of the proposal that is not its own": (
        "log_weight_increment",
        lambda *step: log_weight_increment(*step) - 0.5 * DIM * np.log(2.0 * np.pi),
    ),
    "no Jacobian of the scaling": (
        "_log_volume_of_scaling",
        lambda factor, dim: 0.0 * factor,
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_negative_controls_of_the_evidence(broken, monkeypatch):
    """The same statistic with broken weights is far beyond the threshold."""
    name, wrong = BROKEN[broken]
    monkeypatch.setattr(population, name, wrong)
    says = properties(runner(two_bumps, 0.05)(jr.split(jr.key(11), RUNS)))
    z = z_score(np.exp(says["log_evidence"].astype(float)), EVIDENCE)
    assert np.abs(z) > 10.0, z


def test_a_very_precise_likelihood_arrives():
    """sd 1e-4 in two coordinates: n = 8 runs of 512, finite, of the right place and width.

    Their log evidences spread by .15; the limit is 5 standard errors of the mean.
    """
    y, sd = np.array([0.7, -0.4]), 1e-4

    def precise(x):
        return -0.5 * jnp.sum(jnp.square((x - y.astype(x.dtype)) / sd))

    runs = runner(precise, sd**2)(jr.split(jr.key(3), 8))
    assert np.all(np.isfinite(runs.evaluation.log_density))
    assert np.all(np.isfinite(runs.position))
    assert np.all(np.asarray(runs.times).min(axis=1) == 0.0)
    off = (np.asarray(runs.position, float) - y) / sd
    np.testing.assert_allclose(off.mean(axis=(0, 1)), 0.0, atol=0.15)
    np.testing.assert_allclose(off.std(axis=(0, 1)), 1.0, rtol=0.1)
    volume = 2.0 * np.log(sd * np.sqrt(2.0 * np.pi))
    assert_mean(
        properties(runs)["log_evidence"], stats.norm.logpdf(y).sum() + volume, 5.0
    )


EDGES = (0.0, -0.5, 0.5)


@functools.cache
def behind_edges():
    """16 runs of 512 particles each, with no density where the first is below an edge."""
    walled = lambda edge: lambda x: jnp.where(x[0] > edge, 0.0, -jnp.inf)
    one = lambda edge, key: once(key, walled(edge), 0.05)
    keys = jr.split(jr.key(1), 16)
    return jax.jit(jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None)))(
        jnp.array(EDGES), keys
    )


@pytest.mark.parametrize("edge", EDGES)
def test_a_hard_edge_is_not_leaked_over(edge):
    """No density on one side, n = 16 runs of 512: all inside, of the truncated law.

    The mean has a standard error of about .01, and particles a bias of O(1 / n). The
    proposal alone finds a half of the evidence: what the noising brings back over the edge
    is missing. Where the centre of the prior is outside, no scaling is exact, and the
    evidence may be too small; from none of the particles inside it cannot be known.
    """
    runs = jax.tree.map(lambda leaf: leaf[EDGES.index(edge)], behind_edges())
    says = properties(runs)
    x = np.asarray(runs.position, float)[..., 0]
    assert x.min() >= edge
    assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(runs))
    mean = np.exp(stats.norm.logpdf(edge) - stats.norm.logsf(edge))
    np.testing.assert_allclose(x.mean(), mean, atol=0.05 if edge < 0.1 else 0.15)
    if edge <= 0.0:
        truth = stats.norm.logsf(edge)
        np.testing.assert_allclose(says["log_evidence"].mean(), truth, atol=0.2)
    if edge == 0.5:
        assert np.all(says["log_evidence"] == -np.inf)
        assert np.all(says["log_evidence_error"] >= 1.0)


def test_negative_control_of_edges(monkeypatch):
    """With proposals across an edge the evidence is far too small, and seems certain."""
    monkeypatch.setattr(population, "_AT_A_BOUNDARY", 2.0)
    walled = lambda x: jnp.where(x[0] > 0.0, 0.0, -jnp.inf)
    says = properties(runner(walled, 0.05)(jr.split(jr.key(1), 32)))
    assert says["log_evidence"].mean() < np.log(0.5) - 0.5


@pytest.mark.parametrize("dense", [False, True])
def test_without_any_density_nothing_is_nan_and_it_says_so(dense):
    """-inf everywhere, and NaN, scores included; past the path's own care for them."""

    def one(dead, key):
        path = lambda u, level: Evaluation(dead + 0.0 * u[0], dead * u)
        inner = MALA(num_leapfrog=1)
        level_at = lambda t: paths.levels_of(t, 0.05)
        top, last = jnp.float32(HORIZON), jnp.float32(0.05)
        return descend(key, path, level_at, top, last, inner, 64, DIM, dense=dense)

    dead = jnp.array([-jnp.inf, jnp.nan])
    runs = jax.jit(jax.vmap(one))(dead, jr.split(jr.key(1)))
    for name, leaf in runs._asdict().items():
        if name != "evaluation":  # which is the path's own
            assert not np.any(np.isnan(leaf)), name
    says = properties(runs)
    assert np.all(says["log_evidence"] == -np.inf)
    assert np.all(says["log_evidence_error"] >= 1.0)
    assert np.all(np.asarray(runs.times).min(axis=1) == 0.0)  # it ends all the same


def test_what_a_step_takes_down_is_of_the_particles_that_were_chosen(key):
    """Given weights: the ratio is their mean's logarithm, and lineages go along."""
    n, path = 64, lambda u, level: normal(u, level)
    inner, t = MALA(num_leapfrog=1), jnp.float32(1.0)
    keys = jr.split(key, 3)
    top, weight = jr.normal(keys[0], (n, DIM)), jr.uniform(keys[1], (n,))
    horizon, last = jnp.float32(HORIZON), jnp.float32(0.05)
    carry = population._at_top(keys[2], top, horizon, last, 16, 8, False)
    carry = carry._replace(ancestor=jnp.arange(n)[::-1])
    crossed = population._Crossed(
        position=top,
        evaluation=carry.evaluation,
        log_weight=jnp.log(weight),
        size=jnp.float32(0.7),
        spread=jnp.float32(0.5),
        has_boundary=jnp.array(False),
    )
    target = population._Target(path, lambda t: t, inner, True)
    numbers = ParticleNoise.draw(keys[2], inner, (n,), DIM, jnp.float32)
    after = population._arrive(numbers, carry, t, crossed, target)
    np.testing.assert_allclose(
        after.record.log_ratio[0], jnp.log(jnp.mean(weight)), atol=1e-5
    )
    chosen = systematic(numbers.choose, jnp.log(weight))
    assert len(np.unique(chosen)) < n
    np.testing.assert_array_equal(after.ancestor, n - 1 - chosen)
    # a local move's length from those that were chosen, and not from others
    apart = jnp.abs(after.position - top[chosen])
    assert np.max(apart) < 3.0
    assert np.median(apart) < 0.5
