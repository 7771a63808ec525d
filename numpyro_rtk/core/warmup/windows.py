"""Windows of warm-up: draws are added up, and where a window ends they become settings."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.core.covariance import diagonal_of
from numpyro_rtk.core.exchange.modes import Modes, add_draws, moved_modes, refit_modes
from numpyro_rtk.core.exchange.sweep import SweepInfo
from numpyro_rtk.core.warmup.adapt import (
    Frame,
    adapt_step_size,
    add_draw,
    wider_reference,
)
from numpyro_rtk.core.warmup.exchange import NARROWEST_MODE, Adaptation, Method
from numpyro_rtk.core.warmup.settings import next_settings
from numpyro_rtk.core.warmup.tally import add_sweep

__all__ = ["learn"]

# Windows of warm-up end at these fractions of it; the levels stay after `_LAST_MOVE`, the
# proposals go on to be fitted, and what is left measures the acceptance.
_WINDOW_ENDS = (0.06, 0.11, 0.16, 0.22, 0.29, 0.36, 0.64, 0.92)
_LAST_MOVE = 0.37
_LAST_TRY = 0.9
# Scores count up to so many times the local spread's inverse.
_WILD = 10.0


def learn(
    adapt: Adaptation,
    method: Method,
    num_warmup: int,
    iteration: jax.Array,
    info: SweepInfo,
    scores: jax.Array,
    draws: jax.Array,
    ordinary: jax.Array,
    has_prior: np.ndarray,
) -> Adaptation:
    """One draw of all chains; a window that ends here gives new settings.

    Args:
        adapt: so far.
        method: what the user chose.
        num_warmup: draws of warm-up; beyond it nothing changes.
        iteration: of the draw, from 0.
        info: of its sweeps, leading axes (sweeps, chains).
        scores: of the levels below the top after each, ``(sweeps, chains, K, dim)``.
        draws: positions at level 0, ``(chains, dim)``.
        ordinary: ordinary sites there, unconstrained, ``(chains, num_ordinary)``.
        has_prior: which of them have a prior that the reference was taken from.
    """
    if num_warmup == 0:
        return adapt
    ends = sorted({int(f * num_warmup) for f in _WINDOW_ENDS})
    ends = [end for end in ends if end > 1]

    def learned():
        new = _add(adapt, method, num_warmup, iteration, info, scores, draws, ordinary)
        if not ends:
            return new
        is_end = jnp.any(iteration + 1 == jnp.asarray(ends))
        end = lambda: _end_window(new, method, num_warmup, iteration, has_prior)
        return jax.lax.cond(is_end, end, lambda: new)

    return jax.lax.cond(iteration < num_warmup, learned, lambda: adapt)


def _add(adapt, method, num_warmup, iteration, info, scores, draws, ordinary):
    settings = adapt.settings
    # a few wild scores of a learned network must not set the scale of all
    spread = jnp.sqrt(diagonal_of(settings.curvature))
    widest = _WILD * spread[None, None]  # the same for all sweeps and chains
    scores = jnp.clip(scores, -widest, widest)

    def add(tally, inputs):
        sweeps, states = inputs
        return add_sweep(tally, sweeps, states, settings.log_ratio), None

    tally, _ = jax.lax.scan(add, adapt.tally, (info, scores))
    if method.step_size is None:
        steps = adapt_step_size(
            settings.steps,
            jnp.mean(info.local_accept_prob, axis=(0, 1)),
            method.target_accept_prob,
            iteration,
            num_warmup,
            method.inner.largest_step,
        )
        settings = settings._replace(steps=steps)
    moments = adapt.moments
    if ordinary.shape[1]:
        moments, _ = jax.lax.scan(
            lambda moments, value: (add_draw(moments, value), None), moments, ordinary
        )
    mode_tally = add_draws(adapt.mode_tally, adapt.modes, draws)
    return adapt._replace(
        settings=settings, tally=tally, moments=moments, mode_tally=mode_tally
    )


def _end_window(adapt: Adaptation, method: Method, num_warmup, iteration, has_prior):
    may_move = iteration < _LAST_MOVE * num_warmup
    settings = next_settings(
        adapt.settings,
        adapt.tally,
        move_levels=method.adapt_ladder & may_move,
        choose_kinds=method.exchange == "best",
        explore=iteration < _LAST_TRY * num_warmup,
    )
    floor = NARROWEST_MODE / diagonal_of(settings.curvature)[0]
    modes = refit_modes(adapt.modes, adapt.mode_tally, floor)
    frame, regions = adapt.frame, adapt.regions
    if len(has_prior):
        wider = wider_reference(adapt.moments, frame, has_prior)
        frame = jax.tree.map(partial(jnp.where, may_move), wider, frame)
        follow = lambda modes: _follow(modes, adapt.frame, frame)
        modes, regions = follow(modes), follow(regions)
    return adapt._replace(
        settings=settings,
        tally=jax.tree.map(jnp.zeros_like, adapt.tally),
        modes=modes,
        regions=regions,
        mode_tally=jax.tree.map(jnp.zeros_like, adapt.mode_tally),
        frame=frame,
        moments=jax.tree.map(jnp.zeros_like, adapt.moments),
    )


def _follow(modes: Modes, old: Frame, new: Frame) -> Modes:
    """The modes where the reference of the ordinary sites, which come last, has moved."""
    rest = jnp.zeros(modes.mean.shape[1] - old.loc.shape[0], old.loc.dtype)
    factor = jnp.concatenate([rest + 1.0, old.scale / new.scale])
    shift = jnp.concatenate([rest, (old.loc - new.loc) / new.scale])
    return moved_modes(modes, shift, factor)
