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
from numpyro_rtk.core.exchange import Edges, SweepInfo, bridge_terms
from numpyro_rtk.core.segment import noising_between

__all__ = [
    "LEAST_ACCEPTANCE",
    "LadderAdapt",
    "Tally",
    "add_sweep",
    "diagonal_of",
    "edges_of",
    "empty_tally",
    "first_settings",
    "next_settings",
    "suggest_levels",
]

# What is set before the first window counts like a window of this many trials; of the
# curvature, which follows the levels, what was set before each window does.
_PRIOR_COUNT = 10.0
# Once levels move, what was seen before counts by this much.
_MEMORY = 0.5
# Where levels may lie: interpolation runs in log(r**2 + this**2), which level 0 has too.
_SMALLEST_NOISE = 0.02
# No edge counts as easier than this, so that levels cannot run away from it.
_SMALLEST_REJECTION = 0.02
# Nor as harder than this: the spread of its works would be infinite.
_LARGEST_REJECTION = 1.0 - 1e-4
# Below this mean acceptance of the exchanges there are too few levels.
LEAST_ACCEPTANCE = 0.3
# Standard deviation of normal works at which half of the exchanges are accepted.
_SPREAD_AT_HALF = 1.349


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

    @property
    def step_size(self) -> jax.Array:
        """Local step sizes in force, ``(K,)``."""
        return self.steps.current


