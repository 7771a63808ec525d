# pyright: reportIncompatibleMethodOverride=false
"""What the user and the diagnostics read of a run of the replica exchange."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rtk.core.covariance import diagonal_of
from numpyro_rtk.core.warmup.exchange import Adaptation
from numpyro_rtk.core.warmup.levels import LEAST_ACCEPTANCE, suggest_levels
from numpyro_rtk.kernels.base import PathKernel
from numpyro_rtk.kernels.exchange_state import DEFAULT_FIELDS, ExchangeState

__all__ = ["ExchangeReader"]


class ExchangeReader(PathKernel):
    """The part of ``RTKReplicaExchange`` that reads states and changes none."""

    _has_warned = False

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Fields collected without asking."""
        return DEFAULT_FIELDS

    @property
    def guarantee(self) -> str:
        """One sentence on what the draws are; examples and docs print it."""
        return (
            "exact: replica exchange along the noise ladder, a Markov chain whose "
            "stationary law is the target, whatever the network learned; a mode much "
            "narrower than those that the starting population found cannot be excluded "
            "(rtk.diagnose says how much, rtk.check_modes looks again)"
        )

    @property
    def uses_network(self) -> bool:
        """Whether a learned density of the target may be wrong at some noise level."""
        return self._problem.uses_network

    @property
    def num_evals(self) -> int:
        """Network evaluations of one draw of one chain."""
        raise NotImplementedError

    def get_diagnostics_str(self, state: ExchangeState) -> str:
        """Shown beside the progress bar; warns once where levels are too few."""
        self._warn_of_few_levels(state)
        worst = float(np.min(np.asarray(state.swap_accept_prob)))
        return (
            f"exact, {self.num_evals} evals/draw, exchange "
            f"{np.mean(np.asarray(state.accept_prob)):.2f} (worst edge {worst:.2f}), "
            f"{int(np.sum(np.asarray(state.round_trips)))} round trips"
        )

    def _warn_of_few_levels(self, state: ExchangeState) -> None:
        """By the acceptance at the end of warm-up, when the driver shows a state."""
        tally = state.shared.tally
        iteration = int(np.max(np.asarray(state.i)))
        if self._has_warned or iteration < max(self._num_warmup, 1):
            return
        count = np.asarray(tally.count)
        if np.any(count == 0):
            return
        accept = 1.0 - np.asarray(tally.rejection) / count
        if accept.mean() < LEAST_ACCEPTANCE:
            self._has_warned = True
            warnings.warn(
                f"RTKReplicaExchange has too few levels: at the end of warm-up exchanges "
                f"were accepted with {accept.mean():.2f} on average. Set "
                f"`num_levels={suggest_levels(accept)}`.",
                UserWarning,
                stacklevel=2,
            )

    def log_likelihood(
        self, state: ExchangeState, model_args: tuple, model_kwargs: dict
    ) -> jax.Array | None:
        """Log likelihood at the replicas of all levels, ``(chains, K + 1)``.

        Less the first chain's ``log_offset``. The first column is at the draws; 0 without
        a model. None where the model has ordinary sites, whose prior is not told apart
        from it.
        """
        if self._problem.num_ordinary:
            return None
        bound = self._problem.bind(model_args, model_kwargs, self._frame(state))

        def one(u):
            prior = bound.base(u, jnp.zeros(())).log_density
            return bound.at_ground(u).log_density - prior

        replicas = state.replicas.reshape(-1, *state.replicas.shape[-2:])
        return jax.jit(jax.vmap(jax.vmap(one)))(replicas)

    def share_further_out(self, samples: Any, args: tuple, kwargs: dict):
        """Share of the prior's own draws less probable than the median sample, or None."""
        return self._problem.share_further_out(samples, args, kwargs)

    def places(self, shared: Adaptation, args: tuple, kwargs: dict) -> list[str]:
        """Where the regions of the population lie, ``"x[0] = 3.0"``, unconstrained.

        Of each the coordinate in which the regions are farthest apart.
        """
        bound = self._problem.bind(args, kwargs, shared.frame)
        centres = shared.regions.mean
        within = jnp.sqrt(jnp.mean(diagonal_of(shared.regions.covariance), axis=0))
        apart = int(jnp.argmax(jnp.ptp(centres, axis=0) / within))
        names = self._problem.coordinate_names()
        values = jax.vmap(lambda u: self._problem.flat(bound.unflatten(u)))(centres)
        return [
            f"{names[apart]} = {value:.3g}" for value in np.asarray(values[:, apart])
        ]

    def _frame(self, state):
        # sequential chains have one each, and the driver stacks them in the end
        is_stacked = state.shared.frame.origin.ndim > 1
        one = lambda leaf: leaf[0] if is_stacked else leaf
        return jax.tree.map(one, state.shared.frame)
