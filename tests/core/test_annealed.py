"""Runs down and up the ladder, and their weights."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from numpyro_rtk import paths
from numpyro_rtk.core.annealed import (
    Plan,
    _steps_ratio,
    anneal_down,
    anneal_up,
    num_evals,
)
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.run_noise import RunNoise
from numpyro_rtk.core.segment import Evaluation, paper_segment_between
from numpyro_rtk.core.uld import ULD
from numpyro_rtk.density import standardised
from numpyro_rtk.noise import angle_ladder
from tests.oracles import SKEWED, Mixture, assert_mean, summaries, z_score

N = 5_000
# On the prior's standardised scale: y = direction . u + N(0, VARIANCE).
PRIOR = SKEWED.standardised()
DIRECTION, Y, VARIANCE = np.array([1.0, -0.5]), 0.3, 0.25
POSTERIOR, EVIDENCE = PRIOR.posterior(DIRECTION, Y, VARIANCE)

# num_steps, inner sampler: none, even, uneven; MALA and the reversal of ULD's momentum
RUNS = {
    "no inner steps": ((0,) * 5, MALA()),
    "mala, uneven": ((2, 1, 1, 0, 3), MALA()),
    "uld, even": ((2,) * 5, ULD()),
}


# few wide segments, a poor constant: raw draws are visibly wrong, acceptance is not 1
HARD = {"num_segments": 3, "likelihood_variance": 1.0}


def log_likelihood(u):
    residual = Y - jnp.dot(jnp.asarray(DIRECTION, u.dtype), u)
    return -0.5 * (jnp.square(residual) / VARIANCE + jnp.log(2.0 * jnp.pi * VARIANCE))


def level_zero(levels):
    return jax.tree.map(lambda leaf: leaf[0], levels)


@functools.cache
def second_moment(num_segments):
    """Mean squared score per level, from exact draws of the noised prior."""
    rows = []
    for t in angle_ladder(num_segments):
        draws = jnp.asarray(PRIOR.noised(t).draws(1, 20_000), jnp.float32)
        rows.append(np.mean(np.square(PRIOR.jax().score(draws, t)), axis=0))
    return np.stack(rows)


def posterior_problem(num_segments=5, likelihood_variance=VARIANCE, paper_start=False):
    times = angle_ladder(num_segments)
    path = paths.posterior_path(standardised(PRIOR.jax()), log_likelihood)
    moment = jnp.asarray(second_moment(num_segments), jnp.float32)
    segments, scale = paths.plan_segments(times, moment)
    if paper_start:  # with a smoothness small enough for weights of finite variance
        t = jnp.asarray(times, jnp.float32)
        smoothness = jnp.full(num_segments, 0.2)
        segments = paper_segment_between(t[:-1], t[1:], smoothness, 2)
    levels = paths.levels_of(times, likelihood_variance)
    return path, Plan(levels, segments, jnp.full(num_segments, 0.8), scale)


def run_down(key, path, plan, inner, num_steps, n=N):
    def one(key):
        noise = RunNoise.draw(key, plan.scale, inner, num_steps)
        return anneal_down(noise, path, plan, inner, num_steps)

    return jax.jit(jax.vmap(one))(jr.split(key, n))


def run_up(key, path, plan, inner, num_steps, draws):
    draws, bottom = jnp.asarray(draws, jnp.float32), level_zero(plan.levels)

    def one(key, x):
        noise = RunNoise.draw(key, plan.scale, inner, num_steps)
        return anneal_up(noise, x, path(x, bottom), path, plan, inner, num_steps)

    return jax.jit(jax.vmap(one))(jr.split(key, len(draws)), draws)


def bridge_z(down, up, draws):
    """The z of ``E_down[min(w, Z) f] = Z E_up[min(1, Z / w) f]``, for eight f.

    The identity holds between runs down and their reversals from exact ``draws``, for
    every function f of the lower end; both sides are bounded, so that z scores mean
    what they say however heavy the tails of the weights.
    """
    sides = []
    for run, end in ((down, down.position), (up, draws)):
        weight = np.exp(np.asarray(run.log_weight, np.float64))
        if run is up:
            bounded = EVIDENCE * np.minimum(1.0, EVIDENCE / weight)
        else:
            bounded = np.minimum(weight, EVIDENCE)
        f = np.column_stack([np.ones(len(bounded)), summaries(end)])
        sides.append(bounded[:, None] * f)
    error = np.sqrt(sum(s.var(axis=0, ddof=1) / len(s) for s in sides))
    return (sides[0].mean(axis=0) - sides[1].mean(axis=0)) / error


@functools.cache
def posterior_draws():
    return POSTERIOR.draws(seed=5, n=N)


def expectations():
    """Of the summaries under the posterior: moments exactly, the rest by many draws."""
    return summaries(POSTERIOR.draws(seed=9, n=1_000_000)).mean(axis=0)


@pytest.mark.parametrize("name", RUNS)
def test_weights_correct_the_draws_and_give_the_evidence(name, key):
    """n = 5,000 runs: E[w] = Z and E[w (f - E f)] = 0 for seven f; z = 5."""
    num_steps, inner = RUNS[name]
    path, plan = posterior_problem()
    run = run_down(key, path, plan, inner, num_steps)
    weight = np.exp(np.asarray(run.log_weight, np.float64))
    effective = weight.sum() ** 2 / np.sum(weight**2) / N
    assert effective > 0.1  # so that the z scores mean what they say
    assert_mean(weight, EVIDENCE)
    centred = summaries(run.position) - expectations()
    assert_mean(weight[:, None] * centred)


def test_negative_control_unweighted_draws_are_biased(key):
    path, plan = posterior_problem()
    run = run_down(key, path, plan, MALA(), (0,) * 5)
    assert np.max(np.abs(z_score(summaries(run.position), expectations()))) > 10.0


def test_normalised_target_has_evidence_one(key):
    """The prior path: E[w] = 1, and its raw draws are close with exact scores."""
    _, plan = posterior_problem()
    path = paths.prior_path(standardised(PRIOR.jax()))
    run = run_down(key, path, plan, MALA(), (1, 1, 0, 0, 0))
    assert_mean(np.exp(np.asarray(run.log_weight, np.float64)), 1.0)


@pytest.mark.parametrize(
    ("name", "paper_start"),
    [("no inner steps", True), ("mala, uneven", False), ("uld, even", True)],
)
def test_up_reverses_down(name, paper_start, key):
    """n = 5,000 runs each way, eight statistics of the bridge identity; z = 5."""
    num_steps, inner = RUNS[name]
    path, plan = posterior_problem(paper_start=paper_start)
    key_down, key_up = jr.split(key)
    down = run_down(key_down, path, plan, inner, num_steps)
    draws = posterior_draws()
    up = run_up(key_up, path, plan, inner, num_steps, draws)
    z = bridge_z(down, up, draws)
    assert np.all(np.abs(z) < 5.0), z


def test_negative_control_steps_not_undone(key):
    """The same identity with an upward pass that forgets the inner steps, n = 20,000."""
    num_steps, inner = (6,) * 3, MALA()
    path, plan = posterior_problem(**HARD)
    key_down, key_up = jr.split(key)
    down = run_down(key_down, path, plan, inner, num_steps, n=20_000)
    draws = POSTERIOR.draws(seed=6, n=20_000)
    for steps, is_right in ((num_steps, True), ((0,) * 3, False)):
        up = run_up(key_up, path, plan, inner, steps, draws)
        z = np.max(np.abs(bridge_z(down, up, draws)))
        assert z < 5.0 if is_right else z > 7.0, z


def test_mean_inverse_weight_of_runs_up_is_the_inverse_evidence(key):
    """E_up[1 / w] = 1 / Z; n = 5,000, z = 5."""
    path, plan = posterior_problem()
    up = run_up(key, path, plan, MALA(), (1, 1, 0, 0, 0), posterior_draws())
    assert_mean(np.exp(-np.asarray(up.log_weight, np.float64)), 1.0 / EVIDENCE)


def test_one_gaussian_has_weights_without_variance(key):
    """Where every start is the exact conditional, every path weighs the same: 1.

    A narrow diagonal Gaussian; the horizon's own mismatch is a factor of a few per
    cent, exact in closed form: the weight is p_T(x_T) / N(x_T).
    """
    gaussian = Mixture([1.0], [[0.4, -0.2]], [np.diag([0.1, 0.6])])
    times = angle_ladder(5)
    moment = [1.0 / np.diag(gaussian.noised(t).covariances[0]) for t in times]
    segments, scale = paths.plan_segments(
        times, jnp.asarray(np.stack(moment), "float32")
    )
    plan = Plan(paths.levels_of(times, 1.0), segments, jnp.full(5, 0.8), scale)
    path = paths.prior_path(standardised(gaussian.jax()))
    for num_steps in ((0,) * 5, (2, 0, 0, 1, 1)):
        noise = RunNoise.draw(key, plan.scale, MALA(), num_steps, (100,))
        run = jax.vmap(
            lambda one, steps=num_steps: anneal_down(one, path, plan, MALA(), steps)
        )(noise)
        expected = gaussian.noised(times[-1]).log_density(np.asarray(noise.top))
        expected -= stats.norm.logpdf(noise.top).sum(axis=1)
        np.testing.assert_allclose(run.log_weight, expected, atol=5e-3)


@pytest.mark.parametrize(
    ("inner", "num_steps"),
    [
        (ULD().unadjusted(), (0,) * 4),
        (MALA(), (3, 0, 1, 1)),
        (MALA(num_leapfrog=1), (2,) * 4),
    ],
    ids=["none", "mala-2", "mala-1"],
)
def test_num_evals_is_what_a_run_costs(num_steps, inner):
    """Counted while the run is running, not while it is traced."""
    base, plan = posterior_problem(num_segments=4)
    calls = []

    def path(u, level):
        jax.debug.callback(lambda: calls.append(None))
        return base(u, level)

    noise = RunNoise.draw(jr.key(0), plan.scale, inner, num_steps)
    run = jax.jit(
        lambda noise: anneal_down(noise, path, plan, inner, num_steps).position
    )
    jax.block_until_ready(run(noise))
    jax.effects_barrier()
    assert len(calls) == num_evals(inner, num_steps)


def test_one_program_for_equal_steps_in_a_row():
    """The path is traced per group of segments, not per segment."""
    base, plan = posterior_problem()
    calls = []

    def path(u, level):
        calls.append(None)
        return base(u, level)

    def run(k, steps):
        noise = RunNoise.draw(k, plan.scale, MALA(), steps)
        return anneal_down(noise, path, plan, MALA(), steps)

    counts = {}
    for steps in [(1,) * 5, (2, 2, 0, 0, 0), (2, 0, 2, 0, 2)]:
        calls.clear()
        jax.eval_shape(functools.partial(run, steps=steps), jr.key(0))
        counts[steps] = len(calls)
    groups = {(1,) * 5: (1, 1), (2, 2, 0, 0, 0): (2, 1), (2, 0, 2, 0, 2): (5, 3)}
    for steps, (num_groups, num_stepping) in groups.items():
        assert counts[steps] == 1 + num_groups + 2 * num_stepping


def test_groups_are_put_together_in_order(key):
    """Accept probabilities are NaN in exactly the segments without inner steps."""
    path, plan = posterior_problem()
    num_steps = (0, 2, 1, 0, 1)
    down = run_down(key, path, plan, MALA(), num_steps, n=3)
    up = run_up(key, path, plan, MALA(), num_steps, posterior_draws()[:3])
    for run in (down, up):
        without = np.array(num_steps) == 0
        np.testing.assert_array_equal(np.isnan(run.accept_prob), [without] * 3)
        assert not jnp.any(jnp.isnan(run.log_weight))
    tops = np.asarray(up.position)
    expected = jax.vmap(path, in_axes=(0, None))(
        tops, jax.tree.map(lambda leaf: leaf[-1], plan.levels)
    )
    jax.tree.map(
        lambda got, there: np.testing.assert_allclose(got, there, rtol=1e-5),
        up.evaluation,
        expected,
    )


def test_inner_evaluation_is_that_of_the_end(key):
    path, plan = posterior_problem()
    run = run_down(key, path, plan, MALA(), (2, 1, 0, 0, 0), n=20)
    bottom = level_zero(plan.levels)
    expected = jax.vmap(path, in_axes=(0, None))(run.position, bottom)
    jax.tree.map(
        lambda got, there: np.testing.assert_allclose(got, there, rtol=1e-3, atol=1e-3),
        run.evaluation,
        expected,
    )


def test_ratio_of_steps_from_and_to_where_there_is_no_density():
    """A path that starts there weighs nothing; one that stays there keeps its weight."""
    start = jnp.array([2.0, -jnp.inf, 2.0, -jnp.inf])
    end = jnp.array([0.5, 0.5, -jnp.inf, -jnp.inf])
    at = lambda value: Evaluation(value, jnp.zeros(4))
    expected = [1.5, -np.inf, np.inf, 0.0]
    np.testing.assert_array_equal(_steps_ratio(at(start), at(end)), expected)
