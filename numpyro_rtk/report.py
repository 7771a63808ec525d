"""What a finished run of ``RTKReplicaExchange`` says about itself, without ArviZ."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numpyro_rtk._checks import COARSE, coarse_message
from numpyro_rtk.core.levels import LEAST_ACCEPTANCE, suggest_levels
from numpyro_rtk.core.population import narrowest_found

__all__ = [
    "Diagnosis",
    "diagnose",
    "log_evidence",
    "lost_regions",
]

# Of 100 prior draws, so many must be left for importance resampling to be recommended.
_ENOUGH_OF_THE_PRIOR = 0.02
# An evidence with a larger error says nothing.
_UNKNOWN = 0.5
# Where the last particles go back to fewer at the top, neither their evidence nor their
# shares have an error that can be believed.
ENOUGH_ANCESTORS = 30
# A region counts as lost with less than this part of the population's share.
_LOST = 0.1
# Of the learned prior's draws, fewer than this further out: few samples were there.
_FAR_OUT = 0.01
_MANY_LEVELS = 0.85


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


class _Run(NamedTuple):
    """The numbers of a run that sentences are made from."""

    accept: np.ndarray  # (K,)
    local: np.ndarray  # (K,)
    trips: np.ndarray  # (chains,)
    num_draws: int
    energy: np.ndarray  # minus log density of the draws
    rounding: float  # nats that the log density is resolved to
    diverging: float
    evidence: tuple[float, float]
    found_evidence: tuple[float, float]
    shares: np.ndarray  # (chains, regions), of the run
    found_share: np.ndarray  # (regions,), of the population
    found_error: np.ndarray
    places: tuple[str, ...]  # of the regions
    disagreeing: np.ndarray  # edges
    efficiency: float
    further_out: float
    num_particles: int
    num_informed: float
    has_likelihood: bool


def log_evidence(mcmc: Any) -> tuple[float, float]:
    r"""Log evidence of a finished ``RTKReplicaExchange`` run, and its standard error.

    Bridge sampling (Bennett 1976) over both directions of every exchange. The evidence is
    that of the model with the learned prior as it is normalised. The error is the larger
    of batch means within chains and the spread between chains, and grows by what the
    estimate is below the population's, beyond twice the error of that: such a
    difference is that of a mode which the chains have lost. A mode that neither has
    reached it cannot know of. Where nothing passes some edge, the error is ``inf``.

    Args:
        mcmc: the ``MCMC`` object after ``run``.

    Raises:
        TypeError: unless it ran with ``RTKReplicaExchange``.
    """
    value, error = _bridge(mcmc)
    found, found_error = _population_evidence(mcmc)
    below = found - value - 2.0 * found_error
    return value, float(np.hypot(error, below if 0.0 < below < np.inf else 0.0))


def _population_evidence(mcmc: Any) -> tuple[float, float]:
    found = mcmc.last_state.shared.found
    value, error = (np.asarray(x, np.float64) for x in found[:2])
    value = value + _log_offset(mcmc)
    if np.min(np.asarray(found.num_ancestors)) < ENOUGH_ANCESTORS:
        return float(value.mean()), np.inf
    return float(value.mean()), float(error.mean())


def _log_offset(mcmc: Any) -> np.ndarray:
    """What log densities are counted from, one a chain: all digits of it."""
    pairs = np.atleast_2d(np.asarray(mcmc.last_state.log_offset, np.float64))
    return pairs.sum(axis=-1)


def _bridge(mcmc: Any) -> tuple[float, float]:
    down, up = (_exchange_field(mcmc, f"bridge_{way}") for way in ("down", "up"))
    centre = np.asarray(mcmc.last_state.shared.settings.log_ratio, np.float64)
    mean_down, mean_up = down.mean(axis=1), up.mean(axis=1)
    # an edge of a chain where no increment counts keeps what warm-up believed of it
    is_known = (mean_down > 0.0) & (mean_up > 0.0)
    mean_down, mean_up = (np.where(is_known, m, 1.0) for m in (mean_down, mean_up))
    by_chain = np.sum(centre + np.log(mean_down) - np.log(mean_up), axis=-1)
    by_chain = by_chain + _log_offset(mcmc)
    # to first order, what each draw adds to the error of its chain
    influence = np.sum(down / mean_down[:, None] - up / mean_up[:, None], axis=-1)
    num_chains, num_draws = influence.shape
    num_batches = min(20, max(num_draws // 10, 1))
    length = num_draws // num_batches
    batches = influence[:, : num_batches * length]
    means = batches.reshape(num_chains, num_batches, length).mean(axis=-1)
    within = between = np.nan
    if num_batches > 1:
        within = np.sqrt(np.mean(means.var(axis=1, ddof=1)) / means.size)
    if num_chains > 1:
        between = by_chain.std(ddof=1) / np.sqrt(num_chains)
    errors = [error for error in (within, between) if np.isfinite(error)]
    error = max(errors, default=np.nan) if np.all(is_known) else np.inf
    return float(by_chain.mean()), float(error)


def diagnose(mcmc: Any) -> Diagnosis:
    """A short report on a finished ``RTKReplicaExchange`` run, in plain words.

    >>> print(rtk.diagnose(mcmc))                        # doctest: +SKIP

    It reads the exchanges between noise levels, and holds the run against the population
    that went down the ladder before it; R-hat and effective sample size of the draws are
    ArviZ's. What it cannot exclude it says in ``limits``; :func:`rtk.check_modes` looks
    for that with a population of its own.

    Args:
        mcmc: the ``MCMC`` object after ``run``.

    Raises:
        TypeError: unless it ran with ``RTKReplicaExchange``.
    """
    run = _numbers_of(mcmc)
    problems = _said(_PROBLEMS, run)
    remarks = () if problems else _said(_REMARKS, run)
    return Diagnosis(
        run.accept,
        run.local,
        float(np.mean(_exchange_field(mcmc, "jump_accept_prob"))),
        float(np.sum(1.0 - run.accept)),
        run.trips,
        suggest_levels(run.accept),
        run.evidence,
        run.found_evidence,
        run.efficiency,
        run.further_out,
        problems,
        _said(_LIMITS, run),
        remarks,
    )


def _said(sentences: tuple[Callable, ...], run: _Run) -> tuple[str, ...]:
    return tuple(text for say in sentences if (text := say(run)))


def _numbers_of(mcmc: Any) -> _Run:
    accept = _exchange_field(mcmc, "swap_accept_prob")
    shared, sampler = mcmc.last_state.shared, mcmc.sampler
    evidence = log_evidence(mcmc)
    log_likelihood = _log_likelihood(mcmc)
    regions = _exchange_field(mcmc, "mode").astype(int)
    # sequential chains have a population, and so regions, each of their own
    is_shared = np.ndim(shared.found.share) == 1
    num = np.shape(shared.found.share)[-1] if is_shared else 0
    shares = np.zeros((len(regions), num))
    if is_shared:
        count = lambda chain: np.bincount(chain, minlength=num) / len(chain)
        shares = np.array([count(chain) for chain in regions])
    return _Run(
        accept=accept.mean(axis=(0, 1)),
        local=_exchange_field(mcmc, "level_accept_prob").mean(axis=(0, 1)),
        trips=_exchange_field(mcmc, "round_trips")[:, -1],
        num_draws=accept.shape[1],
        energy=_exchange_field(mcmc, "potential_energy"),
        rounding=_rounding(mcmc),
        diverging=float(np.mean(_exchange_field(mcmc, "diverging"))),
        evidence=evidence,
        found_evidence=_population_evidence(mcmc),
        shares=shares,
        found_share=np.asarray(shared.found.share, np.float64)
        if is_shared
        else np.zeros(0),
        found_error=np.asarray(shared.found.share_error, np.float64)
        if is_shared
        else np.zeros(0),
        places=_places(mcmc) if is_shared else (),
        disagreeing=_disagreeing_edges(sampler, shared.settings, log_likelihood),
        efficiency=_prior_efficiency(
            log_likelihood, (evidence[0] - _log_offset(mcmc)[0], evidence[1])
        ),
        further_out=_share_further_out(mcmc),
        num_particles=sampler.num_particles,
        num_informed=float(np.max(np.asarray(shared.found.num_informed))),
        has_likelihood=sampler.model is not None,
    )


# -- problems ------------------------------------------------------------------------


def _says_too_few_levels(run: _Run) -> str | None:
    if run.accept.mean() >= LEAST_ACCEPTANCE:
        return None
    return (
        f"Too few levels: exchanges are accepted with {run.accept.mean():.2f} on average. "
        f"Set `num_levels={suggest_levels(run.accept)}`."
    )


def _says_gap(run: _Run) -> str | None:
    worst = int(run.accept.argmin())
    if run.accept[worst] >= 0.1 or run.accept.mean() < LEAST_ACCEPTANCE:
        return None
    return (
        f"Little passes between levels {worst} and {worst + 1} (acceptance "
        f"{run.accept[worst]:.2f}). Let warm-up move the levels (`adapt_ladder=True`, a "
        "longer `num_warmup`), or set more `num_levels`."
    )


def _says_no_round_trip(run: _Run) -> str | None:
    if run.trips.sum() > 0:
        return None
    levels = max(suggest_levels(run.accept), len(run.accept))
    return (
        f"No replica has gone from level 0 to the top and back in {run.num_draws} draws: "
        "mode weights still depend on where the chains started. Run longer, with "
        f"more `num_sweeps`, or with `num_levels={levels}`."
    )


def lost_regions(share, error, run_share) -> np.ndarray:
    """Where a population has particles and a run has no draws, each ``(regions,)``.

    Particles in a region, with their weight, are evidence that it has mass even where it
    is not known how much.
    """
    return (share - 1.5 * error > 0.01) & (run_share < _LOST * share)


def _says_lost_modes(run: _Run) -> str | None:
    if not run.shares.size or not np.isfinite(run.found_evidence[1]):
        return None
    share = run.shares.mean(axis=0)
    lost = np.flatnonzero(lost_regions(run.found_share, run.found_error, share))
    if not lost.size:
        return None
    named = "; ".join(
        f"around {run.places[i]}: {run.found_share[i]:.2f} +- {run.found_error[i]:.2f} of "
        f"the particles, {share[i]:.3f} of the draws"
        for i in lost
    )
    return (
        f"The chains have lost modes that the population found ({named}). Run longer, with "
        "more `num_levels` or a longer `num_warmup`, until they agree."
    )


def _says_chains_disagree(run: _Run) -> str | None:
    if len(run.shares) < 2 or not run.shares.size:
        return None
    apart = run.shares.max(axis=0) - run.shares.min(axis=0)
    worst = int(apart.argmax())
    low, high = run.shares[:, worst].min(), run.shares[:, worst].max()
    # short chains differ by chance: by four errors of independent draws, and then some
    share = run.shares[:, worst].mean()
    by_chance = 6.0 * np.sqrt(share * (1.0 - share) / run.num_draws)
    if apart[worst] < max(0.3, by_chance):
        return None
    return (
        f"Chains disagree on the weight of a mode (around {run.places[worst]}: {low:.2f} "
        f"to {high:.2f} by chain): its weight is not to be trusted. Run longer, with more "
        "`num_levels`."
    )


def _says_other_evidence(run: _Run) -> str | None:
    (value, own), (found, error) = run.evidence, run.found_evidence
    # where nothing passes an edge the value lacks that edge; a run with more evidence has
    # found what the population lost
    is_known = own < np.inf and error < np.inf
    if not (is_known and found - value > max(3.0 * error, 0.3)):
        return None
    return (
        f"The run's log evidence, {value:.2f}, is below the population's, {found:.2f} +- "
        f"{error:.2f}: the chains have lost modes that the population saw, or it was too "
        "small for this posterior. Compare with `rtk.check_modes(mcmc)`."
    )


def _says_unknown_evidence(run: _Run) -> str | None:
    if run.evidence[1] < np.inf:
        return None
    return (
        "The log evidence is unknown: between some levels no exchange counted. Set more "
        f"`num_levels` ({suggest_levels(run.accept)} for an acceptance of a half)."
    )


def _says_stuck(run: _Run) -> str | None:
    stuck = np.flatnonzero(run.local < 0.15)
    if not stuck.size:
        return None
    return (
        f"Local moves are refused at level(s) {', '.join(map(str, stuck))} "
        f"(acceptance {run.local.min():.2f}). Lengthen `num_warmup`, or give a smaller "
        "`step_size`."
    )


def _says_prior_disagrees(run: _Run) -> str | None:
    if run.disagreeing.size <= max(1, len(run.accept) // 8):
        return None
    return (
        "The prior's scores disagree with its own noise ladder (at levels "
        f"{', '.join(map(str, run.disagreeing + 1))} the best factor of the score is not "
        "1). The chain stays exact and mixes worse; train the prior longer."
    )


def _says_no_density(run: _Run) -> str | None:
    if np.all(np.isfinite(run.energy)):
        return None
    share = float(np.mean(~np.isfinite(run.energy)))
    return (
        f"{100 * share:.0f} % of the draws have no density: the model's log density is NaN "
        "or -inf there, as for data that hold NaN. They have stayed where they were; mend "
        "the data, and warm up again."
    )


def _says_coarse(run: _Run) -> str | None:
    return None if run.rounding < COARSE else coarse_message(run.rounding)


def _says_diverging(run: _Run) -> str | None:
    # beside a hard edge moves leave the support, and the others are accepted as they should
    if run.diverging <= 0.01 or run.local[0] >= 0.4:
        return None
    return (
        "More than one draw in a hundred has a diverging local move at level 0: the "
        "posterior is steeper there than the step size; give a smaller `step_size`."
    )


def _says_far_out(run: _Run) -> str | None:
    if not run.further_out < _FAR_OUT:
        return None
    return (
        "The posterior lies where the learned prior has few samples: "
        f"{100 * run.further_out:.1f} % of the prior's own draws are less probable than "
        "the posterior's median. There the prior is an extrapolation, and the posterior "
        "leans on it: learn it from rows that reach further, or widen it."
    )


# -- limits and remarks --------------------------------------------------------------


def _says_not_excluded(run: _Run) -> str | None:
    if not run.has_likelihood or run.num_informed < 1.0:
        return None
    width = narrowest_found(run.num_particles, run.num_informed)
    return (
        f"Not excluded: modes less than {width:.2g} times as wide as those found, in all "
        f"{run.num_informed:.0f} directions that the data inform; {run.num_particles} "
        "particles may lose them on the way down. `rtk.check_modes(mcmc)` looks again, "
        "with more."
    )


def _says_likelihood_weak(run: _Run) -> str | None:
    if not run.efficiency > _ENOUGH_OF_THE_PRIOR:
        return None
    return (
        f"The likelihood is weak: about {100 * run.efficiency:.0f} in 100 independent "
        "prior draws would be left by importance resampling (`prior.sample` and "
        "`rtk.importance_resample`), which is cheaper here."
    )


def _says_many_levels(run: _Run) -> str | None:
    if run.accept.mean() <= _MANY_LEVELS:
        return None
    return (
        f"Exchanges are accepted with {run.accept.mean():.2f}: fewer levels pass as well, "
        f"for less (`num_levels={max(len(run.accept) // 2, 2)}`)."
    )


_Sentence = Callable[[_Run], str | None]
_PROBLEMS: tuple[_Sentence, ...] = (
    _says_no_density,
    _says_too_few_levels,
    _says_gap,
    _says_no_round_trip,
    _says_lost_modes,
    _says_chains_disagree,
    _says_other_evidence,
    _says_unknown_evidence,
    _says_stuck,
    _says_coarse,
    _says_prior_disagrees,
    _says_diverging,
    _says_far_out,
)
_LIMITS: tuple[_Sentence, ...] = (_says_not_excluded,)
_REMARKS: tuple[_Sentence, ...] = (_says_likelihood_weak, _says_many_levels)


# -- numbers -------------------------------------------------------------------------


def _arguments(mcmc: Any) -> tuple[tuple, dict] | None:
    """What the run was called with; NumPyro keeps it under these names."""
    args, kwargs = getattr(mcmc, "_args", None), getattr(mcmc, "_kwargs", None)
    return None if args is None or kwargs is None else (args, kwargs)


def _log_likelihood(mcmc: Any) -> np.ndarray | None:
    """At the last replicas, ``(chains, K + 1)``; None where it cannot be had."""
    arguments = _arguments(mcmc)
    if arguments is None:
        return None
    values = mcmc.sampler.log_likelihood(mcmc.last_state, *arguments)
    return None if values is None else np.asarray(values, np.float64)


def _rounding(mcmc: Any) -> float:
    """Nats that the log density is resolved to; 0 where it cannot be had."""
    arguments = _arguments(mcmc)
    if arguments is None:
        return 0.0
    return mcmc.sampler.rounding(mcmc.last_state, *arguments)


def _places(mcmc: Any) -> tuple[str, ...]:
    """Where the regions of the population lie."""
    arguments, shared = _arguments(mcmc), mcmc.last_state.shared
    if arguments is None:
        return tuple(f"region {i}" for i in range(len(shared.found.share)))
    return tuple(mcmc.sampler.places(shared, *arguments))


def _share_further_out(mcmc: Any) -> float:
    arguments = _arguments(mcmc)
    if arguments is None or mcmc.sampler.model is None:
        return np.nan
    share = mcmc.sampler.share_further_out(mcmc.get_samples(), *arguments)
    return np.nan if share is None else share


def _prior_efficiency(
    log_likelihood: np.ndarray | None, evidence: tuple[float, float]
) -> float:
    r"""Kish's fraction of prior draws, :math:`Z / E_{\text{post}}[\ell]`."""
    value, error = evidence
    if log_likelihood is None or not error < _UNKNOWN:
        return np.nan
    at_draws = log_likelihood[:, 0]
    mean = np.logaddexp.reduce(at_draws) - np.log(len(at_draws))
    return float(np.exp(np.minimum(value - mean, 0.0)))


def _exchange_field(mcmc: Any, name: str) -> np.ndarray:
    fields = mcmc.get_extra_fields(group_by_chain=True)
    if "swap_accept_prob" not in fields:
        kernel = type(mcmc.sampler).__name__
        raise TypeError(
            "`mcmc` must be a finished run of RTKReplicaExchange; got one of "
            f"{kernel}. For weighted draws see `rtk.pareto_k`."
        )
    return np.asarray(fields[name], np.float64)


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
    by_swap = np.atleast_2d(np.asarray(settings.swap_share)).mean(axis=0) > 0.5
    is_off = (influence < 0.02) & (np.abs(factor - 1.0) > 0.5) & ~by_swap
    return np.flatnonzero(is_off)


def _likelihood_share(settings: Any) -> np.ndarray:
    """Inverse temperature of the likelihood at the upper level of each edge."""
    times = np.atleast_2d(np.asarray(settings.times, np.float64)).mean(axis=0)
    c = float(np.mean(np.asarray(settings.likelihood_variance)))
    return c / (c - np.expm1(-2.0 * times[1:]))
