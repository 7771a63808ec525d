"""``rtk.diagnose``: what a finished run of ``RTKReplicaExchange`` says about itself."""

from typing import Any, NamedTuple

import numpy as np

from numpyro_rtk.core.warmup.levels import suggest_levels
from numpyro_rtk.diagnostics.evidence import UNKNOWN, log_evidence
from numpyro_rtk.diagnostics.exchange_sentences import (
    LIMITS,
    PROBLEMS,
    REMARKS,
    ExchangeNumbers,
)
from numpyro_rtk.diagnostics.finished import (
    arguments_of,
    exchange_field,
    is_of_particles,
    log_offset,
    said,
)
from numpyro_rtk.diagnostics.particles import ParticleDiagnosis, diagnose_particles
from numpyro_rtk.diagnostics.population import population_log_evidence

__all__ = ["Diagnosis", "diagnose"]

# On an edge where the likelihood counts by less, the prior alone decides, ...
_IDLE = 0.02
# ... and the factor of its score is off where it is further than this from 1, fitted to an
# edge that was passed by plain swaps no more often than so.
_FACTOR_OFF, _MOSTLY_SWAPS = 0.5, 0.5


class Diagnosis(NamedTuple):
    """What :func:`diagnose` found; ``print`` it.

    Attributes:
        swap_accept_prob: mean acceptance of each edge, ``(K,)``, lowest first.
        level_accept_prob: mean acceptance of the local moves, ``(K,)``.
        jump_accept_prob: mean acceptance of the jumps between modes.
        barrier: sum of the rejection rates over the edges.
        round_trips: of each chain, ``(chains,)``.
        suggested_levels: number of levels at which edges would accept about half.
        log_evidence: estimate and its standard error; see :func:`log_evidence`.
        population_log_evidence: the same of the population that the chains started from;
            its error is ``inf`` where too few of its ancestors are left.
        prior_efficiency: share of independent prior draws that importance resampling by
            the likelihood would leave, roughly (from one draw per chain); NaN where the
            model has ordinary sites beside the learned ones, or the evidence is unknown.
        share_further_out: of the learned prior's own draws, those that are less probable
            than the median draw of the posterior; NaN where it is not known.
        problems: sentences that say what is wrong and what to change; empty if nothing.
        limits: what no diagnostic of this run can exclude.
        remarks: what would have been cheaper.
    """

    swap_accept_prob: np.ndarray
    level_accept_prob: np.ndarray
    jump_accept_prob: float
    barrier: float
    round_trips: np.ndarray
    suggested_levels: int
    log_evidence: tuple[float, float]
    population_log_evidence: tuple[float, float]
    prior_efficiency: float
    share_further_out: float
    problems: tuple[str, ...]
    limits: tuple[str, ...]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        """The report."""
        accept = self.swap_accept_prob
        pair = lambda value: f"{value[0]:.3f} +- {value[1]:.3f}"
        evidence = pair(self.log_evidence)
        if not self.log_evidence[1] < np.inf:
            evidence = "unknown (some edge passes nothing)"
        theirs = pair(self.population_log_evidence)
        if not self.population_log_evidence[1] < np.inf:
            theirs = "unknown, too few ancestors"
        lines = [
            f"exchange: {len(accept)} edges, acceptance mean {accept.mean():.2f}, worst "
            f"{accept.min():.2f} (edge {int(accept.argmin())}-{int(accept.argmin()) + 1}), "
            f"barrier {self.barrier:.1f}",
            f"round trips per chain: {self.round_trips.mean():.1f} (fewest "
            f"{int(self.round_trips.min())}); jumps between modes: acceptance "
            f"{self.jump_accept_prob:.2f}",
            f"local moves: acceptance {self.level_accept_prob.min():.2f} to "
            f"{self.level_accept_prob.max():.2f}",
            f"log evidence: {evidence} (population: {theirs})",
        ]
        problems = self.problems or ("no fault found; see also R-hat and ESS",)
        lines += [f"- {text}" for text in (*problems, *self.limits, *self.remarks)]
        return "\n".join(lines)


def diagnose(mcmc: Any) -> Diagnosis | ParticleDiagnosis:
    """A short report on a finished run, in plain words.

    Of ``RTKReplicaExchange``, or of ``RTKParticleGibbs`` (whether the particles reach level
    0, and whether draws move).

    >>> print(rtk.diagnose(mcmc))                        # doctest: +SKIP

    It reads the exchanges between noise levels, and holds the run against the population
    that went down the ladder before it; R-hat and effective sample size of the draws are
    ArviZ's. What it cannot exclude it says in ``limits``; :func:`rtk.check_modes` looks
    for that with a population of its own.

    Args:
        mcmc: the ``MCMC`` object after ``run``.

    Returns:
        Numbers and sentences.

    Raises:
        TypeError: unless it ran with one of the two.
    """
    if is_of_particles(mcmc):
        return diagnose_particles(mcmc)
    run = _numbers_of(mcmc)
    problems = said(PROBLEMS, run)
    remarks = () if problems else said(REMARKS, run)
    return Diagnosis(
        swap_accept_prob=run.accept,
        level_accept_prob=run.local,
        jump_accept_prob=float(np.mean(exchange_field(mcmc, "jump_accept_prob"))),
        barrier=float(np.sum(1.0 - run.accept)),
        round_trips=run.trips,
        suggested_levels=suggest_levels(run.accept),
        log_evidence=run.evidence,
        population_log_evidence=run.found_evidence,
        prior_efficiency=run.efficiency,
        share_further_out=run.further_out,
        problems=problems,
        limits=said(LIMITS, run),
        remarks=remarks,
    )


