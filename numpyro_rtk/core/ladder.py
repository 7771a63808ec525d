r"""Warm-up of the replica exchange: levels, starts, local spreads, bridge centres.

Sweeps feed sums (:class:`Tally`); at the end of a window they become new settings
(:class:`LadderAdapt`), which everything in an :class:`ExchangePlan` follows from. All of
it is pure and frozen after warm-up, so the chain is a Markov chain from then on.

*Levels* move to where every edge is refused equally often (Syed et al., JRSS-B 2022,
arXiv 1905.02939). *Starts*: :math:`x_{k-1}` is regressed on
the noised u and its score, which gives the mean's two factors, its shift and the
covariance. *Local spreads*: a root of :math:`E[s s^T]^{-1}`, the inverse mean curvature.

As :math:`a^2 + v = 1`, Tweedie's mean is :math:`(u + v s) / a = a u + (v / a)(s + u)`:
what the standard normal's score would give, and the *pull* of what differs from it. In
these terms, and in units of :math:`\sqrt v`, a start that was fitted to one edge holds for
a wider one too, and levels can move up to the reference.

Covariances and their roots are matrices ``(K, dim, dim)``, or diagonals ``(K, dim)``; which
of them follows from the first settings.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from numpyro_rtk.core.adapt import StepSize
from numpyro_rtk.core.covariance import definite, diagonal_of, like, roots, shrunk
from numpyro_rtk.core.exchange import Edges, SweepInfo, bridge_terms
from numpyro_rtk.core.segment import noising_between

__all__ = [
    "LEAST_ACCEPTANCE",
    "LEAST_SHARE",
    "Barrier",
    "LadderAdapt",
    "Tally",
    "add_sweep",
    "edges_of",
    "empty_tally",
    "first_settings",
    "levels_by_barrier",
    "next_settings",
    "place_of",
    "suggest_levels",
]

# What is set before the first window counts like a window of this many trials; of the
# curvature, which follows the levels, what was set before each window does.
_PRIOR_COUNT = 10.0
# Once levels move, what was seen before counts by this much.
_MEMORY = 0.5
# Where levels may lie: interpolation runs in log(r**2 + r_0**2), which level 0 has too;
# r_0**2 is this, or a part of the likelihood's variance where that is smaller.
_SMALLEST_VARIANCE = 0.02**2
_PART_OF_LIKELIHOOD = 0.1
# Levels move by what the draws are refused, and by this part by what the whole population
# found hard: where the draws hold one mode alone, its narrow part must not take them all.
_SHARE_OF_POPULATION = 0.1
# While warm-up explores, an edge tries its worse kind of exchange so often.
LEAST_SHARE = 0.1
# A plain swap must pass more often by this to be preferred, and by so many standard errors:
# it is tried seldom, and of many edges one would pass by chance.
_MARGIN, _BEYOND_CHANCE = 0.02, 2.0
# No edge counts as easier than this, so that levels cannot run away from it.
_SMALLEST_REJECTION = 0.02
# Nor as harder than this: the spread of its works would be infinite.
_LARGEST_REJECTION = 1.0 - 1e-4
# Below this mean acceptance of the exchanges there are too few levels.
LEAST_ACCEPTANCE = 0.3
# Standard deviation of normal works at which half of the exchanges are accepted.
_SPREAD_AT_HALF = 1.349


class Barrier(NamedTuple):
    """How hard the ladder is from level 0 up to a time, in no unit; each ``(L + 1,)``.

    ``times`` increase (or stay), ``height`` is 0 at level 0; the log ratio of normalising
    constants, of level 0 to the time, is ``log_ratio``.
    """

    times: jax.Array
    height: jax.Array
    log_ratio: jax.Array


class LadderAdapt(NamedTuple):
    """Settings of the exchange; dimensionless where an edge's width enters.

    Attributes:
        times: the ladder, ``(K + 1,)``.
        likelihood_variance: c of the posterior path.
        steps: local step sizes and their average, each ``(K,)``.
        mean_x: factor of ``a * x`` in the start's mean, ``(K,)``.
        mean_score: factor of the pull, ``v / a * (score + x)``, ``(K,)``.
        shift: in units of ``sqrt(v)``, ``(K, dim)``.
        covariance: of the start, in units of ``v``.
        count: trials that these four rest on, ``(K,)``.
        root: its lower root.
        inverse_root: the inverse of that.
        curvature: ``E[s s^T]`` of every level below the top.
        scale: a root of its inverse.
        centre: C of each edge's bridge, ``(K,)``.
        swap_share: how often an edge tries a plain swap, ``(K,)``.
        barrier: what the population found, see :class:`Barrier`.
    """

    times: jax.Array
    likelihood_variance: jax.Array
    steps: StepSize
    mean_x: jax.Array
    mean_score: jax.Array
    shift: jax.Array
    covariance: jax.Array
    count: jax.Array
    root: jax.Array
    inverse_root: jax.Array
    curvature: jax.Array
    scale: jax.Array
    centre: jax.Array
    swap_share: jax.Array
    barrier: "Barrier"

    @property
    def step_size(self) -> jax.Array:
        """Local step sizes in force, ``(K,)``."""
        return self.steps.current


class Tally(NamedTuple):
    """Sums over the sweeps of a window; ``count`` is that of an edge's trials ``(K,)``.

    ``count_rtk`` and ``rejection_rtk`` are of those that were no plain swaps; ``e`` is the
    residual of the start's mean, ``u`` the noised state, ``s`` its score + u;
    ``sum_scores`` sums ``s s^T`` over the states of each level, ``num_states`` of them.
    """

    count: jax.Array
    rejection: jax.Array
    count_rtk: jax.Array
    rejection_rtk: jax.Array
    sum_e: jax.Array
    sum_u: jax.Array
    sum_s: jax.Array
    sum_ee: jax.Array
    sum_eu: jax.Array
    sum_es: jax.Array
    sum_uu: jax.Array
    sum_us: jax.Array
    sum_ss: jax.Array
    bridge_down: jax.Array
    bridge_up: jax.Array
    sum_scores: jax.Array
    num_states: jax.Array


def empty_tally(settings: LadderAdapt) -> Tally:
    """Zeros for the edges of these settings."""
    scalar = jnp.zeros_like(settings.mean_x)
    vector = jnp.zeros_like(settings.shift)
    matrix = jnp.zeros_like(settings.covariance)
    return Tally(
        count=scalar,
        rejection=scalar,
        count_rtk=scalar,
        rejection_rtk=scalar,
        sum_e=vector,
        sum_u=vector,
        sum_s=vector,
        sum_ee=matrix,
        sum_eu=scalar,
        sum_es=scalar,
        sum_uu=scalar,
        sum_us=scalar,
        sum_ss=scalar,
        bridge_down=scalar,
        bridge_up=scalar,
        sum_scores=matrix,
        num_states=jnp.zeros((), scalar.dtype),
    )


def add_sweep(
    tally: Tally, info: SweepInfo, scores: jax.Array, centre: jax.Array
) -> Tally:
    """Add the same sweep of several chains.

    Args:
        tally: the sums.
        info: with a leading axis of chains; NaN where an edge was not tried.
        scores: of the replicas below the top after it, ``(chains, K, dim)``.
        centre: C in force.
    """
    tried = ~jnp.isnan(info.swap_accept_prob)
    one = tried.astype(scores.dtype)
    clean = lambda x: jnp.where(
        tried.reshape(tried.shape + (1,) * (x.ndim - 2)) & jnp.isfinite(x), x, 0.0
    )
    # a plain swap shows nothing of the Gaussian start
    by_rtk = tried & (info.is_swap == 0.0)
    of_rtk = lambda x: jnp.where(
        by_rtk.reshape(by_rtk.shape + (1,) * (x.ndim - 2)), clean(x), 0.0
    )
    pull = info.upper_score + info.upper
    e, u, s = map(of_rtk, (info.residual, info.upper, pull))
    rejection = clean(1.0 - info.swap_accept_prob)
    down, up = bridge_terms(info.down_work, info.up_work, centre[None])
    dot = lambda p, q: jnp.sum(p * q, axis=(0, 2))
    squares = "cka,cka->ka" if tally.sum_ee.ndim == 2 else "cka,ckb->kab"
    new = Tally(
        count=jnp.sum(one, axis=0),
        rejection=jnp.sum(rejection, axis=0),
        count_rtk=jnp.sum(by_rtk.astype(scores.dtype), axis=0),
        rejection_rtk=jnp.sum(of_rtk(rejection), axis=0),
        sum_e=jnp.sum(e, axis=0),
        sum_u=jnp.sum(u, axis=0),
        sum_s=jnp.sum(s, axis=0),
        sum_ee=jnp.einsum(squares, e, e),
        sum_eu=dot(e, u),
        sum_es=dot(e, s),
        sum_uu=dot(u, u),
        sum_us=dot(u, s),
        sum_ss=dot(s, s),
        bridge_down=jnp.sum(clean(down), axis=0),
        bridge_up=jnp.sum(clean(up), axis=0),
        sum_scores=jnp.einsum(squares, scores, scores),
        num_states=jnp.asarray(scores.shape[0], scores.dtype),
    )
    return jax.tree.map(jnp.add, tally, new)


def first_settings(
    times: jax.Array,
    likelihood_variance: jax.Array,
    start_variance: jax.Array,
    curvature: jax.Array,
    step_size: jax.Array | float,
    *,
    swap_share: float = 0.0,
    dense: bool = True,
) -> LadderAdapt:
    """Before any sweep: Tweedie's mean and an analytic diagonal covariance.

    Args:
        times: ladder, ``(K + 1,)``.
        likelihood_variance: c.
        start_variance: of each edge, in units of ``v``, ``(K, dim)``.
        curvature: mean squared score of levels 0 to K - 1, ``(K, dim)``.
        step_size: of the local moves.
        swap_share: how often an edge tries a plain swap at first.
        dense: whether covariances are matrices.
    """
    num_levels, dim = start_variance.shape
    one = jnp.ones(num_levels, start_variance.dtype)
    steps = step_size * one
    matrices = jax.vmap(jnp.diag) if dense else (lambda rows: rows)
    return LadderAdapt(
        times=times,
        likelihood_variance=likelihood_variance,
        steps=StepSize(steps, jnp.log(steps)),
        mean_x=one,
        mean_score=one,
        shift=jnp.zeros((num_levels, dim), one.dtype),
        covariance=matrices(start_variance),
        count=_PRIOR_COUNT * one,
        root=matrices(jnp.sqrt(start_variance)),
        inverse_root=matrices(1.0 / jnp.sqrt(start_variance)),
        curvature=matrices(curvature),
        scale=matrices(1.0 / jnp.sqrt(curvature)),
        centre=0.0 * one,
        swap_share=swap_share * one,
        barrier=Barrier(times, jnp.zeros_like(times), jnp.zeros_like(times)),
    )


def edges_of(settings: LadderAdapt) -> Edges:
    """The edges with their widths put in."""
    t = settings.times
    a, v = noising_between(t[:-1], t[1:])
    width, pull = jnp.sqrt(v), settings.mean_score * v / a
    dim = settings.shift.shape[1]
    log_det = jnp.sum(jnp.log(diagonal_of(settings.root)), axis=-1) + dim * jnp.log(
        width
    )
    wide = like(width, settings.root)
    return Edges(
        a=a,
        v=v,
        mean_x=settings.mean_x * a + pull,
        mean_score=pull,
        shift=settings.shift * width[:, None],
        root=settings.root * wide,
        inverse_root=settings.inverse_root / wide,
        log_det=log_det,
    )


def next_settings(
    settings: LadderAdapt,
    tally: Tally,
    *,
    move_levels: bool | jax.Array = True,
    choose_kind: bool = False,
    explore: bool | jax.Array = True,
) -> LadderAdapt:
    """Settings after a window; where it holds no draw, nearly those before.

    Args:
        settings: in force in the window.
        tally: its sums.
        move_levels: whether the ladder may move as well.
        choose_kind: whether each edge takes the kind of exchange that passes more often.
        explore: whether it goes on to try the other kind now and then.
    """
    if choose_kind:
        settings = settings._replace(swap_share=_choose_kind(settings, tally, explore))
    settings = _fit_starts(settings, tally)
    settings = _fit_curvature(settings, tally)
    settings = settings._replace(centre=_fit_centre(settings, tally))
    moved = _move_levels(settings, tally)
    settings = jax.tree.map(
        lambda new, old: jnp.where(move_levels, new, old), moved, settings
    )
    return _factorise(settings)


def suggest_levels(accept_prob: jax.Array | np.ndarray) -> int:
    """Number of levels at which edges would accept about half.

    Args:
        accept_prob: mean acceptance of each edge, ``(K,)``.
    """
    accept = np.clip(np.asarray(accept_prob, float), 1e-6, 1.0 - 1e-6)
    spread = np.asarray(_spread(accept))
    return int(np.ceil(len(accept) * spread.mean() / _SPREAD_AT_HALF))


def _rejection(settings: LadderAdapt, tally: Tally) -> jax.Array:
    """Of the kind of exchange that each edge prefers.

    Trials of the other end with warm-up: levels that made room for them, where a plain swap
    hardly ever passes, would be lacking elsewhere.
    """
    by_swap = settings.swap_share > 0.5
    count = jnp.where(by_swap, tally.count - tally.count_rtk, tally.count_rtk)
    total = jnp.where(
        by_swap, tally.rejection - tally.rejection_rtk, tally.rejection_rtk
    )
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), 0.5)


def _spread(accept_prob: jax.Array | np.ndarray) -> jax.Array:
    """Standard deviation s of normal works that are accepted so often, 2 Phi(-s / 2).

    It grows with an edge's width for good. The acceptance itself ends at 0: a gap that
    nothing passes would look no worse than its neighbours.
    """
    return -2.0 * ndtri(0.5 * accept_prob)


def _choose_kind(settings: LadderAdapt, tally: Tally, explore) -> jax.Array:
    """How often each edge tries the plain swap, by what passed in the window."""
    count = tally.count - tally.count_rtk
    by_swap, swap_error = _passed(count, tally.rejection - tally.rejection_rtk)
    by_rtk, rtk_error = _passed(tally.count_rtk, tally.rejection_rtk)
    by_chance = _BEYOND_CHANCE * jnp.hypot(swap_error, rtk_error)
    is_better = by_swap > by_rtk + _MARGIN + by_chance
    is_known = (count > 1.0) & (tally.count_rtk > 1.0)
    prefers_swap = jnp.where(is_known, is_better, settings.swap_share > 0.5)
    least = jnp.where(explore, LEAST_SHARE, 0.0)
    return jnp.where(prefers_swap, 1.0 - least, least)


def _passed(count: jax.Array, rejection: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean acceptance, and its standard error at most."""
    count = jnp.maximum(count, 1.0)
    mean = jnp.clip(1.0 - rejection / count, 0.0, 1.0)
    return mean, jnp.sqrt(mean * (1.0 - mean) / count)


