"""``rtk.log_evidence``: from the exchanges of a run, with an error to be believed."""

from typing import Any

import numpy as np
from scipy.special import logsumexp

from numpyro_rtk.diagnostics.finished import (
    exchange_field,
    field_of,
    is_of_particles,
    log_offset,
)
from numpyro_rtk.diagnostics.population import population_log_evidence

__all__ = ["UNKNOWN", "log_evidence"]

# An evidence with a larger error, in nats, says nothing.
UNKNOWN = 0.5

_BATCHES, _SHORTEST_BATCH = 20, 10  # of draws, whose means give the error of a chain
# The population's estimate counts where the chains' is further below than its errors.
_ERRORS = 2.0


def log_evidence(mcmc: Any) -> tuple[float, float]:
    r"""Log evidence of a finished run, and its standard error.

    Of ``RTKParticleGibbs``: the particles' estimates :math:`\hat Z` of all draws, of which
    the inverses average to the evidence's inverse; with a score alone under the law that is
    drawn. The error is the larger of batch means within chains and the spread between.

    Of ``RTKReplicaExchange``: bridge sampling (Bennett 1976) over both directions of every
    exchange. The evidence is that of the model with the learned prior as it is normalised.
    The error is the larger of batch means within chains and the spread between chains, and
    grows by what the estimate is below the population's, beyond twice the error of that:
    such a difference is that of a mode which the chains have lost. A mode that neither has
    reached it cannot know of. Where nothing passes some edge, the error is ``inf``.

    Args:
        mcmc: the ``MCMC`` object after ``run``.

    Returns:
        The estimate and its standard error, in nats.

    Raises:
        TypeError: unless it ran with one of the two.

    References:
        C. H. Bennett, *Efficient Estimation of Free Energy Differences from Monte Carlo
        Data*, Journal of Computational Physics 22, 1976.
    """
    if is_of_particles(mcmc):
        return _by_particles(mcmc)
    value, error = _bridge(mcmc)
    found, found_error = population_log_evidence(mcmc)
    below = found - value - _ERRORS * found_error
    return value, float(np.hypot(error, below if 0.0 < below < np.inf else 0.0))


def _by_particles(mcmc: Any) -> tuple[float, float]:
    """From the mean of the inverse estimates."""
    estimate = field_of(mcmc, "log_evidence")
    by_chain = np.log(estimate.shape[1]) - logsumexp(-estimate, axis=1)
    value = np.log(estimate.size) - logsumexp(-estimate)
    # as parts of their mean: estimates may differ by more than an exponent holds
    inverse = np.exp(value - estimate)
    return float(value), _error(by_chain, -inverse)


def _bridge(mcmc: Any) -> tuple[float, float]:
    """By bridge sampling alone, and its error."""
    down, up = (exchange_field(mcmc, f"bridge_{way}") for way in ("down", "up"))
    log_ratio = np.asarray(mcmc.last_state.shared.settings.log_ratio, np.float64)
    mean_down, mean_up = down.mean(axis=1), up.mean(axis=1)
    # an edge of a chain where no increment counts keeps what warm-up believed of it
    is_known = (mean_down > 0.0) & (mean_up > 0.0)
    mean_down, mean_up = (np.where(is_known, m, 1.0) for m in (mean_down, mean_up))
    by_chain = np.sum(log_ratio + np.log(mean_down) - np.log(mean_up), axis=-1)
    by_chain = by_chain + log_offset(mcmc)
    # to first order, what each draw adds to the error of its chain
    influence = np.sum(down / mean_down[:, None] - up / mean_up[:, None], axis=-1)
    error = _error(by_chain, influence) if np.all(is_known) else np.inf
    return float(by_chain.mean()), error


def _error(by_chain: np.ndarray, influence: np.ndarray) -> float:
    """The larger of batch means within chains and the spread between them.

    Of estimates ``(chains,)`` and what each draw adds to them, ``(chains, draws)``; NaN
    where one short chain tells neither.
    """
    num_chains, num_draws = influence.shape
    num_batches = min(_BATCHES, max(num_draws // _SHORTEST_BATCH, 1))
    length = num_draws // num_batches
    batches = influence[:, : num_batches * length]
    means = batches.reshape(num_chains, num_batches, length).mean(axis=-1)
    errors = []
    if num_batches > 1:
        errors.append(np.sqrt(np.mean(means.var(axis=1, ddof=1)) / means.size))
    if num_chains > 1:
        errors.append(by_chain.std(ddof=1) / np.sqrt(num_chains))
    errors = [float(error) for error in errors if np.isfinite(error)]
    return max(errors, default=np.nan)
