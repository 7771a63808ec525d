"""The flat position: all latent sites of one draw, unconstrained, in one vector."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Flat", "Site"]


class Site(NamedTuple):
    """A latent site and the shape of its unconstrained value."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Coordinates that it takes."""
        return math.prod(self.shape)


class Flat(NamedTuple):
    """Which sites the vector holds: learned ones first, each group in the model's order."""

    learned: tuple[Site, ...]
    ordinary: tuple[Site, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """All of them, as they stand in the vector."""
        return (*self.learned, *self.ordinary)

    @property
    def num_ordinary(self) -> int:
        """Trailing coordinates that are of ordinary sites."""
        return sum(site.size for site in self.ordinary)

    @property
    def dim(self) -> int:
        """All coordinates."""
        return sum(site.size for site in self.sites)

    def split(self, position: jax.Array) -> dict[str, jax.Array]:
        """The vector's sites by name."""
        values, start = {}, 0
        for site in self.sites:
            values[site.name] = position[start : start + site.size].reshape(site.shape)
            start += site.size
        return values

    def join(self, values: dict) -> jax.Array:
        """Back."""
        return jnp.concatenate([jnp.ravel(values[site.name]) for site in self.sites])

    def join_ordinary(self, values: dict) -> jax.Array:
        """The ordinary sites alone, ``(num_ordinary,)``."""
        parts = [jnp.ravel(values[site.name]) for site in self.ordinary]
        return jnp.concatenate([*parts, jnp.zeros(0, jnp.result_type(float))])

    def coordinate_names(self) -> list[str]:
        """``x`` of a scalar site, else ``x[0]``, ``x[0,1]``."""
        return [
            f"{site.name}[{','.join(map(str, i))}]" if site.shape else site.name
            for site in self.sites
            for i in np.ndindex(*site.shape)
        ]
