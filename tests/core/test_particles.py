"""Particle Gibbs: what it leaves invariant, its evidence, and its limits.

The prior is a mixture of a narrow and a wide mode, the likelihood bounded by 1. Exact paths
under the network's chain come by rejection from runs of the chain; with an energy the
levels above an exact draw are its noisings.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk import paths
from numpyro_rtk.core import particles as module
from numpyro_rtk.core.annealed import log_reference
from numpyro_rtk.core.curvature import covariance_of
from numpyro_rtk.core.particle_plan import plan_of_rows
from numpyro_rtk.core.particles import (
    SweepNoise,
    Target,
    noised,
    sweep,
)
from numpyro_rtk.core.segment import log_noising, log_proposal
from numpyro_rtk.core.twist import Sharpness, even_sharpness
from numpyro_rtk.core.warmup.particles import law_gap
from numpyro_rtk.core.warmup.prior_spread import PriorSpread
from numpyro_rtk.density import standardised
from numpyro_rtk.kernels.particle_spread import _levels as levels_measured
from numpyro_rtk.noise import angle_ladder, log_snr_ladder
from tests.oracles import Mixture, assert_mean, summaries, z_score

LAW = Mixture(
    [0.35, 0.65],
    [[-1.1, 0.7], [0.9, -0.2]],
    [[[0.04, 0.01], [0.01, 0.03]], [[0.5, -0.1], [-0.1, 0.3]]],
)
DIM, N = 2, 6000
DATA, SD = 0.4, 0.5  # of the difference of the coordinates
BASE = standardised(LAW.jax())


def log_likelihood(x):
    return -0.5 * jnp.square((DATA - (x[0] - x[1])) / SD)


def score_alone(x, t):
    found = BASE(x, t)
    return found._replace(log_density=jnp.zeros_like(found.log_density))


def problem(has_energy, num_levels=4, variance=0.2, curved=False):
    """A coarse ladder, so that the chain's law is far from the mixture's.

    Curved twists take the likelihood for less precise than it is, about another peak.
    """
    times = log_snr_ladder(num_levels, smallest_noise=0.3)
    with jax.numpy_rank_promotion("allow"):  # it is not of the core
        moment, draws = paths.calibrate(
            jr.key(0), paths.scores_of(BASE), times, DIM, dense=curved
        )
    base = jax.vmap(BASE if has_energy else score_alone, (0, None))
    likelihood = jax.vmap(jax.value_and_grad(log_likelihood))
    target = Target(base, likelihood, has_energy)
    sharpness = even_sharpness(jnp.asarray(variance), (1, DIM), dense=curved)
    if curved:
        way = jnp.array([1.0, -1.0])
        sharpness = Sharpness(
            variance=sharpness.variance,
            curvature=0.2 / SD**2 * jnp.outer(way, way)[None],
            peak=jnp.ones(1),
            is_even=jnp.zeros(1, bool),
        )
    unknown = PriorSpread.of(times, moment, covariance_of(draws, curved)).unknown(times)
    return target, plan_of_rows(jnp.asarray(times), unknown, sharpness)


def segments_of_a_row(plan):
    return jax.tree.map(lambda leaf: leaf[:, 0], plan.segments)


def of_the_row(found):
    """What is left of a sweep's result without the axis of its only row."""
    return found._replace(
        path=found.path[:, 0],
        log_evidence=found.log_evidence[0],
        sample_size=found.sample_size[:, 0],
        log_likelihood=found.log_likelihood[0],
        log_density=found.log_density[0],
    )


def chain_down(key, plan, n):
    """Runs of the network's own chain, ``(n, K + 1, dim)``, in NumPy."""
    rng, segments = np.random.default_rng(int(jr.bits(key))), segments_of_a_row(plan)
    x = rng.normal(size=(n, DIM))
    rows = [x]
    for k in reversed(range(len(segments.a))):
        at = jnp.asarray(x, jnp.float32)
        score = jax.vmap(BASE, (0, None))(at, plan.levels.time[k + 1]).score
        mean = (x + segments.v[k] * np.asarray(score)) / segments.a[k]
        noise, root = rng.normal(size=x.shape), np.asarray(segments.root[k])
        x = mean + (root * noise if root.ndim == 1 else noise @ root.T)
        rows.append(x)
    return np.stack(rows[::-1], axis=1)


