"""How far out in its learned priors a posterior lies."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.distributions import biject_to

from numpyro_rtk.kernels.problem.flat import Flat
from numpyro_rtk.kernels.problem.messages import prior_of

__all__ = ["share_further_out"]

_NUM_DRAWS = 1000


def share_further_out(flat: Flat, trace: dict, samples: dict) -> float | None:
    """Share of a prior's own draws less probable than the median sample.

    The smallest over the learned sites; None where no site tells. Of a model that was
    learned from samples, without a condition: an exact density is as right in its tails.

    Args:
        flat: the sites.
        trace: of the model, anywhere.
        samples: of the posterior, constrained, by name.
    """
    shares = []
    for site in flat.learned:
        prior = prior_of(trace[site.name])
        density = prior.density
        if prior.condition is not None or not hasattr(density, "sample_base"):
            continue
        log_density = jax.jit(lambda x, d=density: d.log_density(x, 0.0))
        values = biject_to(trace[site.name]["fn"].support).inv(samples[site.name])
        rows = values.reshape((-1, *density.event_shape))
        chosen = rows[np.linspace(0, len(rows) - 1, _NUM_DRAWS).astype(int)]
        median = jnp.median(log_density(chosen))
        draws = density.sample_base(jr.key(0), (_NUM_DRAWS,))
        shares.append(float(jnp.mean(log_density(draws) < median)))
    return min(shares, default=None)
