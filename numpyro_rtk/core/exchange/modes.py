r"""Jumps between modes: an independence move from a mixture fitted to the population.

Through the ladder a draw changes its mode only as often as a replica takes the other mode
at every level. Where modes have different widths the narrow one is rare at some level (a
tempered mode of relative width :math:`\rho` has :math:`\rho^d` of its weight), and the way
through is narrow. A Gaussian mixture :math:`q` that was fitted to the population, which
came down that way with all its particles, proposes the modes directly:

.. math:: z \sim q, \qquad \text{accepted with}\quad
          \min\Bigl(1, \frac{\pi_0(z)\, q(x)}{\pi_0(x)\, q(z)}\Bigr)

leaves :math:`\pi_0` invariant whatever was fitted (Tierney, *Annals of Statistics* 1994).
It costs one evaluation, and pays where modes are few and about Gaussian; where they are
not, it is refused, and draws change mode by exchanges alone.

Warm-up's draws go on to fit each component: by sums weighted with their responsibilities,
so that one which no draw has visited stays as the population left it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr

from numpyro_rtk.core.annealed import Path
from numpyro_rtk.core.covariance import (
    definite,
    diagonal_of,
    like,
    roots,
    shrunk,
    stretch,
)
from numpyro_rtk.core.exchange.replicas import JumpNoise, Replicas
from numpyro_rtk.core.inner import accept
from numpyro_rtk.core.segment import Evaluation

__all__ = [
    "ModeTally",
    "Modes",
    "add_draws",
    "empty_mode_tally",
    "fit_modes",
    "jump",
    "jump_bottom",
    "log_shares",
    "membership",
    "moved_modes",
    "refit_modes",
]

_LOG_2PI = 1.8378770664093453
NUM_COMPONENTS = 8
_NUM_STEPS = 40  # of EM
# No component is proposed less often, so that a lost mode can be found again.
_LEAST_WEIGHT = 0.02
# A window's draws count against this part of what a component rested on before.
_MEMORY = 0.5
# Covariances known from few points are widened, up to one and this many times.
_MOST_WIDENED = 3.0
# A component with fewer of a window's draws stays as it was.
_VISITED = 1.0


class Modes(NamedTuple):
    """A Gaussian mixture; covariances are matrices or diagonals.

    Attributes:
        log_weight: ``(M,)``, normalised.
        mean: ``(M, dim)``.
        covariance: ``(M, dim, dim)`` or ``(M, dim)``.
        root: its lower root.
        inverse_root: the inverse of that.
        count: points that each component rests on, ``(M,)``.
    """

    log_weight: jax.Array
    mean: jax.Array
    covariance: jax.Array
    root: jax.Array
    inverse_root: jax.Array
    count: jax.Array


class ModeTally(NamedTuple):
    """Sums over draws, each shared out by the components' responsibilities."""

    count: jax.Array
    sum: jax.Array
    square: jax.Array


def fit_modes(
    key: jax.Array,
    x: jax.Array,
    floor: jax.Array,
    *,
    dense: bool,
    num_components: int = NUM_COMPONENTS,
) -> Modes:
    """A mixture by EM from points ``(n, dim)``.

    Seeds are drawn in proportion to their squared distance from those before (k-means++,
    Arthur & Vassilvitskii 2007), so that a small far mode gets one.

    Args:
        key: PRNG key.
        x: the points, of equal weight; repeats are allowed.
        floor: smallest variances, ``(dim,)``.
        dense: whether covariances are matrices.
        num_components: M.
    """
    n, dim = x.shape
    spread = jnp.maximum(jnp.var(x, axis=0), floor)
    keys = jr.split(key, num_components)

    def seed(distance, key):
        chosen = jr.categorical(key, jnp.log(distance + 1e-30))
        new = jnp.sum(jnp.square(x - x[chosen][None]) / spread[None], axis=1)
        return jnp.minimum(distance, new), x[chosen]

    _, mean = jax.lax.scan(seed, jnp.ones(n, x.dtype), keys)
    apart = jnp.sum(jnp.square(x[:, None] - mean[None]) / spread[None, None], axis=-1)
    nearest = jax.nn.one_hot(jnp.argmin(apart, axis=1), num_components, dtype=x.dtype)

    def step(_, shares):
        return jnp.exp(log_shares(_maximise(_sums(shares, x, dense), floor), x))

    shares = jax.lax.fori_loop(0, _NUM_STEPS, step, nearest)
    return _maximise(_sums(shares, x, dense), floor)