def _fit_starts(settings: LadderAdapt, tally: Tally) -> LadderAdapt:
    """Least squares of the residual on u and s (two factors for all coordinates)."""
    edges = edges_of(settings)
    n = jnp.maximum(tally.count_rtk, 1.0)
    e, u, s = (x / n[:, None] for x in (tally.sum_e, tally.sum_u, tally.sum_s))
    inner = lambda total, p, q: total / n - jnp.sum(p * q, axis=-1)
    # in units of the start's own: a u, v s / a
    x_unit, s_unit = edges.a, edges.v / edges.a
    # a factor that hardly matters is hardly known: it stays where it is
    ridge = edges.v * _PRIOR_COUNT / n
    uu = inner(tally.sum_uu, u, u) * x_unit**2 + ridge
    us = inner(tally.sum_us, u, s) * x_unit * s_unit
    ss = inner(tally.sum_ss, s, s) * s_unit**2 + ridge
    eu = inner(tally.sum_eu, e, u) * x_unit
    es = inner(tally.sum_es, e, s) * s_unit
    determinant = uu * ss - us**2
    fit_x = (eu * ss - es * us) / determinant
    fit_s = (es * uu - eu * us) / determinant
    usable = jnp.isfinite(fit_x) & jnp.isfinite(fit_s) & (tally.count_rtk > 1)
    fit_x, fit_s = (jnp.where(usable, fit, 0.0) for fit in (fit_x, fit_s))
    count = settings.count + tally.count_rtk
    trust = tally.count_rtk / count
    change_x, change_s = trust * fit_x, trust * fit_s
    shift = e - (change_x * x_unit)[:, None] * u - (change_s * s_unit)[:, None] * s
    width = jnp.sqrt(edges.v)
    product = e**2 if tally.sum_ee.ndim == 2 else e[:, :, None] * e[:, None, :]
    around = tally.sum_ee / like(n, tally.sum_ee) - product
    # what the new factors explain is no longer around: of all directions alike
    explained = fit_x * eu + fit_s * es
    variance = jnp.sum(diagonal_of(around), axis=-1)
    left = 1.0 - jnp.clip(explained / jnp.maximum(variance, 1e-30), 0.0, 0.99)
    seen = shrunk(around * like(left / jnp.square(width), around), n)
    weight = like(trust, around)
    return settings._replace(
        mean_x=settings.mean_x + change_x,
        mean_score=settings.mean_score + change_s,
        shift=settings.shift + trust[:, None] * shift / width[:, None],
        covariance=weight * seen + (1.0 - weight) * settings.covariance,
        count=count,
    )


