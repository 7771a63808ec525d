r"""Conditional sequential Monte Carlo down the ladder: particle Gibbs.

A score network's own *generative chain* goes from :math:`x_K \sim N(0, I)` down by Gaussian
reverse kernels :math:`q_k(x_{k-1} \mid x_k)` (the analytic proposal of a segment: Tweedie's
mean and the best covariance that is the same for all :math:`x_k`). It has a density on
paths, and so has the posterior under it,

.. math:: \pi(x_{0:K}) \propto N(x_K)\,\prod_k q_k(x_{k-1} \mid x_k)\; \ell(x_0) .

With an energy the densities :math:`p_{t_k}` take the place of the chain: the target is then
:math:`p_0(x_0)\,\ell(x_0) \prod_k N(x_k; a x_{k-1}, v)`, whose :math:`x_0` is the posterior
under the learned density itself.

Particles come down under *twisted* targets, which look ahead to the likelihood (Wu et al.
2023, arXiv 2306.17775),

.. math:: \psi_k(x) \approx \int \ell(x_0)\, p(x_0 \mid x)\, dx_0, \qquad \psi_0 = \ell

(see ``twist.py``), from proposals that the twist has moved and narrowed, as it has the
reference at the top. The current path is one of the particles, which stays (Andrieu,
Doucet, Holenstein, JRSS-B 2010), and the next path is drawn backwards among all of them
(Whiteley 2010): this leaves the target invariant for any number of particles, any twist and
any error of the network's. All that a poor twist costs is mixing.
Particles are resampled where their weights have become unequal, and not before: each time
a part of them comes to descend from the current path.

Of a model that is a product over rows, as of a plate, each row has its own weights, is
resampled by itself and takes its own way back: R targets side by side, whose likelihoods
come from one run of the model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.annealed import log_reference
from numpyro_rtk.core.covariance import stretch
from numpyro_rtk.core.inner import draw_numbers
from numpyro_rtk.core.particle_plan import Levels, ParticlePlan
from numpyro_rtk.core.resampling import sample_size
from numpyro_rtk.core.segment import (
    Evaluation,
    Segment,
    log_noising,
    log_proposal,
    log_volume_ratio,
    noising_misfit,
    proposal_mean,
    sample_noising,
)
from numpyro_rtk.core.twist import LikelihoodFn, look_ahead

__all__ = ["Sweep", "SweepNoise", "Target", "noised", "sweep"]

# Particles are resampled where their effective number has fallen below this part.
_RESAMPLED = 0.5


class Target(NamedTuple):
    """What particles are weighed by.

    Attributes:
        base: the noised prior of R rows, ``(x (R, dim), t) -> Evaluation``, with a log
            density ``(R,)`` and a score ``(R, dim)``.
        likelihood: ``x (R, dim) -> (value (R,), gradient (R, dim))`` of the log
            likelihood; None without.
        has_energy: whether the base's log densities are one; static.
    """

    base: Callable[[jax.Array, jax.Array], Evaluation]
    likelihood: LikelihoodFn | None
    has_energy: bool


class SweepNoise(NamedTuple):
    """Random numbers of a sweep.

    Attributes:
        top: standard normals at level K, ``(n, R, dim)``.
        cross: of the proposals, ``(K, n, R, dim)``.
        resample: uniforms, ``(K, n, R)``.
        back: uniforms that choose the next path, level 0 first, ``(K + 1, R)``.
    """

    top: jax.Array
    cross: jax.Array
    resample: jax.Array
    back: jax.Array

    @classmethod
    def draw(
        cls,
        key: jax.Array,
        num_levels: int,
        num_particles: int,
        shape: tuple[int, int],
        dtype: Any,
    ) -> "SweepNoise":
        """In one call, which costs time to compile. ``shape``: ``(R, dim)``."""
        n, (num_rows, _) = num_particles, shape
        (top, cross), (resample, back) = draw_numbers(
            key,
            (),
            [(n, *shape), (num_levels, n, *shape)],
            [(num_levels, n, num_rows), (num_levels + 1, num_rows)],
            dtype,
        )
        return cls(top, cross, resample, back)


class Sweep(NamedTuple):
    """What comes of a sweep.

    Attributes:
        path: the next one, level 0 first, ``(K + 1, R, dim)``.
        log_evidence: log of the product of the mean weights, ``(R,)``. Of a run that kept
            no path its exponential is an unbiased estimate of the evidence; of one that
            did, the inverse of its exponential is one of the evidence's inverse.
        sample_size: effective number of particles at every level, ``(K + 1, R)``.
        log_likelihood: at the next path's end, ``(R,)``.
        log_density: the prior's there, ``(R,)``; 0 without an energy.
    """

    path: jax.Array
    log_evidence: jax.Array
    sample_size: jax.Array
    log_likelihood: jax.Array
    log_density: jax.Array


class _Level(NamedTuple):
    """The particles of one level, all that the way back needs; leading axes n and R.

    ``taken`` is the log of the level's own target: its twist, and with an energy its
    density. What a particle is worth at the next level is counted from it. ``sample_size``
    is that of each row, as a part of n.
    """

    position: jax.Array
    score: jax.Array
    taken: jax.Array
    log_weight: jax.Array
    sample_size: jax.Array

    @property
    def is_resampled(self) -> jax.Array:
        return self.sample_size < _RESAMPLED


def sweep(
    noise: SweepNoise,
    path: jax.Array | None,
    target: Target,
    plan: ParticlePlan,
) -> Sweep:
    """Particles from the top level to level 0, and a path chosen among theirs.

    Costs ``n K`` evaluations of the network, with an energy ``n (K + 1)``.

    Args:
        noise: random numbers of a sweep.
        path: the current one, ``(K + 1, R, dim)``; it is particle 0 all the way. None:
            there is none, and the sweep is a plain sequential Monte Carlo run.
        target: what particles are weighed by.
        plan: levels and segments.
    """
    keep = (lambda x, row: x) if path is None else (lambda x, row: x.at[0].set(row))

    def down(carry, inputs):
        x, log_weight = carry
        noise, uniforms, (segment, lift, narrow), level, row = inputs
        score, taken, parts = _weigh(x, target, level)
        log_weight = _usable(log_weight + taken)
        here = _Level(x, score, taken, log_weight, _by_row(sample_size)(log_weight))
        chosen = _ancestors(here, uniforms, keep)
        log_weight = _after(log_weight, here.is_resampled)
        x, score, taken, parts = (
            _taken(leaf, chosen) for leaf in (x, score, taken, parts)
        )
        mean = _of_each(proposal_mean, segment, x, score)
        shift = _of_each(stretch, lift, parts)
        # in units of the reverse kernel's spread
        step = _proposed(shift, narrow, noise)
        step = keep(step, jax.vmap(stretch)(segment.inverse_root, row - mean[0]))
        z = keep(mean + _of_each(stretch, segment.root, step), row)
        log_weight = log_weight - _log_proposed(shift, narrow, step) - taken
        if target.has_energy:
            misfit = _of_each(noising_misfit, segment, x, z)
            log_weight = log_weight - misfit + log_volume_ratio(segment)[None]
        else:
            log_weight = log_weight - 0.5 * jnp.sum(jnp.square(step), axis=-1)
        return (z, log_weight), here

    if path is None:
        path = jnp.zeros_like(noise.top, shape=(len(noise.back), *noise.top.shape[1:]))
    top = _entered(noise.top, path[-1], keep, target, plan)
    upper = jax.tree.map(lambda leaf: leaf[1:], plan.levels)
    kernels = (plan.segments, plan.lift, plan.narrow)
    inputs = (noise.cross, noise.resample, kernels, upper, path[:-1])
    (x, log_weight), above = jax.lax.scan(down, top, inputs, reverse=True)
    log_prior, log_likelihood = _at_bottom(x, target)
    log_weight = _usable(log_weight + log_prior + log_likelihood)
    chosen = jax.vmap(_choose, in_axes=(1, 0))(log_weight, noise.back[0])
    log_mean = jax.nn.logsumexp(above.log_weight, axis=1) - jnp.log(len(x))
    log_mean = jnp.where(above.is_resampled, log_mean, 0.0)
    last = jax.nn.logsumexp(log_weight, axis=0) - jnp.log(len(x))
    size = jnp.concatenate([_by_row(sample_size)(log_weight)[None], above.sample_size])
    return Sweep(
        path=_way_back(noise.back[1:], _taken(x, chosen), above, target, plan.segments),
        log_evidence=last + jnp.sum(log_mean, axis=0),
        sample_size=len(x) * size,
        log_likelihood=_taken(log_likelihood, chosen),
        log_density=_taken(log_prior, chosen),
    )


def _by_row(function: Callable) -> Callable:
    """Of all particles of each row: ``(n, R) -> (R,)``."""
    return jax.vmap(function, in_axes=1)


def _of_each(function: Callable, by_row: Any, *each: jax.Array) -> jax.Array:
    """Of every particle of every row: the first argument ``(R, ...)``, others n by R."""
    of_rows = jax.vmap(function)
    return jax.vmap(lambda *one: of_rows(by_row, *one))(*each)


def _taken(leaf: jax.Array, chosen: jax.Array) -> jax.Array:
    """Particles of each row, by indices ``(..., R)`` among ``(n, R, ...)``."""
    index = jnp.arange(leaf.shape[1])
    return leaf[chosen, jnp.broadcast_to(index, chosen.shape)]


def _ancestors(here: _Level, uniforms: jax.Array, keep: Callable) -> jax.Array:
    """Whom each particle goes on from, ``(n, R)``; itself where none are resampled."""
    chosen = jax.vmap(_choose, in_axes=1, out_axes=1)(here.log_weight, uniforms)
    everyone = jnp.arange(len(chosen))[:, None]
    return jnp.where(here.is_resampled[None], keep(chosen, 0), everyone)


def _entered(noise, row, keep: Callable, target: Target, plan: ParticlePlan):
    """Particles at the top level, and their weights; if one is kept, it is ``row``."""
    entry, zero = plan.entry, jnp.zeros_like(noise[0])
    shift = zero[None]
    if target.likelihood is not None:
        top = jax.tree.map(lambda leaf: leaf[-1], plan.levels.twist)
        _, parts = jax.vmap(look_ahead)(top, *target.likelihood(zero))
        shift = jax.vmap(stretch)(entry.lift, parts)[None]
    back = jax.vmap(lambda axes, row: stretch(axes.T, row))
    step = keep(_proposed(shift, entry.narrow, noise), back(entry.axes, row))
    x = keep(_of_each(stretch, entry.axes, step), row)
    log_weight = -_log_proposed(shift, entry.narrow, step) - log_reference(zero[0])
    if not target.has_energy:
        log_weight = log_weight + jax.vmap(jax.vmap(log_reference))(x)
    return x, log_weight


def _way_back(uniforms, bottom, above: _Level, target, segments) -> jax.Array:
    """From particles of level 0 up, each level's in proportion to what led here.

    Where nothing was resampled as well: the particles of such a level, each with the way it
    came since they last were, are independent proposals of the path's upper part, and the
    choice among them and the current one leaves its law as it is.
    """

    def up(below, inputs):
        uniform, segment, level = inputs
        z = jnp.broadcast_to(below[None], level.position.shape)
        led_here = _transition(segment, target, z, level.position, level.score)
        log_weight = _usable(level.log_weight - level.taken + led_here)
        chosen = jax.vmap(_choose, in_axes=(1, 0))(log_weight, uniform)
        here = _taken(level.position, chosen)
        return here, here

    _, rest = jax.lax.scan(up, bottom, (uniforms, segments, above))
    return jnp.concatenate([bottom[None], rest])


def _weigh(x, target: Target, level: Levels):
    """Scores at particles ``(n, R, dim)``, the level's own target, the twist's parts."""
    prior = jax.vmap(target.base, in_axes=(0, None))(x, level.time)
    taken = prior.log_density if target.has_energy else jnp.zeros(x.shape[:2], x.dtype)
    if target.likelihood is None:
        return prior.score, taken, jnp.zeros_like(x)
    clean = (x + level.noise_variance * prior.score) / level.signal
    value, gradient = jax.vmap(target.likelihood)(clean)
    twist, parts = _of_each(look_ahead, level.twist, value, gradient)
    return prior.score, taken + twist, parts


def _at_bottom(x, target: Target) -> tuple[jax.Array, jax.Array]:
    """Log densities of the prior (0 without an energy) and log likelihoods at level 0."""
    nothing = jnp.zeros(x.shape[:2], x.dtype)
    log_prior = log_likelihood = nothing
    if target.has_energy:
        base = jax.vmap(target.base, in_axes=(0, None))
        log_prior = base(x, jnp.zeros((), x.dtype)).log_density
    if target.likelihood is not None:
        log_likelihood, _ = jax.vmap(target.likelihood)(x)
    return log_prior, log_likelihood


def _proposed(shift: jax.Array, narrow: jax.Array, noise: jax.Array) -> jax.Array:
    """Draws of the proposals, from standard normals; all ``(n, R, dim)``."""
    return shift + narrow[None] * noise


def _log_proposed(shift: jax.Array, narrow: jax.Array, step: jax.Array) -> jax.Array:
    """Their log densities ``(n, R)``, but for the constant of a normal's volume."""
    noise = (step - shift) / narrow[None]
    volume = jnp.sum(jnp.log(narrow), axis=-1)
    return -0.5 * jnp.sum(jnp.square(noise), axis=-1) - volume[None]


