"""Replica exchange: invariance, log-weight increments, controls, round trips."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk import paths
from numpyro_rtk.core import mala, uld
from numpyro_rtk.core.exchange import sweep as exchange_module
from numpyro_rtk.core.exchange.bridge import bridge_terms
from numpyro_rtk.core.exchange.replicas import (
    ExchangePlan,
    Replicas,
    draw_sweeps,
    evals_per_sweep,
    evaluate_all,
)
from numpyro_rtk.core.exchange.sweep import sweep
from numpyro_rtk.core.segment import (
    Evaluation,
    Segment,
    proposal_mean,
    proposal_misfit,
)
from numpyro_rtk.density import standardised
from tests.oracles import SKEWED, assert_mean, summaries, z_score

N = 4_000
TIMES = np.array([0.0, 0.15, 0.6, 3.0])
PRIOR = SKEWED.standardised()
# Log constants of the unnormalised levels: what the increments must find.
CONSTANTS = np.array([0.7, -0.4, 0.3])


def path(u, level):
    """Noised mixtures, each with a constant of its own."""
    levels, constant = level
    value, score = paths.prior_path(standardised(PRIOR.jax()))(u, levels)
    return Evaluation(value + constant, score)


@functools.cache
def plan(poor=False, swap_share=0.0):
    """A dense proposal that is deliberately not the best, or is poor."""
    a, v = np.exp(TIMES[:-1] - TIMES[1:]), -np.expm1(2.0 * (TIMES[:-1] - TIMES[1:]))
    # the top edge proposes nearly from the whole of level 2, of spread about one
    width = np.array([*(np.sqrt(v) / a)[:2], 1.1])
    root = np.array([[1.0, 0.0], [0.2, 0.9]])[None] * width[:, None, None]
    edges = Segment(
        a=a,
        v=v,
        mean_x=np.array([0.97, 0.97, 1.0]) / a,
        mean_score=np.array([0.9, 0.9, 1.0]) * v / a,
        shift=np.full((3, 2), 0.03) + (0.8 * (width / 1.1)[:, None] if poor else 0.0),
        root=root,
        inverse_root=np.linalg.inv(root),
        log_det=np.linalg.slogdet(root)[1],
    )
    # eager and NumPy: this may be called first while something is traced
    levels = (TIMES, np.exp(-TIMES), np.ones(4)), np.append(CONSTANTS, 0.0)
    scale = np.stack([np.array([[0.5, 0.0], [-0.1, 0.6]])] * 3)
    settings = ExchangePlan(
        levels, edges, np.full(3, 0.7), scale, np.full(3, swap_share)
    )
    settings = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), settings)
    times, constants = settings.levels
    return settings._replace(levels=(paths.Levels(*times), constants))


@functools.cache
def exact_replicas(n=N):
    """Independent draws of every level, ``(n, 4, 2)``; the top is the standard normal."""
    below = [PRIOR.noised(t).draws(10 + k, n) for k, t in enumerate(TIMES[:-1])]
    top = np.random.default_rng(99).normal(size=(n, 2))
    return jnp.asarray(np.stack([*below, top], axis=1), jnp.float32)


@functools.cache
def stepper(inner, num_sweeps, num_steps=0, swap_share=0.0, poor=False):
    one = functools.partial(_run, inner, num_sweeps, num_steps, swap_share, poor)
    return jax.jit(jax.vmap(one))


def _run(inner, num_sweeps, num_steps, swap_share, poor, key, position):
    settings = jax.tree.map(jnp.asarray, plan(poor, swap_share))
    evaluation = evaluate_all(path, settings.levels, position)
    phase = jnp.zeros(4, int).at[0].set(1)
    replicas = Replicas(position, evaluation, phase, jnp.zeros((), int))

    def body(replicas, inputs):
        noise, parity = inputs
        return sweep(
            noise,
            replicas,
            path,
            settings,
            inner,
            parity,
            num_steps=num_steps,
        )

    noise = draw_sweeps(key, settings, inner, num_sweeps, num_steps)
    return jax.lax.scan(body, replicas, (noise, jnp.arange(num_sweeps) % 2))


def run(key, inner=None, num_sweeps=4, num_steps=0, swap_share=0.0, n=N, poor=False):
    inner = MALA if inner is None else inner
    step = stepper(inner, num_sweeps, num_steps, swap_share, poor)
    return step(jr.split(key, n), exact_replicas(max(n, N))[:n])


def paired_change(after):
    """Per level, what a run changed in statistics of location, shape and weights."""
    before = np.asarray(exact_replicas(max(len(after), N))[: len(after)])
    return np.concatenate(
        [summaries(after[:, k]) - summaries(before[:, k]) for k in range(4)], axis=1
    )


MALA, ULD = mala.MALA(num_leapfrog=1), uld.ULD()
KINDS = {
    "mala": (MALA, 0, 0.0, False),
    "uld": (ULD, 0, 0.0, False),
    "inner steps": (MALA, 4, 0.0, True),
    "swap": (MALA, 0, 1.0, False),
    "both": (MALA, 0, 0.5, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_every_level_invariant(kind, key):
    """n = 4,000 exact draws of all levels, 8 sweeps: paired changes within z = 5.

    Exchanges are neither always accepted nor never, so the test has something to see.
    """
    inner, num_steps, swap_share, poor = KINDS[kind]
    after, info = run(
        key, inner, num_steps=num_steps, swap_share=swap_share, poor=poor, num_sweeps=8
    )
    accept = np.nanmean(info.swap_accept_prob, axis=(0, 1))
    least = 0.01 if swap_share == 1.0 else 0.1
    assert np.all((accept > least) & (accept < 0.95)), accept
    assert_mean(paired_change(np.asarray(after.position)))
    tried = ~np.isnan(np.asarray(info.swap_accept_prob))
    assert_mean(np.asarray(info.is_swap)[tried] - swap_share)
    if swap_share == 0.5:  # both kinds pass, or only one of them were tested
        for kind in (0.0, 1.0):
            assert (
                np.mean(np.asarray(info.swap_accept_prob)[info.is_swap == kind]) > 0.05
            )


def _with_change(change):
    return lambda segment, z, x, at_z, at_x: (
        INCREMENT(segment, z, x, at_z, at_x) + change(segment, z, x, at_x)
    )


BROKEN = {
    "no volume of the noising": (
        "log_weight_increment",
        _with_change(
            lambda segment, z, x, _: (
                0.5 * jnp.sum(jnp.square(x - segment.a * z)) / segment.v
            )
        ),
        0,
        0.0,
    ),
    "no density of the proposal": (
        "log_weight_increment",
        _with_change(
            lambda segment, z, x, at_x: -proposal_misfit(segment, z, x, at_x.score)
        ),
        0,
        0.0,
    ),
    "no density of the upper state": (
        "log_weight_increment",
        _with_change(lambda segment, z, x, at_x: at_x.log_density),
        0,
        0.0,
    ),
    "inner steps not undone": ("_reverse_steps", "forget", 4, 0.0),
    "increment of a proposal for a plain swap": (
        "_increment",
        lambda is_swap, *rest: INCREMENT(*rest),
        0,
        0.5,
    ),
    "increment of a plain swap for a proposal": (
        "_increment",
        lambda is_swap, *rest: OF_EITHER(True, *rest),
        0,
        0.5,
    ),
}
INCREMENT, OF_EITHER = exchange_module.log_weight_increment, exchange_module._increment
REVERSE = exchange_module._reverse_steps


def _forgetful(*arguments):
    """Takes the steps down and forgets them on the way up."""
    steps, calls = REVERSE(*arguments), []

    def once(key, x, z, lower):
        calls.append(1)
        return steps(key, x, z, lower) if len(calls) == 1 else (z, lower)

    return once


@pytest.mark.parametrize("broken", BROKEN)
def test_negative_controls(broken, key, monkeypatch):
    """The same statistic on a broken exchange is far beyond the threshold."""
    name, wrong, num_steps, swap_share = BROKEN[broken]
    wrong = _forgetful if wrong == "forget" else wrong
    monkeypatch.setattr(exchange_module, name, wrong)
    # equal to no other: nothing compiled is shared
    inner = type("Other", (mala.MALA,), {})(num_leapfrog=1)
    after, _ = run(
        key,
        inner,
        num_sweeps=30,
        num_steps=num_steps,
        swap_share=swap_share,
        poor=num_steps > 0,
        # the local moves hide much of a breakage, most of all with inner steps
        n=4 * N if num_steps else 2 * N,
    )
    worst = np.max(np.abs(z_score(paired_change(np.asarray(after.position)))))
    assert worst > 8.0, worst


@pytest.mark.parametrize("swap_share", [0.0, 0.5, 1.0])
def test_increments_give_the_normalising_constants(swap_share, key):
    """The bridge finds every ratio of constants; z = 5.

    From exact draws, hence with independent increments; its terms are bounded, while e^W
    may have no variance. A wrong Jacobian of either direction moves their mean.
    """
    expected = np.append(CONSTANTS, 0.0)
    expected = expected[:-1] - expected[1:]
    for parity in (0, 1):
        step = stepper(MALA, parity + 1, 0, swap_share)
        _, info = step(jr.split(key, N), exact_replicas())
        down, up = (
            np.asarray(increment)[:, -1]
            for increment in (info.down_increment, info.up_increment)
        )
        for k in range(parity, 3, 2):
            log_ratio = expected[k] + 0.2
            left, right = bridge_terms(
                jnp.asarray(down[:, k]), jnp.asarray(up[:, k]), jnp.float32(log_ratio)
            )
            # E_down[sigma(W - C)] = exp(log ratio - C) E_up[sigma(C - W')]
            assert_mean(left - np.exp(expected[k] - log_ratio) * right)


@pytest.mark.parametrize("parity", [0, 1])
def test_only_edges_of_the_parity_are_tried(parity, key):
    step = stepper(MALA, parity + 1, 0, 0.0)  # compiled above
    _, info = step(jr.split(key, N), exact_replicas())
    tried = ~np.isnan(np.asarray(info.swap_accept_prob)[:, -1])
    np.testing.assert_array_equal(tried, [np.arange(3) % 2 == parity] * N)


def test_evaluations_belong_to_the_positions(key):
    after, _ = run(key, n=50)
    expected = jax.vmap(lambda x: evaluate_all(path, plan().levels, x))(after.position)
    jax.tree.map(
        lambda got, there: np.testing.assert_allclose(got, there, rtol=2e-3, atol=2e-3),
        after.evaluation,
        expected,
    )


def test_top_is_drawn_anew_from_the_normal(key):
    after, _ = run(key, num_sweeps=1)
    assert_mean(summaries(after.position[:, -1])[:, :5], [0.0, 0.0, 1.0, 0.0, 1.0])


def test_round_trips_are_counted_along_lineages(key):
    """A trip needs K exchanges up and K down, one a sweep at best: 2 K = 6 sweeps."""
    none, _ = run(key, num_sweeps=4, n=200)
    assert not np.any(none.round_trips)
    some, _ = run(key, num_sweeps=40, n=200)
    assert 0.5 < np.mean(some.round_trips) < 40 / 6
    assert np.all(np.isin(some.phase, [0, 1, 2]))


@pytest.mark.parametrize("num_steps", [0, 1])
def test_costs_what_it_says(num_steps, key):
    calls = []

    def counted(u, level):
        jax.debug.callback(lambda _: calls.append(1), u[0])
        return path(u, level)

    settings = jax.tree.map(jnp.asarray, plan())
    position = exact_replicas()[0]
    evaluation = evaluate_all(path, settings.levels, position)
    replicas = Replicas(position, evaluation, jnp.zeros(4, int), jnp.zeros((), int))

    @jax.jit
    def both(key, replicas):
        noises = draw_sweeps(key, settings, MALA, 2, num_steps)
        for parity in (0, 1):
            noise = jax.tree.map(lambda leaf, i=parity: leaf[i], noises)
            replicas, _ = sweep(
                noise, replicas, counted, settings, MALA, parity, num_steps=num_steps
            )
        return replicas

    jax.block_until_ready(both(key, replicas))
    jax.effects_barrier()
    assert len(calls) == evals_per_sweep(MALA, 3, num_steps)


def test_no_density_is_never_entered(key):
    """A wall: no replica leaves to where the path has no density, whatever it says."""

    def walled(u, level):
        value, score = path(u, level)
        blocked = (u[0] > 0.4) & (level[0].t == 0.0)
        return Evaluation(jnp.where(blocked, -jnp.inf, value), score)

    settings = jax.tree.map(jnp.asarray, plan())
    position = exact_replicas()[0].at[0].set(jnp.array([-0.5, 0.0]))
    evaluation = evaluate_all(walled, settings.levels, position)
    replicas = Replicas(position, evaluation, jnp.zeros(4, int), jnp.zeros((), int))

    def body(replicas, inputs):
        replicas, info = sweep(inputs[0], replicas, walled, settings, MALA, inputs[1])
        return replicas, (replicas.position[0], info.swap_accept_prob)

    _, (bottom, accept) = jax.jit(lambda r, xs: jax.lax.scan(body, r, xs))(
        replicas, (draw_sweeps(key, settings, MALA, 400), jnp.arange(400) % 2)
    )
    assert np.all(np.asarray(bottom)[:, 0] <= 0.4)
    assert np.all(np.isfinite(bottom))
    assert np.nanmean(accept) > 0.05


def without_local_moves(key, phase=(1, 0, 0, 0), parity=0, n=200):
    """One sweep of n exact draws whose local moves have no length, of MALA."""
    settings = jax.tree.map(jnp.asarray, plan())._replace(step_size=jnp.zeros(3))

    def one(key, position):
        evaluation = evaluate_all(path, settings.levels, position)
        replicas = Replicas(position, evaluation, jnp.array(phase), jnp.zeros((), int))
        noise = jax.tree.map(lambda leaf: leaf[0], draw_sweeps(key, settings, MALA, 1))
        return sweep(noise, replicas, path, settings, MALA, parity)

    position = exact_replicas()[:n]
    return position, *jax.jit(jax.vmap(one))(jr.split(key, n), position)


def test_residuals_are_of_the_lower_states_that_were_noised(key):
    """What the proposals are fitted to: x_{k-1} less the mean given u, accepted or not."""
    position, _, info = without_local_moves(key)
    settings = jax.tree.map(jnp.asarray, plan())
    for k in (0, 2):
        edge = jax.tree.map(lambda leaf, k=k: leaf[k], settings.edges)
        upper, score = info.upper[:, k], info.upper_score[:, k]
        mean = jax.vmap(proposal_mean, in_axes=(None, 0, 0))(edge, upper, score)
        np.testing.assert_allclose(
            info.residual[:, k], position[:, k] - mean, atol=1e-4
        )
        levels = jax.tree.map(lambda leaf, k=k: leaf[k + 1], settings.levels)
        there = -upper if k == 2 else jax.vmap(path, (0, None))(upper, levels).score
        np.testing.assert_allclose(score, there, rtol=1e-3, atol=1e-3)


def test_lineages_are_exchanged_and_none_is_copied(key):
    position, after, _ = without_local_moves(key, phase=(1, 5, 7, 0), parity=1)
    moved = np.any(np.asarray(after.position[:, 1] != position[:, 1]), axis=1)
    assert 0.1 < moved.mean() < 0.95
    expected = np.where(moved[:, None], [7, 5], [5, 7])
    np.testing.assert_array_equal(after.phase[:, 1:3], expected)
