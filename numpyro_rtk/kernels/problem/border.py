"""What a draw is to the user, and what it is inside: a dict of unconstrained sites.

Of a model it is that dict to both. Of a density by itself, a model with one site, the
user sees the one value.
"""

from typing import Any

import jax.numpy as jnp

from numpyro_rtk.kernels.problem.flat import Flat

__all__ = ["OneArray", "SitesByName"]


class SitesByName:
    """A dict, as NumPyro's own kernels have it."""

    def inward(self, values: dict) -> dict:
        """From the user's value to a dict of sites."""
        return values

    def outward(self, values: dict) -> Any:
        """Back."""
        return values

    def check(self, flat: Flat, init_params: Any) -> None:
        """Raise unless it is a dict with every latent site, of its unconstrained shape."""
        expected = {site.name: site.shape for site in flat.sites}
        if not isinstance(init_params, dict) or set(init_params) != set(expected):
            got = (
                sorted(init_params)
                if isinstance(init_params, dict)
                else type(init_params).__name__
            )
            raise ValueError(
                "`init_params` must be a dict with one unconstrained value per latent "
                f"site {sorted(expected)}; got {got}."
            )
        for name, shape in expected.items():
            if jnp.shape(init_params[name]) != shape:
                raise ValueError(
                    f"`init_params[{name!r}]` must have shape {shape} per chain "
                    f"(unconstrained); got {jnp.shape(init_params[name])}."
                )


class OneArray(SitesByName):
    """The value of the only site, which has this name inside."""

    def __init__(self, name: str):
        self.name = name

    def inward(self, values: Any) -> dict:
        """The array under its name."""
        return {self.name: values}

    def outward(self, values: dict) -> Any:
        """The array."""
        return values[self.name]

    def check(self, flat: Flat, init_params: Any) -> None:
        """Raise unless it is one array of the event shape."""
        (site,) = flat.sites
        if not isinstance(init_params, dict):
            got = f"shape {jnp.shape(init_params)}"
        else:
            got = f"a dict of {sorted(init_params)}"
        if got != f"shape {site.shape}":
            raise ValueError(
                f"`init_params` must be an array of shape {site.shape} per chain; got "
                f"{got}."
            )