def log_shares(modes: Modes, x: jax.Array) -> jax.Array:
    """Log responsibilities of points ``(n, dim)``, ``(n, M)``."""
    return jax.nn.log_softmax(jax.vmap(lambda z: _by_component(modes, z))(x), axis=-1)


def membership(modes: Modes, x: jax.Array) -> jax.Array:
    """1 for the most likely component of points ``(n, dim)``, else 0, ``(n, M)``."""
    most_likely = jnp.argmax(log_shares(modes, x), axis=1)
    return jax.nn.one_hot(most_likely, len(modes.log_weight), dtype=x.dtype)


def jump(
    noise: JumpNoise,
    x: jax.Array,
    evaluation: Evaluation,
    path: Path,
    level,
    modes: Modes,
) -> tuple[jax.Array, Evaluation, jax.Array]:
    """One independence move at a level; one evaluation.

    Returns:
        Position, evaluation, and the probability of acceptance.
    """
    total = jnp.cumsum(jnp.exp(modes.log_weight))
    chosen = jnp.searchsorted(total, noise.choose * total[-1])
    z = modes.mean[chosen] + stretch(modes.root[chosen], noise.normal)
    at_z = path(z, level)
    log_q = lambda point: jax.nn.logsumexp(_by_component(modes, point))
    log_ratio = at_z.log_density - log_q(z) - evaluation.log_density + log_q(x)
    accept_prob = jnp.exp(
        jnp.minimum(jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio), 0.0)
    )
    position, evaluation = accept(
        noise.accept < accept_prob, (z, at_z), (x, evaluation)
    )
    return position, evaluation, accept_prob


def jump_bottom(
    noise: JumpNoise, replicas: Replicas, path: Path, levels, modes: Modes
) -> tuple[Replicas, jax.Array]:
    """A jump of the replica at level 0, and its probability of acceptance."""
    level, x, evaluation = jax.tree.map(
        lambda leaf: leaf[0], (levels, replicas.position, replicas.evaluation)
    )
    x, evaluation, accept_prob = jump(noise, x, evaluation, path, level, modes)
    put = lambda all_levels, one: all_levels.at[0].set(one)
    after = replicas._replace(
        position=put(replicas.position, x),
        evaluation=jax.tree.map(put, replicas.evaluation, evaluation),
    )
    return after, accept_prob


def empty_mode_tally(modes: Modes) -> ModeTally:
    """Zeros for these components."""
    zeros = jnp.zeros_like
    return ModeTally(
        zeros(modes.log_weight), zeros(modes.mean), zeros(modes.covariance)
    )


def add_draws(tally: ModeTally, modes: Modes, x: jax.Array) -> ModeTally:
    """Add draws ``(n, dim)``; sums are about the components' means."""
    shares = jnp.exp(log_shares(modes, x))
    new = _sums(shares, x, modes.covariance.ndim == 3, modes.mean)
    return jax.tree.map(jnp.add, tally, new)


def refit_modes(modes: Modes, tally: ModeTally, floor: jax.Array) -> Modes:
    """The mixture after a window's draws; what none has visited stays as it was."""
    visited = tally.count > _VISITED
    before = jnp.where(visited, _MEMORY, 1.0) * modes.count
    total = before + tally.count
    safe = jnp.where(visited, total, 1.0)
    shift = tally.sum / safe[:, None]
    square = tally.square + modes.covariance * like(before, modes.covariance)
    if square.ndim == 2:
        spread = square / safe[:, None] - shift**2
    else:
        spread = square / safe[:, None, None] - shift[:, :, None] * shift[:, None, :]
    mean = modes.mean + shift
    weight = modes.count / jnp.sum(modes.count) + tally.count / jnp.maximum(
        jnp.sum(tally.count), 1.0
    )
    # what was known before has been widened already
    new = _with_roots(weight, mean, spread, total, floor, tally.count / safe)
    kept = jax.tree.map(lambda a, b: jnp.where(like(visited, a), a, b), new, modes)
    return kept._replace(log_weight=new.log_weight)


