"""The replica exchange as a block of NumPyro's Gibbs sampler.

Only level 0 follows the other blocks. The levels above stay bound to values of theirs that
are frozen after warm-up: were they to follow, their replicas would no longer be draws of
their targets.
"""

import jax
import jax.numpy as jnp

from numpyro_rtk.core.annealed import Path
from numpyro_rtk.core.warmup.exchange import Adaptation
from numpyro_rtk.kernels.base import GIBBS_SITES
from numpyro_rtk.kernels.problem.bound import Bound
from numpyro_rtk.kernels.problem.problem import Problem

__all__ = ["path_beside_blocks", "with_reference"]


def path_beside_blocks(
    problem: Problem, bound: Bound, adapt: Adaptation, args: tuple, kwargs: dict
) -> Path:
    """The path of a problem; that of ``bound`` where there are no other blocks.

    Args:
        problem: the model.
        bound: the same bound to the present arguments.
        adapt: holds the values that the levels above 0 are bound to.
        args: of the model.
        kwargs: of the model, with the other blocks' values.
    """
    if GIBBS_SITES not in kwargs:
        return bound.path
    frozen = {**kwargs, GIBBS_SITES: adapt.reference}
    above = problem.bind(args, frozen, adapt.frame).path

    def path(u, level):
        current, fixed = bound.path(u, level), above(u, level)
        pick = lambda now, then: jnp.where(level.t == 0.0, now, then)
        return jax.tree.map(pick, current, fixed)

    return path


def with_reference(adapt: Adaptation, kwargs: dict, in_warmup: jax.Array) -> Adaptation:
    """While warm-up lasts the levels above 0 follow the other blocks too."""
    if GIBBS_SITES not in kwargs:
        return adapt
    reference = jax.tree.map(
        lambda new, old: jnp.where(in_warmup, new, old),
        kwargs[GIBBS_SITES],
        adapt.reference,
    )
    return adapt._replace(reference=reference)
