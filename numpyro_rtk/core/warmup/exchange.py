r"""Warm-up of the replica exchange: what it is given, and what it tunes.

1. *The likelihood's variance* c (``pilot.py``): a small pilot goes down a ladder for each
   of a grid, and the one that varies least on the way is taken.
2. *The population* (``population.py``) goes down with that c. What it saw, all of it, sets
   the levels, the local spreads, the mixture that jumps propose, and where every chain
   starts (``start.py``); its evidence and its shares of modes are kept, to hold the run
   against.
3. *Windows* of draws (``windows.py``) then fit what the exchange needs more exactly.

All of it is pure, knows no model and no network, and is shared by vectorised chains.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.core.exchange.modes import Modes, ModeTally
from numpyro_rtk.core.inner import InnerSampler
from numpyro_rtk.core.warmup.adapt import Frame, Moments
from numpyro_rtk.core.warmup.kinds import LEAST_SHARE
from numpyro_rtk.core.warmup.settings import Settings
from numpyro_rtk.core.warmup.tally import Tally
from numpyro_rtk.noise import noise_to_signal

__all__ = [
    "FEW_DIMENSIONS",
    "NARROWEST_MODE",
    "Adaptation",
    "Findings",
    "Method",
    "PriorCurvature",
]

# In more dimensions than these one population goes down, in fewer two; see ``start.py``.
FEW_DIMENSIONS = 10
# Variances of modes are not believed below this part of the local spread's square.
NARROWEST_MODE = 0.01
# Level 0 has no noise; curvatures are interpolated in the log of the noise and this.
_SMALLEST_NOISE = 1e-6


class Method(NamedTuple):
    """What the user chose; static.

    Attributes:
        inner: sampler of the local moves.
        times: the first ladder, ``(K + 1,)``.
        follows_likelihood: whether that ladder's small end may follow the likelihood.
        adapt_ladder: whether warm-up moves the levels.
        exchange: ``"best"``, ``"rtk"`` or ``"swap"``.
        dense: whether covariances are matrices.
        step_size: of the local moves; None: adapted.
        target_accept_prob: aim of that.
        num_particles: of the population.
        has_likelihood: whether there is a c to choose.
    """

    inner: InnerSampler
    times: np.ndarray
    follows_likelihood: bool
    adapt_ladder: bool
    exchange: str
    dense: bool
    step_size: float | None
    target_accept_prob: float
    num_particles: int
    has_likelihood: bool

    @property
    def first_swap_share(self) -> float:
        """How often edges try the plain swap before anything is known of them."""
        return {"best": LEAST_SHARE, "rtk": 0.0, "swap": 1.0}[self.exchange]

    def num_populations(self, dim: int) -> int:
        """How many go down in so many dimensions."""
        return 2 if self.has_likelihood and dim <= FEW_DIMENSIONS else 1


class PriorCurvature(NamedTuple):
    """Mean squared scores of the noised prior, ``(n, dim)``, at ``times`` ``(n,)``."""

    times: jax.Array
    curvature: jax.Array

    def at(self, times: jax.Array) -> jax.Array:
        """Between them, ``(m, dim)``; constant beyond."""
        place = lambda t: jnp.log(noise_to_signal(t) + _SMALLEST_NOISE)
        one = lambda row: jnp.interp(place(times), place(self.times), row)
        return jax.vmap(one, in_axes=1, out_axes=1)(self.curvature)


class Findings(NamedTuple):
    """What the population says of level 0, to hold the run against.

    Attributes:
        log_evidence: on the standardised scale.
        log_evidence_error: its standard error.
        share: of each component of :class:`Modes`, ``(M,)``.
        share_error: standard errors.
        num_levels: segments that it needed.
        num_ancestors: particles at the top that the last ones go back to.
        num_informed: directions in which the posterior is narrower than the prior.
        num_evals: evaluations spent.
    """

    log_evidence: jax.Array
    log_evidence_error: jax.Array
    share: jax.Array
    share_error: jax.Array
    num_levels: jax.Array
    num_ancestors: jax.Array
    num_informed: jax.Array
    num_evals: jax.Array


class Adaptation(NamedTuple):
    """What warm-up tunes; frozen afterwards.

    Attributes:
        settings: levels, proposals, local spreads.
        tally: sums of the present window.
        modes: what jumps propose.
        regions: the same as the population left it: what shares of modes are counted by.
        mode_tally: their sums of the present window.
        found: what the population found.
        frame: what positions and log densities are measured from.
        moments: running moments of the ordinary sites' draws.
        reference: the other blocks' values that the levels above 0 are bound to, in a
            ``Gibbs`` block; None otherwise.
    """

    settings: Settings
    tally: Tally
    modes: Modes
    regions: Modes
    mode_tally: ModeTally
    found: Findings
    frame: Frame
    moments: Moments
    reference: Any
