"""Rows of a plate that are independent of one another, found on the model's own program.

Where all latent sites stand in one plate and every term of the model is computed from one
row's values, the posterior is a product over rows, and each of them can be decided about
by itself. Proved by what is computed from what (``alignment.py``); where in doubt the model
is one row.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.kernels.problem.alignment import aligned_with
from numpyro_rtk.kernels.problem.flat import Flat, Site
from numpyro_rtk.kernels.problem.terms import Terms, counted_from

__all__ = [
    "Plate",
    "Rows",
    "find_rows",
    "one_row",
    "refuse_others",
    "shared_plates",
]

_NOWHERE = 1 << 30  # an axis that no array has


class Plate(NamedTuple):
    """A plate that all latent sites stand in.

    Attributes:
        size: R.
        axes: of the rows in each site's unconstrained value, by name.
    """

    size: int
    axes: tuple[tuple[str, int], ...]


class Rows(NamedTuple):
    """How a flat position and the model's terms fall into rows; hashable.

    Attributes:
        num: R.
        order: coordinates of each row, R tuples.
        num_ordinary: the last so many coordinates of each are of ordinary sites.
        axes: of the rows in those terms of the model that depend on a latent site.
    """

    num: int
    order: tuple[tuple[int, ...], ...]
    num_ordinary: int
    axes: tuple[tuple[str, int], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """``(R, dim)``."""
        return self.num, len(self.order[0])

    @property
    def row_of(self) -> np.ndarray:
        """The row of each coordinate."""
        return np.argsort(np.ravel(self.order)) // self.shape[1]

    def split(self, position: jax.Array) -> jax.Array:
        """A flat position by row, ``(R, dim)``."""
        order = np.array(self.order)
        if np.array_equal(np.ravel(order), np.arange(order.size)):
            return position.reshape(self.shape)
        return position[order]

    def join(self, rows: jax.Array) -> jax.Array:
        """Back."""
        place = np.argsort(np.ravel(self.order))
        flat = jnp.ravel(rows)
        return flat if np.array_equal(place, np.arange(place.size)) else flat[place]

    def counted_from(self, origin: Terms, terms: Terms) -> jax.Array:
        """As of all terms, by row: ``(R,)``; those that never change are left out."""
        if self.num == 1:
            return counted_from(origin, terms)[None]
        total = jnp.zeros(self.num)
        for name, axis in self.axes:
            of_row = lambda o, t, name=name: counted_from({name: o}, {name: t})
            total = total + jax.vmap(of_row, axis)(origin[name], terms[name])
        return total


def one_row(flat: Flat) -> Rows:
    """All of the position."""
    return Rows(1, (tuple(range(flat.dim)),), flat.num_ordinary, ())


def shared_plates(latent: dict, shapes: dict[str, tuple[int, ...]]) -> list[Plate]:
    """The plates that all latent sites stand in, the largest first.

    Args:
        latent: their messages by name.
        shapes: of their unconstrained values.
    """
    found = []
    for frame in next(iter(latent.values()))["cond_indep_stack"]:
        axes = {site: _axis(latent[site], frame.name) for site in latent}
        sizes = {shapes[site][axis : axis + 1] for site, axis in axes.items()}
        if sizes == {(frame.size,)} and frame.size > 1:
            found.append(Plate(frame.size, tuple(axes.items())))
    return sorted(found, key=lambda plate: -plate.size)


def _axis(message: dict, plate: str) -> int:
    """Of a plate's rows in a site's value; nowhere where it is not in the plate."""
    dims = [f.dim for f in message["cond_indep_stack"] if f.name == plate]
    return len(message["fn"].batch_shape) + dims[0] if dims else _NOWHERE


def find_rows(
    flat: Flat, plates: list[Plate], terms_at: Callable[[dict], Terms]
) -> Rows:
    """The rows of the largest plate that the model is a product over; else one.

    Args:
        flat: the latent sites.
        plates: that all of them stand in.
        terms_at: the model's terms at unconstrained values by site.
    """
    for plate in plates:
        axes = dict(plate.axes)
        values = {site.name: jnp.zeros(site.shape) for site in flat.sites}
        found = aligned_with(terms_at, values, axes, plate.size)
        if found is None:
            continue
        order = [_by_row(flat, site, axes[site.name]) for site in flat.sites]
        learned, ordinary = (
            np.concatenate([*part, np.zeros((plate.size, 0), int)], axis=1)
            for part in (order[: len(flat.learned)], order[len(flat.learned) :])
        )
        rows = np.concatenate([learned, ordinary], axis=1)
        return Rows(
            num=plate.size,
            order=tuple(map(tuple, rows.tolist())),
            num_ordinary=ordinary.shape[1],
            axes=tuple(found.items()),
        )
    return one_row(flat)


def _by_row(flat: Flat, site: Site, axis: int) -> np.ndarray:
    """Coordinates of a site in the flat position, ``(R, size / R)``."""
    start = sum(one.size for one in flat.sites[: flat.sites.index(site)])
    index = np.arange(start, start + site.size).reshape(site.shape)
    return np.moveaxis(index, axis, 0).reshape(site.shape[axis], -1)


def refuse_others(before: Rows, now: Rows) -> None:
    """Raise where a run would go on with other rows than it began with."""
    if now != before:
        raise ValueError(
            "The model's arguments must leave the rows of its plate as independent as they "
            f"were when the run began; got {before.num} rows then and {now.num} now. Start "
            "a new run: `mcmc.post_warmup_state = None`, or a new `MCMC`."
        )
