"""What is noted of a model when a kernel first runs it: its latent sites, static facts."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to
from numpyro.infer.util import helpful_support_errors

from numpyro_rtk.kernels.problem.flat import Flat, Site
from numpyro_rtk.kernels.problem.messages import (
    depends_on_values,
    has_prior,
    is_plain,
    learned_prior,
    prior_of,
    subsampled_plates,
    uses_network,
)
from numpyro_rtk.kernels.problem.refusals import refuse_what_cannot_move
from numpyro_rtk.kernels.problem.rows import Plate, shared_plates
from numpyro_rtk.kernels.programs import ById

__all__ = ["Noted", "note"]


class Noted(NamedTuple):
    """Static facts, the same for every call of the model with such arguments.

    Attributes:
        flat: the latent sites.
        plain: learned sites that NumPyro counts as the base does.
        in_control_flow: learned sites inside NumPyro's ``scan`` or ``cond``.
        may_be_coupled: whether a learned prior comes after some latent value.
        has_energy: whether every learned prior has.
        uses_network: whether some learned prior may be wrong at some noise level.
        constants: the arrays of the learned priors.
        transforms: of each latent site; None where some depend on other sites' values.
        has_prior: of each ordinary coordinate, whether its prior can be drawn from.
        has_deterministic: whether the model has deterministic sites.
        has_params: whether it has parameters.
        subsampled: plates that would draw a batch of their rows.
        plates: that all latent sites stand in.
        is_one_prior: whether each learned site has the same prior in all its rows.
    """

    flat: Flat
    plain: frozenset[str]
    in_control_flow: frozenset[str]
    may_be_coupled: bool
    has_energy: bool
    uses_network: bool
    constants: tuple[ById, ...]
    transforms: dict[str, Callable] | None
    has_prior: np.ndarray
    has_deterministic: bool
    has_params: bool
    subsampled: list[str]
    plates: list[Plate]
    is_one_prior: bool


def note(trace: dict, demoted: frozenset[str]) -> Noted:
    """The facts of a trace.

    Args:
        trace: of a run anywhere.
        demoted: sites to count as ordinary though a learned prior stands there.

    Raises:
        ValueError: for latent sites that cannot be moved, or none.
    """
    latent = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    refuse_what_cannot_move(latent)
    learned = {
        name: site
        for name, site in latent.items()
        if learned_prior(site) is not None and name not in demoted
    }
    transforms = _transforms(latent)
    flat = _flat(latent, list(learned), transforms)
    priors = [prior_of(site) for site in learned.values()]
    types = {site["type"] for site in trace.values()}
    in_control_flow = [n for n in learned if "_control_flow_done" in trace[n]]
    can_be_drawn = [
        np.full(site.size, has_prior(latent[site.name]["fn"])) for site in flat.ordinary
    ]
    is_dynamic = any(depends_on_values(site["fn"].support) for site in latent.values())
    return Noted(
        flat=flat,
        plain=frozenset(name for name, site in learned.items() if is_plain(site)),
        in_control_flow=frozenset(in_control_flow),
        may_be_coupled=bool(in_control_flow) or not {*learned} <= {next(iter(latent))},
        has_energy=all(prior.has_energy for prior in priors),
        uses_network=any(uses_network(prior.density) for prior in priors),
        constants=tuple(
            ById(leaf) for leaf in jax.tree.leaves([p.density for p in priors])
        ),
        transforms=None if is_dynamic else transforms,
        has_prior=np.concatenate([*can_be_drawn, np.zeros(0, bool)]),
        has_deterministic="deterministic" in types,
        has_params=not types.isdisjoint({"param", "mutable"}),
        subsampled=subsampled_plates(trace),
        plates=shared_plates(latent, {site.name: site.shape for site in flat.sites}),
        is_one_prior=not any(p.is_stacked or p.condition is not None for p in priors),
    )


def _transforms(latent: dict) -> dict[str, Callable]:
    """From unconstrained values, as NumPyro chooses them."""
    transforms = {}
    for name, site in latent.items():
        with helpful_support_errors(site):
            transforms[name] = biject_to(site["fn"].support)
    return transforms


def _flat(latent: dict, learned: list[str], transforms: dict) -> Flat:
    sites = {
        name: Site(
            name, tuple(transforms[name].inverse_shape(jnp.shape(site["value"])))
        )
        for name, site in latent.items()
    }
    ordinary = [name for name in latent if name not in learned]
    return Flat(
        learned=tuple(sites[name] for name in learned),
        ordinary=tuple(sites[name] for name in ordinary),
    )