def exact_paths(key, has_energy, plan, n):
    """Independent draws of the extended target, ``(n, K + 1, dim)``."""
    rng = np.random.default_rng(int(jr.bits(jr.fold_in(key, 1))))
    num = 8 * n
    if has_energy:
        bottom = jnp.asarray(LAW.draws(int(rng.integers(1e6)), num), jnp.float32)
        noise = jr.normal(key, (num, len(plan.segments.a), 1, DIM))
        found = jax.vmap(lambda e, x: noised(e, x[None], plan.segments))(noise, bottom)
        found = np.asarray(found)[:, :, 0]
    else:
        found = chain_down(key, plan, num)
    bottom = found[:, 0]
    value = np.exp(-0.5 * ((DATA - (bottom[:, 0] - bottom[:, 1])) / SD) ** 2)
    kept = found[rng.uniform(size=num) < value]
    assert len(kept) >= n
    return jnp.asarray(kept[:n], jnp.float32)


def swept(key, before, target, plan, num_particles=4):
    """One sweep from each of the paths."""

    def one(key, path):
        noise = SweepNoise.draw(
            key, len(plan.segments.a), num_particles, (1, DIM), jnp.float32
        )
        return of_the_row(sweep(noise, path[:, None], target, plan))

    return jax.jit(jax.vmap(one))(jr.split(key, len(before)), before)


def change(before, after):
    """Of the summaries at the lowest, a middle and the top level."""
    levels = (0, 1, 2, -1)
    return np.concatenate(
        [summaries(after[:, k]) - summaries(before[:, k]) for k in levels], axis=1
    )


LAWS = pytest.mark.parametrize("has_energy", [True, False], ids=["energy", "score"])


@LAWS
@pytest.mark.parametrize("curved", [False, True], ids=["even", "curved"])
def test_paths_of_the_target_stay_so(has_energy, curved, key):
    """n = 6,000 exact paths and one sweep of 4 particles: paired changes; z = 5."""
    target, plan = problem(has_energy, variance=2.0, curved=curved)
    before = exact_paths(key, has_energy, plan, N)
    found = swept(key, before, target, plan)
    assert_mean(change(before, found.path))
    # both kinds of level: resampled, and gone on without
    assert 0.05 < np.mean(np.asarray(found.sample_size)[:, 1:] < 2.0) < 0.95
    moved = np.any(np.asarray(found.path != before), axis=2)
    assert 0.3 < moved[:, 0].mean() < 0.95
    np.testing.assert_allclose(
        found.log_likelihood, jax.vmap(log_likelihood)(found.path[:, 0]), rtol=1e-4
    )
    expected = target.base(found.path[:, 0], jnp.zeros(()))
    np.testing.assert_allclose(found.log_density, expected.log_density, atol=1e-4)


def _no_density_of_the_proposal(patch):
    """As if particles came by a proposal that is wider than they do."""
    right = module._proposed

    def narrower(shift, narrow, noise):
        return right(shift, narrow, 0.7 * noise)

    patch.setattr(module, "_proposed", narrower)


def _no_likelihood(patch):
    right = module._weigh

    def weigh(x, target, level):
        score, taken, pull = right(x, target, level)
        return score, 0.5 * taken, pull

    patch.setattr(module, "_at_bottom", lambda x, target: (jnp.zeros(x.shape[:2]),) * 2)
    patch.setattr(module, "_weigh", weigh)


def _back_without_the_transition(patch):
    right = module._way_back

    def back(*args):
        with pytest.MonkeyPatch.context() as inner:
            nothing = lambda segment, target, z, x, score: jnp.zeros(x.shape[:2])
            inner.setattr(module, "_transition", nothing)
            return right(*args)

    patch.setattr(module, "_way_back", back)


def _back_with_the_twist(patch):
    right = module._way_back

    def back(uniforms, bottom, above, *others):
        above = above._replace(taken=jnp.zeros_like(above.taken))
        return right(uniforms, bottom, above, *others)

    patch.setattr(module, "_way_back", back)


def _weights_dropped_where_they_are_not(patch):
    patch.setattr(module, "_after", lambda log_weight, is_resampled: 0.0 * log_weight)


BREAKAGES = {
    "proposal without its density": _no_density_of_the_proposal,
    "no likelihood at the end": _no_likelihood,
    "back without the transition": _back_without_the_transition,
    "back with the twist": _back_with_the_twist,
    "weights dropped": _weights_dropped_where_they_are_not,
}


@LAWS
@pytest.mark.parametrize("break_it", BREAKAGES.values(), ids=BREAKAGES)
def test_negative_controls(break_it, has_energy, key, monkeypatch):
    """With a c that is too large, so that particles are resampled often."""
    target, plan = problem(has_energy, variance=2.0)
    before = exact_paths(key, has_energy, plan, 3 * N)
    break_it(monkeypatch)
    after = swept(key, before, target, plan, num_particles=8).path
    worst = np.max(np.abs(z_score(change(before, after))))
    assert worst > 8.0, worst


