"""Sites of a traced model: which are learned, and what cannot be sampled."""

from typing import Any

import jax
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.primitives import Messenger

from numpyro_rtk.gaussians import GaussianMixture
from numpyro_rtk.prior import LearnedPrior

__all__ = [
    "FixedKey",
    "depends_on_values",
    "has_prior",
    "is_plain",
    "learned_prior",
    "prior_of",
    "randomness_message",
    "refuse_what_cannot_move",
    "subsampled_plates",
    "uses_network",
]


class FixedKey(Messenger):
    """Gives the same key wherever a model asks for one, as NumPyro's samplers do."""

    def process_message(self, msg: Any) -> None:
        """Before a seed further out would."""
        if msg["type"] == "prng_key" and msg["value"] is None:
            msg["value"] = jr.key(0)


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


def refuse_what_cannot_move(latent: dict) -> None:
    """Raise for latent sites that are discrete or fixed, and for a model of none."""
    for name, site in latent.items():
        if isinstance(site["fn"], dist.Delta):
            raise ValueError(  # noqa: TRY004  what is wrong is the model, not a type
                f"Site {name!r} has a Delta distribution; use `numpyro.deterministic`."
            )
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"Latent site {name!r} is discrete, and these kernels move continuous "
                "sites only. Sum it out (for example `dist.MixtureSameFamily`), or give "
                "it a block of its own: `numpyro.infer.Gibbs([(RTKMALA(model), [...]), "
                "(DiscreteGibbs(model), discrete_latent_sites)])`."
            )
    if not latent:
        raise ValueError("`model` must have at least one latent site; got none.")


def randomness_message(subsampled: list[str], error: Exception) -> str:
    """For a model that runs with a random seed alone."""
    start = "`model` must draw nothing at random but its latent sites; got "
    if subsampled:
        return (
            f"{start}the plates {subsampled} with `subsample_size`: a batch drawn once "
            "and scaled up gives another posterior, one drawn anew each time none. Use "
            "all rows (no `subsample_size`), or choose the batch yourself and approve "
            "of that: `handlers.substitute(model, data={"
            f"{subsampled[0]!r}: indices}})`. `numpyro.infer.HMCECS` is made for batches."
        )
    return (
        f"{start}an error where the model runs without a random seed, as it does in NUTS: "
        f"{type(error).__name__}: {error}. Is a site hidden (`handlers.block`), or drawn "
        "inside a likelihood? Draw before, and pass what was drawn as an argument."
    )
