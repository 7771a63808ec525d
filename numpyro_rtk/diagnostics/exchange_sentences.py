"""What ``rtk.diagnose`` says: each sentence a function of a run's numbers alone.

A sentence is text where it applies and None elsewhere. A new one is a function here and a
place in the table at the end.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from numpyro_rtk._checks import COARSE, coarse_message
from numpyro_rtk.core.warmup.levels import LEAST_ACCEPTANCE, suggest_levels
from numpyro_rtk.core.warmup.population import narrowest_found
from numpyro_rtk.diagnostics.population import lost_regions

__all__ = ["LIMITS", "PROBLEMS", "REMARKS", "ExchangeNumbers"]

# Acceptances: of an edge that hardly passes anything, of local moves that get nowhere, of
# exchanges with more levels than are needed.
_GAP = 0.1
_STUCK = 0.15
_MANY_LEVELS = 0.85
# Chains differ in the share of a region by less, and by less than so many errors of
# independent draws: short chains differ by chance, and then some.
_CHAINS_APART, _CHAINS_ERRORS = 0.3, 6.0
# Evidences of a run and of its population differ by less: nats, and errors of it.
_EVIDENCES_APART, _EVIDENCES_ERRORS = 0.3, 3.0
# One edge of so many may want another factor of the score by chance.
_EDGES_PER_CHANCE = 8
# Share of draws with a diverging local move; beside a hard edge moves leave the support,
# and at this acceptance the others are accepted as they should.
_DIVERGING, _ACCEPTED_AS_IT_SHOULD = 0.01, 0.4
# Of the learned prior's draws, fewer than this further out: few samples were there.
_FAR_OUT = 0.01
# Of 100 prior draws, so many must be left for importance resampling to be recommended.
_ENOUGH_OF_THE_PRIOR = 0.02


class ExchangeNumbers(NamedTuple):
    """The numbers of a run that sentences are made from; K edges, R regions.

    Attributes:
        accept: mean acceptance of the exchanges, ``(K,)``.
        local: mean acceptance of the local moves, ``(K,)``.
        trips: round trips, ``(chains,)``.
        num_draws: of each chain.
        energy: minus log density of the draws, ``(chains, draws)``.
        rounding: nats that the log density is resolved to.
        diverging: share of draws with a diverging local move.
        evidence: log evidence of the run and its error.
        found_evidence: the same of the population.
        shares: of the regions among the draws, ``(chains, R)``.
        found_share: among the particles, ``(R,)``.
        found_error: of these shares, ``(R,)``.
        places: of the regions, in words.
        disagreeing: edges whose proposal wants another factor of the prior's score than 1.
        efficiency: share of prior draws that importance resampling would leave.
        further_out: share of prior draws less probable than the posterior's median.
        num_particles: of the population.
        num_informed: directions that the data inform.
        has_likelihood: whether the run was one of a model.
    """

    accept: np.ndarray
    local: np.ndarray
    trips: np.ndarray
    num_draws: int
    energy: np.ndarray
    rounding: float
    diverging: float
    evidence: tuple[float, float]
    found_evidence: tuple[float, float]
    shares: np.ndarray
    found_share: np.ndarray
    found_error: np.ndarray
    places: tuple[str, ...]
    disagreeing: np.ndarray
    efficiency: float
    further_out: float
    num_particles: int
    num_informed: float
    has_likelihood: bool


Sentence = Callable[[ExchangeNumbers], str | None]


# -- problems -------------------------------------------------------------------------


def _says_no_density(run: ExchangeNumbers) -> str | None:
    if np.all(np.isfinite(run.energy)):
        return None
    share = float(np.mean(~np.isfinite(run.energy)))
    return (
        f"{100 * share:.0f} % of the draws have no density: the model's log density is NaN "
        "or -inf there, as for data that hold NaN. They have stayed where they were; mend "
        "the data, and warm up again."
    )


def _says_too_few_levels(run: ExchangeNumbers) -> str | None:
    if run.accept.mean() >= LEAST_ACCEPTANCE:
        return None
    return (
        f"Too few levels: exchanges are accepted with {run.accept.mean():.2f} on average. "
        f"Set `num_levels={suggest_levels(run.accept)}`."
    )


def _says_gap(run: ExchangeNumbers) -> str | None:
    worst = int(run.accept.argmin())
    if run.accept[worst] >= _GAP or run.accept.mean() < LEAST_ACCEPTANCE:
        return None
    return (
        f"Little passes between levels {worst} and {worst + 1} (acceptance "
        f"{run.accept[worst]:.2f}). Let warm-up move the levels (`adapt_ladder=True`, a "
        "longer `num_warmup`), or set more `num_levels`."
    )


def _says_no_round_trip(run: ExchangeNumbers) -> str | None:
    if run.trips.sum() > 0:
        return None
    levels = max(suggest_levels(run.accept), len(run.accept))
    return (
        f"No replica has gone from level 0 to the top and back in {run.num_draws} draws: "
        "mode weights still depend on where the chains started. Run longer, with "
        f"more `num_sweeps`, or with `num_levels={levels}`."
    )


def _says_lost_modes(run: ExchangeNumbers) -> str | None:
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


def _says_chains_disagree(run: ExchangeNumbers) -> str | None:
    if len(run.shares) < 2 or not run.shares.size:
        return None
    apart = run.shares.max(axis=0) - run.shares.min(axis=0)
    worst = int(apart.argmax())
    low, high = run.shares[:, worst].min(), run.shares[:, worst].max()
    share = run.shares[:, worst].mean()
    error = np.sqrt(share * (1.0 - share) / run.num_draws)
    if apart[worst] < max(_CHAINS_APART, _CHAINS_ERRORS * error):
        return None
    return (
        f"Chains disagree on the weight of a mode (around {run.places[worst]}: {low:.2f} "
        f"to {high:.2f} by chain): its weight is not to be trusted. Run longer, with more "
        "`num_levels`."
    )


def _says_other_evidence(run: ExchangeNumbers) -> str | None:
    (value, own), (found, error) = run.evidence, run.found_evidence
    # where nothing passes an edge the value lacks that edge; a run with more evidence has
    # found what the population lost
    is_known = own < np.inf and error < np.inf
    by_chance = max(_EVIDENCES_ERRORS * error, _EVIDENCES_APART)
    if not (is_known and found - value > by_chance):
        return None
    return (
        f"The run's log evidence, {value:.2f}, is below the population's, {found:.2f} +- "
        f"{error:.2f}: the chains have lost modes that the population saw, or it was too "
        "small for this posterior. Compare with `rtk.check_modes(mcmc)`."
    )


def _says_unknown_evidence(run: ExchangeNumbers) -> str | None:
    if run.evidence[1] < np.inf:
        return None
    return (
        "The log evidence is unknown: between some levels no exchange counted. Set more "
        f"`num_levels` ({suggest_levels(run.accept)} for an acceptance of a half)."
    )


def _says_stuck(run: ExchangeNumbers) -> str | None:
    stuck = np.flatnonzero(run.local < _STUCK)
    if not stuck.size:
        return None
    return (
        f"Local moves are refused at level(s) {', '.join(map(str, stuck))} "
        f"(acceptance {run.local.min():.2f}). Lengthen `num_warmup`, or give a smaller "
        "`step_size`."
    )


def _says_coarse(run: ExchangeNumbers) -> str | None:
    return None if run.rounding < COARSE else coarse_message(run.rounding)


def _says_prior_disagrees(run: ExchangeNumbers) -> str | None:
    if run.disagreeing.size <= max(1, len(run.accept) // _EDGES_PER_CHANCE):
        return None
    return (
        "The prior's scores disagree with its own noise ladder (at levels "
        f"{', '.join(map(str, run.disagreeing + 1))} the best factor of the score is not "
        "1). The chain stays exact and mixes worse; train the prior longer."
    )


def _says_diverging(run: ExchangeNumbers) -> str | None:
    if run.diverging <= _DIVERGING or run.local[0] >= _ACCEPTED_AS_IT_SHOULD:
        return None
    return (
        "More than one draw in a hundred has a diverging local move at level 0: the "
        "posterior is steeper there than the step size; give a smaller `step_size`."
    )


def _says_far_out(run: ExchangeNumbers) -> str | None:
    if not run.further_out < _FAR_OUT:
        return None
    return (
        "The posterior lies where the learned prior has few samples: "
        f"{100 * run.further_out:.1f} % of the prior's own draws are less probable than "
        "the posterior's median. There the prior is an extrapolation, and the posterior "
        "leans on it: learn it from rows that reach further, or widen it."
    )


# -- limits and remarks ---------------------------------------------------------------


def _says_not_excluded(run: ExchangeNumbers) -> str | None:
    if not run.has_likelihood or run.num_informed < 1.0:
        return None
    width = narrowest_found(run.num_particles, run.num_informed)
    return (
        f"Not excluded: modes less than {width:.2g} times as wide as those found, in all "
        f"{run.num_informed:.0f} directions that the data inform; {run.num_particles} "
        "particles may lose them on the way down. `rtk.check_modes(mcmc)` looks again, "
        "with more."
    )


def _says_likelihood_weak(run: ExchangeNumbers) -> str | None:
    if not run.efficiency > _ENOUGH_OF_THE_PRIOR:
        return None
    return (
        f"The likelihood is weak: about {100 * run.efficiency:.0f} in 100 independent "
        "prior draws would be left by importance resampling (`prior.sample` and "
        "`rtk.importance_resample`), which is cheaper here."
    )


def _says_many_levels(run: ExchangeNumbers) -> str | None:
    if run.accept.mean() <= _MANY_LEVELS:
        return None
    return (
        f"Exchanges are accepted with {run.accept.mean():.2f}: fewer levels pass as well, "
        f"for less (`num_levels={max(len(run.accept) // 2, 2)}`)."
    )


# -- the table, in the order in which they are said -----------------------------------

PROBLEMS: tuple[Sentence, ...] = (
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
LIMITS: tuple[Sentence, ...] = (_says_not_excluded,)
REMARKS: tuple[Sentence, ...] = (_says_likelihood_weak, _says_many_levels)