def _transition(segment: Segment, target: Target, z, x, score) -> jax.Array:
    """Log density that leads from x to z, of the extended target; ``(n, R)``."""
    if target.has_energy:
        return _of_each(log_noising, segment, x, z)
    return _of_each(log_proposal, segment, z, x, score)


def _choose(log_weight: jax.Array, uniform: jax.Array) -> jax.Array:
    """Indices in proportion to the weights ``(n,)``, one for each uniform."""
    total = jnp.cumsum(jnp.exp(log_weight - jnp.max(log_weight)))
    chosen = jnp.searchsorted(total, uniform * total[-1], side="right")
    return jnp.minimum(chosen, len(log_weight) - 1)


def _after(log_weight: jax.Array, is_resampled: jax.Array) -> jax.Array:
    """The weights that particles go on with: they count until they are resampled."""
    return jnp.where(is_resampled, 0.0, log_weight)


def _usable(log_weight: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)


def noised(noise: jax.Array, bottom: jax.Array, segments: Segment) -> jax.Array:
    """A path ``(K + 1, R, dim)`` from ``bottom`` ``(R, dim)`` up, from ``(K, R, dim)``.

    With an energy these are the levels above a draw, given the draw.
    """

    def up(x, inputs):
        segment, normals = inputs
        x = jax.vmap(sample_noising)(segment, x, normals)
        return x, x

    _, rest = jax.lax.scan(up, bottom, (segments, noise))
    return jnp.concatenate([bottom[None], rest])
