"""The state of particle Gibbs that NumPyro's driver carries from draw to draw."""

from typing import Any, NamedTuple

import jax

from numpyro_rtk.core.particle_plan import ParticlePlan
from numpyro_rtk.core.warmup.particles import ParticleAdapt
from numpyro_rtk.kernels.state import lists_its_fields

__all__ = ["ParticleAdaptState", "ParticleState"]


@lists_its_fields
class ParticleAdaptState(ParticleAdapt):
    """What warm-up tunes, with the names that ``extra_fields`` may ask for."""


@lists_its_fields
class ParticleState(NamedTuple):
    """State of ``RTKParticleGibbs``; every field but the last two can be collected.

    Attributes:
        i: iteration, warm-up included.
        z: the draw: a dict of unconstrained sites, or an array of the event shape.
        potential_energy: minus the log density of the draw (unconstrained, as NUTS
            reports it); without an energy that of all but the learned priors.
        accept_prob: 1 where the draw has moved, else 0; of several rows their share.
        diverging: the draw has no density.
        num_score_evals: network evaluations spent on this draw.
        sample_size: effective number of particles at every level, ``(K + 1,)``, of the row
            that has fewest there.
        log_evidence: of this draw's particles; see :class:`RTKParticleGibbs`.
        mean_accept_prob: running mean of ``accept_prob`` within the phase.
        row_accept_prob: the same of each row, ``(R,)``.
        path: the draw and how it came down, standardised, ``(K + 1, R, dim of a row)``.
        adapt_state: see :class:`ParticleAdapt`.
        shared: levels and reverse kernels, the same for all chains; without their axis.
        rng_key: PRNG key of the next draw.
    """

    i: jax.Array
    z: Any
    potential_energy: jax.Array
    accept_prob: jax.Array
    diverging: jax.Array
    num_score_evals: jax.Array
    sample_size: jax.Array
    log_evidence: jax.Array
    mean_accept_prob: jax.Array
    row_accept_prob: jax.Array
    path: jax.Array
    adapt_state: ParticleAdaptState
    shared: ParticlePlan
    rng_key: jax.Array