class Tally(NamedTuple):
    """Sums over the sweeps of a window; ``count`` is that of an edge's trials ``(K,)``.

    ``e`` is the residual of the start's mean, ``u`` the noised state, ``s`` its score + u;
    ``sum_scores`` sums ``s s^T`` over the states of each level, ``num_states`` of them.
    """

    count: jax.Array
    rejection: jax.Array
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
    pull = info.upper_score + info.upper
    e, u, s = map(clean, (info.residual, info.upper, pull))
    down, up = bridge_terms(info.down_work, info.up_work, centre[None])
    dot = lambda p, q: jnp.sum(p * q, axis=(0, 2))
    squares = "cka,cka->ka" if tally.sum_ee.ndim == 2 else "cka,ckb->kab"
    new = Tally(
        count=jnp.sum(one, axis=0),
        rejection=jnp.sum(clean(1.0 - info.swap_accept_prob), axis=0),
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
    step_size: float,
    *,
    dense: bool = True,
) -> LadderAdapt:
    """Before any sweep: Tweedie's mean and an analytic diagonal covariance.

    Args:
        times: ladder, ``(K + 1,)``.
        likelihood_variance: c.
        start_variance: of each edge, in units of ``v``, ``(K, dim)``.
        curvature: mean squared score of levels 0 to K - 1, ``(K, dim)``.
        step_size: of the local moves.
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
    wide = _like(width, settings.root)
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
    settings: LadderAdapt, tally: Tally, *, move_levels: bool | jax.Array = True
) -> LadderAdapt:
    """Settings after a window; where it holds no draw, nearly those before.

    Args:
        settings: in force in the window.
        tally: its sums.
        move_levels: whether the ladder may move as well.
    """
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


def _rejection(tally: Tally) -> jax.Array:
    mean = tally.rejection / jnp.maximum(tally.count, 1.0)
    return jnp.where(tally.count > 0, mean, 0.5)


def _spread(accept_prob: jax.Array | np.ndarray) -> jax.Array:
    """Standard deviation s of normal works that are accepted so often, 2 Phi(-s / 2).

    It grows with an edge's width for good. The acceptance itself ends at 0: a gap that
    nothing passes would look no worse than its neighbours.
    """
    return -2.0 * ndtri(0.5 * accept_prob)


def _fit_starts(settings: LadderAdapt, tally: Tally) -> LadderAdapt:
    """Least squares of the residual on u and s (two factors for all coordinates)."""
    edges = edges_of(settings)
    n = jnp.maximum(tally.count, 1.0)
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
    usable = jnp.isfinite(fit_x) & jnp.isfinite(fit_s) & (tally.count > 1)
    fit_x, fit_s = (jnp.where(usable, fit, 0.0) for fit in (fit_x, fit_s))
    count = settings.count + tally.count
    trust = tally.count / count
    change_x, change_s = trust * fit_x, trust * fit_s
    shift = e - (change_x * x_unit)[:, None] * u - (change_s * s_unit)[:, None] * s
    width = jnp.sqrt(edges.v)
    product = e**2 if tally.sum_ee.ndim == 2 else e[:, :, None] * e[:, None, :]
    around = tally.sum_ee / _like(n, tally.sum_ee) - product
    # what the new factors explain is no longer around: of all directions alike
    explained = fit_x * eu + fit_s * es
    variance = jnp.sum(diagonal_of(around), axis=-1)
    left = 1.0 - jnp.clip(explained / jnp.maximum(variance, 1e-30), 0.0, 0.99)
    seen = _shrunk(around * _like(left / jnp.square(width), around), n)
    weight = _like(trust, around)
    return settings._replace(
        mean_x=settings.mean_x + change_x,
        mean_score=settings.mean_score + change_s,
        shift=settings.shift + trust[:, None] * shift / width[:, None],
        covariance=weight * seen + (1.0 - weight) * settings.covariance,
        count=count,
    )


def _fit_curvature(settings: LadderAdapt, tally: Tally) -> LadderAdapt:
    n = tally.num_states
    seen = _shrunk(tally.sum_scores / jnp.maximum(n, 1.0), n)
    weight = n / (n + _PRIOR_COUNT)
    return settings._replace(
        curvature=weight * seen + (1.0 - weight) * settings.curvature
    )


def _shrunk(covariance: jax.Array, count: jax.Array) -> jax.Array:
    """Correlations pulled to 0 as far as they may be sampling noise.

    n draws of d coordinates give d (d - 1) spurious squared correlations of 1 / n each:
    at d = 64 a few hundred draws of a full covariance would cost an exchange several
    nats. The factor is the one of least expected squared error (Schafer & Strimmer,
    *Statistical Applications in Genetics and Molecular Biology*, 2005).
    """
    if covariance.ndim == 2:
        return covariance
    dim = covariance.shape[-1]
    variance = jnp.maximum(jnp.diagonal(covariance, axis1=-2, axis2=-1), 1e-12)
    sd = jnp.sqrt(variance)
    correlation = covariance / (sd[:, :, None] * sd[:, None, :])
    off = 1.0 - jnp.eye(dim, dtype=covariance.dtype)[None]
    observed = jnp.sum(jnp.square(correlation) * off, axis=(-2, -1))
    spurious = dim * (dim - 1.0) / jnp.maximum(count, 1.0)
    keep = jnp.clip(1.0 - spurious / jnp.maximum(observed, 1e-12), 0.0, 1.0)
    return covariance * (1.0 - off + jnp.reshape(keep, (-1, 1, 1)) * off)


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
    rejection = jnp.clip(_rejection(tally), _SMALLEST_REJECTION, _LARGEST_REJECTION)
    share = jnp.sqrt(_spread(1.0 - rejection))
    cumulative = jnp.concatenate([jnp.zeros(1, share.dtype), jnp.cumsum(share)])
    old_index = jnp.arange(num_levels + 1, dtype=share.dtype)
    goal = jnp.linspace(0.0, 1.0, num_levels + 1, dtype=share.dtype) * cumulative[-1]
    index = jnp.interp(goal, cumulative, old_index)
    place = jnp.log(jnp.expm1(2.0 * settings.times) + _SMALLEST_NOISE**2)
    new_place = jnp.interp(index, old_index, place)
    times = 0.5 * jnp.log1p(jnp.maximum(jnp.exp(new_place) - _SMALLEST_NOISE**2, 0.0))
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
    )


def _between(rows: jax.Array, index: jax.Array) -> jax.Array:
    """Linear interpolation of rows at real indices; constant beyond the ends."""
    last = rows.shape[0] - 1
    index = jnp.clip(index, 0.0, float(last))
    low = jnp.clip(jnp.floor(index).astype(int), 0, max(last - 1, 0))
    part = _like(index - low, rows)
    return (1.0 - part) * rows[low] + part * rows[jnp.minimum(low + 1, last)]


def _factorise(settings: LadderAdapt) -> LadderAdapt:
    """Roots of the covariances."""
    if settings.covariance.ndim == 2:
        root = jnp.sqrt(jnp.maximum(settings.covariance, 1e-12))
        scale = jax.lax.rsqrt(jnp.maximum(settings.curvature, 1e-12))
        return settings._replace(root=root, inverse_root=1.0 / root, scale=scale)
    root, inverse_root = _roots(_definite(settings.covariance))
    _, inverse = _roots(_definite(settings.curvature))
    return settings._replace(
        root=root, inverse_root=inverse_root, scale=jnp.swapaxes(inverse, -1, -2)
    )


def _definite(matrices: jax.Array) -> jax.Array:
    """With the little on the diagonal that a Cholesky root in float32 needs."""
    dim = matrices.shape[-1]
    mean = jnp.trace(matrices, axis1=-2, axis2=-1) / dim
    eye = jnp.eye(dim, dtype=matrices.dtype)[None]
    return matrices + (1e-5 * mean + 1e-12)[..., None, None] * eye


def _roots(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lower Cholesky roots of ``(K, dim, dim)``, and their inverses.

    Written out, since two batched LAPACK calls at a time can deadlock on the CPU: each
    waits on the one thread pool that both run in (seen with jaxlib 0.10.2, 2 cores).
    """
    dim = matrices.shape[-1]
    index = jnp.arange(dim)

    def column(j, carry):
        rest, root = carry
        pivot = jnp.sqrt(jnp.maximum(rest[:, j, j], 1e-30))[:, None]
        new = jnp.where(index[None] >= j, rest[:, :, j] / pivot, 0.0)
        rest = rest - new[:, :, None] * new[:, None, :]
        return rest, root.at[:, :, j].set(new)

    _, root = jax.lax.fori_loop(0, dim, column, (matrices, jnp.zeros_like(matrices)))

    def row(j, inverse):
        known = jnp.einsum("kb,kbc->kc", root[:, j, :], inverse)  # rows above j
        new = (jnp.where(index == j, 1.0, 0.0)[None] - known) / root[:, j, j][:, None]
        return inverse.at[:, j, :].set(new)

    inverse = jax.lax.fori_loop(0, dim, row, jnp.zeros_like(matrices))
    return root, inverse


def diagonal_of(matrices: jax.Array) -> jax.Array:
    """The variances ``(K, dim)`` of covariances in either form."""
    if matrices.ndim == 2:
        return matrices
    return jnp.diagonal(matrices, axis1=-2, axis2=-1)


def _like(scalars: jax.Array, rows: jax.Array) -> jax.Array:
    """``(K,)`` with as many axes as the rows have."""
    return scalars.reshape((-1,) + (1,) * (rows.ndim - 1))
