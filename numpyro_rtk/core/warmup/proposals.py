r"""The Gaussian proposals of all edges, and their regression on what exchanges showed.

An exchange shows :math:`x_{k-1}` beside the noised u and its score s. A regression of the
first on the other two gives the mean's two factors, its shift and the covariance.

As :math:`a^2 + v = 1`, Tweedie's mean is :math:`(u + v s) / a = a u + (v / a)(s + u)`:
what the standard normal's score would give, and the *pull* of what differs from it. In
these terms, and in units of :math:`\sqrt v`, a proposal that was fitted to one edge holds
for a wider one too, and levels can move up to the reference.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.covariance import diagonal_of, like, rooted, shrunk
from numpyro_rtk.core.segment import Segment, noising_between
from numpyro_rtk.core.warmup.levels import MEMORY, Moved
from numpyro_rtk.core.warmup.tally import Tally

__all__ = [
    "PRIOR_COUNT",
    "Proposals",
    "edges_of",
    "first_proposals",
    "fit_proposals",
    "moved_proposals",
    "with_roots",
]

# What is set before the first window counts like a window of this many trials.
PRIOR_COUNT = 10.0
# At most this part of the residual's variance may be explained by new factors.
_MOST_EXPLAINED = 0.99


class Proposals(NamedTuple):
    """Of every edge, in numbers that its width does not enter.

    Attributes:
        mean_x: factor of ``a * x`` in the mean, ``(K,)``.
        mean_score: factor of the pull, ``v / a * (score + x)``, ``(K,)``.
        shift: of the mean, in units of ``sqrt(v)``, ``(K, dim)``.
        covariance: in units of ``v``, ``(K, dim, dim)`` or ``(K, dim)``.
        root: its lower root.
        inverse_root: the inverse of that.
        count: trials that all this rests on, ``(K,)``.
    """

    mean_x: jax.Array
    mean_score: jax.Array
    shift: jax.Array
    covariance: jax.Array
    root: jax.Array
    inverse_root: jax.Array
    count: jax.Array


def first_proposals(variance: jax.Array, *, dense: bool) -> Proposals:
    """Tweedie's mean and a diagonal covariance.

    Args:
        variance: of each edge, in units of ``v``, ``(K, dim)``.
        dense: whether covariances are matrices.
    """
    one = jnp.ones(variance.shape[0], variance.dtype)
    matrices = jax.vmap(jnp.diag) if dense else (lambda rows: rows)
    return Proposals(
        mean_x=one,
        mean_score=one,
        shift=jnp.zeros(variance.shape, one.dtype),
        covariance=matrices(variance),
        root=matrices(jnp.sqrt(variance)),
        inverse_root=matrices(1.0 / jnp.sqrt(variance)),
        count=PRIOR_COUNT * one,
    )


def edges_of(times: jax.Array, proposals: Proposals) -> Segment:
    """The segments of a ladder ``(K + 1,)``, with their widths put in."""
    a, v = noising_between(times[:-1], times[1:])
    width, pull = jnp.sqrt(v), proposals.mean_score * v / a
    dim = proposals.shift.shape[1]
    log_root = jnp.sum(jnp.log(diagonal_of(proposals.root)), axis=-1)
    wide = like(width, proposals.root)
    return Segment(
        a=a,
        v=v,
        mean_x=proposals.mean_x * a + pull,
        mean_score=pull,
        shift=proposals.shift * width[:, None],
        root=proposals.root * wide,
        inverse_root=proposals.inverse_root / wide,
        log_det=log_root + dim * jnp.log(width),
    )


class _Means(NamedTuple):
    """Of a window's trials: of e, u, s ``(K, dim)``, and their scalar covariances ``(K,)``.

    The latter in units of the proposal's own terms, a u and (v / a) s.
    """

    e: jax.Array
    u: jax.Array
    s: jax.Array
    uu: jax.Array
    us: jax.Array
    ss: jax.Array
    eu: jax.Array
    es: jax.Array


def fit_proposals(proposals: Proposals, tally: Tally, edges: Segment) -> Proposals:
    """Least squares of the residual e on u and s: two factors for all coordinates.

    Args:
        proposals: in force in the window.
        tally: the window's sums.
        edges: the segments of these proposals.
    """
    n = jnp.maximum(tally.count_rtk, 1.0)
    means = _means_of(tally, edges, n)
    factors = _two_factors(means, edges.v * PRIOR_COUNT / n, tally.count_rtk > 1)
    count = proposals.count + tally.count_rtk
    trust = tally.count_rtk / count  # the rest is what was known before
    change_x, change_score = (trust * factor for factor in factors)
    in_x = (change_x * edges.a)[:, None] * means.u
    in_score = (change_score * (edges.v / edges.a))[:, None] * means.s
    shift = means.e - in_x - in_score
    width = jnp.sqrt(edges.v)
    seen = _left_over(tally, means, factors, n, width)
    weight = like(trust, seen)
    return proposals._replace(
        mean_x=proposals.mean_x + change_x,
        mean_score=proposals.mean_score + change_score,
        shift=proposals.shift + trust[:, None] * shift / width[:, None],
        covariance=weight * seen + (1.0 - weight) * proposals.covariance,
        count=count,
    )


def _means_of(tally: Tally, edges: Segment, n: jax.Array) -> _Means:
    e, u, s = (x / n[:, None] for x in (tally.sum_e, tally.sum_u, tally.sum_s))
    about = lambda total, p, q: total / n - jnp.sum(p * q, axis=-1)
    x_unit, s_unit = edges.a, edges.v / edges.a
    return _Means(
        e=e,
        u=u,
        s=s,
        uu=about(tally.sum_uu, u, u) * x_unit**2,
        us=about(tally.sum_us, u, s) * x_unit * s_unit,
        ss=about(tally.sum_ss, s, s) * s_unit**2,
        eu=about(tally.sum_eu, e, u) * x_unit,
        es=about(tally.sum_es, e, s) * s_unit,
    )


def _two_factors(means: _Means, ridge: jax.Array, is_known: jax.Array):
    """The normal equations of u and s, solved; 0 where nothing is known, each ``(K,)``.

    A factor that hardly matters is hardly known: by the ridge it stays where it is.
    """
    uu, us, ss = means.uu + ridge, means.us, means.ss + ridge
    determinant = uu * ss - us**2
    fit_x = (means.eu * ss - means.es * us) / determinant
    fit_s = (means.es * uu - means.eu * us) / determinant
    is_usable = jnp.isfinite(fit_x) & jnp.isfinite(fit_s) & is_known
    return tuple(jnp.where(is_usable, fit, 0.0) for fit in (fit_x, fit_s))


def _left_over(tally: Tally, means: _Means, factors, n, width) -> jax.Array:
    """The residual's covariance about its mean, less what the new factors explain."""
    e, (fit_x, fit_s) = means.e, factors
    product = e**2 if tally.sum_ee.ndim == 2 else e[:, :, None] * e[:, None, :]
    around = tally.sum_ee / like(n, tally.sum_ee) - product
    # what is explained goes from all directions alike
    explained = fit_x * means.eu + fit_s * means.es
    variance = jnp.sum(diagonal_of(around), axis=-1)
    part = jnp.clip(explained / jnp.maximum(variance, 1e-30), 0.0, _MOST_EXPLAINED)
    return shrunk(around * like((1.0 - part) / jnp.square(width), around), n)


def moved_proposals(proposals: Proposals, moved: Moved) -> Proposals:
    """Those of edges between levels that have moved; roots are to be taken anew."""
    return proposals._replace(
        mean_x=moved.edges(proposals.mean_x),
        mean_score=moved.edges(proposals.mean_score),
        shift=moved.edges(proposals.shift),
        covariance=moved.edges(proposals.covariance),
        count=MEMORY * moved.edges(proposals.count),
    )


def with_roots(proposals: Proposals) -> Proposals:
    """The same with the roots of its covariances."""
    root, inverse_root = rooted(proposals.covariance)
    return proposals._replace(root=root, inverse_root=inverse_root)
