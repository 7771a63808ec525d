"""The state that NumPyro's driver carries from draw to draw."""

from typing import Any, NamedTuple, TypeVar

import jax

from numpyro_rtk.core.warmup.annealed import AnnealedAdapt

__all__ = ["AdaptState", "RTKState", "lists_its_fields"]

# The driver's own: the key, and what has no axis of chains.
_NOT_COLLECTED = ("rng_key", "shared")

_T = TypeVar("_T")


def lists_its_fields(cls: type[_T]) -> type[_T]:
    """A ``NamedTuple`` whose error for an unknown field says which there are.

    NumPyro looks for each of ``extra_fields`` as an attribute, and then as a key; without
    this the user reads "tuple indices must be integers".
    """
    fields: tuple[str, ...] = getattr(cls, "_fields", ())
    properties = (n for n, v in vars(cls).items() if isinstance(v, property))
    names = [name for name in (*fields, *properties) if name not in _NOT_COLLECTED]

    def unknown(name: str) -> AttributeError:
        return AttributeError(
            f"`extra_fields` must be fields of the state: {names}; got {name!r}."
        )

    def missing(self, name):
        raise unknown(name)

    def item(self, index):
        if isinstance(index, str):
            raise unknown(index)
        return tuple.__getitem__(self, index)

    cls.__getattr__ = missing  # type: ignore[attr-defined]
    cls.__getitem__ = item  # type: ignore[attr-defined]
    return cls


@lists_its_fields
class AdaptState(AnnealedAdapt):
    """What warm-up tunes, with the names that ``extra_fields`` may ask for."""

    @property
    def step_size(self) -> jax.Array:
        """Step sizes in force, ``(K,)``; ``extra_fields=("adapt_state.step_size",)``."""
        return self.steps.current


@lists_its_fields
class RTKState(NamedTuple):
    """State of ``RTKMALA`` and ``RTKULD``; every field but the last two can be collected.

    Attributes:
        i: iteration, warm-up included.
        z: the draw: a dict of unconstrained sites, or an array of the event shape.
        potential_energy: minus the log density of the draw (unconstrained, as NUTS
            reports it); zero where only a score is known.
        accept_prob: corrected: probability of leaving the current draw; raw: mean over
            the inner steps.
        diverging: corrected: no candidate had any density; raw: an inner step diverged
            or the draw has no density.
        num_score_evals: network evaluations spent on this draw.
        segment_accept_prob: ``(K,)``, inner acceptance per segment, lowest first; NaN
            where a segment has no inner steps.
        log_weight: raw: the draw's log importance weight; corrected: log of the
            candidates' mean weight. In both its exponential averages to the evidence.
            Zero where the inner steps carry no weight.
        mean_accept_prob: running mean of ``accept_prob`` within the phase.
        adapt_state: see :class:`AdaptState`.
        rng_key: PRNG key of the next draw.
    """

    i: jax.Array
    z: Any
    potential_energy: jax.Array
    accept_prob: jax.Array
    diverging: jax.Array
    num_score_evals: jax.Array
    segment_accept_prob: jax.Array
    log_weight: jax.Array
    mean_accept_prob: jax.Array
    adapt_state: AdaptState
    rng_key: jax.Array
