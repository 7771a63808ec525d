"""What a site of a traced model (NumPyro's message) tells about itself."""

from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from numpyro_rtk.gaussians import GaussianMixture
from numpyro_rtk.prior import LearnedPrior

__all__ = [
    "depends_on_values",
    "has_prior",
    "is_plain",
    "learned_prior",
    "prior_of",
    "subsampled_plates",
    "uses_network",
]


def learned_prior(site: dict) -> LearnedPrior | None:
    """The learned prior inside expand, to_event and mask; None for other sites."""
    fn = site["fn"]
    wrappers = (dist.ExpandedDistribution, dist.Independent, dist.MaskedDistribution)
    while isinstance(fn, wrappers):
        fn = fn.base_dist
    return fn if isinstance(fn, LearnedPrior) else None


def prior_of(site: dict) -> LearnedPrior:
    """The prior of a site that is known to be learned."""
    prior = learned_prior(site)
    assert prior is not None
    return prior


def is_plain(site: dict) -> bool:
    """Whether NumPyro's count of the site is the base's; of a scan it is left to NumPyro.

    There the order of the values need not be that of the priors (``reverse=True``).
    """
    fn = site["fn"]
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    is_alone = isinstance(fn, LearnedPrior) and site["scale"] is None
    return is_alone and "_control_flow_done" not in site


def has_prior(fn: Any) -> bool:
    """Whether the site's prior can be drawn from."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return not isinstance(fn, dist.ImproperUniform)


def uses_network(density: Any) -> bool:
    """Whether it may be wrong at some noise level: all but mixtures, and bases alone."""
    return getattr(density, "uses_network", not isinstance(density, GaussianMixture))


def depends_on_values(support: Any) -> bool:
    """Whether the support has bounds that are arrays, hence perhaps other sites'."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    leaves = jax.tree.leaves(support)
    return not all(isinstance(leaf, int | float | np.number) for leaf in leaves)


def subsampled_plates(trace: dict) -> list[str]:
    """Plates that would draw a batch of their rows."""
    plates = {n: site["args"] for n, site in trace.items() if site["type"] == "plate"}
    return [n for n, (size, batch) in plates.items() if batch not in (None, size)]
