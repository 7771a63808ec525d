"""What a population that went down the ladder says against the run it is held to."""

from typing import Any

import numpy as np

from numpyro_rtk.diagnostics.finished import log_offset

__all__ = ["ENOUGH_ANCESTORS", "lost_regions", "population_log_evidence"]

# Where the last particles go back to fewer at the top, neither their evidence nor their
# shares have an error that can be believed.
ENOUGH_ANCESTORS = 30
# A region has mass where its share, less so many errors, is above so much ...
_ERRORS, _SOME_MASS = 1.5, 0.01
# ... and is lost where the draws have less than this part of it.
_LOST = 0.1


def lost_regions(
    share: np.ndarray, error: np.ndarray, run_share: np.ndarray
) -> np.ndarray:
    """Where a population has particles and a run has no draws, each ``(regions,)``.

    Particles in a region, with their weight, are evidence that it has mass even where it
    is not known how much.
    """
    return (share - _ERRORS * error > _SOME_MASS) & (run_share < _LOST * share)


def population_log_evidence(mcmc: Any) -> tuple[float, float]:
    """By the population that the chains started from, and its standard error, nats.

    The error is ``inf`` where too few ancestors are left to believe one.
    """
    found = mcmc.last_state.shared.found
    value, error = (np.asarray(x, np.float64) for x in found[:2])
    value = value + log_offset(mcmc)
    if np.min(np.asarray(found.num_ancestors)) < ENOUGH_ANCESTORS:
        return float(value.mean()), np.inf
    return float(value.mean()), float(error.mean())
