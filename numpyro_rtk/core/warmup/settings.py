"""Settings of the replica exchange: everything that a plan for sweeps follows from.

They are frozen after warm-up, so the chain is a Markov chain from then on. At the end of
each window of warm-up its sums (``tally.py``) become new ones: *levels* (``levels.py``),
*proposals* (``proposals.py``), *kinds of exchange* (``kinds.py``), *log-ratio estimates*
(``bridge.py``) and, here, *local spreads*: a root of :math:`E[s s^T]^{-1}`, the inverse
mean curvature.

Covariances and their roots are matrices ``(K, dim, dim)``, or diagonals ``(K, dim)``; which
of them follows from the first settings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.covariance import inverse_rooted, shrunk
from numpyro_rtk.core.exchange.bridge import next_log_ratio
from numpyro_rtk.core.exchange.replicas import ExchangePlan
from numpyro_rtk.core.segment import analytic_variance, noising_between
from numpyro_rtk.core.warmup.adapt import StepSize
from numpyro_rtk.core.warmup.kinds import choose_kind, rejection_of_preferred
from numpyro_rtk.core.warmup.levels import Barrier, moved_ladder
from numpyro_rtk.core.warmup.proposals import (
    PRIOR_COUNT,
    Proposals,
    edges_of,
    first_proposals,
    fit_proposals,
    moved_proposals,
    with_roots,
)
from numpyro_rtk.core.warmup.tally import Tally, empty_tally
from numpyro_rtk.noise import noise_variance

__all__ = [
    "LevelsOf",
    "Settings",
    "analytic_settings",
    "first_settings",
    "next_settings",
    "no_sweeps",
    "plan_of",
]

LevelsOf = Callable[[jax.Array, jax.Array], Any]
"""``(times, c) -> levels``, a pytree with the leading axes of the times."""


class Settings(NamedTuple):
    """Settings of the exchange.

    Attributes:
        times: the ladder, ``(K + 1,)``.
        likelihood_variance: c of the posterior path.
        steps: local step sizes and their average, each ``(K,)``.
        proposals: of the edges.
        curvature: ``E[s s^T]`` of every level below the top.
        scale: a root of its inverse.
        log_ratio: log-ratio estimate of each edge, ``(K,)``.
        swap_share: how often an edge tries a plain swap, ``(K,)``.
        barrier: what the population found.
    """

    times: jax.Array
    likelihood_variance: jax.Array
    steps: StepSize
    proposals: Proposals
    curvature: jax.Array
    scale: jax.Array
    log_ratio: jax.Array
    swap_share: jax.Array
    barrier: Barrier

    @property
    def step_size(self) -> jax.Array:
        """Local step sizes in force, ``(K,)``."""
        return self.steps.current


def plan_of(settings: Settings, levels_of: LevelsOf) -> ExchangePlan:
    """What sweeps need, from the settings."""
    return ExchangePlan(
        levels_of(settings.times, settings.likelihood_variance),
        edges_of(settings.times, settings.proposals),
        settings.step_size,
        settings.scale,
        settings.swap_share,
    )


def no_sweeps(settings: Settings) -> Tally:
    """The sums of a window for these settings, before its first sweep."""
    return empty_tally(settings.proposals.shift, settings.proposals.covariance)


def first_settings(
    times: jax.Array,
    likelihood_variance: jax.Array,
    proposal_variance: jax.Array,
    curvature: jax.Array,
    step_size: jax.Array | float,
    *,
    swap_share: float = 0.0,
    dense: bool = True,
) -> Settings:
    """Before any sweep: analytic proposals and diagonal spreads.

    Args:
        times: ladder, ``(K + 1,)``.
        likelihood_variance: c.
        proposal_variance: of each edge, in units of ``v``, ``(K, dim)``.
        curvature: mean squared score of levels 0 to K - 1, ``(K, dim)``.
        step_size: of the local moves.
        swap_share: how often an edge tries a plain swap at first.
        dense: whether covariances are matrices.
    """
    one = jnp.ones(proposal_variance.shape[0], proposal_variance.dtype)
    steps = step_size * one
    matrices = jax.vmap(jnp.diag) if dense else (lambda rows: rows)
    return Settings(
        times=times,
        likelihood_variance=likelihood_variance,
        steps=StepSize(steps, jnp.log(steps)),
        proposals=first_proposals(proposal_variance, dense=dense),
        curvature=matrices(curvature),
        scale=matrices(1.0 / jnp.sqrt(curvature)),
        log_ratio=0.0 * one,
        swap_share=swap_share * one,
        barrier=Barrier(times, jnp.zeros_like(times), jnp.zeros_like(times)),
    )


def analytic_settings(
    times: jax.Array,
    likelihood_variance: jax.Array,
    curvature: jax.Array,
    step_size: jax.Array | float,
    *,
    swap_share: float,
    dense: bool,
) -> Settings:
    """The same, with the proposals' variances from curvatures of all levels.

    Args:
        times: ladder, ``(K + 1,)``.
        likelihood_variance: c.
        curvature: mean squared score of each level, ``(K + 1, dim)``.
        step_size: of the local moves.
        swap_share: how often an edge tries a plain swap at first.
        dense: whether covariances are matrices.
    """
    a, v = noising_between(times[:-1], times[1:])
    variance = analytic_variance(a, v, curvature[1:], noise_variance(times[:-1]))
    return first_settings(
        times,
        likelihood_variance,
        variance / v[:, None],
        curvature[:-1],
        step_size,
        swap_share=swap_share,
        dense=dense,
    )


def next_settings(
    settings: Settings,
    tally: Tally,
    *,
    move_levels: bool | jax.Array = True,
    choose_kinds: bool = False,
    explore: bool | jax.Array = True,
) -> Settings:
    """Settings after a window; where it holds no draw, nearly those before.

    Args:
        settings: in force in the window.
        tally: its sums.
        move_levels: whether the ladder may move as well.
        choose_kinds: whether each edge takes the kind of exchange that passes more often.
        explore: whether it goes on to try the other kind now and then.
    """
    if choose_kinds:
        swap_share = choose_kind(settings.swap_share, tally, explore)
        settings = settings._replace(swap_share=swap_share)
    edges = edges_of(settings.times, settings.proposals)
    settings = settings._replace(
        proposals=fit_proposals(settings.proposals, tally, edges),
        curvature=_fit_curvature(settings.curvature, tally),
        log_ratio=next_log_ratio(
            settings.log_ratio, tally.count, tally.bridge_down, tally.bridge_up
        ),
    )
    moved = _move(settings, tally)
    settings = jax.tree.map(
        lambda new, old: jnp.where(move_levels, new, old), moved, settings
    )
    return settings._replace(
        proposals=with_roots(settings.proposals),
        scale=inverse_rooted(settings.curvature),
    )


def _fit_curvature(curvature: jax.Array, tally: Tally) -> jax.Array:
    """What was set before each window counts too: it has followed the levels."""
    n = tally.num_states
    seen = shrunk(tally.sum_scores / jnp.maximum(n, 1.0), n)
    weight = n / (n + PRIOR_COUNT)
    return weight * seen + (1.0 - weight) * curvature


def _move(settings: Settings, tally: Tally) -> Settings:
    """The ladder moved; what belongs to a level or an edge moves along."""
    rejection = rejection_of_preferred(settings.swap_share, tally)
    moved = moved_ladder(
        settings.times, rejection, settings.barrier, settings.likelihood_variance
    )
    current, log_average = settings.steps
    return settings._replace(
        times=moved.times,
        steps=StepSize(
            jnp.exp(moved.levels(jnp.log(current))), moved.levels(log_average)
        ),
        proposals=moved_proposals(settings.proposals, moved),
        curvature=moved.levels(settings.curvature),
        log_ratio=moved.totals(settings.log_ratio),
        swap_share=moved.edges(settings.swap_share),
    )
