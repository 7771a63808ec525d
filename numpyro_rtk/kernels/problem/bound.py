"""A problem for given arguments of the model: functions of flat positions, and by row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk import paths
from numpyro_rtk.core.annealed import Path
from numpyro_rtk.core.segment import Evaluation
from numpyro_rtk.density import BaseFn
from numpyro_rtk.kernels.problem.terms import Terms, sum_in_two

__all__ = ["Bound", "ByRow"]


class ByRow(NamedTuple):
    """The same problem as a product over rows; positions are ``(R, dim of a row)``.

    Attributes:
        base: the noised prior, with a log density for each row.
        log_likelihood: ``(R,)``; None without.
    """

    base: Callable[[jax.Array, jax.Array], Evaluation]
    log_likelihood: Callable[[jax.Array], jax.Array] | None


class Bound(NamedTuple):
    """A problem for given model arguments and a given frame.

    Attributes:
        base: the noised prior of the flat position.
        path: level by level target; at level 0 less than the model's log density by the
            sum of ``at_origin``.
        flatten: from the user's values to the flat standardised position.
        unflatten: back.
        log_volume: log determinant of ``unflatten``.
        log_likelihood: everything but the learned priors, at level 0; None without.
        at_origin: the model's terms at the frame's origin.
        by_row: see :class:`ByRow`.
    """

    base: BaseFn
    path: Path
    flatten: Callable[[Any], jax.Array]
    unflatten: Callable[[jax.Array], Any]
    log_volume: jax.Array
    log_likelihood: Callable[[jax.Array], jax.Array] | None
    at_origin: Terms
    by_row: ByRow

    @property
    def log_offset(self) -> jax.Array:
        """The sum of ``at_origin``, and what its rounding leaves out, ``(2,)``."""
        return sum_in_two(self.at_origin)

    def at_ground(self, position: jax.Array) -> Evaluation:
        """The path at level 0, whatever its c."""
        return self.path(position, paths.levels_of(jnp.zeros(()), 1.0))

    def energy(self, log_density: jax.Array) -> jax.Array:
        """NumPyro's potential energy, from a log density of the path at level 0."""
        return self.log_volume - (log_density + jnp.sum(self.log_offset))
