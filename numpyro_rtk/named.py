"""Several named sites inside one learned prior, and what a later day must know of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.primitives import Messenger

from numpyro_rtk.prior import LearnedPrior
from numpyro_rtk.sites import sites_of, split_sites

__all__ = ["learned_sites"]


def learned_sites(name: str, prior: LearnedPrior) -> dict[str, jax.Array]:
    """All sites of a prior that was learned of several, inside a model, by name.

    >>> model_, _ = rtk.fit(key, yesterday)                      # doctest: +SKIP
    >>> sites = rtk.learned_sites("prior", rtk.LearnedPrior(model_))   # doctest: +SKIP
    >>> mu, tau = sites["mu"], sites["tau"]                      # doctest: +SKIP

    One latent site ``name`` holds the unconstrained vector that the joint density is of;
    every named site is recorded as a deterministic one, constrained. ``rtk.fit`` on the
    finished run takes the named sites, with the supports that they have here: a posterior
    is handed on day after day by the same two lines.

    Args:
        name: of the latent site.
        prior: of a model that ``rtk.fit`` learned from a dict, an ``MCMC`` object,
            InferenceData or a DataTree.

    Returns:
        Constrained value of each site.

    Raises:
        TypeError: when ``prior`` is not a ``LearnedPrior``.
        ValueError: when it was learned of one unnamed array.
    """
    if not isinstance(prior, LearnedPrior):
        raise TypeError(
            f"`prior` must be a LearnedPrior; got {type(prior).__name__}. Write "
            "`rtk.LearnedPrior(model_)`."
        )
    sites = sites_of(prior.density)
    if sites is None or sites[0].name is None:
        raise ValueError(
            "`prior` must be learned of named sites (`rtk.fit` on a dict); got one of an "
            f'array. Write `numpyro.sample("{name}", prior)`.'
        )
    with _Mark(name, {"learned_vector": name}):
        vector = jnp.asarray(numpyro.sample(name, prior))
    values = split_sites(sites, vector)
    for site in sites:
        with _Mark(site.name, {"part_of": name, "support": site.support}):
            value = numpyro.deterministic(str(site.name), values[str(site.name)])
        values[str(site.name)] = jnp.asarray(value)
    return values


class _Mark(Messenger):
    """Writes on one site what ``rtk.fit`` reads when the posterior is handed on.

    On the site itself, which handlers further out may rename (``handlers.scope``).
    """

    def __init__(self, name: str | None, notes: dict[str, Any]):
        super().__init__()
        self.name, self.notes = name, notes

    def process_message(self, msg: Any) -> None:
        """Mark the site, not those that handlers add in passing."""
        if msg.get("name") == self.name:
            msg["rtk"] = tuple(self.notes.items())