def moved_modes(modes: Modes, shift: jax.Array, factor: jax.Array) -> Modes:
    """The same mixture of ``factor * x + shift``, both ``(dim,)``."""
    # along the rows and the columns of matrices; diagonals have one axis less
    rows, columns = factor[None, :, None], factor[None, None, :]
    if modes.covariance.ndim == 2:
        rows, columns = factor[None], factor[None]
    return modes._replace(
        mean=factor[None] * modes.mean + shift[None],
        covariance=modes.covariance * rows * columns,
        root=modes.root * rows,
        inverse_root=modes.inverse_root / columns,
    )


def _by_component(modes: Modes, x: jax.Array) -> jax.Array:
    """``log w_j N(x; ...)``, ``(M,)``."""
    z = jax.vmap(stretch)(modes.inverse_root, x[None] - modes.mean)
    volume = jnp.sum(jnp.log(diagonal_of(modes.inverse_root)), axis=-1)
    return (
        modes.log_weight + volume - 0.5 * (jnp.sum(z**2, axis=-1) + x.size * _LOG_2PI)
    )


def _sums(shares, x, dense: bool, about=None) -> ModeTally:
    """Of points shared out, from ``about`` or the components' own means."""
    count = jnp.sum(shares, axis=0)
    if about is None:
        about = (shares.T @ x) / jnp.maximum(count, 1e-6)[:, None]
        total = about * count[:, None]
    else:
        total = shares.T @ x - about * count[:, None]
    off = x[:, None] - about[None]
    if dense:
        square = jnp.einsum("nm,nma,nmb->mab", shares, off, off)
    else:
        square = jnp.einsum("nm,nma->ma", shares, off**2)
    return ModeTally(count, total, square)


def _maximise(sums: ModeTally, floor: jax.Array) -> Modes:
    safe = jnp.maximum(sums.count, 1e-6)
    mean = sums.sum / safe[:, None]
    return _with_roots(
        sums.count, mean, sums.square / like(safe, sums.square), sums.count, floor
    )


def _with_roots(
    weight, mean, spread, count, floor, part: jax.Array | float = 1.0
) -> Modes:
    """Normalised weights, and covariances that can be drawn from; ``part`` is new."""
    dim = mean.shape[1]
    weight = jnp.where(count > 1.0, weight / jnp.sum(weight), 0.0)
    weight = jnp.maximum(weight, _LEAST_WEIGHT * (count > 1.0)) + 1e-12
    log_weight = jnp.log(weight / jnp.sum(weight))
    # what is known from few points may be wider than it looks: as the predictive law
    wider = 1.0 + part * jnp.minimum(
        (dim + 1.0) / jnp.maximum(count, 1.0), _MOST_WIDENED
    )
    spread = shrunk(spread * like(wider, spread), jnp.maximum(count, 1.0))
    variance = jnp.maximum(diagonal_of(spread), floor[None])
    if spread.ndim == 2:
        root = jnp.sqrt(variance)
        return Modes(log_weight, mean, variance, root, 1.0 / root, count)
    eye = jnp.eye(dim, dtype=mean.dtype)
    spread = spread * (1.0 - eye)[None] + jax.vmap(jnp.diag)(variance)
    sd = jnp.sqrt(variance)
    scaled = spread / (sd[:, :, None] * sd[:, None, :])
    root, inverse = roots(definite(scaled))
    return Modes(
        log_weight, mean, spread, sd[:, :, None] * root, inverse / sd[:, None, :], count
    )
