"""What a finished run of ``RTKReplicaExchange`` says about itself, without ArviZ."""

from typing import Any, NamedTuple

import numpy as np

from numpyro_rtk.core.ladder import LEAST_ACCEPTANCE, suggest_levels

__all__ = ["Diagnosis", "diagnose", "log_evidence"]

# Of 100 prior draws, so many must be left for importance resampling to be recommended.
_ENOUGH_OF_THE_PRIOR = 0.02


class Diagnosis(NamedTuple):
    """What :func:`diagnose` found; ``print`` it.

    Attributes:
        swap_accept_prob: mean acceptance of each edge, ``(K,)``, lowest first.
        level_accept_prob: mean acceptance of the local moves, ``(K,)``.
        barrier: sum of the rejection rates over the edges.
        round_trips: of each chain, ``(chains,)``.
        suggested_levels: number of levels at which edges would accept about half.
        log_evidence: estimate and its standard error.
        prior_efficiency: share of independent prior draws that importance resampling by
            the likelihood would leave, roughly (from one draw per chain); NaN where the
            model has ordinary sites beside the learned ones.
        problems: sentences that say what is wrong and what to change; empty if nothing.
        remarks: what would have been cheaper.
    """

    swap_accept_prob: np.ndarray
    level_accept_prob: np.ndarray
    barrier: float
    round_trips: np.ndarray
    suggested_levels: int
    log_evidence: tuple[float, float]
    prior_efficiency: float
    problems: tuple[str, ...]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        """The report."""
        accept = self.swap_accept_prob
        value, error = self.log_evidence
        lines = [
            f"exchange: {len(accept)} edges, acceptance mean {accept.mean():.2f}, worst "
            f"{accept.min():.2f} (edge {int(accept.argmin())}-{int(accept.argmin()) + 1}), "
            f"barrier {self.barrier:.1f}",
            f"round trips per chain: {self.round_trips.mean():.1f} (fewest "
            f"{int(self.round_trips.min())})",
            f"local moves: acceptance {self.level_accept_prob.min():.2f} to "
            f"{self.level_accept_prob.max():.2f}",
            f"log evidence: {value:.3f} +- {error:.3f}",
        ]
        problems = self.problems or ("nothing found; see also R-hat and ESS",)
        lines += [f"- {sentence}" for sentence in (*problems, *self.remarks)]
        return "\n".join(lines)


def log_evidence(mcmc: Any) -> tuple[float, float]:
    r"""Log evidence of a finished ``RTKReplicaExchange`` run, and its standard error.

    Bridge sampling (Bennett 1976) over both directions of every exchange. The evidence is
    that of the model with the learned prior as it is normalised. The error is the larger
    of batch means within chains and the spread between chains; it knows nothing of modes
    that no replica has reached.

    Args:
        mcmc: the ``MCMC`` object after ``run``.

    Raises:
        TypeError: unless it ran with ``RTKReplicaExchange``.
    """
    down, up = (_exchange_field(mcmc, f"bridge_{way}") for way in ("down", "up"))
    centre = np.asarray(mcmc.last_state.shared.settings.centre, np.float64)
    mean_down, mean_up = down.mean(axis=1), up.mean(axis=1)
    # where no work of a chain counts, its estimate is infinite
    with np.errstate(divide="ignore", invalid="ignore"):
        by_chain = np.sum(centre + np.log(mean_down) - np.log(mean_up), axis=-1)
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
    return float(by_chain.mean()), float(max(errors, default=np.nan))


