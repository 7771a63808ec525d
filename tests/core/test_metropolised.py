"""The exact transition made of annealed runs, and what it does where nothing is finite."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from numpyro_rtk import paths
from numpyro_rtk.core import metropolised as module
from numpyro_rtk.core.annealed import Plan, Run
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.metropolised import metropolised
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.core.uld import ULD
from numpyro_rtk.density import standardised
from numpyro_rtk.noise import angle_ladder
from tests.core.test_annealed import (
    HARD,
    POSTERIOR,
    PRIOR,
    N,
    expectations,
    level_zero,
    log_likelihood,
    posterior_draws,
    posterior_problem,
    run_down,
)
from tests.oracles import Mixture, assert_mean, summaries, z_score


def transition(key, path, plan, inner, num_steps, num_candidates, draws, times=1):
    bottom = level_zero(plan.levels)

    def one(key, x):
        def body(x, key):
            new = metropolised(
                key,
                x,
                path(x, bottom),
                path,
                plan,
                inner,
                num_steps,
                num_candidates,
            )
            return new.position, new

        x, all_new = jax.lax.scan(body, x, jr.split(key, times))
        return x, jax.tree.map(lambda leaf: leaf[-1], all_new)

    draws = jnp.asarray(draws, jnp.float32)
    return jax.jit(jax.vmap(one))(jr.split(key, len(draws)), draws)


@pytest.mark.parametrize(
    ("name", "num_candidates"), [("none", 4), ("mala", 1), ("mala", 4), ("uld", 1)]
)
def test_transition_leaves_the_posterior_invariant(name, num_candidates, key):
    """n = 5,000 exact draws, paired changes of seven statistics, z = 5."""
    num_steps, inner = {
        "none": ((0, 0, 0), MALA()),
        "mala": ((2, 0, 1), MALA()),
        "uld": ((2, 2, 2), ULD()),
    }[name]
    path, plan = posterior_problem(**HARD)
    draws = posterior_draws()
    after, new = transition(key, path, plan, inner, num_steps, num_candidates, draws)
    assert_mean(summaries(after) - summaries(draws))
    moved = np.mean(np.any(np.asarray(after) != draws.astype("float32"), axis=1))
    np.testing.assert_allclose(moved, np.mean(new.accept_prob), atol=0.02)
    assert 0.1 < moved < 0.95


def test_negative_control_accepting_always(key, monkeypatch):
    """The same statistic sees a transition that forgets the acceptance."""
    monkeypatch.setattr(module, "_log_accept", lambda w, i, w0: jnp.zeros(()))
    path, plan = posterior_problem(**HARD)
    draws = posterior_draws()
    after, _ = transition(key, path, plan, MALA(), (2, 0, 1), 1, draws)
    assert np.max(np.abs(z_score(summaries(after) - summaries(draws)))) > 7.0


def by_states(key, num_candidates, n=400_000):
    """Of exact draws of a law of three states, and of each one transition later.

    Runs down are draws of another law, so that weights differ eighteenfold.
    """
    law, proposal = np.array([0.2, 0.3, 0.5]), np.array([0.7, 0.2, 0.1])
    log_weight = jnp.asarray(np.log(law / proposal), jnp.float32)
    at = lambda x: Evaluation(jnp.zeros(()), jnp.zeros(1))

    def found(x):
        weight = log_weight[x[0].astype(int)]
        return Run(x, at(x), weight, jnp.zeros(1), jnp.array(False))

    def down(noise, *_):
        part = jax.scipy.stats.norm.cdf(noise.top)  # uniform
        state = jnp.searchsorted(jnp.asarray(np.cumsum(proposal)[:2]), part)
        return found(state.astype(jnp.float32))

    plan = Plan(None, None, None, jnp.ones((1, 1)))

    def one(key, x):
        return metropolised(
            key, x, at(x), None, plan, MALA(), (0,), num_candidates
        ).position

    states = np.random.default_rng(0).choice(3, size=(n, 1), p=law)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "anneal_down", down)
        patch.setattr(module, "anneal_up", lambda noise, x, *_: found(x))
        draws = jnp.asarray(states, jnp.float32)
        after = jax.jit(jax.vmap(one))(jr.split(key, n), draws)
    return 1.0 * (np.asarray(after) == np.arange(3)), 1.0 * (states == np.arange(3))


@pytest.mark.parametrize("num_candidates", [1, 2, 4])
def test_candidates_are_chosen_and_accepted_by_their_weights(num_candidates, key):
    """n = 400,000: paired changes of three states' probabilities; z = 5."""
    after, before = by_states(key, num_candidates)
    assert_mean(after - before)
    assert 0.1 < np.mean(np.any(after != before, axis=1)) < 0.6


def test_negative_control_accepting_by_the_chosen_weight_alone(key, monkeypatch):
    """Which is right of one candidate, is seen of two."""
    alone = lambda weights, chosen, current: weights[chosen] - current
    monkeypatch.setattr(module, "_log_accept", alone)
    assert np.max(np.abs(z_score(np.subtract(*by_states(key, 2))))) > 10.0