@LAWS
def test_weights_that_count_on_when_they_are_used_up_are_noticed(
    has_energy, key, monkeypatch
):
    """They do not belong to the particles that were resampled: a small error."""
    target, plan = problem(has_energy, variance=100.0)
    before = exact_paths(key, has_energy, plan, 30 * N)
    monkeypatch.setattr(module, "_after", lambda log_weight, is_resampled: log_weight)
    after = swept(key, before, target, plan, num_particles=8).path
    worst = np.max(np.abs(z_score(change(before, after))))
    assert worst > 8.0, worst


def exact_evidence():
    """Of the mixture: the difference of the coordinates is a mixture of normals."""
    way = np.array([1.0, -1.0])
    means, spread = LAW.means @ way, np.einsum("a,jab,b->j", way, LAW.covariances, way)
    total = spread + SD**2
    parts = SD / np.sqrt(total) * np.exp(-0.5 * (DATA - means) ** 2 / total)
    return LAW.weights @ parts


def plain(key, target, plan, n=20_000, num_particles=4):
    def one(key):
        noise = SweepNoise.draw(
            key, len(plan.segments.a), num_particles, (1, DIM), jnp.float32
        )
        return of_the_row(sweep(noise, None, target, plan))

    return jax.jit(jax.vmap(one))(jr.split(key, n))


@LAWS
def test_a_plain_runs_evidence_is_unbiased(has_energy, key):
    """20,000 runs of 4 particles, against the closed form or the chain's own mean."""
    target, plan = problem(has_energy)
    found = np.exp(np.asarray(plain(key, target, plan).log_evidence, float))
    if has_energy:
        assert_mean(found, exact_evidence())
        return
    bottom = chain_down(key, plan, len(found))[:, 0]
    value = np.exp(-0.5 * ((DATA - (bottom[:, 0] - bottom[:, 1])) / SD) ** 2)
    assert_mean(found - value)
    # the law that the chain draws is another one on this ladder
    assert abs(z_score(value, exact_evidence())) > 5.0


@LAWS
def test_a_kept_paths_inverse_evidence_is_unbiased(has_energy, key):
    target, plan = problem(has_energy)
    before = exact_paths(key, has_energy, plan, N)
    inverse = np.exp(-np.asarray(swept(key, before, target, plan).log_evidence, float))
    if has_energy:
        assert_mean(inverse, 1.0 / exact_evidence())
        return
    plains = np.exp(np.asarray(plain(key, target, plan).log_evidence, float))
    evidence, error = plains.mean(), plains.std() / np.sqrt(len(plains))
    own = inverse.std() / np.sqrt(len(inverse))
    spread = np.hypot(own, error / evidence**2)
    assert abs(inverse.mean() - 1.0 / evidence) < 5.0 * spread


def test_one_particle_is_the_path_itself(key):
    target, plan = problem(has_energy=True)
    before = exact_paths(key, True, plan, 50)
    found = swept(key, before, target, plan, num_particles=1)
    np.testing.assert_array_equal(found.path, before)
    np.testing.assert_allclose(found.sample_size, 1.0, rtol=1e-6)


@LAWS
def test_one_level(has_energy, key):
    target, plan = problem(has_energy, num_levels=1)
    before = exact_paths(key, has_energy, plan, N)
    found = swept(key, before, target, plan)
    both = [summaries(x[:, 0]) for x in (found.path, before)]
    assert_mean(both[0] - both[1])


def test_a_prior_alone_needs_no_likelihood(key):
    """The chain's own law: means and shares as of its runs."""
    target, plan = problem(has_energy=False)
    target = target._replace(likelihood=None)
    before = jnp.asarray(chain_down(key, plan, N), jnp.float32)
    found = swept(key, before, target, plan)
    assert_mean(change(before, found.path))
    np.testing.assert_allclose(found.log_evidence, 0.0, atol=1e-4)


def test_a_likelihood_of_zero_on_the_way_is_no_end(key):
    """A guess of the end that has no density leaves the way to it open."""
    target, plan = problem(has_energy=True)

    def edged(x):
        value, gradient = jax.vmap(jax.value_and_grad(log_likelihood))(x)
        return jnp.where(x[:, 0] > 0.5, value, -jnp.inf), gradient

    before = exact_paths(key, True, plan, 4 * N)
    before = before[np.asarray(before[:, 0, 0]) > 0.5][:N]
    found = swept(key, before, target._replace(likelihood=edged), plan)
    assert np.all(np.asarray(found.path[:, 0, 0]) > 0.5)
    assert_mean(change(before, found.path))


