r"""Draws of a density by itself: a fitted predictor, and inner steps at the end.

From :math:`x_K \sim N(0, I)` the deterministic rule of :mod:`numpyro_rtk.core.multistep`
crosses every segment of a ladder, one evaluation each; what local error it leaves at level
0, a few inner steps on the density itself remove. The draws are independent, and close to
the density, not exact; a density that can draw from itself is asked to.

``LearnedPrior.sample`` is :func:`draw`. ``RTKMALA(score=...)`` has the same ladder and
number of steps, and a warm-up in which the step size is adapted.
"""

import math
import operator
import types
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer

from numpyro_rtk.core.annealed import Local, predict_down
from numpyro_rtk.core.inner import InnerSampler
from numpyro_rtk.core.mala import MALA
from numpyro_rtk.core.multistep import Multistep
from numpyro_rtk.density import (
    ConditionalDensity,
    Density,
    exact_sampler,
    has_energy,
    loc_and_scale,
    standardised,
)
from numpyro_rtk.noise import as_ladder
from numpyro_rtk.paths import calibrate_multistep, levels_of, prior_path

__all__ = [
    "DEFAULTS",
    "LADDER",
    "NUM_SEGMENTS",
    "NUM_STEPS",
    "PER_CONDITION",
    "DrawSettings",
    "Predictor",
    "draw",
    "draw_given",
    "fit_predictor",
    "is_fixed",
    "predictor_of",
]

NUM_SEGMENTS, NUM_STEPS, LADDER = 13, 3, "angle"


class DrawSettings(NamedTuple):
    """How a density is drawn from.

    Attributes:
        times: ladder, K + 1 OU times from 0 up.
        num_steps: inner steps, on level 0.
        inner: the inner sampler; None is HMC of two leapfrog steps, which accepts by the
            log density where there is one and by Simpson's rule through the scores else.
        step_size: of its steps, in units of the density's spread, in up to 10
            coordinates; it falls as ``dim**-1/4`` beyond.
        num_particles: trajectories that the predictor is fitted to, about 64 evaluations
            each.
    """

    times: tuple[float, ...] = tuple(as_ladder(LADDER, NUM_SEGMENTS).tolist())
    num_steps: int = NUM_STEPS
    inner: InnerSampler | None = None
    step_size: float = 0.5
    num_particles: int = 256


DEFAULTS = DrawSettings()
# every condition has a predictor of its own
PER_CONDITION = DEFAULTS._replace(num_particles=64)


class Predictor(NamedTuple):
    """What is fitted to a density before it can be drawn from.

    Attributes:
        multistep: coefficients of the rule, leading axis K.
        second_moment: mean squared score at every level, ``(K + 1, dim)``.
    """

    multistep: Multistep
    second_moment: jax.Array


def draw(
    key: jax.Array,
    density: Density,
    sample_shape: tuple[int, ...] = (),
    settings: DrawSettings = DEFAULTS,
    *,
    predictor: Predictor | None = None,
    process: Density | ConditionalDensity | None = None,
) -> jax.Array:
    """Independent draws of a density, ``sample_shape + event_shape``.

    Args:
        key: PRNG key.
        density: of ``x`` alone.
        sample_shape: of the draws.
        settings: how; unused where the density draws from itself.
        predictor: fitted with the same settings; None is :func:`predictor_of`.
        process: whose noise process the density follows, where it is not its own.

    Raises:
        ValueError: where the inner sampler reads a log density, and there is a score
            alone.
    """
    exact = exact_sampler(density)
    if exact is not None:
        return exact(key, sample_shape)
    inner = _inner_of(density, settings)
    if predictor is None:
        predictor = predictor_of(density, settings, process=process)
    # compiled once for a density, unless it can change in place: then for each call
    parts = jax.tree.leaves((density, process))
    run = _compiled if all(map(is_fixed, parts)) else _draw_with
    keys = jr.split(key, math.prod(sample_shape))
    flat = run(keys, density, process, predictor, settings, inner)
    return flat.reshape((*sample_shape, *density.event_shape))