def test_transition_finds_the_mode_weights_from_one_mode(key):
    """n = 1,000 chains, all started in one point, 25 transitions each; z = 5."""
    path, plan = posterior_problem(**HARD)
    start = np.tile(POSTERIOR.means[2], (1_000, 1))
    after, _ = transition(key, path, plan, MALA(), (1, 0, 0), 4, start, times=25)
    assert_mean(summaries(after), expectations())


@pytest.mark.parametrize("num_steps", [(0,) * 5, (2, 1, 0, 0, 1)])
def test_transition_is_exact_for_a_hard_constraint(num_steps, key):
    """Prior N(0, 1) cut at -.1: noise leaves the support at every level.

    n = 5,000 exact draws, two transitions each; quantiles under the truth, z = 5.
    """
    cut = -0.1
    normal = Mixture([1.0], [[0.0]], [[[1.0]]]).jax()
    path = paths.posterior_path(
        standardised(normal), lambda u: jnp.where(u[0] > cut, 0.0, -jnp.inf)
    )
    times = angle_ladder(5)
    segments, scale = paths.plan_segments(times, jnp.ones((6, 1)))
    plan = Plan(paths.levels_of(times, 0.3), segments, jnp.full(5, 0.8), scale)
    law = stats.truncnorm(cut, np.inf)
    draws = law.rvs((N, 1), random_state=np.random.default_rng(0))
    after, new = transition(key, path, plan, MALA(), num_steps, 2, draws, times=2)
    before, after = law.cdf(draws), law.cdf(np.asarray(after, np.float64))
    for f in (lambda p: p, lambda p: p < 0.1, lambda p: p > 0.8):
        assert_mean(1.0 * f(after) - 1.0 * f(before))
    assert np.mean(new.accept_prob) > 0.4
    assert not np.any(np.isnan(new.current_log_weight))


@pytest.mark.parametrize("num_steps", [(0,) * 5, (2, 0, 1, 0, 1)])
def test_no_density_anywhere_spoils_no_number(num_steps, key):
    """A likelihood that fails on half the space: weights and draws stay numbers."""
    _, plan = posterior_problem()
    good = POSTERIOR.draws(3, 500)
    good[:, 0] = np.minimum(good[:, 0], 0.25)

    def fails_by(value):
        path = paths.posterior_path(
            standardised(PRIOR.jax()),
            lambda u: jnp.where(u[0] > 0.3, value, log_likelihood(u)),
        )
        run = run_down(key, path, plan, MALA(), num_steps, n=500)
        return run, transition(key, path, plan, MALA(), num_steps, 2, good, times=3)

    found = jax.jit(jax.vmap(fails_by))(jnp.array([jnp.nan, -jnp.inf]))
    for i in range(2):
        run, (after, new) = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), found)
        assert np.all(np.isfinite(run.position))
        assert not np.any(np.isnan(run.log_weight))
        dead = run.position[:, 0] > 0.3
        assert 0 < dead.sum() < 500
        assert np.all(np.isneginf(run.log_weight[dead]))
        assert np.all(np.isfinite(after))
        assert np.all(after[:, 0] <= 0.3)
        for leaf in (new.accept_prob, new.log_weights, new.current_log_weight):
            assert not np.any(np.isnan(leaf))


@pytest.mark.parametrize("num_steps", [(0,) * 5, (1,) * 5])
def test_a_path_without_any_number_never_moves(num_steps, key):
    """Raw NaN, value and score, as no path of the package returns: nothing moves."""
    _, plan = posterior_problem()

    def path(u, level):
        return Evaluation(jnp.nan * u[0], jnp.nan * u)

    def one(key, x):
        start = Evaluation(jnp.zeros(()), jnp.zeros(2))
        return metropolised(key, x, start, path, plan, MALA(), num_steps, 3)

    x = jnp.asarray(posterior_draws()[:50], jnp.float32)
    new = jax.jit(jax.vmap(one))(jr.split(key, 50), x)
    np.testing.assert_array_equal(new.position, x)
    np.testing.assert_array_equal(new.accept_prob, np.zeros(50))
    assert np.all(np.isneginf(new.log_weights))
    assert not np.any(np.isnan(new.current_log_weight))


def test_a_start_without_density_is_left_at_once(key):
    path, plan = posterior_problem()

    def one(key, x):
        none = Evaluation(jnp.array(-jnp.inf), jnp.zeros(2))
        return metropolised(key, x, none, path, plan, MALA(), (0,) * 5, 1)

    new = jax.jit(jax.vmap(one))(jr.split(key, 20), jnp.ones((20, 2)))
    np.testing.assert_array_equal(new.accept_prob, np.ones(20))
    assert not np.any(new.position == 1.0)


def test_dtype_is_kept(key):
    path, plan = posterior_problem()
    shapes = jax.eval_shape(
        lambda k, x: metropolised(
            k, x, path(x, level_zero(plan.levels)), path, plan, MALA(), (1,) * 5, 2
        ),
        key,
        jnp.ones(2, jnp.float32),
    )
    for leaf in jax.tree.leaves(shapes):
        assert leaf.dtype in (jnp.float32, jnp.bool_)