def test_the_gap_of_a_law_is_its_paths_divergence(key):
    """Against a mean over 10,000 noisings of exact draws, at 8 levels and 32.

    E[log p(x_0) - log of what the chain puts there] along paths of the noising.
    """
    gaps, fine = [], levels_measured(angle_ladder(32))
    with jax.numpy_rank_promotion("allow"):
        moment, draws = paths.calibrate(
            key, paths.scores_of(BASE), fine, DIM, 20_000, dense=True
        )
    prior = PriorSpread.of(fine, moment, covariance_of(draws, dense=True))
    sharpness = even_sharpness(jnp.ones(()), (1, DIM), dense=True)
    for num_levels in (8, 32):
        at = jnp.asarray(angle_ladder(num_levels), jnp.float32)
        plan = plan_of_rows(at, prior.unknown(at), sharpness)
        gap = float(law_gap(prior, plan))
        exact = path_divergence(key, plan, 10_000)
        error = exact.std() / np.sqrt(len(exact))
        assert error < 0.02
        assert abs(gap - exact.mean()) < exact.mean() / 3 + 5 * error, (
            gap,
            exact.mean(),
        )
        gaps.append(gap)
    assert gaps[0] > 3.0 * gaps[1]


def path_divergence(key, plan, n):
    """Terms of the divergence of a chain's paths from the noisings of the mixture."""
    bottom = jnp.asarray(LAW.draws(5, n), jnp.float32)
    segments = segments_of_a_row(plan)
    noise = jr.normal(key, (n, len(segments.a), 1, DIM))

    def one(noise, bottom):
        path = noised(noise, bottom[None], plan.segments)[:, 0]
        score = jax.vmap(lambda x, t: BASE(x, t).score)(path, plan.levels.time)[1:]
        up = jax.vmap(log_noising)(segments, path[1:], path[:-1])
        down = jax.vmap(log_proposal)(segments, path[:-1], path[1:], score)
        ends = BASE(bottom, 0.0).log_density - log_reference(path[-1])
        return ends + jnp.sum(up - down)

    return np.asarray(jax.jit(jax.vmap(one))(noise, bottom), float)


def test_a_level_that_nothing_reaches_is_worth_no_particle(key):
    """0, not NaN, which no comparison of a report would notice."""
    target, plan = problem(has_energy=False)
    never = lambda x: (-jnp.inf * jnp.ones(len(x)), jnp.zeros_like(x))
    found = plain(key, target._replace(likelihood=never), plan, n=3)
    np.testing.assert_array_equal(found.sample_size[:, 0], 0.0)
    np.testing.assert_array_equal(found.log_evidence, -np.inf)


@LAWS
@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "plain"])
def test_rows_side_by_side_are_as_each_alone(has_energy, is_kept, key):
    """Two of different data and twists, with the random numbers that each has alone."""
    data = jnp.array([0.4, -1.5])
    target, _ = problem(has_energy)

    def likelihood_of(data):
        def of_row(x, datum):
            return -0.5 * jnp.square((datum - (x[0] - x[1])) / SD)

        return lambda x: jax.vmap(jax.value_and_grad(of_row))(x, data)

    plans = [problem(has_energy, variance=v)[1] for v in (0.05, 2.0)]
    by_level = lambda a, b: jnp.concatenate([a, b], axis=1)
    both = plans[0]._replace(
        levels=plans[0].levels._replace(
            twist=jax.tree.map(by_level, *(plan.levels.twist for plan in plans))
        ),
        segments=jax.tree.map(by_level, *(plan.segments for plan in plans)),
        lift=by_level(plans[0].lift, plans[1].lift),
        narrow=by_level(plans[0].narrow, plans[1].narrow),
        entry=jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]), *(plan.entry for plan in plans)
        ),
    )
    num_levels = len(both.segments.a)
    noise = SweepNoise.draw(key, num_levels, 16, (2, DIM), jnp.float32)
    path = exact_paths(key, has_energy, plans[0], 2).swapaxes(0, 1)
    run = lambda noise, path, data, plan: sweep(
        noise,
        path if is_kept else None,
        target._replace(likelihood=likelihood_of(data)),
        plan,
    )
    together = run(noise, path, data, both)
    # the axis of rows in each kind of random numbers
    axes = SweepNoise(top=1, cross=2, resample=2, back=1)
    for r in range(2):
        one = slice(r, r + 1)
        alone = run(
            jax.tree.map(
                lambda leaf, axis, r=r: leaf.take(jnp.array([r]), axis), noise, axes
            ),
            path[:, one],
            data[one],
            plans[r],
        )
        np.testing.assert_allclose(alone.path[:, 0], together.path[:, r], atol=1e-4)
        np.testing.assert_allclose(
            alone.log_evidence[0], together.log_evidence[r], rtol=1e-3
        )
        np.testing.assert_allclose(
            alone.sample_size[:, 0], together.sample_size[:, r], rtol=1e-3
        )
    assert np.abs(np.diff(together.log_evidence)) > 0.1