def diagnose(mcmc: Any) -> Diagnosis:
    """A short report on a finished ``RTKReplicaExchange`` run, in plain words.

    >>> print(rtk.diagnose(mcmc))                        # doctest: +SKIP

    It reads the exchanges between noise levels; R-hat and effective sample size of the
    draws are ArviZ's.

    Args:
        mcmc: the ``MCMC`` object after ``run``.

    Raises:
        TypeError: unless it ran with ``RTKReplicaExchange``.
    """
    accept = _exchange_field(mcmc, "swap_accept_prob").mean(axis=(0, 1))
    local = _exchange_field(mcmc, "level_accept_prob").mean(axis=(0, 1))
    trips = _exchange_field(mcmc, "round_trips")[:, -1]
    num_draws = _exchange_field(mcmc, "accept_prob").shape[1]
    settings = mcmc.last_state.shared.settings
    evidence = log_evidence(mcmc)
    log_likelihood = _log_likelihood(mcmc)
    efficiency = _prior_efficiency(log_likelihood, evidence[0])
    suggested = suggest_levels(accept)
    problems = []
    worst = int(accept.argmin())
    if accept.mean() < LEAST_ACCEPTANCE:
        problems.append(
            f"Too few levels: exchanges are accepted with {accept.mean():.2f} on average. "
            f"Set `num_levels={suggested}`."
        )
    if accept[worst] < 0.1 and accept.mean() >= LEAST_ACCEPTANCE:
        problems.append(
            f"Little passes between levels {worst} and {worst + 1} (acceptance "
            f"{accept[worst]:.2f}). Let warm-up move the levels (`adapt_ladder=True`, a "
            "longer `num_warmup`), or set more `num_levels`."
        )
    if trips.sum() == 0:
        problems.append(
            f"No replica has gone from level 0 to the top and back in {num_draws} draws: "
            "mode weights still depend on where the chains started. Run longer, with "
            f"more `num_sweeps`, or with `num_levels={max(suggested, len(accept))}`."
        )
    stuck = np.flatnonzero(local < 0.15)
    if stuck.size:
        problems.append(
            f"Local moves are refused at level(s) {', '.join(map(str, stuck))} "
            f"(acceptance {local.min():.2f}). Lengthen `num_warmup`, or give a smaller "
            "`step_size`."
        )
    wrong = _disagreeing_edges(mcmc.sampler, settings, log_likelihood)
    if wrong.size > max(1, len(accept) // 8):
        problems.append(
            "The prior's scores disagree with its own noise ladder (at levels "
            f"{', '.join(map(str, wrong + 1))} the best factor of the score is not 1). "
            "The chain stays exact and mixes worse; train the prior longer."
        )
    if np.mean(_exchange_field(mcmc, "diverging")) > 0.01:
        problems.append(
            "More than one draw in a hundred has a diverging local move at level 0: the "
            "posterior is steeper there than the step size; give a smaller `step_size`."
        )
    return Diagnosis(
        accept,
        local,
        float(np.sum(1.0 - accept)),
        trips,
        suggested,
        evidence,
        efficiency,
        tuple(problems),
        tuple(_remarks(accept, efficiency, problems)),
    )


def _log_likelihood(mcmc: Any) -> np.ndarray | None:
    """At the last replicas, ``(chains, K + 1)``; None where it cannot be had."""
    sampler, state = mcmc.sampler, mcmc.last_state
    args, kwargs = getattr(mcmc, "_args", None), getattr(mcmc, "_kwargs", None)
    if not hasattr(sampler, "log_likelihood") or args is None or kwargs is None:
        return None
    values = sampler.log_likelihood(state, args, kwargs)
    return None if values is None else np.asarray(values, np.float64)


def _prior_efficiency(log_likelihood: np.ndarray | None, log_evidence: float) -> float:
    r"""Kish's fraction of prior draws, :math:`Z / E_{\text{post}}[\ell]`."""
    if log_likelihood is None:
        return np.nan
    at_draws = log_likelihood[:, 0]
    mean = np.logaddexp.reduce(at_draws) - np.log(len(at_draws))
    return float(np.exp(np.minimum(log_evidence - mean, 0.0)))


def _remarks(accept: np.ndarray, efficiency: float, problems: list[str]) -> list[str]:
    remarks = []
    if efficiency > _ENOUGH_OF_THE_PRIOR:
        remarks.append(
            f"The likelihood is weak: about {100 * efficiency:.0f} in 100 independent "
            "prior draws would be left by importance resampling (`prior.sample` and "
            "`rtk.importance_resample`), which is cheaper here."
        )
    if accept.mean() > 0.85 and not problems:
        remarks.append(
            f"Exchanges are accepted with {accept.mean():.2f}: fewer levels do the same "
            f"for less (`num_levels={max(len(accept) // 2, 2)}`); with one mode, NUTS does."
        )
    return remarks


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
    """Edges where the prior alone counts and its start wants another factor than 1.

    The likelihood counts by its inverse temperature times the nats that it falls from the
    draws to the replicas of the level, which at the top are the prior's.
    """
    if getattr(getattr(sampler, "_problem", None), "learned", True) == ():
        return np.array([], int)  # no learned prior
    factor = np.atleast_2d(np.asarray(settings.mean_score)).mean(axis=0)
    fall = np.zeros(len(factor))
    if log_likelihood is not None:
        typical = np.median(log_likelihood, axis=0)
        fall = np.abs(typical[0] - typical[1:])
    # a likelihood without a value there (nan, -inf) is not known to be idle
    influence = np.nan_to_num(_likelihood_share(settings) * (1.0 + fall), nan=np.inf)
    return np.flatnonzero((influence < 0.02) & (np.abs(factor - 1.0) > 0.5))


def _likelihood_share(settings: Any) -> np.ndarray:
    """Inverse temperature of the likelihood at the upper level of each edge."""
    times = np.atleast_2d(np.asarray(settings.times, np.float64)).mean(axis=0)
    c = float(np.mean(np.asarray(settings.likelihood_variance)))
    return c / (c - np.expm1(-2.0 * times[1:]))
