"""How a finished ``MCMC`` run is read: its fields, its arguments, what it counts from."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

__all__ = [
    "arguments_of",
    "exchange_field",
    "field_of",
    "is_of_particles",
    "log_offset",
    "said",
]

_Run = TypeVar("_Run")


def field_of(mcmc: Any, name: str) -> np.ndarray:
    """A field that the run collected, ``(chains, draws, ...)``, in float64."""
    return np.asarray(mcmc.get_extra_fields(group_by_chain=True)[name], np.float64)


def is_of_particles(mcmc: Any) -> bool:
    """Whether it is a run of ``RTKParticleGibbs``, by what it collects."""
    return "sample_size" in mcmc.get_extra_fields(group_by_chain=True)


def exchange_field(mcmc: Any, name: str) -> np.ndarray:
    """A field that ``RTKReplicaExchange`` collects, ``(chains, draws, ...)``.

    Raises:
        TypeError: for a run of another kernel.
    """
    if "swap_accept_prob" not in mcmc.get_extra_fields(group_by_chain=True):
        kernel = type(mcmc.sampler).__name__
        raise TypeError(
            "`mcmc` must be a finished run of RTKReplicaExchange or RTKParticleGibbs; got "
            f"one of {kernel}. For weighted draws see `rtk.pareto_k`."
        )
    return field_of(mcmc, name)


def arguments_of(mcmc: Any) -> tuple[tuple, dict] | None:
    """What the run was called with; NumPyro keeps it under these names.

    None where it has not run, or not in this process.
    """
    args, kwargs = getattr(mcmc, "_args", None), getattr(mcmc, "_kwargs", None)
    return None if args is None or kwargs is None else (args, kwargs)


def log_offset(mcmc: Any) -> np.ndarray:
    """What log densities are counted from, one a chain, ``(chains,)``: all its digits."""
    pairs = np.atleast_2d(np.asarray(mcmc.last_state.log_offset, np.float64))
    return pairs.sum(axis=-1)


def said(
    sentences: Iterable[Callable[[_Run], str | None]], run: _Run
) -> tuple[str, ...]:
    """Those of the sentences that apply to a run's numbers."""
    return tuple(text for say in sentences if (text := say(run)))