def _fit_curvature(settings: LadderAdapt, tally: Tally) -> LadderAdapt:
    n = tally.num_states
    seen = shrunk(tally.sum_scores / jnp.maximum(n, 1.0), n)
    weight = n / (n + _PRIOR_COUNT)
    return settings._replace(
        curvature=weight * seen + (1.0 - weight) * settings.curvature
    )


def _fit_centre(settings: LadderAdapt, tally: Tally) -> jax.Array:
    """One step of Bennett's fixed point."""
    small = 1e-3 * jnp.maximum(tally.count, 1.0)
    change = jnp.log(tally.bridge_down + small) - jnp.log(tally.bridge_up + small)
    return settings.centre + jnp.where(tally.count > 0, change, 0.0)


def _move_levels(settings: LadderAdapt, tally: Tally) -> LadderAdapt:
    """Levels at equal shares of the barrier; what belongs to a level moves along."""
    num_levels = settings.mean_x.shape[0]
    # The works' spread grows about as the square of a narrow edge's width (its start is
    # right to first order), so the roots are what adds up.
    rejection = jnp.clip(
        _rejection(settings, tally), _SMALLEST_REJECTION, _LARGEST_REJECTION
    )
    share = jnp.sqrt(_spread(1.0 - rejection))
    cumulative = jnp.concatenate([jnp.zeros(1, share.dtype), jnp.cumsum(share)])
    old_index = jnp.arange(num_levels + 1, dtype=share.dtype)
    place = place_of(settings.times, settings.likelihood_variance)
    new_place = _equal_shares(place, cumulative, settings)
    index = jnp.interp(new_place, place, old_index)
    times = _time_at(new_place, settings.likelihood_variance)
    times = times.at[0].set(0.0).at[-1].set(settings.times[-1])

    at_levels = index[:-1]
    at_edges = 0.5 * (index[:-1] + index[1:]) - 0.5
    total = jnp.concatenate([jnp.zeros(1, share.dtype), jnp.cumsum(settings.centre)])
    log_step = _between(settings.steps.log_average, at_levels)
    return settings._replace(
        times=times,
        steps=StepSize(
            jnp.exp(_between(jnp.log(settings.steps.current), at_levels)), log_step
        ),
        mean_x=_between(settings.mean_x, at_edges),
        mean_score=_between(settings.mean_score, at_edges),
        shift=_between(settings.shift, at_edges),
        covariance=_between(settings.covariance, at_edges),
        count=_MEMORY * _between(settings.count, at_edges),
        curvature=_between(settings.curvature, at_levels),
        centre=jnp.diff(jnp.interp(index, old_index, total)),
        swap_share=_between(settings.swap_share, at_edges),
    )


