"""Both ways across an edge with inner steps: each the reversal of the other."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from numpyro_rtk.core.exchange import sweep as exchange_module
from numpyro_rtk.core.exchange.bridge import bridge_terms
from numpyro_rtk.core.exchange.neighbours import pairs_of
from numpyro_rtk.core.exchange.replicas import draw_sweeps, evaluate_all
from tests.core.exchange.test_sweep import (
    CONSTANTS,
    MALA,
    _forgetful,
    exact_replicas,
    path,
    plan,
)
from tests.oracles import assert_mean, summaries, z_score

N, NUM_STEPS = 16_000, 4


def differences(key):
    """Of the bridge with functions f of the lower end, edges 0 and 2, ``(N, 7)`` each.

    ``E_down[sigma(W - C) f(z)] = exp(log ratio - C) E_up[sigma(C - W') f(x)]`` from exact
    draws, with z after the inner steps and W' where those that are undone end.
    """

    def one(key, position):
        settings = jax.tree.map(jnp.asarray, plan(poor=True))
        evaluation = evaluate_all(path, settings.levels, position)
        drawn = draw_sweeps(key, settings, MALA, 1, NUM_STEPS)
        noise = jax.tree.map(lambda leaf: leaf[0], drawn)
        tried = exchange_module._tried_edges(noise, settings, 0)
        state = exchange_module._Side(position, evaluation, jnp.zeros(4, int))
        lower, upper = pairs_of(state, 0, 2)
        down, up = exchange_module._both_ways(
            noise, lower, upper, path, settings, MALA, tried, NUM_STEPS
        )
        return down.position, down.increment, lower.position, up.increment

    z, w, x, w_up = jax.jit(jax.vmap(one))(jr.split(key, N), exact_replicas(N))
    constants = np.append(CONSTANTS, 0.0)
    for pair, k in enumerate((0, 2)):
        log_ratio = constants[k] - constants[k + 1]
        sides = bridge_terms(w[:, pair], w_up[:, pair], jnp.float32(log_ratio))
        left, right = (np.asarray(side, float)[:, None] for side in sides)
        yield left * summaries(z[:, pair]) - right * summaries(x[:, pair])


def test_inner_steps_are_undone_on_the_way_up(key):
    """n = 16,000 independent pairs of both ways; z = 5."""
    for difference in differences(key):
        assert_mean(difference)


def test_negative_control_steps_not_undone(key, monkeypatch):
    monkeypatch.setattr(exchange_module, "_reverse_steps", _forgetful)
    worst = max(np.max(np.abs(z_score(d))) for d in differences(key))
    assert worst > 7.0, worst
