"""Between the user's named, constrained values and one unconstrained array.

A density is learned of unconstrained values: each site goes through the inverse of
NumPyro's own bijection to its support (``biject_to``), several sites are flattened and
laid end to end. A learned model remembers this as a tuple of
:class:`~numpyro_rtk.networks.site.SiteSpec`, so that a prior built from it gives the
values back in the user's terms, with the right Jacobian.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from numpyro_rtk.networks.site import REAL, SiteSpec, nested_tuples

__all__ = [
    "check_sites",
    "columns_of",
    "constraint_of",
    "is_frame",
    "labels_of_sites",
    "sites_of",
    "split_sites",
    "support_spec",
    "transform_of",
    "unconstrain_rows",
    "unconstrained_shape",
]


def sites_of(density: Any) -> tuple[SiteSpec, ...] | None:
    """What the values of a density stand for; None: one array of real numbers."""
    return getattr(density, "sites", None)


def support_spec(argument: str, support: Any) -> tuple[Any, ...]:
    """A NumPyro constraint as plain data: its name and its parameters.

    Args:
        argument: what the user gave it as, for the message.
        support: a constraint such as ``constraints.positive`` or
            ``constraints.interval(0.0, 2.0)``.

    Raises:
        TypeError: for anything but a constraint.
        ValueError: for a constraint without a name in ``numpyro.distributions``, and
            for discrete or dependent ones.
    """
    if isinstance(support, type) or not isinstance(support, constraints.Constraint):
        raise TypeError(
            f"`{argument}` must be a NumPyro constraint, such as "
            f"`constraints.positive` or `constraints.interval(0.0, 2.0)`; got {support!r}."
        )
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support.is_discrete:
        raise ValueError(
            f"`{argument}` must be continuous: discrete values have no density; got "
            f"{support!r}."
        )
    # NumPyro's list first; it has not all of its public names
    for name in (*constraints.__all__, *vars(constraints)):
        known = getattr(constraints, name)
        if name.startswith("_"):
            continue
        if isinstance(known, type):
            if type(support) is known:
                parameters, _ = support.tree_flatten()
                return (name, *(_plain(value) for value in parameters))
        elif type(known) is type(support) and known == support:
            return (name,)
    raise ValueError(
        f"`{argument}` must be one of the named constraints of "
        f"`numpyro.distributions.constraints`; got {support!r}. Transform the samples "
        "yourself and learn them as real values."
    )


def constraint_of(spec: tuple[Any, ...]) -> Any:
    """The NumPyro constraint that :func:`support_spec` described."""
    known = getattr(constraints, spec[0])
    if not isinstance(known, type):
        return known
    return known(
        *(
            np.asarray(value) if isinstance(value, tuple) else value
            for value in spec[1:]
        )
    )


def transform_of(site: SiteSpec) -> Any:
    """The bijection from unconstrained values of the site to constrained ones."""
    return biject_to(constraint_of(site.support))


def unconstrained_shape(site: SiteSpec) -> tuple[int, ...]:
    """Shape of one unconstrained value."""
    return tuple(transform_of(site).inverse_shape(site.shape))


def check_sites(sites: tuple[SiteSpec, ...], event_shape: tuple[int, ...]) -> None:
    """Raise unless sites, read from a file, are what a vector can stand for.

    Args:
        sites: one without a name, or several with names.
        event_shape: of the vector.

    Raises:
        TypeError: for sizes and parameters of other types.
        ValueError: for names, supports or shapes that do not go together.
    """
    names = [site.name for site in sites]
    are_named = bool(names) and all(isinstance(name, str) for name in names)
    if names != [None] and not (are_named and len(set(names)) == len(names)):
        raise ValueError(
            f"`sites` must have names, each its own, or be one; got {names!r:.80}."
        )
    for site in sites:
        _check_site(site)
    shapes = [unconstrained_shape(site) for site in sites]
    shape = (sum(map(math.prod, shapes)),) if are_named else shapes[0]
    if shape != tuple(event_shape):
        raise ValueError(
            f"`sites` must fill the event shape {event_shape}; got sites for {shape}."
        )


def _check_site(site: SiteSpec) -> None:
    """Its support must be one that :func:`support_spec` writes, and not be empty."""
    if any(type(size) is not int or size < 0 for size in site.shape):
        raise TypeError(
            f"`sites` must have shapes of integers; got {site.shape!r:.80}."
        )
    if site.support[0] not in constraints.__all__:
        raise ValueError(
            "`sites` must have supports of `numpyro.distributions.constraints`; got "
            f"{site.support!r:.80}."
        )
    constraint = constraint_of(site.support)
    # as text: to Python, 1.0 is 1 and True
    if repr(support_spec("sites", constraint)) != repr(site.support):
        raise ValueError(f"`sites` must describe supports; got {site.support!r:.80}.")
    transform, shape = transform_of(site), unconstrained_shape(site)
    # several: next to a large bound, the first is rounded on to it
    values = [transform(jnp.full(shape, fill)) for fill in (0.0, 20.0, 80.0)]
    if not any(bool(np.all(constraint(value))) for value in values):
        raise ValueError(
            f"`sites` must have possible values; got {site.support!r:.80}."
        )


def unconstrain_rows(
    values: Any, supports: Mapping[str | None, Any]
) -> tuple[np.ndarray, tuple[SiteSpec, ...] | None]:
    """Samples of one or several sites as one array, and what its entries stand for.

    Args:
        values: an array ``(n, *shape)``, or a dict of such arrays of one length.
        supports: constraint of each site that is not real; of an array under None.

    Returns:
        Rows ``(n, *unconstrained shape)`` of an array, ``(n, dim)`` of a dict; and the
        sites, None for a real array.

    Raises:
        ValueError: where lengths differ, a support names no site, or values lie
            outside their support.
    """
    if not isinstance(values, Mapping):
        if None not in supports:
            # a memory map stays one
            return np.asanyarray(values), None
        site, rows = _unconstrain(None, values, supports[None])
        if site.support == REAL:
            return np.asanyarray(values), None
        return rows, (site,)
    unknown = sorted(set(supports) - set(values), key=str)
    if unknown:
        raise ValueError(
            f"`support` must name sites of `samples`, {sorted(values)}; got {unknown}."
        )
    lengths = {name: len(np.atleast_1d(value)) for name, value in values.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            "`samples` must have one row per draw in every array, so one length; got "
            f"{lengths}."
        )
    pairs = [
        _unconstrain(name, value, supports.get(name, constraints.real))
        for name, value in values.items()
    ]
    flat = [rows.reshape(len(rows), -1) for _, rows in pairs]
    return np.concatenate(flat, axis=1), tuple(site for site, _ in pairs)


def is_frame(values: Any) -> bool:
    """Whether this is a table of named columns (pandas, polars), not an array."""
    return hasattr(values, "columns") and callable(getattr(values, "to_numpy", None))


def columns_of(argument: str, frame: Any) -> dict[str, Any]:
    """The columns of a table by name.

    Raises:
        ValueError: for two columns of one name.
    """
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"`{argument}` must have one column for each name; got {twice} more than "
            "once. Rename them."
        )
    return {str(name): _column(frame[name]) for name in frame.columns}


def _column(column: Any) -> np.ndarray:
    values = np.asarray(column)
    if values.dtype == object and str(column.dtype).startswith("Float"):
        # pandas' own type for what may be missing
        values = np.asarray(column.to_numpy(dtype=float, na_value=np.nan))
    return values


def labels_of_sites(sites: tuple[SiteSpec, ...]) -> list[str]:
    """What the coordinates of a row of these sites are called, in messages."""
    labels = []
    for site in sites:
        shape = unconstrained_shape(site)
        note = "" if site.support == REAL else " (unconstrained)"
        name = "coordinate " if site.name is None else site.name
        for index in np.ndindex(*shape):
            place = str(list(index)) if index else ""
            labels.append(f"{name}{place}{note}")
    return labels


def split_sites(sites: tuple[SiteSpec, ...], flat: jax.Array) -> dict[str, jax.Array]:
    """Constrained values of the named sites from one vector, ``(..., dim)``."""
    values, start = {}, 0
    for site in sites:
        shape = unconstrained_shape(site)
        stop = start + math.prod(shape)
        block = flat[..., start:stop].reshape((*flat.shape[:-1], *shape))
        values[site.name] = transform_of(site)(block)
        start = stop
    return values


def _unconstrain(name: str | None, value: Any, support: Any):
    label = "samples" if name is None else f"samples[{name!r}]"
    array = np.asarray(value)
    spec = support_spec("support" if name is None else f"support[{name!r}]", support)
    if not np.issubdtype(array.dtype, np.floating) or array.ndim == 0:
        # said better, and in the same words, by the checks of the training data
        return SiteSpec(name, array.shape[1:], spec), array
    site = SiteSpec(name, tuple(array.shape[1:]), spec)
    if site.support == REAL:
        return site, array
    constraint = constraint_of(spec)
    inside = np.asarray(constraint(array))
    if not np.all(inside):
        bad = np.flatnonzero(~inside.reshape(len(array), -1).all(axis=1))
        raise ValueError(
            f"`{label}` must lie in its support, {spec[0]}; got {len(bad)} of "
            f"{len(array)} rows outside, the first {array[bad[0]]} in row {bad[0]}. "
            "Remove these rows, or give another `support`."
        )
    rows = np.asarray(transform_of(site).inv(jnp.asarray(array)))
    bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
    if bad.size:
        raise ValueError(
            f"`{label}` must lie inside its support, {spec[0]}, off its boundary, which "
            f"is at infinity unconstrained; got {len(bad)} of {len(array)} rows on it, "
            f"the first {array[bad[0]]} in row {bad[0]}. Remove or move these rows."
        )
    return site, rows


def _plain(value: Any) -> Any:
    """A parameter as a number, or as nested tuples of numbers."""
    array = np.asarray(value, float)
    return nested_tuples(array.tolist())