def place_of(times: jax.Array, likelihood_variance: jax.Array) -> jax.Array:
    """Where levels lie on the axis that interpolation runs along."""
    smallest = jnp.minimum(
        _SMALLEST_VARIANCE, _PART_OF_LIKELIHOOD * likelihood_variance
    )
    return jnp.log(jnp.expm1(2.0 * times) + smallest)


def _time_at(place: jax.Array, likelihood_variance: jax.Array) -> jax.Array:
    smallest = jnp.exp(place_of(jnp.zeros(()), likelihood_variance))
    return 0.5 * jnp.log1p(jnp.maximum(jnp.exp(place) - smallest, 0.0))


def levels_by_barrier(
    barrier: Barrier, likelihood_variance: jax.Array, num: int
) -> jax.Array:
    """``num`` times from 0 to the barrier's last, at equal shares of its height."""
    theirs = place_of(barrier.times, likelihood_variance)
    goal = jnp.linspace(0.0, 1.0, num) * barrier.height[-1]
    # strictly increasing also where nothing was hard
    rising = barrier.height + 1e-6 * barrier.height[-1] * (theirs - theirs[0])
    goal = goal * rising[-1] / jnp.maximum(barrier.height[-1], 1e-30)
    times = _time_at(jnp.interp(goal, rising, theirs), likelihood_variance)
    return times.at[0].set(0.0).at[-1].set(barrier.times[-1])


