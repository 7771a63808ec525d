"""Where the ordinary sites lie before anything is known: by draws of their prior."""

import jax
import jax.numpy as jnp
import jax.random as jr
from numpyro.distributions import biject_to

from numpyro_rtk.kernels.problem.flat import Flat
from numpyro_rtk.kernels.problem.runs import Run

__all__ = ["prior_location"]

_NUM_DRAWS = 1000


def prior_location(key: jax.Array, flat: Flat, run: Run) -> tuple[jax.Array, jax.Array]:
    """Median and half the central 68 % of prior draws, given central learned sites.

    Returns:
        Each ``(num_ordinary,)``, unconstrained; 0 and 1 where the draws do not say.
    """
    names = frozenset(site.name for site in flat.ordinary)

    def draw(key):
        trace = run.somewhere(key, drawn=names)
        sites = {name: trace[name] for name in names}
        return flat.join_ordinary(
            {
                name: biject_to(site["fn"].support).inv(site["value"])
                for name, site in sites.items()
            }
        )

    draws = jax.vmap(draw)(jr.split(key, _NUM_DRAWS))
    low, middle, high = jnp.nanquantile(
        jnp.where(jnp.isfinite(draws), draws, jnp.nan),
        jnp.array([0.16, 0.5, 0.84]),
        axis=0,
    )
    spread = 0.5 * (high - low)
    usable = jnp.isfinite(middle) & jnp.isfinite(spread) & (spread > 0)
    return jnp.where(usable, middle, 0.0), jnp.where(usable, spread, 1.0)
