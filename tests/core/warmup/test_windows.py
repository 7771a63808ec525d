"""Windows of warm-up: when they end, when all ends, and modes in a frame that moves."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_rtk.core.exchange import modes as modes_module
from numpyro_rtk.core.exchange.modes import empty_mode_tally, fit_modes
from numpyro_rtk.core.exchange.sweep import SweepInfo
from numpyro_rtk.core.warmup.adapt import Frame, no_draws
from numpyro_rtk.core.warmup.exchange import Adaptation
from numpyro_rtk.core.warmup.settings import no_sweeps
from numpyro_rtk.core.warmup.windows import _follow, learn
from tests.core.tallies import DIM, METHOD, K, settings

CHAINS, NUM_WARMUP = 4, 20


def first():
    """Before any draw; the last of three coordinates is an ordinary one."""
    current = settings()
    modes = fit_modes(
        jr.key(0), jr.normal(jr.key(1), (50, DIM)), jnp.full(DIM, 1e-6), dense=True
    )
    frame = Frame(jnp.zeros(1), jnp.ones(1), jnp.zeros(DIM))
    return Adaptation(
        settings=current,
        tally=no_sweeps(current),
        modes=modes,
        regions=modes,
        mode_tally=empty_mode_tally(modes),
        found=None,  # type: ignore[arg-type]
        frame=frame,
        moments=no_draws(frame.loc),
        reference=None,
    )


def one_draw(adapt, iteration):
    """Two sweeps of four chains, with a key of the iteration."""
    keys = jr.split(jr.key(iteration), 4)
    edges, rows = (2, CHAINS, K), (2, CHAINS, K, DIM)
    vectors = [jr.normal(key, rows) for key in keys[:3]]
    info = SweepInfo(
        *(jnp.full(edges, value) for value in (0.9, 0.4, 0.0, 1.0, -1.0)),
        *vectors,
        is_diverging=jnp.zeros((2, CHAINS), bool),
    )
    draws = jr.normal(keys[3], (CHAINS, DIM))
    ordinary, has_prior = 3.0 * draws[:, -1:], np.array([True])
    return learn(
        adapt,
        METHOD,
        NUM_WARMUP,
        iteration,
        info,
        vectors[2],
        draws,
        ordinary,
        has_prior,
    )


def test_nothing_is_learned_after_the_last_draw_of_warm_up():
    """Windows end with the draws 2, 3, 4, 5, 7, 12 and 18 of 20; then sums go on."""
    adapt, ends = first(), []
    step = jax.jit(one_draw)
    for i in range(NUM_WARMUP + 5):
        before, adapt = adapt, step(adapt, jnp.asarray(i))
        if i >= NUM_WARMUP:
            jax.tree.map(np.testing.assert_array_equal, adapt, before)
        elif adapt.tally.num_states == 0.0:
            ends.append(i + 1)
            assert adapt.moments.count == 0
        else:
            assert adapt.tally.num_states > before.tally.num_states
            assert adapt.moments.count == before.moments.count + CHAINS
    assert ends == [2, 3, 4, 5, 7, 12, 18]
    assert adapt.frame.scale[0] > 2.0  # draws of spread 3 have widened it


@pytest.mark.parametrize("dense", [False, True])
def test_modes_follow_a_frame_that_moves(dense):
    """The same law of unconstrained values: a point's density, and the Jacobian."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(200, DIM)) * [1.0, 0.5, 2.0], jnp.float32)
    modes = fit_modes(jr.key(0), x, jnp.full(DIM, 1e-6), dense=dense)
    origin = jnp.zeros(DIM)
    old = Frame(jnp.array([0.3, -1.0]), jnp.array([1.0, 2.0]), origin)
    new = Frame(jnp.array([0.8, 1.5]), jnp.array([3.0, 2.5]), origin)
    log_q = jax.vmap(
        lambda modes, z: jax.nn.logsumexp(modes_module._by_component(modes, z)),
        in_axes=(None, 0),
    )
    there = jax.vmap(lambda z: new.scaled(old.unscaled(z)))(x[:50])
    jacobian = np.sum(np.log(np.asarray(old.scale) / np.asarray(new.scale)))
    np.testing.assert_allclose(
        log_q(_follow(modes, old, new), there) + jacobian,
        log_q(modes, x[:50]),
        atol=1e-2,
    )
