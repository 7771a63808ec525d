"""What a network must offer to be trained by ``fit`` and to sit inside a model.

Both kinds are called *unbatched*, with ``z`` of shape ``event_shape`` on the
standardised scale of the Ornstein-Uhlenbeck process (variance about 1 at every time)
and the scalar ``log_r``, the log of the noise-to-signal ratio. The models map them
over batches. A network for a conditional density has an attribute ``condition_shape``
and a third argument, the standardised condition; the others need not mention it.
``hyperparameters`` returns the constructor's arguments, except ``key``,
as values that JSON can hold; it is what ``numpyro_rtk.save`` writes.

A class that does not care for the order of an event's first axis (a set of vectors)
sets ``exchangeable = True``: ``fit`` then gives it a Gaussian base that does not either.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax

__all__ = ["AbstractEnergyNetwork", "AbstractScoreNetwork"]


class AbstractEnergyNetwork(eqx.Module):
    """A scalar function of a noisy point: the energy beyond the Gaussian base."""

    exchangeable: ClassVar[bool] = False
    event_shape: eqx.AbstractVar[tuple[int, ...]]

    @abc.abstractmethod
    def __call__(self, z: jax.Array, log_r: jax.Array) -> jax.Array:
        """Map ``z`` (event_shape) and ``log_r`` () to a scalar."""

    @abc.abstractmethod
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, except ``key``, ready for JSON."""


class AbstractScoreNetwork(eqx.Module):
    """A vector function of a noisy point: the score beyond the Gaussian base."""

    exchangeable: ClassVar[bool] = False
    event_shape: eqx.AbstractVar[tuple[int, ...]]

    @abc.abstractmethod
    def __call__(self, z: jax.Array, log_r: jax.Array) -> jax.Array:
        """Map ``z`` (event_shape) and ``log_r`` () to an array of ``event_shape``."""

    @abc.abstractmethod
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments, except ``key``, ready for JSON."""
