"""Do learned priors depend on other latent sites?

A prior whose density does, through a condition for one, is *coupled*: at every level it
is what it is at the clean guess of the others, and the gradient goes through it. A prior
whose noise process does cannot be annealed along it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to

from numpyro_rtk.kernels.problem.dependence import depends_on
from numpyro_rtk.kernels.problem.learned import parts_of, process_of
from numpyro_rtk.kernels.problem.noted import Noted
from numpyro_rtk.kernels.problem.runs import Run

__all__ = ["Coupling", "find_coupling"]


class Coupling(NamedTuple):
    """What depends on latent sites.

    Attributes:
        is_coupled: whether some learned prior does.
        demoted: learned sites to count as ordinary ones; the model is to be noted anew.
    """

    is_coupled: bool
    demoted: frozenset[str] = frozenset()


def find_coupling(noted: Noted, run: Run) -> Coupling:
    """By what is computed from what in one run of the model; none where it cannot be.

    Raises:
        ValueError: for a noise process, or a score without an energy, that depends on
            latent sites.
    """
    if not noted.may_be_coupled:
        return Coupling(False)
    processes, densities = depends_on(
        lambda position: _facts_of_priors(noted, run, position),
        jnp.zeros(noted.flat.dim),
    )
    names = [site.name for site in noted.flat.learned]
    moving = frozenset(name for name in names if any(processes[name]))
    if moving and moving <= noted.in_control_flow:
        # another density for each value, as of `cond`: no noise process in common
        return Coupling(False, moving)
    if moving:
        raise ValueError(
            "`loc` and `scale` of a learned density must not depend on latent sites: "
            f"they are those of the noise process; got sites {names}. Give the "
            "density what it depends on as `rtk.LearnedPrior(model_, condition=...)`."
        )
    is_coupled = any(jax.tree.leaves(densities))
    if is_coupled and not noted.has_energy:
        raise ValueError(
            "A condition that depends on latent sites needs an energy, whose "
            f"gradient goes through it; got a score alone among sites {names}. Learn "
            "one (`rtk.fit(..., condition=...)` without `network`), or give observed "
            "values as `condition`."
        )
    return Coupling(is_coupled)


def _facts_of_priors(noted: Noted, run: Run, position: jax.Array) -> tuple[dict, list]:
    """Noise processes by site, and densities at places that stay where they are.

    ``position``: unconstrained values of all sites; where these show, priors depend on it.
    """
    flat = noted.flat
    trace = run.at(flat.split(position))
    processes = {s.name: process_of(trace[s.name], s) for s in flat.learned}
    densities = []
    for site, part in zip(flat.learned, parts_of(flat, trace), strict=True):
        block = jnp.zeros((part.copies, part.dim))
        densities.append(part.at(block, jnp.ones(())))
        message = trace[site.name]
        if site.name not in noted.plain and noted.has_energy:
            fixed = biject_to(message["fn"].support)(jnp.zeros(site.shape))
            densities.append((message["scale"], message["fn"].log_prob(fixed)))
    return processes, densities
