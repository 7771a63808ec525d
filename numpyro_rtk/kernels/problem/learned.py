"""The learned priors of a traced model, as parts of the noised prior of a flat position."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.density import Part, loc_and_scale, standardised
from numpyro_rtk.kernels.problem.flat import Flat, Site
from numpyro_rtk.kernels.problem.messages import is_plain, prior_of
from numpyro_rtk.prior import LearnedPrior

__all__ = ["counted_twice", "parts_of", "plain_sites", "process_of", "processes_of"]


def plain_sites(flat: Flat, trace: dict) -> frozenset[str]:
    """Learned sites that NumPyro counts as the base does: the base's alone."""
    names = (site.name for site in flat.learned)
    return frozenset(name for name in names if is_plain(trace[name]))


def process_of(message: dict, site: Site) -> tuple[jax.Array, jax.Array]:
    """Centre and scale of a learned site's noise process, of its shape."""
    prior = prior_of(message)
    if not prior.is_stacked:
        loc, scale = loc_and_scale(prior.density)
        return jnp.broadcast_to(loc, site.shape), jnp.broadcast_to(scale, site.shape)
    each = _each(message, prior)
    found = jax.vmap(lambda prior: loc_and_scale(prior.density))(each)
    loc, scale = (leaf.reshape(site.shape) for leaf in found)
    return loc, scale


def processes_of(flat: Flat, trace: dict) -> tuple[list[jax.Array], list[jax.Array]]:
    """Centres and scales of all learned sites, each in one row."""
    centres, spreads = [], []
    for site in flat.learned:
        centre, spread = process_of(trace[site.name], site)
        centres.append(jnp.ravel(centre))
        spreads.append(jnp.ravel(spread))
    return centres, spreads


def parts_of(flat: Flat, trace: dict, *, with_score: bool = True) -> tuple[Part, ...]:
    """One part for each learned site, in the order of the position.

    Args:
        flat: the sites.
        trace: of the model, at values that the priors may depend on.
        with_score: False where the log density will be differentiated.
    """
    return tuple(_part(trace[site.name], site, with_score) for site in flat.learned)


def counted_twice(flat: Flat, trace: dict, u: jax.Array) -> jax.Array:
    """Log density of the learned sites that NumPyro counts as well, on the user's scale.

    ``u``: standardised position, ``(dim,)``.
    """
    total, start, zero = jnp.zeros((), u.dtype), 0, jnp.zeros((), u.dtype)
    for site, part in zip(flat.learned, parts_of(flat, trace), strict=True):
        rows = u[start : start + site.size].reshape(part.copies, part.dim)
        start += site.size
        if is_plain(trace[site.name]):
            continue
        log_volume = jnp.sum(jnp.log(process_of(trace[site.name], site)[1]))
        total = total + jnp.sum(part.at(rows, zero).log_density) - log_volume
    return total


def _part(message: dict, site: Site, with_score: bool) -> Part:
    prior = prior_of(message)
    event_size = math.prod(prior.first.density.event_shape)
    copies = site.size // event_size
    if prior.is_stacked:
        density = partial(_of_stack, with_score)
        return Part(density, event_size, copies, (_each(message, prior),))
    if prior.condition is None:
        density = standardised(prior.density, with_score=with_score)
        return Part(density, event_size, copies)
    density = partial(_at_condition, prior.density, with_score)
    shape = tuple(prior.density.condition_shape)
    condition = jnp.broadcast_to(prior.condition, (*_batch(message, prior), *shape))
    conditions = (condition.reshape((copies, *shape)),)
    return Part(density, event_size, copies, conditions)


def _batch(message: dict, prior: LearnedPrior) -> tuple[int, ...]:
    """Shape of the site's value before the event."""
    batch = jnp.shape(message["value"])
    return batch[: len(batch) - len(prior.event_shape)]


def _each(message: dict, prior: LearnedPrior) -> LearnedPrior:
    """One prior for each entry of the batch."""
    return prior.each(_batch(message, prior))


def _of_stack(with_score: bool, z, t, prior: LearnedPrior) -> Evaluation:
    """One of several priors at one standardised position."""
    if prior.condition is not None:
        return _at_condition(prior.density, with_score, z, t, prior.condition)
    return standardised(prior.density, with_score=with_score)(z, t)


def _at_condition(density: Any, with_score: bool, z, t, condition) -> Evaluation:
    """A density p(x | c) at one standardised position and one condition."""
    given = density.given(condition)
    return standardised(given, process=density, with_score=with_score)(z, t)
