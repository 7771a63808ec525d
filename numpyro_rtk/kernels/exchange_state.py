"""The state of the replica exchange that NumPyro's driver carries from draw to draw."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rtk.core.exchange.bridge import bridge_terms, log_evidence_of
from numpyro_rtk.core.exchange.sweep import SweepInfo
from numpyro_rtk.core.warmup.exchange import Adaptation
from numpyro_rtk.kernels.state import lists_its_fields

__all__ = ["DEFAULT_FIELDS", "ExchangeState", "Tuned", "evidence_fields", "first_state"]

# Collected without asking.
DEFAULT_FIELDS = (
    "z",
    "diverging",
    "accept_prob",
    "potential_energy",
    "num_score_evals",
    "swap_accept_prob",
    "level_accept_prob",
    "jump_accept_prob",
    "mode",
    "round_trips",
    "log_evidence",
    "bridge_down",
    "bridge_up",
)


@lists_its_fields
class Tuned(NamedTuple):
    """What warm-up has tuned, as each chain sees it; ``extra_fields`` may ask for it.

    Attributes:
        step_size: local step sizes in force, ``(K,)``.
        times: of the levels, in OU time, ``(K + 1,)``.
        likelihood_variance: c of the path, on the standardised scale.
        swap_share: how often each edge tries a plain swap, ``(K,)``.
    """

    step_size: jax.Array
    times: jax.Array
    likelihood_variance: jax.Array
    swap_share: jax.Array

    @classmethod
    def of(cls, adaptation: Adaptation) -> "Tuned":
        """From all that warm-up keeps."""
        settings = adaptation.settings
        return cls(
            settings.step_size,
            settings.times,
            settings.likelihood_variance,
            settings.swap_share,
        )


@lists_its_fields
class ExchangeState(NamedTuple):
    """State of :class:`RTKReplicaExchange`.

    Attributes:
        i: iteration, warm-up included.
        z: the draw: a dict of unconstrained sites, or an array of the event shape.
        potential_energy: minus the log density of the draw (unconstrained).
        accept_prob: mean of ``swap_accept_prob``.
        diverging: whether a local move at level 0 diverged.
        num_score_evals: network evaluations spent on this draw.
        swap_accept_prob: ``(K,)``, acceptance of the exchanges, lowest edge first.
        level_accept_prob: ``(K,)``, acceptance of the local moves, level 0 first.
        jump_accept_prob: acceptance of the jump between modes.
        mode: which component of the population's mixture the draw belongs to.
        bridge_down: ``(K,)``, terms of the evidence; see :func:`rtk.log_evidence`.
        bridge_up: ``(K,)``, likewise.
        round_trips: lineages that have gone from level 0 to the top and back, since
            warm-up.
        log_evidence: running estimate of the log evidence since warm-up.
        log_offset: ``(2,)``, what the levels' log densities are counted from: added to
            ``log_evidence`` already, not to the bridge's terms. A number and what its
            rounding leaves out.
        bridge_sums: ``(2, K)``, sums of the terms since warm-up.
        phase: ``(K + 1,)``, where each replica's lineage has been.
        replicas: standardised positions of all levels, ``(K + 1, dim)``.
        adapt_state: see :class:`Tuned`.
        shared: all that warm-up learns; one for all vectorised chains, so it has no axis
            of chains.
        rng_key: PRNG key of the next draw.
    """

    i: jax.Array
    z: Any
    potential_energy: jax.Array
    accept_prob: jax.Array
    diverging: jax.Array
    num_score_evals: jax.Array
    swap_accept_prob: jax.Array
    level_accept_prob: jax.Array
    jump_accept_prob: jax.Array
    mode: jax.Array
    bridge_down: jax.Array
    bridge_up: jax.Array
    round_trips: jax.Array
    log_evidence: jax.Array
    log_offset: jax.Array
    bridge_sums: jax.Array
    phase: jax.Array
    replicas: jax.Array
    adapt_state: Tuned
    shared: Adaptation
    rng_key: jax.Array


def first_state(
    key: jax.Array,
    shared: Adaptation,
    replicas: jax.Array,
    *,
    z: Any,
    potential_energy: jax.Array,
    num_score_evals: int,
    log_offset: jax.Array,
) -> ExchangeState:
    """Before any draw; without what is shared, which has no axis of chains.

    Args:
        key: PRNG key of the first draw.
        shared: what warm-up starts from.
        replicas: standardised positions, ``(K + 1, dim)``.
        z: the start as a draw.
        potential_energy: there.
        num_score_evals: evaluations of each draw.
        log_offset: ``(2,)``, what log densities are counted from.
    """
    dtype, num_levels = replicas.dtype, len(replicas) - 1
    nothing, zero = jnp.zeros(num_levels, dtype), jnp.zeros((), dtype)
    return ExchangeState(
        i=jnp.zeros((), int),
        z=z,
        potential_energy=potential_energy,
        accept_prob=zero,
        diverging=jnp.array(False),
        num_score_evals=jnp.asarray(num_score_evals),
        swap_accept_prob=nothing,
        level_accept_prob=nothing,
        jump_accept_prob=zero,
        mode=jnp.zeros((), int),
        bridge_down=nothing,
        bridge_up=nothing,
        round_trips=jnp.zeros((), int),
        log_evidence=jnp.sum(shared.settings.log_ratio) + jnp.sum(log_offset),
        log_offset=log_offset,
        bridge_sums=jnp.zeros((2, num_levels), dtype),
        phase=jnp.zeros(num_levels + 1, int).at[0].set(1),
        replicas=replicas,
        adapt_state=Tuned.of(shared),
        shared=None,  # type: ignore[arg-type]
        rng_key=key,
    )


def evidence_fields(
    bridge_sums: jax.Array,
    info: SweepInfo,
    log_ratio: jax.Array,
    log_offset: jax.Array,
    is_kept: jax.Array,
) -> dict[str, jax.Array]:
    """The state's fields that follow from the bridge's terms of one draw.

    Args:
        bridge_sums: of the draws before, ``(2, K)``.
        info: of this draw's sweeps, a leading axis.
        log_ratio: log-ratio estimates in force, ``(K,)``.
        log_offset: ``(2,)``, what log densities are counted from.
        is_kept: whether the draw comes after warm-up.
    """
    terms = bridge_terms(info.down_increment, info.up_increment, log_ratio)
    down, up = (jnp.nanmean(term, axis=0) for term in terms)
    sums = jnp.where(is_kept, bridge_sums + jnp.stack([down, up]), 0.0)
    in_warmup = jnp.sum(log_ratio)
    estimate = jnp.where(is_kept, log_evidence_of(log_ratio, sums), in_warmup)
    return {
        "bridge_down": down,
        "bridge_up": up,
        "bridge_sums": sums,
        "log_evidence": estimate + jnp.sum(log_offset),
        "log_offset": log_offset,
    }