def _equal_shares(place, cumulative, settings: LadderAdapt) -> jax.Array:
    """Places of levels between which the draws' barrier and the population's are equal."""
    found = settings.barrier
    theirs = place_of(found.times, settings.likelihood_variance)
    height = found.height[-1]
    weight = jnp.where(height > 0.0, _SHARE_OF_POPULATION, 0.0)
    everywhere = jnp.sort(jnp.concatenate([place, theirs]))
    own = jnp.interp(everywhere, place, cumulative) / cumulative[-1]
    of_all = jnp.interp(everywhere, theirs, found.height) / jnp.maximum(height, 1e-30)
    total = (1.0 - weight) * own + weight * of_all
    return jnp.interp(jnp.linspace(0.0, 1.0, place.shape[0]), total, everywhere)


def _between(rows: jax.Array, index: jax.Array) -> jax.Array:
    """Linear interpolation of rows at real indices; constant beyond the ends."""
    last = rows.shape[0] - 1
    index = jnp.clip(index, 0.0, float(last))
    low = jnp.clip(jnp.floor(index).astype(int), 0, max(last - 1, 0))
    part = like(index - low, rows)
    return (1.0 - part) * rows[low] + part * rows[jnp.minimum(low + 1, last)]


def _factorise(settings: LadderAdapt) -> LadderAdapt:
    """Roots of the covariances."""
    if settings.covariance.ndim == 2:
        root = jnp.sqrt(jnp.maximum(settings.covariance, 1e-12))
        scale = jax.lax.rsqrt(jnp.maximum(settings.curvature, 1e-12))
        return settings._replace(root=root, inverse_root=1.0 / root, scale=scale)
    root, inverse_root = roots(definite(settings.covariance))
    _, inverse = roots(definite(settings.curvature))
    return settings._replace(
        root=root, inverse_root=inverse_root, scale=jnp.swapaxes(inverse, -1, -2)
    )