def _numbers_of(mcmc: Any) -> ExchangeNumbers:
    accept = exchange_field(mcmc, "swap_accept_prob")
    shared, sampler = mcmc.last_state.shared, mcmc.sampler
    value, error = log_evidence(mcmc)
    log_likelihood = _log_likelihood(mcmc)
    share, found_share, found_error, places = _regions(mcmc)
    return ExchangeNumbers(
        accept=accept.mean(axis=(0, 1)),
        local=exchange_field(mcmc, "level_accept_prob").mean(axis=(0, 1)),
        trips=exchange_field(mcmc, "round_trips")[:, -1],
        num_draws=accept.shape[1],
        energy=exchange_field(mcmc, "potential_energy"),
        rounding=_rounding(mcmc),
        diverging=float(np.mean(exchange_field(mcmc, "diverging"))),
        evidence=(value, error),
        found_evidence=population_log_evidence(mcmc),
        shares=share,
        found_share=found_share,
        found_error=found_error,
        places=places,
        disagreeing=_disagreeing_edges(sampler, shared.settings, log_likelihood),
        # likelihoods count from where log densities count from
        efficiency=_prior_efficiency(
            log_likelihood, value - log_offset(mcmc)[0], error
        ),
        further_out=_share_further_out(mcmc),
        num_particles=sampler.num_particles,
        num_informed=float(np.max(np.asarray(shared.found.num_informed))),
        has_likelihood=sampler.has_likelihood,
    )


def _regions(mcmc: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Shares by draws, ``(chains, R)``, by particles, ``(R,)``, their errors; places.

    R = 0 for sequential chains, which have a population each of their own.
    """
    of_draws = exchange_field(mcmc, "mode").astype(int)
    found = mcmc.last_state.shared.found
    if np.ndim(found.share) > 1:
        return np.zeros((len(of_draws), 0)), np.zeros(0), np.zeros(0), ()
    num = len(found.share)
    shares = [np.bincount(chain, minlength=num) / len(chain) for chain in of_draws]
    share, error = (np.asarray(x, np.float64) for x in (found.share, found.share_error))
    return np.array(shares), share, error, _places(mcmc)


def _log_likelihood(mcmc: Any) -> np.ndarray | None:
    """At the last replicas, ``(chains, K + 1)``; None where it cannot be had."""
    arguments = arguments_of(mcmc)
    if arguments is None:
        return None
    values = mcmc.sampler.log_likelihood(mcmc.last_state, *arguments)
    return None if values is None else np.asarray(values, np.float64)


def _rounding(mcmc: Any) -> float:
    """Nats that the log density is resolved to; 0 where it cannot be had."""
    arguments = arguments_of(mcmc)
    if arguments is None:
        return 0.0
    return mcmc.sampler.rounding(mcmc.last_state, *arguments)


def _places(mcmc: Any) -> tuple[str, ...]:
    """Where the regions of the population lie."""
    arguments, shared = arguments_of(mcmc), mcmc.last_state.shared
    if arguments is None:
        return tuple(f"region {i}" for i in range(len(shared.found.share)))
    return tuple(mcmc.sampler.places(shared, *arguments))


def _share_further_out(mcmc: Any) -> float:
    arguments = arguments_of(mcmc)
    if arguments is None or not mcmc.sampler.has_likelihood:
        return np.nan
    share = mcmc.sampler.share_further_out(mcmc.get_samples(), *arguments)
    return np.nan if share is None else share


def _prior_efficiency(
    log_likelihood: np.ndarray | None, evidence: float, error: float
) -> float:
    r"""Kish's fraction of prior draws, :math:`Z / E_{\text{post}}[\ell]`."""
    if log_likelihood is None or not error < UNKNOWN:
        return np.nan
    at_draws = log_likelihood[:, 0]
    mean = np.logaddexp.reduce(at_draws) - np.log(len(at_draws))
    return float(np.exp(np.minimum(evidence - mean, 0.0)))


def _disagreeing_edges(
    sampler: Any, settings: Any, log_likelihood: np.ndarray | None
) -> np.ndarray:
    """Edges where the prior alone counts and its proposal wants another factor than 1.

    The likelihood counts by its inverse temperature times the nats that it falls from the
    draws to the replicas of the level, which at the top are the prior's.
    """
    # a density that is exact at every level has nothing to train
    if not getattr(sampler, "uses_network", True):
        return np.array([], int)
    factor = np.atleast_2d(np.asarray(settings.proposals.mean_score)).mean(axis=0)
    fall = np.zeros(len(factor))
    if log_likelihood is not None:
        typical = np.median(log_likelihood, axis=0)
        fall = np.abs(typical[0] - typical[1:])
    # a likelihood without a value there (nan, -inf) is not known to be idle
    influence = np.nan_to_num(_likelihood_share(settings) * (1.0 + fall), nan=np.inf)
    # the factor is fitted to what was no plain swap
    swaps = np.atleast_2d(np.asarray(settings.swap_share)).mean(axis=0)
    is_off = (influence < _IDLE) & (np.abs(factor - 1.0) > _FACTOR_OFF)
    return np.flatnonzero(is_off & ~(swaps > _MOSTLY_SWAPS))


def _likelihood_share(settings: Any) -> np.ndarray:
    """Inverse temperature of the likelihood at the upper level of each edge."""
    times = np.atleast_2d(np.asarray(settings.times, np.float64)).mean(axis=0)
    c = float(np.mean(np.asarray(settings.likelihood_variance)))
    return c / (c - np.expm1(-2.0 * times[1:]))