def _draw_with(keys, density, process, predictor, settings, inner) -> jax.Array:
    """By the predictor, one draw for each key, ``(n, *event_shape)``."""
    multistep, moment = predictor
    shape = tuple(density.event_shape)
    dim = math.prod(shape)
    step_size = jnp.asarray(settings.step_size * min(1.0, (dim / 10.0) ** -0.25))
    local = Local(settings.num_steps, step_size, jax.lax.rsqrt(moment[0]))
    path = prior_path(standardised(density, process=process))
    levels = levels_of(np.asarray(settings.times), 1.0)

    def one(key):
        key_top, key_down = jr.split(key)
        top = jr.normal(key_top, (dim,), moment.dtype)
        run = predict_down(key_down, top, path, levels, multistep, local, inner)
        return run.position

    flat = jax.vmap(one)(keys)
    loc, scale = loc_and_scale(density if process is None else process)
    return loc + scale * flat.reshape((-1, *shape))


_compiled = eqx.filter_jit(_draw_with)


# what jax.nn.silu is, the activation of many networks
_Jitted = type(jax.jit(lambda: None))


def is_fixed(leaf: Any) -> bool:
    """Whether it is an array, or else can only be what it is."""
    plain = bool | int | float | str | types.FunctionType | jax.custom_jvp | _Jitted
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | plain)


def draw_given(
    key: jax.Array,
    density: ConditionalDensity,
    conditions: jax.Array,
    sample_shape: tuple[int, ...] = (),
    settings: DrawSettings = PER_CONDITION,
) -> jax.Array:
    """The same of p(x | c) at each of several conditions.

    Args:
        key: PRNG key.
        density: of ``x`` given ``c``.
        conditions: ``(n, *condition_shape)``.
        sample_shape: of the draws at each condition.
        settings: as of :func:`draw`.

    Returns:
        ``(n, *sample_shape, *event_shape)``.
    """
    one = lambda key, c: draw(
        key, density.given(c), sample_shape, settings, process=density
    )
    return jax.vmap(one)(jr.split(key, len(conditions)), conditions)


def fit_predictor(
    density: Density,
    settings: DrawSettings = DEFAULTS,
    *,
    process: Density | ConditionalDensity | None = None,
) -> Predictor:
    """Fit the predictor, always with the same random numbers; arguments as of `draw`.

    So the predictor is a property of the density, not of a draw, and under ``vmap`` over
    keys it is fitted once.
    """
    base, dim = standardised(density, process=process), math.prod(density.event_shape)
    times = np.asarray(settings.times)
    fit = lambda key: calibrate_multistep(key, base, times, dim, settings.num_particles)
    return Predictor(*jax.jit(fit)(jr.key(0)))


# Predictors of the densities drawn from last, oldest first.
_kept: list[tuple[Any, Predictor]] = []
_MOST_KEPT = 8


def predictor_of(
    density: Density,
    settings: DrawSettings = DEFAULTS,
    *,
    process: Density | ConditionalDensity | None = None,
) -> Predictor:
    """:func:`fit_predictor`, of the densities drawn from last without fitting again.

    A density is known again by its very arrays (an object that is no pytree: by itself and
    its attributes), so one that was trained on, traced by JAX, or given another attribute
    is fitted anew. Numbers changed inside a NumPy array are not seen.
    """
    found, structure = jax.tree.flatten((density, process))
    leaves = [part for leaf in found for part in _parts_of(leaf)]
    facts = (structure, settings.times, settings.num_particles)
    for (old_facts, old_leaves), predictor in _kept:
        if old_facts == facts and _are_the_same(old_leaves, leaves):
            return jax.tree.map(jnp.asarray, predictor)
    predictor = fit_predictor(density, settings, process=process)
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(predictor)):
        _kept.append(((facts, leaves), jax.tree.map(np.asarray, predictor)))
        del _kept[:-_MOST_KEPT]
    return predictor


def _parts_of(leaf: Any) -> list:
    """What must stay for a leaf to be what it was: of an object, its attributes too."""
    if isinstance(leaf, jax.Array | np.ndarray) or not hasattr(leaf, "__dict__"):
        return [leaf]
    return [leaf, *jax.tree.leaves(vars(leaf))]


def _are_the_same(one: list, other: list) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _inner_of(density: Density, settings: DrawSettings) -> InnerSampler:
    """The inner sampler of the settings, or the density's own."""
    if settings.inner is None:
        acceptance = "energy" if has_energy(density) else "simpson"
        return MALA(num_leapfrog=2, acceptance=acceptance)
    if settings.inner.uses_energy and not has_energy(density):
        raise ValueError(
            "`inner` must accept by scores for a density without `log_density`; got one "
            'that reads it. Use `rtk.MALA(acceptance="simpson")`, or leave it at None.'
        )
    return settings.inner
